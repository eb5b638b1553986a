package fields

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// changes are the fields in which two objects differ, as typed.Comparison has them.
type changes struct{ added, modified, removed *Set }

// walker compares two values of one type. What it does not understand makes it odd:
// the library then has the word.
type walker struct {
	out  [3][]item // added, modified, removed: elements of the levels under way
	slab []item
	sets []Set
	key  []byte
	odd  bool
	// items and all are what slab and sets are cut from where a walker is used again.
	items []item
	all   []Set
}

const (
	added = iota
	modified
	removed
)

// val is a value that may be absent (p nil) or null.
type val struct {
	p    unsafe.Pointer
	null bool
}

func (v val) absent() bool { return v.p == nil && !v.null }

// compare compares two objects of the shape, which are pointers to structs.
func (w *walker) compare(s *shape, l, r unsafe.Pointer) (c changes, ok bool) {
	if s.form != structForm {
		return c, false
	}
	w.structs(s, val{p: l}, val{p: r})
	if w.odd {
		return c, false
	}
	return changes{w.close(added, 0), w.close(modified, 0), w.close(removed, 0)}, true
}

// close makes a set of the elements above a mark.
func (w *walker) close(which, mark int) *Set {
	tail := w.out[which][mark:]
	if len(tail) == 0 {
		return nil
	}
	if len(w.slab) < len(tail) {
		w.slab = make([]item, max(32, len(tail)))
	}
	items := w.slab[:len(tail):len(tail)]
	w.slab = w.slab[len(tail):]
	copy(items, tail)
	w.out[which] = w.out[which][:mark]
	if len(w.sets) == 0 {
		w.sets = make([]Set, 8)
	}
	s := &w.sets[0]
	w.sets = w.sets[1:]
	s.items = items
	return s
}

func (w *walker) put(which int, i item) { w.out[which] = append(w.out[which], i) }

// visit compares the values below one element.
func (w *walker) visit(elem string, s *shape, l, r val) {
	for s.form == pointerForm {
		l, r, s = deref(l), deref(r), s.elem
	}
	switch s.form {
	case structForm:
		if !s.atomic && !(l.null != r.null && !l.absent() && !r.absent() && bare(s, l) && bare(s, r)) {
			w.inside(elem, s, l, r, w.structs)
			return
		}
	case mapForm, listForm:
		l, r = nilIsNull(s, l), nilIsNull(s, r)
		if !s.atomic && !(hollow(s, l) && hollow(s, r)) {
			if s.form == mapForm {
				w.inside(elem, s, l, r, w.maps)
			} else {
				w.inside(elem, s, l, r, w.lists)
			}
			return
		}
	case opaqueForm:
		if l.absent() != r.absent() || !l.absent() && !equal(s, l, r) {
			w.odd = true
		}
		return
	}
	w.leaf(elem, s, l, r)
}

func (w *walker) leaf(elem string, s *shape, l, r val) {
	switch {
	case l.absent():
		w.put(added, item{elem: elem, member: true})
	case r.absent():
		w.put(removed, item{elem: elem, member: true})
	case !equal(s, l, r):
		w.put(modified, item{elem: elem, member: true})
	}
}

// inside descends; the element itself is added or removed with what holds it.
func (w *walker) inside(elem string, s *shape, l, r val, visit func(*shape, val, val)) {
	var marks [3]int
	for i := range marks {
		marks[i] = len(w.out[i])
	}
	visit(s, l, r)
	self := [3]bool{added: l.absent(), removed: r.absent()}
	for i, mark := range marks {
		if kids := w.close(i, mark); kids != nil || self[i] {
			w.put(i, item{elem, self[i], kids})
		}
	}
}

func deref(v val) val {
	if v.p == nil {
		return v
	}
	p := *(*unsafe.Pointer)(v.p)
	return val{p: p, null: p == nil}
}

