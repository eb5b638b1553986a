package sched

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Weights of the scores, as in upstream's default profile; each is 0 to 100.
const (
	weightTaints  = 3
	weightNode    = 2
	weightSpread  = 2
	weightPods    = 2
	weightFit     = 1
	weightBalance = 1
	weightImages  = 1
	maxScore      = 100
	imageLow      = 23 << 20
	imageHighPerC = 1000 << 20
	hostname      = "kubernetes.io/hostname"
)

// best of the rows that fit.
func (t *Table) best(p *Pod, f *filters, fits []int) (row int, score int64) {
	if len(fits) == 1 {
		return fits[0], 0
	}
	total := make([]int64, len(fits))
	for i, row := range fits {
		total[i] = weightFit*t.least(row, p) + weightBalance*t.balance(row, p)
	}
	if f.class.anyT {
		addScaled(total, pickRows(f.class.taints, fits), weightTaints, true)
	}
	if f.class.anyL {
		addScaled(total, pickRows(f.class.likes, fits), weightNode, false)
	}
	t.scoreImages(p, fits, total)
	t.scorePods(p, f, fits, total)
	t.scoreSpread(p, f, fits, total)
	bestAt, bestTie := 0, tie(p, fits[0])
	for i := 1; i < len(fits); i++ {
		if total[i] < total[bestAt] {
			continue
		}
		if h := tie(p, fits[i]); total[i] > total[bestAt] || h > bestTie {
			bestAt, bestTie = i, h
		}
	}
	return fits[bestAt], total[bestAt]
}

func pickRows(column []int64, rows []int) []int64 {
	out := make([]int64, len(rows))
	for i, r := range rows {
		out[i] = column[r]
	}
	return out
}

// addScaled scales values to 0–100 by their largest and adds them; reversed, the
// smallest value gets the most.
func addScaled(total, values []int64, weight int64, reverse bool) {
	var top int64
	for _, v := range values {
		top = max(top, v)
	}
	for i, v := range values {
		var s int64
		if top > 0 {
			s = v * maxScore / top
		}
		if reverse {
			s = maxScore - s
		}
		total[i] += weight * s
	}
}

// least prefers nodes with more left of CPU and memory.
func (t *Table) least(row int, p *Pod) int64 {
	free := func(have, used int64) int64 {
		if have == 0 || used > have {
			return 0
		}
		return (have - used) * maxScore / have
	}
	return (free(t.cpu[row], t.seenCPU[row]+p.seenCPU) + free(t.mem[row], t.seenMem[row]+p.seenMem)) / 2
}

// balance prefers nodes where CPU and memory are used alike.
func (t *Table) balance(row int, p *Pod) int64 {
	if t.cpu[row] == 0 || t.mem[row] == 0 {
		return 0
	}
	c := min(float64(t.usedCPU[row]+p.cpu)/float64(t.cpu[row]), 1)
	m := min(float64(t.usedMem[row]+p.mem)/float64(t.mem[row]), 1)
	return int64((1 - math.Abs(c-m)/2) * maxScore)
}

// scoreImages prefers nodes that have the pod's images, more so images that many
// nodes have, lest all pods of one image pile up where it first was.
func (t *Table) scoreImages(p *Pod, fits []int, total []int64) {
	if len(t.images) == 0 {
		return
	}
	n := int64(len(t.rows))
	sum := make([]int64, len(fits))
	count := int64(0)
	each := func(c *corev1.Container) {
		count++
		u := t.images[normalized(c.Image)]
		if u == nil {
			return
		}
		share := u.size * int64(len(u.nodes)) / n
		for i, row := range fits {
			if u.nodes[row] {
				sum[i] += share
			}
		}
	}
	for i := range p.Object.Spec.InitContainers {
		each(&p.Object.Spec.InitContainers[i])
	}
	for i := range p.Object.Spec.Containers {
		each(&p.Object.Spec.Containers[i])
	}
	high := int64(imageHighPerC) * count
	for i, s := range sum {
		s = min(max(s, imageLow), high)
		total[i] += weightImages * maxScore * (s - imageLow) / (high - imageLow)
	}
}

