package crd_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/apiserver/extend/crd"
	"proa.dev/kind"
	"proa.dev/view"
	"proa.dev/view/feed"
)

// converter turns spec.hostPort (v1) into spec.host and spec.port (v2) and back.
type converter struct {
	calls, objects atomic.Int64
	left           atomic.Int64 // calls that hung and hang no longer
	fail           atomic.Pointer[string]
	hang           chan struct{}
}

func (c *converter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.calls.Add(1)
	if c.hang != nil {
		select {
		case <-c.hang:
		case <-r.Context().Done():
		}
		c.left.Add(1)
		return
	}
	var review struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Request    struct {
			UID     string           `json:"uid"`
			Desired string           `json:"desiredAPIVersion"`
			Objects []map[string]any `json:"objects"`
		} `json:"request"`
	}
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	c.objects.Add(int64(len(review.Request.Objects)))
	result := map[string]any{"status": "Success"}
	if msg := c.fail.Load(); msg != nil {
		result = map[string]any{"status": "Failure", "message": *msg}
	}
	for _, o := range review.Request.Objects {
		spec, _ := o["spec"].(map[string]any)
		if strings.HasSuffix(review.Request.Desired, "/v2") {
			host, port, _ := strings.Cut(spec["hostPort"].(string), ":")
			o["spec"] = map[string]any{"host": host, "port": port}
		} else {
			o["spec"] = map[string]any{"hostPort": fmt.Sprint(spec["host"], ":", spec["port"])}
		}
		o["apiVersion"] = review.Request.Desired
	}
	json.NewEncoder(w).Encode(map[string]any{"apiVersion": review.APIVersion, "kind": review.Kind,
		"response": map[string]any{"uid": review.Request.UID, "result": result, "convertedObjects": review.Request.Objects}})
}

func hostCRD(url string, ca []byte) *unstructured.Unstructured {
	str := map[string]any{"type": "string"}
	version := func(name string, storage bool, props map[string]any) any {
		return map[string]any{"name": name, "served": true, "storage": storage, "schema": map[string]any{"openAPIV3Schema": map[string]any{
			"type": "object", "properties": map[string]any{"spec": map[string]any{"type": "object", "properties": props}}}}}
	}
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "hosts.example.com"},
		"spec": map[string]any{"group": "example.com", "scope": "Namespaced", "names": map[string]any{"plural": "hosts", "kind": "Host"},
			"conversion": map[string]any{"strategy": "Webhook", "webhook": map[string]any{"conversionReviewVersions": []any{"v1"},
				"clientConfig": map[string]any{"url": url, "caBundle": ca}}},
			"versions": []any{version("v1", true, map[string]any{"hostPort": str}), version("v2", false, map[string]any{"host": str, "port": str})}}}}
}

