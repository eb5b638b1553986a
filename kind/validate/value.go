package validate

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Shown makes the values in a list of errors print as upstream prints them.
// Upstream checks objects in a form of its own whose fields have no JSON names, so a
// struct of k8s.io/api within an error appears there with the names of its Go
// fields and with all of them, the empty ones too. Values of other types (text,
// numbers, quantities, selectors) look the same in both forms and stay. The kinds of
// resource.k8s.io stay too: most of their rules are declared at the versioned types.
func Shown(errs field.ErrorList) field.ErrorList {
	for _, e := range errs {
		v := reflect.ValueOf(e.BadValue)
		if v.IsValid() && holdsAPI(v.Type()) {
			e.BadValue = plain(v).Interface()
		}
	}
	return errs
}

func holdsAPI(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return holdsAPI(t.Elem())
	case reflect.Struct:
		return strings.HasPrefix(t.PkgPath(), "k8s.io/api/") && !strings.HasPrefix(t.PkgPath(), "k8s.io/api/resource/")
	}
	return false
}

// plain copies a value, with structs of the API as structs of the same fields
// without JSON names.
func plain(v reflect.Value) reflect.Value {
	t := v.Type()
	if !holdsAPI(t) {
		return v
	}
	switch t.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return reflect.Zero(reflect.TypeFor[*struct{}]())
		}
		return plain(v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return reflect.Zero(reflect.TypeFor[[]any]())
		}
		out := make([]any, v.Len())
		for i := range out {
			out[i] = plain(v.Index(i)).Interface()
		}
		return reflect.ValueOf(out)
	case reflect.Map:
		out := reflect.MakeMap(reflect.MapOf(t.Key(), reflect.TypeFor[any]()))
		for _, key := range v.MapKeys() {
			out.SetMapIndex(key, plain(v.MapIndex(key)))
		}
		return out
	case reflect.Struct:
		var fields []reflect.StructField
		var values []reflect.Value
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() {
				continue
			}
			value := plain(v.Field(i))
			if f.Anonymous && value.Kind() == reflect.Struct && value.Type().PkgPath() == "" {
				for j := range value.NumField() {
					fields = append(fields, reflect.StructField{Name: value.Type().Field(j).Name, Type: value.Field(j).Type()})
					values = append(values, value.Field(j))
				}
				continue
			}
			fields = append(fields, reflect.StructField{Name: f.Name, Type: value.Type()})
			values = append(values, value)
		}
		out := reflect.New(reflect.StructOf(fields)).Elem()
		for i, value := range values {
			out.Field(i).Set(value)
		}
		return out
	}
	return v
}
