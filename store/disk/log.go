package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"proa.dev/store"
	"proa.dev/store/internal/tree"
)

const (
	// revisionStep is how many revisions are reserved at a time.
	revisionStep = 1 << 14
	// batchBytes bounds one batch of the engine; above half its write buffer it
	// would take a slower way.
	batchBytes = 1 << 20
	// recoverEvery bounds how often opening the engine anew is tried, maxFailures
	// how often in a row: what a failed run leaves in memory stays there.
	recoverEvery  = 100 * time.Millisecond
	maxFailures   = 16
	layoutVersion = "1"
)

var (
	markerKey = []byte("mstate")
	layoutKey = []byte("mlayout")
)

// log writes groups of entries to the engine. Its methods are called from one
// goroutine at a time.
type log struct {
	cfg     Config
	lock    io.Closer
	tree    *tree.Store
	reserve reserve

	run      *engine
	reserved int64 // revisions up to this one may be given out
	sum      sum   // of what is committed
	group    int64 // number of the last batch
	synced   int64 // the last one that is durable
	// dirty are the keys written since the last sync.
	dirty map[string]struct{}
	buf   []byte

	nextSpaceCheck time.Time
	sinceCheck     int64
	noSpace        error

	mu         sync.Mutex // for stats
	broken     error
	brokenAt   time.Time
	tried      time.Time
	failures   int // to recover, in a row
	recoveries int64
}

// engine is one run of Pebble. Everything that writes goes through do, because
// the engine may never come back from a call after a fatal error elsewhere.
type engine struct {
	db   *pebble.DB
	fs   *engineFS
	buf  []byte // of the worker
	work chan func() error
	done chan error

	once  sync.Once
	dead  chan struct{} // closed after err is set
	err   error
	ended chan struct{} // closed by stop: the worker ends
}

func newEngine(fs *engineFS) *engine {
	r := &engine{fs: fs, work: make(chan func() error), done: make(chan error, 1), dead: make(chan struct{}), ended: make(chan struct{})}
	fs.die = r.die
	return r
}

// die records the first fatal error.
func (r *engine) die(err error) {
	r.once.Do(func() {
		r.err = err
		close(r.dead)
	})
}

// failed returns the fatal error, or nil.
func (r *engine) failed() error {
	select {
	case <-r.dead:
		return r.err
	default:
		return nil
	}
}

// Infof, Errorf and Fatalf implement pebble.Logger. Fatalf must not return.
func (r *engine) Infof(string, ...any)  {}
func (r *engine) Errorf(string, ...any) {}
func (r *engine) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if e, ok := a.(error); ok {
			err = e
		}
	}
	r.die(err)
	select {}
}

// do has the worker call op, and returns its error or that of the engine's death.
func (r *engine) do(op func() error) error {
	if err := r.failed(); err != nil {
		return err
	}
	select {
	case r.work <- op:
	case <-r.dead:
		return r.err
	}
	select {
	case err := <-r.done:
		return err
	case <-r.dead:
		return r.err
	}
}

// loop is the worker. An error of the engine is its end: what it holds in memory
// need no longer be what is on the disk.
func (r *engine) loop() {
	for {
		select {
		case op := <-r.work:
			err := r.call(op)
			if err != nil {
				r.die(err)
				return
			}
			r.done <- nil
		case <-r.ended:
			return
		}
	}
}

// call turns what the engine throws into an error.
func (r *engine) call(op func() error) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case error:
			err = p
		default:
			err = fmt.Errorf("engine: %v", p)
		}
	}()
	return op()
}

