package etcd

import (
	"sync"
	"time"
)

// attachedWrites is how many of this process's last writes keep what was
// attached to them.
const attachedWrites = 1024

// attachments remember what was attached to own writes, by revision. A write
// that is under way is known by its key, so that its event, which may come before
// its answer, can wait for it.
type attachments struct {
	mu      sync.Mutex
	byRev   map[int64]attachment
	order   [attachedWrites]int64
	next    int
	pending map[string]*underWay
}

type attachment struct {
	key    string
	object any
}

// underWay are the writes of one key that have no answer yet.
type underWay struct {
	count int
	moved chan struct{} // closed and replaced when one is answered
}

// write is one that is under way; nil when nothing is attached.
type write struct {
	key    string
	object any
}

func (a *attachments) init() {
	a.byRev, a.pending = map[int64]attachment{}, map[string]*underWay{}
}

func (a *attachments) begin(key string, object any) *write {
	if object == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.pending[key]
	if u == nil {
		u = &underWay{moved: make(chan struct{})}
		a.pending[key] = u
	}
	u.count++
	return &write{key, object}
}

func (a *attachments) end(w *write) {
	if w == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.pending[w.key]
	close(u.moved)
	u.moved = make(chan struct{})
	if u.count--; u.count == 0 {
		delete(a.pending, w.key)
	}
}

// put says which revision the write got.
func (a *attachments) put(w *write, rev int64) {
	if w == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.byRev, a.order[a.next])
	a.order[a.next] = rev
	a.next = (a.next + 1) % attachedWrites
	a.byRev[rev] = attachment{w.key, w.object}
}

func (a *attachments) get(key string, rev int64) any {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x, ok := a.byRev[rev]; ok && x.key == key {
		return x.object
	}
	return nil
}

// await is get for an event that may be of a write which is under way: it waits
// until that is answered, or late fires, which isLate says.
func (a *attachments) await(key string, rev int64, late func() <-chan time.Time) (object any, isLate bool) {
	for {
		a.mu.Lock()
		x, ok := a.byRev[rev]
		u := a.pending[key]
		var moved chan struct{}
		if u != nil {
			moved = u.moved
		}
		a.mu.Unlock()
		if ok && x.key == key {
			return x.object, false
		}
		if u == nil {
			return nil, false
		}
		select {
		case <-moved:
		case <-late():
			return nil, true
		}
	}
}
