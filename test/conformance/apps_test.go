package conformance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
)

var apps = schema.GroupVersion{Group: "apps", Version: "v1"}

func init() {
	it("Deployment should have a working scale subresource", scales("deployments"))
	it("Replicaset should have a working scale subresource", scales("replicasets"))
	it("[StatefulSetBasic] should have a working scale subresource", scales("statefulsets"), part("statefulset-controller"))
	it("should get and update a ReplicationController scale", scales("replicationcontrollers"))
	it("should validate Deployment Status endpoints", statuses("deployments"))
	it("should validate Replicaset Status endpoints", statuses("replicasets"))
	it("should validate Statefulset Status endpoints", statuses("statefulsets"))
	it("should verify changes to a daemon set status", statuses("daemonsets"))
	it("Deployment should run the lifecycle of a Deployment", deploymentLife)
	it("RecreateDeployment should delete old pods and create new ones", recreate)
	it("RollingUpdateDeployment should delete old pods and create new ones", rollingAdopts)
	it("deployment should delete old replica sets", oldSets)
	it("deployment should support proportional scaling", proportional)
	it("deployment should support rollover", rollover)
	it("ReplicaSet Replace and Patch tests", replicaSetPatch)
	it("ReplicaSet should adopt matching pods on creation and release no longer matching pods", adoptRelease)
	it("ReplicationController should adopt matching pods on creation", controllerAdopts)
	it("ReplicationController should release no longer matching pods", controllerReleases)
	it("should test the lifecycle of a ReplicationController", controllerLife)
	it("should run and stop simple daemon", daemonSimple)
	it("should run and stop complex daemon", daemonComplex)
	it("should retry creating failed daemon pods", daemonRetries)
	it("should update pod when spec was updated and update strategy is RollingUpdate", daemonRolls)
	it("should rollback without unnecessary restarts", daemonRollback)
	it("should manage the lifecycle of a ControllerRevision", revisions)
	it("should observe PodDisruptionBudget status updated", budgetStatus, part("disruption-controller"))
	it("should update/patch PodDisruptionBudget status", budgetStatusDoor)
	it("should block an eviction until the PDB is updated to allow it", eviction, part("disruption-controller"))
}

// workload makes one of a kind, with n pods.
func (c *cluster) workload(t *testing.T, ns, plural string, n int32) {
	t.Helper()
	var err error
	l, p := labelled("w")
	switch plural {
	case "deployments":
		_, err = c.AppsV1().Deployments(ns).Create(t.Context(), deployment("w", n), metav1.CreateOptions{})
	case "replicasets":
		_, err = c.AppsV1().ReplicaSets(ns).Create(t.Context(), replicaSet("w", n), metav1.CreateOptions{})
	case "statefulsets":
		_, err = c.AppsV1().StatefulSets(ns).Create(t.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: l},
			Spec: appsv1.StatefulSetSpec{Replicas: &n, ServiceName: "test", Selector: &metav1.LabelSelector{MatchLabels: l}, Template: p}}, metav1.CreateOptions{})
	case "daemonsets":
		_, err = c.AppsV1().DaemonSets(ns).Create(t.Context(), daemonSet("w"), metav1.CreateOptions{})
	case "replicationcontrollers":
		_, err = c.CoreV1().ReplicationControllers(ns).Create(t.Context(), controller("w", n), metav1.CreateOptions{})
	}
	ok(t, err)
}

func daemonSet(name string) *appsv1.DaemonSet {
	l, p := labelled(name)
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}, Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: l}, Template: p}}
}

