package sim

import (
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/node/pod"
	"proa.dev/sim"
)

// agent is one life of a node's agent: package node without its goroutines, over
// the same step machine.
type agent struct {
	w       *world
	m       *machine
	actor   *sim.Actor
	life    int
	workers map[types.UID]*worker
	adopted bool

	calls   int
	waiting map[int]answerTo

	conn, number int
	at           int64
	heard        time.Time
	early        map[[2]int]frame
	peer         int // the server's life that the connection is with
	versions     map[types.UID]int64
}

type answerTo func(kind.Object, error)

// worker drives one pod's machine.
type worker struct {
	g       *agent
	uid     types.UID
	ns      string
	name    string
	state   pod.State
	latest  *corev1.Pod
	stopped func() // the wake-up
	probes  map[string]int

	pending *corev1.PodStatus
	busy    bool
	deletes bool // waits for the status to be written
}

func (g *agent) soon(min, max time.Duration, what string, f func()) {
	g.actor.After(g.w.between(min, max), what, f)
}

// offer brings a pod's newest version to its worker.
func (g *agent) offer(p *corev1.Pod) {
	if w := g.workers[p.UID]; w != nil {
		if version(p) >= version(w.latest) {
			w.latest = p
		}
		w.post(pod.Update{Pod: p})
		return
	}
	w := g.worker(p)
	w.post(pod.Update{Pod: p})
	if found := g.m.adopted(p.UID); found != nil && !g.adopted {
		w.post(*found)
		return
	}
	w.post(pod.Admitted{})
}

func (g *agent) worker(p *corev1.Pod) *worker {
	w := &worker{g: g, uid: p.UID, ns: p.Namespace, name: p.Name, latest: p, probes: map[string]int{}}
	w.state.Node = pod.Node{Name: g.m.name, IPs: []string{fmt.Sprintf("192.168.0.%d", g.m.number)}}
	g.workers[p.UID] = w
	return w
}

func (g *agent) gone(p *corev1.Pod) {
	if w := g.workers[p.UID]; w != nil {
		w.removed(p)
	}
}

func (w *worker) removed(last *corev1.Pod) { w.post(pod.Removed{Last: last}) }

// listed: all pods are known; what the machine holds besides is removed.
func (g *agent) listed() {
	if g.adopted {
		return
	}
	g.adopted = true
	for _, b := range slices.Clone(g.m.boxes) {
		if g.workers[b.uid] == nil && g.w.plant != "leak" {
			g.m.remove(b.uid)
		}
	}
}

func (w *worker) post(e pod.Event) {
	if w.g.workers[w.uid] != w {
		return
	}
	s, effects := pod.Step(w.state, e, w.g.actor.Clock().Now())
	w.state = s
	for _, f := range effects {
		w.do(f)
	}
	if s.Stage == pod.Gone {
		delete(w.g.workers, w.uid)
		for _, b := range w.g.m.boxes {
			if b.uid == w.uid {
				w.g.w.fail("pod %s/%s is gone from %s, but its sandbox is left", w.ns, w.name, w.g.m.name)
			}
		}
	}
}

// bad says whether a deed fails this time.
func (w *worker) bad(percent float64) bool { return w.g.w.stormy && w.g.actor.Rand().Percent(percent) }

