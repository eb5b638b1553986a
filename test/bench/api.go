package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// requestsFor is how long one load of the many below runs.
const requestsFor = 1500 * time.Millisecond

// stampText is changed in bodies from one write to the next; its length stays.
const stampText = "v-000000000"

// widgets are the custom kind; group tells definitions of one run apart.
func widgets(group, plural, kindName string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"%[2]s.%[1]s"},
"spec":{"group":%[1]q,"scope":"Namespaced","names":{"plural":%[2]q,"singular":%[4]q,"kind":%[3]q,"listKind":"%[3]sList"},
"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{}},
"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","required":["note"],"properties":{
"note":{"type":"string","maxLength":4096},"replicas":{"type":"integer","minimum":0,"default":1},"size":{"type":"string","enum":["small","large"],"default":"small"},
"parts":{"type":"array","maxItems":20,"items":{"type":"object","properties":{"name":{"type":"string","maxLength":63},"weight":{"type":"integer"}}}}},
"x-kubernetes-validations":[{"rule":"self.replicas < 1000","message":"too many"}]},
"status":{"type":"object","properties":{"ready":{"type":"integer"}}}}}}}]}}`, group, plural, kindName, strings.ToLower(kindName))
}

// exchange sends a body and returns the answer's.
func (s *sender) exchange(ctx context.Context, method, url, contentType, accept string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Accept", accept)
	r, err := s.h.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	return r.StatusCode, data, err
}

// want is exchange that takes only these codes.
func (s *sender) want(ctx context.Context, method, url, contentType, accept string, body []byte) ([]byte, error) {
	code, data, err := s.exchange(ctx, method, url, contentType, accept, body)
	if err == nil && code != http.StatusOK && code != http.StatusCreated {
		err = fmt.Errorf("%s %s: %d %s", method, url, code, data[:min(len(data), 1<<10)])
	}
	return data, err
}

// subject is a kind of object that is created, changed and read.
type subject struct {
	name, path, format string
	body               []byte // holds the name "name-000000000" and stampText
	put                bool   // changed by PUT, otherwise by a merge patch of a label
}

func (s subject) named(name string, stamp int64) []byte {
	b := bytes.ReplaceAll(s.body, []byte("name-000000000"), []byte(name))
	return bytes.ReplaceAll(b, []byte(stampText), fmt.Appendf(nil, "v-%09d", stamp%1e9))
}

func subjects(namespace string) ([]subject, error) {
	m := configMap(namespace, "name-000000000")
	m.Labels = map[string]string{"stamp": stampText}
	p := listedPod(namespace, "name-000000000")
	p.Labels["stamp"] = stampText
	asMap, err := wire.Encode(wire.Protobuf, m, kind.ConfigMap.GVK(), false)
	if err != nil {
		return nil, err
	}
	asPod, err := wire.Encode(wire.Protobuf, p, kind.Pod.GVK(), false)
	if err != nil {
		return nil, err
	}
	custom := fmt.Appendf(nil, `{"apiVersion":"bench.example.com/v1","kind":"Widget","metadata":{"name":"name-000000000","labels":{"stamp":%q}},"spec":{"note":%q,"parts":[{"name":"a","weight":1},{"name":"b"}]}}`,
		stampText, strings.Repeat("x", 900))
	return []subject{
		{name: "ConfigMap of 1 KB", path: client.Path(kind.ConfigMap, namespace, "", ""), format: wire.ProtobufType, body: asMap, put: true},
		{name: "Pod", path: client.Path(kind.Pod, namespace, "", ""), format: wire.ProtobufType, body: asPod},
		{name: "custom resource of 1 KB", path: "/apis/bench.example.com/v1/namespaces/" + namespace + "/widgets", format: wire.JSONType, body: custom},
	}, nil
}

// requestsBench measures creates, updates and gets of three kinds over HTTPS,
// server-side apply and heartbeats, against a server without a node.
func requestsBench(ctx context.Context, l *lab) ([]Figure, error) {
	const namespace = "requests"
	pid, admin, err := l.stageIn(ctx, namespace)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	senders := make([]*sender, 64)
	for i := range senders {
		if senders[i], err = l.sender(true, wire.JSON, ""); err != nil {
			return nil, err
		}
		defer senders[i].h.CloseIdleConnections()
	}
	if err := l.define(ctx, senders[0], widgets("bench.example.com", "widgets", "Widget"), "/apis/bench.example.com/v1/widgets"); err != nil {
		return nil, err
	}
	list, err := subjects(namespace)
	if err != nil {
		return nil, err
	}
	var out []Figure
	for _, s := range list {
		// Each client has an object of its own to change and to read.
		for i, c := range senders {
			if err := patiently(ctx, func() error {
				_, err := c.want(ctx, http.MethodPost, l.url()+s.path, s.format, s.format, s.named(fmt.Sprintf("mine-%09d", i), 0))
				return err
			}); err != nil {
				return nil, err
			}
		}
		var made atomic.Int64
		for _, what := range []struct {
			verb, how string
			do        func(c *sender, i int, n int64) error
		}{
			{"creates", "each synced to disk before its answer", func(c *sender, _ int, _ int64) error {
				_, err := c.want(ctx, http.MethodPost, l.url()+s.path, s.format, s.format, s.named(fmt.Sprintf("name-%09d", made.Add(1)), 0))
				return err
			}},
			{"updates", "each synced to disk before its answer, an object per client", func(c *sender, i int, n int64) error {
				name := fmt.Sprintf("mine-%09d", i)
				if s.put {
					_, err := c.want(ctx, http.MethodPut, l.url()+s.path+"/"+name, s.format, s.format, s.named(name, n+1))
					return err
				}
				_, err := c.want(ctx, http.MethodPatch, l.url()+s.path+"/"+name, "application/merge-patch+json", s.format, fmt.Appendf(nil, `{"metadata":{"labels":{"stamp":"v-%09d"}}}`, n+1))
				return err
			}},
			{"gets", "consistent reads, an object per client", func(c *sender, i int, _ int64) error {
				_, err := c.want(ctx, http.MethodGet, l.url()+s.path+fmt.Sprintf("/mine-%09d", i), "", s.format, nil)
				return err
			}},
		} {
			for _, clients := range []int{1, 16, 64} {
				f := Figure{Name: fmt.Sprintf("%s, %s, %d clients", what.verb, s.name, clients), Unit: "/s", More: true}
				if clients == 1 {
					f.Name = strings.TrimSuffix(f.Name, "s")
				}
				how := what.how
				if what.verb == "updates" && !s.put {
					how += ", by a merge patch of a label"
				} else if what.verb == "updates" {
					how += ", by PUT"
				}
				if err := drive(pid, senders[:clients], requestsFor, &f, how, what.do); err != nil {
					return nil, fmt.Errorf("%s: %w", f.Name, err)
				}
				say("%s: %s/s", f.Name, number(f.median()))
				out = append(out, f)
			}
		}
	}
	for _, clients := range []int{1, 16, 64} {
		f := Figure{Name: fmt.Sprintf("server-side applies, ConfigMap of 1 KB, %d clients", clients), Unit: "/s", More: true}
		if clients == 1 {
			f.Name = strings.TrimSuffix(f.Name, "s")
		}
		path := l.url() + client.Path(kind.ConfigMap, namespace, "", "")
		if err := drive(pid, senders[:clients], requestsFor, &f, "JSON, an object per client that changes with each, managed fields tracked, synced", func(c *sender, i int, n int64) error {
			body := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied-%d"},"data":{"k":%q,"n":"%d"}}`, i, strings.Repeat("x", 1000), n)
			_, err := c.want(ctx, http.MethodPatch, path+fmt.Sprintf("/applied-%d?fieldManager=bench", i), "application/apply-patch+yaml", wire.JSONType, body)
			return err
		}); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	beats, err := l.heartbeats(ctx, pid, senders[:16])
	return append(out, beats), err
}

