package conformance

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
)

func init() {
	it("creating/deleting custom resource definition objects works", func(t *testing.T, c *cluster) {
		d := c.define(t, newDefinition(""))
		ok(t, c.definitions().Delete(t.Context(), d.name, metav1.DeleteOptions{}))
		c.definitionGone(t, d.name)
	})
	it("getting/updating/patching custom resource definition status sub-resource works", definitionStatus)
	it("listing custom resource definition objects works", definitionList)
	it("custom resource defaulting for requests and from storage works", customDefaults)
	it("should include custom resource definition resources in discovery documents", definitionDiscovery)
	it("watch on custom resource definition objects", definitionWatch)
	it("MUST list and watch custom resources matching the field selector", customSelectors)
	it("should be able to convert from CR v1 to CR v2", func(t *testing.T, c *cluster) { convertCustom(t, c, false) })
	it("should be able to convert a non homogeneous list of CRs", func(t *testing.T, c *cluster) { convertCustom(t, c, true) })
	it("should support aggregated discovery interface for CRDs", aggregatedCustom)
	it("should support raw aggregated discovery request for CRDs", aggregatedCustomRaw)
	it("works for multiple CRDs of different groups", func(t *testing.T, c *cluster) {
		a, b := c.define(t, newDefinition(validated)), c.define(t, newDefinition(validated))
		c.publishes(t, a.model("v1"), true)
		c.publishes(t, b.model("v1"), true)
	})
	it("works for multiple CRDs of same group and version but different kinds", func(t *testing.T, c *cluster) {
		a, b := newDefinition(validated), newDefinition(validated)
		b.setGroup(a.group)
		c.define(t, a)
		c.define(t, b)
		c.publishes(t, a.model("v1"), true)
		c.publishes(t, b.model("v1"), true)
	})
	it("works for multiple CRDs of same group but different versions", func(t *testing.T, c *cluster) {
		d := newDefinition(validated)
		d.addVersion("v2", validated)
		c.define(t, d)
		c.publishes(t, d.model("v1"), true)
		c.publishes(t, d.model("v2"), true)
	})
	it("updates the published spec when one version gets renamed", func(t *testing.T, c *cluster) {
		d := newDefinition(validated)
		d.addVersion("v2", validated)
		c.define(t, d)
		c.publishes(t, d.model("v2"), true)
		_, err := c.definitions().Patch(t.Context(), d.name, types.JSONPatchType, []byte(`[{"op":"test","path":"/spec/versions/1/name","value":"v2"},{"op":"replace","path":"/spec/versions/1/name","value":"v4"}]`), metav1.PatchOptions{})
		ok(t, err)
		c.publishes(t, d.model("v4"), true)
		c.publishes(t, d.model("v2"), false)
		c.publishes(t, d.model("v1"), true)
	})
	it("removes definition from spec when one version gets changed to not be served", func(t *testing.T, c *cluster) {
		d := newDefinition(validated)
		d.addVersion("v2", validated)
		c.define(t, d)
		c.publishes(t, d.model("v2"), true)
		_, err := c.definitions().Patch(t.Context(), d.name, types.JSONPatchType, []byte(`[{"op":"replace","path":"/spec/versions/1/served","value":false}]`), metav1.PatchOptions{})
		ok(t, err)
		c.publishes(t, d.model("v2"), false)
		c.publishes(t, d.model("v1"), true)
	})
	it("works for CRD with validation schema", publishValidated)
	it("works for CRD without validation schema", func(t *testing.T, c *cluster) {
		publishOpen(t, c, `{"type":"object","x-kubernetes-preserve-unknown-fields":true}`, `{"anything":{"deep":1}}`)
	})
	it("works for CRD preserving unknown fields at the schema root", func(t *testing.T, c *cluster) {
		publishOpen(t, c, `{"type":"object","x-kubernetes-preserve-unknown-fields":true,"description":"preserve-unknown-properties at root","properties":{"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}`, `{"anything":{"deep":1}}`)
	})
	it("works for CRD preserving unknown fields in an embedded object", func(t *testing.T, c *cluster) {
		publishOpen(t, c, `{"type":"object","properties":{"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"description":"preserve-unknown-properties in nested field"}}}`, `{"spec":{"b":[{"c":"d"}]}}`)
	})
	it("should create/apply a CR with unknown fields for CRD with no validation schema", func(t *testing.T, c *cluster) {
		d := c.define(t, newDefinition(""))
		api := c.custom(d, "v1", c.namespace(t))
		for _, manager := range []string{"a", "b"} {
			o := d.object("v1", "x", `{"unknown":"u","spec":{"foo":"f"}}`)
			_, err := api.Apply(t.Context(), "x", o, metav1.ApplyOptions{FieldManager: manager})
			ok(t, err)
		}
		_, err := api.Create(t.Context(), d.object("v1", "y", `{"unknown":"u"}`), metav1.CreateOptions{FieldValidation: "Strict"})
		ok(t, err)
	})
	it("should create/apply a valid CR for CRD with validation schema", func(t *testing.T, c *cluster) {
		d := c.define(t, newDefinition(validated))
		api := c.custom(d, "v1", c.namespace(t))
		_, err := api.Apply(t.Context(), "x", d.object("v1", "x", `{"spec":{"bars":[{"name":"a"}]}}`), metav1.ApplyOptions{FieldManager: "a"})
		ok(t, err)
		_, err = api.Create(t.Context(), d.object("v1", "y", `{"spec":{"bars":[{"name":"a"}]}}`), metav1.CreateOptions{FieldValidation: "Strict"})
		ok(t, err)
	})
	it("should create/apply an invalid CR with extra properties for CRD with validation schema", func(t *testing.T, c *cluster) {
		d := c.define(t, newDefinition(validated))
		api := c.custom(d, "v1", c.namespace(t))
		_, err := api.Create(t.Context(), d.object("v1", "y", `{"extra":1,"spec":{"bars":[{"name":"a","more":1}]}}`), metav1.CreateOptions{FieldValidation: "Strict"})
		for _, want := range []string{`unknown field "extra"`, `unknown field "spec.bars[0].more"`} {
			if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("want %s: %v", want, err)
			}
		}
		u, err := api.Create(t.Context(), d.object("v1", "y", `{"extra":1}`), metav1.CreateOptions{FieldValidation: "Ignore"})
		ok(t, err)
		if _, is := u.Object["extra"]; is {
			t.Error("an unknown field was kept")
		}
		data := []byte(`{"apiVersion":"` + d.group + `/v1","kind":"` + d.kind + `","metadata":{"name":"z"},"extra":1}`)
		if _, err := api.Patch(t.Context(), "z", types.ApplyYAMLPatchType, data, metav1.PatchOptions{FieldManager: "a", FieldValidation: "Strict"}); err == nil || !strings.Contains(err.Error(), "extra") {
			t.Errorf("applied: %v", err)
		}
	})
}

