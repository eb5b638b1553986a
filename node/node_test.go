package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/apiserver/apitest"
	"proa.dev/client"
	"proa.dev/engine/enginetest"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/node"
	"proa.dev/node/stream"
	"proa.dev/view"
)

var ctx = context.Background()

// world is an API server, an engine in memory and an agent.
type world struct {
	t      testing.TB
	view   *view.View
	client client.Client
	engine *enginetest.Fake
	agent  *node.Agent
	dir    string
	stop   func()
	drain  func(context.Context, *corev1.Pod) error
	config func(*node.Config)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, []enginetest.Image{{Ref: "docker.io/library/web:1", Size: 10}})
}

func newWorldWith(t testing.TB, images []enginetest.Image) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests mount a tmpfs: run them as root")
	}
	c := apitest.Start(t, nil)
	w := &world{t: t, view: c.View, client: c.Server.Local(apitest.Admin), dir: t.TempDir()}
	w.engine = enginetest.NewFake(enginetest.FakeConfig{Log: enginetest.FileLog,
		Images:   images,
		Registry: []enginetest.Image{{Ref: "docker.io/library/remote:1", Size: 20}}})
	ectx, ecancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	g.Go(func() { w.engine.Run(ectx) })
	t.Cleanup(func() { ecancel(); g.Wait() })
	for _, ns := range []string{"default", "kube-node-lease"} {
		w.create(kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	}
	w.start()
	t.Cleanup(func() {
		w.stop()
		w.unmountAll()
	})
	return w
}

// unmountAll takes away what the agent leaves for its successor.
func (w *world) unmountAll() {
	out, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Error(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], w.dir) {
			umount(w.t, f[4])
		}
	}
}

func (w *world) agentPods() []*corev1.Pod { return w.agent.Pods() }

func (w *world) start() {
	w.t.Helper()
	cfg := node.Config{Name: "n1", Client: w.client, View: w.view, Shared: true, Engine: w.engine,
		Streams: node.StreamsOf(w.engine), DataDir: w.dir, LogDir: filepath.Join(w.dir, "log"), HostIPs: []string{"192.0.2.1"},
		ClusterDNS: []string{"10.96.0.10"}, Drain: func(ctx context.Context, p *corev1.Pod) error {
			if w.drain != nil {
				return w.drain(ctx, p)
			}
			return nil
		},
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)), Eviction: node.Eviction{Off: true}}
	if w.config != nil {
		w.config(&cfg)
	}
	a, err := node.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.agent = a
	actx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(actx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("agent: %v", err)
		}
	})
	w.until("node Ready", func() bool {
		n := view.Get[*corev1.Node](w.view.Snapshot(), kind.Node, "", "n1")
		return n != nil && condition(n.Status.Conditions, corev1.NodeReady)
	})
}

