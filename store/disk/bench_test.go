package disk_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"proa.dev/store"
	"proa.dev/store/disk"
)

// benchDir is on a real disk: PROA_BENCH_DIR, or the test's directory.
func benchDir(b testing.TB) string {
	if d := os.Getenv("PROA_BENCH_DIR"); d != "" {
		d, err := os.MkdirTemp(d, "proa-bench-")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.RemoveAll(d) })
		return d
	}
	return b.TempDir()
}

// BenchmarkPut is durable creates of 1 KB, each with a key of its own.
func BenchmarkPut(b *testing.B) {
	for _, class := range []store.Class{store.Synced, store.Buffered} {
		for _, writers := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("class=%d/writers=%d", class, writers), func(b *testing.B) {
				s := open(b, disk.Config{Dir: benchDir(b)})
				defer s.Close()
				value := make([]byte, 1024)
				for i := range value {
					value[i] = byte(i * i)
				}
				var n atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				for range writers {
					wg.Go(func() {
						for {
							i := n.Add(1)
							if i > int64(b.N) {
								return
							}
							if _, err := s.Put(context.Background(), fmt.Sprintf("/registry/configmaps/default/%08d", i), value,
								store.PutOptions{Expect: store.Absent, Class: class}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
			})
		}
	}
}

func BenchmarkList(b *testing.B) {
	s := open(b, disk.Config{Dir: benchDir(b)})
	defer s.Close()
	const n = 100_000
	fill(b, s, n)
	b.ResetTimer()
	for b.Loop() {
		p, err := s.Range(b.Context(), "/registry/pods/", store.PrefixEnd("/registry/pods/"), 0, 0)
		if err != nil || len(p.KVs) != n {
			b.Fatal(len(p.KVs), err)
		}
	}
}

func fill(b testing.TB, s store.Store, n int) {
	value := make([]byte, 1024)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				if _, err := s.Put(context.Background(), fmt.Sprintf("/registry/pods/default/%08d", i), value, store.PutOptions{Class: store.Buffered}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkOpen(b *testing.B) {
	dir := benchDir(b)
	s := open(b, disk.Config{Dir: dir})
	fill(b, s, 100_000)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		s := open(b, disk.Config{Dir: dir})
		b.StopTimer()
		if s.Len() != 100_000 {
			b.Fatal(s.Len())
		}
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkWatch counts events delivered to 100 watchers, each of everything.
func BenchmarkWatch(b *testing.B) {
	s := open(b, disk.Config{Dir: benchDir(b), Window: 1 << 20})
	defer s.Close()
	const watchers = 100
	var wg sync.WaitGroup
	b.ResetTimer()
	for range watchers {
		w, err := s.Watch(b.Context(), "/registry/", 0)
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			defer w.Close()
			for got := 0; got < b.N; {
				es, _, err := w.Next(b.Context())
				if err != nil {
					b.Error(err)
					return
				}
				got += len(es)
			}
		})
	}
	fill(b, s, b.N)
	wg.Wait()
	b.ReportMetric(float64(b.N)*watchers/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkIdleMemory reports what an open, empty store keeps.
func BenchmarkIdleMemory(b *testing.B) {
	for b.Loop() {
		before, g := heap(), runtime.NumGoroutine()
		s := open(b, disk.Config{Dir: benchDir(b)})
		if _, err := s.Put(b.Context(), "/a", nil, store.PutOptions{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(heap()-before)/1024, "KB-heap")
		b.ReportMetric(float64(runtime.NumGoroutine()-g), "goroutines")
		s.Close()
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
