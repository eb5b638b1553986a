package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"proa.dev/internal/await"
)

// The one-liners of every introduction.
func TestOneLiners(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	k := func(args ...string) string { t.Helper(); return b.kubectl(t, ns, args...) }

	mustHold(t, k("run", "one", "--image=proa/busybox:1", "--labels=a=b", "--", "sleep", "1000"), "pod/one created")
	mustHold(t, k("create", "deployment", "web", "--image=proa/web:v1", "--replicas=2", "--port=8080"), "deployment.apps/web created")
	mustHold(t, k("expose", "deployment", "web", "--port=80", "--target-port=8080"), "service/web exposed")
	mustHold(t, k("rollout", "status", "deployment/web", "--timeout=60s"), "successfully rolled out")
	mustHold(t, k("wait", "pod/one", "--for=condition=Ready", "--timeout=60s"), "condition met")
	mustHold(t, k("get", "deploy,rs,pods,svc,endpointslices", "-o", "wide"), "2/2", "Running", "ClusterIP", "proa/web:v1", "READINESS GATES", "8080")
	mustHold(t, k("get", "pods", "--show-labels"), "a=b", "app=web")
	mustHold(t, k("get", "pod", "one", "-o", "yaml"), "phase: Running", "qosClass: BestEffort")
	mustHold(t, k("get", "nodes"), "Ready", "v1.37")
	mustHold(t, k("describe", "pod", "one"), "Scheduled", "Created", "Started", "QoS Class", "BestEffort")
	mustHold(t, k("describe", "deployment", "web"), "2 desired", "ScalingReplicaSet", "RollingUpdateStrategy")
	mustHold(t, k("describe", "service", "web"), "Endpoints:", ":8080")
	mustHold(t, b.kubectl(t, "", "describe", "node"), "Allocatable", "Non-terminated Pods", "Conditions")

	mustHold(t, k("label", "pod", "one", "color=blue"), "labeled")
	mustHold(t, k("get", "pods", "-l", "color=blue", "-o", "name"), "pod/one")
	mustHold(t, k("label", "pod", "one", "color-"), "unlabeled")
	if out := k("get", "pods", "-l", "color", "-o", "name"); out != "" {
		t.Errorf("label is still there: %q", out)
	}
	mustHold(t, k("annotate", "pod", "one", "note=hello"), "annotated")
	mustHold(t, k("patch", "deployment", "web", "-p", `{"spec":{"template":{"metadata":{"annotations":{"x":"1"}}}}}`), "patched")
	mustHold(t, k("patch", "deployment", "web", "--type=json", "-p", `[{"op":"replace","path":"/spec/replicas","value":3}]`), "patched")
	mustHold(t, k("rollout", "status", "deployment/web", "--timeout=60s"), "successfully rolled out")

	// Images, history, undo, pause, restart, scale.
	mustHold(t, k("set", "image", "deployment/web", "web=proa/web:v2"), "image updated")
	k("rollout", "status", "deployment/web", "--timeout=60s")
	mustHold(t, k("rollout", "history", "deployment/web"), "REVISION", "3")
	mustHold(t, k("rollout", "undo", "deployment/web"), "rolled back")
	k("rollout", "status", "deployment/web", "--timeout=60s")
	if img := k("get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.containers[0].image}"); strings.Contains(img, "v2") {
		await.Nil(t, 40*time.Second, "the old pods gone", func() error {
			if img = k("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.containers[0].image}"); strings.Contains(img, "v2") {
				return fmt.Errorf("images: %s", img)
			}
			return nil
		})
	}
	k("rollout", "pause", "deployment/web")
	k("set", "env", "deployment/web", "NEW=1")
	if r := b.tryKubectl(ns, "rollout", "undo", "deployment/web"); r.code == 0 {
		t.Errorf("undo of a paused deployment went through: %s", r)
	}
	k("rollout", "resume", "deployment/web")
	k("rollout", "restart", "deployment/web")
	k("rollout", "status", "deployment/web", "--timeout=60s")
	mustHold(t, k("scale", "deployment/web", "--replicas=1"), "scaled")
	await.Nil(t, 40*time.Second, "one pod", func() error {
		if n := len(strings.Fields(k("get", "pods", "-l", "app=web", "-o", "name"))); n != 1 {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
	if r := b.tryKubectl(ns, "scale", "deployment/web", "--current-replicas=7", "--replicas=2"); r.code == 0 {
		t.Errorf("scale with a wrong --current-replicas went through: %s", r)
	}
	mustHold(t, k("autoscale", "--help"), "autoscaler")
	mustHold(t, k("explain", "deployment.spec.strategy"), "rollingUpdate", "FIELDS")
	mustHold(t, k("api-resources"), "deployments", "apps/v1", "networkpolicies")
	mustHold(t, k("api-versions"), "apps/v1", "batch/v1")
	mustHold(t, k("auth", "can-i", "create", "pods"), "yes")
	if r := b.tryKubectl(ns, "auth", "can-i", "create", "pods", "--as=system:serviceaccount:"+ns+":default"); !strings.Contains(r.out, "no") {
		t.Errorf("a service account without rights: %s", r)
	}
	k("create", "rolebinding", "see", "--clusterrole=view", "--serviceaccount="+ns+":default")
	mustHold(t, k("auth", "can-i", "list", "pods", "--as=system:serviceaccount:"+ns+":default"), "yes")
	mustHold(t, k("auth", "whoami"), "kubernetes-admin")
	mustHold(t, k("create", "configmap", "c", "--from-literal=a=1"), "created")
	mustHold(t, k("create", "secret", "generic", "s", "--from-literal=a=1"), "created")
	mustHold(t, k("create", "job", "j", "--image=proa/busybox:1", "--", "true"), "created")
	mustHold(t, k("wait", "job/j", "--for=condition=Complete", "--timeout=60s"), "condition met")
	mustHold(t, k("create", "token", "default"), ".")
	mustHold(t, k("get", "events"), "Scheduled", "Started")
	mustHold(t, k("version"), "Server Version: v1.37")
	mustHold(t, k("cluster-info"), "is running at")
	mustHold(t, k("delete", "pod", "one", "--grace-period=1"), "deleted")
	if r := b.tryKubectl(ns, "get", "pod", "one"); r.code == 0 || !strings.Contains(r.err, `pods "one" not found`) {
		t.Errorf("a deleted pod: %s", r)
	}
	mustHold(t, k("delete", "deployment,service", "web"), `"web" deleted`)
	await.Nil(t, 40*time.Second, "garbage collection", func() error {
		if out := k("get", "rs,pods,endpointslices", "-l", "app=web", "-o", "name"); out != "" {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
}

func TestApplyAndDiff(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	manifest := `
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {a: "1", b: "2"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 1
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, image: "proa/busybox:1", command: [sleep, "1000"]}]}
`
	mustHold(t, b.apply(t, ns, manifest), "configmap/c created", "deployment.apps/d created")
	mustHold(t, b.apply(t, ns, manifest), "configmap/c unchanged", "deployment.apps/d unchanged")
	changed := strings.Replace(manifest, `a: "1", b: "2"`, `a: "one"`, 1)
	if r := b.kubectlIn(changed, ns, "diff", "-f", "-"); r.code != 1 || !strings.Contains(r.out, "+  a: one") || !strings.Contains(r.out, `-  b: "2"`) {
		t.Errorf("diff: %s", r)
	}
	mustHold(t, b.apply(t, ns, changed), "configmap/c configured", "deployment.apps/d unchanged")
	if data := b.kubectl(t, ns, "get", "configmap", "c", "-o", "jsonpath={.data}"); data != `{"a":"one"}` {
		t.Errorf("data: %s", data)
	}
	if r := b.kubectlIn(changed, ns, "diff", "-f", "-"); r.code != 0 {
		t.Errorf("diff of what is there: %s", r)
	}
	// Server-side apply: an other's field is a conflict with its name.
	r := b.kubectlIn("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: two}\n", ns, "apply", "--server-side", "--field-manager=other", "-f", "-")
	if r.code == 0 || !strings.Contains(r.err, "conflict") || !strings.Contains(r.err, ".data.a") {
		t.Errorf("server-side apply of another's field: %s", r)
	}
	r = b.kubectlIn("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: two}\n", ns, "apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-")
	if r.code != 0 || !strings.Contains(r.out, "serverside-applied") {
		t.Errorf("forced: %s", r)
	}
	mustHold(t, b.kubectl(t, ns, "get", "configmap", "c", "-o", "yaml", "--show-managed-fields"), "manager: other", "f:data")
	mustHold(t, b.kubectlIn(changed, ns, "apply", "-f", "-", "--dry-run=server").out, "(server dry run)")
	mustHold(t, b.kubectlIn(manifest, ns, "delete", "-f", "-").out, `configmap "c" deleted`, `deployment.apps "d" deleted`)
}

// Wrong manifests: every problem at once, with its path, in upstream's words.
func TestWrongManifests(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	for _, c := range []struct {
		name, manifest string
		args           []string
		want           []string
	}{
		{"pod", `
apiVersion: v1
kind: Pod
metadata: {name: Bad_Name}
spec:
  restartPolicy: Sometimes
  containers:
  - {name: "a b", image: "", ports: [{containerPort: 99999}]}
  - {name: x, image: i, volumeMounts: [{name: gone, mountPath: /a}]}
`, nil, []string{
			`The Pod "Bad_Name" is invalid:`, `metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain`,
			`spec.containers[0].name: Invalid value: "a b": a lowercase RFC 1123 label`, `spec.containers[0].image: Required value`,
			`spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive`,
			`spec.containers[1].volumeMounts[0].name: Not found: "gone"`, `spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"`}},
		{"deployment", `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: -1
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: other}}
    spec: {containers: [{name: c, image: i, resources: {requests: {cpu: "2"}, limits: {cpu: "1"}}}]}
`, nil, []string{`The Deployment "d" is invalid:`, "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
			"spec.template.metadata.labels: Invalid value:", "`selector` does not match template `labels`",
			`spec.template.spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`}},
		{"service", `
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {type: NodePort, ports: [{port: 0, nodePort: 80}], sessionAffinity: Often}
`, nil, []string{`The Service "s" is invalid`, "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive", `spec.sessionAffinity: Unsupported value: "Often"`}},
		{"strict", `
apiVersion: v1
kind: ConfigMap
metadata: {name: c, labls: {a: b}}
dataa: {a: b}
`, nil, []string{"strict decoding error", `unknown field "dataa"`, `unknown field "metadata.labls"`}},
		{"wrong type", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: [1]\n", nil, []string{"ConfigMap"}},
		{"no such kind", "apiVersion: v9\nkind: Thing\nmetadata: {name: c}\n", nil, []string{`no matches for kind "Thing" in version "v9"`}},
		{"no such namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: nowhere}\n", []string{"-n", "nowhere"}, []string{`namespaces "nowhere" not found`}},
	} {
		for _, verb := range []string{"create", "apply"} {
			r := b.kubectlIn(c.manifest, ns, append([]string{verb, "-f", "-"}, c.args...)...)
			if r.code == 0 {
				t.Errorf("%s: went through: %s", c.name, r)
			}
			mustHold(t, r.err, c.want...)
		}
	}
	// The same unknown field is a warning when asked so.
	r := b.kubectlIn("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: warned}\ndataa: {a: b}\n", ns, "create", "--validate=warn", "-f", "-")
	if r.code != 0 || !strings.Contains(r.err, `Warning: unknown field "dataa"`) {
		t.Errorf("--validate=warn: %s", r)
	}
	r = b.kubectlIn("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ignored}\ndataa: {a: b}\n", ns, "create", "--validate=ignore", "-f", "-")
	if r.code != 0 || strings.Contains(r.err, "unknown") {
		t.Errorf("--validate=ignore: %s", r)
	}
	// What may not change says so.
	b.apply(t, ns, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 0, selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: i}]}}}\n")
	r = b.tryKubectl(ns, "patch", "deployment", "d", "--type=merge", "-p", `{"spec":{"selector":{"matchLabels":{"app":"b"}},"template":{"metadata":{"labels":{"app":"b"}}}}}`)
	if r.code == 0 || !strings.Contains(r.err, "spec.selector: Invalid value:") || !strings.Contains(r.err, "field is immutable") {
		t.Errorf("change of a selector: %s", r)
	}
}

// Logs, exec, attach, copies and forwarded ports.
func TestStreams(t *testing.T) {
	t.Parallel()
	b := cluster(t)
	ns := b.namespace(t)
	b.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: talk}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: proa/busybox:1
    command: [sh, -c, "for i in $(seq 1 50); do echo line $i; done; sleep 1; echo problem >&2; while true; do sleep 0.2; date; done"]
  - {name: cat, image: "proa/busybox:1", stdin: true, command: [cat]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: web, image: "proa/web:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec:
  containers: [{name: c, image: "proa/busybox:1", command: [sh, -c, "echo attempt $(cat /v/n 2>/dev/null); echo again > /v/n; sleep 1; exit 3"], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, emptyDir: {}}]
`)
	b.waitReady(t, ns, "talk")
	k := func(args ...string) string { t.Helper(); return b.kubectl(t, ns, args...) }
	await.Nil(t, 10*time.Second, "output", func() error {
		if out := k("logs", "talk", "-c", "a"); !strings.Contains(out, "problem") {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	// Two streams are two pipes: only time puts one behind the other.
	all := k("logs", "talk", "-c", "a")
	if !strings.HasPrefix(all, "line 1\nline 2\n") || !strings.Contains(all, "line 50\nproblem\n") {
		t.Errorf("logs: %q", all)
	}
	if out := k("logs", "talk", "-c", "a", "--tail=3"); strings.Count(out, "\n") != 3 {
		t.Errorf("--tail=3: %q", out)
	}
	if out := k("logs", "talk", "-c", "a", "--limit-bytes=10"); out != "line 1\nlin" {
		t.Errorf("--limit-bytes=10: %q", out)
	}
	if out := k("logs", "talk", "-c", "a", "--timestamps", "--limit-bytes=200"); !regexp.MustCompile(`^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z line 1\n`).MatchString(out) {
		t.Errorf("--timestamps: %q", out)
	}
	await.Nil(t, 10*time.Second, "only new lines with --since=1s", func() error {
		if out := k("logs", "talk", "-c", "a", "--since=1s"); strings.Contains(out, "line 50") || out == "" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	mustHold(t, k("logs", "talk", "--all-containers", "--prefix", "--tail=2"), "[pod/talk/a]")
	if r := b.tryKubectl(ns, "logs", "talk", "-c", "nobody"); r.code == 0 || !strings.Contains(r.err, "nobody") {
		t.Errorf("logs of a container that is not there: %s", r)
	}
	// Following ends with the pod, and has everything.
	follow := make(chan result, 1)
	k("run", "short", "--image=proa/busybox:1", "--restart=Never", "--", "sh", "-c", "for i in 1 2 3 4 5 6; do echo tick $i; sleep 0.3; done")
	b.waitPod(t, ns, "short", "started", started)
	go func() { follow <- b.tryKubectl(ns, "logs", "-f", "short") }()
	if r := <-follow; r.out != "tick 1\ntick 2\ntick 3\ntick 4\ntick 5\ntick 6\n" {
		t.Errorf("logs -f: %s", r)
	}
	await.Nil(t, 30*time.Second, "a second attempt", func() error {
		if n := k("get", "pod", "twice", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); n == "0" || n == "" {
			return fmt.Errorf("restarts: %s", n)
		}
		return nil
	})
	if out := k("logs", "twice", "--previous"); !strings.HasPrefix(out, "attempt") {
		t.Errorf("logs --previous: %q", out)
	}

	// exec: output, errors, code, input.
	if out := k("exec", "talk", "-c", "a", "--", "sh", "-c", "echo $((6*7)); id -u"); out != "42\n0\n" {
		t.Errorf("exec: %q", out)
	}
	r := b.tryKubectl(ns, "exec", "talk", "-c", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	if r.code != 7 || r.out != "out\n" || !strings.HasPrefix(r.err, "err\n") {
		t.Errorf("exec: %s", r)
	}
	if r := b.tryKubectl(ns, "exec", "talk", "-c", "a", "--", "/nowhere"); r.code == 0 || !strings.Contains(r.err, "no such file") {
		t.Errorf("exec of nothing: %s", r)
	}
	long := strings.Repeat("0123456789abcdef", 20000)
	if r := b.kubectlIn(long, ns, "exec", "-i", "talk", "-c", "a", "--", "cat"); r.out != long {
		t.Errorf("exec -i of %d bytes: %d bytes came back, code %d, %s", len(long), len(r.out), r.code, r.err)
	}
	// With a terminal, which script makes.
	r = command(nil, "", []string{"TERM=xterm"}, "script", "-qec", strings.Join(append([]string{binary}, b.flags("kubectl", "-n", ns, "exec", "-it", "talk", "-c", "a", "--", "sh", "-c", "'tty; stty size; exit 5'")...), " "), "/dev/null")
	if r.code != 5 || !strings.Contains(r.out, "/dev/pts/") {
		t.Errorf("exec -it: %s", r)
	}
	// attach: what goes in comes out of cat.
	r = command(nil, "", nil, "bash", "-c", fmt.Sprintf("(echo attached; sleep 1) | timeout 20 %s --name %s --data-dir %s kubectl -n %s attach -i talk -c cat", binary, b.name, b.data, ns))
	if !strings.Contains(r.out, "attached") {
		t.Errorf("attach: %s", r)
	}
	r = b.kubectlIn("from stdin\n", ns, "run", "-i", "--rm", "--restart=Never", "--image=proa/busybox:1", "pipe", "--", "cat")
	if r.code != 0 || !strings.Contains(r.out, "from stdin") {
		t.Errorf("run -i --rm: %s", r)
	}

	// cp, both ways.
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755)
	os.WriteFile(filepath.Join(dir, "d", "f"), []byte(long), 0o640)
	os.WriteFile(filepath.Join(dir, "d", "sub", "g"), []byte("g"), 0o755)
	k("cp", filepath.Join(dir, "d"), "talk:/tmp/d", "-c", "a")
	mustHold(t, k("exec", "talk", "-c", "a", "--", "sh", "-c", "wc -c /tmp/d/f; cat /tmp/d/sub/g"), fmt.Sprint(len(long)), "g")
	k("cp", "talk:/tmp/d", filepath.Join(dir, "back"), "-c", "a")
	if data, err := os.ReadFile(filepath.Join(dir, "back", "f")); string(data) != long {
		t.Errorf("cp back: %d bytes, %v", len(data), err)
	}

	// port-forward to a pod and through a service.
	b.waitReady(t, ns, "web")
	b.kubectl(t, ns, "label", "pod", "web", "app=web")
	b.kubectl(t, ns, "expose", "pod", "web", "--port=80", "--target-port=8080")
	for _, target := range []string{"pod/web", "service/web"} {
		port, stop := b.forward(t, ns, target, map[string]string{"pod/web": "8080", "service/web": "80"}[target])
		for range 5 {
			if a, err := get("http://127.0.0.1:" + port); err != nil || a.Pod != "web" {
				t.Errorf("port-forward to %s: %+v, %v", target, a, err)
			}
		}
		stop()
	}
	// The API server's own proxy.
	mustHold(t, k("get", "--raw", "/api/v1/namespaces/"+ns+"/pods/web:8080/proxy/"), `"pod":"web"`)
	mustHold(t, k("get", "--raw", "/api/v1/namespaces/"+ns+"/services/web:80/proxy/"), `"pod":"web"`)
}
