// Package kind is the table of kinds: one row each. Routes, discovery, OpenAPI,
// tables, storage keys, RBAC resources and golden tests are derived from rows;
// nothing else in the house lists kinds.
//
// A kind's struct is upstream's published one (k8s.io/api), exactly as served.
//
// The way of a write through a row: decode strictly; Default; on create set UID,
// creation time and name (generateName), then PrepareCreate and Validate; on
// update PrepareUpdate and ValidateUpdate of the main row or of the subresource's
// Door; Warnings; then ToStored where the row has Stored, with the root's Default
// after it; EncodeStored. The way of a read: DecodeStored (which defaults), then
// FromStored where the row has Stored.
//
// After a preparation the new object may share memory with the old one; both are
// read-only from then on. Rows read no clock and no randomness: what needs them
// (times of conditions, allocation of addresses and ports, the requester in a
// CertificateSigningRequest) is written by the API server after the preparation.
package kind

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is an API object. Once stored or in a snapshot nobody changes it;
// whoever wants another one makes a DeepCopyObject first.
type Object interface {
	runtime.Object
	metav1.Object
}

// Scope says whether objects live in a namespace.
type Scope uint8

// The two scopes.
const (
	Namespaced Scope = iota
	Cluster
)

// Kind is one row. Functions may be nil: then nothing happens. They get objects
// of the row's own type, never nil, and may change only the object named new
// or obj. Rows are built with Row, which erases the type.
type Kind struct {
	Group, Version, Kind string
	Plural, Singular     string
	ListKind             string // of custom kinds; "": Kind with "List" behind it
	ShortNames           []string
	Categories           []string
	Scope                Scope

	New     func() Object
	is      func(obj Object) bool // obj has New's type
	NewList func() runtime.Object

	// Verbs are the verbs served; nil means the eight usual ones.
	Verbs []string

	// Default makes the record complete on arrival and on reading from the store.
	Default func(obj Object)
	// PrepareCreate resets what a client may not set on create (status) and
	// normalises; it runs after Default and before Validate.
	PrepareCreate func(obj Object)
	// PrepareUpdate keeps what the main door may not change (status) and raises
	// metadata.generation when the spec changed.
	PrepareUpdate func(new, old Object)
	// Validate returns all problems of a new object; ValidateUpdate those of a
	// change, including everything Validate would say where upstream does so.
	Validate       func(obj Object) field.ErrorList
	ValidateUpdate func(new, old Object) field.ErrorList
	// Warnings are sent as Warning headers on create (old nil) and update.
	Warnings func(new, old Object) []string

	// Status is the door of the status subresource; nil if there is none.
	Status *Door
	// Scale maps to autoscaling/v1 Scale; nil if there is none.
	Scale *Scale
	// Subresources besides status and scale, for routes and discovery.
	Subresources []Subresource

	// Selectable fields besides metadata.name and metadata.namespace.
	Selectable map[string]func(obj Object) string

	// Columns of the printed table; Cells gives one row's values in their order.
	Columns []Column
	Cells   func(obj Object, now time.Time) []any

	// Grace returns the grace period in seconds for a delete, or nil when the
	// object is to go at once. Only Pod has one.
	Grace func(obj Object, asked *int64) *int64

	// AllowCreateOnUpdate: PUT of an absent name creates it.
	AllowCreateOnUpdate bool
	// UnconditionalUpdate: PUT without a resourceVersion overwrites.
	UnconditionalUpdate bool

	// Prefix of the storage keys below /registry/, as upstream's ("pods",
	// "services/specs", "events").
	Prefix string
	// Buffered kinds may lose their last second in a crash (events, leases).
	Buffered bool
	// TTL after which the object goes by itself; zero: never. Events: one hour.
	TTL time.Duration

	// Stored is the row that this one is stored as, when it is a second version or
	// a twin (events.k8s.io Event, HPA v1), with the pair of functions. Nil: itself.
	Stored     *Kind
	ToStored   func(obj Object) (Object, error)
	FromStored func(obj Object) (Object, error)

	// Deprecated is sent as a warning with every answer about this kind.
	Deprecated string

	// Virtual kinds are never stored: their create computes an answer
	// (TokenReview, SubjectAccessReview) in package apiserver.
	Virtual bool
	// Computed gives the objects of a virtual kind that is read and never written
	// (ComponentStatus).
	Computed func() []Object

	// Stamp fills in times that a client left out; it runs after the preparation of
	// a create and of a change through the main door.
	Stamp func(obj Object, now time.Time)

	// Custom rows come from a CustomResourceDefinition: objects are
	// *unstructured.Unstructured. Each definition has one Hidden root, whose pointer
	// stays the same for the definition's life and whose Version is empty, and a
	// served row for each served version with Stored = the root. Stored objects may
	// be in any version of the definition: FromStored converts, prunes and defaults.
	// A write is defaulted, admitted and validated in the version that the client
	// used (the served row's functions), then ToStored converts it.
	Custom bool
	// Hidden rows hold objects and have no routes.
	Hidden bool
	// FromStoredList converts many at once, in their order; nil: FromStored each.
	FromStoredList func(objects []Object) ([]Object, error)
	// Coerce brings a decoded object of a custom kind into the form of its schema:
	// unknown fields are pruned, and their paths returned when track is set.
	Coerce func(obj Object, track bool) (unknown []string, err error)
	// Closed is the reason why nothing can be created; "" when it can.
	Closed string
	// StoredJSON: stored as JSON although there is a Protobuf form.
	StoredJSON bool
	// PrepareDelete marks an object that is deleted for the first time; it may add
	// finalizers.
	PrepareDelete func(obj Object, now metav1.Time)
	// Extension is what the room that made a custom row keeps with it.
	Extension any
}

