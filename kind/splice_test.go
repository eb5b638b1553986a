package kind

import (
	"bytes"
	"math/rand"
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	runtimeserializer "k8s.io/apimachinery/pkg/runtime/serializer"
	kjson "sigs.k8s.io/json"
)

// splices compares the answer made of stored bytes with the encoded one.
func splices(t *testing.T, k *Kind, obj Object) bool {
	t.Helper()
	obj = obj.DeepCopyObject().(Object)
	obj.SetResourceVersion("")
	obj.SetSelfLink("")
	value, err := EncodeStored(k, obj)
	if err != nil {
		t.Fatalf("%s: %v", k, err)
	}
	const version = "1234567"
	var s Stored
	if !s.Parse(k, value, version) {
		return false
	}
	obj.SetResourceVersion(version)
	m := obj.(protoMessage)
	want := make([]byte, m.Size())
	if _, err := m.MarshalToSizedBuffer(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, s.Size())
	if n, err := s.MarshalToSizedBuffer(got); err != nil || n != len(got) {
		t.Fatalf("%s: %d of %d bytes: %v", k, n, len(got), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: the spliced bytes differ:\n%q\n%q", k, got, want)
	}
	back := k.New()
	if err := back.(protoMessage).Unmarshal(got); err != nil || back.GetResourceVersion() != version {
		t.Fatalf("%s: it comes back with version %q: %v", k, back.GetResourceVersion(), err)
	}
	return true
}

// TestStoredIsServed holds for every row and for random objects: what is made of
// the stored bytes is byte for byte what encoding the object gives.
func TestStoredIsServed(t *testing.T) {
	n := 0
	for _, k := range All.Roots() {
		text, err := os.ReadFile(goldenName(k) + ".json")
		if err != nil || k.Virtual {
			continue
		}
		obj := k.New()
		if err := kjson.UnmarshalCaseSensitivePreserveInts(text, obj); err != nil {
			t.Fatal(err)
		}
		if splices(t, k, obj) {
			n++
		}
	}
	if n < 50 {
		t.Errorf("only %d rows are served from their bytes", n)
	}
	codecs := runtimeserializer.NewCodecFactory(Scheme())
	for seed := range int64(10) {
		filler := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, flatSchemas), rand.NewSource(seed), codecs)
		for _, k := range All.Roots() {
			if k == CustomResourceDefinition || k.Virtual || k.New == nil {
				continue
			}
			obj := k.New()
			filler.Fill(obj)
			splices(t, k, obj)
		}
	}
}

// TestSpliceRefuses: what is not a whole object of the row is encoded instead.
func TestSpliceRefuses(t *testing.T) {
	value, err := EncodeStored(ConfigMap, ConfigMap.New())
	if err != nil {
		t.Fatal(err)
	}
	var s Stored
	if !s.Parse(ConfigMap, value, "1") {
		t.Fatal("an empty object is refused")
	}
	if s.Parse(Secret, value, "1") {
		t.Error("another kind's object is taken")
	}
	if s.Parse(ConfigMap, []byte(`{"kind":"ConfigMap","apiVersion":"v1"}`), "1") {
		t.Error("JSON is taken")
	}
	for n := range value {
		s.Parse(ConfigMap, value[:n], "1") // must not panic
	}
}
