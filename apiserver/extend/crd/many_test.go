package crd_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/extend/crd"
	"proa.dev/kind"
	"proa.dev/view"
)

// established makes n definitions, in groups of twenty.
func established(t testing.TB, n int) []*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(widgetCRD))
	if err != nil {
		t.Fatal(err)
	}
	base := new(apiextensionsv1.CustomResourceDefinition)
	if err := json.Unmarshal(data, base); err != nil {
		t.Fatal(err)
	}
	out := make([]*apiextensionsv1.CustomResourceDefinition, n)
	for i := range out {
		d := base.DeepCopy()
		d.Spec.Group = fmt.Sprintf("g%d.example.com", i/20)
		d.Spec.Names.Plural, d.Spec.Names.Kind, d.Spec.Names.Singular = fmt.Sprintf("widget%ds", i), fmt.Sprintf("Widget%d", i), ""
		d.Name, d.UID, d.Generation = d.Spec.Names.Plural+"."+d.Spec.Group, types.UID(fmt.Sprint(i)), 1
		kind.CustomResourceDefinition.Default(d)
		d.Status.AcceptedNames = d.Spec.Names
		d.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
		out[i] = d
	}
	return out
}

func objects(list []*apiextensionsv1.CustomResourceDefinition) []kind.Object {
	out := make([]kind.Object, len(list))
	for i := range list {
		out[i] = list[i]
	}
	return out
}

// A change of one definition among a thousand costs what it changes: it makes that
// definition's rows and no others, wakes its watches and no others, and what was
// shown before stays as it was.
func TestThousandDefinitions(t *testing.T) {
	const n = 1000
	list := established(t, n)
	r := crd.New(crd.Config{})
	first := r.All(kind.All, objects(list))
	if len(first.Came) != n || len(first.Table.Custom()) != 2*n || len(first.Table.Came(kind.All)) != n {
		t.Fatalf("%d have come, %d rows", len(first.Came), len(first.Table.Custom()))
	}
	if again := r.All(first.Table, objects(list)); again.Table != first.Table {
		t.Error("the same definitions make another table")
	}
	v := view.New(kind.All, 0)
	v.Reshape(first, nil, 1)
	roots := first.Table.Roots()[len(kind.All.Roots()):]
	more := make([]<-chan struct{}, n)
	for i, k := range roots {
		var err error
		if _, _, more[i], err = v.Changes(k, 1); err != nil {
			t.Fatal(err)
		}
	}
	woken := func() (list []string) {
		for i := range more {
			select {
			case <-more[i]:
				list = append(list, roots[i].Plural)
				_, _, more[i], _ = v.Changes(roots[i], 1) // ErrGone: its channel is nil and never ready
			default:
			}
		}
		return list
	}

	// Schemas are compiled when an object needs them.
	if c := r.Compiled(); c != 0 {
		t.Errorf("%d schemas are compiled before there is an object", c)
	}
	row := first.Table.ByResource(schema.GroupVersionResource{Group: "g0.example.com", Version: "v1", Resource: "widget5s"})
	for range 3 {
		o := row.New()
		o.SetName("w")
		row.Default(o)
		row.Validate(o)
	}
	if c := r.Compiled(); c != 1 {
		t.Errorf("%d schemas are compiled for the objects of one version", c)
	}

	// One definition changes.
	changed := list[7].DeepCopy()
	changed.Generation++
	changed.Spec.Versions[0].AdditionalPrinterColumns = nil
	next := r.Change(first.Table, map[string]kind.Object{changed.Name: changed})
	if len(next.Changed) != 1 || len(next.Came)+len(next.Gone) > 0 {
		t.Fatalf("changed %v, came %v, gone %v", next.Changed, next.Came, next.Gone)
	}
	v.Reshape(next, nil, 2)
	if w := woken(); !slices.Equal(w, []string{"widget7s"}) {
		t.Errorf("woken: %v", w)
	}
	before, made := first.Table.Custom(), 0
	for i, k := range next.Table.Custom() {
		if before[i] != k {
			made++
		}
		if before[i].Root() != k.Root() {
			t.Errorf("%s has another root", k)
		}
	}
	if made != 2 {
		t.Errorf("%d rows were made for a definition with two versions", made)
	}
	gvr := schema.GroupVersionResource{Group: "g0.example.com", Version: "v1", Resource: "widget7s"}
	if first.Table.ByResource(gvr) == next.Table.ByResource(gvr) || len(first.Table.ByResource(gvr).Columns) != 2 {
		t.Error("the older table changed too")
	}
	if again := r.Change(next.Table, map[string]kind.Object{changed.Name: changed.DeepCopy()}); again.Table != next.Table {
		t.Error("a change of nothing makes another table")
	}

	// One goes, one comes, and one comes under another scope.
	other := list[9].DeepCopy()
	other.Spec.Scope, other.UID = apiextensionsv1.ClusterScoped, "new"
	fresh := established(t, n+1)[n]
	last := r.Change(next.Table, map[string]kind.Object{list[8].Name: nil, other.Name: other, fresh.Name: fresh})
	if len(last.Gone) != 2 || len(last.Came) != 2 || len(last.Changed) != 0 || len(last.Table.Came(next.Table)) != 2 {
		t.Fatalf("changed %v, came %v, gone %v", last.Changed, last.Came, last.Gone)
	}
	v.Reshape(last, nil, 3)
	if w := woken(); !slices.Equal(w, []string{"widget8s", "widget9s"}) {
		t.Errorf("woken: %v", w)
	}
	if last.Table.ByResource(gvr) != next.Table.ByResource(gvr) || len(last.Table.Roots()) != len(next.Table.Roots()) {
		t.Error("others changed too")
	}
	gone := schema.GroupVersionKind{Group: "g0.example.com", Version: "v1", Kind: "Widget8"}
	if last.Table.ByKind(gone) != nil || next.Table.ByKind(gone) == nil {
		t.Error("a kind is found after it has gone, or not before")
	}

	// All go.
	if end := r.All(last.Table, nil); len(end.Gone) != n || len(end.Table.Custom()) != 0 || len(end.Table.Roots()) != len(kind.All.Roots()) {
		t.Errorf("%d have gone, %d rows are left", len(end.Gone), len(end.Table.Custom()))
	}
}

