package apiserver_test

import (
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/apiserver/apitest"
)

// Every served version of every kind can be applied: definitions, whose structure
// lies in another module, and versions that are stored as another one.
func TestApplyOtherKinds(t *testing.T) {
	c := apitest.Start(t, nil)
	rc := clients(t, c)["json"].CoreV1().RESTClient()
	apply := func(path, manager, doc string) (string, error) {
		r := rc.Patch(types.ApplyYAMLPatchType).AbsPath(path).Param("fieldManager", manager).Body([]byte(doc)).Do(ctx)
		if err := r.Error(); err != nil {
			return "", err
		}
		b, err := r.Raw()
		return string(b), err
	}
	for name, tc := range map[string]struct{ path, doc, from, to, field string }{
		"definition": {"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/as.x.io", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: as.x.io}
spec:
  group: x.io
  scope: Cluster
  names: {kind: A, plural: as}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, description: one}}}]
`, "description: one", "description: two", `.spec.versions`},
		"autoscaler v1": {"/apis/autoscaling/v1/namespaces/n/horizontalpodautoscalers/h", `
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: h}
spec: {maxReplicas: 3, targetCPUUtilizationPercentage: 60, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
`, "Percentage: 60", "Percentage: 61", ".spec.targetCPUUtilizationPercentage"},
		"event of its own group": {"/apis/events.k8s.io/v1/namespaces/n/events/e", `
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: e}
eventTime: "2026-01-02T03:04:05.000000Z"
reportingController: x.io/c
reportingInstance: i
action: Do
reason: Done
type: Normal
note: one
regarding: {kind: Pod, namespace: "n", name: p}
`, "note: one", "note: two", ".note"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := apply(tc.path, "a", tc.doc)
			if err != nil || !strings.Contains(got, `"manager":"a"`) {
				t.Fatalf("create: %s %v", got, err)
			}
			other := strings.Replace(tc.doc, tc.from, tc.to, 1)
			if other == tc.doc {
				t.Fatal("the other document is the same")
			}
			if _, err := apply(tc.path, "b", other); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "a"`) || !strings.Contains(err.Error(), tc.field) {
				t.Errorf("another manager: %v", err)
			}
		})
	}
}

// A JSON patch that does not hold says so as upstream does: 422 about no object.
func TestJSONPatchThatDoesNotHold(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	cm, err := cs.CoreV1().ConfigMaps("n").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = cs.CoreV1().ConfigMaps("n").Patch(ctx, cm.Name, types.JSONPatchType, []byte(`[{"op":"test","path":"/metadata/name","value":"m"}]`), metav1.PatchOptions{})
	se, ok := err.(*apierrors.StatusError)
	if !ok || se.ErrStatus.Code != http.StatusUnprocessableEntity || se.ErrStatus.Details == nil || se.ErrStatus.Details.Kind != "" || se.ErrStatus.Details.Name != "" {
		t.Errorf("%#v", err)
	}
}
