// Package podgc removes pods that no node will finish (Kubernetes docs, "Pod
// Lifecycle", Garbage collection of Pods):
//
//	orphaned     bound to a node that does not exist
//	unscheduled  being deleted before it was bound
//	stranded     being deleted on a node that is not ready and marked
//	             node.kubernetes.io/out-of-service
//	ended        the oldest of those that have ended, beyond Threshold
//
// They are deleted without grace. A pod bound to a node that has not registered
// yet has Quarantine from its creation on; upstream gives the same time from when
// it misses the node.
package podgc

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

// Threshold is how many ended pods may stay, upstream's default.
const Threshold = 12500

// Quarantine is how old a pod of an unknown node has to be.
const Quarantine = 40 * time.Second

// Part registers the collector. It plans per pod, and for all ended pods at once
// under the namespace kube-system.
func Part() control.Part { return part(Threshold) }

func part(threshold int) control.Part {
	return control.Part{
		Name: "pod-garbage-collector", Kinds: []*kind.Kind{kind.Pod, kind.Namespace},
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			if ref.Kind == kind.Namespace {
				if ref.Name != metav1.NamespaceSystem {
					return nil, time.Time{}
				}
				return PlanEnded(s, threshold), time.Time{}
			}
			return Plan(s, ref, now)
		},
		When: func(old, new kind.Object) bool {
			switch n := new.(type) {
			case *corev1.Pod:
				o, ok := old.(*corev1.Pod)
				return !ok || (o.DeletionTimestamp == nil) != (n.DeletionTimestamp == nil) || o.Spec.NodeName != n.Spec.NodeName
			case *corev1.Namespace:
				return old == nil
			}
			return false
		},
		Wakes: []control.Wake{
			{Kind: kind.Pod, When: func(old, new kind.Object) bool {
				n, ok := new.(*corev1.Pod)
				o, ok2 := old.(*corev1.Pod)
				return ok && workload.Ended(n) && !(ok2 && workload.Ended(o))
			}, To: func(s view.Snapshot, _ kind.Object) []view.Ref {
				if s.Len(kind.Pod) <= threshold {
					return nil
				}
				return []view.Ref{{Kind: kind.Namespace, Name: metav1.NamespaceSystem}}
			}},
			{Kind: kind.Node, When: func(old, new kind.Object) bool {
				return new == nil || old != nil && outOfService(new.(*corev1.Node)) != outOfService(old.(*corev1.Node))
			}, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				var refs []view.Ref
				for p := range s.PodsOn(o.GetName()) {
					refs = append(refs, view.RefOf(kind.Pod, p))
				}
				return refs
			}},
		},
		Writes: []control.Write{
			{Kind: kind.Pod, Verbs: []string{"delete"}},
			{Kind: kind.Pod, Sub: "status", Verbs: []string{"patch"}},
		},
	}
}

// outOfService: someone says that the node is off, and it does not say otherwise.
func outOfService(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// Plan looks at one pod.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	p := view.Get[*corev1.Pod](s, kind.Pod, ref.Namespace, ref.Name)
	if p == nil {
		return nil, time.Time{}
	}
	if p.Spec.NodeName == "" {
		if p.DeletionTimestamp != nil && (p.DeletionGracePeriodSeconds == nil || *p.DeletionGracePeriodSeconds > 0) {
			return remove(p, now, "unscheduled", ""), time.Time{}
		}
		return nil, time.Time{}
	}
	n := view.Get[*corev1.Node](s, kind.Node, "", p.Spec.NodeName)
	switch {
	case n == nil:
		if due := p.CreationTimestamp.Add(Quarantine); now.Before(due) {
			return nil, due
		}
		if p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0 {
			return nil, time.Time{} // finalizers hold it
		}
		return remove(p, now, "node-gone", "PodGC: node no longer exists"), time.Time{}
	case p.DeletionTimestamp != nil && outOfService(n) && (p.DeletionGracePeriodSeconds == nil || *p.DeletionGracePeriodSeconds > 0):
		return remove(p, now, "node-out-of-service", ""), time.Time{}
	}
	return nil, time.Time{}
}

// remove deletes without grace; a pod that has not ended is said to have failed
// first, so that its controllers count it.
func remove(p *corev1.Pod, now time.Time, reason, disrupted string) (actions act.List) {
	if !workload.Ended(p) {
		status := map[string]any{"phase": corev1.PodFailed}
		if disrupted != "" {
			status["conditions"] = append(slices.DeleteFunc(slices.Clone(p.Status.Conditions), func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }),
				corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", Message: disrupted,
					LastTransitionTime: metav1.NewTime(now), ObservedGeneration: p.Generation})
		}
		// A patch, since the collector's role has no other verb for pods/status; it holds
		// for the pod as it was seen.
		merge, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "resourceVersion": p.ResourceVersion}, "status": status})
		if err != nil {
			panic(fmt.Sprintf("podgc: encode status: %v", err))
		}
		actions = append(actions, act.Patch{Target: view.RefOf(kind.Pod, p), UID: p.UID, Sub: "status", Merge: merge, Reason: reason})
	}
	d := workload.Delete(p, reason)
	zero := int64(0)
	d.GraceSeconds = &zero
	return append(actions, d)
}

// PlanEnded deletes the oldest ended pods beyond threshold.
func PlanEnded(s view.Snapshot, threshold int) (actions act.List) {
	if s.Len(kind.Pod) <= threshold {
		return nil
	}
	var ended []*corev1.Pod
	for p := range view.List[*corev1.Pod](s, kind.Pod, "") {
		if workload.Ended(p) && p.DeletionTimestamp == nil {
			ended = append(ended, p)
		}
	}
	over := len(ended) - threshold
	if over <= 0 {
		return nil
	}
	slices.SortStableFunc(ended, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, p := range ended[:over] {
		d := workload.Delete(p, fmt.Sprintf("%d ended pods", len(ended)))
		zero := int64(0)
		d.GraceSeconds = &zero
		actions = append(actions, d)
	}
	return actions
}
