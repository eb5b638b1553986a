// Package node follows the health of nodes (Kubernetes docs, "Nodes", "Taints and
// Tolerations", "Taint based Evictions"): silence makes a node's conditions
// Unknown, conditions become taints, and NoExecute taints delete the pods that do
// not tolerate them, each at its time.
//
// A node is heard through its Lease in kube-node-lease, or through the heartbeat
// of its Ready condition; nothing counts as silence that happened before the
// runtime began. Instants come from the node's clock: one that is more than
// GracePeriod behind the server's looks silent.
//
// While no node of the cluster is ready, no NoExecute taint is set for readiness:
// then it is likelier that the server cannot hear than that all nodes are dead
// (upstream's full-disruption mode). Upstream's limit on evictions per second is
// not kept.
package node

import (
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

// GracePeriod is how long a node may be silent, upstream's default since 1.32;
// StartupGracePeriod counts until its first word.
const (
	GracePeriod        = 50 * time.Second
	StartupGracePeriod = 60 * time.Second
)

const source = "node-controller"

// Part registers the node lifecycle controller.
func Part() control.Part {
	return control.Part{
		Name: "node-lifecycle-controller", Kind: kind.Node,
		Begin: func(started time.Time) control.Plan {
			return func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
				return Plan(s, ref, now, started)
			}
		},
		Wakes: []control.Wake{{Kind: kind.Node, When: readyChanged, To: func(s view.Snapshot, _ kind.Object) []view.Ref {
			// Whether all nodes are down matters to those that are.
			var refs []view.Ref
			for n := range view.List[*corev1.Node](s, kind.Node, "") {
				if status(n, corev1.NodeReady) != corev1.ConditionTrue {
					refs = append(refs, view.RefOf(kind.Node, n))
				}
			}
			return refs
		}}},
		Writes: []control.Write{
			{Kind: kind.Node, Verbs: []string{"update"}},
			{Kind: kind.Node, Sub: "status", Verbs: []string{"update"}},
			{Kind: kind.Pod, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

func readyChanged(old, new kind.Object) bool {
	a, b := corev1.ConditionUnknown, corev1.ConditionUnknown
	if old != nil {
		a = status(old.(*corev1.Node), corev1.NodeReady)
	}
	if new != nil {
		b = status(new.(*corev1.Node), corev1.NodeReady)
	}
	return old == nil || new == nil || a != b
}

func condition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// status of a condition; "" when there is none.
func status(n *corev1.Node, t corev1.NodeConditionType) corev1.ConditionStatus {
	if c := condition(n, t); c != nil {
		return c.Status
	}
	return ""
}

// heard is the last sign of life, and how long silence may last from there.
func heard(s view.Snapshot, n *corev1.Node, started time.Time) (at time.Time, grace time.Duration) {
	at, grace = n.CreationTimestamp.Time, StartupGracePeriod
	if c := condition(n, corev1.NodeReady); c != nil && c.Status != corev1.ConditionUnknown {
		grace = GracePeriod
		if c.LastHeartbeatTime.After(at) {
			at = c.LastHeartbeatTime.Time
		}
	}
	if l := view.Get[*coordinationv1.Lease](s, kind.Lease, corev1.NamespaceNodeLease, n.Name); l != nil && l.Spec.RenewTime != nil {
		grace = GracePeriod
		if l.Spec.RenewTime.After(at) {
			at = l.Spec.RenewTime.Time
		}
	}
	if started.After(at) {
		at = started
	}
	return at, grace
}

// Plan looks at one node.
func Plan(s view.Snapshot, ref view.Ref, now, started time.Time) (act.List, time.Time) {
	n := view.Get[*corev1.Node](s, kind.Node, "", ref.Name)
	if n == nil || n.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	at, grace := heard(s, n, started)
	var wake time.Time
	if due := at.Add(grace); now.Before(due) {
		wake = due
	} else if a := silence(n, now); a != nil {
		return a, time.Time{}
	}
	var actions act.List
	if want := taints(s, n, now); !sameTaints(want, n.Spec.Taints) {
		c := n.DeepCopy()
		c.Spec.Taints = want
		actions = append(actions, act.Update{Kind: kind.Node, Object: c, Note: note(n.Spec.Taints, want)})
	}
	if status(n, corev1.NodeReady) == corev1.ConditionUnknown {
		actions = append(actions, unready(s, n, now)...)
	}
	return actions, wake
}

// silence makes the conditions that the node reports Unknown.
func silence(n *corev1.Node, now time.Time) act.List {
	c := n.DeepCopy()
	changed := false
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		have := condition(c, t)
		switch {
		case have == nil:
			c.Status.Conditions = append(c.Status.Conditions, corev1.NodeCondition{Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message: "Kubelet never posted node status.", LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: metav1.NewTime(now)})
			changed = true
		case have.Status != corev1.ConditionUnknown:
			have.Status, have.Reason, have.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			have.LastTransitionTime = metav1.NewTime(now)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return act.List{
		act.Update{Kind: kind.Node, Object: c, Sub: "status", Note: "Ready→Unknown", Reason: "node is silent"},
		workload.Event(kind.Node, n, source, corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady", n.Name),
	}
}

// owned taints are set and taken away here; others are the users'.
var owned = map[string]bool{
	corev1.TaintNodeNotReady: true, corev1.TaintNodeUnreachable: true, corev1.TaintNodeUnschedulable: true, corev1.TaintNodeMemoryPressure: true,
	corev1.TaintNodeDiskPressure: true, corev1.TaintNodePIDPressure: true, corev1.TaintNodeNetworkUnavailable: true,
}

// taints that the node is to have: its users', with the instant of a NoExecute
// taint filled in (tolerations count from there), and those of its conditions.
func taints(s view.Snapshot, n *corev1.Node, now time.Time) []corev1.Taint {
	type id struct {
		key    string
		effect corev1.TaintEffect
	}
	want := map[id]bool{}
	switch status(n, corev1.NodeReady) {
	case corev1.ConditionFalse:
		want[id{corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule}] = true
		want[id{corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute}] = anyReady(s)
	case corev1.ConditionUnknown:
		want[id{corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule}] = true
		want[id{corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute}] = anyReady(s)
	case "":
		// Not heard yet: what admission or the node itself has set stays.
		for _, t := range n.Spec.Taints {
			if t.Key == corev1.TaintNodeNotReady {
				want[id{t.Key, t.Effect}] = true
			}
		}
	}
	for cond, key := range map[corev1.NodeConditionType]string{corev1.NodeMemoryPressure: corev1.TaintNodeMemoryPressure, corev1.NodeDiskPressure: corev1.TaintNodeDiskPressure,
		corev1.NodePIDPressure: corev1.TaintNodePIDPressure, corev1.NodeNetworkUnavailable: corev1.TaintNodeNetworkUnavailable} {
		want[id{key, corev1.TaintEffectNoSchedule}] = status(n, cond) == corev1.ConditionTrue
	}
	want[id{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule}] = n.Spec.Unschedulable
	var out []corev1.Taint
	at := metav1.NewTime(now)
	for _, t := range n.Spec.Taints {
		k := id{t.Key, t.Effect}
		if owned[t.Key] && t.Effect != corev1.TaintEffectPreferNoSchedule && !want[k] {
			continue
		}
		delete(want, k)
		if t.Effect == corev1.TaintEffectNoExecute && t.TimeAdded == nil {
			t.TimeAdded = &at
		}
		out = append(out, t)
	}
	var more []corev1.Taint
	for k, on := range want {
		if on {
			t := corev1.Taint{Key: k.key, Effect: k.effect}
			if k.effect == corev1.TaintEffectNoExecute {
				t.TimeAdded = &at
			}
			more = append(more, t)
		}
	}
	slices.SortFunc(more, func(a, b corev1.Taint) int {
		if a.Key != b.Key {
			if a.Key < b.Key {
				return -1
			}
			return 1
		}
		if a.Effect < b.Effect {
			return -1
		}
		return 1
	})
	return append(out, more...)
}

func anyReady(s view.Snapshot) bool {
	for n := range view.List[*corev1.Node](s, kind.Node, "") {
		if status(n, corev1.NodeReady) == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func sameTaints(a, b []corev1.Taint) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.Taint) bool {
		return x.Key == y.Key && x.Value == y.Value && x.Effect == y.Effect && x.TimeAdded.Equal(y.TimeAdded)
	})
}

func note(old, new []corev1.Taint) string {
	names := func(l []corev1.Taint) map[string]bool {
		out := map[string]bool{}
		for _, t := range l {
			out[t.Key+":"+string(t.Effect)] = true
		}
		return out
	}
	a, b := names(old), names(new)
	var out []string
	for t := range b {
		if !a[t] {
			out = append(out, "+"+t)
		}
	}
	for t := range a {
		if !b[t] {
			out = append(out, "-"+t)
		}
	}
	if len(out) == 0 {
		return "taint times"
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}

// unready takes the pods of a silent node out of service.
func unready(s view.Snapshot, n *corev1.Node, now time.Time) (actions act.List) {
	for p := range s.PodsOn(n.Name) {
		if c := workload.ReadyCondition(p); c == nil || c.Status != corev1.ConditionTrue {
			continue
		}
		w := p.DeepCopy()
		c := workload.ReadyCondition(w)
		c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now)
		actions = append(actions, act.Update{Kind: kind.Pod, Object: w, Sub: "status", Note: "Ready→False", Reason: "node is silent"},
			workload.Event(kind.Pod, p, source, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready"))
	}
	return actions
}
