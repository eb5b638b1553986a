package crd

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/jsonpath"

	"proa.dev/kind"
)

func (d *definition) rowGVR() schema.GroupVersionResource {
	if len(d.rows) == 0 {
		return schema.GroupVersionResource{}
	}
	return d.rows[0].GVR()
}

// makeRow is the served row of the version.
func (v *Version) makeRow() *kind.Kind {
	d := v.def
	names := d.crd.Status.AcceptedNames
	gvk := schema.GroupVersionKind{Group: d.crd.Spec.Group, Version: v.spec.Name, Kind: names.Kind}
	k := &kind.Kind{
		Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Plural: names.Plural, Singular: names.Singular, ListKind: names.ListKind,
		ShortNames: names.ShortNames, Categories: names.Categories, Scope: d.root.Scope,
		New: func() kind.Object {
			u := new(unstructured.Unstructured)
			u.SetGroupVersionKind(gvk)
			return u
		},
		NewList: newList,
		Prefix:  d.root.Prefix, Stored: d.root, Custom: true, Extension: v, Closed: closedFor(d),
		Deprecated: v.deprecation(),
		Default:    func(o kind.Object) { v.complete(object(o)) },
		Coerce: func(o kind.Object, track bool) ([]string, error) {
			return v.coerce(object(o), track, false)
		},
		PrepareCreate: func(o kind.Object) {
			u := object(o)
			if v.hasStatus() {
				delete(u.Object, "status")
			}
			u.SetGeneration(1)
		},
		PrepareUpdate: v.prepareUpdate,
		Validate:      func(o kind.Object) field.ErrorList { return v.problems(object(o), nil, mainDoor) },
		ValidateUpdate: func(n, o kind.Object) field.ErrorList {
			return v.problems(object(n), object(o), mainDoor)
		},
		Warnings:       warnings,
		ToStored:       v.toStored,
		FromStored:     v.fromStored,
		FromStoredList: v.fromStoredList,
		Selectable:     v.selectable(),
	}
	if v.hasStatus() {
		k.Status = &kind.Door{
			PrepareUpdate: func(n, o kind.Object) {
				nu, ou := object(n), object(o)
				status, ok := nu.Object["status"]
				managed := nu.GetManagedFields()
				nu.Object = ou.DeepCopy().Object
				nu.SetManagedFields(managed)
				if ok {
					nu.Object["status"] = status
				} else {
					delete(nu.Object, "status")
				}
			},
			ValidateUpdate: func(n, o kind.Object) field.ErrorList { return v.problems(object(n), object(o), statusDoor) },
		}
	}
	if s := v.scale(); s != nil {
		k.Scale = v.scaleRow(s)
	}
	v.columns(k)
	return k
}

func object(o kind.Object) *unstructured.Unstructured { return o.(*unstructured.Unstructured) }

func (v *Version) hasStatus() bool {
	return v.spec.Subresources != nil && v.spec.Subresources.Status != nil
}

// prepareUpdate keeps the status where it has a door of its own, and counts a
// change of anything but metadata.
func (v *Version) prepareUpdate(new, old kind.Object) {
	n, o := object(new), object(old)
	if v.hasStatus() {
		if status, ok := o.Object["status"]; ok {
			n.Object["status"] = status
		} else {
			delete(n.Object, "status")
		}
	}
	n.SetGeneration(o.GetGeneration())
	a, b := maps.Clone(n.Object), maps.Clone(o.Object)
	delete(a, "metadata")
	delete(b, "metadata")
	if !apiequality.Semantic.DeepEqual(a, b) {
		n.SetGeneration(o.GetGeneration() + 1)
	}
}

