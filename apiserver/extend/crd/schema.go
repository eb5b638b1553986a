package crd

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/operation"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"
)

// compiled is what a schema becomes on first use.
type compiled struct {
	preserve   bool // spec.preserveUnknownFields
	structural *structuralschema.Structural
	schema     *apiextensions.JSONSchemaProps
	status     *apiextensions.JSONSchemaProps
	validate   func() (all, status validation.SchemaValidator, err error)
	rules      func() *cel.Validator
}

// schema of the version, compiled once.
func (v *Version) schema() (*compiled, error) {
	v.once.Do(func() {
		v.def.reg.compiled.Add(1)
		v.compiled, v.err = v.compile()
	})
	return v.compiled, v.err
}

func (v *Version) compile() (*compiled, error) {
	c := &compiled{preserve: v.def.crd.Spec.PreserveUnknownFields}
	if v.spec.Schema != nil && v.spec.Schema.OpenAPIV3Schema != nil {
		in := new(apiextensions.CustomResourceValidation)
		if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.spec.Schema.DeepCopy(), in, nil); err != nil {
			return nil, fmt.Errorf("convert schema of %s version %s: %w", v.def.crd.Name, v.spec.Name, err)
		}
		c.schema = in.OpenAPIV3Schema
		if s, ok := c.schema.Properties["status"]; ok {
			c.status = &s
		}
		s, err := structuralschema.NewStructural(c.schema)
		if err != nil && !c.preserve {
			return nil, fmt.Errorf("compile schema of %s version %s: %w", v.def.crd.Name, v.spec.Name, err)
		}
		if err == nil {
			// The structural schema shares defaults with its source.
			c.structural = s.DeepCopy()
			if err := defaulting.PruneDefaults(c.structural); err != nil && !c.preserve {
				return nil, fmt.Errorf("prune defaults of %s version %s: %w", v.def.crd.Name, v.spec.Name, err)
			}
		}
	}
	type validators struct{ all, status validation.SchemaValidator }
	made := sync.OnceValues(func() (validators, error) {
		var out validators
		var err error
		if out.all, _, err = validation.NewSchemaValidator(c.schema); err != nil {
			return out, err
		}
		if c.status != nil {
			out.status, _, err = validation.NewSchemaValidator(c.status)
		}
		return out, err
	})
	c.validate = func() (all, status validation.SchemaValidator, err error) {
		m, err := made()
		return m.all, m.status, err
	}
	c.rules = sync.OnceValue(func() *cel.Validator { return cel.NewValidator(c.structural, true, celconfig.PerCallLimit) })
	return c, nil
}

// coerce does for an object what decoding into a struct does for a built-in kind:
// metadata is checked and reduced to the known fields (or, with drop, freed of
// what is malformed), unknown fields are pruned, nulls that the schema does not
// allow are dropped. It returns the paths of what was unknown when track is set.
func (v *Version) coerce(u *unstructured.Unstructured, track, drop bool) (unknown []string, err error) {
	c, err := v.schema()
	if err != nil {
		return nil, err
	}
	kindName, hasKind, err := unstructured.NestedString(u.Object, "kind")
	if err != nil {
		return nil, err
	}
	apiVersion, hasVersion, err := unstructured.NestedString(u.Object, "apiVersion")
	if err != nil {
		return nil, err
	}
	meta, hasMeta, unknown, err := objectmeta.GetObjectMetaWithOptions(u.Object, objectmeta.ObjectMetaOptions{DropMalformedFields: drop, ReturnUnknownFieldPaths: track})
	if err != nil {
		return nil, err
	}
	if !c.preserve {
		unknown = append(unknown, pruning.PruneWithOptions(u.Object, c.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: track})...)
		defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, c.structural)
	}
	ferr, paths := objectmeta.CoerceWithOptions(nil, u.Object, c.structural, false, objectmeta.CoerceOptions{DropInvalidFields: drop, ReturnUnknownFieldPaths: track})
	if ferr != nil {
		return nil, ferr
	}
	unknown = append(unknown, paths...)
	if drop && meta.Generation == 0 {
		meta.Generation = 1 // very old objects have none
		hasMeta = true
	}
	if hasKind {
		u.SetKind(kindName)
	}
	if hasVersion {
		u.SetAPIVersion(apiVersion)
	}
	if hasMeta {
		if err := objectmeta.SetObjectMeta(u.Object, meta); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}

