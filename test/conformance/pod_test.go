package conformance

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/util/retry"
)

func init() {
	it("Secrets should be immutable if `immutable` field is set", immutableSecret)
	it("MaxExpirationSeconds validations should reject pod creation when MaxExpirationSeconds exceeds maximum (91d)", certificateLife(91*24*3600+1))
	it("MaxExpirationSeconds validations should reject pod creation when MaxExpirationSeconds is less than minimum (1h)", certificateLife(3599))
	it("[sig-node] Pods should be submitted and removed", podLife)
	it("[sig-node] Pods should be updated", podUpdate)
	it("[sig-node] Pods should allow activeDeadlineSeconds to be updated", podDeadline)
	it("[sig-node] Pods should delete a collection of pods", podCollection)
	it("[sig-node] Pods should get a host IP", podHostIP)
	it("[sig-node] Pods should patch a pod status", podStatus)
	it("should run through the lifecycle of Pods and PodStatus", podAndStatus)
	it("Pods Set QOS Class should be set on Pods with matching resource requests and limits for memory and cpu", podQOS)
	it("Pod Generation custom-set generation on new pods and graceful delete", generationCustom)
	it("Pod Generation issue 500 podspec updates and verify generation and observedGeneration eventually converge", generation500)
	it("Pod Generation pod generation should start at 1 and increment per update", generationUpdates)
	it("should update the ephemeral containers in an existing pod", ephemeralUpdate)
	it("Pod InPlace Resize Container resize pod via the replace endpoint", resizeReplace)
	it("ConfigMap should fail to create ConfigMap with empty key", emptyKey)
	it("Secrets should fail to create secret due to empty secret key", emptySecretKey)
	it("ConfigMap should update ConfigMap successfully", configMapUpdate)
	it("RuntimeClass should reject a Pod requesting a non-existent RuntimeClass", runtimeClassUnknown, plugin("RuntimeClass"))
	it("RuntimeClass should reject a Pod requesting a deleted RuntimeClass", runtimeClassDeleted, plugin("RuntimeClass"))
	it("RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead", runtimeClassOverhead, plugin("RuntimeClass"))
	it("RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead", runtimeClassPlain, plugin("RuntimeClass"))
	it("should reject invalid sysctls", invalidSysctls)
	it("Node Lifecycle should run through the lifecycle of a node", nodeLife).alone()
	it("CSIInlineVolumes should support CSIVolumeSource in Pod API", csiInline)
	it("NoExecuteTaintManager Single Pod [Serial] removing taint cancels eviction", taintRemoved).alone()
}

func podLife(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Pods(ns)
	selector := metav1.ListOptions{LabelSelector: "time=now"}
	l, err := api.List(t.Context(), selector)
	ok(t, err)
	same(t, "pods before", len(l.Items), 0)
	selector.ResourceVersion = l.ResourceVersion
	w, err := api.Watch(t.Context(), selector)
	ok(t, err)
	defer w.Stop()
	p := pausePod("submitted")
	p.Labels = map[string]string{"time": "now"}
	c.pod(t, ns, p)
	observe(t, w, "the pod", func(e watchEvent) bool { return e.Type == "ADDED" })
	c.running(t, ns, "submitted")
	ok(t, api.Delete(t.Context(), "submitted", *metav1.NewDeleteOptions(30)))
	last := observe(t, w, "the end", func(e watchEvent) bool { return e.Type == "DELETED" }).Object.(*corev1.Pod)
	if last.DeletionTimestamp == nil || last.Spec.TerminationGracePeriodSeconds == nil {
		t.Errorf("the last state has no deletion timestamp: %+v", last.ObjectMeta)
	}
	selector.ResourceVersion = ""
	l, err = api.List(t.Context(), selector)
	ok(t, err)
	same(t, "pods after", len(l.Items), 0)
}

func (c *cluster) changePod(t *testing.T, ns, name string, change func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	var out *corev1.Pod
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		change(p)
		out, err = c.CoreV1().Pods(ns).Update(t.Context(), p, metav1.UpdateOptions{})
		return err
	}))
	return out
}

func podUpdate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.pod(t, ns, pausePod("p"))
	c.running(t, ns, "p")
	same(t, "pods by label", len(c.pods(t, ns, "name=p")), 1)
	c.changePod(t, ns, "p", func(p *corev1.Pod) { p.Labels["time"] = "later" })
	same(t, "pods by the new label", len(c.pods(t, ns, "time=later")), 1)
}

