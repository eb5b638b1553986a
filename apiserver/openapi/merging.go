package openapi

import (
	"encoding/json"
	"reflect"
)

// Merging is what the markers of a Go type say about how its values merge
// (Kubernetes docs, "Server-Side Apply", "Merge strategy").
type Merging struct {
	Atomic bool // of a struct: whole or not at all
	Fields map[string]FieldMerging
}

// FieldMerging is what the marker of one field says; List is "" (atomic), "atomic",
// "set" or "map" (by Keys), Map is "", "atomic" or "granular".
type FieldMerging struct {
	List, Map string
	Keys      []string
	Default   json.RawMessage
}

// MergingOf is known of the types of facts.txt; of others it is empty.
func MergingOf(t reflect.Type) Merging {
	f := factsOf(t)
	if f == nil {
		return Merging{}
	}
	m := Merging{Atomic: f.atomic, Fields: make(map[string]FieldMerging, len(f.fields))}
	for name, field := range f.fields {
		m.Fields[name] = FieldMerging{List: field.list, Map: field.of, Keys: field.keys, Default: field.value}
	}
	return m
}
