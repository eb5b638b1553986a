package kind

import (
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Table is an immutable set of rows. The methods of a nil Table are those of an
// empty one.
//
// The rows that come at run time are kept in trees that a table shares with the
// one that it was made from: With costs as much as what it changes, however many
// definitions there are. Lists of rows are made when somebody first asks a table
// for them.
type Table struct {
	builtIn *index
	custom  *customs // nil: none
	age     int64    // how many tables led to this one

	lists sync.Once
	all   struct{ rows, served, roots []*Kind }
}

// Definition is what one definition brings: a hidden root, under which objects are
// stored, and its served rows.
type Definition struct {
	Root *Kind
	Rows []*Kind

	born int64
}

// index finds the rows that came with the program.
type index struct {
	rows     []*Kind // served
	stored   []*Kind
	byGVR    map[schema.GroupVersionResource]*Kind
	byGVK    map[schema.GroupVersionKind]*Kind
	byPrefix map[string]*Kind
}

// customs finds definitions by the plural and by the kind of their rows, and goes
// through them by group and plural.
type customs struct {
	copying          sync.Mutex // a copy writes a mark of ownership into its source
	byPlural, byKind *btree.BTreeG[entry]
	byAge            *btree.BTreeG[born]
}

// born says in which table a root came.
type born struct {
	age  int64
	root *Kind
}

// entry is a definition under its group and a name.
type entry struct {
	group, name string
	def         *Definition
}

func entries() *btree.BTreeG[entry] {
	return btree.NewBTreeGOptions(func(a, b entry) bool {
		if a.group != b.group {
			return a.group < b.group
		}
		return a.name < b.name
	}, btree.Options{NoLocks: true})
}

func ages() *btree.BTreeG[born] {
	return btree.NewBTreeGOptions(func(a, b born) bool {
		switch {
		case a.age != b.age:
			return a.age < b.age
		case a.root == nil || b.root == nil:
			return a.root == nil && b.root != nil
		case a.root.Group != b.root.Group:
			return a.root.Group < b.root.Group
		}
		return a.root.Plural < b.root.Plural
	}, btree.Options{NoLocks: true})
}

func find(t *btree.BTreeG[entry], group, name string) *Definition {
	e, _ := t.Get(entry{group: group, name: name})
	return e.def
}

// NewTable indexes rows; two rows with one route are a programming error.
func NewTable(rows ...*Kind) *Table {
	x := &index{byGVR: make(map[schema.GroupVersionResource]*Kind, len(rows)), byGVK: make(map[schema.GroupVersionKind]*Kind, len(rows)),
		byPrefix: make(map[string]*Kind, len(rows))}
	for _, k := range rows {
		if !k.Hidden {
			if x.byGVR[k.GVR()] != nil {
				panic("kind: two rows for " + k.GVR().String())
			}
			x.byGVR[k.GVR()], x.byGVK[k.GVK()] = k, k
			x.rows = append(x.rows, k)
		}
		if k.Stored == nil && !k.Virtual {
			x.byPrefix[k.Prefix] = k
			x.stored = append(x.stored, k)
		}
	}
	return &Table{builtIn: x}
}

// With is t without the definitions that have the roots gone, and with those in
// come; one that comes takes the place of what was there under its group and
// plural. Two definitions of a group never share a plural or a kind: whoever makes
// definitions sees to that.
func (t *Table) With(come []Definition, gone ...*Kind) *Table {
	if len(come) == 0 && len(gone) == 0 {
		return t
	}
	next, age := &customs{}, t.age+1
	if t.custom == nil {
		next.byPlural, next.byKind, next.byAge = entries(), entries(), ages()
	} else {
		t.custom.copying.Lock()
		next.byPlural, next.byKind, next.byAge = t.custom.byPlural.Copy(), t.custom.byKind.Copy(), t.custom.byAge.Copy()
		t.custom.copying.Unlock()
	}
	for _, root := range gone {
		if d := find(next.byPlural, root.Group, root.Plural); d != nil && d.Root == root {
			next.drop(d)
		}
	}
	for _, d := range come {
		d.born = age
		if old := find(next.byPlural, d.Root.Group, d.Root.Plural); old != nil {
			if old.Root == d.Root {
				d.born = old.born
			}
			next.drop(old)
		}
		next.byAge.Set(born{d.born, d.Root})
		next.byPlural.Set(entry{d.Root.Group, d.Root.Plural, &d})
		for _, k := range d.Rows {
			next.byKind.Set(entry{k.Group, k.Kind, &d})
		}
	}
	if next.byPlural.Len() == 0 {
		next = nil
	}
	return &Table{builtIn: t.builtIn, custom: next, age: age}
}

// Came are the roots of t that came at run time after the table old, which t was
// made from in one or more steps.
func (t *Table) Came(old *Table) (roots []*Kind) {
	if t != nil && t.custom != nil {
		from := born{}
		if old != nil {
			from.age = old.age + 1
		}
		t.custom.byAge.Ascend(from, func(b born) bool {
			roots = append(roots, b.root)
			return true
		})
	}
	return roots
}

func (c *customs) drop(d *Definition) {
	c.byPlural.Delete(entry{group: d.Root.Group, name: d.Root.Plural})
	c.byAge.Delete(born{d.born, d.Root})
	for _, k := range d.Rows {
		if find(c.byKind, k.Group, k.Kind) == d {
			c.byKind.Delete(entry{group: k.Group, name: k.Kind})
		}
	}
}

func (t *Table) list() {
	t.lists.Do(func() {
		a := &t.all
		if t.custom == nil {
			a.rows, a.roots = t.builtIn.rows, t.builtIn.stored
			return
		}
		a.roots = slices.Clone(t.builtIn.stored)
		t.custom.byPlural.Scan(func(e entry) bool {
			a.roots = append(a.roots, e.def.Root)
			a.served = append(a.served, e.def.Rows...)
			return true
		})
		a.rows = slices.Concat(t.builtIn.rows, a.served)
	})
}

// Rows that are served, in the order in which groups are to be shown in
// discovery: built-in ones, then custom ones by group and plural.
func (t *Table) Rows() []*Kind {
	if t == nil {
		return nil
	}
	t.list()
	return t.all.rows
}

// BuiltIn are the served rows that came with the program, Custom those that came
// at run time.
func (t *Table) BuiltIn() []*Kind {
	if t == nil {
		return nil
	}
	return t.builtIn.rows
}

// Custom are the served rows that came at run time.
func (t *Table) Custom() []*Kind {
	if t == nil {
		return nil
	}
	t.list()
	return t.all.served
}

// Group yields the definitions of a group, by plural.
func (t *Table) Group(group string) func(yield func(*Definition) bool) {
	return func(yield func(*Definition) bool) {
		if t != nil && t.custom != nil {
			t.custom.byPlural.Ascend(entry{group: group}, func(e entry) bool { return e.group == group && yield(e.def) })
		}
	}
}

// GroupVersion gives the served rows of a group version, built-in ones first.
func (t *Table) GroupVersion(group, version string) (rows []*Kind) {
	for _, k := range t.BuiltIn() {
		if k.Group == group && k.Version == version {
			rows = append(rows, k)
		}
	}
	for d := range t.Group(group) {
		if k := d.version(version); k != nil {
			rows = append(rows, k)
		}
	}
	return rows
}

// Definition of a root that came at run time, nil if the table has none under this
// group and plural.
func (t *Table) Definition(group, plural string) *Definition {
	if t == nil || t.custom == nil {
		return nil
	}
	return find(t.custom.byPlural, group, plural)
}

// Roots are the rows that objects are stored under, each once: what holds
// objects, also where the row itself is not served.
func (t *Table) Roots() []*Kind {
	if t == nil {
		return nil
	}
	t.list()
	return t.all.roots
}

// Has says whether objects of k can be stored: k's root is in the table.
func (t *Table) Has(k *Kind) bool {
	root := k.Root()
	return t.prefix(root.Prefix) == root
}

// prefix finds a root by the beginning of its keys; a custom one's is its group and
// plural.
func (t *Table) prefix(p string) *Kind {
	if t == nil {
		return nil
	}
	if k := t.builtIn.byPrefix[p]; k != nil {
		return k
	}
	if t.custom == nil {
		return nil
	}
	if group, plural, ok := strings.Cut(p, "/"); ok {
		if d := find(t.custom.byPlural, group, plural); d != nil {
			return d.Root
		}
	}
	return nil
}

// ByResource looks a served row up; nil when there is none.
func (t *Table) ByResource(gvr schema.GroupVersionResource) *Kind {
	if t == nil {
		return nil
	}
	if k := t.builtIn.byGVR[gvr]; k != nil {
		return k
	}
	if t.custom == nil {
		return nil
	}
	return find(t.custom.byPlural, gvr.Group, gvr.Resource).version(gvr.Version)
}

// ByKind looks a served row up; nil when there is none.
func (t *Table) ByKind(gvk schema.GroupVersionKind) *Kind {
	if t == nil {
		return nil
	}
	if k := t.builtIn.byGVK[gvk]; k != nil {
		return k
	}
	if t.custom == nil {
		return nil
	}
	return find(t.custom.byKind, gvk.Group, gvk.Kind).version(gvk.Version)
}

func (d *Definition) version(v string) *Kind {
	if d != nil {
		for _, k := range d.Rows {
			if k.Version == v {
				return k
			}
		}
	}
	return nil
}

// ByStoreKey finds the stored row of a key, and the object's namespace and name.
func (t *Table) ByStoreKey(key string) (k *Kind, namespace, name string) {
	rest, ok := strings.CutPrefix(key, "/registry/")
	if !ok {
		return nil, "", ""
	}
	for i := 0; i < len(rest); i++ {
		if rest[i] != '/' {
			continue
		}
		if k := t.prefix(rest[:i]); k != nil {
			tail := rest[i+1:]
			if k.Scope == Namespaced {
				ns, name, ok := strings.Cut(tail, "/")
				if !ok {
					return nil, "", ""
				}
				return k, ns, name
			}
			return k, "", tail
		}
	}
	return nil, "", ""
}
