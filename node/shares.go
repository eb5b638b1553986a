package node

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/engine/cgroup"
	"proa.dev/node/pod"
)

// grouper is an engine that lets the groups above pods be limited, beyond CRI.
type grouper interface {
	LimitPod(ctx context.Context, cgroupParent string, l cgroup.Limits) error
}

// recount asks for the classes' shares to be looked at.
func (a *Agent) recount() {
	select {
	case a.pods <- struct{}{}:
	default:
	}
}

// keepShares gives the groups of the two lower classes their weight: burstable
// pods together weigh what they request, best-effort pods together the least there
// is, so that idle CPU is theirs and contended CPU is not. Guaranteed pods stand
// beside the two groups with weights of their own.
func (a *Agent) keepShares(ctx context.Context) {
	e, ok := a.cfg.Engine.(grouper)
	if !ok {
		return
	}
	set := map[string]int64{}
	for {
		select {
		case <-a.pods:
		case <-ctx.Done():
			return
		}
		want := a.classShares()
		if maps.Equal(want, set) {
			continue
		}
		for group, n := range want {
			if set[group] == n {
				continue
			}
			if err := e.LimitPod(ctx, group, cgroup.Limits{CPUShares: n}); err != nil {
				if ctx.Err() == nil {
					a.log.Warn("CPU weight of a quality-of-service class is not set", "class", group, "err", err)
				}
				continue
			}
			set[group] = n
		}
	}
}

// classShares are the weights of the classes that have pods.
func (a *Agent) classShares() map[string]int64 {
	milli := map[string]int64{}
	for _, w := range a.all() {
		p := w.pod()
		if w.state.Load().Stage >= pod.Finished {
			continue
		}
		switch pod.QOS(p) {
		case corev1.PodQOSBestEffort:
			milli[groupBestEffort] += 0
		case corev1.PodQOSBurstable:
			q := requests(p)[corev1.ResourceCPU]
			milli[groupBurstable] += q.MilliValue()
		}
	}
	for group, n := range milli {
		milli[group] = shares(n)
	}
	return milli
}
