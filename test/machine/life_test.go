package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/internal/await"
)

// card is `proa status -o json`.
type card struct {
	Name, State, API, Node, PodNetwork, ServiceNetwork, DataDir, Since string
	PID                                                                int
}

func (b *box) status(t testing.TB) (c card, code int) {
	t.Helper()
	r := b.tryProa("status", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &c); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	return c, r.code
}

const foreign = `apiVersion: v1
kind: Config
current-context: elsewhere
clusters: [{name: elsewhere, cluster: {server: "https://192.0.2.99"}}]
contexts: [{name: elsewhere, context: {cluster: elsewhere, user: me}}]
users: [{name: me, user: {token: secret}}]
`

// One cluster's whole life, on a machine of its own: up from nothing, up again,
// down, up, delete. At the end the machine is as before.
func TestLife(t *testing.T) {
	s := newSpace(t)
	b := newBox(t, "life")
	b.ns = s
	if err := os.WriteFile(b.kubeconfig, []byte(foreign), 0o644); err != nil {
		t.Fatal(err)
	}
	before := look(t, s, b)

	if c, code := b.status(t); c.State != "absent" || code != 1 {
		t.Errorf("status before: %+v, exit code %d", c, code)
	}
	r := b.up(t)
	t.Logf("up from nothing: %s\n%s", r.took, r.out)
	mustHold(t, r.out, "keys", "store", "API", "node", "is up after", `context "proa-`+b.name+`"`, "try:")
	first, code := b.status(t)
	if code != 0 || first.State != "running" || first.PID == 0 || first.Since == "" || first.DataDir != b.data || !strings.HasPrefix(first.API, "https://127.0.0.1:") {
		t.Errorf("status: %+v, exit code %d", first, code)
	}
	mustHold(t, b.proa(t, "status"), "NAME", b.name, "running", first.API)
	again := b.up(t)
	mustHold(t, again.out, "is running already")
	if c, _ := b.status(t); c.PID != first.PID {
		t.Errorf("up of a running cluster changed its process from %d to %d", first.PID, c.PID)
	}

	// The person's file keeps what it had, is backed up, and is for that person only.
	if st, err := os.Stat(b.kubeconfig); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: %v, mode %v; want 0600", err, st.Mode())
	}
	contexts := command(s, "", nil, binary, "kubectl", "--kubeconfig", b.kubeconfig, "config", "get-contexts", "-o", "name")
	mustHold(t, contexts.out, "elsewhere", "proa-"+b.name)
	backups, _ := filepath.Glob(b.kubeconfig + "?*")
	kept := false
	for _, f := range backups {
		data, _ := os.ReadFile(f)
		kept = kept || string(data) == foreign
	}
	if !kept {
		t.Errorf("no backup of the kubeconfig has its first content: %v", backups)
	}
	if got := command(s, "", nil, binary, "kubectl", "--kubeconfig", b.kubeconfig, "--context", "proa-"+b.name, "get", "nodes", "--no-headers"); !strings.Contains(got.out, "Ready") {
		t.Errorf("nodes by the person's kubeconfig: %s", got)
	}

	b.load(t, "busybox.tar")
	b.kubectl(t, "", "create", "deployment", "keeper", "--image=proa/busybox:1", "--replicas=2", "--", "sleep", "100000")
	b.kubectl(t, "", "expose", "deployment", "keeper", "--port=80")
	b.kubectl(t, "", "rollout", "status", "deployment/keeper", "--timeout=30s")
	b.kubectl(t, "", "run", "volume", "--image=proa/busybox:1", `--overrides={"spec":{"volumes":[{"name":"v","emptyDir":{"medium":"Memory"}}],"containers":[{"name":"volume","image":"proa/busybox:1","command":["sleep","100000"],"volumeMounts":[{"name":"v","mountPath":"/v"}]}]}}`)
	b.kubectl(t, "", "wait", "pod/volume", "--for=condition=Ready", "--timeout=30s")
	uids := b.kubectl(t, "", "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}")
	if diff := before.compare(look(t, s, b)); len(diff) < 10 {
		t.Errorf("a running cluster shows too little on the machine for the comparison to mean anything: %q", diff)
	}

	out := b.proa(t, "down")
	mustHold(t, out, "is down after", "its data is kept in "+b.data)
	mustHold(t, b.proa(t, "down"), "is not running")
	if c, code := b.status(t); c.State != "stopped" || code != 1 {
		t.Errorf("status after down: %+v, exit code %d", c, code)
	}
	if diff := before.compare(look(t, s, b), "files"); len(diff) > 0 {
		t.Errorf("after down:\n%s", strings.Join(diff, "\n"))
	}

	r = b.up(t)
	t.Logf("up with data: %s", r.took)
	b.kubectl(t, "", "wait", "pod", "--all", "--for=condition=Ready", "--timeout=30s")
	if now := b.kubectl(t, "", "get", "pods", "-o", "jsonpath={.items[*].metadata.uid}"); now != uids {
		t.Errorf("down and up changed the pods: %s, now %s", uids, now)
	}
	if n := b.kubectl(t, "", "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"); n != "1 1 1" {
		t.Errorf("restarts after down and up: %q, want 1 each", n)
	}

	mustHold(t, b.proa(t, "delete"), "is deleted")
	mustHold(t, b.proa(t, "delete"), "does not exist")
	after := look(t, s, b)
	// The backup of the person's own file stays theirs.
	after["files"] = without(after["files"], backups...)
	if diff := before.compare(after); len(diff) > 0 {
		t.Errorf("after delete:\n%s", strings.Join(diff, "\n"))
	}
	data, _ := os.ReadFile(b.kubeconfig)
	if strings.Contains(string(data), b.name) {
		t.Errorf("kubeconfig still has the cluster:\n%s", data)
	}
	mustHold(t, string(data), "elsewhere", "secret")
}

