// Command webui shows how fast the miners hash: a page, and
//
//	GET /json     {"hashes": 1234, "coins": 77, "now": 1700000000.5, "speed": 9.8,
//	              "miners": 1, "latest": ["0a…"], "title": "…", "host": "…", "error": ""}
//	GET /history  [[seconds since 1970, hashes per second], …], one a second, at most 300
//
// Redis is read once a second, however many look at the page. While it is away,
// "error" says why and the other values are the last known.
//
//	LISTEN          address to serve at (:8080)
//	REDIS           address (redis:6379)
//	REDIS_PASSWORD  none if empty
//	TITLE           heading of the page (DockerCoins)
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
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

//go:embed page.html
var page []byte

const (
	keep   = 300             // samples
	window = 5 * time.Second // over which speed is measured: workers count once a second
)

func main() {
	serve.Main(func(ctx context.Context) error {
		host, _ := os.Hostname()
		log.Printf("webui %s on %s", version, host)
		u := &webui{title: serve.Env("TITLE", "DockerCoins"), host: host}
		db := redis.New(serve.Env("REDIS", "redis:6379"), os.Getenv("REDIS_PASSWORD"))
		defer db.Close()
		ctx, cancel := context.WithCancel(ctx)
		var group sync.WaitGroup
		group.Go(func() { u.watch(ctx, db) })
		err := serve.HTTP(ctx, serve.Env("LISTEN", ":8080"), u.handler())
		cancel()
		group.Wait()
		return err
	})
}

// sample is what Redis said at one time.
type sample struct {
	at            time.Time
	hashes, coins int64
	miners        int
	latest        []string
}

type webui struct {
	title, host string

	mu      sync.Mutex
	samples []sample     // newest last, one window
	history [][2]float64 // newest last
	trouble string
}

// add keeps a sample and returns the speed up to it, in hashes per second.
func (u *webui) add(s sample) float64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.trouble = ""
	if n := len(u.samples); n > 0 && s.hashes < u.samples[n-1].hashes {
		u.samples = nil // Redis began anew
	}
	u.samples = append(u.samples, s)
	// The oldest sample is the first one that is a window old.
	for len(u.samples) > 2 && s.at.Sub(u.samples[1].at) >= window {
		u.samples = u.samples[1:]
	}
	speed := u.speed()
	u.history = append(u.history, [2]float64{seconds(s.at), speed})
	u.history = u.history[max(0, len(u.history)-keep):]
	return speed
}

func (u *webui) speed() float64 {
	n := len(u.samples)
	if n < 2 {
		return 0
	}
	a, b := u.samples[0], u.samples[n-1]
	return math.Round(10*float64(b.hashes-a.hashes)/b.at.Sub(a.at).Seconds()) / 10
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// watch samples Redis once a second until ctx ends.
func (u *webui) watch(ctx context.Context, db *redis.Client) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	last := ""
	for {
		s, err := read(ctx, db)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if err.Error() != last {
				last = err.Error()
				log.Printf("no numbers: %v", err)
			}
			u.mu.Lock()
			u.trouble = last
			u.mu.Unlock()
		default:
			if last != "" {
				log.Print("numbers again")
				last = ""
			}
			u.add(s)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func read(ctx context.Context, db *redis.Client) (sample, error) {
	r, err := db.Pipeline(ctx, []string{"GET", "hashes"}, []string{"GET", "coins"}, []string{"LRANGE", "latest", "0", "7"}, []string{"KEYS", "miner:*"})
	if err != nil {
		return sample{}, err
	}
	s := sample{at: time.Now()}
	if s.hashes, err = number(r[0]); err != nil {
		return s, err
	}
	if s.coins, err = number(r[1]); err != nil {
		return s, err
	}
	latest, ok1 := r[2].([]any)
	miners, ok2 := r[3].([]any)
	if !ok1 || !ok2 {
		return s, errors.New("redis: not a list")
	}
	for _, v := range latest {
		if hash, ok := v.(string); ok {
			s.latest = append(s.latest, hash)
		}
	}
	s.miners = len(miners)
	return s, nil
}

// number of an absent key is 0.
func number(v any) (int64, error) {
	if v == nil {
		return 0, nil
	}
	str, _ := v.(string)
	n, err := strconv.ParseInt(str, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("redis: %q is not a number", v)
	}
	return n, nil
}

// numbers is the answer of /json.
type numbers struct {
	Hashes int64    `json:"hashes"`
	Coins  int64    `json:"coins"`
	Now    float64  `json:"now"`
	Speed  float64  `json:"speed"`
	Miners int      `json:"miners"`
	Latest []string `json:"latest"`
	Title  string   `json:"title"`
	Host   string   `json:"host"`
	Error  string   `json:"error"`
}

func (u *webui) numbers() numbers {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := numbers{Latest: []string{}, Title: u.title, Host: u.host, Error: u.trouble, Speed: u.speed()}
	if len(u.samples) > 0 {
		s := u.samples[len(u.samples)-1]
		n.Hashes, n.Coins, n.Now, n.Miners = s.hashes, s.coins, seconds(s.at), s.miners
		n.Latest = append(n.Latest, s.latest...)
	} else if n.Error == "" {
		n.Error = "no numbers yet"
	}
	if n.Error != "" {
		n.Speed = 0
	}
	return n
}

func (u *webui) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:")
		h.Set("Cache-Control", "no-cache")
		w.Write(page)
		log.Printf("page to %s", strings.Join(append(r.Header["X-Forwarded-For"], r.RemoteAddr), " "))
	})
	mux.HandleFunc("GET /json", func(w http.ResponseWriter, _ *http.Request) { answer(w, u.numbers()) })
	mux.HandleFunc("GET /history", func(w http.ResponseWriter, _ *http.Request) {
		u.mu.Lock()
		h := append([][2]float64{}, u.history...)
		u.mu.Unlock()
		answer(w, h)
	})
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(v)
}
