// Package fields knows the structure of kinds for merging: which lists are sets or
// keyed, which maps are atomic (Kubernetes docs, "Server-Side Apply", "Merge
// strategy"). Managed fields and mutating policies use it. Tracker and Loose note who
// owns what in every write but an apply, for Go values and for documents; they give the
// sets that structured-merge-diff gives, and say when it has to be asked itself.
//
// The structure of a built-in kind is made from its Go types on first use (2 ms
// and less than 0.4 MB for a Pod; kinds share their types). That of a custom kind is what the
// row's Extension gives; without one the structure is deduced from objects: all maps
// granular, all lists atomic.
package fields

import (
	"fmt"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"proa.dev/apiserver/openapi"
	"proa.dev/kind"
)

// BuiltIn is the converter of the kinds that came with the program.
func BuiltIn() managedfields.TypeConverter { return builtIn }

var builtIn = new(converter)

// converter makes types on first use.
type converter struct{ types sync.Map } // of *typed.ParseableType by GroupVersionKind

func (c *converter) typeOf(gvk schema.GroupVersionKind) (*typed.ParseableType, error) {
	if t, ok := c.types.Load(gvk); ok {
		return t.(*typed.ParseableType), nil
	}
	o, err := kind.Scheme().New(gvk)
	if err != nil {
		return nil, err
	}
	s, ref := openapi.Merge(reflect.TypeOf(o).Elem())
	// Whoever is first wins: values of two schemas cannot be merged.
	t, _ := c.types.LoadOrStore(gvk, &typed.ParseableType{Schema: s, TypeRef: ref})
	return t.(*typed.ParseableType), nil
}

func (c *converter) ObjectToTyped(obj runtime.Object, o ...typed.ValidationOptions) (*typed.TypedValue, error) {
	t, err := c.typeOf(obj.GetObjectKind().GroupVersionKind())
	if err != nil {
		return nil, err
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return t.FromUnstructured(u.Object, o...)
	}
	return t.FromStructured(obj, o...)
}

func (c *converter) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	x := v.AsValue().Unstructured()
	if m, ok := x.(map[string]any); ok {
		return &unstructured.Unstructured{Object: m}, nil
	}
	return nil, fmt.Errorf("make an object of what was merged: it is a %T", x)
}

// Typed is implemented by the Extension of a custom row that knows its structure.
type Typed interface {
	TypeConverter() (managedfields.TypeConverter, error)
}

// Of is the converter of a row.
func Of(row *kind.Kind) (managedfields.TypeConverter, error) {
	if !row.Custom {
		return BuiltIn(), nil
	}
	if t, ok := row.Extension.(Typed); ok {
		return t.TypeConverter()
	}
	return managedfields.NewDeducedTypeConverter(), nil
}
