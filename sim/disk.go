package sim

import (
	"context"
	"time"

	"proa.dev/store"
	"proa.dev/store/mem"
)

// Disk keeps an actor's store over crashes, with the promises of the disk store
// and no more: synced writes stay, of the buffered ones after the last synced
// write a part at the end is lost, and revisions go on above all that were seen.
// It is the memory store with a model of the crash, so that millions of steps
// cost little; the real disk store has its own tests on env.MemFiles.
type Disk struct {
	actor  *Actor
	store  *mem.Store
	synced int64
	config mem.Config
}

// revisionGap is how far revisions jump after a crash, as on disk.
const revisionGap = 1 << 14

// Configure sets the window and rings of stores that are opened from now on.
func (d *Disk) Configure(c mem.Config) { d.config = c }

// Open opens the actor's store: what survived.
func (d *Disk) Open() *Store {
	if d.store == nil {
		d.store = mem.Open(d.options(0))
		d.synced = d.store.Revision()
	}
	s := &Store{Store: d.store, disk: d}
	s.tend()
	return s
}

func (d *Disk) options(revision int64) mem.Config {
	c := d.config
	c.Clock, c.Manual, c.Revision = d.actor.Clock(), true, revision
	return c
}

// crash loses a part of the unsynced tail and returns how many revisions.
func (d *Disk) crash() (lost int) {
	old := d.store
	if old == nil {
		return 0
	}
	at := old.Revision()
	from := max(d.synced, old.Compacted())
	if from < at {
		keep := from + d.actor.sim.rand.Int64N(at-from+1)
		lost = int(at - keep)
		at = keep
	}
	s, err := old.Fork(d.options(old.Revision()+revisionGap), at)
	if err != nil {
		d.actor.sim.Fail(err)
		return 0
	}
	_ = old.Close()
	d.store, d.synced = s, s.Revision()
	return lost
}

// Store is a store.Store of an actor. After the actor's crash it is closed.
type Store struct {
	*mem.Store
	disk *Disk
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, value []byte, o store.PutOptions) (store.KV, error) {
	kv, err := s.Store.Put(ctx, key, value, o)
	if err == nil && o.Class == store.Synced {
		s.disk.synced = kv.ModRevision
	}
	return kv, err
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, o store.DeleteOptions) (store.KV, int64, error) {
	kv, rev, err := s.Store.Delete(ctx, key, o)
	if err == nil && o.Class == store.Synced {
		s.disk.synced = rev
	}
	return kv, rev, err
}

// Sync implements store.Store.
func (s *Store) Sync(ctx context.Context) error {
	s.disk.synced = s.Revision()
	return nil
}

// tend expires keys and syncs twice a second, as the disk store does.
func (s *Store) tend() {
	a := s.disk.actor
	a.After(500*time.Millisecond, "store", func() {
		if s.disk.store != s.Store {
			return
		}
		if _, err := s.Expire(context.Background()); err != nil {
			a.sim.Fail(err)
			return
		}
		_ = s.Sync(context.Background())
		s.tend()
	})
}
