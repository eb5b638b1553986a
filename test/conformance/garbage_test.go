package conformance

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func init() {
	it("should delete RS created by deployment when not orphaning", func(t *testing.T, c *cluster) { garbageDeployment(t, c, metav1.DeletePropagationBackground) })
	it("should orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan", func(t *testing.T, c *cluster) { garbageDeployment(t, c, metav1.DeletePropagationOrphan) })
	it("should delete pods created by rc when not orphaning", garbageBackground)
	it("should keep the rc around until all its pods are deleted if the deleteOptions says so", garbageForeground)
	it("should not be blocked by dependency circle", garbageCircle)
	it("should not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted", garbageTwoOwners)
	it("should orphan pods created by rc if delete options say so", garbageOrphan)
}

func (c *cluster) pods(t *testing.T, ns, selector string) []corev1.Pod {
	t.Helper()
	l, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	ok(t, err)
	return l.Items
}

// havePods waits for a number of pods.
func (c *cluster) havePods(t *testing.T, ns, selector string, n int) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	eventually(t, func() string {
		if pods = c.pods(t, ns, selector); len(pods) == n {
			return ""
		}
		return fmt.Sprintf("%d pods, want %d", len(pods), n)
	})
	return pods
}

func propagation(p metav1.DeletionPropagation) metav1.DeleteOptions {
	return metav1.DeleteOptions{PropagationPolicy: &p}
}

func (c *cluster) controllerWithPods(t *testing.T, ns, name string, n int32) *corev1.ReplicationController {
	t.Helper()
	rc, err := c.CoreV1().ReplicationControllers(ns).Create(t.Context(), controller(name, n), metav1.CreateOptions{})
	ok(t, err)
	c.havePods(t, ns, "app="+name, int(n))
	return rc
}

func garbageDeployment(t *testing.T, c *cluster, how metav1.DeletionPropagation) {
	ns := c.namespace(t)
	_, err := c.AppsV1().Deployments(ns).Create(t.Context(), deployment("d", 2), metav1.CreateOptions{})
	ok(t, err)
	c.havePods(t, ns, "app=d", 2)
	sets, err := c.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	same(t, "replica sets", len(sets.Items), 1)
	ok(t, c.AppsV1().Deployments(ns).Delete(t.Context(), "d", propagation(how)))
	gone(t, "deployment", func() error {
		_, err := c.AppsV1().Deployments(ns).Get(t.Context(), "d", metav1.GetOptions{})
		return err
	})
	if how == metav1.DeletePropagationOrphan {
		rs, err := c.AppsV1().ReplicaSets(ns).Get(t.Context(), sets.Items[0].Name, metav1.GetOptions{})
		ok(t, err)
		if len(rs.OwnerReferences) != 0 || rs.DeletionTimestamp != nil {
			t.Fatalf("not orphaned: %+v", rs.ObjectMeta)
		}
		same(t, "pods", len(c.pods(t, ns, "app=d")), 2)
		return
	}
	eventually(t, func() string {
		sets, err := c.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
		ok(t, err)
		if n, p := len(sets.Items), len(c.pods(t, ns, "app=d")); n+p > 0 {
			return fmt.Sprintf("%d replica sets and %d pods are left", n, p)
		}
		return ""
	})
}

func garbageBackground(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.controllerWithPods(t, ns, "rc", 2)
	ok(t, c.CoreV1().ReplicationControllers(ns).Delete(t.Context(), "rc", propagation(metav1.DeletePropagationBackground)))
	c.havePods(t, ns, "", 0)
}

func garbageForeground(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	rc := c.controllerWithPods(t, ns, "rc", 10)
	o := propagation(metav1.DeletePropagationForeground)
	o.Preconditions = metav1.NewUIDPreconditions(string(rc.UID))
	ok(t, c.CoreV1().ReplicationControllers(ns).Delete(t.Context(), "rc", o))
	gone(t, "controller", func() error {
		_, err := c.CoreV1().ReplicationControllers(ns).Get(t.Context(), "rc", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		for _, p := range c.pods(t, ns, "app=rc") {
			t.Fatalf("the controller went before pod %s", p.Name)
		}
		return err
	})
}

func garbageCircle(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	var pods []*corev1.Pod
	for i := range 3 {
		pods = append(pods, c.pod(t, ns, pausePod(fmt.Sprintf("pod%d", i+1))))
	}
	for i, p := range pods {
		owner := pods[(i+2)%3]
		patch := fmt.Sprintf(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":%q,"uid":%q,"controller":true,"blockOwnerDeletion":true}]}}`, owner.Name, owner.UID)
		_, err := c.CoreV1().Pods(ns).Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		ok(t, err)
	}
	o := propagation(metav1.DeletePropagationForeground)
	o.Preconditions = metav1.NewUIDPreconditions(string(pods[0].UID))
	ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "pod1", o))
	c.havePods(t, ns, "", 0)
}

func garbageTwoOwners(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	const n = 10
	first := c.controllerWithPods(t, ns, "to-be-deleted", n)
	stay, err := c.CoreV1().ReplicationControllers(ns).Create(t.Context(), controller("to-stay", 0), metav1.CreateOptions{})
	ok(t, err)
	pods := c.pods(t, ns, "app=to-be-deleted")
	var kept []string
	for _, p := range pods[:n/2] {
		patch := fmt.Sprintf(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ReplicationController","name":%q,"uid":%q}]}}`, stay.Name, stay.UID)
		_, err := c.CoreV1().Pods(ns).Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		ok(t, err)
		kept = append(kept, p.Name)
	}
	o := propagation(metav1.DeletePropagationForeground)
	o.Preconditions = metav1.NewUIDPreconditions(string(first.UID))
	ok(t, c.CoreV1().ReplicationControllers(ns).Delete(t.Context(), first.Name, o))
	gone(t, "controller", func() error {
		_, err := c.CoreV1().ReplicationControllers(ns).Get(t.Context(), first.Name, metav1.GetOptions{})
		return err
	})
	left := c.pods(t, ns, "")
	same(t, "pods left", len(left), n/2)
	for _, p := range left {
		if p.DeletionTimestamp != nil || !slices.Contains(kept, p.Name) || len(p.OwnerReferences) != 1 {
			t.Errorf("pod %s: deleted %v, owners %v", p.Name, p.DeletionTimestamp, p.OwnerReferences)
		}
	}
}

func garbageOrphan(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	rc := c.controllerWithPods(t, ns, "rc", 10)
	o := propagation(metav1.DeletePropagationOrphan)
	o.Preconditions = metav1.NewUIDPreconditions(string(rc.UID))
	ok(t, c.CoreV1().ReplicationControllers(ns).Delete(t.Context(), "rc", o))
	gone(t, "controller", func() error {
		_, err := c.CoreV1().ReplicationControllers(ns).Get(t.Context(), "rc", metav1.GetOptions{})
		return err
	})
	// Nothing may delete them afterwards either.
	select {
	case <-time.After(500 * time.Millisecond):
	case <-t.Context().Done():
	}
	for _, p := range c.havePods(t, ns, "app=rc", 10) {
		if len(p.OwnerReferences) != 0 || p.DeletionTimestamp != nil {
			t.Errorf("pod %s is not orphaned: %+v", p.Name, p.ObjectMeta)
		}
	}
}
