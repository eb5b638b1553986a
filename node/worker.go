package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/node/pod"
	"proa.dev/node/probe"
	"proa.dev/node/volume"
	"proa.dev/view"
)

// worker drives one pod's machine: one goroutine owns the state, effects run
// beside it and answer by post.
type worker struct {
	a               *Agent
	uid             types.UID
	namespace, name string

	mu     sync.Mutex
	queue  []pod.Event
	latest *corev1.Pod // the newest version seen from the view or an own write
	signal chan struct{}

	state  atomic.Pointer[pod.State] // for readers; owned by run
	group  sync.WaitGroup            // effects on their way
	probes map[string]context.CancelFunc
	early  context.Context // ends when the pod starts to end: pulls, mounts
	hurry  context.CancelFunc
	resync env.Timer // next Refresh of volumes for a token
	took   []any     // of the steps of the start, for the log; owned by run
	since  time.Time // the step before
	stale  chan bool

	statusMu   sync.Mutex
	pending    *corev1.PodStatus
	statusBusy bool
	statusIdle chan struct{} // closed when no write is on its way
}

func newWorker(a *Agent, p *corev1.Pod) *worker {
	w := &worker{a: a, uid: p.UID, namespace: p.Namespace, name: p.Name, latest: p,
		signal: make(chan struct{}, 1), probes: map[string]context.CancelFunc{}, stale: make(chan bool, 1)}
	w.statusIdle = make(chan struct{})
	close(w.statusIdle)
	w.state.Store(&pod.State{Node: pod.Node{Name: a.cfg.Name, IPs: a.cfg.HostIPs}, Pod: nil})
	return w
}

// refreshLimit bounds one refresh of a pod's files.
const refreshLimit = 5 * time.Second

func (w *worker) post(e pod.Event) {
	w.mu.Lock()
	w.queue = append(w.queue, e)
	w.mu.Unlock()
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// saw remembers the newest version of the object.
func (w *worker) saw(p *corev1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if newer(p.ResourceVersion, w.latest.ResourceVersion) {
		w.latest = p
	}
}

func newer(a, b string) bool {
	x, errA := strconv.ParseInt(a, 10, 64)
	y, errB := strconv.ParseInt(b, 10, 64)
	return errA != nil || errB != nil || x >= y
}

func (w *worker) pod() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest
}

// refresh asks for the pod's files to be brought up to date; nudge also tries
// failed deeds again.
func (w *worker) refresh(nudge bool) {
	select {
	case w.stale <- nudge:
	default:
	}
}

func (w *worker) run(ctx context.Context) {
	defer w.a.drop(w)
	defer w.group.Wait()
	defer w.stopProbes("", "")
	w.early, w.hurry = context.WithCancel(ctx)
	defer w.hurry()
	wake := w.a.clock.NewTimer(time.Hour)
	wake.Stop()
	defer wake.Stop()
	w.resync = w.a.clock.NewTimer(24 * time.Hour)
	defer w.resync.Stop()
	for {
		var events []pod.Event
		select {
		case <-ctx.Done():
			return
		case <-w.signal:
			w.mu.Lock()
			events, w.queue = w.queue, nil
			w.mu.Unlock()
		case <-wake.C():
			events = []pod.Event{pod.Tick{}}
		case nudge := <-w.stale:
			w.refreshVolumes(ctx)
			if nudge {
				events = []pod.Event{pod.Nudge{}}
			}
		case <-w.resync.C():
			w.refreshVolumes(ctx)
		}
		for _, e := range events {
			w.clockStep(e)
			before := w.state.Load()
			s, effects := pod.Step(*before, e, w.a.clock.Now())
			w.state.Store(&s)
			if s.Stage != before.Stage {
				w.a.log.Debug("pod stage", "pod", w.namespace+"/"+w.name, "stage", s.Stage.String(), "event", fmt.Sprintf("%T", e))
			}
			if s.Stage >= pod.Draining {
				w.hurry()
			}
			if u, ok := e.(pod.Update); ok && before.Pod != nil && metadataChanged(before.Pod, u.Pod) {
				w.refresh(false)
			}
			if _, ok := e.(pod.Mounted); ok {
				w.plan(w.a.volumes.NextRefresh(string(w.uid)))
			}
			for _, f := range effects {
				if wk, ok := f.(pod.Wake); ok {
					wake.Reset(pod.Until(wk.At, w.a.clock.Now()))
					continue
				}
				w.do(ctx, f)
			}
			if s.Stage == pod.Gone {
				w.a.log.Info("pod is gone", "pod", w.namespace+"/"+w.name, "uid", string(w.uid))
				w.a.forgetFiles(s.Pod)
				return
			}
		}
	}
}

