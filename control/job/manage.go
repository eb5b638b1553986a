package job

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"proa.dev/act"
	"proa.dev/control/workload"
	"proa.dev/kind"
)

// manage makes and removes pods so that as many run as the job wants now.
func (p *planner) manage() {
	if p.suspended() {
		p.remove(p.active, "suspended")
		return
	}
	active := p.active
	if p.indexed {
		active = p.dropOdd(active)
	}
	want := p.wanted(len(active))
	taken := len(active)
	if p.onlyReplaceFailed() {
		taken += len(p.terminating)
	}
	switch {
	case len(active) > want:
		p.remove(p.toRemove(active, len(active)-want), "fewer are wanted")
	case taken < want:
		p.create(want-taken, active)
	}
}

// wanted is how many pods are to be active.
func (p *planner) wanted(active int) int {
	parallel := int(ptr.Deref(p.j.Spec.Parallelism, 1))
	succeeded, _ := p.tally()
	if p.j.Spec.Completions == nil {
		// A work queue: after the first success no new ones are made.
		if succeeded > 0 {
			return min(active, parallel)
		}
		return parallel
	}
	left := int(*p.j.Spec.Completions) - succeeded
	if p.perIndex() {
		left -= len(p.lost)
	}
	return max(min(left, parallel), 0)
}

// dropOdd removes pods without a valid index, of an index that is decided, and
// all but one of each.
func (p *planner) dropOdd(active []*corev1.Pod) (keep []*corev1.Pod) {
	seen := indexes{}
	var odd []*corev1.Pod
	for _, pod := range active {
		i := indexOf(pod)
		if i < 0 || i >= p.limit || p.done[i] || p.lost[i] || seen[i] {
			odd = append(odd, pod)
			continue
		}
		seen[i] = true
		keep = append(keep, pod)
	}
	p.remove(odd, "index is taken")
	return keep
}

// toRemove chooses: of Indexed jobs the highest indexes, else as ReplicaSets do.
func (p *planner) toRemove(active []*corev1.Pod, n int) []*corev1.Pod {
	active = slices.Clone(active)
	if p.indexed {
		slices.SortStableFunc(active, func(a, b *corev1.Pod) int { return indexOf(b) - indexOf(a) })
	} else {
		perNode := map[string]int{}
		for _, pod := range active {
			perNode[pod.Spec.NodeName]++
		}
		workload.SortForDeletion(active, perNode, p.now)
	}
	return active[:n]
}

// remove pods on purpose: they are not failures, so the finalizer goes first.
func (p *planner) remove(pods []*corev1.Pod, reason string) {
	for _, pod := range pods[:min(len(pods), burst)] {
		if tracked(pod) {
			p.deletes = append(p.deletes, untrack(pod, reason))
		}
		p.deletes = append(p.deletes, workload.Delete(pod, reason))
		p.event(corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
	}
}

// pause until the next pod may be made: failures in a row since the last success
// put it off, longer each time.
func (p *planner) pause(of func(*corev1.Pod) bool) (until time.Time) {
	var lastSuccess, lastFailure time.Time
	for _, pod := range p.pods {
		if pod.Status.Phase == corev1.PodSucceeded && of(pod) && endedAt(pod).After(lastSuccess) {
			lastSuccess = endedAt(pod)
		}
	}
	n := 0
	for _, pod := range p.pods {
		if !p.failedPod(pod) || !of(pod) {
			continue
		}
		if at := endedAt(pod); at.After(lastSuccess) {
			n++
			if at.After(lastFailure) {
				lastFailure = at
			}
		}
	}
	if n == 0 {
		return time.Time{}
	}
	return lastFailure.Add(backoff(n))
}

func (p *planner) create(n int, active []*corev1.Pod) {
	n = min(n, burst)
	anyPod := func(*corev1.Pod) bool { return true }
	if !p.perIndex() {
		if until := p.pause(anyPod); p.now.Before(until) {
			p.wake = workload.Earlier(p.wake, until)
			return
		}
	}
	var chosen []int
	if p.indexed {
		chosen = p.choose(n, active)
		n = len(chosen)
	}
	k := 0
	for i := range n {
		pod := workload.Pod(kind.Job, p.j, &p.j.Spec.Template)
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
		reason := fmt.Sprintf("%d active", len(p.active))
		if p.indexed {
			index := chosen[i]
			pod.GenerateName = fmt.Sprintf("%s-%d-", p.j.Name, index)
			pod.Spec.Hostname = fmt.Sprintf("%s-%d", p.j.Name, index)
			env(pod, index)
			if p.perIndex() {
				failures, _ := p.failuresOf(index)
				pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(failures)
			}
			reason = fmt.Sprintf("index %d", index)
		}
		pod.Name = workload.FreshName(p.s, kind.Pod, pod.Namespace, pod.GenerateName, p.j.UID, &k)
		p.creates = append(p.creates, act.Create{Kind: kind.Pod, Object: pod, Reason: reason})
		p.event(corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", pod.Name)
	}
}

// choose the lowest free indexes; one that has failed waits for its own pause.
func (p *planner) choose(n int, active []*corev1.Pod) (out []int) {
	taken := indexes{}
	for _, pod := range active {
		taken[indexOf(pod)] = true
	}
	if p.onlyReplaceFailed() {
		for _, pod := range p.terminating {
			taken[indexOf(pod)] = true
		}
	}
	failing := indexes{}
	if p.perIndex() {
		for _, pod := range p.pods {
			if p.failedPod(pod) {
				failing[indexOf(pod)] = true
			}
		}
	}
	for i := 0; i < p.limit && len(out) < n; i++ {
		if taken[i] || p.done[i] || p.lost[i] {
			continue
		}
		if failing[i] {
			if until := p.pause(func(pod *corev1.Pod) bool { return indexOf(pod) == i }); p.now.Before(until) {
				p.wake = workload.Earlier(p.wake, until)
				continue
			}
		}
		out = append(out, i)
	}
	return out
}