// A change allocates the same with ten definitions and with a thousand, but for a
// few more nodes of the trees.
func TestChangeAllocates(t *testing.T) {
	cost := func(n int) float64 {
		list := established(t, n)
		r := crd.New(crd.Config{})
		v := view.New(kind.All, 0)
		now := r.All(kind.All, objects(list))
		v.Reshape(now, nil, 1)
		revision := int64(1)
		return testing.AllocsPerRun(50, func() {
			revision++
			d := *list[n/2]
			d.Generation = revision
			now = r.Change(now.Table, map[string]kind.Object{d.Name: &d})
			v.Reshape(now, nil, revision)
			v.Snapshot()
		})
	}
	if few, many := cost(10), cost(1000); many > few+20 {
		t.Errorf("a change allocates %v times with ten definitions and %v times with a thousand", few, many)
	}
}

// BenchmarkChange is one change of a definition among a thousand, up to a new
// snapshot.
func BenchmarkChange(b *testing.B) {
	list := established(b, 1000)
	r := crd.New(crd.Config{})
	v := view.New(kind.All, 0)
	now := r.All(kind.All, objects(list))
	v.Reshape(now, nil, 1)
	revision := int64(1)
	for b.Loop() {
		revision++
		d := *list[revision%1000]
		d.Generation = revision
		now = r.Change(now.Table, map[string]kind.Object{d.Name: &d})
		v.Reshape(now, nil, revision)
		v.Snapshot()
	}
}

// BenchmarkFirstUse compiles a schema with its rule.
func BenchmarkFirstUse(b *testing.B) {
	list := established(b, 1)
	for b.Loop() {
		r := crd.New(crd.Config{})
		row := r.All(kind.All, objects(list)).Table.Custom()[0]
		o := row.New().(*unstructured.Unstructured)
		o.SetName("w")
		o.SetNamespace("shop")
		if err := unstructured.SetNestedField(o.Object, int64(1), "spec", "size"); err != nil {
			b.Fatal(err)
		}
		row.Default(o)
		if errs := row.Validate(o); len(errs) > 0 {
			b.Fatal(errs.ToAggregate())
		}
	}
}

// BenchmarkDefine is all that the row does for a new definition.
func BenchmarkDefine(b *testing.B) {
	d := established(b, 1)[0]
	for b.Loop() {
		if errs := kind.CustomResourceDefinition.Validate(d); len(errs) > 0 {
			b.Fatal(errs.ToAggregate())
		}
	}
}
