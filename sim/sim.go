// Package sim runs a whole system from one seed, in one goroutine: a virtual
// clock, a network that delays, doubles, drops and parts, disks that lose their
// unsynced tail, actors that crash and come back, clocks that drift.
//
// A system is made of actors. An actor has a start function, which is called at
// the beginning and after each restart and builds the actor's state in memory
// anew; it reacts to messages and to its own timers, and what it wants to keep it
// writes to its disk. Nothing else may happen: no goroutine, no real clock, no
// randomness but the simulator's, no iteration over a map whose order shows.
// Then everything follows from the seed, and so does every failure:
//
//	sim: seed 8812 step 40912: two pods own 10.1.0.7
//
// The same seed gives the same steps; Digest compares two runs.
//
// After every step the invariants are checked. What must hold only in the end is
// asked with Eventually, after Calm has ended the faults.
//
// The log of events and its legend: docs/simulation.md.
package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"
)

// Epoch is when every simulation begins.
var Epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// Sim is one simulation. It is not safe for concurrent use.
type Sim struct {
	seed   uint64
	rand   *Rand
	now    time.Time
	seq    int
	step   int
	queue  queue
	actors []*Actor // in the order in which they were added
	byName map[string]*Actor

	network    Network
	cut        map[[2]string]bool
	faults     Faults
	faultsOn   bool
	invariants []invariant
	failure    *Failure

	// Tell, if set, is called with every line of the log.
	Tell func(line string)

	logLines []string
	logNext  int
	digest   uint64
	counts   Counts
}

type invariant struct {
	name  string
	check func() error
}

// Counts of what has happened, to see whether a run tested anything.
type Counts struct {
	Delivered, Dropped, Doubled, Timers int
	Crashes, Restarts, Partitions       int
	LostWrites                          int
}

// Failure is a broken invariant. Its message replays it.
type Failure struct {
	Seed   uint64
	Step   int
	Reason error
	Log    []string // the last events before
}

func (f *Failure) Error() string {
	return fmt.Sprintf("sim: seed %d step %d: %v", f.Seed, f.Step, f.Reason)
}
func (f *Failure) Unwrap() error { return f.Reason }

// Story is the message and the last events, for a person.
func (f *Failure) Story() string {
	return strings.Join(f.Log, "\n") + "\n" + f.Error()
}

// logKept is how many events a failure tells.
const logKept = 200

// New makes an empty simulation with a calm network.
func New(seed uint64) *Sim {
	return &Sim{seed: seed, rand: &Rand{rand.New(rand.NewPCG(seed, 0x70726f61))}, now: Epoch,
		byName: map[string]*Actor{}, cut: map[[2]string]bool{}, network: Network{MinDelay: 100 * time.Microsecond, MaxDelay: time.Millisecond}}
}

// Seed, Now, Steps and Counts tell where the simulation stands.
func (s *Sim) Seed() uint64   { return s.seed }
func (s *Sim) Now() time.Time { return s.now }
func (s *Sim) Steps() int     { return s.step }
func (s *Sim) Counts() Counts { return s.counts }

// Rand is the one source of randomness. It implements env.Rand.
func (s *Sim) Rand() *Rand { return s.rand }

// Digest is a hash of all events so far: equal runs have equal ones.
func (s *Sim) Digest() uint64 { return s.digest }

// Rand is seeded randomness with a few draws that simulations need.
type Rand struct{ *rand.Rand }

// Read implements env.Rand.
func (r *Rand) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.Uint64())
	}
	return len(p), nil
}

// Percent is true p times of 100.
func (r *Rand) Percent(p float64) bool { return p > 0 && r.Float64()*100 < p }

// Between draws a duration; max is not less than min.
func (r *Rand) Between(min, max time.Duration) time.Duration {
	if max <= min {
		return min
	}
	return min + time.Duration(r.Int64N(int64(max-min)+1))
}

// Invariant is checked after every step. An error ends the simulation.
func (s *Sim) Invariant(name string, check func() error) {
	s.invariants = append(s.invariants, invariant{name, check})
}

