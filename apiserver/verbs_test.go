package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"proa.dev/apiserver/apitest"
)

var ctx = context.Background()

func clients(t *testing.T, c *apitest.Cluster) map[string]*kubernetes.Clientset {
	t.Helper()
	out := map[string]*kubernetes.Clientset{}
	for name, ct := range map[string]string{"json": "application/json", "protobuf": "application/vnd.kubernetes.protobuf"} {
		cfg := rest.CopyConfig(c.Admin)
		cfg.ContentType = ct
		cs, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = cs
	}
	return out
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"v": value}}, Data: map[string]string{"k": value}}
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "busybox"}}}}
}

func TestCreateGetUpdateDelete(t *testing.T) {
	c := apitest.Start(t, nil)
	for name, cs := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			cms := cs.CoreV1().ConfigMaps(name)
			made, err := cms.Create(ctx, configMap("a", "1"), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if made.UID == "" || made.ResourceVersion == "" || made.CreationTimestamp.IsZero() || made.Namespace != name {
				t.Fatalf("system fields missing: %+v", made.ObjectMeta)
			}
			if _, err := cms.Create(ctx, configMap("a", "1"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || err.Error() != `configmaps "a" already exists` {
				t.Fatalf("second create: %v", err)
			}
			got, err := cms.Get(ctx, "a", metav1.GetOptions{})
			if err != nil || got.Data["k"] != "1" || got.ResourceVersion != made.ResourceVersion {
				t.Fatalf("get: %+v %v", got, err)
			}
			got.Data["k"] = "2"
			up, err := cms.Update(ctx, got, metav1.UpdateOptions{})
			if err != nil || up.Data["k"] != "2" || up.ResourceVersion == made.ResourceVersion {
				t.Fatalf("update: %+v %v", up, err)
			}
			_, err = cms.Update(ctx, got, metav1.UpdateOptions{})
			if want := `Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again`; err == nil || err.Error() != want {
				t.Fatalf("stale update: %v", err)
			}
			same, err := cms.Update(ctx, up.DeepCopy(), metav1.UpdateOptions{})
			if err != nil || same.ResourceVersion != up.ResourceVersion {
				t.Fatalf("an update that changes nothing must not write: %v %v", same, err)
			}
			wrong := types.UID("other")
			if err := cms.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}}); !apierrors.IsConflict(err) {
				t.Fatalf("delete with another uid: %v", err)
			}
			if err := cms.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := cms.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) || err.Error() != `configmaps "a" not found` {
				t.Fatalf("get after delete: %v", err)
			}
			gen := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "g-"}}
			one, err := cms.Create(ctx, gen, metav1.CreateOptions{})
			if err != nil || len(one.Name) != 7 || !strings.HasPrefix(one.Name, "g-") {
				t.Fatalf("generateName: %v %v", one, err)
			}
			dry, err := cms.Create(ctx, configMap("dry", "1"), metav1.CreateOptions{DryRun: []string{"All"}})
			if err != nil || dry.UID == "" {
				t.Fatal(err)
			}
			if _, err := cms.Get(ctx, "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Fatalf("dry run wrote: %v", err)
			}
		})
	}
}

func TestListPagesSelectorsAndVersions(t *testing.T) {
	c := apitest.Start(t, nil)
	for name, cs := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			cms := cs.CoreV1().ConfigMaps(name)
			for i := range 7 {
				if _, err := cms.Create(ctx, configMap(fmt.Sprintf("m%d", i), fmt.Sprint(i%2)), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			first, err := cms.List(ctx, metav1.ListOptions{Limit: 3})
			if err != nil || len(first.Items) != 3 || first.Continue == "" || first.RemainingItemCount == nil || *first.RemainingItemCount != 4 {
				t.Fatalf("first page: %+v %v", first.ListMeta, err)
			}
			// What happens between pages does not show in them.
			if err := cms.Delete(ctx, "m4", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			rest, err := cms.List(ctx, metav1.ListOptions{Continue: first.Continue})
			if err != nil || len(rest.Items) != 4 || rest.Items[1].Name != "m4" || rest.ResourceVersion != first.ResourceVersion {
				t.Fatalf("second page: %v %v", rest, err)
			}
			exact, err := cms.List(ctx, metav1.ListOptions{ResourceVersion: first.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
			if err != nil || len(exact.Items) != 7 || exact.ResourceVersion != first.ResourceVersion {
				t.Fatalf("exact: %v %v", len(exact.Items), err)
			}
			sel, err := cms.List(ctx, metav1.ListOptions{LabelSelector: "v=1"})
			if err != nil || len(sel.Items) != 3 {
				t.Fatalf("labels: %d %v", len(sel.Items), err)
			}
			byName, err := cms.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=m2"})
			if err != nil || len(byName.Items) != 1 {
				t.Fatalf("fields: %d %v", len(byName.Items), err)
			}
			if _, err := cms.List(ctx, metav1.ListOptions{FieldSelector: "data.k=1"}); !apierrors.IsBadRequest(err) {
				t.Fatalf("unknown field: %v", err)
			}
			if _, err := cms.List(ctx, metav1.ListOptions{ResourceVersionMatch: "Exact"}); !apierrors.IsInvalid(err) {
				t.Fatalf("match without version: %v", err)
			}
			if code, _, body := call(t, c, "GET", "/api/v1/configmaps?resourceVersion=99999999", "", "", ""); code != 504 || !strings.Contains(body, "Too large resource version: 99999999, current: ") {
				t.Fatalf("future version: %d %s", code, body)
			}
			none, err := cs.CoreV1().ConfigMaps("empty").List(ctx, metav1.ListOptions{})
			if err != nil || none.Items == nil && name == "json" || len(none.Items) != 0 {
				t.Fatalf("empty list: %+v %v", none, err)
			}
			if err := cms.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "v=0"}); err != nil {
				t.Fatal(err)
			}
			left, _ := cms.List(ctx, metav1.ListOptions{})
			if len(left.Items) != 3 {
				t.Fatalf("deletecollection left %d", len(left.Items))
			}
		})
	}
}

