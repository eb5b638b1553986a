package policy

import (
	"k8s.io/apimachinery/pkg/runtime"

	"proa.dev/kind"
)

// interfaces are what the library's patchers ask of a server: making and naming
// objects. Conversion, defaulting and equivalence are package match's.
type interfaces struct{}

// GetObjectCreater implements admission.ObjectInterfaces.
func (interfaces) GetObjectCreater() runtime.ObjectCreater { return kind.Scheme() }

// GetObjectTyper implements admission.ObjectInterfaces.
func (interfaces) GetObjectTyper() runtime.ObjectTyper { return kind.Scheme() }

// GetObjectDefaulter implements admission.ObjectInterfaces.
func (interfaces) GetObjectDefaulter() runtime.ObjectDefaulter { return noDefaulter{} }

// GetObjectConvertor implements admission.ObjectInterfaces.
func (interfaces) GetObjectConvertor() runtime.ObjectConvertor { return kind.Scheme() }

// GetEquivalentResourceMapper implements admission.ObjectInterfaces.
func (interfaces) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper {
	return runtime.NewEquivalentResourceRegistry()
}

type noDefaulter struct{}

func (noDefaulter) Default(runtime.Object) {}