// event is something that will happen. One whose actor has restarted since, or
// whose timer was stopped, is passed over without counting as a step.
type event struct {
	at    time.Time
	seq   int
	actor *Actor // nil: the world
	life  int
	what  string
	run   func()
	gone  bool
	index int
}

type queue []*event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *queue) Push(x any) {
	e := x.(*event)
	e.index = len(*q)
	*q = append(*q, e)
}
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}

func (s *Sim) schedule(d time.Duration, a *Actor, what string, run func()) *event {
	s.seq++
	e := &event{at: s.now.Add(max(d, 0)), seq: s.seq, actor: a, what: what, run: run}
	if a != nil {
		e.life = a.life
	}
	heap.Push(&s.queue, e)
	return e
}

// At lets something happen to the world after d: part of a scenario.
func (s *Sim) At(d time.Duration, what string, run func()) {
	s.schedule(d, nil, what, run)
}

// next is the first event that will happen, or nil.
func (s *Sim) next() *event {
	for len(s.queue) > 0 {
		e := s.queue[0]
		if e.gone || e.actor != nil && (e.life != e.actor.life || !e.actor.isUp) {
			heap.Pop(&s.queue)
			continue
		}
		return e
	}
	return nil
}

// Step lets the next event happen and checks the invariants. It reports whether
// there was one; the error is a *Failure, and stays.
func (s *Sim) Step() (bool, error) {
	if s.failure != nil {
		return false, s.failure
	}
	e := s.next()
	if e == nil {
		return false, nil
	}
	heap.Pop(&s.queue)
	s.now = e.at
	s.step++
	who := "world"
	if e.actor != nil {
		who = e.actor.name
	}
	s.Logf(who, "%s", e.what)
	e.run()
	if s.failure == nil {
		for _, i := range s.invariants {
			if err := i.check(); err != nil {
				s.Fail(fmt.Errorf("%s: %w", i.name, err))
				break
			}
		}
	}
	if s.failure != nil {
		return true, s.failure
	}
	return true, nil
}

// Fail ends the simulation: an actor or a check has seen what must not be.
func (s *Sim) Fail(reason error) {
	if s.failure == nil {
		s.failure = &Failure{s.seed, s.step, reason, s.Log()}
	}
}

// RunUntil lets everything happen up to an instant.
func (s *Sim) RunUntil(at time.Time) error {
	for {
		e := s.next()
		if e == nil || e.at.After(at) {
			if s.failure != nil {
				return s.failure
			}
			s.now = at
			return nil
		}
		if _, err := s.Step(); err != nil {
			return err
		}
	}
}

// RunFor lets d go by.
func (s *Sim) RunFor(d time.Duration) error { return s.RunUntil(s.now.Add(d)) }

// Eventually lets time go by until check is content, at most d.
func (s *Sim) Eventually(d time.Duration, what string, check func() error) error {
	deadline := s.now.Add(d)
	for {
		err := check()
		if err == nil {
			return nil
		}
		e := s.next()
		if e == nil || e.at.After(deadline) {
			s.Fail(fmt.Errorf("not within %v: %s: %w", d, what, err))
			return s.failure
		}
		if _, err := s.Step(); err != nil {
			return err
		}
	}
}

// Logf adds a line to the log of events; what it says must follow from the seed.
func (s *Sim) Logf(who, format string, args ...any) {
	line := fmt.Sprintf("%7d %12.6f %-10s ", s.step, s.now.Sub(Epoch).Seconds(), who) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	fmt.Fprintf(h, "%016x%s", s.digest, line)
	s.digest = h.Sum64()
	if s.Tell != nil {
		s.Tell(line)
	}
	if len(s.logLines) < logKept {
		s.logLines = append(s.logLines, line)
		return
	}
	s.logLines[s.logNext] = line
	s.logNext = (s.logNext + 1) % logKept
}

// Log returns the last events, oldest first.
func (s *Sim) Log() []string {
	return append(append([]string(nil), s.logLines[s.logNext:]...), s.logLines[:s.logNext]...)
}
