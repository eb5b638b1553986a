package apiserver_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"proa.dev/apiserver/apitest"
)

// TestKubectl talks to the handler with whatever kubectl is installed; machines
// without one say so.
func TestKubectl(t *testing.T) {
	bin, err := exec.LookPath("kubectl")
	if err != nil {
		t.Log("no kubectl on this machine: nothing to run")
		return
	}
	c := apitest.Start(t, nil)
	dir := t.TempDir()
	manifest := filepath.Join(dir, "m.yaml")
	if err := os.WriteFile(manifest, []byte(`apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: web}}
data: {color: blue}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(bin, append([]string{"--server=" + c.HTTP.URL, "--token=admin", "--insecure-skip-tls-verify", "--cache-dir=" + filepath.Join(dir, "cache")}, args...)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null", "HOME="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	expect := func(want string, args ...string) {
		t.Helper()
		if out := kubectl(args...); !strings.Contains(out, want) {
			t.Errorf("kubectl %s: want %q in\n%s", strings.Join(args, " "), want, out)
		}
	}
	expect("configmap/settings created", "apply", "-f", manifest)
	expect("deployment.apps/web unchanged", "apply", "-f", manifest)
	expect("web ", "get", "deploy")
	expect("deployment.apps/web", "get", "deploy,cm", "-o", "name")
	expect("color: blue", "get", "cm", "settings", "-o", "yaml")
	expect("scaled", "scale", "deploy/web", "--replicas=5")
	expect("replicas: 5", "get", "deploy", "web", "-o", "yaml")
	expect("labeled", "label", "cm", "settings", "x=y")
	expect("x=y", "get", "cm", "settings", "--show-labels")
	expect("image updated", "set", "image", "deploy/web", "c=nginx:2")
	expect("Replicas:", "describe", "deploy", "web")
	expect("KIND:       Deployment", "explain", "deployment")
	expect("FIELD: containers", "explain", "pod.spec.containers")
	expect("pods ", "api-resources")
	expect("apps/v1", "api-versions")
	expect("v1.37", "version")
	expect("yes", "auth", "can-i", "create", "pods")
	expect("ok", "get", "--raw", "/readyz")
	expect("serverside-applied", "apply", "--server-side", "--force-conflicts", "-f", manifest)
	expect("serverside-applied", "apply", "--server-side", "--dry-run=server", "-f", manifest)
	expect("patched", "patch", "cm", "settings", "-p", `{"data":{"size":"xl"}}`)
	expect("No resources found", "get", "events")
	expect("dry run", "apply", "--dry-run=server", "-f", manifest)
	expect("deleted", "delete", "-f", manifest, "--wait=false")
	expect("No resources found", "get", "cm,deploy")
	fmt.Fprintln(t.Output(), "kubectl session done")
}
