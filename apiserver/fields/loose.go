package fields

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// Loose is a Tracker of custom objects, which are maps that a schema describes. It
// reads and writes the entries where they are in the object.
type Loose struct {
	door
	shape *looseShape
}

// looseShape is what a value may be, with how it merges.
type looseShape struct {
	scalar bool
	list   *looseList
	object *looseMap
}

type looseList struct {
	elem   *looseShape
	atomic bool
	keys   []looseKey // none: a set
}

type looseKey struct{ name, prefix, without string }

type looseMap struct {
	fields map[string]*looseShape
	rest   *looseShape // of what is not in fields; nil = nothing may be
	atomic bool
	free   bool // nothing is known of what is in it
}

// NewLoose makes the tracker of a kind that the converter knows.
func NewLoose(c managedfields.TypeConverter, gvk schema.GroupVersionKind, d Door) (*Loose, error) {
	u := new(unstructured.Unstructured)
	u.SetGroupVersionKind(gvk)
	v, err := c.ObjectToTyped(u, typed.AllowDuplicates)
	if err != nil {
		return nil, fmt.Errorf("read how %s merges: %w", gvk.Kind, err)
	}
	m := looseMaker{s: v.Schema(), named: map[string]*looseShape{}}
	shape, ok := m.make(v.TypeRef())
	if !ok || shape.object == nil {
		return nil, fmt.Errorf("read how %s merges: its schema is not that of an object", gvk.Kind)
	}
	// The managed fields themselves are no part of what is owned.
	root := *shape.object
	root.fields = map[string]*looseShape{}
	for name, f := range shape.object.fields {
		root.fields[name] = f
	}
	if meta := root.fields["metadata"]; meta != nil && meta.object != nil {
		inner := *meta.object
		inner.fields = map[string]*looseShape{}
		for name, f := range meta.object.fields {
			if name != "managedFields" {
				inner.fields[name] = f
			}
		}
		root.fields["metadata"] = &looseShape{object: &inner}
	}
	return &Loose{newDoor(gvk.GroupVersion().String(), d), &looseShape{object: &root}}, nil
}

type looseMaker struct {
	s     *smdschema.Schema
	named map[string]*looseShape
}

func (m *looseMaker) make(ref smdschema.TypeRef) (*looseShape, bool) {
	if ref.NamedType != nil && ref.ElementRelationship == nil {
		if s := m.named[*ref.NamedType]; s != nil {
			return s, true
		}
	}
	a, ok := m.s.Resolve(ref)
	if !ok {
		return nil, false
	}
	out := &looseShape{scalar: a.Scalar != nil}
	if ref.NamedType != nil && ref.ElementRelationship == nil {
		m.named[*ref.NamedType] = out
	}
	if a.List != nil {
		l := &looseList{atomic: a.List.ElementRelationship == smdschema.Atomic}
		if l.elem, ok = m.make(a.List.ElementType); !ok {
			return nil, false
		}
		for _, name := range slices.Sorted(slices.Values(a.List.Keys)) {
			k := looseKey{name: name, prefix: string(appendText(nil, name)) + ":"}
			if l.elem.object == nil {
				return nil, false
			}
			if e, ok := m.s.Resolve(a.List.ElementType); ok && e.Map != nil {
				if f, ok := e.Map.FindField(name); ok && f.Default != nil {
					b, ok := appendLoose(nil, f.Default)
					if !ok {
						return nil, false
					}
					k.without = string(b)
				}
			}
			l.keys = append(l.keys, k)
		}
		out.list = l
	}
	if a.Map != nil {
		o := &looseMap{fields: map[string]*looseShape{}, atomic: a.Map.ElementRelationship == smdschema.Atomic}
		for _, f := range a.Map.Fields {
			if o.fields[f.Name], ok = m.make(f.Type); !ok {
				return nil, false
			}
		}
		if rest, ok := m.make(a.Map.ElementType); ok && (rest.scalar || rest.list != nil || rest.object != nil) {
			o.rest = rest
		}
		e := a.Map.ElementType
		o.free = a.Map.Fields == nil && (e.NamedType != nil && *e.NamedType == "__untyped_deduced_" ||
			e.NamedType == nil && e.Inlined.Scalar != nil && *e.Inlined.Scalar == smdschema.Untyped)
		out.object = o
	}
	return out, true
}

