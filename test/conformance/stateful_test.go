package conformance

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func init() {
	it("should perform rolling updates and roll backs of template modifications", statefulRolls, part("statefulset-controller"))
	it("should perform canary updates and phased rolling updates of template modifications", statefulCanary, part("statefulset-controller"))
	it("Scaling should happen in predictable order and halt if any stateful pod is unhealthy", statefulOrder, part("statefulset-controller"))
	it("Burst scaling should run to completion even with unhealthy pods", statefulBurst, part("statefulset-controller"))
	it("Should recreate evicted statefulset", statefulEvicted, part("statefulset-controller"))
}

// stateful waits until a set's pods 0 to 2 have the images and are ready.
func (c *cluster) stateful(t *testing.T, ns string, images ...string) {
	t.Helper()
	eventually(t, func() string {
		for i, want := range images {
			p, err := c.CoreV1().Pods(ns).Get(t.Context(), fmt.Sprintf("w-%d", i), metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			if p.Spec.Containers[0].Image != want || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
				return fmt.Sprintf("pod %d has %s, want %s", i, p.Spec.Containers[0].Image, want)
			}
		}
		return ""
	})
}

func (c *cluster) patchSet(t *testing.T, ns, patch string) {
	t.Helper()
	_, err := c.AppsV1().StatefulSets(ns).Patch(t.Context(), "w", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	ok(t, err)
}

func containerImage(name string) string {
	return fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"c","image":%q}]}}}}`, name)
}

func (c *cluster) settled(t *testing.T, ns string, n int32) *appsv1.StatefulSet {
	t.Helper()
	var s *appsv1.StatefulSet
	eventually(t, func() string {
		var err error
		s, err = c.AppsV1().StatefulSets(ns).Get(t.Context(), "w", metav1.GetOptions{})
		ok(t, err)
		if s.Status.ObservedGeneration >= s.Generation && s.Status.ReadyReplicas == n && s.Status.UpdatedReplicas == n && s.Status.CurrentRevision == s.Status.UpdateRevision {
			return ""
		}
		return fmt.Sprintf("status: %+v", s.Status)
	})
	return s
}

func statefulRolls(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.workload(t, ns, "statefulsets", 3)
	c.stateful(t, ns, *image, *image, *image)
	first := c.settled(t, ns, 3).Status.CurrentRevision
	list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	w, err := c.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	ok(t, err)
	defer w.Stop()
	c.patchSet(t, ns, containerImage(another()))
	// From the last to the first, one after the other.
	for i := 2; i >= 0; i-- {
		observe(t, w, fmt.Sprintf("pod %d going", i), func(e watchEvent) bool {
			if e.Type == "DELETED" {
				same(t, "next to go", e.Object.(*corev1.Pod).Name, fmt.Sprintf("w-%d", i))
			}
			return e.Type == "DELETED"
		})
	}
	c.stateful(t, ns, another(), another(), another())
	second := c.settled(t, ns, 3).Status.CurrentRevision
	if second == first {
		t.Error("the revision is the same after an update")
	}
	c.patchSet(t, ns, containerImage(*image))
	c.stateful(t, ns, *image, *image, *image)
	same(t, "revision after rolling back", c.settled(t, ns, 3).Status.CurrentRevision, first)
}

func statefulCanary(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.workload(t, ns, "statefulsets", 3)
	c.stateful(t, ns, *image, *image, *image)
	partition := func(n int) {
		t.Helper()
		c.patchSet(t, ns, fmt.Sprintf(`{"spec":{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"partition":%d}}}}`, n))
	}
	partition(3)
	c.patchSet(t, ns, containerImage(another()))
	eventually(t, func() string {
		s, err := c.AppsV1().StatefulSets(ns).Get(t.Context(), "w", metav1.GetOptions{})
		ok(t, err)
		if s.Status.ObservedGeneration >= s.Generation && s.Status.UpdateRevision != s.Status.CurrentRevision {
			return ""
		}
		return fmt.Sprintf("status: %+v", s.Status)
	})
	c.stateful(t, ns, *image, *image, *image)
	partition(2)
	c.stateful(t, ns, *image, *image, another())
	// What is made anew keeps the revision of its side of the partition.
	for _, name := range []string{"w-0", "w-2"} {
		old, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), name, *metav1.NewDeleteOptions(0)))
		eventually(t, func() string {
			p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || p.UID == old.UID {
				return name + " was not made anew"
			}
			return ""
		})
	}
	c.stateful(t, ns, *image, *image, another())
	for n := 1; n >= 0; n-- {
		partition(n)
	}
	c.stateful(t, ns, another(), another(), another())
	c.settled(t, ns, 3)
}

// healthy is the condition that the pods of gated sets wait for before they are ready.
const healthy = corev1.PodConditionType("conformance.example.com/healthy")

// gatedSet makes a set whose pods are ready when the test says so.
func (c *cluster) gatedSet(t *testing.T, ns string, policy appsv1.PodManagementPolicyType) {
	t.Helper()
	l, p := labelled("w")
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: healthy}}
	_, err := c.AppsV1().StatefulSets(ns).Create(t.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: l},
		Spec: appsv1.StatefulSetSpec{Replicas: new(int32(3)), ServiceName: "test", PodManagementPolicy: policy, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: p}}, metav1.CreateOptions{})
	ok(t, err)
}

// heal waits for a pod of the set to run and says whether it is healthy.
func (c *cluster) heal(t *testing.T, ns string, i int, status corev1.ConditionStatus) {
	t.Helper()
	name := fmt.Sprintf("w-%d", i)
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || p.Status.Phase != corev1.PodRunning {
			return fmt.Sprintf("%s does not run (%v)", name, err)
		}
		return ""
	})
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q}]}}`, healthy, status)
	_, err := c.CoreV1().Pods(ns).Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	ok(t, err)
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		for _, x := range p.Status.Conditions {
			if x.Type == corev1.PodReady && x.Status == status {
				return ""
			}
		}
		return fmt.Sprintf("%s is not ready=%s: %v", name, status, p.Status.Conditions)
	})
}

