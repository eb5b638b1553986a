package apiserver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/client"
	"proa.dev/kind"
	"proa.dev/store/disk"
)

func httpClient(b *testing.B, c *apitest.Cluster) *client.HTTP {
	b.Helper()
	h, err := client.NewHTTP(client.HTTPConfig{Servers: []string{c.HTTP.URL}, TLS: &tls.Config{InsecureSkipVerify: true},
		Token: func() (string, error) { return "admin", nil }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(h.Close)
	return h
}

// BenchmarkCreate: ConfigMaps of 1 KB over HTTPS, Protobuf, each durable before it
// is acknowledged; clients and server share the machine.
func BenchmarkCreate(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			c := apitest.Start(b, func(cfg *apiserver.Config) {
				cfg.Store.Close()
				st, err := disk.Open(context.Background(), disk.Config{Dir: b.TempDir(), MinFreeBytes: -1})
				if err != nil {
					b.Fatal(err)
				}
				cfg.Store = st
			})
			value := strings.Repeat("x", 900)
			var n atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for range clients {
				h := httpClient(b, c)
				all.Go(func() {
					for {
						i := n.Add(1)
						if i > int64(b.N) {
							return
						}
						cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("m%d", i)}, Data: map[string]string{"k": value}}
						if _, err := h.Create(context.Background(), kind.ConfigMap, cm, metav1.CreateOptions{}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

// BenchmarkLocalCreate is the same in process.
func BenchmarkLocalCreate(b *testing.B) {
	c := apitest.Start(b, nil)
	l := c.Server.Local(apitest.Admin)
	value := strings.Repeat("x", 900)
	for i := 0; b.Loop(); i++ {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("m%d", i)}, Data: map[string]string{"k": value}}
		if _, err := l.Create(context.Background(), kind.ConfigMap, cm, metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}

// BenchmarkFanOut: one writer in process, 100 watchers over HTTPS that only
// count bytes and events.
func BenchmarkFanOut(b *testing.B) {
	c := apitest.Start(b, nil)
	h := httpClient(b, c)
	const watchers = 100
	short, cancel := context.WithCancel(context.Background())
	defer cancel()
	var got atomic.Int64
	want, reached := int64(b.N)*watchers, make(chan struct{})
	var all sync.WaitGroup
	for range watchers {
		w, err := h.Do(short, http.MethodGet, "/api/v1/configmaps", map[string][]string{"watch": {"1"}}, "application/vnd.kubernetes.protobuf;stream=watch", "", nil)
		if err != nil {
			b.Fatal(err)
		}
		all.Go(func() {
			defer w.Body.Close()
			head := make([]byte, 4)
			buf := make([]byte, 64<<10)
			for {
				if _, err := io.ReadFull(w.Body, head); err != nil {
					return
				}
				n := int(head[0])<<24 | int(head[1])<<16 | int(head[2])<<8 | int(head[3])
				if _, err := io.ReadFull(w.Body, buf[:n]); err != nil {
					return
				}
				if got.Add(1) == want {
					close(reached)
				}
			}
		})
	}
	l := c.Server.Local(apitest.Admin)
	value := strings.Repeat("x", 900)
	b.ResetTimer()
	for i := range b.N {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("m%d", i)}, Data: map[string]string{"k": value}}
		if _, err := l.Create(context.Background(), kind.ConfigMap, cm, metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	select {
	case <-reached:
	case <-time.After(time.Minute):
		b.Fatalf("%d of %d events in a minute", got.Load(), want)
	}
	b.ReportMetric(float64(got.Load())/b.Elapsed().Seconds(), "events/s")
	cancel()
	all.Wait()
}

// BenchmarkList100k: a list of 100,000 pods as Protobuf over HTTPS, bytes counted.
func BenchmarkList100k(b *testing.B) {
	c := apitest.Start(b, nil)
	l := c.Server.Local(apitest.Admin)
	var all sync.WaitGroup
	var n atomic.Int64
	for range 32 {
		all.Go(func() {
			for {
				i := n.Add(1)
				if i > 100_000 {
					return
				}
				p := pod(fmt.Sprintf("p%d", i))
				p.Namespace = "default"
				if _, err := l.Create(context.Background(), kind.Pod, p, metav1.CreateOptions{}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	h := httpClient(b, c)
	for b.Loop() {
		r, err := h.Do(context.Background(), http.MethodGet, "/api/v1/pods", nil, "application/vnd.kubernetes.protobuf", "", nil)
		if err != nil {
			b.Fatal(err)
		}
		size, err := io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(size)/1e6, "MB")
	}
}