func podDeadline(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.pod(t, ns, pausePod("p"))
	c.running(t, ns, "p")
	c.changePod(t, ns, "p", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(1)) })
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
		ok(t, err)
		if p.Status.Phase == corev1.PodFailed && p.Status.Reason == "DeadlineExceeded" {
			return ""
		}
		return fmt.Sprintf("phase %s, reason %q", p.Status.Phase, p.Status.Reason)
	})
}

func podCollection(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	for i := range 3 {
		p := pausePod(fmt.Sprintf("p%d", i))
		p.Labels = map[string]string{"type": "Testing"}
		c.pod(t, ns, p)
	}
	same(t, "pods", len(c.pods(t, ns, "type=Testing")), 3)
	ok(t, c.CoreV1().Pods(ns).DeleteCollection(t.Context(), *metav1.NewDeleteOptions(0), metav1.ListOptions{LabelSelector: "type=Testing"}))
	c.havePods(t, ns, "type=Testing", 0)
}

func podHostIP(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.pod(t, ns, pausePod("p"))
	p := c.running(t, ns, "p")
	if p.Status.HostIP == "" || len(p.Status.HostIPs) == 0 || p.Status.HostIPs[0].IP != p.Status.HostIP {
		t.Errorf("host IP %q, host IPs %v", p.Status.HostIP, p.Status.HostIPs)
	}
}

func podStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.pod(t, ns, pausePod("p"))
	c.running(t, ns, "p")
	p, err := c.CoreV1().Pods(ns).Patch(t.Context(), "p", types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}},"spec":{"nodeName":"other"},"status":{"message":"Patched by the test","reason":"E2E"}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "message", p.Status.Message, "Patched by the test")
	same(t, "reason", p.Status.Reason, "E2E")
	if p.Spec.NodeName == "other" {
		t.Error("a status patch changed the spec")
	}
}

func podAndStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Pods(ns)
	w, err := api.Watch(t.Context(), metav1.ListOptions{LabelSelector: "test-pod-static=true"})
	ok(t, err)
	defer w.Stop()
	p := pausePod("p")
	p.Labels = map[string]string{"test-pod-static": "true"}
	c.pod(t, ns, p)
	c.running(t, ns, "p")
	patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{"test-pod": "patched"}},
		"spec": map[string]any{"terminationGracePeriodSeconds": 1, "containers": []map[string]string{{"name": "c", "image": *image}}}})
	patched, err := api.Patch(t.Context(), "p", types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", patched.Labels["test-pod"], "patched")
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		p, err := api.Get(t.Context(), "p", metav1.GetOptions{})
		ok(t, err)
		for i := range p.Status.Conditions {
			if p.Status.Conditions[i].Type == corev1.PodReady {
				p.Status.Conditions[i].Status = corev1.ConditionFalse
			}
		}
		p, err = api.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		if err == nil && !strings.Contains(fmt.Sprint(p.Status.Conditions), "Ready 1 False") && len(p.Status.Conditions) == 0 {
			t.Errorf("conditions: %v", p.Status.Conditions)
		}
		return err
	}))
	observe(t, w, "the pod not ready", func(e watchEvent) bool {
		for _, c := range e.Object.(*corev1.Pod).Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse && e.Type == "MODIFIED" {
				return true
			}
		}
		return false
	})
	ok(t, api.DeleteCollection(t.Context(), *metav1.NewDeleteOptions(1), metav1.ListOptions{LabelSelector: "test-pod-static=true"}))
	observe(t, w, "the deletion", func(e watchEvent) bool { return e.Type == "DELETED" })
}

func podQOS(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	r := resources("cpu", "100m", "memory", "100Mi")
	for class, p := range map[corev1.PodQOSClass]*corev1.Pod{
		corev1.PodQOSGuaranteed: asking("guaranteed", r, r), corev1.PodQOSBurstable: asking("burstable", r, nil), corev1.PodQOSBestEffort: asking("best-effort", nil, nil),
	} {
		same(t, p.Name, c.pod(t, ns, p).Status.QOSClass, class)
	}
}

func generationCustom(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("p")
	p.Generation = 100
	p.Finalizers = []string{"conformance.example.com/held"}
	p.Spec.TerminationGracePeriodSeconds = new(int64(30))
	same(t, "generation of a new pod", c.pod(t, ns, p).Generation, 1)
	ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{}))
	left, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
	ok(t, err)
	same(t, "generation of a deleted pod", left.Generation, 2)
	_, err = c.CoreV1().Pods(ns).Patch(t.Context(), "p", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	gone(t, "pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); return err })
}

func (c *cluster) observed(t *testing.T, ns, name string, generation int64) {
	t.Helper()
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		if p.Generation == generation && p.Status.ObservedGeneration == generation {
			return ""
		}
		return fmt.Sprintf("generation %d, observed %d, want %d", p.Generation, p.Status.ObservedGeneration, generation)
	})
}

