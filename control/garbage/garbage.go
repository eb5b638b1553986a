// Package garbage deletes what nobody owns any more, and carries out the three
// ways of deleting an owner (Kubernetes docs, "Garbage Collection", "Owners and
// Dependents").
//
//	background   the owner goes at once; each dependent is deleted when its last
//	             owner is gone
//	foreground   finalizer foregroundDeletion: dependents are deleted first; those
//	             that say blockOwnerDeletion are waited for
//	orphan       finalizer orphan: owner references to it are taken out first
//
// An owner is absent when there is no object of its kind, name and UID in the
// dependent's namespace (or, for a cluster-wide kind, in the cluster); so an owner
// in another namespace counts as absent. Owners of kinds that are not served, and
// namespaced owners of cluster-wide objects, cannot be looked up: such a dependent
// is left alone, in the second case with an event.
//
// Owners of kinds that a server behind an APIService has are asked about there, in the
// background (Ask). Dependents over there are theirs to collect: nothing here sees
// them.
package garbage

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Name of the part.
const Name = "garbage-collector-controller"

const source = Name

// Owner is what is known of an owner that is not in the view.
type Owner uint8

// What may be known. An answer Absent is final; the others may change.
const (
	Unknown Owner = iota // nobody has its kind, or who has it cannot be asked
	Asking               // it is being found out
	Present
	Absent
	Waiting // it is going and waits for its dependents
)

// Ask says how an owner is that a server behind an APIService has; namespace is the
// dependent's. elsewhere is false for kinds that no such server has. It does not
// block.
type Ask func(s view.Snapshot, r metav1.OwnerReference, namespace string) (o Owner, elsewhere bool)

// Pauses until an owner elsewhere is asked about again.
const (
	askAgain   = 200 * time.Millisecond
	checkAgain = 30 * time.Second
)

// Part registers the collector for every stored kind of table but events.
func Part(table *kind.Table) control.Part { return PartWith(table, nil) }

// PartWith also asks about owners that servers behind APIServices have.
func PartWith(table *kind.Table, ask Ask) control.Part {
	c := collector{kinds: map[schema.GroupKind]*kind.Kind{}, ask: ask}
	var all []*kind.Kind
	for _, k := range table.BuiltIn() {
		if k.Virtual {
			continue
		}
		gk := k.GVK().GroupKind()
		if have := c.kinds[gk]; have == nil || k.Stored == nil {
			c.kinds[gk] = k.Root()
		}
		if k.Stored == nil && k != kind.Event {
			all = append(all, k)
		}
	}
	return control.Part{
		Name: Name, Kinds: all, Custom: true, When: matters, Plan: c.plan,
		Wakes: []control.Wake{
			// An owner that has gone wakes its dependents.
			{When: func(_, new kind.Object) bool { return new == nil }, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				var refs []view.Ref
				for d := range s.OwnedBy(string(o.GetUID()), nil) {
					if r, ok := c.ref(s, d); ok {
						refs = append(refs, r)
					}
				}
				return refs
			}},
			// A dependent that has gone, or is somebody else's, wakes owners that wait.
			{When: func(old, new kind.Object) bool {
				return old != nil && (new == nil || !sameOwners(old, new)) && len(old.GetOwnerReferences()) > 0
			}, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				var refs []view.Ref
				for _, r := range o.GetOwnerReferences() {
					if owner, known := c.owner(s, o, r); known && owner != nil && owner.GetDeletionTimestamp() != nil {
						if ref, ok := c.ref(s, owner); ok {
							refs = append(refs, ref)
						}
					}
				}
				return refs
			}},
		},
		Writes: []control.Write{{Verbs: []string{"delete", "patch"}}},
	}
}

// matters: owners, finalizers or the deletion mark have changed. An object that
// has gone needs nothing itself.
func matters(old, new kind.Object) bool {
	switch {
	case new == nil:
		return false
	case old == nil:
		return len(new.GetOwnerReferences()) > 0 || new.GetDeletionTimestamp() != nil
	}
	return !sameOwners(old, new) || (old.GetDeletionTimestamp() == nil) != (new.GetDeletionTimestamp() == nil) ||
		!slices.Equal(old.GetFinalizers(), new.GetFinalizers())
}

func sameOwners(a, b kind.Object) bool {
	return slices.EqualFunc(a.GetOwnerReferences(), b.GetOwnerReferences(), func(x, y metav1.OwnerReference) bool {
		return x.UID == y.UID && x.Name == y.Name && x.Kind == y.Kind && x.APIVersion == y.APIVersion && blocks(x) == blocks(y)
	})
}

