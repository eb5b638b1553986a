package conformance

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

func init() {
	q := func(words string, f func(t *testing.T, c *cluster)) { it(words, f, part("resourcequota-controller")) }
	q("ResourceQuota should apply changes to a resourcequota status", quotaStatus)
	q("ResourceQuota should be able to update and delete ResourceQuota.", quotaUpdate)
	q("ResourceQuota should create a ResourceQuota and capture the life of a configMap.", func(t *testing.T, c *cluster) {
		c.counts(t, "configmaps", func(ns string) func() {
			c.configMap(t, ns, "counted", nil, nil)
			return func() { ok(t, c.CoreV1().ConfigMaps(ns).Delete(t.Context(), "counted", metav1.DeleteOptions{})) }
		})
	})
	q("ResourceQuota should create a ResourceQuota and capture the life of a secret.", func(t *testing.T, c *cluster) {
		c.counts(t, "secrets", func(ns string) func() {
			_, err := c.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "counted"}, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{})
			ok(t, err)
			return func() { ok(t, c.CoreV1().Secrets(ns).Delete(t.Context(), "counted", metav1.DeleteOptions{})) }
		})
	})
	q("ResourceQuota should create a ResourceQuota and capture the life of a replica set.", func(t *testing.T, c *cluster) {
		c.counts(t, "count/replicasets.apps", func(ns string) func() {
			_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), replicaSet("counted", 0), metav1.CreateOptions{})
			ok(t, err)
			return func() {
				ok(t, c.AppsV1().ReplicaSets(ns).Delete(t.Context(), "counted", metav1.DeleteOptions{}))
			}
		})
	})
	q("ResourceQuota should create a ResourceQuota and capture the life of a replication controller.", func(t *testing.T, c *cluster) {
		c.counts(t, "replicationcontrollers", func(ns string) func() {
			_, err := c.CoreV1().ReplicationControllers(ns).Create(t.Context(), controller("counted", 0), metav1.CreateOptions{})
			ok(t, err)
			return func() {
				orphan := metav1.DeletePropagationBackground
				ok(t, c.CoreV1().ReplicationControllers(ns).Delete(t.Context(), "counted", metav1.DeleteOptions{PropagationPolicy: &orphan}))
			}
		})
	})
	q("ResourceQuota should create a ResourceQuota and capture the life of a service.", quotaServices)
	q("ResourceQuota should create a ResourceQuota and capture the life of a pod.", quotaPods)
	q("ResourceQuota should create a ResourceQuota and ensure its status is promptly calculated.", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.quota(t, ns, "q", allHard(), nil)
		c.used(t, ns, "q", "services", "0", "resourcequotas", "1", "cpu", "0")
	})
	q("ResourceQuota should verify ResourceQuota with best effort scope.", quotaBestEffort)
	q("ResourceQuota should verify ResourceQuota with terminating scopes.", quotaTerminating)
	it("LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied.", limitRange)
	it("should surface a failure condition on a common issue like exceeded quota", quotaCondition)
}

func allHard() corev1.ResourceList {
	return resources("services", "10", "services.nodeports", "1", "services.loadbalancers", "1", "pods", "5", "cpu", "1", "memory", "500Mi",
		"ephemeral-storage", "50Gi", "replicationcontrollers", "10", "count/replicasets.apps", "5", "resourcequotas", "1", "secrets", "10", "configmaps", "10",
		"persistentvolumeclaims", "10", "requests.storage", "10Gi", "requests.example.com/dongle", "3")
}

func (c *cluster) quota(t *testing.T, ns, name string, hard corev1.ResourceList, scopes []corev1.ResourceQuotaScope) {
	t.Helper()
	_, err := c.CoreV1().ResourceQuotas(ns).Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ResourceQuotaSpec{Hard: hard, Scopes: scopes}}, metav1.CreateOptions{})
	ok(t, err)
}

