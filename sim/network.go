package sim

import (
	"fmt"
	"time"
)

// Network says what happens to messages.
type Network struct {
	MinDelay, MaxDelay time.Duration
	// DropPercent and DuplicatePercent of messages; a copy has a delay of its own,
	// so that messages also overtake each other.
	DropPercent, DuplicatePercent float64
	// SlowPercent of messages take up to ten times MaxDelay.
	SlowPercent float64
}

// SetNetwork changes the network for messages that are sent from now on.
func (s *Sim) SetNetwork(n Network) { s.network = n }

// Send sends a message to another actor (or to itself): it arrives once, late,
// twice, or not at all. what is for the log.
func (a *Actor) Send(to, what string, message any) {
	s := a.sim
	n := s.network
	target := s.byName[to]
	if target == nil {
		panic(fmt.Sprintf("sim: no actor %q", to))
	}
	if s.isCut(a.name, to) || s.rand.Percent(n.DropPercent) {
		s.counts.Dropped++
		s.Logf(a.name, "-x %s: %s", to, what)
		return
	}
	copies := 1
	if s.rand.Percent(n.DuplicatePercent) {
		copies = 2
		s.counts.Doubled++
	}
	s.Logf(a.name, "-> %s: %s", to, what)
	for range copies {
		delay := s.rand.Between(n.MinDelay, n.MaxDelay)
		if s.rand.Percent(n.SlowPercent) {
			delay = s.rand.Between(n.MaxDelay, 10*n.MaxDelay)
		}
		s.schedule(delay, target, "<- "+a.name+": "+what, func() {
			// A partition that began meanwhile has cut the way.
			if s.isCut(a.name, to) {
				s.counts.Dropped++
				return
			}
			s.counts.Delivered++
			target.handler(a.name, message)
		})
	}
}

// Cut parts two actors in both directions; Join lets them talk again.
func (s *Sim) Cut(a, b string) {
	s.counts.Partitions++
	s.cut[pair(a, b)] = true
	s.Logf("world", "cut %s | %s", a, b)
}

// Join ends a Cut.
func (s *Sim) Join(a, b string) {
	if s.cut[pair(a, b)] {
		delete(s.cut, pair(a, b))
		s.Logf("world", "join %s, %s", a, b)
	}
}

func (s *Sim) isCut(a, b string) bool { return s.cut[pair(a, b)] }

func pair(a, b string) [2]string {
	if b < a {
		a, b = b, a
	}
	return [2]string{a, b}
}

// Faults says how often what goes wrong, and for how long. A zero mean is never.
type Faults struct {
	// Mean time between crashes of any actor in Crashing (nil: all), and how long
	// it stays down.
	CrashEvery, DownFor time.Duration
	Crashing            []string
	// Mean time between partitions of two actors, and how long they last.
	CutEvery, CutFor time.Duration
	// Mean time between changes of a clock, its greatest error in speed (0.01 is
	// one percent) and its greatest jump.
	DriftEvery time.Duration
	MaxRate    float64
	MaxJump    time.Duration
	Network    Network
}

// Storm is a setting that finds most mistakes within a few virtual minutes.
var Storm = Faults{
	CrashEvery: 5 * time.Second, DownFor: 2 * time.Second,
	CutEvery: 4 * time.Second, CutFor: 3 * time.Second,
	DriftEvery: 20 * time.Second, MaxRate: 0.05, MaxJump: time.Second,
	Network: Network{MinDelay: 100 * time.Microsecond, MaxDelay: 20 * time.Millisecond, DropPercent: 2, DuplicatePercent: 2, SlowPercent: 2},
}

// Blow begins faults; Calm ends them.
func (s *Sim) Blow(f Faults) {
	s.faults, s.faultsOn = f, true
	s.network = f.Network
	s.again(f.CrashEvery, s.blowCrash)
	s.again(f.CutEvery, s.blowCut)
	s.again(f.DriftEvery, s.blowDrift)
}

// Calm ends all faults: everybody is up, talks to everybody over a good network,
// and has a clock that runs at the right speed from where it is.
func (s *Sim) Calm() {
	s.faultsOn = false
	s.network = Network{MinDelay: 100 * time.Microsecond, MaxDelay: time.Millisecond}
	s.Logf("world", "calm")
	clear(s.cut)
	for _, a := range s.actors {
		if a.rate != 1 {
			s.Drift(a.name, 1, 0)
		}
		s.Restart(a.name)
	}
}

// again lets a fault happen after about every, if faults are still on then.
func (s *Sim) again(every time.Duration, fault func()) {
	if every <= 0 {
		return
	}
	s.At(time.Duration(s.rand.ExpFloat64()*float64(every)), "fault", func() {
		if s.faultsOn {
			fault()
			s.again(every, fault)
		}
	})
}

func (s *Sim) blowCrash() {
	names := s.faults.Crashing
	if names == nil {
		for _, a := range s.actors {
			names = append(names, a.name)
		}
	}
	name := names[s.rand.IntN(len(names))]
	s.Crash(name)
	s.At(s.rand.Between(0, 2*s.faults.DownFor), "end of crash", func() { s.Restart(name) })
}

func (s *Sim) blowCut() {
	if len(s.actors) < 2 {
		return
	}
	i := s.rand.IntN(len(s.actors))
	j := (i + 1 + s.rand.IntN(len(s.actors)-1)) % len(s.actors)
	a, b := s.actors[i].name, s.actors[j].name
	s.Cut(a, b)
	s.At(s.rand.Between(0, 2*s.faults.CutFor), "end of cut", func() { s.Join(a, b) })
}

func (s *Sim) blowDrift() {
	a := s.actors[s.rand.IntN(len(s.actors))]
	rate := 1 + (2*s.rand.Float64()-1)*s.faults.MaxRate
	s.Drift(a.name, rate, s.rand.Between(-s.faults.MaxJump, s.faults.MaxJump))
}
