package storetest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"proa.dev/internal/await"
	"proa.dev/store"
)

func watchFrom(s suite) {
	st := s.store(Options{})
	r0 := st.Revision()
	a := s.put(st, "/a", "1", store.PutOptions{}).ModRevision
	b := s.put(st, "/a", "2", store.PutOptions{Expect: a}).ModRevision
	d := s.delete(st, "/a", b)
	now := s.watch(st, "", 0)
	c := s.put(st, "/a", "3", store.PutOptions{}).ModRevision

	show := func(es []store.Event) string {
		var parts []string
		for _, e := range es {
			p := fmt.Sprintf("%d:%s", e.KV.ModRevision, e.KV.Value)
			if e.Deleted {
				p += "deleted"
			}
			if e.Prev != nil {
				p += fmt.Sprintf("(%d:%s)", e.Prev.ModRevision, e.Prev.Value)
			}
			parts = append(parts, p)
		}
		return strings.Join(parts, " ")
	}
	all := []string{fmt.Sprintf("%d:1", a), fmt.Sprintf("%d:2(%d:1)", b, a), fmt.Sprintf("%d:deleted(%d:2)", d, b), fmt.Sprintf("%d:3", c)}
	for i, from := range []int64{r0, a, b, d} {
		es, progress := s.collect(s.watch(st, "/", from), 4-i)
		if want := strings.Join(all[i:], " "); show(es) != want || progress != c {
			s.Fatalf("from %d: got %q up to %d, want %q", from, show(es), progress, want)
		}
	}
	es, _ := s.collect(now, 1)
	if show(es) != all[3] {
		s.Fatalf("from now on: got %q", show(es))
	}
	if es[0].KV.CreateRevision != c {
		s.Fatalf("created at %d, want %d", es[0].KV.CreateRevision, c)
	}
}

func watchPrefix(s suite) {
	st := s.store(Options{})
	w := s.watch(st, "/a/", 0)
	for i := range 5 {
		s.put(st, fmt.Sprintf("/ab%d", i), "no", store.PutOptions{})
		s.put(st, fmt.Sprintf("/a/%d", i), "yes", store.PutOptions{})
	}
	es, _ := s.collect(w, 5)
	for i, e := range es {
		if e.KV.Key != fmt.Sprintf("/a/%d", i) {
			s.Fatalf("event %d is of %s", i, e.KV.Key)
		}
	}
	// A watcher that waits while others write keeps its place.
	got := make(chan error, 1)
	go func() {
		es, _, err := w.Next(s.ctx)
		if err == nil && (len(es) != 1 || es[0].KV.Key != "/a/last") {
			err = fmt.Errorf("got %v", es)
		}
		got <- err
	}()
	for i := range 100 {
		s.put(st, fmt.Sprintf("/b/%d", i), "no", store.PutOptions{})
	}
	s.put(st, "/a/last", "yes", store.PutOptions{})
	if err := <-got; err != nil {
		s.Fatal(err)
	}
}

func slowWatcher(s suite) {
	st := s.store(Options{Window: 50})
	slow, fast := s.watch(st, "", 0), s.watch(st, "", 0)
	for i := range 500 {
		s.put(st, "/a", fmt.Sprint(i), store.PutOptions{Expect: store.Any, Class: store.Buffered})
		s.collect(fast, 1)
	}
	_, _, err := slow.Next(s.ctx)
	s.wantErr(err, store.ErrCompacted)
	_, _, err = slow.Next(s.ctx)
	s.wantErr(err, store.ErrCompacted)
}