// used waits for the status of a quota: hard as in the spec and used as given.
func (c *cluster) used(t *testing.T, ns, name string, pairs ...string) {
	t.Helper()
	want := resources(pairs...)
	eventually(t, func() string {
		q, err := c.CoreV1().ResourceQuotas(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		for r := range q.Spec.Hard {
			if h, has := q.Status.Hard[r]; !has || h.Cmp(q.Spec.Hard[r]) != 0 {
				return fmt.Sprintf("status.hard of %s is %v", r, h)
			}
		}
		for r := range want {
			if u, has := q.Status.Used[r]; !has || u.Cmp(want[r]) != 0 {
				return fmt.Sprintf("used %s is %s", r, u.String())
			}
		}
		return ""
	})
}

func (c *cluster) counts(t *testing.T, resource string, make func(ns string) func()) {
	ns := c.namespace(t)
	c.quota(t, ns, "q", allHard(), nil)
	c.used(t, ns, "q", "resourcequotas", "1")
	q, err := c.CoreV1().ResourceQuotas(ns).Get(t.Context(), "q", metav1.GetOptions{})
	ok(t, err)
	// Every namespace may hold some already: the root certificate's ConfigMap.
	before := int64(0)
	if resource == "configmaps" {
		before = 1
		c.used(t, ns, "q", resource, "1")
	} else if u := q.Status.Used[corev1.ResourceName(resource)]; u.Value() != 0 {
		t.Fatalf("used %s is %s in a new namespace", resource, u.String())
	}
	undo := make(ns)
	c.used(t, ns, "q", resource, fmt.Sprint(before+1))
	undo()
	c.used(t, ns, "q", resource, fmt.Sprint(before))
}

func quotaServices(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Services(ns)
	c.quota(t, ns, "q", allHard(), nil)
	c.used(t, ns, "q", "services", "0", "resourcequotas", "1")
	_, err := api.Create(t.Context(), service("cluster-ip", nil), metav1.CreateOptions{})
	ok(t, err)
	port := service("node-port", nil)
	port.Spec.Type = corev1.ServiceTypeNodePort
	_, err = api.Create(t.Context(), port, metav1.CreateOptions{})
	ok(t, err)
	balanced := service("load-balancer", nil)
	balanced.Spec.Type = corev1.ServiceTypeLoadBalancer
	if _, err = api.Create(t.Context(), balanced, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("a load balancer with node ports beyond the quota: %v", err)
	}
	c.used(t, ns, "q", "services", "2", "services.nodeports", "1", "services.loadbalancers", "0")
	for _, name := range []string{"cluster-ip", "node-port"} {
		ok(t, api.Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	c.used(t, ns, "q", "services", "0", "services.nodeports", "0", "services.loadbalancers", "0")
}

func asking(name string, requests, limits corev1.ResourceList) *corev1.Pod {
	p := pausePod(name)
	p.Spec.TerminationGracePeriodSeconds = new(int64(0))
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	return p
}

func quotaPods(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Pods(ns)
	c.quota(t, ns, "q", allHard(), nil)
	c.used(t, ns, "q", "pods", "0", "resourcequotas", "1")
	p := c.pod(t, ns, asking("fits", resources("cpu", "500m", "memory", "252Mi", "ephemeral-storage", "30Gi", "example.com/dongle", "2"), resources("example.com/dongle", "2")))
	want := []string{"pods", "1", "cpu", "500m", "memory", "252Mi", "ephemeral-storage", "30Gi", "requests.example.com/dongle", "2"}
	c.used(t, ns, "q", want...)
	for what, big := range map[string]*corev1.Pod{
		"cpu":    asking("too-much", resources("cpu", "600m", "memory", "100Mi", "ephemeral-storage", "1Gi"), nil),
		"dongle": asking("too-many", resources("cpu", "100m", "memory", "100Mi", "ephemeral-storage", "1Gi", "example.com/dongle", "2"), resources("example.com/dongle", "2")),
	} {
		if _, err := api.Create(t.Context(), big, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota") {
			t.Fatalf("a pod with too much %s: %v", what, err)
		}
	}
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		now, err := api.Get(t.Context(), p.Name, metav1.GetOptions{})
		ok(t, err)
		now.Spec.Containers[0].Resources.Requests = resources("cpu", "100m", "memory", "100Mi")
		_, err = api.Update(t.Context(), now, metav1.UpdateOptions{})
		if err == nil {
			t.Fatal("a pod's requests were changed by an update")
		}
		if apierrors.IsConflict(err) {
			return err
		}
		return nil
	}))
	c.used(t, ns, "q", want...)
	ok(t, api.Delete(t.Context(), p.Name, *metav1.NewDeleteOptions(0)))
	c.used(t, ns, "q", "pods", "0", "cpu", "0", "memory", "0", "ephemeral-storage", "0", "requests.example.com/dongle", "0")
}

func quotaBestEffort(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.quota(t, ns, "best", resources("pods", "5"), []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort})
	c.quota(t, ns, "not-best", resources("pods", "5"), []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeNotBestEffort})
	check := func(best, not string) {
		t.Helper()
		c.used(t, ns, "best", "pods", best)
		c.used(t, ns, "not-best", "pods", not)
	}
	check("0", "0")
	for name, p := range map[string]*corev1.Pod{"best": asking("p", nil, nil), "not": asking("p", resources("cpu", "10m", "memory", "20Mi"), resources("cpu", "20m", "memory", "40Mi"))} {
		c.pod(t, ns, p)
		if name == "best" {
			check("1", "0")
		} else {
			check("0", "1")
		}
		ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "p", *metav1.NewDeleteOptions(0)))
		check("0", "0")
		gone(t, "pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); return err })
	}
}

