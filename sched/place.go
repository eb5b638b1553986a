package sched

import (
	"fmt"
	"hash/fnv"
	"math"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"proa.dev/kind"
	"proa.dev/view"
)

// Decision about one pod. Node is empty when none fits; then Message says why, as
// upstream words it, and resolvable rows are those where evicting others may help.
type Decision struct {
	Node       string
	Score      int64
	Considered int // nodes
	Feasible   int
	Message    string

	resolvable []int
}

// class is what nodes say to a class of pods, whatever they use.
type class struct {
	gen    int64
	reason []string // by row; "" fits
	taints []int64  // untolerated PreferNoSchedule taints
	likes  []int64  // weight of preferred node affinity
	anyT   bool
	anyL   bool
}

// Reasons, worded as upstream's.
const (
	whyGone          = "node(s) are not registered"
	whyUnschedulable = "node(s) were unschedulable"
	whyAffinity      = "node(s) didn't match Pod's node affinity/selector"
	whyName          = "node(s) didn't match the requested node name"
	whyPods          = "Too many pods"
	whyPorts         = "node(s) didn't have free ports for the requested pod ports"
	whyPodAffinity   = "node(s) didn't match pod affinity rules"
	whyAnti          = "node(s) didn't match pod anti-affinity rules"
	whyExistingAnti  = "node(s) didn't satisfy existing pods anti-affinity rules"
	whySpread        = "node(s) didn't match pod topology spread constraints"
	whySpreadLabel   = "node(s) didn't match pod topology spread constraints (missing required label)"
	whyVolume        = "node(s) had volume node affinity conflict"
)

func (t *Table) class(p *Pod) *class {
	c := t.classes[p.classKey]
	if c != nil && c.gen == t.static {
		return c
	}
	if c == nil {
		if len(t.classes) > 1024 {
			clear(t.classes)
		}
		c = &class{}
		t.classes[p.classKey] = c
	}
	*c = class{gen: t.static, reason: make([]string, len(t.nodes)), taints: make([]int64, len(t.nodes)), likes: make([]int64, len(t.nodes))}
	required := nodeaffinity.GetRequiredNodeAffinity(p.Object)
	var preferred *nodeaffinity.PreferredSchedulingTerms
	if a := p.Object.Spec.Affinity; a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	for row, n := range t.nodes {
		if n == nil || n.obj == nil {
			c.reason[row] = whyGone
			continue
		}
		if n.obj.Spec.Unschedulable && !tolerated(p.Object.Spec.Tolerations, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
			c.reason[row] = whyUnschedulable
			continue
		}
		for _, taint := range n.obj.Spec.Taints {
			if tolerated(p.Object.Spec.Tolerations, taint) {
				continue
			}
			if taint.Effect == corev1.TaintEffectPreferNoSchedule {
				c.taints[row]++
				c.anyT = true
				continue
			}
			c.reason[row] = fmt.Sprintf("node(s) had untolerated taint {%s: %s}", taint.Key, taint.Value)
			break
		}
		if c.reason[row] != "" {
			continue
		}
		if ok, err := required.Match(n.obj); err != nil || !ok {
			c.reason[row] = whyAffinity
			continue
		}
		if preferred != nil {
			c.likes[row] = preferred.Score(n.obj)
			c.anyL = c.anyL || c.likes[row] != 0
		}
	}
	return c
}

func tolerated(list []corev1.Toleration, taint corev1.Taint) bool {
	for _, t := range list {
		if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
			continue
		}
		switch t.Operator {
		case "", corev1.TolerationOpEqual:
			if t.Value == taint.Value {
				return true
			}
		case corev1.TolerationOpExists:
			return true
		}
	}
	return false
}

// Place finds a node for a pod; it changes nothing but caches.
func (t *Table) Place(p *Pod) Decision {
	d := Decision{}
	if why := t.waits(p.Object); why != "" {
		d.Message = why
		return d
	}
	f := t.filters(p)
	var fits []int
	reasons := map[string]int{}
	for row, n := range t.nodes {
		if n == nil || n.obj == nil {
			continue
		}
		d.Considered++
		why, resolvable := f.check(row)
		if why == "" {
			fits = append(fits, row)
			continue
		}
		for _, w := range strings.Split(why, "\x00") {
			reasons[w]++
		}
		if resolvable {
			d.resolvable = append(d.resolvable, row)
		}
	}
	d.Feasible = len(fits)
	if len(fits) == 0 {
		d.Message = message(d.Considered, reasons)
		return d
	}
	row, score := t.best(p, f, fits)
	d.Node, d.Score = t.nodes[row].name, score
	return d
}

