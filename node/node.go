// Package node is one machine's agent, the kubelet's role: it registers the
// Node, keeps its lease, and drives every pod bound to it through the step
// machine of package node/pod, by means of an Engine (CRI), volumes and probes.
//
//	view (pods of this node) ──▶ worker per pod ──▶ pod.Step ──▶ effects ──▶ engine, volumes, API
//	                                   ▲                                       │
//	                                   └────────────── events ◀────────────────┘
//
// Everything is driven by events; the only timers are those that the machine
// asks for, the lease (10 s), log rotation and the watch on disk and memory. A
// restarted agent adopts what runs. The agent knows the API only through
// client.Client and view.View and never imports the server side.
//
// Directories: DataDir/pods/<uid> (see node/volume), LogDir/<ns>_<name>_<uid>/
// <container>/<restarts>.log in the CRI log format.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/node/pod"
	"proa.dev/node/probe"
	"proa.dev/node/volume"
	"proa.dev/view"
)

// Config of an agent. Name, Client, View, Engine, DataDir, LogDir and HostIPs are
// required.
type Config struct {
	Name   string
	Client client.Client
	// View holds at least the pods of this node and the services; it is loaded
	// before Run. With Shared it is a server's own, complete view, from which
	// ConfigMaps and Secrets are read; otherwise they are asked for by Client.
	View   *view.View
	Shared bool

	Engine  Engine
	Streams Streams
	// Drain returns when no data plane sends new connections to the pod. Nil: at
	// once. The agent bounds the wait.
	Drain func(ctx context.Context, p *corev1.Pod) error

	Clock env.Clock // default env.SystemClock()
	Rand  env.Rand  // default env.SystemRand()
	Log   *slog.Logger

	DataDir string // absolute
	LogDir  string // absolute
	// LogLinkDir gets a symlink for each container's log, named as collectors
	// expect (/var/log/containers); "" for none.
	LogLinkDir string

	ClusterDNS    []string // addresses for pods' resolv.conf
	ClusterDomain string   // default "cluster.local"
	ResolvConf    string   // the host's; default /etc/resolv.conf
	HostIPs       []string // first is the primary address
	Hostname      string   // default Name

	MaxPods    int32               // default 110
	Reserved   corev1.ResourceList // kept from allocatable
	Labels     map[string]string   // extra labels of the Node
	Taints     []corev1.Taint      // of a newly registered Node
	ProviderID string              // default "proa://<name>"
	Version    string              // kubeletVersion; default "v1.37.2"
	Port       int32               // of the agent's HTTPS server in daemonEndpoints; default 10250

	// Parallel bounds container starts on their way; default 2 × CPUs, at least 4.
	Parallel int
	// Pulls bounds image pulls on their way; default 5.
	Pulls int

	LogMaxBytes int64 // rotation; default 10 MiB
	LogMaxFiles int   // default 5

	Eviction Eviction
}

func (c *Config) check() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("configure node agent: %s is missing", what))
		}
	}
	need(c.Name != "", "Name")
	need(c.Client != nil, "Client")
	need(c.View != nil, "View")
	need(c.Engine != nil, "Engine")
	need(filepath.IsAbs(c.DataDir), "an absolute DataDir")
	need(filepath.IsAbs(c.LogDir), "an absolute LogDir")
	need(len(c.HostIPs) > 0, "HostIPs")
	if c.Clock == nil {
		c.Clock = env.SystemClock()
	}
	if c.Rand == nil {
		c.Rand = env.SystemRand()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.ClusterDomain, "cluster.local")
	def(&c.ResolvConf, "/etc/resolv.conf")
	def(&c.Hostname, c.Name)
	def(&c.ProviderID, "proa://"+c.Name)
	def(&c.Version, "v1.37.2")
	if c.MaxPods == 0 {
		c.MaxPods = 110
	}
	if c.Port == 0 {
		c.Port = 10250
	}
	if c.Parallel == 0 {
		c.Parallel = max(4, 2*runtime.NumCPU())
	}
	if c.Pulls == 0 {
		c.Pulls = 5
	}
	if c.LogMaxBytes == 0 {
		c.LogMaxBytes = 10 << 20
	}
	if c.LogMaxFiles == 0 {
		c.LogMaxFiles = 5
	}
	c.Eviction.defaults(c.DataDir)
	return errors.Join(errs...)
}

// Agent runs the pods of one node.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	clock   env.Clock
	volumes *volume.Manager
	prober  *probe.Prober
	events  *recorder
	starts  chan struct{} // semaphore
	pulls   chan struct{}
	machine machineFacts

	group sync.WaitGroup

	mu      sync.Mutex
	ctx     context.Context
	workers map[types.UID]*worker
	node    *corev1.Node                           // as last written
	pressed struct{ memory, disk, pids time.Time } // last measured
	poke    chan struct{}
	pods    chan struct{} // the set of pods has changed
	ready   chan struct{} // closed when adoption is done
}

