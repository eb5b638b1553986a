package fields

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"proa.dev/kind"
)

// Tracker notes who changed which fields of a kind's objects by anything but an
// apply: what managedfields.FieldManager.Update does, for objects of one version,
// from Go values instead of documents. What it does not understand it leaves to that.
type Tracker struct {
	door
	shape *shape
	zero  reflect.Value
}

// Door is a way into an object: a subresource, and the fields that it never writes.
type Door struct {
	Subresource string
	// Reset are paths such as "status" or "metadata.labels".
	Reset []string
	// Only are the paths that alone are written; empty = all.
	Only []string
}

// NewTracker makes the tracker of a Go type's objects (example is a pointer to one).
func NewTracker(example runtime.Object, apiVersion string, d Door) *Tracker {
	t := reflect.TypeOf(example).Elem()
	return &Tracker{door: newDoor(apiVersion, d), shape: shapeOf(t), zero: reflect.New(t)}
}

// setOf is the set of one path of names; "*" stands for any elements of a list.
func setOf(path string) *Set {
	name, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		return &Set{[]item{{"f:" + name, true, nil}}}
	}
	return &Set{[]item{{"f:" + name, false, setOf(rest)}}}
}

// unowned is what nobody owns.
var unowned = func() *Set {
	var s *Set
	for _, p := range []string{"apiVersion", "kind", "metadata", "metadata.name", "metadata.namespace", "metadata.creationTimestamp", "metadata.selfLink",
		"metadata.uid", "metadata.clusterName", "metadata.generation", "metadata.managedFields", "metadata.resourceVersion"} {
		s = union(s, setOf(p))
	}
	return s
}()

// Created gives the entries of a new object that comes without any.
func (t *Tracker) Created(obj runtime.Object, manager string, now *metav1.Time) (entries []metav1.ManagedFieldsEntry, ok bool) {
	w := walkers.Get().(*walker)
	defer w.recycle()
	c, ok := w.compare(t.shape, t.zero.UnsafePointer(), reflect.ValueOf(obj).UnsafePointer())
	if !ok {
		return nil, false
	}
	c = t.seen(c)
	set := difference(union(c.modified, c.added), unowned)
	if set.Empty() {
		return nil, true
	}
	w.key = set.appendTo(w.key[:0])
	return []metav1.ManagedFieldsEntry{t.entry(manager, kind.ShareFields(w.key).V1, now)}, true
}

// filter keeps what lies at or below the members of s.
func (s *Set) filter(of *Set) *Set {
	if s.Empty() || of.Empty() {
		return nil
	}
	var out []item
	for _, x := range of.items {
		for _, y := range s.items {
			if y.elem != x.elem && y.elem != "f:*" {
				continue
			}
			z := item{elem: x.elem, member: x.member && y.member, kids: x.kids}
			if !y.member {
				z.kids = y.kids.filter(x.kids)
				z.member = false
			}
			if z.member || z.kids != nil {
				out = append(out, z)
			}
			break
		}
	}
	if out == nil {
		return nil
	}
	return &Set{out}
}

func (t *Tracker) entry(manager string, f *metav1.FieldsV1, now *metav1.Time) metav1.ManagedFieldsEntry {
	if manager == "" {
		manager = "unknown"
	}
	return metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: t.apiVersion, Time: now,
		FieldsType: "FieldsV1", FieldsV1: f, Subresource: t.subresource}
}

