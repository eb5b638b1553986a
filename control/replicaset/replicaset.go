// Package replicaset keeps as many pods as a ReplicaSet or a
// ReplicationController asks for: if one is missing it makes one; if one is too
// many it removes one (Kubernetes docs, "ReplicaSet").
package replicaset

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

// burst bounds the pods that one plan creates or deletes.
const burst = 500

// Part registers the controller of ReplicaSets.
func Part() control.Part {
	p := part("replicaset-controller", kind.ReplicaSet, func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
		rs := view.Get[*appsv1.ReplicaSet](s, kind.ReplicaSet, ref.Namespace, ref.Name)
		if rs == nil {
			return nil, time.Time{}
		}
		sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
		if err != nil {
			return nil, time.Time{}
		}
		o := owner{k: kind.ReplicaSet, obj: rs, name: "replicaset-controller", selector: sel, template: &rs.Spec.Template, replicas: replicas(rs.Spec.Replicas), minReady: rs.Spec.MinReadySeconds}
		o.related = func(p *corev1.Pod) bool { return relatedByDeployment(s, rs, p) }
		actions, st, wake := plan(s, o, now)
		if busy(actions) {
			return actions, wake
		}
		want := rs.DeepCopy()
		want.Status.Replicas, want.Status.FullyLabeledReplicas, want.Status.ReadyReplicas, want.Status.AvailableReplicas = st.total, st.labeled, st.ready, st.available
		want.Status.TerminatingReplicas = &st.terminating
		want.Status.ObservedGeneration = rs.Generation
		want.Status.Conditions = slices.DeleteFunc(want.Status.Conditions, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure })
		if !apiequality.Semantic.DeepEqual(want.Status, rs.Status) {
			actions = append(actions, act.Update{Kind: kind.ReplicaSet, Object: want, Sub: "status", Note: st.note(rs.Status.ReadyReplicas)})
		}
		return actions, wake
	})
	p.Failed = func(s view.Snapshot, ref view.Ref, failed act.Action, err error, now time.Time) act.List {
		rs := view.Get[*appsv1.ReplicaSet](s, kind.ReplicaSet, ref.Namespace, ref.Name)
		if rs == nil || rs.DeletionTimestamp != nil {
			return nil
		}
		event, reason := workload.Failed(kind.ReplicaSet, rs, p.Name, failed, err)
		if reason == "" {
			return nil
		}
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue && c.Reason == reason {
				return event
			}
		}
		want := rs.DeepCopy()
		want.Status.ObservedGeneration = rs.Generation
		want.Status.Conditions = slices.DeleteFunc(want.Status.Conditions, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure })
		want.Status.Conditions = append(want.Status.Conditions, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: err.Error()})
		return append(event, act.Update{Kind: kind.ReplicaSet, Object: want, Sub: "status", Reason: reason})
	}
	return p
}

// busy: pods are being made or taken away; the status is written when the
// snapshot shows them.
func busy(actions act.List) bool {
	for _, a := range actions {
		switch a.(type) {
		case act.Create, act.Delete:
			return true
		}
	}
	return false
}

// ControllerPart registers the controller of ReplicationControllers.
func ControllerPart() control.Part {
	p := part("replication-controller", kind.ReplicationController, func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
		rc := view.Get[*corev1.ReplicationController](s, kind.ReplicationController, ref.Namespace, ref.Name)
		if rc == nil || rc.Spec.Template == nil || len(rc.Spec.Selector) == 0 {
			return nil, time.Time{}
		}
		o := owner{k: kind.ReplicationController, obj: rc, name: "replication-controller", selector: labels.SelectorFromSet(rc.Spec.Selector), template: rc.Spec.Template, replicas: replicas(rc.Spec.Replicas), minReady: rc.Spec.MinReadySeconds}
		actions, st, wake := plan(s, o, now)
		if busy(actions) {
			return actions, wake
		}
		want := rc.DeepCopy()
		want.Status.Conditions = slices.DeleteFunc(want.Status.Conditions, func(c corev1.ReplicationControllerCondition) bool {
			return c.Type == corev1.ReplicationControllerReplicaFailure
		})
		want.Status.Replicas, want.Status.FullyLabeledReplicas, want.Status.ReadyReplicas, want.Status.AvailableReplicas = st.total, st.labeled, st.ready, st.available
		want.Status.ObservedGeneration = rc.Generation
		if !apiequality.Semantic.DeepEqual(want.Status, rc.Status) {
			actions = append(actions, act.Update{Kind: kind.ReplicationController, Object: want, Sub: "status", Note: st.note(rc.Status.ReadyReplicas)})
		}
		return actions, wake
	})
	p.Failed = func(s view.Snapshot, ref view.Ref, failed act.Action, err error, now time.Time) act.List {
		rc := view.Get[*corev1.ReplicationController](s, kind.ReplicationController, ref.Namespace, ref.Name)
		if rc == nil || rc.DeletionTimestamp != nil {
			return nil
		}
		event, reason := workload.Failed(kind.ReplicationController, rc, p.Name, failed, err)
		if reason == "" {
			return nil
		}
		for _, c := range rc.Status.Conditions {
			if c.Type == corev1.ReplicationControllerReplicaFailure && c.Status == corev1.ConditionTrue && c.Reason == reason {
				return event
			}
		}
		want := rc.DeepCopy()
		want.Status.ObservedGeneration = rc.Generation
		want.Status.Conditions = slices.DeleteFunc(want.Status.Conditions, func(c corev1.ReplicationControllerCondition) bool {
			return c.Type == corev1.ReplicationControllerReplicaFailure
		})
		want.Status.Conditions = append(want.Status.Conditions, corev1.ReplicationControllerCondition{Type: corev1.ReplicationControllerReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: err.Error()})
		return append(event, act.Update{Kind: kind.ReplicationController, Object: want, Sub: "status", Reason: reason})
	}
	return p
}

