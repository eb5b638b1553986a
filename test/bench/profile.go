package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"runtime/pprof"
	"strconv"
	"time"

	"proa.dev/client"
)

// profileServer writes a CPU profile of the server over the next seconds, if one
// is wanted, to FILE-of; wait returns when it is written.
func (l *lab) profileServer(ctx context.Context, c *client.HTTP, d time.Duration, of string) (wait func() error) {
	if l.cpuprofile == "" {
		return func() error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			r, err := c.Do(ctx, http.MethodGet, "/debug/pprof/profile", url.Values{"seconds": {strconv.Itoa(int(d.Seconds()))}}, "*/*", "", nil)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			f, err := os.Create(l.cpuprofile + "-" + of)
			if err != nil {
				return fmt.Errorf("write a profile: %w", err)
			}
			defer f.Close()
			_, err = f.ReadFrom(r.Body)
			return err
		}()
	}()
	return func() error { return <-done }
}

// profile writes a CPU profile of this process until stop, if one is wanted.
func (l *lab) profile() (stop func(), err error) {
	if l.cpuprofile == "" {
		return func() {}, nil
	}
	f, err := os.Create(l.cpuprofile)
	if err != nil {
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}

// heap writes a profile of what the server holds after a collection.
func (l *lab) heap(ctx context.Context, c *client.HTTP, of string) error {
	if l.cpuprofile == "" {
		return nil
	}
	r, err := c.Do(ctx, http.MethodGet, "/debug/pprof/heap", url.Values{"gc": {"1"}}, "*/*", "", nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	f, err := os.Create(l.cpuprofile + "-" + of)
	if err != nil {
		return fmt.Errorf("write a profile: %w", err)
	}
	defer f.Close()
	_, err = f.ReadFrom(r.Body)
	return err
}
