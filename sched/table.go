// Package sched places pods on nodes: pure functions over a columnar table of
// nodes that follows the snapshots (Kubernetes docs, "Kubernetes Scheduler",
// "Scheduling Framework": the filters and scores of the default profile).
//
//	view changes → Table (columns of numbers, one row a node; pods by node;
//	               tallies of topology terms)
//	Table + pod  → Place → a node, or why none, or whom to evict for it
//
// Nothing here reads a clock, a random number or a socket; equal scores are
// resolved by a hash of the pod's UID and the node's row, so the same table gives
// the same placement. Package sched/loop carries decisions out.
//
// A table that followed changes equals one loaded from the state that they lead
// to, whatever their order; a property test holds that.
//
// Cost of one Place on n nodes: a scan over one column of yes or no and one of
// scores, plus the tallies of the pod's own topology terms. Two caches carry it,
// both of what does not depend on the other pods' labels: what a class of pods
// (same selectors, affinity, tolerations) may run on, until a node's labels or
// taints change; and what a shape of pods (same class, requests, ports, images)
// fits on and scores, of which one placement changes only the chosen row.
package sched

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/view"
)

// Table is the state that placement reads. Not safe for concurrent use.
type Table struct {
	snapshot view.Snapshot // for volumes, owners and budgets

	rows    map[string]int // node name → row
	nodes   []*node        // by row; nil: free row
	free    []int
	present int // rows whose node is there

	// Columns. CPU in millicores, memory and ephemeral storage in bytes.
	cpu, mem, disk, pods []int64 // allocatable
	usedCPU, usedMem     []int64 // requested
	usedDisk, usedPods   []int64
	seenCPU, seenMem     []int64 // requested, at least the default of a container that asks for nothing; for scores
	extended             map[corev1.ResourceName]*column

	placed     map[types.UID]*Pod // pods that occupy a node
	nominated  map[types.UID]*Pod // pods that wait for their victims to leave a node
	namespaces map[string]map[string]string

	static  int64 // grows when labels, taints or the set of nodes change
	imaging int64 // grows when a node's images change
	edits   edits // rows whose use changed

	classes    map[string]*class
	shapes     map[string]*shape
	topologies map[string]*topology
	siblings   map[types.UID]*siblings
	counters   tallies // placed pods that a term means
	anti       tallies // required anti-affinity terms of placed pods
	likes      tallies // preferred (anti-)affinity terms, and required affinity, of placed pods
	images     map[string]*imageUse
	used       int64 // counts uses of tallies, for the choice of what to forget

	scratch scratch
}

type column struct{ have, used []int64 }

type node struct {
	name      string
	obj       *corev1.Node // nil: not there (yet, or any more), but pods are bound to it
	pods      []*Pod
	nominated []*Pod
	ports     map[port]int
}

type port struct {
	ip    string
	proto corev1.Protocol
	n     int32
}

type imageUse struct {
	size  int64
	nodes map[int]bool
}

// edits is the log of rows that changed, for the shapes that follow it.
type edits struct {
	rows  []int32
	first int64 // number of rows[0]
}

func (e *edits) add(row int) {
	if len(e.rows) >= 1<<14 {
		cut := len(e.rows) / 2
		e.rows = append(e.rows[:0], e.rows[cut:]...)
		e.first += int64(cut)
	}
	e.rows = append(e.rows, int32(row))
}

func (e *edits) end() int64 { return e.first + int64(len(e.rows)) }

// NewTable is empty.
func NewTable() *Table {
	return &Table{rows: map[string]int{}, extended: map[corev1.ResourceName]*column{}, placed: map[types.UID]*Pod{}, nominated: map[types.UID]*Pod{},
		namespaces: map[string]map[string]string{}, classes: map[string]*class{}, shapes: map[string]*shape{}, topologies: map[string]*topology{},
		siblings: map[types.UID]*siblings{}, counters: newTallies(), anti: newTallies(), likes: newTallies(), images: map[string]*imageUse{}}
}

// Load fills an empty table from a snapshot.
func Load(s view.Snapshot) *Table {
	t := NewTable()
	t.See(s)
	for ns := range view.List[*corev1.Namespace](s, kind.Namespace, "") {
		t.SetNamespace(ns.Name, ns.Labels)
	}
	for n := range view.List[*corev1.Node](s, kind.Node, "") {
		t.SetNode(n)
	}
	for p := range view.List[*corev1.Pod](s, kind.Pod, "") {
		t.SetPod(p)
	}
	return t
}

// See makes s the snapshot that volumes, owners and budgets are read from.
func (t *Table) See(s view.Snapshot) { t.snapshot = s }

