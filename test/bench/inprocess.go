package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/version"

	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/store/disk"
	"proa.dev/view"
	"proa.dev/view/feed"
)

// core is the API without HTTP in this process: disk store, view, verbs.
type core struct {
	store store.Store
	view  *view.View
	api   *apiserver.Server
	end   func() error
}

// startCore opens a store in a directory of its own.
func startCore(ctx context.Context, dir string) (*core, error) {
	st, err := disk.Open(ctx, disk.Config{Dir: dir, Log: slog.New(slog.DiscardHandler), MinFreeBytes: -1})
	if err != nil {
		return nil, err
	}
	return coreOn(ctx, st)
}

// coreOn puts the API on a store, which it closes in the end. Whoever calls has every right;
// the admission that pods and config maps pass in a cluster is on.
func coreOn(ctx context.Context, st store.Store) (*core, error) {
	log := slog.New(slog.DiscardHandler)
	v := view.New(kind.All, 0)
	f := feed.New(st, v, kind.DecodeStored, log)
	if err := f.Load(ctx); err != nil {
		st.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	fed := make(chan error, 1)
	go func() { fed <- f.Run(ctx) }()
	rbac := &auth.RBAC{View: v}
	api, err := apiserver.New(apiserver.Config{Table: kind.All, Store: st, View: v, Clock: env.SystemClock(), Rand: env.SystemRand(), Log: log,
		Authn: auth.Union{}, Authz: auth.Chain{auth.Node{Snapshot: v.Snapshot}, rbac}, Rules: rbac,
		Admit:   admit.Chain{admit.NamespaceLifecycle(), admit.LimitRanger(), admit.DefaultTolerationSeconds(), admit.Priority(), admit.Escalation(rbac, rbac)},
		Version: utilversion.Info{Major: "1"}})
	if err != nil {
		cancel()
		st.Close()
		return nil, err
	}
	return &core{store: st, view: v, api: api, end: func() error {
		api.Drain()
		cancel()
		<-fed
		return st.Close()
	}}, nil
}

func (c *core) admin() client.Client {
	return c.api.Local(auth.User{Name: "system:bench", Groups: []string{auth.Masters, auth.AllAuthenticated}})
}

// inProcessBench measures durable writes without HTTP: of the store alone and
// through the API's verbs.
func inProcessBench(ctx context.Context, l *lab) ([]Figure, error) {
	stop, err := l.profile()
	if err != nil {
		return nil, err
	}
	defer stop()
	var out []Figure
	for _, writers := range []int{1, 64, 256} {
		f := Figure{Name: fmt.Sprintf("store puts, %d writers", writers), Unit: "/s", More: true}
		if writers == 256 {
			f.Budget, f.Goal = 50_000, 100_000
		}
		var n int64
		for run := range max(l.runs/2, 1) {
			say("store puts, %d writers, run %d", writers, run+1)
			count, err := l.puts(ctx, writers, fmt.Sprintf("puts-%d-%d", writers, run), &f)
			if err != nil {
				return nil, err
			}
			n += count
		}
		f.How = fmt.Sprintf("keys of their own, 1 KB, each synced to disk (group commit); %s µs of CPU per put", number(f.ServerCPU/float64(n)*1e6))
		out = append(out, f)
	}
	for _, writers := range []int{64, 256} {
		f := Figure{Name: fmt.Sprintf("creates through the verbs, %d writers", writers), Unit: "/s", More: true}
		var n int64
		for run := range max(l.runs/2, 1) {
			say("creates in process, %d writers, run %d", writers, run+1)
			count, err := l.localCreates(ctx, writers, fmt.Sprintf("creates-%d-%d", writers, run), &f)
			if err != nil {
				return nil, err
			}
			n += count
		}
		f.How = fmt.Sprintf("ConfigMap of 1 KB, RBAC, admission and validation on, each synced to disk and in the view; %s µs of CPU per create", number(f.ServerCPU/float64(n)*1e6))
		out = append(out, f)
	}
	return out, nil
}

// hammer runs f from many goroutines for a while and counts.
func hammer(writers int, f func(i int64) error) (count int64, err error) {
	var n, done atomic.Int64
	errs := make([]error, writers)
	end := time.Now().Add(loadFor)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if errs[w] = f(n.Add(1)); errs[w] != nil {
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return done.Load(), errors.Join(errs...)
}

func (l *lab) puts(ctx context.Context, writers int, dir string, f *Figure) (int64, error) {
	st, err := disk.Open(ctx, disk.Config{Dir: filepath.Join(l.tmp, dir), MinFreeBytes: -1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, err
	}
	value := make([]byte, 1024)
	for i := range value {
		value[i] = byte(i * i)
	}
	runtime.GC()
	watched := startWatch(0)
	n, err := hammer(writers, func(i int64) error {
		_, err := st.Put(ctx, fmt.Sprintf("/registry/configmaps/default/%09d", i), value, store.PutOptions{Expect: store.Absent})
		return err
	})
	wall := watched.stop(f)
	f.Samples = append(f.Samples, float64(n)/wall.Seconds())
	return n, errors.Join(err, st.Close())
}

func (l *lab) localCreates(ctx context.Context, writers int, dir string, f *Figure) (int64, error) {
	c, err := startCore(ctx, filepath.Join(l.tmp, dir))
	if err != nil {
		return 0, err
	}
	admin := c.admin()
	if err := makeNamespace(ctx, admin, "default"); err != nil {
		return 0, errors.Join(err, c.end())
	}
	runtime.GC()
	watched := startWatch(0)
	n, err := hammer(writers, func(i int64) error {
		_, err := admin.Create(ctx, kind.ConfigMap, configMap("default", fmt.Sprintf("name-%09d", i)), metav1.CreateOptions{})
		return err
	})
	wall := watched.stop(f)
	f.Samples = append(f.Samples, float64(n)/wall.Seconds())
	return n, errors.Join(err, c.end())
}
