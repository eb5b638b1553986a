// Package sched places pods on nodes: pure functions over a columnar table of
// nodes that follows the snapshots (Kubernetes docs, "Kubernetes Scheduler",
// "Scheduling Framework": the filters and scores of the default profile).
//
//	view changes → Table (columns of numbers, one row a node; pods by node;
//	               counters of topology terms)
//	Table + pod  → Place → a node, or why none, or whom to evict for it
//
// Nothing here reads a clock, a random number or a socket; equal scores are
// resolved by a hash of the pod's UID and the node's row, so the same table gives
// the same placement. Package sched/loop carries decisions out.
//
// Cost of one Place on n nodes: a scan of the columns (about 20 ns a node), plus
// the counters of the pod's own topology terms. What a class of pods (same
// selectors, affinity, tolerations) may run on is computed once and kept until a
// node's labels or taints change.
package sched

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/view"
)

// Table is the state that placement reads. Not safe for concurrent use.
type Table struct {
	snapshot view.Snapshot // for volumes, namespaces, budgets

	rows  map[string]int // node name → row
	nodes []*node        // by row; nil: free row
	free  []int

	// Columns. CPU in millicores, memory and ephemeral storage in bytes.
	cpu, mem, disk, pods []int64 // allocatable
	usedCPU, usedMem     []int64 // requested
	usedDisk, usedPods   []int64
	seenCPU, seenMem     []int64 // requested, at least the default of a container that asks for nothing; for scores
	extended             map[corev1.ResourceName]*column
	placed               map[types.UID]*Pod // pods that occupy a node
	static               int64              // grows when labels, taints or the set of nodes change
	classes              map[string]*class
	counters             map[string]*counter
	anti                 map[string]*antiTerm // required anti-affinity terms of placed pods
	likes                map[string]*likeTerm // preferred (anti-)affinity terms, and required affinity, of placed pods
	images               map[string]*imageUse
}

type column struct{ have, used []int64 }

type node struct {
	name  string
	obj   *corev1.Node
	pods  []*Pod
	ports map[port]int
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

// NewTable is empty.
func NewTable() *Table {
	return &Table{rows: map[string]int{}, extended: map[corev1.ResourceName]*column{}, placed: map[types.UID]*Pod{}, classes: map[string]*class{},
		counters: map[string]*counter{}, anti: map[string]*antiTerm{}, likes: map[string]*likeTerm{}, images: map[string]*imageUse{}}
}

// Load fills an empty table from a snapshot.
func Load(s view.Snapshot) *Table {
	t := NewTable()
	t.See(s)
	for n := range view.List[*corev1.Node](s, kind.Node, "") {
		t.SetNode(n)
	}
	for p := range view.List[*corev1.Pod](s, kind.Pod, "") {
		t.SetPod(p)
	}
	return t
}

// See makes s the snapshot that volumes, namespaces and budgets are read from.
func (t *Table) See(s view.Snapshot) { t.snapshot = s }

// Nodes counts the rows in use.
func (t *Table) Nodes() int { return len(t.rows) }

func (t *Table) grow() int {
	if n := len(t.free); n > 0 {
		row := t.free[n-1]
		t.free = t.free[:n-1]
		return row
	}
	t.nodes = append(t.nodes, nil)
	for _, c := range t.columns() {
		*c = append(*c, 0)
	}
	return len(t.nodes) - 1
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
	row, ok := t.rows[n.Name]
	if !ok {
		row = t.grow()
		t.rows[n.Name] = row
		t.nodes[row] = &node{name: n.Name, ports: map[port]int{}}
		t.static++
	}
	r := t.nodes[row]
	if r.obj != nil {
		t.countImages(row, r.obj, false)
		if !sameStatics(r.obj, n) {
			t.relabel(row, n)
			t.static++
		}
	} else if len(r.pods) > 0 {
		t.relabel(row, n)
		t.static++
	}
	r.obj = n
	t.countImages(row, n, true)
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
}

func sameStatics(a, b *corev1.Node) bool {
	if a.Spec.Unschedulable != b.Spec.Unschedulable || len(a.Labels) != len(b.Labels) || !slices.EqualFunc(a.Spec.Taints, b.Spec.Taints, func(x, y corev1.Taint) bool { return x.Key == y.Key && x.Value == y.Value && x.Effect == y.Effect }) {
		return false
	}
	for k, v := range a.Labels {
		if w, ok := b.Labels[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// relabel moves a row's pods in the counters from its old topology to the new.
func (t *Table) relabel(row int, n *corev1.Node) {
	r := t.nodes[row]
	for _, p := range r.pods {
		t.count(row, p, -1)
	}
	r.obj = n
	for _, p := range r.pods {
		t.count(row, p, 1)
	}
}

// RemoveNode forgets a node. Its pods are remembered, should it come back.
func (t *Table) RemoveNode(name string) {
	row, ok := t.rows[name]
	if !ok {
		return
	}
	r := t.nodes[row]
	for _, p := range slices.Clone(r.pods) {
		t.drop(p)
	}
	t.countImages(row, r.obj, false)
	for _, c := range t.columns() {
		(*c)[row] = 0
	}
	t.nodes[row] = nil
	delete(t.rows, name)
	t.free = append(t.free, row)
	t.static++
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
	if old != nil {
		if occupies && old.on == p.Spec.NodeName && samePlacement(old.Object, p) {
			old.Object = p
			return
		}
		t.drop(old)
	}
	if occupies {
		t.put(NewPod(p), p.Spec.NodeName)
	}
}

// samePlacement: nothing that the table counts has changed.
func samePlacement(a, b *corev1.Pod) bool {
	if a.Generation != b.Generation || len(a.Labels) != len(b.Labels) || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) {
		return false
	}
	for k, v := range a.Labels {
		if w, ok := b.Labels[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// RemovePod forgets a pod.
func (t *Table) RemovePod(uid types.UID) {
	if p := t.placed[uid]; p != nil {
		t.drop(p)
	}
}

// Assume puts a pod on a node before the store says so; RemovePod undoes it.
func (t *Table) Assume(p *Pod, node string) {
	if old := t.placed[p.Object.UID]; old != nil {
		t.drop(old)
	}
	t.put(p, node)
}

// Placed says whether a pod occupies a node here.
func (t *Table) Placed(uid types.UID) bool { return t.placed[uid] != nil }

func (t *Table) put(p *Pod, name string) {
	row, ok := t.rows[name]
	if !ok {
		// A pod on a node that is not there (yet): it counts once the node comes.
		row = t.grow()
		t.rows[name] = row
		t.nodes[row] = &node{name: name, ports: map[port]int{}}
		t.static++
	}
	p.on, p.row = name, row
	t.placed[p.Object.UID] = p
	r := t.nodes[row]
	r.pods = append(r.pods, p)
	t.use(row, p, 1)
	t.count(row, p, 1)
}

func (t *Table) drop(p *Pod) {
	r := t.nodes[p.row]
	delete(t.placed, p.Object.UID)
	if i := slices.Index(r.pods, p); i >= 0 {
		last := len(r.pods) - 1
		r.pods[i] = r.pods[last]
		r.pods[last] = nil
		r.pods = r.pods[:last]
	}
	t.use(p.row, p, -1)
	t.count(p.row, p, -1)
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
}

// Sorted node names, for messages and tests.
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