func without(list []string, drop ...string) (out []string) {
	for _, l := range list {
		keep := true
		for _, d := range drop {
			keep = keep && l != d && l != d+".lock"
		}
		if keep {
			out = append(out, l)
		}
	}
	return out
}

// Several clusters on one machine do not meet: own ports, networks, tables.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	boxes := []*box{newBox(t, "left"), newBox(t, "right"), newBox(t, "bare", "--no-node")}
	kubeconfig := filepath.Join(scratch, "side-by-side")
	seen := map[string]string{}
	for _, b := range boxes {
		b.kubeconfig = kubeconfig
		b.up(t)
		c, _ := b.status(t)
		for what, v := range map[string]string{"API": c.API, "pod network": c.PodNetwork, "service network": c.ServiceNetwork} {
			if other := seen[what+v]; other != "" {
				t.Errorf("%s and %s share the %s %s", b.name, other, what, v)
			}
			seen[what+v] = b.name
		}
	}
	for _, b := range boxes[:2] {
		b.load(t, "web-v1.tar")
		b.kubectl(t, "", "create", "deployment", "web", "--image=proa/web:v1")
		b.kubectl(t, "", "expose", "deployment", "web", "--port=80", "--target-port=8080")
	}
	for _, b := range boxes[:2] {
		b.kubectl(t, "", "rollout", "status", "deployment/web", "--timeout=60s")
		ip := b.kubectl(t, "", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
		pod := b.kubectl(t, "", "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
		await.Nil(t, 10*time.Second, "the service of "+b.name, func() error {
			a, err := get("http://" + ip)
			if err == nil && a.Pod != pod {
				err = fmt.Errorf("answer of pod %q, want %q", a.Pod, pod)
			}
			return err
		})
	}
	if n := boxes[2].kubectl(t, "", "get", "nodes", "-o", "name"); n != "" {
		t.Errorf("a cluster without a node has %q", n)
	}
	names := command(nil, "", nil, binary, "kubectl", "--kubeconfig", kubeconfig, "config", "get-contexts", "-o", "name").out
	all := command(nil, "", nil, binary, "status", "--all").out
	for _, b := range boxes {
		mustHold(t, names, "proa-"+b.name)
		_ = all
	}
	boxes[0].proa(t, "delete")
	if c, _ := boxes[1].status(t); c.State != "running" {
		t.Errorf("deleting one cluster left the other %s", c.State)
	}
	boxes[1].kubectl(t, "", "get", "--raw", "/readyz")
	ip := boxes[1].kubectl(t, "", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	if _, err := get("http://" + ip); err != nil {
		t.Errorf("deleting one cluster broke the other's service: %v", err)
	}
}

// containers maps container IDs to the processes in the pods' control groups.
func pids(b *box) map[string]string {
	h := host{}
	processes(h, b.name)
	out := map[string]string{}
	for _, p := range h["processes"] {
		pid, cmd, _ := strings.Cut(p, " ")
		out[pid] = cmd
	}
	return out
}

// After kill -9 of the server the containers go on; the next up adopts them, and
// every write that was acknowledged is there.
func TestKill(t *testing.T) {
	t.Parallel()
	b := newBox(t, "kill")
	b.up(t)
	b.load(t, "busybox.tar", "web-v1.tar")
	b.kubectl(t, "", "create", "deployment", "web", "--image=proa/web:v1", "--replicas=3")
	b.kubectl(t, "", "expose", "deployment", "web", "--port=80", "--target-port=8080")
	b.apply(t, "", `
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  containers:
  - {name: c, image: "proa/busybox:1", command: [sh, -c, "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"]}`)
	b.kubectl(t, "", "rollout", "status", "deployment/web", "--timeout=60s")
	b.waitReady(t, "default", "counter")
	ids := func() string {
		return b.kubectl(t, "", "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
	}
	before, had := ids(), pids(b)
	ip := b.kubectl(t, "", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")

	// Writers note what was acknowledged until the moment of the kill.
	ctx, stop := context.WithCancel(context.Background())
	type ack struct {
		name string
		ok   bool
	}
	acks := make(chan ack, 100000)
	done := make(chan struct{})
	for w := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("ack-%d-%d", w, i)
				_, err := b.api(t).CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"k": name}}, metav1.CreateOptions{})
				if err != nil {
					return
				}
				acks <- ack{name, true}
			}
		}()
	}
	await.Nil(t, 20*time.Second, "200 acknowledged writes", func() error {
		if len(acks) < 200 {
			return fmt.Errorf("%d so far", len(acks))
		}
		return nil
	})
	c, _ := b.status(t)
	if err := unix.Kill(c.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		<-done
	}
	stop()
	close(acks)
	await.Nil(t, 5*time.Second, "the end of the server", func() error {
		if st, _ := b.status(t); st.State != "stopped" {
			return fmt.Errorf("it is %s", st.State)
		}
		return nil
	})
	for pid, cmd := range had {
		if pid == strconv.Itoa(c.PID) || cmd == "sleep 0.1" {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); err != nil {
			t.Errorf("process %s (%s) ended with the server", pid, cmd)
		}
	}
	// Containers serve on while there is no server.
	for range 20 {
		if _, err := get("http://" + ip); err != nil {
			t.Errorf("service without a server: %v", err)
		}
	}
	r := b.up(t)
	t.Logf("up after kill -9: %s", r.took)
	if r.took > 3*time.Second {
		t.Errorf("adopting took %s", r.took)
	}
	lost, n := 0, 0
	list, err := b.api(t).CoreV1().ConfigMaps("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, c := range list.Items {
		have[c.Name] = true
	}
	for a := range acks {
		n++
		if !have[a.name] {
			lost++
		}
	}
	t.Logf("%d acknowledged writes, %d lost", n, lost)
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, n)
	}
	if now := ids(); now != before {
		t.Errorf("pods before the kill:\n%safter:\n%s", before, now)
	}
	// And the adopted containers are in hand: logs, exec, deletion, healing.
	last := b.kubectl(t, "", "logs", "counter", "--tail=1")
	await.Nil(t, 10*time.Second, "new log lines of an adopted container", func() error {
		if now := b.kubectl(t, "", "logs", "counter", "--tail=1"); now == last {
			return fmt.Errorf("still %q", now)
		}
		return nil
	})
	if out := b.exec(t, "", "counter", "echo", "hello"); out != "hello\n" {
		t.Errorf("exec in an adopted container: %q", out)
	}
	b.kubectl(t, "", "delete", "pod", "-l", "app=web", "--grace-period=1", "--wait=true")
	b.kubectl(t, "", "rollout", "status", "deployment/web", "--timeout=60s")
	await.Nil(t, 10*time.Second, "new pods behind the service", func() error { _, err := get("http://" + ip); return err })
	if now := ids(); !strings.Contains(now, "counter") {
		t.Errorf("pods: %s", now)
	}
}

