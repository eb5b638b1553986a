package apiserver_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	discoverydocs "proa.dev/apiserver/discovery"
	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/view"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares with testdata/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs; look at the difference after running the test with -update", file)
	}
}

// TestDiscoveryGolden holds every resource, verb and short name that clients
// find, one a line.
func TestDiscoveryGolden(t *testing.T) {
	var b strings.Builder
	for _, g := range discoverydocs.Groups(kind.All) {
		for _, v := range g.Versions {
			l := discoverydocs.ResourceList(kind.All, g.Name, v)
			fmt.Fprintf(&b, "%s\n", l.GroupVersion)
			for _, r := range l.APIResources {
				fmt.Fprintf(&b, "  %s kind=%s namespaced=%v verbs=%s", r.Name, r.Kind, r.Namespaced, strings.Join(r.Verbs, ","))
				if r.Group != "" {
					fmt.Fprintf(&b, " gv=%s/%s", r.Group, r.Version)
				}
				if len(r.ShortNames) > 0 {
					fmt.Fprintf(&b, " short=%s", strings.Join(r.ShortNames, ","))
				}
				if len(r.Categories) > 0 {
					fmt.Fprintf(&b, " categories=%s", strings.Join(r.Categories, ","))
				}
				b.WriteByte('\n')
			}
		}
	}
	golden(t, "discovery.txt", []byte(b.String()))
}

func TestDiscoveryClient(t *testing.T) {
	c := apitest.Start(t, nil)
	d, err := discovery.NewDiscoveryClientForConfig(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	groups, resources, err := d.ServerGroupsAndResources()
	if err != nil || len(groups) < 5 || len(resources) < 5 {
		t.Fatalf("aggregated: %d groups, %d lists, %v", len(groups), len(resources), err)
	}
	d.UseLegacyDiscovery = true
	old, oldResources, err := d.ServerGroupsAndResources()
	if err != nil || len(old) != len(groups) || len(oldResources) != len(resources) {
		t.Fatalf("classic: %d groups, %d lists, %v", len(old), len(oldResources), err)
	}
	v, err := d.ServerVersion()
	if err != nil || v.GitVersion != "v1.37.0+proa" {
		t.Fatalf("version: %v %v", v, err)
	}
	// Protobuf OpenAPI v2, as kubectl and Argo CD read it.
	doc, err := d.OpenAPISchema()
	if err != nil || len(doc.Definitions.AdditionalProperties) < 100 {
		t.Fatalf("OpenAPI v2: %v", err)
	}
	paths, err := d.OpenAPIV3().Paths()
	if err != nil || paths["apis/apps/v1"] == nil || paths["api/v1"] == nil {
		t.Fatalf("OpenAPI v3: %v %v", paths, err)
	}
	code, h, _ := call(t, c, "GET", "/openapi/v3/api/v1", "", "", "")
	req, _ := http.NewRequest("GET", c.HTTP.URL+"/openapi/v3/api/v1", nil)
	req.Header.Set("If-None-Match", h.Get("ETag"))
	resp, err := c.HTTP.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if code != 200 || resp.StatusCode != 304 {
		t.Fatalf("ETag: %d then %d", code, resp.StatusCode)
	}
}

// TestReferencesResolve: every $ref of the OpenAPI documents has its schema.
func TestReferencesResolve(t *testing.T) {
	c := apitest.Start(t, nil)
	for _, path := range []string{"/openapi/v2", "/openapi/v3/api/v1", "/openapi/v3/apis/apps/v1"} {
		_, _, body := call(t, c, "GET", path, "", "", "")
		var doc struct {
			Definitions map[string]any
			Components  struct{ Schemas map[string]any }
		}
		if err := json.Unmarshal([]byte(body), &doc); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		known := doc.Definitions
		if known == nil {
			known = doc.Components.Schemas
		}
		for _, part := range strings.Split(body, `"$ref":"`)[1:] {
			ref, _, _ := strings.Cut(part, `"`)
			name := ref[strings.LastIndex(ref, "/")+1:]
			if known[name] == nil {
				t.Errorf("%s: %s has no schema", path, name)
			}
		}
	}
}

func TestHealthAndMetrics(t *testing.T) {
	broken := false
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		cfg.Ready = []apiserver.Check{{Name: "nodes", Do: func(context.Context) error {
			if broken {
				return fmt.Errorf("secret reason")
			}
			return nil
		}}}
	})
	if code, _, body := call(t, c, "GET", "/readyz", "", "", ""); code != 200 || body != "ok" {
		t.Fatalf("%d %s", code, body)
	}
	if code, _, body := call(t, c, "GET", "/livez?verbose", "", "", ""); code != 200 || !strings.Contains(body, "[+]ping ok\n") || !strings.Contains(body, "livez check passed") {
		t.Fatalf("%d %s", code, body)
	}
	broken = true
	if code, _, body := call(t, c, "GET", "/readyz", "", "", ""); code != 500 || !strings.Contains(body, "[-]nodes failed: reason withheld") || strings.Contains(body, "secret") {
		t.Fatalf("%d %s", code, body)
	}
	if code, _, _ := call(t, c, "GET", "/readyz/nodes", "", "", ""); code != 500 {
		t.Fatalf("%d", code)
	}
	if code, _, _ := call(t, c, "GET", "/readyz/ping", "", "", ""); code != 200 {
		t.Fatalf("%d", code)
	}
	resp, err := c.HTTP.Client().Get(c.HTTP.URL + "/healthz/ping")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("anonymous health: %v %v", resp, err)
	}
	resp.Body.Close()
	resp, err = c.HTTP.Client().Get(c.HTTP.URL + "/metrics")
	if err != nil || resp.StatusCode != 403 {
		t.Fatalf("anonymous metrics: %v %v", resp, err)
	}
	resp.Body.Close()
	_, _, body := call(t, c, "GET", "/metrics", "", "", "")
	for _, want := range []string{`apiserver_request_total{code="200"`, "apiserver_request_duration_seconds_bucket", `apiserver_storage_objects{resource="pods"} 0`, "process_cpu_seconds_total", "go_goroutines"} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestReviews(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	who, err := cs.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "admin" {
		t.Fatalf("%v %v", who, err)
	}
	tr, err := cs.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "bob"}}, metav1.CreateOptions{})
	if err != nil || !tr.Status.Authenticated || tr.Status.User.Username != "bob" {
		t.Fatalf("%v %v", tr, err)
	}
	tr, err = cs.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "unknown"}}, metav1.CreateOptions{})
	if err != nil || tr.Status.Authenticated {
		t.Fatalf("%v %v", tr, err)
	}
	ra := &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods", Namespace: "n"}
	sar, err := cs.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "bob", ResourceAttributes: ra}}, metav1.CreateOptions{})
	if err != nil || sar.Status.Allowed {
		t.Fatalf("%v %v", sar, err)
	}
	self, err := cs.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: ra}}, metav1.CreateOptions{})
	if err != nil || !self.Status.Allowed {
		t.Fatalf("%v %v", self, err)
	}
	if _, err := cs.AuthorizationV1().LocalSubjectAccessReviews("other").Create(ctx, &authorizationv1.LocalSubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "bob", ResourceAttributes: ra}}, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Fatalf("local review of another namespace: %v", err)
	}
	rules, err := cs.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "n"}}, metav1.CreateOptions{})
	if err != nil || !rules.Status.Incomplete {
		t.Fatalf("%v %v", rules, err)
	}
}

