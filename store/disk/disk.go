// Package disk is the durable store of one process: the whole state in memory
// (package store/internal/tree), and on disk in an embedded engine (Pebble) that
// is read once, at start.
//
// # Files
//
// The data directory holds LOCK (with the number of the process that has it),
// RESERVE (room that is given back when the disk is full), CLOSED (what a clean
// close left in the engine) and engine/, which has current state only, no history:
//
//	'k' + key      → version, flags, create revision, mod revision, expiry, CRC-32C
//	                 of key, header and value; then the value, sealed if a
//	                 Transform covers the key
//	'm' "state"    → the revision up to which numbers may have been given out,
//	                 whether that is exactly the newest one (after a clean close),
//	                 how many keys there are with which sum of hashes, the number
//	                 of the batch, and the last batch that was known to be durable
//	'm' "layout"   → "1"
//
// The engine drops overwritten values as it merges its files, so their size
// follows the live data, whatever is rewritten how often.
//
// # Writes
//
// Synced writes share one sync of the engine's log with all writes that wait at
// that moment. Buffered ones are synced with the next synced one, or half a
// second later. After a crash the state is a prefix of the writes, and at most
// buffered writes at its end are missing. Revisions go on above every one that
// may have been seen: numbers are reserved in steps of 16,384, and the rest of a
// step is skipped after a crash.
//
// # When the disk fails
//
//   - Full: with less than Config.MinFreeBytes left, writes are refused with
//     store.ErrNoSpace before anything is done (removals at a quarter of that); if
//     the disk is full all the same, RESERVE is given back first. Reads go on, and
//     writes work again as soon as there is room.
//   - A write or sync that fails: nothing of it is applied. The engine is put aside
//     and opened anew with the next write, what it may have kept of the failed
//     write is undone there, and what was not yet synced is written again.
//   - Damage: every block and every record has a checksum, and every batch carries
//     the sum of the whole state; Open refuses a damaged store with
//     store.ErrCorrupt and the name of the file or key. The engine itself takes
//     damage in the middle of its log for the log's end: later batches, which tell
//     up to where it was durable, are looked for in the raw file. An incomplete
//     last record of the engine's log is how a crash ends, and is dropped. (A bit
//     flip in the very last synced batch cannot be told from that.)
//
// # Bounds
//
// Memory besides the state: the engine's write buffers (4 MiB each, three at
// most, one when idle) and 1 MiB of cache. Keys below Config.EventsPrefix
// live in a ring: at most EventsObjects of them and EventsBytes in keys and
// values; the ones written longest ago go first.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"proa.dev/env"
	"proa.dev/store"
	"proa.dev/store/internal/tree"
)

// Transform seals values at rest. The same key is given to both functions;
// values are stored as Seal returns them. Open must refuse what Seal did not make.
type Transform interface {
	Seal(key string, plaintext []byte) ([]byte, error)
	Open(key string, sealed []byte) ([]byte, error)
}

// Ager is a Transform that can say whether a value, last written at a revision,
// would be sealed in another way now. Open of such a one is shown plain values too
// and gives them back.
type Ager interface {
	Transform
	Stale(key string, revision int64) bool
}

// Sealed says which keys a Transform covers. Values that were written before it
// was configured can be read all the same; a rewrite seals them.
type Sealed struct {
	Prefix    string
	Transform Transform
}

// Defaults of Config.
const (
	DefaultEventsPrefix  = "/registry/events/"
	DefaultEventsObjects = 20_000
	DefaultEventsBytes   = 32 << 20
	DefaultMinFreeBytes  = 16 << 20
	DefaultReserveBytes  = 8 << 20
)

// Config of Open. Only Dir must be set.
type Config struct {
	Dir   string
	Files env.Files // nil: the machine's
	Clock env.Clock // nil: the system's
	Log   *slog.Logger

	Window      int   // changes kept in memory; 0: 10,000
	WindowBytes int64 // of replaced values kept in memory; 0: 16 MiB

	EventsPrefix  string // "": DefaultEventsPrefix
	EventsObjects int    // 0: DefaultEventsObjects
	EventsBytes   int64  // 0: DefaultEventsBytes

	MinFreeBytes int64 // 0: DefaultMinFreeBytes; negative: no check
	ReserveBytes int64 // 0: DefaultReserveBytes; negative: none

	Sealed []Sealed
}

