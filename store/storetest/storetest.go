// Package storetest is the suite of the store contract. Every implementation
// runs it; a bug that is found in one becomes a case for all. The names of the
// cases are the sentences of package store.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/store"
)

// Options that a case asks for; zero values mean the implementation's defaults.
type Options struct {
	Clock       env.Clock
	Window      int
	WindowBytes int64
	RingPrefix  string
	RingObjects int
	RingBytes   int64
}

// Traits say what an implementation bounds in another way.
type Traits struct {
	// Unbounded: history is kept until it is compacted, and keys have no rings, so
	// that Window, WindowBytes and Ring of Options mean nothing.
	Unbounded bool
	// RealTime: TTLs run on a clock that the test cannot move; a key lives up to
	// Slack longer than its TTL.
	RealTime bool
	Slack    time.Duration
	// Remote: an event reaches a watch some time after the write has returned.
	// Cases run side by side.
	Remote bool
	// MaxValue is the largest value for certain; 0: store.MaxValueBytes.
	MaxValue int
}

// Open makes an empty store. The suite closes it.
type Open func(t testing.TB, o Options) store.Store

// Clock is a clock that the test moves. Make it with NewClock.
type Clock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[*timer]time.Time
}

// NewClock starts at a fixed instant.
func NewClock() *Clock {
	return &Clock{now: time.Unix(1_800_000_000, 0), timers: map[*timer]time.Time{}}
}

// Now implements env.Clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock and fires what is due.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for t, at := range c.timers {
		if !at.After(c.now) {
			delete(c.timers, t)
			t.c <- c.now
		}
	}
}

// NewTimer implements env.Clock.
func (c *Clock) NewTimer(d time.Duration) env.Timer {
	t := &timer{clock: c, c: make(chan time.Time, 1)}
	t.Reset(d)
	return t
}

type timer struct {
	clock *Clock
	c     chan time.Time
}

func (t *timer) C() <-chan time.Time { return t.c }
func (t *timer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	_, ok := t.clock.timers[t]
	delete(t.clock.timers, t)
	return ok
}
func (t *timer) Reset(d time.Duration) bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	_, ok := t.clock.timers[t]
	select {
	case <-t.c:
	default:
	}
	if d <= 0 {
		delete(t.clock.timers, t)
		t.c <- t.clock.now
		return ok
	}
	t.clock.timers[t] = t.clock.now.Add(d)
	return ok
}

type suite struct {
	*testing.T
	ctx    context.Context
	open   Open
	traits Traits
}

func (s suite) store(o Options) store.Store {
	s.Helper()
	st := s.open(s.T, o)
	s.Cleanup(func() {
		if err := st.Close(); err != nil {
			s.Errorf("close: %v", err)
		}
	})
	return st
}

func (s suite) put(st store.Store, key, value string, o store.PutOptions) store.KV {
	s.Helper()
	kv, err := st.Put(s.ctx, key, []byte(value), o)
	if err != nil {
		s.Fatalf("put %s=%s: %v", key, value, err)
	}
	return kv
}

func (s suite) delete(st store.Store, key string, expect int64) int64 {
	s.Helper()
	_, rev, err := st.Delete(s.ctx, key, store.DeleteOptions{Expect: expect})
	if err != nil {
		s.Fatalf("delete %s: %v", key, err)
	}
	return rev
}

func (s suite) wantErr(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("error is %v, want %v", err, want)
	}
}

// wantKeys compares a page with "key=value" items.
func (s suite) wantKeys(p store.Page, err error, want ...string) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	got := []string{}
	for _, kv := range p.KVs {
		got = append(got, kv.Key+"="+string(kv.Value))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.Fatalf("got %v, want %v", got, want)
	}
}

// collect takes n events from w.
func (s suite) collect(w store.Watch, n int) (events []store.Event, progress int64) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	for len(events) < n {
		batch, rev, err := w.Next(ctx)
		if err != nil {
			s.Fatalf("after %d of %d events: %v", len(events), n, err)
		}
		events, progress = append(events, batch...), rev
	}
	if len(events) != n {
		s.Fatalf("got %d events, want %d: %v", len(events), n, events)
	}
	return events, progress
}

