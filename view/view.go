// Package view is the immutable snapshot over all kinds at one revision, with
// indexes, the recent changes of each kind, wake-ups, and the fence for
// read-your-writes.
//
// A View is fed in revision order: by the store on a server (Feed), by API
// watches on an agent. Everything that decides takes a Snapshot and nothing
// else; what it gets from there must not be changed (DeepCopy first).
//
// Cost: taking a Snapshot is O(kinds changed since the last one); a write costs
// O(log n) node copies. Objects are shared, never copied.
package view

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

// Ref names one object. It is comparable.
type Ref struct {
	Kind            *kind.Kind
	Namespace, Name string
}

// RefOf names obj of kind k.
func RefOf(k *kind.Kind, obj kind.Object) Ref {
	return Ref{k, obj.GetNamespace(), obj.GetName()}
}

// String is "pods/shop/web-0", or "nodes/n1" without a namespace.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind.String() + "/" + r.Name
	}
	return r.Kind.String() + "/" + r.Namespace + "/" + r.Name
}

func key(namespace, name string) string { return namespace + "/" + name }

type tree = btree.Map[string, kind.Object]

// trees are the objects of each kind, frozen. Places are shared between snapshots
// until another kind gets its first object, so that a new snapshot copies a row of
// pointers and no map.
type trees struct {
	at   map[*kind.Kind]int // never changed
	list []*tree
}

func (t trees) of(k *kind.Kind) *tree {
	if i, ok := t.at[k]; ok {
		return t.list[i]
	}
	return nil
}

// with are t and newer copies of those that are dirty.
func (t trees) with(live map[*kind.Kind]*tree, dirty map[*kind.Kind]bool) trees {
	next := trees{at: t.at, list: make([]*tree, len(t.list), len(t.list)+len(dirty))}
	copy(next.list, t.list)
	isShared := true
	for k := range dirty {
		i, ok := next.at[k]
		if !ok {
			if isShared {
				next.at = maps.Clone(t.at)
				if isShared = false; next.at == nil {
					next.at = map[*kind.Kind]int{}
				}
			}
			i = len(next.list)
			next.at[k], next.list = i, append(next.list, nil)
		}
		next.list[i] = live[k].Copy()
	}
	return next
}

// without are t but for one kind.
func (t trees) without(k *kind.Kind) trees {
	if _, ok := t.at[k]; !ok {
		return t
	}
	next := trees{at: make(map[*kind.Kind]int, len(t.at))}
	for other, i := range t.at {
		if other != k {
			next.at[other], next.list = len(next.list), append(next.list, t.list[i])
		}
	}
	return next
}

// Snapshot is the state of all kinds at one revision. The zero Snapshot is empty.
type Snapshot struct {
	revision int64
	table    *kind.Table
	tables   trees
	owned    *tree // ownerUID/plural.group/namespace/name
	onNode   *tree // node/namespace/name of pods
	orphans  *tree // namespace/name of pods without a controller
	labeled  *tree // namespace/label/name of pods
	selects  *tree // plural.group/namespace/first label of the selector/name
}

// Revision of the newest write that the snapshot contains.
func (s Snapshot) Revision() int64 { return s.revision }

// Table of kinds at the snapshot's revision; nil (which is an empty table) in the
// zero Snapshot.
func (s Snapshot) Table() *kind.Table { return s.table }

// Get returns the object, or nil when there is none.
func (s Snapshot) Get(k *kind.Kind, namespace, name string) kind.Object {
	t := s.tables.of(k.Root())
	if t == nil {
		return nil
	}
	o, _ := t.Get(key(namespace, name))
	return o
}

// Lookup is Get by reference.
func (s Snapshot) Lookup(r Ref) kind.Object { return s.Get(r.Kind, r.Namespace, r.Name) }

