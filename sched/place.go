package sched

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"proa.dev/kind"
	"proa.dev/view"
)

// Decision about one pod. Node is empty when none fits; then Message says why, as
// upstream words it.
type Decision struct {
	Node       string
	Score      int64
	Considered int // nodes
	Feasible   int
	Message    string

	resolvable []int // rows where evicting others may help
}

// class is what nodes say to a class of pods, whatever they use.
type class struct {
	gen     int64
	reason  []string // by row; "" fits
	tainted []bool   // NoSchedule or NoExecute, untolerated, or unschedulable
	off     []bool   // not what the pod's node affinity or selector wants
	taints  []int64  // untolerated PreferNoSchedule taints
	likes   []int64  // weight of preferred node affinity
	anyT    bool
	anyL    bool
	anyOff  bool
}

// shape is what nodes say to a shape of pods, other pods' labels aside; it
// follows the table's edits.
type shape struct {
	static, imaging int64
	seen            int64 // edits
	fits            []bool
	base            []int64 // score: fit, balance, images
	images          []*imageUse
}

// scratch space of one Place.
type scratch struct {
	rows   []int
	total  []int64
	sum    []int64
	spread []float64
	skip   []bool
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
	noNodes          = "no nodes available to schedule pods"
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
	n := len(t.nodes)
	*c = class{gen: t.static, reason: make([]string, n), tainted: make([]bool, n), off: make([]bool, n), taints: make([]int64, n), likes: make([]int64, n)}
	required := nodeaffinity.GetRequiredNodeAffinity(p.Object)
	var preferred *nodeaffinity.PreferredSchedulingTerms
	if a := p.Object.Spec.Affinity; a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	tolerations := p.Object.Spec.Tolerations
	for row, n := range t.nodes {
		if n == nil || n.obj == nil {
			c.reason[row] = whyGone
			continue
		}
		if n.obj.Spec.Unschedulable && !tolerated(tolerations, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
			c.reason[row], c.tainted[row] = whyUnschedulable, true
		}
		for _, taint := range n.obj.Spec.Taints {
			if tolerated(tolerations, taint) {
				continue
			}
			if taint.Effect == corev1.TaintEffectPreferNoSchedule {
				c.taints[row]++
				c.anyT = true
				continue
			}
			c.tainted[row] = true
			if c.reason[row] == "" {
				c.reason[row] = fmt.Sprintf("node(s) had untolerated taint {%s: %s}", taint.Key, taint.Value)
			}
		}
		if ok, err := required.Match(n.obj); err != nil || !ok {
			c.off[row], c.anyOff = true, true
			if c.reason[row] == "" {
				c.reason[row] = whyAffinity
			}
		}
		if c.reason[row] == "" && preferred != nil {
			c.likes[row] = preferred.Score(n.obj)
			c.anyL = c.anyL || c.likes[row] != 0
		}
	}
	return c
}