// SetNamespace records a namespace's labels (nil: it is gone).
func (t *Table) SetNamespace(name string, labels map[string]string) {
	if maps.Equal(t.namespaces[name], labels) {
		return
	}
	if labels == nil {
		delete(t.namespaces, name)
	} else {
		t.namespaces[name] = labels
	}
	// Whom a term with a namespace selector means may be others now.
	t.counters.forget(func(c *tally) bool { return c.nsSelector != nil })
}

// Nodes counts the nodes that are there.
func (t *Table) Nodes() int { return t.present }

// row of a node, made if there is none.
func (t *Table) row(name string) int {
	if row, ok := t.rows[name]; ok {
		return row
	}
	var row int
	if n := len(t.free); n > 0 {
		row = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		row = len(t.nodes)
		t.nodes = append(t.nodes, nil)
		for _, c := range t.columns() {
			*c = append(*c, 0)
		}
	}
	t.rows[name] = row
	t.nodes[row] = &node{name: name, ports: map[port]int{}}
	t.static++
	return row
}

// release frees a row that holds neither a node nor pods.
func (t *Table) release(row int) {
	n := t.nodes[row]
	if n.obj != nil || len(n.pods) > 0 || len(n.nominated) > 0 {
		return
	}
	for _, c := range t.columns() {
		(*c)[row] = 0
	}
	t.nodes[row] = nil
	delete(t.rows, n.name)
	t.free = append(t.free, row)
	t.static++
}

func (t *Table) columns() []*[]int64 {
	list := []*[]int64{&t.cpu, &t.mem, &t.disk, &t.pods, &t.usedCPU, &t.usedMem, &t.usedDisk, &t.usedPods, &t.seenCPU, &t.seenMem}
	for _, c := range t.extended {
		list = append(list, &c.have, &c.used)
	}
	return list
}

func (t *Table) extend(name corev1.ResourceName) *column {
	c := t.extended[name]
	if c == nil {
		c = &column{have: make([]int64, len(t.nodes)), used: make([]int64, len(t.nodes))}
		t.extended[name] = c
	}
	return c
}

// SetNode adds or changes a node.
func (t *Table) SetNode(n *corev1.Node) {
	row := t.row(n.Name)
	r := t.nodes[row]
	old := r.obj
	if old == nil {
		t.present++
	}
	if old == nil || !sameStatics(old, n) {
		t.static++
	}
	r.obj = n
	if old == nil || !sameImages(old, n) {
		t.countImages(row, old, false)
		t.countImages(row, n, true)
		t.imaging++
	}
	if old != nil && sameSize(old, n) {
		return
	}
	a := n.Status.Allocatable
	t.cpu[row], t.mem[row] = a.Cpu().MilliValue(), a.Memory().Value()
	t.disk[row], t.pods[row] = a.StorageEphemeral().Value(), a.Pods().Value()
	for _, c := range t.extended {
		c.have[row] = 0
	}
	for name, q := range a {
		switch name {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourcePods:
		default:
			t.extend(name).have[row] = q.Value()
		}
	}
	t.edits.add(row)
}

func sameStatics(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable == b.Spec.Unschedulable && maps.Equal(a.Labels, b.Labels) &&
		slices.EqualFunc(a.Spec.Taints, b.Spec.Taints, func(x, y corev1.Taint) bool {
			return x.Key == y.Key && x.Value == y.Value && x.Effect == y.Effect
		})
}

func sameSize(a, b *corev1.Node) bool {
	if len(a.Status.Allocatable) != len(b.Status.Allocatable) {
		return false
	}
	for name, q := range a.Status.Allocatable {
		if r, ok := b.Status.Allocatable[name]; !ok || q.Cmp(r) != 0 {
			return false
		}
	}
	return true
}

func sameImages(a, b *corev1.Node) bool {
	return slices.EqualFunc(a.Status.Images, b.Status.Images, func(x, y corev1.ContainerImage) bool {
		return x.SizeBytes == y.SizeBytes && slices.Equal(x.Names, y.Names)
	})
}

// RemoveNode forgets a node. Pods that are bound to it are remembered until they
// go, should it come back.
func (t *Table) RemoveNode(name string) {
	row, ok := t.rows[name]
	if !ok || t.nodes[row].obj == nil {
		return
	}
	r := t.nodes[row]
	t.countImages(row, r.obj, false)
	t.imaging++
	t.static++
	t.present--
	r.obj = nil
	t.cpu[row], t.mem[row], t.disk[row], t.pods[row] = 0, 0, 0, 0
	for _, c := range t.extended {
		c.have[row] = 0
	}
	t.release(row)
}