// validated is a schema with objects, arrays and primitives.
const validated = `{"type":"object","description":"Foo CRD for testing","properties":{
"spec":{"type":"object","description":"Specification of Foo","properties":{"bars":{"type":"array","description":"List of Bars and their specs.","items":{"type":"object","required":["name"],
"properties":{"name":{"type":"string","description":"Name of Bar."},"age":{"type":"string","description":"Age of Bar."},"bazs":{"type":"array","items":{"type":"string"},"description":"List of Bazs."}}}}}},
"status":{"type":"object","description":"Status of Foo","properties":{"bars":{"type":"array","items":{"type":"object","properties":{"available":{"type":"boolean"}}}}}}}}`

var definitionNumber atomic.Int64

// definition is a CustomResourceDefinition of a test's own.
type definition struct {
	group, plural, kind, name string
	object_                   map[string]any
}

// newDefinition has version v1 with this schema ("": anything goes).
func newDefinition(text string) *definition {
	n := definitionNumber.Add(1)
	d := &definition{plural: fmt.Sprintf("foo%ds", n), kind: fmt.Sprintf("Foo%d", n)}
	d.object_ = map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{},
		"spec": map[string]any{"scope": "Namespaced", "names": map[string]any{"plural": d.plural, "singular": strings.ToLower(d.kind), "kind": d.kind, "listKind": d.kind + "List"}, "versions": []any{}}}
	d.setGroup(fmt.Sprintf("group%d.conformance.example.com", n))
	d.addVersion("v1", text)
	d.version(0)["storage"] = true
	return d
}

func (d *definition) setGroup(g string) {
	d.group, d.name = g, d.plural+"."+g
	d.spec()["group"] = g
	d.object_["metadata"] = map[string]any{"name": d.name}
}

func (d *definition) spec() map[string]any { return d.object_["spec"].(map[string]any) }

func (d *definition) version(i int) map[string]any {
	return d.spec()["versions"].([]any)[i].(map[string]any)
}

