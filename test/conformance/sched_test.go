package conformance

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
)

func init() {
	it("validates resource limits of pods that are allowed to run", schedResources).alone()
	it("validates that NodeSelector is respected if matching", schedSelector).alone()
	it("validates that NodeSelector is respected if not matching", schedNoNode).alone()
	it("validates that there exists conflict between pods with same hostPort and protocol but one using 0.0.0.0 hostIP", schedHostPort).alone()
	it("validates basic preemption works", preempts("")).alone()
	it("validates lower priority pod preemption by critical pod", preempts("system-cluster-critical")).alone()
	it("validates pod disruption condition is added to the preempted pod", preemptCondition).alone()
	it("NoExecuteTaintManager Multiple Pods [Serial] evicts pods with minTolerationSeconds", taintMany).alone()
	it("PreemptionExecutionPath runs ReplicaSets to verify preemption running path", preemptSets).alone()
}

// fake is an extended resource of one node, so that what a test fills is nobody
// else's.
const fake = "example.com/conformance"

func (c *cluster) extend(t *testing.T, node, n string) {
	t.Helper()
	set := func(value string) error {
		patch := fmt.Sprintf(`{"status":{"capacity":{%q:%s},"allocatable":{%q:%s}}}`, fake, value, fake, value)
		_, err := c.CoreV1().Nodes().Patch(contextOf(t), node, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		return err
	}
	ok(t, set(`"`+n+`"`))
	t.Cleanup(func() {
		if err := set("null"); err != nil {
			t.Error(err)
		}
	})
}

func wanting(name, n string) *corev1.Pod {
	r := resources(fake, n)
	return asking(name, r, r)
}

// unplaced waits until the scheduler says that a pod has no place.
func (c *cluster) unplaced(t *testing.T, ns, name string) {
	t.Helper()
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		ok(t, err)
		if p.Spec.NodeName != "" {
			t.Fatalf("pod %s was placed on %s", name, p.Spec.NodeName)
		}
		if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable
		}) {
			return ""
		}
		return "the scheduler says nothing about " + name
	})
}

func schedResources(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	node := c.schedulable(t)[0]
	c.extend(t, node, "10")
	c.pod(t, ns, wanting("fills", "7"))
	c.scheduled(t, ns, "fills")
	c.pod(t, ns, wanting("too-much", "5"))
	c.unplaced(t, ns, "too-much")
	c.pod(t, ns, wanting("fits", "3"))
	c.scheduled(t, ns, "fits")
	ok(t, c.CoreV1().Pods(ns).Delete(t.Context(), "fills", *metav1.NewDeleteOptions(0)))
	c.scheduled(t, ns, "too-much")
}

func schedSelector(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	node := c.schedulable(t)[0]
	label := "conformance-" + rand.String(8)
	set := func(value string) {
		t.Helper()
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+label+`":`+value+`}}}`), metav1.PatchOptions{})
		ok(t, err)
	}
	set(`"42"`)
	defer set("null")
	p := pausePod("with-labels")
	p.Spec.NodeSelector = map[string]string{label: "42"}
	c.pod(t, ns, p)
	c.scheduled(t, ns, "with-labels")
	got, err := c.CoreV1().Pods(ns).Get(t.Context(), "with-labels", metav1.GetOptions{})
	ok(t, err)
	same(t, "node", got.Spec.NodeName, node)
}

func schedNoNode(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	p := pausePod("restricted")
	p.Spec.NodeSelector = map[string]string{"label": "nonempty"}
	c.pod(t, ns, p)
	c.unplaced(t, ns, "restricted")
}

func schedHostPort(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	node := c.schedulable(t)[0]
	n, err := c.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	ok(t, err)
	for i, ip := range []string{"", "127.0.0.1"} {
		p := pausePod(fmt.Sprintf("pod%d", i))
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: n.Labels[corev1.LabelHostname]}
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 54322, HostIP: ip}}
		c.pod(t, ns, p)
	}
	c.scheduled(t, ns, "pod0")
	c.unplaced(t, ns, "pod1")
}

func (c *cluster) class(t *testing.T, value int32) string {
	t.Helper()
	pc := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "conformance-" + rand.String(8)}, Value: value}
	_, err := c.SchedulingV1().PriorityClasses().Create(t.Context(), pc, metav1.CreateOptions{})
	ok(t, err)
	t.Cleanup(func() { _ = c.SchedulingV1().PriorityClasses().Delete(contextOf(t), pc.Name, metav1.DeleteOptions{}) })
	return pc.Name
}

func prior(name, n, class string) *corev1.Pod {
	p := wanting(name, n)
	p.Spec.PriorityClassName = class
	return p
}