func generation500(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("p")
	p.Spec.ActiveDeadlineSeconds = new(int64(5000))
	c.pod(t, ns, p)
	c.running(t, ns, "p")
	for i := range 499 {
		c.changePod(t, ns, "p", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(4999 - i)) })
	}
	c.observed(t, ns, "p", 500)
}

func generationUpdates(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("p")
	p.Spec.ActiveDeadlineSeconds = new(int64(5000))
	same(t, "generation of a new pod", c.pod(t, ns, p).Generation, 1)
	c.running(t, ns, "p")
	c.observed(t, ns, "p", 1)
	g := int64(1)
	for _, step := range []struct {
		what   string
		counts bool
		change func(*corev1.Pod)
	}{
		{"image", true, func(p *corev1.Pod) { p.Spec.Containers[0].Image += "0" }},
		{"deadline", true, func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(4000)) }},
		{"tolerations", true, func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
		}},
		{"label", false, func(p *corev1.Pod) { p.Labels["other"] = "value" }},
		{"annotation", false, func(p *corev1.Pod) { p.Annotations = map[string]string{"other": "value"} }},
		{"nothing", false, func(*corev1.Pod) {}},
		{"a generation of its own", false, func(p *corev1.Pod) { p.Generation = 77 }},
	} {
		now := c.changePod(t, ns, "p", step.change)
		if step.counts {
			g++
		}
		same(t, "generation after "+step.what, now.Generation, g)
		c.observed(t, ns, "p", g)
	}
}

