package sched

import (
	"math"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// Weights of the scores, as in upstream's default profile; each is 0 to 100, in
// thousandths, so that one small pod more on a large node is seen.
const (
	weightTaints  = 3
	weightNode    = 2
	weightSpread  = 2
	weightPods    = 2
	weightFit     = 1
	weightBalance = 1
	weightImages  = 1
	maxScore      = 100 * unit
	unit          = 1000
	imageLow      = 23 << 20
	imageHighPerC = 1000 << 20
	hostname      = corev1.LabelHostname
	zone          = corev1.LabelTopologyZone
)

// best of the rows that fit.
func (t *Table) best(p *Pod, f *filters, sh *shape, fits []int) (row int, score int64) {
	if len(fits) == 1 {
		return fits[0], 0
	}
	total := grown(&t.scratch.total, len(fits))
	for i, row := range fits {
		total[i] = sh.base[row]
	}
	if f.class.anyT {
		addScaled(total, pickRows(f.class.taints, fits), weightTaints, true)
	}
	if f.class.anyL {
		addScaled(total, pickRows(f.class.likes, fits), weightNode, false)
	}
	t.scorePods(p, fits, total)
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

// grown is *s with n zeros, in the same memory if it is enough.
func grown[T any](s *[]T, n int) []T {
	if cap(*s) < n {
		*s = make([]T, n+n/4)
	}
	out := (*s)[:n]
	clear(out)
	return out
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

// imagesOf are the pod's images as nodes have them, nil for one that none has.
func (t *Table) imagesOf(p *Pod) []*imageUse {
	if len(t.images) == 0 {
		return nil
	}
	var out []*imageUse
	for _, list := range [][]corev1.Container{p.Object.Spec.InitContainers, p.Object.Spec.Containers} {
		for i := range list {
			out = append(out, t.images[normalized(list[i].Image)])
		}
	}
	return out
}

// imageScore prefers nodes that have the pod's images, more so images that many
// nodes have, lest all pods of one image pile up where it first was.
func (t *Table) imageScore(images []*imageUse, row int) int64 {
	if len(images) == 0 {
		return 0
	}
	var sum int64
	for _, u := range images {
		if u != nil && u.nodes[row] {
			sum += u.size * int64(len(u.nodes)) / int64(t.present)
		}
	}
	high := int64(imageHighPerC) * int64(len(images))
	return maxScore * (min(max(sum, imageLow), high) - imageLow) / (high - imageLow)
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
func (t *Table) scorePods(p *Pod, fits []int, total []int64) {
	var sum []int64
	add := func(c *tally, weight int64) {
		values, tp := t.byValue(c)
		if sum == nil {
			sum = grown(&t.scratch.sum, len(fits))
		}
		for i, row := range fits {
			if id := tp.ids[row]; id >= 0 {
				sum[i] += weight * values[id]
			}
		}
	}
	own := func(list []weighted, sign int64) {
		for i := range list {
			if c := t.counts(&list[i].term, false); c.pods > 0 {
				add(c, sign*list[i].weight)
			}
		}
	}
	own(p.prefer, 1)
	own(p.preferNot, -1)
	t.likes.each(p.Object, func(l *tally) {
		if t.matches(&l.term, p.Object) {
			add(l, 1)
		}
	})
	if sum == nil {
		return
	}
	low, high := slices.Min(sum), slices.Max(sum)
	if high == low {
		return
	}
	for i, s := range sum {
		total[i] += weightPods * (maxScore * (s - low) / (high - low))
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
	sum := grown(&t.scratch.spread, len(fits))
	skip := grown(&t.scratch.skip, len(fits))
	for i := range soft {
		s := &soft[i]
		sf := t.spreadFilter(f, s, p.spread)
		weight := math.Log(float64(t.domains(sf.topo, fits) + 2))
		for j, row := range fits {
			id := sf.topo.ids[row]
			if id < 0 {
				skip[j] = skip[j] || len(p.spread) > 0
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
	scale := maxScore / high
	for j, v := range sum {
		switch {
		case skip[j]:
		case high == 0:
			total[j] += weightSpread * maxScore
		default:
			total[j] += weightSpread * int64((high+low-v)*scale)
		}
	}
}

// domains counts the values that rows have in a topology.
func (t *Table) domains(tp *topology, rows []int) int {
	if len(rows) == t.present || tp.size > 1000 {
		return min(tp.size, len(rows))
	}
	seen := make([]bool, tp.size)
	n := 0
	for _, row := range rows {
		if id := tp.ids[row]; id >= 0 && !seen[id] {
			seen[id] = true
			n++
		}
	}
	return n
}

// siblings are the usual constraints of one controller's pods.
type siblings struct {
	owner  kind.Object
	spread []spread
}

func (t *Table) usualSpread(p *Pod) []spread {
	ref := metav1.GetControllerOfNoCopy(p.Object)
	if ref == nil {
		return nil
	}
	owner, sel := t.controller(p.Object.Namespace, ref)
	if owner == nil || sel == nil {
		return nil
	}
	known := t.siblings[ref.UID]
	if known != nil && known.owner == owner {
		return known.spread
	}
	one := func(key string, skew int64) spread {
		return spread{term: compile(p.Object, key, sel, nil, nil), maxSkew: skew, minDomains: 1, honorAffinity: true}
	}
	fresh := &siblings{owner, []spread{one(hostname, 3), one(zone, 5)}}
	if known != nil && known.spread[0].id == fresh.spread[0].id {
		fresh.spread = known.spread
	} else if len(t.siblings) > 4096 {
		clear(t.siblings)
	}
	t.siblings[ref.UID] = fresh
	return fresh.spread
}

// controller is the ReplicaSet, ReplicationController or StatefulSet that owns a
// pod, and its selector; nil for others, whose pods are not spread.
func (t *Table) controller(namespace string, ref *metav1.OwnerReference) (kind.Object, *metav1.LabelSelector) {
	switch ref.Kind {
	case "ReplicaSet":
		if o := view.Get[*appsv1.ReplicaSet](t.snapshot, kind.ReplicaSet, namespace, ref.Name); o != nil && o.UID == ref.UID {
			return o, o.Spec.Selector
		}
	case "StatefulSet":
		if o := view.Get[*appsv1.StatefulSet](t.snapshot, kind.StatefulSet, namespace, ref.Name); o != nil && o.UID == ref.UID {
			return o, o.Spec.Selector
		}
	case "ReplicationController":
		if o := view.Get[*corev1.ReplicationController](t.snapshot, kind.ReplicationController, namespace, ref.Name); o != nil && o.UID == ref.UID {
			return o, &metav1.LabelSelector{MatchLabels: o.Spec.Selector}
		}
	}
	return nil, nil
}
