// Package proxy brings services to life on one node: it follows the view, has
// package rule compile the services that changed, and puts the difference into
// the kernel, one transaction for all that changed meanwhile.
//
//	view ──changes──▶ dirty services ──rule.State──▶ delta ──Kernel.Apply──▶ nftables
//	                                                           │
//	                              WaitLive, WaitRemoved ◀──────┘ once it is live
//
// What a change costs depends on its own size (docs/decisions/0006-service-proxy.md).
// The table is checked in the background and made anew if someone changed it.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/proxy/rule"
	"proa.dev/view"
)

// Config says what a proxy follows and where its rules go.
type Config struct {
	// NodeName is this node's name in the API. Required.
	NodeName string
	// View is the source of services, endpoint slices and this node. It must be
	// loaded before Run. Required.
	View *view.View
	// Kernel takes the rules. Required. Only this proxy may use it while Run runs.
	Kernel *Kernel
	// Listen opens a health check port on all addresses. Default: net.Listen.
	Listen func(port uint16) (net.Listener, error)
	// Clock default: the machine's.
	Clock env.Clock
	// VerifyEvery is the time between two looks at whether someone has changed the
	// table. Default: 5 s.
	VerifyEvery time.Duration
	// Log default: slog.Default().
	Log *slog.Logger
}

// Check returns every problem of a configuration.
func (c Config) Check() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("nodeName: must be set"))
	}
	if c.View == nil {
		errs = append(errs, errors.New("view: must be set"))
	}
	if c.Kernel == nil {
		errs = append(errs, errors.New("kernel: must be set"))
	}
	if c.VerifyEvery < 0 {
		errs = append(errs, fmt.Errorf("verifyEvery: %s: must not be negative", c.VerifyEvery))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("proxy configuration: %w", err)
	}
	return nil
}

// Proxy is one node's service proxy.
type Proxy struct {
	cfg   Config
	nudge chan struct{}

	// of Run's goroutine
	state    *rule.State
	slices   map[types.NamespacedName]map[string]bool // by service
	seen     map[*kind.Kind]int64
	health   *healthServers
	cutter   *cutter
	lastGen  uint32
	lastDeep time.Time
	// what has been compiled since the kernel last took everything
	unlive    map[types.NamespacedName]bool
	unliveAll bool

	mu     sync.Mutex
	live   int64             // revision whose services the kernel has
	pods   map[types.UID]int // by how many services they are used, ready
	podsOf map[types.NamespacedName]map[types.UID]bool
	moved  chan struct{} // closed when one of the above changes
	ready  chan struct{} // closed after the first fill
}

// followed kinds, in no order.
var followed = []*kind.Kind{kind.Service, kind.EndpointSlice, kind.Node}

// New makes a proxy; Run sets it going.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.VerifyEvery == 0 {
		cfg.VerifyEvery = 5 * time.Second
	}
	if cfg.Listen == nil {
		cfg.Listen = func(port uint16) (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) }
	}
	return &Proxy{cfg: cfg, cutter: newCutter(cfg.Kernel, cfg.Log), nudge: make(chan struct{}, 1), live: -1, pods: map[types.UID]int{},
		moved: make(chan struct{}), ready: make(chan struct{}), slices: map[types.NamespacedName]map[string]bool{}, unlive: map[types.NamespacedName]bool{}, seen: map[*kind.Kind]int64{}}, nil
}

// Ready is closed once the kernel has the rules of the first snapshot.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// retryDelay is the pause after the kernel refused a change.
const retryDelay = time.Second

// deepEvery bounds how often all elements are compared, however often others
// change their own tables.
const deepEvery = 2 * time.Minute

