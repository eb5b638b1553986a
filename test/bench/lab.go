package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client"
	"proa.dev/kind"
)

// lab is one measurement's place: a directory, a copy of proa and a cluster.
// The copy keeps its memory apart from other clusters of the same binary, which
// would share pages with it and lower its PSS.
type lab struct {
	options
	tmp     string
	cluster string
	port    int
	made    bool // the cluster's files may exist
}

func newLab(o options) (*lab, error) {
	tmp, err := os.MkdirTemp(o.dir, "proa-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	l := &lab{options: o, tmp: tmp, cluster: fmt.Sprintf("bench-%d", os.Getpid())}
	l.proa = filepath.Join(tmp, "proa")
	if err := copyProgram(o.proa, l.proa); err != nil {
		l.close()
		return nil, fmt.Errorf("copy proa: %w", err)
	}
	return l, nil
}

// copyProgram leaves the copy in the page cache as a machine that has started
// anew would have it, read piece by piece: the kernel maps files in the pieces in
// which it holds them, and holds what was written at once in large ones.
func copyProgram(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_RDWR, 0o755)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	_, err = drain(io.NopCloser(io.NewSectionReader(f, 0, int64(len(data)))))
	return err
}

func (l *lab) close() error {
	var err error
	if l.made {
		err = l.remove(context.Background())
	}
	return errors.Join(err, os.RemoveAll(l.tmp))
}

func (l *lab) data() string { return filepath.Join(l.tmp, "data") }

// command runs proa and returns its output in the error, if it fails.
func (l *lab) command(ctx context.Context, args ...string) error {
	args = append([]string{"--name", l.cluster, "--data-dir", l.data()}, args...)
	out, err := exec.CommandContext(ctx, l.proa, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("proa %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// begin starts the cluster without waiting; wait returns when `proa up` has.
func (l *lab) begin(ctx context.Context, flags ...string) (wait func() error, err error) {
	if l.port == 0 {
		if l.port, err = freePort(); err != nil {
			return nil, err
		}
	}
	l.made = true
	args := append([]string{"--name", l.cluster, "--data-dir", l.data(), "up", "--kubeconfig", filepath.Join(l.tmp, "kubeconfig"),
		"--api-port", strconv.Itoa(l.port)}, flags...)
	cmd := exec.CommandContext(ctx, l.proa, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("proa up: %w\n%s", err, out.Bytes())
		}
		return nil
	}, nil
}

func (l *lab) up(ctx context.Context, flags ...string) error {
	wait, err := l.begin(ctx, flags...)
	if err != nil {
		return err
	}
	return wait()
}

// stage is a server without a node: it is up, and its process is pid.
func (l *lab) stage(ctx context.Context) (pid int, err error) {
	if err := l.up(ctx, "--no-node"); err != nil {
		return 0, err
	}
	return l.pid()
}

// stageIn is stage with a namespace for the load and a client with every right.
func (l *lab) stageIn(ctx context.Context, namespace string) (pid int, admin *client.HTTP, err error) {
	if pid, err = l.stage(ctx); err != nil {
		return 0, nil, err
	}
	if admin, err = l.client(); err != nil {
		return 0, nil, err
	}
	if err := makeNamespace(ctx, admin, namespace); err != nil {
		admin.Close()
		return 0, nil, err
	}
	return pid, admin, nil
}

func (l *lab) down(ctx context.Context) error { return l.command(ctx, "down") }

func (l *lab) remove(ctx context.Context) error {
	l.made = false
	return l.command(ctx, "delete")
}

func freePort() (int, error) {
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.Addr().(*net.TCPAddr).Port, nil
}

const imageName = "proa-bench/busybox:v1"

// importImage brings a busybox in.
func (l *lab) importImage(ctx context.Context, archive string) error {
	return l.command(ctx, "image", "import", archive)
}

// makeImage writes an archive with Debian's static busybox.
func (l *lab) makeImage(ctx context.Context) (string, error) {
	archive := filepath.Join(l.tmp, "busybox.tar")
	out, err := exec.CommandContext(ctx, "go", "run", "proa.dev/tools/mkimage", "-o", archive, "-name", imageName,
		"-file", "/bin/busybox:/bin/busybox", "-link", "/bin/busybox:/bin/sh", "-cmd", "/bin/sh").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make an image: %w\n%s", err, out)
	}
	return archive, nil
}

// tlsConfig has the administrator's certificate.
func (l *lab) tlsConfig() (*tls.Config, error) {
	pki := filepath.Join(l.data(), "pki")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "admin.crt"), filepath.Join(pki, "admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's certificate is not complete")
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

func (l *lab) url() string { return fmt.Sprintf("https://127.0.0.1:%d", l.port) }

// client speaks Protobuf over HTTP/2 as the administrator.
func (l *lab) client() (*client.HTTP, error) {
	cfg, err := l.tlsConfig()
	if err != nil {
		return nil, err
	}
	return client.NewHTTP(client.HTTPConfig{Servers: []string{l.url()}, TLS: cfg})
}

// pid of the server.
func (l *lab) pid() (int, error) {
	data, err := os.ReadFile(filepath.Join("/run/proa", l.cluster, "proa.pid"))
	if err != nil {
		return 0, fmt.Errorf("find the server: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// processes are the server and the helpers that run from the data directory.
func (l *lab) processes() ([]int, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err == nil && strings.HasPrefix(exe, l.tmp+"/") {
			out = append(out, pid)
		}
	}
	return out, nil
}

// memory in bytes.
type memory struct{ pss, anon int64 }

// memoryOf adds up processes. One that ends meanwhile counts nothing.
func memoryOf(pids []int) (m memory, err error) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return m, err
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue
			}
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			switch f[0] {
			case "Pss:":
				m.pss += kb << 10
			case "Pss_Anon:":
				m.anon += kb << 10
			}
		}
	}
	return m, nil
}

