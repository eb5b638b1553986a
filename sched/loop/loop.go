// Package loop runs the scheduler: it keeps package sched's table abreast of the
// view, places waiting pods in order of priority and age, and binds them through
// the API, many binds on their way at once.
//
// A pod that fits nowhere waits until something changes that may help (a node
// comes or changes, a pod leaves; for pods with terms about others also: a pod is
// placed), no sooner than its back-off of 1 s doubling to 10 s, and at the latest
// for five minutes. A bind that the server refuses is undone in the table and the
// pod is placed again.
//
// Run has goroutines for the writes. The simulator calls Step instead, which does
// the same without any.
package loop

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	// Parallel bounds the writes on their way; default 64.
	Parallel int
	// Meter measures; it must not block. Optional.
	Meter Meter
}

// Meter measures what the scheduler does.
type Meter interface {
	// Placed is called when a node was chosen, or none was found, for a pod.
	Placed(took time.Duration)
	// Attempted is called when an attempt has ended: Scheduled, Unschedulable, Failed.
	Attempted(result string, took time.Duration)
	// Bound is called with how often a pod was tried until it was bound, and how
	// long that took.
	Bound(attempts int, took time.Duration)
	// Preempted is called after a search for victims, with how many were found.
	Preempted(victims int)
	// Pending tells how many pods wait, and for what.
	Pending(Pending)
}

// Results of attempts, as upstream's metrics name them.
const (
	Scheduled     = "scheduled"
	Unschedulable = "unschedulable"
	Failed        = "error"
)

// Pending are the pods that are not placed: to be tried now, to be tried again
// soon, waiting for something to change, and gated.
type Pending struct{ Active, Backoff, Unschedulable, Gated int }

type noMeter struct{}

func (noMeter) Placed(time.Duration)            {}
func (noMeter) Attempted(string, time.Duration) {}
func (noMeter) Bound(int, time.Duration)        {}
func (noMeter) Preempted(int)                   {}
func (noMeter) Pending(Pending)                 {}

const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second
	longestWait  = 5 * time.Minute
)

// Scheduler places pods. New, then Run or, in the simulator, Step.
type Scheduler struct {
	cfg   Config
	table *sched.Table // nil before the first round
	seen  map[*kind.Kind]int64
	items map[types.UID]*item // queued, waiting or flying
	queue queue
	wait  map[types.UID]*item // those of items that fit nowhere
	gated map[types.UID]bool
	count int64 // numbers items

	// How often something changed that may help those who wait, and that may help
	// those of them with terms about other pods.
	frees, moves int64

	manual bool
	slots  chan struct{}
	done   chan result
	wg     sync.WaitGroup
}

// item is a pod to be placed.
type item struct {
	pod      *corev1.Pod
	since    time.Time
	number   int64
	place    place
	index    int    // in the queue
	node     string // where it flies to
	failures int
	attempts int
	first    time.Time // when it was tried first
	tried    time.Time // when it was tried last
	ready    time.Time // not before
	deadline time.Time // at the latest
	frees    int64     // of the scheduler, when it failed
	moves    int64
	social   bool   // has terms about other pods
	message  string // as last reported
}

type place uint8

const (
	queued place = iota
	waiting
	flying // a bind is on its way
)

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
	if cfg.Meter == nil {
		cfg.Meter = noMeter{}
	}
	return &Scheduler{cfg: cfg, gated: map[types.UID]bool{}, items: map[types.UID]*item{}, wait: map[types.UID]*item{}, slots: make(chan struct{}, cfg.Parallel), done: make(chan result, cfg.Parallel)}
}

var followed = []*kind.Kind{kind.Namespace, kind.Node, kind.PersistentVolume, kind.PersistentVolumeClaim, kind.Pod}