func scales(plural string) func(*testing.T, *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.workload(t, ns, plural, 1)
		c.havePods(t, ns, "app=w", 1)
		gvr := apps.WithResource(plural)
		if plural == "replicationcontrollers" {
			gvr = schema.GroupVersionResource{Version: "v1", Resource: plural}
		}
		api := c.dynamic.Resource(gvr).Namespace(ns)
		replicas := func(u *unstructured.Unstructured) int64 {
			same(t, "kind", u.GroupVersionKind().String(), "autoscaling/v1, Kind=Scale")
			n, _, err := unstructured.NestedInt64(u.Object, "spec", "replicas")
			ok(t, err)
			return n
		}
		s, err := api.Get(t.Context(), "w", metav1.GetOptions{}, "scale")
		ok(t, err)
		same(t, "scale", replicas(s), 1)
		ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
			s, err := api.Get(t.Context(), "w", metav1.GetOptions{}, "scale")
			ok(t, err)
			ok(t, unstructured.SetNestedField(s.Object, int64(2), "spec", "replicas"))
			s, err = api.Update(t.Context(), s, metav1.UpdateOptions{}, "scale")
			if err == nil {
				same(t, "scale after an update", replicas(s), 2)
			}
			return err
		}))
		c.havePods(t, ns, "app=w", 2)
		s, err = api.Patch(t.Context(), "w", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{}, "scale")
		ok(t, err)
		same(t, "scale after a patch", replicas(s), 4)
		c.havePods(t, ns, "app=w", 4)
		u, err := api.Get(t.Context(), "w", metav1.GetOptions{})
		ok(t, err)
		n, _, _ := unstructured.NestedInt64(u.Object, "spec", "replicas")
		same(t, "replicas", n, 4)
	}
}

func statuses(plural string) func(*testing.T, *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.workload(t, ns, plural, 1)
		api := c.dynamic.Resource(apps.WithResource(plural)).Namespace(ns)
		if plural != "statefulsets" || part("statefulset-controller")() == "" {
			c.havePods(t, ns, "app=w", map[bool]int{true: len(c.schedulable(t)), false: 1}[plural == "daemonsets"])
		}
		k := crud{status: `{"conditions":[{"type":"StatusPatched","status":"True","reason":"E2E","message":"by the test"}]}`,
			statusField: []string{"status", "conditions", "StatusPatched"}}
		ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
			u, err := api.Get(t.Context(), "w", metav1.GetOptions{}, "status")
			ok(t, err)
			list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
			ok(t, unstructured.SetNestedSlice(u.Object, append(list, map[string]any{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "by the test"}), "status", "conditions"))
			u, err = api.UpdateStatus(t.Context(), u, metav1.UpdateOptions{})
			if err == nil && !strings.Contains(conditions(u), "StatusUpdate") {
				t.Errorf("the condition is not there after an update: %s", conditions(u))
			}
			return err
		}))
		u, err := api.Patch(t.Context(), "w", types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}},"status":`+k.status+`}`), metav1.PatchOptions{}, "status")
		ok(t, err)
		if !strings.Contains(conditions(u), "StatusPatched") || u.GetAnnotations()["a"] != "b" {
			t.Errorf("the condition is not there after a patch: %s", conditions(u))
		}
	}
}

func conditions(u *unstructured.Unstructured) string {
	list, _, _ := unstructured.NestedFieldNoCopy(u.Object, "status", "conditions")
	return fmt.Sprint(list)
}

// rolledOut waits until a deployment's pods are all new and available.
func (c *cluster) rolledOut(t *testing.T, ns, name string) *appsv1.Deployment {
	t.Helper()
	var d *appsv1.Deployment
	eventually(t, func() string {
		var err error
		d, err = c.AppsV1().Deployments(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		s, n := d.Status, *d.Spec.Replicas
		if s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n {
			return ""
		}
		return fmt.Sprintf("rollout of %s: %+v", name, s)
	})
	return d
}

func (c *cluster) sets(t *testing.T, ns string) []appsv1.ReplicaSet {
	t.Helper()
	l, err := c.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	return l.Items
}

func (c *cluster) changeDeployment(t *testing.T, ns, name string, change func(*appsv1.Deployment)) {
	t.Helper()
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		d, err := c.AppsV1().Deployments(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		change(d)
		_, err = c.AppsV1().Deployments(ns).Update(t.Context(), d, metav1.UpdateOptions{})
		return err
	}))
}

func setEnv(p *corev1.PodTemplateSpec, value string) {
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "VERSION", Value: value}}
}

func deploymentLife(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.AppsV1().Deployments(ns)
	_, err := api.Create(t.Context(), deployment("d", 2), metav1.CreateOptions{})
	ok(t, err)
	c.rolledOut(t, ns, "d")
	patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{"test-deployment": "patched"}},
		"spec": map[string]any{"replicas": 1, "template": map[string]any{"spec": map[string]any{"terminationGracePeriodSeconds": 0}}}})
	d, err := api.Patch(t.Context(), "d", types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", d.Labels["test-deployment"], "patched")
	c.rolledOut(t, ns, "d")
	l, err := c.AppsV1().Deployments("").List(t.Context(), metav1.ListOptions{LabelSelector: "test-deployment=patched"})
	ok(t, err)
	if !slices.ContainsFunc(l.Items, func(d appsv1.Deployment) bool { return d.Namespace == ns }) {
		t.Error("not found by its label")
	}
	c.changeDeployment(t, ns, "d", func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32(2)) })
	c.rolledOut(t, ns, "d")
	d, err = api.Patch(t.Context(), "d", types.StrategicMergePatchType, []byte(`{"status":{"readyReplicas":0,"availableReplicas":0}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "ready replicas as patched", d.Status.ReadyReplicas, 0)
	eventually(t, func() string {
		d, err := api.Get(t.Context(), "d", metav1.GetOptions{})
		ok(t, err)
		if d.Status.ReadyReplicas == 2 {
			return ""
		}
		return "the controller does not mend the status"
	})
	ok(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test-deployment=patched"}))
	gone(t, "deployment", func() error { _, err := api.Get(t.Context(), "d", metav1.GetOptions{}); return err })
}