// nilIsNull: a nil slice or map is null in JSON.
func nilIsNull(s *shape, v val) val {
	if v.p == nil {
		return v
	}
	if *(*unsafe.Pointer)(v.p) == nil {
		return val{null: true}
	}
	return v
}

// hollow says that there is nothing in a list or map.
func hollow(s *shape, v val) bool {
	if v.p == nil {
		return true
	}
	if s.form == listForm {
		return (*sliceHead)(v.p).len == 0
	}
	return reflect.NewAt(s.typ, v.p).Elem().Len() == 0
}

// bare says that nothing of a struct is there in JSON.
func bare(s *shape, v val) bool {
	if v.p == nil {
		return true
	}
	for i := range s.fields {
		if f := &s.fields[i]; !f.omitted(unsafe.Add(v.p, f.offset)) {
			return false
		}
	}
	return true
}

func (w *walker) structs(s *shape, l, r val) {
	for i := range s.fields {
		f := &s.fields[i]
		var x, y val
		if l.p != nil {
			if p := unsafe.Add(l.p, f.offset); !f.omitted(p) {
				x.p = p
			}
		}
		if r.p != nil {
			if p := unsafe.Add(r.p, f.offset); !f.omitted(p) {
				y.p = p
			}
		}
		if x.p != nil || y.p != nil {
			w.visit(f.elem, f.shape, x, y)
		}
	}
}