// Run schedules until ctx ends and returns when every write on its way has.
func (s *Scheduler) Run(ctx context.Context) error {
	defer s.wg.Wait()
	timer := s.cfg.Clock.NewTimer(time.Hour)
	defer func() { timer.Stop() }()
	for {
		_, moved := s.cfg.View.Moved()
		next := s.round(ctx)
		timer.Stop()
		timer = s.cfg.Clock.NewTimer(next)
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

// Step does all that is to be done now, with every write done when it returns,
// and says when to call it again if nothing changes before.
func (s *Scheduler) Step(ctx context.Context) (again time.Duration) {
	s.manual = true
	return s.round(ctx)
}

func (s *Scheduler) round(ctx context.Context) time.Duration {
	if s.table == nil {
		s.load()
	}
	s.follow()
	s.collect()
	s.release(s.cfg.Clock.Now())
	for n := 0; s.queue.Len() > 0 && ctx.Err() == nil; n++ {
		if n%64 == 0 {
			s.pending()
		}
		s.schedule(ctx, heap.Pop(&s.queue).(*item))
		if s.manual || n%64 == 63 {
			s.follow()
			s.collect()
		}
	}
	s.pending()
	return s.next(s.cfg.Clock.Now())
}

// pending tells the meter who waits.
func (s *Scheduler) pending() {
	p := Pending{Active: s.queue.Len(), Gated: len(s.gated)}
	for _, it := range s.wait {
		if s.stirred(it) {
			p.Backoff++
		} else {
			p.Unschedulable++
		}
	}
	s.cfg.Meter.Pending(p)
}

func (s *Scheduler) load() {
	snap := s.cfg.View.Snapshot()
	s.table = sched.Load(snap)
	s.seen = map[*kind.Kind]int64{}
	for _, k := range followed {
		s.seen[k] = snap.Revision()
	}
	old := s.items
	s.items, s.wait, s.queue = map[types.UID]*item{}, map[types.UID]*item{}, nil
	for uid, it := range old {
		if it.place == flying {
			s.items[uid] = it
			if !s.table.Placed(uid) {
				s.table.Assume(sched.NewPod(it.pod), it.node)
			}
		}
	}
	clear(s.gated)
	for p := range snap.PodsOn("") {
		s.gate(p)
		if s.items[p.UID] == nil {
			s.enqueue(p)
		}
	}
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
			switch k {
			case kind.Node:
				s.nodeChanged(c)
			case kind.Pod:
				s.podChanged(c)
			case kind.Namespace:
				if c.New == nil {
					s.table.SetNamespace(c.Old.GetName(), nil)
				} else {
					s.table.SetNamespace(c.New.GetName(), c.New.GetLabels())
				}
				s.moves++
			default: // claims and volumes: a pod may wait for one
				s.frees++
			}
		}
	}
}

