// Package namespace empties namespaces that are being deleted and lets them go
// (Kubernetes docs, "Namespaces"; conditions as upstream reports them).
//
// Order: pods first, and everything else once they are gone: their graceful end
// needs what they refer to, and a NetworkPolicy has to hold as long as a pod runs
// (KEP-5080).
// The namespace keeps the finalizer "kubernetes" in spec.finalizers until nothing
// is left in it.
package namespace

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Elsewhere is what is known of a namespace's content on servers behind
// APIServices, which the view does not hold.
type Elsewhere struct {
	IsKnown bool // false: it is being found out
	// Groups that could not be asked, with the reasons.
	Groups []string
	// Problems of deleting.
	Problems []string
	// Remaining objects by RESOURCE.GROUP, and those with a finalizer by its name.
	Remaining, Finalizers map[string]int
}

// Pauses until a namespace is looked at again because of servers elsewhere.
const (
	askAgain   = 100 * time.Millisecond
	checkAgain = 5 * time.Second
)

// Name of the part.
const Name = "namespace-controller"

// Part registers the controller for the kinds of table.
func Part(table *kind.Table) control.Part { return PartWith(table, nil) }

// PartWith also asks what servers behind APIServices hold; the function empties the
// namespace there, in the background, and does not block.
func PartWith(table *kind.Table, elsewhere func(s view.Snapshot, namespace string) Elsewhere) control.Part {
	p := control.Part{
		Name: Name, Kind: kind.Namespace,
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			ns := view.Get[*corev1.Namespace](s, kind.Namespace, "", ref.Name)
			if elsewhere == nil || ns == nil || ns.DeletionTimestamp == nil || ns.Status.Phase != corev1.NamespaceTerminating {
				return Plan(s, ref, now), time.Time{}
			}
			return PlanWith(s, ref, now, elsewhere(s, ref.Name))
		},
		Writes: []control.Write{
			{Verbs: []string{"delete"}},
			{Kind: kind.Namespace, Sub: "status", Verbs: []string{"update"}},
			{Kind: kind.Namespace, Sub: "finalize", Verbs: []string{"update"}},
		},
	}
	to := func(s view.Snapshot, o kind.Object) []view.Ref {
		ns := view.Get[*corev1.Namespace](s, kind.Namespace, "", o.GetNamespace())
		if ns == nil || ns.DeletionTimestamp == nil {
			return nil
		}
		return []view.Ref{view.RefOf(kind.Namespace, ns)}
	}
	for _, k := range contents(table) {
		p.Wakes = append(p.Wakes, control.Wake{Kind: k, To: to})
	}
	p.Wakes = append(p.Wakes, control.Wake{Custom: true, To: to})
	return p
}

// contents are the stored, namespaced kinds.
func contents(table *kind.Table) []*kind.Kind {
	var out []*kind.Kind
	for _, k := range table.Roots() {
		if k.Scope == kind.Namespaced {
			out = append(out, k)
		}
	}
	return out
}

// Plan deletes what can go now and reports what remains.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) act.List {
	actions, _ := PlanWith(s, ref, now, Elsewhere{IsKnown: true})
	return actions
}

// PlanWith is Plan with what is known of servers behind APIServices.
func PlanWith(s view.Snapshot, ref view.Ref, now time.Time, there Elsewhere) (actions act.List, again time.Time) {
	switch {
	case !there.IsKnown:
		again = now.Add(askAgain)
	case len(there.Groups)+len(there.Problems)+len(there.Remaining) > 0:
		again = now.Add(checkAgain)
	}
	return plan(s, ref, now, there), again
}

