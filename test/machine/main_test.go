package machine

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"proa.dev/internal/await"
)

var (
	binary     string // the proa under test
	images     string // directory of archives
	scratch    string // of this run; every cluster keeps its data below
	shared     *box   // started on first use
	sharedOnce sync.Once
	sharedErr  error
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := 1
	defer func() { os.Exit(code) }()
	if os.Geteuid() != 0 {
		fmt.Println("machine tests: not root; they start real containers: run them with sudo")
		return
	}
	binary = os.Getenv("PROA")
	if binary == "" {
		binary, _ = filepath.Abs("../../bin/proa")
	}
	if _, err := os.Stat(binary); err != nil {
		fmt.Printf("machine tests: %v; `make build` makes it\n", err)
		return
	}
	// Most of a test is waiting for containers, not computing.
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(defaultParallel) {
		flag.Set("test.parallel", "6")
	}
	var err error
	if scratch, err = os.MkdirTemp("", "proa-machine-"); err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(scratch)
	if images, err = buildImages(); err != nil {
		fmt.Println("machine tests: build images:", err)
		return
	}
	code = m.Run()
	if shared != nil {
		if r := shared.tryProa("delete"); r.code != 0 {
			fmt.Println(r)
			code = 1
		}
	}
}

// box is one cluster of these tests.
type box struct {
	name, data, kubeconfig string
	args                   []string // of up
	ns                     *space   // run it in these namespaces; nil means the machine's

	mu     sync.Mutex
	client *kubernetes.Clientset
}

// newBox names a cluster that does not run yet and deletes it at the end.
func newBox(t testing.TB, name string, args ...string) *box {
	b := boxAt(name, args...)
	t.Cleanup(func() {
		if t.Failed() {
			b.dumpLog(t)
		}
		if r := b.tryProa("delete"); r.code != 0 {
			t.Errorf("cluster is not deleted: %s", r)
			b.dumpLog(t)
		}
	})
	return b
}

func boxAt(name string, args ...string) *box {
	dir := filepath.Join(scratch, name)
	b := &box{name: "machine-" + name, data: filepath.Join(dir, "data"), kubeconfig: filepath.Join(dir, "kubeconfig"), args: args}
	os.MkdirAll(dir, 0o755)
	return b
}

// cluster returns the shared one, running and with all images.
func cluster(t testing.TB) *box {
	t.Helper()
	sharedOnce.Do(func() {
		b := boxAt("shared")
		shared = b
		if r := b.tryUp(); r.code != 0 {
			sharedErr = errors.New(r.String())
			return
		}
		r := b.tryProa("image", "import", filepath.Join(images, "busybox.tar"), filepath.Join(images, "web-v1.tar"), filepath.Join(images, "web-v2.tar"))
		if r.code != 0 {
			sharedErr = errors.New(r.String())
		}
	})
	if sharedErr != nil {
		t.Fatalf("the shared cluster did not start: %v", sharedErr)
	}
	return shared
}

// result of a command.
type result struct {
	cmd      string
	out, err string
	code     int
	took     time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit code %d after %s\n%s%s", r.cmd, r.code, r.took.Round(time.Millisecond), r.out, r.err)
}

// command runs a program to its end, two minutes at most.
func command(ns *space, stdin string, env []string, name string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr, c.Env = &out, &errs, append(os.Environ(), env...)
	if stdin != "" {
		c.Stdin = strings.NewReader(stdin)
	}
	c.WaitDelay = 5 * time.Second
	began := time.Now()
	err := ns.do(c.Run)
	r := result{cmd: filepath.Base(name) + " " + strings.Join(args, " "), out: out.String(), err: errs.String(), took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		r.code, r.err = -1, r.err+err.Error()
	}
	return r
}

func (b *box) flags(args ...string) []string {
	return append([]string{"--name", b.name, "--data-dir", b.data}, args...)
}

func (b *box) tryProa(args ...string) result {
	return command(b.ns, "", nil, binary, b.flags(args...)...)
}

