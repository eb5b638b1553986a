// Package fields knows the structure of kinds for merging: which lists are sets or
// keyed, which maps are atomic (Kubernetes docs, "Server-Side Apply", "Merge
// strategy"). Server-side apply and mutating policies use it.
//
// The converter of the built-in kinds takes 0.3 s to make: it is made on first
// use. That of a custom kind is what the row's Extension gives; without one the
// structure is deduced from objects: all maps granular, all lists atomic.
package fields

import (
	"sync"

	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"

	"proa.dev/kind"
)

// BuiltIn is the converter of the kinds that came with the program.
var BuiltIn = sync.OnceValue(func() managedfields.TypeConverter { return applyconfigurations.NewTypeConverter(kind.Scheme()) })

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
