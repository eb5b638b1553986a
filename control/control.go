// Package control is the runtime for controllers. A controller is one pure
// Plan in a folder of its own; the runtime wakes it, carries out its actions
// through the API verbs, and never plans an object again before the snapshot
// contains the last write made for it.
//
// Delivery: at least once per change that wakes an object, coalesced; one object
// is never planned twice at once; a conflict or any error plans again, after a
// back-off of 5 ms doubling to 30 s (no back-off for conflicts on the first try).
package control

import (
	"slices"
	"time"

	"proa.dev/act"
	"proa.dev/kind"
	"proa.dev/view"
)

// Plan decides for one object from one snapshot. ref may be gone: then it
// decides what that means (usually nothing). wake says when to plan again even if
// nothing changes; zero: never.
type Plan func(s view.Snapshot, ref view.Ref, now time.Time) (actions act.List, wake time.Time)

// Part is one controller's registration.
type Part struct {
	Name string
	// Kind that is planned for: a change of such an object wakes it. Nil: each of
	// Kinds is.
	Kind  *kind.Kind
	Kinds []*kind.Kind
	// Custom: each kind that comes at run time is one of Kinds too.
	Custom bool
	// When, if set, narrows which changes of the object itself wake it; old or new
	// is nil when it appears or goes. At start everything is woken.
	When func(old, new kind.Object) bool
	// Wakes: a change of an object of these kinds wakes the refs returned. Both
	// states are looked at (old and new).
	Wakes []Wake
	Plan  Plan
	// Begin makes the Plan of a part that has to know when the runtime began,
	// because nothing could be heard before that (heartbeats); instead of Plan.
	Begin func(started time.Time) Plan
	// Failed, if set, says what to do about an action that could not be carried out
	// for another reason than a conflict: events, a condition in the status. The
	// object is planned again after the back-off in any case.
	Failed func(s view.Snapshot, ref view.Ref, failed act.Action, err error, now time.Time) act.List
	// Writes is what actions may touch; anything else is refused with the rule's
	// name. "pods" creation and deletion, "replicasets.apps/status", ...
	Writes []Write
}

// Wake maps a changed object of Kind to the refs of the part's kind. Kind nil:
// every one of the part's Kinds.
type Wake struct {
	Kind *kind.Kind
	// Custom: of every kind that comes at run time, instead of Kind.
	Custom bool
	To     func(s view.Snapshot, changed kind.Object) []view.Ref
	// When, if set, narrows which changes count; old or new may be nil.
	When func(old, new kind.Object) bool
}

// Begun are the parts with the Plans of those that Begin at an instant.
func Begun(parts []Part, now time.Time) []Part {
	out := append([]Part(nil), parts...)
	for i := range out {
		if out[i].Begin != nil {
			out[i].Plan = out[i].Begin(now)
		}
	}
	return out
}

// kinds that the part plans for.
func (p *Part) kinds() []*kind.Kind {
	if p.Kind != nil {
		return []*kind.Kind{p.Kind}
	}
	if p.Custom {
		return append(slices.Clip(p.Kinds), view.Custom)
	}
	return p.Kinds
}

// kinds whose changes the wake looks at.
func (w *Wake) kinds(p *Part) []*kind.Kind {
	if w.Custom {
		return []*kind.Kind{view.Custom}
	}
	if w.Kind != nil {
		return []*kind.Kind{w.Kind}
	}
	return p.kinds()
}

// Write declares one right of a part: verbs (create, update, delete, patch, touch,
// bind, evict) on a kind (nil: every kind), through the main door or a subresource.
type Write struct {
	Kind  *kind.Kind
	Sub   string
	Verbs []string
}

// ToOwner wakes the controller owner of a changed object when it is of kind k.
func ToOwner(k *kind.Kind) func(view.Snapshot, kind.Object) []view.Ref {
	return func(_ view.Snapshot, o kind.Object) []view.Ref {
		var refs []view.Ref
		for _, r := range o.GetOwnerReferences() {
			if r.Controller != nil && *r.Controller && r.Kind == k.Kind && groupOf(r.APIVersion) == k.Group {
				refs = append(refs, view.Ref{Kind: k, Namespace: nsOf(k, o), Name: r.Name})
			}
		}
		return refs
	}
}

func nsOf(k *kind.Kind, o kind.Object) string {
	if k.Scope == kind.Cluster {
		return ""
	}
	return o.GetNamespace()
}

func groupOf(apiVersion string) string {
	for i := 0; i < len(apiVersion); i++ {
		if apiVersion[i] == '/' {
			return apiVersion[:i]
		}
	}
	return ""
}
