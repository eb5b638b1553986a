package envtest_test

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"proa.dev/envtest"
	"proa.dev/internal/await"
)

func client(t testing.TB, c *rest.Config) *kubernetes.Clientset {
	t.Helper()
	cs, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

// Twenty side by side know nothing of each other.
func TestManySideBySide(t *testing.T) {
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			cp := envtest.Start(t)
			c := client(t, cp.Config)
			if body, err := c.RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context()); err != nil {
				t.Errorf("not ready: %v, %s", err, body)
			}
			if _, err := c.CoreV1().Pods("default").Create(t.Context(), pod(fmt.Sprint("pod-", i)), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			list, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Items) != 1 || list.Items[0].Name != fmt.Sprint("pod-", i) || list.Items[0].Spec.NodeName != "" {
				t.Errorf("pods: %+v", list.Items)
			}
		})
	}
}

// What one control plane started has ended when Stop returns, watches of clients
// that still listen too.
func TestNothingIsLeft(t *testing.T) {
	// Whatever is made once in a process is made now.
	warm, err := envtest.Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := warm.Stop(); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for range 3 {
		cp, err := envtest.Launch(t.Context(), envtest.Controllers("*"))
		if err != nil {
			t.Fatal(err)
		}
		c := client(t, cp.Config)
		w, err := c.CoreV1().RESTClient().Get().AbsPath("/api/v1/pods").Param("watch", "1").Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := cp.Stop(); err != nil {
			t.Fatal(err)
		}
		// The server ends its watches. One that it waited for until its time of grace
		// was over would have been cut.
		if rest, err := io.ReadAll(w); err != nil || len(rest) > 0 {
			t.Errorf("the watch was cut: %v, %q", err, rest)
		}
		w.Close()
		if err := cp.Stop(); err != nil {
			t.Errorf("stop again: %v", err)
		}
	}
	if err := await.Until(t.Context(), 5*time.Second, "goroutines end", func() error {
		if now := runtime.NumGoroutine(); now > before {
			return fmt.Errorf("%d before, %d now", before, now)
		}
		return nil
	}); err != nil {
		buf := make([]byte, 1<<20)
		t.Fatalf("%v\n%s", err, buf[:runtime.Stack(buf, true)])
	}
}

// By default nothing runs; what is chosen does.
func TestControllers(t *testing.T) {
	cp := envtest.Start(t, envtest.Controllers("garbagecollector", "namespace", "serviceaccount"))
	c := client(t, cp.Config)
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await.True(t, 10*time.Second, "the service account", func() bool {
		_, err := c.CoreV1().ServiceAccounts("shop").Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	owner, err := c.CoreV1().ConfigMaps("shop").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := pod("owned")
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}}
	got, err := c.CoreV1().Pods("shop").Create(t.Context(), owned, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Spec.ServiceAccountName != "default" {
		t.Errorf("admission of service accounts is off beside their controller: %q", got.Spec.ServiceAccountName)
	}
	if err := c.CoreV1().ConfigMaps("shop").Delete(t.Context(), "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await.True(t, 10*time.Second, "the owned pod to go", func() bool {
		_, err := c.CoreV1().Pods("shop").Get(t.Context(), "owned", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if err := c.CoreV1().Namespaces().Delete(t.Context(), "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await.True(t, 10*time.Second, "the namespace to go", func() bool {
		_, err := c.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

func TestUsers(t *testing.T) {
	cp := envtest.Start(t, envtest.Objects(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "devs"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "devs", APIGroup: rbacv1.GroupName}},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"}},
	), envtest.Controllers("clusterrole-aggregation")) // without it the role edit is empty
	cfg, err := cp.User("alice", "devs")
	if err != nil {
		t.Fatal(err)
	}
	file, err := envtest.Kubeconfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if cfg, err = clientcmd.RESTConfigFromKubeConfig(file); err != nil {
		t.Fatal(err)
	}
	alice := client(t, cfg)
	await.True(t, 10*time.Second, "alice to create pods", func() bool {
		_, err := alice.CoreV1().Pods("shop").Create(t.Context(), pod("p"), metav1.CreateOptions{})
		return err == nil || apierrors.IsAlreadyExists(err)
	})
	if _, err := alice.CoreV1().Pods("default").Create(t.Context(), pod("p"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("alice in default: %v", err)
	}
	// Tokens of service accounts are issued and taken.
	admin := client(t, cp.Config)
	if _, err := admin.CoreV1().ServiceAccounts("shop").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "bot"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bot, err := admin.CoreV1().ServiceAccounts("shop").CreateToken(t.Context(), "bot", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err == nil {
		_, err = client(t, &rest.Config{Host: cp.URL, BearerToken: bot.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: cp.Config.CAData}}).CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{})
	}
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "system:serviceaccount:shop:bot") {
		t.Errorf("the bot: %v", err)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	before := runtime.NumGoroutine()
	for _, c := range []struct {
		with envtest.Option
		want string
	}{
		{envtest.CRDs(filepath.Join(dir, "none")), "no such file"},
		{envtest.Controllers("captain"), "there is none of that name"},
		{envtest.DisableAdmission("Nonsense"), "there is no plugin of that name"},
		{envtest.Objects("nothing"), "no Kubernetes object"},
	} {
		if _, err := envtest.Launch(t.Context(), c.with); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := envtest.Launch(gone); err == nil {
		t.Error("started with a context that has ended")
	}
	await.True(t, 10*time.Second, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

// BenchmarkStart is the time from nothing to the first answer, and what one more
// control plane takes in memory.
func BenchmarkStart(b *testing.B) {
	var all []*envtest.ControlPlane
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc + m.StackInuse)
	}
	cp, err := envtest.Launch(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer cp.Stop()
	before := heap()
	b.ResetTimer()
	for range b.N {
		cp, err := envtest.Launch(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, cp)
	}
	b.StopTimer()
	b.ReportMetric((heap()-before)/float64(b.N)/1e6, "MB/plane")
	for _, cp := range all {
		cp.Stop()
	}
}