// Door is a subresource that writes one part of the object.
type Door struct {
	// PrepareUpdate keeps everything but the door's part from old.
	PrepareUpdate  func(new, old Object)
	ValidateUpdate func(new, old Object) field.ErrorList
}

// Scale reads and writes the scale of an object.
type Scale struct {
	SpecReplicas    func(obj Object) int32
	SetSpecReplicas func(obj Object, n int32)
	StatusReplicas  func(obj Object) int32
	// Selector is the serialized label selector, as labels.Parse reads it.
	Selector func(obj Object) string
	// Check says why an object has no scale; nil: every object has.
	Check func(obj Object) error
}

// Subresource is a route below an object, for discovery and authorization.
type Subresource struct {
	Name string // "binding", "log", "exec"
	// The kind that is exchanged; empty Group and Version mean the parent's.
	Group, Version, Kind string
	Verbs                []string
	// Door is set when the subresource takes the parent's own kind and writes one
	// part of it ("resize", "approval", "finalize").
	Door *Door
}

// Column heads one column of a table. Priority 0 is always shown, 1 with -o wide.
type Column struct {
	Name, Type, Format, Description string
	Priority                        int32
}

// GVK, GVR and GroupResource in apimachinery's types.
func (k *Kind) GVK() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind}
}
func (k *Kind) GVR() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Plural}
}
func (k *Kind) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.Group, Resource: k.Plural}
}

// ListOf is the kind of a list of k.
func (k *Kind) ListOf() string {
	if k.ListKind != "" {
		return k.ListKind
	}
	return k.Kind + "List"
}

// Root is the row under which objects of k are stored.
func (k *Kind) Root() *Kind {
	if k.Stored != nil {
		return k.Stored
	}
	return k
}

// String is the plural with its group: "deployments.apps", "pods".
func (k *Kind) String() string { return k.GroupResource().String() }

// StoreKey is the key of one object; with an empty name, the prefix of all of a
// namespace; with both empty, the prefix of the kind. Layout as upstream's:
// /registry/<prefix>/[<namespace>/]<name>.
func (k *Kind) StoreKey(namespace, name string) string {
	var b strings.Builder
	b.WriteString("/registry/")
	b.WriteString(k.Root().Prefix)
	b.WriteByte('/')
	if k.Scope == Namespaced && namespace != "" {
		b.WriteString(namespace)
		b.WriteByte('/')
	}
	b.WriteString(name)
	return b.String()
}