// Run follows the view until ctx ends. Rules stay in the kernel: connections go on
// while proa restarts. It may be called once.
func (p *Proxy) Run(ctx context.Context) error {
	p.health = newHealthServers(p.cfg.Listen, p.cfg.Log)
	defer p.health.close()
	cutCtx, stopCutting := context.WithCancel(ctx)
	var cutting sync.WaitGroup
	cutting.Go(func() { p.cutter.run(cutCtx) })
	defer func() {
		stopCutting()
		cutting.Wait()
	}()

	whole := true // the kernel is to be filled, not changed
	retry := p.cfg.Clock.NewTimer(retryDelay)
	defer retry.Stop()
	verify := p.cfg.Clock.NewTimer(p.cfg.VerifyEvery)
	defer verify.Stop()
	for {
		batch, err := p.gather()
		if err != nil {
			return err
		}
		if err := p.put(batch, &whole); err != nil {
			p.cfg.Log.Error("service rules are behind; the kernel refused a change, trying again", "err", err)
			retry.Reset(retryDelay)
			select {
			case <-ctx.Done():
				return nil
			case <-retry.C():
			}
			continue
		}
		// Several changes at once wake this once; while the kernel is busy, more
		// gather and go together. No waiting for more: the first is never late.
		wake := make([]<-chan struct{}, len(batch.more))
		copy(wake, batch.more)
		select {
		case <-ctx.Done():
			return nil
		case <-wake[0]:
		case <-wake[1]:
		case <-wake[2]:
		case <-p.nudge:
		case <-verify.C():
			if err := p.verify(); err != nil {
				p.cfg.Log.Warn("service rules were changed by someone else; making them anew", "table", p.cfg.Kernel.cfg.Table, "err", err)
				whole = true
			}
			verify.Reset(p.cfg.VerifyEvery)
		}
	}
}

// batch is what is to be done next.
type batch struct {
	revision int64
	dirty    map[types.NamespacedName]bool
	all      bool
	more     []<-chan struct{}
	snapshot view.Snapshot
}

// gather collects the services that changed since the last time.
func (p *Proxy) gather() (batch, error) {
	b := batch{dirty: map[types.NamespacedName]bool{}, all: p.state == nil}
	for i, k := range followed {
		changes, progress, more, err := p.cfg.View.Changes(k, p.seen[k])
		switch {
		case errors.Is(err, view.ErrGone):
			b.all = true
			rev, _ := p.cfg.View.Moved()
			if _, progress, more, err = p.cfg.View.Changes(k, rev); err != nil {
				return b, fmt.Errorf("follow %s: %w", k, err)
			}
			progress = min(progress, rev)
		case err != nil:
			return b, fmt.Errorf("follow %s: %w", k, err)
		}
		for _, c := range changes {
			for _, o := range []kind.Object{c.Old, c.New} {
				p.mark(&b, k, o, o == c.New)
			}
		}
		p.seen[k] = progress
		if i == 0 || progress < b.revision {
			b.revision = progress
		}
		b.more = append(b.more, more)
	}
	b.snapshot = p.cfg.View.Snapshot() // not older than any of the above
	return b, nil
}