func recreate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	d := deployment("d", 1)
	d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	_, err := c.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	ok(t, err)
	c.rolledOut(t, ns, "d")
	list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	w, err := c.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	ok(t, err)
	defer w.Stop()
	old := list.Items[0].Name
	c.changeDeployment(t, ns, "d", func(d *appsv1.Deployment) { setEnv(&d.Spec.Template, "2") })
	// Never do old and new pods live together; one whose containers have ended does not
	// live.
	deleted := false
	observe(t, w, "the new pod", func(e watchEvent) bool {
		p := e.Object.(*corev1.Pod)
		if p.Name == old && (e.Type == "DELETED" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed) {
			deleted = true
		}
		if p.Name != old && !deleted {
			t.Fatalf("pod %s came while %s was there", p.Name, old)
		}
		return p.Name != old
	})
	c.rolledOut(t, ns, "d")
}

func rollingAdopts(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	rs := replicaSet("d", 1)
	rs.Name = "adopted"
	rs.Annotations = map[string]string{"deployment.kubernetes.io/revision": "3546343826724305832"}
	setEnv(&rs.Spec.Template, "old")
	_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), rs, metav1.CreateOptions{})
	ok(t, err)
	c.havePods(t, ns, "app=d", 1)
	_, err = c.AppsV1().Deployments(ns).Create(t.Context(), deployment("d", 1), metav1.CreateOptions{})
	ok(t, err)
	d := c.rolledOut(t, ns, "d")
	same(t, "revision", d.Annotations["deployment.kubernetes.io/revision"], "3546343826724305833")
	old, err := c.AppsV1().ReplicaSets(ns).Get(t.Context(), "adopted", metav1.GetOptions{})
	ok(t, err)
	same(t, "replicas of the old set", *old.Spec.Replicas, 0)
	if !metav1.IsControlledBy(old, d) {
		t.Error("the old set is not the deployment's")
	}
	same(t, "replica sets", len(c.sets(t, ns)), 2)
}

func oldSets(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	d := deployment("d", 1)
	d.Spec.RevisionHistoryLimit = new(int32(0))
	_, err := c.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	ok(t, err)
	c.rolledOut(t, ns, "d")
	c.changeDeployment(t, ns, "d", func(d *appsv1.Deployment) { setEnv(&d.Spec.Template, "2") })
	c.rolledOut(t, ns, "d")
	eventually(t, func() string {
		if n := len(c.sets(t, ns)); n != 1 {
			return fmt.Sprintf("%d replica sets", n)
		}
		return ""
	})
}

func proportional(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	d := deployment("d", 10)
	surge, unavailable := intstr.FromInt32(3), intstr.FromInt32(2)
	d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}
	_, err := c.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	ok(t, err)
	c.rolledOut(t, ns, "d")
	first := c.sets(t, ns)[0].Name
	c.changeDeployment(t, ns, "d", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "none" })
	sizes := func(old, new int32) {
		t.Helper()
		eventually(t, func() string {
			sets := c.sets(t, ns)
			if len(sets) != 2 {
				return fmt.Sprintf("%d replica sets", len(sets))
			}
			have := map[bool]int32{}
			for _, s := range sets {
				have[s.Name == first] = *s.Spec.Replicas
			}
			if have[true] != old || have[false] != new {
				return fmt.Sprintf("old and new sets are %d and %d, want %d and %d", have[true], have[false], old, new)
			}
			return ""
		})
	}
	sizes(8, 5)
	eventually(t, func() string {
		d, err := c.AppsV1().Deployments(ns).Get(t.Context(), "d", metav1.GetOptions{})
		ok(t, err)
		if d.Status.AvailableReplicas == 8 && d.Status.ObservedGeneration == d.Generation {
			return ""
		}
		return fmt.Sprintf("%+v", d.Status)
	})
	c.changeDeployment(t, ns, "d", func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32(30)) })
	sizes(20, 13)
}

