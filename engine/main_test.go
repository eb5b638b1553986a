package engine

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
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/image"
	"proa.dev/engine/internal/binaries"
	"proa.dev/env"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests run containers and need root")
		os.Exit(1)
	}
	code := m.Run()
	binaries.Remove()
	os.Exit(code)
}

// rig is an engine under test with an image store of its own.
type rig struct {
	*Engine
	t      testing.TB
	dir    string
	store  *image.Store
	cancel context.CancelFunc
	done   chan error
	logs   string
	clock  env.Clock // nil: the system's
}

const busybox = "docker.io/library/busybox:test"

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	store, err := image.Open(image.Config{Dir: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	importBusybox(t, store, busybox, func(*v1.Config) {})
	r := &rig{t: t, dir: dir, store: store, logs: filepath.Join(dir, "logs")}
	r.start()
	t.Cleanup(func() {
		if err := r.Purge(context.Background()); err != nil {
			t.Errorf("purge: %v", err)
		}
		r.halt()
		store.Close()
	})
	return r
}

// start opens an engine on the rig's directories.
func (r *rig) start() {
	r.t.Helper()
	monitor, runner, err := binaries.Paths()
	if err != nil {
		r.t.Fatal(err)
	}
	e, err := New(Config{
		DataDir: filepath.Join(r.dir, "data"), RunDir: filepath.Join(r.dir, "run"),
		MonitorPath: monitor, RunnerPath: runner, Images: r.store, Clock: r.clock,
		CgroupParent: "proa-test-" + filepath.Base(r.dir) + fmt.Sprint(os.Getpid()),
		Log:          slog.New(slog.NewTextHandler(testWriter{r.t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.Engine, r.cancel, r.done = e, cancel, make(chan error, 1)
	go func() { r.done <- e.Run(ctx) }()
	select {
	case <-e.Ready():
	case err := <-r.done:
		r.t.Fatalf("run: %v", err)
	}
}

// halt ends the engine but not its containers.
func (r *rig) halt() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("run: %v", err)
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// importBusybox puts an image of one static busybox into the store.
func importBusybox(t testing.TB, s *image.Store, name string, edit func(*v1.Config)) {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v; apt-get install busybox-static", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	put := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	for _, d := range []string{"bin", "etc", "tmp", "data", "home"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, bin)
	for _, a := range strings.Fields("sh sleep echo cat id ls mount hostname nc env stat head yes seq wget httpd kill true false mkdir touch dd ps stty tr grep") {
		put(tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + a, Linkname: "bin/busybox"}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home:/bin/sh\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\nother:x:2001:\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "data/seed", Mode: 0o640, Uid: 1000, Gid: 1001}, []byte("seeded"))
	w.Close()
	sum := func(b []byte) string { d := sha256.Sum256(b); return hex.EncodeToString(d[:]) }
	cfg := v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}, Cmd: []string{"sh"}}}
	edit(&cfg.Config)
	cfg.RootFS.DiffIDs = []v1.Hash{{Algorithm: "sha256", Hex: sum(layer.Bytes())}}
	raw, _ := json.Marshal(cfg)
	manifest, _ := json.Marshal([]map[string]any{{"Config": sum(raw) + ".json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Mode: 0o644}, manifest)
	put(tar.Header{Typeflag: tar.TypeReg, Name: sum(raw) + ".json", Mode: 0o644}, raw)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "layer.tar", Mode: 0o644}, layer.Bytes())
	w.Close()
	if _, err := s.Import(context.Background(), &archive, nil); err != nil {
		t.Fatal(err)
	}
}

var podCount int

// pod runs a sandbox.
func (r *rig) pod(edit func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	r.t.Helper()
	podCount++
	name := fmt.Sprintf("pod%d", podCount)
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		Hostname: name, LogDirectory: filepath.Join(r.logs, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	if edit != nil {
		edit(cfg)
	}
	resp, err := r.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		r.t.Fatalf("run sandbox: %v", err)
	}
	return resp.PodSandboxId, cfg
}

func shell(script string) *runtimeapi.ContainerConfig {
	podCount++
	name := fmt.Sprintf("c%d", podCount)
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: busybox},
		Command: []string{"/bin/sh", "-c", script}, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}}},
	}
}

func (r *rig) create(sandbox string, sc *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	resp, err := r.CreateContainer(context.Background(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: cfg, SandboxConfig: sc})
	if err != nil {
		r.t.Fatalf("create container: %v", err)
	}
	return resp.ContainerId
}

// run creates and starts a container.
func (r *rig) run(sandbox string, sc *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	id := r.create(sandbox, sc, cfg)
	if _, err := r.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		r.t.Fatalf("start container: %v", err)
	}
	return id
}

func (r *rig) status(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	resp, err := r.ContainerStatus(context.Background(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Status
}

// exited waits for a container's end.
func (r *rig) exited(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	r.mu.Lock()
	c := r.containers[id]
	r.mu.Unlock()
	select {
	case <-c.exited:
	case <-time.After(20 * time.Second):
		r.t.Fatalf("container %s does not end", id)
	}
	return r.status(id)
}

// output runs a script to its end and returns its log without the prefixes.
func (r *rig) output(sandbox string, sc *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (string, *runtimeapi.ContainerStatus) {
	r.t.Helper()
	id := r.run(sandbox, sc, cfg)
	st := r.exited(id)
	return logText(r.t, st.LogPath), st
}

func logText(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, line := range strings.SplitAfter(string(b), "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) < 4 {
			continue
		}
		text := f[3]
		if f[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		out.WriteString(text)
	}
	return out.String()
}
