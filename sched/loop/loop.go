// Package loop runs the scheduler: it keeps package sched's table abreast of the
// view, places waiting pods in order of priority and age, and binds them through
// the API, many binds on their way at once.
//
// A pod that fits nowhere waits until something changes that may help (a node
// comes or changes, a pod leaves), no sooner than its back-off of 1 s doubling to
// 10 s, and at the latest for five minutes. A bind that the server refuses is
// undone in the table and the pod is placed again.
package loop

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/act"
	"proa.dev/client"
	"proa.dev/control"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/sched"
	"proa.dev/view"
)

// Name of the scheduler in pod specs and events.
const Name = "default-scheduler"

// Config of the scheduler.
type Config struct {
	View   *view.View
	Client client.Client
	Clock  env.Clock
	Log    *slog.Logger
	Record func(act.Event) // must not block
	// Parallel bounds binds on their way; default 64.
	Parallel int
}

const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second
	longestWait  = 5 * time.Minute
)

// Scheduler places pods. New, then Run.
type Scheduler struct {
	cfg    Config
	table  *sched.Table
	seen   map[*kind.Kind]int64
	queue  queue
	wait   map[types.UID]*item // unschedulable pods
	moves  bool                // something changed that may help those who wait
	slots  chan struct{}
	done   chan result
	flying map[types.UID]*item
	wg     sync.WaitGroup
}

type item struct {
	pod      *corev1.Pod
	since    time.Time // in the queue
	failures int
	ready    time.Time // not before
	deadline time.Time // at the latest
	message  string    // as last reported
}

type result struct {
	it  *item
	err error
}