func message(nodes int, reasons map[string]int) string {
	if nodes == 0 {
		return "no nodes available to schedule pods"
	}
	parts := make([]string, 0, len(reasons))
	for why, n := range reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, why))
	}
	sort.Strings(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", nodes, strings.Join(parts, ", "))
}

// waits says what must be there before any node is looked at: the claims of the
// pod, bound.
func (t *Table) waits(o *corev1.Pod) string {
	for i := range o.Spec.Volumes {
		v := &o.Spec.Volumes[i]
		name := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			name = o.Name + "-" + v.Name
		default:
			continue
		}
		pvc := view.Get[*corev1.PersistentVolumeClaim](t.snapshot, kind.PersistentVolumeClaim, o.Namespace, name)
		switch {
		case pvc == nil:
			return fmt.Sprintf("persistentvolumeclaim %q not found", name)
		case pvc.DeletionTimestamp != nil:
			return fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
		case pvc.Spec.VolumeName == "":
			return "pod has unbound immediate PersistentVolumeClaims"
		}
	}
	return ""
}

// filters are a pod's conditions, prepared for one pass over the rows.
type filters struct {
	t     *Table
	p     *Pod
	class *class
	topo  map[string]*topology
	vol   []*nodeaffinity.NodeSelector // of the pod's volumes

	affinity []affinityFilter
	anti     []antiFilter // own terms
	existing []antiFilter // those of placed pods
	spread   []spreadFilter
}

type affinityFilter struct {
	topo   *topology
	counts []int64
	first  bool // no pod matches yet and the pod matches itself: any node with the label
}

type antiFilter struct {
	topo   *topology
	counts []int64
}

type spreadFilter struct {
	*spread
	topo   *topology
	counts []int64
	least  int64
	self   int64
}

func (t *Table) filters(p *Pod) *filters {
	f := &filters{t: t, p: p, class: t.class(p), topo: map[string]*topology{}}
	selfAll := true
	var sums int64
	for i := range p.affinity {
		m := &p.affinity[i]
		c := t.counts(m, false)
		tp := t.topology(m.key, f.topo)
		a := affinityFilter{topo: tp, counts: byValue(c.rows, tp)}
		for _, n := range a.counts {
			sums += n
		}
		selfAll = selfAll && t.matches(m, p.Object)
		f.affinity = append(f.affinity, a)
	}
	if sums == 0 && selfAll {
		for i := range f.affinity {
			f.affinity[i].first = true
		}
	}
	for i := range p.antiAffinity {
		m := &p.antiAffinity[i]
		tp := t.topology(m.key, f.topo)
		f.anti = append(f.anti, antiFilter{tp, byValue(t.counts(m, false).rows, tp)})
	}
	for _, a := range t.anti {
		if t.matches(&a.term, p.Object) {
			tp := t.topology(a.key, f.topo)
			f.existing = append(f.existing, antiFilter{tp, byValue(a.rows, tp)})
		}
	}
	for i := range p.spread {
		if s := &p.spread[i]; s.hard {
			f.spread = append(f.spread, t.spreadFilter(f, s))
		}
	}
	for i := range p.Object.Spec.Volumes {
		if c := p.Object.Spec.Volumes[i].PersistentVolumeClaim; c != nil {
			pvc := view.Get[*corev1.PersistentVolumeClaim](t.snapshot, kind.PersistentVolumeClaim, p.Object.Namespace, c.ClaimName)
			if pvc == nil {
				continue
			}
			pv := view.Get[*corev1.PersistentVolume](t.snapshot, kind.PersistentVolume, "", pvc.Spec.VolumeName)
			if pv != nil && pv.Spec.NodeAffinity != nil && pv.Spec.NodeAffinity.Required != nil {
				if s, err := nodeaffinity.NewNodeSelector(pv.Spec.NodeAffinity.Required); err == nil {
					f.vol = append(f.vol, s)
				}
			}
		}
	}
	return f
}

// counted says whether a node's pods count for a spread constraint.
func (f *filters) counted(s *spread, row int) bool {
	n := f.t.nodes[row]
	if n == nil || n.obj == nil {
		return false
	}
	switch why := f.class.reason[row]; {
	case why == whyAffinity:
		return !s.honorAffinity
	case why != "":
		return !s.honorTaints
	}
	return true
}