func (s *Scheduler) nodeChanged(c *view.Change) {
	if c.New == nil {
		s.table.RemoveNode(c.Old.GetName())
		s.moves++ // fewer domains to spread over
		return
	}
	n := c.New.(*corev1.Node)
	s.table.SetNode(n)
	if c.Old == nil || helps(c.Old.(*corev1.Node), n) {
		s.frees++
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
	if c.New == nil || c.Old != nil && c.Old.GetUID() != c.New.GetUID() {
		uid := c.Old.GetUID()
		delete(s.gated, uid)
		s.forget(uid)
		if s.table.Placed(uid) {
			s.frees++
		}
		s.table.RemovePod(uid)
		if c.New == nil {
			return
		}
	}
	p := c.New.(*corev1.Pod)
	s.gate(p)
	was := s.table.Placed(p.UID)
	if it := s.items[p.UID]; it == nil || it.place != flying || p.Spec.NodeName != "" {
		s.table.SetPod(p)
	}
	switch is := s.table.Placed(p.UID); {
	case was && !is:
		s.frees++
	case is && (c.Old == nil || c.Old.(*corev1.Pod).Spec.NodeName == "" || (c.Old.GetDeletionTimestamp() == nil) != (p.DeletionTimestamp == nil) || !sameLabels(c.Old, p)):
		s.moves++ // what others' terms are about
	}
	it := s.items[p.UID]
	switch {
	case it == nil:
		s.enqueue(p)
	case it.place == flying:
		if p.Spec.NodeName != "" {
			it.pod = p
		}
	case !ours(p):
		s.forget(p.UID)
	case it.place == waiting && it.pod.Generation != p.Generation:
		s.forget(p.UID)
		s.enqueue(p)
	default:
		it.pod = p
		if it.place == queued {
			heap.Fix(&s.queue, it.index)
		}
	}
}

func sameLabels(a, b kind.Object) bool { return maps.Equal(a.GetLabels(), b.GetLabels()) }

// forget takes a pod out of the queue and from those who wait.
func (s *Scheduler) forget(uid types.UID) {
	it := s.items[uid]
	if it == nil || it.place == flying {
		return
	}
	if it.place == queued {
		heap.Remove(&s.queue, it.index)
	}
	delete(s.wait, uid)
	delete(s.items, uid)
}

// ours: not bound, not ending, not gated, and meant for this scheduler.
func ours(p *corev1.Pod) bool {
	return p.Spec.NodeName == "" && p.DeletionTimestamp == nil && len(p.Spec.SchedulingGates) == 0 &&
		(p.Spec.SchedulerName == "" || p.Spec.SchedulerName == Name) && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// gate counts p among those that wait for a gate to open, or no longer.
func (s *Scheduler) gate(p *corev1.Pod) {
	switch {
	case len(p.Spec.SchedulingGates) > 0 && p.Spec.NodeName == "" && p.DeletionTimestamp == nil && (p.Spec.SchedulerName == "" || p.Spec.SchedulerName == Name):
		s.gated[p.UID] = true
	case len(s.gated) > 0:
		delete(s.gated, p.UID)
	}
}

func (s *Scheduler) enqueue(p *corev1.Pod) {
	if ours(p) {
		s.count++
		it := &item{pod: p, since: p.CreationTimestamp.Time, number: s.count}
		s.items[p.UID] = it
		heap.Push(&s.queue, it)
	}
}

// carry does f, which writes: in Run in a goroutine of its own, when there is room.
func (s *Scheduler) carry(ctx context.Context, f func()) {
	if s.manual {
		f()
		return
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	s.wg.Go(func() {
		defer func() { <-s.slots }()
		f()
	})
}

func (s *Scheduler) schedule(ctx context.Context, it *item) {
	it.tried = s.cfg.Clock.Now()
	if it.attempts++; it.attempts == 1 {
		it.first = it.tried
	}
	p := sched.NewPod(it.pod)
	d := s.table.Place(p)
	s.cfg.Meter.Placed(s.cfg.Clock.Now().Sub(it.tried))
	if d.Node == "" {
		s.unplaced(ctx, it, p, d)
		s.cfg.Meter.Attempted(Unschedulable, s.cfg.Clock.Now().Sub(it.tried))
		return
	}
	s.table.Assume(p, d.Node)
	it.place, it.node = flying, d.Node
	pod := it.pod
	s.carry(ctx, func() {
		_, err := control.Do(ctx, s.cfg.Client, act.Bind{Target: view.RefOf(kind.Pod, pod), UID: pod.UID, Node: d.Node}, nil)
		if err == nil {
			s.cfg.Record(act.Event{About: view.RefOf(kind.Pod, pod), UID: pod.UID, Type: corev1.EventTypeNormal, Reason: "Scheduled", Source: Name,
				Message: fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, d.Node)})
			s.cfg.Log.Debug("pod placed", "pod", pod.Namespace+"/"+pod.Name, "node", d.Node, "score", d.Score, "considered", d.Considered, "feasible", d.Feasible)
		}
		if s.manual {
			s.finish(result{it, err})
			return
		}
		select {
		case s.done <- result{it, err}:
		case <-ctx.Done():
		}
	})
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

// finish ends a bind. What the store holds decides, whatever the answer was: a
// bind whose answer was lost has been made all the same.
func (s *Scheduler) finish(r result) {
	uid, now := r.it.pod.UID, s.cfg.Clock.Now()
	if r.err == nil {
		s.cfg.Meter.Attempted(Scheduled, now.Sub(r.it.tried))
		s.cfg.Meter.Bound(r.it.attempts, now.Sub(r.it.first))
	} else {
		s.cfg.Meter.Attempted(Failed, now.Sub(r.it.tried))
	}
	p := view.Get[*corev1.Pod](s.cfg.View.Snapshot(), kind.Pod, r.it.pod.Namespace, r.it.pod.Name)
	if r.err == nil || p == nil || p.UID != uid || !ours(p) {
		delete(s.items, uid)
		switch {
		case p == nil || p.UID != uid:
			s.table.RemovePod(uid)
			s.frees++
		case r.err != nil:
			s.table.RemovePod(uid)
			s.table.SetPod(p)
			s.frees++
		}
		return
	}
	s.table.RemovePod(uid)
	s.frees++
	level := slog.LevelWarn
	if apierrors.IsConflict(r.err) {
		level = slog.LevelDebug
	}
	s.cfg.Log.Log(context.Background(), level, "bind was refused", "pod", p.Namespace+"/"+p.Name, "error", r.err)
	r.it.pod = p
	s.backOff(r.it)
	r.it.frees-- // it is to be tried again, whatever changes
}

// backOff lets a pod wait.
func (s *Scheduler) backOff(it *item) {
	now := s.cfg.Clock.Now()
	d := firstBackoff << min(it.failures, 4)
	it.failures++
	it.ready = now.Add(min(d, lastBackoff))
	it.deadline = now.Add(longestWait)
	it.frees, it.moves = s.frees, s.moves
	it.place = waiting
	s.wait[it.pod.UID] = it
}

// stirred: something has changed since it failed that may help.
func (s *Scheduler) stirred(it *item) bool {
	return it.frees != s.frees || it.social && it.moves != s.moves
}

// release queues those whose wait is over.
func (s *Scheduler) release(now time.Time) {
	for uid, it := range s.wait {
		if s.stirred(it) && !now.Before(it.ready) || !now.Before(it.deadline) {
			delete(s.wait, uid)
			it.place = queued
			heap.Push(&s.queue, it)
		}
	}
}

// next is how long to sleep when nothing happens.
func (s *Scheduler) next(now time.Time) time.Duration {
	d := time.Hour
	for _, it := range s.wait {
		at := it.deadline
		if s.stirred(it) {
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
	a, b := q[i], q[j]
	if x, y := priority(a.pod), priority(b.pod); x != y {
		return x > y
	}
	if !a.since.Equal(b.since) {
		return a.since.Before(b.since)
	}
	return a.number < b.number
}
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *queue) Push(x any) {
	it := x.(*item)
	it.index = len(*q)
	*q = append(*q, it)
}
func (q *queue) Pop() any {
	old := *q
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return it
}
