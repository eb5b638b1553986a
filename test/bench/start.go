package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client"
	"proa.dev/kind"
)

// moments of one start, counted from the exec of `proa up`.
type moments struct {
	api, node, up, pod time.Duration
	cpu                time.Duration // of the server until the first pod runs
}

// startBench measures from exec to the API, the node and the first pod: from an
// empty directory, and again with data and images there.
func startBench(ctx context.Context, l *lab) ([]Figure, error) {
	archive, err := l.makeImage(ctx)
	if err != nil {
		return nil, err
	}
	var empty, warm []moments
	for i := range l.runs {
		say("start, run %d", i+1)
		m, err := l.start(ctx, archive)
		if err != nil {
			return nil, err
		}
		empty = append(empty, m)
		if err := l.down(ctx); err != nil {
			return nil, err
		}
		if m, err = l.start(ctx, ""); err != nil {
			return nil, err
		}
		warm = append(warm, m)
		if err := l.remove(ctx); err != nil {
			return nil, err
		}
	}
	how := fmt.Sprintf("%d runs; binary in the page cache", l.runs)
	var out []Figure
	for _, part := range []struct {
		name, how string
		list      []moments
	}{{"empty directory", how + "; the image (1 MB) is imported as soon as `up` returns, its time included in the pod's", empty},
		{"warm", how + "; data and image are there; the pod is created as soon as the API answers", warm}} {
		add := func(name string, budget, goal float64, of func(moments) time.Duration) {
			f := Figure{Name: name + ", " + part.name, Unit: "s", Budget: budget, Goal: goal, How: part.how}
			for _, m := range part.list {
				f.Samples = append(f.Samples, of(m).Seconds())
			}
			out = append(out, f)
		}
		add("exec → API ready", 0.5, 0.1, func(m moments) time.Duration { return m.api })
		add("exec → node Ready", 1, 0.3, func(m moments) time.Duration { return m.node })
		add("exec → `up` returns", 0, 0, func(m moments) time.Duration { return m.up })
		add("exec → first pod Running", 2, 0.5, func(m moments) time.Duration { return m.pod })
		add("server CPU until then", 0, 0, func(m moments) time.Duration { return m.cpu })
	}
	return out, nil
}

// start brings the cluster up and runs one pod. An archive is imported first.
func (l *lab) start(ctx context.Context, archive string) (m moments, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if l.port == 0 {
		if l.port, err = freePort(); err != nil {
			return m, err
		}
	}
	began := time.Now()
	wait, err := l.begin(ctx)
	if err != nil {
		return m, err
	}
	ended := make(chan error, 1)
	go func() {
		err := wait()
		m.up = time.Since(began)
		ended <- err
	}()
	c, err := l.apiReady(ctx)
	if err != nil {
		return m, err
	}
	defer c.Close()
	m.api = time.Since(began)

	// Followed from the side: what comes first is not told by who asks first.
	nodes := make(chan error, 1)
	var node time.Duration
	go func() {
		err := follow(ctx, c, kind.Node, "", time.Minute, func(_ watch.EventType, n *corev1.Node) bool { return nodeReady(n) })
		node = time.Since(began)
		nodes <- err
	}()
	if archive != "" {
		if err := <-ended; err != nil {
			return m, err
		}
		if err := l.importImage(ctx, archive); err != nil {
			return m, err
		}
	}
	if err := create(ctx, c, busyPod("default", fmt.Sprintf("first-%d", began.UnixNano()))); err != nil {
		return m, err
	}
	name := fmt.Sprintf("first-%d", began.UnixNano())
	if err := follow(ctx, c, kind.Pod, "default", time.Minute, func(_ watch.EventType, p *corev1.Pod) bool {
		return p.Name == name && running(p)
	}); err != nil {
		return m, err
	}
	m.pod = time.Since(began)
	if err := <-nodes; err != nil {
		return m, err
	}
	m.node = node
	if archive == "" {
		if err := <-ended; err != nil {
			return m, err
		}
	}
	pid, err := l.pid()
	if err != nil {
		return m, err
	}
	m.cpu = cpuOf(pid)
	return m, nil
}

// apiReady polls /readyz each millisecond, then has a client with the
// administrator's certificate.
func (l *lab) apiReady(ctx context.Context) (*client.HTTP, error) {
	probe := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: time.Second}
	defer probe.CloseIdleConnections()
	for {
		if r, err := probe.Get(l.url() + "/readyz"); err == nil {
			drain(r.Body)
			if r.StatusCode == http.StatusOK {
				break
			}
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return nil, fmt.Errorf("wait for the API: %w", err)
		}
	}
	for {
		c, err := l.client()
		if err == nil {
			return c, nil
		}
		if e := pause(ctx, time.Millisecond); e != nil {
			return nil, fmt.Errorf("wait for the administrator's certificate: %w", err)
		}
	}
}
