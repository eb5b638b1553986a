package kind

import (
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/kind/validate"
)

// Names are the words of a row: how the kind is called, where it lives and
// under which prefix it is stored.
type Names struct {
	Group, Version, Kind string
	Plural, Singular     string // Singular defaults to the kind in lower case
	ShortNames           []string
	Categories           []string
	Scope                Scope
	Prefix               string
}

// Row is a Kind as its file writes it: with functions over the kind's own type.
// The fields mean what they mean in Kind.
type Row[P Object] struct {
	Names
	Verbs                                    []string
	Virtual, Buffered                        bool
	AllowCreateOnUpdate, UnconditionalUpdate bool
	TTL                                      time.Duration
	Deprecated                               string
	Default                                  func(obj P)
	PrepareCreate                            func(obj P)
	PrepareUpdate                            func(new, old P)
	Validate                                 func(obj P) field.ErrorList
	ValidateUpdate                           func(new, old P) field.ErrorList
	Warnings                                 func(new, old P) []string
	Status                                   *DoorOf[P]
	Scale                                    *ScaleOf[P]
	Subresources                             []Subresource
	Selectable                               map[string]func(obj P) string
	Columns                                  []Column
	Cells                                    func(obj P, now time.Time) []any
	Grace                                    func(obj P, asked *int64) *int64
	Computed                                 func() []P
	Stamp                                    func(obj P, now time.Time)
	Stored                                   *Kind
	ToStored                                 func(obj P) (Object, error)
	FromStored                               func(obj Object) (P, error)
}

// DoorOf is a Door over the kind's own type.
type DoorOf[P Object] struct {
	PrepareUpdate  func(new, old P)
	ValidateUpdate func(new, old P) field.ErrorList
}

// erase makes a Door of it.
func (d *DoorOf[P]) erase() *Door {
	return &Door{PrepareUpdate: update(d.PrepareUpdate), ValidateUpdate: check(d.ValidateUpdate)}
}

// ScaleOf is a Scale over the kind's own type.
type ScaleOf[P Object] struct {
	SpecReplicas    func(obj P) int32
	SetSpecReplicas func(obj P, n int32)
	StatusReplicas  func(obj P) int32
	Selector        func(obj P) string
}

// pointer is an object type's pointer, which carries the methods.
type pointer[T any] interface {
	*T
	Object
}

type listPointer[L any] interface {
	*L
	runtime.Object
}

// define erases the type of a stored kind's row. Only L, the list type, has to
// be named.
func define[L any, T any, P pointer[T], LP listPointer[L]](r Row[P]) *Kind {
	k := erase[T](r)
	k.NewList = func() runtime.Object { return LP(new(L)) }
	return k
}

// defineVirtual erases the type of a row that is never stored and has no list.
func defineVirtual[T any, P pointer[T]](r Row[P]) *Kind {
	r.Virtual = true
	return erase[T](r)
}

func erase[T any, P pointer[T]](r Row[P]) *Kind {
	k := &Kind{
		Group: r.Group, Version: r.Version, Kind: r.Kind, Plural: r.Plural, Singular: r.Singular,
		ShortNames: r.ShortNames, Categories: r.Categories, Scope: r.Scope, Prefix: r.Prefix,
		New:   func() Object { return P(new(T)) },
		is:    func(obj Object) bool { _, ok := obj.(P); return ok },
		Verbs: r.Verbs, Subresources: r.Subresources, Columns: r.Columns,
		AllowCreateOnUpdate: r.AllowCreateOnUpdate, UnconditionalUpdate: r.UnconditionalUpdate,
		Buffered: r.Buffered, TTL: r.TTL, Virtual: r.Virtual, Stored: r.Stored, Deprecated: r.Deprecated,
	}
	if k.Singular == "" {
		k.Singular = strings.ToLower(k.Kind)
	}
	k.Default = one(r.Default)
	k.PrepareCreate = create(r.PrepareCreate)
	k.PrepareUpdate = update(r.PrepareUpdate)
	if f := r.Validate; f != nil {
		k.Validate = func(obj Object) field.ErrorList { return validate.Shown(f(obj.(P))) }
	}
	k.ValidateUpdate = check(r.ValidateUpdate)
	if f := r.Warnings; f != nil {
		k.Warnings = func(new, old Object) []string {
			var was P
			if old != nil {
				was = old.(P)
			}
			return f(new.(P), was)
		}
	}
	if d := r.Status; d != nil {
		k.Status = d.erase()
	}
	if s := r.Scale; s != nil {
		k.Scale = &Scale{
			SpecReplicas:    func(obj Object) int32 { return s.SpecReplicas(obj.(P)) },
			SetSpecReplicas: func(obj Object, n int32) { s.SetSpecReplicas(obj.(P), n) },
			StatusReplicas:  func(obj Object) int32 { return s.StatusReplicas(obj.(P)) },
			Selector:        func(obj Object) string { return s.Selector(obj.(P)) },
		}
	}
	if len(r.Selectable) > 0 {
		k.Selectable = make(map[string]func(Object) string, len(r.Selectable))
		for name, f := range r.Selectable {
			k.Selectable[name] = func(obj Object) string { return f(obj.(P)) }
		}
	}
	if f := r.Cells; f != nil {
		k.Cells = func(obj Object, now time.Time) []any { return f(obj.(P), now) }
	}
	if f := r.Grace; f != nil {
		k.Grace = func(obj Object, asked *int64) *int64 { return f(obj.(P), asked) }
	}
	if f := r.Computed; f != nil {
		k.Computed = func() []Object {
			var all []Object
			for _, obj := range f() {
				all = append(all, obj)
			}
			return all
		}
	}
	if f := r.Stamp; f != nil {
		k.Stamp = func(obj Object, now time.Time) { f(obj.(P), now) }
	}
	if f := r.ToStored; f != nil {
		k.ToStored = func(obj Object) (Object, error) { return f(obj.(P)) }
	}
	if f := r.FromStored; f != nil {
		k.FromStored = func(obj Object) (Object, error) { return f(obj) }
	}
	return k
}

func one[P Object](f func(P)) func(Object) {
	if f == nil {
		return nil
	}
	return func(obj Object) { f(obj.(P)) }
}

// create erases a preparation and puts before it what holds for every kind: fields of
// gates that are off are dropped.
func create[P Object](f func(P)) func(Object) {
	return func(obj Object) {
		dropGated(obj.(P), nil)
		if f != nil {
			f(obj.(P))
		}
	}
}

// update erases a preparation and puts before it what holds for every kind and every
// door: the generation is the server's, so the old one stays unless f raises it;
// fields of gates that are off are dropped.
func update[P Object](f func(new, old P)) func(new, old Object) {
	return func(new, old Object) {
		new.SetGeneration(old.GetGeneration())
		was := old.(P)
		dropGated(new.(P), &was)
		if f != nil {
			f(new.(P), was)
		}
	}
}

// raiseIf counts a change of the desired state.
func raiseIf(changed bool, new metav1.Object) {
	if changed {
		new.SetGeneration(new.GetGeneration() + 1)
	}
}

// same compares as the API does: nil and empty are equal, quantities by value.
func same(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

func check[P Object](f func(new, old P) field.ErrorList) func(new, old Object) field.ErrorList {
	if f == nil {
		return nil
	}
	return func(new, old Object) field.ErrorList { return validate.Shown(f(new.(P), old.(P))) }
}
