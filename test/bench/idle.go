package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/kind"
)

// settle is how long a cluster rests before its idleness is measured.
const settle = 15 * time.Second

// samplePods is as many as the sample application has.
const samplePods = 6

// idleBench measures memory and CPU of a cluster with nothing to do, without pods
// and with a few.
func idleBench(ctx context.Context, l *lab) ([]Figure, error) {
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
	out, err := l.idle(ctx, "no pods", 96, 1)
	if err != nil {
		return nil, err
	}
	c, err := l.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for i := range samplePods {
		if err := create(ctx, c, busyPod("default", fmt.Sprintf("idle-%d", i))); err != nil {
			return nil, err
		}
	}
	ready := map[string]bool{}
	if err := follow(ctx, c, kind.Pod, "default", time.Minute, func(_ watch.EventType, p *corev1.Pod) bool {
		ready[p.Name] = podReady(p)
		n := 0
		for _, is := range ready {
			if is {
				n++
			}
		}
		return n == samplePods
	}); err != nil {
		return nil, err
	}
	c.Close()
	more, err := l.idle(ctx, fmt.Sprintf("%d pods", samplePods), 0, 0)
	return append(out, more...), err
}

func (l *lab) idle(ctx context.Context, with string, memoryBudget, cpuBudget float64) ([]Figure, error) {
	say("idle, %s, for %s", with, l.watched)
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	pids, err := l.processes()
	if err != nil {
		return nil, err
	}
	began, before := time.Now(), cpuOf(pids...)
	if err := pause(ctx, l.watched); err != nil {
		return nil, err
	}
	cpu, wall := cpuOf(pids...)-before, time.Since(began)
	m, err := memoryOf(pids)
	if err != nil {
		return nil, err
	}
	server, err := l.pid()
	if err != nil {
		return nil, err
	}
	own, err := memoryOf([]int{server})
	if err != nil {
		return nil, err
	}
	how := fmt.Sprintf("%d processes (server and monitors), %s after the start, over %s", len(pids), settle, wall.Round(time.Second))
	goalMemory, goalCPU := 48.0, 0.3
	if memoryBudget == 0 {
		goalMemory, goalCPU = 0, 0
	}
	return []Figure{
		{Name: "memory, " + with, Unit: "MB", Samples: []float64{float64(m.pss) / 1e6}, Budget: memoryBudget, Goal: goalMemory,
			How: fmt.Sprintf("PSS; %s; of it anonymous %s MB; the server alone %s MB", how, number(float64(m.anon)/1e6), number(float64(own.pss)/1e6))},
		{Name: "CPU of one core, " + with, Unit: "%", Samples: []float64{100 * cpu.Seconds() / wall.Seconds()}, Budget: cpuBudget, Goal: goalCPU, How: how},
	}, nil
}
