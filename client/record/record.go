// Package record writes events (core/v1 Event) for controllers and nodes, so that
// many equal ones become few writes, as clients of Kubernetes expect from
// upstream's recorder:
//
//   - an event equal to one of the last 4,096 raises that one's count;
//   - more than 10 events in 10 minutes that differ in the message alone become
//     one, "(combined from similar events): ...";
//   - one source may write 25 events about one object at once, then one in five
//     minutes; the rest is dropped.
//
// Emit never blocks: when 4,096 events wait to be written, further ones are
// dropped and counted. Events are told for people's sake: losing one is not an
// error.
package record

import (
	"container/list"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"proa.dev/act"
	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
)

const (
	queueLength = 4096
	remembered  = 4096
	similar     = 10
	similarSpan = 10 * time.Minute
	burst       = 25
	refill      = 5 * time.Minute // for one event
	tries       = 5
	firstPause  = 100 * time.Millisecond
	maxMessage  = 1024
)

// Recorder writes events. New, then Run; Emit at any time.
type Recorder struct {
	// As gives the client that writes the events of a source; nil: New's. Set it
	// before Run.
	As func(source string) client.Client

	client          client.Client
	clock           env.Clock
	rand            env.Rand
	component, host string
	queue           chan *told
	dropped, full   atomic.Int64

	events  *cache[key, *known]   // equal events
	kinds   *cache[key, *variety] // events that differ in the message alone
	buckets *cache[key, *bucket]  // tokens of one source about one object
	last    int64                 // of the instants that names are made of

	// Log is told which events were lost; nil: nobody is. Set it before Run.
	Log *slog.Logger
}

type told struct {
	event act.Event
	at    time.Time
}

// key identifies events; unused fields are empty.
type key struct {
	kind                                         *kind.Kind
	namespace, name                              string
	uid                                          types.UID
	source, eventType, reason, field, messageKey string
}

type known struct {
	namespace, name string
	count           int32
	first           metav1.Time
}

type variety struct {
	messages map[string]bool
	last     time.Time
}

type bucket struct {
	tokens float64
	last   time.Time
}

// New makes a recorder for component on host; it starts nothing. Events with a
// Source of their own keep it, without the host.
func New(c client.Client, clock env.Clock, rand env.Rand, component, host string) *Recorder {
	return &Recorder{client: c, clock: clock, rand: rand, component: component, host: host, queue: make(chan *told, queueLength),
		events: newCache[key, *known](), kinds: newCache[key, *variety](), buckets: newCache[key, *bucket]()}
}

// Emit hands an event over; it never blocks.
func (r *Recorder) Emit(e act.Event) {
	select {
	case r.queue <- &told{e, r.clock.Now()}:
	default:
		r.dropped.Add(1)
		r.full.Add(1)
	}
}