func part(name string, k *kind.Kind, p control.Plan) control.Part {
	return control.Part{
		Name: name, Kind: k, Plan: p,
		Wakes: []control.Wake{{Kind: kind.Pod, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			if refs := control.ToOwner(k)(s, o); refs != nil || metav1.GetControllerOfNoCopy(o) != nil {
				return refs
			}
			return matching(s, k, o)
		}}},
		Writes: []control.Write{
			{Kind: kind.Pod, Verbs: []string{"create", "delete", "patch"}},
			{Kind: k, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

// matching are the owners whose selector matches an orphan.
func matching(s view.Snapshot, k *kind.Kind, orphan kind.Object) []view.Ref {
	var refs []view.Ref
	for o := range s.Selecting(k, orphan.GetNamespace(), orphan.GetLabels()) {
		var sel labels.Selector
		switch o := o.(type) {
		case *appsv1.ReplicaSet:
			sel, _ = metav1.LabelSelectorAsSelector(o.Spec.Selector)
		case *corev1.ReplicationController:
			sel = labels.SelectorFromSet(o.Spec.Selector)
		}
		if sel != nil && !sel.Empty() && sel.Matches(labels.Set(orphan.GetLabels())) {
			refs = append(refs, view.RefOf(k, o))
		}
	}
	return refs
}

func replicas(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}

// owner is what both kinds have in common.
type owner struct {
	k        *kind.Kind
	obj      kind.Object
	name     string // of the controller, in events
	selector labels.Selector
	template *corev1.PodTemplateSpec
	replicas int
	minReady int32
	// related pods count for spreading removals over nodes; nil: only its own.
	related func(*corev1.Pod) bool
}

type count struct{ total, labeled, ready, available, terminating int32 }

func (c count) note(before int32) string {
	if c.ready == before {
		return fmt.Sprintf("replicas=%d ready=%d", c.total, c.ready)
	}
	return fmt.Sprintf("ready %d→%d", before, c.ready)
}

func plan(s view.Snapshot, o owner, now time.Time) (actions act.List, st count, wake time.Time) {
	mine, actions := workload.Claim(s, o.k, o.obj, o.selector)
	var active []*corev1.Pod
	templateLabels := labels.Set(o.template.Labels).AsSelectorPreValidated()
	for _, p := range mine {
		if !workload.Active(p) {
			if p.DeletionTimestamp != nil && !workload.Ended(p) {
				st.terminating++
			}
			continue
		}
		active = append(active, p)
		st.total++
		if templateLabels.Matches(labels.Set(p.Labels)) {
			st.labeled++
		}
		if workload.Ready(p) {
			st.ready++
		}
		ok, at := workload.Available(p, o.minReady, now)
		if ok {
			st.available++
		}
		wake = workload.Earlier(wake, at)
	}
	if o.obj.GetDeletionTimestamp() != nil || len(actions) > 0 {
		// Count what adoption brings before making more.
		return actions, st, wake
	}
	switch diff := o.replicas - len(active); {
	case diff > 0:
		n := 0
		for range min(diff, burst) {
			p := workload.Pod(o.k, o.obj, o.template)
			p.Name = workload.FreshName(s, kind.Pod, p.Namespace, p.GenerateName, o.obj.GetUID(), &n)
			actions = append(actions, act.Create{Kind: kind.Pod, Object: p, Reason: fmt.Sprintf("%d of %d exist", len(active), o.replicas)})
		}
		for _, a := range actions {
			actions = append(actions, workload.Event(o.k, o.obj, o.name, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", a.(act.Create).Object.GetName()))
		}
	case diff < 0:
		perNode := map[string]int{}
		for _, p := range active {
			perNode[p.Spec.NodeName]++
		}
		if o.related != nil {
			seen := map[string]bool{}
			for _, p := range active {
				if n := p.Spec.NodeName; n != "" && !seen[n] {
					seen[n] = true
					perNode[n] = 0
					for q := range s.PodsOn(n) {
						if workload.Active(q) && q.Namespace == o.obj.GetNamespace() && o.related(q) {
							perNode[n]++
						}
					}
				}
			}
		}
		workload.SortForDeletion(active, perNode, now)
		for _, p := range active[:min(-diff, burst)] {
			actions = append(actions, workload.Delete(p, "scale-down"))
		}
		for _, a := range actions {
			actions = append(actions, workload.Event(o.k, o.obj, o.name, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", a.(act.Delete).Target.Name))
		}
	}
	return actions, st, wake
}

// relatedByDeployment: p belongs to a ReplicaSet of the same Deployment.
func relatedByDeployment(s view.Snapshot, rs *appsv1.ReplicaSet, p *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return false
	}
	if ref.UID == rs.UID {
		return true
	}
	up := metav1.GetControllerOfNoCopy(rs)
	other := view.Get[*appsv1.ReplicaSet](s, kind.ReplicaSet, p.Namespace, ref.Name)
	if up == nil || other == nil || other.UID != ref.UID {
		return false
	}
	theirs := metav1.GetControllerOfNoCopy(other)
	return theirs != nil && theirs.UID == up.UID
}
