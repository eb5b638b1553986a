package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"proa.dev/env"
	"proa.dev/store"
)

// Bounds of a watch's queue.
const (
	queueEvents = 20_000
	queueBytes  = 64 << 20
)

// attachWait bounds how long a batch of events waits for the answers to own
// writes among them, which are on their way.
const attachWait = 5 * time.Millisecond

// watch is one watch in etcd, opened again as often as it ends.
type watch struct {
	s      *Store
	prefix string
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // to Next: something has changed
	room   chan struct{} // to pump: the queue is empty
	// reached: everything up to here is queued.
	reached atomic.Int64
	isNew   bool // not followed yet; pump's

	mu       sync.Mutex
	queue    []store.Event
	bytes    int
	told     int64 // progress that Next has told of
	err      error
	isClosed bool
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, from int64) (store.Watch, error) {
	if err := s.begin(ctx); err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	if from == 0 || from > s.Revision() {
		now, err := s.Latest(ctx)
		if err != nil {
			return nil, fmt.Errorf("watch %q: %w", prefix, err)
		}
		if from > now {
			return nil, fmt.Errorf("watch %q from revision %d, the newest is %d: %w", prefix, from, now, store.ErrFuture)
		}
		if from == 0 {
			from = now
		}
	}
	if c := s.Compacted(); from < c {
		return nil, fmt.Errorf("watch %q from revision %d, the oldest is %d: %w", prefix, from, c, store.ErrCompacted)
	}
	w := &watch{s: s, prefix: prefix, wake: make(chan struct{}, 1), room: make(chan struct{}, 1), told: from, isNew: true}
	w.ctx, w.cancel = context.WithCancel(s.ctx)
	w.reached.Store(from)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		w.cancel()
		return nil, fmt.Errorf("watch %q: %w", prefix, store.ErrClosed)
	}
	s.watches[w] = struct{}{}
	s.wg.Go(w.pump)
	return w, nil
}

// errFull: nobody reads; the watch in etcd is ended until the queue is empty.
var errFull = errors.New("the queue is full")

// pump keeps a watch open and fills the queue.
func (w *watch) pump() {
	defer w.signal()
	backoff := 50 * time.Millisecond
	for w.ctx.Err() == nil {
		before := w.reached.Load()
		err := w.follow()
		switch {
		case w.ctx.Err() != nil:
			return
		case errors.Is(err, store.ErrCompacted):
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
			return
		case errors.Is(err, errFull):
			select {
			case <-w.room:
			case <-w.ctx.Done():
			}
			continue
		}
		if w.reached.Load() > before {
			backoff = 50 * time.Millisecond
		}
		w.s.log.Warn("watch on etcd ended and is opened again", "prefix", w.prefix, "after", w.reached.Load(), "error", err)
		if !env.Sleep(w.ctx, w.s.clock, backoff) {
			return
		}
		backoff = min(2*backoff, 2*time.Second)
	}
}

// follow opens one watch in etcd and queues its events until it ends. It starts
// at the revision that has been delivered, and not behind it, so that etcd's
// check for compaction is the contract's: the event at the compacted revision
// may be gone. Only the first start, at the newest revision, is behind it: nobody
// has compacted beyond that, and etcd starts it at once instead of in its next
// round of watches that have to catch up (100 ms).
func (w *watch) follow() error {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	start, end := w.s.span(w.prefix, store.PrefixEnd(w.prefix))
	from := max(w.reached.Load(), 1)
	if w.isNew && from >= w.s.Revision() {
		from++
	}
	w.isNew = false
	ch := w.s.client.Watch(clientv3.WithRequireLeader(ctx), start, clientv3.WithRange(end), clientv3.WithRev(from),
		clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithFragment())
	for resp := range ch {
		if err := resp.Err(); err != nil {
			if resp.CompactRevision > 0 || rpctypes.Error(err) == rpctypes.ErrCompacted {
				raise(&w.s.compacted, resp.CompactRevision)
				return fmt.Errorf("watch %q after revision %d, the oldest is %d: %w", w.prefix, w.reached.Load(), resp.CompactRevision, store.ErrCompacted)
			}
			return err
		}
		if resp.IsProgressNotify() {
			w.s.note(resp.Header.Revision)
			raise(&w.reached, resp.Header.Revision)
			w.signal()
			continue
		}
		if len(resp.Events) == 0 {
			continue
		}
		if !w.queueAll(resp.Events) {
			return errFull
		}
	}
	return errors.New("etcd has ended it")
}