// In the foreground the server obeys SIGTERM: it ends, its containers go on.
func TestForeground(t *testing.T) {
	t.Parallel()
	b := newBox(t, "foreground")
	c := exec.Command(binary, b.flags("up", "--foreground", "--kubeconfig", b.kubeconfig)...)
	log, err := os.Create(filepath.Join(filepath.Dir(b.data), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	read := func() string { d, _ := os.ReadFile(log.Name()); return string(d) }
	await.Nil(t, 20*time.Second, "ready", func() error {
		if !strings.Contains(read(), "  ready") {
			return fmt.Errorf("output: %s", read())
		}
		return nil
	})
	b.load(t, "busybox.tar")
	b.kubectl(t, "", "run", "a", "--image=proa/busybox:1", "--", "sleep", "100000")
	id := b.waitReady(t, "default", "a").Status.ContainerStatuses[0].ContainerID
	c.Process.Signal(unix.SIGTERM)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("SIGTERM: %v\n%s", err, read())
		}
	case <-time.After(20 * time.Second):
		c.Process.Kill()
		t.Fatal("SIGTERM: still running after 20 s")
	}
	b.up(t)
	p := b.waitReady(t, "default", "a")
	if s := p.Status.ContainerStatuses[0]; s.ContainerID != id || s.RestartCount != 0 {
		t.Errorf("container was %s, is %s with %d restarts", id, s.ContainerID, s.RestartCount)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	t.Parallel()
	r := command(nil, "", nil, binary, "version")
	if r.code != 0 {
		t.Fatal(r)
	}
	mustHold(t, r.out, "proa ", "kubernetes  v1.37")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := command(nil, "", nil, binary, "completion", shell)
		if r.code != 0 || len(r.out) < 1000 {
			t.Errorf("completion: %s", r)
		}
	}
	// What bash makes of it.
	r = command(nil, command(nil, "", nil, binary, "completion", "bash").out, nil, "bash", "-n")
	if r.code != 0 {
		t.Error(r)
	}
}
