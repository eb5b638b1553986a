// Package store is the contract of the revisioned, watchable store: the one log
// of facts. It knows keys and bytes and no kinds. Implementations: mem, disk and
// etcd; all pass storetest. A store that several processes write (etcd) is a
// Shared.
//
// Promises, in the words of storetest's cases:
//
//   - One order. Every committed write gets a revision, greater by at least one
//     than any before it. Reads and watches of all keys agree on that order.
//   - Durable before acknowledged. When Put or Delete of class Synced returns, the
//     write survives a crash. Buffered writes survive a crash only if a later
//     synced write or Sync returned before it; they are never reordered: after a
//     crash the store holds a prefix of the log in which at most buffered writes
//     at the end are missing.
//   - Conditional. A write names the revision it expects of its key; otherwise
//     nothing changes and ErrConflict (or ErrExists, ErrNotFound) is returned.
//   - Visible at once. A Get, Range or Watch that starts after a write returned
//     sees it.
//   - Range at a revision. Any revision between Compacted and Revision can be
//     read; an older one gives ErrCompacted, a newer one ErrFuture.
//   - Watch from a revision. Events after that revision, each exactly once, in
//     order, with the value before; a watcher that falls behind the window gets
//     ErrCompacted and ends, it never holds up writers.
//   - Bounded. Rewriting one key for ever leaves the files flat: history is a
//     window in memory, the files hold live data plus a bounded log.
//   - TTL. A key put with a TTL is deleted (with an event) within a second after
//     its time is over, measured on the store's clock; expiry outlives restarts.
package store

import (
	"context"
	"errors"
	"time"
)

// Errors of the contract. Implementations wrap them with deed, key and value.
var (
	ErrExists    = errors.New("key exists")
	ErrNotFound  = errors.New("key not found")
	ErrConflict  = errors.New("revision does not match")
	ErrCompacted = errors.New("revision is compacted")
	ErrFuture    = errors.New("revision is in the future")
	ErrTooLarge  = errors.New("value is too large")
	ErrClosed    = errors.New("store is closed")
	// ErrCorrupt: a checksum does not match; nothing was changed.
	ErrCorrupt = errors.New("store is corrupt")
	// ErrNoSpace: the disk is full; the write was not applied and later writes may
	// succeed when there is space again.
	ErrNoSpace = errors.New("no space left on device")
	// ErrGuard: a guard of the write does not hold its value any more; nothing was
	// changed.
	ErrGuard = errors.New("guard was taken over")
	// ErrUnavailable: a store on other machines cannot be reached, or could not
	// decide in time. Nothing is read; whether a write was done is not known.
	ErrUnavailable = errors.New("store is unavailable")
)

// Expectations of a conditional write besides a positive revision.
const (
	// Any writes whatever the key holds.
	Any int64 = -1
	// Absent writes only if the key does not exist.
	Absent int64 = 0
)

// Class is the durability of a write.
type Class uint8

const (
	// Synced is on disk before the call returns (group commit).
	Synced Class = iota
	// Buffered is written to the log at once and synced with the next synced
	// write or within a second. For events and heartbeats.
	Buffered
)

// MaxValueBytes bounds one value: 1.5 MiB, as etcd's default request limit.
const MaxValueBytes = 3 << 19

// KV is one key at one revision. Value must not be changed by anyone.
type KV struct {
	Key   string
	Value []byte
	// ModRevision is the revision of the write that gave this value;
	// CreateRevision that of the write that created the key.
	ModRevision, CreateRevision int64
	// Attached is what the writer handed over beside the bytes (the decoded
	// object); nil after a restart or from another process. The store neither
	// reads nor persists it.
	Attached any
	// Stale says that the value rests in a form that a new write would not give it
	// (an older encryption key); set by Get where the store transforms values.
	Stale bool
}

