package disk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/store/disk"
	"proa.dev/store/storetest"
)

// state is key → "value@revision".
type state map[string]string

func stateOf(t testing.TB, s store.Store) state {
	t.Helper()
	p, err := s.Range(context.Background(), "", "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	st := state{}
	for _, kv := range p.KVs {
		st[kv.Key] = fmt.Sprintf("%.20s@%d", kv.Value, kv.ModRevision)
	}
	return st
}

// history is the states after each write that was tried, in order.
type history struct {
	states  []state
	durable int // the state of this index must survive
}

// workload writes, deletes and syncs from a seed and remembers every state. It
// ends at the first error if stop is set, otherwise it tries each write until it
// works, and move lets time go by in between.
func workload(t *testing.T, s store.Store, seed uint64, n int, stop bool, move func()) *history {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	h := &history{states: []state{stateOf(t, s)}}
	ctx := context.Background()
	for i := range n {
		key := fmt.Sprintf("/k/%d", r.IntN(12))
		class := store.Class(r.IntN(2))
		cur := h.states[len(h.states)-1]
		next := maps.Clone(cur)
		size := r.IntN(300)
		if r.IntN(10) == 0 {
			size = 30_000
		}
		kind := r.IntN(5)
		for try := 0; ; try++ {
			var rev int64
			var err error
			_, exists := cur[key]
			switch {
			case kind == 0 && exists:
				// Whoever asks may see the revision only if the write is there.
				_, _, err = s.Delete(ctx, key, store.DeleteOptions{Class: class, Stamp: func(v int64) { rev = v }})
				delete(next, key)
			case kind == 1:
				err = s.Sync(ctx)
				class = store.Synced
			default:
				value := fmt.Sprintf("%06d", i) + strings.Repeat("x", size)
				_, err = s.Put(ctx, key, []byte(value), store.PutOptions{Expect: store.Any, Class: class, Stamp: func(v int64) { rev = v }})
				next[key] = fmt.Sprintf("%.20s@%d", value, rev)
			}
			if err == nil {
				h.states = append(h.states, next)
				if class == store.Synced {
					h.durable = len(h.states) - 1
				}
				break
			}
			if got := stateOf(t, s); !maps.Equal(got, cur) {
				t.Fatalf("write %d failed with %v, and the state went from %v to %v", i, err, cur, got)
			}
			if stop {
				h.states = append(h.states, next) // it may have reached the disk
				return h
			}
			if try == 50 {
				t.Fatalf("write %d still fails: %v", i, err)
			}
			move()
		}
	}
	return h
}

// check demands that got is one of the states from the durable one on.
func (h *history) check(t *testing.T, what string, got state) {
	t.Helper()
	for _, st := range h.states[h.durable:] {
		if maps.Equal(st, got) {
			return
		}
	}
	t.Fatalf("%s: the state is none of the last %d: %v\nwant at least %v", what, len(h.states)-h.durable, got, h.states[h.durable])
}

func crashConfig(files *env.MemFiles, clock env.Clock) disk.Config {
	return disk.Config{Dir: "/data", Files: files, Clock: clock, ReserveBytes: 64 << 10}
}

// kill ends a store as a crash does: nothing of it reaches the files any more.
func kill(files *env.MemFiles, s *disk.Store, keep func(string, int) int) {
	files.Fail(func(env.Op) error { return syscall.EIO })
	if s != nil {
		_ = s.Close()
	}
	files.Crash(keep)
}

// Killed at every operation on the files: what was acknowledged as synced is
// there, in a prefix of the writes; the unsynced tail is lost, kept in part or
// torn in the middle of a record.
func TestKilledAtEveryPoint(t *testing.T) {
	clock := storetest.NewClock()
	step := 1
	if testing.Short() {
		step = 7
	}
	lost := 0
	for _, phase := range []string{"open", "write"} {
		for at := 1; ; at += step {
			r := rand.New(rand.NewPCG(uint64(at), 3))
			files := env.NewMemFiles()
			if phase == "write" {
				// Something is there already, and a crash has happened before.
				s := open(t, crashConfig(files, clock))
				h := workload(t, s, 99, 20, true, nil)
				kill(files, s, nil)
				s = open(t, crashConfig(files, clock))
				h.check(t, "first crash", stateOf(t, s))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			reached := false
			files.Fail(func(op env.Op) error {
				if op.Index >= at {
					reached = true
					return syscall.EIO
				}
				return nil
			})
			h := &history{states: []state{{}}}
			s, err := disk.Open(t.Context(), crashConfig(files, clock))
			if err == nil {
				h = workload(t, s, uint64(at), 40, true, nil)
			} else if phase == "write" {
				h = nil // nothing was written; what was there must still be
			}
			kill(files, s, func(name string, unsynced int) int {
				if r.IntN(3) == 0 {
					return 0
				}
				return r.IntN(unsynced + 1)
			})
			s, err = disk.Open(t.Context(), crashConfig(files, clock))
			if err != nil {
				t.Fatalf("%s, killed at operation %d: %v\n%s", phase, at, err, files.Tree())
			}
			if h != nil {
				got := stateOf(t, s)
				h.check(t, fmt.Sprintf("%s, killed at operation %d", phase, at), got)
				if !maps.Equal(got, h.states[len(h.states)-1]) {
					lost++
				}
			}
			// It works, and no revision is given twice.
			kv, err := s.Put(t.Context(), "/after", nil, store.PutOptions{Expect: store.Any})
			if err != nil {
				t.Fatal(err)
			}
			if h != nil {
				for _, st := range h.states {
					for k, v := range st {
						if strings.HasSuffix(v, fmt.Sprintf("@%d", kv.ModRevision)) {
							t.Fatalf("%s, killed at operation %d: revision %d of %s is given again; durable %d of %d", phase, at, kv.ModRevision, k, h.durable, len(h.states))
						}
					}
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if !reached {
				t.Logf("%s: killed at %d points", phase, at/step)
				break
			}
		}
	}
	if lost == 0 {
		t.Fatal("no crash lost anything: the test does not test")
	}
}

// One operation fails once, with an error that goes away: the write fails with
// nothing applied, reads go on, and the next writes work without a restart.
func TestEveryOperationFailsOnce(t *testing.T) {
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
		recovered := int64(0)
		for at := 1; ; at++ {
			clock := storetest.NewClock()
			files := env.NewMemFiles()
			s := open(t, crashConfig(files, clock))
			reached := false
			files.Fail(func(op env.Op) error {
				if op.Index == at {
					reached = true
					return cause
				}
				return nil
			})
			h := workload(t, s, uint64(at), 40, false, func() { clock.Advance(200 * time.Millisecond) })
			want := h.states[len(h.states)-1]
			for try := 0; ; try++ {
				err := s.Sync(t.Context())
				if err == nil {
					break
				}
				if try == 50 {
					t.Fatalf("%v at operation %d: sync still fails: %v", cause, at, err)
				}
				clock.Advance(200 * time.Millisecond)
			}
			recovered += s.Stats().Recoveries
			kill(files, s, nil)
			s = open(t, crashConfig(files, clock))
			if got := stateOf(t, s); !maps.Equal(got, want) {
				t.Fatalf("%v at operation %d: after a restart the state is %v, want %v", cause, at, got, want)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if !reached {
				t.Logf("%v at %d points, %d recoveries", cause, at, recovered)
				break
			}
		}
		if recovered == 0 {
			t.Fatal("no error made the store recover: the test does not test")
		}
	}
}

// A flipped bit anywhere is detected, or changes nothing.
func TestBitFlipIsDetected(t *testing.T) {
	clock := storetest.NewClock()
	for _, isClean := range []bool{true, false} {
		build := func() (*env.MemFiles, state) {
			files := env.NewMemFiles()
			s := open(t, crashConfig(files, clock))
			workload(t, s, 5, 60, true, nil)
			// The last group cannot be told from a torn tail; one more follows what matters.
			want := state(nil)
			for i := range 3 {
				if i == 2 {
					want = stateOf(t, s)
				}
				if _, err := s.Put(t.Context(), fmt.Sprintf("/last/%d", i), []byte("v"), store.PutOptions{Expect: store.Any}); err != nil {
					t.Fatal(err)
				}
			}
			if isClean {
				want = stateOf(t, s)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				return files, want
			}
			kill(files, s, nil)
			return files, want
		}
		files, _ := build()
		names, err := files.List("/data/engine")
		if err != nil {
			t.Fatal(err)
		}
		detected, harmless := 0, 0
		for _, name := range names {
			name = "/data/engine/" + name
			info, err := files.Stat(name)
			if err != nil || info.IsDir() || info.Size() == 0 {
				continue
			}
			r := rand.New(rand.NewPCG(1, uint64(info.Size())))
			for range 25 {
				files, want := build()
				bit := r.Int64N(info.Size() * 8)
				if err := files.Flip(name, bit); errors.Is(err, io.EOF) || err != nil {
					continue // this run's file is shorter
				}
				s, err := disk.Open(t.Context(), crashConfig(files, clock))
				if err != nil {
					detected++
					continue
				}
				got := stateOf(t, s)
				for k, v := range want {
					if got[k] != v {
						t.Errorf("clean %v: bit %d of %s flipped: nobody noticed that %s is %q, not %q", isClean, bit, name, k, got[k], v)
						break
					}
				}
				harmless++
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		t.Logf("clean %v: %d flips detected, %d harmless", isClean, detected, harmless)
		if detected == 0 {
			t.Error("no flip was detected: the test does not test")
		}
	}
}

// A damaged record is named, and the error is the contract's.
func TestDamagedRecordIsNamed(t *testing.T) {
	files := env.NewMemFiles()
	s := open(t, crashConfig(files, nil))
	for i := range 200 {
		if _, err := s.Put(t.Context(), fmt.Sprintf("/k/%03d", i), []byte(strings.Repeat("v", 500)), store.PutOptions{Class: store.Buffered}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := files.List("/data/engine")
	flipped := false
	for _, n := range names {
		if strings.HasSuffix(n, ".sst") {
			if err := files.Flip("/data/engine/"+n, 8*1000); err != nil {
				t.Fatal(err)
			}
			flipped = true
		}
	}
	_, err := disk.Open(t.Context(), crashConfig(files, nil))
	if !flipped || !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), `"/data"`) {
		t.Fatalf("flipped %v: %v", flipped, err)
	}
}