// Store is a store.Store.
type Store struct {
	*tree.Store
	log *log
}

// Open opens the store in a directory, which is made if need be. It holds the
// directory until Close.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Dir == "" {
		return nil, errors.New("open data directory: no directory is given")
	}
	if c.Files == nil {
		c.Files = env.SystemFiles()
		abs, err := filepath.Abs(c.Dir)
		if err != nil {
			return nil, openError(c.Dir, err)
		}
		c.Dir = abs
	}
	if c.Clock == nil {
		c.Clock = env.SystemClock()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.EventsPrefix == "" {
		c.EventsPrefix = DefaultEventsPrefix
	}
	if c.EventsObjects == 0 {
		c.EventsObjects = DefaultEventsObjects
	}
	if c.EventsBytes == 0 {
		c.EventsBytes = DefaultEventsBytes
	}
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = DefaultMinFreeBytes
	}
	if c.ReserveBytes == 0 {
		c.ReserveBytes = DefaultReserveBytes
	}
	if err := c.Files.MkdirAll(c.Dir); err != nil {
		return nil, openError(c.Dir, err)
	}
	lock, err := c.Files.Lock(filepath.Join(c.Dir, "LOCK"))
	if err != nil {
		return nil, openError(c.Dir, err)
	}
	l := &log{cfg: c, dirty: map[string]struct{}{},
		reserve: reserve{files: c.Files, name: filepath.Join(c.Dir, "RESERVE"), size: c.ReserveBytes}}
	// Room that an earlier process gave back, or left, is taken again; if there is
	// none, writes will say so.
	_ = l.reserve.take()
	s, err := l.open(ctx)
	if err != nil {
		l.abandon()
		return nil, errors.Join(openError(c.Dir, err), lock.Close())
	}
	l.lock = lock
	return s, nil
}

