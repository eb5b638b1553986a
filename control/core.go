package control

import (
	"container/heap"
	"time"

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
	parts  []Part
	states map[Key]*state
	queue  []Key
	timers timers
}

type state struct {
	queued, running, again bool
	failures               int
	fence                  int64
	wake                   time.Time
}

// NewCore knows the parts by index.
func NewCore(parts []Part) *Core {
	return &Core{parts: parts, states: map[Key]*state{}}
}

// Wake queues a key.
func (c *Core) Wake(k Key) {
	s := c.states[k]
	if s == nil {
		s = &state{}
		c.states[k] = s
	}
	switch {
	case s.running:
		s.again = true
	case !s.queued:
		s.queued = true
		c.queue = append(c.queue, k)
	}
}

// Pending reports how many keys are queued.
func (c *Core) Pending() int { return len(c.queue) }

// Changed wakes what a change of one object is to wake in every part.
func (c *Core) Changed(s view.Snapshot, ch *view.Change) {
	for i, p := range c.parts {
		if p.Kind.Root() == ch.Kind {
			c.Wake(Key{i, view.Ref{Kind: p.Kind, Namespace: ch.Ref().Namespace, Name: ch.Ref().Name}})
		}
		for _, w := range p.Wakes {
			if w.Kind.Root() != ch.Kind {
				continue
			}
			if ch.Old != nil {
				for _, r := range w.To(s, ch.Old) {
					c.Wake(Key{i, r})
				}
			}
			if ch.New != nil {
				for _, r := range w.To(s, ch.New) {
					c.Wake(Key{i, r})
				}
			}
		}
	}
}

// Start wakes everything that a snapshot holds, as if all of it had just
// appeared: at start, and after the runtime fell out of the view's window.
func (c *Core) Start(s view.Snapshot) {
	for i, p := range c.parts {
		for o := range s.All(p.Kind, "") {
			c.Wake(Key{i, view.RefOf(p.Kind, o)})
		}
		for _, w := range p.Wakes {
			for o := range s.All(w.Kind, "") {
				for _, r := range w.To(s, o) {
					c.Wake(Key{i, r})
				}
			}
		}
	}
}

// Next takes a key that may be planned from a snapshot at revision; ok is false
// when there is none. The caller must call Done.
func (c *Core) Next(revision int64, now time.Time) (Key, bool) {
	c.ripen(now)
	for i, k := range c.queue {
		s := c.states[k]
		if s.fence > revision {
			continue
		}
		copy(c.queue[i:], c.queue[i+1:])
		c.queue = c.queue[:len(c.queue)-1]
		s.queued, s.running = false, true
		s.wake = time.Time{}
		return k, true
	}
	return Key{}, false
}

// Done ends one planning: fence is the newest revision that its actions wrote (0:
// none), wake when to plan again (zero: not by time), err what went wrong;
// revision is the view's by now.
func (c *Core) Done(k Key, now time.Time, revision, fence int64, wake time.Time, err error, conflict bool) {
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
		s.again = true
	default:
		s.failures++
		retry := now.Add(Backoff(s.failures))
		if wake.IsZero() || retry.Before(wake) {
			wake = retry
		}
	}
	if !wake.IsZero() {
		s.wake = wake
		heap.Push(&c.timers, timer{wake, k})
	}
	again := s.again
	s.again = false
	if again {
		c.Wake(k)
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
