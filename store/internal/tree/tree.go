// Package tree is the core that the stores share: the whole state in memory as
// one ordered tree of keys, a window of history behind it, watchers on that
// window, keys with an expiry, bounded rings of keys, and the write path with
// group commit. Where the bytes go is the business of a Log; without one the
// store lives in memory only.
//
// # A write
//
// Under the lock order the expectation is checked against the newest entry of
// the key, staged ones included, and the write gets its revision. With a Log it
// joins the group that is being collected; the committer hands one group after
// the other to the Log, with one sync for all of it, and then shows the whole
// group at once, in revision order. Nothing is visible before it is durable (of
// its class). A write whose expectation fails only because of a staged entry
// waits until that entry is decided, and is checked again: an error is never
// about something that a reader could not see.
//
// When the Log refuses a group, that group and the one collected meanwhile fail
// with the Log's error, and nothing of them is applied; revisions are not used
// again.
//
// # History
//
// Each entry points to the entry before it of the same key as long as it is in
// the window, the last Config.Window changes or Config.WindowBytes of replaced
// values. Entries that leave the window cut that pointer; removals that leave it
// take the key out of the tree.
package tree

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"proa.dev/env"
	"proa.dev/store"
)

// Defaults of Config.
const (
	DefaultWindow      = 10_000
	DefaultWindowBytes = 16 << 20
	DefaultSyncDelay   = 500 * time.Millisecond
)

// Entry is one write of one key, as the Log gets it. For a removal KV has no
// Value and ModRevision is that of the removal.
type Entry struct {
	KV      store.KV
	Expiry  int64 // Unix nanoseconds; 0: never
	Class   store.Class
	Deleted bool

	heap  int32 // place in the expiry heap plus one; 0: not in it
	older atomic.Pointer[Entry]
}

// Replaced is the entry that e replaces, or nil; only as long as e is being
// written or in the window.
func (e *Entry) Replaced() *Entry { return e.older.Load() }

// Log makes groups of entries durable. Calls come from one goroutine at a time.
type Log interface {
	// Write applies all entries or none, in their order; with sync they are
	// durable when it returns. An error means that none is applied.
	Write(entries []*Entry, sync bool) error
	// Sync makes all earlier writes durable.
	Sync() error
	// Close syncs and releases everything; revision is the newest one.
	Close(revision int64) error
}

// Ring bounds the keys below a prefix; the ones written longest ago go first.
type Ring struct {
	Prefix  string
	Objects int   // at most; 0: unbounded
	Bytes   int64 // of keys and values, at most; 0: unbounded
}

// Config of a Store. The zero Config is a store in memory on the system's clock.
type Config struct {
	Clock       env.Clock
	Window      int   // changes kept; 0: DefaultWindow
	WindowBytes int64 // replaced values kept; 0: DefaultWindowBytes
	Rings       []Ring
	// SyncDelay is how long a buffered write may wait for a sync; 0: DefaultSyncDelay.
	SyncDelay time.Duration
	// Manual starts no goroutine: expiry happens in Expire only. For simulation;
	// without a Log only.
	Manual bool
	Log    Log
}

// Store implements store.Store. New makes it, Load fills it, Start opens it.
type Store struct {
	cfg Config

	order   sync.Mutex // before mu
	last    int64      // newest revision given out
	staged  map[string]stagedEntry
	group   *group // being collected
	rings   []*ring
	closing bool

	mu        sync.RWMutex
	keys      btree.Map[string, *Entry]
	live      int
	revision  int64
	compacted int64
	log       []*Entry // the window, oldest first, from head on
	head      int
	base      int64 // absolute number of log[head]
	bytes     int64 // of replaced values in the window
	expiries  expiryHeap
	watchers  map[*watch]struct{}

	kick  chan struct{} // to the committer
	tend  chan struct{} // to the tender
	stop  chan struct{} // closed by Close: nothing new begins
	done  chan struct{} // closed when nothing will change any more
	wg    sync.WaitGroup
	dirty atomic.Int64 // Unix nanoseconds of the first buffered write since the last sync; 0: none
	once  sync.Once
	err   error // of Close
}

type stagedEntry struct {
	e *Entry
	g *group
}

// group is what one call of Log.Write carries.
type group struct {
	entries []*Entry
	sync    bool
	asked   bool // Sync was called: write even if empty
	done    chan struct{}
	err     error
}

