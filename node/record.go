package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/client"
	"proa.dev/env"
	"proa.dev/kind"
)

// Bounds of the recorder, as upstream's: a burst of 25 events per object, then
// one every five minutes; the same event again raises its count.
const (
	eventBurst  = 25
	eventRefill = 5 * time.Minute
	eventForget = 10 * time.Minute
	eventQueue  = 1000
)

// recorder writes Events in the background, so that no pod waits for them. When
// the queue is full, events are dropped and counted in the log.
type recorder struct {
	client client.Client
	clock  env.Clock
	rand   env.Rand
	node   string
	log    *slog.Logger

	queue chan *corev1.Event

	mu      sync.Mutex
	dropped int
	seen    map[eventKey]*seenEvent
	buckets map[types.UID]*bucket
}

type eventKey struct {
	uid                         types.UID
	field, kind, reason, detail string
}

type seenEvent struct {
	name, namespace string
	count           int32
	last            time.Time
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newRecorder(c client.Client, clock env.Clock, rand env.Rand, node string, log *slog.Logger) *recorder {
	return &recorder{client: c, clock: clock, rand: rand, node: node, log: log, queue: make(chan *corev1.Event, eventQueue),
		seen: map[eventKey]*seenEvent{}, buckets: map[types.UID]*bucket{}}
}

// about records an event about a pod, or a part of it named by field.
func (r *recorder) about(p *corev1.Pod, field, eventType, reason, message string) {
	r.put(corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		ResourceVersion: p.ResourceVersion, FieldPath: field}, eventType, reason, message)
}

// aboutNode records an event about the node.
func (r *recorder) aboutNode(eventType, reason, message string) {
	r.put(corev1.ObjectReference{Kind: "Node", Name: r.node, UID: types.UID(r.node)}, eventType, reason, message)
}

func (r *recorder) put(ref corev1.ObjectReference, eventType, reason, message string) {
	now := r.clock.Now()
	if !r.allow(ref.UID, now) {
		return
	}
	if len(message) > 1024 {
		message = message[:1021] + "..."
	}
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	t := metav1.NewTime(now)
	e := &corev1.Event{
		TypeMeta:       metav1.TypeMeta{Kind: "Event", APIVersion: "v1"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", ref.Name, r.rand.Uint64())},
		InvolvedObject: ref, Reason: reason, Message: message, Type: eventType, Count: 1, FirstTimestamp: t, LastTimestamp: t,
		Source:              corev1.EventSource{Component: "kubelet", Host: r.node},
		ReportingController: "kubelet", ReportingInstance: r.node,
	}
	select {
	case r.queue <- e:
	default:
		r.mu.Lock()
		r.dropped++
		r.mu.Unlock()
	}
}

func (r *recorder) allow(uid types.UID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.buckets[uid]
	if b == nil {
		if len(r.buckets) > 4096 {
			clear(r.buckets)
		}
		b = &bucket{tokens: eventBurst, at: now}
		r.buckets[uid] = b
	}
	b.tokens = min(eventBurst, b.tokens+float64(now.Sub(b.at))/float64(eventRefill))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			if err := r.write(ctx, e); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
				r.log.Warn("event is lost", "reason", e.Reason, "about", e.InvolvedObject.Namespace+"/"+e.InvolvedObject.Name, "err", err)
			}
			r.mu.Lock()
			n := r.dropped
			r.dropped = 0
			r.mu.Unlock()
			if n > 0 {
				r.log.Warn("events were dropped, the queue was full", "count", n)
			}
		}
	}
}

func (r *recorder) write(ctx context.Context, e *corev1.Event) error {
	key := eventKey{e.InvolvedObject.UID, e.InvolvedObject.FieldPath, e.Type, e.Reason, e.Message}
	now := e.LastTimestamp.Time
	if s := r.seen[key]; s != nil && now.Sub(s.last) < eventForget {
		s.count, s.last = s.count+1, now
		patch, err := json.Marshal(map[string]any{"count": s.count, "lastTimestamp": e.LastTimestamp})
		if err != nil {
			return err
		}
		_, err = r.client.Patch(ctx, kind.Event, s.namespace, s.name, types.MergePatchType, patch, "", metav1.PatchOptions{})
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	if len(r.seen) > 4096 {
		clear(r.seen)
	}
	if _, err := r.client.Create(ctx, kind.Event, e, metav1.CreateOptions{}); err != nil {
		return err
	}
	r.seen[key] = &seenEvent{name: e.Name, namespace: e.Namespace, count: 1, last: now}
	return nil
}