func (l *lab) memory() (memory, error) {
	pids, err := l.processes()
	if err != nil {
		return memory{}, err
	}
	return memoryOf(pids)
}

// cpuOf is the processor time of processes so far.
func cpuOf(pids ...int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 {
			continue
		}
		for _, x := range f[11:13] { // utime and stime, in 1/100 s
			n, _ := strconv.ParseInt(x, 10, 64)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}

func ownCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// stopwatch measures wall clock and the processor time of both sides.
type stopwatch struct {
	pid         int // 0: everything is in this process
	began       time.Time
	server, own time.Duration
}

func startWatch(pid int) stopwatch {
	s := stopwatch{pid: pid, own: ownCPU()}
	if pid != 0 {
		s.server = cpuOf(pid)
	}
	s.began = time.Now()
	return s
}

// stop fills the figure's CPU columns and returns the wall clock.
func (s stopwatch) stop(f *Figure) time.Duration {
	wall := time.Since(s.began)
	f.Wall += wall.Seconds()
	own := (ownCPU() - s.own).Seconds()
	if s.pid == 0 {
		f.ServerCPU += own
	} else {
		f.ServerCPU += (cpuOf(s.pid) - s.server).Seconds()
		f.LoadCPU += own
	}
	return wall
}

// busyPod runs busybox until it is told to end.
func busyPod(namespace, name string) *corev1.Pod {
	zero := int64(30)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "bench"}},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &zero, Containers: []corev1.Container{busyContainer()}},
	}
}

func busyContainer() corev1.Container {
	return corev1.Container{Name: "main", Image: imageName, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"}}
}

// create tries again while the namespace's service account is on its way.
func create(ctx context.Context, c client.Client, p *corev1.Pod) error {
	for limit := time.Now().Add(10 * time.Second); ; {
		_, err := c.Create(ctx, kind.Pod, p, metav1.CreateOptions{})
		if err == nil || !apierrors.IsForbidden(err) || time.Now().After(limit) {
			return err
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// follow watches a kind from the beginning until done says so.
func follow[T kind.Object](ctx context.Context, c client.Client, k *kind.Kind, namespace string, limit time.Duration, done func(t watch.EventType, o T) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("watch %s: nothing of what was waited for within %s", k, limit))
	defer cancel()
	list, err := c.List(ctx, k, namespace, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range list.Items {
		if done(watch.Added, o.(T)) {
			return nil
		}
	}
	w, err := c.Watch(ctx, k, namespace, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return errors.Join(fmt.Errorf("watch %s: it ended", k), context.Cause(ctx))
			}
			if e.Type == watch.Error {
				return apierrors.FromObject(e.Object)
			}
			if o, ok := e.Object.(T); ok && done(e.Type, o) {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func running(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }

func conditionTrue[C any](list []C, is func(C) bool) bool {
	for _, c := range list {
		if is(c) {
			return true
		}
	}
	return false
}

func nodeReady(n *corev1.Node) bool {
	return conditionTrue(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func podReady(p *corev1.Pod) bool {
	return conditionTrue(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// say tells progress on standard error.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "  … "+format+"\n", args...) }

// drain reads and drops.
func drain(r io.ReadCloser) (int64, error) {
	defer r.Close()
	return io.Copy(io.Discard, r)
}
