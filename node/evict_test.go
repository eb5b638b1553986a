package node_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/engine/enginetest"
	"proa.dev/kind"
	"proa.dev/node"
	"proa.dev/view"
)

// supply is a machine whose resources a test decides on.
type supply struct {
	mu sync.Mutex
	s  node.Supply
}

func (s *supply) measure() (node.Supply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s, nil
}

func (s *supply) set(change func(*node.Supply)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.s)
}

// plenty is a disk of 1 TB that is 98 % full, which is no need.
func plenty() *supply {
	return &supply{s: node.Supply{MemoryBytes: 8 << 30, MemoryFree: 4 << 30, DiskBytes: 1 << 40, DiskFree: 20 << 30, PIDs: 32768, PIDsFree: 30000}}
}

func (w *world) eviction(s *supply, change func(*node.Eviction)) {
	w.stop()
	w.config = func(cfg *node.Config) {
		cfg.Eviction = node.Eviction{Measure: s.measure, Period: 20 * time.Millisecond, Hold: 300 * time.Millisecond, ImageAge: time.Nanosecond}
		if change != nil {
			change(&cfg.Eviction)
		}
	}
	w.start()
}

func (w *world) node() *corev1.Node {
	return view.Get[*corev1.Node](w.view.Snapshot(), kind.Node, "", "n1")
}

