package sched

import (
	corev1 "k8s.io/api/core/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// topology numbers the values of one node label: ids[row] is the value's number,
// -1 where the node has none.
type topology struct {
	gen  int64
	ids  []int32
	size int
}

// counter counts the placed pods that a term means, by row.
type counter struct {
	term
	live  bool // leaves out pods that are being deleted (topology spread)
	rows  []int32
	total int64
}

// antiTerm is a required anti-affinity term of placed pods, by row.
type antiTerm struct {
	term
	rows  []int32
	total int64
}

// likeTerm is a preference of placed pods for (or against) what its term means;
// weights are summed by row.
type likeTerm struct {
	term
	rows  []int64
	total int64 // pods, to know when it can go
}

// maxCounters bounds the terms that are kept counted; past it all are dropped and
// counted anew when asked for.
const maxCounters = 512

// hardWeight is what a required affinity term of a placed pod counts as in scores
// of pods that it means.
const hardWeight = 1

func (t *Table) topology(key string, cache map[string]*topology) *topology {
	tp := cache[key]
	if tp != nil && tp.gen == t.static {
		return tp
	}
	tp = &topology{gen: t.static, ids: make([]int32, len(t.nodes))}
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
	cache[key] = tp
	return tp
}

// counts of a term by row; made on first use.
func (t *Table) counts(m *term, live bool) *counter {
	id := m.id
	if live {
		id += "\x00live"
	}
	c := t.counters[id]
	if c == nil {
		if len(t.counters) >= maxCounters {
			clear(t.counters)
		}
		c = &counter{term: *m, live: live, rows: make([]int32, len(t.nodes))}
		for row, n := range t.nodes {
			if n == nil {
				continue
			}
			for _, p := range n.pods {
				if c.means(t, p) {
					c.rows[row]++
					c.total++
				}
			}
		}
		t.counters[id] = c
	}
	for len(c.rows) < len(t.nodes) {
		c.rows = append(c.rows, 0)
	}
	return c
}

func (c *counter) means(t *Table, p *Pod) bool {
	return (!c.live || p.Object.DeletionTimestamp == nil) && t.matches(&c.term, p.Object)
}

// count adds or takes a placed pod in all counters.
func (t *Table) count(row int, p *Pod, sign int) {
	for _, c := range t.counters {
		if c.means(t, p) {
			for len(c.rows) <= row {
				c.rows = append(c.rows, 0)
			}
			c.rows[row] += int32(sign)
			c.total += int64(sign)
		}
	}
	for i := range p.antiAffinity {
		m := &p.antiAffinity[i]
		a := t.anti[m.id]
		if a == nil {
			a = &antiTerm{term: *m}
			t.anti[m.id] = a
		}
		for len(a.rows) <= row {
			a.rows = append(a.rows, 0)
		}
		a.rows[row] += int32(sign)
		if a.total += int64(sign); a.total == 0 {
			delete(t.anti, m.id)
		}
	}
	for i := range p.prefer {
		t.like(row, &p.prefer[i].term, p.prefer[i].weight, sign)
	}
	for i := range p.preferNot {
		t.like(row, &p.preferNot[i].term, -p.preferNot[i].weight, sign)
	}
	for i := range p.affinity {
		t.like(row, &p.affinity[i], hardWeight, sign)
	}
}

func (t *Table) like(row int, m *term, weight int64, sign int) {
	id := m.id
	if weight < 0 {
		id += "\x00not"
	}
	l := t.likes[id]
	if l == nil {
		l = &likeTerm{term: *m}
		t.likes[id] = l
	}
	for len(l.rows) <= row {
		l.rows = append(l.rows, 0)
	}
	l.rows[row] += weight * int64(sign)
	if l.total += int64(sign); l.total == 0 {
		delete(t.likes, id)
	}
}

// byValue sums rows over the values of a topology.
func byValue[N int32 | int64](rows []N, tp *topology) []int64 {
	out := make([]int64, tp.size)
	for row, n := range rows {
		if n != 0 && row < len(tp.ids) && tp.ids[row] >= 0 {
			out[tp.ids[row]] += int64(n)
		}
	}
	return out
}

func (t *Table) namespaceLabels(name string) map[string]string {
	if ns := view.Get[*corev1.Namespace](t.snapshot, kind.Namespace, "", name); ns != nil {
		return ns.Labels
	}
	return nil
}
