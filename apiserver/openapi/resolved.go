package openapi

import (
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"proa.dev/kind"
)

// Resolved is the schema of one row without references, as expressions are checked
// against. A type within itself is an object there of which no more is said.
func Resolved(k *kind.Kind) (*spec.Schema, error) {
	b := newBuilder(false)
	var top object
	if p, ok := k.Extension.(Published); ok {
		// The schema of a v2 document is silent where fields are not pruned.
		name, _ := p.ModelName()
		made, err := p.OpenAPI(false)
		if err != nil {
			return nil, err
		}
		b.defs[name], top = made, made
	} else {
		top = b.add(k.New())
	}
	b.add(&metav1.ObjectMeta{})
	b.finish()
	data, err := json.Marshal(b.inline(top, map[string]bool{}))
	if err != nil {
		return nil, fmt.Errorf("resolve schema of %s: %w", k.String(), err)
	}
	out := new(spec.Schema)
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("resolve schema of %s: %w", k.String(), err)
	}
	return out, nil
}

// inline copies a schema with what its references stand for; open are the names
// that it lies within.
func (b *builder) inline(v any, open map[string]bool) any {
	switch x := v.(type) {
	case object:
		if ref, ok := x["$ref"].(string); ok {
			n := ref[strings.LastIndexByte(ref, '/')+1:]
			if open[n] || b.defs[n] == nil {
				return object{"type": "object"}
			}
			open[n] = true
			defer delete(open, n)
			return b.inline(b.defs[n], open)
		}
		out := make(object, len(x))
		for name, value := range x {
			out[name] = b.inline(value, open)
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = b.inline(x[i], open)
		}
		return out
	}
	return v
}
