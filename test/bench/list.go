package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// listedPod is a pod as a Deployment makes it. No scheduler takes it.
func listedPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name,
			Labels:      map[string]string{"app.kubernetes.io/name": "shop", "app.kubernetes.io/component": "cart", "pod-template-hash": "6d4cf56db6"},
			Annotations: map[string]string{"prometheus.io/scrape": "true"}},
		Spec: corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{
			Name: "main", Image: "registry.example.com/shop/cart:v1.12.3",
			Env:       []corev1.EnvVar{{Name: "DATABASE", Value: "postgres://db.shop.svc:5432/cart"}, {Name: "LEVEL", Value: "info"}},
			Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready",
				Port: intOrString(8080)}}},
		}}}}
}

// listBench fills a server with pods, weighs it and lists them.
func listBench(ctx context.Context, l *lab) ([]Figure, error) {
	const namespace = "full"
	pid, admin, err := l.stageIn(ctx, namespace)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	before, err := l.memory()
	if err != nil {
		return nil, err
	}
	say("creating %d pods", l.pods)
	fill := Figure{Name: "pods created, 64 clients", Unit: "/s", More: true, How: "as in the creates above, a pod of about 1.1 KB with admission"}
	if err := l.fill(ctx, pid, namespace, &fill); err != nil {
		return nil, err
	}
	var out []Figure
	size := int64(0)
	for _, f := range []struct {
		name, accept string
		budget, goal float64
	}{{"Protobuf", wire.ProtobufType, 2, 0.3}, {"JSON", wire.JSONType, 0, 0}, {"Table", "application/json;as=Table;v=v1;g=meta.k8s.io", 0, 0}} {
		name, budget, goal := f.name, f.budget, f.goal
		fig := Figure{Name: fmt.Sprintf("list of %s pods, %s", number(float64(l.pods)), name), Unit: "s", Budget: budget, Goal: goal}
		runs := l.runs
		if name != "Protobuf" {
			runs = min(runs, 3)
		}
		for run := range runs {
			say("list, %s, run %d", name, run+1)
			profiled := l.profileServer(ctx, admin, time.Second, fmt.Sprintf("list-%s", name))
			watched := startWatch(pid)
			r, err := admin.Do(ctx, http.MethodGet, client.Path(kind.Pod, "", "", ""), nil, f.accept, "", nil)
			if err != nil {
				return nil, err
			}
			n, err := drain(r.Body)
			if err != nil {
				return nil, err
			}
			fig.Samples = append(fig.Samples, watched.stop(&fig).Seconds())
			if err := profiled(); err != nil {
				return nil, err
			}
			if f.accept == wire.ProtobufType {
				size = n
			}
			fig.How = fmt.Sprintf("one consistent list without pages over HTTPS, no compression, %s MB, read and dropped", number(float64(n)/1e6))
		}
		out = append(out, fig)
	}
	// What lists have left behind goes with the next collections.
	held := Figure{Name: "objects held per GB", Unit: "/GB", More: true, Budget: 100_000, Goal: 250_000}
	if err := pause(ctx, 2*settle); err != nil {
		return nil, err
	}
	after, err := l.memory()
	if err != nil {
		return nil, err
	}
	held.Samples = []float64{float64(l.pods) / (float64(after.pss-before.pss) / 1e9)}
	held.How = fmt.Sprintf("growth of the server's PSS by %s pods of %s bytes each in Protobuf, lists behind it: %s MB", number(float64(l.pods)), number(float64(size)/float64(l.pods)), number(float64(after.pss-before.pss)/1e6))
	million := Figure{Name: "memory of 1,000,000 pods", Unit: "MB", Samples: []float64{float64(after.pss-before.pss) / 1e6 * 1e6 / float64(l.pods)},
		How: fmt.Sprintf("**not measured: extrapolated** in proportion from %s pods; a server of that size needs the collector's head room beside it while it works", number(float64(l.pods)))}
	out = append([]Figure{fill}, append(out, held, million)...)

	if err := l.heap(ctx, admin, "heap"); err != nil {
		return nil, err
	}
	if err := l.down(ctx); err != nil {
		return nil, err
	}
	again := Figure{Name: fmt.Sprintf("start with %s pods → API ready", number(float64(l.pods))), Unit: "s", How: "exec to the first /readyz, data in the page cache"}
	loaded := Figure{Name: "memory after that start", Unit: "MB", How: "PSS, settled"}
	for range max(l.runs/2, 1) {
		began := time.Now()
		wait, err := l.begin(ctx, "--no-node")
		if err != nil {
			return nil, err
		}
		c, err := l.apiReady(ctx)
		if err != nil {
			return nil, err
		}
		again.Samples = append(again.Samples, time.Since(began).Seconds())
		c.Close()
		if err := wait(); err != nil {
			return nil, err
		}
		if err := pause(ctx, settle); err != nil {
			return nil, err
		}
		m, err := l.memory()
		if err != nil {
			return nil, err
		}
		loaded.Samples = append(loaded.Samples, float64(m.pss)/1e6)
		if err := l.down(ctx); err != nil {
			return nil, err
		}
	}
	return append(out, again, loaded), nil
}

func (l *lab) fill(ctx context.Context, pid int, namespace string, f *Figure) error {
	const clients = 64
	t, err := newTemplate(wire.Protobuf, kind.Pod, listedPod(namespace, "cart-000000000"))
	if err != nil {
		return err
	}
	senders := make([]*sender, clients)
	for i := range senders {
		if senders[i], err = l.sender(true, wire.Protobuf, client.Path(kind.Pod, namespace, "", "")); err != nil {
			return err
		}
		defer senders[i].h.CloseIdleConnections()
	}
	var n atomic.Int64
	errs := make([]error, clients)
	var wg sync.WaitGroup
	admin, err := l.client()
	if err != nil {
		return err
	}
	defer admin.Close()
	profiled := l.profileServer(ctx, admin, loadFor, "fill")
	watched := startWatch(pid)
	for i, s := range senders {
		wg.Go(func() {
			for {
				x := n.Add(1)
				if x > int64(l.pods) {
					return
				}
				body := t.body(fmt.Sprintf("cart-%09d", x))
				err := s.send(ctx, http.MethodPost, s.url, body, http.StatusCreated)
				for try := 0; err != nil && try < 100 && ctx.Err() == nil; try++ { // the service account is on its way
					if pause(ctx, 10*time.Millisecond) != nil {
						break
					}
					err = s.send(ctx, http.MethodPost, s.url, body, http.StatusCreated)
				}
				if errs[i] = err; err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	f.Samples = []float64{float64(l.pods) / watched.stop(f).Seconds()}
	return errors.Join(append(errs, profiled())...)
}
