package openapi

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"

	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
)

// Merge is the schema that objects of a Go type are merged by (KEP-555): the types
// that t reaches, list types, keys, atomic maps and defaults as they are published.
// It holds what client-go's apply schema holds for the type; a test compares both.
// Types are made once and shared by the schemas of all kinds.
func Merge(t reflect.Type) (of *smdschema.Schema, ref smdschema.TypeRef) {
	merging.Lock()
	defer merging.Unlock()
	m := merger{reached: map[string]bool{}}
	n := m.named(t)
	of = &smdschema.Schema{Types: append(m.types, untyped(untypedName, untypedName, smdschema.Atomic), untyped(deducedName, deducedName, smdschema.Separable))}
	return of, smdschema.TypeRef{NamedType: n}
}

var merging struct {
	sync.Mutex
	defs map[reflect.Type]mergeDef
}

// mergeDef is a type with those that it refers to directly.
type mergeDef struct {
	smdschema.TypeDef
	needs []reflect.Type
}

// Names of the types whose form is not known: the whole is one, or maps are seen
// from the objects.
var untypedName, deducedName = "__untyped_atomic_", "__untyped_deduced_"

func untyped(name, element string, r smdschema.ElementRelationship) smdschema.TypeDef {
	s := smdschema.Untyped
	return smdschema.TypeDef{Name: name, Atom: smdschema.Atom{Scalar: &s,
		List: &smdschema.List{ElementType: smdschema.TypeRef{NamedType: &untypedName}, ElementRelationship: smdschema.Atomic},
		Map:  &smdschema.Map{ElementType: smdschema.TypeRef{NamedType: &element}, ElementRelationship: r}}}
}

// merger collects what one type reaches.
type merger struct {
	reached map[string]bool
	types   []smdschema.TypeDef
}

func (m *merger) named(t reflect.Type) *string {
	d, ok := merging.defs[t]
	if !ok {
		d = makeMergeDef(t)
		if merging.defs == nil {
			merging.defs = map[reflect.Type]mergeDef{}
		}
		merging.defs[t] = d
	}
	if !m.reached[d.Name] {
		m.reached[d.Name] = true
		m.types = append(m.types, d.TypeDef)
		for _, n := range d.needs {
			m.named(n)
		}
	}
	return &d.Name
}

func makeMergeDef(t reflect.Type) mergeDef {
	d := mergeDef{TypeDef: smdschema.TypeDef{Name: name(t)}}
	if a, ok := mergeSpecial(t); ok {
		d.Atom = a
		return d
	}
	d.Map = new(smdschema.Map)
	f := factsOf(t)
	if f != nil && f.atomic {
		d.Map.ElementRelationship = smdschema.Atomic
	}
	d.mergeFields(t)
	if len(d.Map.Fields) == 0 {
		d.Map.ElementType.Inlined = untyped("", deducedName, smdschema.Separable).Atom
	}
	slices.SortFunc(d.Map.Fields, func(a, b smdschema.StructField) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// mergeSpecial is the form of types that say themselves what they look like: times,
// quantities, numbers or texts; and JSON of any form.
func mergeSpecial(t reflect.Type) (smdschema.Atom, bool) {
	typed, ok := reflect.New(t).Interface().(interface{ OpenAPISchemaType() []string })
	switch {
	case !ok || t.String() == "v1.FieldsV1":
		return smdschema.Atom{}, false
	case len(typed.OpenAPISchemaType()) == 0:
		return untyped("", deducedName, smdschema.Separable).Atom, true
	}
	s := smdschema.Untyped
	return smdschema.Atom{Scalar: &s}, true
}

func (d *mergeDef) mergeFields(t reflect.Type) {
	known := factsOf(t)
	for i := range t.NumField() {
		f := t.Field(i)
		n, inline, omits, ok := jsonField(f)
		if !ok {
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if inline && ft.Kind() == reflect.Struct {
			d.mergeFields(ft)
			continue
		}
		var fact fieldFacts
		if known != nil {
			fact = known.fields[n]
		}
		field := smdschema.StructField{Name: n, Type: d.of(ft)}
		if fact.value != nil {
			// The table is made by this project: what is in it is JSON.
			if err := json.Unmarshal(fact.value, &field.Default); err != nil {
				panic("openapi: default of " + t.String() + "." + n + ": " + err.Error())
			}
		} else if z, ok := zero(f.Type, omits); ok {
			if field.Default = z; reflect.DeepEqual(z, object{}) {
				field.Default = map[string]any{}
			}
		}
		relate(&field.Type, fact, f.Tag)
		d.Map.Fields = append(d.Map.Fields, field)
	}
}

// relate says how the elements of a field stand to each other.
func relate(r *smdschema.TypeRef, fact fieldFacts, tag reflect.StructTag) {
	if l := r.Inlined.List; l != nil {
		switch fact.list {
		case "map":
			l.ElementRelationship, l.Keys = smdschema.Associative, fact.keys
		case "set":
			l.ElementRelationship = smdschema.Associative
		case "":
			if strings.HasPrefix(tag.Get("patchStrategy"), "merge") {
				l.ElementRelationship = smdschema.Associative
				if k := tag.Get("patchMergeKey"); k != "" {
					l.Keys = []string{k}
				}
			}
		}
	}
	relation := smdschema.Separable
	if fact.of == "atomic" {
		relation = smdschema.Atomic
	}
	switch {
	case fact.of == "":
	case r.Inlined.Map != nil:
		r.Inlined.Map.ElementRelationship = relation
	case r.NamedType != nil:
		r.ElementRelationship = &relation
	}
}

// of is the reference to a type, with pointers taken away.
func (d *mergeDef) of(t reflect.Type) smdschema.TypeRef {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	scalar := func(s smdschema.Scalar) smdschema.TypeRef {
		return smdschema.TypeRef{Inlined: smdschema.Atom{Scalar: &s}}
	}
	switch t.Kind() {
	case reflect.Struct:
		if t.String() == "runtime.RawExtension" {
			return smdschema.TypeRef{NamedType: &untypedName}
		}
		if !slices.Contains(d.needs, t) {
			d.needs = append(d.needs, t)
		}
		n := name(t)
		return smdschema.TypeRef{NamedType: &n}
	case reflect.String:
		return scalar(smdschema.String)
	case reflect.Bool:
		return scalar(smdschema.Boolean)
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return scalar(smdschema.String)
		}
		return smdschema.TypeRef{Inlined: smdschema.Atom{List: &smdschema.List{ElementType: d.of(t.Elem()), ElementRelationship: smdschema.Atomic}}}
	case reflect.Map:
		return smdschema.TypeRef{Inlined: smdschema.Atom{Map: &smdschema.Map{ElementType: d.of(t.Elem())}}}
	case reflect.Interface:
		return smdschema.TypeRef{NamedType: &untypedName}
	}
	return scalar(smdschema.Numeric)
}

// jsonField reads a field's JSON name; ok is false for fields without one.
func jsonField(f reflect.StructField) (name string, inline, omits, ok bool) {
	if f.PkgPath != "" && !f.Anonymous {
		return "", false, false, false
	}
	tag := f.Tag.Get("json")
	if tag == "-" {
		return "", false, false, false
	}
	name, rest, _ := strings.Cut(tag, ",")
	inline = f.Anonymous && name == ""
	for p := range strings.SplitSeq(rest, ",") {
		inline = inline || p == "inline"
		omits = omits || p == "omitempty" || p == "omitzero"
	}
	if name == "" {
		name = f.Name
	}
	return name, inline, omits, true
}