func watchEnds(s suite) {
	st := s.open(s.T, Options{})
	w, err := st.Watch(s.ctx, "", 0)
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, _, err = w.Next(ctx)
	s.wantErr(err, context.Canceled)
	kv := s.put(st, "/a", "1", store.PutOptions{})
	var es []store.Event
	var rev int64
	next := func() error { es, rev, err = w.Next(ctx); return err }
	if s.traits.Remote {
		// Events of a store that is elsewhere are there some time after the write.
		await.Nil(s, 20*time.Second, "the event of the write", next)
	} else {
		next()
	}
	if err != nil || len(es) != 1 || rev != kv.ModRevision {
		s.Fatalf("what is there comes even when the context is done: %v %d %v", es, rev, err)
	}
	w2 := s.watch(st, "", 0)
	ended := make(chan error, 2)
	go func() { _, _, err := w.Next(s.ctx); ended <- err }()
	w.Close()
	s.wantErr(<-ended, store.ErrClosed)
	go func() { _, _, err := w2.Next(s.ctx); ended <- err }()
	if err := st.Close(); err != nil {
		s.Fatal(err)
	}
	s.wantErr(<-ended, store.ErrClosed)
}

func windowBound(s suite) {
	st := s.store(Options{Window: 20})
	first := s.put(st, "/a", "v", store.PutOptions{}).ModRevision
	for range 100 {
		s.put(st, "/a", "v", store.PutOptions{Expect: store.Any, Class: store.Buffered})
	}
	if c := st.Compacted(); c < first+75 || c > first+85 {
		s.Fatalf("compacted is %d after 100 changes from %d with a window of 20", c, first)
	}
	st = s.store(Options{WindowBytes: 100_000})
	first = s.put(st, "/a", "v", store.PutOptions{}).ModRevision
	big := string(bytes.Repeat([]byte("x"), 10_000))
	for range 100 {
		s.put(st, "/a", big, store.PutOptions{Expect: store.Any, Class: store.Buffered})
	}
	if c := st.Compacted(); c < first+85 {
		s.Fatalf("compacted is %d after 100 changes of 10 kB from %d with a window of 100 kB", c, first)
	}
	p, err := st.Range(s.ctx, "", "", 0, st.Compacted())
	if err != nil || len(p.KVs) != 1 {
		s.Fatalf("at the compacted revision: %v, %v", p, err)
	}
}

func ttl(s suite) {
	if s.traits.RealTime {
		s.ttlInTime()
		return
	}
	clock := NewClock()
	st := s.store(Options{Clock: clock})
	w := s.watch(st, "", 0)
	kv := s.put(st, "/t", "gone soon", store.PutOptions{TTL: 10 * time.Second})
	s.put(st, "/s", "stays", store.PutOptions{})
	clock.Advance(9 * time.Second)
	if _, _, err := st.Get(s.ctx, "/t", 0); err != nil {
		s.Fatalf("after 9 of 10 s: %v", err)
	}
	clock.Advance(2 * time.Second)
	es, _ := s.collect(w, 3)
	if last := es[2]; !last.Deleted || last.KV.Key != "/t" || last.Prev == nil || last.Prev.ModRevision != kv.ModRevision {
		s.Fatalf("events are %v", es)
	}
	p, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/s=stays")
}

// ttlInTime is ttl on a clock that runs by itself.
func (s suite) ttlInTime() {
	const life = 2 * time.Second
	st := s.store(Options{})
	w := s.watch(st, "", 0)
	began := time.Now()
	kv := s.put(st, "/t", "gone soon", store.PutOptions{TTL: life})
	s.put(st, "/s", "stays", store.PutOptions{})
	es, _ := s.collect(w, 3)
	if took := time.Since(began); took < life || took > life+s.traits.Slack {
		s.Fatalf("it lived %v, its TTL is %v", took, life)
	}
	if last := es[2]; !last.Deleted || last.KV.Key != "/t" || last.Prev == nil || last.Prev.ModRevision != kv.ModRevision {
		s.Fatalf("events are %v", es)
	}
	p, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/s=stays")
}

// ttlRewriteInTime is ttlRewrite on a clock that runs by itself.
func (s suite) ttlRewriteInTime() {
	const life = 2 * time.Second
	st := s.store(Options{})
	for _, k := range []string{"/longer", "/never", "/deleted", "/short"} {
		s.put(st, k, "1", store.PutOptions{TTL: life})
	}
	s.put(st, "/longer", "2", store.PutOptions{Expect: store.Any, TTL: 3*life + s.traits.Slack})
	s.put(st, "/never", "2", store.PutOptions{Expect: store.Any})
	s.delete(st, "/deleted", store.Any)
	s.eventually("/short expires", func() bool { _, _, err := st.Get(s.ctx, "/short", 0); return err != nil })
	p, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/longer=2", "/never=2")
	s.eventually("/longer expires", func() bool { _, _, err := st.Get(s.ctx, "/longer", 0); return err != nil })
	p, err = st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/never=2")
}

