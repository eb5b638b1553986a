package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"proa.dev/kind"
)

// TestFactsAreCurrent makes the table again from the comments of the API types.
func TestFactsAreCurrent(t *testing.T) {
	out, err := exec.Command("go", "run", "../../tools/facts").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out, []byte(factsText)) {
		t.Error("facts.txt differs from what the types say: run go generate ./apiserver/openapi")
	}
}

// applySchema reads the schema that a library applies with, which was made from the
// document that the release publishes.
func applySchema(t *testing.T, module, file string) map[string]smdschema.TypeDef {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), file))
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(source), "typed.YAMLObject(`")
	if !ok {
		t.Fatalf("the schema of %s is not where it was", module)
	}
	text, _, _ = strings.Cut(text, "`)")
	parser, err := typed.NewParser(typed.YAMLObject(text))
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]smdschema.TypeDef{}
	for _, d := range parser.Schema.Types {
		types[d.Name] = d
	}
	return types
}

// TestSchemasAsPublished compares every field of every schema with client-go's:
// list and map types, keys and defaults.
func TestSchemasAsPublished(t *testing.T) {
	want := applySchema(t, "k8s.io/client-go", "applyconfigurations/internal/internal.go")
	seen, compared := map[string]bool{}, 0
	for _, k := range kind.All.BuiltIn() {
		gv := k.GVK().GroupVersion()
		if k.Virtual || seen[gv.String()] {
			continue
		}
		seen[gv.String()] = true
		data, err := V3(kind.All, gv, "v1.37.0")
		if err != nil {
			t.Fatal(err)
		}
		var have struct {
			Components struct{ Schemas map[string]map[string]any }
		}
		if err := json.Unmarshal(data, &have); err != nil {
			t.Fatal(err)
		}
		for name, s := range have.Components.Schemas {
			w, ok := want[name]
			if !ok || seen[name] || w.Map == nil {
				continue
			}
			seen[name] = true
			if atomic := w.Map.ElementRelationship == smdschema.Atomic; atomic != (s["x-kubernetes-map-type"] == "atomic") && len(w.Map.Fields) > 0 {
				t.Errorf("%s: atomic %v, published %v", name, !atomic, atomic)
			}
			props, _ := s["properties"].(map[string]any)
			for _, f := range w.Map.Fields {
				p, ok := props[f.Name].(map[string]any)
				if !ok {
					t.Errorf("%s.%s is missing", name, f.Name)
					continue
				}
				compared++
				if fmt.Sprint(p["default"]) != fmt.Sprint(f.Default) {
					t.Errorf("%s.%s: default %v, published %v", name, f.Name, p["default"], f.Default)
				}
				l := f.Type.Inlined.List
				if l == nil {
					continue
				}
				kindOf, _ := p["x-kubernetes-list-type"].(string)
				wantKind := "atomic"
				if l.ElementRelationship == smdschema.Associative {
					if wantKind = "set"; len(l.Keys) > 0 {
						wantKind = "map"
					}
				}
				if kindOf == "" {
					kindOf = "atomic"
				}
				var keys []string
				if list, ok := p["x-kubernetes-list-map-keys"].([]any); ok {
					for _, key := range list {
						keys = append(keys, key.(string))
					}
				}
				if kindOf != wantKind || !reflect.DeepEqual(keys, append([]string(nil), l.Keys...)) {
					t.Errorf("%s.%s: list type %s by %v, published %s by %v", name, f.Name, kindOf, keys, wantKind, l.Keys)
				}
			}
		}
	}
	if compared < 2000 {
		t.Errorf("only %d fields were compared", compared)
	}
}
