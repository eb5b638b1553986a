package crd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/extend/crd"
	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/store/mem"
)

// gate is a store in which the first write of a key waits.
type gate struct {
	store.Store
	key           string
	once          sync.Once
	arrived, open chan struct{}
}

func (g *gate) Put(ctx context.Context, key string, value []byte, o store.PutOptions) (store.KV, error) {
	if key == g.key {
		g.once.Do(func() {
			close(g.arrived)
			<-g.open
		})
	}
	return g.Store.Put(ctx, key, value, o)
}

// A create that was admitted before its kind began to go, and is written after the
// last object was removed, is refused: nothing is left that no kind owns.
func TestNoOrphans(t *testing.T) {
	st := mem.Open(mem.Config{})
	t.Cleanup(func() { st.Close() })
	g := &gate{Store: st, key: "/registry/example.com/widgets/shop/late", arrived: make(chan struct{}), open: make(chan struct{})}
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Store, cfg.Written = g, 1 })
	dyn, err := dynamic.NewForConfig(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, c, dyn}
	f.must(dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(t.Context(), f.object(`{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`), metav1.CreateOptions{}))
	f.define(widgetCRD)
	in := dyn.Resource(widgets("v1")).Namespace("shop")
	f.must(in.Create(t.Context(), f.widget(`{size: 1}`), metav1.CreateOptions{}))
	late := f.widget(`{size: 1}`)
	late.SetName("late")
	answer := make(chan error, 1)
	go func() {
		_, err := in.Create(t.Context(), late, metav1.CreateOptions{})
		answer <- err
	}()
	<-g.arrived
	if err := dyn.Resource(definitions).Delete(t.Context(), "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.until("the definition is gone", func() bool {
		_, err := dyn.Resource(definitions).Get(t.Context(), "widgets.example.com", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	close(g.open)
	if err := <-answer; !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "could not find the requested resource") {
		t.Errorf("the late create is answered %v", err)
	}
	page, err := st.Range(t.Context(), "/registry/example.com/", "/registry/example.com0", 0, 0)
	if err != nil || len(page.KVs) > 0 {
		t.Errorf("%d objects are left in the store, %v", len(page.KVs), err)
	}
}

// bigSchema is a schema of at least so many bytes: deep, wide and well described,
// as operators' are.
func bigSchema(bytes int) map[string]any {
	describe := strings.Repeat("What this field is for, at length. ", 8)
	leaf := func(i int) map[string]any {
		switch i % 5 {
		case 0:
			return map[string]any{"type": "string", "description": describe}
		case 1:
			return map[string]any{"type": "integer", "format": "int32", "description": describe, "minimum": int64(0)}
		case 2:
			return map[string]any{"x-kubernetes-int-or-string": true, "description": describe, "anyOf": []any{map[string]any{"type": "integer"}, map[string]any{"type": "string"}}}
		case 3:
			return map[string]any{"type": "array", "x-kubernetes-list-type": "atomic", "items": map[string]any{"type": "string"}, "description": describe}
		}
		return map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}, "description": describe}
	}
	size, spec := 0, map[string]any{}
	for i := 0; size < bytes; i++ {
		part := map[string]any{}
		for j := range 20 {
			part[fmt.Sprintf("field%d", j)] = leaf(i + j)
			size += len(describe) + 60
		}
		item := map[string]any{"type": "object", "required": []any{"name"}, "properties": map[string]any{
			"name": map[string]any{"type": "string"}, "part": map[string]any{"type": "object", "properties": part}}}
		spec[fmt.Sprintf("section%d", i)] = map[string]any{"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": []any{"name"}, "items": item}
	}
	return map[string]any{"type": "object", "properties": map[string]any{"spec": map[string]any{"type": "object", "properties": spec}}}
}

