package meter

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
)

// Host is what the label host says of clients in the server's own process.
const Host = "in-process"

// Clients make metered clients: upstream's metrics of clients for calls that are
// functions here, with the method and code that they would have over HTTP.
type Clients struct {
	m     *Meter
	clock env.Clock

	mu     sync.RWMutex
	counts map[answered]prometheus.Counter
	took   map[string]prometheus.Observer // by method
}

type answered struct {
	method string
	code   int
}

// Clients of this process.
func (m *Meter) Clients(clock env.Clock) *Clients {
	c := &Clients{m: m, clock: clock, counts: map[answered]prometheus.Counter{}, took: map[string]prometheus.Observer{}}
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		c.took[method] = m.seconds.WithLabelValues(Host, method)
	}
	return c
}

// Of measures the calls of a client.
func (c *Clients) Of(next client.Client) client.Client { return &metered{next, c} }

// done counts a call that began at some time.
func (c *Clients) done(method string, success int, began time.Time, err error) {
	code := success
	if err != nil {
		code = 0
		var status apierrors.APIStatus
		if errors.As(err, &status) {
			code = int(status.Status().Code)
		}
	}
	key := answered{method, code}
	c.mu.RLock()
	n := c.counts[key]
	c.mu.RUnlock()
	if n == nil {
		label := "<error>" // upstream's word where there was no answer
		if code != 0 {
			label = strconv.Itoa(code)
		}
		n = c.m.requests.WithLabelValues(label, Host, method)
		c.mu.Lock()
		c.counts[key] = n
		c.mu.Unlock()
	}
	n.Inc()
	c.took[method].Observe(c.clock.Now().Sub(began).Seconds())
}

type metered struct {
	next client.Client
	of   *Clients
}

func (m *metered) Get(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.GetOptions) (kind.Object, error) {
	began := m.of.clock.Now()
	obj, err := m.next.Get(ctx, k, namespace, name, o)
	m.of.done(http.MethodGet, http.StatusOK, began, err)
	return obj, err
}

func (m *metered) List(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (client.List, error) {
	began := m.of.clock.Now()
	l, err := m.next.List(ctx, k, namespace, o)
	m.of.done(http.MethodGet, http.StatusOK, began, err)
	return l, err
}

func (m *metered) Watch(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	began := m.of.clock.Now()
	w, err := m.next.Watch(ctx, k, namespace, o)
	m.of.done(http.MethodGet, http.StatusOK, began, err)
	return w, err
}

func (m *metered) Create(ctx context.Context, k *kind.Kind, obj kind.Object, o metav1.CreateOptions) (kind.Object, error) {
	began := m.of.clock.Now()
	out, err := m.next.Create(ctx, k, obj, o)
	m.of.done(http.MethodPost, http.StatusCreated, began, err)
	return out, err
}

func (m *metered) Update(ctx context.Context, k *kind.Kind, obj kind.Object, sub string, o metav1.UpdateOptions) (kind.Object, error) {
	began := m.of.clock.Now()
	out, err := m.next.Update(ctx, k, obj, sub, o)
	m.of.done(http.MethodPut, http.StatusOK, began, err)
	return out, err
}

func (m *metered) Patch(ctx context.Context, k *kind.Kind, namespace, name string, t types.PatchType, data []byte, sub string, o metav1.PatchOptions) (kind.Object, error) {
	began := m.of.clock.Now()
	out, err := m.next.Patch(ctx, k, namespace, name, t, data, sub, o)
	m.of.done(http.MethodPatch, http.StatusOK, began, err)
	return out, err
}

func (m *metered) Delete(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.DeleteOptions) error {
	began := m.of.clock.Now()
	err := m.next.Delete(ctx, k, namespace, name, o)
	m.of.done(http.MethodDelete, http.StatusOK, began, err)
	return err
}

func (m *metered) Post(ctx context.Context, k *kind.Kind, namespace, name, sub string, body runtime.Object) (runtime.Object, error) {
	began := m.of.clock.Now()
	out, err := m.next.Post(ctx, k, namespace, name, sub, body)
	m.of.done(http.MethodPost, http.StatusCreated, began, err)
	return out, err
}
