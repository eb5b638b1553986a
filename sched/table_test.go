package sched

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/view"
)

// world is a random cluster as plain objects, changed step by step.
type world struct {
	r     *rand.Rand
	nodes map[string]*corev1.Node
	pods  map[types.UID]*corev1.Pod
	ns    map[string]*corev1.Namespace
	n     int
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.DecimalSI) }

func (w *world) node(name string) *corev1.Node {
	r := w.r
	n := &corev1.Node{}
	n.Name = name
	n.Labels = map[string]string{hostname: name}
	if r.IntN(5) > 0 {
		n.Labels["zone"] = pick(r, "a", "b", "c")
	}
	if r.IntN(3) == 0 {
		n.Labels["disk"] = pick(r, "ssd", "hdd")
	}
	if r.IntN(4) == 0 {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "k", Value: pick(r, "v", "w"), Effect: pick(r, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)})
	}
	n.Spec.Unschedulable = r.IntN(10) == 0
	n.Status.Allocatable = corev1.ResourceList{"cpu": quantity(int64(1 + r.IntN(8))), "memory": quantity(int64(1+r.IntN(8)) << 30), "pods": quantity(int64(2 + r.IntN(8)))}
	if r.IntN(3) == 0 {
		n.Status.Allocatable["example.com/gpu"] = quantity(int64(1 + r.IntN(3)))
	}
	if r.IntN(3) == 0 {
		n.Status.Images = []corev1.ContainerImage{{Names: []string{"app:1"}, SizeBytes: 500 << 20}}
	}
	return n
}

func term1(r *rand.Rand) corev1.PodAffinityTerm {
	t := corev1.PodAffinityTerm{TopologyKey: pick(r, "zone", hostname, "disk"), LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": pick(r, "x", "y", "z")}}}
	switch r.IntN(6) {
	case 0:
		t.Namespaces = []string{"one", "two"}
	case 1:
		t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "blue"}}
	case 2:
		t.LabelSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpExists}}}
	}
	return t
}

func (w *world) pod() *corev1.Pod {
	r := w.r
	w.n++
	p := &corev1.Pod{}
	p.Name, p.Namespace = fmt.Sprintf("p%d", w.n), pick(r, "one", "two")
	p.UID = types.UID(fmt.Sprintf("uid-%d", w.n))
	p.Labels = map[string]string{"app": pick(r, "x", "y", "z")}
	if r.IntN(3) == 0 {
		p.Labels["tier"] = "t"
	}
	prio := int32(r.IntN(3))
	p.Spec.Priority = &prio
	c := corev1.Container{Name: "app", Image: pick(r, "app:1", "app:2")}
	c.Resources.Requests = corev1.ResourceList{}
	if r.IntN(4) > 0 {
		c.Resources.Requests["cpu"] = *resource.NewMilliQuantity(int64(r.IntN(20)*100), resource.DecimalSI)
	}
	if r.IntN(3) == 0 {
		c.Resources.Requests["memory"] = quantity(int64(r.IntN(20)) << 27)
	}
	if r.IntN(8) == 0 {
		c.Resources.Requests["example.com/gpu"] = quantity(1)
	}
	if r.IntN(6) == 0 {
		c.Ports = []corev1.ContainerPort{{HostPort: pick[int32](r, 80, 81), HostIP: pick(r, "", "10.0.0.1", "10.0.0.2")}}
	}
	p.Spec.Containers = []corev1.Container{c}
	if r.IntN(5) == 0 {
		p.Spec.NodeSelector = map[string]string{"zone": pick(r, "a", "b", "c")}
	}
	if r.IntN(4) == 0 {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}
	}
	a := &corev1.Affinity{}
	switch r.IntN(8) {
	case 0:
		a.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term1(r)}}
	case 1:
		a.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term1(r), term1(r)}}
	case 2:
		a.PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 7, PodAffinityTerm: term1(r)}}}
		a.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 5, PodAffinityTerm: term1(r)}}}
	case 3:
		a.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: pick(r, corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist)}}}}}}
	}
	p.Spec.Affinity = a
	if r.IntN(5) == 0 {
		for range 1 + r.IntN(2) {
			c := corev1.TopologySpreadConstraint{MaxSkew: int32(1 + r.IntN(2)), TopologyKey: pick(r, "zone", hostname), WhenUnsatisfiable: pick(r, corev1.DoNotSchedule, corev1.ScheduleAnyway),
				LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": p.Labels["app"]}}}
			if r.IntN(3) == 0 {
				honor := corev1.NodeInclusionPolicyHonor
				c.NodeTaintsPolicy = &honor
			}
			if r.IntN(3) == 0 {
				ignore := corev1.NodeInclusionPolicyIgnore
				c.NodeAffinityPolicy = &ignore
			}
			if r.IntN(3) == 0 && c.WhenUnsatisfiable == corev1.DoNotSchedule {
				three := int32(3)
				c.MinDomains = &three
			}
			p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
		}
	}
	return p
}