func ttlRewrite(s suite) {
	if s.traits.RealTime {
		s.ttlRewriteInTime()
		return
	}
	clock := NewClock()
	st := s.store(Options{Clock: clock})
	for _, k := range []string{"/longer", "/never", "/deleted", "/short"} {
		s.put(st, k, "1", store.PutOptions{TTL: 10 * time.Second})
	}
	s.put(st, "/longer", "2", store.PutOptions{Expect: store.Any, TTL: 30 * time.Second})
	s.put(st, "/never", "2", store.PutOptions{Expect: store.Any})
	s.delete(st, "/deleted", store.Any)
	clock.Advance(11 * time.Second)
	s.eventually("/short expires", func() bool { _, _, err := st.Get(s.ctx, "/short", 0); return err != nil })
	p, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/longer=2", "/never=2")
	clock.Advance(20 * time.Second)
	s.eventually("/longer expires", func() bool { _, _, err := st.Get(s.ctx, "/longer", 0); return err != nil })
	p, err = st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/never=2")
}

func ringBound(s suite) {
	st := s.store(Options{RingPrefix: "/events/", RingObjects: 3})
	w := s.watch(st, "", 0)
	for i := range 4 {
		if i == 3 {
			s.put(st, "/events/0", "again", store.PutOptions{Expect: store.Any})
		}
		s.put(st, fmt.Sprintf("/events/%d", i), "v", store.PutOptions{Class: store.Buffered})
	}
	p, err := st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/events/0=again", "/events/2=v", "/events/3=v")
	es, _ := s.collect(w, 6)
	if last := es[5]; !last.Deleted || last.KV.Key != "/events/1" {
		s.Fatalf("the last event is %v", last)
	}
	// The oldest is now 2, then 0.
	s.delete(st, "/events/2", store.Any)
	s.put(st, "/events/4", "v", store.PutOptions{})
	s.put(st, "/events/5", "v", store.PutOptions{})
	p, err = st.Range(s.ctx, "", "", 0, 0)
	s.wantKeys(p, err, "/events/3=v", "/events/4=v", "/events/5=v")

	st = s.store(Options{RingPrefix: "/events/", RingBytes: 10_000})
	value := strings.Repeat("x", 1000)
	for i := range 5000 {
		s.put(st, fmt.Sprintf("/events/%04d", i%40), value, store.PutOptions{Expect: store.Any, Class: store.Buffered})
	}
	p, err = st.Range(s.ctx, "", "", 0, 0)
	if err != nil || len(p.KVs) != 9 {
		s.Fatalf("%d keys of 1 kB in a ring of 10 kB, %v", len(p.KVs), err)
	}
}

func ringSparesState(s suite) {
	st := s.store(Options{RingPrefix: "/events/", RingObjects: 5})
	for i := range 50 {
		s.put(st, fmt.Sprintf("/state/%02d", i), "v", store.PutOptions{Class: store.Buffered})
		s.put(st, fmt.Sprintf("/events/%02d", i), "v", store.PutOptions{Class: store.Buffered})
	}
	p, err := st.Range(s.ctx, "/state/", store.PrefixEnd("/state/"), 0, 0)
	if err != nil || len(p.KVs) != 50 {
		s.Fatalf("%d of 50 keys of state are there, %v", len(p.KVs), err)
	}
	p, err = st.Range(s.ctx, "/events/", store.PrefixEnd("/events/"), 0, 0)
	if err != nil || len(p.KVs) != 5 {
		s.Fatalf("%d events are there, want 5, %v", len(p.KVs), err)
	}
}

