package wire

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unsafe"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// appender writes the value that p points to. ok is false where encoding/json has
// to be asked.
type appender func(b []byte, p unsafe.Pointer) (out []byte, ok bool)

// planKey: in maps and interfaces values have no address, and methods of their
// pointers do not count.
type planKey struct {
	t    reflect.Type
	addr bool
}

// plan of one type. append is set before the plan is seen by others, and by a
// recursive type through the plan's address.
type plan struct{ append appender }

var (
	plans   sync.Map // planKey → *plan, whole ones
	making  sync.Mutex
	drafted = map[planKey]*plan{} // under making
)

func planOf(k planKey) *plan {
	if p, ok := plans.Load(k); ok {
		return p.(*plan)
	}
	making.Lock()
	defer making.Unlock()
	p := draft(k)
	for k, p := range drafted {
		plans.Store(k, p)
	}
	clear(drafted)
	return p
}

// draft makes a plan under the lock; types that contain themselves meet their own
// draft.
func draft(k planKey) *plan {
	if p, ok := plans.Load(k); ok {
		return p.(*plan)
	}
	if p := drafted[k]; p != nil {
		return p
	}
	p := new(plan)
	drafted[k] = p
	p.append = compile(k)
	return p
}

var (
	marshalerType = reflect.TypeFor[json.Marshaler]()
	textType      = reflect.TypeFor[encoding.TextMarshaler]()
	zeroType      = reflect.TypeFor[interface{ IsZero() bool }]()
	numberType    = reflect.TypeFor[json.Number]()
)

// known is how a type is written whose MarshalJSON is done here, or nil.
func known(t reflect.Type) appender {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			return appendTime(b, (*metav1.Time)(p).Time, time.RFC3339), true
		}
	case reflect.TypeFor[metav1.MicroTime]():
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			return appendTime(b, (*metav1.MicroTime)(p).Time, metav1.RFC3339Micro), true
		}
	case reflect.TypeFor[intstr.IntOrString]():
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			switch v := (*intstr.IntOrString)(p); v.Type {
			case intstr.Int:
				return appendInt(b, int64(v.IntVal)), true
			case intstr.String:
				return appendString(b, v.StrVal), true
			}
			return b, false
		}
	case reflect.TypeFor[metav1.FieldsV1]():
		return appendFields
	case reflect.TypeFor[runtime.RawExtension]():
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			x := (*runtime.RawExtension)(p)
			if x.Raw == nil && x.Object != nil {
				return appendAny(b, x.Object)
			}
			return appendMarshaler(b, x)
		}
	}
	return nil
}

// wellFormed are managed fields that were checked and came out as they went in: most
// objects have theirs in common with others. Where they are in memory tells where
// to look, what they say decides.
var wellFormed [256]atomic.Pointer[string]

func appendFields(b []byte, p unsafe.Pointer) ([]byte, bool) {
	raw, err := (*metav1.FieldsV1)(p).MarshalJSON()
	if err != nil {
		return b, false
	}
	place := &wellFormed[(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))>>4^uintptr(len(raw)))%uintptr(len(wellFormed))]
	if known := place.Load(); known != nil && *known == string(raw) {
		return append(b, raw...), true
	}
	at := len(b)
	b, ok := appendRaw(b, raw)
	if ok && len(raw) <= 4<<10 && string(b[at:]) == string(raw) {
		text := string(raw)
		place.Store(&text)
	}
	return b, ok
}

func appendTime(b []byte, t time.Time, layout string) []byte {
	if t.IsZero() {
		return append(b, "null"...)
	}
	return append(t.UTC().AppendFormat(append(b, '"'), layout), '"')
}

func appendMarshaler(b []byte, m json.Marshaler) ([]byte, bool) {
	raw, err := m.MarshalJSON()
	if err != nil {
		return b, false
	}
	return appendRaw(b, raw)
}