// All yields the objects of a kind in one namespace ("": all), by namespace and
// name.
func (s Snapshot) All(k *kind.Kind, namespace string) iter.Seq[kind.Object] {
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	return scan(s.tables.of(k.Root()), prefix)
}

// After yields as All does, from the first object behind (namespace, name) on;
// for pages.
func (s Snapshot) After(k *kind.Kind, namespace, afterNamespace, afterName string) iter.Seq[kind.Object] {
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	return scanFrom(s.tables.of(k.Root()), key(afterNamespace, afterName)+"\x00", prefix)
}

// Len counts the objects of a kind in all namespaces.
func (s Snapshot) Len(k *kind.Kind) int {
	if t := s.tables.of(k.Root()); t != nil {
		return t.Len()
	}
	return 0
}

// OwnedBy yields the objects of kind k that have an owner reference (controller
// or not) with this UID; a nil k yields those of every kind.
func (s Snapshot) OwnedBy(uid string, k *kind.Kind) iter.Seq[kind.Object] {
	prefix := uid + "\x00"
	if k != nil {
		prefix += k.Root().String() + "\x00"
	}
	return scan(s.owned, prefix)
}

// PodsOn yields the pods bound to a node; node "" yields the unbound ones.
func (s Snapshot) PodsOn(node string) iter.Seq[*corev1.Pod] {
	return func(yield func(*corev1.Pod) bool) {
		for o := range scan(s.onNode, node+"\x00") {
			if !yield(o.(*corev1.Pod)) {
				return
			}
		}
	}
}

// OrphanPods yields a namespace's pods that no controller owns.
func (s Snapshot) OrphanPods(namespace string) iter.Seq[*corev1.Pod] {
	return typed[*corev1.Pod](scan(s.orphans, namespace+"/"))
}

// PodsWith yields a namespace's pods that carry all of the labels, by name. It
// costs as much as the rarest of the labels has pods.
func (s Snapshot) PodsWith(namespace string, labels map[string]string) iter.Seq[*corev1.Pod] {
	return podsWith(s.labeled, s.tables.of(kindPod), namespace, labels)
}

// Selecting yields the objects of kind k in a namespace whose selector may match
// the labels: each that does is among them, and the caller checks.
func (s Snapshot) Selecting(k *kind.Kind, namespace string, labels map[string]string) iter.Seq[kind.Object] {
	return selecting(s.selects, s.tables.of(k.Root()), k.Root().String(), namespace, labels)
}

// Get returns the typed object, or the zero T (nil) when there is none.
func Get[T kind.Object](s Snapshot, k *kind.Kind, namespace, name string) T {
	o, _ := s.Get(k, namespace, name).(T)
	return o
}

// List yields typed objects, as All does.
func List[T kind.Object](s Snapshot, k *kind.Kind, namespace string) iter.Seq[T] {
	return typed[T](s.All(k, namespace))
}

// Owned yields typed objects, as OwnedBy does.
func Owned[T kind.Object](s Snapshot, uid string, k *kind.Kind) iter.Seq[T] {
	return typed[T](s.OwnedBy(uid, k))
}

func typed[T kind.Object](seq iter.Seq[kind.Object]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for o := range seq {
			if t, ok := o.(T); ok && !yield(t) {
				return
			}
		}
	}
}

func scan(t *tree, prefix string) iter.Seq[kind.Object] { return scanFrom(t, prefix, prefix) }

func scanFrom(t *tree, start, prefix string) iter.Seq[kind.Object] {
	return func(yield func(kind.Object) bool) {
		if t == nil {
			return
		}
		if start < prefix {
			start = prefix
		}
		t.Ascend(start, func(k string, o kind.Object) bool {
			return len(k) >= len(prefix) && k[:len(prefix)] == prefix && yield(o)
		})
	}
}