func ephemeralUpdate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Pods(ns)
	c.pod(t, ns, pausePod("p"))
	c.running(t, ns, "p")
	debugger := func(name string) string {
		return fmt.Sprintf(`{"name":%q,"image":%q,"command":["sleep","3600"],"stdin":true,"tty":true}`, name, *image)
	}
	p, err := api.Patch(t.Context(), "p", types.StrategicMergePatchType, []byte(`{"spec":{"ephemeralContainers":[`+debugger("debugger1")+`]}}`), metav1.PatchOptions{}, "ephemeralcontainers")
	ok(t, err)
	same(t, "ephemeral containers", len(p.Spec.EphemeralContainers), 1)
	same(t, "default pull policy", p.Spec.EphemeralContainers[0].TerminationMessagePath, corev1.TerminationMessagePathDefault)
	if _, err := api.Patch(t.Context(), "p", types.StrategicMergePatchType, []byte(`{"spec":{"ephemeralContainers":[`+debugger("other")+`]}}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("ephemeral containers through the main door: %v", err)
	}
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		p, err := api.Get(t.Context(), "p", metav1.GetOptions{})
		ok(t, err)
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger2", Image: *image, Command: []string{"sleep", "3600"}}})
		p, err = api.UpdateEphemeralContainers(t.Context(), "p", p, metav1.UpdateOptions{})
		if err == nil {
			same(t, "ephemeral containers", len(p.Spec.EphemeralContainers), 2)
		}
		return err
	}))
	got, err := c.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name("p").SubResource("ephemeralcontainers").Do(t.Context()).Get()
	ok(t, err)
	same(t, "ephemeral containers by get", len(got.(*corev1.Pod).Spec.EphemeralContainers), 2)
	p, err = api.Get(t.Context(), "p", metav1.GetOptions{})
	ok(t, err)
	p.Spec.EphemeralContainers = p.Spec.EphemeralContainers[:1]
	if _, err = api.UpdateEphemeralContainers(t.Context(), "p", p, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) && !apierrors.IsConflict(err) {
		t.Errorf("an ephemeral container was removed: %v", err)
	}
}

func resizeReplace(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	r := resources("cpu", "10m", "memory", "20Mi")
	c.pod(t, ns, asking("p", r, nil))
	c.running(t, ns, "p")
	api := c.CoreV1().Pods(ns)
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		p, err := api.Get(t.Context(), "p", metav1.GetOptions{})
		ok(t, err)
		p.Spec.Containers[0].Resources.Requests = resources("cpu", "20m", "memory", "20Mi")
		p.Spec.Containers[0].Image = "not-changed-by-resize"
		_, err = api.UpdateResize(t.Context(), "p", p, metav1.UpdateOptions{})
		return err
	}))
	p, err := api.Get(t.Context(), "p", metav1.GetOptions{})
	ok(t, err)
	same(t, "request", p.Spec.Containers[0].Resources.Requests.Cpu().String(), "20m")
	same(t, "image", p.Spec.Containers[0].Image, *image)
	c.observed(t, ns, "p", 2)
	got, err := c.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name("p").SubResource("resize").Do(t.Context()).Get()
	ok(t, err)
	same(t, "request by resize", got.(*corev1.Pod).Spec.Containers[0].Resources.Requests.Cpu().String(), "20m")
	p, err = api.Patch(t.Context(), "p", types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"30m"}}}]}}`), metav1.PatchOptions{}, "resize")
	ok(t, err)
	same(t, "request", p.Spec.Containers[0].Resources.Requests.Cpu().String(), "30m")
	// The class may not change.
	if _, err := api.Patch(t.Context(), "p", types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"30m","memory":"20Mi"},"limits":{"cpu":"30m","memory":"20Mi"}}}]}}`), metav1.PatchOptions{}, "resize"); !apierrors.IsInvalid(err) {
		t.Errorf("a resize to another class: %v", err)
	}
}

func emptyKey(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "empty"}, Data: map[string]string{"": "value"}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("an empty key: %v", err)
	}
}

func emptySecretKey(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	_, err := c.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "empty"}, Data: map[string][]byte{"": []byte("value")}}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("an empty key: %v", err)
	}
}

func configMapUpdate(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	cm := c.setData(t, c.configMap(t, ns, "c", nil, map[string]string{"data": "value"}), "1")
	got, err := c.CoreV1().ConfigMaps(ns).Get(t.Context(), cm.Name, metav1.GetOptions{})
	ok(t, err)
	same(t, "data", got.Data["mutation"], "1")
}

func (c *cluster) runtimeClass(t *testing.T, overhead corev1.ResourceList) string {
	t.Helper()
	rc := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "conformance-" + rand.String(8)}, Handler: "conformance"}
	if overhead != nil {
		rc.Overhead = &nodev1.Overhead{PodFixed: overhead}
	}
	_, err := c.NodeV1().RuntimeClasses().Create(t.Context(), rc, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() {
		err := c.NodeV1().RuntimeClasses().Delete(contextOf(t), rc.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	return rc.Name
}

func classed(name, class string) *corev1.Pod {
	p := pausePod(name)
	p.Spec.RuntimeClassName = &class
	return p
}

func (c *cluster) refusedClass(t *testing.T, ns, class string) {
	t.Helper()
	if _, err := c.CoreV1().Pods(ns).Create(t.Context(), classed("p", class), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a pod of RuntimeClass %s: %v, want Forbidden", class, err)
	}
}

func runtimeClassUnknown(t *testing.T, c *cluster) { c.refusedClass(t, c.namespace(t), "nonexistent") }

func runtimeClassDeleted(t *testing.T, c *cluster) {
	class := c.runtimeClass(t, nil)
	ok(t, c.NodeV1().RuntimeClasses().Delete(t.Context(), class, metav1.DeleteOptions{}))
	gone(t, "RuntimeClass", func() error {
		_, err := c.NodeV1().RuntimeClasses().Get(t.Context(), class, metav1.GetOptions{})
		return err
	})
	c.refusedClass(t, c.namespace(t), class)
}

func (c *cluster) scheduled(t *testing.T, ns, name string) {
	t.Helper()
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		if p.Spec.NodeName == "" {
			return fmt.Sprintf("not scheduled: %v", p.Status.Conditions)
		}
		return ""
	})
}

func runtimeClassOverhead(t *testing.T, c *cluster) {
	class := c.runtimeClass(t, resources("cpu", "10m", "memory", "1Mi"))
	ns := c.namespace(t)
	p := c.pod(t, ns, classed("p", class))
	same(t, "overhead", p.Spec.Overhead.Cpu().String()+" "+p.Spec.Overhead.Memory().String(), "10m 1Mi")
	c.scheduled(t, ns, "p")
}

func runtimeClassPlain(t *testing.T, c *cluster) {
	class := c.runtimeClass(t, nil)
	ns := c.namespace(t)
	same(t, "overhead", len(c.pod(t, ns, classed("p", class)).Spec.Overhead), 0)
	c.scheduled(t, ns, "p")
}

func invalidSysctls(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("p")
	p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{
		{Name: "foo-", Value: "bar"}, {Name: "kernel.shmmax", Value: "100000000"}, {Name: "safe-and-unsafe", Value: "100000000"}, {Name: "bar..", Value: "42"}}}
	_, err := c.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `Invalid value: "foo-"`) || !strings.Contains(err.Error(), `Invalid value: "bar.."`) ||
		strings.Contains(err.Error(), `Invalid value: "kernel.shmmax"`) || strings.Contains(err.Error(), `Invalid value: "safe-and-unsafe"`) {
		t.Errorf("invalid sysctls: %v", err)
	}
}

func nodeLife(t *testing.T, c *cluster) {
	api := c.CoreV1().Nodes()
	name := "conformance-" + rand.String(8)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"conformance": name}}}
	n.Status.Phase = corev1.NodeRunning
	_, err := api.Create(t.Context(), n, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { _ = api.Delete(contextOf(t), name, metav1.DeleteOptions{}) })
	n, err = api.Get(t.Context(), name, metav1.GetOptions{})
	ok(t, err)
	n, err = api.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"true"}}}`), metav1.PatchOptions{})
	ok(t, err)
	same(t, "label", n.Labels["patched"], "true")
	ok(t, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		n, err := api.Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		n.Status.Phase = corev1.NodeRunning
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: "Updated", Status: corev1.ConditionTrue})
		n, err = api.UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		return err
	}))
	_, err = api.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(`{"status":{"phase":"Terminated"}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	ok(t, api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "conformance=" + name}))
	gone(t, "node", func() error { _, err := api.Get(t.Context(), name, metav1.GetOptions{}); return err })
}

func csiInline(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("p")
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "csi.example.com", FSType: new("ext4"), ReadOnly: new(true), VolumeAttributes: map[string]string{"a": "b"}}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	p.Spec.NodeSelector = map[string]string{"nowhere": "true"}
	c.pod(t, ns, p)
	l := c.pods(t, ns, "name=p")
	same(t, "pods", len(l), 1)
	same(t, "driver", l[0].Spec.Volumes[0].CSI.Driver, "csi.example.com")
	ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{}))
	gone(t, "pod", func() error { _, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); return err })
}

func taintRemoved(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	node := c.schedulable(t)[0]
	p := pausePod("p")
	p.Spec.NodeName = node
	p.Spec.Tolerations = []corev1.Toleration{{Key: "conformance", Operator: corev1.TolerationOpEqual, Value: "evict", Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64(3))}}
	c.pod(t, ns, p)
	c.running(t, ns, "p")
	set := func(taints string) {
		t.Helper()
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"spec":{"taints":`+taints+`}}`), metav1.PatchOptions{})
		ok(t, err)
	}
	w, err := c.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{})
	ok(t, err)
	defer w.Stop()
	set(`[{"key":"conformance","value":"evict","effect":"NoExecute"}]`)
	defer set("null")
	wait(t, 1)
	set("null")
	wait(t, 4)
	left, err := c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
	ok(t, err)
	if left.DeletionTimestamp != nil {
		t.Error("the pod was evicted although the taint went in time")
	}
}