// clockStep keeps how long each step of a start took, and logs them when the last
// container of a pod has come up.
func (w *worker) clockStep(e pod.Event) {
	step := ""
	switch e := e.(type) {
	case pod.Admitted:
		w.since = w.a.clock.Now()
		w.took = append(w.took[:0], "pod", w.namespace+"/"+w.name)
		return
	case pod.Mounted:
		step = "volumes"
	case pod.SandboxUp:
		step = "sandbox"
	case pod.Pulled:
		step = "image " + e.Container
	case pod.Launched:
		step = "start " + e.Container
	default:
		return
	}
	if w.took == nil {
		return
	}
	now := w.a.clock.Now()
	w.took = append(w.took, step, now.Sub(w.since))
	w.since = now
	if l, ok := e.(pod.Launched); ok {
		if c := w.pod().Spec.Containers; l.Container == c[len(c)-1].Name {
			w.a.log.Debug("pod start", w.took...)
			w.took = nil
		}
	}
}

func metadataChanged(a, b *corev1.Pod) bool {
	if len(a.Labels) != len(b.Labels) || len(a.Annotations) != len(b.Annotations) {
		return true
	}
	for k, v := range a.Labels {
		if b.Labels[k] != v {
			return true
		}
	}
	for k, v := range a.Annotations {
		if b.Annotations[k] != v {
			return true
		}
	}
	return false
}

func (w *worker) refreshVolumes(ctx context.Context) {
	s := w.state.Load()
	if s.Pod == nil || !s.Volumes.Done || s.Stage >= pod.Cleaning {
		return
	}
	// In the worker's own goroutine, so that it never meets Unmount; bounded, so
	// that an API that is away does not hold the pod up.
	ctx, cancel := context.WithTimeout(ctx, refreshLimit)
	defer cancel()
	next, err := w.a.volumes.Refresh(ctx, w.facts())
	if err != nil {
		w.a.log.Warn("volumes keep their old content", "pod", w.namespace+"/"+w.name, "err", err)
	}
	w.plan(next)
}

// plan sets the timer for the next token.
func (w *worker) plan(next time.Time) {
	if next.IsZero() {
		return
	}
	w.resync.Stop()
	w.resync.Reset(max(next.Sub(w.a.clock.Now()), time.Second))
}

// uses says whether the pod shows one of the named objects.
func (w *worker) uses(k *kind.Kind, names map[string]bool) bool {
	p := w.pod()
	configMaps, secrets := volume.References(p)
	refs := configMaps
	if k == kind.Secret {
		refs = secrets
	}
	for name := range refs {
		if names[p.Namespace+"/"+name] {
			return true
		}
	}
	// Environment is read once, but a container that waits for it may now start.
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, e := range list[i].EnvFrom {
				if k == kind.ConfigMap && e.ConfigMapRef != nil && names[p.Namespace+"/"+e.ConfigMapRef.Name] ||
					k == kind.Secret && e.SecretRef != nil && names[p.Namespace+"/"+e.SecretRef.Name] {
					return true
				}
			}
			for _, e := range list[i].Env {
				if v := e.ValueFrom; v != nil && (k == kind.ConfigMap && v.ConfigMapKeyRef != nil && names[p.Namespace+"/"+v.ConfigMapKeyRef.Name] ||
					k == kind.Secret && v.SecretKeyRef != nil && names[p.Namespace+"/"+v.SecretKeyRef.Name]) {
					return true
				}
			}
		}
	}
	return false
}