func (p *Proxy) mark(b *batch, k *kind.Kind, o kind.Object, isNew bool) {
	switch o := o.(type) {
	case *corev1.Service:
		if o != nil {
			b.dirty[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = true
		}
	case *discoveryv1.EndpointSlice:
		if o == nil {
			return
		}
		name, ok := serviceOf(o)
		if !ok {
			return
		}
		b.dirty[name] = true
		p.index(name, o.Name, isNew)
	case *corev1.Node:
		if o != nil && o.Name == p.cfg.NodeName && p.state != nil && isNew && o.Labels[corev1.LabelTopologyZone] != p.state.Node().Zone {
			b.all = true
		}
	}
}

func (p *Proxy) index(service types.NamespacedName, slice string, present bool) {
	if present {
		if p.slices[service] == nil {
			p.slices[service] = map[string]bool{}
		}
		p.slices[service][slice] = true
		return
	}
	delete(p.slices[service], slice)
	if len(p.slices[service]) == 0 {
		delete(p.slices, service)
	}
}

func serviceOf(s *discoveryv1.EndpointSlice) (types.NamespacedName, bool) {
	name := s.Labels[discoveryv1.LabelServiceName]
	return types.NamespacedName{Namespace: s.Namespace, Name: name}, name != ""
}

func (p *Proxy) input(s view.Snapshot, name types.NamespacedName) rule.Service {
	in := rule.Service{Service: view.Get[*corev1.Service](s, kind.Service, name.Namespace, name.Name)}
	for _, slice := range slices.Sorted(maps.Keys(p.slices[name])) {
		if e := view.Get[*discoveryv1.EndpointSlice](s, kind.EndpointSlice, name.Namespace, slice); e != nil {
			in.Slices = append(in.Slices, e)
		}
	}
	return in
}

// put compiles a batch and brings it into the kernel. whole says that the kernel
// does not have what the state says; it is cleared once it does.
func (p *Proxy) put(b batch, whole *bool) error {
	started := p.cfg.Clock.Now()
	maps.Copy(p.unlive, b.dirty)
	p.unliveAll = p.unliveAll || b.all
	delta := rule.Delta{}
	if b.all {
		before := rule.RuleSet{}
		if p.state != nil {
			before = p.state.Rules()
		}
		p.compileAll(b.snapshot)
		delta = rule.Diff(before, p.state.Rules())
	} else {
		for name := range b.dirty {
			delta.Then(p.state.Set(name, p.input(b.snapshot, name)))
			for _, d := range p.state.Lost(name) {
				p.cfg.Log.Warn("service shares an address with an older one, which keeps it", "service", name, "address", d.String())
			}
		}
	}

	var err error
	if !*whole {
		if err = p.cfg.Kernel.Apply(delta); err != nil {
			p.cfg.Log.Warn("service rules were not as left; making them anew", "table", p.cfg.Kernel.cfg.Table, "err", err)
			*whole = true
		}
	}
	if *whole {
		if err = p.cfg.Kernel.Replace(p.state.Rules()); err != nil {
			return err
		}
		*whole = false
		p.lastDeep = p.cfg.Clock.Now()
	}
	if len(delta) > 0 {
		// One transaction is one step; more steps are someone else's, to be verified.
		if gen, err := p.cfg.Kernel.Generation(); err == nil && gen == p.lastGen+1 {
			p.lastGen = gen
		}
		p.cutter.add(delta.UDPEndpoints())
		p.cfg.Log.Debug("service rules changed", "services", len(b.dirty), "elements", len(delta), "took", p.cfg.Clock.Now().Sub(started))
	}
	p.publish(b)
	return nil
}

func (p *Proxy) compileAll(s view.Snapshot) {
	node := rule.Node{Name: p.cfg.NodeName}
	if n := view.Get[*corev1.Node](s, kind.Node, "", p.cfg.NodeName); n != nil {
		node.Zone = n.Labels[corev1.LabelTopologyZone]
	}
	clear(p.slices)
	for e := range view.List[*discoveryv1.EndpointSlice](s, kind.EndpointSlice, "") {
		if name, ok := serviceOf(e); ok {
			p.index(name, e.Name, true)
		}
	}
	p.state = rule.NewState(node)
	for svc := range view.List[*corev1.Service](s, kind.Service, "") {
		name := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
		p.state.Set(name, p.input(s, name))
	}
}

// publish tells waiters what the kernel has now.
func (p *Proxy) publish(b batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unliveAll {
		p.health.reset()
		clear(p.pods)
		p.podsOf = map[types.NamespacedName]map[types.UID]bool{}
		for name, part := range p.state.Parts() {
			p.account(name, part)
		}
	}
	for name := range p.unlive {
		p.account(name, p.state.Part(name))
	}
	clear(p.unlive)
	p.unliveAll = false
	p.live = b.revision
	close(p.moved)
	p.moved = make(chan struct{})
	select {
	case <-p.ready:
	default:
		close(p.ready)
	}
}

// account notes which pods a service uses and what its health check says.
func (p *Proxy) account(name types.NamespacedName, part *rule.Part) {
	for uid := range p.podsOf[name] {
		if p.pods[uid]--; p.pods[uid] == 0 {
			delete(p.pods, uid)
		}
	}
	delete(p.podsOf, name)
	if part == nil {
		p.health.set(name, 0, 0)
		return
	}
	for uid := range part.Pods {
		p.pods[uid]++
	}
	if len(part.Pods) > 0 {
		p.podsOf[name] = part.Pods
	}
	p.health.set(name, part.HealthPort, part.LocalEndpoints)
}

// verify looks whether someone else has changed the table.
func (p *Proxy) verify() error {
	gen, err := p.cfg.Kernel.Generation()
	if err != nil || gen == p.lastGen {
		return err
	}
	if err := p.cfg.Kernel.VerifyFrame(); err != nil {
		return err
	}
	now := p.cfg.Clock.Now()
	if now.Sub(p.lastDeep) < deepEvery {
		return nil // look again
	}
	if err := p.cfg.Kernel.VerifyRules(p.state.Rules()); err != nil {
		return err
	}
	p.lastDeep, p.lastGen = now, gen
	return nil
}

// WaitRemoved returns once the rules in the kernel send no new connection to the
// pod: everything that the view holds now is live, and no service uses the pod as
// a ready endpoint. A pod that serves no service is removed at once. A pod that is
// terminating and the last resort of a service counts as removed: there is nothing
// to wait for. The error is ctx's, with the reason to wait.
//
// Call it with a view that contains the pod's deletion.
func (p *Proxy) WaitRemoved(ctx context.Context, pod types.UID) error {
	fence, _ := p.cfg.View.Moved()
	err := p.wait(ctx, fence, func() string {
		if n := p.pods[pod]; n > 0 {
			return fmt.Sprintf("%d services use it", n)
		}
		return ""
	}, "wait for the removal of pod", pod)
	if err != nil {
		return err
	}
	// UDP clients that talk to it already are cut off too.
	return p.cutter.wait(ctx)
}

// WaitDrained returns once no service sends new connections to a pod that is being
// deleted, and none will: the slices of every service that selects it say that it
// terminates (before that, a slice made from a state without the deletion could
// still come and bring the pod back), and the kernel has them. The error is ctx's,
// with the reason to wait.
func (p *Proxy) WaitDrained(ctx context.Context, pod *corev1.Pod) error {
	for {
		_, moved := p.cfg.View.Moved()
		name := unaware(p.cfg.View.Snapshot(), pod)
		if name == "" {
			return p.WaitRemoved(ctx, pod.UID)
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for the removal of pod %q: the endpoints of service %q do not know of its end yet: %w", pod.Name, name, ctx.Err())
		}
	}
}

// unaware names a service of the pod whose slices do not say yet that it
// terminates.
func unaware(s view.Snapshot, pod *corev1.Pod) string {
services:
	for o := range s.Selecting(kind.Service, pod.Namespace, pod.Labels) {
		svc := o.(*corev1.Service)
		if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
			continue
		}
		for slice := range view.Owned[*discoveryv1.EndpointSlice](s, string(svc.UID), kind.EndpointSlice) {
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				if e.TargetRef != nil && e.TargetRef.UID == pod.UID && e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					continue services
				}
			}
		}
		return svc.Name
	}
	return ""
}

// WaitLive returns once the rules in the kernel send new connections of at least
// one service to the pod.
func (p *Proxy) WaitLive(ctx context.Context, pod types.UID) error {
	return p.wait(ctx, -1, func() string {
		if p.pods[pod] == 0 {
			return "no service uses it"
		}
		return ""
	}, "wait for endpoints of pod", pod)
}

// WaitRevision returns once the kernel has everything that the view held at
// revision.
func (p *Proxy) WaitRevision(ctx context.Context, revision int64) error {
	return p.wait(ctx, revision, func() string { return "" }, "wait for service rules of revision", revision)
}

func (p *Proxy) wait(ctx context.Context, fence int64, missing func() string, deed string, thing any) error {
	for {
		p.mu.Lock()
		why := missing()
		if p.live < fence {
			why = fmt.Sprintf("the kernel has revision %d, not yet %d", p.live, fence)
		}
		moved := p.moved
		behind := p.live < fence
		p.mu.Unlock()
		if why == "" {
			return nil
		}
		if behind {
			// Nothing of ours may have changed up to the fence: have Run look.
			select {
			case p.nudge <- struct{}{}:
			default:
			}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%s %v: %s: %w", deed, thing, why, ctx.Err())
		}
	}
}