func rollover(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	rs := replicaSet("d", 1)
	rs.Name = "before"
	setEnv(&rs.Spec.Template, "0")
	_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), rs, metav1.CreateOptions{})
	ok(t, err)
	c.havePods(t, ns, "app=d", 1)
	d := deployment("d", 1)
	surge, unavailable := intstr.FromInt32(1), intstr.FromInt32(0)
	d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}
	d.Spec.Template.Spec.Containers[0].Image = "none"
	d.Spec.Template.Spec.Containers[0].ImagePullPolicy = corev1.PullIfNotPresent // none has no tag; what follows it is there
	_, err = c.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	ok(t, err)
	eventually(t, func() string {
		if n := len(c.sets(t, ns)); n != 2 {
			return fmt.Sprintf("%d replica sets", n)
		}
		return ""
	})
	c.changeDeployment(t, ns, "d", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = *image })
	c.rolledOut(t, ns, "d")
	eventually(t, func() string {
		with := 0
		for _, s := range c.sets(t, ns) {
			if s.Status.Replicas > 0 {
				with++
			}
		}
		if with != 1 {
			return fmt.Sprintf("%d replica sets have pods", with)
		}
		return ""
	})
}

func replicaSetPatch(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.AppsV1().ReplicaSets(ns)
	_, err := api.Create(t.Context(), replicaSet("rs", 1), metav1.CreateOptions{})
	ok(t, err)
	c.havePods(t, ns, "app=rs", 1)
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		rs, err := api.Get(t.Context(), "rs", metav1.GetOptions{})
		ok(t, err)
		rs.Spec.Replicas = new(int32(2))
		_, err = api.Update(t.Context(), rs, metav1.UpdateOptions{})
		return err
	}))
	c.havePods(t, ns, "app=rs", 2)
	rs, err := api.Patch(t.Context(), "rs", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-rs":"patched"}},"spec":{"replicas":3,"template":{"spec":{"terminationGracePeriodSeconds":0}}}}`), metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", rs.Labels["test-rs"], "patched")
	c.havePods(t, ns, "app=rs", 3)
}

func (c *cluster) owned(t *testing.T, ns, pod string, uid types.UID, want bool) {
	t.Helper()
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
		ok(t, err)
		if slices.ContainsFunc(p.OwnerReferences, func(o metav1.OwnerReference) bool {
			return o.UID == uid && o.Controller != nil && *o.Controller
		}) == want {
			return ""
		}
		return fmt.Sprintf("owners of %s: %v", pod, p.OwnerReferences)
	})
}

func adoptRelease(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("orphan")
	p.Labels = map[string]string{"app": "rs"}
	c.pod(t, ns, p)
	rs, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), replicaSet("rs", 1), metav1.CreateOptions{})
	ok(t, err)
	c.owned(t, ns, "orphan", rs.UID, true)
	_, err = c.CoreV1().Pods(ns).Patch(t.Context(), "orphan", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"other"}}}`), metav1.PatchOptions{})
	ok(t, err)
	c.owned(t, ns, "orphan", rs.UID, false)
	c.havePods(t, ns, "app=rs", 1)
}

func controllerAdopts(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("orphan")
	p.Labels = map[string]string{"app": "rc"}
	c.pod(t, ns, p)
	rc, err := c.CoreV1().ReplicationControllers(ns).Create(t.Context(), controller("rc", 1), metav1.CreateOptions{})
	ok(t, err)
	c.owned(t, ns, "orphan", rc.UID, true)
}

func controllerReleases(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	rc := c.controllerWithPods(t, ns, "rc", 1)
	pod := c.pods(t, ns, "app=rc")[0].Name
	_, err := c.CoreV1().Pods(ns).Patch(t.Context(), pod, types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"other"}}}`), metav1.PatchOptions{})
	ok(t, err)
	c.owned(t, ns, pod, rc.UID, false)
}