func (c *cluster) podNames(t *testing.T, ns string) string {
	t.Helper()
	list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	names := ""
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			names += p.Name + " "
		}
	}
	return names
}

func (c *cluster) havePodNames(t *testing.T, ns, want string) {
	t.Helper()
	eventually(t, func() string {
		if have := c.podNames(t, ns); have != want {
			return fmt.Sprintf("pods %q, want %q", have, want)
		}
		return ""
	})
}

func statefulOrder(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.gatedSet(t, ns, appsv1.OrderedReadyPodManagement)
	c.havePodNames(t, ns, "w-0 ")
	c.heal(t, ns, 0, corev1.ConditionTrue)
	c.havePodNames(t, ns, "w-0 w-1 ")
	// With w-0 unhealthy again and w-1 not yet, nothing more comes.
	c.heal(t, ns, 0, corev1.ConditionFalse)
	c.heal(t, ns, 1, corev1.ConditionTrue)
	wait(t, 1)
	same(t, "pods beside an unhealthy one", c.podNames(t, ns), "w-0 w-1 ")
	c.heal(t, ns, 0, corev1.ConditionTrue)
	c.havePodNames(t, ns, "w-0 w-1 w-2 ")
	c.heal(t, ns, 2, corev1.ConditionTrue)
	c.settled(t, ns, 3)
	// Down: while they are unhealthy nothing goes; then the last first.
	for i := range 3 {
		c.heal(t, ns, i, corev1.ConditionFalse)
	}
	eventually(t, func() string {
		s, err := c.AppsV1().StatefulSets(ns).Get(t.Context(), "w", metav1.GetOptions{})
		ok(t, err)
		if s.Status.ReadyReplicas == 0 {
			return ""
		}
		return fmt.Sprintf("%d are ready", s.Status.ReadyReplicas)
	})
	list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	w, err := c.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	ok(t, err)
	defer w.Stop()
	c.patchSet(t, ns, `{"spec":{"replicas":0}}`)
	wait(t, 1)
	same(t, "unhealthy pods", c.podNames(t, ns), "w-0 w-1 w-2 ")
	for i := 2; i >= 0; i-- {
		// Each may go as soon as it is healthy.
		patch := fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"True"}]}}`, healthy)
		if _, err := c.CoreV1().Pods(ns).Patch(t.Context(), fmt.Sprintf("w-%d", i), types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		observe(t, w, fmt.Sprintf("pod %d going", i), func(e watchEvent) bool {
			if e.Type == "DELETED" {
				same(t, "next to go", e.Object.(*corev1.Pod).Name, fmt.Sprintf("w-%d", i))
			}
			return e.Type == "DELETED"
		})
	}
}

func statefulBurst(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.gatedSet(t, ns, appsv1.ParallelPodManagement)
	c.havePodNames(t, ns, "w-0 w-1 w-2 ")
	for i := range 3 {
		c.heal(t, ns, i, corev1.ConditionTrue)
	}
	c.heal(t, ns, 0, corev1.ConditionFalse)
	c.patchSet(t, ns, `{"spec":{"replicas":5}}`)
	c.havePodNames(t, ns, "w-0 w-1 w-2 w-3 w-4 ")
	c.patchSet(t, ns, `{"spec":{"replicas":0}}`)
	c.havePodNames(t, ns, "")
}

func statefulEvicted(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.workload(t, ns, "statefulsets", 1)
	c.stateful(t, ns, *image)
	old, err := c.CoreV1().Pods(ns).Get(t.Context(), "w-0", metav1.GetOptions{})
	ok(t, err)
	_, err = c.CoreV1().Pods(ns).Patch(t.Context(), "w-0", types.MergePatchType, []byte(`{"status":{"phase":"Failed","reason":"Evicted"}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), "w-0", metav1.GetOptions{})
		if err != nil || p.UID == old.UID {
			return "the failed pod was not made anew"
		}
		return ""
	})
	c.stateful(t, ns, *image)
}
