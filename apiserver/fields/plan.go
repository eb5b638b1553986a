package fields

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"proa.dev/apiserver/openapi"
)

// shape is how values of one Go type look in JSON and how they merge. It is made
// once for each type and read by offsets.
type shape struct {
	form   form
	atomic bool // whole or not at all: struct, map, list that is neither set nor map
	typ    reflect.Type
	fields []fieldShape // of a struct, sorted by name
	elem   *shape       // of pointer, list, map
	size   uintptr      // of a list's elements
	set    bool         // list: of scalars
	keys   []keyShape   // list: of structs
}

type form uint8

const (
	structForm form = iota
	pointerForm
	listForm
	mapForm
	stringForm
	boolForm
	intForm // of any width
	floatForm
	bytesForm
	timeForm
	microTimeForm
	durationForm
	quantityForm
	intOrStringForm
	opaqueForm // says itself what it is in JSON
)

type fieldShape struct {
	name, elem string // "spec", "f:spec"
	offset     uintptr
	shape      *shape
	omitEmpty  bool
	omitZero   bool
	zero       func(reflect.Value) bool // where IsZero has a mind of its own
}

type keyShape struct {
	prefix  string // `"name":`
	field   *fieldShape
	without string // JSON of the default, "" = none
}

// shapes makes shapes and keeps them.
var shapes struct {
	mu     sync.RWMutex
	byType map[reflect.Type]*shape
	kinds  map[reflect.Type]*shape
}

// shapeOf is the shape of a kind's Go type. The managed fields themselves are not in it.
func shapeOf(t reflect.Type) *shape {
	shapes.mu.RLock()
	s := shapes.kinds[t]
	shapes.mu.RUnlock()
	if s != nil {
		return s
	}
	shapes.mu.Lock()
	defer shapes.mu.Unlock()
	if shapes.byType == nil {
		shapes.byType, shapes.kinds = map[reflect.Type]*shape{}, map[reflect.Type]*shape{}
	}
	whole := *structShape(t)
	whole.fields = slices.Clone(whole.fields)
	for i := range whole.fields {
		if f := &whole.fields[i]; f.name == "metadata" && f.shape.form == structForm {
			meta := *f.shape
			meta.fields = slices.DeleteFunc(slices.Clone(meta.fields), func(f fieldShape) bool { return f.name == "managedFields" })
			f.shape = &meta
		}
	}
	shapes.kinds[t] = &whole
	return &whole
}

// structShape is called with the lock held; types may contain themselves.
func structShape(t reflect.Type) *shape {
	if s := shapes.byType[t]; s != nil {
		return s
	}
	s := &shape{form: structForm, typ: t}
	shapes.byType[t] = s
	if f, ok := special(t); ok {
		s.form = f
		return s
	}
	s.atomic = openapi.MergingOf(t).Atomic
	addFields(s, t, 0)
	slices.SortFunc(s.fields, func(a, b fieldShape) int { return strings.Compare(a.name, b.name) })
	return s
}

// special are types whose JSON is not that of their fields.
func special(t reflect.Type) (form, bool) {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return timeForm, true
	case reflect.TypeFor[metav1.MicroTime]():
		return microTimeForm, true
	case reflect.TypeFor[metav1.Duration]():
		return durationForm, true
	case reflect.TypeFor[resource.Quantity]():
		return quantityForm, true
	case reflect.TypeFor[intstr.IntOrString]():
		return intOrStringForm, true
	}
	if e := value.TypeReflectEntryOf(t); e.CanConvertToUnstructured() {
		return opaqueForm, true
	}
	return 0, false
}

func addFields(s *shape, t reflect.Type, base uintptr) {
	merging := openapi.MergingOf(t)
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
		if f.Anonymous && parts[0] == "" {
			if f.Type.Kind() != reflect.Struct {
				s.form = opaqueForm
				return
			}
			if f.Type != reflect.TypeFor[metav1.TypeMeta]() { // which nobody owns
				addFields(s, f.Type, base+f.Offset)
			}
			continue
		}
		name := parts[0]
		if name == "" {
			name = f.Name
		}
		m := merging.Fields[name]
		field := fieldShape{name: name, elem: "f:" + name, offset: base + f.Offset, shape: makeShape(f.Type, m),
			omitEmpty: slices.Contains(parts[1:], "omitempty")}
		if slices.Contains(parts[1:], "omitzero") {
			field.omitZero = true
			if f.Type.Implements(zeroer) || reflect.PointerTo(f.Type).Implements(zeroer) {
				field.zero = value.OmitZeroFunc(f.Type)
			}
		}
		s.fields = append(s.fields, field)
	}
}

