package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// stampMark stands before the nanoseconds at which a write was sent.
const stampMark, stampDigits = "sent:", 19

// watchBench measures fan-out: 100 and 1,000 watchers on connections of their own,
// first as fast as it goes, then at a steady rate for the lag.
func watchBench(ctx context.Context, l *lab) ([]Figure, error) {
	const namespace = "fan"
	pid, admin, err := l.stageIn(ctx, namespace)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	var out []Figure
	for _, watchers := range []int{100, 1000} {
		figures, err := l.watchers(ctx, pid, namespace, watchers)
		if err != nil {
			return nil, err
		}
		out = append(out, figures...)
	}
	return out, nil
}

func (l *lab) watchers(ctx context.Context, pid int, namespace string, watchers int) ([]Figure, error) {
	how := fmt.Sprintf("%d watchers of ConfigMaps of 1 KB, Protobuf over HTTP/2, a connection each; the writer is on the same machine and each write is synced to disk", watchers)
	rate := Figure{Name: fmt.Sprintf("events delivered to %s watchers", number(float64(watchers))), Unit: "/s", More: true, How: how}
	runs, steady := l.runs, 200
	if watchers == 100 {
		rate.Budget, rate.Goal = 100_000, 300_000
	} else {
		runs, steady = min(2, runs), 20
	}
	for run := range runs {
		say("watch, %d watchers, full speed, run %d", watchers, run+1)
		n, wall, _, err := l.fan(ctx, pid, namespace, watchers, run, 0, &rate)
		if err != nil {
			return nil, err
		}
		rate.Samples = append(rate.Samples, float64(n)/wall.Seconds())
	}
	lag := Figure{Name: fmt.Sprintf("lag at %s events/s to %s watchers", number(float64(steady*watchers)), number(float64(watchers))), How: how + "; from sending the write to its arrival at one watcher in ten"}
	say("watch, %d writes per second", steady)
	_, _, lags, err := l.fan(ctx, pid, namespace, watchers, runs, steady, &lag)
	if err != nil {
		return nil, err
	}
	return append([]Figure{rate}, quantiles(lag, lags, 0)...), nil
}

// fan writes for a while, perSecond times or as often as it goes, and counts what
// arrives until everyone has everything.
func (l *lab) fan(ctx context.Context, pid int, namespace string, watchers, run, perSecond int, f *Figure) (events int64, wall time.Duration, lags []time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var got atomic.Int64
	var wg sync.WaitGroup
	lists := make([][]time.Duration, watchers)
	var problem atomic.Pointer[error]
	for i := range watchers {
		c, err := l.client()
		if err != nil {
			return 0, 0, nil, err
		}
		defer c.Close()
		r, err := c.Do(ctx, http.MethodGet, client.Path(kind.ConfigMap, namespace, "", ""), map[string][]string{"watch": {"1"}, "resourceVersion": {""}, "labelSelector": {fmt.Sprintf("run=%d-%d", watchers, run)}},
			wire.Protobuf.StreamType(), "", nil)
		if err != nil {
			return 0, 0, nil, err
		}
		wg.Go(func() {
			defer r.Body.Close()
			if err := readFrames(r.Body, func(frame []byte) {
				got.Add(1)
				if perSecond > 0 && i%10 == 0 {
					if at, ok := stampOf(frame); ok {
						lists[i] = append(lists[i], time.Since(at))
					}
				}
			}); err != nil && ctx.Err() == nil {
				problem.Store(&err)
			}
		})
	}
	writers := 16
	if perSecond > 0 {
		writers = 1
	}
	var n atomic.Int64
	errs := make([]error, writers)
	admin, err := l.client()
	if err != nil {
		return 0, 0, nil, err
	}
	defer admin.Close()
	profiled := l.profileServer(ctx, admin, loadFor, fmt.Sprintf("watch-%d", run))
	watched := startWatch(pid)
	var writing sync.WaitGroup
	for w := range writers {
		s, err := l.sender(true, wire.Protobuf, client.Path(kind.ConfigMap, namespace, "", ""))
		if err != nil {
			return 0, 0, nil, err
		}
		defer s.h.CloseIdleConnections()
		writing.Go(func() {
			tick := time.Second
			if perSecond > 0 {
				tick /= time.Duration(perSecond)
			}
			for next := watched.began; time.Since(watched.began) < loadFor; {
				if perSecond > 0 {
					if next = next.Add(tick); pause(ctx, time.Until(next)) != nil {
						return
					}
				} else if n.Load()*int64(watchers)-got.Load() > 500*int64(watchers) {
					// Nobody may fall out of the server's window: then nothing more is
					// measured. The server is never idle meanwhile.
					if pause(ctx, time.Millisecond) != nil {
						return
					}
					continue
				}
				body, err := wire.Encode(wire.Protobuf, stamped(namespace, fmt.Sprintf("m-%d-%d-%d", watchers, run, n.Load()*100+int64(w)), fmt.Sprintf("%d-%d", watchers, run)), kind.ConfigMap.GVK(), false)
				if err == nil {
					err = s.send(ctx, http.MethodPost, s.url, body, http.StatusCreated)
				}
				if errs[w] = err; err != nil {
					return
				}
				n.Add(1)
			}
		})
	}
	writing.Wait()
	if err := errors.Join(append(errs, profiled())...); err != nil {
		return 0, 0, nil, err
	}
	for limit := time.Now().Add(time.Minute); got.Load() < n.Load()*int64(watchers); {
		if p := problem.Load(); p != nil {
			return 0, 0, nil, fmt.Errorf("a watch ended: %w", *p)
		}
		if time.Now().After(limit) {
			return 0, 0, nil, fmt.Errorf("%d of %d events arrived", got.Load(), n.Load()*int64(watchers))
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return 0, 0, nil, err
		}
	}
	wall = watched.stop(f)
	events = got.Load()
	cancel()
	wg.Wait()
	for _, list := range lists {
		lags = append(lags, list...)
	}
	return events, wall, lags, nil
}

func stamped(namespace, name, run string) *corev1.ConfigMap {
	m := configMap(namespace, name)
	m.ObjectMeta = metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"run": run}}
	m.Data["t"] = fmt.Sprintf("%s%019d", stampMark, time.Now().UnixNano())
	return m
}

func stampOf(frame []byte) (time.Time, bool) {
	i := bytes.Index(frame, []byte(stampMark))
	if i < 0 || len(frame) < i+len(stampMark)+stampDigits {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(string(frame[i+len(stampMark):i+len(stampMark)+stampDigits]), 10, 64)
	return time.Unix(0, n), err == nil
}

// readFrames gives each frame of a Protobuf watch, without decoding it.
func readFrames(r io.Reader, each func([]byte)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var head [4]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if n > 4<<20 {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		if n > cap(buf) {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return err
		}
		each(buf[:n])
	}
}
