package sched

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// topology numbers the values of one node label: ids[row] is the value's number,
// -1 where the node has none.
type topology struct {
	key  string
	gen  int64
	ids  []int32
	size int
}

// topology of a label, as nodes are labelled now.
func (t *Table) topology(key string) *topology {
	tp := t.topologies[key]
	if tp != nil && tp.gen == t.static {
		return tp
	}
	if tp == nil && len(t.topologies) > 256 {
		clear(t.topologies)
	}
	tp = &topology{key: key, gen: t.static, ids: make([]int32, len(t.nodes))}
	numbers := map[string]int32{}
	for row, n := range t.nodes {
		tp.ids[row] = -1
		if n == nil || n.obj == nil {
			continue
		}
		v, ok := n.obj.Labels[key]
		if !ok {
			continue
		}
		id, ok := numbers[v]
		if !ok {
			id = int32(len(numbers))
			numbers[v] = id
		}
		tp.ids[row] = id
	}
	tp.size = len(numbers)
	t.topologies[key] = tp
	return tp
}

// tally sums something about placed pods by row, and by the values of its term's
// topology: the pods that the term means (counters), the pods that have the term
// (anti), or their weights (likes).
type tally struct {
	term
	id     string
	live   bool // leaves out pods that are being deleted (topology spread)
	rows   []int32
	pods   int64     // how many contribute
	values []int64   // by value of topo
	topo   *topology // nil: values are to be made
	used   int64
}

func (c *tally) add(row int, n, pods int64) {
	for len(c.rows) <= row {
		c.rows = append(c.rows, 0)
	}
	c.rows[row] += int32(n)
	c.pods += pods
	if c.topo == nil {
		return
	}
	if row >= len(c.topo.ids) {
		c.topo = nil
		return
	}
	if id := c.topo.ids[row]; id >= 0 {
		c.values[id] += n
	}
}

// byValue sums a tally over the values of its topology. The result is the
// tally's own.
func (t *Table) byValue(c *tally) ([]int64, *topology) {
	tp := t.topology(c.key)
	if c.topo == tp {
		return c.values, tp
	}
	c.topo = tp
	c.values = make([]int64, tp.size)
	for row, n := range c.rows {
		if n != 0 && row < len(tp.ids) && tp.ids[row] >= 0 {
			c.values[tp.ids[row]] += int64(n)
		}
	}
	return c.values, tp
}

// tallies is a set of tallies that finds those whose term may mean a pod without
// asking each: by namespace and one of the labels that the term wants.
type tallies struct {
	byID map[string]*tally
	hook map[string][]*tally
	buf  []byte
}

func newTallies() tallies { return tallies{byID: map[string]*tally{}, hook: map[string][]*tally{}} }

func (x *tallies) insert(c *tally) {
	x.byID[c.id] = c
	x.hook[c.hook] = append(x.hook[c.hook], c)
}

func (x *tallies) delete(c *tally) {
	delete(x.byID, c.id)
	list := x.hook[c.hook]
	if list = slices.DeleteFunc(list, func(o *tally) bool { return o == c }); len(list) == 0 {
		delete(x.hook, c.hook)
	} else {
		x.hook[c.hook] = list
	}
}

func (x *tallies) forget(which func(*tally) bool) {
	for _, c := range x.byID {
		if which(c) {
			x.delete(c)
		}
	}
}

// each calls f for the tallies whose term may mean o: all that do are among them.
func (x *tallies) each(o *corev1.Pod, f func(*tally)) {
	if len(x.byID) == 0 {
		return
	}
	for _, c := range x.hook[""] {
		f(c)
	}
	b := append(append(x.buf[:0], o.Namespace...), 0)
	for _, c := range x.hook[string(b)] {
		f(c)
	}
	n := len(b)
	for k, v := range o.Labels {
		b = append(append(append(b[:n], k...), '='), v...)
		for _, c := range x.hook[string(b)] {
			f(c)
		}
	}
	x.buf = b
}

// tallyBytes bounds what the counters take; those not used for longest go.
const tallyBytes = 64 << 20

func (t *Table) maxCounters() int { return max(tallyBytes/(12*(len(t.nodes)+64)), 256) }

// counts of the placed pods that a term means; made on first use.
func (t *Table) counts(m *term, live bool) *tally {
	id := m.id
	if live {
		id = m.liveID
	}
	t.used++
	if c := t.counters.byID[id]; c != nil {
		c.used = t.used
		return c
	}
	if limit := t.maxCounters(); len(t.counters.byID) >= limit {
		old := make([]int64, 0, limit)
		for _, c := range t.counters.byID {
			old = append(old, c.used)
		}
		slices.Sort(old)
		line := old[len(old)/4]
		t.counters.forget(func(c *tally) bool { return c.used <= line })
	}
	c := &tally{term: *m, id: id, live: live, rows: make([]int32, len(t.nodes)), used: t.used}
	for row, n := range t.nodes {
		if n == nil {
			continue
		}
		for _, p := range n.pods {
			if c.means(t, p) {
				c.add(row, 1, 1)
			}
		}
	}
	t.counters.insert(c)
	return c
}

func (c *tally) means(t *Table, p *Pod) bool {
	return (!c.live || p.Object.DeletionTimestamp == nil) && t.matches(&c.term, p.Object)
}

// hardWeight is what a required affinity term of a placed pod counts as in scores
// of pods that it means.
const hardWeight = 1

// count adds (sign 1) or takes away a pod on a row in all tallies.
func (t *Table) count(row int, p *Pod, sign int64) {
	t.counters.each(p.Object, func(c *tally) {
		if c.means(t, p) {
			c.add(row, sign, sign)
		}
	})
	for i := range p.antiAffinity {
		t.contribute(&t.anti, row, &p.antiAffinity[i], p.antiAffinity[i].id, 1, sign)
	}
	for i := range p.prefer {
		t.contribute(&t.likes, row, &p.prefer[i].term, p.prefer[i].id, p.prefer[i].weight, sign)
	}
	for i := range p.preferNot {
		t.contribute(&t.likes, row, &p.preferNot[i].term, p.preferNot[i].notID, -p.preferNot[i].weight, sign)
	}
	for i := range p.affinity {
		t.contribute(&t.likes, row, &p.affinity[i], p.affinity[i].id, hardWeight, sign)
	}
}

func (t *Table) contribute(x *tallies, row int, m *term, id string, weight, sign int64) {
	c := x.byID[id]
	if c == nil {
		c = &tally{term: *m, id: id}
		x.insert(c)
	}
	if c.add(row, sign*weight, sign); c.pods == 0 {
		x.delete(c)
	}
}
