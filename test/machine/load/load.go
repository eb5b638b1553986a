// Package load sends a bounded number of HTTP requests and counts what came back.
// It neither retries nor hides anything: a request that does not end in the wanted
// status with a whole body within Timeout is a failure. Requests on connections of
// their own carry a body that net/http cannot rewind, so that it sends none of them
// twice. With Keep they are plain GETs as every HTTP client sends them: one that
// meets the end of its reused connection before the first byte of an answer is
// repeated by net/http, as HTTP provides for (RFC 9110, 9.2.2).
package load

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Config of one run. URL, Requests and Workers are required.
type Config struct {
	URL      string
	Requests int           // in total
	Workers  int           // connections at a time
	Rate     int           // requests per second in total; 0 means as fast as answers come
	Keep     bool          // reuse connections; otherwise each request opens its own
	Timeout  time.Duration // of one request; default 10 s
}

// Result of a run.
type Result struct {
	Requests  int            `json:"requests"`
	Failed    int            `json:"failed"`
	Failures  []string       `json:"failures,omitempty"` // the first twenty
	FailedAt  []time.Time    `json:"failedAt,omitempty"` // when they ended
	Answers   map[string]int `json:"answers"`            // by the word that the server answered with
	Pods      map[string]int `json:"pods"`               // by the name of the pod that answered
	Conns     int64          `json:"connections"`        // opened
	Seconds   float64        `json:"seconds"`
	LongestMS float64        `json:"longestMillis"`
}

// Answer is what the web program writes.
type Answer struct {
	Version string `json:"version"`
	Pod     string `json:"pod"`
	Client  string `json:"client"`
}

// Run sends requests until all are sent or ctx ends.
func Run(ctx context.Context, c Config) Result {
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	r := Result{Answers: map[string]int{}, Pods: map[string]int{}}
	var conns, next atomic.Int64
	var mu sync.Mutex
	began := time.Now()
	var wg sync.WaitGroup
	for range c.Workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			dialer := net.Dialer{Timeout: c.Timeout}
			tr := &http.Transport{DisableKeepAlives: !c.Keep, MaxIdleConnsPerHost: 1,
				DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					conns.Add(1)
					return dialer.DialContext(ctx, network, addr)
				}}
			defer tr.CloseIdleConnections()
			client := &http.Client{Transport: tr, Timeout: c.Timeout}
			for ctx.Err() == nil {
				n := next.Add(1)
				if n > int64(c.Requests) {
					return
				}
				if c.Rate > 0 && !pace(ctx, began.Add(time.Duration(n)*time.Second/time.Duration(c.Rate))) {
					return
				}
				sent := time.Now()
				a, err := one(client, c.URL, c.Keep)
				took := time.Since(sent)
				mu.Lock()
				r.Requests++
				r.LongestMS = max(r.LongestMS, float64(took.Microseconds())/1000)
				if err != nil {
					r.Failed++
					if len(r.Failures) < 20 {
						r.FailedAt = append(r.FailedAt, time.Now())
						r.Failures = append(r.Failures, fmt.Sprintf("%s after %s: %v", sent.UTC().Format("15:04:05.000"), took.Round(time.Microsecond), err))
					}
				} else {
					r.Answers[a.Version]++
					r.Pods[a.Pod]++
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	r.Conns, r.Seconds = conns.Load(), time.Since(began).Seconds()
	return r
}

// pace waits for an instant; false when ctx ended first.
func pace(ctx context.Context, at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
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

// once is a body of one byte that cannot be read twice: net/http then never
// repeats the request on its own.
type once struct{ done bool }

func (o *once) Read(p []byte) (int, error) {
	if o.done || len(p) == 0 {
		return 0, io.EOF
	}
	o.done, p[0] = true, '.'
	return 1, io.EOF
}

func one(client *http.Client, url string, keep bool) (Answer, error) {
	req, err := http.NewRequest(http.MethodPost, url, &once{})
	if err != nil {
		return Answer{}, err
	}
	req.ContentLength = 1
	if keep {
		req, _ = http.NewRequest(http.MethodGet, url, nil)
	}
	res, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return Answer{}, fmt.Errorf("read the answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("answer %s, %v: %s", res.Status, res.Header, data)
	}
	var a Answer
	if err := json.Unmarshal(data, &a); err != nil {
		return Answer{}, fmt.Errorf("answer %q: %w", data, err)
	}
	return a, nil
}