func (l *log) options(r *engine) *pebble.Options {
	o := &pebble.Options{
		FS:                          r.fs,
		Logger:                      r,
		CacheSize:                   1 << 20,
		MaxOpenFiles:                64,
		MemTableSize:                4 << 20,
		MemTableStopWritesThreshold: 3,
		// Nothing is read but at start, so merging early buys nothing; what it must
		// do is bound the room that overwritten values take.
		L0CompactionThreshold:      8,
		L0CompactionFileThreshold:  32,
		L0StopWritesThreshold:      128,
		LBaseMaxBytes:              64 << 20,
		MaxManifestFileSize:        1 << 20,
		DisableTableStats:          true,
		FormatMajorVersion:         pebble.FormatWALSyncChunks,
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
	}
	o.Experimental.FileCacheShards = 1
	o.EventListener = &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
		l.cfg.Log.Error("store file is damaged; state is served from memory, back it up before a restart", "file", i.Path, "err", i.Details)
	}}
	o.Levels[0].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	for i := 1; i < len(o.Levels); i++ {
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	}
	return o
}

// start opens the engine. The engine may end the goroutine that opens it, so it
// has one of its own.
func (l *log) start() error {
	r := newEngine(&engineFS{files: l.cfg.Files, reserve: &l.reserve})
	go r.loop()
	err := r.do(func() (err error) {
		r.db, err = pebble.Open(l.cfg.Dir+"/engine", l.options(r))
		return err
	})
	if err != nil {
		r.fs.fence()
		return corrupt(err)
	}
	l.run = r
	return nil
}

// begin writes the marker of a store that is open at revision.
func (l *log) begin(revision int64) error {
	l.reserved = revision + revisionStep
	l.group++
	m := l.marker()
	r := l.run
	err := r.do(func() error {
		b := r.db.NewBatch()
		defer b.Close()
		if err := errors.Join(b.Set(layoutKey, []byte(layoutVersion), nil), b.Set(markerKey, m.append(nil), nil)); err != nil {
			return err
		}
		return b.Commit(pebble.Sync)
	})
	l.synced = l.group
	return err
}

func (l *log) marker() marker {
	return marker{revision: l.reserved, sum: l.sum, group: l.group, synced: l.synced}
}

// readSynced finds out which group must be there, before the engine touches its
// files: from the engine's logs, and from the file that a clean close leaves.
func (l *log) readSynced() (int64, error) {
	names, err := l.cfg.Files.List(l.cfg.Dir + "/engine")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	group := int64(0)
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		b, err := l.readFile(l.cfg.Dir + "/engine/" + name)
		if err != nil {
			return 0, err
		}
		group = max(group, lastSynced(b))
	}
	b, err := l.readFile(l.cfg.Dir + "/CLOSED")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	default:
		// One that a crash left incomplete says nothing.
		if m, err := parseMarker(b); err == nil {
			group = max(group, m.synced)
		}
	}
	return group, nil
}

