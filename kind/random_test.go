package kind

import (
	"math/rand"
	"reflect"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	runtimeserializer "k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/diff"
	"sigs.k8s.io/randfill"
)

// TestRandomObjects fills objects with anything: defaulting must not panic, must
// be idempotent, and the stored form must keep every field.
func TestRandomObjects(t *testing.T) {
	codecs := runtimeserializer.NewCodecFactory(Scheme())
	for seed := range int64(20) {
		filler := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, flatSchemas), rand.NewSource(seed), codecs)
		for _, k := range whole() {
			if k == CustomResourceDefinition {
				continue // schemas contain schemas without end: random ones have no size
			}
			obj := k.New()
			filler.Fill(obj)
			obj.GetObjectKind().SetGroupVersionKind(k.GVK())
			if k.Default != nil {
				k.Default(obj)
				again := obj.DeepCopyObject().(Object)
				k.Default(again)
				if !reflect.DeepEqual(obj, again) {
					t.Fatalf("seed %d: %s: defaulting twice differs from once:\n%s", seed, k, diff.Diff(obj, again))
				}
			}
			if k.Cells != nil {
				k.Cells(obj, obj.GetCreationTimestamp().Time)
			}
			for name, door := range doors(k) {
				other := k.New()
				filler.Fill(other)
				before := other.DeepCopyObject()
				if door.PrepareUpdate(obj.DeepCopyObject().(Object), other); !reflect.DeepEqual(before, other) {
					t.Fatalf("seed %d: %s: the %s door changed the old object", seed, k, name)
				}
			}
			if k.Virtual || k.Stored != nil {
				continue
			}
			// Empty lists are nil once stored, and only then is there one form.
			obj = restore(t, seed, k, obj)
			back := restore(t, seed, k, obj)
			if !equality.Semantic.DeepEqual(obj, back) {
				t.Fatalf("seed %d: %s: the stored form differs:\n%s", seed, k, diff.Diff(obj, back))
			}
			for _, twin := range All.Rows() {
				if twin.Stored != k {
					continue
				}
				other, err := twin.FromStored(back)
				if err != nil {
					t.Fatalf("seed %d: %s: %v", seed, twin, err)
				}
				if _, err := twin.ToStored(other); err != nil {
					t.Fatalf("seed %d: %s: %v", seed, twin, err)
				}
			}
		}
	}
}

// flatSchemas keeps the schemas of definitions from growing without end: they
// hold schemas.
func flatSchemas(runtimeserializer.CodecFactory) []any {
	return []any{func(s *apiextensionsv1.JSONSchemaProps, c randfill.Continue) {
		*s = apiextensionsv1.JSONSchemaProps{Type: c.String(0), Description: c.String(0)}
	}}
}

func restore(t *testing.T, seed int64, k *Kind, obj Object) Object {
	t.Helper()
	data, err := EncodeStored(k, obj)
	if err != nil {
		t.Fatalf("seed %d: %s: %v", seed, k, err)
	}
	back, err := DecodeStored(k, data)
	if err != nil {
		t.Fatalf("seed %d: %s: %v", seed, k, err)
	}
	return back
}