func condition(list []corev1.NodeCondition, t corev1.NodeConditionType) bool {
	for _, c := range list {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (w *world) create(k *kind.Kind, o kind.Object) kind.Object {
	w.t.Helper()
	out, err := w.client.Create(ctx, k, o, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		w.t.Fatal(err)
	}
	return out
}

// until waits for a condition.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	await.True(w.t, 20*time.Second, what, is)
}

func (w *world) pod(name string) *corev1.Pod {
	return view.Get[*corev1.Pod](w.view.Snapshot(), kind.Pod, "default", name)
}

func ready(p *corev1.Pod) bool {
	if p == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func waiting(p *corev1.Pod) *corev1.ContainerStateWaiting {
	if p == nil || len(p.Status.ContainerStatuses) == 0 {
		return nil
	}
	return p.Status.ContainerStatuses[0].State.Waiting
}

func (w *world) run(name string, change func(p *corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	off := false
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{NodeName: "n1", AutomountServiceAccountToken: &off,
			Containers: []corev1.Container{{Name: "app", Image: "web:1"}}}}
	if change != nil {
		change(p)
	}
	return w.create(kind.Pod, p).(*corev1.Pod)
}

func (w *world) delete(name string) {
	w.t.Helper()
	if err := w.client.Delete(ctx, kind.Pod, "default", name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestPodRunsAndGoes(t *testing.T) {
	w := newWorld(t)
	drained := make(chan string, 1)
	w.drain = func(_ context.Context, p *corev1.Pod) error {
		if c := w.pod(p.Name).Status.ContainerStatuses[0]; c.State.Running == nil {
			t.Error("the container was stopped before the data plane let go")
		}
		drained <- p.Name
		return nil
	}
	w.run("web", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
	})
	w.until("pod ready", func() bool { return ready(w.pod("web")) })
	p := w.pod("web")
	st := p.Status
	if st.Phase != corev1.PodRunning || st.PodIP == "" || st.HostIP != "192.0.2.1" || st.QOSClass != corev1.PodQOSBestEffort || st.StartTime == nil {
		t.Errorf("status: %+v", st)
	}
	if c := st.ContainerStatuses[0]; !strings.HasPrefix(c.ContainerID, "proa://") || c.ImageID == "" || c.Started == nil || !*c.Started {
		t.Errorf("container status: %+v", c)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "pods", string(p.UID), "volumes/kubernetes.io~empty-dir/scratch")); err != nil {
		t.Error(err)
	}
	w.delete("web")
	w.until("pod gone", func() bool { return w.pod("web") == nil })
	if got := <-drained; got != "web" {
		t.Errorf("drained %q", got)
	}
	w.until("directories gone", func() bool {
		_, err := os.Stat(filepath.Join(w.dir, "pods", string(p.UID)))
		logs, _ := filepath.Glob(filepath.Join(w.dir, "log", "*"))
		return os.IsNotExist(err) && len(logs) == 0
	})
	boxes, err := w.engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(boxes.Items) != 0 {
		t.Errorf("sandboxes left: %v %v", boxes, err)
	}
	w.until("events", func() bool {
		seen := map[string]bool{}
		for e := range view.List[*corev1.Event](w.view.Snapshot(), kind.Event, "default") {
			seen[e.Reason] = true
		}
		return seen["Pulled"] && seen["Created"] && seen["Started"] && seen["Killing"]
	})
}

func TestCrashLoop(t *testing.T) {
	w := newWorld(t)
	w.run("crash", func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"sh", "-c", "echo oops; exit 3"} })
	w.until("CrashLoopBackOff", func() bool {
		s := waiting(w.pod("crash"))
		return s != nil && s.Reason == "CrashLoopBackOff"
	})
	p := w.pod("crash")
	c := p.Status.ContainerStatuses[0]
	if want := fmt.Sprintf("back-off 10s restarting failed container=app pod=crash_default(%s)", p.UID); c.State.Waiting.Message != want {
		t.Errorf("message %q, want %q", c.State.Waiting.Message, want)
	}
	if c.RestartCount != 1 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 3 {
		t.Errorf("status %+v", c)
	}
	if got := w.log(t, "crash", "app", "previous=true"); got != "oops\n" {
		t.Errorf("previous log %q", got)
	}
}

func TestImages(t *testing.T) {
	w := newWorld(t)
	w.run("pulls", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "remote:1" })
	w.run("missing", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "nowhere:1" })
	w.run("never", func(p *corev1.Pod) {
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "nowhere:1", corev1.PullNever
	})
	w.until("pulled pod", func() bool { return ready(w.pod("pulls")) })
	for name, reason := range map[string]string{"missing": "ImagePullBackOff", "never": "ErrImageNeverPull"} {
		w.until(name, func() bool { s := waiting(w.pod(name)); return s != nil && s.Reason == reason })
	}
}

