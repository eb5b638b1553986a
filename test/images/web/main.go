// Command web answers each request with its version and its host's (pod's) name:
// "v1 web-5d8f-abc". It is made for tests of lossless change: see package serve for
// how it ends.
//
//	GET /           version and name
//	GET /healthz    200
//	GET /readyz     200, or 503 from POST /unready until POST /ready
//	GET /slow?for=2s  the same as /, later (at most a minute)
//	GET /headers    what the client sent and where it came from
//	POST /fail      ends at once with code 3
//
//	LISTEN       address to serve at (:8080)
//	START_DELAY  time before it listens (0s)
//	ANSWER_DELAY time that each answer of / takes at least (0s)
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"proa.dev/examples/dockercoins/serve"
)

// version is set by the linker.
var version = "dev"

func main() {
	serve.Main(func(ctx context.Context) error {
		start, err := serve.Duration("START_DELAY", 0)
		if err != nil {
			return err
		}
		answer, err := serve.Duration("ANSWER_DELAY", 0)
		if err != nil {
			return err
		}
		host, _ := os.Hostname()
		log.Printf("web %s on %s", version, host)
		if !wait(ctx, start) {
			return errors.New("asked to end while starting")
		}
		return serve.HTTP(ctx, serve.Env("LISTEN", ":8080"), handler(host, answer))
	})
}

func handler(host string, delay time.Duration) http.Handler {
	var unready atomic.Bool
	hello := func(w http.ResponseWriter, r *http.Request, d time.Duration) {
		if wait(r.Context(), d) {
			w.Header().Set("X-Served-By", host)
			fmt.Fprintf(w, "%s %s\n", version, host)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { hello(w, r, delay) })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil || d < 0 || d > time.Minute {
			http.Error(w, "want ?for=2s, a minute at most", http.StatusBadRequest)
			return
		}
		hello(w, r, d)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			http.Error(w, "told so", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("POST /unready", func(http.ResponseWriter, *http.Request) { unready.Store(true); log.Print("unready") })
	mux.HandleFunc("POST /ready", func(http.ResponseWriter, *http.Request) { unready.Store(false); log.Print("ready") })
	mux.HandleFunc("GET /headers", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s from %s\n", r.Method, r.Host, r.RemoteAddr)
		r.Header.Write(w)
	})
	mux.HandleFunc("POST /fail", func(http.ResponseWriter, *http.Request) {
		log.Print("told to fail")
		os.Exit(3)
	})
	return mux
}

func wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
