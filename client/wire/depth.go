package wire

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"sync"
)

// maxDepth bounds the nesting of Protobuf messages, as that of JSON is bounded:
// generated decoders call themselves for each level, and a stack that is exhausted
// ends the process.
const maxDepth = 10000

var recursives sync.Map // reflect.Type → bool

// recursive says whether values of t may contain others of their own type without
// end, as JSON schemas do. Only those can be nested deeply.
func recursive(t reflect.Type) bool {
	if v, ok := recursives.Load(t); ok {
		return v.(bool)
	}
	done := map[reflect.Type]bool{}
	var visit func(t reflect.Type, above map[reflect.Type]bool) bool
	visit = func(t reflect.Type, above map[reflect.Type]bool) bool {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			return visit(t.Elem(), above)
		case reflect.Struct:
			if above[t] {
				return true
			}
			if done[t] {
				return false
			}
			above[t] = true
			defer delete(above, t)
			for i := range t.NumField() {
				if f := t.Field(i); f.IsExported() && visit(f.Type, above) {
					return true
				}
			}
			done[t] = true
		}
		return false
	}
	r := visit(t, map[reflect.Type]bool{})
	recursives.Store(t, r)
	return r
}

// checkDepth walks the message without knowing its type: every field with a length
// may be a message; it is one as long as it reads as one. Each byte is looked at
// once as the head of a field.
func checkDepth(data []byte) error {
	ends := []int{len(data)}
	for at := 0; len(ends) > 0; {
		end := ends[len(ends)-1]
		if at >= end {
			at, ends = end, ends[:len(ends)-1]
			continue
		}
		tag, n := binary.Uvarint(data[at:end])
		ok := n > 0 && tag>>3 != 0
		at += max(n, 0)
		if ok {
			switch tag & 7 {
			case 0:
				_, n = binary.Uvarint(data[at:end])
				ok, at = n > 0, at+max(n, 0)
			case 1:
				ok, at = at+8 <= end, at+8
			case 5:
				ok, at = at+4 <= end, at+4
			case 2:
				size, n := binary.Uvarint(data[at:end])
				if ok = n > 0 && size <= uint64(end-at-n); ok {
					at += n
					if len(ends) > maxDepth {
						return fmt.Errorf("protobuf message is nested more than %d levels deep", maxDepth)
					}
					ends = append(ends, at+int(size))
				}
			default:
				ok = false
			}
		}
		if !ok {
			// No message after all: a string or bytes.
			at, ends = end, ends[:len(ends)-1]
		}
	}
	return nil
}
