package apiserver_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/csaupgrade"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/internal/await"
)

// owned is who owns what: "manager Operation subresource {fields}", in the object's order.
func owned(obj metav1.Object) []string {
	var out []string
	for _, e := range obj.GetManagedFields() {
		out = append(out, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", e.Manager, e.Operation, e.Subresource, e.FieldsV1.GetRawString())), " "))
	}
	return out
}

func wantOwned(t *testing.T, obj metav1.Object, want ...string) {
	t.Helper()
	have := owned(obj)
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("owners\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

func applied(manager string) metav1.PatchOptions { return metav1.PatchOptions{FieldManager: manager} }

func forced(manager string) metav1.PatchOptions {
	yes := true
	return metav1.PatchOptions{FieldManager: manager, Force: &yes}
}

// Every writer is noted (Kubernetes docs, "Server-Side Apply": managers, conflicts,
// transferring and clearing of ownership).
func TestOwners(t *testing.T) {
	clock := apitest.NewClock()
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Clock = clock })
	for name, cs := range clients(t, c) {
		cms := cs.CoreV1().ConfigMaps(name)
		patch := func(name string, kind types.PatchType, doc string, o metav1.PatchOptions) (*corev1.ConfigMap, error) {
			return cms.Patch(ctx, name, kind, []byte(doc), o)
		}
		doc := func(data string) string {
			return `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":` + data + `}`
		}
		t.Run(name, func(t *testing.T) {
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c", Labels: map[string]string{"l": "1"}}, Data: map[string]string{"a": "1", "b": "1"}}
			made, err := cms.Create(ctx, cm, metav1.CreateOptions{FieldManager: "kubectl-create"})
			if err != nil {
				t.Fatal(err)
			}
			wantOwned(t, made, `kubectl-create Update {"f:data":{".":{},"f:a":{},"f:b":{}},"f:metadata":{"f:labels":{".":{},"f:l":{}}}}`)
			if e := made.ManagedFields[0]; e.APIVersion != "v1" || e.FieldsType != "FieldsV1" || e.Time == nil || !e.Time.Equal(&made.CreationTimestamp) {
				t.Errorf("entry %+v of an object of %v", e, made.CreationTimestamp)
			}
			// Without an option the client's name says who.
			named, err := cms.Create(ctx, configMap("agent", "1"), metav1.CreateOptions{})
			if err != nil || named.ManagedFields[0].Manager != "apiserver.test" {
				t.Fatalf("%v %v", owned(named), err)
			}
			// An apply of another value conflicts with who made it; with force the field moves.
			_, err = patch("c", types.ApplyYAMLPatchType, doc(`{"a":"2"}`), applied("me"))
			if !apierrors.IsConflict(err) || err.Error() != `Apply failed with 1 conflict: conflict with "kubectl-create" using v1: .data.a` {
				t.Fatalf("%v", err)
			}
			got, err := patch("c", types.ApplyYAMLPatchType, doc(`{"a":"2","b":"1"}`), forced("me"))
			if err != nil {
				t.Fatal(err)
			}
			wantOwned(t, got, `me Apply {"f:data":{"f:a":{},"f:b":{}}}`, `kubectl-create Update {"f:data":{".":{},"f:b":{}},"f:metadata":{"f:labels":{".":{},"f:l":{}}}}`)
			// What is applied no more stays while somebody else owns it.
			if got, err = patch("c", types.ApplyYAMLPatchType, doc(`{}`), applied("me")); err != nil || got.Data["a"] != "" || got.Data["b"] != "1" {
				t.Fatalf("%v %v", got, err)
			}
			// An update by the same name is another entry than the apply.
			if got, err = patch("c", types.MergePatchType, `{"data":{"b":"2"}}`, metav1.PatchOptions{FieldManager: "me"}); err != nil {
				t.Fatal(err)
			}
			wantOwned(t, got, `me Apply {"f:data":{}}`, `me Update {"f:data":{"f:b":{}}}`, `kubectl-create Update {"f:data":{},"f:metadata":{"f:labels":{".":{},"f:l":{}}}}`)
			if _, err = patch("c", types.ApplyYAMLPatchType, doc(`{"b":"3"}`), applied("me")); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "me" using v1`) {
				t.Fatalf("%v", err)
			}
			// A write of nothing, and one of what is there, change no time.
			clock.Jump(time.Hour)
			again, err := cms.Update(ctx, got, metav1.UpdateOptions{FieldManager: "somebody"})
			if err != nil || again.ResourceVersion != got.ResourceVersion || len(again.ManagedFields) != len(got.ManagedFields) {
				t.Fatalf("%v %v", again, err)
			}
			// An update that brings no managed fields along keeps them.
			bare := got.DeepCopy()
			bare.ManagedFields, bare.Data["z"] = nil, "1"
			if got, err = cms.Update(ctx, bare, metav1.UpdateOptions{FieldManager: "kubectl-edit"}); err != nil || len(got.ManagedFields) != 4 {
				t.Fatalf("%v %v", owned(got), err)
			}
			// Edited by hand, as who migrates does, and forgotten.
			edited := got.DeepCopy()
			edited.ManagedFields[1].Manager = "other"
			if got, err = cms.Update(ctx, edited, metav1.UpdateOptions{FieldManager: "x"}); err != nil || !strings.Contains(strings.Join(owned(got), "\n"), "other Update") {
				t.Fatalf("%v %v", owned(got), err)
			}
			if got, err = patch("c", types.JSONPatchType, `[{"op":"replace","path":"/metadata/managedFields","value":[{}]}]`, metav1.PatchOptions{}); err != nil || len(got.ManagedFields) != 0 {
				t.Fatalf("%v %v", owned(got), err)
			}
			if got, err = patch("c", types.MergePatchType, `{"data":{"b":"5"}}`, metav1.PatchOptions{FieldManager: "me"}); err != nil || len(got.ManagedFields) != 0 {
				t.Fatalf("%v %v", owned(got), err)
			}
			if _, err = patch("c", types.ApplyYAMLPatchType, doc(`{"b":"6"}`), applied("me")); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `"before-first-apply"`) {
				t.Fatalf("%v", err)
			}
		})
	}
}

// More than ten updaters: the oldest go together.
func TestAncientChanges(t *testing.T) {
	c := apitest.Start(t, nil)
	cms := clients(t, c)["protobuf"].CoreV1().ConfigMaps("n")
	got, err := cms.Create(ctx, configMap("c", "1"), metav1.CreateOptions{FieldManager: "m00"})
	for i := range 14 {
		if err != nil {
			t.Fatal(err)
		}
		got, err = cms.Patch(ctx, "c", types.MergePatchType, fmt.Appendf(nil, `{"data":{"k%d":"v"}}`, i), metav1.PatchOptions{FieldManager: fmt.Sprintf("m%02d", i+1)})
	}
	if err != nil || len(got.ManagedFields) != 10 || !strings.Contains(strings.Join(owned(got), "\n"), "ancient-changes Update") {
		t.Fatalf("%v %v", owned(got), err)
	}
	all := strings.Join(owned(got), "\n")
	for i := range 14 {
		if !strings.Contains(all, fmt.Sprintf(`"f:k%d":{}`, i)) {
			t.Errorf("nobody owns k%d:\n%s", i, all)
		}
	}
}

// From client-side to server-side apply (Kubernetes docs, "Server-Side Apply",
// "Upgrading from client-side apply"): by kubectl, which takes over what it applied last,
// and by who rewrites the entries.
func TestUpgradeFromClientSideApply(t *testing.T) {
	c := apitest.Start(t, nil)
	cms := clients(t, c)["json"].CoreV1().ConfigMaps("n")
	for _, name := range []string{"kubectl", "rewritten"} {
		last := `{"apiVersion":"v1","data":{"a":"1"},"kind":"ConfigMap","metadata":{"annotations":{},"name":"` + name + `","namespace":"n"}}`
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: last}}, Data: map[string]string{"a": "1"}}
		made, err := cms.Create(ctx, cm, metav1.CreateOptions{FieldManager: "kubectl-client-side-apply"})
		if err != nil || made.ManagedFields[0].Manager != "kubectl-client-side-apply" {
			t.Fatal(owned(made), err)
		}
	}
	doc := func(name, a string) []byte {
		return []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"` + name + `"},"data":{"a":"` + a + `"}}`)
	}
	got, err := cms.Patch(ctx, "kubectl", types.ApplyYAMLPatchType, doc("kubectl", "2"), applied("kubectl"))
	if err != nil || got.Data["a"] != "2" || !strings.Contains(got.Annotations[corev1.LastAppliedConfigAnnotation], `"a":"2"`) {
		t.Fatalf("%v %v", got, err)
	}
	live, err := cms.Get(ctx, "rewritten", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rewrite, err := csaupgrade.UpgradeManagedFieldsPatch(live, sets.New("kubectl-client-side-apply"), "me")
	if err != nil {
		t.Fatal(err)
	}
	if got, err = cms.Patch(ctx, "rewritten", types.JSONPatchType, rewrite, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if owners := owned(got); len(owners) != 1 || !strings.HasPrefix(owners[0], "me Apply {") {
		t.Fatalf("%v", owners)
	}
	// A key that is not applied any more goes away, as it was the applier's.
	if got, err = cms.Patch(ctx, "rewritten", types.ApplyYAMLPatchType, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"rewritten"}}`), applied("me")); err != nil || len(got.Data) != 0 {
		t.Fatalf("%v %v", got, err)
	}
}

func deployment(t *testing.T, cs *kubernetes.Clientset) *appsv1.Deployment {
	t.Helper()
	two := int32(2)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: pod("x").Spec}}}
	made, err := cs.AppsV1().Deployments("n").Create(ctx, d, metav1.CreateOptions{FieldManager: "maker"})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// Doors own what they write: the status by its subresource, the replicas by scale.
func TestOwnersOfDoors(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	ds := cs.AppsV1().Deployments("n")
	made := deployment(t, cs)
	find := func(d metav1.Object, head string) string {
		for _, o := range owned(d) {
			if strings.HasPrefix(o, head) {
				return o
			}
		}
		return ""
	}
	// Defaults are the maker's, the status is not.
	if o := find(made, "maker Update {"); !strings.Contains(o, `"f:replicas":{}`) || !strings.Contains(o, `"f:terminationGracePeriodSeconds":{}`) || strings.Contains(o, "f:status") ||
		!strings.Contains(o, `"f:containers":{"k:{\"name\":\"c\"}":{".":{},`) {
		t.Errorf("%v", owned(made))
	}
	made.Status.Replicas, made.Labels = 1, map[string]string{"no": "no"}
	got, err := ds.UpdateStatus(ctx, made, metav1.UpdateOptions{FieldManager: "kube-controller-manager"})
	if err != nil || find(got, "kube-controller-manager Update status {") != `kube-controller-manager Update status {"f:status":{"f:replicas":{}}}` {
		t.Fatalf("%v %v", owned(got), err)
	}
	// The main door does not own what it does not write.
	got.Status.Replicas, got.Spec.MinReadySeconds = 7, 3
	if got, err = ds.Update(ctx, got, metav1.UpdateOptions{FieldManager: "editor"}); err != nil || find(got, "editor") != `editor Update {"f:spec":{"f:minReadySeconds":{}}}` || got.Status.Replicas != 1 {
		t.Fatalf("%v %v", owned(got), err)
	}
	// Scaling takes the replicas.
	sc, err := ds.GetScale(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sc.Spec.Replicas = 5
	if _, err = ds.UpdateScale(ctx, "web", sc, metav1.UpdateOptions{FieldManager: "scaler"}); err != nil {
		t.Fatal(err)
	}
	got, _ = ds.Get(ctx, "web", metav1.GetOptions{})
	if find(got, "scaler") != `scaler Update scale {"f:spec":{"f:replicas":{}}}` || strings.Contains(find(got, "maker"), `"f:replicas"`) {
		t.Errorf("%v", owned(got))
	}
	// An apply of the scale conflicts with that, and takes them by force.
	doc := []byte(`{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"web","namespace":"n"},"spec":{"replicas":6}}`)
	if _, err = ds.Patch(ctx, "web", types.ApplyYAMLPatchType, doc, applied("me"), "scale"); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "scaler" with subresource "scale" using autoscaling/v1`) {
		t.Errorf("%v", err)
	}
	raw := cs.AppsV1().RESTClient().Patch(types.ApplyYAMLPatchType).Namespace("n").Resource("deployments").Name("web").SubResource("scale").Param("fieldManager", "me").Param("force", "true").Body(doc).Do(ctx)
	if err := raw.Error(); err != nil {
		t.Fatal(err)
	}
	got, _ = ds.Get(ctx, "web", metav1.GetOptions{})
	if *got.Spec.Replicas != 6 || find(got, "me") != `me Apply scale {"f:spec":{"f:replicas":{}}}` || find(got, "scaler") != "" {
		t.Errorf("%d %v", *got.Spec.Replicas, owned(got))
	}
	// A pod that is bound has no new owner; what admission adds is nobody's.
	p, err := cs.CoreV1().Pods("n").Create(ctx, pod("p"), metav1.CreateOptions{FieldManager: "maker"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.CoreV1().Pods("n").Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Kind: "Node", Name: "node"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bound, _ := cs.CoreV1().Pods("n").Get(ctx, "p", metav1.GetOptions{})
	if !slices.Equal(owned(bound), owned(p)) || len(owned(p)) != 1 || strings.Contains(owned(p)[0], "f:status") {
		t.Errorf("%v, then %v", owned(p), owned(bound))
	}
}

// Custom objects are tracked by their schema: lists by keys, sets, the doors.
func TestOwnersOfCustomObjects(t *testing.T) {
	c := apitest.Start(t, nil)
	rc := clients(t, c)["json"].CoreV1().RESTClient()
	const definition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"as.x.io"},"spec":{"group":"x.io","scope":"Namespaced",
"names":{"kind":"A","plural":"as"},"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{"specReplicasPath":".spec.size","statusReplicasPath":".status.size"}},
"schema":{"openAPIV3Schema":{"type":"object","properties":{
"spec":{"type":"object","properties":{"size":{"type":"integer"},"colour":{"type":"string","default":"red"},
"ports":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["port"],"items":{"type":"object","required":["port"],"properties":{"port":{"type":"integer"},"name":{"type":"string"}}}}}},
"status":{"type":"object","properties":{"size":{"type":"integer"}}}}}}}]}}`
	if err := rc.Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").Body([]byte(definition)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	const all = "/apis/x.io/v1/namespaces/n/as"
	read := func(r rest.Result) (*unstructured.Unstructured, error) {
		if err := r.Error(); err != nil {
			return nil, err // with the server's words
		}
		u := new(unstructured.Unstructured)
		b, err := r.Raw()
		if err == nil {
			err = json.Unmarshal(b, &u.Object)
		}
		return u, err
	}
	await.Nil(t, 30*time.Second, "the kind is served", func() error {
		return rc.Get().AbsPath(all).Do(ctx).Error()
	})
	u, err := read(rc.Post().AbsPath(all).Param("fieldManager", "maker").Body([]byte(`{"apiVersion":"x.io/v1","kind":"A","metadata":{"name":"a"},"spec":{"size":1,"ports":[{"port":80,"name":"http"}]}}`)).Do(ctx))
	if err != nil {
		t.Fatal(err)
	}
	wantOwned(t, u, `maker Update {"f:spec":{".":{},"f:colour":{},"f:ports":{".":{},"k:{\"port\":80}":{".":{},"f:name":{},"f:port":{}}},"f:size":{}}}`)
	patch := func(kind types.PatchType, sub, manager, doc string, force bool) (*unstructured.Unstructured, error) {
		r := rc.Patch(kind).AbsPath(all+"/a"+sub).Param("fieldManager", manager)
		if force {
			r = r.Param("force", "true")
		}
		return read(r.Body([]byte(doc)).Do(ctx))
	}
	if _, err = patch(types.ApplyYAMLPatchType, "", "me", `{"apiVersion":"x.io/v1","kind":"A","metadata":{"name":"a"},"spec":{"ports":[{"port":80,"name":"web"}]}}`, false); !apierrors.IsConflict(err) ||
		!strings.Contains(err.Error(), `conflict with "maker" using x.io/v1: .spec.ports[port=80].name`) {
		t.Fatalf("%v", err)
	}
	if u, err = patch(types.ApplyYAMLPatchType, "", "me", `{"apiVersion":"x.io/v1","kind":"A","metadata":{"name":"a"},"spec":{"ports":[{"port":81,"name":"web"}]}}`, false); err != nil {
		t.Fatal(err)
	}
	if u, err = patch(types.MergePatchType, "/status", "controller", `{"status":{"size":1},"spec":{"size":9},"metadata":{"labels":{"no":"no"}}}`, false); err != nil {
		t.Fatal(err)
	}
	wantOwned(t, u, `maker Update {"f:spec":{".":{},"f:colour":{},"f:ports":{".":{},"k:{\"port\":80}":{".":{},"f:name":{},"f:port":{}}},"f:size":{}}}`,
		`me Apply {"f:spec":{"f:ports":{"k:{\"port\":81}":{".":{},"f:name":{},"f:port":{}}}}}`, `controller Update status {"f:status":{".":{},"f:size":{}}}`)
	if err := rc.Patch(types.MergePatchType).AbsPath(all+"/a/scale").Param("fieldManager", "scaler").Body([]byte(`{"spec":{"replicas":4}}`)).Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	if u, err = patch(types.MergePatchType, "", "editor", `{"spec":{"colour":"blue","ports":[{"port":81,"name":"web"}]}}`, false); err != nil {
		t.Fatal(err)
	}
	wantOwned(t, u, `maker Update {"f:spec":{".":{},"f:ports":{}}}`, `me Apply {"f:spec":{"f:ports":{"k:{\"port\":81}":{".":{},"f:name":{},"f:port":{}}}}}`,
		`controller Update status {"f:status":{".":{},"f:size":{}}}`, `scaler Update scale {"f:spec":{"f:size":{}}}`, `editor Update {"f:spec":{"f:colour":{}}}`)
	// Applying less takes away.
	if u, err = patch(types.ApplyYAMLPatchType, "", "me", `{"apiVersion":"x.io/v1","kind":"A","metadata":{"name":"a"}}`, false); err != nil {
		t.Fatal(err)
	}
	if ports, _, _ := unstructured.NestedSlice(u.Object, "spec", "ports"); len(ports) != 0 {
		t.Errorf("ports %v", ports)
	}
}

// A name that an object which is going still holds is taken, and says why.
func TestCreateWhileDeleted(t *testing.T) {
	c := apitest.Start(t, nil)
	cms := clients(t, c)["json"].CoreV1().ConfigMaps("n")
	cm := configMap("c", "1")
	cm.Finalizers = []string{"x.io/f"}
	if _, err := cms.Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cms.Create(ctx, cm, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || err.Error() != `configmaps "c" already exists` {
		t.Errorf("%v", err)
	}
	if err := cms.Delete(ctx, "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, dry := range [][]string{nil, {metav1.DryRunAll}} {
		if _, err := cms.Create(ctx, cm, metav1.CreateOptions{DryRun: dry}); !apierrors.IsAlreadyExists(err) || err.Error() != `object is being deleted: configmaps "c" already exists` {
			t.Errorf("dry run %v: %v", dry, err)
		}
	}
}