// normalized gives a name without a tag the tag latest, as nodes report it.
func normalized(name string) string {
	for i := len(name) - 1; i >= 0 && name[i] != '/'; i-- {
		if name[i] == ':' || name[i] == '@' {
			return name
		}
	}
	return name + ":latest"
}

// scorePods weighs preferred affinity: the pod's own terms against placed pods,
// and placed pods' terms against the pod.
func (t *Table) scorePods(p *Pod, f *filters, fits []int, total []int64) {
	var sum []int64
	add := func(tp *topology, values []int64, weight int64) {
		if sum == nil {
			sum = make([]int64, len(fits))
		}
		for i, row := range fits {
			if id := tp.ids[row]; id >= 0 {
				sum[i] += weight * values[id]
			}
		}
	}
	own := func(list []weighted, sign int64) {
		for i := range list {
			c := t.counts(&list[i].term, false)
			if c.total > 0 {
				tp := t.topology(list[i].key, f.topo)
				add(tp, byValue(c.rows, tp), sign*list[i].weight)
			}
		}
	}
	own(p.prefer, 1)
	own(p.preferNot, -1)
	for _, l := range t.likes {
		if t.matches(&l.term, p.Object) {
			tp := t.topology(l.key, f.topo)
			add(tp, byValue(l.rows, tp), 1)
		}
	}
	if sum == nil {
		return
	}
	low, high := sum[0], sum[0]
	for _, s := range sum {
		low, high = min(low, s), max(high, s)
	}
	if high == low {
		return
	}
	for i, s := range sum {
		total[i] += weightPods * maxScore * (s - low) / (high - low)
	}
}

// scoreSpread prefers domains with fewer matching pods. A pod without constraints
// of its own is spread softly over hosts and zones with its siblings of the same
// controller.
func (t *Table) scoreSpread(p *Pod, f *filters, fits []int, total []int64) {
	var soft []spread
	for i := range p.spread {
		if !p.spread[i].hard {
			soft = append(soft, p.spread[i])
		}
	}
	if len(p.spread) == 0 {
		soft = t.usualSpread(p)
	}
	if len(soft) == 0 {
		return
	}
	sum := make([]float64, len(fits))
	skip := make([]bool, len(fits))
	for i := range soft {
		s := &soft[i]
		sf := t.spreadFilter(f, s)
		weight := math.Log(float64(sf.topo.size + 2))
		for j, row := range fits {
			id := sf.topo.ids[row]
			if id < 0 {
				skip[j] = len(p.spread) > 0
				continue
			}
			sum[j] += float64(sf.counts[id])*weight + float64(s.maxSkew-1)
		}
	}
	low, high := math.MaxFloat64, 0.0
	for j, v := range sum {
		if !skip[j] {
			low, high = min(low, v), max(high, v)
		}
	}
	for j, v := range sum {
		switch {
		case skip[j]:
		case high == 0:
			total[j] += weightSpread * maxScore
		default:
			total[j] += weightSpread * int64(maxScore*(high+low-v)/high)
		}
	}
}

func (t *Table) usualSpread(p *Pod) []spread {
	sel := siblings(p.Object)
	if sel == nil {
		return nil
	}
	one := func(key string, skew int64) spread {
		return spread{term: compile(p.Object, key, sel, nil, nil), maxSkew: skew, minDomains: 1, honorAffinity: true}
	}
	return []spread{one(hostname, 3), one("topology.kubernetes.io/zone", 5)}
}

// siblings selects the pods of the same ReplicaSet, or nothing for a pod without
// a controller.
func siblings(o *corev1.Pod) *metav1.LabelSelector {
	if metav1.GetControllerOfNoCopy(o) == nil || len(o.Labels) == 0 {
		return nil
	}
	return &metav1.LabelSelector{MatchLabels: o.Labels}
}
