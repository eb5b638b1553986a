// Command worker digs for coins: it asks rng for 32 random bytes, has hasher hash
// them, and has found a coin when the hash begins with 0. Once a second it adds
// what it did to Redis.
//
//	LISTEN          address of /healthz and /readyz (:8080)
//	RNG, HASHER     base URLs (http://rng, http://hasher)
//	REDIS           address (redis:6379)
//	REDIS_PASSWORD  none if empty
//	INTERVAL        rest after each hash (100ms)
//
// In Redis: counters "hashes" and "coins", the list "latest" of the newest coins,
// and "miner:NAME" with its hashes per second, which expires after five seconds.
//
// While a service is away the worker asks again, ever more slowly, up to every five
// seconds, and keeps its counts until Redis is back. When the answer to a count
// gets lost, that second may count twice.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"proa.dev/examples/dockercoins/redis"
	"proa.dev/examples/dockercoins/serve"
)

// version is set by the linker.
var version = "dev"

const (
	firstRest  = 250 * time.Millisecond
	longRest   = 5 * time.Second
	keepLatest = 20
	fresh      = 10 * time.Second // ready: the last count is younger
)

func main() { serve.Main(run) }

func run(ctx context.Context) error {
	interval, err := serve.Duration("INTERVAL", 100*time.Millisecond)
	if err != nil {
		return err
	}
	name, _ := os.Hostname()
	w := &worker{name: name, rng: serve.Env("RNG", "http://rng"), hasher: serve.Env("HASHER", "http://hasher"), interval: interval,
		web: &http.Client{Timeout: 10 * time.Second}, db: redis.New(serve.Env("REDIS", "redis:6379"), os.Getenv("REDIS_PASSWORD")), now: time.Now}
	defer w.db.Close()
	log.Printf("worker %s on %s: rng %s, hasher %s", version, name, w.rng, w.hasher)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() { w.mine(ctx) })
	group.Go(func() { w.count(ctx) })
	err = serve.HTTP(ctx, serve.Env("LISTEN", ":8080"), w.health())
	cancel()
	group.Wait()
	return err
}

type worker struct {
	name, rng, hasher string
	interval          time.Duration
	web               *http.Client
	db                *redis.Client
	now               func() time.Time

	mu      sync.Mutex
	tally   tally     // not yet in Redis
	counted time.Time // when Redis last took a tally
	noHash  string    // why the last hash did not come; empty: it did
	noCount string    // the same for the last count
}

// tally is what was done since the last count.
type tally struct {
	hashes, coins int64
	latest        []string // newest first
}

func (t *tally) add(hash string) (coin bool) {
	t.hashes++
	if !strings.HasPrefix(hash, "0") {
		return false
	}
	t.coins++
	t.latest = append([]string{hash}, t.latest[:min(len(t.latest), keepLatest-1)]...)
	return true
}

// plus joins an older tally that Redis did not take.
func (t tally) plus(old tally) tally {
	l := append(append([]string{}, t.latest...), old.latest...)
	return tally{t.hashes + old.hashes, t.coins + old.coins, l[:min(len(l), keepLatest)]}
}

// commands are one transaction, so that counts never tear.
func (t tally) commands(name string, speed float64) [][]string {
	cmds := [][]string{{"MULTI"}, {"INCRBY", "hashes", strconv.FormatInt(t.hashes, 10)}, {"INCRBY", "coins", strconv.FormatInt(t.coins, 10)}}
	if len(t.latest) > 0 {
		push := []string{"LPUSH", "latest"}
		for i := len(t.latest) - 1; i >= 0; i-- {
			push = append(push, t.latest[i])
		}
		cmds = append(cmds, push, []string{"LTRIM", "latest", "0", strconv.Itoa(keepLatest - 1)})
	}
	return append(cmds, []string{"SET", "miner:" + name, strconv.FormatFloat(speed, 'f', 1, 64), "EX", "5"}, []string{"EXEC"})
}

// mine hashes until ctx ends.
func (w *worker) mine(ctx context.Context) {
	rest := firstRest
	for {
		hash, err := w.dig(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Printf("no hash: %v; again in %s", err, rest)
			w.trouble(&w.noHash, err)
			if !sleep(ctx, rest) {
				return
			}
			rest = min(2*rest, longRest)
			continue
		}
		if rest > firstRest {
			log.Print("hashing again")
		}
		rest = firstRest
		w.mu.Lock()
		coin := w.tally.add(hash)
		w.noHash = ""
		w.mu.Unlock()
		if coin {
			log.Printf("coin %s", hash)
		}
		if !sleep(ctx, w.interval) {
			return
		}
	}
}

func (w *worker) dig(ctx context.Context) (hash string, err error) {
	data, err := w.ask(ctx, http.MethodGet, w.rng+"/32", nil, 32)
	if err != nil {
		return "", fmt.Errorf("ask rng: %w", err)
	}
	h, err := w.ask(ctx, http.MethodPost, w.hasher+"/", data, 64)
	if err != nil {
		return "", fmt.Errorf("ask hasher: %w", err)
	}
	return string(h), nil
}

// ask wants an answer of exactly size bytes.
func (w *worker) ask(ctx context.Context, method, url string, body []byte, size int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := w.web.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answered %s: %.200s", res.Status, bytes.TrimSpace(b))
	}
	if len(b) != size {
		return nil, fmt.Errorf("it answered %d bytes, not %d", len(b), size)
	}
	return b, nil
}

// count brings the tally to Redis once a second, and once more at the end.
func (w *worker) count(ctx context.Context) {
	rest, last := time.Second, w.now()
	for sleep(ctx, rest) {
		if err := w.flush(ctx, w.now().Sub(last)); err != nil {
			if ctx.Err() != nil {
				break
			}
			rest = min(2*rest, longRest)
			log.Printf("not counted: %v; again in %s", err, rest)
			w.trouble(&w.noCount, err)
			continue
		}
		if rest > time.Second {
			log.Print("counting again")
		}
		rest, last = time.Second, w.now()
	}
	end, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := w.flush(end, w.now().Sub(last)); err != nil {
		log.Printf("not counted: %v", err)
		return
	}
	w.db.Do(end, "DEL", "miner:"+w.name) // or it expires
}

func (w *worker) flush(ctx context.Context, since time.Duration) error {
	w.mu.Lock()
	t := w.tally
	w.tally = tally{}
	w.mu.Unlock()
	speed := 0.0
	if since > 0 {
		speed = float64(t.hashes) / since.Seconds()
	}
	replies, err := w.db.Pipeline(ctx, t.commands(w.name, speed)...)
	if err == nil {
		err = executed(replies)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.tally = w.tally.plus(t)
		return err
	}
	w.counted, w.noCount = w.now(), ""
	return nil
}

// executed looks into EXEC's answer: a list with each command's.
func executed(replies []any) error {
	list, ok := replies[len(replies)-1].([]any)
	if !ok {
		return errors.New("redis did not run the transaction")
	}
	for _, v := range list {
		if err, ok := v.(redis.Error); ok {
			return err
		}
	}
	return nil
}

func (w *worker) trouble(which *string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*which = err.Error()
}

// health answers /readyz: 200 while the last count is younger than ten seconds and
// the last hash came.
func (w *worker) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case w.noHash != "" || w.noCount != "":
			http.Error(rw, strings.TrimSpace(w.noHash+"\n"+w.noCount), http.StatusServiceUnavailable)
		case w.now().Sub(w.counted) > fresh:
			http.Error(rw, "nothing counted yet", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(rw, "ok")
		}
	})
	return mux
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