func (w *worker) do(f pod.Effect) {
	g, m := w.g, w.g.m
	answer := func(min, max time.Duration, f func() pod.Event) {
		g.soon(min, max, "work", func() {
			if g.workers[w.uid] == w {
				if e := f(); e != nil {
					w.post(e)
				}
			}
		})
	}
	oops := func(percent float64) string {
		if w.bad(percent) {
			return "it did not work this time"
		}
		return ""
	}
	switch f := f.(type) {
	case pod.Mount:
		answer(time.Millisecond, 30*time.Millisecond, func() pod.Event { return pod.Mounted{Err: oops(3)} })
	case pod.Unmount:
		answer(time.Millisecond, 10*time.Millisecond, func() pod.Event { return pod.Unmounted{Err: oops(3)} })
	case pod.CreateSandbox:
		answer(5*time.Millisecond, 100*time.Millisecond, func() pod.Event {
			if err := oops(3); err != "" {
				return pod.SandboxUp{Err: err}
			}
			b := m.run(w.latest, f.Attempt)
			return pod.SandboxUp{ID: b.id, IPs: []string{b.ip}}
		})
	case pod.StopSandbox:
		answer(time.Millisecond, 40*time.Millisecond, func() pod.Event {
			if err := oops(3); err != "" {
				return pod.SandboxStopped{Err: err}
			}
			for _, b := range m.boxes {
				if b.id == f.ID {
					m.stop(b)
				}
			}
			return pod.SandboxStopped{}
		})
	case pod.RemoveSandbox:
		answer(time.Millisecond, 40*time.Millisecond, func() pod.Event {
			if err := oops(3); err != "" {
				return pod.SandboxRemoved{Err: err}
			}
			m.remove(w.uid)
			return pod.SandboxRemoved{}
		})
	case pod.PullImage:
		answer(time.Millisecond, 200*time.Millisecond, func() pod.Event {
			if w.bad(2) {
				return pod.Pulled{Container: f.Container, Reason: "ErrImagePull", Message: "the registry is busy"}
			}
			return pod.Pulled{Container: f.Container, ImageID: "sha256:" + pod.Spec(w.latest, f.Container).Image}
		})
	case pod.Launch:
		answer(5*time.Millisecond, 100*time.Millisecond, func() pod.Event {
			spec := pod.Spec(w.latest, f.Container)
			if w.bad(2) {
				return pod.Launched{Container: f.Container, Reason: "CreateContainerError", Message: "it did not work this time"}
			}
			c := m.launch(w.uid, spec, f.Restarts)
			if c == nil {
				return pod.Launched{Container: f.Container, Reason: "CreateContainerError", Message: "there is no sandbox"}
			}
			return pod.Launched{Container: f.Container, ID: c.id, Image: c.image, StartedAt: c.started}
		})
	case pod.RunHook:
		answer(time.Millisecond, 300*time.Millisecond, func() pod.Event {
			return pod.HookDone{Container: f.Container, ID: f.ID, Hook: f.Hook, Err: oops(3)}
		})
	case pod.StopContainer:
		if w.bad(2) {
			answer(0, time.Second, func() pod.Event { return pod.StopFailed{Container: f.Container, ID: f.ID, Err: "busy"} })
			return
		}
		m.later(g.w.between(0, min(f.Grace, 2*time.Second)), "container stops", func() { m.exit(f.ID, 143) })
		// For an exit that was reported before, or got lost.
		g.actor.After(f.Grace+3*time.Second, "stopped", func() {
			if _, c := m.find(f.ID); c != nil && c.running {
				w.post(pod.StopFailed{Container: f.Container, ID: f.ID, Err: "it still runs"})
			} else {
				w.post(pod.Exited{Container: f.Container, ID: f.ID, ExitCode: 137, Reason: "ContainerStatusUnknown", FinishedAt: g.actor.Clock().Now()})
			}
		})
	case pod.RemoveContainer:
		g.soon(0, 20*time.Millisecond, "remove container", func() {
			if b, _ := m.find(f.ID); b != nil {
				b.containers = slices.DeleteFunc(b.containers, func(c *container) bool { return c.id == f.ID && !c.running })
			}
		})
	case pod.StartProbe:
		w.probe(f)
	case pod.StopProbes:
		for _, k := range []pod.ProbeKind{pod.Startup, pod.Liveness, pod.Readiness} {
			if f.Probe == "" || f.Probe == k {
				w.probes[f.Container+string(k)]++
			}
		}
	case pod.Drain:
		answer(time.Millisecond, 50*time.Millisecond, func() pod.Event { return pod.Drained{} })
	case pod.SetStatus:
		w.pending = f.Status
		w.write(50 * time.Millisecond)
	case pod.DeletePod:
		w.deletes = true
		w.delete()
	case pod.Emit:
	case pod.Wake:
		if w.stopped != nil {
			w.stopped()
		}
		w.stopped = g.actor.After(max(f.At.Sub(g.actor.Clock().Now()), 0), "wake", func() { w.post(pod.Tick{}) })
	default:
		g.w.fail("effect %T is not carried out", f)
	}
}

// probe is content after a while; readiness is lost at times.
func (w *worker) probe(f pod.StartProbe) {
	key := f.Container + string(f.Probe)
	w.probes[key]++
	n := w.probes[key]
	var report func(ok bool, in time.Duration)
	report = func(ok bool, in time.Duration) {
		w.g.actor.After(in, "probe", func() {
			if w.probes[key] != n || w.g.workers[w.uid] != w {
				return
			}
			w.post(pod.Probed{Container: f.Container, ID: f.ID, Probe: f.Probe, OK: ok})
			if !ok {
				report(true, w.g.w.between(time.Second, 5*time.Second))
			} else if f.Probe == pod.Readiness && w.bad(30) {
				report(false, w.g.w.between(time.Second, 20*time.Second))
			}
		})
	}
	report(true, w.g.w.between(50*time.Millisecond, 2*time.Second))
}

