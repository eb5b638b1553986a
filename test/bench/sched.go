package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/sched/loop"
)

func intOrString(n int32) intstr.IntOrString { return intstr.FromInt32(n) }

const zones = 10

// fakeNode is a node that is ready and runs nothing.
func fakeNode(i int) *corev1.Node {
	name := fmt.Sprintf("node-%05d", i)
	capacity := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("128Gi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("500Gi")}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%zones),
			corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"}},
		Status: corev1.NodeStatus{Capacity: capacity, Allocatable: capacity, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
}

// waitingPod asks for little; with affinity, for a place in a zone where a pod of
// its own colour is.
func waitingPod(name string, affinity bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"color": "blue"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/pause:3",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi")}}}}}}
	if affinity {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"color": "blue"}}, TopologyKey: corev1.LabelTopologyZone}}}}
	}
	return p
}

// schedBench measures how many waiting pods are placed and durably bound.
func schedBench(ctx context.Context, l *lab) ([]Figure, error) {
	stop, err := l.profile()
	if err != nil {
		return nil, err
	}
	defer stop()
	var out []Figure
	for _, c := range []struct {
		nodes, pods  int
		affinity     bool
		budget, goal float64
	}{{1000, 5000, false, 0, 0}, {5000, 10_000, false, 5000, 20_000}, {1000, 5000, true, 0, 0}, {5000, 10_000, true, 500, 2000}} {
		kindOf := "plain"
		if c.affinity {
			kindOf = "required pod affinity"
		}
		f := Figure{Name: fmt.Sprintf("pods bound, %s nodes, %s", number(float64(c.nodes)), kindOf), Unit: "/s", More: true, Budget: c.budget, Goal: c.goal,
			How: fmt.Sprintf("%s waiting pods, all nodes looked at; verbs in process, each bind synced to disk; CPU is everything's", number(float64(c.pods)))}
		if c.affinity {
			f.How += fmt.Sprintf("; affinity to pods of the same label in a zone of %d", zones)
		}
		for run := range max(l.runs/2, 1) {
			say("%s, run %d", f.Name, run+1)
			if err := l.schedule(ctx, c.nodes, c.pods, c.affinity, fmt.Sprintf("sched-%d-%t-%d", c.nodes, c.affinity, run), &f); err != nil {
				return nil, err
			}
		}
		out = append(out, f)
	}
	return out, nil
}

func (l *lab) schedule(ctx context.Context, nodes, pods int, affinity bool, dir string, f *Figure) (err error) {
	c, err := startCore(ctx, filepath.Join(l.tmp, dir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	admin := c.admin()
	if err := makeNamespace(ctx, admin, "default"); err != nil {
		return err
	}
	if err := createAll(ctx, admin, kind.Node, nodes, func(i int) kind.Object { return fakeNode(i) }); err != nil {
		return err
	}
	if err := createAll(ctx, admin, kind.Pod, pods, func(i int) kind.Object { return waitingPod(fmt.Sprintf("pod-%05d", i), affinity) }); err != nil {
		return err
	}
	runtime.GC()
	s := loop.New(loop.Config{View: c.view, Client: admin, Clock: env.SystemClock()})
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, fmt.Errorf("%d pods were not bound within 5 minutes", pods))
	defer cancel()
	watched := startWatch(0)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for {
		_, moved := c.view.Moved()
		left := 0
		for range c.view.Snapshot().PodsOn("") {
			left++
			break
		}
		if left == 0 {
			break
		}
		select {
		case <-moved:
			// One look in a while is enough.
			if err := pause(ctx, time.Millisecond); err != nil {
				return errors.Join(err, <-ended)
			}
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), <-ended)
		}
	}
	wall := watched.stop(f)
	f.Samples = append(f.Samples, float64(pods)/wall.Seconds())
	cancel()
	return <-ended
}

func createAll(ctx context.Context, c client.Client, k *kind.Kind, count int, make func(i int) kind.Object) error {
	const writers = 64
	var n atomic.Int64
	errs := [writers]error{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for {
				i := int(n.Add(1)) - 1
				if i >= count {
					return
				}
				if _, errs[w] = c.Create(ctx, k, make(i), metav1.CreateOptions{}); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}
