package kind

import (
	"encoding/binary"
	"hash/maphash"
	"reflect"
	"slices"
	"strings"
	"sync"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Objects at rest have most of themselves in common with others: the pods of a set
// differ in names, addresses and times. Compact lets them share the parts that are
// the same. Parts are found from the leaves up: once two parts hold the same
// strings and pointers, they are the same where their memory is, so that one look
// into a table of what was seen lately tells.

// Compact makes obj, which nobody else may have yet, share its equal parts with
// other objects that were compacted lately. From then on nobody may change it, as
// it is with everything in the view; a deep copy is whole again. Objects of custom
// kinds are left as they are.
func Compact(obj Object) {
	if _, custom := obj.(*unstructured.Unstructured); custom {
		return
	}
	v := reflect.ValueOf(obj)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return
	}
	p := compactorOf(v.Type().Elem())
	if p.walk == nil {
		return
	}
	w := compactions.Get().(*compaction)
	parts.mu.Lock()
	p.walk(w, v.UnsafePointer())
	parts.mu.Unlock()
	compactions.Put(w)
}

// parts are those that were met at least twice lately, in two generations: what is
// not asked for while one fills is forgotten with it. What is met for the first time
// leaves a hash only, so that names and addresses cost nothing.
var parts = seen{seed: maphash.MakeSeed(), now: map[uint64]part{}}

type seen struct {
	mu       sync.Mutex
	seed     maphash.Seed
	once     [8192]uint32 // hashes of what was met once, where they belong
	now, old map[uint64]part
}

// seenParts bounds a generation, sharedPart the size of a part.
const (
	seenParts  = 4096
	sharedPart = 2 << 10
)

// part is what is shared: a string, the address of a value or of a slice's first
// element (with how many bytes are there), or a map (with its content as text).
type part struct {
	t    reflect.Type // nil: a string
	p    unsafe.Pointer
	n    int
	text string
}

func (x *part) is(t reflect.Type, content []byte) bool {
	if x.t != t {
		return false
	}
	if x.n > 0 {
		return string(unsafe.Slice((*byte)(x.p), x.n)) == string(content)
	}
	return x.text == string(content)
}

// find a part of a type with this content: for a value and a slice its memory, whose
// pointers lead to parts that were shared before, and which the part keeps alive. If
// it was met before but is not there, keep is the place for it.
func (s *seen) find(t reflect.Type, salt uintptr, content []byte) (x part, ok bool, keep uint64) {
	h := maphash.Bytes(s.seed, content) ^ uint64(salt)*0x9e3779b97f4a7c15 | 1
	if x, ok = s.now[h]; ok {
		return x, x.is(t, content), 0
	}
	if x, ok = s.old[h]; ok && x.is(t, content) {
		s.put(h, x)
		return x, true, 0
	}
	if once := &s.once[h%uint64(len(s.once))]; *once != uint32(h>>32) {
		*once = uint32(h >> 32)
		return part{}, false, 0
	}
	return part{}, false, h
}

func (s *seen) put(h uint64, x part) {
	if len(s.now) >= seenParts {
		s.now, s.old = map[uint64]part{}, s.now
	}
	s.now[h] = x
}

// compaction is scratch.
type compaction struct {
	buf     []byte
	entries []mapEntry
}

type mapEntry struct{ key, value string }

var compactions = sync.Pool{New: func() any { return new(compaction) }}

// compactor of one type. walk shares what is below a value; nil: there is nothing.
// whole says that who points to such values may share them: where the same pointers
// are, the same is behind them. A Quantity may note its text when it is printed, and
// is not.
type compactor struct {
	walk  func(w *compaction, p unsafe.Pointer)
	whole bool
	salt  uintptr // keeps equal bytes of different types apart
}

var (
	compactors   sync.Map // reflect.Type → *compactor
	compactMu    sync.Mutex
	compactDraft = map[reflect.Type]*compactor{}
)

func compactorOf(t reflect.Type) *compactor {
	if c, ok := compactors.Load(t); ok {
		return c.(*compactor)
	}
	compactMu.Lock()
	defer compactMu.Unlock()
	c := draftCompactor(t)
	for t, c := range compactDraft {
		compactors.Store(t, c)
	}
	clear(compactDraft)
	return c
}

func draftCompactor(t reflect.Type) *compactor {
	if c, ok := compactors.Load(t); ok {
		return c.(*compactor)
	}
	if c := compactDraft[t]; c != nil {
		return c // a type below itself: not walked
	}
	c := new(compactor)
	compactDraft[t] = c
	*c = makeCompactor(t)
	c.salt = uintptr(unsafe.Pointer(c))
	return c
}

func makeCompactor(t reflect.Type) compactor {
	switch t {
	case reflect.TypeFor[[]metav1.ManagedFieldsEntry]():
		return compactor{whole: true} // shared by ShareFields
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return compactor{whole: true}
	case reflect.String:
		return compactor{walk: shareString, whole: true}
	case reflect.Pointer:
		elem := draftCompactor(t.Elem())
		return compactor{whole: true, walk: func(w *compaction, p unsafe.Pointer) { sharePointer(w, t.Elem(), elem, (*unsafe.Pointer)(p)) }}
	case reflect.Slice:
		elem := draftCompactor(t.Elem())
		return compactor{whole: true, walk: func(w *compaction, p unsafe.Pointer) { shareSlice(w, t, elem, p) }}
	case reflect.Map:
		if t == reflect.TypeFor[map[string]string]() {
			return compactor{whole: true, walk: shareMap}
		}
		if t == reflect.TypeFor[corev1.ResourceList]() {
			return compactor{whole: true, walk: shareQuantities}
		}
	case reflect.Struct:
		if t.PkgPath() == "time" || t.String() == "resource.Quantity" {
			return compactor{whole: t.PkgPath() == "time"}
		}
		return compactStruct(t)
	}
	return compactor{whole: t.Kind() == reflect.Map || t.Kind() == reflect.Interface}
}

