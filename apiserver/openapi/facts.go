package openapi

import (
	_ "embed"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
)

//go:generate go run ../../tools/facts facts.txt

// factsText is what the comments of the API types say; tools/facts describes it.
//
//go:embed facts.txt
var factsText string

// typeFacts are what is known of a type besides its Go form.
type typeFacts struct {
	enum   []string
	atomic bool
	union  json.RawMessage
	fields map[string]fieldFacts
}

type fieldFacts struct {
	optional, required bool
	list, of           string // x-kubernetes-list-type, x-kubernetes-map-type
	keys               []string
	value              json.RawMessage // default
}

// factsOf finds a type's facts; nil where there are none. The table is read once,
// on first use.
func factsOf(t reflect.Type) *typeFacts { return facts()[t.PkgPath()+"."+t.Name()] }

var facts = sync.OnceValue(func() map[string]*typeFacts {
	all := map[string]*typeFacts{}
	pkg, now := "", (*typeFacts)(nil)
	for line := range strings.Lines(factsText) {
		line = strings.TrimRight(line, "\n")
		if p, ok := strings.CutPrefix(line, "P "); ok {
			pkg = p
			continue
		}
		if rest, ok := strings.CutPrefix(line, "T "); ok {
			name, rest, _ := strings.Cut(rest, " ")
			now = &typeFacts{fields: map[string]fieldFacts{}}
			all[pkg+"."+name] = now
			for rest != "" {
				if u, ok := strings.CutPrefix(rest, "union="); ok {
					now.union = json.RawMessage(u)
					break
				}
				word, tail, _ := strings.Cut(rest, " ")
				if e, ok := strings.CutPrefix(word, "enum="); ok {
					now.enum = strings.Split(e, ",")
				}
				now.atomic = now.atomic || word == "atomic"
				rest = tail
			}
			continue
		}
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, " "), " ")
		var f fieldFacts
		for rest != "" {
			if d, ok := strings.CutPrefix(rest, "default="); ok {
				f.value = json.RawMessage(d)
				break
			}
			word, tail, _ := strings.Cut(rest, " ")
			switch key, value, _ := strings.Cut(word, "="); key {
			case "optional":
				f.optional = true
			case "required":
				f.required = true
			case "list":
				f.list = value
			case "map":
				f.of = value
			case "keys":
				f.keys = strings.Split(value, ",")
			}
			rest = tail
		}
		now.fields[name] = f
	}
	return all
})

// zero is the default that a field without one is published with: the empty
// object of a struct, and the zero of a basic type that is always written.
func zero(t reflect.Type, omits bool) (any, bool) {
	switch t.Kind() {
	case reflect.Struct:
		if t.String() == "runtime.RawExtension" {
			return nil, false
		}
		if _, ok := reflect.New(t).Interface().(interface{ OpenAPISchemaType() []string }); ok {
			return nil, false
		}
		return object{}, true
	case reflect.String:
		return "", !omits
	case reflect.Bool:
		return false, !omits
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64, reflect.Float64:
		return 0, !omits
	}
	return nil, false
}