// PutOptions of one Put.
type PutOptions struct {
	Expect   int64 // Any, Absent, or the key's ModRevision
	Class    Class
	TTL      time.Duration // zero: for ever; otherwise at least one second
	Attached any
	// Stamp, if set, is called once with the revision that the write will get,
	// before it is visible, so that Attached can carry its own revision. It must
	// be quick and must not call the store.
	Stamp func(rev int64)
	// Guards must hold for the write; of those about values only a Shared store takes
	// notice.
	Guards []Guard
}

// Guard is another key and the value, or the ModRevision, that it must have when a
// write is done. Revision is zero when the value counts.
type Guard struct {
	Key, Value string
	Revision   int64
}

// DeleteOptions of one Delete.
type DeleteOptions struct {
	Expect   int64 // Any (zero too) or the key's ModRevision
	Class    Class
	Attached any // handed to watchers in Event.KV.Attached: the object's last state
	Stamp    func(rev int64)
}

// Page is the answer to a Range.
type Page struct {
	KVs      []KV
	Revision int64 // the revision that was read
	More     bool  // keys after the last one remain
	// Remaining counts the keys in the range after the last one; zero when !More.
	Remaining int64
}

// Event is one committed change. For a delete, KV has the key, the revision of
// the delete in ModRevision and no Value.
type Event struct {
	KV      KV
	Deleted bool
	Prev    *KV // nil when the key was created by this event
}

// Watch delivers events in batches; a batch never splits one revision.
type Watch interface {
	// Next waits for events. It returns ErrCompacted when the watcher fell out of
	// the window, ErrClosed when the store is closed, or ctx's error. progress is
	// the revision up to which everything has been delivered.
	Next(ctx context.Context) (events []Event, progress int64, err error)
	Close()
}

// Store is one revisioned key space. Keys are ordered bytewise. All methods are
// safe for concurrent use.
type Store interface {
	// Put writes key and returns its KV as committed.
	Put(ctx context.Context, key string, value []byte, o PutOptions) (KV, error)
	// Delete removes key and returns the KV that it held and the revision of the
	// removal. ErrNotFound if it does not exist.
	Delete(ctx context.Context, key string, o DeleteOptions) (prev KV, rev int64, err error)
	// Get reads one key at revision at (0: now). ErrNotFound if absent; the
	// second result is the revision that was read in every case.
	Get(ctx context.Context, key string, at int64) (KV, int64, error)
	// Range reads keys in [start, end) at revision at (0: now), limit of them at
	// most (0: all). An empty end means "all keys from start".
	Range(ctx context.Context, start, end string, limit int, at int64) (Page, error)
	// Watch delivers the events after revision from on keys with the prefix
	// (from 0: from now on).
	Watch(ctx context.Context, prefix string, from int64) (Watch, error)
	// Revision is the newest committed one; Compacted the newest whose change is
	// gone: the state at it can be read, and a watch can start from it.
	Revision() int64
	Compacted() int64
	// Compact drops history up to and including rev.
	Compact(ctx context.Context, rev int64) error
	// Sync makes everything written so far durable.
	Sync(ctx context.Context) error
	// Close waits for what is under way, syncs and releases the files.
	Close() error
}

// Shared is a Store that other processes write too. Revision is then the newest
// that this process has seen, and a watch may deliver batches without events, which
// tell of progress alone.
type Shared interface {
	Store
	// Latest asks for the newest revision: at least that of every write that any
	// process had been told of when Latest was called. Watches reach it soon, even
	// if the write was none of their keys.
	Latest(ctx context.Context) (int64, error)
}

// Scanner is a Store that can be read without a copy of what is read.
type Scanner interface {
	// Scan shows each the keys that Range would give, until it returns false; what it
	// is shown must not be changed. An error says that what was shown does not count.
	Scan(ctx context.Context, start, end string, at int64, each func(*KV) bool) (revision int64, err error)
}

// Sized is a Store that knows how much room its database takes.
type Sized interface {
	// Size of the database's files, in bytes, and which database that is, for people
	// who watch several: "disk-0", "etcd-0".
	Size(ctx context.Context) (database string, bytes int64, err error)
}

// PrefixEnd is the end of the range of all keys that begin with prefix.
func PrefixEnd(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}