func tolerated(list []corev1.Toleration, taint corev1.Taint) bool {
	for i := range list {
		t := &list[i]
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

// shape of p, up to date.
func (t *Table) shape(p *Pod, c *class) *shape {
	s := t.shapes[p.shapeKey]
	if s == nil {
		if len(t.shapes) > 512 {
			clear(t.shapes)
		}
		s = &shape{static: -1}
		t.shapes[p.shapeKey] = s
	}
	end := t.edits.end()
	if s.static == t.static && s.imaging == t.imaging && s.seen >= t.edits.first && end-s.seen <= int64(len(t.nodes)) {
		for _, row := range t.edits.rows[s.seen-t.edits.first:] {
			t.shapeRow(s, c, p, int(row))
		}
		s.seen = end
		return s
	}
	s.static, s.imaging, s.seen = t.static, t.imaging, end
	if cap(s.fits) < len(t.nodes) {
		s.fits, s.base = make([]bool, len(t.nodes), cap(t.nodes)), make([]int64, len(t.nodes), cap(t.nodes))
	}
	s.fits, s.base = s.fits[:len(t.nodes)], s.base[:len(t.nodes)]
	s.images = t.imagesOf(p)
	for row := range t.nodes {
		t.shapeRow(s, c, p, row)
	}
	return s
}

func (t *Table) shapeRow(s *shape, c *class, p *Pod, row int) {
	if s.fits[row] = t.alone(c, p, row); s.fits[row] {
		s.base[row] = weightFit*t.least(row, p) + weightBalance*t.balance(row, p) + weightImages*t.imageScore(s.images, row)
	}
}

// alone says whether a node takes p as far as p's shape is concerned: what check
// says, but for volumes and terms.
func (t *Table) alone(c *class, p *Pod, row int) bool {
	if c.reason[row] != "" || t.usedPods[row] >= t.pods[row] ||
		p.cpu > 0 && p.cpu > t.cpu[row]-t.usedCPU[row] || p.mem > 0 && p.mem > t.mem[row]-t.usedMem[row] || p.disk > 0 && p.disk > t.disk[row]-t.usedDisk[row] {
		return false
	}
	for name, n := range p.extended {
		if x := t.extend(name); n > 0 && n > x.have[row]-x.used[row] {
			return false
		}
	}
	if want := p.Object.Spec.NodeName; want != "" && t.nodes[row].name != want {
		return false
	}
	return len(p.ports) == 0 || !t.portTaken(row, p)
}

// Place finds a node for a pod; it changes nothing but caches.
func (t *Table) Place(p *Pod) Decision {
	d := Decision{Considered: t.present}
	if t.present == 0 {
		d.Message = noNodes
		return d
	}
	if why := t.waits(p.Object); why != "" {
		d.Message = fmt.Sprintf("0/%d nodes are available: %s.", t.present, why)
		return d
	}
	f := t.filters(p)
	// The node whose pods were evicted for this one comes first.
	if name := p.Object.Status.NominatedNodeName; name != "" {
		if row, ok := t.rows[name]; ok && t.nodes[row].obj != nil {
			if why, _ := t.check(f, row); why == "" {
				d.Node, d.Feasible = name, 1
				return d
			}
		}
	}
	s := t.shape(p, f.class)
	fits := t.scratch.rows[:0]
	free := f.free()
	for row, ok := range s.fits {
		if ok && (free || f.together(row)) {
			fits = append(fits, row)
		}
	}
	t.scratch.rows = fits
	if len(t.nominated) > 0 {
		fits = slices.DeleteFunc(fits, func(row int) bool {
			if len(t.nodes[row].nominated) == 0 {
				return false
			}
			why, _ := t.check(f, row)
			return why != ""
		})
	}
	if d.Feasible = len(fits); len(fits) == 0 {
		t.explain(f, &d)
		return d
	}
	row, score := t.best(p, f, s, fits)
	d.Node, d.Score = t.nodes[row].name, score/unit
	return d
}

// explain says why no node fits.
func (t *Table) explain(f *filters, d *Decision) {
	reasons := map[string]int{}
	for row, n := range t.nodes {
		if n == nil || n.obj == nil {
			continue
		}
		why, resolvable := t.check(f, row)
		for _, w := range strings.Split(why, "\x00") {
			reasons[w]++
		}
		if resolvable {
			d.resolvable = append(d.resolvable, row)
		}
	}
	d.Message = message(t.present, reasons)
}

func message(nodes int, reasons map[string]int) string {
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
		name := claimOf(o, &o.Spec.Volumes[i])
		if name == "" {
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

// claimOf is the claim behind a volume, or "".
func claimOf(o *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return o.Name + "-" + v.Name
	}
	return ""
}

// filters are a pod's conditions, prepared for one pass over the rows.
type filters struct {
	t     *Table
	p     *Pod
	class *class
	vol   []*nodeaffinity.NodeSelector // of the pod's volumes

	affinity []byValue
	first    bool      // no pod matches the affinity yet and the pod itself does: any node with the labels
	anti     []byValue // own terms
	existing []byValue // those of placed pods
	spread   []spreadFilter
}

// byValue is a number for each value of a topology.
type byValue struct {
	topo   *topology
	counts []int64
}

type spreadFilter struct {
	*spread
	byValue
	domains int
	least   int64
	self    int64
}

// free: no volume or term says anything.
func (f *filters) free() bool {
	return len(f.vol)+len(f.affinity)+len(f.anti)+len(f.existing)+len(f.spread) == 0
}

func (t *Table) filters(p *Pod) *filters {
	f := &filters{t: t, p: p, class: t.class(p)}
	f.first = true
	for i := range p.affinity {
		m := &p.affinity[i]
		counts, tp := t.byValue(t.counts(m, false))
		for _, n := range counts {
			f.first = f.first && n == 0
		}
		f.first = f.first && t.matches(m, p.Object)
		f.affinity = append(f.affinity, byValue{tp, counts})
	}
	for i := range p.antiAffinity {
		counts, tp := t.byValue(t.counts(&p.antiAffinity[i], false))
		f.anti = append(f.anti, byValue{tp, counts})
	}
	t.anti.each(p.Object, func(a *tally) {
		if t.matches(&a.term, p.Object) {
			counts, tp := t.byValue(a)
			f.existing = append(f.existing, byValue{tp, counts})
		}
	})
	for i := range p.spread {
		if s := &p.spread[i]; s.hard {
			f.spread = append(f.spread, t.spreadFilter(f, s, p.spread))
		}
	}
	for i := range p.Object.Spec.Volumes {
		name := claimOf(p.Object, &p.Object.Spec.Volumes[i])
		if name == "" {
			continue
		}
		pvc := view.Get[*corev1.PersistentVolumeClaim](t.snapshot, kind.PersistentVolumeClaim, p.Object.Namespace, name)
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
	return f
}

// counted says whether a node's pods count for a spread constraint.
func (c *class) counted(s *spread, row int) bool {
	return !(s.honorAffinity && c.off[row]) && !(s.honorTaints && c.tainted[row])
}

// spreadFilter counts the pods that s means by domain. Only nodes that have the
// topology keys of all constraints of the same strength count (all: nil asks for
// no more than the key of s).
func (t *Table) spreadFilter(f *filters, s *spread, all []spread) spreadFilter {
	c := t.counts(&s.term, true)
	counts, tp := t.byValue(c)
	out := spreadFilter{spread: s, byValue: byValue{tp, counts}, domains: tp.size, least: math.MaxInt64}
	if t.matches(&s.term, f.p.Object) {
		out.self = 1
	}
	var others []*topology
	for i := range all {
		if o := &all[i]; o.hard == s.hard && o.key != s.key {
			others = append(others, t.topology(o.key))
		}
	}
	if s.honorAffinity && f.class.anyOff || s.honorTaints || others != nil {
		out.counts = make([]int64, tp.size)
		exists := make([]bool, tp.size)
		out.domains = 0
		for row, id := range tp.ids {
			if id < 0 || !f.class.counted(s, row) || slices.ContainsFunc(others, func(o *topology) bool { return o.ids[row] < 0 }) {
				continue
			}
			if !exists[id] {
				exists[id] = true
				out.domains++
			}
			if row < len(c.rows) {
				out.counts[id] += int64(c.rows[row])
			}
		}
		for id, ok := range exists {
			if ok {
				out.least = min(out.least, out.counts[id])
			}
		}
	} else if s.hard {
		for _, n := range counts {
			out.least = min(out.least, n)
		}
	}
	if int64(out.domains) < s.minDomains || out.domains == 0 {
		out.least = 0
	}
	return out
}

// together says whether volumes and terms let p onto a row; check says why not.
func (f *filters) together(row int) bool {
	for i := range f.spread {
		s := &f.spread[i]
		if id := s.topo.ids[row]; id < 0 || s.counts[id]+s.self-s.least > s.maxSkew {
			return false
		}
	}
	for i := range f.affinity {
		a := &f.affinity[i]
		if id := a.topo.ids[row]; id < 0 || !f.first && a.counts[id] == 0 {
			return false
		}
	}
	for i := range f.anti {
		if id := f.anti[i].topo.ids[row]; id >= 0 && f.anti[i].counts[id] > 0 {
			return false
		}
	}
	for i := range f.existing {
		if id := f.existing[i].topo.ids[row]; id >= 0 && f.existing[i].counts[id] > 0 {
			return false
		}
	}
	for _, v := range f.vol {
		if !v.Match(f.t.nodes[row].obj) {
			return false
		}
	}
	return true
}

// check says why a node does not fit ("" when it does; several resource reasons
// are joined by NUL), and whether evicting pods could help. A node that others of
// no less priority are nominated for must fit with and without them.
func (t *Table) check(f *filters, row int) (why string, resolvable bool) {
	var ahead []*Pod
	for _, q := range t.nodes[row].nominated {
		if q.Object.UID != f.p.Object.UID && q.Priority() >= f.p.Priority() {
			ahead = append(ahead, q)
		}
	}
	if ahead != nil {
		for _, q := range ahead {
			t.put(q, row)
		}
		why, resolvable = t.filters(f.p).check(row)
		for _, q := range ahead {
			t.take(q)
		}
		// What f holds of the tallies is as it was before: they were put back.
		if why != "" {
			return why, resolvable
		}
	}
	return f.check(row)
}

func (f *filters) check(row int) (why string, resolvable bool) {
	t, p := f.t, f.p
	if want := p.Object.Spec.NodeName; want != "" && t.nodes[row].name != want {
		return whyName, false
	}
	if why := f.class.reason[row]; why != "" {
		return why, false
	}
	if t.portTaken(row, p) {
		return whyPorts, true
	}
	if why := t.resources(row, p); why != "" {
		return why, t.everFits(row, p)
	}
	for _, v := range f.vol {
		if !v.Match(t.nodes[row].obj) {
			return whyVolume, false
		}
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
		if id := a.topo.ids[row]; id < 0 || !f.first && a.counts[id] == 0 {
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
	z := p.hash + uint64(row+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