// facts is the pod with the addresses that the machine knows, which the API may
// not show yet.
func (w *worker) facts() *corev1.Pod {
	s := w.state.Load()
	p := *w.pod()
	if st := s.Published; st != nil {
		p.Status = *st
	}
	p.Status.HostIP, p.Status.HostIPs = "", nil
	for i, ip := range s.Node.IPs {
		if i == 0 {
			p.Status.HostIP = ip
		}
		p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: ip})
	}
	if len(s.Sandbox.IPs) > 0 {
		p.Status.PodIP, p.Status.PodIPs = s.Sandbox.IPs[0], nil
		for _, ip := range s.Sandbox.IPs {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	return &p
}

// async carries an effect out and posts its answer; a nil answer is not posted.
func (w *worker) async(ctx context.Context, f func(ctx context.Context) pod.Event) {
	w.group.Add(1)
	go func() {
		defer w.group.Done()
		if e := f(ctx); e != nil && ctx.Err() == nil {
			w.post(e)
		}
	}()
}

// asyncEarly is async for what is of no use once the pod ends; it answers even
// when it was cut short, so that the machine does not wait.
func (w *worker) asyncEarly(ctx context.Context, f func(ctx context.Context) pod.Event) {
	early := w.early
	w.async(ctx, func(context.Context) pod.Event { return f(early) })
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return message(err)
}

func (w *worker) do(ctx context.Context, f pod.Effect) {
	eng := w.a.cfg.Engine
	switch f := f.(type) {
	case pod.Mount:
		w.asyncEarly(ctx, w.mount)
	case pod.Unmount:
		w.async(ctx, func(context.Context) pod.Event {
			return pod.Unmounted{Err: text(w.a.volumes.Teardown(string(w.uid)))}
		})
	case pod.CreateSandbox:
		w.asyncEarly(ctx, func(context.Context) pod.Event { return w.createSandbox(ctx, f) })
	case pod.StopSandbox:
		w.async(ctx, func(ctx context.Context) pod.Event {
			_, err := eng.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: f.ID})
			return pod.SandboxStopped{Err: text(err)}
		})
	case pod.RemoveSandbox:
		w.async(ctx, func(ctx context.Context) pod.Event {
			return pod.SandboxRemoved{Err: text(w.a.removeSandboxes(ctx, string(w.uid)))}
		})
	case pod.PullImage:
		w.asyncEarly(ctx, func(ctx context.Context) pod.Event { return w.pull(ctx, f) })
	case pod.Launch:
		w.async(ctx, func(ctx context.Context) pod.Event { return w.launch(ctx, f) })
	case pod.RunHook:
		w.async(ctx, func(ctx context.Context) pod.Event { return w.hook(ctx, f) })
	case pod.StopContainer:
		w.async(ctx, func(ctx context.Context) pod.Event { return w.stop(ctx, f) })
	case pod.RemoveContainer:
		w.async(ctx, func(ctx context.Context) pod.Event {
			w.removeContainer(ctx, f.ID)
			return nil
		})
	case pod.StartProbe:
		w.startProbe(ctx, f)
	case pod.StopProbes:
		w.stopProbes(f.Container, f.Probe)
	case pod.Drain:
		w.async(ctx, func(ctx context.Context) pod.Event {
			if w.a.cfg.Drain == nil {
				return pod.Drained{}
			}
			ctx, cancel := context.WithTimeout(ctx, f.Timeout)
			defer cancel()
			if err := w.a.cfg.Drain(ctx, w.facts()); err != nil {
				w.a.log.Warn("data plane did not confirm; the pod is stopped all the same", "pod", w.namespace+"/"+w.name, "err", err)
			}
			return pod.Drained{}
		})
	case pod.SetStatus:
		w.setStatus(ctx, f.Status)
	case pod.DeletePod:
		w.async(ctx, w.deletePod)
	case pod.Emit:
		field := ""
		if f.Container != "" {
			field = pod.FieldPath(w.pod(), f.Container)
		}
		w.a.events.about(w.pod(), field, f.Type, f.Reason, f.Message)
	default:
		panic(fmt.Sprintf("node: effect %T is not carried out", f))
	}
}