// occupies: bound to a node and not ended.
func occupies(p *corev1.Pod) bool {
	return p.Spec.NodeName != "" && p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded
}

// fits is the filters said plainly and slowly on the objects.
func (w *world) fits(p *corev1.Pod, n *corev1.Node) bool {
	tol := func(taint corev1.Taint) bool {
		for _, t := range p.Spec.Tolerations {
			if t.ToleratesTaint(nilLogger, &taint, true) {
				return true
			}
		}
		return false
	}
	tainted := func(n *corev1.Node) bool {
		for _, taint := range n.Spec.Taints {
			if taint.Effect != corev1.TaintEffectPreferNoSchedule && !tol(taint) {
				return true
			}
		}
		return n.Spec.Unschedulable && !tol(corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	selected := func(n *corev1.Node) bool {
		for k, v := range p.Spec.NodeSelector {
			if n.Labels[k] != v {
				return false
			}
		}
		if na := p.Spec.Affinity.NodeAffinity; na != nil {
			_, has := n.Labels["disk"]
			if (na.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchExpressions[0].Operator == corev1.NodeSelectorOpExists) != has {
				return false
			}
		}
		return true
	}
	if tainted(n) || !selected(n) {
		return false
	}
	sum := map[corev1.ResourceName]int64{}
	add := func(q *corev1.Pod) {
		for name, x := range q.Spec.Containers[0].Resources.Requests {
			sum[name] += x.MilliValue()
		}
		sum["pods"] += 1000
	}
	for _, q := range w.pods {
		if occupies(q) && q.Spec.NodeName == n.Name {
			add(q)
			for _, a := range q.Spec.Containers[0].Ports {
				for _, b := range p.Spec.Containers[0].Ports {
					if a.HostPort == b.HostPort && (a.HostIP == b.HostIP || a.HostIP == "" || b.HostIP == "") {
						return false
					}
				}
			}
		}
	}
	add(p)
	for name, x := range p.Spec.Containers[0].Resources.Requests {
		have := n.Status.Allocatable[name]
		if x.Sign() > 0 && sum[name] > have.MilliValue() {
			return false
		}
	}
	if pods := n.Status.Allocatable["pods"]; sum["pods"] > pods.MilliValue() {
		return false
	}
	means := func(owner *corev1.Pod, t *corev1.PodAffinityTerm, q *corev1.Pod) bool {
		in := len(t.Namespaces) == 0 && t.NamespaceSelector == nil && q.Namespace == owner.Namespace
		for _, name := range t.Namespaces {
			in = in || name == q.Namespace
		}
		if t.NamespaceSelector != nil {
			ns := w.ns[q.Namespace]
			s, _ := metav1.LabelSelectorAsSelector(t.NamespaceSelector)
			in = in || ns != nil && s.Matches(labels.Set(ns.Labels)) || ns == nil && s.Empty()
		}
		s, _ := metav1.LabelSelectorAsSelector(t.LabelSelector)
		return in && s.Matches(labels.Set(q.Labels))
	}
	where := func(q *corev1.Pod, key string) (string, bool) {
		m := w.nodes[q.Spec.NodeName]
		if m == nil {
			return "", false
		}
		v, ok := m.Labels[key]
		return v, ok
	}
	near := func(owner *corev1.Pod, t *corev1.PodAffinityTerm, q *corev1.Pod) bool {
		v, ok := where(q, t.TopologyKey)
		mine, has := n.Labels[t.TopologyKey]
		return occupies(q) && ok && has && v == mine && means(owner, t, q)
	}
	if pa := p.Spec.Affinity.PodAffinity; pa != nil {
		terms := pa.RequiredDuringSchedulingIgnoredDuringExecution
		for i := range terms {
			t := &terms[i]
			if _, ok := n.Labels[t.TopologyKey]; !ok {
				return false
			}
			ok, anywhere := false, false
			for _, q := range w.pods {
				ok = ok || near(p, t, q)
				_, has := where(q, t.TopologyKey)
				anywhere = anywhere || occupies(q) && has && means(p, t, q)
			}
			if !ok && (anywhere || !means(p, t, p)) {
				return false
			}
		}
	}
	if pa := p.Spec.Affinity.PodAntiAffinity; pa != nil {
		terms := pa.RequiredDuringSchedulingIgnoredDuringExecution
		for i := range terms {
			for _, q := range w.pods {
				if near(p, &terms[i], q) {
					return false
				}
			}
		}
	}
	for _, q := range w.pods {
		if pa := q.Spec.Affinity.PodAntiAffinity; pa != nil && occupies(q) {
			terms := pa.RequiredDuringSchedulingIgnoredDuringExecution
			for i := range terms {
				v, ok := where(q, terms[i].TopologyKey)
				mine, has := n.Labels[terms[i].TopologyKey]
				if ok && has && v == mine && means(q, &terms[i], p) {
					return false
				}
			}
		}
	}
	for _, c := range p.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable != corev1.DoNotSchedule {
			continue
		}
		counts := map[string]int{}
		for _, m := range w.nodes {
			all := true
			for _, o := range p.Spec.TopologySpreadConstraints {
				if _, ok := m.Labels[o.TopologyKey]; !ok && o.WhenUnsatisfiable == corev1.DoNotSchedule {
					all = false
				}
			}
			if !all || (c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor) && !selected(m) ||
				c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor && tainted(m) {
				continue
			}
			v := m.Labels[c.TopologyKey]
			counts[v] += 0
			for _, q := range w.pods {
				if occupies(q) && q.Spec.NodeName == m.Name && q.DeletionTimestamp == nil && q.Namespace == p.Namespace && q.Labels["app"] == p.Labels["app"] {
					counts[v]++
				}
			}
		}
		least := 1 << 30
		for _, x := range counts {
			least = min(least, x)
		}
		if c.MinDomains != nil && len(counts) < int(*c.MinDomains) || len(counts) == 0 {
			least = 0
		}
		mine, ok := n.Labels[c.TopologyKey]
		if !ok || counts[mine]+1-least > int(c.MaxSkew) {
			return false
		}
	}
	return true
}

func seed(t testing.TB) uint64 {
	if s := os.Getenv("SCHED_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return uint64(time.Now().UnixNano())
}

// A table that followed random changes equals one loaded from where they lead,
// and both say of every node what the plain filters say. SCHED_SEED replays.
func TestFollowedEqualsLoaded(t *testing.T) {
	s := seed(t)
	t.Logf("SCHED_SEED=%d", s)
	deadline := time.Now().Add(4 * time.Second)
	for round := uint64(0); round < 60 && time.Now().Before(deadline); round++ {
		follow(t, s+round)
		if t.Failed() {
			t.Fatalf("replay with SCHED_SEED=%d", s+round)
		}
	}
}

func follow(t *testing.T, s uint64) {
	r := rand.New(rand.NewPCG(s, 1))
	w := &world{r: r, nodes: map[string]*corev1.Node{}, pods: map[types.UID]*corev1.Pod{}, ns: map[string]*corev1.Namespace{}}
	table := NewTable()
	names := []string{"n1", "n2", "n3", "n4", "n5", "n6"}
	somePod := func() *corev1.Pod {
		var list []*corev1.Pod
		for i := 1; i <= w.n; i++ {
			if p := w.pods[types.UID(fmt.Sprintf("uid-%d", i))]; p != nil {
				list = append(list, p)
			}
		}
		if len(list) == 0 {
			return nil
		}
		return list[r.IntN(len(list))]
	}
	set := func(p *corev1.Pod) {
		w.pods[p.UID] = p
		table.SetPod(p)
	}
	probes := []*corev1.Pod{}
	for range 12 {
		p := w.pod()
		probes = append(probes, p)
	}
	for step := range 150 {
		switch r.IntN(12) {
		case 0, 1:
			n := w.node(pick(r, names...))
			w.nodes[n.Name] = n
			table.SetNode(n)
		case 2:
			name := pick(r, names...)
			delete(w.nodes, name)
			table.RemoveNode(name)
		case 3:
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: pick(r, "one", "two"), Labels: map[string]string{"team": pick(r, "blue", "red")}}}
			w.ns[ns.Name] = ns
			table.SetNamespace(ns.Name, ns.Labels)
		case 4: // bound to a node that may not be there
			p := w.pod()
			p.Spec.NodeName = pick(r, names...)
			set(p)
		case 5, 6, 7: // placed
			p := w.pod()
			d := table.Place(NewPod(p))
			if d.Node == "" {
				for _, n := range w.nodes {
					if w.fits(p, n) {
						t.Errorf("step %d: %s fits on %s, but Place says %s", step, p.Name, n.Name, d.Message)
					}
				}
				w.pods[p.UID] = p
				break
			}
			if n := w.nodes[d.Node]; n == nil || !w.fits(p, n) {
				t.Errorf("step %d: Place put %s on %s, where it does not fit", step, p.Name, d.Node)
			}
			table.Assume(NewPod(p), d.Node)
			q := p.DeepCopy()
			q.Spec.NodeName = d.Node
			if r.IntN(2) == 0 {
				set(q)
			} else {
				w.pods[q.UID] = q
			}
		case 8:
			if p := somePod(); p != nil {
				delete(w.pods, p.UID)
				table.RemovePod(p.UID)
			}
		case 9:
			if p := somePod(); p != nil {
				q := p.DeepCopy()
				switch r.IntN(4) {
				case 0:
					q.Labels["app"] = pick(r, "x", "y", "z")
				case 1:
					q.Status.Phase = pick(r, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed)
				case 2:
					now := metav1.Now()
					q.DeletionTimestamp = &now
				case 3:
					q.Generation++
					q.Spec.Containers[0].Resources.Requests["cpu"] = quantity(int64(r.IntN(3)))
				}
				set(q)
			}
		case 10: // preemption puts everything back
			p := w.pod()
			high := int32(10)
			p.Spec.Priority = &high
			c := NewPod(p)
			if d := table.Place(c); d.Node == "" {
				table.Preempt(c, d)
			}
		case 11: // nominated, and not any more
			p := w.pod()
			p.Status.NominatedNodeName = pick(r, names...)
			table.SetPod(p)
			table.Place(NewPod(w.pod()))
			table.RemovePod(p.UID)
		}
		if step%10 != 9 {
			continue
		}
		var objects []kind.Object
		for _, n := range w.nodes {
			objects = append(objects, n)
		}
		for _, n := range w.ns {
			objects = append(objects, n)
		}
		for _, p := range w.pods {
			objects = append(objects, p)
		}
		compare(t, step, w, table, Load(view.Build(1, kind.All, objects...)), probes)
	}
}

