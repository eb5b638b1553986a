// Package openapi derives OpenAPI documents from the table of kinds and the Go
// types behind it: schemas by reflection over JSON tags, descriptions from the
// types' SwaggerDoc, patch strategies from struct tags, paths from rows; list types,
// defaults, enumerations and what is optional from the markers in the types'
// comments (facts.txt, made by tools/facts).
//
// V2 is Swagger 2.0 for all groups, V3 is OpenAPI 3.0 for one group version. The
// same table gives the same bytes. Both cost time (some 100 ms for V2): callers
// keep the result.
//
// A field is required when its JSON tag has no omitempty or omitzero and it is not
// marked +optional, or when it is marked +required. Defaults are published in V3
// only.
package openapi

import (
	"reflect"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// object is one JSON object; maps marshal with sorted keys.
type object = map[string]any

// builder collects schemas and those that they refer to.
type builder struct {
	v3      bool
	defs    map[string]object
	kinds   map[string][]schema.GroupVersionKind // by schema name
	pending []reflect.Type
}

func newBuilder(v3 bool) *builder {
	return &builder{v3: v3, defs: map[string]object{}, kinds: map[string][]schema.GroupVersionKind{}}
}

// name of a type's schema: io.k8s.api.core.v1.Pod.
func name(t reflect.Type) string {
	if m, ok := reflect.New(t).Interface().(interface{ OpenAPIModelName() string }); ok {
		return m.OpenAPIModelName()
	}
	pkg := strings.Split(t.PkgPath(), "/")
	host := strings.Split(pkg[0], ".")
	for i, j := 0, len(host)-1; i < j; i, j = i+1, j-1 {
		host[i], host[j] = host[j], host[i]
	}
	return strings.Join(append(host, pkg[1:]...), ".") + "." + t.Name()
}

func (b *builder) ref(t reflect.Type) object {
	n := name(t)
	if _, ok := b.defs[n]; !ok {
		b.defs[n] = nil
		b.pending = append(b.pending, t)
	}
	if b.v3 {
		return object{"$ref": "#/components/schemas/" + n}
	}
	return object{"$ref": "#/definitions/" + n}
}

// add makes the schema of a top-level kind.
func (b *builder) add(v any, gvks ...schema.GroupVersionKind) object {
	t := reflect.TypeOf(v).Elem()
	n := name(t)
	for _, gvk := range gvks {
		known := false
		for _, have := range b.kinds[n] {
			known = known || have == gvk
		}
		if !known {
			b.kinds[n] = append(b.kinds[n], gvk)
		}
	}
	return b.ref(t)
}

// finish builds what is pending until nothing is.
func (b *builder) finish() {
	for len(b.pending) > 0 {
		t := b.pending[0]
		b.pending = b.pending[1:]
		b.defs[name(t)] = b.define(t)
	}
	for n, gvks := range b.kinds {
		if b.defs[n] == nil {
			continue
		}
		sort.SliceStable(gvks, func(i, j int) bool { return gvks[i].String() < gvks[j].String() })
		var list []any
		for _, gvk := range gvks {
			list = append(list, gvkObject(gvk))
		}
		b.defs[n]["x-kubernetes-group-version-kind"] = list
	}
}

func gvkObject(gvk schema.GroupVersionKind) object {
	return object{"group": gvk.Group, "kind": gvk.Kind, "version": gvk.Version}
}

func docs(t reflect.Type) map[string]string {
	if d, ok := reflect.New(t).Interface().(interface{ SwaggerDoc() map[string]string }); ok {
		return d.SwaggerDoc()
	}
	return nil
}

// define is the schema of a named type.
func (b *builder) define(t reflect.Type) object {
	v := reflect.New(t).Interface()
	s := object{}
	if d := docs(t)[""]; d != "" {
		s["description"] = d
	}
	if b.special(t, v, s) {
		return s
	}
	if t.Kind() != reflect.Struct {
		for k, e := range b.of(underlying(t)) {
			s[k] = e
		}
		return s
	}
	s["type"] = "object"
	if f := factsOf(t); f != nil {
		if f.atomic {
			s["x-kubernetes-map-type"] = "atomic"
		}
		if f.union != nil {
			s["x-kubernetes-unions"] = []any{f.union}
		}
	}
	props := object{}
	var required []string
	b.fields(t, props, &required)
	if len(props) > 0 {
		s["properties"] = props
	}
	if len(required) > 0 {
		sort.Strings(required)
		s["required"] = required
	}
	return s
}

// special fills in types that say themselves what they look like in JSON.
func (b *builder) special(t reflect.Type, v any, s object) bool {
	switch t.String() {
	case "runtime.RawExtension", "v1.FieldsV1", "runtime.Unknown":
		s["type"] = "object"
		return true
	case "json.RawMessage":
		return true
	}
	if one, ok := v.(interface{ OpenAPIV3OneOfTypes() []string }); ok && b.v3 {
		var list []any
		for _, n := range one.OpenAPIV3OneOfTypes() {
			list = append(list, object{"type": n})
		}
		s["oneOf"] = list
		if f, ok := v.(interface{ OpenAPISchemaFormat() string }); ok && f.OpenAPISchemaFormat() != "" {
			s["format"] = f.OpenAPISchemaFormat()
		}
		return true
	}
	if typed, ok := v.(interface{ OpenAPISchemaType() []string }); ok {
		if list := typed.OpenAPISchemaType(); len(list) > 0 {
			s["type"] = list[0]
		}
		if f, ok := v.(interface{ OpenAPISchemaFormat() string }); ok && f.OpenAPISchemaFormat() != "" {
			s["format"] = f.OpenAPISchemaFormat()
		}
		return true
	}
	return false
}

// underlying strips the name of a slice, map or basic type.
func underlying(t reflect.Type) reflect.Type {
	switch t.Kind() {
	case reflect.Slice:
		return reflect.SliceOf(t.Elem())
	case reflect.Map:
		return reflect.MapOf(t.Key(), t.Elem())
	}
	return t
}

// fields adds the JSON fields of a struct, those of inlined ones included.
func (b *builder) fields(t reflect.Type, props object, required *[]string) {
	doc, known := docs(t), factsOf(t)
	for i := range t.NumField() {
		f := t.Field(i)
		if f.PkgPath != "" && !f.Anonymous {
			continue
		}
		tag := f.Tag.Get("json")
		if tag == "-" {
			continue
		}
		parts := strings.Split(tag, ",")
		inline := f.Anonymous && parts[0] == ""
		optional := false
		for _, p := range parts[1:] {
			inline = inline || p == "inline"
			optional = optional || p == "omitempty" || p == "omitzero"
		}
		ft, omits := f.Type, optional
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if inline && ft.Kind() == reflect.Struct {
			b.fields(ft, props, required)
			continue
		}
		n := parts[0]
		if n == "" {
			n = f.Name
		}
		p := b.of(ft)
		if ref, ok := p["$ref"]; ok && b.v3 {
			// Nothing may stand beside a reference in 3.0.
			p = object{"allOf": []any{object{"$ref": ref}}}
		}
		var fact fieldFacts
		if known != nil {
			fact = known.fields[n]
		}
		optional = optional && !fact.required || fact.optional
		if fact.value != nil && b.v3 {
			p["default"] = fact.value
		} else if d, ok := zero(f.Type, omits); ok && b.v3 {
			p["default"] = d
		}
		if fact.list != "" {
			p["x-kubernetes-list-type"] = fact.list
		}
		if len(fact.keys) > 0 {
			p["x-kubernetes-list-map-keys"] = fact.keys
		}
		if fact.of != "" {
			p["x-kubernetes-map-type"] = fact.of
		}
		if d := doc[n]; d != "" {
			p["description"] = d
		}
		if s := f.Tag.Get("patchStrategy"); s != "" {
			p["x-kubernetes-patch-strategy"] = s
		}
		if k := f.Tag.Get("patchMergeKey"); k != "" {
			p["x-kubernetes-patch-merge-key"] = k
		}
		props[n] = p
		if !optional {
			*required = append(*required, n)
		}
	}
}

// of is the schema of a field's type.
func (b *builder) of(t reflect.Type) object {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Name() != "" && t.PkgPath() != "" {
		switch t.Kind() {
		case reflect.Struct:
			return b.ref(t)
		case reflect.String, reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64, reflect.Float64:
		default:
			// Named slices and maps (ResourceList, ExtraValue) show as what they are.
			t = underlying(t)
		}
	}
	switch t.Kind() {
	case reflect.String:
		if f := factsOf(t); f != nil && len(f.enum) > 0 {
			return object{"type": "string", "enum": f.enum}
		}
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int32, reflect.Int16, reflect.Int8, reflect.Uint32, reflect.Uint16, reflect.Uint8, reflect.Int:
		return object{"type": "integer", "format": "int32"}
	case reflect.Int64, reflect.Uint64:
		return object{"type": "integer", "format": "int64"}
	case reflect.Float64, reflect.Float32:
		return object{"type": "number", "format": "double"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "format": "byte"}
		}
		return object{"type": "array", "items": b.element(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": b.element(t.Elem())}
	case reflect.Struct:
		return b.ref(t)
	}
	return object{}
}

// element is the schema of what a list or map holds.
func (b *builder) element(t reflect.Type) object {
	e := b.of(t)
	if ref, ok := e["$ref"]; ok && b.v3 {
		e = object{"allOf": []any{object{"$ref": ref}}}
		if t.Kind() == reflect.Struct {
			e["default"] = object{}
		}
		return e
	}
	if b.v3 && t.Kind() == reflect.String {
		e["default"] = ""
	}
	return e
}