func (w *worker) mount(ctx context.Context) pod.Event {
	p := w.facts()
	if err := w.a.makePodDir(p); err != nil {
		return pod.Mounted{Err: err.Error()}
	}
	err := w.a.volumes.Setup(ctx, p)
	if err != nil {
		if ctx.Err() == nil {
			for _, e := range unjoin(err) {
				w.a.events.about(p, "", corev1.EventTypeWarning, "FailedMount", e.Error())
			}
		}
		return pod.Mounted{Err: err.Error()}
	}
	return pod.Mounted{}
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

func (w *worker) createSandbox(ctx context.Context, f pod.CreateSandbox) pod.Event {
	cfg, handler, err := w.a.sandboxConfig(w.facts(), f.Attempt)
	if err != nil {
		return pod.SandboxUp{Err: err.Error()}
	}
	release, err := w.a.start(ctx)
	if err != nil {
		return pod.SandboxUp{Err: err.Error()}
	}
	defer release()
	if f.Attempt > 0 {
		w.stopOlder(ctx)
	}
	r, err := w.a.cfg.Engine.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		return pod.SandboxUp{Err: message(err)}
	}
	if w.pod().Spec.HostNetwork {
		return pod.SandboxUp{ID: r.PodSandboxId, IPs: w.a.cfg.HostIPs}
	}
	st, err := w.a.cfg.Engine.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId})
	if err != nil {
		return pod.SandboxUp{Err: message(err)}
	}
	ips := sandboxIPs(st.Status)
	if err := w.a.writeHosts(w.facts(), ips); err != nil {
		return pod.SandboxUp{Err: err.Error()}
	}
	return pod.SandboxUp{ID: r.PodSandboxId, IPs: ips}
}

// stopOlder lets go of what a lost sandbox still holds (address, namespaces).
func (w *worker) stopOlder(ctx context.Context) {
	list, err := w.a.cfg.Engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{labelPodUID: string(w.uid)}}})
	if err != nil {
		return
	}
	for _, s := range list.Items {
		if _, err := w.a.cfg.Engine.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			w.a.log.Warn("older sandbox is not stopped", "pod", w.namespace+"/"+w.name, "sandbox", s.Id, "err", err)
		}
	}
}

func sandboxIPs(s *runtimeapi.PodSandboxStatus) []string {
	var ips []string
	if ip := s.GetNetwork().GetIp(); ip != "" {
		ips = append(ips, ip)
		for _, more := range s.Network.AdditionalIps {
			ips = append(ips, more.Ip)
		}
	}
	return ips
}

// start takes one of the places for heavy starts.
func (a *Agent) start(ctx context.Context) (release func(), err error) {
	select {
	case a.starts <- struct{}{}:
		return func() { <-a.starts }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *worker) stop(ctx context.Context, f pod.StopContainer) pod.Event {
	seconds := int64((f.Grace + time.Second - 1) / time.Second)
	_, err := w.a.cfg.Engine.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: f.ID, Timeout: seconds})
	if err != nil {
		return pod.StopFailed{Container: f.Container, ID: f.ID, Err: message(err)}
	}
	// The engine's event says the same; this is for an engine that lost it.
	if st, err := w.a.cfg.Engine.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: f.ID}); err == nil {
		if st.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return w.exitEvent(st.Status)
		}
		return pod.StopFailed{Container: f.Container, ID: f.ID, Err: "the engine says that it still runs"}
	}
	return pod.Exited{Container: f.Container, ID: f.ID, ExitCode: 137, Reason: "ContainerStatusUnknown",
		Message: "The container could not be located when the pod was terminated", FinishedAt: w.a.clock.Now()}
}

