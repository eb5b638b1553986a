// Package serve runs one HTTP server the way a good tenant of a cluster does: it
// says one line per event, answers /healthz, and on SIGTERM or SIGINT ends without
// losing a request: connections that are open hear "Connection: close" with their
// next answer, for at most two seconds, then what is still in work is awaited, for
// at most ten.
//
// Standard library only.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	drain  = 2 * time.Second
	finish = 10 * time.Second
)

// Env is a setting from the environment, or what to take without it.
func Env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// Duration is Env for durations ("100ms").
func Duration(name string, otherwise time.Duration) (time.Duration, error) {
	v := os.Getenv(name)
	if v == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("setting %s=%q: want a duration such as 100ms", name, v)
	}
	return d, nil
}

// Main runs f with a context that ends on SIGTERM or SIGINT, and ends the process
// with code 1 and a line when f fails.
func Main(f func(ctx context.Context) error) {
	log.SetFlags(log.LUTC | log.Ldate | log.Ltime | log.Lmsgprefix)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := f(ctx)
	stop()
	if err != nil {
		log.Printf("ended: %v", err)
		os.Exit(1)
	}
	log.Print("ended")
}

// HTTP serves h at an address (":8080") until ctx ends; see the package comment.
// /healthz answers 200 beside h.
func HTTP(ctx context.Context, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen at %q: %w", address, err)
	}
	log.Printf("ready at %s", l.Addr())
	return Listener(ctx, l, h)
}

// Listener is HTTP on a listener of the caller's.
func Listener(ctx context.Context, l net.Listener, h http.Handler) error {
	var ending atomic.Bool
	var open atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("/", h)
	web := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if ending.Load() {
				w.Header().Set("Connection", "close")
			}
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
			}
		},
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Print("asked to end")
	ending.Store(true)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(drain); open.Load() > 0 && time.Now().Before(end); {
		<-tick.C
	}
	end, cancel := context.WithTimeout(context.Background(), finish)
	defer cancel()
	err := web.Shutdown(end)
	if e := <-served; err == nil && !errors.Is(e, http.ErrServerClosed) {
		err = e
	}
	return err
}