// Build makes a snapshot from objects, for scenarios and tests. Objects without
// a resourceVersion keep none.
func Build(revision int64, table *kind.Table, objects ...kind.Object) Snapshot {
	v := New(table, 0)
	for _, o := range objects {
		gvk := o.GetObjectKind().GroupVersionKind()
		k := table.ByKind(gvk)
		if k == nil {
			k = kindOf(table, o)
		}
		if k == nil {
			panic(fmt.Sprintf("view: no kind for %T %v", o, gvk))
		}
		v.Apply(Change{Kind: k.Root(), Revision: revision, New: o})
	}
	v.Advance(revision)
	return v.Snapshot()
}

func kindOf(table *kind.Table, o kind.Object) *kind.Kind {
	for _, k := range table.BuiltIn() {
		if k.New != nil && k.Stored == nil && sameType(k.New(), o) {
			return k
		}
	}
	return nil
}

func sameType(a, b kind.Object) bool { return fmt.Sprintf("%T", a) == fmt.Sprintf("%T", b) }

// Change is one committed write of one object. Old is nil when it was created,
// New is nil when it was deleted; Last is then its final state with the
// revision of the removal.
type Change struct {
	Kind     *kind.Kind
	Revision int64
	Old, New kind.Object
	Last     kind.Object
	// Cache is for carriers: the encoded forms of this change, made once and shared
	// by all watchers. Never read by deciders.
	Cache *sync.Map
}

// Ref of the object that changed.
func (c *Change) Ref() Ref {
	if c.New != nil {
		return RefOf(c.Kind, c.New)
	}
	return RefOf(c.Kind, c.Old)
}

// ring holds the recent changes of one kind.
type ring struct {
	changes []*Change // in order of revision
	lost    int64     // changes up to and including this revision are gone
	wake    chan struct{}
}

// View is the one live view of a process. New makes it; whoever feeds it calls
// Apply and Advance from one goroutine at a time.
type View struct {
	table  atomic.Pointer[kind.Table]
	window int

	mu      sync.Mutex
	tables  map[*kind.Kind]*tree
	owned   tree
	onNode  tree
	orphans tree
	labeled tree
	selects tree
	dirty   map[*kind.Kind]bool

	rings    map[*kind.Kind]*ring
	revision int64
	loaded   int64
	moved    chan struct{} // closed and replaced when revision grows
	frozen   trees

	snap    atomic.Pointer[Snapshot]
	isStale atomic.Bool
}

// DefaultWindow is how many changes of each kind stay for watchers.
const DefaultWindow = 8192

// New makes an empty view at revision 0 that keeps window changes per kind
// (0: DefaultWindow).
func New(table *kind.Table, window int) *View {
	if window <= 0 {
		window = DefaultWindow
	}
	v := &View{window: window,
		tables: map[*kind.Kind]*tree{}, dirty: map[*kind.Kind]bool{},
		rings: map[*kind.Kind]*ring{}, moved: make(chan struct{})}
	v.table.Store(table)
	v.snap.Store(&Snapshot{table: table})
	return v
}

// Table of kinds that the view covers now. Who decides takes Snapshot.Table.
func (v *View) Table() *kind.Table { return v.table.Load() }

// Custom stands for all custom kinds together in Changes: their changes in the
// order of their revisions.
var Custom = &kind.Kind{Kind: "Custom", Plural: "customs", Custom: true, Hidden: true}

// Reshaping is a new table of kinds and what it changes: the roots that have come,
// with what the store holds of them already, those whose served rows have changed,
// and those that have gone.
type Reshaping struct {
	Table         *kind.Table
	Came          []Loading
	Changed, Gone []*kind.Kind
}

// Loading are the objects of a kind that has just come.
type Loading struct {
	Kind    *kind.Kind
	Objects []kind.Object
}

