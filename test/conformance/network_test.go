package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
)

func init() {
	it("Service endpoints latency should not be very high", endpointsLatency)
	it("API Server should provide secure master service", masterService)
	it("API Server should have Endpoints and EndpointSlices pointing to API Server", masterEndpoints)
	it("Services should find a service from listing all namespaces", findService)
	it("EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods", emptyService)
	it("EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service", podsService)
	it("EndpointsController should create Endpoints for Pods matching a Service", endpointsOfPods)
	it("EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods", endpointsOfNone)
	it("should mirror a custom Endpoints resource through create update and delete", mirroring, part("endpointslicemirroring-controller"))
	it("PersistentVolumes CSI Conformance should apply changes to a pv/pvc status", volumeStatus)
	it("PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC", volumeLife)
}

func masterService(t *testing.T, c *cluster) {
	_, err := c.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	ok(t, err)
}

func masterEndpoints(t *testing.T, c *cluster) {
	e, err := c.CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	ok(t, err)
	if len(e.Subsets) == 0 || len(e.Subsets[0].Addresses) == 0 {
		t.Fatalf("subsets: %+v", e.Subsets)
	}
	l, err := c.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	ok(t, err)
	if len(l.Items) == 0 {
		t.Fatal("no EndpointSlice")
	}
	for _, s := range e.Subsets {
		for _, a := range s.Addresses {
			if !slices.ContainsFunc(l.Items, func(s discoveryv1.EndpointSlice) bool {
				return slices.ContainsFunc(s.Endpoints, func(x discoveryv1.Endpoint) bool { return slices.Contains(x.Addresses, a.IP) })
			}) {
				t.Errorf("no EndpointSlice has %s", a.IP)
			}
		}
	}
}

func findService(t *testing.T, c *cluster) {
	l, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	if !slices.ContainsFunc(l.Items, func(s corev1.Service) bool { return s.Namespace == "default" && s.Name == "kubernetes" }) {
		t.Error("kubernetes is not among all services")
	}
}

func (c *cluster) slices(t *testing.T, ns, service string) []discoveryv1.EndpointSlice {
	t.Helper()
	l, err := c.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	ok(t, err)
	return l.Items
}

func (c *cluster) makeService(t *testing.T, ns string, s *corev1.Service) *corev1.Service {
	t.Helper()
	s, err := c.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
	ok(t, err)
	return s
}

func emptyService(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.makeService(t, ns, service("empty", map[string]string{"does-not-match": "anything"}))
	eventually(t, func() string {
		if s := c.slices(t, ns, "empty"); len(s) == 1 && len(s[0].Endpoints) == 0 {
			return ""
		}
		return "no empty slice"
	})
	ok(t, c.CoreV1().Services(ns).Delete(t.Context(), "empty", metav1.DeleteOptions{}))
	eventually(t, func() string {
		if n := len(c.slices(t, ns, "empty")); n > 0 {
			return fmt.Sprintf("%d slices are left", n)
		}
		return ""
	})
}