func (s suite) watch(st store.Store, prefix string, from int64) store.Watch {
	s.Helper()
	w, err := st.Watch(s.ctx, prefix, from)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(w.Close)
	return w
}

func (s suite) eventually(what string, ok func() bool) {
	s.Helper()
	await.True(s, 20*time.Second, what, ok)
}

// Run runs all cases.
func Run(t *testing.T, open Open) { RunWith(t, Traits{}, open) }

// RunWith runs all cases that make sense for an implementation of these traits.
func RunWith(t *testing.T, traits Traits, open Open) {
	for _, c := range cases {
		if c.bounds && traits.Unbounded {
			continue
		}
		t.Run(c.sentence, func(t *testing.T) {
			if traits.Remote {
				t.Parallel() // it waits more than it works
			}
			c.run(suite{t, t.Context(), open, traits})
		})
	}
}

var cases = []struct {
	sentence string
	run      func(suite)
	bounds   bool // about the window's and the rings' bounds
}{
	{"every committed write gets a revision greater than any before it", oneOrder, false},
	{"reads and watches of all keys agree on that order under concurrent writers", agreeOnOrder, false},
	{"a write names the revision it expects of its key, otherwise nothing changes", conditional, false},
	{"a write happens only while another key is at the revision that its guard names", guarded, false},
	{"of many writers that expect one revision exactly one wins", oneWinner, false},
	{"a get, range or watch that starts after a write returned sees it", visibleAtOnce, false},
	{"any revision between compacted and revision can be read", rangeAtRevision, false},
	{"an older revision gives compacted and a newer one future", outsideWindow, false},
	{"pages name the rest", pages, false},
	{"a read agrees with a model at every revision of the window", model, false},
	{"a watch delivers events after its revision, each once, in order, with the value before", watchFrom, false},
	{"a watch sees only its prefix", watchPrefix, false},
	{"a watcher that falls behind the window gets compacted and holds up nobody", slowWatcher, true},
	{"a watch ends with its context, with close and with the store", watchEnds, false},
	{"the window is bounded by changes and by bytes", windowBound, true},
	{"a key with a TTL is deleted with an event when its time is over", ttl, false},
	{"a rewrite changes the TTL and a write without one ends it", ttlRewrite, false},
	{"a ring drops the keys written longest ago, with events", ringBound, true},
	{"a ring never touches other keys", ringSparesState, true},
	{"attached travels with the write and stamp knows its revision", attached, false},
	{"a value that is too large is refused", tooLarge, false},
	{"a closed store refuses everything", closed, false},
	{"a done context changes nothing", doneContext, false},
}

func oneOrder(s suite) {
	st := s.store(Options{})
	last := st.Revision()
	for i := range 100 {
		kv := s.put(st, fmt.Sprintf("/k/%d", i%7), "v", store.PutOptions{Expect: store.Any, Class: store.Class(i % 2)})
		if kv.ModRevision <= last {
			s.Fatalf("revision %d after %d", kv.ModRevision, last)
		}
		last = kv.ModRevision
		if i%10 == 9 {
			rev := s.delete(st, fmt.Sprintf("/k/%d", i%7), store.Any)
			if rev <= last {
				s.Fatalf("revision %d after %d", rev, last)
			}
			last = rev
		}
	}
	if st.Revision() != last {
		s.Fatalf("store is at %d, the last write was %d", st.Revision(), last)
	}
}

