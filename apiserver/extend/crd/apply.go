package crd

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"proa.dev/apiserver/fields"
)

// models are what server-side apply knows about a definition's objects: lists that
// are maps or sets, fields that are atomic.
type models struct {
	converter managedfields.TypeConverter
	err       error

	mu       sync.Mutex
	managers map[[2]string]*managedfields.FieldManager
	trackers map[[2]string]*fields.Loose
}

// metaModels are the schemas of an object's metadata, as far as merging goes
// (KEP-555; k8s.io/apimachinery's markers of ObjectMeta).
const metaModels = `{
"` + metaModel + `": {"type": "object", "properties": {
  "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
  "creationTimestamp": {"type": "string", "format": "date-time"},
  "deletionGracePeriodSeconds": {"type": "integer", "format": "int64"},
  "deletionTimestamp": {"type": "string", "format": "date-time"},
  "finalizers": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
  "generateName": {"type": "string"}, "generation": {"type": "integer", "format": "int64"},
  "labels": {"type": "object", "additionalProperties": {"type": "string"}},
  "managedFields": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
  "name": {"type": "string"}, "namespace": {"type": "string"},
  "ownerReferences": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"], "items": {"$ref": "#/components/schemas/` + ownerModel + `"}},
  "resourceVersion": {"type": "string"}, "selfLink": {"type": "string"}, "uid": {"type": "string"}}},
"` + ownerModel + `": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
  "apiVersion": {"type": "string"}, "blockOwnerDeletion": {"type": "boolean"}, "controller": {"type": "boolean"},
  "kind": {"type": "string"}, "name": {"type": "string"}, "uid": {"type": "string"}}}}`

const (
	metaModel  = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
	ownerModel = "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference"
)

// modelName of a version: the group reversed, version, kind.
func (v *Version) modelName() string {
	parts := strings.Split(v.def.crd.Spec.Group, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(append(parts, v.spec.Name, v.def.crd.Status.AcceptedNames.Kind), ".")
}

func (d *definition) makeModels() *models {
	m := &models{managers: map[[2]string]*managedfields.FieldManager{}, trackers: map[[2]string]*fields.Loose{}}
	all := map[string]*spec.Schema{}
	if m.err = json.Unmarshal([]byte(metaModels), &all); m.err != nil {
		return m
	}
	for _, v := range d.all {
		c, err := v.schema()
		if err != nil {
			m.err = err
			return m
		}
		s := new(spec.Schema)
		if c.structural != nil {
			s = c.structural.ToKubeOpenAPI()
		}
		if len(s.Type) == 0 {
			s.Type = spec.StringOrArray{"object"}
		}
		if s.Properties == nil {
			s.Properties = map[string]spec.Schema{}
		}
		s.Properties["metadata"] = *spec.RefSchema("#/components/schemas/" + metaModel)
		s.Properties["apiVersion"] = *spec.StringProperty()
		s.Properties["kind"] = *spec.StringProperty()
		s.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{
			"group": d.crd.Spec.Group, "version": v.spec.Name, "kind": d.crd.Status.AcceptedNames.Kind}})
		all[v.modelName()] = s
	}
	if m.converter, m.err = managedfields.NewTypeConverter(all, d.crd.Spec.PreserveUnknownFields); m.err != nil {
		m.err = fmt.Errorf("make type converter of %s: %w", d.crd.Name, m.err)
	}
	return m
}

