package conformance

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/cluster/pki"
	"proa.dev/kind"
)

// The sample server runs in the test's process, behind a Service that names this
// machine, where upstream's runs in a pod: what is asked of the aggregator is the
// same. Alone, because no namespace can go while a registered server is away.
func init() {
	it("Aggregator Should be able to support the 1.17 Sample API Server using the current Aggregator", sampleServer, row(kind.APIService)).alone()
}

var apiServices = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}

// flunders is a server of wardle.example.com/v1alpha1 that keeps its objects as they
// were sent, and believes who shows a certificate of trusted.
func flunders(t *testing.T, service, namespace string, trusted []byte) (port int64, bundle []byte) {
	t.Helper()
	ca, err := pki.New(time.Now)
	ok(t, err)
	cert, err := ca.Issue(pki.Names{CommonName: service, DNS: []string{service + "." + namespace + ".svc"}, Server: true}, time.Hour)
	ok(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(trusted) {
		t.Fatalf("no certificates in %q", trusted)
	}
	const base = "/apis/wardle.example.com/v1alpha1"
	var mu sync.Mutex
	kept := map[string]json.RawMessage{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		mu.Lock()
		defer mu.Unlock()
		rest, inNamespace := strings.CutPrefix(r.URL.Path, base+"/namespaces/"+namespace+"/flunders")
		name := strings.TrimPrefix(rest, "/")
		switch {
		case r.Header.Get("X-Remote-User") == "":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == base:
			json.NewEncoder(w).Encode(metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "wardle.example.com/v1alpha1",
				APIResources: []metav1.APIResource{{Name: "flunders", SingularName: "flunder", Namespaced: true, Kind: "Flunder", Verbs: metav1.Verbs{"create", "delete", "deletecollection", "get", "list"}}}})
		case inNamespace && name == "" && r.Method == http.MethodGet:
			items := []json.RawMessage{}
			for _, o := range kept {
				items = append(items, o)
			}
			json.NewEncoder(w).Encode(map[string]any{"apiVersion": "wardle.example.com/v1alpha1", "kind": "FlunderList", "metadata": map[string]any{}, "items": items})
		case inNamespace && name == "" && r.Method == http.MethodPost:
			var o map[string]any
			json.NewDecoder(r.Body).Decode(&o)
			data, _ := json.Marshal(o)
			kept[o["metadata"].(map[string]any)["name"].(string)] = data
			w.WriteHeader(http.StatusCreated)
			w.Write(data)
		case inNamespace && r.Method == http.MethodDelete:
			for n := range kept {
				if name == "" || n == name {
					delete(kept, n)
				}
			}
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
		case kept[name] != nil && r.Method == http.MethodGet:
			w.Write(kept[name])
		default:
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: 404})
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return int64(netip.MustParseAddrPort(s.Listener.Addr().String()).Port()), ca.PEM()
}

func sampleServer(t *testing.T, c *cluster) {
	if !onThisMachine(t) {
		cannot(t, "the cluster cannot reach servers in this process")
	}
	ns := c.namespace(t)
	trust, err := c.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	ok(t, err)
	port, bundle := flunders(t, "sample-api", ns, []byte(trust.Data["requestheader-client-ca-file"]))
	_, err = c.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "sample-api"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}, metav1.CreateOptions{})
	ok(t, err)
	const name = "v1alpha1.wardle.example.com"
	api := c.dynamic.Resource(apiServices)
	_, err = api.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": int64(2000), "versionPriority": int64(200), "caBundle": bundle,
			"service": map[string]any{"namespace": ns, "name": "sample-api", "port": port}}}}, metav1.CreateOptions{})
	ok(t, err)
	defer api.Delete(t.Context(), name, metav1.DeleteOptions{})
	available := func(o *unstructured.Unstructured) string {
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, x := range list {
			if m := x.(map[string]any); m["type"] == "Available" {
				return m["status"].(string)
			}
		}
		return ""
	}
	eventually(t, func() string {
		o, err := api.Get(t.Context(), name, metav1.GetOptions{}, "status")
		if err != nil {
			return err.Error()
		}
		if available(o) != "True" {
			text, _ := json.Marshal(o.Object["status"])
			return "status is " + string(text)
		}
		return ""
	})

	// Objects.
	f := c.dynamic.Resource(schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1alpha1", Resource: "flunders"}).Namespace(ns)
	for _, n := range []string{"one", "two"} {
		_, err = f.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": map[string]any{"name": n, "namespace": ns}}}, metav1.CreateOptions{})
		ok(t, err)
	}
	l, err := f.List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "flunders", len(l.Items), 2)
	ok(t, f.Delete(t.Context(), "one", metav1.DeleteOptions{}))
	o, err := f.Get(t.Context(), "two", metav1.GetOptions{})
	ok(t, err)
	same(t, "flunder", o.GetName(), "two")

	// Discovery.
	eventually(t, func() string {
		list, err := c.Discovery().ServerResourcesForGroupVersion("wardle.example.com/v1alpha1")
		if err != nil {
			return err.Error()
		}
		if len(list.APIResources) != 1 || list.APIResources[0].Name != "flunders" {
			return "resources are not flunders"
		}
		_, lists, err := c.Discovery().ServerGroupsAndResources()
		if err != nil {
			return err.Error()
		}
		for _, l := range lists {
			if l.GroupVersion == "wardle.example.com/v1alpha1" {
				return ""
			}
		}
		return "the group is not in discovery"
	})

	// The registration itself: patch, status, deletion of the collection.
	o, err = api.Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":{"sample":"patched"}},"spec":{"versionPriority":400}}`), metav1.PatchOptions{})
	ok(t, err)
	priority, _, _ := unstructured.NestedInt64(o.Object, "spec", "versionPriority")
	same(t, "versionPriority", priority, 400)
	o, err = api.Patch(t.Context(), name, types.MergePatchType, []byte(`{"status":{"conditions":[{"type":"Available","status":"True","reason":"Passed","message":"all checks passed","lastTransitionTime":"2020-01-01T00:00:00Z"},`+
		`{"type":"StatusUpdated","status":"True","reason":"E2E","message":"set by a test","lastTransitionTime":"2020-01-01T00:00:00Z"}]}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "still available", available(o), "True")
	ok(t, f.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	l, err = f.List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "flunders in the end", len(l.Items), 0)
	ok(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "sample=patched"}))
	eventually(t, func() string {
		if _, err := f.List(t.Context(), metav1.ListOptions{}); err == nil {
			return "flunders are still served"
		}
		return ""
	})
}