func TestWatchOverWebSocket(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	if _, err := cs.CoreV1().ConfigMaps("n").Create(ctx, configMap("a", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d := websocket.Dialer{TLSClientConfig: c.HTTP.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
	d.TLSClientConfig.NextProtos = []string{"http/1.1"}
	conn, _, err := d.Dial("wss"+strings.TrimPrefix(c.HTTP.URL, "https")+"/api/v1/namespaces/n/configmaps?watch=1", http.Header{"Authorization": {"Bearer admin"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, data, err := conn.ReadMessage()
	if err != nil || !strings.HasPrefix(string(data), `{"type":"ADDED","object":{"kind":"ConfigMap"`) {
		t.Fatalf("%s %v", data, err)
	}
}

// TestTooOld: a watch from a version that is no longer kept gets an ERROR event
// with 410, as upstream's. The view keeps its window of changes, and so does a store
// of one server; one that several servers share keeps all until it is compacted.
func TestTooOld(t *testing.T) {
	writes, shared := 20_000, false
	c := apitest.Start(t, func(c *apiserver.Config) {
		if _, shared = c.Store.(store.Shared); shared {
			writes, c.View = 100, view.New(kind.All, 16)
		}
	})
	l := c.Server.Local(apitest.Admin)
	for i := range writes {
		cm := configMap("a", fmt.Sprint(i))
		cm.Namespace = "n"
		if i == 0 {
			if _, err := l.Create(ctx, kind.ConfigMap, cm, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, err := l.Update(ctx, kind.ConfigMap, cm, "", metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if shared {
		if err := c.Store.Compact(ctx, c.Store.Revision()); err != nil {
			t.Fatal(err)
		}
	}
	w, err := clients(t, c)["json"].CoreV1().ConfigMaps("n").Watch(ctx, metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	e := next(t, w)
	if st, ok := e.Object.(*metav1.Status); e.Type != watch.Error || !ok || st.Code != 410 || st.Reason != metav1.StatusReasonExpired {
		t.Fatalf("%+v", e)
	}
	if code, _, body := call(t, c, "GET", "/api/v1/configmaps?resourceVersion=2&resourceVersionMatch=Exact", "", "", ""); code != 410 || !strings.Contains(body, `"reason":"Expired"`) {
		t.Fatalf("%d %s", code, body)
	}
}

// TestManyWriters: unconditional patches of one object all arrive.
func TestManyWriters(t *testing.T) {
	c := apitest.Start(t, nil)
	cms := clients(t, c)["json"].CoreV1().ConfigMaps("n")
	if _, err := cms.Create(ctx, configMap("a", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for j := range 20 {
				p := fmt.Sprintf(`{"data":{"w%d-%d":"x"}}`, i, j)
				if _, err := cms.Patch(ctx, "a", types.MergePatchType, []byte(p), metav1.PatchOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	got, err := cms.Get(ctx, "a", metav1.GetOptions{})
	if err != nil || len(got.Data) != 1+16*20 {
		t.Fatalf("%d keys, %v", len(got.Data), err)
	}
}

// TestTwoVersions: both Events show what either made.
func TestTwoVersions(t *testing.T) {
	c := apitest.Start(t, nil)
	for name, cs := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			made, err := cs.CoreV1().Events(name).Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, Reason: "R", Message: "m", Type: "Normal",
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: name, Name: "p"}, Count: 3}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := cs.EventsV1().Events(name).Get(ctx, "e", metav1.GetOptions{})
			if err != nil || got.Note != "m" || got.Regarding.Name != "p" || got.DeprecatedCount != 3 || got.UID != made.UID {
				t.Fatalf("%+v %v", got, err)
			}
			w, err := cs.EventsV1().Events(name).Watch(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			if e := next(t, w); e.Type != watch.Added || e.Object.(*eventsv1.Event).Note != "m" {
				t.Fatalf("%+v", e)
			}
			now := metav1.NewMicroTime(time.Now())
			if _, err := cs.EventsV1().Events(name).Create(ctx, &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Name: "f"}, EventTime: now, Reason: "R", Note: "n", Type: "Normal", Action: "A",
				ReportingController: "x.io/c", ReportingInstance: "i", Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: name, Name: "p"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			sel, err := cs.CoreV1().Events(name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=p"})
			if err != nil || len(sel.Items) != 2 || sel.Items[1].Message != "n" {
				t.Fatalf("%v %v", sel, err)
			}
		})
	}
}

func TestMetadataClient(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	if _, err := cs.CoreV1().ConfigMaps("n").Create(ctx, configMap("a", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := metadata.NewForConfig(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	r := m.Resource(kind.ConfigMap.GVR()).Namespace("n")
	l, err := r.List(ctx, metav1.ListOptions{})
	if err != nil || len(l.Items) != 1 || l.Items[0].Labels["v"] != "1" {
		t.Fatalf("%v %v", l, err)
	}
	w, err := r.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := next(t, w); e.Type != watch.Added || e.Object.(*metav1.PartialObjectMetadata).Name != "a" {
		t.Fatalf("%+v", e)
	}
}

// TestContinueExpires: an old token gives 410 with one that goes on from the
// newest state.
func TestContinueExpires(t *testing.T) {
	clock := apitest.NewClock()
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Clock = clock })
	cms := clients(t, c)["json"].CoreV1().ConfigMaps("n")
	for i := range 4 {
		if _, err := cms.Create(ctx, configMap(fmt.Sprintf("m%d", i), "1"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	first, err := cms.List(ctx, metav1.ListOptions{Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	clock.Jump(time.Hour)
	if _, err := cms.Create(ctx, configMap("m9", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = cms.List(ctx, metav1.ListOptions{Limit: 2, Continue: first.Continue})
	st, ok := err.(apierrors.APIStatus)
	if !ok || st.Status().Code != 410 || st.Status().ListMeta.Continue == "" {
		t.Fatalf("old token: %v", err)
	}
	rest, err := cms.List(ctx, metav1.ListOptions{Continue: st.Status().ListMeta.Continue})
	if err != nil || len(rest.Items) != 3 || rest.Items[2].Name != "m9" {
		t.Fatalf("inconsistent continuation: %v %v", rest, err)
	}
}
