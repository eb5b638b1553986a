package sim_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/sim"
	"proa.dev/store"
	"proa.dev/store/mem"
	"proa.dev/view"
	"proa.dev/view/feed"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed")
	seedsFlag = flag.Int("seeds", 60, "how many seeds to run")
)

var _ env.Rand = (*sim.Rand)(nil)

var (
	configMaps = &kind.Kind{Version: "v1", Kind: "ConfigMap", Plural: "configmaps", Prefix: "configmaps", New: func() kind.Object { return &corev1.ConfigMap{} }}
	table      = kind.NewTable(configMaps)
)

func decode(k *kind.Kind, data []byte) (kind.Object, error) {
	o := k.New()
	return o, json.Unmarshal(data, o)
}

// counter is the toy: a server that keeps counters in its store and answers from
// its view, and clients that count up, each request with a number of its own, and
// ask again until they get an answer.
type counter struct {
	*sim.Sim
	clients int
	class   store.Class    // of the server's writes
	acked   map[string]int // highest number that a client was told is stored
	served  struct {       // newest revision that the server's view has shown in this life
		life     int
		revision int64
	}
	view *view.View
	st   *sim.Store
	read map[int64]int // revision → counter that was written at it, as decoded
}

type request struct {
	client string
	number int
}

type answer struct{ number int }

func newCounter(seed uint64, clients int, class store.Class) *counter {
	c := &counter{Sim: sim.New(seed), clients: clients, class: class, acked: map[string]int{}, read: map[int64]int{}}
	c.Add("server", c.server)
	for i := range clients {
		c.Add(fmt.Sprint("client-", i), c.client)
	}
	c.Invariant("what was acknowledged is stored", func() error {
		for i := range clients {
			name := fmt.Sprint("client-", i)
			if got := c.stored(name); got < c.acked[name] {
				return fmt.Errorf("%s was told that %d is stored, and it is %d", name, c.acked[name], got)
			}
		}
		return nil
	})
	c.Invariant("a view never goes back", func() error {
		a := c.Actor("server")
		if !a.IsUp() || c.view == nil {
			return nil
		}
		rev := c.view.Snapshot().Revision()
		if c.served.life == a.Life() && rev < c.served.revision {
			return fmt.Errorf("from %d to %d", c.served.revision, rev)
		}
		c.served.life, c.served.revision = a.Life(), rev
		return nil
	})
	return c
}

// stored reads a counter from the disk of a server that is up.
func (c *counter) stored(name string) int {
	if !c.Actor("server").IsUp() {
		return c.acked[name]
	}
	kv, _, err := c.st.Get(context.Background(), configMaps.StoreKey("default", name), 0)
	if errors.Is(err, store.ErrNotFound) {
		return 0
	}
	if err != nil {
		c.Fail(err)
	}
	if n, ok := c.read[kv.ModRevision]; ok {
		return n
	}
	o, err := decode(configMaps, kv.Value)
	if err != nil {
		c.Fail(err)
		return 0
	}
	n, _ := strconv.Atoi(o.(*corev1.ConfigMap).Data["n"])
	c.read[kv.ModRevision] = n
	return n
}

func (c *counter) server(a *sim.Actor) sim.Handler {
	st := a.Disk().Open()
	v := view.New(table, 64)
	f := feed.New(st, v, decode, nil)
	if err := f.Load(context.Background()); err != nil {
		c.Fail(err)
	}
	c.view, c.st = v, st
	return func(from string, message any) {
		r := message.(request)
		cm, _ := v.Snapshot().Get(configMaps, "default", r.client).(*corev1.ConfigMap)
		next := &corev1.ConfigMap{}
		expect := store.Absent
		if cm != nil {
			next = cm.DeepCopy()
			expect, _ = strconv.ParseInt(cm.ResourceVersion, 10, 64)
		}
		next.Namespace, next.Name = "default", r.client
		have, _ := strconv.Atoi(next.Data["n"])
		if r.number > have {
			next.Data = map[string]string{"n": strconv.Itoa(r.number)}
			next.ResourceVersion = ""
			data, err := json.Marshal(next)
			if err != nil {
				c.Fail(err)
				return
			}
			if _, err := st.Put(context.Background(), configMaps.StoreKey("default", r.client), data, store.PutOptions{Expect: expect, Class: c.class,
				Attached: next, Stamp: func(rev int64) { next.ResourceVersion = strconv.FormatInt(rev, 10) }}); err != nil {
				c.Fail(fmt.Errorf("write from the view's newest state: %w", err))
				return
			}
			if _, err := f.Poll(); err != nil {
				c.Fail(err)
			}
		}
		a.Send(from, fmt.Sprint("stored ", r.number), answer{r.number})
	}
}

