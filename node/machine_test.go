package node_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"net/http/httptest"
	"net/url"

	"proa.dev/apiserver/apitest"
	"proa.dev/engine"
	"proa.dev/engine/image"
	"proa.dev/kind"
	"proa.dev/node"
)

// helperPath builds one of the engine's helper programs, once for all tests.
func helperPath(t *testing.T, name string) string {
	t.Helper()
	built := helpers[name]
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "proa-nodetest-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", built.dir}, built.args...), "proa.dev/cmd/"+name)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+built.cgo)
		if text, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build %s: %w\n%s", name, err, text)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

type helper struct {
	cgo  string
	args []string
	once sync.Once
	dir  string
	err  error
}

var helpers = map[string]*helper{
	"proa-monitor": {cgo: "0"},
	"proa-runner":  {cgo: "1", args: []string{"-tags", "seccomp,netgo,osusergo", "-ldflags", "-linkmode external -extldflags -static"}},
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, h := range helpers {
		if h.dir != "" {
			os.RemoveAll(h.dir)
		}
	}
	os.Exit(code)
}

// busyboxImage is a docker archive with one static busybox.
func busyboxImage(t *testing.T, name string) *bytes.Buffer {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v; apt-get install busybox-static", err)
	}
	put := func(w *tar.Writer, h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, d := range []string{"bin", "etc", "tmp"} {
		put(w, tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, bin)
	for _, a := range strings.Fields("sh sleep echo cat id ls hostname env stat stty test touch rm kill ps nc httpd wc tar") {
		put(w, tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + a, Linkname: "bin/busybox"}, nil)
	}
	w.Close()
	sum := func(b []byte) string { d := sha256.Sum256(b); return hex.EncodeToString(d[:]) }
	cfg := v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}}
	cfg.RootFS.DiffIDs = []v1.Hash{{Algorithm: "sha256", Hex: sum(layer.Bytes())}}
	raw, _ := json.Marshal(cfg)
	manifest, _ := json.Marshal([]map[string]any{{"Config": sum(raw) + ".json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Mode: 0o644}, manifest)
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: sum(raw) + ".json", Mode: 0o644}, raw)
	put(w, tar.Header{Typeflag: tar.TypeReg, Name: "layer.tar", Mode: 0o644}, layer.Bytes())
	w.Close()
	return &archive
}