func compare(t *testing.T, step int, w *world, got, want *Table, probes []*corev1.Pod) {
	t.Helper()
	if fmt.Sprint(got.Names()) != fmt.Sprint(want.Names()) || got.Nodes() != len(w.nodes) {
		t.Errorf("step %d: nodes %v, want %v", step, got.Names(), want.Names())
	}
	if len(got.rows) != len(want.rows) {
		t.Errorf("step %d: %d rows are in use, want %d", step, len(got.rows), len(want.rows))
	}
	for name, row := range want.rows {
		g, ok := got.rows[name]
		if !ok {
			t.Errorf("step %d: no row for %s", step, name)
			continue
		}
		a := []any{got.cpu[g], got.mem[g], got.disk[g], got.pods[g], got.usedCPU[g], got.usedMem[g], got.usedDisk[g], got.usedPods[g], got.seenCPU[g], got.seenMem[g], got.extend("example.com/gpu").have[g], got.extend("example.com/gpu").used[g], got.nodes[g].ports}
		b := []any{want.cpu[row], want.mem[row], want.disk[row], want.pods[row], want.usedCPU[row], want.usedMem[row], want.usedDisk[row], want.usedPods[row], want.seenCPU[row], want.seenMem[row], want.extend("example.com/gpu").have[row], want.extend("example.com/gpu").used[row], want.nodes[row].ports}
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("step %d: columns of %s: %v, want %v", step, name, a, b)
		}
	}
	if len(got.anti.byID) != len(want.anti.byID) || len(got.likes.byID) != len(want.likes.byID) {
		t.Errorf("step %d: %d terms against and %d for others, want %d and %d", step, len(got.anti.byID), len(got.likes.byID), len(want.anti.byID), len(want.likes.byID))
	}
	for _, sets := range [][2]*tallies{{&got.anti, &want.anti}, {&got.likes, &want.likes}, {&got.counters, &want.counters}} {
		for id, c := range sets[0].byID {
			var o *tally
			if sets[0] == &got.counters {
				o = want.counts(&c.term, c.live)
			} else if o = sets[1].byID[id]; o == nil {
				t.Errorf("step %d: term %q should be gone", step, id)
				continue
			}
			if a, b := byName(got, c), byName(want, o); a != b {
				t.Errorf("step %d: term %q: %s, want %s", step, id, a, b)
			}
		}
	}
	for _, p := range probes {
		c := NewPod(p)
		f, h := got.filters(c), want.filters(c)
		s := got.shape(c, f.class)
		for name, row := range got.rows {
			if got.nodes[row].obj == nil {
				continue
			}
			a, _ := f.check(row)
			b, _ := h.check(want.rows[name])
			if a != b {
				t.Errorf("step %d: %s on %s: %q, want %q", step, p.Name, name, a, b)
			}
			if fast := s.fits[row] && f.together(row); fast != (a == "") {
				t.Errorf("step %d: %s on %s: shape says %v, the filters %q", step, p.Name, name, fast, a)
			}
			if plain := w.fits(p, w.nodes[name]); plain != (a == "") {
				t.Errorf("step %d: %s on %s: %q, but plainly it fits: %v", step, p.Name, name, a, plain)
			}
		}
	}
}

// byName is a tally in words: by value of its topology, and by node.
func byName(t *Table, c *tally) string {
	values, tp := t.byValue(c)
	out := map[string]int64{}
	for row, id := range tp.ids {
		if id >= 0 && values[id] != 0 {
			out["value "+t.nodes[row].obj.Labels[c.key]] = values[id]
		}
	}
	for row, n := range c.rows {
		if n != 0 {
			out["node "+t.nodes[row].name] = int64(n)
		}
	}
	return fmt.Sprint(out, c.pods)
}

// Many equal pods spread evenly over equal nodes.
func TestEqualPodsSpreadEvenly(t *testing.T) {
	for _, plain := range []bool{true, false} {
		table := NewTable()
		for i := range 5 {
			table.SetNode(benchNode(i, 110))
		}
		for i := range 50 {
			p := benchPod(i)
			if !plain {
				p.Spec.Containers[0].Resources.Requests = nil
			}
			c := NewPod(p)
			table.Assume(c, table.Place(c).Node)
		}
		for _, name := range table.Names() {
			if n := len(table.nodes[table.rows[name]].pods); n != 10 {
				t.Errorf("requests %v: %s has %d pods, want 10", plain, name, n)
			}
		}
	}
}
