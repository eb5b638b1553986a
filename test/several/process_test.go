package several

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"proa.dev/internal/await"
	"proa.dev/store/etcd/etcdtest"
)

// proa runs the built program: ../../bin/proa, or what PROA names. It needs root.
func proa(t *testing.T, args ...string) string {
	t.Helper()
	path := os.Getenv("PROA")
	if path == "" {
		var err error
		if path, err = filepath.Abs("../../bin/proa"); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("proa %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// process is one server of docs/recipes/servers-on-etcd.md.
type process struct {
	name, dir string
	*kubernetes.Clientset
}

func (p *process) config() string { return filepath.Join(p.dir, "admin.kubeconfig") }

// pid of the server, from its run directory.
func (p *process) pid(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/run/proa", p.name, "proa.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestProcesses walks docs/recipes/servers-on-etcd.md with the program itself: two
// servers on one etcd, the leader killed.
func TestProcesses(t *testing.T) {
	e := etcdtest.Start(t)
	servers := make([]*process, 2)
	for i := range servers {
		p := &process{name: fmt.Sprintf("several-%d-%d", os.Getpid(), i), dir: filepath.Join(t.TempDir(), "data")}
		servers[i] = p
		if i > 0 {
			// The cluster's keys are copied.
			if err := os.CopyFS(filepath.Join(p.dir, "pki"), os.DirFS(filepath.Join(servers[0].dir, "pki"))); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { proa(t, "delete", "--name", p.name, "--data-dir", p.dir) })
		proa(t, "up", "--name", p.name, "--data-dir", p.dir, "--kubeconfig", filepath.Join(t.TempDir(), "config"), "--no-node", "--tls-san", "api.example.org",
			"--service-network", "10.247.0.0/24", "--pod-network", "10.246.0.0/16", "--etcd-servers", e.URL)
		config, err := clientcmd.BuildConfigFromFlags("", p.config())
		if err != nil {
			t.Fatal(err)
		}
		if p.Clientset, err = kubernetes.NewForConfig(config); err != nil {
			t.Fatal(err)
		}
	}
	one, two := servers[0], servers[1]
	ctx := t.Context()
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "1"}}
	if _, err := one.CoreV1().ConfigMaps("default").Create(ctx, m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := two.CoreV1().ConfigMaps("default").Get(ctx, "a", metav1.GetOptions{}); err != nil || got.Data["k"] != "1" {
		t.Fatalf("what one server wrote the other says is %v, %v", got, err)
	}
	// What one seals the other opens.
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"k": []byte("hidden")}}
	if _, err := two.CoreV1().Secrets("default").Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := one.CoreV1().Secrets("default").Get(ctx, "s", metav1.GetOptions{}); err != nil || !bytes.Equal(got.Data["k"], secret.Data["k"]) {
		t.Fatalf("the secret is %v, %v", got, err)
	}
	holder := func(p *process) (string, error) {
		l, err := p.CoordinationV1().Leases("kube-system").Get(ctx, "proa", metav1.GetOptions{})
		if err != nil || l.Spec.HolderIdentity == nil {
			return "", errors.Join(errors.New("nobody leads"), err)
		}
		return *l.Spec.HolderIdentity, nil
	}
	first, err := holder(two)
	if err != nil {
		t.Fatal(err)
	}
	// The one that came first leads; it is killed where it stands.
	pid := one.pid(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await.Nil(t, time.Minute, "the other server leads", func() error {
		now, err := holder(two)
		if err == nil && now == first {
			err = fmt.Errorf("%s still leads", now)
		}
		return err
	})
	// It decides: a namespace gets its account, and goes.
	if _, err := two.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await.Nil(t, time.Minute, "the default service account of a new namespace", func() error {
		_, err := two.CoreV1().ServiceAccounts("after").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	// The killed one comes again, with what it was told at first.
	proa(t, "up", "--name", one.name, "--data-dir", one.dir, "--kubeconfig", filepath.Join(t.TempDir(), "config"))
	if one.pid(t) == pid {
		t.Fatal("the server that was killed runs")
	}
	if got, err := one.CoreV1().ConfigMaps("default").Get(ctx, "a", metav1.GetOptions{}); err != nil || got.Data["k"] != "1" {
		t.Fatalf("after it has come again: %v, %v", got, err)
	}
}