func startConverter(t *testing.T, c *converter) (url string, ca []byte) {
	s := httptest.NewTLSServer(c)
	t.Cleanup(s.Close)
	return s.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (f *fixture) defineObject(u *unstructured.Unstructured) {
	f.Helper()
	data, err := u.MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.define(string(data))
}

func TestConversionWebhook(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	c := new(converter)
	f.defineObject(hostCRD(startConverter(t, c)))
	in := func(version string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "example.com", Version: version, Resource: "hosts"}
	}
	v1, v2 := f.dyn.Resource(in("v1")).Namespace("shop"), f.dyn.Resource(in("v2")).Namespace("shop")
	for i := range 20 {
		f.must(v1.Create(ctx, f.object(fmt.Sprintf(`{apiVersion: example.com/v1, kind: Host, metadata: {name: h%d}, spec: {hostPort: "a:%d"}}`, i, i)), metav1.CreateOptions{}))
	}
	if c.calls.Load() != 0 {
		t.Errorf("%d calls for the storage version", c.calls.Load())
	}
	// One call for a list.
	l, err := v2.List(ctx, metav1.ListOptions{})
	if err != nil || len(l.Items) != 20 || c.calls.Load() != 1 {
		t.Fatalf("%v items, %d calls, %v", l, c.calls.Load(), err)
	}
	if port, _, _ := unstructured.NestedString(l.Items[0].Object, "spec", "port"); port != "0" {
		t.Errorf("converted: %v", l.Items[0].Object)
	}
	// Written in v2, stored in v1.
	f.must(v2.Create(ctx, f.object(`{apiVersion: example.com/v2, kind: Host, metadata: {name: x}, spec: {host: b, port: "7"}}`), metav1.CreateOptions{}))
	if hp, _, _ := unstructured.NestedString(f.must(v1.Get(ctx, "x", metav1.GetOptions{})).Object, "spec", "hostPort"); hp != "b:7" {
		t.Errorf("stored %q", hp)
	}
	f.must(v2.Patch(ctx, "x", types.MergePatchType, []byte(`{"spec":{"port":"8"}}`), metav1.PatchOptions{}))
	kv, _, err := f.Store.Get(ctx, "/registry/example.com/hosts/shop/x", 0)
	if err != nil || !strings.Contains(string(kv.Value), `"hostPort":"b:8"`) || !strings.Contains(string(kv.Value), `"apiVersion":"example.com/v1"`) {
		t.Errorf("in the store: %s %v", kv.Value, err)
	}
	w, err := v2.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=x"})
	if err != nil {
		t.Fatal(err)
	}
	if e := <-w.ResultChan(); e.Object.(*unstructured.Unstructured).GetAPIVersion() != "example.com/v2" {
		t.Errorf("watched %v", e)
	}
	w.Stop()

	// Its failure is told, and others are not touched.
	msg := "cannot convert today"
	c.fail.Store(&msg)
	if _, err := v2.Get(ctx, "x", metav1.GetOptions{}); !apierrors.IsInternalError(err) ||
		!strings.Contains(err.Error(), "conversion webhook for example.com/v1, Kind=Host failed: cannot convert today") {
		t.Errorf("failure: %v", err)
	}
	f.must(v1.Get(ctx, "x", metav1.GetOptions{}))
	c.fail.Store(nil)

	// Migration: another storage version, the old one removed once nothing is in it.
	d := f.must(f.dyn.Resource(definitions).Get(ctx, "hosts.example.com", metav1.GetOptions{}))
	versions, _, _ := unstructured.NestedSlice(d.Object, "spec", "versions")
	versions[0].(map[string]any)["storage"], versions[1].(map[string]any)["storage"] = false, true
	unstructured.SetNestedSlice(d.Object, versions, "spec", "versions")
	d = f.must(f.dyn.Resource(definitions).Update(ctx, d, metav1.UpdateOptions{}))
	if stored, _, _ := unstructured.NestedStringSlice(d.Object, "status", "storedVersions"); len(stored) != 2 {
		t.Errorf("storedVersions %v", stored)
	}
	// An update that changes nothing writes the object in the new version.
	f.until("written in v2", func() bool {
		o, err := v1.Get(ctx, "x", metav1.GetOptions{})
		if err != nil {
			return false
		}
		if _, err := v1.Update(ctx, o, metav1.UpdateOptions{}); err != nil {
			return false
		}
		kv, _, err := f.Store.Get(ctx, "/registry/example.com/hosts/shop/x", 0)
		return err == nil && strings.Contains(string(kv.Value), `"apiVersion":"example.com/v2"`)
	})
	unstructured.SetNestedSlice(d.Object, versions[1:], "spec", "versions")
	if _, err := f.dyn.Resource(definitions).Update(ctx, d, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "status.storedVersions[0]") {
		t.Errorf("a stored version was removed: %v", err)
	}
}

// A webhook that hangs holds nobody but those who need it.
func TestHangingConversion(t *testing.T) {
	f := start(t)
	c := &converter{hang: make(chan struct{})}
	f.defineObject(hostCRD(startConverter(t, c)))
	f.define(widgetCRD)
	v1 := f.dyn.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "hosts"}).Namespace("shop")
	f.must(v1.Create(t.Context(), f.object(`{apiVersion: example.com/v1, kind: Host, metadata: {name: h}, spec: {hostPort: "a:1"}}`), metav1.CreateOptions{}))
	var waiting sync.WaitGroup
	for range 50 {
		waiting.Go(func() {
			f.dyn.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v2", Resource: "hosts"}).Namespace("shop").Get(t.Context(), "h", metav1.GetOptions{})
		})
	}
	f.until("calls hang", func() bool { return c.calls.Load() > 10 })
	f.must(f.dyn.Resource(widgets("v1")).Namespace("shop").Create(t.Context(), f.widget(`{size: 1}`), metav1.CreateOptions{}))
	f.must(v1.Get(t.Context(), "h", metav1.GetOptions{}))
	if n := c.left.Load(); n > 0 {
		t.Errorf("others waited until %d calls had ended", n)
	}
	close(c.hang)
	waiting.Wait()
}