func (b *box) proa(t testing.TB, args ...string) string {
	t.Helper()
	r := b.tryProa(args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.out
}

func (b *box) tryUp(args ...string) result {
	return b.tryProa(append(append([]string{"up", "--kubeconfig", b.kubeconfig}, b.args...), args...)...)
}

func (b *box) up(t testing.TB, args ...string) result {
	t.Helper()
	r := b.tryUp(args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r
}

// load imports archives of this package.
func (b *box) load(t testing.TB, archives ...string) {
	t.Helper()
	for _, a := range archives {
		b.proa(t, "image", "import", filepath.Join(images, a))
	}
}

// kubectl runs the real one, against a namespace unless that is "".
func (b *box) tryKubectl(ns string, args ...string) result { return b.kubectlIn("", ns, args...) }

func (b *box) kubectlIn(stdin, ns string, args ...string) result {
	all := b.flags("kubectl")
	if ns != "" {
		all = append(all, "-n", ns)
	}
	return command(b.ns, stdin, nil, binary, append(all, args...)...)
}

func (b *box) kubectl(t testing.TB, ns string, args ...string) string {
	t.Helper()
	r := b.tryKubectl(ns, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.out
}

func (b *box) apply(t testing.TB, ns, manifest string) string {
	t.Helper()
	r := b.kubectlIn(manifest, ns, "apply", "-f", "-")
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.out
}

func (b *box) api(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client == nil {
		b.client = kubernetes.NewForConfigOrDie(b.rest(t))
	}
	return b.client
}

func (b *box) rest(t testing.TB) *rest.Config {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(b.data, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	return cfg
}

// namespace makes one for a test; it is gone a short while after the test, and
// what happened in it is shown when the test failed.
func (b *box) namespace(t testing.TB) string {
	t.Helper()
	ctx := context.Background()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	if _, err := b.api(t).CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b.dump(t, name)
		}
		grace := int64(0)
		b.api(t).CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &grace}, metav1.ListOptions{})
		if err := b.api(t).CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	await.Nil(t, 10*time.Second, "the default service account", func() error {
		_, err := b.api(t).CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return name
}

func (b *box) dump(t testing.TB, ns string) {
	for _, args := range [][]string{{"get", "all", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"}} {
		lines := strings.Split(b.tryKubectl(ns, args...).String(), "\n")
		t.Log(strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
	b.dumpLog(t)
}

// dumpLog shows the warnings and the end of the server's log.
func (b *box) dumpLog(t testing.TB) {
	data, err := os.ReadFile(filepath.Join(b.data, "proa.log"))
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var bad []string
	for _, l := range lines {
		if strings.Contains(l, "level=WARN") || strings.Contains(l, "level=ERROR") {
			bad = append(bad, l)
		}
	}
	if len(bad) > 0 {
		t.Logf("proa.log, the first of %d warnings and errors:\n%s", len(bad), strings.Join(bad[:min(len(bad), 25)], "\n"))
	}
	t.Log("proa.log:\n" + strings.Join(lines[max(0, len(lines)-25):], "\n"))
}

// pod reads a pod.
func (b *box) pod(t testing.TB, ns, name string) *corev1.Pod {
	t.Helper()
	p, err := b.api(t).CoreV1().Pods(ns).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// waitPod waits until a pod is as wanted and returns it.
func (b *box) waitPod(t testing.TB, ns, name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var p *corev1.Pod
	await.Nil(t, time.Minute, "pod "+name+": "+what, func() (err error) {
		if p, err = b.api(t).CoreV1().Pods(ns).Get(context.Background(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !ok(p) {
			return fmt.Errorf("phase %s, containers %+v", p.Status.Phase, states(p))
		}
		return nil
	})
	return p
}

func states(p *corev1.Pod) (s []string) {
	for _, c := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		line := fmt.Sprintf("%s ready=%v restarts=%d", c.Name, c.Ready, c.RestartCount)
		switch {
		case c.State.Waiting != nil:
			line += " waiting: " + c.State.Waiting.Reason + " " + c.State.Waiting.Message
		case c.State.Terminated != nil:
			line += fmt.Sprintf(" ended: %s, exit code %d", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
		}
		s = append(s, line)
	}
	return s
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (b *box) waitReady(t testing.TB, ns, name string) *corev1.Pod {
	t.Helper()
	return b.waitPod(t, ns, name, "Ready", ready)
}

func (b *box) waitPhase(t testing.TB, ns, name string, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	return b.waitPod(t, ns, name, string(phase), func(p *corev1.Pod) bool { return p.Status.Phase == phase })
}

// exec runs a command in a pod.
func (b *box) exec(t testing.TB, ns, pod string, cmd ...string) string {
	t.Helper()
	return b.kubectl(t, ns, append([]string{"exec", pod, "--"}, cmd...)...)
}

// mustHold reports every wanted part that text lacks.
func mustHold(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}
