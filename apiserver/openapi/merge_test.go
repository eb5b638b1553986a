package openapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"

	"proa.dev/kind"
)

// TestMergeAsApplied compares the schemas that this server merges by with those
// that client-go and the libraries of definitions and API services apply with.
func TestMergeAsApplied(t *testing.T) {
	want := map[string]smdschema.TypeDef{}
	for _, m := range []struct{ module, file string }{
		{"k8s.io/client-go", "applyconfigurations/internal/internal.go"},
		{"k8s.io/apiextensions-apiserver", "pkg/client/applyconfiguration/internal/internal.go"},
		{"k8s.io/kube-aggregator", "pkg/client/applyconfiguration/internal/internal.go"},
	} {
		for name, d := range applySchema(t, m.module, m.file) {
			want[name] = d
		}
	}
	seen := map[string]bool{}
	for _, k := range kind.All.BuiltIn() {
		if k.Virtual {
			continue
		}
		s, root := Merge(reflect.TypeOf(k.New()).Elem())
		if _, ok := s.FindNamedType(*root.NamedType); !ok {
			t.Fatalf("%s: its own type %s is missing", k, *root.NamedType)
		}
		for _, d := range s.Types {
			w, ok := want[d.Name]
			if seen[d.Name] || !ok {
				continue
			}
			seen[d.Name] = true
			if have, want := atomText(d.Atom), atomText(w.Atom); have != want {
				t.Errorf("%s\nhave %s\nwant %s", d.Name, have, want)
			}
		}
	}
	if len(seen) < 500 {
		t.Errorf("only %d types were compared", len(seen))
	}
}

// atomText is everything that merging looks at (it does not look at unions).
func atomText(a smdschema.Atom) string {
	out := ""
	if a.Scalar != nil {
		out += string(*a.Scalar)
	}
	if l := a.List; l != nil {
		out += fmt.Sprintf("[%s]%s%q", refText(l.ElementType), l.ElementRelationship, l.Keys)
	}
	if m := a.Map; m != nil {
		out += "{\n"
		for _, f := range m.Fields {
			value := ""
			if m, ok := f.Default.(map[any]any); f.Default != nil && (!ok || len(m) > 0) {
				data, _ := json.Marshal(f.Default) // what cannot be one is seen as a difference
				value = "=" + string(data)
			} else if ok {
				value = "={}" // as YAML gives it
			}
			out += " " + f.Name + value + " " + refText(f.Type) + "\n"
		}
		r := m.ElementRelationship
		if r == smdschema.Separable {
			r = "" // means the same
		}
		out += fmt.Sprintf("}%s%s", refText(m.ElementType), r)
	}
	return out
}

func refText(r smdschema.TypeRef) string {
	out := atomText(r.Inlined)
	if r.NamedType != nil {
		out += "@" + *r.NamedType
	}
	if r.ElementRelationship != nil {
		out += "!" + string(*r.ElementRelationship)
	}
	return out
}

func BenchmarkMergePod(b *testing.B) {
	t := reflect.TypeOf(kind.Pod.New()).Elem()
	for b.Loop() {
		merging.defs = nil
		Merge(t)
	}
}
