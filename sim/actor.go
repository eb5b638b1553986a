package sim

import (
	"fmt"
	"math"
	"time"

	"proa.dev/env"
)

// Handler reacts to a message. What was sent is handed over as it is, so it must
// not be changed by anyone.
type Handler func(from string, message any)

// Actor is one process of the system.
type Actor struct {
	sim     *Sim
	name    string
	start   func(*Actor) Handler
	handler Handler
	isUp    bool
	life    int // counts starts
	disk    *Disk
	files   *env.MemFiles

	// The actor's clock shows base + (now-since)*rate.
	base  time.Time
	since time.Time
	rate  float64
}

// Add adds an actor; it starts in the next step. Names are unique.
func (s *Sim) Add(name string, start func(*Actor) Handler) *Actor {
	if s.byName[name] != nil {
		panic(fmt.Sprintf("sim: two actors %q", name))
	}
	a := &Actor{sim: s, name: name, start: start, base: s.now, since: s.now, rate: 1}
	a.disk = &Disk{actor: a}
	a.files = env.NewMemFiles()
	s.actors = append(s.actors, a)
	s.byName[name] = a
	s.At(0, "start "+name, func() { s.up(a) })
	return a
}

// Actor finds an actor by its name, or nil.
func (s *Sim) Actor(name string) *Actor { return s.byName[name] }

func (s *Sim) up(a *Actor) {
	if a.isUp {
		return
	}
	a.isUp = true
	a.life++
	a.handler = a.start(a)
}

// Name, IsUp and Life (how often it has started) of the actor.
func (a *Actor) Name() string { return a.name }
func (a *Actor) IsUp() bool   { return a.isUp }
func (a *Actor) Life() int    { return a.life }

// Sim that the actor is part of.
func (a *Actor) Sim() *Sim { return a.sim }

// Disk is the actor's durable store; it survives crashes as a disk does.
func (a *Actor) Disk() *Disk { return a.disk }

// Files are the actor's files; a crash loses what was not synced.
func (a *Actor) Files() *env.MemFiles { return a.files }

// Rand is the simulation's.
func (a *Actor) Rand() *Rand { return a.sim.rand }

// Logf adds a line to the log of events in the actor's name.
func (a *Actor) Logf(format string, args ...any) { a.sim.Logf(a.name, format, args...) }

// After calls run after d on the actor's clock, unless the actor crashes before,
// or the returned function is called.
func (a *Actor) After(d time.Duration, what string, run func()) (stop func()) {
	e := a.sim.schedule(a.real(d), a, "timer "+what, func() {
		a.sim.counts.Timers++
		run()
	})
	return func() { e.gone = true }
}

// real is how long d on the actor's clock takes; rounded up, so that no timer
// fires before its time on the actor's clock.
func (a *Actor) real(d time.Duration) time.Duration {
	if a.rate == 1 {
		return d
	}
	r := time.Duration(math.Ceil(float64(d) / a.rate))
	if time.Duration(float64(r)*a.rate) < d {
		r++
	}
	return r
}

// Crash ends the actor as kill -9 and a power cut do: its memory is lost, its
// timers and the messages on their way to it too, and of its disk what was not
// synced, or a part of that. It does nothing to an actor that is down.
func (s *Sim) Crash(name string) {
	a := s.byName[name]
	if a == nil || !a.isUp {
		return
	}
	s.counts.Crashes++
	a.isUp, a.handler = false, nil
	lost := a.disk.crash()
	a.files.Crash(func(_ string, unsynced int) int { return s.rand.IntN(unsynced + 1) })
	s.counts.LostWrites += lost
	s.Logf("world", "crash %s, %d writes lost", name, lost)
}

// Restart starts an actor that is down.
func (s *Sim) Restart(name string) {
	a := s.byName[name]
	if a == nil || a.isUp {
		return
	}
	s.counts.Restarts++
	s.Logf("world", "restart %s", name)
	s.up(a)
}

// Drift sets how fast an actor's clock runs (1: right) and lets it jump.
func (s *Sim) Drift(name string, rate float64, jump time.Duration) {
	a := s.byName[name]
	a.base, a.since, a.rate = a.Clock().Now().Add(jump), s.now, rate
	s.Logf("world", "clock of %s jumps %v and runs at %.4f", name, jump, rate)
}

// Clock is the actor's clock. Its timers fire into channels, which nobody can
// wait for in the simulator's one goroutine: they are for code that polls them;
// actors use After.
func (a *Actor) Clock() env.Clock { return clock{a} }

type clock struct{ a *Actor }

func (c clock) Now() time.Time {
	a := c.a
	d := a.sim.now.Sub(a.since)
	if a.rate != 1 {
		d = time.Duration(float64(d) * a.rate)
	}
	return a.base.Add(d)
}

func (c clock) NewTimer(d time.Duration) env.Timer {
	t := &timer{a: c.a, c: make(chan time.Time, 1)}
	t.Reset(d)
	return t
}

type timer struct {
	a *Actor
	c chan time.Time
	e *event
}

func (t *timer) C() <-chan time.Time { return t.c }

func (t *timer) Stop() bool {
	if t.e == nil || t.e.gone {
		return false
	}
	t.e.gone = true
	return true
}

func (t *timer) Reset(d time.Duration) bool {
	was := t.Stop()
	select {
	case <-t.c:
	default:
	}
	var e *event
	e = t.a.sim.schedule(t.a.real(d), t.a, "timer", func() {
		e.gone = true
		t.c <- t.a.Clock().Now()
	})
	t.e = e
	return was
}