// loose is a value of a document, or its absence.
type loose struct {
	v    any
	here bool
}

func (l loose) null() bool { return l.here && l.v == nil }

// looseWalker compares documents.
type looseWalker struct{ walker }

type looseForm uint8

const (
	anyForm looseForm = iota
	scalarLoose
	listLoose
	mapLoose
)

// formOf is what a value is of what its shape allows.
func formOf(s *looseShape, l loose) looseForm {
	if !l.here {
		return anyForm
	}
	switch l.v.(type) {
	case nil:
	case map[string]any:
		if s.object != nil {
			return mapLoose
		}
	case []any:
		if s.list != nil {
			return listLoose
		}
	default:
		if s.scalar {
			return scalarLoose
		}
	}
	return anyForm
}

func (s *looseShape) only() looseForm {
	switch {
	case s.object != nil && !s.scalar && s.list == nil:
		return mapLoose
	case s.scalar && s.list == nil && s.object == nil:
		return scalarLoose
	case s.list != nil && !s.scalar && s.object == nil:
		return listLoose
	}
	return anyForm
}

func (w *looseWalker) visit(elem string, s *looseShape, l, r loose) {
	if s == nil || w.odd {
		w.odd = true
		return
	}
	f, g := formOf(s, l), formOf(s, r)
	one := s.only()
	// What is null may be anything; what changes its form is left to the library, and
	// so is what does not fit its schema.
	for _, x := range []struct {
		f looseForm
		v loose
	}{{f, l}, {g, r}} {
		if x.v.here && x.f == anyForm && (x.v.v != nil || one == anyForm) {
			w.odd = true
			return
		}
	}
	if f == anyForm {
		f = g
	}
	if g == anyForm {
		g = f
	}
	if f == anyForm {
		f, g = one, one
	}
	if f != g {
		w.odd = true
		return
	}
	switch f {
	case mapLoose:
		if !s.object.atomic && !(looseHollow(l) && looseHollow(r)) {
			w.inside(elem, l, r, func() { w.object(s.object, l, r) })
			return
		}
	case listLoose:
		if !s.list.atomic && !(looseHollow(l) && looseHollow(r)) {
			w.inside(elem, l, r, func() { w.list(s.list, l, r) })
			return
		}
	}
	i := item{elem: elem, member: true}
	switch {
	case !l.here:
		w.put(added, i)
	case !r.here:
		w.put(removed, i)
	case !looseEqual(l.v, r.v):
		w.put(modified, i)
	}
}

func looseHollow(l loose) bool {
	switch v := l.v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return true
}

func (w *looseWalker) inside(elem string, l, r loose, visit func()) {
	var marks [3]int
	for i := range marks {
		marks[i] = len(w.out[i])
	}
	visit()
	self := [3]bool{added: !l.here, removed: !r.here}
	for i, mark := range marks {
		if kids := w.close(i, mark); kids != nil || self[i] {
			w.put(i, item{elem, self[i], kids})
		}
	}
}

func (w *looseWalker) object(s *looseMap, l, r loose) {
	x, _ := l.v.(map[string]any)
	y, _ := r.v.(map[string]any)
	var few [16]string
	names := few[:0]
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
		below := s.fields[k]
		if below == nil {
			below = s.rest
		}
		a, was := x[k]
		b, is := y[k]
		w.visit("f:"+k, below, loose{a, was}, loose{b, is})
	}
}

type looseElement struct {
	name string
	v    any
}