// own are the fields of metadata that no two objects have in common.
func own(t reflect.Type, field string) bool {
	if t == reflect.TypeFor[metav1.ObjectMeta]() {
		return field == "Name" || field == "UID" || field == "ResourceVersion" || field == "CreationTimestamp"
	}
	return false
}

func compactStruct(t reflect.Type) compactor {
	type step struct {
		offset uintptr
		walk   func(*compaction, unsafe.Pointer)
	}
	var steps []step
	c := compactor{whole: true}
	for i := range t.NumField() {
		f := t.Field(i)
		fc := draftCompactor(f.Type)
		c.whole = c.whole && fc.whole
		if fc.walk != nil && !own(t, f.Name) {
			steps = append(steps, step{f.Offset, fc.walk})
		}
	}
	if len(steps) > 0 {
		c.walk = func(w *compaction, p unsafe.Pointer) {
			for i := range steps {
				steps[i].walk(w, unsafe.Add(p, steps[i].offset))
			}
		}
	}
	return c
}

// sharedText bounds strings that are shared: longer ones are mostly data.
const sharedText = 128

func shareString(_ *compaction, p unsafe.Pointer) {
	s := (*string)(p)
	if *s == "" || len(*s) > sharedText {
		return
	}
	x, ok, keep := parts.find(nil, 0, unsafe.Slice(unsafe.StringData(*s), len(*s)))
	if ok {
		*s = x.text
	} else if keep != 0 {
		*s = strings.Clone(*s) // it may be a piece of something long
		parts.put(keep, part{text: *s})
	}
}

func sharePointer(w *compaction, t reflect.Type, elem *compactor, p *unsafe.Pointer) {
	if *p == nil {
		return
	}
	if elem.walk != nil {
		elem.walk(w, *p)
	}
	if !elem.whole || t.Size() == 0 || t.Size() > sharedPart {
		return
	}
	x, ok, keep := parts.find(t, elem.salt, unsafe.Slice((*byte)(*p), t.Size()))
	if ok {
		*p = x.p
	} else if keep != 0 {
		parts.put(keep, part{t: t, p: *p, n: int(t.Size())})
	}
}

type sliceHead struct {
	data     unsafe.Pointer
	len, cap int
}

func shareSlice(w *compaction, t reflect.Type, elem *compactor, p unsafe.Pointer) {
	h := (*sliceHead)(p)
	size := t.Elem().Size()
	if h.len == 0 || size == 0 {
		return
	}
	if elem.walk != nil {
		for i := range h.len {
			elem.walk(w, unsafe.Add(h.data, uintptr(i)*size))
		}
	}
	if h.cap > h.len {
		// Room to grow is of no use any more.
		fit := reflect.MakeSlice(t, h.len, h.len)
		reflect.Copy(fit, reflect.NewAt(t, p).Elem())
		*h = sliceHead{fit.UnsafePointer(), h.len, h.len}
	}
	if n := uintptr(h.len) * size; elem.whole && n <= sharedPart {
		x, ok, keep := parts.find(t, elem.salt, unsafe.Slice((*byte)(h.data), n))
		if ok {
			h.data = x.p
		} else if keep != 0 {
			parts.put(keep, part{t: t, p: h.data, n: int(n)})
		}
	}
}

// shareMap shares labels, annotations and the like.
func shareMap(w *compaction, p unsafe.Pointer) {
	m := (*map[string]string)(p)
	if len(*m) == 0 {
		return
	}
	w.entries = w.entries[:0]
	n := 0
	for k, v := range *m {
		w.entries = append(w.entries, mapEntry{k, v})
		n += len(k) + len(v)
	}
	defer clear(w.entries)
	if n > sharedPart {
		return
	}
	slices.SortFunc(w.entries, func(a, b mapEntry) int { return strings.Compare(a.key, b.key) })
	w.buf = w.buf[:0]
	for _, e := range w.entries {
		w.buf = append(binary.AppendUvarint(w.buf, uint64(len(e.key))), e.key...)
		w.buf = append(binary.AppendUvarint(w.buf, uint64(len(e.value))), e.value...)
	}
	w.shareContent(reflect.TypeFor[map[string]string](), p)
}

// shareContent shares the map at p, whose content is in the buffer.
func (w *compaction) shareContent(t reflect.Type, p unsafe.Pointer) {
	x, ok, keep := parts.find(t, 1, w.buf)
	if ok {
		*(*unsafe.Pointer)(p) = x.p
	} else if keep != 0 {
		parts.put(keep, part{t: t, p: *(*unsafe.Pointer)(p), text: string(w.buf)})
	}
}

// shareQuantities shares lists of resources: same names, amounts and notations.
func shareQuantities(w *compaction, p unsafe.Pointer) {
	m := *(*corev1.ResourceList)(p)
	if len(m) == 0 || len(m) > 16 {
		return
	}
	w.entries = w.entries[:0]
	for k := range m {
		w.entries = append(w.entries, mapEntry{key: string(k)})
	}
	slices.SortFunc(w.entries, func(a, b mapEntry) int { return strings.Compare(a.key, b.key) })
	w.buf = w.buf[:0]
	for _, e := range w.entries {
		q := m[corev1.ResourceName(e.key)]
		amount, err := q.MarshalJSON()
		if err != nil {
			return
		}
		w.buf = append(binary.AppendUvarint(w.buf, uint64(len(e.key))), e.key...)
		w.buf = append(append(append(w.buf, q.Format...), ' '), amount...)
	}
	clear(w.entries)
	w.shareContent(reflect.TypeFor[corev1.ResourceList](), p)
}