func plan(s view.Snapshot, ref view.Ref, now time.Time, there Elsewhere) act.List {
	ns := view.Get[*corev1.Namespace](s, kind.Namespace, "", ref.Name)
	if ns == nil || ns.DeletionTimestamp == nil {
		return nil
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		want := ns.DeepCopy()
		want.Status.Phase = corev1.NamespaceTerminating
		return act.List{act.Update{Kind: kind.Namespace, Object: want, Sub: "status", Note: "Active→Terminating", Reason: "deleted"}}
	}
	var deletes act.List
	remaining := map[string]int{}
	finalizers := map[string]int{}
	pods := false
	for range s.All(kind.Pod, ns.Name) {
		pods = true
		break
	}
	for _, k := range contents(s.Table()) {
		for o := range s.All(k, ns.Name) {
			// Upstream's form of the name, with a dot also for the core group.
			remaining[k.Plural+"."+k.Group]++
			for _, f := range o.GetFinalizers() {
				finalizers[f]++
			}
			if o.GetDeletionTimestamp() != nil || pods && k != kind.Pod {
				continue
			}
			deletes = append(deletes, act.Delete{Target: view.RefOf(k, o), UID: o.GetUID(), Propagation: metav1.DeletePropagationBackground, Reason: "namespace-deleted"})
		}
	}
	if !there.IsKnown {
		return deletes
	}
	for what, n := range there.Remaining {
		remaining[what] += n
	}
	for f, n := range there.Finalizers {
		finalizers[f] += n
	}
	if len(remaining)+len(there.Groups)+len(there.Problems) == 0 {
		if len(ns.Spec.Finalizers) == 0 {
			return nil
		}
		want := ns.DeepCopy()
		want.Spec.Finalizers = nil
		for _, f := range ns.Spec.Finalizers {
			if f != corev1.FinalizerKubernetes {
				want.Spec.Finalizers = append(want.Spec.Finalizers, f)
			}
		}
		if len(want.Spec.Finalizers) == len(ns.Spec.Finalizers) {
			return nil
		}
		return act.List{act.Update{Kind: kind.Namespace, Object: want, Sub: "finalize", Reason: "empty"}}
	}
	want := ns.DeepCopy()
	if n := len(there.Groups); n > 0 {
		set(&want.Status, now, "NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed",
			fmt.Sprintf("Discovery failed for some groups, %d failing: unable to retrieve the complete list of server APIs: %s", n, strings.Join(there.Groups, ", ")))
	} else {
		set(&want.Status, now, "NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", "All resources successfully discovered")
	}
	set(&want.Status, now, "NamespaceDeletionGroupVersionParsingFailure", false, "ParsedGroupVersions", "All legacy kube types successfully parsed")
	if n := len(there.Problems); n > 0 {
		set(&want.Status, now, "NamespaceDeletionContentFailure", true, "ContentDeletionFailed",
			fmt.Sprintf("Failed to delete all resource types, %d remaining: %s", n, strings.Join(there.Problems, ", ")))
	} else {
		set(&want.Status, now, "NamespaceDeletionContentFailure", false, "ContentDeleted", "All content successfully deleted, may be waiting on finalization")
	}
	if len(remaining) > 0 {
		set(&want.Status, now, "NamespaceContentRemaining", true, "SomeResourcesRemain", "Some resources are remaining: "+list(remaining, "%s has %d resource instances"))
	} else {
		set(&want.Status, now, "NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed")
	}
	if len(finalizers) > 0 {
		set(&want.Status, now, "NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", "Some content in the namespace has finalizers remaining: "+list(finalizers, "%s in %d resource instances"))
	} else {
		set(&want.Status, now, "NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", "All content-preserving finalizers finished")
	}
	// While there is still something to delete, its end changes the counts in a
	// moment: only report once everything left waits for somebody else.
	if len(deletes) == 0 && changed(ns, want) {
		deletes = append(deletes, act.Update{Kind: kind.Namespace, Object: want, Sub: "status", Reason: "content remains"})
	}
	return deletes
}

func changed(old, new *corev1.Namespace) bool {
	if len(old.Status.Conditions) != len(new.Status.Conditions) {
		return true
	}
	for i := range old.Status.Conditions {
		a, b := old.Status.Conditions[i], new.Status.Conditions[i]
		if a.Status != b.Status || a.Message != b.Message {
			return true
		}
	}
	return false
}

func set(st *corev1.NamespaceStatus, now time.Time, t corev1.NamespaceConditionType, on bool, reason, message string) {
	status := corev1.ConditionFalse
	if on {
		status = corev1.ConditionTrue
	}
	for i := range st.Conditions {
		c := &st.Conditions[i]
		if c.Type != t {
			continue
		}
		if c.Status != status {
			c.LastTransitionTime = metav1.NewTime(now)
		}
		c.Status, c.Reason, c.Message = status, reason, message
		return
	}
	st.Conditions = append(st.Conditions, corev1.NamespaceCondition{Type: t, Status: status, LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: message})
}

func list(counts map[string]int, format string) string {
	var names []string
	for n := range counts {
		names = append(names, n)
	}
	sort.Strings(names)
	for i, n := range names {
		names[i] = fmt.Sprintf(format, n, counts[n])
	}
	return strings.Join(names, ", ")
}