func (w *looseWalker) list(s *looseList, l, r loose) {
	x, y := w.elements(s, l), w.elements(s, r)
	for i, j := 0, 0; (i < len(x) || j < len(y)) && !w.odd; {
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
			w.visit(x[i].name, s.elem, loose{x[i].v, true}, loose{})
			i++
		case c > 0:
			w.visit(y[j].name, s.elem, loose{}, loose{y[j].v, true})
			j++
		default:
			w.visit(x[i].name, s.elem, loose{x[i].v, true}, loose{y[j].v, true})
			i++
			j++
		}
	}
}

func (w *looseWalker) elements(s *looseList, l loose) []looseElement {
	list, _ := l.v.([]any)
	out := make([]looseElement, 0, len(list))
	for _, v := range list {
		name, ok := w.name(s, v)
		if !ok {
			w.odd = true
			return nil
		}
		out = append(out, looseElement{name, v})
	}
	slices.SortFunc(out, func(a, b looseElement) int { return compareElements(a.name, b.name) })
	for i := 1; i < len(out); i++ {
		if out[i].name == out[i-1].name {
			w.odd = true
		}
	}
	return out
}

func (w *looseWalker) name(s *looseList, v any) (string, bool) {
	if len(s.keys) == 0 {
		b, ok := appendLoose(append(w.key[:0], "v:"...), v)
		w.key = b
		return string(b), ok
	}
	m, ok := v.(map[string]any)
	if !ok {
		return "", false
	}
	b, some := append(w.key[:0], "k:{"...), false
	for i := range s.keys {
		k := &s.keys[i]
		value, here := m[k.name]
		if !here && k.without == "" {
			continue
		}
		if some {
			b = append(b, ',')
		}
		b, some = append(b, k.prefix...), true
		if !here {
			b = append(b, k.without...)
		} else if b, ok = appendLoose(b, value); !ok {
			return "", false
		}
	}
	b = append(b, '}')
	w.key = b
	return string(b), some
}

// appendLoose writes a scalar as path elements have it.
func appendLoose(b []byte, v any) ([]byte, bool) {
	switch x := v.(type) {
	case string:
		return appendText(b, x), true
	case bool:
		return strconv.AppendBool(b, x), true
	case int64:
		return strconv.AppendInt(b, x, 10), true
	case int:
		return strconv.AppendInt(b, int64(x), 10), true
	}
	return b, false // numbers with a fraction are rare as keys
}

