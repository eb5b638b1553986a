// Package feed carries the store's log into the view of the same process: Load
// once, then Run for as long as the process lives (or Poll, in the simulator).
//
// Objects that the writer attached to its write are taken over as they are, so
// that a write is in the view without being decoded; others are decoded. Each
// object's resourceVersion is the revision of its write in decimal; that of a
// removed object's last state is the revision of the removal.
//
// Keys of no kind in the view's table are passed over. A value that cannot be
// decoded is passed over too, logged and counted in Skipped: one bad object must
// not take the cluster down. When the feed falls out of the store's window, it
// reads the whole store again and the view's watchers have to list again.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/view"
)

// Prefix of the keys that objects have.
const Prefix = "/registry/"

// Decode makes the object from a stored value.
type Decode func(k *kind.Kind, data []byte) (kind.Object, error)

// Feed connects one store with one view.
type Feed struct {
	store  store.Store
	view   *view.View
	decode Decode
	log    *slog.Logger

	// definition is the kind whose objects bring kinds, kinds makes the table of
	// them (Extend).
	definition *kind.Kind
	kinds      Kinds

	watch    store.Watch
	skipped  atomic.Int64
	types    map[*kind.Kind]reflect.Type
	workers  int
	isLoaded bool
}

// New makes a feed; nothing happens before Load. A nil log is silent.
func New(st store.Store, v *view.View, decode Decode, log *slog.Logger) *Feed {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Feed{store: st, view: v, decode: decode, log: log, types: map[*kind.Kind]reflect.Type{}, workers: 2}
}

// Kinds makes tables of kinds from definitions. It is called from one goroutine at
// a time; now is the newest table, and the answer has it where nothing changes. What
// has come is without its objects.
type Kinds interface {
	// All is the table while exactly these definitions are there.
	All(now *kind.Table, definitions []kind.Object) view.Reshaping
	// Change is the table after some definitions have changed, by name; those that
	// are gone are nil.
	Change(now *kind.Table, definitions map[string]kind.Object) view.Reshaping
}

// Extend lets the objects of the kind definition bring kinds at run time. Before a
// batch of changes that touches definitions is shown, the view gets the table that
// kinds makes, and what the store holds of the new kinds. To be called before Load.
func (f *Feed) Extend(definition *kind.Kind, kinds Kinds) {
	f.definition, f.kinds = definition.Root(), kinds
}

// Run loads, follows until ctx is done, and returns nil then.
func Run(ctx context.Context, st store.Store, v *view.View, decode Decode, log *slog.Logger) error {
	f := New(st, v, decode, log)
	if err := f.Load(ctx); err != nil {
		return err
	}
	return f.Run(ctx)
}

// Skipped counts the values that could not be decoded.
func (f *Feed) Skipped() int64 { return f.skipped.Load() }

// Load puts the whole state into the view, which must be new.
func (f *Feed) Load(ctx context.Context) error {
	page, err := f.begin(ctx)
	if err != nil {
		return err
	}
	if r := f.all(page.KVs); r.Table != f.view.Table() {
		f.view.Reshape(r, nil, 0)
	}
	kinds, objects, err := f.decodeAll(ctx, f.view.Table(), page.KVs)
	if err != nil {
		return fmt.Errorf("load the view: %w", err)
	}
	for i := 0; i < len(objects); {
		j := i + 1
		for j < len(objects) && kinds[j] == kinds[i] {
			j++
		}
		if kinds[i] != nil {
			run := slices.DeleteFunc(objects[i:j:j], func(o kind.Object) bool { return o == nil })
			f.view.Load(kinds[i], run...)
		}
		i = j
	}
	f.view.Loaded(page.Revision)
	f.isLoaded = true
	return nil
}

// begin reads everything and starts a watch behind it.
func (f *Feed) begin(ctx context.Context) (store.Page, error) {
	page, err := f.store.Range(ctx, Prefix, store.PrefixEnd(Prefix), 0, 0)
	if err != nil {
		return page, fmt.Errorf("load the view: %w", err)
	}
	w, err := f.store.Watch(ctx, "", page.Revision) // every key moves the view on
	if err != nil {
		return page, fmt.Errorf("load the view: %w", err)
	}
	if f.watch != nil {
		f.watch.Close()
	}
	f.watch = w
	return page, nil
}

