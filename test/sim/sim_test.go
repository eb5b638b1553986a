package sim

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"proa.dev/sim"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "the first seed; 0: the fixed set")
	countFlag = flag.Int("n", 0, "how many seeds; 0: 50, or 1 with -seed")
)

// simulate runs one seed: two minutes of storm, then calm, then everything must
// become what it is to be.
func simulate(seed uint64) (*world, error) { return simulateWith(seed, "") }

func simulateWith(seed uint64, plant string) (*world, error) {
	w := newWorld(seed)
	w.plant = plant
	if *traceFlag {
		w.why = map[string]int{}
		w.Tell = func(line string) { fmt.Println(line) }
		defer func() {
			for k, n := range w.why {
				fmt.Println(n, k)
			}
		}()
	}
	storm := sim.Storm
	storm.CrashEvery, storm.DownFor = 10*time.Second, 3*time.Second
	storm.Crashing = nil
	for _, m := range w.nodes {
		storm.Crashing = append(storm.Crashing, m.name)
	}
	if err := w.RunFor(2 * time.Second); err != nil { // nodes register
		return w, err
	}
	w.stormy = true
	end := w.Now().Add(2 * time.Minute)
	w.Blow(storm)
	w.users(end)
	w.accidents(end)
	if err := w.RunUntil(end); err != nil {
		return w, err
	}
	w.stormy = false
	w.Calm()
	if err := w.RunFor(time.Second); err != nil {
		return w, err
	}
	w.tidy()
	// Back-offs are the longest wait: five minutes for a container, and for a pod
	// that was not placed.
	const bound = 20 * time.Minute
	for at := w.Now(); ; {
		if err := w.RunFor(time.Second); err != nil {
			return w, err
		}
		err := w.settled()
		if err == nil {
			return w, nil
		}
		if w.Now().Sub(at) > bound {
			w.fail("not settled %v after the last fault: %w", bound, err)
			return w, w.RunFor(time.Hour)
		}
	}
}

func TestSeeds(t *testing.T) {
	first, n := *seedFlag, *countFlag
	if n == 0 {
		if n = 50; first != 0 {
			n = 1
		}
	}
	if first == 0 {
		first = 1
	}
	var all stats
	steps := 0
	began := time.Now()
	for seed := first; seed < first+uint64(n); seed++ {
		w, err := simulate(seed)
		steps += w.Steps()
		all.add(&w.stats)
		if err != nil {
			var f *sim.Failure
			if errors.As(err, &f) && testing.Verbose() {
				fmt.Fprintln(os.Stderr, strings.Join(f.Log, "\n"))
			}
			t.Errorf("%v", err)
		}
	}
	t.Logf("%d seeds, %d steps in %v: %+v", n, steps, time.Since(began).Round(time.Millisecond), all)
	if n >= 20 && (all.preempted == 0 || all.sandboxes < 20*n || all.binds < 20*n || all.refused < n) {
		t.Errorf("too little happened: %+v", all)
	}
}

func (s *stats) add(o *stats) {
	s.writes += o.writes
	s.plans += o.plans
	s.actions += o.actions
	s.refused += o.refused
	s.binds += o.binds
	s.preempted += o.preempted
	s.sandboxes += o.sandboxes
	s.relists += o.relists
}

// The same seed gives the same run, event by event.
func TestSameSeedSameRun(t *testing.T) {
	for _, seed := range []uint64{1, 7} {
		a, _ := simulate(seed)
		b, _ := simulate(seed)
		if a.Digest() != b.Digest() || a.Steps() != b.Steps() {
			t.Errorf("seed %d: %d steps with digest %x, then %d with %x", seed, a.Steps(), a.Digest(), b.Steps(), b.Digest())
		}
	}
	a, _ := simulate(1)
	if b, _ := simulate(2); a.Digest() == b.Digest() {
		t.Error("two seeds gave one run")
	}
}

// Mistakes that were planted are found, and by the invariant that is meant for
// them.
func TestPlantedMistakes(t *testing.T) {
	for plant, want := range map[string]string{
		"unsynced": "was acknowledged, after the crash it is at",
		"doubled":  "at most",
		"address":  "two pods own 10.1.",
		"leak":     "still runs",
		"back":     "went back",
	} {
		t.Run(plant, func(t *testing.T) {
			for seed := uint64(1); seed <= 10; seed++ {
				if _, err := simulateWith(seed, plant); err != nil {
					if !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("sim: seed %d step ", seed)) || strings.Contains(err.Error(), "\n") {
						t.Errorf("found as %v, want %q", err, want)
					}
					return
				}
			}
			t.Error("no seed found it")
		})
	}
}

var traceFlag = flag.Bool("trace", false, "print every event")