// New makes an empty store that is not open yet.
func New(cfg Config) *Store {
	if cfg.Clock == nil {
		cfg.Clock = env.SystemClock()
	}
	if cfg.Window <= 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.WindowBytes <= 0 {
		cfg.WindowBytes = DefaultWindowBytes
	}
	if cfg.SyncDelay <= 0 {
		cfg.SyncDelay = DefaultSyncDelay
	}
	s := &Store{cfg: cfg, staged: map[string]stagedEntry{}, watchers: map[*watch]struct{}{},
		kick: make(chan struct{}, 1), tend: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	for _, r := range cfg.Rings {
		s.rings = append(s.rings, &ring{Ring: r})
	}
	return s
}

// Load puts one entry of the state at start in; keys in order are fastest. Only
// before Start.
func (s *Store) Load(e *Entry) {
	s.keys.Load(e.KV.Key, e)
	s.live++
	if e.Expiry != 0 {
		s.expiries.push(e)
	}
}

// Start opens the store at revision: everything before is compacted.
func (s *Store) Start(revision int64) {
	s.last, s.revision, s.compacted = revision, revision, revision
	for _, r := range s.rings {
		r.rebuild(s)
	}
	if s.cfg.Log != nil {
		s.wg.Add(1)
		go s.commitLoop()
	}
	if !s.cfg.Manual {
		s.wg.Add(1)
		go s.tendLoop()
	}
}

// Len counts the live keys.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.live
}

// Current returns the newest visible entry of a key, a removal included while
// it is in the window; nil when there is none. For a Log that puts its files
// right after a failure.
func (s *Store) Current(key string) *Entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, _ := s.keys.Get(key)
	return e
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, value []byte, o store.PutOptions) (store.KV, error) {
	if key == "" {
		return store.KV{}, errors.New(`put "": key is empty`)
	}
	if len(value) > store.MaxValueBytes {
		return store.KV{}, fmt.Errorf("put %q of %d bytes, more than %d: %w", key, len(value), store.MaxValueBytes, store.ErrTooLarge)
	}
	if value == nil {
		value = []byte{}
	}
	e := &Entry{KV: store.KV{Key: key, Value: value, Attached: o.Attached}, Class: o.Class}
	if o.TTL > 0 {
		e.Expiry = s.cfg.Clock.Now().Add(max(o.TTL, time.Second)).UnixNano()
	}
	if _, err := s.write(ctx, e, o.Expect, o.Stamp, o.Guards...); err != nil {
		return store.KV{}, err
	}
	return e.KV, nil
}

// Delete implements store.Store; an Expect of zero is Any.
func (s *Store) Delete(ctx context.Context, key string, o store.DeleteOptions) (store.KV, int64, error) {
	e := &Entry{KV: store.KV{Key: key, Attached: o.Attached}, Class: o.Class, Deleted: true}
	if o.Expect == 0 {
		o.Expect = store.Any
	}
	prev, err := s.write(ctx, e, o.Expect, o.Stamp)
	if err != nil {
		return store.KV{}, 0, err
	}
	return prev.KV, e.KV.ModRevision, nil
}

// write stages e, has it committed and returns the entry that it replaced.
func (s *Store) write(ctx context.Context, e *Entry, expect int64, stamp func(int64), guards ...store.Guard) (*Entry, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%s %q: %w", deed(e), e.KV.Key, err)
		}
		s.order.Lock()
		if s.closing {
			s.order.Unlock()
			return nil, fmt.Errorf("%s %q: %w", deed(e), e.KV.Key, store.ErrClosed)
		}
		st, isStaged := s.staged[e.KV.Key]
		prev := st.e
		if !isStaged {
			s.mu.RLock()
			prev, _ = s.keys.Get(e.KV.Key)
			s.mu.RUnlock()
		}
		if err := check(e, prev, expect); err != nil {
			s.order.Unlock()
			if !isStaged {
				return nil, err
			}
			select {
			case <-st.g.done:
			case <-ctx.Done():
			}
			continue
		}
		if err := s.guarded(e, guards); err != nil {
			s.order.Unlock()
			return nil, err
		}
		if s.cfg.Log == nil {
			es := s.stage(nil, e, prev, stamp)
			s.publish(es)
			s.order.Unlock()
			return prev, nil
		}
		g := s.open()
		s.stage(g, e, prev, stamp)
		g.sync = g.sync || e.Class == store.Synced
		s.order.Unlock()
		s.wakeCommitter()
		<-g.done
		if g.err != nil {
			return nil, fmt.Errorf("%s %q: %w", deed(e), e.KV.Key, g.err)
		}
		return prev, nil
	}
}

