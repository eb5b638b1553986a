package parts_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"proa.dev/act"
	"proa.dev/apiserver/apitest"
	"proa.dev/client"
	"proa.dev/control"
	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/view"
)

// kubelet stands for scheduler and node: pods are bound, run and are ready; pods
// of jobs succeed; what is being deleted ends.
func kubelet() control.Part {
	return control.Part{
		Name: "kubelet", Kind: kind.Pod,
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			p := view.Get[*corev1.Pod](s, kind.Pod, ref.Namespace, ref.Name)
			zero := int64(0)
			switch {
			case p == nil:
			case p.DeletionTimestamp != nil && *p.DeletionGracePeriodSeconds > 0:
				return act.List{act.Delete{Target: ref, UID: p.UID, GraceSeconds: &zero}}, time.Time{}
			case p.DeletionTimestamp != nil:
			case p.Spec.NodeName == "":
				return act.List{act.Bind{Target: ref, UID: p.UID, Node: "n1"}}, time.Time{}
			case p.Status.Phase == corev1.PodPending:
				h := fnv.New32a()
				h.Write([]byte(p.UID))
				ip := fmt.Sprintf("10.%d.%d.%d", h.Sum32()>>16&0xff, h.Sum32()>>8&0xff, h.Sum32()&0xff)
				w := p.DeepCopy()
				w.Status.Phase, w.Status.PodIP, w.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
				w.Status.Conditions = append(w.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now)})
				if p.Labels["job-name"] != "" {
					w.Status.Phase, w.Status.Conditions = corev1.PodSucceeded, nil
				}
				return act.List{act.Update{Kind: kind.Pod, Object: w, Sub: "status"}}, time.Time{}
			}
			return nil, time.Time{}
		},
		Writes: []control.Write{{Kind: kind.Pod, Verbs: []string{"bind", "delete"}}, {Kind: kind.Pod, Sub: "status", Verbs: []string{"update"}}},
	}
}

type cluster struct {
	*testing.T
	client client.Client
	view   *view.View
	writes atomic.Int64
}

// counting counts the writes of controllers.
type counting struct {
	client.Client
	n *atomic.Int64
}

func (c counting) Update(ctx context.Context, k *kind.Kind, o kind.Object, sub string, u metav1.UpdateOptions) (kind.Object, error) {
	c.n.Add(1)
	return c.Client.Update(ctx, k, o, sub, u)
}

