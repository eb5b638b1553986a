package tree

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"proa.dev/store"
)

// batchEvents bounds one batch of a watch.
const batchEvents = 4096

// watch is a place in the window. It holds no events of its own: a watcher that
// does not keep up loses its place, and nobody waits for it.
type watch struct {
	s      *Store
	prefix string
	pos    int64 // absolute number of the next entry to look at
	rev    int64 // everything up to this revision has been delivered
	idle   bool  // Next waits, and there is nothing for it before the end
	closed bool
	wake   chan struct{}
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, from int64) (store.Watch, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := s.readable(from)
	if err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	live := s.log[s.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].KV.ModRevision > from })
	w := &watch{s: s, prefix: prefix, pos: s.base + int64(i), rev: from, wake: make(chan struct{}, 1)}
	s.watchers[w] = struct{}{}
	return w, nil
}

// notify tells the watchers about entries that were just appended. Under mu.
func (s *Store) notify(es []*Entry) {
	end := s.base + int64(len(s.log)-s.head)
	for w := range s.watchers {
		if !w.idle {
			continue
		}
		if w.prefix != "" && !w.wants(es) {
			w.pos, w.rev = end, s.revision
			continue
		}
		w.idle = false
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watch) wants(es []*Entry) bool {
	for _, e := range es {
		if strings.HasPrefix(e.KV.Key, w.prefix) {
			return true
		}
	}
	return false
}

// Next implements store.Watch. Events that are there are returned even when ctx
// is done.
func (w *watch) Next(ctx context.Context) ([]store.Event, int64, error) {
	for {
		events, err := w.take()
		if err != nil {
			return nil, w.rev, fmt.Errorf("watch %q: %w", w.prefix, err)
		}
		if len(events) > 0 {
			return events, w.rev, nil
		}
		select {
		case <-w.wake:
		case <-w.s.done:
			if events, err := w.take(); err == nil && len(events) > 0 {
				return events, w.rev, nil
			}
			return nil, w.rev, fmt.Errorf("watch %q: %w", w.prefix, store.ErrClosed)
		case <-ctx.Done():
			return nil, w.rev, fmt.Errorf("watch %q: %w", w.prefix, ctx.Err())
		}
	}
}

// take collects what is there, or marks the watch as idle.
func (w *watch) take() ([]store.Event, error) {
	s := w.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	if w.closed {
		return nil, store.ErrClosed
	}
	if w.pos < s.base {
		return nil, fmt.Errorf("behind by %d changes, the oldest is after revision %d: %w", s.base-w.pos, s.compacted, store.ErrCompacted)
	}
	rest := s.log[s.head+int(w.pos-s.base):]
	var events []store.Event
	for i, e := range rest {
		if w.prefix != "" && !strings.HasPrefix(e.KV.Key, w.prefix) {
			continue
		}
		if len(events) == batchEvents {
			w.pos += int64(i)
			w.rev = events[batchEvents-1].KV.ModRevision
			return events, nil
		}
		if events == nil {
			events = make([]store.Event, 0, min(len(rest)-i, batchEvents))
		}
		ev := store.Event{KV: e.KV, Deleted: e.Deleted}
		if prev := e.older.Load(); prev != nil && !prev.Deleted {
			ev.Prev = &prev.KV
		}
		events = append(events, ev)
	}
	w.pos += int64(len(rest))
	w.rev = s.revision
	if len(events) == 0 {
		w.idle = true
	}
	return events, nil
}

// Close implements store.Watch.
func (w *watch) Close() {
	w.s.mu.Lock()
	w.closed = true
	delete(w.s.watchers, w)
	w.s.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