// openError makes a sentence of why the directory cannot be opened.
func openError(dir string, err error) error {
	var locked *env.LockedError
	switch {
	case errors.As(err, &locked) && locked.PID != 0:
		return fmt.Errorf("data directory %q is in use by process %d: stop it, or choose another directory: %w", dir, locked.PID, err)
	case errors.As(err, &locked):
		return fmt.Errorf("data directory %q is in use: stop who uses it, or choose another directory: %w", dir, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("open data directory %q: %w; mount it read-write, or choose another directory", dir, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("open data directory %q: %w; run as its owner, or choose another directory", dir, err)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("open data directory %q: %w; move the file away, or choose another directory", dir, err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("open data directory %q: %w: %w; free some space", dir, store.ErrNoSpace, err)
	case errors.Is(err, store.ErrCorrupt):
		return fmt.Errorf("open data directory %q: %w; nothing was changed: restore it from a backup", dir, err)
	}
	return fmt.Errorf("open data directory %q: %w", dir, err)
}

// open opens the engine, loads the state and starts the store.
func (l *log) open(ctx context.Context) (*Store, error) {
	synced, err := l.readSynced()
	if err != nil {
		return nil, err
	}
	if err := l.start(); err != nil {
		return nil, err
	}
	t := tree.New(tree.Config{Clock: l.cfg.Clock, Window: l.cfg.Window, WindowBytes: l.cfg.WindowBytes, Log: l,
		Rings: []tree.Ring{{Prefix: l.cfg.EventsPrefix, Objects: l.cfg.EventsObjects, Bytes: l.cfg.EventsBytes}}})
	l.tree = t
	var revision int64
	err = l.run.do(func() (err error) {
		revision, err = l.load(ctx, t)
		return err
	})
	if err != nil {
		return nil, err
	}
	if l.group < synced {
		return nil, fmt.Errorf("the log is damaged: batch %d is the last that can be read, %d was on disk: %w", l.group, synced, store.ErrCorrupt)
	}
	if err := l.begin(revision); err != nil {
		return nil, err
	}
	t.Start(revision)
	return &Store{t, l}, nil
}

// load reads everything and returns the revision to go on from.
func (l *log) load(ctx context.Context, t *tree.Store) (int64, error) {
	db := l.run.db
	m := marker{revision: 1}
	stored, closer, err := db.Get(markerKey)
	isNew := errors.Is(err, pebble.ErrNotFound)
	switch {
	case isNew:
	case err != nil:
		return 0, corrupt(err)
	default:
		m, err = parseMarker(stored)
		if err = errors.Join(err, closer.Close()); err != nil {
			return 0, fmt.Errorf("%w: %w", err, store.ErrCorrupt)
		}
	}
	layout, closer, err := db.Get(layoutKey)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		if !isNew {
			return 0, fmt.Errorf("the layout marker is missing: %w", store.ErrCorrupt)
		}
	case err != nil:
		return 0, corrupt(err)
	default:
		is := string(layout)
		if err := closer.Close(); err != nil {
			return 0, err
		}
		if is != layoutVersion {
			return 0, fmt.Errorf("layout is %q, this program knows %q: use the version of proa that wrote it, or a newer one", is, layoutVersion)
		}
	}
	it, err := db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: []byte{'k'}, UpperBound: []byte{'k' + 1}})
	if err != nil {
		return 0, corrupt(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := l.loadOne(it, t, m.revision); err != nil {
			return 0, errors.Join(err, it.Close())
		}
		if err := ctx.Err(); err != nil {
			return 0, errors.Join(err, it.Close())
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return 0, corrupt(err)
	}
	if l.sum != m.sum {
		return 0, fmt.Errorf("%d keys with sum %016x are there, %d with sum %016x were written: %w",
			l.sum.keys, l.sum.hash, m.sum.keys, m.sum.hash, store.ErrCorrupt)
	}
	l.group = m.group
	return m.revision, nil
}

func (l *log) loadOne(it *pebble.Iterator, t *tree.Store, revision int64) error {
	raw := it.Key()[1:]
	key := string(raw)
	stored, err := it.ValueAndErr()
	if err != nil {
		return corrupt(err)
	}
	e, value, isSealed, err := parseRecord(raw, stored)
	if err != nil {
		return fmt.Errorf("record of %q: %w: %w", key, err, store.ErrCorrupt)
	}
	if e.KV.ModRevision > revision {
		return fmt.Errorf("record of %q has revision %d, none above %d was given out: %w", key, e.KV.ModRevision, revision, store.ErrCorrupt)
	}
	e.KV.Key = key
	if isSealed {
		tr := l.transform(key)
		if tr == nil {
			return fmt.Errorf("record of %q is encrypted and no key for it is configured", key)
		}
		if e.KV.Value, err = tr.Open(key, append([]byte(nil), value...)); err != nil {
			return fmt.Errorf("record of %q: %w", key, err)
		}
	} else {
		e.KV.Value = append(make([]byte, 0, len(value)), value...)
		if tr, ok := l.transform(key).(Ager); ok { // it learns of a plain one
			if _, err := tr.Open(key, value); err != nil {
				return fmt.Errorf("record of %q: %w", key, err)
			}
		}
	}
	l.sum.add(e)
	t.Load(e)
	return nil
}

// Get implements store.Store; it tells whether the value's seal is of today.
func (s *Store) Get(ctx context.Context, key string, at int64) (store.KV, int64, error) {
	kv, revision, err := s.Store.Get(ctx, key, at)
	if tr, ok := s.log.transform(key).(Ager); ok && err == nil {
		kv.Stale = tr.Stale(key, kv.ModRevision)
	}
	return kv, revision, err
}

func (l *log) transform(key string) Transform {
	for _, s := range l.cfg.Sealed {
		if strings.HasPrefix(key, s.Prefix) {
			return s.Transform
		}
	}
	return nil
}

// corrupt marks the engine's findings as the contract's.
func corrupt(err error) error {
	if pebble.IsCorruptionError(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", err, store.ErrCorrupt)
	}
	return err
}

// Stats of the store, for metrics.
type Stats struct {
	Keys int
	// Recoveries counts how often the engine was opened anew after an error.
	Recoveries int64
	// Unavailable is why writes are refused at present, or nil.
	Unavailable error
	// Since is when that began.
	Since time.Time
}

// Stats reads the current figures.
func (s *Store) Stats() Stats {
	return s.log.stats(s.Len())
}
