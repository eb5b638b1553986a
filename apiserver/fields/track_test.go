package fields

import (
	"bytes"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	runtimeserializer "k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"proa.dev/kind"
)

// plainSchemas keeps random definitions finite.
func plainSchemas(runtimeserializer.CodecFactory) []any {
	return []any{func(s *apiextensionsv1.JSONSchemaProps, c randfill.Continue) {
		*s = apiextensionsv1.JSONSchemaProps{Type: c.String(0), Description: c.String(0)}
	}}
}

// one conversion: none, the objects are of one version.
type same struct{ runtime.ObjectConvertor }

func (same) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	return in.DeepCopyObject(), nil
}

type noDefaults struct{}

func (noDefaults) Default(runtime.Object) {}

func library(t *testing.T, k *kind.Kind, d Door) *managedfields.FieldManager {
	t.Helper()
	api := fieldpath.APIVersion(k.APIVersion())
	reset := map[fieldpath.APIVersion]fieldpath.Filter{}
	if len(d.Reset) > 0 {
		reset[api] = fieldpath.NewExcludeSetFilter(fieldpath.NewSet(fieldpath.MakePathOrDie(d.Reset[0])))
	}
	m, err := managedfields.NewDefaultFieldManager(BuiltIn(), same{kind.Scheme()}, noDefaults{}, kind.Scheme(), k.GVK(), k.GVK().GroupVersion(), d.Subresource, reset)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// timeless leaves the times out: the library has a clock of its own.
func timeless(entries []metav1.ManagedFieldsEntry) string {
	var out bytes.Buffer
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b metav1.ManagedFieldsEntry) int {
		a.Time, b.Time = nil, nil
		return compareEntries(a, b)
	})
	for _, e := range entries {
		fmt.Fprintf(&out, "%s %s %s %s %s %v %s\n", e.Manager, e.Operation, e.APIVersion, e.FieldsType, e.Subresource, e.Time != nil, e.FieldsV1.GetRawString())
	}
	return out.String()
}

// TestSameSetsAsTheLibrary creates and changes random objects of every kind, by
// several managers through two doors: each time the entries are those that
// apimachinery's field manager makes.
func TestSameSetsAsTheLibrary(t *testing.T) {
	codecs := runtimeserializer.NewCodecFactory(kind.Scheme())
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	left, done := map[string]int{}, 0
	for _, k := range kind.All.BuiltIn() {
		if k.Virtual || k.Computed != nil {
			continue
		}
		managers := [2]*managedfields.FieldManager{library(t, k, Door{Reset: []string{"status"}}), library(t, k, Door{Subresource: "status", Reset: []string{"spec"}})}
		trackers := [2]*Tracker{NewTracker(k.New(), k.APIVersion(), Door{Reset: []string{"status"}}), NewTracker(k.New(), k.APIVersion(), Door{Subresource: "status", Reset: []string{"spec"}})}
		for range 4 {
			filler := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, plainSchemas), rand.NewSource(random.Int63()), codecs)
			filler.NilChance(0.3).NumElements(0, 3)
			make := func() kind.Object {
				obj := k.New()
				filler.Fill(obj)
				obj.GetObjectKind().SetGroupVersionKind(k.GVK())
				obj.SetManagedFields(nil)
				return obj
			}
			obj := make()
			empty := k.New()
			empty.GetObjectKind().SetGroupVersionKind(k.GVK())
			wantObj, err := managers[0].Update(empty, obj.DeepCopyObject(), "maker")
			have, ok := trackers[0].Created(obj, "maker", &now)
			if err != nil || !ok {
				if ok {
					t.Fatalf("seed %d: %s: the library says %v", seed, k, err)
				}
				left[k.String()]++
				if err != nil {
					continue
				}
			} else if want := wantObj.(kind.Object).GetManagedFields(); timeless(want) != timeless(have) {
				t.Fatalf("seed %d: create %s: %s", seed, k, firstDifference(timeless(want), timeless(have)))
			} else {
				done++
			}
			obj.SetManagedFields(wantObj.(kind.Object).GetManagedFields())
			for step := range 5 {
				next := obj.DeepCopyObject().(kind.Object)
				mix(random, reflect.ValueOf(next).Elem(), reflect.ValueOf(make()).Elem(), 3)
				next.SetManagedFields(obj.GetManagedFields())
				door, who := random.Intn(2), fmt.Sprintf("m%d", random.Intn(4))
				wantObj, err := managers[door].Update(obj, next.DeepCopyObject(), who)
				have, ok := trackers[door].Updated(obj, next, obj.GetManagedFields(), who, &now)
				if err != nil || !ok {
					if ok {
						t.Fatalf("seed %d: %s: the library says %v", seed, k, err)
					}
					left[k.String()]++
					if err != nil {
						break
					}
				} else if want := wantObj.(kind.Object).GetManagedFields(); timeless(want) != timeless(have) {
					t.Fatalf("seed %d: step %d of %s by %s, door %d: %s", seed, step, k, who, door, firstDifference(timeless(want), timeless(have)))
				} else {
					done++
				}
				obj = wantObj.(kind.Object)
				obj.GetObjectKind().SetGroupVersionKind(k.GVK())
			}
		}
	}
	sum := 0
	for k, n := range left {
		sum += n
		if n > 20 {
			t.Logf("left to the library: %s %d times", k, n)
		}
	}
	t.Logf("%d compared, %d left to the library", done, sum)
	if done < 8*sum {
		t.Errorf("%d compared, %d left to the library", done, sum)
	}
}

// firstDifference shows where two texts part.
func firstDifference(want, have string) string {
	i := 0
	for i < len(want) && i < len(have) && want[i] == have[i] {
		i++
	}
	from := max(0, i-300)
	return fmt.Sprintf("\nwant …%s\nhave …%s", want[from:min(len(want), i+200)], have[from:min(len(have), i+200)])
}

// mix takes some of b's fields over into a.
func mix(r *rand.Rand, a, b reflect.Value, depth int) {
	for i := range a.NumField() {
		if a.Type().Field(i).PkgPath != "" || a.Type().Field(i).Name == "TypeMeta" {
			continue
		}
		f := a.Field(i)
		if f.Kind() == reflect.Struct && depth > 0 && r.Intn(4) > 0 {
			mix(r, f, b.Field(i), depth-1)
			continue
		}
		if r.Intn(4) == 0 {
			f.Set(b.Field(i))
		}
	}
}
