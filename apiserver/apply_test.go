package apiserver_test

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/apiserver/apitest"
)

func TestServerSideApply(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	ds := cs.AppsV1().Deployments("n")
	const doc = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
`
	apply := func(text, manager string, force bool) (*appsv1.Deployment, error) {
		return ds.Patch(ctx, "web", types.ApplyYAMLPatchType, []byte(text), metav1.PatchOptions{FieldManager: manager, Force: &force})
	}
	made, err := apply(doc, "a", false)
	if err != nil || *made.Spec.Replicas != 2 || made.Generation != 1 || len(made.ManagedFields) != 1 || made.ManagedFields[0].Manager != "a" {
		t.Fatalf("create by apply: %+v %v", made, err)
	}
	same, err := apply(doc, "a", false)
	if err != nil || same.ResourceVersion != made.ResourceVersion {
		t.Fatalf("apply again must not write: %v %v", same, err)
	}
	_, err = apply(strings.Replace(doc, "replicas: 2", "replicas: 3", 1), "b", false)
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "a": .spec.replicas`) {
		t.Fatalf("another manager: %v", err)
	}
	forced, err := apply(strings.Replace(doc, "replicas: 2", "replicas: 3", 1), "b", true)
	if err != nil || *forced.Spec.Replicas != 3 || forced.Generation != 2 {
		t.Fatalf("forced: %v %v", forced, err)
	}
	// A field that its only manager no longer names goes away.
	withLabel := strings.Replace(doc, "labels: {app: web}}\nspec", "labels: {app: web, x: z}}\nspec", 1)
	withLabel = strings.Replace(withLabel, "replicas: 2\n", "replicas: 3\n", 1)
	if got, err := apply(withLabel, "a", true); err != nil || got.Labels["x"] != "z" {
		t.Fatalf("%v %v", got, err)
	}
	if got, err := apply(strings.Replace(withLabel, ", x: z", "", 1), "a", true); err != nil || got.Labels["x"] != "" || got.Labels["app"] != "web" {
		t.Fatalf("%v %v", got, err)
	}
	// An update is tracked under its own manager.
	got, _ := ds.Get(ctx, "web", metav1.GetOptions{})
	got.Spec.Paused = true
	got, err = ds.Update(ctx, got, metav1.UpdateOptions{FieldManager: "editor"})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range got.ManagedFields {
		found = found || m.Manager == "editor" && m.Operation == metav1.ManagedFieldsOperationUpdate && strings.Contains(string(m.FieldsV1.Raw), "f:paused")
	}
	if !found {
		t.Fatalf("update is not tracked: %+v", got.ManagedFields)
	}
	if _, err := apply(strings.Replace(doc, "replicas: 2", "nonsense: 2", 1), "a", true); err == nil || !strings.Contains(err.Error(), "field not declared in schema") {
		t.Fatalf("unknown field: %v", err)
	}
	if _, err := ds.Patch(ctx, "web", types.ApplyYAMLPatchType, []byte(doc), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Fatalf("apply without a manager: %v", err)
	}
	// What was created is its maker's; what was made before managers were noted, or was
	// told to forget them, is nobody's until an apply comes.
	cm, err := cs.CoreV1().ConfigMaps("n").Create(ctx, configMap("plain", "1"), metav1.CreateOptions{FieldManager: "kubectl-create"})
	if err != nil || len(cm.ManagedFields) != 1 || cm.ManagedFields[0].Manager != "kubectl-create" {
		t.Fatalf("%v %v", cm, err)
	}
	cm, err = cs.CoreV1().ConfigMaps("n").Patch(ctx, "plain", types.MergePatchType, []byte(`{"metadata":{"managedFields":[{}]}}`), metav1.PatchOptions{})
	if err != nil || len(cm.ManagedFields) != 0 {
		t.Fatalf("%v %v", cm, err)
	}
	force := true
	cm, err = cs.CoreV1().ConfigMaps("n").Patch(ctx, "plain", types.ApplyYAMLPatchType, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"plain"},"data":{"z":"1"}}`), metav1.PatchOptions{FieldManager: "a", Force: &force})
	if err != nil || cm.Data["z"] != "1" || cm.Data["k"] != "1" || len(cm.ManagedFields) != 2 || cm.ManagedFields[1].Manager != "before-first-apply" {
		t.Fatalf("%+v %v", cm, err)
	}
	var _ *corev1.ConfigMap = cm
}
