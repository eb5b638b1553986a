package control

import (
	"container/heap"
	"slices"
	"sort"
	"time"

	"proa.dev/kind"
	"proa.dev/view"
)

// Key is one planned object of one part.
type Key struct {
	Part int
	Ref  view.Ref
}

// Core is the bookkeeping of the runtime without goroutines, clocks or I/O: which
// object is to be planned next, which is being worked on, which waits for an
// instant. The runtime and the simulator drive the same Core.
//
// States of a key: idle → queued → running → idle; a wake while running queues it
// again when it is done. A key with a fence is not handed out before the snapshot
// has reached it.
type Core struct {
	parts   []Part
	sources map[*kind.Kind][]source
	states  map[Key]*state
	queue   []Key
	timers  timers

	// Meter is told how long keys waited and were worked on; nil: nobody is.
	Meter  Meter
	now    time.Time
	counts []Count           // by part
	begun  map[Key]time.Time // when work on the running keys began
}

// Meter measures the keys of each part, as work queues are measured.
type Meter interface {
	// Waited is called when a key is taken, with how long it was queued.
	Waited(part int, d time.Duration)
	// Worked is called when a key is done, with how long that took.
	Worked(part int, d time.Duration)
}

// Count is what has happened to the keys of one part. A key that is woken while it
// is worked on counts as queued.
type Count struct {
	Depth      int           // queued now
	Adds       int64         // ever queued
	Retries    int64         // ever to be planned again by time or after a conflict
	Unfinished time.Duration // sum of what the running ones have taken
	Longest    time.Duration // the most that a running one has taken
}

// source is what a change of one kind means for one part: nil wake, the object
// itself is planned.
type source struct {
	part int
	wake *Wake
	kind *kind.Kind
}

type state struct {
	queued, running, again bool
	failures               int
	fence                  int64
	wake                   time.Time
	since                  time.Time // when it was queued, or woken again
}

// NewCore knows the parts by index.
func NewCore(parts []Part) *Core {
	c := &Core{parts: parts, states: map[Key]*state{}, sources: map[*kind.Kind][]source{}, counts: make([]Count, len(parts)), begun: map[Key]time.Time{}}
	for i := range parts {
		p := &parts[i]
		for _, k := range p.kinds() {
			c.sources[k.Root()] = append(c.sources[k.Root()], source{part: i, kind: k})
		}
		for j := range p.Wakes {
			for _, k := range p.Wakes[j].kinds(p) {
				c.sources[k.Root()] = append(c.sources[k.Root()], source{part: i, wake: &p.Wakes[j], kind: k})
			}
		}
	}
	return c
}

// Kinds that have to be watched; view.Custom stands for all that come at run
// time.
func (c *Core) Kinds() []*kind.Kind {
	var out []*kind.Kind
	for k := range c.sources {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].String() < out[j].String() })
	return out
}

// Wake queues a key.
func (c *Core) Wake(k Key) {
	s := c.states[k]
	if s == nil {
		s = &state{}
		c.states[k] = s
	}
	switch {
	case s.running && !s.again:
		s.again = true
	case !s.running && !s.queued:
		s.queued = true
		c.queue = append(c.queue, k)
	default:
		return
	}
	s.since = c.now
	n := &c.counts[k.Part]
	n.Adds++
	n.Depth++
}

// Tick tells the time to what is measured; Next and Done do so too.
func (c *Core) Tick(now time.Time) { c.now = now }

// Counts of each part, by its index.
func (c *Core) Counts(now time.Time) []Count {
	out := slices.Clone(c.counts)
	for k, at := range c.begun {
		n, d := &out[k.Part], now.Sub(at)
		n.Unfinished += d
		n.Longest = max(n.Longest, d)
	}
	return out
}

// Pending reports how many keys are queued.
func (c *Core) Pending() int { return len(c.queue) }

// Changed wakes what a change of one object is to wake in every part.
func (c *Core) Changed(s view.Snapshot, ch *view.Change) {
	k := ch.Kind
	if k.Custom {
		k = view.Custom
	}
	for _, src := range c.sources[k] {
		p := &c.parts[src.part]
		if src.wake == nil {
			if p.When == nil || p.When(ch.Old, ch.New) {
				ref := ch.Ref()
				if !k.Custom {
					ref.Kind = src.kind
				}
				c.Wake(Key{src.part, ref})
			}
			continue
		}
		if src.wake.When != nil && !src.wake.When(ch.Old, ch.New) {
			continue
		}
		if ch.Old != nil {
			for _, r := range src.wake.To(s, ch.Old) {
				c.Wake(Key{src.part, r})
			}
		}
		if ch.New != nil {
			for _, r := range src.wake.To(s, ch.New) {
				c.Wake(Key{src.part, r})
			}
		}
	}
}