// New checks nothing and starts nothing.
func New(cfg Config) *Scheduler {
	if cfg.Parallel <= 0 {
		cfg.Parallel = 64
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Record == nil {
		cfg.Record = func(act.Event) {}
	}
	return &Scheduler{cfg: cfg, wait: map[types.UID]*item{}, flying: map[types.UID]*item{}, slots: make(chan struct{}, cfg.Parallel), done: make(chan result, cfg.Parallel)}
}

var followed = []*kind.Kind{kind.Node, kind.Pod}

// Run schedules until ctx ends and returns when every bind on its way has.
func (s *Scheduler) Run(ctx context.Context) error {
	defer s.wg.Wait()
	s.load()
	timer := s.cfg.Clock.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		_, moved := s.cfg.View.Moved()
		s.follow()
		s.collect()
		now := s.cfg.Clock.Now()
		s.release(now)
		for n := 0; s.queue.Len() > 0 && ctx.Err() == nil; n++ {
			s.schedule(ctx, heap.Pop(&s.queue).(*item))
			if n%64 == 63 {
				s.follow()
				s.collect()
			}
		}
		timer.Stop()
		timer = s.cfg.Clock.NewTimer(s.next(s.cfg.Clock.Now()))
		select {
		case <-moved:
		case r := <-s.done:
			s.finish(r)
		case <-timer.C():
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Scheduler) load() {
	snap := s.cfg.View.Snapshot()
	s.table = sched.Load(snap)
	s.seen = map[*kind.Kind]int64{}
	for _, k := range followed {
		s.seen[k] = snap.Revision()
	}
	for _, it := range s.flying {
		s.table.Assume(sched.NewPod(it.pod), it.pod.Spec.NodeName)
	}
	s.queue = nil
	clear(s.wait)
	for p := range snap.PodsOn("") {
		s.enqueue(p)
	}
	heap.Init(&s.queue)
}

// follow brings the table up to the view.
func (s *Scheduler) follow() {
	snap := s.cfg.View.Snapshot()
	s.table.See(snap)
	for _, k := range followed {
		changes, progress, _, err := s.cfg.View.Changes(k, s.seen[k])
		if errors.Is(err, view.ErrGone) {
			s.load()
			return
		}
		s.seen[k] = progress
		for _, c := range changes {
			if k == kind.Node {
				s.nodeChanged(c)
			} else {
				s.podChanged(c)
			}
		}
	}
}

func (s *Scheduler) nodeChanged(c *view.Change) {
	if c.New == nil {
		s.table.RemoveNode(c.Old.GetName())
		return
	}
	n := c.New.(*corev1.Node)
	s.table.SetNode(n)
	if c.Old == nil || helps(c.Old.(*corev1.Node), n) {
		s.moves = true
	}
}

// helps: the change may let a pod fit that did not; heartbeats do not.
func helps(a, b *corev1.Node) bool {
	if a.Spec.Unschedulable != b.Spec.Unschedulable || len(a.Spec.Taints) != len(b.Spec.Taints) || len(a.Labels) != len(b.Labels) {
		return true
	}
	for i := range a.Spec.Taints {
		if a.Spec.Taints[i].Key != b.Spec.Taints[i].Key || a.Spec.Taints[i].Effect != b.Spec.Taints[i].Effect || a.Spec.Taints[i].Value != b.Spec.Taints[i].Value {
			return true
		}
	}
	for k, v := range a.Labels {
		if b.Labels[k] != v {
			return true
		}
	}
	for name, q := range b.Status.Allocatable {
		if old, ok := a.Status.Allocatable[name]; !ok || q.Cmp(old) > 0 {
			return true
		}
	}
	return false
}

func (s *Scheduler) podChanged(c *view.Change) {
	if c.New == nil {
		uid := c.Old.GetUID()
		s.forget(uid)
		if s.table.Placed(uid) {
			s.table.RemovePod(uid)
			s.moves = true
		}
		return
	}
	p := c.New.(*corev1.Pod)
	if p.Spec.NodeName != "" {
		s.forget(p.UID)
		was := s.table.Placed(p.UID)
		s.table.SetPod(p)
		if was && !s.table.Placed(p.UID) {
			s.moves = true
		}
		// A pod that now runs may be what others' affinity waits for.
		if c.Old == nil || c.Old.(*corev1.Pod).Spec.NodeName == "" {
			s.moves = true
		}
		return
	}
	if s.flying[p.UID] != nil {
		return
	}
	if it := s.wait[p.UID]; it != nil {
		if it.pod.Generation != p.Generation || p.DeletionTimestamp != nil {
			delete(s.wait, p.UID)
			s.enqueue(p)
		} else {
			it.pod = p
		}
		return
	}
	for i, it := range s.queue {
		if it.pod.UID == p.UID {
			it.pod = p
			heap.Fix(&s.queue, i)
			return
		}
	}
	s.enqueue(p)
}

// forget takes a pod out of the queue and from those who wait.
func (s *Scheduler) forget(uid types.UID) {
	delete(s.wait, uid)
	if len(s.queue) == 0 {
		return
	}
	for i, it := range s.queue {
		if it.pod.UID == uid {
			heap.Remove(&s.queue, i)
			return
		}
	}
}

// ours: not bound, not ending, not gated, and meant for this scheduler.
func ours(p *corev1.Pod) bool {
	return p.Spec.NodeName == "" && p.DeletionTimestamp == nil && len(p.Spec.SchedulingGates) == 0 &&
		(p.Spec.SchedulerName == "" || p.Spec.SchedulerName == Name) && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func (s *Scheduler) enqueue(p *corev1.Pod) {
	if ours(p) {
		heap.Push(&s.queue, &item{pod: p, since: p.CreationTimestamp.Time})
	}
}

func (s *Scheduler) schedule(ctx context.Context, it *item) {
	p := sched.NewPod(it.pod)
	d := s.table.Place(p)
	if d.Node == "" {
		s.unplaced(ctx, it, p, d)
		return
	}
	s.table.Assume(p, d.Node)
	s.flying[it.pod.UID] = it
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	s.wg.Add(1)
	pod := it.pod
	go func() {
		defer s.wg.Done()
		_, err := control.Do(ctx, s.cfg.Client, act.Bind{Target: view.RefOf(kind.Pod, pod), UID: pod.UID, Node: d.Node}, nil)
		<-s.slots
		if err == nil {
			s.cfg.Record(act.Event{About: view.RefOf(kind.Pod, pod), UID: pod.UID, Type: corev1.EventTypeNormal, Reason: "Scheduled", Source: Name,
				Message: fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, d.Node)})
			s.cfg.Log.Debug("pod placed", "pod", pod.Namespace+"/"+pod.Name, "node", d.Node, "score", d.Score, "considered", d.Considered, "feasible", d.Feasible)
		}
		select {
		case s.done <- result{it, err}:
		case <-ctx.Done():
		}
	}()
}

// collect takes the results that are there.
func (s *Scheduler) collect() {
	for {
		select {
		case r := <-s.done:
			s.finish(r)
		default:
			return
		}
	}
}

func (s *Scheduler) finish(r result) {
	uid := r.it.pod.UID
	delete(s.flying, uid)
	if r.err == nil {
		return
	}
	s.table.RemovePod(uid)
	p := view.Get[*corev1.Pod](s.cfg.View.Snapshot(), kind.Pod, r.it.pod.Namespace, r.it.pod.Name)
	if apierrors.IsNotFound(r.err) || p == nil || p.UID != uid || !ours(p) {
		if p != nil && p.UID == uid {
			s.table.SetPod(p)
		}
		return
	}
	s.cfg.Log.Warn("bind was refused", "pod", p.Namespace+"/"+p.Name, "error", r.err)
	r.it.pod = p
	s.backOff(r.it)
	s.wait[uid] = r.it
	s.moves = true
}

func (s *Scheduler) backOff(it *item) {
	now := s.cfg.Clock.Now()
	d := firstBackoff << min(it.failures, 4)
	it.failures++
	it.ready = now.Add(min(d, lastBackoff))
	it.deadline = now.Add(longestWait)
}

// unplaced reports why, evicts others if that helps, and lets the pod wait.
func (s *Scheduler) unplaced(ctx context.Context, it *item, p *sched.Pod, d sched.Decision) {
	s.backOff(it)
	s.wait[it.pod.UID] = it
	note := " preemption: not helpful for scheduling"
	nominated := it.pod.Status.NominatedNodeName
	if pre, ok := s.table.Preempt(p, d); ok && !s.ending(it.pod) {
		note = fmt.Sprintf(" preemption: evicting %d pods on %s", len(pre.Victims), pre.Node)
		nominated = pre.Node
		if err := s.evict(ctx, it.pod, pre); err != nil {
			s.cfg.Log.Warn("preemption failed", "pod", it.pod.Namespace+"/"+it.pod.Name, "node", pre.Node, "error", err)
		}
	}
	message := d.Message
	if d.Considered > 0 {
		message += note
	}
	if message == it.message && nominated == it.pod.Status.NominatedNodeName {
		return
	}
	it.message = message
	s.cfg.Record(act.Event{About: view.RefOf(kind.Pod, it.pod), UID: it.pod.UID, Type: corev1.EventTypeWarning, Reason: "FailedScheduling", Source: Name, Message: message})
	s.report(ctx, it.pod, message, nominated)
}

// ending: victims of an earlier preemption for this pod are still on their way.
func (s *Scheduler) ending(p *corev1.Pod) bool {
	if p.Status.NominatedNodeName == "" {
		return false
	}
	for q := range s.cfg.View.Snapshot().PodsOn(p.Status.NominatedNodeName) {
		if q.DeletionTimestamp != nil && priority(q) < priority(p) {
			return true
		}
	}
	return false
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

func (s *Scheduler) evict(ctx context.Context, p *corev1.Pod, pre sched.Preemption) error {
	for _, v := range pre.Victims {
		if v.DeletionTimestamp != nil {
			continue
		}
		c := v.DeepCopy()
		condition(&c.Status, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
			Message: fmt.Sprintf("%s: preempting to accommodate a higher priority pod", Name), LastTransitionTime: metav1.NewTime(s.cfg.Clock.Now())})
		if _, err := s.cfg.Client.Update(ctx, kind.Pod, c, "status", metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return err
		}
		if _, err := control.Do(ctx, s.cfg.Client, act.Delete{Target: view.RefOf(kind.Pod, v), UID: v.UID, Reason: "preempted"}, nil); err != nil {
			return err
		}
		s.cfg.Record(act.Event{About: view.RefOf(kind.Pod, v), UID: v.UID, Type: corev1.EventTypeNormal, Reason: "Preempted", Source: Name,
			Message: fmt.Sprintf("Preempted by pod %s on node %s", p.UID, pre.Node)})
	}
	return nil
}

// report writes the condition PodScheduled and the nominated node.
func (s *Scheduler) report(ctx context.Context, p *corev1.Pod, message, nominated string) {
	for range 3 {
		c := p.DeepCopy()
		condition(&c.Status, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message, LastTransitionTime: metav1.NewTime(s.cfg.Clock.Now())})
		c.Status.NominatedNodeName = nominated
		_, err := s.cfg.Client.Update(ctx, kind.Pod, c, "status", metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				s.cfg.Log.Warn("status of an unschedulable pod was not written", "pod", p.Namespace+"/"+p.Name, "error", err)
			}
			return
		}
		fresh := view.Get[*corev1.Pod](s.cfg.View.Snapshot(), kind.Pod, p.Namespace, p.Name)
		if fresh == nil || fresh.UID != p.UID || fresh.Spec.NodeName != "" {
			return
		}
		p = fresh
	}
}

func condition(st *corev1.PodStatus, c corev1.PodCondition) {
	for i := range st.Conditions {
		if old := &st.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}

// release queues those whose wait is over.
func (s *Scheduler) release(now time.Time) {
	left := false
	for uid, it := range s.wait {
		if now.Before(it.ready) || !s.moves && now.Before(it.deadline) {
			left = left || s.moves && now.Before(it.ready)
			continue
		}
		delete(s.wait, uid)
		heap.Push(&s.queue, it)
	}
	s.moves = left
}

// next is how long to sleep when nothing happens.
func (s *Scheduler) next(now time.Time) time.Duration {
	d := time.Hour
	for _, it := range s.wait {
		at := it.deadline
		if s.moves {
			at = it.ready
		}
		d = min(d, max(at.Sub(now), 0))
	}
	return d
}

// queue is ordered by priority, then age.
type queue []*item

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	a, b := priority(q[i].pod), priority(q[j].pod)
	if a != b {
		return a > b
	}
	return q[i].since.Before(q[j].since)
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*item)) }
func (q *queue) Pop() any {
	old := *q
	it := old[len(old)-1]
	*q = old[:len(old)-1]
	return it
}