// guarded says whether other keys are at the revisions that e is written under; a
// staged write of one of them counts as done. Under order.
func (s *Store) guarded(e *Entry, guards []store.Guard) error {
	for _, g := range guards {
		if g.Revision == 0 {
			continue
		}
		st, isStaged := s.staged[g.Key]
		have := st.e
		if !isStaged {
			s.mu.RLock()
			have, _ = s.keys.Get(g.Key)
			s.mu.RUnlock()
		}
		if have == nil || have.Deleted || have.KV.ModRevision != g.Revision {
			return fmt.Errorf("%s %q while %q is at revision %d: %w", deed(e), e.KV.Key, g.Key, g.Revision, store.ErrGuard)
		}
	}
	return nil
}

func deed(e *Entry) string {
	if e.Deleted {
		return "delete"
	}
	return "put"
}

// check compares what is there with what the write expects.
func check(e, prev *Entry, expect int64) error {
	present := prev != nil && !prev.Deleted
	switch {
	case e.Deleted && !present:
		return fmt.Errorf("delete %q: %w", e.KV.Key, store.ErrNotFound)
	case expect == store.Any:
		return nil
	case expect == store.Absent && present:
		return fmt.Errorf("put %q, which is at revision %d already: %w", e.KV.Key, prev.KV.ModRevision, store.ErrExists)
	case expect == store.Absent:
		return nil
	case !present:
		return fmt.Errorf("put %q expecting revision %d: %w", e.KV.Key, expect, store.ErrNotFound)
	case prev.KV.ModRevision != expect:
		return fmt.Errorf("%s %q expecting revision %d, it is at %d: %w", deed(e), e.KV.Key, expect, prev.KV.ModRevision, store.ErrConflict)
	}
	return nil
}

// stage gives e and whatever a ring has to drop for it their revisions and, with
// a group, adds them to it. It returns what was staged. Under order.
func (s *Store) stage(g *group, e, prev *Entry, stamp func(int64)) []*Entry {
	s.last++
	e.KV.ModRevision = s.last
	if !e.Deleted {
		e.KV.CreateRevision = s.last
		if prev != nil && !prev.Deleted {
			e.KV.CreateRevision = prev.KV.CreateRevision
		}
	} else {
		e.KV.CreateRevision = prev.KV.CreateRevision
	}
	e.older.Store(prev)
	if stamp != nil {
		stamp(s.last)
	}
	var one [1]*Entry
	out := append(one[:0], e)
	if g != nil {
		s.staged[e.KV.Key] = stagedEntry{e, g}
	}
	if r := s.ringOf(e.KV.Key); r != nil {
		for _, victim := range r.add(s, e, prev) {
			s.last++
			d := &Entry{KV: store.KV{Key: victim.KV.Key, ModRevision: s.last, CreateRevision: victim.KV.CreateRevision}, Class: store.Buffered, Deleted: true}
			d.older.Store(victim)
			out = append(out, d)
			if g != nil {
				s.staged[d.KV.Key] = stagedEntry{d, g}
			}
		}
	}
	if g != nil {
		g.entries = append(g.entries, out...)
		return nil
	}
	return out
}

// open returns the group that is being collected. Under order.
func (s *Store) open() *group {
	if s.group == nil {
		s.group = &group{done: make(chan struct{})}
	}
	return s.group
}

func (s *Store) wakeCommitter() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// commitLoop carries one group after the other to the Log.
func (s *Store) commitLoop() {
	defer s.wg.Done()
	for {
		select {
		case <-s.kick:
		case <-s.stop:
			for s.commit() {
			}
			return
		}
		for s.commit() {
		}
	}
}