func endpointsOfNone(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.makeService(t, ns, service("empty", map[string]string{"does-not-match": "anything"}))
	eventually(t, func() string {
		if _, err := c.CoreV1().Endpoints(ns).Get(t.Context(), "empty", metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
	ok(t, c.CoreV1().Services(ns).Delete(t.Context(), "empty", metav1.DeleteOptions{}))
	gone(t, "Endpoints", func() error {
		_, err := c.CoreV1().Endpoints(ns).Get(t.Context(), "empty", metav1.GetOptions{})
		return err
	})
}

// twoPods and two services: one port of the first pod, a named port of both.
func (c *cluster) twoPods(t *testing.T, ns string) (first, second *corev1.Pod) {
	t.Helper()
	make := func(name string, ports ...corev1.ContainerPort) *corev1.Pod {
		p := pausePod(name)
		p.Labels = map[string]string{"foo": "bar", "name": name}
		p.Spec.Containers[0].Ports = ports
		c.pod(t, ns, p)
		return c.running(t, ns, name)
	}
	first = make("pod1", corev1.ContainerPort{Name: "example-name", ContainerPort: 3000})
	second = make("pod2", corev1.ContainerPort{Name: "example-name", ContainerPort: 3001}, corev1.ContainerPort{Name: "other-port", ContainerPort: 3002})
	one := service("example-int-port", map[string]string{"name": "pod1"})
	one.Spec.Ports = []corev1.ServicePort{{Name: "example", Port: 80, TargetPort: intstr.FromInt32(3000)}}
	c.makeService(t, ns, one)
	both := service("example-named-port", map[string]string{"foo": "bar"})
	both.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("example-name")}}
	c.makeService(t, ns, both)
	return first, second
}

func podsService(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	first, second := c.twoPods(t, ns)
	for name, pods := range map[string][]*corev1.Pod{"example-int-port": {first}, "example-named-port": {first, second}} {
		eventually(t, func() string {
			have := map[string]int32{}
			for _, s := range c.slices(t, ns, name) {
				for _, e := range s.Endpoints {
					if e.Conditions.Ready == nil || !*e.Conditions.Ready || e.TargetRef == nil || e.NodeName == nil || len(s.Ports) != 1 {
						return fmt.Sprintf("endpoint %+v with ports %v", e, s.Ports)
					}
					have[e.Addresses[0]+" "+string(e.TargetRef.UID)] = *s.Ports[0].Port
				}
			}
			for _, p := range pods {
				if have[p.Status.PodIP+" "+string(p.UID)] != p.Spec.Containers[0].Ports[0].ContainerPort {
					return fmt.Sprintf("%s: %v lacks pod %s", name, have, p.Name)
				}
			}
			if len(have) != len(pods) {
				return fmt.Sprintf("%s: %v", name, have)
			}
			return ""
		})
	}
	c.endpointsHave(t, ns, first, second)
}

func (c *cluster) endpointsHave(t *testing.T, ns string, first, second *corev1.Pod) {
	t.Helper()
	for name, pods := range map[string][]*corev1.Pod{"example-int-port": {first}, "example-named-port": {first, second}} {
		eventually(t, func() string {
			e, err := c.CoreV1().Endpoints(ns).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			var have []string
			for _, s := range e.Subsets {
				for _, a := range s.Addresses {
					for _, p := range s.Ports {
						have = append(have, fmt.Sprintf("%s:%d", a.IP, p.Port))
					}
				}
			}
			var want []string
			for _, p := range pods {
				want = append(want, fmt.Sprintf("%s:%d", p.Status.PodIP, p.Spec.Containers[0].Ports[0].ContainerPort))
			}
			slices.Sort(have)
			slices.Sort(want)
			if !slices.Equal(have, want) {
				return fmt.Sprintf("%s: %v, want %v", name, have, want)
			}
			return ""
		})
	}
}

func endpointsOfPods(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	first, second := c.twoPods(t, ns)
	c.endpointsHave(t, ns, first, second)
	ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "pod2", *metav1.NewDeleteOptions(0)))
	eventually(t, func() string {
		e, err := c.CoreV1().Endpoints(ns).Get(t.Context(), "example-named-port", metav1.GetOptions{})
		ok(t, err)
		if strings.Contains(fmt.Sprint(e.Subsets), second.Status.PodIP) {
			return "the deleted pod is still an endpoint"
		}
		return ""
	})
}

func mirroring(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.makeService(t, ns, service("custom", nil))
	api := c.CoreV1().Endpoints(ns)
	e, err := api.Create(t.Context(), &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "custom"}, Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Port: 80}}, Addresses: []corev1.EndpointAddress{{IP: "10.1.2.3"}}}}}, metav1.CreateOptions{})
	ok(t, err)
	mirrored := func(ip string) {
		t.Helper()
		eventually(t, func() string {
			s := c.slices(t, ns, "custom")
			if ip == "" && len(s) == 0 {
				return ""
			}
			if len(s) == 1 && len(s[0].Endpoints) == 1 && s[0].Endpoints[0].Addresses[0] == ip {
				return ""
			}
			return fmt.Sprintf("%d slices: %+v", len(s), s)
		})
	}
	mirrored("10.1.2.3")
	e.Subsets[0].Addresses[0].IP = "10.2.3.4"
	_, err = api.Update(t.Context(), e, metav1.UpdateOptions{})
	ok(t, err)
	mirrored("10.2.3.4")
	ok(t, api.Delete(t.Context(), "custom", metav1.DeleteOptions{}))
	mirrored("")
}

