// Package fair is API Priority and Fairness: it decides which request may work
// now, which waits and which is sent away, so that one noisy client cannot take
// the server from the others (KEP-1040; Kubernetes docs, "API Priority and
// Fairness").
//
// A request is classified by the first FlowSchema that matches it. The schema
// names a priority level; a level has seats: its share of MaxInFlight +
// MaxMutating, with what it borrows from levels that need less. Within a level the
// flows (schema and distinguisher) are dealt to a few of its queues each, and the
// queues take turns by virtual time, so that each gets the same service whatever
// it asks for. A wide request (a list of many objects) takes several seats.
//
// Bounds: a queue holds QueueLengthLimit requests, a request waits WaitLimit (15 s)
// at most. Errors: *Rejected. Units: seats, seconds.
//
// The decision (level, share) is deterministic: it has no clock and no randomness
// of its own. Configuration comes from a snapshot (Configure); Keeper keeps the
// mandatory and suggested objects and the Dangling conditions.
//
// Requests of parts in the server's own process (apiserver.Local) do not pass
// here: they are bounded by what runs them.
//
// Unlike upstream, a write does not hold seats for the watchers that it wakes: the
// frame of a change is made once for all watchers alike (docs/decisions/0013).
package fair

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
)

// Config of a Dispatcher.
type Config struct {
	// Seats of the whole server: MaxInFlight + MaxMutatingInFlight (0: 600).
	Seats int
	// WaitLimit of one request in its queue (0: 15 s, a quarter of upstream's
	// request timeout).
	WaitLimit time.Duration
	Clock     env.Clock // nil: the system's
}

// period of the adjustment of borrowed seats.
const period = 10 * time.Second

// Dispatcher admits requests. New makes it with the mandatory and suggested
// configuration; it starts nothing.
type Dispatcher struct {
	clock env.Clock
	seats int
	wait  time.Duration

	config   atomic.Pointer[config]
	mu       sync.Mutex // one Configure or borrow at a time
	adjusted atomic.Int64
	fraction atomic.Uint64
	metrics  *metrics
}

// config is one immutable state of the objects; levels live on across configs.
type config struct {
	flows   []*flow // in order of precedence, the catch-all last
	levels  []*level
	nominal int // sum over levels
}

// New makes a Dispatcher.
func New(c Config) *Dispatcher {
	if c.Seats <= 0 {
		c.Seats = 600
	}
	if c.WaitLimit <= 0 {
		c.WaitLimit = 15 * time.Second
	}
	if c.Clock == nil {
		c.Clock = env.SystemClock()
	}
	d := &Dispatcher{clock: c.Clock, seats: c.Seats, wait: c.WaitLimit}
	d.metrics = newMetrics(d)
	d.adjusted.Store(d.clock.Now().UnixNano())
	schemas, levels := Wanted()
	d.Configure(schemas, levels)
	return d
}

// Wanted are the mandatory and suggested objects. They must not be changed.
func Wanted() (schemas []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration) {
	return append(slices.Clone(bootstrap.MandatoryFlowSchemas), bootstrap.SuggestedFlowSchemas...),
		append(slices.Clone(bootstrap.MandatoryPriorityLevelConfigurations), bootstrap.SuggestedPriorityLevelConfigurations...)
}

// shapeOf reads a level's specification; ok false when it contradicts itself.
func shapeOf(p *flowcontrolv1.PriorityLevelConfiguration) (s Shape, shares, lend int32, borrow *int32, ok bool) {
	shares = 30
	switch {
	case p.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt && p.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt:
		s.Exempt, shares = true, 0
		if e := p.Spec.Exempt; e != nil {
			shares, lend = or(e.NominalConcurrencyShares, 0), or(e.LendablePercent, 0)
		}
		return s, shares, lend, nil, true
	case p.Spec.Type == flowcontrolv1.PriorityLevelEnablementLimited && p.Spec.Limited != nil:
		l := p.Spec.Limited
		if q := l.LimitResponse.Queuing; l.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue {
			s.Queues, s.HandSize, s.QueueLength = 64, 8, 50
			if q != nil {
				s = Shape{Queues: int(q.Queues), HandSize: int(q.HandSize), QueueLength: int(q.QueueLengthLimit)}
			}
			if s.Queues < 1 || s.HandSize < 1 || s.HandSize > s.Queues || s.QueueLength < 1 {
				return s, 0, 0, nil, false
			}
		} else if q != nil {
			return s, 0, 0, nil, false
		}
		return s, or(l.NominalConcurrencyShares, 30), or(l.LendablePercent, 0), l.BorrowingLimitPercent, true
	}
	return s, 0, 0, nil, false
}

func or(p *int32, otherwise int32) int32 {
	if p == nil {
		return otherwise
	}
	return *p
}