func controllerLife(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ReplicationControllers(ns)
	w, err := api.Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=rc"})
	ok(t, err)
	defer w.Stop()
	_, err = api.Create(t.Context(), controller("rc", 1), metav1.CreateOptions{})
	ok(t, err)
	observe(t, w, "the controller", func(e watchEvent) bool { return e.Type == "ADDED" })
	ready := func(n int32) {
		t.Helper()
		observe(t, w, fmt.Sprintf("%d ready replicas", n), func(e watchEvent) bool {
			rc := e.Object.(*corev1.ReplicationController)
			return rc.Status.ReadyReplicas == n
		})
	}
	ready(1)
	rc, err := api.Patch(t.Context(), "rc", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"test-rc":"patched"}}}`), metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", rc.Labels["test-rc"], "patched")
	rc, err = api.Patch(t.Context(), "rc", types.StrategicMergePatchType, []byte(`{"status":{"readyReplicas":0,"availableReplicas":0}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "ready replicas as patched", rc.Status.ReadyReplicas, 0)
	ready(1)
	_, err = api.Patch(t.Context(), "rc", types.StrategicMergePatchType, []byte(`{"spec":{"replicas":2}}`), metav1.PatchOptions{}, "scale")
	ok(t, err)
	ready(2)
	all, err := c.CoreV1().ReplicationControllers("").List(t.Context(), metav1.ListOptions{LabelSelector: "test-rc=patched"})
	ok(t, err)
	same(t, "listed", len(all.Items), 1)
	ok(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test-rc=patched"}))
	observe(t, w, "the deletion", func(e watchEvent) bool { return e.Type == "DELETED" })
}

func (c *cluster) schedulable(t *testing.T) []string {
	t.Helper()
	l, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	var out []string
	for _, n := range l.Items {
		if !n.Spec.Unschedulable && len(n.Spec.Taints) == 0 {
			out = append(out, n.Name)
		}
	}
	return out
}

// daemons waits until each of the nodes, and no other, has one running pod.
func (c *cluster) daemons(t *testing.T, ns, selector string, nodes []string) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	eventually(t, func() string {
		pods = c.pods(t, ns, selector)
		have := map[string]int{}
		for _, p := range pods {
			if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				have[p.Spec.NodeName]++
			}
		}
		for _, n := range nodes {
			if have[n] != 1 {
				return fmt.Sprintf("daemon pods by node: %v, want one on each of %v", have, nodes)
			}
		}
		if len(have) != len(nodes) || len(pods) != len(nodes) {
			return fmt.Sprintf("daemon pods by node: %v, want one on each of %v", have, nodes)
		}
		return ""
	})
	return pods
}

func daemonSimple(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.AppsV1().DaemonSets(ns).Create(t.Context(), daemonSet("ds"), metav1.CreateOptions{})
	ok(t, err)
	nodes := c.schedulable(t)
	pods := c.daemons(t, ns, "app=ds", nodes)
	ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), pods[0].Name, *metav1.NewDeleteOptions(0)))
	c.daemons(t, ns, "app=ds", nodes)
	ok(t, c.AppsV1().DaemonSets(ns).Delete(t.Context(), "ds", propagation(metav1.DeletePropagationForeground)))
	c.havePods(t, ns, "app=ds", 0)
}

func daemonComplex(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	ds := daemonSet("ds")
	ds.Spec.Template.Spec.NodeSelector = map[string]string{"conformance-color": "blue"}
	_, err := c.AppsV1().DaemonSets(ns).Create(t.Context(), ds, metav1.CreateOptions{})
	ok(t, err)
	node := c.schedulable(t)[0]
	color := func(value string) {
		t.Helper()
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"metadata":{"labels":{"conformance-color":`+value+`}}}`), metav1.PatchOptions{})
		ok(t, err)
	}
	defer color("null")
	c.daemons(t, ns, "app=ds", nil)
	color(`"blue"`)
	c.daemons(t, ns, "app=ds", []string{node})
	color(`"green"`)
	c.daemons(t, ns, "app=ds", nil)
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		d, err := c.AppsV1().DaemonSets(ns).Get(t.Context(), "ds", metav1.GetOptions{})
		ok(t, err)
		d.Spec.Template.Spec.NodeSelector = map[string]string{"conformance-color": "green"}
		d.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType}
		_, err = c.AppsV1().DaemonSets(ns).Update(t.Context(), d, metav1.UpdateOptions{})
		return err
	}))
	c.daemons(t, ns, "app=ds", []string{node})
}

func daemonRetries(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.AppsV1().DaemonSets(ns).Create(t.Context(), daemonSet("ds"), metav1.CreateOptions{})
	ok(t, err)
	nodes := c.schedulable(t)
	pods := c.daemons(t, ns, "app=ds", nodes)
	eventually(t, func() string {
		_, err := c.CoreV1().Pods(ns).Patch(t.Context(), pods[0].Name, types.MergePatchType, []byte(`{"status":{"phase":"Failed"}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			return err.Error()
		}
		return ""
	})
	gone(t, "the failed pod", func() error {
		_, err := c.CoreV1().Pods(ns).Get(t.Context(), pods[0].Name, metav1.GetOptions{})
		return err
	})
	c.daemons(t, ns, "app=ds", nodes)
}