func agreeOnOrder(s suite) {
	st := s.store(Options{})
	from := st.Revision()
	all, some := s.watch(st, "", from), s.watch(st, "/a/", from)
	const writers, each = 8, 200
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				key := fmt.Sprintf("/%c/%d", 'a'+w%2, i%5)
				if _, err := st.Put(s.ctx, key, fmt.Appendf(nil, "%d-%d", w, i), store.PutOptions{Expect: store.Any, Class: store.Class(i % 2)}); err != nil {
					s.Errorf("put: %v", err)
				}
			}
		})
	}
	wg.Wait()
	events, progress := s.collect(all, writers*each)
	if progress != st.Revision() {
		s.Fatalf("progress is %d, the store is at %d", progress, st.Revision())
	}
	own, _ := s.collect(some, writers*each/2)
	i := 0
	state := map[string]store.KV{}
	last := from
	for _, e := range events {
		if e.KV.ModRevision <= last {
			s.Fatalf("event %d after %d", e.KV.ModRevision, last)
		}
		last = e.KV.ModRevision
		if prev, ok := state[e.KV.Key]; ok != (e.Prev != nil) || ok && prev.ModRevision != e.Prev.ModRevision {
			s.Fatalf("event %d of %s: before it was %v, it says %v", last, e.KV.Key, prev, e.Prev)
		}
		state[e.KV.Key] = e.KV
		if e.KV.Key[1] == 'a' {
			if own[i].KV.ModRevision != last {
				s.Fatalf("the watch of one prefix has %d where the other has %d", own[i].KV.ModRevision, last)
			}
			i++
		}
	}
	p, err := st.Range(s.ctx, "", "", 0, 0)
	if err != nil || len(p.KVs) != len(state) {
		s.Fatalf("%d keys, %v; events gave %d", len(p.KVs), err, len(state))
	}
	for _, kv := range p.KVs {
		if want := state[kv.Key]; kv.ModRevision != want.ModRevision || string(kv.Value) != string(want.Value) {
			s.Fatalf("range has %v, events gave %v", kv, want)
		}
	}
}

func guarded(s suite) {
	st := s.store(Options{})
	g := s.put(st, "/guard", "1", store.PutOptions{Expect: store.Absent})
	under := func(key string, expect, revision int64) error {
		_, err := st.Put(s.ctx, key, []byte("x"), store.PutOptions{Expect: expect, Guards: []store.Guard{{Key: "/guard", Revision: revision}}})
		return err
	}
	if err := under("/a", store.Absent, g.ModRevision); err != nil {
		s.Fatalf("the guard holds: %v", err)
	}
	g2 := s.put(st, "/guard", "2", store.PutOptions{Expect: g.ModRevision})
	before := st.Revision()
	s.wantErr(under("/b", store.Absent, g.ModRevision), store.ErrGuard)
	s.wantErr(under("/a", store.Absent, g2.ModRevision), store.ErrExists)
	if _, _, err := st.Delete(s.ctx, "/guard", store.DeleteOptions{}); err != nil {
		s.Fatalf("delete the guard: %v", err)
	}
	s.wantErr(under("/b", store.Absent, g2.ModRevision), store.ErrGuard)
	if st.Revision() != before+1 {
		s.Fatalf("refused writes moved the revision from %d to %d", before, st.Revision())
	}
	page, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(page, err, "/a=x")
}

func conditional(s suite) {
	st := s.store(Options{})
	a := s.put(st, "/a", "1", store.PutOptions{Expect: store.Absent})
	before := st.Revision()
	_, err := st.Put(s.ctx, "/a", []byte("2"), store.PutOptions{Expect: store.Absent})
	s.wantErr(err, store.ErrExists)
	_, err = st.Put(s.ctx, "/a", []byte("2"), store.PutOptions{Expect: a.ModRevision + 7})
	s.wantErr(err, store.ErrConflict)
	_, err = st.Put(s.ctx, "/b", []byte("2"), store.PutOptions{Expect: a.ModRevision})
	s.wantErr(err, store.ErrNotFound)
	_, _, err = st.Delete(s.ctx, "/a", store.DeleteOptions{Expect: a.ModRevision + 7})
	s.wantErr(err, store.ErrConflict)
	_, _, err = st.Delete(s.ctx, "/b", store.DeleteOptions{Expect: store.Any})
	s.wantErr(err, store.ErrNotFound)
	if st.Revision() != before {
		s.Fatalf("refused writes moved the revision from %d to %d", before, st.Revision())
	}
	p, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/a=1")

	b := s.put(st, "/a", "2", store.PutOptions{Expect: a.ModRevision})
	if b.CreateRevision != a.ModRevision || b.CreateRevision != a.CreateRevision {
		s.Fatalf("created at %d, then at %d", a.CreateRevision, b.CreateRevision)
	}
	prev, rev, err := st.Delete(s.ctx, "/a", store.DeleteOptions{Expect: b.ModRevision})
	if err != nil || string(prev.Value) != "2" || rev <= b.ModRevision {
		s.Fatalf("deleted %v at %d: %v", prev, rev, err)
	}
	c := s.put(st, "/a", "3", store.PutOptions{Expect: store.Absent})
	if c.CreateRevision != c.ModRevision {
		s.Fatalf("created anew at %d, modified at %d", c.CreateRevision, c.ModRevision)
	}
}

