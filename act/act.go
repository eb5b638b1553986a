// Package act is what a decision may ask for: values that print on one line,
// with preconditions and a reason. The runtime in package control carries them
// out through the API verbs. Planners make them; they do nothing themselves.
//
// Forms, as scenarios show them:
//
//	create pods/shop/web-? owner=replicasets.apps/shop/web because="2 of 3 running"
//	update deployments.apps/shop/web because=...
//	status replicasets.apps/shop/web because=...
//	delete pods/shop/web-7f because=scale-down
//	bind pods/shop/web-7f node=n3
//	evict pods/shop/web-7f because=...
//	event pods/shop/web-7f Normal Scheduled "..."
package act

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/view"
)

// Action is one thing to do.
type Action interface {
	// Ref of the object that is written; the name is "" or ends in "-" when the
	// server is to generate it.
	Ref() view.Ref
	// String is the action on one line.
	String() string
}

// List of actions, in the order in which they are to be done.
type List []Action

// String is one action a line.
func (l List) String() string {
	var b strings.Builder
	for _, a := range l {
		b.WriteString(a.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Create makes Object; with GenerateName and no Name the server names it. With
// both, the planner chose the name (from the snapshot, so that it can speak of it
// in events); scenarios show the generated part as "?".
// "Already exists" is a conflict: plan again.
type Create struct {
	Kind   *kind.Kind
	Object kind.Object
	Reason string
}

// Update writes Object through the main door, or through subresource Sub
// ("status", "scale", ...). Object must carry the resourceVersion of the snapshot
// that it was planned from.
type Update struct {
	Kind   *kind.Kind
	Object kind.Object
	Sub    string
	Reason string
	// Note is what changes, for people: "ready 2→3". Optional.
	Note string
}

// Delete removes an object under preconditions.
type Delete struct {
	Target view.Ref
	UID    types.UID // must match
	// ResourceVersion, if set, must match too.
	ResourceVersion string
	Propagation     metav1.DeletionPropagation // "": the kind's default
	GraceSeconds    *int64
	Reason          string
}

// Patch changes part of an object without naming a revision; merge patch.
// Used where another writer owns the rest (adoption, finalizer removal).
type Patch struct {
	Target view.Ref
	Sub    string
	UID    types.UID
	Merge  []byte // application/merge-patch+json, without metadata.uid
	Reason string
}

// Touch writes an object as it is, so that it is stored in the present form
// (version, encryption key). One that is gone, or another by now, needs no touch.
type Touch struct {
	Target view.Ref
	UID    types.UID // must match
	Reason string
}

// Bind writes a pod's node name through the binding subresource.
type Bind struct {
	Target view.Ref
	UID    types.UID
	Node   string
	Reason string
}

// Evict asks for an eviction, which honours disruption budgets.
type Evict struct {
	Target view.Ref
	UID    types.UID
	Reason string
}

// Event records something about an object for people.
type Event struct {
	About   view.Ref
	UID     types.UID
	Type    string // Normal, Warning
	Reason  string // CamelCase
	Message string
	// Source component, e.g. "replicaset-controller".
	Source string
	// Field path inside the object, e.g. spec.containers{app}. Optional.
	Field string
	// ResourceVersion of the object that the event is about. Optional.
	ResourceVersion string
}

// Ref of the created object.
func (a Create) Ref() view.Ref {
	r := view.RefOf(a.Kind, a.Object)
	if r.Name == "" {
		r.Name = a.Object.GetGenerateName()
	}
	return r
}

// Ref of the written object.
func (a Update) Ref() view.Ref { return view.RefOf(a.Kind, a.Object) }

// Ref of the target.
func (a Delete) Ref() view.Ref { return a.Target }

// Ref of the target.
func (a Patch) Ref() view.Ref { return a.Target }

// Ref of the target.
func (a Touch) Ref() view.Ref { return a.Target }

// Ref of the target.
func (a Bind) Ref() view.Ref { return a.Target }

// Ref of the target.
func (a Evict) Ref() view.Ref { return a.Target }

// Ref of the object that the event is about.
func (a Event) Ref() view.Ref { return a.About }

func because(b *strings.Builder, reason string) {
	if reason == "" {
		return
	}
	if strings.ContainsAny(reason, " \t\n\"") {
		fmt.Fprintf(b, " because=%q", reason)
	} else {
		fmt.Fprintf(b, " because=%s", reason)
	}
}

// String is the action on one line.
func (a Create) String() string {
	var b strings.Builder
	r := a.Ref()
	if g := a.Object.GetGenerateName(); g != "" {
		r.Name = g + "?"
	}
	fmt.Fprintf(&b, "create %s", r)
	if o := metav1.GetControllerOf(a.Object); o != nil {
		fmt.Fprintf(&b, " owner=%s/%s", o.Kind, o.Name)
	}
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Update) String() string {
	var b strings.Builder
	switch a.Sub {
	case "":
		fmt.Fprintf(&b, "update %s", a.Ref())
	default:
		fmt.Fprintf(&b, "%s %s", a.Sub, a.Ref())
	}
	if a.Note != "" {
		b.WriteByte(' ')
		b.WriteString(a.Note)
	}
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Delete) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "delete %s", a.Target)
	if a.Propagation != "" {
		fmt.Fprintf(&b, " propagation=%s", a.Propagation)
	}
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Patch) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "patch %s", a.Target)
	if a.Sub != "" {
		fmt.Fprintf(&b, " sub=%s", a.Sub)
	}
	fmt.Fprintf(&b, " %s", a.Merge)
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Touch) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "touch %s", a.Target)
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Bind) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bind %s node=%s", a.Target, a.Node)
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Evict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "evict %s", a.Target)
	because(&b, a.Reason)
	return b.String()
}

// String is the action on one line.
func (a Event) String() string {
	return fmt.Sprintf("event %s %s %s %q", a.About, a.Type, a.Reason, a.Message)
}