// sandboxLost posts the end of a sandbox and of all that was in it, in one event, so
// that nothing is started again in what is gone. While something still ends there,
// the next event says more.
func (w *worker) sandboxLost(id string, containers []*runtimeapi.ContainerStatus) {
	lost := pod.SandboxLost{ID: id}
	for _, c := range containers {
		switch c.State {
		case runtimeapi.ContainerState_CONTAINER_RUNNING:
			return
		case runtimeapi.ContainerState_CONTAINER_EXITED:
			lost.Exits = append(lost.Exits, w.exitEvent(c).(pod.Exited))
		}
	}
	w.post(lost)
}

// exited posts the end of a container that the engine reported.
func (w *worker) exited(c *runtimeapi.ContainerStatus) { w.post(w.exitEvent(c)) }

func (w *worker) exitEvent(c *runtimeapi.ContainerStatus) pod.Event {
	name := c.Labels[labelContainerName]
	return pod.Exited{Container: name, ID: c.Id, ExitCode: c.ExitCode, Reason: c.Reason,
		Message: w.a.terminationMessage(w.pod(), name, c), StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt)}
}

func nanos(n int64) time.Time {
	if n <= 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

func (w *worker) removeContainer(ctx context.Context, id string) {
	st, err := w.a.cfg.Engine.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return
	}
	if _, err := w.a.cfg.Engine.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		w.a.log.Warn("dead container is not removed", "pod", w.namespace+"/"+w.name, "container", id, "err", err)
		return
	}
	w.a.removeLog(w.pod(), st.Status)
}

