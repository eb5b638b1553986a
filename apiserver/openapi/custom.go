package openapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

// Published is what the extension of a custom row says about its schema.
type Published interface {
	// OpenAPI is the schema of one object with its x-kubernetes-group-version-kind.
	OpenAPI(isV2 bool) (map[string]any, error)
	// ModelName are the names of the schemas of an object and of a list.
	ModelName() (self, list string)
	// Identity changes when the schema may have changed.
	Identity() string
}

// custom adds the schemas of a row that came at run time. A schema that cannot be
// published is an object of which nothing more is said.
func (b *builder) custom(k *kind.Kind) (self, list object) {
	p, ok := k.Extension.(Published)
	if !ok {
		return object{"type": "object"}, object{"type": "object"}
	}
	name, listName := p.ModelName()
	schema, err := p.OpenAPI(!b.v3)
	if err != nil {
		schema = object{"type": "object", "x-kubernetes-group-version-kind": []any{gvkObject(k.GVK())}}
	}
	prefix := "#/definitions/"
	if b.v3 {
		prefix = "#/components/schemas/"
	}
	b.add(&metav1.ObjectMeta{})
	lgvk := k.GVK()
	lgvk.Kind = k.ListOf()
	docs := metav1.TypeMeta{}.SwaggerDoc()
	b.defs[name] = schema
	b.defs[listName] = object{
		"description": lgvk.Kind + " is a list of " + k.Kind, "type": "object", "required": []string{"items"},
		"properties": object{
			"apiVersion": object{"type": "string", "description": docs["apiVersion"]},
			"kind":       object{"type": "string", "description": docs["kind"]},
			"metadata":   b.add(&metav1.ListMeta{}),
			"items": object{"type": "array", "items": object{"$ref": prefix + name},
				"description": "List of " + k.Plural + ". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"},
		},
		"x-kubernetes-group-version-kind": []any{gvkObject(lgvk)},
	}
	return object{"$ref": prefix + name}, object{"$ref": prefix + listName}
}
