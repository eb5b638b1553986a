package node

import (
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

const evictor = "taint-eviction-controller"

// EvictPart registers the controller that deletes pods from nodes with NoExecute
// taints; it plans per pod.
func EvictPart() control.Part {
	return control.Part{
		Name: evictor, Kind: kind.Pod, Plan: PlanEviction,
		When: func(old, new kind.Object) bool {
			a, ok := old.(*corev1.Pod)
			b, ok2 := new.(*corev1.Pod)
			if !ok2 {
				return false
			}
			return !ok && b.Spec.NodeName != "" || ok && (a.Spec.NodeName != b.Spec.NodeName || len(a.Spec.Tolerations) != len(b.Spec.Tolerations))
		},
		Wakes: []control.Wake{{Kind: kind.Node, When: func(old, new kind.Object) bool {
			a, b := []corev1.Taint(nil), []corev1.Taint(nil)
			if old != nil {
				a = noExecute(old.(*corev1.Node))
			}
			if new != nil {
				b = noExecute(new.(*corev1.Node))
			}
			return !sameTaints(a, b)
		}, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for p := range s.PodsOn(o.GetName()) {
				refs = append(refs, view.RefOf(kind.Pod, p))
			}
			return refs
		}}},
		Writes: []control.Write{
			{Kind: kind.Pod, Verbs: []string{"delete"}},
			{Kind: kind.Pod, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

func noExecute(n *corev1.Node) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

// PlanEviction deletes one pod when its toleration has run out, and else says
// when that will be.
func PlanEviction(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	p := view.Get[*corev1.Pod](s, kind.Pod, ref.Namespace, ref.Name)
	if p == nil || p.Spec.NodeName == "" || p.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	n := view.Get[*corev1.Node](s, kind.Node, "", p.Spec.NodeName)
	if n == nil {
		return nil, time.Time{}
	}
	var due time.Time
	for _, t := range noExecute(n) {
		tolerated := false
		for i := range p.Spec.Tolerations {
			tol := &p.Spec.Tolerations[i]
			if !workload.Tolerates(tol, &t) {
				continue
			}
			tolerated = true
			if tol.TolerationSeconds != nil {
				at := now
				if t.TimeAdded != nil {
					at = t.TimeAdded.Time
				}
				// A pod that came later has its time from then on.
				if start := p.CreationTimestamp.Time; start.After(at) {
					at = start
				}
				due = workload.Earlier(due, at.Add(time.Duration(max(*tol.TolerationSeconds, 0))*time.Second))
			}
		}
		if !tolerated {
			due = now
			break
		}
	}
	if due.IsZero() {
		return nil, time.Time{}
	}
	if now.Before(due) {
		return nil, due
	}
	actions := act.List{workload.Event(kind.Pod, p, evictor, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s/%s", p.Namespace, p.Name)}
	target := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager",
		Message: "Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.NewTime(now), ObservedGeneration: p.Generation}
	if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == target.Type && c.Status == target.Status }) {
		w := p.DeepCopy()
		w.Status.Conditions = append(slices.DeleteFunc(w.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == target.Type }), target)
		actions = append(actions, act.Update{Kind: kind.Pod, Object: w, Sub: "status", Note: "DisruptionTarget", Reason: "taint"})
	}
	return append(actions, workload.Delete(p, "taint")), time.Time{}
}