// commit decides the group that has been collected, if there is one.
func (s *Store) commit() bool {
	s.order.Lock()
	g := s.group
	s.group = nil
	s.order.Unlock()
	if g == nil {
		return false
	}
	isSync := g.sync || g.asked
	var err error
	switch {
	case len(g.entries) > 0:
		if !isSync && s.dirty.CompareAndSwap(0, s.cfg.Clock.Now().UnixNano()) {
			s.wakeTender()
		}
		err = s.cfg.Log.Write(g.entries, isSync)
	case g.asked:
		err = s.cfg.Log.Sync()
	}
	if err == nil && isSync {
		s.dirty.Store(0)
	}
	if err != nil {
		s.fail(g, err)
		return true
	}
	s.publish(g.entries)
	s.order.Lock()
	for _, e := range g.entries {
		if st, ok := s.staged[e.KV.Key]; ok && st.e == e {
			delete(s.staged, e.KV.Key)
		}
	}
	s.order.Unlock()
	close(g.done)
	return true
}

// fail drops g and the group that was built on top of it.
func (s *Store) fail(g *group, err error) {
	s.order.Lock()
	next := s.group
	s.group = nil
	clear(s.staged)
	s.mu.RLock()
	for _, r := range s.rings {
		r.rebuild(s)
	}
	s.mu.RUnlock()
	s.order.Unlock()
	g.err = err
	close(g.done)
	if next != nil {
		next.err = err
		close(next.done)
	}
}

// publish shows entries, which are in revision order, to readers and watchers.
func (s *Store) publish(es []*Entry) {
	if len(es) == 0 {
		return
	}
	s.mu.Lock()
	earlier := false
	for _, e := range es {
		prev := e.older.Load()
		if prev != nil && prev.heap != 0 {
			s.expiries.remove(prev)
		}
		if e.Expiry != 0 {
			s.expiries.push(e)
			earlier = earlier || e.heap == 1
		}
		wasLive := prev != nil && !prev.Deleted
		if wasLive {
			s.bytes += e.cost()
		}
		switch {
		case e.Deleted:
			s.live--
		case !wasLive:
			s.live++
		}
		s.keys.Set(e.KV.Key, e)
		s.log = append(s.log, e)
	}
	s.revision = es[len(es)-1].KV.ModRevision
	s.notify(es)
	for len(s.log)-s.head > s.cfg.Window || s.bytes > s.cfg.WindowBytes && s.head < len(s.log) {
		s.drop()
	}
	s.mu.Unlock()
	if earlier {
		s.wakeTender()
	}
}

// cost is about what keeping the entry before e takes: its bytes, and as much
// twice over for the decoded object that hangs on it.
func (e *Entry) cost() int64 {
	prev := e.older.Load()
	if prev == nil {
		return 0
	}
	n := int64(len(prev.KV.Value) + len(prev.KV.Key) + 256)
	if prev.KV.Attached != nil {
		n += 2 * int64(len(prev.KV.Value))
	}
	return n
}