func (l *log) readFile(name string) ([]byte, error) {
	f, err := l.cfg.Files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// writeClosed leaves a word for the next start about what it must find.
func (l *log) writeClosed(m marker) error {
	name := l.cfg.Dir + "/CLOSED"
	f, err := l.cfg.Files.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(m.append(nil))
	return errors.Join(err, f.Sync(), f.Close(), l.cfg.Files.SyncDir(l.cfg.Dir))
}

// record is one change as the engine gets it.
type record struct {
	e, prev *tree.Entry
	sealed  []byte // instead of the value, if not nil
}

func (l *log) record(e *tree.Entry) (record, error) {
	tr := l.transform(e.KV.Key)
	if tr == nil || e.Deleted {
		return record{e: e, prev: e.Replaced()}, nil
	}
	sealed, err := tr.Seal(e.KV.Key, e.KV.Value)
	if err != nil {
		return record{}, fmt.Errorf("encrypt value of %q: %w", e.KV.Key, err)
	}
	return record{e, e.Replaced(), sealed}, nil
}

// Write implements tree.Log.
func (l *log) Write(entries []*tree.Entry, sync bool) error {
	if err := l.ready(); err != nil {
		return err
	}
	if err := l.room(entries); err != nil {
		return err
	}
	records := make([]record, len(entries))
	for i, e := range entries {
		var err error
		if records[i], err = l.record(e); err != nil {
			return err
		}
	}
	m := l.marker()
	if last := entries[len(entries)-1].KV.ModRevision; last > m.revision {
		m.revision, sync = last+revisionStep, true
	}
	for _, e := range entries {
		l.dirty[e.KV.Key] = struct{}{}
	}
	r := l.run
	if err := r.do(func() error { return r.commit(records, &m, sync) }); err != nil {
		l.group += int64(len(records)) + 1 // some of these numbers may be on the disk
		return l.fail(err)
	}
	l.reserved, l.sum, l.group = m.revision, m.sum, m.group
	if sync {
		l.durable()
	}
	return nil
}

// durable notes that everything written so far is.
func (l *log) durable() {
	l.synced = l.group
	clear(l.dirty)
}

// commit applies records in batches, of which the last is synced, and counts
// them in m, which goes with each. On the worker.
func (r *engine) commit(records []record, m *marker, sync bool) error {
	b := r.db.NewBatch()
	defer func() { b.Close() }()
	for _, rec := range records {
		if b.Len() > batchBytes {
			m.group++
			if err := b.Set(markerKey, m.append(nil), nil); err != nil {
				return err
			}
			if err := b.Commit(pebble.NoSync); err != nil {
				return err
			}
			b.Close()
			b = r.db.NewBatch()
		}
		if err := r.set(b, rec); err != nil {
			return err
		}
		m.sum.apply(rec.e, rec.prev)
	}
	m.group++
	if err := b.Set(markerKey, m.append(nil), nil); err != nil {
		return err
	}
	if sync {
		return b.Commit(pebble.Sync)
	}
	return b.Commit(pebble.NoSync)
}

// set adds one record to b.
func (r *engine) set(b *pebble.Batch, rec record) error {
	r.buf = append(append(r.buf[:0], 'k'), rec.e.KV.Key...)
	n := len(r.buf)
	if rec.e.Deleted {
		return b.Delete(r.buf, nil)
	}
	value := rec.e.KV.Value
	if rec.sealed != nil {
		value = rec.sealed
	}
	r.buf = appendRecord(r.buf, rec.e, value, rec.sealed != nil)
	err := b.Set(r.buf[:n], r.buf[n:], nil)
	if cap(r.buf) > 64<<10 {
		r.buf = nil
	}
	return err
}

// Sync implements tree.Log.
func (l *log) Sync() error {
	if err := l.ready(); err != nil {
		return err
	}
	if len(l.dirty) == 0 {
		return nil
	}
	r := l.run
	if err := r.do(func() error { return r.db.LogData(nil, pebble.Sync) }); err != nil {
		return l.fail(err)
	}
	l.durable()
	return nil
}

// fail puts the engine aside.
func (l *log) fail(err error) error {
	err = kindOf(err)
	l.mu.Lock()
	l.broken, l.brokenAt = err, l.cfg.Clock.Now()
	l.mu.Unlock()
	l.abandon()
	l.cfg.Log.Error("store engine failed; it will be opened anew", "err", err)
	return fmt.Errorf("write to data directory %q: %w", l.cfg.Dir, err)
}

func kindOf(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", store.ErrNoSpace, err)
	}
	return corrupt(err)
}

func (l *log) abandon() {
	if l.run != nil {
		l.run.fs.fence()
		l.run = nil
	}
}

// ready opens the engine anew if it has failed.
func (l *log) ready() error {
	if l.run != nil {
		err := l.run.failed()
		if err == nil {
			return nil
		}
		_ = l.fail(err)
	}
	now := l.cfg.Clock.Now()
	if now.Sub(l.tried) < recoverEvery && now.After(l.tried) {
		return fmt.Errorf("write to data directory %q: %w", l.cfg.Dir, l.broken)
	}
	if l.failures == maxFailures {
		return fmt.Errorf("write to data directory %q: the last %d tries to open it anew failed, see to the disk and restart: %w", l.cfg.Dir, l.failures, l.broken)
	}
	l.tried = now
	if err := l.recover(); err != nil {
		if !errors.Is(err, store.ErrNoSpace) {
			l.failures++
		}
		l.abandon()
		l.mu.Lock()
		l.broken = kindOf(err)
		l.mu.Unlock()
		return fmt.Errorf("open data directory %q anew after %q: %w", l.cfg.Dir, l.broken, kindOf(err))
	}
	l.mu.Lock()
	l.broken = nil
	l.failures = 0
	l.recoveries++
	l.mu.Unlock()
	l.cfg.Log.Info("store engine works again")
	return nil
}

