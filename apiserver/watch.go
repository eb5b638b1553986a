package apiserver

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// event is one delivery of a watch. obj is a stored object (BOOKMARK: an empty
// one of the served kind). change is what it came from, nil for synthetic ones.
type event struct {
	typ    watch.EventType
	obj    kind.Object
	change *view.Change
	status *metav1.Status // ERROR only
	// moved: the object left the selection; obj is its last state that matched
	// with the revision of the change.
	moved bool
}

// source is one watch, before anything is encoded.
type source struct {
	s         *Server
	c         *call
	sel       selection
	from      int64
	initial   []kind.Object
	endMark   bool // send the bookmark that ends the initial events
	bookmarks bool
	timeout   time.Duration
	// settled, if set, is called once the initial events are out.
	settled func()
}

const (
	bookmarkEvery = time.Minute
	// minWatch is the shortest time that upstream chooses for a watch without
	// timeoutSeconds; the real one is between it and its double.
	minWatch = 30 * time.Minute
)

// openWatch validates the options and finds the starting point. Its error is an
// HTTP answer; what goes wrong later is an ERROR event.
func (s *Server) openWatch(ctx context.Context, c *call, o metav1.ListOptions) (*source, error) {
	o.Watch = true
	if err := validateListOptions(c.kind, o); err != nil {
		return nil, err
	}
	sel, err := parseSelection(c.kind, o)
	if err != nil {
		return nil, err
	}
	rev, err := parseVersion(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &source{s: s, c: c, sel: sel, from: rev, bookmarks: o.AllowWatchBookmarks}
	if o.TimeoutSeconds != nil && *o.TimeoutSeconds > 0 {
		w.timeout = time.Duration(*o.TimeoutSeconds) * time.Second
	} else {
		w.timeout = minWatch + time.Duration(s.rand.Uint64()%uint64(minWatch))
	}
	streaming := o.SendInitialEvents != nil && *o.SendInitialEvents
	synthetic := streaming || (o.SendInitialEvents == nil && rev == 0)
	if !synthetic && rev != 0 {
		return w, nil
	}
	if o.ResourceVersion == "" {
		err = s.fresh(ctx)
	} else {
		err = s.waitFor(ctx, rev)
	}
	if err != nil {
		return nil, err
	}
	snap := s.view.Snapshot()
	w.from = snap.Revision()
	if synthetic {
		w.initial = []kind.Object{}
		for obj := range s.objects(c, sel, snap, pageToken{}) {
			if sel.matches(obj) {
				w.initial = append(w.initial, obj)
			}
		}
		w.endMark = streaming && o.AllowWatchBookmarks
	}
	return w, nil
}

func (w *source) bookmark(rev int64, end bool) event {
	obj := w.c.kind.New()
	obj.SetResourceVersion(strconv.FormatInt(rev, 10))
	if end {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return event{typ: watch.Bookmark, obj: obj}
}

// coalesce is the shortest time between two deliveries to one watcher: the first
// change goes out at once, what follows within it goes together. A delivery costs a
// record and a system call in each connection, so where many watch the same kind it
// grows with their number, coalesceEach for each, up to coalesceMost.
const (
	coalesce     = 2 * time.Millisecond
	coalesceEach = 60 * time.Microsecond
	coalesceMost = 20 * time.Millisecond
)

// crowd counts the watchers of kinds; kinds may share a count.
type crowd [256]atomic.Int64

func (c *crowd) of(k *kind.Kind) *atomic.Int64 {
	h := fnv.New32a()
	h.Write([]byte(k.Root().Prefix))
	return &c[h.Sum32()%uint32(len(c))]
}

// apart is the shortest time between deliveries to one of n watchers.
func apart(n int64) time.Duration {
	return min(max(coalesce, time.Duration(n)*coalesceEach), coalesceMost)
}

// run delivers until ctx ends, the time is over or emit fails. Batches are in
// order of revision. emit must not keep the slice.
func (w *source) run(ctx context.Context, emit func([]event) error) error {
	clock := w.s.clock
	deadline := clock.NewTimer(w.timeout)
	defer deadline.Stop()
	batch := make([]event, 0, 64)
	for _, obj := range w.initial {
		batch = append(batch, event{typ: watch.Added, obj: obj})
		if len(batch) == 256 {
			if err := emit(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	w.initial = nil
	if w.endMark {
		batch = append(batch, w.bookmark(w.from, true))
	}
	if len(batch) > 0 {
		if err := emit(batch); err != nil {
			return err
		}
	}
	if w.settled != nil {
		w.settled()
	}
	tick := clock.NewTimer(bookmarkEvery)
	defer tick.Stop()
	crowd := w.s.crowd.of(w.c.kind)
	crowd.Add(1)
	defer crowd.Add(-1)
	var last time.Time
	sent := w.from // newest revision the client knows
	for {
		changes, progress, more, err := w.s.view.Changes(w.c.kind, w.from)
		if errors.Is(err, view.ErrGone) {
			e := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", w.from, w.s.view.Snapshot().Revision()))
			st := e.Status()
			return emit([]event{{typ: watch.Error, status: &st}})
		} else if err != nil {
			return err
		}
		if w.c.kind.Custom && len(changes) == 0 && w.isStale() {
			return nil // the definition has changed: the client comes again
		}
		batch = batch[:0]
		for _, ch := range changes {
			if e, ok := w.select1(ch); ok {
				batch = append(batch, e)
			}
		}
		if len(changes) > 0 {
			w.from = changes[len(changes)-1].Revision
		}
		// progress may be ahead of the last change of this kind.
		w.from = max(w.from, progress)
		if len(batch) > 0 {
			if err := emit(batch); err != nil {
				return err
			}
			sent = batch[len(batch)-1].change.Revision
			last = clock.Now()
		}
		select {
		case <-more:
			most := apart(crowd.Load())
			if wait := most - clock.Now().Sub(last); wait > 0 && wait <= most {
				if !env.Sleep(ctx, clock, wait) {
					return ctx.Err()
				}
			}
		case <-tick.C():
			tick.Reset(bookmarkEvery)
			if rev, _ := w.s.view.Moved(); w.bookmarks && rev > sent {
				if e, ok := w.markHere(); ok {
					if err := emit([]event{e}); err != nil {
						return err
					}
					sent = w.from
				}
			}
		case <-deadline.C():
			if w.bookmarks {
				if e, ok := w.markHere(); ok {
					return emit([]event{e})
				}
			}
			return nil
		case <-w.s.draining:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isStale says that the version is not served any more as it was when the watch
// began.
func (w *source) isStale() bool {
	row := w.s.kinds().ByResource(w.c.kind.GVR())
	return row == nil || row.Extension != w.c.kind.Extension
}

// markHere is a bookmark at the newest revision, if nothing of this watch lies
// before it.
func (w *source) markHere() (event, bool) {
	changes, progress, _, err := w.s.view.Changes(w.c.kind, w.from)
	if err != nil || len(changes) > 0 {
		return event{}, false
	}
	w.from = max(w.from, progress)
	return w.bookmark(w.from, false), true
}

func (w *source) covers(obj kind.Object) bool {
	return obj != nil && (w.c.namespace == "" || obj.GetNamespace() == w.c.namespace || w.c.kind.Scope == kind.Cluster) &&
		(w.c.name == "" || obj.GetName() == w.c.name) && w.sel.matches(obj)
}

// select1 turns a change into what this watch sees of it.
func (w *source) select1(ch *view.Change) (event, bool) {
	is := w.covers(ch.New)
	if w.sel.all() && w.c.namespace == "" && w.c.name == "" {
		switch {
		case ch.New == nil:
			return event{typ: watch.Deleted, obj: ch.Last, change: ch}, true
		case ch.Old == nil:
			return event{typ: watch.Added, obj: ch.New, change: ch}, true
		}
		return event{typ: watch.Modified, obj: ch.New, change: ch}, true
	}
	was := w.covers(ch.Old)
	switch {
	case is && was:
		return event{typ: watch.Modified, obj: ch.New, change: ch}, true
	case is:
		return event{typ: watch.Added, obj: ch.New, change: ch}, true
	case was && ch.New == nil:
		return event{typ: watch.Deleted, obj: ch.Last, change: ch}, true
	case was:
		return event{typ: watch.Deleted, obj: ch.Old, change: ch, moved: true}, true
	}
	return event{}, false
}

// object is what the client gets to see: of the served version, and for one that
// left the selection with the revision of the change.
func (w *source) object(e event) (kind.Object, error) {
	if e.typ == watch.Bookmark {
		return e.obj, nil
	}
	obj := e.obj
	if e.moved {
		obj = obj.DeepCopyObject().(kind.Object)
		obj.SetResourceVersion(strconv.FormatInt(e.change.Revision, 10))
	}
	return served(w.c.kind, obj)
}

// localWatch is a watch.Interface over a source.
type localWatch struct {
	events chan watch.Event
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
}

func (l *localWatch) ResultChan() <-chan watch.Event { return l.events }

// Stop ends the watch and waits for its goroutine.
func (l *localWatch) Stop() {
	l.cancel()
	<-l.done
}

func (s *Server) watchLocal(ctx context.Context, c *call, o metav1.ListOptions) (watch.Interface, error) {
	src, err := s.openWatch(ctx, c, o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &localWatch{events: make(chan watch.Event, 64), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer close(l.events)
		defer cancel()
		src.run(ctx, func(batch []event) error {
			for _, e := range batch {
				out := watch.Event{Type: e.typ}
				if e.status != nil {
					out.Object = e.status
				} else {
					obj, err := src.object(e)
					if err != nil {
						st := statusError(err).Status()
						out = watch.Event{Type: watch.Error, Object: &st}
					} else {
						out.Object = obj
					}
				}
				select {
				case l.events <- out:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}()
	return l, nil
}

// flusher is what a watch needs of a ResponseWriter.
type flusher interface {
	http.ResponseWriter
	http.Flusher
}