// FieldManager tracks who owns which field of the version's objects, through the
// main door (sub "") or a subresource. It is made on first use.
func (v *Version) FieldManager(sub string) (*managedfields.FieldManager, error) {
	d := v.def
	d.modelsOnce.Do(func() { d.models = d.makeModels() })
	m := d.models
	if m.err != nil {
		return nil, m.err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{v.spec.Name, sub}
	if f := m.managers[key]; f != nil {
		return f, nil
	}
	reset := map[fieldpath.APIVersion]*fieldpath.Set{}
	for _, o := range d.all {
		api := fieldpath.APIVersion(d.apiVersion(o.spec.Name))
		switch {
		case sub == "" && o == v && o.hasStatus():
			reset[api] = fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
		case sub == "status" && o.hasStatus():
			reset[api] = fieldpath.NewSet(fieldpath.MakePathOrDie("metadata"), fieldpath.MakePathOrDie("spec"))
		}
	}
	gvk := schema.GroupVersionKind{Group: d.crd.Spec.Group, Version: v.spec.Name, Kind: d.crd.Status.AcceptedNames.Kind}
	filters := fieldpath.NewExcludeFilterSetMap(reset)
	if sub == "scale" {
		var parts []any
		for _, p := range strings.Split(v.ReplicasPath(), ".") {
			parts = append(parts, p)
		}
		filters[fieldpath.APIVersion(d.apiVersion(v.spec.Name))] = fieldpath.NewIncludeMatcherFilter(fieldpath.MakePrefixMatcherOrDie(parts...))
	}
	f, err := managedfields.NewDefaultCRDFieldManager(m.converter, converter{d}, nothing{}, creater{}, gvk, gvk.GroupVersion(), sub, filters)
	if err != nil {
		return nil, fmt.Errorf("make field manager of %s: %w", d.crd.Name, err)
	}
	m.managers[key] = f
	return f, nil
}

// ReplicasPath is where objects have what the scale subresource sets.
func (v *Version) ReplicasPath() string {
	if s := v.scale(); s != nil {
		return strings.TrimPrefix(s.SpecReplicasPath, ".")
	}
	return "spec.replicas"
}

// Tracker notes the owners of fields in changes that are no applies, for objects whose
// managers all use this version; what it leaves is FieldManager's. It is made on first use.
func (v *Version) Tracker(sub string) (*fields.Loose, error) {
	d := v.def
	d.modelsOnce.Do(func() { d.models = d.makeModels() })
	m := d.models
	if m.err != nil {
		return nil, m.err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{v.spec.Name, sub}
	if t := m.trackers[key]; t != nil {
		return t, nil
	}
	door := fields.Door{Subresource: sub}
	switch {
	case sub == "" && v.hasStatus():
		door.Reset = []string{"status"}
	case sub == "status" && v.hasStatus():
		door.Reset = []string{"metadata", "spec"}
	case sub == "scale":
		door.Only = []string{v.ReplicasPath()}
	}
	t, err := fields.NewLoose(m.converter, schema.GroupVersionKind{Group: d.crd.Spec.Group, Version: v.spec.Name, Kind: d.crd.Status.AcceptedNames.Kind}, door)
	if err != nil {
		return nil, fmt.Errorf("track fields of %s: %w", d.crd.Name, err)
	}
	m.trackers[key] = t
	return t, nil
}

// converter is a definition's conversion in apimachinery's form.
type converter struct{ d *definition }

func (c converter) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("input type %T in not valid for unstructured conversion", in)
	}
	gvk, ok := to.KindForGroupVersionKinds([]schema.GroupVersionKind{u.GroupVersionKind()})
	if !ok {
		return nil, fmt.Errorf("%v is unstructured and is not suitable for converting to %q", u.GroupVersionKind(), to)
	}
	if u.GroupVersionKind().GroupVersion() == gvk.GroupVersion() {
		return u.DeepCopy(), nil
	}
	v := c.d.version(gvk.GroupVersion().String())
	if v == nil {
		return nil, fmt.Errorf("request to convert CR to an invalid group/version: %s", gvk.GroupVersion())
	}
	out, err := c.d.convert([]*unstructured.Unstructured{u.DeepCopy()}, v)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

func (c converter) Convert(in, out, context any) error {
	to, ok := out.(*unstructured.Unstructured)
	from, ok2 := in.(runtime.Object)
	if !ok || !ok2 {
		return fmt.Errorf("output type %T in not valid for unstructured conversion from %T", out, in)
	}
	made, err := c.ConvertToVersion(from, to.GroupVersionKind().GroupVersion())
	if err != nil {
		return err
	}
	to.Object = made.(*unstructured.Unstructured).Object
	return nil
}

func (converter) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// nothing: defaults are filled in later, on the way of every write.
type nothing struct{}

func (nothing) Default(runtime.Object) {}

type creater struct{}

func (creater) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	u := new(unstructured.Unstructured)
	u.SetGroupVersionKind(gvk)
	return u, nil
}