func TestConfigComesLate(t *testing.T) {
	w := newWorld(t)
	w.run("late", func(p *corev1.Pod) {
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "COLOR", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "color"}}}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	})
	w.until("FailedMount", func() bool {
		for e := range view.List[*corev1.Event](w.view.Snapshot(), kind.Event, "default") {
			if e.Reason == "FailedMount" && e.Message == `MountVolume.SetUp failed for volume "v" : secret "keys" not found` {
				return true
			}
		}
		return false
	})
	w.create(kind.Secret, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys", Namespace: "default"}, Data: map[string][]byte{"k": []byte("1")}})
	w.until("CreateContainerConfigError", func() bool {
		s := waiting(w.pod("late"))
		return s != nil && s.Reason == "CreateContainerConfigError" && s.Message == `configmap "settings" not found`
	})
	w.create(kind.ConfigMap, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default"}, Data: map[string]string{"color": "red"}})
	w.until("ready", func() bool { return ready(w.pod("late")) })
	// The Secret changes: the file follows.
	uid := string(w.pod("late").UID)
	file := filepath.Join(w.dir, "pods/.memory", uid, "v/k")
	if got, _ := os.ReadFile(file); string(got) != "1" {
		t.Fatalf("secret file %q", got)
	}
	if _, err := w.client.Patch(ctx, kind.Secret, "default", "keys", types.MergePatchType, []byte(`{"stringData":{"k":"2"}}`), "", metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("live update", func() bool { got, _ := os.ReadFile(file); return string(got) == "2" })
}

func TestAdoption(t *testing.T) {
	w := newWorld(t)
	w.run("stays", nil)
	w.run("left", nil)
	w.until("ready", func() bool { return ready(w.pod("stays")) && ready(w.pod("left")) })
	before := w.pod("stays").Status.ContainerStatuses[0]
	w.stop()
	zero := int64(0)
	if err := w.client.Delete(ctx, kind.Pod, "default", "left", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	revision := w.pod("stays").ResourceVersion
	w.start()
	<-w.agent.Ready()
	w.until("orphan removed", func() bool {
		boxes, err := w.engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err == nil && len(boxes.Items) == 1
	})
	p := w.pod("stays")
	if after := p.Status.ContainerStatuses[0]; after.ContainerID != before.ContainerID || after.RestartCount != 0 || !ready(p) {
		t.Errorf("adopted: %+v, before: %+v", after, before)
	}
	if p.ResourceVersion != revision {
		t.Errorf("adoption wrote a status although nothing changed")
	}
	list, err := w.engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 1 {
		t.Errorf("containers: %v %v", list, err)
	}
}

func TestTooLarge(t *testing.T) {
	w := newWorld(t)
	w.run("large", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("9999")}
	})
	w.until("rejected", func() bool { p := w.pod("large"); return p.Status.Phase == corev1.PodFailed })
	if p := w.pod("large"); p.Status.Reason != "OutOfcpu" || !strings.HasPrefix(p.Status.Message, "Pod was rejected: Node didn't have enough resource: cpu, requested: 9999000") {
		t.Errorf("status %q %q", p.Status.Reason, p.Status.Message)
	}
	w.delete("large")
	w.until("gone", func() bool { return w.pod("large") == nil })
}

func TestJobLikePod(t *testing.T) {
	w := newWorld(t)
	w.run("job", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Command = []string{"sh", "-c", "echo done; exit 0"}
	})
	w.until("succeeded", func() bool { return w.pod("job").Status.Phase == corev1.PodSucceeded })
	if got := w.log(t, "job", "app", ""); got != "done\n" {
		t.Errorf("log of a finished pod %q", got)
	}
}

// handler is the node's HTTP surface with a doorkeeper that knows one token.
func (w *world) handler() http.Handler {
	return w.agent.Handler(func(r *http.Request) (stream.User, bool) {
		return stream.User{Name: "admin"}, r.Header.Get("Authorization") == "Bearer let-me-in"
	}, func(_ context.Context, u stream.User, verb, sub string) bool { return u.Name == "admin" })
}

