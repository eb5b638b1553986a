// Package fields knows the structure of kinds for merging: which lists are sets or
// keyed, which maps are atomic (Kubernetes docs, "Server-Side Apply", "Merge
// strategy"). Server-side apply and mutating policies use it.
//
// The converter of the built-in kinds takes 0.3 s to make: it is made on first
// use. That of a custom kind is what the row's Extension gives; without one the
// structure is deduced from objects: all maps granular, all lists atomic.
package fields

import (
	"strings"
	"sync"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	extensions "k8s.io/apiextensions-apiserver/pkg/client/applyconfiguration"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration"
	aggregation "k8s.io/kube-aggregator/pkg/client/applyconfiguration"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"proa.dev/kind"
)

// BuiltIn is the converter of the kinds that came with the program.
var BuiltIn = sync.OnceValue(func() managedfields.TypeConverter {
	return byGroup{
		rest: applyconfigurations.NewTypeConverter(kind.Scheme()),
		groups: map[string]func() managedfields.TypeConverter{
			apiextensions.GroupName: sync.OnceValue(func() managedfields.TypeConverter { return extensions.NewTypeConverter(kind.Scheme()) }),
			apiregistration.GroupName: sync.OnceValue(func() managedfields.TypeConverter {
				return aggregation.NewTypeConverter(kind.Scheme())
			}),
		},
	}
})

// byGroup: definitions and API services have their structure in modules of their own.
type byGroup struct {
	rest   managedfields.TypeConverter
	groups map[string]func() managedfields.TypeConverter
}

func (b byGroup) of(group string) managedfields.TypeConverter {
	if c := b.groups[group]; c != nil {
		return c()
	}
	return b.rest
}

func (b byGroup) ObjectToTyped(obj runtime.Object, o ...typed.ValidationOptions) (*typed.TypedValue, error) {
	return b.of(obj.GetObjectKind().GroupVersionKind().Group).ObjectToTyped(obj, o...)
}

func (b byGroup) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	// The value says itself what it is.
	group := ""
	if m := v.AsValue(); m.IsMap() {
		if a, ok := m.AsMap().Get("apiVersion"); ok && a.IsString() {
			group, _, _ = strings.Cut(a.AsString(), "/")
		}
	}
	return b.of(group).TypedToObject(v)
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