// drop takes the oldest change out of the window. Under mu.
func (s *Store) drop() {
	e := s.log[s.head]
	s.log[s.head] = nil
	s.head++
	s.base++
	if prev := e.older.Load(); prev != nil {
		if !prev.Deleted {
			s.bytes -= e.cost()
		}
		e.older.Store(nil)
	}
	if e.Deleted {
		if cur, ok := s.keys.Get(e.KV.Key); ok && cur == e {
			s.keys.Delete(e.KV.Key)
		}
	}
	s.compacted = e.KV.ModRevision
	if s.head > 1024 && s.head > len(s.log)/2 {
		n := copy(s.log, s.log[s.head:])
		clear(s.log[n:])
		s.log, s.head = s.log[:n], 0
	}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, at int64) (store.KV, int64, error) {
	if err := ctx.Err(); err != nil {
		return store.KV{}, 0, fmt.Errorf("get %q: %w", key, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, err := s.readable(at)
	if err != nil {
		return store.KV{}, at, fmt.Errorf("get %q: %w", key, err)
	}
	e, _ := s.keys.Get(key)
	e = e.at(at)
	if e == nil {
		return store.KV{}, at, fmt.Errorf("get %q: %w", key, store.ErrNotFound)
	}
	return e.KV, at, nil
}

// at returns the live entry at a revision, or nil.
func (e *Entry) at(rev int64) *Entry {
	for e != nil && e.KV.ModRevision > rev {
		e = e.older.Load()
	}
	if e == nil || e.Deleted {
		return nil
	}
	return e
}

// readable turns the revision asked for into the one to read. Under mu.
func (s *Store) readable(at int64) (int64, error) {
	if s.isClosed() {
		return s.revision, store.ErrClosed
	}
	switch {
	case at == 0 || at == s.revision:
		return s.revision, nil
	case at > s.revision:
		return s.revision, fmt.Errorf("revision %d, the newest is %d: %w", at, s.revision, store.ErrFuture)
	case at < s.compacted:
		return s.revision, fmt.Errorf("revision %d, the oldest is %d: %w", at, s.compacted, store.ErrCompacted)
	}
	return at, nil
}

// Range implements store.Store.
func (s *Store) Range(ctx context.Context, start, end string, limit int, at int64) (store.Page, error) {
	p := store.Page{}
	var err error
	p.Revision, err = s.Scan(ctx, start, end, at, func(kv *store.KV) bool {
		if limit > 0 && len(p.KVs) == limit {
			p.More = true
			p.Remaining++
			return true
		}
		p.KVs = append(p.KVs, *kv)
		return true
	})
	if err != nil {
		return store.Page{Revision: p.Revision}, err
	}
	return p, nil
}

// Scan implements store.Scanner.
func (s *Store) Scan(ctx context.Context, start, end string, at int64, each func(*store.KV) bool) (revision int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("range %q: %w", start, err)
	}
	s.mu.Lock() // Copy touches the original
	at, err = s.readable(at)
	if err != nil {
		s.mu.Unlock()
		return at, fmt.Errorf("range %q: %w", start, err)
	}
	keys := s.keys.Copy()
	isNow := at == s.revision
	s.mu.Unlock()

	n := 0
	keys.Ascend(start, func(k string, e *Entry) bool {
		if end != "" && k >= end {
			return false
		}
		if n++; n%4096 == 0 && ctx.Err() != nil {
			return false
		}
		if e = e.at(at); e == nil {
			return true
		}
		return each(&e.KV)
	})
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("range %q: %w", start, err)
	}
	if !isNow && s.Compacted() > at {
		return at, fmt.Errorf("range %q at revision %d: %w", start, at, store.ErrCompacted)
	}
	return at, nil
}

// Revision implements store.Store.
func (s *Store) Revision() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision
}

// Compacted implements store.Store: the newest revision whose change is gone;
// the state at it can still be read.
func (s *Store) Compacted() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.compacted
}

// Compact implements store.Store. To compact again what is compacted is no error.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return fmt.Errorf("compact to revision %d: %w", rev, store.ErrClosed)
	}
	if rev > s.revision {
		return fmt.Errorf("compact to revision %d, the newest is %d: %w", rev, s.revision, store.ErrFuture)
	}
	for s.head < len(s.log) && s.log[s.head].KV.ModRevision <= rev {
		s.drop()
	}
	s.compacted = max(s.compacted, rev)
	return nil
}

// Sync implements store.Store.
func (s *Store) Sync(ctx context.Context) error {
	if s.cfg.Log == nil {
		return nil
	}
	s.order.Lock()
	if s.closing {
		s.order.Unlock()
		return fmt.Errorf("sync: %w", store.ErrClosed)
	}
	g := s.open()
	g.asked = true
	s.order.Unlock()
	s.wakeCommitter()
	<-g.done
	if g.err != nil {
		return fmt.Errorf("sync: %w", g.err)
	}
	return nil
}

func (s *Store) isClosed() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.order.Lock()
		s.closing = true
		s.order.Unlock()
		close(s.stop)
		s.wg.Wait()
		close(s.done)
		if s.cfg.Log != nil {
			s.err = s.cfg.Log.Close(s.Revision())
		}
	})
	return s.err
}

func (s *Store) ringOf(key string) *ring {
	for _, r := range s.rings {
		if strings.HasPrefix(key, r.Prefix) {
			return r
		}
	}
	return nil
}

// Fork fills into, which is not started, with the state at a revision of the
// window: what a process finds that starts after this one lost everything later.
func (s *Store) Fork(into *Store, at int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, err := s.readable(at)
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	s.keys.Scan(func(_ string, e *Entry) bool {
		if e = e.at(at); e != nil {
			c := &Entry{KV: e.KV, Expiry: e.Expiry, Class: e.Class}
			c.KV.Attached = nil
			into.Load(c)
		}
		return true
	})
	return nil
}