// queueAll queues what is newer than what was queued, and says whether there is
// room for more.
func (w *watch) queueAll(in []*clientv3.Event) bool {
	reached := w.reached.Load()
	batch := make([]store.Event, 0, len(in))
	bytes := 0
	var timer env.Timer
	late := func() <-chan time.Time {
		if timer == nil {
			timer = w.s.clock.NewTimer(attachWait)
		}
		return timer.C()
	}
	isLate := false
	for _, e := range in {
		if e.Kv.ModRevision <= reached {
			continue
		}
		out := store.Event{Deleted: e.Type == mvccpb.DELETE}
		if e.PrevKv != nil {
			prev := w.kv(e.PrevKv)
			out.Prev = &prev
			bytes += len(prev.Value)
		}
		if out.Deleted {
			out.KV = store.KV{Key: w.s.name(e.Kv.Key), ModRevision: e.Kv.ModRevision}
			if out.Prev != nil {
				out.KV.CreateRevision = out.Prev.CreateRevision
			}
		} else {
			out.KV = w.kv(e.Kv)
			bytes += len(out.KV.Value)
		}
		if out.KV.Attached == nil && !isLate {
			out.KV.Attached, isLate = w.s.attached.await(out.KV.Key, out.KV.ModRevision, late)
		} else if out.KV.Attached == nil {
			out.KV.Attached = w.s.attached.get(out.KV.Key, out.KV.ModRevision)
		}
		batch = append(batch, out)
	}
	if timer != nil {
		timer.Stop()
	}
	if len(batch) == 0 {
		return true
	}
	last := batch[len(batch)-1].KV.ModRevision
	w.mu.Lock()
	w.queue = append(w.queue, batch...)
	w.bytes += bytes
	isFull := len(w.queue) > queueEvents || w.bytes > queueBytes
	if isFull {
		// Only an emptied queue makes room: an older token is none.
		select {
		case <-w.room:
		default:
		}
	}
	w.reached.Store(last)
	w.mu.Unlock()
	w.s.note(last)
	w.signal()
	return !isFull
}

func (w *watch) kv(in *mvccpb.KeyValue) store.KV {
	kv, err := w.s.kv(in)
	if err != nil {
		w.s.log.Error("value cannot be decrypted", "key", kv.Key, "error", err)
	}
	return kv
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Next implements store.Watch. Events that are there are returned even when ctx
// is done; a batch without events tells of progress alone.
func (w *watch) Next(ctx context.Context) ([]store.Event, int64, error) {
	for {
		w.mu.Lock()
		if w.isClosed {
			w.mu.Unlock()
			return nil, w.told, fmt.Errorf("watch %q: %w", w.prefix, store.ErrClosed)
		}
		events, reached, err := w.queue, w.reached.Load(), w.err
		w.queue, w.bytes = nil, 0
		isNews := len(events) > 0 || reached > w.told
		if isNews {
			w.told = reached
		}
		w.mu.Unlock()
		if isNews {
			select {
			case w.room <- struct{}{}:
			default:
			}
			return events, reached, nil
		}
		if err != nil {
			return nil, reached, err
		}
		if w.s.ctx.Err() != nil {
			return nil, reached, fmt.Errorf("watch %q: %w", w.prefix, store.ErrClosed)
		}
		select {
		case <-w.wake:
		case <-w.s.ctx.Done():
		case <-ctx.Done():
			return nil, reached, fmt.Errorf("watch %q: %w", w.prefix, ctx.Err())
		}
	}
}

// Close implements store.Watch.
func (w *watch) Close() {
	w.s.mu.Lock()
	delete(w.s.watches, w)
	w.s.mu.Unlock()
	w.mu.Lock()
	w.isClosed = true
	w.mu.Unlock()
	w.cancel()
	w.signal()
}
