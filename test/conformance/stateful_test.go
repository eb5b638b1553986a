package conformance

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func init() {
	it("should perform rolling updates and roll backs of template modifications", statefulRolls, part("statefulset-controller"))
	it("should perform canary updates and phased rolling updates of template modifications", statefulCanary, part("statefulset-controller"))
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
	c.patchSet(t, ns, containerImage("another"))
	// From the last to the first, one after the other.
	for i := 2; i >= 0; i-- {
		observe(t, w, fmt.Sprintf("pod %d going", i), func(e watchEvent) bool {
			if e.Type == "DELETED" {
				same(t, "next to go", e.Object.(*corev1.Pod).Name, fmt.Sprintf("w-%d", i))
			}
			return e.Type == "DELETED"
		})
	}
	c.stateful(t, ns, "another", "another", "another")
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
	c.patchSet(t, ns, containerImage("another"))
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
	c.stateful(t, ns, *image, *image, "another")
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
	c.stateful(t, ns, *image, *image, "another")
	for n := 1; n >= 0; n-- {
		partition(n)
	}
	c.stateful(t, ns, "another", "another", "another")
	c.settled(t, ns, 3)
}