// write publishes the newest status, one write at a time.
func (w *worker) write(pause time.Duration) {
	if w.busy || w.pending == nil {
		w.delete()
		return
	}
	w.busy = true
	status := w.pending
	w.pending = nil
	next := w.latest.DeepCopy()
	next.Status = merged(&w.latest.Status, status)
	again := func(after time.Duration) {
		if w.pending == nil {
			w.pending = status
		}
		w.g.actor.After(after, "status again", func() {
			w.busy = false
			w.write(min(2*pause, 10*time.Second))
		})
	}
	done := func() {
		w.busy = false
		w.write(50 * time.Millisecond)
	}
	w.g.call("status "+w.name, func(s *server) (kind.Object, error) {
		return s.admin.Update(bg, kind.Pod, next, "status", metav1.UpdateOptions{})
	}, func(o kind.Object, err error) {
		switch {
		case err == nil:
			if p := o.(*corev1.Pod); version(p) >= version(w.latest) {
				w.latest = p
			}
			done()
		case apierrors.IsNotFound(err):
			done()
		case apierrors.IsConflict(err):
			w.g.call("get "+w.name, func(s *server) (kind.Object, error) {
				return s.admin.Get(bg, kind.Pod, w.ns, w.name, metav1.GetOptions{})
			}, func(o kind.Object, err error) {
				switch {
				case apierrors.IsNotFound(err):
					done()
				case err != nil:
					again(pause)
				case o.GetUID() != w.uid:
					done()
				default:
					w.latest = o.(*corev1.Pod)
					again(0)
				}
			})
		default:
			again(pause)
		}
	})
}

func merged(cur, s *corev1.PodStatus) corev1.PodStatus {
	out := *s.DeepCopy()
	for _, c := range cur.Conditions {
		if !slices.Contains(pod.OwnConditions, c.Type) {
			out.Conditions = append(out.Conditions, c)
		}
	}
	return out
}

// delete removes the object once its last status is written.
func (w *worker) delete() {
	if !w.deletes || w.busy || w.pending != nil {
		return
	}
	w.deletes = false
	zero, uid := int64(0), w.uid
	var exists bool
	w.g.call("delete "+w.name, func(s *server) (kind.Object, error) {
		err := s.admin.Delete(bg, kind.Pod, w.ns, w.name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid}})
		o := s.view.Snapshot().Get(kind.Pod, w.ns, w.name)
		exists = o != nil && o.GetUID() == uid
		return nil, err
	}, func(_ kind.Object, err error) {
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			if !exists {
				w.post(pod.Removed{})
			}
			w.post(pod.Deleted{})
			return
		}
		w.post(pod.Deleted{Err: err.Error()})
	})
}

// heartbeat keeps the Node and its Lease.
func (g *agent) heartbeat() {
	now := metav1.NewTime(g.actor.Clock().Now())
	g.call("heartbeat", func(s *server) (kind.Object, error) {
		micro := metav1.NewMicroTime(now.Time)
		seconds := int32(40)
		name := g.m.name
		have := s.view.Snapshot().Get(kind.Lease, "kube-node-lease", name)
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-node-lease"}}
		if have != nil {
			lease = have.DeepCopyObject().(*coordinationv1.Lease)
		}
		lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &micro}
		var err error
		if have == nil {
			_, err = s.admin.Create(bg, kind.Lease, lease, metav1.CreateOptions{})
		} else {
			_, err = s.admin.Update(bg, kind.Lease, lease, "", metav1.UpdateOptions{})
		}
		if err != nil {
			return nil, err
		}
		return nil, g.m.tellNode(s, now)
	}, func(kind.Object, error) {})
	g.actor.After(10*time.Second, "heartbeat", g.heartbeat)
}

// tellNode registers the node, or renews what its status says.
func (m *machine) tellNode(s *server, now metav1.Time) error {
	condition := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now}
	have := s.view.Snapshot().Get(kind.Node, "", m.name)
	if have == nil {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: m.name, Labels: map[string]string{
			corev1.LabelHostname: m.name, corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", m.number%2)}}}
		n.Status.Capacity = corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("16Gi"), "pods": resource.MustParse("40")}
		n.Status.Allocatable = n.Status.Capacity
		n.Status.Conditions = []corev1.NodeCondition{condition}
		_, err := s.admin.Create(bg, kind.Node, n, metav1.CreateOptions{})
		return err
	}
	n := have.DeepCopyObject().(*corev1.Node)
	for i := range n.Status.Conditions {
		c := &n.Status.Conditions[i]
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue && now.Sub(c.LastHeartbeatTime.Time) < time.Minute {
				return nil
			}
			if c.Status == corev1.ConditionTrue {
				condition.LastTransitionTime = c.LastTransitionTime
			}
			*c = condition
		}
	}
	_, err := s.admin.Update(bg, kind.Node, n, "status", metav1.UpdateOptions{})
	return err
}