func (c *counter) client(a *sim.Actor) sim.Handler {
	number := c.acked[a.Name()] + 1
	var ask func()
	ask = func() {
		a.Send("server", fmt.Sprint("count ", number), request{a.Name(), number})
		a.After(50*time.Millisecond, "ask again", ask)
	}
	a.After(time.Millisecond, "begin", ask)
	return func(from string, message any) {
		n := message.(answer).number
		c.acked[a.Name()] = max(c.acked[a.Name()], n)
		if n == number {
			number++
		}
	}
}

func (c *counter) run(virtual time.Duration) error {
	c.Blow(sim.Storm)
	if err := c.RunFor(virtual); err != nil {
		return err
	}
	c.Calm()
	want := map[string]int{}
	for i := range c.clients {
		name := fmt.Sprint("client-", i)
		want[name] = c.acked[name] + 3
	}
	return c.Eventually(10*time.Second, "every client counts on", func() error {
		for i := range c.clients {
			name := fmt.Sprint("client-", i)
			if c.acked[name] < want[name] {
				return fmt.Errorf("%s is at %d, want %d", name, c.acked[name], want[name])
			}
		}
		return nil
	})
}

func TestSeeds(t *testing.T) {
	first, n := uint64(1), *seedsFlag
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	var total sim.Counts
	steps := 0
	start := time.Now()
	for seed := first; seed < first+uint64(n); seed++ {
		c := newCounter(seed, 3, store.Synced)
		if err := c.run(30 * time.Second); err != nil {
			var f *sim.Failure
			if errors.As(err, &f) {
				t.Log(f.Story())
			}
			t.Fatal(err)
		}
		got := c.Counts()
		total.Crashes += got.Crashes
		total.Partitions += got.Partitions
		total.Delivered += got.Delivered
		total.Dropped += got.Dropped
		total.Doubled += got.Doubled
		steps += c.Steps()
	}
	t.Logf("%d seeds, %d steps, %+v, %.1f virtual hours per minute", n, steps, total, float64(n)*30/3600/time.Since(start).Minutes())
	if n > 10 && (total.Crashes == 0 || total.Partitions == 0 || total.Dropped == 0 || total.Doubled == 0) {
		t.Fatalf("nothing went wrong: %+v", total)
	}
}

