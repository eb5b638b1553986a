// Package helm holds proa to what Helm 4, as a Go module, does with a chart that has
// a definition, a custom resource, and hooks: install, upgrade, roll back, uninstall.
// The API server is the one of package envtest with the controllers on; a fake
// kubelet in the test finishes the pods of the hooks' Jobs.
package helm

import (
	"context"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"proa.dev/envtest"
	"proa.dev/test/clients/lab"
)

// kubelet lets every pod of a Job succeed.
func kubelet(ctx context.Context, t *testing.T, c *kubernetes.Clientset) {
	w, err := c.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name"})
	if err != nil {
		t.Error(err)
		return
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		p, ok := e.Object.(*corev1.Pod)
		if !ok || p.Status.Phase == corev1.PodSucceeded || p.DeletionTimestamp != nil {
			continue
		}
		patch := []byte(`{"status":{"phase":"Succeeded"}}`)
		if _, err := c.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			t.Errorf("finish pod %s: %v", p.Name, err)
		}
	}
}

func TestLifeOfARelease(t *testing.T) {
	cp := envtest.Start(t, envtest.Controllers("*", "-scheduler"))
	c, err := kubernetes.NewForConfig(cp.Config)
	lab.Must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go kubelet(ctx, t, c)

	flags := genericclioptions.NewConfigFlags(false)
	ns := "default"
	flags.Namespace = &ns
	flags.WrapConfigFn = func(*rest.Config) *rest.Config { return rest.CopyConfig(cp.Config) }
	cfg := action.NewConfiguration()
	lab.Must(t, cfg.Init(flags, ns, "secret"))
	chart, err := loader.Load("testdata/chart")
	lab.Must(t, err)

	check := func(motto string, replicas int32, hook string) {
		t.Helper()
		cm, err := c.CoreV1().ConfigMaps(ns).Get(ctx, "one", metav1.GetOptions{})
		lab.Must(t, err)
		if cm.Data["motto"] != motto || cm.Data["apis"] != "true" || !strings.HasPrefix(cm.Data["kube"], "v1.") {
			t.Errorf("config map: %v", cm.Data)
		}
		var d *appsv1.Deployment
		d, err = c.AppsV1().Deployments(ns).Get(ctx, "one", metav1.GetOptions{})
		lab.Must(t, err)
		if *d.Spec.Replicas != replicas || d.Spec.Template.Spec.Containers[0].Env[0].Value != motto {
			t.Errorf("deployment: %+v", d.Spec)
		}
		after, err := c.CoreV1().ConfigMaps(ns).Get(ctx, "one-after", metav1.GetOptions{})
		lab.Must(t, err)
		if after.Data["revision"] != hook {
			t.Errorf("the hook after: %v, want %s", after.Data, hook)
		}
		boat, err := c.RESTClient().Get().AbsPath("/apis/sea.example.com/v1/namespaces/default/boats/one").DoRaw(ctx)
		lab.Must(t, err)
		if !strings.Contains(string(boat), `"name":"proa"`) {
			t.Errorf("boat: %s", boat)
		}
	}

	in := action.NewInstall(cfg)
	in.ReleaseName, in.Namespace, in.Timeout, in.WaitStrategy = "one", ns, time.Minute, kube.HookOnlyStrategy
	_, err = in.RunWithContext(ctx, chart, map[string]any{})
	lab.Must(t, err)
	check("one hull", 2, "1")

	up := action.NewUpgrade(cfg)
	up.Namespace, up.Timeout, up.WaitStrategy = ns, time.Minute, kube.HookOnlyStrategy
	_, err = up.RunWithContext(ctx, "one", chart, map[string]any{"motto": "no ballast", "replicas": 3})
	lab.Must(t, err)
	check("no ballast", 3, "2")

	back := action.NewRollback(cfg)
	back.Version, back.Timeout, back.WaitStrategy = 1, time.Minute, kube.HookOnlyStrategy
	lab.Must(t, back.Run("one"))
	check("one hull", 2, "1") // the hook is the first revision's

	out := action.NewUninstall(cfg)
	out.Timeout, out.WaitStrategy = time.Minute, kube.StatusWatcherStrategy
	_, err = out.Run("one")
	lab.Must(t, err)
	if _, err := c.AppsV1().Deployments(ns).Get(ctx, "one", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the deployment after uninstall: %v", err)
	}
	secrets, err := c.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm"})
	lab.Must(t, err)
	if len(secrets.Items) != 0 {
		t.Errorf("%d releases are still kept", len(secrets.Items))
	}
}