func blocks(r metav1.OwnerReference) bool {
	return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
}

type collector struct {
	kinds map[schema.GroupKind]*kind.Kind
	ask   Ask
}

// find looks a kind up by what owner references and objects say; nil: not served.
// A built-in kind is found by its group alone, a custom one in the versions that
// are served.
func (c collector) find(s view.Snapshot, gvk schema.GroupVersionKind) *kind.Kind {
	if k := c.kinds[gvk.GroupKind()]; k != nil {
		return k
	}
	if k := s.Table().ByKind(gvk); k != nil {
		return k.Root()
	}
	return nil
}

func (c collector) ref(s view.Snapshot, o kind.Object) (view.Ref, bool) {
	gvk := o.GetObjectKind().GroupVersionKind()
	k := c.find(s, gvk)
	if k == nil {
		// Stored in a version that is not served any more.
		for d := range s.Table().Group(gvk.Group) {
			if d.Root.Kind == gvk.Kind {
				k = d.Root
				break
			}
		}
	}
	if k == nil {
		return view.Ref{}, false
	}
	return view.RefOf(k, o), true
}

// owner looks up what a reference names, seen from o. known is false when it
// cannot be looked up; a nil owner is absent.
func (c collector) owner(s view.Snapshot, o kind.Object, r metav1.OwnerReference) (owner kind.Object, known bool) {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return nil, false
	}
	k := c.find(s, gv.WithKind(r.Kind))
	if k == nil {
		return nil, false
	}
	namespace := ""
	if k.Scope == kind.Namespaced {
		if o.GetNamespace() == "" {
			return nil, false
		}
		namespace = o.GetNamespace()
	}
	owner = s.Get(k, namespace, r.Name)
	if owner == nil || owner.GetUID() != r.UID {
		return nil, true
	}
	return owner, true
}

func has(o kind.Object, finalizer string) bool { return slices.Contains(o.GetFinalizers(), finalizer) }

// plan looks at one object: as an owner that is going, else as a dependent.
func (c collector) plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	o := s.Lookup(ref)
	if o == nil {
		return nil, time.Time{}
	}
	if o.GetDeletionTimestamp() != nil {
		switch {
		case has(o, metav1.FinalizerOrphanDependents):
			return c.orphan(s, ref, o), time.Time{}
		case has(o, metav1.FinalizerDeleteDependents):
			return c.foreground(s, ref, o), time.Time{}
		}
		return nil, time.Time{}
	}
	actions, again := c.dependent(s, ref, o)
	if again == 0 {
		return actions, time.Time{}
	}
	return actions, now.Add(again)
}

// orphan takes the owner out of its dependents, then lets it go.
func (c collector) orphan(s view.Snapshot, ref view.Ref, o kind.Object) (actions act.List) {
	for d := range s.OwnedBy(string(o.GetUID()), nil) {
		if r, ok := c.ref(s, d); ok {
			actions = append(actions, without(r, d, func(r metav1.OwnerReference) bool { return r.UID == o.GetUID() }, "orphan: owner "+o.GetName()+" is going"))
		}
	}
	return append(actions, unfinalize(ref, o, metav1.FinalizerOrphanDependents, "orphaned"))
}

// foreground deletes the dependents, and lets the owner go when none that blocks
// is left.
func (c collector) foreground(s view.Snapshot, ref view.Ref, o kind.Object) (actions act.List) {
	blocked := false
	for d := range s.OwnedBy(string(o.GetUID()), nil) {
		r, ok := c.ref(s, d)
		if !ok {
			continue
		}
		for _, or := range d.GetOwnerReferences() {
			// Owners in other namespaces are not owners.
			if real, _ := c.owner(s, d, or); or.UID == o.GetUID() && blocks(or) && real != nil {
				blocked = true
			}
		}
		if d.GetDeletionTimestamp() == nil {
			more, _ := c.dependent(s, r, d)
			actions = append(actions, more...)
		}
	}
	if !blocked {
		actions = append(actions, unfinalize(ref, o, metav1.FinalizerDeleteDependents, "dependents are gone"))
	}
	return actions
}