// New checks cfg and returns an agent that does nothing yet: call Run.
func New(cfg Config) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, log: cfg.Log, clock: cfg.Clock, workers: map[types.UID]*worker{},
		starts: make(chan struct{}, cfg.Parallel), pulls: make(chan struct{}, cfg.Pulls),
		poke: make(chan struct{}, 1), pods: make(chan struct{}, 1), ready: make(chan struct{})}
	a.machine = readMachine(cfg.DataDir)
	a.volumes = volume.New(volume.Config{Root: filepath.Join(cfg.DataDir, "pods"), Object: a.object, Token: a.token,
		Allocatable: a.allocatable, Clock: cfg.Clock, Log: cfg.Log})
	a.prober = &probe.Prober{Clock: cfg.Clock, Exec: a.execProbe}
	a.events = newRecorder(cfg.Client, cfg.Clock, cfg.Rand, cfg.Name, cfg.Log)
	return a, nil
}

// Ready is closed when the agent has adopted what it found and handles pods.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run works until ctx ends, and returns when everything it started has ended.
// Pods keep running.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.group.Wait()
	defer cancel()
	a.mu.Lock()
	a.ctx = ctx
	a.mu.Unlock()
	if _, _, err := a.look(); err != nil {
		a.log.Warn("machine's supplies are not known", "err", err)
	}
	stream := a.cfg.Engine.Events(ctx) // before listing, so that nothing is missed between
	if err := a.adopt(ctx); err != nil {
		return err
	}
	close(a.ready)
	a.spawn(func() { a.events.Run(ctx) })
	a.spawn(func() { a.keepNode(ctx) })
	a.spawn(func() { a.keepLease(ctx) })
	a.spawn(func() { a.rotateLogs(ctx) })
	a.spawn(func() { a.guard(ctx) })
	a.spawn(func() { a.keepShares(ctx) })
	a.spawn(func() { a.followEngine(ctx, stream) })
	if a.cfg.Shared {
		for _, k := range []*kind.Kind{kind.ConfigMap, kind.Secret} {
			a.spawn(func() { a.followObjects(ctx, k) })
		}
	} else {
		a.spawn(func() { a.pollObjects(ctx) })
	}
	<-ctx.Done()
	return nil
}

func (a *Agent) spawn(f func()) {
	a.group.Add(1)
	go func() {
		defer a.group.Done()
		f()
	}()
}

// sleep waits d on the agent's clock; false when ctx ended first.
func (a *Agent) sleep(ctx context.Context, d time.Duration) bool {
	return env.Sleep(ctx, a.clock, d)
}

// followPods brings changes of this node's pods to their workers.
func (a *Agent) followPods(ctx context.Context, from int64) {
	for {
		changes, progress, more, err := a.cfg.View.Changes(kind.Pod, from)
		if errors.Is(err, view.ErrGone) {
			from = a.relist(ctx)
			continue
		}
		for _, c := range changes {
			a.podChanged(c)
		}
		from = progress
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) podChanged(c *view.Change) {
	if c.New == nil {
		last := c.Last
		if last == nil {
			last = c.Old
		}
		if p, ok := last.(*corev1.Pod); ok {
			a.gone(p)
		}
		return
	}
	p, ok := c.New.(*corev1.Pod)
	if !ok {
		return
	}
	if old, ok := c.Old.(*corev1.Pod); ok && old != nil && old.UID != p.UID {
		a.gone(old)
	}
	if p.Spec.NodeName == a.cfg.Name {
		a.offer(p, nil)
	}
}

// relist compares all workers with the view.
func (a *Agent) relist(ctx context.Context) int64 {
	s := a.cfg.View.Snapshot()
	seen := map[types.UID]bool{}
	for p := range s.PodsOn(a.cfg.Name) {
		seen[p.UID] = true
		a.offer(p, nil)
	}
	a.mu.Lock()
	var lost []*worker
	for uid, w := range a.workers {
		if !seen[uid] {
			lost = append(lost, w)
		}
	}
	a.mu.Unlock()
	for _, w := range lost {
		w.post(pod.Removed{})
	}
	return s.Revision()
}

// offer gives a pod's newest version to its worker, making one if needed.
func (a *Agent) offer(p *corev1.Pod, found *pod.Adopted) {
	a.mu.Lock()
	w := a.workers[p.UID]
	if w != nil {
		a.mu.Unlock()
		w.saw(p)
		w.post(pod.Update{Pod: p})
		return
	}
	w = newWorker(a, p)
	a.workers[p.UID] = w
	a.recount()
	ctx := a.ctx
	a.mu.Unlock()
	w.post(pod.Update{Pod: p})
	switch {
	case found != nil:
		w.post(*found)
	case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		w.post(pod.Admitted{})
	default:
		if reason, message := a.admit(p); reason != "" && p.DeletionTimestamp == nil {
			w.post(pod.Rejected{Reason: reason, Message: "Pod was rejected: " + message})
		} else {
			w.post(pod.Admitted{})
		}
	}
	a.spawn(func() { w.run(ctx) })
}

func (a *Agent) gone(p *corev1.Pod) {
	a.mu.Lock()
	w := a.workers[p.UID]
	a.mu.Unlock()
	if w != nil {
		w.post(pod.Removed{Last: p})
	}
}

func (a *Agent) worker(uid types.UID) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid]
}