func daemonRolls(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.AppsV1().DaemonSets(ns).Create(t.Context(), daemonSet("ds"), metav1.CreateOptions{})
	ok(t, err)
	nodes := c.schedulable(t)
	c.daemons(t, ns, "app=ds", nodes)
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		d, err := c.AppsV1().DaemonSets(ns).Get(t.Context(), "ds", metav1.GetOptions{})
		ok(t, err)
		setEnv(&d.Spec.Template, "2")
		_, err = c.AppsV1().DaemonSets(ns).Update(t.Context(), d, metav1.UpdateOptions{})
		return err
	}))
	eventually(t, func() string {
		n := 0
		for _, p := range c.pods(t, ns, "app=ds") {
			if len(p.Spec.Containers[0].Env) == 1 && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				n++
			}
		}
		if n != len(nodes) {
			return fmt.Sprintf("%d pods are new", n)
		}
		return ""
	})
	c.daemons(t, ns, "app=ds", nodes)
}

func daemonRollback(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.AppsV1().DaemonSets(ns).Create(t.Context(), daemonSet("ds"), metav1.CreateOptions{})
	ok(t, err)
	nodes := c.schedulable(t)
	names := map[string]bool{}
	for _, p := range c.daemons(t, ns, "app=ds", nodes) {
		names[p.Name] = true
	}
	set := func(image string) {
		t.Helper()
		_, err := c.AppsV1().DaemonSets(ns).Patch(t.Context(), "ds", types.StrategicMergePatchType, []byte(fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image)), metav1.PatchOptions{})
		ok(t, err)
	}
	set("none")
	eventually(t, func() string {
		for _, p := range c.pods(t, ns, "app=ds") {
			if !names[p.Name] && p.DeletionTimestamp == nil {
				return ""
			}
		}
		return "the rollout has not begun"
	})
	set(*image)
	kept := 0
	eventually(t, func() string {
		kept = 0
		for _, p := range c.pods(t, ns, "app=ds") {
			if p.Spec.Containers[0].Image != *image || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
				return fmt.Sprintf("pod %s with %s is %s", p.Name, p.Spec.Containers[0].Image, p.Status.Phase)
			}
			if names[p.Name] {
				kept++
			}
		}
		return ""
	})
	c.daemons(t, ns, "app=ds", nodes)
	if kept != len(nodes)-1 {
		t.Errorf("%d of %d pods were kept, want all but one", kept, len(nodes))
	}
}