// complete prunes and defaults the fields of the schema, after metadata was seen
// to.
func (v *Version) complete(u *unstructured.Unstructured) {
	c, err := v.schema()
	if err != nil {
		return // validation says so
	}
	if !c.preserve {
		// Pruning at the root takes away what no schema names.
		keep := map[string]any{}
		for _, name := range []string{"apiVersion", "kind", "metadata"} {
			if x, ok := u.Object[name]; ok {
				keep[name] = x
			}
		}
		pruning.Prune(u.Object, c.structural, true)
		defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, c.structural)
		for name, x := range keep {
			u.Object[name] = x
		}
	}
	if c.structural != nil {
		defaulting.Default(u.Object, c.structural)
	}
}

// isComplete says that coercing and completing would change nothing in x. It may
// say no where they would not.
func isComplete(x any, s *structuralschema.Structural, root bool) bool {
	if s == nil {
		return false
	}
	switch x := x.(type) {
	case map[string]any:
		if s.XEmbeddedResource && !root {
			return false
		}
		for name, value := range x {
			if root || s.XEmbeddedResource {
				switch name {
				case "apiVersion", "kind", "metadata":
					continue
				}
			}
			p, ok := s.Properties[name]
			switch {
			case ok:
				if value == nil && !p.Nullable || !isComplete(value, &p, false) {
					return false
				}
			case s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil:
				if value == nil && !s.AdditionalProperties.Structural.Nullable || !isComplete(value, s.AdditionalProperties.Structural, false) {
					return false
				}
			case s.AdditionalProperties != nil && s.AdditionalProperties.Bool, s.XPreserveUnknownFields:
				// Below a preserved field only known fields count, and none is known here.
			default:
				return false
			}
		}
		for name := range s.Properties {
			if p := s.Properties[name]; p.Default.Object != nil {
				if _, ok := x[name]; !ok {
					return false
				}
			}
		}
	case []any:
		if s.Items == nil {
			return len(x) == 0 || s.XPreserveUnknownFields
		}
		for i := range x {
			if x[i] == nil && !s.Items.Nullable || !isComplete(x[i], s.Items, false) {
				return false
			}
		}
	}
	return true
}

// typeMeta: an object says what it is.
func (v *Version) typeMeta(u *unstructured.Unstructured) field.ErrorList {
	var errs field.ErrorList
	if want := v.def.crd.Status.AcceptedNames.Kind; u.GetKind() != want {
		errs = append(errs, field.Invalid(field.NewPath("kind"), u.GetKind(), fmt.Sprintf("must be %v", want)))
	}
	if want := v.def.apiVersion(v.spec.Name); u.GetAPIVersion() != want {
		errs = append(errs, field.Invalid(field.NewPath("apiVersion"), u.GetAPIVersion(), fmt.Sprintf("must be %v", want)))
	}
	return errs
}

func objectMeta(u *unstructured.Unstructured) (*metav1.ObjectMeta, field.ErrorList) {
	out := new(metav1.ObjectMeta)
	raw, ok := u.Object["metadata"]
	if !ok || raw == nil {
		return out, nil
	}
	m, ok := raw.(map[string]any)
	if !ok {
		return nil, field.ErrorList{field.Invalid(field.NewPath("metadata"), raw, fmt.Sprintf("expected map[string]interface{}, got %T", raw))}
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(m, out); err != nil {
		return nil, field.ErrorList{field.Invalid(field.NewPath("metadata"), raw, err.Error())}
	}
	return out, nil
}

// isBlocking: rules are not asked about an object that has not the right shape.
func isBlocking(errs field.ErrorList) bool {
	for _, e := range errs {
		switch e.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return true
		}
	}
	return false
}

// doorOf names what a change may touch.
type doorOf uint8

const (
	mainDoor doorOf = iota
	statusDoor
)