func startCluster(t *testing.T) *cluster {
	api := apitest.Start(t, nil)
	c := &cluster{T: t, client: api.Server.Local(apitest.Admin), view: api.View}
	rt := control.New(control.Config{Parts: append(all(), kubelet()), View: api.View, Clock: env.SystemClock(),
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
		Client: func(string) client.Client { return counting{c.client, &c.writes} }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rt.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	c.apply(`{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`)
	c.apply(`{apiVersion: v1, kind: Node, metadata: {name: n1}}`)
	n := view.Get[*corev1.Node](api.View.Snapshot(), kind.Node, "", "n1").DeepCopy()
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.1"}}
	if _, err := c.client.Update(t.Context(), kind.Node, n, "status", metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) apply(text string) {
	c.Helper()
	var tm metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(text), &tm); err != nil {
		c.Fatal(err)
	}
	k := kind.All.ByKind(tm.GroupVersionKind())
	o := k.New()
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		c.Fatal(err)
	}
	if k.Scope == kind.Namespaced {
		o.SetNamespace("shop")
	}
	if _, err := c.client.Create(c.Context(), k, o, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) until(what string, ok func(view.Snapshot) bool) {
	c.Helper()
	if err := await.Until(c.Context(), 30*time.Second, what, func() error {
		if s := c.view.Snapshot(); !ok(s) {
			return fmt.Errorf("not so at revision %d", s.Revision())
		}
		return nil
	}); err != nil {
		for o := range c.view.Snapshot().All(kind.Pod, "") {
			c.Logf("%s %v %v", o.GetName(), o.(*corev1.Pod).Status.Phase, o.GetDeletionTimestamp())
		}
		c.Fatal(err)
	}
}

func (c *cluster) delete(k *kind.Kind, name string, how metav1.DeletionPropagation) {
	c.Helper()
	if err := c.client.Delete(c.Context(), k, "shop", name, metav1.DeleteOptions{PropagationPolicy: &how}); err != nil {
		c.Fatal(err)
	}
}

func pods(s view.Snapshot, ok func(*corev1.Pod) bool) (n int) {
	for p := range view.List[*corev1.Pod](s, kind.Pod, "shop") {
		if ok(p) {
			n++
		}
	}
	return n
}

// On the real API server: roll out, roll over, a service that follows, a job, and
// everything gone again by each of the ways of deleting.
func TestOnAnAPIServer(t *testing.T) {
	c := startCluster(t)
	c.until("account and certificate", func(s view.Snapshot) bool {
		return s.Get(kind.ServiceAccount, "shop", "default") != nil && s.Get(kind.ConfigMap, "shop", "kube-root-ca.crt") != nil
	})
	c.apply(`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}}`)
	deploy := `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 5, selector: {matchLabels: {app: web}},
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: "web:1"}]}}}}`
	c.apply(deploy)
	rolled := func(image string) func(view.Snapshot) bool {
		return func(s view.Snapshot) bool {
			d := view.Get[*appsv1.Deployment](s, kind.Deployment, "shop", "web")
			return d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas == 5 && d.Status.AvailableReplicas == 5 && d.Status.Replicas == 5 &&
				pods(s, func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == image && p.DeletionTimestamp == nil }) == 5
		}
	}
	c.until("five of version 1", rolled("web:1"))
	if _, err := c.client.Patch(t.Context(), kind.Deployment, "shop", "web", types.StrategicMergePatchType,
		[]byte(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"web:2"}]}}}}`), "", metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.until("five of version 2", rolled("web:2"))
	c.until("five endpoints", func(s view.Snapshot) bool {
		n := 0
		for es := range view.List[*discoveryv1.EndpointSlice](s, kind.EndpointSlice, "shop") {
			for _, e := range es.Endpoints {
				if *e.Conditions.Ready {
					n++
				}
			}
		}
		return n == 5
	})
	c.apply(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: log}, spec: {selector: {matchLabels: {app: log}},
  template: {metadata: {labels: {app: log}}, spec: {containers: [{name: c, image: "log:1"}]}}}}`)
	c.until("a daemon", func(s view.Snapshot) bool {
		return view.Get[*appsv1.DaemonSet](s, kind.DaemonSet, "shop", "log").Status.NumberAvailable == 1
	})
	c.apply(`{apiVersion: batch/v1, kind: Job, metadata: {name: sum}, spec: {completions: 7, parallelism: 3,
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "sum:1"}]}}}}`)
	c.until("seven completions", func(s view.Snapshot) bool {
		j := view.Get[*batchv1.Job](s, kind.Job, "shop", "sum")
		return j.Status.Succeeded == 7 && j.Status.CompletionTime != nil
	})
	c.delete(kind.Job, "sum", metav1.DeletePropagationForeground)
	c.delete(kind.DaemonSet, "log", metav1.DeletePropagationBackground)
	c.until("job and daemon set are gone, with their pods", func(s view.Snapshot) bool {
		return s.Get(kind.Job, "shop", "sum") == nil && pods(s, func(p *corev1.Pod) bool { return p.Labels["app"] != "web" }) == 0
	})
	c.delete(kind.Deployment, "web", metav1.DeletePropagationOrphan)
	c.until("the deployment is gone, its pods are not", func(s view.Snapshot) bool {
		return s.Get(kind.Deployment, "shop", "web") == nil && pods(s, func(*corev1.Pod) bool { return true }) == 5
	})
	c.apply(deploy)
	c.until("the orphans are adopted and rolled back", rolled("web:1"))
	if err := c.client.Delete(t.Context(), kind.Namespace, "", "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.until("the namespace is gone", func(s view.Snapshot) bool {
		return s.Get(kind.Namespace, "", "shop") == nil && s.Len(kind.Pod) == 0 && s.Len(kind.ReplicaSet) == 0 && s.Len(kind.EndpointSlice) == 0
	})
}

// Five hundred pods come up and go, and nobody writes for ever.
func TestManyPodsSettle(t *testing.T) {
	c := startCluster(t)
	began := time.Now()
	c.apply(`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}}`)
	c.apply(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 500, selector: {matchLabels: {app: web}},
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: "web:1"}]}}}}`)
	c.until("500 available", func(s view.Snapshot) bool {
		d := view.Get[*appsv1.Deployment](s, kind.Deployment, "shop", "web")
		return d.Status.AvailableReplicas == 500
	})
	t.Logf("500 pods available after %v, %d updates", time.Since(began), c.writes.Load())
	// Quiet: the revision stands still for half a second.
	last, since := int64(0), time.Now()
	await.Nil(t, 20*time.Second, "controllers write no longer", func() error {
		if r := c.view.Snapshot().Revision(); r != last {
			last, since = r, time.Now()
		}
		if quiet := time.Since(since); quiet < 500*time.Millisecond {
			return fmt.Errorf("revision %d is %v old", last, quiet)
		}
		return nil
	})
	c.delete(kind.Deployment, "web", metav1.DeletePropagationForeground)
	c.until("all are gone", func(s view.Snapshot) bool {
		return s.Get(kind.Deployment, "shop", "web") == nil && s.Len(kind.Pod) == 0
	})
	t.Logf("gone after %v", time.Since(began))
}