// dependent deletes o when its owners are gone or wait for it. A positive duration
// says when to look again at owners elsewhere.
func (c collector) dependent(s view.Snapshot, ref view.Ref, o kind.Object) (_ act.List, again time.Duration) {
	var solid, absent, waiting int
	gone := map[string]bool{}
	var events act.List
	for _, r := range o.GetOwnerReferences() {
		owner, known := c.owner(s, o, r)
		there, elsewhere := Unknown, false
		if !known && c.ask != nil {
			there, elsewhere = c.ask(s, r, o.GetNamespace())
		}
		switch {
		case elsewhere:
			switch there {
			case Absent:
				absent++
				gone[string(r.UID)] = true
				continue
			case Waiting:
				waiting++
				gone[string(r.UID)] = true
			default:
				solid++
			}
			wait := checkAgain
			if there == Asking {
				wait = askAgain
			}
			if again == 0 || wait < again {
				again = wait
			}
		case !known:
			solid++
			if o.GetNamespace() == "" && c.namespaced(s, r) {
				events = append(events, act.Event{About: ref, UID: o.GetUID(), Type: corev1.EventTypeWarning, Reason: "OwnerRefInvalidNamespace", Source: source,
					Message: fmt.Sprintf("ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q", r.APIVersion, r.Kind, "", r.Name, r.UID, "")})
			}
		case owner == nil:
			absent++
			gone[string(r.UID)] = true
		case owner.GetDeletionTimestamp() != nil && has(owner, metav1.FinalizerDeleteDependents):
			waiting++
			gone[string(r.UID)] = true
		default:
			solid++
		}
	}
	switch {
	case absent+waiting == 0:
		return events, again
	case solid > 0:
		return append(events, without(ref, o, func(r metav1.OwnerReference) bool { return gone[string(r.UID)] }, "owners are gone, others remain")), again
	}
	d := act.Delete{Target: ref, UID: o.GetUID(), Propagation: metav1.DeletePropagationBackground, Reason: "owner-gone"}
	if waiting > 0 {
		d.Reason = "owner-waits"
		// Its own dependents go before it, so that the owner's wait covers them.
		for range s.OwnedBy(string(o.GetUID()), nil) {
			d.Propagation = metav1.DeletePropagationForeground
			break
		}
	}
	switch {
	case has(o, metav1.FinalizerOrphanDependents):
		d.Propagation = metav1.DeletePropagationOrphan
	case has(o, metav1.FinalizerDeleteDependents):
		d.Propagation = metav1.DeletePropagationForeground
	}
	actions := events
	if d.Propagation == metav1.DeletePropagationForeground && waiting > 0 {
		if r, ok := c.unblockCircle(s, ref, o); ok {
			actions = append(actions, r)
		}
	}
	return append(actions, d), again
}

func (c collector) namespaced(s view.Snapshot, r metav1.OwnerReference) bool {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return false
	}
	k := c.find(s, gv.WithKind(r.Kind))
	return k != nil && k.Scope == kind.Namespaced
}

// unblockCircle: when one of o's own dependents already waits for its dependents
// (a circle of owners), o stops blocking its owners, so that they all end.
func (c collector) unblockCircle(s view.Snapshot, ref view.Ref, o kind.Object) (act.Action, bool) {
	for d := range s.OwnedBy(string(o.GetUID()), nil) {
		if d.GetDeletionTimestamp() == nil || !has(d, metav1.FinalizerDeleteDependents) {
			continue
		}
		refs := slices.Clone(o.GetOwnerReferences())
		changed := false
		for i := range refs {
			if blocks(refs[i]) {
				no := false
				refs[i].BlockOwnerDeletion, changed = &no, true
			}
		}
		if changed {
			return patch(ref, o, map[string]any{"ownerReferences": refs}, "owners form a circle"), true
		}
	}
	return nil, false
}

// without takes owner references out.
func without(ref view.Ref, o kind.Object, drop func(metav1.OwnerReference) bool, reason string) act.Action {
	keep := slices.DeleteFunc(slices.Clone(o.GetOwnerReferences()), drop)
	if keep == nil {
		keep = []metav1.OwnerReference{}
	}
	return patch(ref, o, map[string]any{"ownerReferences": keep}, reason)
}

func unfinalize(ref view.Ref, o kind.Object, finalizer, reason string) act.Action {
	keep := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer })
	return patch(ref, o, map[string]any{"finalizers": keep}, reason)
}

// patch metadata, if the object is still as the snapshot shows it.
func patch(ref view.Ref, o kind.Object, meta map[string]any, reason string) act.Action {
	meta["uid"], meta["resourceVersion"] = o.GetUID(), o.GetResourceVersion()
	merge, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		panic(fmt.Sprintf("garbage: encode metadata: %v", err))
	}
	return act.Patch{Target: ref, UID: o.GetUID(), Merge: merge, Reason: reason}
}