func attached(s suite) {
	st := s.store(Options{})
	w := s.watch(st, "", 0)
	type object struct{ rev int64 }
	o := &object{}
	calls := 0
	kv := s.put(st, "/a", "1", store.PutOptions{Attached: o, Stamp: func(rev int64) { o.rev = rev; calls++ }})
	if kv.Attached != o || o.rev != kv.ModRevision || calls != 1 {
		s.Fatalf("attached %v, stamped %d %d times, revision %d", kv.Attached, o.rev, calls, kv.ModRevision)
	}
	if got, _, err := st.Get(s.ctx, "/a", 0); err != nil || got.Attached != o {
		s.Fatalf("get gives %v, %v", got.Attached, err)
	}
	last := &object{}
	_, rev, err := st.Delete(s.ctx, "/a", store.DeleteOptions{Expect: kv.ModRevision, Attached: last, Stamp: func(rev int64) { last.rev = rev }})
	if err != nil || last.rev != rev {
		s.Fatalf("stamped %d, deleted at %d, %v", last.rev, rev, err)
	}
	es, _ := s.collect(w, 2)
	if es[0].KV.Attached != o || es[1].KV.Attached != last || es[1].Prev.Attached != o {
		s.Fatalf("events carry %v", es)
	}
	// A refused write stamps nothing.
	_, err = st.Put(s.ctx, "/b", nil, store.PutOptions{Expect: 7, Stamp: func(int64) { s.Error("stamp of a refused write") }})
	s.wantErr(err, store.ErrNotFound)
}

func tooLarge(s suite) {
	st := s.store(Options{})
	_, err := st.Put(s.ctx, "/a", make([]byte, store.MaxValueBytes+1), store.PutOptions{})
	s.wantErr(err, store.ErrTooLarge)
	largest := store.MaxValueBytes
	if s.traits.MaxValue > 0 {
		largest = s.traits.MaxValue
	}
	s.put(st, "/a", strings.Repeat("x", largest), store.PutOptions{})
	kv, _, err := st.Get(s.ctx, "/a", 0)
	if err != nil || len(kv.Value) != largest {
		s.Fatalf("%d bytes, %v", len(kv.Value), err)
	}
}

func closed(s suite) {
	st := s.open(s.T, Options{})
	s.put(st, "/a", "1", store.PutOptions{})
	if err := st.Close(); err != nil {
		s.Fatal(err)
	}
	_, err := st.Put(s.ctx, "/a", nil, store.PutOptions{Expect: store.Any})
	s.wantErr(err, store.ErrClosed)
	_, _, err = st.Delete(s.ctx, "/a", store.DeleteOptions{Expect: store.Any})
	s.wantErr(err, store.ErrClosed)
	_, _, err = st.Get(s.ctx, "/a", 0)
	s.wantErr(err, store.ErrClosed)
	_, err = st.Range(s.ctx, "", "", 0, 0)
	s.wantErr(err, store.ErrClosed)
	_, err = st.Watch(s.ctx, "", 0)
	s.wantErr(err, store.ErrClosed)
	s.wantErr(st.Compact(s.ctx, 1), store.ErrClosed)
	if err := st.Close(); err != nil {
		s.Fatalf("second close: %v", err)
	}
}

func doneContext(s suite) {
	st := s.store(Options{})
	s.put(st, "/a", "1", store.PutOptions{})
	before := st.Revision()
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, err := st.Put(ctx, "/a", nil, store.PutOptions{Expect: store.Any})
	s.wantErr(err, context.Canceled)
	_, _, err = st.Delete(ctx, "/a", store.DeleteOptions{Expect: store.Any})
	s.wantErr(err, context.Canceled)
	_, _, err = st.Get(ctx, "/a", 0)
	s.wantErr(err, context.Canceled)
	_, err = st.Range(ctx, "", "", 0, 0)
	s.wantErr(err, context.Canceled)
	_, err = st.Watch(ctx, "", 0)
	s.wantErr(err, context.Canceled)
	if st.Revision() != before {
		s.Fatalf("revision went from %d to %d", before, st.Revision())
	}
}