// next takes one event, or fails after a bounded time.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("watch ended")
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event within ten seconds")
	}
	panic("unreachable")
}

func TestWatch(t *testing.T) {
	c := apitest.Start(t, nil)
	for name, cs := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			cms := cs.CoreV1().ConfigMaps(name)
			a, err := cms.Create(ctx, configMap("a", "1"), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := cms.Watch(ctx, metav1.ListOptions{LabelSelector: "v=1"})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			if e := next(t, w); e.Type != watch.Added || e.Object.(*corev1.ConfigMap).UID != a.UID {
				t.Fatalf("synthetic: %+v", e)
			}
			a.Data["k"] = "x"
			if a, err = cms.Update(ctx, a, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if e := next(t, w); e.Type != watch.Modified || e.Object.(*corev1.ConfigMap).ResourceVersion != a.ResourceVersion {
				t.Fatalf("modified: %+v", e)
			}
			a.Labels["v"] = "2"
			if a, err = cms.Update(ctx, a, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			e := next(t, w)
			if o := e.Object.(*corev1.ConfigMap); e.Type != watch.Deleted || o.Labels["v"] != "1" || o.ResourceVersion != a.ResourceVersion {
				t.Fatalf("left the selection: %+v", e)
			}
			a.Labels["v"] = "1"
			if a, err = cms.Update(ctx, a, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if e := next(t, w); e.Type != watch.Added {
				t.Fatalf("came back: %+v", e)
			}
			rv := a.ResourceVersion
			if err := cms.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			e = next(t, w)
			if o := e.Object.(*corev1.ConfigMap); e.Type != watch.Deleted || o.ResourceVersion == rv || o.Data["k"] != "x" {
				t.Fatalf("deleted: %+v", e)
			}
			again, err := cms.Watch(ctx, metav1.ListOptions{ResourceVersion: rv})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Stop()
			if e := next(t, again); e.Type != watch.Deleted {
				t.Fatalf("resumed: %+v", e)
			}
			yes := true
			stream, err := cms.Watch(ctx, metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Stop()
			if e := next(t, stream); e.Type != watch.Bookmark || e.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] != "true" {
				t.Fatalf("end of initial events: %+v", e)
			}
			one := int64(1)
			short, err := cms.Watch(ctx, metav1.ListOptions{TimeoutSeconds: &one})
			if err != nil {
				t.Fatal(err)
			}
			select {
			case _, ok := <-short.ResultChan():
				if ok {
					t.Fatal("event instead of the end")
				}
			case <-time.After(10 * time.Second):
				t.Fatal("timeoutSeconds did not end the watch")
			}
		})
	}
}

func TestPatches(t *testing.T) {
	c := apitest.Start(t, nil)
	for name, cs := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			ds := cs.AppsV1().Deployments(name)
			two := int32(2)
			d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{Replicas: &two,
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: pod("x").Spec}}}
			made, err := ds.Create(ctx, d, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if made.Generation != 1 || made.Spec.Strategy.Type == "" {
				t.Fatalf("defaults and generation: %d %q", made.Generation, made.Spec.Strategy.Type)
			}
			p, err := ds.Patch(ctx, "d", types.StrategicMergePatchType, []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"nginx"},{"name":"e","image":"y"}]}}}}`), metav1.PatchOptions{})
			if err != nil || len(p.Spec.Template.Spec.Containers) != 2 || p.Generation != 2 {
				t.Fatalf("strategic: %v %v", p, err)
			}
			p, err = ds.Patch(ctx, "d", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
			if err != nil || p.Labels["x"] != "y" || p.Generation != 2 {
				t.Fatalf("merge: %v %v", p, err)
			}
			p, err = ds.Patch(ctx, "d", types.JSONPatchType, []byte(`[{"op":"test","path":"/spec/replicas","value":2},{"op":"replace","path":"/spec/replicas","value":5}]`), metav1.PatchOptions{})
			if err != nil || *p.Spec.Replicas != 5 {
				t.Fatalf("json: %v %v", p, err)
			}
			if _, err := ds.Patch(ctx, "d", types.JSONPatchType, []byte(`[{"op":"test","path":"/spec/replicas","value":2}]`), metav1.PatchOptions{}); apierrors.ReasonForError(err) != metav1.StatusReasonInvalid {
				t.Fatalf("test that does not hold: %v", err)
			}
			if _, err := ds.Patch(ctx, "d", types.MergePatchType, []byte(`{"metadata":{"resourceVersion":"1"}}`), metav1.PatchOptions{}); !apierrors.IsConflict(err) {
				t.Fatalf("patch with a stale version: %v", err)
			}
			if _, err := ds.Patch(ctx, "d", types.PatchType("text/x"), []byte(`{}`), metav1.PatchOptions{}); !apierrors.IsUnsupportedMediaType(err) {
				t.Fatalf("unknown patch type: %v", err)
			}
			sc, err := ds.GetScale(ctx, "d", metav1.GetOptions{})
			if err != nil || sc.Spec.Replicas != 5 || sc.Status.Selector != "a=b" {
				t.Fatalf("scale: %v %v", sc, err)
			}
			sc, err = ds.UpdateScale(ctx, "d", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: name}, Spec: autoscalingv1.ScaleSpec{Replicas: 3}}, metav1.UpdateOptions{})
			if err != nil || sc.Spec.Replicas != 3 {
				t.Fatalf("update scale: %v %v", sc, err)
			}
			got, _ := ds.Get(ctx, "d", metav1.GetOptions{})
			got.Status.Replicas = 3
			got.Spec.Paused = true
			st, err := ds.UpdateStatus(ctx, got, metav1.UpdateOptions{})
			if err != nil || st.Status.Replicas != 3 || st.Spec.Paused {
				t.Fatalf("status door: %+v %v", st, err)
			}
		})
	}
}

func TestFinalizersGraceAndPropagation(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	cms := cs.CoreV1().ConfigMaps("n")
	cm := configMap("f", "1")
	cm.Finalizers = []string{"x.io/hold"}
	if _, err := cms.Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cms.Delete(ctx, "f", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := cms.Get(ctx, "f", metav1.GetOptions{})
	if err != nil || got.DeletionTimestamp == nil || got.DeletionGracePeriodSeconds == nil || *got.DeletionGracePeriodSeconds != 0 {
		t.Fatalf("marked: %+v %v", got, err)
	}
	got.Finalizers = nil
	if _, err := cms.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Get(ctx, "f", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("last finalizer gone: %v", err)
	}
	fg := metav1.DeletePropagationForeground
	cms.Create(ctx, configMap("g", "1"), metav1.CreateOptions{})
	if err := cms.Delete(ctx, "g", metav1.DeleteOptions{PropagationPolicy: &fg}); err != nil {
		t.Fatal(err)
	}
	if got, err := cms.Get(ctx, "g", metav1.GetOptions{}); err != nil || len(got.Finalizers) != 1 || got.Finalizers[0] != "foregroundDeletion" {
		t.Fatalf("foreground: %+v %v", got, err)
	}
	pods := cs.CoreV1().Pods("n")
	if _, err := pods.Create(ctx, pod("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	if err := pods.Bind(ctx, b, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := pods.Bind(ctx, b, metav1.CreateOptions{}); !apierrors.IsConflict(err) || err.Error() != `Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n1"` {
		t.Fatalf("second bind: %v", err)
	}
	if err := pods.Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := pods.Get(ctx, "p", metav1.GetOptions{})
	if err != nil || p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 30 || p.Spec.NodeName != "n1" {
		t.Fatalf("graceful: %+v %v", p, err)
	}
	zero := int64(0)
	if err := pods.Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(ctx, "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Fatalf("forced: %v", err)
	}
}

