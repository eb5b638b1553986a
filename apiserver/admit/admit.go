// Package admit is the chain of admission plugins between authorization and the
// store: first every Mutate in order (all of them a second time when one asks for
// it), then those that run once, then validation of the kind, then every Validate
// in order, quota last.
package admit

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
	"proa.dev/view"
)

// Operation of a request.
type Operation string

// The operations, named as in admission.k8s.io/v1.
const (
	Create  Operation = "CREATE"
	Update  Operation = "UPDATE"
	Delete  Operation = "DELETE"
	Connect Operation = "CONNECT"
)

// Request is one write on its way to the store.
type Request struct {
	Kind *kind.Kind
	// Served is the row of the version that the client used; nil means Kind. Object
	// and Old are always of Kind: its type, as it is stored.
	Served          *kind.Kind
	Sub             string // subresource; "" for the main door
	Operation       Operation
	User            auth.User
	Namespace, Name string
	// Object is the new state, nil on Delete; a plugin's Mutate may change it. On a
	// connect or a create below an object (binding, eviction) it is nil and Body
	// holds what was sent.
	Object kind.Object
	Old    kind.Object // nil on Create
	Body   runtime.Object
	DryRun bool
	Delete *metav1.DeleteOptions
	// Options are what the request was sent with: *metav1.CreateOptions,
	// *metav1.UpdateOptions, *metav1.PatchOptions or *metav1.DeleteOptions; nil on a
	// connect and where nothing was sent. Webhooks are told.
	Options runtime.Object
	// Now is the server's time of the request; Snapshot the newest state.
	Now      time.Time
	Snapshot view.Snapshot
	// Guards are the keys in the store that must hold their values when the object
	// is written (Tokens).
	Guards []Guard
	// Warn adds a Warning header to the answer.
	Warn func(message string)

	// Reinvoke is set by a plugin whose change others should see: all mutating plugins
	// run once more (Kubernetes docs, "Dynamic Admission Control", reinvocation
	// policy). Again is true in that second round. Notes is what plugins remember from
	// the first to the second, by plugin.
	Reinvoke, Again bool
	Notes           map[string]any
}

// Row is the row of the version that the client used.
func (r *Request) Row() *kind.Kind {
	if r.Served != nil {
		return r.Served
	}
	return r.Kind
}

// Note keeps what a plugin remembers for the second round.
func (r *Request) Note(plugin string, v any) {
	if r.Notes == nil {
		r.Notes = map[string]any{}
	}
	r.Notes[plugin] = v
}

// Guard is a key in the store and the value that it must have.
type Guard struct{ Key, Value string }

// Tokens make decisions safe that are taken from what one server knows (how much of
// a quota is used, which addresses are free) when several servers share a store.
// Nil where one server is alone.
type Tokens interface {
	// Hold returns once this server holds the token of that name and its view shows
	// everything that was written under it before. The write of r is done only if
	// the server holds it still; otherwise the request is decided anew.
	Hold(ctx context.Context, name string, r *Request) error
}

// Plugin is one admission step. Nil functions are skipped. Errors are
// apimachinery StatusErrors; any other error becomes 403 Forbidden with the
// plugin's name.
type Plugin struct {
	Name     string
	Mutate   func(ctx context.Context, r *Request) error
	Validate func(ctx context.Context, r *Request) error
	// Once: Mutate is part of the write rather than of admission (it hands out what
	// there is only once): it runs after all other plugins' Mutate, and not again.
	Once bool
	// Release is called when the request did not reach the store: after this plugin's
	// Validate (or, without one, its turn) has passed and something later failed, was a
	// dry run or changed nothing; and, for a plugin with a Mutate, whenever a request
	// fails before that, even if its own Mutate was not reached or refused. So it must
	// bear a request that it knows nothing of. The same *Request is passed as to Mutate
	// and Validate: what is held for it is best kept under that pointer. It is not
	// called when the write succeeded; the view shows that.
	Release func(r *Request)
}

// Chain of plugins in order.
type Chain []Plugin

type contextKey uint8

const (
	annotating contextKey = iota
	inner
)

// WithAnnotations returns a context in which Annotate calls add, possibly from
// several goroutines at once. Whoever audits a request sets it.
func WithAnnotations(ctx context.Context, add func(key, value string)) context.Context {
	return context.WithValue(ctx, annotating, add)
}

// Annotate adds an annotation to the audit event of the request that ctx belongs
// to; without audit it does nothing.
func Annotate(ctx context.Context, key, value string) {
	if add, ok := ctx.Value(annotating).(func(key, value string)); ok && add != nil {
		add(key, value)
	}
}

// Inner returns a context for writes that the server does as a part of a request
// which admission has passed already: an eviction's delete, a binding's update.
// Webhooks and policies are not asked about these.
func Inner(ctx context.Context) context.Context { return context.WithValue(ctx, inner, true) }

// IsInner says that ctx comes from Inner.
func IsInner(ctx context.Context) bool { return ctx.Value(inner) != nil }