func immutableSecret(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	api := c.CoreV1().Secrets(ns)
	s, err := api.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"a": []byte("1"), "b": []byte("2")}}, metav1.CreateOptions{})
	ok(t, err)
	s.Data["a"] = []byte("changed")
	s, err = api.Update(t.Context(), s, metav1.UpdateOptions{})
	ok(t, err)
	s.Immutable = new(true)
	s, err = api.Update(t.Context(), s, metav1.UpdateOptions{})
	ok(t, err)
	for what, change := range map[string]func(*corev1.Secret){
		"data":              func(s *corev1.Secret) { s.Data["a"] = []byte("again") },
		"immutable = nil":   func(s *corev1.Secret) { s.Immutable = nil },
		"immutable = false": func(s *corev1.Secret) { s.Immutable = new(false) },
	} {
		w := s.DeepCopy()
		change(w)
		if _, err := api.Update(t.Context(), w, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("%s of an immutable secret: %v", what, err)
		}
	}
	// Metadata may change, and it may go.
	s.Labels = map[string]string{"a": "b"}
	_, err = api.Update(t.Context(), s, metav1.UpdateOptions{})
	ok(t, err)
	ok(t, api.Delete(t.Context(), "s", metav1.DeleteOptions{}))
}

func certificateLife(seconds int32) func(t *testing.T, c *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		p := pausePod("certified")
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
			PodCertificate: &corev1.PodCertificateProjection{SignerName: "conformance.example.com/signer", KeyType: "ED25519", CredentialBundlePath: "bundle.pem", MaxExpirationSeconds: &seconds}}}}}}}
		_, err := c.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "maxExpirationSeconds") {
			t.Errorf("%d seconds: %v", seconds, err)
		}
		p.Spec.Volumes[0].Projected.Sources[0].PodCertificate.MaxExpirationSeconds = new(int32(3600))
		_, err = c.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		ok(t, err)
	}
}
