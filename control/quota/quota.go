// Package quota keeps the status of ResourceQuotas: what a namespace uses of what
// it may (Kubernetes docs, "Resource Quotas"). Admission refuses by its own count
// at the time of a request; this one is for people and dashboards. What an object
// counts is said in kind/usage.
package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/kind/usage"
	"proa.dev/view"
)

// Part registers the controller for the kinds of table.
func Part(table *kind.Table) control.Part {
	p := control.Part{
		Name: "resourcequota-controller", Kind: kind.ResourceQuota,
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			return Plan(s, ref), time.Time{}
		},
		Writes: []control.Write{{Kind: kind.ResourceQuota, Sub: "status", Verbs: []string{"update"}}},
	}
	to := func(s view.Snapshot, o kind.Object) []view.Ref {
		var refs []view.Ref
		for q := range s.All(kind.ResourceQuota, o.GetNamespace()) {
			refs = append(refs, view.RefOf(kind.ResourceQuota, q))
		}
		return refs
	}
	for _, k := range counted(table) {
		p.Wakes = append(p.Wakes, control.Wake{Kind: k, To: to, When: func(old, new kind.Object) bool { return matters(k, old, new) }})
	}
	p.Wakes = append(p.Wakes, control.Wake{Custom: true, To: to, When: func(old, new kind.Object) bool { return old == nil || new == nil }})
	return p
}

// counted are the stored, namespaced kinds; events are not worth counting.
func counted(table *kind.Table) (out []*kind.Kind) {
	for _, k := range table.Roots() {
		if k.Scope == kind.Namespaced && k != kind.Event && k != kind.Lease {
			out = append(out, k)
		}
	}
	return out
}

// matters: an object comes or goes, or counts something else than before.
func matters(k *kind.Kind, old, new kind.Object) bool {
	if old == nil || new == nil {
		return true
	}
	switch b := new.(type) {
	case *corev1.Pod:
		a := old.(*corev1.Pod)
		return usage.Ended(a) != usage.Ended(b) || a.Generation != b.Generation
	case *corev1.Service, *corev1.PersistentVolumeClaim:
		return !apiequality.Semantic.DeepEqual(usage.Of(k, old), usage.Of(k, new))
	}
	return false
}

// Plan sums up one quota.
func Plan(s view.Snapshot, ref view.Ref) act.List {
	q := view.Get[*corev1.ResourceQuota](s, kind.ResourceQuota, ref.Namespace, ref.Name)
	if q == nil || q.DeletionTimestamp != nil {
		return nil
	}
	used := corev1.ResourceList{}
	for name := range q.Spec.Hard {
		used[name] = *resource.NewQuantity(0, q.Spec.Hard[name].Format)
	}
	for _, k := range counted(s.Table()) {
		if !slices.ContainsFunc(names(q.Spec.Hard), func(n string) bool { return about(k, n) }) {
			continue
		}
		for o := range s.All(k, q.Namespace) {
			if !usage.Matches(q, k, o) {
				continue
			}
			for name, n := range usage.Of(k, o) {
				if sum, ok := used[name]; ok {
					sum.Add(n)
					used[name] = sum
				}
			}
		}
	}
	want := q.DeepCopy()
	want.Status.Hard, want.Status.Used = q.Spec.Hard.DeepCopy(), used
	if apiequality.Semantic.DeepEqual(want.Status, q.Status) {
		return nil
	}
	var note []string
	for _, n := range names(used) {
		was, is := q.Status.Used[corev1.ResourceName(n)], used[corev1.ResourceName(n)]
		if was.Cmp(is) != 0 {
			note = append(note, fmt.Sprintf("%s=%s", n, is.String()))
		}
	}
	return act.List{act.Update{Kind: kind.ResourceQuota, Object: want, Sub: "status", Note: strings.Join(note, " ")}}
}

func names(l corev1.ResourceList) (out []string) {
	for n := range l {
		out = append(out, string(n))
	}
	slices.Sort(out)
	return out
}

// about: objects of k can count towards a resource.
func about(k *kind.Kind, name string) bool {
	if of, ok := strings.CutPrefix(name, "count/"); ok {
		return of == k.String()
	}
	switch {
	case name == k.Plural, strings.HasPrefix(name, k.Plural+"."):
		return k.Group == ""
	case strings.Contains(name, "storageclass.storage.k8s.io/"), name == string(corev1.ResourceRequestsStorage):
		return k == kind.PersistentVolumeClaim
	}
	for _, other := range []*kind.Kind{kind.ConfigMap, kind.Secret, kind.ReplicationController, kind.ResourceQuota, kind.PersistentVolumeClaim} {
		if name == other.Plural {
			return false
		}
	}
	return k == kind.Pod
}