// The same seed gives the same run, another one another.
func TestSameSeedSameRun(t *testing.T) {
	digest := func(seed uint64) uint64 {
		c := newCounter(seed, 3, store.Synced)
		if err := c.run(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		return c.Digest()
	}
	for seed := uint64(1); seed < 6; seed++ {
		if a, b := digest(seed), digest(seed); a != b {
			t.Fatalf("seed %d gave %x, then %x", seed, a, b)
		}
	}
	if digest(1) == digest(2) {
		t.Fatal("two seeds gave the same run")
	}
}

// A server that acknowledges before the write is durable is found out, and the
// line that says so replays it.
func TestPlantedMistakeIsFound(t *testing.T) {
	for seed := uint64(1); seed < 100; seed++ {
		err := newCounter(seed, 3, store.Buffered).run(30 * time.Second)
		if err == nil {
			continue
		}
		var f *sim.Failure
		if !errors.As(err, &f) || !strings.HasPrefix(err.Error(), fmt.Sprintf("sim: seed %d step %d: what was acknowledged is stored: client-", seed, f.Step)) || len(f.Log) == 0 {
			t.Fatal(err)
		}
		again := newCounter(seed, 3, store.Buffered).run(30 * time.Second)
		if again == nil || again.Error() != err.Error() {
			t.Fatalf("first: %v\nreplayed: %v", err, again)
		}
		t.Log(err)
		return
	}
	t.Fatal("100 seeds did not find it")
}

func TestOrderOfEvents(t *testing.T) {
	s := sim.New(1)
	var got []string
	s.At(2*time.Second, "b", func() { got = append(got, "b") })
	s.At(time.Second, "a", func() {
		got = append(got, "a")
		s.At(time.Second, "c, later than b", func() { got = append(got, "c") })
		s.At(0, "now", func() { got = append(got, "now") })
	})
	if err := s.RunFor(3 * time.Second); err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != "a now b c" || !s.Now().Equal(sim.Epoch.Add(3*time.Second)) || s.Steps() != 4 {
		t.Fatalf("%v at %v after %d steps", got, s.Now(), s.Steps())
	}
}

func TestTimersClocksAndCrashes(t *testing.T) {
	s := sim.New(1)
	var fired []string
	var a *sim.Actor
	a = s.Add("a", func(a *sim.Actor) sim.Handler {
		life := a.Life()
		a.After(10*time.Second, "ten", func() { fired = append(fired, fmt.Sprintf("%d at %v", life, s.Now().Sub(sim.Epoch))) })
		stop := a.After(time.Second, "never", func() { t.Error("a stopped timer fired") })
		stop()
		return func(from string, m any) { fired = append(fired, fmt.Sprint(m)) }
	})
	b := s.Add("b", func(*sim.Actor) sim.Handler { return func(string, any) {} })
	if err := s.RunFor(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	timer := a.Clock().NewTimer(time.Second)
	s.Drift("a", 2, time.Hour)
	if d := a.Clock().Now().Sub(s.Now()); d != time.Hour {
		t.Fatalf("clock is %v ahead", d)
	}
	if err := s.RunFor(time.Second); err != nil {
		t.Fatal(err)
	}
	if d := a.Clock().Now().Sub(s.Now()); d != time.Hour+time.Second {
		t.Fatalf("clock is %v ahead after a second at double speed", d)
	}
	select {
	case <-timer.C():
	default:
		t.Fatal("the timer of one second has not fired")
	}
	b.Send("a", "lost", "lost")
	s.Crash("a")
	b.Send("a", "lost too", "lost too")
	if err := s.RunFor(time.Second); err != nil {
		t.Fatal(err)
	}
	s.Restart("a")
	b.Send("a", "arrives", "arrives")
	s.Cut("a", "b")
	b.Send("a", "cut", "cut")
	if err := s.RunFor(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.Join("b", "a")
	b.Send("a", "again", "again")
	if err := s.RunFor(time.Second); err != nil {
		t.Fatal(err)
	}
	// The second life's ten seconds take five, its clock runs at double speed; what
	// was on its way when the partition began is cut too.
	if got := strings.Join(fired, ", "); got != "2 at 12s, again" {
		t.Fatalf("got %s", got)
	}
}

func TestDiskLosesTheUnsyncedTail(t *testing.T) {
	lost, kept := 0, 0
	for seed := uint64(1); seed <= 50; seed++ {
		s := sim.New(seed)
		var st *sim.Store
		s.Add("a", func(a *sim.Actor) sim.Handler {
			a.Disk().Configure(mem.Config{Window: 100})
			st = a.Disk().Open()
			return func(string, any) {}
		})
		if err := s.RunFor(time.Millisecond); err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		var synced, last store.KV
		for i := range 6 {
			class := store.Buffered
			if i < 3 {
				class = store.Synced
			}
			kv, err := st.Put(ctx, fmt.Sprint("/", i), nil, store.PutOptions{Class: class, TTL: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			if last = kv; class == store.Synced {
				synced = kv
			}
		}
		old := st
		s.Crash("a")
		if _, err := old.Put(ctx, "/late", nil, store.PutOptions{}); !errors.Is(err, store.ErrClosed) {
			t.Fatalf("write after the crash: %v", err)
		}
		s.Restart("a")
		p, err := st.Range(ctx, "", "", 0, 0)
		if err != nil || len(p.KVs) < 3 || p.KVs[2].ModRevision != synced.ModRevision || st.Revision() <= last.ModRevision {
			t.Fatalf("seed %d: %v at %d, %v", seed, p.KVs, st.Revision(), err)
		}
		for i, kv := range p.KVs {
			if kv.Key != fmt.Sprint("/", i) {
				t.Fatalf("seed %d: not a prefix: %v", seed, p.KVs)
			}
		}
		lost += 6 - len(p.KVs)
		kept += len(p.KVs) - 3
		if err := s.RunFor(2 * time.Minute); err != nil {
			t.Fatal(err)
		}
		if st.Len() != 0 {
			t.Fatal("expiry did not outlive the crash")
		}
	}
	if lost == 0 || kept == 0 {
		t.Fatalf("%d writes lost, %d kept", lost, kept)
	}
}