// Updated gives the entries of an object after a change from old to obj, made by
// manager; entries are those before. They stay as they are, times included, when
// nothing has changed. The result shares what it can with entries.
func (t *Tracker) Updated(old, obj runtime.Object, entries []metav1.ManagedFieldsEntry, manager string, now *metav1.Time) (out []metav1.ManagedFieldsEntry, ok bool) {
	if len(entries) == 0 {
		return nil, true // not tracked, until somebody applies
	}
	var few [6]owner
	owners := few[:0]
	for i := range entries {
		e := &entries[i]
		if e.FieldsType != "FieldsV1" {
			return nil, false
		}
		owners = append(owners, owner{manager: e.Manager, operation: string(e.Operation), apiVersion: e.APIVersion, subresource: e.Subresource, from: i})
	}
	if !t.own(owners) {
		return nil, false
	}
	w := new(walker)
	c, ok := w.compare(t.shape, reflect.ValueOf(old).UnsafePointer(), reflect.ValueOf(obj).UnsafePointer())
	if !ok {
		return nil, false
	}
	if c = t.seen(c); c == (changes{}) {
		return entries, true
	}
	for i := range owners {
		if owners[i].set, ok = t.parsed(entries[i].FieldsV1); !ok {
			return nil, false
		}
	}
	owners, ok = t.change(owners, c, manager)
	if !ok || len(owners) == 0 {
		return nil, ok
	}
	out = make([]metav1.ManagedFieldsEntry, len(owners))
	for i := range owners {
		switch o := &owners[i]; {
		case o.from < 0:
			out[i] = t.entry(manager, t.encoded(o.set), now)
		default:
			out[i] = entries[o.from]
			if o.changed {
				out[i].FieldsV1 = t.encoded(o.set)
			}
			if o.acted {
				out[i].Time = now
			}
		}
	}
	SortEntries(out)
	return out, true
}

// read is what was made of shared fields: a set that fits the shape, or not.
type read struct {
	shape *shape
	set   *Set
	fits  bool
}

// parsed reads fields that an entry holds.
func (t *Tracker) parsed(f *metav1.FieldsV1) (*Set, bool) {
	if f == nil {
		return nil, true
	}
	shared := kind.ShareFields(f.GetRawBytes())
	if note := shared.Note.Load(); note != nil {
		if r, ok := (*note).(*read); ok && r.shape == t.shape {
			return r.set, r.fits
		}
	}
	r := &read{shape: t.shape}
	set, err := parse(f.GetRawBytes())
	if err == nil && fits(t.shape, set) {
		r.set, r.fits = set, true
	}
	t.note(shared, r)
	return r.set, r.fits
}

func (t *Tracker) note(f *kind.Fields, r *read) {
	var note any = r
	f.Note.Store(&note)
}

// encoded is a set in the form in which it is kept.
func (t *Tracker) encoded(s *Set) *metav1.FieldsV1 {
	f := kind.ShareFields(s.appendTo(nil))
	t.note(f, &read{t.shape, s, true})
	return f.V1
}

// SortEntries puts entries into the order in which objects show them.
func SortEntries(entries []metav1.ManagedFieldsEntry) { slices.SortFunc(entries, compareEntries) }

func compareEntries(a, b metav1.ManagedFieldsEntry) int {
	if c := cmp.Compare(a.Operation, b.Operation); c != 0 {
		return c
	}
	if c := cmp.Compare(seconds(a.Time), seconds(b.Time)); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Manager, b.Manager); c != 0 {
		return c
	}
	if c := cmp.Compare(a.APIVersion, b.APIVersion); c != 0 {
		return c
	}
	return cmp.Compare(a.Subresource, b.Subresource)
}

func seconds(t *metav1.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}

// walkers of objects whose sets are not kept.
var walkers = sync.Pool{New: func() any {
	w := &walker{items: make([]item, 128), all: make([]Set, 48)}
	w.slab, w.sets = w.items, w.all
	return w
}}

// recycle makes a walker ready for the next object. Nobody may hold its sets.
func (w *walker) recycle() {
	if w.odd || cap(w.key) > 64<<10 {
		return
	}
	for i := range w.out {
		clear(w.out[i])
		w.out[i] = w.out[i][:0]
	}
	clear(w.items)
	clear(w.all)
	w.slab, w.sets = w.items, w.all
	walkers.Put(w)
}
