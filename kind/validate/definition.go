package validate

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	apiservervalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/environment"
	openapispec "k8s.io/kube-openapi/pkg/validation/spec"
)

// The rules of CustomResourceDefinitions are upstream's library: schemas, CEL
// rules and their costs are judged there.

func internalDefinition(d *apiextensionsv1.CustomResourceDefinition) (*apiextensions.CustomResourceDefinition, field.ErrorList) {
	out := new(apiextensions.CustomResourceDefinition)
	// The conversion shares memory with its source and the rules may fill in fields.
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(d.DeepCopy(), out, nil); err != nil {
		return nil, field.ErrorList{field.InternalError(nil, err)}
	}
	return out, nil
}

// CustomResourceDefinition on create.
func CustomResourceDefinition(d *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	in, errs := internalDefinition(d)
	if in == nil {
		return errs
	}
	return validation.ValidateCustomResourceDefinition(context.Background(), in)
}

// CustomResourceDefinitionUpdate through the main door.
func CustomResourceDefinitionUpdate(new, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	return definitionUpdate(new, old, func(n, o *apiextensions.CustomResourceDefinition) field.ErrorList {
		return validation.ValidateCustomResourceDefinitionUpdate(context.Background(), n, o)
	})
}

// CustomResourceDefinitionStatusUpdate through the status door.
func CustomResourceDefinitionStatusUpdate(new, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	return definitionUpdate(new, old, func(n, o *apiextensions.CustomResourceDefinition) field.ErrorList {
		return validation.ValidateUpdateCustomResourceDefinitionStatus(context.Background(), n, o)
	})
}

func definitionUpdate(new, old *apiextensionsv1.CustomResourceDefinition, check func(n, o *apiextensions.CustomResourceDefinition) field.ErrorList) field.ErrorList {
	n, errs := internalDefinition(new)
	if n == nil {
		return errs
	}
	o, errs := internalDefinition(old)
	if o == nil {
		return errs
	}
	return check(n, o)
}

// CustomResourceDefinitionWarnings are what a definition is warned about: formats
// that nobody knows, and sets of things that are no scalars. Those that old has
// already are not repeated.
func CustomResourceDefinitionWarnings(new, old *apiextensionsv1.CustomResourceDefinition) []string {
	var before []string
	if old != nil {
		before = definitionWarnings(old)
	}
	return slices.DeleteFunc(definitionWarnings(new), func(w string) bool { return slices.Contains(before, w) })
}

func definitionWarnings(d *apiextensionsv1.CustomResourceDefinition) []string {
	in, _ := internalDefinition(d)
	if in == nil {
		return nil
	}
	var formats, sets []string
	look := func(s *apiextensions.JSONSchemaProps) bool {
		if s.Format != "" {
			known := &openapispec.Schema{SchemaProps: openapispec.SchemaProps{Format: s.Format, Type: []string{s.Type}}}
			for _, f := range apiservervalidation.GetUnrecognizedFormats(known, environment.DefaultCompatibilityVersion()) {
				formats = append(formats, fmt.Sprintf("unrecognized format %q", f))
			}
		}
		if s.XListType != nil && *s.XListType == "set" && s.Items != nil && s.Items.Schema != nil && (s.Items.Schema.Type == "object" || s.Items.Schema.Type == "array") {
			sets = append(sets, fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", s.Items.Schema.Type))
		}
		return false
	}
	if in.Spec.Validation != nil && in.Spec.Validation.OpenAPIV3Schema != nil {
		validation.SchemaHas(in.Spec.Validation.OpenAPIV3Schema, look)
	}
	for _, v := range in.Spec.Versions {
		if v.Schema != nil && v.Schema.OpenAPIV3Schema != nil {
			validation.SchemaHas(v.Schema.OpenAPIV3Schema, look)
		}
	}
	slices.Sort(sets)
	return append(formats, slices.Compact(sets)...)
}