// Definitions of operators have hundreds of kilobytes: they are applied by the
// server; what a client writes into the annotation for its own apply is too long.
func TestBigDefinition(t *testing.T) {
	f := start(t)
	d := f.object(`{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: bigs.example.com}, spec: {group: example.com, scope: Namespaced, names: {plural: bigs, kind: Big}}}`)
	if err := unstructured.SetNestedSlice(d.Object, []any{map[string]any{"name": "v1", "served": true, "storage": true,
		"schema": map[string]any{"openAPIV3Schema": bigSchema(600 << 10)}}}, "spec", "versions"); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(d.Object)
	if err != nil || len(data) < 600<<10 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	long := d.DeepCopy()
	long.SetAnnotations(map[string]string{"kubectl.kubernetes.io/last-applied-configuration": string(data)})
	_, err = f.dyn.Resource(definitions).Create(t.Context(), long, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "metadata.annotations: Too long: may not be more than 262144 bytes") {
		t.Errorf("with the annotation: %v", err)
	}
	apply := func() *unstructured.Unstructured {
		return f.must(f.dyn.Resource(definitions).Patch(t.Context(), "bigs.example.com", types.ApplyPatchType, data, metav1.PatchOptions{FieldManager: "kubectl"}))
	}
	apply()
	f.until("established", func() bool { return f.condition("bigs.example.com", apiextensionsv1.Established) == "True" })
	first := apply()
	if again := apply(); again.GetResourceVersion() != first.GetResourceVersion() || again.GetGeneration() != 1 {
		t.Errorf("the same again: revision %s, then %s; generation %d", first.GetResourceVersion(), again.GetResourceVersion(), again.GetGeneration())
	}
	bigs := f.dyn.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "bigs"}).Namespace("shop")
	f.must(bigs.Create(t.Context(), f.object(`{apiVersion: example.com/v1, kind: Big, metadata: {name: b}, spec: {section3: [{name: a, part: {field0: [x]}}]}}`), metav1.CreateOptions{}))
	_, err = bigs.Create(t.Context(), f.object(`{apiVersion: example.com/v1, kind: Big, metadata: {name: c}, spec: {section3: [{name: a, part: {field0: 7}}]}}`), metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.section3[0].part.field0: Invalid value") {
		t.Errorf("a wrong object: %v", err)
	}
}

// Columns show what upstream's do, also where the value is of another type.
func TestColumns(t *testing.T) {
	d := established(t, 1)[0]
	d.Spec.Versions[0].AdditionalPrinterColumns = nil
	add := func(name, typ, path string) {
		d.Spec.Versions[0].AdditionalPrinterColumns = append(d.Spec.Versions[0].AdditionalPrinterColumns,
			apiextensionsv1.CustomResourceColumnDefinition{Name: name, Type: typ, JSONPath: path})
	}
	var want []any
	for i, c := range []struct {
		typ, path string
		want      any
	}{
		{"date", ".spec.when", "5m"},
		{"date", ".spec.empty", "<unknown>"},
		{"date", ".spec.text", "<invalid>"},
		{"date", ".spec.size", nil},
		{"date", ".spec.nothing", nil},
		{"date", ".spec.null", nil},
		{"string", ".spec.text", "hello"},
		{"string", ".spec.size", "3"},
		{"string", ".spec.list", `["a","b"]`},
		{"string", ".spec.list[1]", "b"},
		{"string", ".spec.list[*]", "a"}, // the first of what is found
		{"string", ".spec.list[7]", nil},
		{"string", ".spec.map", `{"k":"v"}`},
		{"string", ".spec.null", "<no value>"},
		{"string", `.spec.parts[?(@.name=="b")].value`, "two"},
		{"string", `.metadata.annotations.example\.com/x`, "y"},
		{"integer", ".spec.size", int64(3)},
		{"integer", ".spec.float", int64(2)},
		{"integer", ".spec.text", nil},
		{"number", ".spec.size", float64(3)},
		{"number", ".spec.float", 2.5},
		{"boolean", ".spec.yes", true},
		{"boolean", ".spec.text", nil},
	} {
		add(fmt.Sprintf("c%d %s %s", i, c.typ, c.path), c.typ, c.path)
		want = append(want, c.want)
	}
	row := crd.New(crd.Config{}).All(kind.All, []kind.Object{d}).Table.ByResource(schema.GroupVersionResource{Group: d.Spec.Group, Version: "v1", Resource: d.Spec.Names.Plural})
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	o := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "n", "annotations": map[string]any{"example.com/x": "y"}}, "spec": map[string]any{
		"when": "2026-01-01T11:55:00Z", "empty": "", "text": "hello", "size": int64(3), "float": 2.5, "yes": true, "null": nil,
		"list": []any{"a", "b"}, "map": map[string]any{"k": "v"}, "parts": []any{map[string]any{"name": "a", "value": "one"}, map[string]any{"name": "b", "value": "two"}}}}}
	cells := row.Cells(o, now)[1:]
	if len(cells) != len(want) {
		t.Fatalf("%d cells, want %d", len(cells), len(want))
	}
	for i := range want {
		if !reflect.DeepEqual(cells[i], want[i]) {
			t.Errorf("%s: %#v, want %#v", row.Columns[i+1].Name, cells[i], want[i])
		}
	}
}