// recover opens the engine and makes it agree with memory: what a failed write
// left behind goes, what had not been synced is written again.
func (l *log) recover() error {
	if err := l.spaceFor(l.cfg.MinFreeBytes / 4); err != nil {
		return err
	}
	if err := l.start(); err != nil {
		return err
	}
	r := l.run
	b := make([]record, 0, len(l.dirty))
	for _, key := range slices.Sorted(maps.Keys(l.dirty)) {
		e := l.tree.Current(key)
		if e == nil {
			e = &tree.Entry{KV: store.KV{Key: key}, Deleted: true}
		}
		rec, err := l.record(e)
		if err != nil {
			return err
		}
		b = append(b, rec)
	}
	l.group++
	m := l.marker()
	if err := r.do(func() error { return r.restore(b, m) }); err != nil {
		return err
	}
	l.durable()
	return nil
}

// restore puts records, which make up the difference to the state that m is of,
// into one batch: half of them would not agree with any marker.
func (r *engine) restore(records []record, m marker) error {
	b := r.db.NewBatch()
	defer b.Close()
	for _, rec := range records {
		if err := r.set(b, rec); err != nil {
			return err
		}
	}
	if err := b.Set(markerKey, m.append(nil), nil); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// room refuses entries when the disk is about to be full.
func (l *log) room(entries []*tree.Entry) error {
	if l.cfg.MinFreeBytes < 0 {
		return nil
	}
	need := l.cfg.MinFreeBytes / 4
	for _, e := range entries {
		if !e.Deleted {
			need = l.cfg.MinFreeBytes
		}
		l.sinceCheck += int64(len(e.KV.Value)) + 64
	}
	now := l.cfg.Clock.Now()
	if l.noSpace == nil && l.sinceCheck < 1<<20 && now.Before(l.nextSpaceCheck) && l.reserve.isWhole() {
		return nil
	}
	l.sinceCheck, l.nextSpaceCheck = 0, now.Add(50*time.Millisecond)
	l.noSpace = l.spaceFor(need)
	return l.noSpace
}

func (l *log) spaceFor(need int64) error {
	if l.cfg.MinFreeBytes < 0 {
		return nil
	}
	free, _, err := l.cfg.Files.Free(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("ask for the free space in data directory %q: %w", l.cfg.Dir, err)
	}
	if int64(free) < need {
		return fmt.Errorf("data directory %q has %d kB left, of which the store keeps %d for its own work: free some space: %w",
			l.cfg.Dir, free>>10, need>>10, store.ErrNoSpace)
	}
	if err := l.reserve.take(); errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("data directory %q has no room for its reserve of %d kB: free some space: %w", l.cfg.Dir, l.reserve.size>>10, store.ErrNoSpace)
	}
	return nil
}

// Close implements tree.Log.
func (l *log) Close(revision int64) error {
	err := l.ready()
	if err == nil {
		// Flushing puts the state at rest under the checksums of whole tables.
		l.group++
		r, m := l.run, l.marker()
		m.revision, m.isExact = revision, true
		err = r.do(func() error {
			if err := r.db.Set(markerKey, m.append(nil), pebble.Sync); err != nil {
				return err
			}
			if err := r.db.Flush(); err != nil {
				return err
			}
			return r.db.Close()
		})
		close(r.ended)
		if err == nil {
			m.synced = m.group
			err = l.writeClosed(m)
		}
	}
	l.abandon()
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("close data directory %q: %w", l.cfg.Dir, err)
	}
	return nil
}

func (l *log) stats(keys int) Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Keys: keys, Recoveries: l.recoveries, Unavailable: l.broken, Since: l.brokenAt}
}
