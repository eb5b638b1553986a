package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"proa.dev/envtest"
)

// envtestBench measures the public package: control planes in this process.
func envtestBench(ctx context.Context, l *lab) ([]Figure, error) {
	one := Figure{Name: "envtest.Launch, the first of a process", Unit: "ms", How: "in this process, store in memory; until it answers"}
	more := Figure{Name: "envtest.Launch, each further one", Unit: "ms", How: "one after the other, each stopped before the next"}
	write := Figure{Name: "Launch, first create by client-go, Stop", Unit: "ms", How: "a namespace, JSON"}
	for i := range 4 * l.runs {
		began := time.Now()
		cp, err := envtest.Launch(ctx)
		if err != nil {
			return nil, err
		}
		took := ms(time.Since(began))
		if i == 0 {
			one.Samples = append(one.Samples, took)
		} else {
			more.Samples = append(more.Samples, took)
		}
		c, err := kubernetes.NewForConfig(cp.Config)
		if err == nil {
			_, err = c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{})
		}
		if err = errors.Join(err, cp.Stop()); err != nil {
			return nil, err
		}
		write.Samples = append(write.Samples, ms(time.Since(began)))
	}
	const many = 32
	before := alive()
	side := Figure{Name: fmt.Sprintf("%d control planes started side by side", many), Unit: "ms", How: "from 32 goroutines, until all answer"}
	planes, errs := make([]*envtest.ControlPlane, many), make([]error, many)
	var wg sync.WaitGroup
	watched := startWatch(0)
	for i := range many {
		wg.Go(func() { planes[i], errs[i] = envtest.Launch(ctx) })
	}
	wg.Wait()
	side.Samples = []float64{ms(watched.stop(&side))}
	each := Figure{Name: "memory of one control plane", Unit: "MB", Samples: []float64{float64(alive()-before) / 1e6 / many}, How: "growth of what is alive in this process (heap after a collection, and stacks) with 32 of them, divided; the program itself and what its packages keep once not counted"}
	for _, cp := range planes {
		if cp != nil {
			errs = append(errs, cp.Stop())
		}
	}
	return []Figure{one, more, write, side, each}, errors.Join(errs...)
}

// alive is what this process holds after a collection.
func alive() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