func (a *Agent) drop(w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.workers[w.uid] == w {
		delete(a.workers, w.uid)
	}
	a.recount()
}

// all workers, in the order of their pods' names.
func (a *Agent) all() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w)
	}
	slices.SortFunc(out, func(x, y *worker) int {
		if x.namespace != y.namespace {
			return compare(x.namespace, y.namespace)
		}
		return compare(x.name, y.name)
	})
	return out
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// object reads a ConfigMap or Secret.
func (a *Agent) object(ctx context.Context, k *kind.Kind, namespace, name string) (kind.Object, error) {
	if !a.cfg.Shared {
		return a.cfg.Client.Get(ctx, k, namespace, name, metav1.GetOptions{})
	}
	if o := a.cfg.View.Snapshot().Get(k, namespace, name); o != nil {
		return o, nil
	}
	return nil, apierrors.NewNotFound(k.GroupResource(), name)
}

// followObjects wakes the pods that use an object that changed.
func (a *Agent) followObjects(ctx context.Context, k *kind.Kind) {
	from := a.cfg.View.Snapshot().Revision()
	for {
		changes, progress, more, err := a.cfg.View.Changes(k, from)
		if errors.Is(err, view.ErrGone) {
			from = a.cfg.View.Snapshot().Revision()
			for _, w := range a.all() {
				w.refresh(true)
			}
			continue
		}
		touched := map[string]bool{}
		for _, c := range changes {
			r := c.Ref()
			touched[r.Namespace+"/"+r.Name] = true
		}
		if len(touched) > 0 {
			for _, w := range a.all() {
				if w.uses(k, touched) {
					w.refresh(true)
				}
			}
		}
		from = progress
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

// pollObjects stands in for followObjects where the view does not hold
// ConfigMaps and Secrets.
func (a *Agent) pollObjects(ctx context.Context) {
	for a.sleep(ctx, time.Minute) {
		for _, w := range a.all() {
			w.refresh(true)
		}
	}
}

// followEngine turns the engine's events into the machines' ones.
func (a *Agent) followEngine(ctx context.Context, stream <-chan *runtimeapi.ContainerEventResponse) {
	for {
		select {
		case e, ok := <-stream:
			if !ok {
				if ctx.Err() != nil || !a.sleep(ctx, 100*time.Millisecond) {
					return
				}
				stream = a.cfg.Engine.Events(ctx)
				a.reconcile(ctx)
				continue
			}
			a.engineEvent(e)
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) engineEvent(e *runtimeapi.ContainerEventResponse) {
	if e.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
		return
	}
	sandbox := e.PodSandboxStatus
	w := a.worker(types.UID(sandbox.GetMetadata().GetUid()))
	if w == nil {
		return
	}
	if sandbox.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		w.sandboxLost(sandbox.Id, e.ContainersStatuses)
		return
	}
	for _, c := range e.ContainersStatuses {
		if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			w.exited(c)
		}
	}
}

// reconcile looks at every container once, after events were lost.
func (a *Agent) reconcile(ctx context.Context) {
	list, err := a.cfg.Engine.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		a.log.Warn("containers cannot be listed; exits may be noticed late", "err", err)
		return
	}
	for _, c := range list.Containers {
		w := a.worker(types.UID(c.Labels[labelPodUID]))
		if w == nil || c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			continue
		}
		if s, err := a.cfg.Engine.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id}); err == nil {
			w.exited(s.Status)
		}
	}
	boxes, err := a.cfg.Engine.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return
	}
	for _, s := range boxes.Items {
		w := a.worker(types.UID(s.Labels[labelPodUID]))
		if w == nil || s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			continue
		}
		if st, err := a.cfg.Engine.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id}); err == nil {
			w.sandboxLost(s.Id, st.ContainersStatuses)
		}
	}
}
