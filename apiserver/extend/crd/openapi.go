package crd

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Identity changes when the version's schema may have changed.
func (v *Version) Identity() string {
	return fmt.Sprint(v.def.crd.UID, v.def.crd.Generation, v.def.crd.Status.AcceptedNames)
}

// ModelName is the name of the version's schema in OpenAPI documents, and that of
// its list.
func (v *Version) ModelName() (self, list string) {
	n := v.modelName()
	return n, strings.TrimSuffix(n, v.def.crd.Status.AcceptedNames.Kind) + v.def.crd.Status.AcceptedNames.ListKind
}

// OpenAPI is the schema of the version as it is published, v2 or v3. A v2 document
// says nothing about objects that may have unknown fields at their root, since
// clients would refuse those fields.
func (v *Version) OpenAPI(isV2 bool) (map[string]any, error) {
	prefix := "#/components/schemas/"
	if isV2 {
		prefix = "#/definitions/"
	}
	var s *structuralschema.Structural
	if v.spec.Schema != nil && v.spec.Schema.OpenAPIV3Schema != nil {
		in := new(apiextensions.CustomResourceValidation)
		if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.spec.Schema.DeepCopy(), in, nil); err != nil {
			return nil, fmt.Errorf("publish schema of %s version %s: %w", v.def.crd.Name, v.spec.Name, err)
		}
		if made, err := structuralschema.NewStructural(in.OpenAPIV3Schema); err == nil {
			s = made.Unfold()
		}
	}
	out := &spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{"object"}}}
	if s != nil && !(isV2 && (s.XPreserveUnknownFields || v.def.crd.Spec.PreserveUnknownFields)) {
		if isV2 {
			s = openapiv2.ToStructuralOpenAPIV2(s)
		}
		out = s.ToKubeOpenAPI()
		if out.Properties == nil {
			out.Properties = map[string]spec.Schema{}
		}
		docs := metav1.TypeMeta{}.SwaggerDoc()
		meta := spec.RefSchema(prefix + metaModel)
		meta.Description = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
		out.Properties["metadata"] = *meta
		out.Properties["apiVersion"] = text(docs["apiVersion"])
		out.Properties["kind"] = text(docs["kind"])
		embedded(out, prefix)
	}
	out.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{
		"group": v.def.crd.Spec.Group, "version": v.spec.Name, "kind": v.def.crd.Status.AcceptedNames.Kind}})
	if len(v.spec.SelectableFields) > 0 && !isV2 {
		var fields []any
		for _, f := range v.spec.SelectableFields {
			fields = append(fields, map[string]any{"fieldPath": strings.TrimPrefix(f.JSONPath, ".")})
		}
		out.AddExtension("x-kubernetes-selectable-fields", fields)
	}
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("publish schema of %s version %s: %w", v.def.crd.Name, v.spec.Name, err)
	}
	var made map[string]any
	return made, json.Unmarshal(data, &made)
}

func text(doc string) spec.Schema {
	return spec.Schema{SchemaProps: spec.SchemaProps{Type: spec.StringOrArray{"string"}, Description: doc}}
}

// embedded gives embedded objects what every object has.
func embedded(s *spec.Schema, prefix string) {
	for name, p := range s.Properties {
		embedded(&p, prefix)
		if is, _ := p.Extensions.GetBool("x-kubernetes-embedded-resource"); is {
			if p.Properties == nil {
				p.Properties = map[string]spec.Schema{}
			}
			docs := metav1.TypeMeta{}.SwaggerDoc()
			p.Properties["apiVersion"], p.Properties["kind"] = text(docs["apiVersion"]), text(docs["kind"])
			p.Properties["metadata"] = *spec.RefSchema(prefix + metaModel)
		}
		s.Properties[name] = p
	}
	if s.Items != nil && s.Items.Schema != nil {
		embedded(s.Items.Schema, prefix)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		embedded(s.AdditionalProperties.Schema, prefix)
	}
}