// Definitions come and go while their objects are written: nothing stays behind in
// the store, and no request fails with an internal error.
func TestDefinitionsComeAndGo(t *testing.T) {
	f := start(t)
	ctx := t.Context()
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var internal atomic.Pointer[error]
	for n := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				w := f.object(fmt.Sprintf(`{apiVersion: example.com/v1, kind: Widget, metadata: {name: w%d-%d, namespace: shop}, spec: {size: 1}}`, n, i))
				if _, err := f.dyn.Resource(widgets("v1")).Namespace("shop").Create(ctx, w, metav1.CreateOptions{}); apierrors.IsInternalError(err) {
					internal.Store(&err)
				}
			}
		})
	}
	for range 5 {
		f.define(widgetCRD)
		f.until("some are written", func() bool {
			l, err := f.dyn.Resource(widgets("v1")).List(ctx, metav1.ListOptions{})
			return err == nil && len(l.Items) > 3
		})
		if err := f.dyn.Resource(definitions).Delete(ctx, "widgets.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		f.until("gone", func() bool {
			_, err := f.dyn.Resource(definitions).Get(ctx, "widgets.example.com", metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	}
	close(stop)
	writers.Wait()
	if err := internal.Load(); err != nil {
		t.Error(*err)
	}
	page, err := f.Store.Range(ctx, "/registry/example.com/", "/registry/example.com0", 0, 0)
	if err != nil || len(page.KVs) > 0 {
		t.Errorf("%d objects are left in the store, %v", len(page.KVs), err)
	}
}

// A new server on the same store has the kinds and their objects at once.
func TestRestart(t *testing.T) {
	f := start(t)
	f.define(widgetCRD)
	f.must(f.dyn.Resource(widgets("v1")).Namespace("shop").Create(t.Context(), f.widget(`{size: 1}`), metav1.CreateOptions{}))
	v := view.New(kind.All, 0)
	again := feed.New(f.Store, v, kind.DecodeStored, nil)
	again.Extend(kind.CustomResourceDefinition, crd.New(crd.Config{}))
	if err := again.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	row := v.Table().ByResource(widgets("v1"))
	if row == nil || v.Snapshot().Get(row, "shop", "w") == nil {
		t.Fatalf("row %v after a restart", row)
	}
}

// What is wrong in a schema is refused with its path; what is evil costs little.
func TestWrongDefinitions(t *testing.T) {
	f := start(t)
	base := func(schema string) string {
		return `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: evils.example.com}, spec: {group: example.com, scope: Namespaced,
  names: {plural: evils, kind: Evil}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: ` + schema + `}}]}}`
	}
	deep := strings.Repeat(`{type: object, properties: {a: `, 100) + `{type: string}` + strings.Repeat(`}}`, 100)
	for name, c := range map[string]struct{ schema, want string }{
		"not structural": {`{type: object, properties: {a: {}}}`, "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields"},
		"bad rule":       {`{type: object, x-kubernetes-validations: [{rule: "self.nothing == 1"}]}`, "undefined field 'nothing'"},
		"costly rule": {`{type: object, properties: {a: {type: array, items: {type: array, items: {type: string}}}}, x-kubernetes-validations: [{rule: "self.a.all(x, self.a.all(y, x.all(z, y.all(w, z == w))))"}]}`,
			"estimated rule cost exceeds budget"},
		"bad regex": {`{type: object, properties: {a: {type: string, pattern: "("}}}`, "must be a valid regular expression"},
		"int-or-string and unknown fields": {`{type: object, properties: {a: {x-kubernetes-int-or-string: true, x-kubernetes-preserve-unknown-fields: true}}}`,
			"spec.validation.openAPIV3Schema.properties[a].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true"},
		"list map without keys": {`{type: object, properties: {a: {type: array, x-kubernetes-list-type: map, items: {type: object, properties: {k: {type: string}}}}}}`,
			"x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map"},
		"list type of no list": {`{type: object, properties: {a: {type: string, x-kubernetes-list-type: set}}}`,
			"spec.validation.openAPIV3Schema.properties[a].type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified"},
		"both kinds of properties": {`{type: object, properties: {a: {type: object, properties: {b: {type: string}}, additionalProperties: {type: string}}}}`,
			"spec.validation.openAPIV3Schema.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"},
		"bad default": {`{type: object, properties: {a: {type: integer, default: "x"}}}`, "default: Invalid value"},
	} {
		_, err := f.dyn.Resource(definitions).Create(t.Context(), f.object(base(c.schema)), metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.define(base(deep))
	evil := `{apiVersion: example.com/v1, kind: Evil, metadata: {name: e, namespace: shop}}`
	f.must(f.dyn.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "evils"}).Namespace("shop").Create(t.Context(), f.object(evil), metav1.CreateOptions{}))
	_, err := f.dyn.Resource(definitions).Patch(t.Context(), "evils.example.com", types.MergePatchType, []byte(`{"metadata":{"resourceVersion":null},"spec":{"scope":"Cluster"}}`), metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.scope: Invalid value") {
		t.Errorf("scope changed: %v", err)
	}
}