// Configure takes the objects over. The mandatory ones are imagined where they
// are missing; a schema whose level is missing or broken does not match; requests
// in work and waiting stay where they are.
func (d *Dispatcher) Configure(schemas []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := map[string]*level{}
	if c := d.config.Load(); c != nil {
		for _, l := range c.levels {
			old[l.name] = l
		}
	}
	levels = slices.Clone(levels)
	for _, m := range bootstrap.MandatoryPriorityLevelConfigurations {
		if !slices.ContainsFunc(levels, func(p *flowcontrolv1.PriorityLevelConfiguration) bool { return p.Name == m.Name }) {
			levels = append(levels, m)
		}
	}
	c := &config{}
	now := d.clock.Now()
	type made struct {
		*level
		uid          string
		shape        Shape
		shares, lend int32
		borrow       *int32
		fresh        bool
	}
	var all []made
	total := 0.0
	named := map[string]made{}
	for _, p := range levels {
		shape, shares, lend, limit, ok := shapeOf(p)
		if !ok {
			continue
		}
		m := made{old[p.Name], string(p.UID), shape, shares, lend, limit, false}
		if m.level == nil {
			m.level, m.fresh = &level{name: p.Name, at: now}, true
		}
		delete(old, p.Name)
		all = append(all, m)
		named[p.Name] = m
		total += float64(shares)
	}
	for _, m := range all {
		l := m.level
		l.mu.Lock()
		l.advance(now)
		l.reshape(m.shape)
		l.quiescing = false
		l.nominal = 0
		if total > 0 {
			l.nominal = int(math.Ceil(float64(d.seats) * float64(m.shares) / total))
		}
		lendable := int(math.Round(float64(l.nominal) * float64(m.lend) / 100))
		l.lower = l.nominal - lendable
		l.upper = l.nominal + d.seats
		if m.borrow != nil {
			l.upper = l.nominal + int(math.Round(float64(l.nominal)*float64(*m.borrow)/100))
		}
		l.maxSeats = 1
		if m.shape.Queues > 0 {
			l.maxSeats = max(1, min(int(math.Ceil(float64(l.nominal)*0.15)), l.nominal/m.shape.HandSize))
		}
		if m.fresh {
			l.limit = l.nominal - lendable/2
		} else {
			l.limit = min(max(l.limit, l.lower), l.upper)
			l.dispatch(now)
		}
		c.nominal += l.nominal
		l.mu.Unlock()
		c.levels = append(c.levels, l)
	}
	for _, l := range old {
		// A level that is gone stays until its last request has ended.
		l.mu.Lock()
		busy := l.executing+l.waiting > 0
		l.quiescing = true
		l.mu.Unlock()
		if busy {
			c.levels = append(c.levels, l)
			c.nominal += l.nominal
		}
	}
	slices.SortFunc(c.levels, func(a, b *level) int { return compare(a.name, b.name) })
	schemas = slices.Clone(schemas)
	slices.SortFunc(schemas, bySchema)
	for _, m := range bootstrap.MandatoryFlowSchemas {
		if slices.ContainsFunc(schemas, func(s *flowcontrolv1.FlowSchema) bool { return s.Name == m.Name }) {
			continue
		}
		if m.Name == flowcontrolv1.FlowSchemaNameExempt {
			schemas = append([]*flowcontrolv1.FlowSchema{m}, schemas...)
		} else {
			schemas = append(schemas, m)
		}
	}
	for _, s := range schemas {
		m, ok := named[s.Spec.PriorityLevelConfiguration.Name]
		if !ok {
			continue
		}
		f := &flow{schema: s, level: m.level, rules: compileRules(s), seed: fnv(14695981039346656037, s.Name+"\x00")}
		if s.Spec.DistinguisherMethod != nil {
			f.by = s.Spec.DistinguisherMethod.Type
		}
		if s.UID != "" {
			f.uid = []string{string(s.UID)}
		}
		if m.uid != "" {
			f.levelUID = []string{m.uid}
		}
		f.m = d.metrics.of(m.name, s.Name)
		c.flows = append(c.flows, f)
	}
	d.borrow(c)
	d.config.Store(c)
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

// Adjust shares the seats anew when the period is over. Begin calls it; whoever
// has a ticker may, too.
func (d *Dispatcher) Adjust(now time.Time) {
	last := d.adjusted.Load()
	if now.UnixNano()-last < int64(period) || !d.adjusted.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.borrow(d.config.Load())
}

// Class is where a request belongs.
type Class struct {
	flow *flow
	// Schema and Level are names.
	Schema, Level string
}

// MaxSeats is the widest that a request at this level may be.
func (c Class) MaxSeats() int { return c.flow.level.maxSeats }

// Exempt requests never wait.
func (c Class) Exempt() bool { return c.flow.level.shape.Exempt }

// UIDs are the values of the response headers X-Kubernetes-PF-FlowSchema-UID and
// -PriorityLevel-UID; nil while the object is imagined. They must not be changed.
func (c Class) UIDs() (schema, level []string) { return c.flow.uid, c.flow.levelUID }

// Classify finds the first schema that matches. Some schema always does.
func (d *Dispatcher) Classify(a *auth.Attributes) Class {
	c := d.config.Load()
	for _, f := range c.flows {
		if f.matches(a) {
			return Class{f, f.schema.Name, f.level.name}
		}
	}
	// Only a changed catch-all can miss a request: it is caught all the same.
	f := c.flows[len(c.flows)-1]
	for _, g := range c.flows {
		if g.schema.Name == flowcontrolv1.FlowSchemaNameCatchAll {
			f = g
		}
	}
	return Class{f, f.schema.Name, f.level.name}
}

// Rejected says why a request was sent away and when it may come again.
type Rejected struct {
	Reason, Schema, Level string
	RetryAfter            int // seconds
}

func (r *Rejected) Error() string {
	return fmt.Sprintf("admit request at priority level %q by flow schema %q: %s; try again in %d s", r.Level, r.Schema, r.Reason, r.RetryAfter)
}

// Ticket is the right to work. End gives it back; the zero Ticket has nothing to
// give back.
type Ticket struct {
	d    *Dispatcher
	f    *flow
	t    *ticket
	kind string
	// Waited in the queue.
	Waited time.Duration
}

var tickets = sync.Pool{New: func() any { return new(ticket) }}

// Begin waits until the request may work. kind is the metric's type of request
// ("regular", "watch").
func (d *Dispatcher) Begin(ctx context.Context, class Class, a *auth.Attributes, seats int, kind string) (Ticket, error) {
	f := class.flow
	l := f.level
	now := d.clock.Now()
	d.Adjust(now)
	t := tickets.Get().(*ticket)
	*t = ticket{seats: max(seats, 1)}
	who := f.distinguisher(a)
	t.info.fill(f, who, a)
	if class.Exempt() {
		l.mu.Lock()
		l.advance(now)
		t.arrived, t.started, t.running = now, now, true
		l.link(t)
		l.executing++
		l.seats += t.seats
		l.dispatched++
		l.demandChanged()
		l.mu.Unlock()
		f.m.began(t.seats, 0)
		return Ticket{d: d, f: f, t: t, kind: kind}, nil
	}
	hash := mix(fnv(f.seed, who))
	f.m.estimated(t.seats)
	l.mu.Lock()
	position, reason := l.arrive(now, hash, t)
	granted, running := t.granted, t.running
	l.mu.Unlock()
	if reason != "" {
		tickets.Put(t)
		return Ticket{}, d.reject(f, reason, now)
	}
	if granted == nil {
		f.m.began(t.seats, 0)
		return Ticket{d: d, f: f, t: t, kind: kind}, nil
	}
	f.m.queued(position, t.seats)
	if !running {
		f.m.noRoom.Inc()
	}
	timer := d.clock.NewTimer(d.wait)
	defer timer.Stop()
	select {
	case <-granted:
	case <-timer.C():
		reason = ReasonTimeout
	case <-ctx.Done():
		reason = ReasonCancelled
	}
	end := d.clock.Now()
	if reason != "" {
		l.mu.Lock()
		left := l.leave(end, t, reason)
		l.mu.Unlock()
		if left {
			f.m.unqueued(t.seats)
			f.m.waitedFor.Observe(end.Sub(now).Seconds())
			return Ticket{}, d.reject(f, reason, end)
		}
		// It was granted at the last moment.
	}
	f.m.unqueued(t.seats)
	f.m.began(t.seats, end.Sub(now))
	return Ticket{d: d, f: f, t: t, kind: kind, Waited: end.Sub(now)}, nil
}

// End gives the seats back. Calling it again does nothing.
func (t *Ticket) End() {
	if t.t == nil {
		return
	}
	e, l := t.t, t.f.level
	t.t = nil
	now := t.d.clock.Now()
	l.mu.Lock()
	if e.q == nil {
		l.advance(now)
		l.unlink(e)
		l.executing--
		l.seats -= e.seats
		l.demandChanged()
	} else {
		l.finish(now, e)
	}
	l.mu.Unlock()
	t.f.m.ended(e.seats, now.Sub(e.started), t.kind)
	*e = ticket{}
	tickets.Put(e)
}

func (d *Dispatcher) reject(f *flow, reason string, now time.Time) error {
	f.m.rejected(reason)
	r := &Rejected{Reason: reason, Schema: f.schema.Name, Level: f.level.name, RetryAfter: f.m.retry.after(now)}
	return r
}

// retry adapts Retry-After to how many were sent away: doubled while more than
// three a second for each second of it were, halved when it calms down.
type retry struct {
	mu     sync.Mutex
	second int64
	count  int
	wait   int
}

const longestRetry = 8 // seconds

func (r *retry) after(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := now.Unix(); s != r.second {
		switch {
		case r.wait == 0 || s > r.second+int64(longestRetry):
			r.wait = 1
		case r.count > 3*r.wait:
			r.wait = min(2*r.wait, longestRetry)
		case r.count < r.wait && r.wait > 1:
			r.wait /= 2
		}
		r.second, r.count = s, 0
	}
	r.count++
	return r.wait
}

func (i *info) fill(f *flow, who string, a *auth.Attributes) {
	*i = info{flow: f, distinguisher: who, user: a.User.Name, verb: a.Verb, path: a.Path, namespace: a.Namespace, name: a.Name,
		resource: a.Resource, sub: a.Subresource, group: a.Group, apiVersion: a.Version}
}
