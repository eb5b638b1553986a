package kind

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

var updateGolden = flag.Bool("update", false, "rewrite the golden objects in testdata")

// goldenName is testdata's file name of a row, without its ending.
func goldenName(k *Kind) string {
	group := k.Group
	if group == "" {
		group = "core"
	}
	return filepath.Join("testdata", group+"."+k.Version+"."+k.Kind)
}

// readStrict decodes YAML and refuses unknown and duplicate fields.
func readStrict(t *testing.T, k *Kind, text []byte) Object {
	t.Helper()
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatal(err)
	}
	obj := k.New()
	strict, err := kjson.UnmarshalStrict(data, obj)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range strict {
		t.Errorf("strict: %v", err)
	}
	return obj
}

// whole are the rows that must have everything.
func whole() []*Kind { return append(slices.Clip(All.Rows()), withheld...) }

// TestGolden holds for every row: what a user writes (.yaml) becomes the
// complete record (.json), which is valid and survives every encoding.
func TestGolden(t *testing.T) {
	for _, k := range whole() {
		t.Run(k.Group+"/"+k.Version+"/"+k.Kind, func(t *testing.T) {
			text, err := os.ReadFile(goldenName(k) + ".yaml")
			if err != nil {
				t.Fatalf("every row needs a golden object: %v", err)
			}
			obj := readStrict(t, k, text)
			if got := obj.GetObjectKind().GroupVersionKind(); got != k.GVK() {
				t.Fatalf("golden is a %v", got)
			}
			if k.Default != nil {
				k.Default(obj)
			}
			got, err := json.MarshalIndent(obj, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			if *updateGolden {
				if err := os.WriteFile(goldenName(k)+".json", got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(goldenName(k) + ".json")
			if err != nil {
				t.Fatalf("run the test with -update and read the result: %v", err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("defaulted form differs (golden -, now +):\n%s", diff.Diff(string(want), string(got)))
			}
			again := obj.DeepCopyObject().(Object)
			if k.Default != nil {
				k.Default(again)
			}
			if !reflect.DeepEqual(obj, again) {
				t.Error("defaulting twice differs from once")
			}
			made := obj.DeepCopyObject().(Object)
			if !k.Virtual {
				made.SetUID("7f0c3a52-0d64-4a5e-9d0f-2f4c2c1b0002")
			}
			if k.PrepareCreate != nil {
				k.PrepareCreate(made)
			}
			if k.Validate != nil {
				if errs := k.Validate(made); len(errs) > 0 {
					t.Errorf("golden is not valid: %v", errs.ToAggregate())
				}
			}
			made.SetResourceVersion("1")
			for name, door := range doors(k) {
				next := made.DeepCopyObject().(Object)
				if k.Default != nil {
					k.Default(next)
				}
				door.PrepareUpdate(next, made)
				if !equality.Semantic.DeepEqual(next, made) {
					t.Errorf("an update to itself through the %s door changes it:\n%s", name, diff.Diff(made, next))
				}
				if door.ValidateUpdate == nil {
					continue
				}
				if errs := door.ValidateUpdate(next, made); len(errs) > 0 {
					t.Errorf("golden cannot be updated to itself through the %s door: %v", name, errs.ToAggregate())
				}
			}
			roundTrip(t, k, obj)
			if k.Cells != nil {
				if n, m := len(k.Cells(obj, time.Unix(1_767_330_000, 0))), len(k.Columns); n != m {
					t.Errorf("%d cells for %d columns", n, m)
				}
			}
		})
	}
}

// doors are all ways to write a row's objects.
func doors(k *Kind) map[string]*Door {
	all := map[string]*Door{"main": {PrepareUpdate: k.PrepareUpdate, ValidateUpdate: k.ValidateUpdate}}
	if k.Status != nil {
		all["status"] = k.Status
	}
	for _, s := range k.Subresources {
		if s.Door != nil {
			all[s.Name] = s.Door
		}
	}
	return all
}

// roundTrip encodes in all three forms and compares.
func roundTrip(t *testing.T, k *Kind, obj Object) {
	t.Helper()
	asJSON, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	for form, text := range map[string][]byte{"json": asJSON, "yaml": asYAML} {
		if back := readStrict(t, k, text); !equality.Semantic.DeepEqual(obj, back) {
			t.Errorf("%s loses something:\n%s", form, diff.Diff(obj, back))
		}
	}
	if k.Virtual {
		return
	}
	stored, err := EncodeStored(k, obj)
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeStored(k, stored)
	if err != nil {
		t.Fatal(err)
	}
	if k.Stored != nil {
		if back, err = k.FromStored(back); err != nil {
			t.Fatal(err)
		}
	}
	if !equality.Semantic.DeepEqual(obj, back) {
		t.Errorf("protobuf loses something:\n%s", diff.Diff(obj, back))
	}
}

// TestRowsAreWhole holds what every row must have.
func TestRowsAreWhole(t *testing.T) {
	prefixes := map[string]*Kind{}
	goldens := map[string]bool{}
	for _, k := range whole() {
		goldens[filepath.Base(goldenName(k))] = true
		if k.Singular == "" || k.Plural == "" || k.Version == "" {
			t.Errorf("%s: names are missing", k)
		}
		served := All.ByKind(k.GVK()) == k
		if gvks, _, err := Scheme().ObjectKinds(k.New()); served && (err != nil || gvks[0] != k.GVK()) {
			t.Errorf("%s: New gives %v, %v", k, gvks, err)
		}
		if k.Virtual {
			continue
		}
		if gvks, _, err := Scheme().ObjectKinds(k.NewList()); served && (err != nil || gvks[0].Kind != k.Kind+"List") {
			t.Errorf("%s: NewList gives %v, %v", k, gvks, err)
		}
		if len(k.Columns) == 0 || k.Cells == nil {
			t.Errorf("%s: no columns", k)
		}
		if k.Validate == nil || k.ValidateUpdate == nil {
			t.Errorf("%s: no validation", k)
		}
		if s := k.Status; s != nil && s.ValidateUpdate == nil {
			t.Errorf("%s: the status door has no validation", k)
		}
		if k.Prefix == "" {
			t.Errorf("%s: no storage prefix", k)
		}
		if k.Stored != nil {
			if k.ToStored == nil || k.FromStored == nil {
				t.Errorf("%s: stored as %s without the pair of functions", k, k.Stored)
			}
			continue
		}
		if other := prefixes[k.Prefix]; other != nil {
			t.Errorf("%s and %s share the prefix %q", k, other, k.Prefix)
		}
		prefixes[k.Prefix] = k
		namespace := ""
		if k.Scope == Namespaced {
			namespace = "ns"
		}
		if got, ns, name := All.ByStoreKey(k.StoreKey(namespace, "name")); served && (got != k || ns != namespace || name != "name") {
			t.Errorf("%s: key %q leads to %v %q %q", k, k.StoreKey(namespace, "name"), got, ns, name)
		}
	}
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		base := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(f), ".yaml"), ".json")
		if !goldens[base] {
			t.Errorf("%s belongs to no row", f)
		}
	}
}