func preempts(critical string) func(t *testing.T, c *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		nodes := c.schedulable(t)
		if len(nodes) < 2 {
			cannot(t, "this cluster has one node that takes pods, two are needed")
		}
		c.extend(t, nodes[0], "5")
		c.extend(t, nodes[1], "5")
		low, medium, high := c.class(t, 1), c.class(t, 100), c.class(t, 1000)
		c.pod(t, ns, prior("low", "3", low))
		c.scheduled(t, ns, "low")
		c.pod(t, ns, prior("medium", "3", medium))
		c.scheduled(t, ns, "medium")
		where, name := ns, "preemptor"
		p := prior(name, "3", high)
		if critical != "" {
			// Critical pods live in kube-system.
			where, p.Name = "kube-system", "critical-"+rand.String(8)
			name = p.Name
			p.Spec.PriorityClassName = critical
			t.Cleanup(func() { _ = c.CoreV1().Pods(where).Delete(contextOf(t), name, *metav1.NewDeleteOptions(0)) })
		}
		c.pod(t, where, p)
		c.scheduled(t, where, name)
		eventually(t, func() string {
			p, err := c.CoreV1().Pods(ns).Get(t.Context(), "low", metav1.GetOptions{})
			if apierrors.IsNotFound(err) || err == nil && p.DeletionTimestamp != nil {
				return ""
			}
			return "the pod of low priority is there"
		})
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), "medium", metav1.GetOptions{})
		ok(t, err)
		if p.DeletionTimestamp != nil {
			t.Error("the pod of medium priority was preempted")
		}
	}
}

func preemptCondition(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.extend(t, c.schedulable(t)[0], "1")
	low, high := c.class(t, 1), c.class(t, 1000)
	victim := prior("victim", "1", low)
	victim.Finalizers = []string{"conformance.example.com/held"}
	c.pod(t, ns, victim)
	c.scheduled(t, ns, "victim")
	c.running(t, ns, "victim")
	c.pod(t, ns, prior("preemptor", "1", high))
	eventually(t, func() string {
		p, err := c.CoreV1().Pods(ns).Get(t.Context(), "victim", metav1.GetOptions{})
		ok(t, err)
		if p.DeletionTimestamp != nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
		}) {
			return ""
		}
		return fmt.Sprintf("deleted %v, conditions %v", p.DeletionTimestamp, p.Status.Conditions)
	})
	_, err := c.CoreV1().Pods(ns).Patch(t.Context(), "victim", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	ok(t, err)
	gone(t, "victim", func() error {
		_, err := c.CoreV1().Pods(ns).Get(t.Context(), "victim", metav1.GetOptions{})
		return err
	})
	c.scheduled(t, ns, "preemptor")
}

func taintMany(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	node := c.schedulable(t)[0]
	for name, seconds := range map[string]int64{"soon": 1, "later": 60} {
		p := pausePod(name)
		p.Spec.NodeName = node
		p.Spec.Tolerations = []corev1.Toleration{{Key: "conformance", Operator: corev1.TolerationOpEqual, Value: "evict", Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds}}
		c.pod(t, ns, p)
		c.running(t, ns, name)
	}
	set := func(taints string) {
		t.Helper()
		_, err := c.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"spec":{"taints":`+taints+`}}`), metav1.PatchOptions{})
		ok(t, err)
	}
	defer set("null")
	set(`[{"key":"conformance","value":"evict","effect":"NoExecute"}]`)
	gone(t, "the pod that tolerates for a second", func() error {
		_, err := c.CoreV1().Pods(ns).Get(t.Context(), "soon", metav1.GetOptions{})
		return err
	})
	p, err := c.CoreV1().Pods(ns).Get(t.Context(), "later", metav1.GetOptions{})
	ok(t, err)
	if p.DeletionTimestamp != nil {
		t.Error("the pod that tolerates for a minute was evicted")
	}
}

// preemptSets: replica sets of rising priority fill a node; the pod of the highest
// takes the places of the two lowest, whose sets make new pods that find none.
func preemptSets(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	node := c.schedulable(t)[0]
	c.extend(t, node, "1000")
	made := map[string]map[types.UID]bool{}
	set := func(name, n string, priority int32) {
		s := replicaSet(name, 1)
		p := prior(name, n, c.class(t, priority)).Spec
		p.NodeSelector = map[string]string{corev1.LabelHostname: node}
		s.Spec.Template.Spec = p
		_, err := c.AppsV1().ReplicaSets(ns).Create(t.Context(), s, metav1.CreateOptions{})
		ok(t, err)
	}
	available := func(name string, want int32) {
		t.Helper()
		eventually(t, func() string {
			s, err := c.AppsV1().ReplicaSets(ns).Get(t.Context(), name, metav1.GetOptions{})
			ok(t, err)
			list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
			ok(t, err)
			if made[name] == nil {
				made[name] = map[types.UID]bool{}
			}
			for _, p := range list.Items {
				made[name][p.UID] = true
			}
			if s.Status.AvailableReplicas != want {
				return fmt.Sprintf("%s has %d available, want %d", name, s.Status.AvailableReplicas, want)
			}
			return ""
		})
	}
	set("rs-1", "200", 1)
	set("rs-2", "300", 2)
	set("rs-3", "450", 3)
	for _, name := range []string{"rs-1", "rs-2", "rs-3"} {
		available(name, 1)
	}
	set("rs-4", "500", 4)
	available("rs-4", 1)
	for name, want := range map[string]int32{"rs-1": 0, "rs-2": 0, "rs-3": 1} {
		available(name, want)
	}
	for name, want := range map[string]int{"rs-1": 2, "rs-2": 2, "rs-3": 1, "rs-4": 1} {
		eventually(t, func() string {
			available(name, map[string]int32{"rs-1": 0, "rs-2": 0, "rs-3": 1, "rs-4": 1}[name])
			if n := len(made[name]); n != want {
				return fmt.Sprintf("%s has made %d pods, want %d", name, n, want)
			}
			return ""
		})
	}
}
