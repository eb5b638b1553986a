package envtest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/envtest"
)

const manifests = `
# comments alone are no document
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: one}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: two, namespace: kube-system}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.sea.example.com}
spec:
  group: sea.example.com
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {sails: {type: integer, maximum: 9}}}
`

func TestManifests(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(manifests), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.yml"), []byte("apiVersion: sea.example.com/v1\nkind: Boat\nmetadata: {name: proa}\nspec: {sails: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cp := envtest.Start(t, envtest.CRDs(filepath.Join(dir, "a.yaml")))
	c := client(t, cp.Config)
	if _, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "one", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("CRDs took more than definitions: %v", err)
	}
	cp = envtest.Start(t, envtest.Manifests(dir))
	c = client(t, cp.Config)
	for ns, name := range map[string]string{"default": "one", "kube-system": "two"} {
		if _, err := c.CoreV1().ConfigMaps(ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	boat, err := c.RESTClient().Get().AbsPath("/apis/sea.example.com/v1/namespaces/default/boats/proa").DoRaw(t.Context())
	if err != nil || !strings.Contains(string(boat), `"sails":1`) {
		t.Errorf("the boat: %s, %v", boat, err)
	}
}

// A kind that is not served is an error.
func TestUnknownKind(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: sea.example.com/v1\nkind: Ship\nmetadata: {name: s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := envtest.Launch(t.Context(), envtest.Manifests(bad)); err == nil || !strings.Contains(err.Error(), "does not serve this kind") {
		t.Errorf("a kind that is not served: %v", err)
	}
}