// all is the table that the definitions among kvs make.
func (f *Feed) all(kvs []store.KV) view.Reshaping {
	now := f.view.Table()
	if f.kinds == nil {
		return view.Reshaping{Table: now}
	}
	var definitions []kind.Object
	prefix := f.definition.StoreKey("", "")
	first, _ := slices.BinarySearchFunc(kvs, prefix, func(kv store.KV, p string) int { return strings.Compare(kv.Key, p) })
	for i := first; i < len(kvs) && strings.HasPrefix(kvs[i].Key, prefix); i++ {
		o, err := f.decode(f.definition, kvs[i].Value)
		if err != nil {
			continue // reported when it is decoded for the view
		}
		o.SetResourceVersion(strconv.FormatInt(kvs[i].ModRevision, 10))
		definitions = append(definitions, o)
	}
	return f.kinds.All(now, definitions)
}

// extend makes the table after changes, and loads what the new kinds hold at
// revision at. It gives the view's table when nothing changes.
func (f *Feed) extend(ctx context.Context, changes []view.Change, at int64) (view.Reshaping, error) {
	now := view.Reshaping{Table: f.view.Table()}
	var changed map[string]kind.Object
	for i := range changes {
		c := &changes[i]
		if c.Kind != f.definition || f.kinds == nil {
			continue
		}
		if changed == nil {
			changed = map[string]kind.Object{}
		}
		if c.New != nil {
			changed[c.New.GetName()] = c.New
		} else {
			changed[c.Last.GetName()] = nil
		}
	}
	if changed == nil {
		return now, nil
	}
	next := f.kinds.Change(now.Table, changed)
	for i := range next.Came {
		l := &next.Came[i]
		prefix := l.Kind.StoreKey("", "")
		page, err := f.store.Range(ctx, prefix, store.PrefixEnd(prefix), 0, at)
		if err != nil {
			return now, fmt.Errorf("load %s: %w", l.Kind, err)
		}
		_, objects, err := f.decodeAll(ctx, next.Table, page.KVs)
		if err != nil {
			return now, fmt.Errorf("load %s: %w", l.Kind, err)
		}
		for _, o := range objects {
			if o != nil {
				l.Objects = append(l.Objects, o)
			}
		}
	}
	return next, nil
}

// decodeAll decodes kvs on a few goroutines; what is passed over is nil.
func (f *Feed) decodeAll(ctx context.Context, table *kind.Table, kvs []store.KV) ([]*kind.Kind, []kind.Object, error) {
	const chunk = 256
	kinds := make([]*kind.Kind, len(kvs))
	objects := make([]kind.Object, len(kvs))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(f.workers, len(kvs)/chunk+1) {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(chunk)) - chunk
				if from >= len(kvs) {
					return
				}
				for i := from; i < min(from+chunk, len(kvs)); i++ {
					k, _, _ := table.ByStoreKey(kvs[i].Key)
					if k == nil {
						continue
					}
					o, err := f.decode(k, kvs[i].Value)
					if err != nil {
						f.skip(kvs[i].Key, err)
						continue
					}
					o.SetResourceVersion(strconv.FormatInt(kvs[i].ModRevision, 10))
					kinds[i], objects[i] = k, o
				}
			}
		})
	}
	wg.Wait()
	return kinds, objects, ctx.Err()
}

func (f *Feed) skip(key string, err error) {
	f.skipped.Add(1)
	f.log.Error("stored object cannot be decoded and is not served; delete or repair it", "key", key, "err", err)
}

