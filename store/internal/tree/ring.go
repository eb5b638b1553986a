package tree

import (
	"cmp"
	"errors"
	"slices"

	"proa.dev/store"
)

// ring counts the keys below its prefix, staged writes included, and finds the
// ones to drop. Everything in it is under Store.order.
type ring struct {
	Ring
	objects int
	bytes   int64
	// queue holds writes in their order. One that a later write of the key has
	// replaced is passed over.
	queue []ringEntry
	head  int
}

type ringEntry struct {
	key string
	rev int64
}

func (e *Entry) size() int64 { return int64(len(e.KV.Key) + len(e.KV.Value)) }

// add counts e, which replaces prev, and returns what has to go for it.
func (r *ring) add(s *Store, e, prev *Entry) (victims []*Entry) {
	if prev != nil && !prev.Deleted {
		r.objects--
		r.bytes -= prev.size()
	}
	if e.Deleted {
		return nil
	}
	r.objects++
	r.bytes += e.size()
	r.queue = append(r.queue, ringEntry{e.KV.Key, e.KV.ModRevision})
	for r.objects > 1 && (r.Objects > 0 && r.objects > r.Objects || r.Bytes > 0 && r.bytes > r.Bytes) {
		first := r.queue[r.head]
		r.queue[r.head] = ringEntry{}
		r.head++
		cur := s.newest(first.key)
		if cur == nil || cur.Deleted || cur.KV.ModRevision != first.rev || cur == e {
			continue
		}
		r.objects--
		r.bytes -= cur.size()
		victims = append(victims, cur)
	}
	if r.head > 1024 && r.head > len(r.queue)/2 || len(r.queue)-r.head > 2*r.objects+1024 {
		r.tidy(s)
	}
	return victims
}

// tidy removes what is passed over from the queue.
func (r *ring) tidy(s *Store) {
	kept := r.queue[:0]
	for _, q := range r.queue[r.head:] {
		if cur := s.newest(q.key); cur != nil && !cur.Deleted && cur.KV.ModRevision == q.rev {
			kept = append(kept, q)
		}
	}
	clear(r.queue[len(kept):])
	r.queue, r.head = kept, 0
}

// newest is the newest entry of a key, staged or visible. Under order.
func (s *Store) newest(key string) *Entry {
	if st, ok := s.staged[key]; ok {
		return st.e
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, _ := s.keys.Get(key)
	return e
}

// rebuild counts anew from the tree. Under order and mu.
func (r *ring) rebuild(s *Store) {
	r.objects, r.bytes, r.queue, r.head = 0, 0, nil, 0
	end := store.PrefixEnd(r.Prefix)
	s.keys.Ascend(r.Prefix, func(k string, e *Entry) bool {
		if end != "" && k >= end {
			return false
		}
		if !e.Deleted {
			r.objects++
			r.bytes += e.size()
			r.queue = append(r.queue, ringEntry{k, e.KV.ModRevision})
		}
		return true
	})
	sortByRevision(r.queue)
}

func isRaced(err error) bool {
	return errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound)
}

func sortByRevision(q []ringEntry) {
	slices.SortFunc(q, func(a, b ringEntry) int { return cmp.Compare(a.rev, b.rev) })
}