func (d *definition) addVersion(name, text string) {
	if text == "" {
		text = `{"type":"object","x-kubernetes-preserve-unknown-fields":true}`
	}
	var s map[string]any
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		panic(err)
	}
	d.spec()["versions"] = append(d.spec()["versions"].([]any), map[string]any{"name": name, "served": true, "storage": false, "schema": map[string]any{"openAPIV3Schema": s}})
}

// model is the name of a version's OpenAPI definition.
func (d *definition) model(version string) string {
	parts := strings.Split(d.group, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(append(parts, version, d.kind), ".")
}

// object of the kind, with more fields as JSON.
func (d *definition) object(version, name, fields string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	if err := json.Unmarshal([]byte(fields), &u.Object); err != nil {
		panic(err)
	}
	u.SetAPIVersion(d.group + "/" + version)
	u.SetKind(d.kind)
	u.SetName(name)
	return u
}

var definitionGVR = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func (c *cluster) definitions() dynamic.ResourceInterface { return c.dynamic.Resource(definitionGVR) }

func (c *cluster) custom(d *definition, version, ns string) dynamic.ResourceInterface {
	return c.dynamic.Resource(schema.GroupVersionResource{Group: d.group, Version: version, Resource: d.plural}).Namespace(ns)
}

// define makes a definition that goes with the test, and waits until it is served.
func (c *cluster) define(t *testing.T, d *definition) *definition {
	t.Helper()
	data, err := json.Marshal(d.object_)
	ok(t, err)
	u := new(unstructured.Unstructured)
	ok(t, u.UnmarshalJSON(data))
	_, err = c.definitions().Create(t.Context(), u, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() {
		if err := c.definitions().Delete(context.Background(), d.name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	eventually(t, func() string {
		u, err := c.definitions().Get(t.Context(), d.name, metav1.GetOptions{})
		ok(t, err)
		list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, x := range list {
			if x := x.(map[string]any); x["type"] == "Established" && x["status"] == "True" {
				return ""
			}
		}
		return fmt.Sprintf("%s is not established: %v", d.name, list)
	})
	return d
}

func (c *cluster) definitionGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, func() string {
		if _, err := c.definitions().Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("%s is still there (%v)", name, err)
		}
		return ""
	})
}

func definitionStatus(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(""))
	api := c.definitions()
	condition := func(u *unstructured.Unstructured, typ string) bool {
		list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, x := range list {
			if x.(map[string]any)["type"] == typ {
				return true
			}
		}
		return false
	}
	u, err := api.Get(t.Context(), d.name, metav1.GetOptions{}, "status")
	ok(t, err)
	eventually(t, func() string {
		if u, err = api.Get(t.Context(), d.name, metav1.GetOptions{}, "status"); err != nil {
			return err.Error()
		}
		list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		u = u.DeepCopy()
		unstructured.SetNestedSlice(u.Object, append(list, map[string]any{"type": "StatusUpdate", "status": "True", "reason": "E2E"}), "status", "conditions")
		if _, err := api.UpdateStatus(t.Context(), u, metav1.UpdateOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
	u, err = api.Get(t.Context(), d.name, metav1.GetOptions{})
	ok(t, err)
	if !condition(u, "StatusUpdate") {
		t.Errorf("the update of the status is not to be seen: %v", u.Object["status"])
	}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": append(list, map[string]any{"type": "StatusPatched", "status": "True", "reason": "E2E"})}})
	ok(t, err)
	_, err = api.Patch(t.Context(), d.name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	ok(t, err)
	u, err = api.Get(t.Context(), d.name, metav1.GetOptions{})
	ok(t, err)
	if !condition(u, "StatusPatched") {
		t.Errorf("the patch of the status is not to be seen: %v", u.Object["status"])
	}
}

func definitionList(t *testing.T, c *cluster) {
	other := c.define(t, newDefinition(""))
	label := fmt.Sprintf("conformance-list=%d", definitionNumber.Add(1))
	key, value, _ := strings.Cut(label, "=")
	for range 10 {
		d := newDefinition("")
		d.object_["metadata"].(map[string]any)["labels"] = map[string]any{key: value}
		c.define(t, d)
	}
	l, err := c.definitions().List(t.Context(), metav1.ListOptions{LabelSelector: label})
	ok(t, err)
	same(t, "definitions with the label", len(l.Items), 10)
	ok(t, c.definitions().DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: label}))
	eventually(t, func() string {
		l, err := c.definitions().List(t.Context(), metav1.ListOptions{LabelSelector: label})
		if err != nil || len(l.Items) > 0 {
			return fmt.Sprintf("%d are left (%v)", len(l.Items), err)
		}
		return ""
	})
	_, err = c.definitions().Get(t.Context(), other.name, metav1.GetOptions{})
	ok(t, err)
}

func customDefaults(t *testing.T, c *cluster) {
	d := newDefinition(`{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"string"}}}`)
	c.define(t, d)
	api := c.custom(d, "v1", c.namespace(t))
	_, err := api.Create(t.Context(), d.object("v1", "first", `{}`), metav1.CreateOptions{})
	ok(t, err)
	_, err = c.definitions().Patch(t.Context(), d.name, types.JSONPatchType, []byte(`[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/a/default","value":"A"}]`), metav1.PatchOptions{})
	ok(t, err)
	is := func(name, a, b string) func() string {
		return func() string {
			u, err := api.Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			if fmt.Sprint(u.Object["a"], u.Object["b"]) != a+b && fmt.Sprint(u.Object["a"])+fmt.Sprint(u.Object["b"]) != a+b {
				return fmt.Sprintf("%s: %v", name, u.Object)
			}
			return ""
		}
	}
	eventually(t, is("first", "A", "<nil>"))
	u, err := api.Create(t.Context(), d.object("v1", "second", `{}`), metav1.CreateOptions{})
	ok(t, err)
	if u.Object["a"] != "A" {
		t.Errorf("default of a new object: %v", u.Object)
	}
	_, err = c.definitions().Patch(t.Context(), d.name, types.JSONPatchType, []byte(`[{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/a/default"},
{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/b/default","value":"B"}]`), metav1.PatchOptions{})
	ok(t, err)
	eventually(t, is("second", "A", "B"))
	eventually(t, is("first", "<nil>", "B"))
}

func definitionDiscovery(t *testing.T, c *cluster) {
	groups, err := c.Discovery().ServerGroups()
	ok(t, err)
	found := false
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			found = found || g.Name == "apiextensions.k8s.io" && v.GroupVersion == "apiextensions.k8s.io/v1"
		}
	}
	l, err := c.Discovery().ServerResourcesForGroupVersion("apiextensions.k8s.io/v1")
	ok(t, err)
	served := false
	for _, r := range l.APIResources {
		served = served || r.Name == "customresourcedefinitions" && r.Kind == "CustomResourceDefinition"
	}
	if code, body := c.raw(t, http.MethodGet, "/apis/apiextensions.k8s.io"); code != 200 || !strings.Contains(body, "apiextensions.k8s.io/v1") || !found || !served {
		t.Errorf("group found %v, resource found %v, %d %s", found, served, code, body)
	}
}

