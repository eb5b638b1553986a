package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// loadFor is how long one load runs.
const loadFor = 4 * time.Second

func configMap(namespace, name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Data: map[string]string{"k": strings.Repeat("x", 1000)}}
}

// template encodes an object once; body then only puts another name of the same
// length in.
type template struct {
	data []byte
	name []byte
}

func newTemplate(f wire.Format, k *kind.Kind, o kind.Object) (template, error) {
	data, err := wire.Encode(f, o, k.GVK(), false)
	name := []byte(o.GetName())
	if err == nil && bytes.Count(data, name) != 1 {
		err = fmt.Errorf("the name %q must be in the encoded object once", name)
	}
	return template{data, name}, err
}

func (t template) body(name string) []byte { return bytes.Replace(t.data, t.name, []byte(name), 1) }

// sender posts over a connection of its own.
type sender struct {
	h   *http.Client
	url string
	ct  string
}

func (l *lab) sender(h2 bool, f wire.Format, path string) (*sender, error) {
	cfg, err := l.tlsConfig()
	if err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: cfg, MaxConnsPerHost: 1, ForceAttemptHTTP2: h2, DisableCompression: true}
	if !h2 {
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return &sender{h: &http.Client{Transport: t, Timeout: 30 * time.Second}, url: l.url() + path, ct: f.ContentType()}, nil
}

func (s *sender) send(ctx context.Context, method, url string, body []byte, want int) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", s.ct)
	req.Header.Set("Accept", s.ct)
	r, err := s.h.Do(req)
	if err != nil {
		return err
	}
	if r.StatusCode != want {
		data, _ := io.ReadAll(io.LimitReader(r.Body, 1<<10))
		r.Body.Close()
		return fmt.Errorf("%s %s: %s: %s", method, url, r.Status, data)
	}
	_, err = drain(r.Body)
	return err
}

// load is what one kind of client does for a while.
type load struct {
	clients int
	h2      bool
	format  wire.Format
}

func (c load) String() string {
	protocol := "HTTP/1.1"
	if c.h2 {
		protocol = "HTTP/2"
	}
	encoding := "Protobuf"
	if c.format == wire.JSON {
		encoding = "JSON"
	}
	clients := "clients"
	if c.clients == 1 {
		clients = "client"
	}
	return fmt.Sprintf("%d %s, %s, %s", c.clients, clients, protocol, encoding)
}

// createsBench measures durable creates over HTTPS against a server without a node.
func createsBench(ctx context.Context, l *lab) ([]Figure, error) {
	pid, err := l.stage(ctx)
	if err != nil {
		return nil, err
	}
	var out []Figure
	for _, c := range []load{{1, true, wire.Protobuf}, {16, true, wire.Protobuf}, {64, true, wire.Protobuf}, {64, true, wire.JSON}, {64, false, wire.Protobuf}} {
		rate := Figure{Name: "creates, " + c.String(), Unit: "/s", More: true}
		if c.clients == 64 && c.h2 && c.format == wire.Protobuf {
			rate.Budget, rate.Goal = 5000, 12000
		}
		var latencies []time.Duration
		for run := range max(l.runs/2, 1) {
			say("creates, %s, run %d", c, run+1)
			n, list, err := l.creates(ctx, pid, c, fmt.Sprintf("load-%d-%t-%d-%d", c.clients, c.h2, c.format, run), &rate)
			if err != nil {
				return nil, err
			}
			rate.Samples = append(rate.Samples, n)
			latencies = append(latencies, list...)
		}
		s := millis(latencies)
		count := float64(len(latencies))
		rate.How = fmt.Sprintf("ConfigMap of 1 KB, each synced to disk before its answer (group commit), client certificate, RBAC and admission on, a connection per client, TLS 1.3; latency p50 %s ms, p99 %s ms; %s µs of server CPU per create",
			number(percentile(s, 50)), number(percentile(s, 99)), number(rate.ServerCPU/count*1e6))
		out = append(out, rate)
	}
	return out, nil
}

func (l *lab) creates(ctx context.Context, pid int, c load, namespace string, f *Figure) (rate float64, latencies []time.Duration, err error) {
	admin, err := l.client()
	if err != nil {
		return 0, nil, err
	}
	defer admin.Close()
	if err := makeNamespace(ctx, admin, namespace); err != nil {
		return 0, nil, err
	}
	t, err := newTemplate(c.format, kind.ConfigMap, configMap(namespace, "name-000000000"))
	if err != nil {
		return 0, nil, err
	}
	path := client.Path(kind.ConfigMap, namespace, "", "")
	senders := make([]*sender, c.clients)
	for i := range senders {
		if senders[i], err = l.sender(c.h2, c.format, path); err != nil {
			return 0, nil, err
		}
		defer senders[i].h.CloseIdleConnections()
		// The handshake is not part of a create.
		if err := senders[i].send(ctx, http.MethodPost, senders[i].url, t.body(fmt.Sprintf("warm-%09d", i)), http.StatusCreated); err != nil {
			return 0, nil, err
		}
	}
	profiled := l.profileServer(ctx, admin, loadFor, namespace)
	var n atomic.Int64
	lists := make([][]time.Duration, c.clients)
	errs := make([]error, c.clients)
	var wg sync.WaitGroup
	watched := startWatch(pid)
	end := watched.began.Add(loadFor)
	for i, s := range senders {
		wg.Go(func() {
			for {
				began := time.Now()
				if began.After(end) {
					return
				}
				if errs[i] = s.send(ctx, http.MethodPost, s.url, t.body(fmt.Sprintf("name-%09d", n.Add(1))), http.StatusCreated); errs[i] != nil {
					return
				}
				lists[i] = append(lists[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	wall := watched.stop(f)
	for _, list := range lists {
		latencies = append(latencies, list...)
	}
	return float64(len(latencies)) / wall.Seconds(), latencies, errors.Join(append(errs, profiled())...)
}

func makeNamespace(ctx context.Context, c client.Client, name string) error {
	_, err := c.Create(ctx, kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}