func compile(k planKey) appender {
	t := k.t
	if f := known(t); f != nil {
		return f
	}
	if t == reflect.TypeFor[unstructured.Unstructured]() && k.addr {
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			return appendAnyMap(b, (*unstructured.Unstructured)(p).Object)
		}
	}
	pointer := reflect.PointerTo(t)
	if t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface {
		switch {
		case t.Implements(marshalerType), k.addr && pointer.Implements(marshalerType):
			return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
				return appendMarshaler(b, reflect.NewAt(t, p).Interface().(json.Marshaler))
			}
		case t.Implements(textType), k.addr && pointer.Implements(textType), t == numberType:
			return standard(k)
		}
	}
	switch t.Kind() {
	case reflect.Bool:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendBool(b, *(*bool)(p)), true }
	case reflect.Int:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*int)(p))), true }
	case reflect.Int8:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*int8)(p))), true }
	case reflect.Int16:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*int16)(p))), true }
	case reflect.Int32:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*int32)(p))), true }
	case reflect.Int64:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, *(*int64)(p)), true }
	case reflect.Uint8:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*uint8)(p))), true }
	case reflect.Uint16:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*uint16)(p))), true }
	case reflect.Uint32:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendInt(b, int64(*(*uint32)(p))), true }
	case reflect.Uint64:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			return strconv.AppendUint(b, *(*uint64)(p), 10), true
		}
	case reflect.Float32:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendFloat(b, float64(*(*float32)(p)), 32) }
	case reflect.Float64:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendFloat(b, *(*float64)(p), 64) }
	case reflect.String:
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendString(b, *(*string)(p)), true }
	case reflect.Pointer:
		elem := draft(planKey{t.Elem(), true})
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			if p = *(*unsafe.Pointer)(p); p == nil {
				return append(b, "null"...), true
			}
			return elem.append(b, p)
		}
	case reflect.Interface:
		if t.NumMethod() == 0 {
			return func(b []byte, p unsafe.Pointer) ([]byte, bool) { return appendAny(b, *(*any)(p)) }
		}
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			v := reflect.NewAt(t, p).Elem()
			if v.IsNil() {
				return append(b, "null"...), true
			}
			return appendAny(b, v.Interface())
		}
	case reflect.Slice:
		return compileSlice(t)
	case reflect.Map:
		return compileMap(k)
	case reflect.Struct:
		if fields, ok := fieldsOfType(k); ok {
			return compileStruct(fields)
		}
	}
	return standard(k)
}

// standard leaves a value to encoding/json.
func standard(k planKey) appender {
	return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
		v := reflect.NewAt(k.t, p)
		if !k.addr {
			v = v.Elem()
		}
		data, err := json.Marshal(v.Interface())
		return append(b, data...), err == nil
	}
}

func compileSlice(t reflect.Type) appender {
	e := t.Elem()
	if e.Kind() == reflect.Uint8 && !reflect.PointerTo(e).Implements(marshalerType) && !reflect.PointerTo(e).Implements(textType) {
		return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
			data := *(*[]byte)(p)
			if data == nil {
				return append(b, "null"...), true
			}
			return append(base64.StdEncoding.AppendEncode(append(b, '"'), data), '"'), true
		}
	}
	elem, size := draft(planKey{e, true}), e.Size()
	return func(b []byte, p unsafe.Pointer) (_ []byte, ok bool) {
		// Every slice begins with pointer and length.
		data := *(*[]byte)(p)
		if data == nil {
			return append(b, "null"...), true
		}
		b = append(b, '[')
		at := unsafe.Pointer(unsafe.SliceData(data))
		for i := range len(data) {
			if i > 0 {
				b = append(b, ',')
			}
			if b, ok = elem.append(b, unsafe.Add(at, uintptr(i)*size)); !ok {
				return b, false
			}
		}
		return append(b, ']'), true
	}
}

func compileMap(k planKey) appender {
	t := k.t
	if t.Key().Kind() != reflect.String || t.Key().Implements(textType) {
		return standard(k)
	}
	if t.Key() == reflect.TypeFor[string]() && t.Elem() == reflect.TypeFor[string]() {
		return appendStringMap
	}
	elem := draft(planKey{t.Elem(), false})
	slice := reflect.SliceOf(t.Elem())
	size := t.Elem().Size()
	return func(b []byte, p unsafe.Pointer) ([]byte, bool) {
		if *(*unsafe.Pointer)(p) == nil {
			return append(b, "null"...), true
		}
		m := reflect.NewAt(t, p).Elem()
		n := m.Len()
		if n == 0 {
			return append(b, "{}"...), true
		}
		type entry struct {
			key string
			at  int
		}
		var few [8]entry
		entries := few[:0]
		values := reflect.MakeSlice(slice, n, n)
		for it := m.MapRange(); it.Next() && len(entries) < n; {
			values.Index(len(entries)).SetIterValue(it)
			entries = append(entries, entry{it.Key().String(), len(entries)})
		}
		slices.SortFunc(entries, func(x, y entry) int { return strings.Compare(x.key, y.key) })
		at := values.UnsafePointer()
		ok := true
		for i, e := range entries {
			if i == 0 {
				b = append(b, '{')
			} else {
				b = append(b, ',')
			}
			b = append(appendString(b, e.key), ':')
			if b, ok = elem.append(b, unsafe.Add(at, uintptr(e.at)*size)); !ok {
				return b, false
			}
		}
		return append(b, '}'), true
	}
}

// jsonField of a struct, those of embedded structs among them.
type jsonField struct {
	name   string
	head   string // "name":
	offset uintptr
	plan   *plan
	empty  func(unsafe.Pointer) bool // left out then; nil: never
}