func definitionWatch(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(""))
	api := c.custom(d, "v1", c.namespace(t))
	for _, name := range []string{"name1", "name2"} {
		w, err := api.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		ok(t, err)
		defer w.Stop()
		_, err = api.Create(t.Context(), d.object("v1", name, `{"num":1}`), metav1.CreateOptions{})
		ok(t, err)
		observe(t, w, "created", func(e watch.Event) bool { return e.Type == watch.Added })
		_, err = api.Patch(t.Context(), name, types.MergePatchType, []byte(`{"num":2}`), metav1.PatchOptions{})
		ok(t, err)
		observe(t, w, "modified", func(e watch.Event) bool {
			n, _, _ := unstructured.NestedInt64(e.Object.(*unstructured.Unstructured).Object, "num")
			return e.Type == watch.Modified && n == 2
		})
		ok(t, api.Delete(t.Context(), name, metav1.DeleteOptions{}))
		observe(t, w, "deleted", func(e watch.Event) bool { return e.Type == watch.Deleted })
	}
}

// customConverter joins host and port in v1 and splits them in v2.
func customConverter(t *testing.T) map[string]any {
	t.Helper()
	if !onThisMachine(t) {
		cannot(t, "the cluster cannot reach webhooks in this process")
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc map[string]any
		if err := json.NewDecoder(r.Body).Decode(&doc); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		request := doc["request"].(map[string]any)
		want := request["desiredAPIVersion"].(string)
		var out []any
		for _, x := range request["objects"].([]any) {
			o := x.(map[string]any)
			if hp, is := o["hostPort"].(string); is && strings.HasSuffix(want, "/v2") {
				host, port, _ := strings.Cut(hp, ":")
				delete(o, "hostPort")
				o["host"], o["port"] = host, port
			} else if host, is := o["host"].(string); is && strings.HasSuffix(want, "/v1") {
				o["hostPort"] = host + ":" + o["port"].(string)
				delete(o, "host")
				delete(o, "port")
			}
			o["apiVersion"] = want
			out = append(out, o)
		}
		json.NewEncoder(w).Encode(map[string]any{"apiVersion": doc["apiVersion"], "kind": "ConversionReview",
			"response": map[string]any{"uid": request["uid"], "result": map[string]any{"status": "Success"}, "convertedObjects": out}})
	}))
	t.Cleanup(s.Close)
	return map[string]any{"strategy": "Webhook", "webhook": map[string]any{"conversionReviewVersions": []any{"v1", "v1beta1"},
		"clientConfig": map[string]any{"url": s.URL, "caBundle": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})}}}
}