// call sends one request as admin.
func call(t *testing.T, c *apitest.Cluster, method, path, accept, contentType, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, c.HTTP.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer admin")
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.HTTP.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(data)
}

func TestFieldValidation(t *testing.T) {
	c := apitest.Start(t, nil)
	const doc = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"b"},"foo":1}`
	path := "/api/v1/namespaces/n/configmaps"
	code, h, body := call(t, c, "POST", path+"?fieldValidation=Strict", "", "application/json", doc)
	if want := `ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"foo\"`; code != 400 || !strings.Contains(body, want) {
		t.Fatalf("strict: %d %s", code, body)
	}
	code, h, body = call(t, c, "POST", path, "", "application/json", doc)
	if code != 201 || h.Get("Warning") != `299 - "unknown field \"foo\""` {
		t.Fatalf("warn: %d %v %s", code, h, body)
	}
	code, h, _ = call(t, c, "PUT", path+"/x?fieldValidation=Ignore", "", "application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\nfoo: 1\n")
	if code != 200 || h.Get("Warning") != "" {
		t.Fatalf("ignore: %d %v", code, h)
	}
	code, _, body = call(t, c, "POST", path, "", "application/json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":3}}`)
	if code != 400 || !strings.Contains(body, `ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field`) {
		t.Fatalf("wrong type: %d %s", code, body)
	}
	code, _, body = call(t, c, "POST", path, "", "application/json", `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"y"}}`)
	if code != 400 || !strings.Contains(body, "the API version in the data (apps/v1) does not match the expected API version (v1)") {
		t.Fatalf("wrong kind: %d %s", code, body)
	}
	code, _, body = call(t, c, "POST", path, "", "application/json", strings.Repeat(" ", 3<<20+1))
	if code != 413 {
		t.Fatalf("too large: %d %s", code, body)
	}
}

func TestNegotiation(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	if _, err := cs.CoreV1().ConfigMaps("n").Create(ctx, configMap("a", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path := "/api/v1/namespaces/n/configmaps"
	for _, test := range []struct {
		accept, method, path, contentType string
		code                              int
		wantType, want                    string
	}{
		{"application/yaml", "GET", path + "/a", "", 200, "application/yaml", "kind: ConfigMap\n"},
		{"application/json;as=Table;g=meta.k8s.io;v=v1", "GET", path, "", 200, "application/json", `"kind":"Table"`},
		{"application/json;as=Table;g=meta.k8s.io;v=v1,application/json", "GET", path + "?includeObject=None", "", 200, "application/json", `"object":null`},
		{"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "GET", path, "", 200, "application/json", `"kind":"PartialObjectMetadata"`},
		{"application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "GET", path + "/a", "", 200, "application/json", `"kind":"PartialObjectMetadata"`},
		{"text/html", "GET", path, "", 406, "application/json", `only the following media types are accepted`},
		{"", "POST", path, "text/plain", 415, "application/json", `the body of the request was in an unknown format - accepted media types include: application/json`},
		{"", "GET", "/api/v1/namespaces/n/nothing", "", 404, "application/json", `the server could not find the requested resource`},
		{"", "GET", "/apis/apps/v1beta1/deployments", "", 404, "application/json", `the server could not find the requested resource`},
		{"", "PUT", path, "application/json", 405, "application/json", `the server does not allow this method on the requested resource`},
		{"", "GET", path + "/zz", "", 404, "application/json", `configmaps \"zz\" not found`},
		{"application/json", "GET", path + "?pretty=true", "", 200, "application/json", "\n  \"kind\": \"ConfigMapList\""},
	} {
		code, h, body := call(t, c, test.method, test.path, test.accept, test.contentType, "x")
		if code != test.code || h.Get("Content-Type") != test.wantType || !strings.Contains(body, test.want) {
			t.Errorf("%s %s (%s): %d %s %s", test.method, test.path, test.accept, code, h.Get("Content-Type"), body)
		}
	}
	_, _, body := call(t, c, "GET", "/api/v1/nodes/x", "", "", "")
	var st metav1.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || st.Kind != "Status" || st.Details.Name != "x" || st.Details.Kind != "nodes" || st.Code != 404 {
		t.Fatalf("status body: %s", body)
	}
}

func TestForbiddenAndUnauthorized(t *testing.T) {
	c := apitest.Start(t, nil)
	cfg := rest.CopyConfig(c.Admin)
	cfg.BearerToken = "u"
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = cs.CoreV1().Pods("default").Get(ctx, "x", metav1.GetOptions{})
	if want := `pods "x" is forbidden: User "u" cannot get resource "pods" in API group "" in the namespace "default"`; err == nil || err.Error() != want {
		t.Fatalf("forbidden: %v", err)
	}
	_, err = cs.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if want := `nodes is forbidden: User "u" cannot list resource "nodes" in API group "" at the cluster scope`; err == nil || err.Error() != want {
		t.Fatalf("forbidden: %v", err)
	}
	cfg = rest.CopyConfig(c.Admin)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "eve"}
	cs, _ = kubernetes.NewForConfig(cfg)
	_, err = cs.CoreV1().Pods("default").Get(ctx, "x", metav1.GetOptions{})
	if err == nil || !strings.Contains(err.Error(), `User "eve" cannot get`) {
		t.Fatalf("impersonation: %v", err)
	}
}