// machine is a world whose engine runs real containers, without a pod network.
type machine struct {
	*world
	real *engine.Engine
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("containers need root")
	}
	dir := t.TempDir()
	store, err := image.Open(image.Config{Dir: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	if _, err := store.Import(ctx, busyboxImage(t, "docker.io/library/box:1"), nil); err != nil {
		t.Fatal(err)
	}
	eng, err := engine.New(engine.Config{DataDir: filepath.Join(dir, "engine"), RunDir: filepath.Join(dir, "run"), Images: store,
		Log:          slog.New(slog.NewTextHandler(t.Output(), nil)),
		MonitorPath:  helperPath(t, "proa-monitor"),
		RunnerPath:   helperPath(t, "proa-runner"),
		CgroupParent: fmt.Sprintf("proa-nodetest-%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	ectx, ecancel := context.WithCancel(ctx)
	edone := make(chan error, 1)
	go func() { edone <- eng.Run(ectx) }()
	t.Cleanup(func() {
		if err := eng.Purge(ctx); err != nil {
			t.Errorf("purge: %v", err)
		}
		ecancel()
		<-edone
	})
	<-eng.Ready()

	c := apitest.Start(t, nil)
	w := &world{t: t, view: c.View, client: c.Server.Local(apitest.Admin), dir: filepath.Join(dir, "node")}
	for _, ns := range []string{"default", "kube-node-lease"} {
		w.create(kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	}
	w.config = func(cfg *node.Config) {
		cfg.Engine, cfg.Streams = eng, node.StreamsOf(eng)
	}
	w.start()
	t.Cleanup(func() {
		w.stop()
		w.unmountAll()
	})
	return &machine{w, eng}
}

// box runs a pod whose one container is a shell script in the busybox image.
func (m *machine) box(name, script string, change func(p *corev1.Pod)) *corev1.Pod {
	m.t.Helper()
	return m.run(name, func(p *corev1.Pod) {
		zero := int64(0)
		p.Spec.TerminationGracePeriodSeconds = &zero
		p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = "box:1", []string{"sh", "-c", script}
		if change != nil {
			change(p)
		}
	})
}

// TestMachine runs real containers: environment, volumes, init containers, exec
// probes, hooks, termination messages, logs, exec, graceful end, adoption.
func TestMachine(t *testing.T) {
	w := newMachine(t)
	w.create(kind.ConfigMap, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "default"}, Data: map[string]string{"color": "red", "file": "hello"}})
	yes, user := true, int64(1000)
	began := time.Now()
	w.run("box", func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, FSGroup: &user}
		p.Spec.Volumes = []corev1.Volume{
			{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
		}
		mounts := []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}, {Name: "config", MountPath: "/config"},
			{Name: "shared", MountPath: "/sub", SubPathExpr: "$(NAME)"}}
		env := []corev1.EnvVar{{Name: "NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "GREETING", Value: "I am $(NAME)"}}
		p.Spec.InitContainers = []corev1.Container{{Name: "prepare", Image: "box:1", Command: []string{"sh", "-c", "echo prepared > /shared/init; touch /sub/here"}, VolumeMounts: mounts, Env: env}}
		p.Spec.Containers = []corev1.Container{{Name: "app", Image: "box:1", Env: env, VolumeMounts: mounts,
			EnvFrom:        []corev1.EnvFromSource{{Prefix: "C_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
			Command:        []string{"sh", "-c", "trap 'echo ending; echo bye > /dev/termination-log; exit 0' TERM; echo $GREETING $C_color $(cat /config/file) $(cat /shared/init) $(id -u); while true; do sleep 0.1; done"},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/shared/box/here"}}}, PeriodSeconds: 1},
			Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"touch", "/shared/started"}}},
				PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"touch", "/shared/stopping"}}}}}}
	})
	w.until("ready", func() bool { return ready(w.pod("box")) })
	t.Logf("ready after %s", time.Since(began))
	if got, want := w.log(t, "box", "app", ""), "I am box red hello prepared 1000\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
	srv := httptest.NewServer(w.handler())
	defer srv.Close()
	query := url.Values{"command": {"sh", "-c", "ls /shared; hostname; cat /etc/hosts /etc/resolv.conf; exit 5"}, "output": {"1"}, "error": {"1"}}
	ex, err := remotecommand.NewWebSocketExecutor(&rest.Config{Host: srv.URL, BearerToken: "let-me-in"}, "GET", srv.URL+"/exec/default/box/app?"+query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	if coded, ok := err.(interface{ ExitStatus() int }); !ok || coded.ExitStatus() != 5 {
		t.Errorf("exec: %v", err)
	}
	for _, want := range []string{"box\ninit\nstarted\n", "\nbox\n", "Kubernetes-managed hosts file", "search default.svc.cluster.local svc.cluster.local cluster.local", "nameserver 10.96.0.10", "ndots:5"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("exec says %q (%s), without %q", out.String(), errOut.String(), want)
		}
	}
	if code, body := w.get("/stats/summary"); code != 200 || !strings.Contains(body, `"name": "app"`) && !strings.Contains(body, `"name":"app"`) {
		t.Errorf("stats: %d %s", code, body)
	}

	// The agent goes and comes back: the container stays.
	id := w.pod("box").Status.ContainerStatuses[0].ContainerID
	w.stop()
	w.start()
	<-w.agent.Ready()
	if p := w.pod("box"); p.Status.ContainerStatuses[0].ContainerID != id || !ready(p) {
		t.Errorf("after a restart of the agent: %+v", p.Status.ContainerStatuses)
	}

	// The end: hook, signal, message, all seen in the last status.
	var last *corev1.Pod
	began = time.Now()
	w.delete("box")
	w.until("gone", func() bool {
		p := w.pod("box")
		if p != nil {
			last = p
		}
		return p == nil
	})
	t.Logf("gone after %s", time.Since(began))
	if term := last.Status.ContainerStatuses[0].State.Terminated; term == nil || term.ExitCode != 0 || term.Message != "bye\n" || last.Status.Phase != corev1.PodSucceeded {
		t.Errorf("last status: %+v %s", last.Status.ContainerStatuses[0].State, last.Status.Phase)
	}

	// A program that is not there, and one that fails with the log as its message.
	w.run("nothing", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = "box:1", []string{"/no/such/program"}
	})
	w.run("fails", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = "box:1", []string{"sh", "-c", "echo the reason; exit 4"}
		p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	})
	w.run("root", func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes}
		p.Spec.Containers[0].Image = "box:1"
	})
	w.until("failed pods", func() bool {
		return w.pod("nothing").Status.Phase == corev1.PodFailed && w.pod("fails").Status.Phase == corev1.PodFailed
	})
	if term := w.pod("nothing").Status.ContainerStatuses[0].State.Terminated; term.ExitCode != 128 || term.Reason != "StartError" || !strings.Contains(term.Message, "/no/such/program") {
		t.Errorf("no such program: %+v", term)
	}
	if term := w.pod("fails").Status.ContainerStatuses[0].State.Terminated; term.ExitCode != 4 || term.Message != "the reason\n" {
		t.Errorf("message from the log: %+v", term)
	}
	w.until("root refused", func() bool {
		s := waiting(w.pod("root"))
		return s != nil && s.Reason == "CreateContainerConfigError" && strings.HasPrefix(s.Message, "container has runAsNonRoot and image will run as root (pod: \"root_default(")
	})

	// How quick a plain pod is.
	var times []time.Duration
	for i := range 10 {
		name := fmt.Sprintf("quick%d", i)
		began := time.Now()
		w.run(name, func(p *corev1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = "box:1", []string{"sleep", "1000"}
			zero := int64(0)
			p.Spec.TerminationGracePeriodSeconds = &zero
		})
		w.until(name, func() bool { return ready(w.pod(name)) })
		times = append(times, time.Since(began).Round(time.Millisecond))
	}
	t.Logf("create to Ready: %v", times)
	for _, name := range []string{"nothing", "fails", "root"} {
		w.delete(name)
	}
	for i := range 10 {
		w.delete(fmt.Sprintf("quick%d", i))
	}
	w.until("all gone", func() bool { return len(w.agentPods()) == 0 })
}