func (t *Table) countImages(row int, n *corev1.Node, add bool) {
	if n == nil {
		return
	}
	for _, img := range n.Status.Images {
		for _, name := range img.Names {
			u := t.images[name]
			if u == nil {
				if !add {
					continue
				}
				u = &imageUse{nodes: map[int]bool{}}
				t.images[name] = u
			}
			if add {
				u.size = img.SizeBytes
				u.nodes[row] = true
			} else if delete(u.nodes, row); len(u.nodes) == 0 {
				delete(t.images, name)
			}
		}
	}
}

// SetPod records a pod's present state: it occupies its node while it is bound
// and has not ended.
func (t *Table) SetPod(p *corev1.Pod) {
	old := t.placed[p.UID]
	occupies := p.Spec.NodeName != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
	switch {
	case old != nil && occupies && old.on == p.Spec.NodeName && samePlacement(old.Object, p):
		old.Object = p
	case occupies:
		t.Assume(NewPod(p), p.Spec.NodeName)
	case old != nil:
		t.drop(old)
	}
	if occupies || p.Status.NominatedNodeName == "" || p.DeletionTimestamp != nil || p.Spec.NodeName != "" {
		t.Nominate(&Pod{Object: p}, "")
	} else if q := t.nominated[p.UID]; q == nil || q.on != p.Status.NominatedNodeName || !samePlacement(q.Object, p) {
		t.Nominate(NewPod(p), p.Status.NominatedNodeName)
	}
}

// samePlacement: nothing that the table counts has changed.
func samePlacement(a, b *corev1.Pod) bool {
	return a.Generation == b.Generation && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && maps.Equal(a.Labels, b.Labels)
}

// RemovePod forgets a pod.
func (t *Table) RemovePod(uid types.UID) {
	if p := t.placed[uid]; p != nil {
		t.drop(p)
	}
	if p := t.nominated[uid]; p != nil {
		t.Nominate(p, "")
	}
}

// Assume puts a pod on a node before the store says so; RemovePod undoes it.
func (t *Table) Assume(p *Pod, node string) {
	if old := t.placed[p.Object.UID]; old != nil {
		t.drop(old)
	}
	t.Nominate(p, "")
	t.put(p, t.row(node))
	t.placed[p.Object.UID] = p
}

// Nominate keeps room for a pod on a node whose pods are being evicted for it:
// pods of less priority do not get it. An empty node ends that.
func (t *Table) Nominate(p *Pod, node string) {
	uid := p.Object.UID
	if old := t.nominated[uid]; old != nil {
		delete(t.nominated, uid)
		r := t.nodes[old.row]
		r.nominated = slices.DeleteFunc(r.nominated, func(q *Pod) bool { return q == old })
		t.release(old.row)
	}
	if node == "" || t.placed[uid] != nil {
		return
	}
	p.row, p.on = t.row(node), node
	r := t.nodes[p.row]
	r.nominated = append(r.nominated, p)
	t.nominated[uid] = p
}

// Placed says whether a pod occupies a node here.
func (t *Table) Placed(uid types.UID) bool { return t.placed[uid] != nil }

// put counts a pod on a row; placed is the caller's.
func (t *Table) put(p *Pod, row int) {
	r := t.nodes[row]
	p.on, p.row = r.name, row
	r.pods = append(r.pods, p)
	t.use(row, p, 1)
	t.count(row, p, 1)
}

// take undoes put.
func (t *Table) take(p *Pod) {
	r := t.nodes[p.row]
	if i := slices.Index(r.pods, p); i >= 0 {
		last := len(r.pods) - 1
		r.pods[i] = r.pods[last]
		r.pods[last] = nil
		r.pods = r.pods[:last]
	}
	t.use(p.row, p, -1)
	t.count(p.row, p, -1)
}

func (t *Table) drop(p *Pod) {
	delete(t.placed, p.Object.UID)
	t.take(p)
	t.release(p.row)
}

// use adds (sign 1) or takes away what a pod requests.
func (t *Table) use(row int, p *Pod, sign int64) {
	t.usedCPU[row] += sign * p.cpu
	t.usedMem[row] += sign * p.mem
	t.usedDisk[row] += sign * p.disk
	t.usedPods[row] += sign
	t.seenCPU[row] += sign * p.seenCPU
	t.seenMem[row] += sign * p.seenMem
	for name, n := range p.extended {
		t.extend(name).used[row] += sign * n
	}
	ports := t.nodes[row].ports
	for _, q := range p.ports {
		if ports[q] += int(sign); ports[q] == 0 {
			delete(ports, q)
		}
	}
	t.edits.add(row)
}

// Names of the nodes that are there, sorted, for messages and tests.
func (t *Table) Names() []string {
	var out []string
	for name, row := range t.rows {
		if t.nodes[row].obj != nil {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}
