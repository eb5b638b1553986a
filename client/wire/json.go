package wire

import (
	"encoding/json"
	"reflect"
	"slices"
	"sync"
	"unsafe"
)

// JSON of API objects, byte for byte as encoding/json writes it, from a plan that
// is made once for each type (jsonplan.go): no reflection over field lists, no
// boxes for values, no second pass over what MarshalJSON methods return. Whatever
// a plan does not know goes to encoding/json, errors too, so that they are its
// own.

// AppendJSON appends the JSON form of v, as json.Marshal gives it.
func AppendJSON(dst []byte, v any) ([]byte, error) {
	at := len(dst)
	if out, ok := appendAny(dst, v); ok {
		return out, nil
	}
	data, err := json.Marshal(v)
	if err != nil {
		return dst[:at], err
	}
	return append(dst[:at], data...), nil
}

var scratches = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// keepScratch bounds the buffers that are kept between encodings.
const keepScratch = 256 << 10

// MarshalJSON is json.Marshal.
func MarshalJSON(v any) ([]byte, error) {
	scratch := scratches.Get().(*[]byte)
	b, err := AppendJSON((*scratch)[:0], v)
	var out []byte
	if err == nil {
		out = append(make([]byte, 0, len(b)+1), b...) // a newline may follow
	}
	if cap(b) <= keepScratch {
		*scratch = b[:0]
		scratches.Put(scratch)
	}
	return out, err
}

// appendAny encodes a value in an interface. ok is false where encoding/json has to
// do it.
func appendAny(b []byte, v any) (out []byte, ok bool) {
	switch x := v.(type) {
	case nil:
		return append(b, "null"...), true
	case string:
		return appendString(b, x), true
	case bool:
		return appendBool(b, x), true
	case int64:
		return appendInt(b, x), true
	case int32:
		return appendInt(b, int64(x)), true
	case int:
		return appendInt(b, int64(x)), true
	case float64:
		return appendFloat(b, x, 64)
	case map[string]any:
		return appendAnyMap(b, x)
	case []any:
		if x == nil {
			return append(b, "null"...), true
		}
		b = append(b, '[')
		for i, e := range x {
			if i > 0 {
				b = append(b, ',')
			}
			if b, ok = appendAny(b, e); !ok {
				return b, false
			}
		}
		return append(b, ']'), true
	}
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer {
		if rv.IsNil() {
			// A nil pointer with a MarshalJSON of its own is null all the same.
			return append(b, "null"...), true
		}
		p := planOf(planKey{rv.Type().Elem(), true})
		b, ok = p.append(b, rv.UnsafePointer())
		return b, ok
	}
	data, err := json.Marshal(v)
	return append(b, data...), err == nil
}

func appendAnyMap(b []byte, m map[string]any) ([]byte, bool) {
	if m == nil {
		return append(b, "null"...), true
	}
	if len(m) == 0 {
		return append(b, "{}"...), true
	}
	var few [16]string
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	ok := true
	for i, k := range keys {
		if i == 0 {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = append(appendString(b, k), ':')
		if b, ok = appendAny(b, m[k]); !ok {
			return b, false
		}
	}
	return append(b, '}'), true
}

func appendStringMap(b []byte, p unsafe.Pointer) ([]byte, bool) {
	m := *(*map[string]string)(p)
	if m == nil {
		return append(b, "null"...), true
	}
	if len(m) == 0 {
		return append(b, "{}"...), true
	}
	var few [16]string
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i == 0 {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = append(appendString(b, k), ':')
		b = appendString(b, m[k])
	}
	return append(b, '}'), true
}