// heartbeats renews the Leases of many nodes, as their agents do.
func (l *lab) heartbeats(ctx context.Context, pid int, senders []*sender) (Figure, error) {
	const nodes = 10_000
	f := Figure{Name: "heartbeats: Lease updates of 10,000 nodes", Unit: "/s", More: true, Budget: nodes / 10}
	path := l.url() + client.Path(kind.Lease, "kube-node-lease", "", "")
	leases := make([]*coordinationv1.Lease, nodes)
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	say("making %d Leases", nodes)
	for i, c := range senders {
		wg.Go(func() {
			for n := i; n < nodes && failed.Load() == nil; n += len(senders) {
				name, seconds := fmt.Sprintf("node-%d", n), int32(40)
				leases[n] = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds}}
				if err := c.renew(ctx, http.MethodPost, path, leases[n]); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if p := failed.Load(); p != nil {
		return f, *p
	}
	how := fmt.Sprintf("%d connections, each of %d Leases in turn by PUT with its resource version, Protobuf; nodes renew every 10 s, so that 10,000 need 1,000/s; synced within half a second, not each (the loss of a heartbeat costs nothing)", len(senders), nodes/len(senders))
	turn := make([]int, len(senders))
	err := drive(pid, senders, 2*requestsFor, &f, how, func(c *sender, i int, _ int64) error {
		n := i + turn[i]*len(senders)
		if turn[i]++; i+turn[i]*len(senders) >= nodes {
			turn[i] = 0
		}
		return c.renew(ctx, http.MethodPut, path+"/"+leases[n].Name, leases[n])
	})
	return f, err
}

func (s *sender) renew(ctx context.Context, method, url string, lease *coordinationv1.Lease) error {
	now := metav1.NowMicro()
	lease.Spec.RenewTime = &now
	body, err := wire.Encode(wire.Protobuf, lease, kind.Lease.GVK(), false)
	if err != nil {
		return err
	}
	answer, err := s.want(ctx, method, url, wire.ProtobufType, wire.ProtobufType, body)
	if err != nil {
		return err
	}
	*lease = coordinationv1.Lease{}
	_, err = wire.Decode(wire.Protobuf, answer, lease, false)
	return err
}

// define makes a custom kind and waits until path is served.
func (l *lab) define(ctx context.Context, c *sender, definition []byte, path string) error {
	if _, err := c.want(ctx, http.MethodPost, l.url()+definitions, wire.JSONType, wire.JSONType, definition); err != nil {
		return err
	}
	return patiently(ctx, func() error {
		_, err := c.want(ctx, http.MethodGet, l.url()+path, "", wire.JSONType, nil)
		return err
	})
}

const definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// patiently tries again for ten seconds at most.
func patiently(ctx context.Context, f func() error) error {
	for limit := time.Now().Add(10 * time.Second); ; {
		err := f()
		if err == nil || time.Now().After(limit) {
			return err
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// drive lets each sender do one thing after the other for a while, and fills f.
func drive(pid int, senders []*sender, d time.Duration, f *Figure, how string, do func(c *sender, i int, n int64) error) error {
	lists := make([][]time.Duration, len(senders))
	errs := make([]error, len(senders))
	for i, c := range senders { // the handshake is not part of it
		if err := do(c, i, -1); err != nil {
			return err
		}
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	watched := startWatch(pid)
	end := watched.began.Add(d)
	for i, c := range senders {
		wg.Go(func() {
			for began := time.Now(); began.Before(end); {
				if errs[i] = do(c, i, n.Add(1)); errs[i] != nil {
					return
				}
				now := time.Now()
				lists[i] = append(lists[i], now.Sub(began))
				began = now
			}
		})
	}
	wg.Wait()
	wall := watched.stop(f)
	var all []float64
	for _, list := range lists {
		all = append(all, millis(list)...)
	}
	f.Samples = []float64{float64(len(all)) / wall.Seconds()}
	f.How = fmt.Sprintf("%s; latency p50 %s ms, p99 %s ms; %s µs of server CPU each", how, number(percentile(all, 50)), number(percentile(all, 99)), number(f.ServerCPU/float64(len(all))*1e6))
	return errors.Join(errs...)
}

// customBench measures what many custom kinds cost.
func customBench(ctx context.Context, l *lab) ([]Figure, error) {
	const kinds = 1000
	pid, err := l.stage(ctx)
	if err != nil {
		return nil, err
	}
	senders := make([]*sender, 8)
	for i := range senders {
		if senders[i], err = l.sender(true, wire.JSON, ""); err != nil {
			return nil, err
		}
		defer senders[i].h.CloseIdleConnections()
		if _, err := senders[i].want(ctx, http.MethodGet, l.url()+"/version", "", wire.JSONType, nil); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	before, err := l.memory()
	if err != nil {
		return nil, err
	}
	admin, err := l.client()
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	say("defining %d kinds", kinds)
	profiled := l.profileServer(ctx, admin, 5*loadFor, "custom")
	f := Figure{Name: "1,000 definitions created and established", Unit: "s", How: "8 clients, JSON, a schema of ten fields with a CEL rule and defaults, status subresource; until each is served"}
	watched := startWatch(pid)
	var n atomic.Int64
	errs := make([]error, len(senders))
	var wg sync.WaitGroup
	for i, c := range senders {
		wg.Go(func() {
			for {
				x := n.Add(1)
				if x > kinds || errs[i] != nil {
					return
				}
				_, errs[i] = c.want(ctx, http.MethodPost, l.url()+definitions, wire.JSONType, wire.JSONType,
					widgets(fmt.Sprintf("g%d.example.com", x%50), fmt.Sprintf("widget%ds", x), fmt.Sprintf("Widget%d", x)))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	// An established kind is served.
	for x := 1; x <= kinds; x++ {
		if err := patiently(ctx, func() error {
			_, err := senders[0].want(ctx, http.MethodGet, l.url()+fmt.Sprintf("/apis/g%d.example.com/v1/widget%ds?limit=1", x%50, x), "", wire.JSONType, nil)
			return err
		}); err != nil {
			return nil, err
		}
	}
	f.Samples = []float64{watched.stop(&f).Seconds()}
	f.How += fmt.Sprintf("; %s ms of server CPU for each", number(f.ServerCPU/kinds*1e3))
	if err := profiled(); err != nil {
		return nil, err
	}
	if err := pause(ctx, 2*settle); err != nil {
		return nil, err
	}
	after, err := l.memory()
	if err != nil {
		return nil, err
	}
	held := Figure{Name: "memory of 1,000 definitions", Unit: "MB", Samples: []float64{float64(after.pss-before.pss) / 1e6}, How: "growth of the server's PSS, settled, no object of theirs yet: schemas are compiled on first use"}
	first := Figure{Name: "first create of an object of a custom kind", Unit: "ms", How: "schema and CEL rule compiled by it; 20 kinds one after the other, over HTTPS, synced"}
	next := Figure{Name: "second create of an object of that kind", Unit: "ms", How: "the same again"}
	for x := 1; x <= 20; x++ {
		for i, fig := range []*Figure{&first, &next} {
			body := fmt.Appendf(nil, `{"apiVersion":"g%d.example.com/v1","kind":"Widget%d","metadata":{"name":"o-%d"},"spec":{"note":"x","replicas":3}}`, x%50, x, i)
			began := time.Now()
			if _, err := senders[0].want(ctx, http.MethodPost, l.url()+fmt.Sprintf("/apis/g%d.example.com/v1/namespaces/default/widget%ds", x%50, x), wire.JSONType, wire.JSONType, body); err != nil {
				return nil, err
			}
			fig.Samples = append(fig.Samples, ms(time.Since(began)))
		}
	}
	docs := Figure{Name: "aggregated discovery with 1,000 custom kinds, first", Unit: "ms", How: "after a change: made anew"}
	again := Figure{Name: "aggregated discovery with 1,000 custom kinds, again", Unit: "ms", How: "without ETag"}
	for i, fig := range []*Figure{&docs, &again, &again, &again} {
		began := time.Now()
		data, err := senders[0].want(ctx, http.MethodGet, l.url()+"/apis", "", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", nil)
		if err != nil {
			return nil, err
		}
		fig.Samples = append(fig.Samples, ms(time.Since(began)))
		var list struct{ Items []json.RawMessage }
		if err := json.Unmarshal(data, &list); err != nil || i == 0 && len(list.Items) < 50 {
			return nil, fmt.Errorf("discovery lists %d groups: %w", len(list.Items), err)
		}
	}
	return []Figure{f, held, first, next, docs, again}, nil
}