func (w *world) images() string {
	list, err := w.engine.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, i := range list.Images {
		name, _ := strings.CutPrefix(i.RepoTags[0], "docker.io/library/")
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func TestImagesAreCollected(t *testing.T) {
	w := newWorldWith(t, []enginetest.Image{
		{Ref: "docker.io/library/web:1", ID: "a", Size: 1 << 30}, // in use
		{Ref: "docker.io/library/kept:1", ID: "b", Size: 1 << 30, Pinned: true},
		{Ref: "docker.io/library/old:1", ID: "c", Size: 1 << 30},
		{Ref: "docker.io/library/older:1", ID: "d", Size: 1 << 30},
	})
	s := plenty()
	w.eviction(s, func(e *node.Eviction) { e.ImagePercent, e.ImageBytes = 15, 5<<30 })
	w.run("web", nil)
	w.until("ready", func() bool { return ready(w.pod("web")) })
	if got := w.images(); got != "web:1 kept:1 old:1 older:1" {
		t.Fatalf("images %q though the disk has 20 GiB", got)
	}
	s.set(func(s *node.Supply) { s.DiskFree = 4 << 30 }) // 0.4 % and below 5 GiB
	w.until("unused images gone", func() bool { return w.images() == "web:1 kept:1" })
	if condition(w.node().Status.Conditions, corev1.NodeDiskPressure) || !ready(w.pod("web")) {
		t.Error("images alone are short, not the disk")
	}
}

func TestDiskPressure(t *testing.T) {
	w := newWorldWith(t, []enginetest.Image{{Ref: "docker.io/library/web:1", Size: 10}, {Ref: "docker.io/library/old:1", Size: 10}})
	s := plenty()
	w.eviction(s, nil)
	critical := int32(2_000_000_000)
	w.run("low", nil)
	high := int32(1000)
	w.run("high", func(p *corev1.Pod) { p.Spec.Priority = &high })
	w.run("critical", func(p *corev1.Pod) { p.Spec.Priority = &critical })
	w.run("over", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Command = []string{"sh", "-c", "exit 0"}
	})
	w.until("ready", func() bool {
		return ready(w.pod("low")) && ready(w.pod("high")) && ready(w.pod("critical")) && w.pod("over").Status.Phase == corev1.PodSucceeded
	})
	// The disk is nearly full until "low" has gone.
	s.set(func(s *node.Supply) { s.DiskFree = 1 << 30 })
	w.until("DiskPressure", func() bool { return condition(w.node().Status.Conditions, corev1.NodeDiskPressure) })
	w.until("evicted", func() bool { return w.pod("low").Status.Phase == corev1.PodFailed })
	p := w.pod("low")
	if want := "The node was low on resource: ephemeral-storage. Threshold quantity: 2Gi, available: 1Gi. "; p.Status.Reason != "Evicted" || p.Status.Message != want {
		t.Errorf("status %q %q, want %q", p.Status.Reason, p.Status.Message, want)
	}
	if !hasReason(p, corev1.DisruptionTarget, "TerminationByKubelet") {
		t.Errorf("conditions %+v", p.Status.Conditions)
	}
	w.run("late", nil)
	w.until("refused", func() bool { return w.pod("late").Status.Phase == corev1.PodFailed })
	if p := w.pod("late"); p.Status.Reason != "Evicted" || p.Status.Message != "Pod was rejected: The node had condition: [DiskPressure]. " {
		t.Errorf("late: %q %q", p.Status.Reason, p.Status.Message)
	}
	w.until("next by priority", func() bool { return w.pod("high").Status.Phase == corev1.PodFailed })
	if !ready(w.pod("critical")) || w.images() != "web:1" {
		t.Errorf("critical pod ready: %v; images %q", ready(w.pod("critical")), w.images())
	}
	s.set(func(s *node.Supply) { s.DiskFree = 20 << 30 })
	w.until("relieved", func() bool { return !condition(w.node().Status.Conditions, corev1.NodeDiskPressure) })
	w.run("after", nil)
	w.until("taken again", func() bool { return ready(w.pod("after")) })
	c, err := w.engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range c.Containers {
		if c.Labels["io.kubernetes.pod.name"] == "over" {
			t.Error("the container of a pod that is over is still there")
		}
	}
}

func TestMemoryPressure(t *testing.T) {
	w := newWorld(t)
	s := plenty()
	w.eviction(s, func(e *node.Eviction) { e.MemoryBytes = 1 << 30 })
	asks := func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("100Mi")}
	}
	critical := int32(2_000_000_000)
	w.run("critical", func(p *corev1.Pod) { p.Spec.Priority = &critical })
	w.until("ready", func() bool { return ready(w.pod("critical")) })
	s.set(func(s *node.Supply) { s.MemoryFree = 1000 << 20 })
	w.until("MemoryPressure", func() bool { return condition(w.node().Status.Conditions, corev1.NodeMemoryPressure) })
	w.run("effort", nil)
	w.until("best effort is refused", func() bool { return w.pod("effort").Status.Reason == "Evicted" })
	w.run("burst", asks)
	w.until("burstable is taken, and evicted", func() bool { return w.pod("burst").Status.Reason == "Evicted" })
	if m := w.pod("burst").Status.Message; !strings.HasPrefix(m, "The node was low on resource: memory. Threshold quantity: 1Gi, available: 1000Mi. ") {
		t.Errorf("message %q", m)
	}
	if !ready(w.pod("critical")) {
		t.Error("a critical pod was evicted")
	}
}

func TestLocalStorageLimits(t *testing.T) {
	w := newWorld(t)
	w.eviction(plenty(), nil)
	limit := resource.MustParse("1Mi")
	w.run("dir", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
	})
	w.run("logs", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: limit}
	})
	w.until("ready", func() bool { return ready(w.pod("dir")) && ready(w.pod("logs")) })
	write(t, fmt.Sprintf("%s/pods/%s/volumes/kubernetes.io~empty-dir/scratch/big", w.dir, w.pod("dir").UID), 2<<20)
	write(t, fmt.Sprintf("%s/log/default_logs_%s/app/big", w.dir, w.pod("logs").UID), 2<<20)
	for name, want := range map[string]string{
		"dir":  `Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". `,
		"logs": `Container app exceeded its local ephemeral storage limit "1Mi". `,
	} {
		w.until(name, func() bool { return w.pod(name).Status.Phase == corev1.PodFailed })
		if p := w.pod(name); p.Status.Reason != "Evicted" || p.Status.Message != want {
			t.Errorf("%s: %q %q", name, p.Status.Reason, p.Status.Message)
		}
	}
}