// Reshape changes the table of kinds together with the changes that say so: what
// the new kinds hold already is loaded, the objects of kinds that went are
// dropped without changes of their own, and whoever asks for those kinds' changes
// gets ErrGone. Then it goes on as ApplyAll does. It costs what it changes.
func (v *View) Reshape(r Reshaping, changes []Change, revision int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.table.Store(r.Table)
	v.isStale.Store(true)
	for _, k := range r.Gone {
		if t := v.tables[k]; t != nil {
			t.Scan(func(_ string, o kind.Object) bool {
				v.unindex(k, o)
				return true
			})
			delete(v.tables, k)
			delete(v.dirty, k)
			v.frozen = v.frozen.without(k)
		}
		if ring := v.rings[k]; ring != nil {
			close(ring.wake)
			delete(v.rings, k)
		}
	}
	for _, l := range r.Came {
		if ring := v.rings[l.Kind]; ring != nil {
			close(ring.wake)
		}
		v.rings[l.Kind] = &ring{lost: revision, wake: make(chan struct{})}
		for _, o := range l.Objects {
			v.set(l.Kind, nil, o)
		}
	}
	// Watches of custom kinds look whether their row has changed.
	for _, k := range r.Changed {
		if ring := v.rings[k]; ring != nil {
			close(ring.wake)
			ring.wake = make(chan struct{})
		}
	}
	for i := range changes {
		if r.Table.Has(changes[i].Kind) {
			v.apply(&changes[i])
		}
	}
	v.advance(revision)
}

// Load puts objects in without recording changes: the state at start.
func (v *View) Load(k *kind.Kind, objects ...kind.Object) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, o := range objects {
		v.set(k.Root(), nil, o)
	}
}

// Loaded ends loading at revision: earlier changes are not known here.
func (v *View) Loaded(revision int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.rings {
		r.lost = revision
	}
	v.loaded = revision
	v.advance(revision)
}

// Apply records one change. Revisions must not go back.
func (v *View) Apply(c Change) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.apply(&c)
	v.advance(c.Revision)
}

// ApplyAll records changes of one or more revisions and shows them at once.
func (v *View) ApplyAll(changes []Change, revision int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range changes {
		v.apply(&changes[i])
	}
	v.advance(revision)
}

// Advance says that everything up to revision has been applied.
func (v *View) Advance(revision int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.advance(revision)
}

func (v *View) apply(c *Change) {
	c.Kind = c.Kind.Root()
	ref := Ref{c.Kind, "", ""}
	if c.New != nil {
		ref.Namespace, ref.Name = c.New.GetNamespace(), c.New.GetName()
	} else {
		ref.Namespace, ref.Name = c.Last.GetNamespace(), c.Last.GetName()
	}
	if t := v.tables[c.Kind]; t != nil {
		c.Old, _ = t.Get(key(ref.Namespace, ref.Name))
	}
	if c.Old == nil && c.New == nil {
		return
	}
	c.Cache = new(sync.Map)
	v.set(c.Kind, c.Old, c.New)
	v.ring(c.Kind).add(c, v.window)
	if c.Kind.Custom {
		v.ring(Custom).add(c, v.window)
	}
}

func (r *ring) add(c *Change, window int) {
	r.changes = append(r.changes, c)
	if len(r.changes) > 2*window {
		cut := len(r.changes) - window
		r.lost = r.changes[cut-1].Revision
		r.changes = append([]*Change(nil), r.changes[cut:]...)
	}
	close(r.wake)
	r.wake = make(chan struct{})
}

func (v *View) ring(k *kind.Kind) *ring {
	r := v.rings[k]
	if r == nil {
		r = &ring{lost: v.loaded, wake: make(chan struct{})}
		v.rings[k] = r
	}
	return r
}

func (v *View) advance(revision int64) {
	if revision > v.revision {
		v.revision = revision
		v.isStale.Store(true)
		close(v.moved)
		v.moved = make(chan struct{})
	}
}