func volumes(ns, name string) (*corev1.PersistentVolume, *corev1.PersistentVolumeClaim) {
	labels := map[string]string{"conformance-volume": ns}
	mode := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	class := "conformance-" + ns
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: ns + "-" + name, Labels: labels}, Spec: corev1.PersistentVolumeSpec{
		Capacity: resources("storage", "1Gi"), AccessModes: mode, StorageClassName: class, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "handle-" + name}}}}
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: mode, StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: resources("storage", "2Gi")}}}
	return pv, pvc
}

func (c *cluster) makeVolumes(t *testing.T, ns, name string) (*corev1.PersistentVolume, *corev1.PersistentVolumeClaim) {
	t.Helper()
	pv, pvc := volumes(ns, name)
	pv, err := c.CoreV1().PersistentVolumes().Create(t.Context(), pv, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { _ = c.CoreV1().PersistentVolumes().Delete(contextOf(t), pv.Name, metav1.DeleteOptions{}) })
	pvc, err = c.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), pvc, metav1.CreateOptions{})
	ok(t, err)
	return pv, pvc
}

func volumeStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	pv, pvc := c.makeVolumes(t, ns, "v")
	pvs, pvcs := c.CoreV1().PersistentVolumes(), c.CoreV1().PersistentVolumeClaims(ns)
	l, err := pvs.List(t.Context(), metav1.ListOptions{LabelSelector: "conformance-volume=" + ns})
	ok(t, err)
	same(t, "volumes", len(l.Items), 1)
	got, err := pvcs.Get(t.Context(), pvc.Name, metav1.GetOptions{}) // also by /status below
	ok(t, err)
	same(t, "claim phase", got.Status.Phase, corev1.ClaimPending)
	eventually(t, func() string {
		v, err := pvs.Get(t.Context(), pv.Name, metav1.GetOptions{})
		ok(t, err)
		if v.Status.Phase == corev1.VolumeAvailable || v.Status.Phase == corev1.VolumePending {
			return ""
		}
		return fmt.Sprintf("volume phase %q", v.Status.Phase)
	})
	got, err = pvcs.Patch(t.Context(), pvc.Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}},"status":{"conditions":[{"type":"StatusPatched","status":"True","reason":"E2E"}]}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "claim conditions", len(got.Status.Conditions), 1)
	v, err := pvs.Patch(t.Context(), pv.Name, types.MergePatchType, []byte(`{"status":{"message":"StatusPatched","reason":"E2E"}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "volume message", v.Status.Message, "StatusPatched")
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		p, err := pvcs.Get(t.Context(), pvc.Name, metav1.GetOptions{})
		ok(t, err)
		p.Status.Conditions = append(p.Status.Conditions, corev1.PersistentVolumeClaimCondition{Type: "StatusUpdate", Status: corev1.ConditionTrue})
		p, err = pvcs.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		if err == nil {
			same(t, "claim conditions", len(p.Status.Conditions), 2)
		}
		return err
	}))
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		v, err := pvs.Get(t.Context(), pv.Name, metav1.GetOptions{})
		ok(t, err)
		v.Status.Reason, v.Status.Message = "E2E", "StatusUpdate"
		v, err = pvs.UpdateStatus(t.Context(), v, metav1.UpdateOptions{})
		if err == nil {
			same(t, "volume message", v.Status.Message, "StatusUpdate")
		}
		return err
	}))
}

func volumeLife(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	pvs, pvcs := c.CoreV1().PersistentVolumes(), c.CoreV1().PersistentVolumeClaims(ns)
	end := func(pv, pvc string) {
		t.Helper()
		gone(t, "claim", func() error { _, err := pvcs.Get(t.Context(), pvc, metav1.GetOptions{}); return err })
		gone(t, "volume", func() error { _, err := pvs.Get(t.Context(), pv, metav1.GetOptions{}); return err })
	}
	pv, pvc := c.makeVolumes(t, ns, "first")
	l, err := pvcs.List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "claims", len(l.Items), 1)
	label := []byte(`{"metadata":{"labels":{"patched":"true"}}}`)
	v, err := pvs.Patch(t.Context(), pv.Name, types.StrategicMergePatchType, label, metav1.PatchOptions{})
	ok(t, err)
	same(t, "volume label", v.Labels["patched"], "true")
	p, err := pvcs.Patch(t.Context(), pvc.Name, types.StrategicMergePatchType, label, metav1.PatchOptions{})
	ok(t, err)
	same(t, "claim label", p.Labels["patched"], "true")
	v, err = pvs.Get(t.Context(), pv.Name, metav1.GetOptions{})
	ok(t, err)
	same(t, "volume UID", v.UID, pv.UID)
	ok(t, pvcs.Delete(t.Context(), pvc.Name, metav1.DeleteOptions{}))
	ok(t, pvs.Delete(t.Context(), pv.Name, metav1.DeleteOptions{}))
	end(pv.Name, pvc.Name)
	pv, pvc = c.makeVolumes(t, ns, "second")
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		v, err := pvs.Get(t.Context(), pv.Name, metav1.GetOptions{})
		ok(t, err)
		v.Labels["updated"] = "true"
		_, err = pvs.Update(t.Context(), v, metav1.UpdateOptions{})
		return err
	}))
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		p, err := pvcs.Get(t.Context(), pvc.Name, metav1.GetOptions{})
		ok(t, err)
		p.Labels["updated"] = "true"
		_, err = pvcs.Update(t.Context(), p, metav1.UpdateOptions{})
		return err
	}))
	o := metav1.ListOptions{LabelSelector: "conformance-volume=" + ns + ",updated=true"}
	ok(t, pvcs.DeleteCollection(t.Context(), metav1.DeleteOptions{}, o))
	ok(t, pvs.DeleteCollection(t.Context(), metav1.DeleteOptions{}, o))
	end(pv.Name, pvc.Name)
}

// endpointsLatency: from the creation of a service to its endpoints, a hundred times.
func endpointsLatency(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.pod(t, ns, pausePod("backend"))
	c.running(t, ns, "backend")
	w, err := c.CoreV1().Endpoints(ns).Watch(t.Context(), metav1.ListOptions{})
	ok(t, err)
	defer w.Stop()
	t.Cleanup(func() {
		if t.Failed() {
			l, err := c.CoreV1().Endpoints(ns).List(contextOf(t), metav1.ListOptions{})
			t.Logf("%d endpoints are there (%v) at %v", len(l.Items), err, time.Now().UTC())
			last := slices.MaxFunc(l.Items, func(a, b corev1.Endpoints) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
			t.Logf("the last: %+v", last)
		}
	})
	var took []time.Duration
	for i := range 100 {
		name, from := fmt.Sprintf("latency-%d", i), time.Now()
		c.makeService(t, ns, service(name, map[string]string{"name": "backend"}))
		observe(t, w, "endpoints of "+name, func(e watchEvent) bool {
			have := e.Object.(*corev1.Endpoints)
			return have.Name == name && len(have.Subsets) == 1 && len(have.Subsets[0].Addresses) == 1
		})
		took = append(took, time.Since(from))
	}
	slices.Sort(took)
	t.Logf("50 %%: %v, 90 %%: %v, 99 %%: %v", took[50], took[90], took[99])
	if took[50] > 20*time.Second || took[99] > 50*time.Second {
		t.Errorf("50 %%: %v, 99 %%: %v", took[50], took[99])
	}
}