func hostDefinition(t *testing.T) *definition {
	d := newDefinition(`{"type":"object","properties":{"hostPort":{"type":"string"}}}`)
	d.addVersion("v2", `{"type":"object","properties":{"host":{"type":"string"},"port":{"type":"string"}}}`)
	d.spec()["conversion"] = customConverter(t)
	return d
}

func convertCustom(t *testing.T, c *cluster, mixed bool) {
	d := c.define(t, hostDefinition(t))
	ns := c.namespace(t)
	v1, v2 := c.custom(d, "v1", ns), c.custom(d, "v2", ns)
	_, err := v1.Create(t.Context(), d.object("v1", "a", `{"hostPort":"localhost:8080"}`), metav1.CreateOptions{})
	ok(t, err)
	u, err := v2.Get(t.Context(), "a", metav1.GetOptions{})
	ok(t, err)
	same(t, "converted", fmt.Sprint(u.Object["host"], " ", u.Object["port"]), "localhost 8080")
	if !mixed {
		return
	}
	_, err = c.definitions().Patch(t.Context(), d.name, types.JSONPatchType, []byte(`[{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]`), metav1.PatchOptions{})
	ok(t, err)
	_, err = v2.Create(t.Context(), d.object("v2", "b", `{"host":"elsewhere","port":"1"}`), metav1.CreateOptions{})
	ok(t, err)
	for version, api := range map[string]dynamic.ResourceInterface{"v1": v1, "v2": v2} {
		l, err := api.List(t.Context(), metav1.ListOptions{})
		ok(t, err)
		same(t, "objects in "+version, len(l.Items), 2)
		for _, o := range l.Items {
			same(t, "apiVersion", o.GetAPIVersion(), d.group+"/"+version)
			if _, is := o.Object["hostPort"]; is != (version == "v1") {
				t.Errorf("in %s: %v", version, o.Object)
			}
		}
	}
}