// problems of an object; old is nil on create.
func (v *Version) problems(u, old *unstructured.Unstructured, door doorOf) field.ErrorList {
	c, err := v.schema()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	if errs := v.typeMeta(u); len(errs) > 0 {
		return errs
	}
	all, status, err := c.validate()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	ctx := context.Background()
	namespaced := v.def.crd.Spec.Scope == apiextensionsv1.NamespaceScoped
	meta, errs := objectMeta(u)
	if len(errs) > 0 {
		return errs
	}
	var options []validation.ValidationOption
	var rules []cel.Option
	path := field.NewPath("metadata")
	if old == nil {
		errs = append(errs, apivalidation.ValidateObjectMetaDeclaratively(ctx, operation.Create, meta, nil, namespaced, apivalidation.NameIsDNSSubdomain, path, true)...)
	} else {
		before, bad := objectMeta(old)
		if len(bad) > 0 {
			return bad
		}
		errs = append(errs, apivalidation.ValidateObjectMetaDeclaratively(ctx, operation.Update, meta, before, namespaced, nil, path, true)...)
		if c.structural != nil {
			pair := common.NewCorrelatedObject(u.Object, old.Object, &model.Structural{Structural: c.structural})
			rules = append(rules, cel.WithRatcheting(pair))
			if door == statusDoor {
				pair = pair.Key("status")
			}
			options = append(options, validation.WithRatcheting(pair))
		}
	}
	switch {
	case old == nil:
		errs = append(errs, validation.ValidateCustomResource(nil, u.Object, all)...)
	case door == mainDoor:
		errs = append(errs, validation.ValidateCustomResourceUpdate(nil, u.Object, old.Object, all, options...)...)
	case status != nil:
		if s, ok := u.Object["status"]; ok {
			errs = append(errs, validation.ValidateCustomResourceUpdate(field.NewPath("status"), s, old.Object["status"], status, options...)...)
		}
	}
	if door == mainDoor {
		errs = append(errs, v.scaleSpec(u)...)
	}
	errs = append(errs, v.scaleStatus(u)...)
	if door == mainDoor {
		errs = append(errs, objectmeta.Validate(ctx, nil, u.Object, c.structural, false)...)
	}
	// Lists that were wrong before may stay so.
	if lists := listtype.ValidateListSetsAndMaps(nil, c.structural, u.Object); len(lists) > 0 &&
		(old == nil || len(listtype.ValidateListSetsAndMaps(nil, c.structural, old.Object)) == 0) {
		errs = append(errs, lists...)
	}
	if c.structural == nil {
		return errs
	}
	if r := c.rules(); r != nil {
		if isBlocking(errs) {
			return append(errs, field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"))
		}
		var before any
		if old != nil {
			before = old.Object
		}
		found, _ := r.Validate(ctx, nil, c.structural, u.Object, before, celconfig.RuntimeCELCostBudget, rules...)
		errs = append(errs, found...)
	}
	return errs
}

// replicas reads a count at a path like ".spec.replicas".
func replicas(u *unstructured.Unstructured, path string) (int64, bool, error) {
	return unstructured.NestedInt64(u.Object, strings.Split(strings.TrimPrefix(path, "."), ".")...)
}

func replicaProblems(u *unstructured.Unstructured, path string) field.ErrorList {
	n, _, err := replicas(u, path)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(field.NewPath(path), n, err.Error())}
	case n < 0:
		return field.ErrorList{field.Invalid(field.NewPath(path), n, "should be a non-negative integer")}
	case n > 1<<31-1:
		return field.ErrorList{field.Invalid(field.NewPath(path), n, fmt.Sprintf("should be less than or equal to %v", 1<<31-1))}
	}
	return nil
}

func (v *Version) scale() *apiextensionsv1.CustomResourceSubresourceScale {
	if v.spec.Subresources == nil {
		return nil
	}
	return v.spec.Subresources.Scale
}

func (v *Version) scaleSpec(u *unstructured.Unstructured) field.ErrorList {
	if s := v.scale(); s != nil {
		return replicaProblems(u, s.SpecReplicasPath)
	}
	return nil
}

func (v *Version) scaleStatus(u *unstructured.Unstructured) field.ErrorList {
	s := v.scale()
	if s == nil {
		return nil
	}
	errs := replicaProblems(u, s.StatusReplicasPath)
	if s.LabelSelectorPath != nil {
		if text, _, err := unstructured.NestedString(u.Object, strings.Split(strings.TrimPrefix(*s.LabelSelectorPath, "."), ".")...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*s.LabelSelectorPath), text, err.Error()))
		}
	}
	return errs
}