// Dropped counts the events that found the queue full or were too many about one
// object.
func (r *Recorder) Dropped() int64 { return r.dropped.Load() }

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	for {
		select {
		case t := <-r.queue:
			err := r.write(ctx, t)
			if r.Log == nil {
				continue
			}
			if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
				r.Log.Warn("event is lost", "reason", t.event.Reason, "about", t.event.About.String(), "error", err)
			}
			if n := r.full.Swap(0); n > 0 {
				r.Log.Warn("events were dropped, the queue was full", "count", n)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write returns why the event is lost. One that there were too many of is not.
func (r *Recorder) write(ctx context.Context, t *told) error {
	e := t.event
	source := corev1.EventSource{Component: r.component, Host: r.host}
	if e.Source != "" && e.Source != r.component {
		source = corev1.EventSource{Component: e.Source}
	}
	c := r.client
	if r.As != nil {
		c = r.As(source.Component)
	}
	k := key{kind: e.About.Kind, namespace: e.About.Namespace, name: e.About.Name, uid: e.UID, source: source.Component}
	allowed := r.allow(k, t.at)
	k.eventType, k.reason, k.field = e.Type, e.Reason, e.Field
	if r.combine(k, e.Message, t.at) {
		k.messageKey = "combined"
		e.Message = "(combined from similar events): " + e.Message
	} else {
		k.messageKey = "=" + e.Message
	}
	if len(e.Message) > maxMessage {
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage-3], "") + "..."
	}
	if !allowed {
		r.dropped.Add(1)
		return nil
	}
	at := metav1.NewTime(t.at.Truncate(time.Second))
	if old, ok := r.events.get(k); ok {
		merge, err := json.Marshal(map[string]any{"count": old.count + 1, "lastTimestamp": at, "message": e.Message})
		if err != nil {
			panic(fmt.Sprintf("record: encode event: %v", err))
		}
		err = r.patiently(ctx, func() error {
			_, err := c.Patch(ctx, kind.Event, old.namespace, old.name, types.MergePatchType, merge, "", metav1.PatchOptions{})
			return err
		})
		if err == nil {
			old.count++
			return nil
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		// It has expired: a new one begins, at one.
	}
	obj := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.About.Namespace, Name: r.name(e.About.Name, t.at)},
		InvolvedObject: corev1.ObjectReference{Kind: e.About.Kind.Kind, APIVersion: e.About.Kind.APIVersion(),
			Namespace: e.About.Namespace, Name: e.About.Name, UID: e.UID, ResourceVersion: e.ResourceVersion, FieldPath: e.Field},
		Type: e.Type, Reason: e.Reason, Message: e.Message, Source: source, ReportingController: source.Component, ReportingInstance: source.Host,
		Count: 1, FirstTimestamp: at, LastTimestamp: at,
	}
	if obj.Namespace == "" {
		obj.Namespace = metav1.NamespaceDefault
	}
	err := r.patiently(ctx, func() error {
		_, err := c.Create(ctx, kind.Event, obj, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			obj.Name = r.name("", t.at)
		}
		return err
	})
	if err == nil {
		r.events.put(k, &known{namespace: obj.Namespace, name: obj.Name, count: 1, first: at})
	}
	return err
}

// patiently tries again while the server cannot answer.
func (r *Recorder) patiently(ctx context.Context, do func() error) error {
	pause := firstPause
	for n := 1; ; n++ {
		err := do()
		if err == nil || n == tries || ctx.Err() != nil || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
			return err
		}
		if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) {
			continue
		}
		if !env.Sleep(ctx, r.clock, pause) {
			return err
		}
		pause *= 2
	}
}

// name is the object's, a dot and the instant in hexadecimal, as upstream's; a
// random one when that is not a valid name.
func (r *Recorder) name(about string, at time.Time) string {
	r.last = max(r.last+1, at.UnixNano())
	name := fmt.Sprintf("%s.%x", about, r.last)
	if about != "" && len(validation.IsDNS1123Subdomain(name)) == 0 {
		return name
	}
	return fmt.Sprintf("event.%016x%016x", r.rand.Uint64(), r.rand.Uint64())
}

// allow takes a token.
func (r *Recorder) allow(k key, at time.Time) bool {
	b, ok := r.buckets.get(k)
	if !ok {
		b = &bucket{tokens: burst, last: at}
		r.buckets.put(k, b)
	}
	if d := at.Sub(b.last); d > 0 {
		b.tokens = min(burst, b.tokens+d.Seconds()/refill.Seconds())
		b.last = at
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// combine says that there are too many messages of this kind of event.
func (r *Recorder) combine(k key, message string, at time.Time) bool {
	v, ok := r.kinds.get(k)
	if !ok || at.Sub(v.last) > similarSpan {
		v = &variety{messages: map[string]bool{}}
		r.kinds.put(k, v)
	}
	v.last = at
	if len(v.messages) <= similar {
		v.messages[message] = true
	}
	return len(v.messages) > similar
}

// cache remembers the entries that were used last.
type cache[K comparable, V any] struct {
	order *list.List
	items map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newCache[K comparable, V any]() *cache[K, V] {
	return &cache[K, V]{order: list.New(), items: map[K]*list.Element{}}
}

func (c *cache[K, V]) get(k K) (v V, ok bool) {
	e, ok := c.items[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).value, true
}

func (c *cache[K, V]) put(k K, v V) {
	if e, ok := c.items[k]; ok {
		e.Value.(*entry[K, V]).value = v
		c.order.MoveToFront(e)
		return
	}
	c.items[k] = c.order.PushFront(&entry[K, V]{k, v})
	if c.order.Len() > remembered {
		e := c.order.Back()
		c.order.Remove(e)
		delete(c.items, e.Value.(*entry[K, V]).key)
	}
}
