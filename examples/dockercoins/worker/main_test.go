package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"proa.dev/examples/dockercoins/redis"
	"proa.dev/internal/await"
)

func TestTally(t *testing.T) {
	var a tally
	for i := range 3 * keepLatest {
		if !a.add(fmt.Sprintf("0%d", i)) {
			t.Fatal("a hash that begins with 0 is a coin")
		}
	}
	if a.add("10") {
		t.Fatal("10 is no coin")
	}
	if a.hashes != 3*keepLatest+1 || a.coins != 3*keepLatest || len(a.latest) != keepLatest || a.latest[0] != fmt.Sprintf("0%d", 3*keepLatest-1) {
		t.Errorf("%+v", a)
	}
	sum := tally{2, 1, []string{"0new"}}.plus(tally{3, 1, []string{"0old"}})
	if want := (tally{5, 2, []string{"0new", "0old"}}); !reflect.DeepEqual(sum, want) {
		t.Errorf("%+v, want %+v", sum, want)
	}
	want := [][]string{{"MULTI"}, {"INCRBY", "hashes", "5"}, {"INCRBY", "coins", "2"}, {"LPUSH", "latest", "0old", "0new"},
		{"LTRIM", "latest", "0", "19"}, {"SET", "miner:me", "2.5", "EX", "5"}, {"EXEC"}}
	if got := sum.commands("me", 2.5); !reflect.DeepEqual(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}

// store is as much of Redis as the worker uses.
type store struct {
	l      net.Listener
	mu     sync.Mutex
	counts map[string]int64
	latest []string
	broken bool
	group  sync.WaitGroup
}

func newStore(t *testing.T) *store {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &store{l: l, counts: map[string]int64{}}
	s.group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.group.Go(func() { s.talk(c) })
		}
	})
	return s
}

func (s *store) talk(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	queued := 0
	for {
		v, err := redis.Read(r)
		if err != nil {
			return
		}
		words := v.([]any)
		s.mu.Lock()
		if s.broken {
			s.mu.Unlock()
			return
		}
		reply := "+QUEUED\r\n"
		switch words[0] {
		case "MULTI":
			reply, queued = "+OK\r\n", 0
		case "INCRBY":
			n, _ := strconv.ParseInt(words[2].(string), 10, 64)
			s.counts[words[1].(string)] += n
			queued++
		case "EXEC":
			reply = fmt.Sprintf("*%d\r\n%s", queued, strings.Repeat(":1\r\n", queued))
		case "DEL":
			s.counts["deleted"]++
			reply = ":1\r\n"
		case "LPUSH":
			for _, w := range words[2:] {
				s.latest = append(s.latest, w.(string))
			}
			queued++
		default:
			queued++
		}
		s.mu.Unlock()
		fmt.Fprint(c, reply)
	}
}

func (s *store) set(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *store) get(name string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[name]
}

// The whole loop over fake services: it counts, lives through rng and Redis being
// away without losing a count, and counts once more at the end.
func TestWorker(t *testing.T) {
	var mu sync.Mutex
	away, made := false, int64(0)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.URL.Path == "/32" && away:
			http.Error(w, "having a rest", http.StatusServiceUnavailable)
		case r.URL.Path == "/32":
			w.Write(make([]byte, 32))
		default:
			made++
			fmt.Fprintf(w, "%d%s", made%2, strings.Repeat("a", 63))
		}
	}))
	defer web.Close()
	db := newStore(t)
	w := &worker{name: "me", rng: web.URL, hasher: web.URL, interval: time.Millisecond, web: web.Client(), db: redis.New(db.l.Addr().String(), ""), now: time.Now}
	defer db.group.Wait()
	defer db.l.Close()
	defer w.db.Close()
	ready := func() bool {
		rec := httptest.NewRecorder()
		w.health().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		return rec.Code == 200
	}
	if ready() {
		t.Error("ready before anything was counted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { w.mine(ctx) })
	group.Go(func() { w.count(ctx) })
	defer group.Wait()
	defer cancel()

	await.True(t, 20*time.Second, "first count", func() bool { return db.get("hashes") > 0 && ready() })
	mu.Lock()
	away = true
	mu.Unlock()
	await.True(t, 20*time.Second, "rng away", func() bool { return !ready() })
	mu.Lock()
	away = false
	mu.Unlock()
	await.True(t, 20*time.Second, "rng back", ready)
	db.set(true)
	await.True(t, 20*time.Second, "redis away", func() bool { return !ready() })
	db.set(false)
	await.True(t, 20*time.Second, "redis back", ready)
	cancel()
	group.Wait()
	mu.Lock()
	defer mu.Unlock()
	hashes, coins := db.get("hashes"), db.get("coins")
	// The hash that the end interrupted may be made and not counted.
	if hashes != made && hashes != made-1 {
		t.Errorf("hasher made %d hashes, %d are counted", made, hashes)
	}
	if coins < hashes/2-1 || coins > hashes/2+1 {
		t.Errorf("%d coins of %d hashes, want half", coins, hashes)
	}
	if db.get("deleted") != 1 {
		t.Error("the worker did not sign off")
	}
}

func TestAskProblems(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "short") }))
	defer web.Close()
	w := &worker{rng: web.URL, hasher: web.URL, web: web.Client()}
	if _, err := w.dig(context.Background()); err == nil || !strings.Contains(err.Error(), "ask rng: it answered 5 bytes, not 32") {
		t.Error(err)
	}
	if err := executed([]any{"OK", []any{int64(1), redis.Error("WRONGTYPE x")}}); err == nil {
		t.Error("an error within EXEC's answer is none")
	}
	if err := executed([]any{"OK", nil}); err == nil {
		t.Error("an aborted transaction is none")
	}
}