// Run follows the store until ctx is done, and returns nil then. Load goes
// before it.
func (f *Feed) Run(ctx context.Context) error {
	if !f.isLoaded {
		return errors.New("run the feed: it is not loaded")
	}
	defer func() { f.watch.Close() }()
	for {
		if _, err := f.step(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// Poll takes over what is there and returns how many changes that were, without
// waiting.
func (f *Feed) Poll() (int, error) {
	if !f.isLoaded {
		return 0, errors.New("poll the feed: it is not loaded")
	}
	total := 0
	for {
		n, err := f.step(done)
		if errors.Is(err, context.Canceled) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		total += n
	}
}

// done is over already: a watch that is asked with it never waits.
var done = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// step applies one batch.
func (f *Feed) step(ctx context.Context) (int, error) {
	events, progress, err := f.watch.Next(ctx)
	if errors.Is(err, store.ErrCompacted) {
		f.log.Warn("view fell behind the store and is read anew", "err", err)
		// A poll must not fail because its context is over by design.
		return f.reload(context.WithoutCancel(ctx))
	}
	if err != nil {
		return 0, fmt.Errorf("follow the store: %w", err)
	}
	changes, table := make([]view.Change, 0, len(events)), f.view.Table()
	for i := range events {
		if c, ok := f.change(table, &events[i]); ok {
			changes = append(changes, c)
		}
	}
	next, err := f.extend(context.WithoutCancel(ctx), changes, progress)
	if errors.Is(err, store.ErrCompacted) {
		return f.reload(context.WithoutCancel(ctx))
	}
	if err != nil {
		return 0, fmt.Errorf("follow the store: %w", err)
	}
	if next.Table == table {
		f.view.ApplyAll(changes, progress)
	} else {
		for _, k := range next.Gone {
			delete(f.types, k)
		}
		// What is loaded holds this batch's writes of new kinds already.
		f.view.Reshape(next, changes, progress)
	}
	return len(events), nil
}

// change makes the view's change of an event.
func (f *Feed) change(table *kind.Table, e *store.Event) (c view.Change, ok bool) {
	k, namespace, name := table.ByStoreKey(e.KV.Key)
	if k == nil {
		return c, false
	}
	c = view.Change{Kind: k, Revision: e.KV.ModRevision}
	revision := strconv.FormatInt(e.KV.ModRevision, 10)
	o, err := f.object(k, &e.KV, revision)
	if o == nil && err == nil && e.Prev != nil {
		o, err = f.object(k, e.Prev, revision)
	}
	if e.Deleted && (o == nil || err != nil) {
		// History before the removal may be compacted, or unreadable: what the view has
		// is the state before.
		if old := f.view.Snapshot().Get(k, namespace, name); old != nil {
			o, err = old.DeepCopyObject().(kind.Object), nil
			o.SetResourceVersion(revision)
		}
	}
	if err != nil || o == nil {
		if err == nil {
			err = errors.New("removal without the state before")
		}
		f.skip(e.KV.Key, err)
		return c, false
	}
	if e.Deleted {
		c.Last = o
	} else {
		c.New = o
	}
	return c, true
}

// object returns what is attached to kv, or decodes its value; nil when there is
// neither. What is attached is shared: it is copied if its revision is another.
func (f *Feed) object(k *kind.Kind, kv *store.KV, revision string) (kind.Object, error) {
	if o, ok := kv.Attached.(kind.Object); ok && reflect.TypeOf(o) == f.typeOf(k) {
		if o.GetResourceVersion() != revision {
			o = o.DeepCopyObject().(kind.Object)
			o.SetResourceVersion(revision)
		}
		return o, nil
	}
	if kv.Value == nil {
		return nil, nil
	}
	o, err := f.decode(k, kv.Value)
	if err != nil {
		return nil, err
	}
	o.SetResourceVersion(revision)
	return o, nil
}

func (f *Feed) typeOf(k *kind.Kind) reflect.Type {
	t := f.types[k]
	if t == nil {
		t = reflect.TypeOf(k.New())
		f.types[k] = t
	}
	return t
}

// reload brings the view to the store's state after a gap. What happened in
// between is not known, so the view's watchers have to list again.
func (f *Feed) reload(ctx context.Context) (int, error) {
	page, err := f.begin(ctx)
	if err != nil {
		return 0, err
	}
	if r := f.all(page.KVs); r.Table != f.view.Table() {
		f.view.Reshape(r, nil, f.view.Snapshot().Revision())
	}
	snap := f.view.Snapshot()
	table := f.view.Table()
	present := make(map[view.Ref]bool, len(page.KVs))
	var changed []store.KV
	for _, kv := range page.KVs {
		k, namespace, name := table.ByStoreKey(kv.Key)
		if k == nil {
			continue
		}
		present[view.Ref{Kind: k, Namespace: namespace, Name: name}] = true
		if o := snap.Get(k, namespace, name); o == nil || o.GetResourceVersion() != strconv.FormatInt(kv.ModRevision, 10) {
			changed = append(changed, kv)
		}
	}
	slices.SortFunc(changed, func(a, b store.KV) int { return int(a.ModRevision - b.ModRevision) })
	kinds, objects, err := f.decodeAll(ctx, table, changed)
	if err != nil {
		return 0, fmt.Errorf("load the view anew: %w", err)
	}
	var changes []view.Change
	for i, o := range objects {
		if o != nil {
			changes = append(changes, view.Change{Kind: kinds[i], Revision: changed[i].ModRevision, New: o})
		}
	}
	for _, k := range table.Roots() {
		for o := range snap.All(k, "") {
			if !present[view.RefOf(k, o)] {
				last := o.DeepCopyObject().(kind.Object)
				last.SetResourceVersion(strconv.FormatInt(page.Revision, 10))
				changes = append(changes, view.Change{Kind: k, Revision: page.Revision, Last: last})
			}
		}
	}
	f.view.ApplyAll(changes, page.Revision)
	f.view.Loaded(page.Revision)
	return len(changes), nil
}
