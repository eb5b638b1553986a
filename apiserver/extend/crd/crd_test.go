package crd_test

import (
	"context"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/apitest"
	"proa.dev/internal/await"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func widgets(version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "example.com", Version: version, Resource: "widgets"}
}

const widgetCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 0, maximum: 10}
              colour: {type: string, default: red}
              replicas: {type: integer}
              note: {type: string, nullable: true}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string}
                    port: {type: integer}
            x-kubernetes-validations:
            - rule: "!has(oldSelf.size) || self.size >= oldSelf.size"
              message: size may not shrink
              reason: FieldValueForbidden
              fieldPath: .size
          status:
            type: object
            x-kubernetes-preserve-unknown-fields: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    selectableFields: [{jsonPath: .spec.colour}]
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema:
      openAPIV3Schema:
        type: object
        x-kubernetes-preserve-unknown-fields: true
`

type fixture struct {
	*testing.T
	*apitest.Cluster
	dyn dynamic.Interface
}

func start(t *testing.T) *fixture {
	t.Helper()
	c := apitest.Start(t, nil)
	dyn, err := dynamic.NewForConfig(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, c, dyn}
	f.must(dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Create(t.Context(), f.object(`{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`), metav1.CreateOptions{}))
	return f
}

func (f *fixture) object(text string) *unstructured.Unstructured {
	f.Helper()
	u := new(unstructured.Unstructured)
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		f.Fatal(err)
	}
	if err := u.UnmarshalJSON(data); err != nil {
		f.Fatal(err)
	}
	return u
}

func (f *fixture) must(u *unstructured.Unstructured, err error) *unstructured.Unstructured {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
	return u
}

func (f *fixture) until(what string, ok func() bool) {
	f.Helper()
	await.True(f, 20*time.Second, what, ok)
}

func (f *fixture) define(text string) *unstructured.Unstructured {
	f.Helper()
	d := f.must(f.dyn.Resource(definitions).Create(f.Context(), f.object(text), metav1.CreateOptions{}))
	f.until("established", func() bool { return f.condition(d.GetName(), apiextensionsv1.Established) == "True" })
	return d
}

func (f *fixture) condition(name string, typ apiextensionsv1.CustomResourceDefinitionConditionType) string {
	f.Helper()
	d, err := f.dyn.Resource(definitions).Get(f.Context(), name, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	list, _, _ := unstructured.NestedSlice(d.Object, "status", "conditions")
	for _, c := range list {
		if c := c.(map[string]any); c["type"] == string(typ) {
			return c["status"].(string)
		}
	}
	return ""
}

func (f *fixture) widget(spec string) *unstructured.Unstructured {
	return f.object(`{apiVersion: example.com/v1, kind: Widget, metadata: {name: w, namespace: shop}, spec: ` + spec + `}`)
}

func TestLifeOfAKind(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	f.define(widgetCRD)
	v1 := f.dyn.Resource(widgets("v1")).Namespace("shop")

	w := f.must(v1.Create(ctx, f.widget(`{size: 3, note: null, unknown: 1}`), metav1.CreateOptions{}))
	if got, _, _ := unstructured.NestedString(w.Object, "spec", "colour"); got != "red" {
		t.Errorf("default: %v", w.Object)
	}
	if _, ok, _ := unstructured.NestedFieldNoCopy(w.Object, "spec", "unknown"); ok || w.GetGeneration() != 1 {
		t.Errorf("not pruned: %v", w.Object)
	}
	if _, err := v1.Create(ctx, f.widget(`{size: 11}`), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10`) {
		t.Errorf("schema: %v", err)
	}
	_, err := v1.Create(ctx, f.widget(`{size: 1, unknown: 1}`), metav1.CreateOptions{FieldValidation: "Strict"})
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `unknown field "spec.unknown"`) {
		t.Errorf("strict: %v", err)
	}
	_, err = v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"size":2}}`), metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.size: Forbidden: size may not shrink") {
		t.Errorf("rule: %v", err)
	}
	if _, err := v1.Patch(ctx, "w", types.StrategicMergePatchType, []byte(`{}`), metav1.PatchOptions{}); apierrors.ReasonForError(err) != metav1.StatusReasonUnsupportedMediaType {
		t.Errorf("strategic: %v", err)
	}
	w = f.must(v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"size":4},"status":{"x":1}}`), metav1.PatchOptions{}))
	if _, ok := w.Object["status"]; ok || w.GetGeneration() != 2 {
		t.Errorf("main door wrote the status, or generation %d", w.GetGeneration())
	}
	w = f.must(v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"size":9},"status":{"replicas":1}}`), metav1.PatchOptions{}, "status"))
	if n, _, _ := unstructured.NestedInt64(w.Object, "spec", "size"); n != 4 || w.GetGeneration() != 2 {
		t.Errorf("status door wrote the spec: %v", w.Object)
	}

	// Server-side apply: lists by key.
	apply := func(manager, spec string) (*unstructured.Unstructured, error) {
		return v1.Apply(ctx, "w", f.widget(spec), metav1.ApplyOptions{FieldManager: manager})
	}
	f.must(apply("a", `{ports: [{name: http, port: 80}]}`))
	w = f.must(apply("b", `{ports: [{name: https, port: 443}]}`))
	if ports, _, _ := unstructured.NestedSlice(w.Object, "spec", "ports"); len(ports) != 2 {
		t.Errorf("ports by key: %v", ports)
	}
	if _, err := apply("b", `{ports: [{name: http, port: 81}]}`); !apierrors.IsConflict(err) {
		t.Errorf("conflict: %v", err)
	}

	// The other version, and selection.
	beta := f.must(f.dyn.Resource(widgets("v1beta1")).Namespace("shop").Get(ctx, "w", metav1.GetOptions{}))
	if beta.GetAPIVersion() != "example.com/v1beta1" {
		t.Errorf("apiVersion %s", beta.GetAPIVersion())
	}
	for selector, want := range map[string]int{"spec.colour=red": 1, "spec.colour=blue": 0, "metadata.name=w": 1} {
		l, err := v1.List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(l.Items) != want || l.GetKind() != "WidgetList" {
			t.Errorf("%s: %v %v", selector, l, err)
		}
	}
	if _, err := v1.List(ctx, metav1.ListOptions{FieldSelector: "spec.size=1"}); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "field label not supported: spec.size") {
		t.Errorf("other field: %v", err)
	}

	// Scale.
	if _, err := v1.Get(ctx, "w", metav1.GetOptions{}, "scale"); !apierrors.IsInternalError(err) {
		t.Errorf("scale without replicas: %v", err)
	}
	f.must(v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"replicas":2}}`), metav1.PatchOptions{}))
	f.must(v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"))
	w = f.must(v1.Get(ctx, "w", metav1.GetOptions{}))
	if n, _, _ := unstructured.NestedInt64(w.Object, "spec", "replicas"); n != 5 {
		t.Errorf("scaled to %d", n)
	}

	// Deletion: finalizers of instances count, nothing new comes meanwhile.
	f.must(v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"metadata":{"finalizers":["example.com/hold"]}}`), metav1.PatchOptions{}))
	watching, err := v1.Watch(ctx, metav1.ListOptions{ResourceVersion: w.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	if err := f.dyn.Resource(definitions).Delete(ctx, "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.until("the instance is being deleted", func() bool {
		w, err := v1.Get(ctx, "w", metav1.GetOptions{})
		return err == nil && w.GetDeletionTimestamp() != nil
	})
	late := f.widget(`{size: 1}`)
	late.SetName("late")
	if _, err := v1.Create(ctx, late, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "create not allowed while custom resource definition is terminating") {
		t.Errorf("create while going: %v", err)
	}
	f.must(v1.Patch(ctx, "w", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}))
	f.until("the definition is gone", func() bool {
		_, err := f.dyn.Resource(definitions).Get(ctx, "widgets.example.com", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if _, err := v1.List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("list after the end: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range watching.ResultChan() {
		}
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the watch goes on")
	}
}

func TestDiscovery(t *testing.T) {
	f := start(t)
	f.define(widgetCRD)
	d, err := discovery.NewDiscoveryClientForConfig(f.Admin)
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.ServerResourcesForGroupVersion("example.com/v1")
	if err != nil || len(l.APIResources) != 3 || l.APIResources[0].Kind != "Widget" || l.APIResources[0].StorageVersionHash == "" {
		t.Errorf("%+v %v", l, err)
	}
	g, err := d.ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, g := range g.Groups {
		found = found || g.Name == "example.com" && g.PreferredVersion.Version == "v1" && len(g.Versions) == 2
	}
	if !found {
		t.Errorf("groups %+v", g.Groups)
	}
	doc, err := d.OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, n := range doc.Definitions.AdditionalProperties {
		if strings.HasPrefix(n.Name, "com.example.v1.Widget") {
			names++
		}
	}
	if names != 2 {
		t.Errorf("%d models in OpenAPI v2", names)
	}
	paths, err := d.OpenAPIV3().Paths()
	if err != nil || paths["apis/example.com/v1"] == nil {
		t.Fatalf("%v %v", paths, err)
	}
	data, err := paths["apis/example.com/v1"].Schema("application/json")
	if err != nil || !strings.Contains(string(data), `"com.example.v1.WidgetList"`) || !strings.Contains(string(data), `"x-kubernetes-list-map-keys"`) {
		t.Errorf("%s %v", data, err)
	}
}

// Two definitions ask for the same names at the same time: one gets them.
func TestNamesConflict(t *testing.T) {
	f := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	other := strings.NewReplacer("widgets", "gadgets").Replace(widgetCRD)
	errs := make(chan error, 2)
	for _, text := range []string{widgetCRD, other} {
		d := f.object(text)
		go func() {
			_, err := f.dyn.Resource(definitions).Create(ctx, d, metav1.CreateOptions{})
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"widgets.example.com", "gadgets.example.com"}
	f.until("both are judged", func() bool {
		return f.condition(names[0], apiextensionsv1.NamesAccepted) != "" && f.condition(names[1], apiextensionsv1.NamesAccepted) != ""
	})
	winner, loser := names[0], names[1]
	if f.condition(winner, apiextensionsv1.Established) != "True" {
		winner, loser = loser, winner
	}
	if a, b := f.condition(winner, apiextensionsv1.Established), f.condition(loser, apiextensionsv1.Established); a != "True" || b != "False" {
		t.Fatalf("established: %s and %s", a, b)
	}
	if err := f.dyn.Resource(definitions).Delete(ctx, winner, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.until("the other one gets the names", func() bool { return f.condition(loser, apiextensionsv1.Established) == "True" })
}
