package tree

import (
	"context"
	"time"

	"proa.dev/store"
)

// expiryHeap holds the live entries that expire, the next one first. An entry
// knows its place, so that a rewritten key leaves nothing behind.
type expiryHeap []*Entry

func (h *expiryHeap) push(e *Entry) {
	*h = append(*h, e)
	e.heap = int32(len(*h))
	h.up(len(*h) - 1)
}

func (h *expiryHeap) remove(e *Entry) {
	i, last := int(e.heap)-1, len(*h)-1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	e.heap = 0
	if i < last {
		h.up(i)
		h.down(i)
	}
}

func (h expiryHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heap, h[j].heap = int32(i+1), int32(j+1)
}

func (h expiryHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].Expiry <= h[i].Expiry {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h expiryHeap) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1].Expiry < h[child].Expiry {
			child++
		}
		if h[i].Expiry <= h[child].Expiry {
			return
		}
		h.swap(i, child)
		i = child
	}
}

// NextExpiry is when the next key expires; ok is false when none does.
func (s *Store) NextExpiry() (at time.Time, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.expiries) == 0 {
		return time.Time{}, false
	}
	return time.Unix(0, s.expiries[0].Expiry), true
}

// Expire deletes the keys whose time is over by the store's clock and returns
// how many. A store that is not Manual does it by itself.
func (s *Store) Expire(ctx context.Context) (int, error) {
	now := s.cfg.Clock.Now().UnixNano()
	n := 0
	for {
		s.mu.RLock()
		var due *Entry
		if len(s.expiries) > 0 && s.expiries[0].Expiry <= now {
			due = s.expiries[0]
		}
		s.mu.RUnlock()
		if due == nil {
			return n, nil
		}
		_, _, err := s.Delete(ctx, due.KV.Key, store.DeleteOptions{Expect: due.KV.ModRevision, Class: store.Buffered})
		switch {
		case err == nil:
			n++
		case isRaced(err):
		default:
			return n, err
		}
	}
}

func (s *Store) wakeTender() {
	select {
	case s.tend <- struct{}{}:
	default:
	}
}

// tendLoop expires keys and syncs buffered writes in time. It sleeps while there
// is neither.
func (s *Store) tendLoop() {
	defer s.wg.Done()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const never = time.Duration(1<<63 - 1)
	retry := time.Duration(0)
	var timer interface {
		C() <-chan time.Time
		Stop() bool
	}
	for {
		now := s.cfg.Clock.Now()
		wait := never
		if at, ok := s.NextExpiry(); ok {
			wait = at.Sub(now)
		}
		if since := s.dirty.Load(); since != 0 {
			wait = min(wait, time.Unix(0, since).Add(s.cfg.SyncDelay).Sub(now))
		}
		if wait != never {
			wait = max(wait, retry)
		}
		var fire <-chan time.Time
		if wait != never {
			timer = s.cfg.Clock.NewTimer(max(wait, 0))
			fire = timer.C()
		}
		select {
		case <-s.stop:
			if timer != nil {
				timer.Stop()
			}
			return
		case <-s.tend:
			if timer != nil {
				timer.Stop()
			}
			continue
		case <-fire:
		}
		retry = 0
		if _, err := s.Expire(ctx); err != nil {
			retry = 500 * time.Millisecond
		}
		if since := s.dirty.Load(); since != 0 && !s.cfg.Clock.Now().Before(time.Unix(0, since).Add(s.cfg.SyncDelay)) {
			if err := s.Sync(ctx); err != nil {
				retry = 500 * time.Millisecond
			}
		}
	}
}