// Start wakes everything that a snapshot holds, as if all of it had just
// appeared: at start, and after the runtime fell out of the view's window.
func (c *Core) Start(s view.Snapshot) {
	for _, k := range c.Kinds() {
		if k != view.Custom {
			c.StartKind(s, k)
		}
	}
	for _, k := range s.Table().Roots() {
		if k.Custom {
			c.StartKind(s, k)
		}
	}
}

// StartKind wakes what a snapshot holds of one kind.
func (c *Core) StartKind(s view.Snapshot, k *kind.Kind) {
	sources := c.sources[k]
	if k.Custom {
		sources = c.sources[view.Custom]
	}
	for _, src := range sources {
		for o := range s.All(k, "") {
			if src.wake == nil {
				ref := view.RefOf(src.kind, o)
				if k.Custom {
					ref.Kind = k
				}
				c.Wake(Key{src.part, ref})
				continue
			}
			for _, r := range src.wake.To(s, o) {
				c.Wake(Key{src.part, r})
			}
		}
	}
}

// Next takes a key that may be planned from a snapshot at revision; ok is false
// when there is none. The caller must call Done.
func (c *Core) Next(revision int64, now time.Time) (Key, bool) {
	c.Tick(now)
	c.ripen(now)
	for i, k := range c.queue {
		s := c.states[k]
		if s.fence > revision {
			continue
		}
		if i == 0 {
			c.queue = c.queue[1:]
		} else {
			c.queue = slices.Delete(c.queue, i, i+1)
		}
		s.queued, s.running = false, true
		s.wake = time.Time{}
		c.counts[k.Part].Depth--
		c.begun[k] = now
		if c.Meter != nil {
			c.Meter.Waited(k.Part, now.Sub(s.since))
		}
		return k, true
	}
	return Key{}, false
}

// Done ends one planning: fence is the newest revision that its actions wrote (0:
// none), wake when to plan again (zero: not by time), err what went wrong;
// revision is the view's by now.
func (c *Core) Done(k Key, now time.Time, revision, fence int64, wake time.Time, err error, conflict bool) {
	c.Tick(now)
	if c.Meter != nil {
		c.Meter.Worked(k.Part, now.Sub(c.begun[k]))
	}
	delete(c.begun, k)
	s := c.states[k]
	s.running = false
	if fence > s.fence {
		s.fence = fence
	}
	switch {
	case err == nil:
		s.failures = 0
	case conflict && s.failures == 0:
		s.failures++
		c.counts[k.Part].Retries++
		if !s.again {
			s.again, s.since = true, now
			c.counts[k.Part].Adds++
			c.counts[k.Part].Depth++
		}
	default:
		// Whatever the plan wanted: what is due at once must not be tried without end.
		s.failures++
		wake = now.Add(Backoff(s.failures))
	}
	if !wake.IsZero() {
		c.counts[k.Part].Retries++
		s.wake = wake
		heap.Push(&c.timers, timer{wake, k})
		if len(c.timers) > 2*len(c.states)+64 {
			c.compact()
		}
	}
	again := s.again
	s.again = false
	if again {
		s.queued = true // it has been counted
		c.queue = append(c.queue, k)
	} else if wake.IsZero() && s.failures == 0 && s.fence <= revision {
		delete(c.states, k)
	}
}

// Backoff after n failures: 5 ms doubling to 30 s.
func Backoff(n int) time.Duration {
	d := 5 * time.Millisecond
	for ; n > 1 && d < 30*time.Second; n-- {
		d *= 2
	}
	return min(d, 30*time.Second)
}

// NextTimer is the instant at which the earliest waiting key is due; zero when
// none waits.
func (c *Core) NextTimer() time.Time {
	for len(c.timers) > 0 {
		t := c.timers[0]
		if s := c.states[t.key]; s == nil || !s.wake.Equal(t.at) {
			heap.Pop(&c.timers)
			continue
		}
		return t.at
	}
	return time.Time{}
}

// compact drops the timers that a later plan has replaced.
func (c *Core) compact() {
	keep := c.timers[:0]
	seen := map[Key]bool{}
	for _, t := range c.timers {
		if s := c.states[t.key]; s != nil && s.wake.Equal(t.at) && !seen[t.key] {
			seen[t.key] = true
			keep = append(keep, t)
		}
	}
	clear(c.timers[len(keep):])
	c.timers = keep
	heap.Init(&c.timers)
}

func (c *Core) ripen(now time.Time) {
	for {
		at := c.NextTimer()
		if at.IsZero() || at.After(now) {
			return
		}
		t := heap.Pop(&c.timers).(timer)
		c.states[t.key].wake = time.Time{}
		c.Wake(t.key)
	}
}

type timer struct {
	at  time.Time
	key Key
}

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}