func revisions(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.AppsV1().DaemonSets(ns).Create(t.Context(), daemonSet("ds"), metav1.CreateOptions{})
	ok(t, err)
	c.daemons(t, ns, "app=ds", c.schedulable(t))
	api := c.AppsV1().ControllerRevisions(ns)
	have := func(n int) []appsv1.ControllerRevision {
		t.Helper()
		var items []appsv1.ControllerRevision
		eventually(t, func() string {
			l, err := api.List(t.Context(), metav1.ListOptions{LabelSelector: "app=ds"})
			ok(t, err)
			if items = l.Items; len(items) != n {
				return fmt.Sprintf("%d revisions, want %d", len(items), n)
			}
			return ""
		})
		return items
	}
	first := have(1)[0]
	patched, err := api.Patch(t.Context(), first.Name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"conformance":"patched"}}}`), metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", patched.Labels["conformance"], "patched")
	more := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: first.Name + "-b", Labels: first.Labels, OwnerReferences: first.OwnerReferences}, Data: first.Data, Revision: first.Revision + 1}
	_, err = api.Create(t.Context(), more, metav1.CreateOptions{})
	ok(t, err)
	have(2)
	ok(t, api.Delete(t.Context(), first.Name, metav1.DeleteOptions{}))
	eventually(t, func() string {
		l, err := api.List(t.Context(), metav1.ListOptions{LabelSelector: "app=ds"})
		ok(t, err)
		for _, r := range l.Items {
			if r.UID == first.UID {
				return "the deleted revision is there"
			}
		}
		return ""
	})
	now := have(1)[0]
	now.Labels["conformance"] = "updated"
	updated, err := api.Update(t.Context(), &now, metav1.UpdateOptions{})
	ok(t, err)
	same(t, "label", updated.Labels["conformance"], "updated")
	_, err = c.AppsV1().DaemonSets(ns).Patch(t.Context(), "ds", types.StrategicMergePatchType, []byte(`{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":0}}}}`), metav1.PatchOptions{})
	ok(t, err)
	have(2)
	ok(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "conformance=updated"}))
	last := have(1)[0]
	same(t, "revision", last.Revision, 3)
}

func (c *cluster) budget(t *testing.T, ns string, min int32) {
	t.Helper()
	n := intstr.FromInt32(min)
	_, err := c.PolicyV1().PodDisruptionBudgets(ns).Create(t.Context(), &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "rs"}}}}, metav1.CreateOptions{})
	ok(t, err)
}

func (c *cluster) allows(t *testing.T, ns string, n int32) {
	t.Helper()
	eventually(t, func() string {
		b, err := c.PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), "b", metav1.GetOptions{})
		ok(t, err)
		if b.Status.ObservedGeneration >= b.Generation && b.Status.DisruptionsAllowed == n {
			return ""
		}
		return fmt.Sprintf("%+v, want %d disruptions allowed", b.Status, n)
	})
}

func budgetStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.budget(t, ns, 1)
	_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), replicaSet("rs", 3), metav1.CreateOptions{})
	ok(t, err)
	c.allows(t, ns, 2)
	b, err := c.PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), "b", metav1.GetOptions{})
	ok(t, err)
	if !slices.ContainsFunc(b.Status.Conditions, func(c metav1.Condition) bool {
		return c.Type == policyv1.DisruptionAllowedCondition && c.Status == metav1.ConditionTrue
	}) {
		t.Errorf("conditions: %v", b.Status.Conditions)
	}
}

func budgetStatusDoor(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.budget(t, ns, 1)
	_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), replicaSet("rs", 1), metav1.CreateOptions{})
	ok(t, err)
	api := c.PolicyV1().PodDisruptionBudgets(ns)
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		b, err := api.Get(t.Context(), "b", metav1.GetOptions{})
		ok(t, err)
		b.Status.DisruptedPods = map[string]metav1.Time{"some-pod": metav1.Now()}
		b, err = api.UpdateStatus(t.Context(), b, metav1.UpdateOptions{})
		if err == nil {
			same(t, "disrupted pods after an update", len(b.Status.DisruptedPods), 1)
		}
		return err
	}))
	b, err := api.Patch(t.Context(), "b", types.MergePatchType, []byte(`{"status":{"disruptedPods":{"other-pod":"2026-01-02T03:04:05Z"}}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	if _, has := b.Status.DisruptedPods["other-pod"]; !has {
		t.Errorf("disrupted pods after a patch: %v", b.Status.DisruptedPods)
	}
}

func eviction(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.budget(t, ns, 3)
	_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), replicaSet("rs", 3), metav1.CreateOptions{})
	ok(t, err)
	for _, p := range c.havePods(t, ns, "app=rs", 3) {
		c.running(t, ns, p.Name)
	}
	c.allows(t, ns, 0)
	pod := c.pods(t, ns, "app=rs")[0].Name
	evict := func() error {
		return c.CoreV1().Pods(ns).EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: ns}})
	}
	err = evict()
	if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Fatalf("an eviction against the budget: %v", err)
	}
	_, err = c.PolicyV1().PodDisruptionBudgets(ns).Patch(t.Context(), "b", types.MergePatchType, []byte(`{"spec":{"minAvailable":2}}`), metav1.PatchOptions{})
	ok(t, err)
	c.allows(t, ns, 1)
	ok(t, evict())
	gone(t, "the evicted pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{}); return err })
}