func quotaTerminating(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	hard := resources("pods", "5", "requests.cpu", "1", "requests.memory", "500Mi", "limits.cpu", "2", "limits.memory", "1Gi")
	c.quota(t, ns, "ends", hard, []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating})
	c.quota(t, ns, "stays", hard, []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeNotTerminating})
	used := []string{"pods", "1", "requests.cpu", "500m", "requests.memory", "200Mi", "limits.cpu", "1", "limits.memory", "400Mi"}
	none := []string{"pods", "0", "requests.cpu", "0", "requests.memory", "0", "limits.cpu", "0", "limits.memory", "0"}
	c.used(t, ns, "ends", none...)
	c.used(t, ns, "stays", none...)
	for _, ends := range []bool{false, true} {
		p := asking("p", resources("cpu", "500m", "memory", "200Mi"), resources("cpu", "1", "memory", "400Mi"))
		in, out := "stays", "ends"
		if ends {
			p.Spec.ActiveDeadlineSeconds = new(int64(3600))
			in, out = out, in
		}
		c.pod(t, ns, p)
		c.used(t, ns, in, used...)
		c.used(t, ns, out, none...)
		ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "p", *metav1.NewDeleteOptions(0)))
		c.used(t, ns, in, none...)
		gone(t, "pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); return err })
	}
}

func quotaUpdate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ResourceQuotas(ns)
	c.quota(t, ns, "q", resources("cpu", "1", "memory", "500Mi"), nil)
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		q, err := api.Get(t.Context(), "q", metav1.GetOptions{})
		ok(t, err)
		q.Spec.Hard = resources("cpu", "2", "memory", "1Gi")
		_, err = api.Update(t.Context(), q, metav1.UpdateOptions{})
		return err
	}))
	c.used(t, ns, "q", "cpu", "0", "memory", "0")
	ok(t, api.Delete(t.Context(), "q", metav1.DeleteOptions{}))
	gone(t, "quota", func() error { _, err := api.Get(t.Context(), "q", metav1.GetOptions{}); return err })
}

func quotaStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().ResourceQuotas(ns)
	c.quota(t, ns, "q", resources("cpu", "500m", "memory", "500Mi"), nil)
	c.used(t, ns, "q", "cpu", "0")
	// The controller puts back whatever else is written; the answer says what was.
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		q, err := api.Get(t.Context(), "q", metav1.GetOptions{})
		ok(t, err)
		q.Status.Hard = resources("cpu", "600m", "memory", "600Mi")
		q, err = api.UpdateStatus(t.Context(), q, metav1.UpdateOptions{})
		if err == nil {
			same(t, "hard after a status update", q.Status.Hard.Cpu().String(), "600m")
			same(t, "spec after a status update", q.Spec.Hard.Cpu().String(), "500m")
		}
		return err
	}))
	c.used(t, ns, "q", "cpu", "0")
	_, err := api.Patch(t.Context(), "q", types.StrategicMergePatchType, []byte(`{"spec":{"hard":{"cpu":"1","memory":"1Gi"}}}`), metav1.PatchOptions{})
	ok(t, err)
	c.used(t, ns, "q", "cpu", "0")
	q, err := api.Patch(t.Context(), "q", types.StrategicMergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}},"spec":{"hard":{"cpu":"5"}},"status":{"hard":{"cpu":"2","memory":"2Gi"}}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "hard after a status patch", q.Status.Hard.Cpu().String(), "2")
	same(t, "spec after a status patch", q.Spec.Hard.Cpu().String(), "1")
	got, err := c.CoreV1().RESTClient().Get().Namespace(ns).Resource("resourcequotas").Name("q").SubResource("status").Do(t.Context()).Get()
	ok(t, err)
	same(t, "spec by status", got.(*corev1.ResourceQuota).Spec.Hard.Memory().String(), "1Gi")
	c.used(t, ns, "q", "cpu", "0")
}