// looseEqual is equality of documents: 1 and 1.0 are the same.
func looseEqual(a, b any) bool {
	switch x := a.(type) {
	case nil:
		return b == nil
	case string:
		y, ok := b.(string)
		return ok && x == y
	case bool:
		y, ok := b.(bool)
		return ok && x == y
	case int64:
		switch y := b.(type) {
		case int64:
			return x == y
		case float64:
			return float64(x) == y
		}
		return false
	case float64:
		switch y := b.(type) {
		case float64:
			return x == y || math.IsNaN(x) && math.IsNaN(y)
		case int64:
			return x == float64(y)
		}
		return false
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !looseEqual(x[i], y[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for k, v := range x {
			other, ok := y[k]
			if !ok || !looseEqual(v, other) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

// looseFits is fits for documents.
func looseFits(s *looseShape, set *Set) bool {
	if set == nil || s == nil {
		return true
	}
	names := set.items[0].elem[0] == 'f'
	switch {
	case names && s.object != nil:
		if s.object.free {
			return true
		}
		if s.object.atomic {
			return false
		}
		for i := range set.items {
			it := &set.items[i]
			below := s.object.rest
			if len(it.elem) > 2 {
				if f := s.object.fields[it.elem[2:]]; f != nil {
					below = f
				}
			}
			if !looseFits(below, it.kids) {
				return false
			}
		}
	case !names && s.list != nil:
		if s.list.atomic {
			return false
		}
		for i := range set.items {
			if !looseFits(s.list.elem, set.items[i].kids) {
				return false
			}
		}
	default:
		return false // of another form than the schema's: rare
	}
	return true
}

// compare compares two objects.
func (t *Loose) compare(l, r map[string]any) (c changes, ok bool) {
	w := new(looseWalker)
	w.object(t.shape.object, loose{l, l != nil}, loose{r, true})
	if w.odd {
		return c, false
	}
	return changes{w.close(added, 0), w.close(modified, 0), w.close(removed, 0)}, true
}

// bareOf is an object without its managed fields and without what nobody owns at its top.
func bareOf(u *unstructured.Unstructured) map[string]any {
	out := make(map[string]any, len(u.Object))
	for k, v := range u.Object {
		switch k {
		case "apiVersion", "kind":
		case "metadata":
			m, ok := v.(map[string]any)
			if !ok {
				out[k] = v
				continue
			}
			meta := make(map[string]any, len(m))
			for name, v := range m {
				if name != "managedFields" {
					meta[name] = v
				}
			}
			out[k] = meta
		default:
			out[k] = v
		}
	}
	return out
}

// Created notes who makes an object that comes without entries.
func (t *Loose) Created(u *unstructured.Unstructured, manager string, now *metav1.Time) bool {
	c, ok := t.compare(map[string]any{}, bareOf(u))
	if !ok {
		return false
	}
	c = t.seen(c)
	set := difference(union(c.modified, c.added), unowned)
	if set.Empty() {
		setLoose(u, nil)
		return true
	}
	if manager == "" {
		manager = "unknown"
	}
	setLoose(u, []any{t.entry(owner{manager: manager, operation: byUpdate, apiVersion: t.apiVersion, subresource: t.subresource, set: set}, stamp(now))})
	return true
}

// Updated notes who changes old into u; the entries are those of old, whatever u says.
func (t *Loose) Updated(old, u *unstructured.Unstructured, manager string, now *metav1.Time) bool {
	entries := LooseEntries(old)
	if len(entries) == 0 {
		setLoose(u, nil)
		return true
	}
	owners := make([]owner, 0, len(entries)+1)
	for i, e := range entries {
		m, ok := e.(map[string]any)
		if !ok {
			return false
		}
		o := owner{from: i}
		o.manager, _ = m["manager"].(string)
		o.operation, _ = m["operation"].(string)
		o.apiVersion, _ = m["apiVersion"].(string)
		o.subresource, _ = m["subresource"].(string)
		if m["fieldsType"] != "FieldsV1" {
			return false
		}
		owners = append(owners, o)
	}
	if !t.own(owners) {
		return false
	}
	c, ok := t.compare(bareOf(old), bareOf(u))
	if !ok {
		return false
	}
	if c = t.seen(c); c == (changes{}) {
		setLoose(u, entries)
		return true
	}
	for i := range owners {
		f, _ := entries[i].(map[string]any)["fieldsV1"].(map[string]any)
		if owners[i].set, ok = looseSet(f); !ok || !looseFits(t.shape, owners[i].set) {
			return false
		}
	}
	owners, ok = t.change(owners, c, manager)
	if !ok {
		return false
	}
	out := make([]any, len(owners))
	at := stamp(now)
	for i, o := range owners {
		if o.from >= 0 && !o.acted && !o.changed {
			out[i] = entries[o.from]
			continue
		}
		when := at
		if o.from >= 0 && !o.acted {
			when, _ = entries[o.from].(map[string]any)["time"].(string)
		}
		out[i] = t.entry(o, when)
	}
	slices.SortFunc(out, compareLoose)
	setLoose(u, out)
	return true
}

func stamp(t *metav1.Time) string { return t.UTC().Format(time.RFC3339) }

func (t *Loose) entry(o owner, when string) map[string]any {
	e := map[string]any{"manager": o.manager, "operation": o.operation, "apiVersion": o.apiVersion, "fieldsType": "FieldsV1", "fieldsV1": looseFields(o.set)}
	if when != "" {
		e["time"] = when
	}
	if o.subresource != "" {
		e["subresource"] = o.subresource
	}
	return e
}

func compareLoose(a, b any) int {
	return compareEntries(looseEntry(a), looseEntry(b))
}

// looseEntry is an entry without its fields.
func looseEntry(v any) metav1.ManagedFieldsEntry {
	m := v.(map[string]any)
	text := func(name string) string { s, _ := m[name].(string); return s }
	e := metav1.ManagedFieldsEntry{Manager: text("manager"), Operation: metav1.ManagedFieldsOperationType(text("operation")), APIVersion: text("apiVersion"), Subresource: text("subresource")}
	if t, err := time.Parse(time.RFC3339, text("time")); err == nil {
		e.Time = &metav1.Time{Time: t}
	}
	return e
}

// LooseEntries are the managed fields where they are in a custom object.
func LooseEntries(u *unstructured.Unstructured) []any {
	meta, _ := u.Object["metadata"].(map[string]any)
	list, _ := meta["managedFields"].([]any)
	return list
}

func setLoose(u *unstructured.Unstructured, entries []any) {
	meta, ok := u.Object["metadata"].(map[string]any)
	if !ok {
		return
	}
	if len(entries) == 0 {
		delete(meta, "managedFields")
		return
	}
	meta["managedFields"] = entries
}

// documents are fieldsV1 as maps, which objects with the same fields share; nobody
// changes them. They are kept as kind.ShareFields keeps the bytes: in two generations.
var documents struct {
	mu       sync.Mutex
	now, old map[string]document
	byMap    map[uintptr]document // of now and old
}

type document struct {
	m   map[string]any
	set *Set
}

const keptDocuments = 500

// looseFields is a set as a document.
func looseFields(s *Set) map[string]any {
	raw := s.appendTo(nil)
	d := &documents
	d.mu.Lock()
	defer d.mu.Unlock()
	if have, ok := d.now[string(raw)]; ok {
		return have.m
	}
	have, ok := d.old[string(raw)]
	if !ok {
		have = document{s.document(), s}
	}
	if d.now == nil || len(d.now) >= keptDocuments {
		d.now, d.old = map[string]document{}, d.now
		d.byMap = map[uintptr]document{}
		for _, x := range d.old {
			d.byMap[reflect.ValueOf(x.m).Pointer()] = x
		}
	}
	d.now[string(raw)] = have
	d.byMap[reflect.ValueOf(have.m).Pointer()] = have
	return have.m
}

func (s *Set) document() map[string]any {
	m := map[string]any{}
	if s == nil {
		return m
	}
	for _, i := range s.items {
		kids := i.kids.document()
		if i.member && i.kids != nil {
			kids["."] = map[string]any{}
		}
		m[i.elem] = kids
	}
	return m
}

// looseSet reads a document.
func looseSet(m map[string]any) (*Set, bool) {
	d := &documents
	d.mu.Lock()
	have, ok := d.byMap[reflect.ValueOf(m).Pointer()]
	d.mu.Unlock()
	if ok && m != nil {
		return have.set, true
	}
	s, _, ok := readLoose(m, 0)
	return s, ok
}

func readLoose(m map[string]any, depth int) (s *Set, member, ok bool) {
	if depth > maxDepth {
		return nil, false, false
	}
	items := make([]item, 0, len(m))
	for k, v := range m {
		if k == "." {
			member = true
			continue
		}
		elem, known, err := canonical(k)
		below, isMap := v.(map[string]any)
		if err != nil || !isMap {
			return nil, false, false
		}
		if !known {
			continue
		}
		kids, is, ok := readLoose(below, depth+1)
		if !ok {
			return nil, false, false
		}
		items = append(items, item{elem, is, kids})
	}
	if len(items) == 0 {
		return nil, true, true
	}
	slices.SortFunc(items, func(a, b item) int { return compareElements(a.elem, b.elem) })
	for i := 1; i < len(items); i++ {
		if items[i].elem == items[i-1].elem {
			return nil, false, false
		}
	}
	return &Set{items}, member, true
}