var zeroer = reflect.TypeFor[interface{ IsZero() bool }]()

// makeShape is the shape of a field or element; m is what its field says.
func makeShape(t reflect.Type, m openapi.FieldMerging) *shape {
	if t.Kind() == reflect.Pointer {
		return &shape{form: pointerForm, typ: t, elem: makeShape(t.Elem(), m)}
	}
	if t.Kind() != reflect.Struct {
		if f, ok := special(t); ok {
			return &shape{form: f, typ: t}
		}
	}
	switch t.Kind() {
	case reflect.Struct:
		s := structShape(t)
		if s.form != structForm || m.Map == "" || (m.Map == "atomic") == s.atomic {
			return s
		}
		// What the field says goes before what the type says.
		other := &shape{form: structForm, typ: t, atomic: m.Map == "atomic"}
		addFields(other, t, 0)
		slices.SortFunc(other.fields, func(a, b fieldShape) int { return strings.Compare(a.name, b.name) })
		return other
	case reflect.String:
		return &shape{form: stringForm, typ: t}
	case reflect.Bool:
		return &shape{form: boolForm, typ: t}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return &shape{form: intForm, typ: t, size: t.Size()}
	case reflect.Float32, reflect.Float64:
		return &shape{form: floatForm, typ: t, size: t.Size()}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return &shape{form: bytesForm, typ: t}
		}
		s := &shape{form: listForm, typ: t, size: t.Elem().Size(), elem: makeShape(t.Elem(), openapi.FieldMerging{}), atomic: true}
		switch m.List {
		case "set":
			s.atomic, s.set = false, true
		case "map":
			s.atomic = false
			elem := s.elem
			if elem.form == pointerForm {
				elem = elem.elem
			}
			s.keys = keysOf(elem, m.Keys)
			if s.keys == nil {
				return &shape{form: opaqueForm, typ: t}
			}
		}
		return s
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return &shape{form: opaqueForm, typ: t}
		}
		return &shape{form: mapForm, typ: t, elem: makeShape(t.Elem(), openapi.FieldMerging{}), atomic: m.Map == "atomic"}
	}
	return &shape{form: opaqueForm, typ: t}
}

func keysOf(elem *shape, names []string) []keyShape {
	if elem.form != structForm || len(elem.fields) == 0 {
		return nil // a type within itself that is not finished yet
	}
	names = slices.Sorted(slices.Values(names))
	defaults := openapi.MergingOf(elem.typ).Fields
	var out []keyShape
	for _, name := range names {
		i := slices.IndexFunc(elem.fields, func(f fieldShape) bool { return f.name == name })
		if i < 0 {
			return nil
		}
		k := keyShape{prefix: fmt.Sprintf("%q:", name), field: &elem.fields[i]}
		if d := defaults[name].Default; len(d) > 0 {
			var v any
			if json.Unmarshal(d, &v) != nil {
				return nil
			}
			k.without = string(d)
		}
		out = append(out, k)
	}
	return out
}

// omitted says that a field is not there in JSON.
func (f *fieldShape) omitted(p unsafe.Pointer) bool {
	if f.omitEmpty && f.shape.empty(p) {
		return true
	}
	if !f.omitZero {
		return false
	}
	if f.shape.form == timeForm {
		return (*metav1.Time)(p).IsZero()
	}
	v := reflect.NewAt(f.shape.typ, p).Elem()
	if f.zero != nil {
		return f.zero(v)
	}
	return v.IsZero()
}

// empty is what omitempty leaves out: never a struct.
func (s *shape) empty(p unsafe.Pointer) bool {
	switch s.form {
	case pointerForm, mapForm:
		if s.form == mapForm {
			return *(*unsafe.Pointer)(p) == nil || reflect.NewAt(s.typ, p).Elem().Len() == 0
		}
		return *(*unsafe.Pointer)(p) == nil
	case listForm, bytesForm:
		return (*sliceHead)(p).len == 0
	case stringForm:
		return *(*string)(p) == ""
	case boolForm:
		return !*(*bool)(p)
	case intForm, floatForm:
		switch s.size {
		case 8:
			return *(*uint64)(p) == 0
		case 4:
			return *(*uint32)(p) == 0
		case 2:
			return *(*uint16)(p) == 0
		}
		return *(*uint8)(p) == 0
	case opaqueForm:
		switch v := reflect.NewAt(s.typ, p).Elem(); v.Kind() {
		case reflect.Slice, reflect.Map, reflect.String:
			return v.Len() == 0
		case reflect.Struct:
			return false
		default:
			return v.IsZero()
		}
	}
	return false
}

type sliceHead struct {
	data     unsafe.Pointer
	len, cap int
}
