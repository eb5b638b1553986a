// Package disruption says how many pods of a PodDisruptionBudget may be evicted
// now (Kubernetes docs, "Specifying a Disruption Budget for your Application").
// The API server's eviction takes from status.disruptionsAllowed and notes the pod
// in status.disruptedPods, where it counts as gone until it is, at most two
// minutes.
package disruption

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const source = "disruption-controller"

// forget is how long an evicted pod that has not gone counts as disrupted.
const forget = 2 * time.Minute

// Part registers the controller for budgets over the workloads of table.
func Part(table *kind.Table) control.Part {
	p := control.Part{
		Name: source, Kind: kind.PodDisruptionBudget,
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			return Plan(s, s.Table(), ref, now)
		},
		Wakes: []control.Wake{{Kind: kind.Pod, When: podMatters, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for b := range s.Selecting(kind.PodDisruptionBudget, o.GetNamespace(), o.GetLabels()) {
				if sel, err := metav1.LabelSelectorAsSelector(b.(*policyv1.PodDisruptionBudget).Spec.Selector); err == nil && sel.Matches(labels.Set(o.GetLabels())) {
					refs = append(refs, view.RefOf(kind.PodDisruptionBudget, b))
				}
			}
			return refs
		}}},
		Writes: []control.Write{{Kind: kind.PodDisruptionBudget, Sub: "status", Verbs: []string{"update"}}},
	}
	for _, k := range table.Rows() {
		if k.Scale == nil || k.Stored != nil || k.Scope != kind.Namespaced {
			continue
		}
		p.Wakes = append(p.Wakes, control.Wake{Kind: k, When: func(old, new kind.Object) bool {
			return old == nil || new == nil || k.Scale.SpecReplicas(old) != k.Scale.SpecReplicas(new)
		}, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for b := range s.All(kind.PodDisruptionBudget, o.GetNamespace()) {
				refs = append(refs, view.RefOf(kind.PodDisruptionBudget, b))
			}
			return refs
		}})
	}
	return p
}

func podMatters(old, new kind.Object) bool {
	a, ok := old.(*corev1.Pod)
	b, ok2 := new.(*corev1.Pod)
	return !ok || !ok2 || workload.Ready(a) != workload.Ready(b) || workload.Ended(a) != workload.Ended(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) || !apiequality.Semantic.DeepEqual(a.Labels, b.Labels)
}

// Plan counts for one budget.
func Plan(s view.Snapshot, table *kind.Table, ref view.Ref, now time.Time) (act.List, time.Time) {
	b := view.Get[*policyv1.PodDisruptionBudget](s, kind.PodDisruptionBudget, ref.Namespace, ref.Name)
	if b == nil || b.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return nil, time.Time{}
	}
	var pods []*corev1.Pod
	add := func(p *corev1.Pod) {
		if !workload.Ended(p) && sel.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		}
	}
	if b.Spec.Selector != nil && len(b.Spec.Selector.MatchLabels) > 0 {
		for p := range s.PodsWith(b.Namespace, b.Spec.Selector.MatchLabels) {
			add(p)
		}
	} else {
		for p := range view.List[*corev1.Pod](s, kind.Pod, b.Namespace) {
			add(p)
		}
	}
	expected, desired := want(s, table, b, pods)
	c := b.DeepCopy()
	st := &c.Status
	var wake time.Time
	for name, at := range st.DisruptedPods {
		i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return p.Name == name })
		due := at.Add(forget)
		switch {
		case i < 0 || pods[i].DeletionTimestamp != nil || !now.Before(due):
			delete(st.DisruptedPods, name)
		default:
			wake = workload.Earlier(wake, due)
		}
	}
	healthy := 0
	for _, p := range pods {
		if _, gone := st.DisruptedPods[p.Name]; !gone && p.DeletionTimestamp == nil && workload.Ready(p) {
			healthy++
		}
	}
	allowed := healthy - desired
	if expected <= 0 || allowed < 0 {
		allowed = 0
	}
	st.ExpectedPods, st.DesiredHealthy, st.CurrentHealthy, st.DisruptionsAllowed = int32(expected), int32(desired), int32(healthy), int32(allowed)
	st.ObservedGeneration = b.Generation
	if allowed > 0 {
		condition(st, b.Generation, now, metav1.ConditionTrue, policyv1.SufficientPodsReason)
	} else {
		condition(st, b.Generation, now, metav1.ConditionFalse, policyv1.InsufficientPodsReason)
	}
	if apiequality.Semantic.DeepEqual(c.Status, b.Status) {
		return nil, wake
	}
	return act.List{act.Update{Kind: kind.PodDisruptionBudget, Object: c, Sub: "status",
		Note: fmt.Sprintf("healthy=%d desired=%d expected=%d allowed=%d", healthy, desired, expected, allowed)}}, wake
}

func condition(st *policyv1.PodDisruptionBudgetStatus, generation int64, now time.Time, status metav1.ConditionStatus, reason string) {
	for i := range st.Conditions {
		c := &st.Conditions[i]
		if c.Type == policyv1.DisruptionAllowedCondition {
			if c.Status != status {
				c.LastTransitionTime = metav1.NewTime(now)
			}
			c.Status, c.Reason, c.Message, c.ObservedGeneration = status, reason, "", generation
			return
		}
	}
	st.Conditions = append(st.Conditions, metav1.Condition{Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now)})
}

// want: how many pods there should be, and how many of them healthy.
func want(s view.Snapshot, table *kind.Table, b *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int) {
	switch {
	case b.Spec.MaxUnavailable != nil:
		expected = scales(s, table, pods)
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MaxUnavailable, expected, true)
		if err != nil {
			n = 0
		}
		return expected, max(expected-n, 0)
	case b.Spec.MinAvailable != nil && b.Spec.MinAvailable.Type == intstr.Int:
		return len(pods), int(b.Spec.MinAvailable.IntVal)
	case b.Spec.MinAvailable != nil:
		expected = scales(s, table, pods)
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MinAvailable, expected, true)
		if err != nil {
			n = expected
		}
		return expected, n
	}
	return len(pods), 0
}

// scales sums the sizes of the workloads that own the pods: the topmost owner
// that can be scaled counts, each once.
func scales(s view.Snapshot, table *kind.Table, pods []*corev1.Pod) (n int) {
	seen := map[types.UID]bool{}
	for _, p := range pods {
		var top kind.Object
		var topKind *kind.Kind
		for o := kind.Object(p); ; {
			r := metav1.GetControllerOfNoCopy(o)
			if r == nil {
				break
			}
			k := table.ByKind(schema.FromAPIVersionAndKind(r.APIVersion, r.Kind))
			if k == nil {
				break
			}
			owner := s.Get(k, p.Namespace, r.Name)
			if owner == nil || owner.GetUID() != r.UID {
				break
			}
			if k.Scale != nil {
				top, topKind = owner, k
			}
			o = owner
		}
		if top != nil && !seen[top.GetUID()] {
			seen[top.GetUID()] = true
			n += int(topKind.Scale.SpecReplicas(top))
		}
	}
	return n
}