func (w *worker) startProbe(ctx context.Context, f pod.StartProbe) {
	key := f.Container + "/" + string(f.Probe)
	if cancel := w.probes[key]; cancel != nil {
		cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	w.probes[key] = cancel
	spec := pod.Spec(w.pod(), f.Container)
	p := map[pod.ProbeKind]*corev1.Probe{pod.Startup: spec.StartupProbe, pod.Liveness: spec.LivenessProbe, pod.Readiness: spec.ReadinessProbe}[f.Probe]
	ip := ""
	if s := w.state.Load(); len(s.Sandbox.IPs) > 0 {
		ip = s.Sandbox.IPs[0]
	}
	target := probe.Target{ContainerID: f.ID, IP: ip, Spec: spec, StartedAt: f.StartedAt}
	title := map[pod.ProbeKind]string{pod.Startup: "Startup", pod.Liveness: "Liveness", pod.Readiness: "Readiness"}[f.Probe]
	w.group.Add(1)
	go func() {
		defer w.group.Done()
		w.a.prober.Run(ctx, p, target, f.Probe == pod.Liveness, func(r probe.Report) {
			if r.Failed {
				verb := "failed"
				if r.Errored {
					verb = "errored and resulted in unknown state"
				}
				w.a.events.about(w.pod(), pod.FieldPath(w.pod(), f.Container), corev1.EventTypeWarning, "Unhealthy",
					fmt.Sprintf("%s probe %s: %s", title, verb, r.Message))
			}
			if r.Warned {
				w.a.events.about(w.pod(), pod.FieldPath(w.pod(), f.Container), corev1.EventTypeWarning, "ProbeWarning",
					fmt.Sprintf("%s probe warning: %s", title, r.Message))
			}
			if r.Verdict {
				w.post(pod.Probed{Container: f.Container, ID: f.ID, Probe: f.Probe, OK: r.OK, Message: r.Message})
			}
		})
	}()
}

func (w *worker) stopProbes(container string, which pod.ProbeKind) {
	for _, k := range []pod.ProbeKind{pod.Startup, pod.Liveness, pod.Readiness} {
		for key, cancel := range w.probes {
			if (container == "" || key == container+"/"+string(k)) && (which == "" || which == k) {
				cancel()
				delete(w.probes, key)
			}
		}
	}
}

// setStatus writes the newest status; while one write is on its way, later ones
// replace each other.
func (w *worker) setStatus(ctx context.Context, s *corev1.PodStatus) {
	w.statusMu.Lock()
	defer w.statusMu.Unlock()
	w.pending = s
	if w.statusBusy {
		return
	}
	w.statusBusy = true
	w.statusIdle = make(chan struct{})
	w.group.Add(1)
	go func() {
		defer w.group.Done()
		w.writeStatuses(ctx)
	}()
}

func (w *worker) writeStatuses(ctx context.Context) {
	pause := 50 * time.Millisecond
	for {
		w.statusMu.Lock()
		s := w.pending
		w.pending = nil
		if s == nil || ctx.Err() != nil {
			w.statusBusy = false
			close(w.statusIdle)
			w.statusMu.Unlock()
			return
		}
		w.statusMu.Unlock()
		began := w.a.clock.Now()
		err := w.writeStatus(ctx, s)
		if err == nil {
			w.a.log.Debug("pod status written", "pod", w.namespace+"/"+w.name, "took", w.a.clock.Now().Sub(began))
			pause = 50 * time.Millisecond
			continue
		}
		if ctx.Err() == nil {
			w.a.log.Warn("pod status is not written; trying again", "pod", w.namespace+"/"+w.name, "err", err)
		}
		w.statusMu.Lock()
		if w.pending == nil {
			w.pending = s
		}
		w.statusMu.Unlock()
		w.a.sleep(ctx, pause)
		pause = min(2*pause, 10*time.Second)
	}
}

// writeStatus puts s over the object's newest version, keeping what others own.
func (w *worker) writeStatus(ctx context.Context, s *corev1.PodStatus) error {
	for range 5 {
		cur := w.pod()
		next := cur.DeepCopy()
		next.Status = mergeStatus(&cur.Status, s)
		o, err := w.a.cfg.Client.Update(ctx, kind.Pod, next, "status", metav1.UpdateOptions{})
		switch {
		case err == nil:
			if p, ok := o.(*corev1.Pod); ok {
				w.saw(p)
			}
			return nil
		case apierrors.IsNotFound(err):
			return nil
		case apierrors.IsConflict(err):
			o, gerr := w.a.cfg.Client.Get(ctx, kind.Pod, w.namespace, w.name, metav1.GetOptions{})
			if apierrors.IsNotFound(gerr) {
				return nil
			}
			if gerr != nil {
				return gerr
			}
			p := o.(*corev1.Pod)
			if p.UID != w.uid {
				return nil
			}
			w.mu.Lock()
			w.latest = p
			w.mu.Unlock()
		default:
			return err
		}
	}
	return errors.New("write status: the object changes faster than it can be written")
}

func mergeStatus(cur, s *corev1.PodStatus) corev1.PodStatus {
	out := *s.DeepCopy()
	for _, c := range cur.Conditions {
		if !slices.Contains(pod.OwnConditions, c.Type) {
			out.Conditions = append(out.Conditions, c)
		}
	}
	if out.NominatedNodeName == "" {
		out.NominatedNodeName = cur.NominatedNodeName
	}
	return out
}

func (w *worker) deletePod(ctx context.Context) pod.Event {
	w.statusMu.Lock()
	idle := w.statusIdle
	w.statusMu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
		return nil
	}
	zero := int64(0)
	uid := w.uid
	err := w.a.cfg.Client.Delete(ctx, kind.Pod, w.namespace, w.name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid}})
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		// The object is gone, or another one has its name. The view tells the rest.
		if p := view.Get[*corev1.Pod](w.a.cfg.View.Snapshot(), kind.Pod, w.namespace, w.name); p == nil || p.UID != w.uid {
			w.post(pod.Removed{})
		}
		return pod.Deleted{}
	}
	return pod.Deleted{Err: err.Error()}
}