func compileStruct(fields []jsonField) appender {
	return func(b []byte, p unsafe.Pointer) (_ []byte, ok bool) {
		sep := byte('{')
		for i := range fields {
			f := &fields[i]
			at := unsafe.Add(p, f.offset)
			if f.empty != nil && f.empty(at) {
				continue
			}
			b = append(append(b, sep), f.head...)
			sep = ','
			if b, ok = f.plan.append(b, at); !ok {
				return b, false
			}
		}
		if sep == '{' {
			b = append(b, '{')
		}
		return append(b, '}'), true
	}
}

// fieldsOfType lists what encoding/json writes of a struct, in its order. ok is
// false for what API types do not have: two fields of one name, embedded pointers,
// the option "string".
func fieldsOfType(k planKey) (fields []jsonField, ok bool) {
	seen := map[string]bool{}
	var walk func(t reflect.Type, offset uintptr) bool
	walk = func(t reflect.Type, offset uintptr) bool {
		for i := range t.NumField() {
			sf := t.Field(i)
			tag := sf.Tag.Get("json")
			if tag == "-" {
				continue
			}
			name, rest, _ := strings.Cut(tag, ",")
			if !validName(name) {
				name = ""
			}
			if sf.Anonymous && name == "" && sf.Type.Kind() == reflect.Struct {
				if !walk(sf.Type, offset+sf.Offset) {
					return false
				}
				continue
			}
			if sf.Anonymous && sf.Type.Kind() == reflect.Pointer {
				return false
			}
			if !sf.IsExported() {
				continue
			}
			f := jsonField{name: name, offset: offset + sf.Offset}
			if f.name == "" {
				f.name = sf.Name
			}
			if seen[f.name] {
				return false
			}
			seen[f.name] = true
			f.head = string(append(appendString(nil, f.name), ':'))
			for option := range strings.SplitSeq(rest, ",") {
				switch option {
				case "string":
					return false
				case "omitempty":
					f.empty = either(f.empty, emptyOf(sf.Type))
				case "omitzero":
					f.empty = either(f.empty, zeroOf(sf.Type, k.addr))
				}
			}
			f.plan = draft(planKey{sf.Type, k.addr})
			fields = append(fields, f)
		}
		return true
	}
	return fields, walk(k.t, 0)
}

func validName(s string) bool {
	for _, c := range s {
		if !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c) {
			return false
		}
	}
	return s != ""
}

func either(x, y func(unsafe.Pointer) bool) func(unsafe.Pointer) bool {
	if x == nil || y == nil {
		if x == nil {
			return y
		}
		return x
	}
	return func(p unsafe.Pointer) bool { return x(p) || y(p) }
}

// emptyOf is what omitempty leaves out of a type; nil: nothing.
func emptyOf(t reflect.Type) func(unsafe.Pointer) bool {
	switch t.Kind() {
	case reflect.String:
		return func(p unsafe.Pointer) bool { return len(*(*string)(p)) == 0 }
	case reflect.Slice:
		return func(p unsafe.Pointer) bool { return len(*(*[]byte)(p)) == 0 }
	case reflect.Pointer:
		return func(p unsafe.Pointer) bool { return *(*unsafe.Pointer)(p) == nil }
	case reflect.Map:
		return func(p unsafe.Pointer) bool {
			return *(*unsafe.Pointer)(p) == nil || reflect.NewAt(t, p).Elem().Len() == 0
		}
	case reflect.Bool, reflect.Int8, reflect.Uint8:
		return func(p unsafe.Pointer) bool { return *(*uint8)(p) == 0 }
	case reflect.Int32, reflect.Uint32:
		return func(p unsafe.Pointer) bool { return *(*uint32)(p) == 0 }
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return func(p unsafe.Pointer) bool { return *(*uint64)(p) == 0 }
	case reflect.Array:
		if t.Len() == 0 {
			return func(unsafe.Pointer) bool { return true }
		}
	case reflect.Interface:
		return func(p unsafe.Pointer) bool { return reflect.NewAt(t, p).Elem().IsNil() }
	case reflect.Int16, reflect.Uint16, reflect.Float32, reflect.Float64, reflect.Uintptr:
		return func(p unsafe.Pointer) bool { return reflect.NewAt(t, p).Elem().IsZero() }
	}
	return nil
}

// zeroOf is what omitzero leaves out.
func zeroOf(t reflect.Type, addr bool) func(unsafe.Pointer) bool {
	value := func(p unsafe.Pointer) reflect.Value { return reflect.NewAt(t, p).Elem() }
	switch {
	case t.Implements(zeroType) && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface):
		return func(p unsafe.Pointer) bool {
			v := value(p)
			return v.IsNil() || v.Interface().(interface{ IsZero() bool }).IsZero()
		}
	case t.Implements(zeroType), addr && reflect.PointerTo(t).Implements(zeroType):
		return func(p unsafe.Pointer) bool {
			return reflect.NewAt(t, p).Interface().(interface{ IsZero() bool }).IsZero()
		}
	}
	return func(p unsafe.Pointer) bool { return value(p).IsZero() }
}