func (w *world) get(path string) (int, string) {
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("Authorization", "Bearer let-me-in")
	rec := httptest.NewRecorder()
	w.handler().ServeHTTP(rec, r)
	return rec.Code, rec.Body.String()
}

func (w *world) log(t *testing.T, pod, container, query string) string {
	t.Helper()
	code, body := w.get("/containerLogs/default/" + pod + "/" + container + "?" + query)
	if code != 200 {
		t.Errorf("log: %d %s", code, body)
	}
	return body
}

func TestHTTPSurface(t *testing.T) {
	w := newWorld(t)
	w.run("web", nil)
	w.until("ready", func() bool { return ready(w.pod("web")) })
	rec := httptest.NewRecorder()
	w.handler().ServeHTTP(rec, httptest.NewRequest("GET", "/pods", nil))
	if rec.Code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", rec.Code)
	}
	code, body := w.get("/pods")
	var list corev1.PodList
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != 200 || len(list.Items) != 1 || list.Items[0].Status.Phase != corev1.PodRunning {
		t.Errorf("/pods: %d %v %s", code, err, body)
	}
	for _, path := range []string{"/healthz", "/configz", "/stats/summary", "/metrics", "/metrics/resource", "/metrics/cadvisor", "/runningpods/"} {
		if code, body := w.get(path); code != 200 || body == "" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, body := w.get("/containerLogs/default/web/nosuch"); code != 400 || !strings.Contains(body, "container nosuch is not valid for pod web") {
		t.Errorf("log of no container: %d %s", code, body)
	}
	if code, _ := w.get("/containerLogs/default/nosuch/app"); code != 404 {
		t.Errorf("log of no pod: %d", code)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	w.run("web", nil)
	w.until("ready", func() bool { return ready(w.pod("web")) })
	srv := httptest.NewServer(w.handler())
	defer srv.Close()
	cfg := &rest.Config{Host: srv.URL, BearerToken: "let-me-in"}
	for _, carrier := range []string{"spdy", "websocket"} {
		t.Run(carrier, func(t *testing.T) {
			executor := func(query string) remotecommand.Executor {
				u, _ := url.Parse(srv.URL + "/exec/default/web/app?" + query)
				e, err := remotecommand.NewWebSocketExecutor(cfg, "GET", u.String())
				if carrier == "spdy" {
					e, err = remotecommand.NewSPDYExecutor(cfg, "POST", u)
				}
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			tctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			var out bytes.Buffer
			if err := executor("command=echo&command=hello&output=1&error=1").StreamWithContext(tctx, remotecommand.StreamOptions{Stdout: &out, Stderr: new(bytes.Buffer)}); err != nil {
				t.Fatal(err)
			}
			if out.String() != "hello\n" {
				t.Errorf("echo: %q", out.String())
			}
			err := executor("command=sh&command=-c&command=exit+7&output=1").StreamWithContext(tctx, remotecommand.StreamOptions{Stdout: &out})
			if coded, ok := err.(interface{ ExitStatus() int }); !ok || coded.ExitStatus() != 7 {
				t.Errorf("exit 7: %v", err)
			}
			// The end of stdin reaches the command, and its output comes back whole.
			big := strings.Repeat("0123456789abcdef", 20000)
			var back bytes.Buffer
			if err := executor("command=cat&input=1&output=1").StreamWithContext(tctx, remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &back}); err != nil {
				t.Fatal(err)
			}
			if back.String() != big {
				t.Errorf("cat: %d bytes came back of %d", back.Len(), len(big))
			}
		})
	}
}

func BenchmarkPodStart(b *testing.B) {
	w := newWorld(b)
	for i := range b.N {
		name := fmt.Sprintf("p%d", i)
		w.run(name, nil)
		w.until(name, func() bool { return ready(w.pod(name)) })
		zero := int64(0)
		w.client.Delete(ctx, kind.Pod, "default", name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	}
}