func (v *View) set(k *kind.Kind, old, new kind.Object) {
	t := v.tables[k]
	if t == nil {
		t = newTree()
		v.tables[k] = t
	}
	v.dirty[k] = true
	v.isStale.Store(true)
	plural := k.String()
	v.setSelector(plural, old, new)
	if old != nil {
		id := key(old.GetNamespace(), old.GetName())
		if new == nil {
			t.Delete(id)
		}
		for _, r := range old.GetOwnerReferences() {
			v.owned.Delete(string(r.UID) + "\x00" + plural + "\x00" + id)
		}
		if p, ok := old.(*corev1.Pod); ok {
			if new == nil || !maps.Equal(p.Labels, new.GetLabels()) {
				for key, value := range p.Labels {
					v.labeled.Delete(labelKey(p.Namespace, key, value, p.Name))
				}
			}
			v.onNode.Delete(p.Spec.NodeName + "\x00" + id)
			v.orphans.Delete(id)
		}
	}
	if new != nil {
		id := key(new.GetNamespace(), new.GetName())
		t.Set(id, new)
		for _, r := range new.GetOwnerReferences() {
			v.owned.Set(string(r.UID)+"\x00"+plural+"\x00"+id, new)
		}
		if p, ok := new.(*corev1.Pod); ok {
			v.onNode.Set(p.Spec.NodeName+"\x00"+id, new)
			if old == nil || !maps.Equal(p.Labels, old.GetLabels()) {
				for key, value := range p.Labels {
					v.labeled.Set(labelKey(p.Namespace, key, value, p.Name), nil)
				}
			}
			if metav1.GetControllerOfNoCopy(p) == nil {
				v.orphans.Set(id, new)
			}
		}
	}
}

// unindex takes a custom object out of the indexes.
func (v *View) unindex(k *kind.Kind, o kind.Object) {
	id := key(o.GetNamespace(), o.GetName())
	for _, r := range o.GetOwnerReferences() {
		v.owned.Delete(string(r.UID) + "\x00" + k.String() + "\x00" + id)
	}
}

func newTree() *tree { return new(tree) }

// Snapshot returns the newest state.
func (v *View) Snapshot() Snapshot {
	if !v.isStale.Load() {
		return *v.snap.Load()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.isStale.Load() {
		return *v.snap.Load()
	}
	if len(v.dirty) > 0 {
		v.frozen = v.frozen.with(v.tables, v.dirty)
		clear(v.dirty)
	}
	s := &Snapshot{revision: v.revision, table: v.table.Load(), tables: v.frozen, owned: v.owned.Copy(), onNode: v.onNode.Copy(), orphans: v.orphans.Copy(),
		labeled: v.labeled.Copy(), selects: v.selects.Copy()}
	v.snap.Store(s)
	v.isStale.Store(false)
	return *s
}

// WaitFor returns once a snapshot contains revision: the fence for
// read-your-writes.
func (v *View) WaitFor(ctx context.Context, revision int64) error {
	for {
		v.mu.Lock()
		now, moved := v.revision, v.moved
		v.mu.Unlock()
		if now >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d, view is at %d: %w", revision, now, ctx.Err())
		}
	}
}

// Moved returns the current revision and a channel that is closed when it grows.
func (v *View) Moved() (revision int64, moved <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.revision, v.moved
}

// ErrGone is returned when changes were asked for that are no longer kept.
var ErrGone = fmt.Errorf("changes are no longer kept: list again")

// Changes returns the changes of one kind after revision from, the revision up
// to which that is complete, and a channel that is closed when there are more.
// ErrGone when some of them are out of the window.
func (v *View) Changes(k *kind.Kind, from int64) (changes []*Change, progress int64, more <-chan struct{}, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k = k.Root(); k.Custom && k != Custom && !v.table.Load().Has(k) {
		return nil, 0, nil, ErrGone
	}
	r := v.ring(k)
	if from < r.lost {
		return nil, 0, nil, ErrGone
	}
	i := sort.Search(len(r.changes), func(i int) bool { return r.changes[i].Revision > from })
	return r.changes[i:len(r.changes):len(r.changes)], v.revision, r.wake, nil
}
