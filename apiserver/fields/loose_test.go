package fields

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

const looseModels = `{
"x.io.v1.A": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "x.io", "version": "v1", "kind": "A"}], "properties": {
  "apiVersion": {"type": "string"}, "kind": {"type": "string"},
  "metadata": {"type": "object", "properties": {
    "name": {"type": "string"}, "namespace": {"type": "string"}, "uid": {"type": "string"},
    "managedFields": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "finalizers": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
  "spec": {"type": "object", "properties": {
    "text": {"type": "string"}, "number": {"type": "integer"}, "ratio": {"type": "number"}, "on": {"type": "boolean"},
    "either": {"x-kubernetes-int-or-string": true},
    "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
    "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    "plain": {"type": "array", "items": {"type": "string"}},
    "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}},
    "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"], "items": {"type": "object", "properties": {
      "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"}, "more": {"type": "object", "additionalProperties": {"type": "integer"}}}}}}},
  "status": {"type": "object", "properties": {"phase": {"type": "string"}, "count": {"type": "integer"}}}}}
}`

func randomDocument(r *rand.Rand) map[string]any {
	word := func() string { return []string{"a", "b", "c", "ü<>&\"", "long word"}[r.Intn(5)] }
	maybe := func(m map[string]any, k string, v any) {
		if r.Intn(3) > 0 {
			m[k] = v
		}
	}
	spec := map[string]any{}
	maybe(spec, "text", word())
	maybe(spec, "number", int64(r.Intn(3)))
	maybe(spec, "ratio", float64(r.Intn(3))/2)
	maybe(spec, "on", r.Intn(2) == 0)
	maybe(spec, "either", []any{int64(1), "1", "x"}[r.Intn(3)])
	maybe(spec, "whole", map[string]any{word(): word()})
	var deep any = map[string]any{word(): map[string]any{word(): []any{int64(r.Intn(2))}}, "e": map[string]any{}}
	if r.Intn(4) == 0 {
		deep = map[string]any{}
	}
	maybe(spec, "anything", deep)
	maybe(spec, "plain", []any{word(), word()}[:r.Intn(3)])
	var set []any
	for _, i := range r.Perm(13)[:r.Intn(5)] {
		set = append(set, int64(i))
	}
	maybe(spec, "set", set)
	keyed := []any{}
	for _, i := range r.Perm(4)[:r.Intn(4)] {
		e := map[string]any{"port": int64(7 + i*i)}
		maybe(e, "protocol", []any{"TCP", "UDP"}[i%2])
		maybe(e, "name", word())
		maybe(e, "more", map[string]any{word(): int64(r.Intn(2))})
		keyed = append(keyed, e)
	}
	maybe(spec, "keyed", keyed)
	meta := map[string]any{"name": "n", "uid": "u"}
	maybe(meta, "labels", map[string]any{word(): word()})
	maybe(meta, "finalizers", []any{word()})
	out := map[string]any{"apiVersion": "x.io/v1", "kind": "A", "metadata": meta}
	maybe(out, "spec", spec)
	maybe(out, "status", map[string]any{"phase": word(), "count": int64(r.Intn(2))})
	// What was decoded, as bodies are.
	b, _ := json.Marshal(out)
	u := new(unstructured.Unstructured)
	if err := u.UnmarshalJSON(b); err != nil {
		panic(err)
	}
	return u.Object
}

type anyVersion struct{ runtime.ObjectConvertor }

func (anyVersion) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	return in.DeepCopyObject(), nil
}

type made struct{}

func (made) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	u := new(unstructured.Unstructured)
	u.SetGroupVersionKind(gvk)
	return u, nil
}

// TestSameSetsForDocuments changes random custom objects by several managers: the
// entries are those of apimachinery's field manager, which has the word where the
// tracker leaves it.
func TestSameSetsForDocuments(t *testing.T) {
	all := map[string]*spec.Schema{}
	if err := json.Unmarshal([]byte(looseModels), &all); err != nil {
		t.Fatal(err)
	}
	c, err := managedfields.NewTypeConverter(all, false)
	if err != nil {
		t.Fatal(err)
	}
	gvk := schema.GroupVersionKind{Group: "x.io", Version: "v1", Kind: "A"}
	doors := []Door{{Reset: []string{"status"}}, {Subresource: "status", Reset: []string{"spec"}}}
	var managers []*managedfields.FieldManager
	var trackers []*Loose
	for _, d := range doors {
		reset := map[fieldpath.APIVersion]fieldpath.Filter{"x.io/v1": fieldpath.NewExcludeSetFilter(fieldpath.NewSet(fieldpath.MakePathOrDie(d.Reset[0])))}
		m, err := managedfields.NewDefaultCRDFieldManager(c, anyVersion{}, noDefaults{}, made{}, gvk, gvk.GroupVersion(), d.Subresource, reset)
		if err != nil {
			t.Fatal(err)
		}
		l, err := NewLoose(c, gvk, d)
		if err != nil {
			t.Fatal(err)
		}
		managers, trackers = append(managers, m), append(trackers, l)
	}
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	now := metav1.NewTime(time.Unix(1_700_000_000, 0))
	done, left := 0, 0
	for range 200 {
		empty, _ := made{}.New(gvk)
		u := &unstructured.Unstructured{Object: randomDocument(r)}
		mine := u.DeepCopy()
		want, err := managers[0].Update(empty, u.DeepCopy(), "maker")
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		live := want.(*unstructured.Unstructured)
		if trackers[0].Created(mine, "maker", &now) {
			done++
			if timeless(live.GetManagedFields()) != timeless(mine.GetManagedFields()) {
				t.Fatalf("seed %d: create: %s", seed, firstDifference(timeless(live.GetManagedFields()), timeless(mine.GetManagedFields())))
			}
		} else {
			left++
		}
		for step := range 6 {
			next := &unstructured.Unstructured{Object: randomDocument(r)}
			door, who := r.Intn(2), fmt.Sprintf("m%d", r.Intn(4))
			mine := next.DeepCopy()
			next.SetManagedFields(live.GetManagedFields())
			want, err := managers[door].Update(live, next, who)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			after := want.(*unstructured.Unstructured)
			if trackers[door].Updated(live, mine, who, &now) {
				done++
				if timeless(after.GetManagedFields()) != timeless(mine.GetManagedFields()) {
					t.Fatalf("seed %d: step %d by %s through %d: %s", seed, step, who, door, firstDifference(timeless(after.GetManagedFields()), timeless(mine.GetManagedFields())))
				}
			} else {
				left++
			}
			live = after
		}
	}
	t.Logf("%d compared, %d left to the library", done, left)
	if left > done/10 {
		t.Errorf("%d compared, %d left to the library", done, left)
	}
}