func limitRange(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().LimitRanges(ns)
	min, max := resources("cpu", "50m", "memory", "100Mi", "ephemeral-storage", "100Gi"), resources("cpu", "500m", "memory", "500Mi", "ephemeral-storage", "500Gi")
	request, limit := resources("cpu", "100m", "memory", "200Mi", "ephemeral-storage", "200Gi"), resources("cpu", "300m", "memory", "400Mi", "ephemeral-storage", "500Gi")
	w, err := api.Watch(t.Context(), metav1.ListOptions{})
	ok(t, err)
	defer w.Stop()
	lr := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, Min: min, Max: max, Default: limit, DefaultRequest: request}}}}
	_, err = api.Create(t.Context(), lr, metav1.CreateOptions{})
	ok(t, err)
	observe(t, w, "the LimitRange", func(e watchEvent) bool { return e.Type == "ADDED" })
	check := func(name string, p *corev1.Pod, requests, limits corev1.ResourceList) {
		t.Helper()
		have := p.Spec.Containers[0].Resources
		for r := range requests {
			if q := have.Requests[r]; q.Cmp(requests[r]) != 0 {
				t.Errorf("%s: request of %s is %s", name, r, q.String())
			}
		}
		for r := range limits {
			if q := have.Limits[r]; q.Cmp(limits[r]) != 0 {
				t.Errorf("%s: limit of %s is %s", name, r, q.String())
			}
		}
	}
	check("no resources", c.pod(t, ns, asking("defaults", nil, nil)), request, limit)
	check("partial", c.pod(t, ns, asking("partial", resources("cpu", "150m", "memory", "150Mi", "ephemeral-storage", "150Gi"), resources("cpu", "300m", "ephemeral-storage", "300Gi"))),
		resources("cpu", "150m", "memory", "150Mi", "ephemeral-storage", "150Gi"), resources("cpu", "300m", "memory", "400Mi", "ephemeral-storage", "300Gi"))
	refused := func(name string, p *corev1.Pod) {
		t.Helper()
		if _, err := c.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	refused("below the minimum", asking("low", resources("cpu", "10m", "memory", "50Mi", "ephemeral-storage", "50Gi"), nil))
	refused("above the maximum", asking("high", resources("cpu", "600m", "memory", "600Mi", "ephemeral-storage", "600Gi"), nil))
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		l, err := api.Get(t.Context(), "l", metav1.GetOptions{})
		ok(t, err)
		l.Spec.Limits[0].Min = resources("cpu", "9m", "memory", "49Mi", "ephemeral-storage", "49Gi")
		_, err = api.Update(t.Context(), l, metav1.UpdateOptions{})
		return err
	}))
	c.pod(t, ns, asking("low", resources("cpu", "10m", "memory", "50Mi", "ephemeral-storage", "50Gi"), nil))
	refused("still above the maximum", asking("high", resources("cpu", "600m", "memory", "600Mi", "ephemeral-storage", "600Gi"), nil))
	ok(t, api.Delete(t.Context(), "l", *metav1.NewDeleteOptions(30)))
	gone(t, "LimitRange", func() error { _, err := api.Get(t.Context(), "l", metav1.GetOptions{}); return err })
	c.pod(t, ns, asking("high", resources("cpu", "600m", "memory", "600Mi"), nil))
}

func labelled(name string) (map[string]string, corev1.PodTemplateSpec) {
	l := map[string]string{"app": name}
	p := pausePod(name)
	return l, corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: p.Spec}
}

func replicaSet(name string, n int32) *appsv1.ReplicaSet {
	l, p := labelled(name)
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}, Spec: appsv1.ReplicaSetSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: p}}
}

func controller(name string, n int32) *corev1.ReplicationController {
	l, p := labelled(name)
	return &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}, Spec: corev1.ReplicationControllerSpec{Replicas: &n, Selector: l, Template: &p}}
}

func deployment(name string, n int32) *appsv1.Deployment {
	l, p := labelled(name)
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}, Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: p}}
}

func quotaCondition(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.quota(t, ns, "condition-test", resources("pods", "2"), nil)
	_, err := c.CoreV1().ReplicationControllers(ns).Create(t.Context(), controller("condition-test", 3), metav1.CreateOptions{})
	ok(t, err)
	failing := func() (bool, string) {
		rc, err := c.CoreV1().ReplicationControllers(ns).Get(t.Context(), "condition-test", metav1.GetOptions{})
		ok(t, err)
		for _, c := range rc.Status.Conditions {
			if c.Type == corev1.ReplicationControllerReplicaFailure {
				return true, c.Message
			}
		}
		return false, fmt.Sprintf("%+v", rc.Status)
	}
	eventually(t, func() string {
		if f, status := failing(); !f {
			return "no failure condition in " + status
		}
		return ""
	})
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		rc, err := c.CoreV1().ReplicationControllers(ns).Get(t.Context(), "condition-test", metav1.GetOptions{})
		ok(t, err)
		rc.Spec.Replicas = new(int32(2))
		_, err = c.CoreV1().ReplicationControllers(ns).Update(t.Context(), rc, metav1.UpdateOptions{})
		return err
	}))
	eventually(t, func() string {
		if f, message := failing(); f {
			return "the failure condition stays: " + message
		}
		return ""
	})
}