// warnings about finalizers that others may use too.
func warnings(new, old kind.Object) []string {
	var out []string
	added := slices.Clone(new.GetFinalizers())
	if old != nil {
		added = slices.DeleteFunc(added, func(f string) bool { return slices.Contains(old.GetFinalizers(), f) })
	}
	slices.Sort(added)
	for _, f := range slices.Compact(added) {
		for _, msg := range utilvalidation.IsQualifiedName(f) {
			out = append(out, fmt.Sprintf("metadata.finalizers: %q: %s", f, msg))
		}
		switch {
		case strings.Contains(f, "/"), f == metav1.FinalizerOrphanDependents, f == metav1.FinalizerDeleteDependents, f == "kubernetes":
		case strings.Contains(f, "."):
			out = append(out, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers", f))
		default:
			out = append(out, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers", f))
		}
	}
	return out
}

func (v *Version) scaleRow(s *apiextensionsv1.CustomResourceSubresourceScale) *kind.Scale {
	count := func(path string) func(kind.Object) int32 {
		return func(o kind.Object) int32 {
			n, _, _ := replicas(object(o), path)
			return int32(n)
		}
	}
	return &kind.Scale{
		SpecReplicas: count(s.SpecReplicasPath), StatusReplicas: count(s.StatusReplicasPath),
		SetSpecReplicas: func(o kind.Object, n int32) {
			// A path through something that is no object is refused by Check.
			unstructured.SetNestedField(object(o).Object, int64(n), strings.Split(strings.TrimPrefix(s.SpecReplicasPath, "."), ".")...)
		},
		Selector: func(o kind.Object) string {
			if s.LabelSelectorPath == nil {
				return ""
			}
			text, _, _ := unstructured.NestedString(object(o).Object, strings.Split(strings.TrimPrefix(*s.LabelSelectorPath, "."), ".")...)
			return text
		},
		Check: func(o kind.Object) error {
			_, found, err := replicas(object(o), s.SpecReplicasPath)
			if err != nil {
				return apierrors.NewInternalError(err)
			}
			if !found {
				return apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", s.SpecReplicasPath))
			}
			return nil
		},
	}
}

// path compiles a simple JSON path.
func path(name, text string) *jsonpath.JSONPath {
	p := jsonpath.New(name)
	p.AllowMissingKeys(true)
	if err := p.Parse("{" + text + "}"); err != nil {
		return nil
	}
	return p
}

// selectable reads the fields that clients select by, in this version.
func (v *Version) selectable() map[string]func(kind.Object) string {
	if len(v.spec.SelectableFields) == 0 {
		return nil
	}
	out := map[string]func(kind.Object) string{}
	for _, f := range v.spec.SelectableFields {
		p := path("selectableField", f.JSONPath)
		out[strings.TrimPrefix(f.JSONPath, ".")] = func(o kind.Object) string {
			shown, err := v.fromStored(o)
			if err != nil || p == nil {
				return ""
			}
			found, err := p.FindResults(object(shown).Object)
			if err != nil || len(found) == 0 || len(found[0]) == 0 || !found[0][0].IsValid() || found[0][0].Interface() == nil {
				return ""
			}
			return fmt.Sprint(found[0][0].Interface())
		}
	}
	return out
}

// columns of the printed table: the name, then those of the definition, or the age.
func (v *Version) columns(k *kind.Kind) {
	docs := metav1.ObjectMeta{}.SwaggerDoc()
	list := v.spec.AdditionalPrinterColumns
	if len(list) == 0 {
		list = []apiextensionsv1.CustomResourceColumnDefinition{{Name: "Age", Type: "date", Description: docs["creationTimestamp"], JSONPath: ".metadata.creationTimestamp"}}
	}
	k.Columns = []kind.Column{{Name: "Name", Type: "string", Format: "name", Description: docs["name"]}}
	var paths []*jsonpath.JSONPath
	for _, c := range list {
		p := path(c.Name, c.JSONPath)
		if p == nil {
			continue
		}
		desc := c.Description
		if desc == "" {
			desc = fmt.Sprintf("Custom resource definition column (in JSONPath format): %s", c.JSONPath)
		}
		k.Columns = append(k.Columns, kind.Column{Name: c.Name, Type: c.Type, Format: c.Format, Description: desc, Priority: c.Priority})
		paths = append(paths, p)
	}
	k.Cells = func(o kind.Object, now time.Time) []any {
		cells := []any{o.GetName()}
		for i, p := range paths {
			cells = append(cells, cell(p, object(o).Object, k.Columns[i+1].Type, now))
		}
		return cells
	}
}

func cell(p *jsonpath.JSONPath, content map[string]any, typ string, now time.Time) any {
	found, err := p.FindResults(content)
	if err != nil || len(found) == 0 || len(found[0]) == 0 {
		return nil
	}
	value := found[0][0].Interface()
	switch typ {
	case "string":
		// A null is shown as upstream shows it: <no value>.
		var b bytes.Buffer
		if p.PrintResults(&b, []reflect.Value{reflect.ValueOf(value)}) != nil {
			return nil
		}
		return b.String()
	case "integer":
		switch n := value.(type) {
		case int64:
			return n
		case float64:
			return int64(n)
		}
	case "number":
		switch n := value.(type) {
		case int64:
			return float64(n)
		case float64:
			return n
		}
	case "boolean":
		if b, ok := value.(bool); ok {
			return b
		}
	case "date":
		if s, ok := value.(string); ok {
			if s == "" || s == "null" {
				return "<unknown>" // no time, as in metadata
			}
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return "<invalid>"
			}
			return duration.HumanDuration(now.Sub(t))
		}
	}
	return nil
}