func (w *walker) maps(s *shape, l, r val) {
	if s.elem.form == stringForm {
		w.texts(l, r)
		return
	}
	x, y := entries(s, l), entries(s, r)
	names := make([]string, 0, len(x)+len(y))
	for k := range x {
		names = append(names, k)
	}
	for k := range y {
		if _, both := x[k]; !both {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	for _, k := range names {
		w.visit("f:"+k, s.elem, x[k], y[k])
	}
}

// texts is maps for the form that most maps have.
func (w *walker) texts(l, r val) {
	var x, y map[string]string
	if l.p != nil {
		x = *(*map[string]string)(l.p)
	}
	if r.p != nil {
		y = *(*map[string]string)(r.p)
	}
	var few [16]string
	names := few[:0]
	for k, v := range y {
		if old, both := x[k]; !both || old != v {
			names = append(names, k)
		}
	}
	for k := range x {
		if _, both := y[k]; !both {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	for _, k := range names {
		i := item{elem: "f:" + k, member: true}
		_, was := x[k]
		_, is := y[k]
		switch {
		case !was:
			w.put(added, i)
		case !is:
			w.put(removed, i)
		default:
			w.put(modified, i)
		}
	}
}

// entries are a map's values, copied to where they have an address.
func entries(s *shape, v val) map[string]val {
	if v.p == nil {
		return nil
	}
	m := reflect.NewAt(s.typ, v.p).Elem()
	out := make(map[string]val, m.Len())
	for it := m.MapRange(); it.Next(); {
		e := reflect.New(s.typ.Elem())
		e.Elem().Set(it.Value())
		out[it.Key().String()] = val{p: e.UnsafePointer()}
	}
	return out
}

// element of a list with its name among the others.
type element struct {
	name string
	v    val
}

func (w *walker) lists(s *shape, l, r val) {
	var few [2][8]element
	x, y := w.elements(few[0][:0], s, l), w.elements(few[1][:0], s, r)
	if w.odd {
		return
	}
	for i, j := 0, 0; i < len(x) || j < len(y); {
		c := 0
		switch {
		case i == len(x):
			c = 1
		case j == len(y):
			c = -1
		default:
			c = compareElements(x[i].name, y[j].name)
		}
		switch {
		case c < 0:
			w.visit(x[i].name, s.elem, x[i].v, val{})
			i++
		case c > 0:
			w.visit(y[j].name, s.elem, val{}, y[j].v)
			j++
		default:
			w.visit(x[i].name, s.elem, x[i].v, y[j].v)
			i++
			j++
		}
	}
}

// elements names and sorts a list's elements. One that is there twice is odd.
func (w *walker) elements(out []element, s *shape, v val) []element {
	if v.p == nil {
		return nil
	}
	head := (*sliceHead)(v.p)
	for i := range head.len {
		e := val{p: unsafe.Add(head.data, uintptr(i)*s.size)}
		name, ok := w.name(s, e)
		if !ok {
			w.odd = true
			return nil
		}
		out = append(out, element{name, e})
	}
	slices.SortFunc(out, func(a, b element) int { return compareElements(a.name, b.name) })
	for i := 1; i < len(out); i++ {
		if out[i].name == out[i-1].name {
			w.odd = true
		}
	}
	return out
}

func (w *walker) name(s *shape, e val) (string, bool) {
	elem := s.elem
	if elem.form == pointerForm {
		if elem, e = elem.elem, deref(e); e.null {
			return "", false
		}
	}
	if s.set {
		b, ok := appendScalar(append(w.key[:0], "v:"...), elem, e.p)
		w.key = b
		return string(b), ok
	}
	b := append(w.key[:0], "k:{"...)
	some := false
	for i := range s.keys {
		k := &s.keys[i]
		p := unsafe.Add(e.p, k.field.offset)
		absent := k.field.omitted(p)
		if absent && k.without == "" {
			continue
		}
		if some {
			b = append(b, ',')
		}
		b, some = append(b, k.prefix...), true
		if absent {
			b = append(b, k.without...)
			continue
		}
		f := k.field.shape
		if f.form == pointerForm {
			if p, f = *(*unsafe.Pointer)(p), f.elem; p == nil {
				return "", false
			}
		}
		var ok bool
		if b, ok = appendScalar(b, f, p); !ok {
			return "", false
		}
	}
	b = append(b, '}')
	w.key = b
	return string(b), some
}

// appendScalar writes a value as path elements have it.
func appendScalar(b []byte, s *shape, p unsafe.Pointer) ([]byte, bool) {
	switch s.form {
	case stringForm:
		return appendText(b, *(*string)(p)), true
	case boolForm:
		return strconv.AppendBool(b, *(*bool)(p)), true
	case intForm:
		return strconv.AppendInt(b, intAt(s, p), 10), true
	case intOrStringForm:
		if v := (*intstr.IntOrString)(p); v.Type == intstr.Int {
			return strconv.AppendInt(b, int64(v.IntVal), 10), true
		} else {
			return appendText(b, v.StrVal), true
		}
	}
	return b, false
}

// appendText writes a string of a path element.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || strings.IndexByte(`"\<>&`, c) >= 0 {
			e, err := fieldpath.SerializePathElement(fieldpath.ValueElement(value.NewValueInterface(s)))
			if err != nil {
				e = "v:" + strconv.Quote(s)
			}
			return append(b, e[2:]...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func intAt(s *shape, p unsafe.Pointer) int64 {
	switch s.typ.Kind() {
	case reflect.Int64, reflect.Int:
		return *(*int64)(p)
	case reflect.Int32:
		return int64(*(*int32)(p))
	case reflect.Int16:
		return int64(*(*int16)(p))
	case reflect.Int8:
		return int64(*(*int8)(p))
	case reflect.Uint:
		return int64(*(*uint)(p))
	case reflect.Uint32:
		return int64(*(*uint32)(p))
	case reflect.Uint16:
		return int64(*(*uint16)(p))
	}
	return int64(*(*uint8)(p))
}

// equal says that two values that are there are the same in JSON.
func equal(s *shape, l, r val) bool {
	for s.form == pointerForm {
		l, r, s = deref(l), deref(r), s.elem
	}
	switch s.form {
	case mapForm, listForm, bytesForm:
		l, r = nilIsNull(s, l), nilIsNull(s, r)
	}
	if l.null || r.null {
		return l.null && r.null
	}
	if l.p == r.p {
		return true
	}
	switch s.form {
	case structForm:
		for i := range s.fields {
			f := &s.fields[i]
			x, y := unsafe.Add(l.p, f.offset), unsafe.Add(r.p, f.offset)
			no, nor := f.omitted(x), f.omitted(y)
			if no != nor || !no && !equal(f.shape, val{p: x}, val{p: y}) {
				return false
			}
		}
		return true
	case listForm:
		x, y := (*sliceHead)(l.p), (*sliceHead)(r.p)
		if x.len != y.len {
			return false
		}
		for i := range x.len {
			if !equal(s.elem, val{p: unsafe.Add(x.data, uintptr(i)*s.size)}, val{p: unsafe.Add(y.data, uintptr(i)*s.size)}) {
				return false
			}
		}
		return true
	case mapForm:
		x, y := entries(s, l), entries(s, r)
		if len(x) != len(y) {
			return false
		}
		for k, v := range x {
			if other, ok := y[k]; !ok || !equal(s.elem, v, other) {
				return false
			}
		}
		return true
	case stringForm:
		return *(*string)(l.p) == *(*string)(r.p)
	case boolForm:
		return *(*bool)(l.p) == *(*bool)(r.p)
	case intForm:
		return intAt(s, l.p) == intAt(s, r.p)
	case floatForm:
		if s.size == 4 {
			return *(*float32)(l.p) == *(*float32)(r.p)
		}
		return *(*float64)(l.p) == *(*float64)(r.p)
	case bytesForm:
		return bytes.Equal(*(*[]byte)(l.p), *(*[]byte)(r.p))
	case timeForm:
		x, y := (*metav1.Time)(l.p), (*metav1.Time)(r.p)
		return x.IsZero() && y.IsZero() || x.IsZero() == y.IsZero() && x.Unix() == y.Unix()
	case microTimeForm:
		x, y := (*metav1.MicroTime)(l.p), (*metav1.MicroTime)(r.p)
		return x.IsZero() && y.IsZero() || x.IsZero() == y.IsZero() && x.UnixMicro() == y.UnixMicro()
	case durationForm:
		return (*metav1.Duration)(l.p).Duration == (*metav1.Duration)(r.p).Duration
	case quantityForm:
		x, y := (*resource.Quantity)(l.p), (*resource.Quantity)(r.p)
		if x.Format == y.Format && x.Cmp(*y) == 0 {
			return true
		}
		return x.String() == y.String()
	case intOrStringForm:
		x, y := (*intstr.IntOrString)(l.p), (*intstr.IntOrString)(r.p)
		return x.Type == y.Type && (x.Type == intstr.Int && x.IntVal == y.IntVal || x.Type == intstr.String && x.StrVal == y.StrVal)
	}
	x, err := json.Marshal(reflect.NewAt(s.typ, l.p).Interface())
	y, err2 := json.Marshal(reflect.NewAt(s.typ, r.p).Interface())
	if err != nil || err2 != nil {
		return false
	}
	if bytes.Equal(x, y) {
		return true
	}
	var a, b any
	return json.Unmarshal(x, &a) == nil && json.Unmarshal(y, &b) == nil && reflect.DeepEqual(a, b)
}

// fits says that a set can be of values of the shape: nothing below what is whole.
// The library mends sets that do not, which come from an older schema.
func fits(s *shape, set *Set) bool {
	for s.form == pointerForm {
		s = s.elem
	}
	switch {
	case set == nil:
		return true
	case s.form == opaqueForm:
		return false
	case s.atomic:
		return false
	}
	for i := range set.items {
		it := &set.items[i]
		var below *shape
		switch s.form {
		case structForm:
			n, ok := slices.BinarySearchFunc(s.fields, it.elem, func(f fieldShape, e string) int { return strings.Compare(f.elem, e) })
			if !ok {
				continue
			}
			below = s.fields[n].shape
		case listForm, mapForm:
			below = s.elem
		default:
			continue
		}
		if !fits(below, it.kids) {
			return false
		}
	}
	return true
}
