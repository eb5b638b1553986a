package loop_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/sched/loop"
	"proa.dev/store/disk"
	"proa.dev/view"
	"proa.dev/view/feed"
)

// From waiting pods to pods that are durably bound: the scheduler, the verbs in
// process and the disk store, every bind synced before it is acknowledged.
func BenchmarkBind1000(b *testing.B) { benchmarkBind(b, 1000) }
func BenchmarkBind5000(b *testing.B) { benchmarkBind(b, 5000) }

func benchmarkBind(b *testing.B, nodes int) {
	for _, affinity := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "affinity"}[affinity]
		b.Run(name, func(b *testing.B) {
			for range b.N {
				pods := 10000
				if affinity {
					pods = 5000
				}
				took := bindAll(b, nodes, pods, affinity)
				b.ReportMetric(float64(pods)/took.Seconds(), "bound/s")
			}
		})
	}
}

func bindAll(b *testing.B, nodes, pods int, affinity bool) time.Duration {
	b.StopTimer()
	ctx, cancel := context.WithCancel(context.Background())
	st, err := disk.Open(ctx, disk.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	v := view.New(kind.All, 0)
	f := feed.New(st, v, kind.DecodeStored, nil)
	if err := f.Load(ctx); err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	defer func() {
		cancel()
		running.Wait()
		if err := st.Close(); err != nil {
			b.Error(err)
		}
	}()
	api, err := apiserver.New(apiserver.Config{Table: kind.All, Store: st, View: v, Authn: apitest.Tokens{}, Authz: apitest.AdminOnly{}})
	if err != nil {
		b.Fatal(err)
	}
	c := api.Local(apitest.Admin)
	create := func(n int, make func(i int) (*kind.Kind, kind.Object)) {
		var wg sync.WaitGroup
		for w := range 32 {
			wg.Go(func() {
				for i := w; i < n; i += 32 {
					k, o := make(i)
					if _, err := c.Create(ctx, k, o, metav1.CreateOptions{}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	create(nodes, func(i int) (*kind.Kind, kind.Object) {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i), Labels: map[string]string{
			corev1.LabelHostname: fmt.Sprintf("node-%d", i), corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%5)}}}
		n.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("32"), "memory": resource.MustParse("128Gi"), "pods": resource.MustParse("110")}
		n.Status.Capacity = n.Status.Allocatable
		return kind.Node, n
	})
	create(pods, func(i int) (*kind.Kind, kind.Object) {
		app := map[string]string{"app": fmt.Sprintf("app-%d", i%100)}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", i), Namespace: "default", Labels: app}}
		p.Spec.Containers = []corev1.Container{{Name: "app", Image: "app:1", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("200Mi")}}}}
		if affinity {
			p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
				{TopologyKey: corev1.LabelTopologyZone, LabelSelector: &metav1.LabelSelector{MatchLabels: app}}}}}
		}
		return kind.Pod, p
	})
	if b.Failed() {
		b.FailNow()
	}
	s := loop.New(loop.Config{View: v, Client: c, Clock: env.SystemClock(), Parallel: 256})
	b.StartTimer()
	began := time.Now()
	running.Go(func() { s.Run(ctx) })
	for {
		_, moved := v.Moved()
		left := false
		for range v.Snapshot().PodsOn("") {
			left = true
			break
		}
		if !left {
			break
		}
		select {
		case <-moved:
		case <-time.After(time.Minute):
			b.Fatal("pods were not bound within a minute")
		}
	}
	took := time.Since(began)
	b.StopTimer()
	return took
}