func oneWinner(s suite) {
	st := s.store(Options{})
	kv := s.put(st, "/a", "0", store.PutOptions{})
	for round := range 50 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []store.KV
		for w := range 8 {
			wg.Go(func() {
				got, err := st.Put(s.ctx, "/a", fmt.Appendf(nil, "%d", w), store.PutOptions{Expect: kv.ModRevision})
				if err == nil {
					mu.Lock()
					won = append(won, got)
					mu.Unlock()
					return
				}
				if !errors.Is(err, store.ErrConflict) {
					s.Errorf("lost with %v", err)
				}
				// A conflict is about something that can be seen.
				if now, _, err := st.Get(s.ctx, "/a", 0); err != nil || now.ModRevision == kv.ModRevision {
					s.Errorf("conflict, but the key is still at %d: %v", now.ModRevision, err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			s.Fatalf("round %d: %d winners", round, len(won))
		}
		kv = won[0]
	}
}

func visibleAtOnce(s suite) {
	st := s.store(Options{})
	for i := range 50 {
		kv := s.put(st, "/a", fmt.Sprint(i), store.PutOptions{Expect: store.Any, Class: store.Class(i % 2)})
		if got, at, err := st.Get(s.ctx, "/a", 0); err != nil || got.ModRevision != kv.ModRevision || at < kv.ModRevision {
			s.Fatalf("get gives %v at %d, %v", got, at, err)
		}
		p, err := st.Range(s.ctx, "/a", "", 0, 0)
		s.wantKeys(p, err, fmt.Sprintf("/a=%d", i))
		ev, _ := s.collect(s.watch(st, "/a", kv.ModRevision-1), 1)
		if ev[0].KV.ModRevision != kv.ModRevision {
			s.Fatalf("watch gives %v", ev)
		}
	}
}

func rangeAtRevision(s suite) {
	st := s.store(Options{})
	r0 := st.Revision()
	a := s.put(st, "/a", "1", store.PutOptions{}).ModRevision
	b := s.put(st, "/b", "1", store.PutOptions{}).ModRevision
	a2 := s.put(st, "/a", "2", store.PutOptions{Expect: a}).ModRevision
	d := s.delete(st, "/b", b)
	b2 := s.put(st, "/b", "3", store.PutOptions{}).ModRevision
	for _, c := range []struct {
		at   int64
		want []string
	}{
		{r0, nil}, {a, []string{"/a=1"}}, {b, []string{"/a=1", "/b=1"}}, {a2, []string{"/a=2", "/b=1"}},
		{d, []string{"/a=2"}}, {b2, []string{"/a=2", "/b=3"}}, {0, []string{"/a=2", "/b=3"}},
	} {
		p, err := st.Range(s.ctx, "/", "", 0, c.at)
		s.wantKeys(p, err, c.want...)
		if c.at != 0 && p.Revision != c.at {
			s.Fatalf("read at %d says %d", c.at, p.Revision)
		}
	}
	if kv, at, err := st.Get(s.ctx, "/a", b); err != nil || at != b || string(kv.Value) != "1" {
		s.Fatalf("get at %d: %v at %d, %v", b, kv, at, err)
	}
	_, _, err := st.Get(s.ctx, "/b", d)
	s.wantErr(err, store.ErrNotFound)
	p, err := st.Range(s.ctx, "/a", "/b", 0, b2)
	s.wantKeys(p, err, "/a=2")
}

func outsideWindow(s suite) {
	st := s.store(Options{})
	a := s.put(st, "/a", "1", store.PutOptions{}).ModRevision
	b := s.put(st, "/a", "2", store.PutOptions{Expect: a}).ModRevision
	c := s.put(st, "/a", "3", store.PutOptions{Expect: b}).ModRevision
	_, _, err := st.Get(s.ctx, "/a", c+1)
	s.wantErr(err, store.ErrFuture)
	_, err = st.Range(s.ctx, "", "", 0, c+1)
	s.wantErr(err, store.ErrFuture)
	_, err = st.Watch(s.ctx, "", c+1)
	s.wantErr(err, store.ErrFuture)
	s.wantErr(st.Compact(s.ctx, c+1), store.ErrFuture)
	if err := st.Compact(s.ctx, b); err != nil {
		s.Fatal(err)
	}
	if err := st.Compact(s.ctx, a); err != nil {
		s.Fatalf("to compact what is compacted: %v", err)
	}
	if st.Compacted() != b {
		s.Fatalf("compacted is %d, want %d", st.Compacted(), b)
	}
	_, _, err = st.Get(s.ctx, "/a", a)
	s.wantErr(err, store.ErrCompacted)
	_, err = st.Range(s.ctx, "", "", 0, a)
	s.wantErr(err, store.ErrCompacted)
	_, err = st.Watch(s.ctx, "", a)
	s.wantErr(err, store.ErrCompacted)
	p, err := st.Range(s.ctx, "", "", 0, b)
	s.wantKeys(p, err, "/a=2")
	ev, _ := s.collect(s.watch(st, "", b), 1)
	if ev[0].KV.ModRevision != c || ev[0].Prev == nil || string(ev[0].Prev.Value) != "2" {
		s.Fatalf("watch from the compacted revision gives %v", ev)
	}
}

func pages(s suite) {
	st := s.store(Options{})
	for i := range 10 {
		s.put(st, fmt.Sprintf("/p/%d", i), "v", store.PutOptions{})
	}
	s.delete(st, "/p/5", store.Any)
	s.put(st, "/q/0", "v", store.PutOptions{})
	start, at := "/p/", int64(0)
	var got []string
	for n := 0; ; n++ {
		p, err := st.Range(s.ctx, start, store.PrefixEnd("/p/"), 4, at)
		if err != nil {
			s.Fatal(err)
		}
		for _, kv := range p.KVs {
			got = append(got, kv.Key[3:])
		}
		if want := int64(9 - len(got)); p.Remaining != want || p.More != (want > 0) {
			s.Fatalf("page %d: more %v, remaining %d, want %d", n, p.More, p.Remaining, want)
		}
		if !p.More {
			break
		}
		at, start = p.Revision, p.KVs[len(p.KVs)-1].Key+"\x00"
		s.put(st, fmt.Sprintf("/p/7-%d", n), "later", store.PutOptions{})
	}
	if fmt.Sprint(got) != "[0 1 2 3 4 6 7 8 9]" {
		s.Fatalf("pages gave %v", got)
	}
}

func model(s suite) {
	st := s.store(Options{Window: 300})
	r := rand.New(rand.NewPCG(1, 2))
	state := map[string]string{}
	type version struct {
		rev   int64
		state map[string]string
	}
	history := []version{{st.Revision(), map[string]string{}}}
	for i := range 1000 {
		key := fmt.Sprintf("/%02d", r.IntN(20))
		var rev int64
		if _, ok := state[key]; ok && r.IntN(3) == 0 {
			rev = s.delete(st, key, store.Any)
			delete(state, key)
		} else {
			value := fmt.Sprint(i)
			rev = s.put(st, key, value, store.PutOptions{Expect: store.Any, Class: store.Class(r.IntN(2))}).ModRevision
			state[key] = value
		}
		c := make(map[string]string, len(state))
		for k, v := range state {
			c[k] = v
		}
		history = append(history, version{rev, c})
	}
	read := 0
	for _, v := range history {
		p, err := st.Range(s.ctx, "", "", 0, v.rev)
		if v.rev < st.Compacted() {
			s.wantErr(err, store.ErrCompacted)
			continue
		}
		if err != nil {
			s.Fatal(err)
		}
		read++
		got := map[string]string{}
		for _, kv := range p.KVs {
			got[kv.Key] = string(kv.Value)
		}
		if fmt.Sprint(got) != fmt.Sprint(v.state) {
			s.Fatalf("at %d: got %v, want %v", v.rev, got, v.state)
		}
	}
	if s.traits.Unbounded && read != len(history) {
		s.Fatalf("%d of %d revisions can be read", read, len(history))
	}
	if !s.traits.Unbounded && (read < 250 || read > 310) {
		s.Fatalf("%d revisions can be read, with a window of 300", read)
	}
}
