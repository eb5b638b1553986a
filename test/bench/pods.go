package main

import (
	"context"
	"fmt"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/kind"
)

const (
	sequentialPods = 30
	replicas       = 50
)

// podsBench measures pods one after another, many at once, and what they cost
// beside their own processes.
func podsBench(ctx context.Context, l *lab) ([]Figure, error) {
	archive, err := l.makeImage(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.up(ctx); err != nil {
		return nil, err
	}
	if err := l.importImage(ctx, archive); err != nil {
		return nil, err
	}
	out, err := l.sequential(ctx)
	if err != nil {
		return nil, err
	}
	more, err := l.atOnce(ctx)
	return append(out, more...), err
}

func (l *lab) sequential(ctx context.Context) ([]Figure, error) {
	c, err := l.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	pid, err := l.pid()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, fmt.Errorf("%d pods did not start within 5 minutes", sequentialPods))
	defer cancel()
	w, err := c.Watch(ctx, kind.Pod, "default", metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	until := func(done func(watch.EventType, *corev1.Pod) bool) error {
		for {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					return fmt.Errorf("watch pods: it ended")
				}
				if p, ok := e.Object.(*corev1.Pod); ok && done(e.Type, p) {
					return nil
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	var starts, ends []time.Duration
	started, ended := Figure{}, Figure{}
	for i := range sequentialPods + 1 {
		name := fmt.Sprintf("one-%d", i)
		watched := startWatch(pid)
		if err := create(ctx, c, busyPod("default", name)); err != nil {
			return nil, err
		}
		if err := until(func(_ watch.EventType, p *corev1.Pod) bool { return p.Name == name && running(p) }); err != nil {
			return nil, err
		}
		var cpu Figure
		took := watched.stop(&cpu)
		if i > 0 { // the first one pays for what is made once
			starts = append(starts, took)
			started.ServerCPU, started.LoadCPU, started.Wall = started.ServerCPU+cpu.ServerCPU, started.LoadCPU+cpu.LoadCPU, started.Wall+cpu.Wall
		}
		// The program must have set its trap: SIGTERM is lost on a process 1 that
		// does not handle it.
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
		watched = startWatch(pid)
		if err := c.Delete(ctx, kind.Pod, "default", name, metav1.DeleteOptions{}); err != nil {
			return nil, err
		}
		if err := until(func(t watch.EventType, p *corev1.Pod) bool { return p.Name == name && t == watch.Deleted }); err != nil {
			return nil, err
		}
		cpu = Figure{}
		took = watched.stop(&cpu)
		if i > 0 {
			ends = append(ends, took)
			ended.ServerCPU, ended.LoadCPU, ended.Wall = ended.ServerCPU+cpu.ServerCPU, ended.LoadCPU+cpu.LoadCPU, ended.Wall+cpu.Wall
		}
	}
	how := fmt.Sprintf("%d pods one after another, image local, seen through a watch over HTTPS; server CPU without helpers", sequentialPods)
	started.Name, started.Budget, started.Goal, started.How = "pod create → Running", 150, 25, how
	ended.Name, ended.How = "pod delete → gone", how+"; the program ends at SIGTERM"
	return append(quantiles(started, starts, 0), quantiles(ended, ends, 0)...), nil
}

// atOnce scales a Deployment up, weighs it and takes it down.
func (l *lab) atOnce(ctx context.Context) ([]Figure, error) {
	c, err := l.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	pid, err := l.pid()
	if err != nil {
		return nil, err
	}
	fast := Figure{Name: fmt.Sprintf("%d replicas at once → all Ready", replicas), Unit: "s", How: "a Deployment, image local"}
	slow := Figure{Name: fmt.Sprintf("%d replicas deleted → gone", replicas), Unit: "s", How: "the Deployment deleted in the background"}
	weight := Figure{Name: "memory per pod outside its own processes", Unit: "MB", Budget: 3, Goal: 1,
		How: fmt.Sprintf("PSS of the monitors and growth of the server with %d pods, per pod; the kernel's own memory is not in it", replicas)}
	rest := func() (memory, error) {
		if err := pause(ctx, settle); err != nil {
			return memory{}, err
		}
		return l.memory()
	}
	for run := range max(l.runs/2, 1) {
		say("%d replicas, run %d", replicas, run+1)
		before, err := rest()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("many-%d", run)
		labels := map[string]string{"app": name}
		n := int32(replicas)
		pod := busyPod("default", name)
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec}}}
		watched := startWatch(pid)
		if _, err := c.Create(ctx, kind.Deployment, d, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		if err := follow(ctx, c, kind.Deployment, "default", 5*time.Minute, func(_ watch.EventType, d *appsv1.Deployment) bool {
			return d.Name == name && d.Status.ReadyReplicas == replicas
		}); err != nil {
			return nil, err
		}
		fast.Samples = append(fast.Samples, watched.stop(&fast).Seconds())
		after, err := rest()
		if err != nil {
			return nil, err
		}
		weight.Samples = append(weight.Samples, math.Max(float64(after.pss-before.pss), 0)/1e6/replicas)
		background := metav1.DeletePropagationBackground
		watched = startWatch(pid)
		if err := c.Delete(ctx, kind.Deployment, "default", name, metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
			return nil, err
		}
		left := map[string]bool{}
		first := true
		if err := follow(ctx, c, kind.Pod, "default", 5*time.Minute, func(t watch.EventType, p *corev1.Pod) bool {
			if t == watch.Deleted {
				delete(left, p.Name)
				return len(left) == 0 && !first
			}
			left[p.Name] = true
			first = first && len(left) < replicas
			return false
		}); err != nil {
			return nil, err
		}
		slow.Samples = append(slow.Samples, watched.stop(&slow).Seconds())
	}
	return []Figure{fast, slow, weight}, nil
}