func (t *Table) spreadFilter(f *filters, s *spread) spreadFilter {
	tp := t.topology(s.key, f.topo)
	c := t.counts(&s.term, true)
	out := spreadFilter{spread: s, topo: tp, counts: make([]int64, tp.size), least: math.MaxInt64}
	exists := make([]bool, tp.size)
	for row, id := range tp.ids {
		if id >= 0 && f.counted(s, row) {
			exists[id] = true
			out.counts[id] += int64(c.rows[row])
		}
	}
	var domains int64
	for id, ok := range exists {
		if ok {
			domains++
			out.least = min(out.least, out.counts[id])
		}
	}
	if domains < s.minDomains || domains == 0 {
		out.least = 0
	}
	if t.matches(&s.term, f.p.Object) {
		out.self = 1
	}
	return out
}

// check says why a node does not fit ("" when it does; several resource reasons
// are joined by NUL), and whether evicting pods could help.
func (f *filters) check(row int) (why string, resolvable bool) {
	t, p := f.t, f.p
	if want := p.Object.Spec.NodeName; want != "" && t.nodes[row].name != want {
		return whyName, false
	}
	if why := f.class.reason[row]; why != "" {
		return why, false
	}
	for _, v := range f.vol {
		if !v.Match(t.nodes[row].obj) {
			return whyVolume, false
		}
	}
	if why := t.resources(row, p); why != "" {
		return why, t.everFits(row, p)
	}
	if t.portTaken(row, p) {
		return whyPorts, true
	}
	for i := range f.spread {
		s := &f.spread[i]
		id := s.topo.ids[row]
		if id < 0 {
			return whySpreadLabel, false
		}
		if s.counts[id]+s.self-s.least > s.maxSkew {
			return whySpread, true
		}
	}
	for i := range f.affinity {
		a := &f.affinity[i]
		id := a.topo.ids[row]
		if id < 0 || !a.first && a.counts[id] == 0 {
			return whyPodAffinity, false
		}
	}
	for i := range f.anti {
		if id := f.anti[i].topo.ids[row]; id >= 0 && f.anti[i].counts[id] > 0 {
			return whyAnti, true
		}
	}
	for i := range f.existing {
		if id := f.existing[i].topo.ids[row]; id >= 0 && f.existing[i].counts[id] > 0 {
			return whyExistingAnti, true
		}
	}
	return "", false
}

// resources says what a node lacks.
func (t *Table) resources(row int, p *Pod) string {
	var lacks []string
	if t.usedPods[row]+1 > t.pods[row] {
		lacks = append(lacks, whyPods)
	}
	if p.cpu > 0 && p.cpu > t.cpu[row]-t.usedCPU[row] {
		lacks = append(lacks, "Insufficient cpu")
	}
	if p.mem > 0 && p.mem > t.mem[row]-t.usedMem[row] {
		lacks = append(lacks, "Insufficient memory")
	}
	if p.disk > 0 && p.disk > t.disk[row]-t.usedDisk[row] {
		lacks = append(lacks, "Insufficient ephemeral-storage")
	}
	for name, n := range p.extended {
		if c := t.extend(name); n > 0 && n > c.have[row]-c.used[row] {
			lacks = append(lacks, "Insufficient "+string(name))
		}
	}
	if lacks == nil {
		return ""
	}
	sort.Strings(lacks)
	return strings.Join(lacks, "\x00")
}

// everFits: an empty node of this size would do.
func (t *Table) everFits(row int, p *Pod) bool {
	if t.pods[row] < 1 || p.cpu > t.cpu[row] || p.mem > t.mem[row] || p.disk > t.disk[row] {
		return false
	}
	for name, n := range p.extended {
		if n > t.extend(name).have[row] {
			return false
		}
	}
	return true
}

func (t *Table) portTaken(row int, p *Pod) bool {
	for _, q := range p.ports {
		for have := range t.nodes[row].ports {
			if have.n == q.n && have.proto == q.proto && (have.ip == q.ip || have.ip == "0.0.0.0" || q.ip == "0.0.0.0") {
				return true
			}
		}
	}
	return false
}

// tie breaks equal scores: a hash of the pod and the row.
func tie(p *Pod, row int) uint64 {
	h := fnv.New64a()
	h.Write([]byte(p.Object.UID))
	h.Write([]byte{byte(row), byte(row >> 8), byte(row >> 16), byte(row >> 24)})
	return h.Sum64()
}