func customSelectors(t *testing.T, c *cluster) {
	d := hostDefinition(t)
	d.version(0)["selectableFields"] = []any{map[string]any{"jsonPath": ".hostPort"}}
	d.version(1)["selectableFields"] = []any{map[string]any{"jsonPath": ".host"}, map[string]any{"jsonPath": ".port"}}
	c.define(t, d)
	ns := c.namespace(t)
	v1, v2 := c.custom(d, "v1", ns), c.custom(d, "v2", ns)
	one, err := v1.Watch(t.Context(), metav1.ListOptions{FieldSelector: "hostPort=host1:80"})
	ok(t, err)
	defer one.Stop()
	two, err := v2.Watch(t.Context(), metav1.ListOptions{FieldSelector: "host=host1,port=80"})
	ok(t, err)
	defer two.Stop()
	for name, hp := range map[string]string{"a": "host1:80", "b": "host1:8080", "c": "host2:80"} {
		_, err := v1.Create(t.Context(), d.object("v1", name, `{"hostPort":"`+hp+`"}`), metav1.CreateOptions{})
		ok(t, err)
	}
	for selector, want := range map[string]string{"host=host1": "a b", "port=80": "a c", "host=host1,port=80": "a", "host!=host1": "c"} {
		l, err := v2.List(t.Context(), metav1.ListOptions{FieldSelector: selector})
		ok(t, err)
		var names []string
		for _, o := range l.Items {
			names = append(names, o.GetName())
		}
		same(t, selector, strings.Join(names, " "), want)
	}
	ended := func(typ watch.EventType, name string) func(watch.Event) bool {
		return func(e watch.Event) bool {
			o, is := e.Object.(*unstructured.Unstructured)
			if is && o.GetName() != "a" && e.Type != watch.Bookmark {
				t.Errorf("%s of %s was sent", e.Type, o.GetName())
			}
			return is && e.Type == typ && o.GetName() == name
		}
	}
	observe(t, one, "added in v1", ended(watch.Added, "a"))
	observe(t, two, "added in v2", ended(watch.Added, "a"))
	_, err = v2.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"port":"81"}`), metav1.PatchOptions{})
	ok(t, err)
	observe(t, one, "left the selection in v1", ended(watch.Deleted, "a"))
	observe(t, two, "left the selection in v2", ended(watch.Deleted, "a"))
	ok(t, v2.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "host=host1"}))
	eventually(t, func() string {
		l, err := v1.List(t.Context(), metav1.ListOptions{})
		ok(t, err)
		if len(l.Items) != 1 || l.Items[0].GetName() != "c" {
			return fmt.Sprintf("%d are left", len(l.Items))
		}
		return ""
	})
}

func aggregatedCustom(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(""))
	a := discovery.DiscoveryInterface(c.Discovery()).(discovery.AggregatedDiscoveryInterface)
	eventually(t, func() string {
		_, resources, failed, err := a.GroupsAndMaybeResources()
		ok(t, err)
		if len(failed) > 0 {
			t.Fatalf("stale: %v", failed)
		}
		l := resources[schema.GroupVersion{Group: d.group, Version: "v1"}]
		if l == nil || len(l.APIResources) != 1 || l.APIResources[0].Name != d.plural || l.APIResources[0].Kind != d.kind {
			return fmt.Sprintf("%s: %v", d.group, l)
		}
		return ""
	})
}

func aggregatedCustomRaw(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(""))
	eventually(t, func() string {
		data, err := c.RESTClient().Get().AbsPath("/apis").SetHeader("Accept", "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList").DoRaw(t.Context())
		ok(t, err)
		if !strings.Contains(string(data), `"`+d.group+`"`) || !strings.Contains(string(data), `"`+d.plural+`"`) {
			return d.group + " is not in the document"
		}
		return ""
	})
}

// publishes waits until OpenAPI v2 and v3 do or do not have a model.
func (c *cluster) publishes(t *testing.T, model string, want bool) {
	t.Helper()
	eventually(t, func() string {
		data, err := c.RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").DoRaw(t.Context())
		ok(t, err)
		if has := strings.Contains(string(data), `"`+model+`":`); has != want {
			return fmt.Sprintf("OpenAPI v2 has %s: %v", model, has)
		}
		paths, err := c.Discovery().OpenAPIV3().Paths()
		ok(t, err)
		has := false
		for path, doc := range paths {
			if strings.Contains(path, "conformance.example.com") {
				text, err := doc.Schema("application/json")
				has = has || err == nil && strings.Contains(string(text), `"`+model+`":`)
			}
		}
		if has != want {
			return fmt.Sprintf("OpenAPI v3 has %s: %v", model, has)
		}
		return ""
	})
}

func (d *definition) manifest(t *testing.T, name, fields string) string {
	data, err := d.object("v1", name, fields).MarshalJSON()
	ok(t, err)
	return string(data)
}

func publishValidated(t *testing.T, c *cluster) {
	d := c.define(t, newDefinition(validated))
	c.publishes(t, d.model("v1"), true)
	ns := c.namespace(t)
	k := newKubectl(t, c, ns)
	k.feed(d.manifest(t, "good", `{"spec":{"bars":[{"name":"test-bar"}]}}`), "create", "-f", "-")
	k.feed(d.manifest(t, "good", `{"spec":{"bars":[{"name":"test-bar","age":"10"}]}}`), "apply", "-f", "-")
	for what, fields := range map[string]string{"unknown": `{"spec":{"foo":true}}`, "required": `{"spec":{"bars":[{"age":"10"}]}}`} {
		for _, verb := range []string{"create", "apply"} {
			cmd := k.command(d.manifest(t, "bad", fields), verb, "-f", "-")
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("%s with an %s field: %s", verb, what, out)
			}
		}
	}
	k.says("Foo CRD for testing", "explain", d.plural)
	k.says("Specification of Foo", "explain", d.plural+".spec")
	k.says("List of Bars and their specs.", "explain", d.plural+".spec.bars")
}

func publishOpen(t *testing.T, c *cluster, text, fields string) {
	d := c.define(t, newDefinition(text))
	c.publishes(t, d.model("v1"), true)
	k := newKubectl(t, c, c.namespace(t))
	k.feed(d.manifest(t, "x", fields), "create", "-f", "-")
	k.feed(d.manifest(t, "x", fields), "apply", "-f", "-")
	k.says(d.kind, "explain", d.plural)
}
