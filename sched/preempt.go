package sched

import (
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/kind"
	"proa.dev/view"
)

// Preemption is whom to evict where, so that a pod fits (Kubernetes docs, "Pod
// Priority and Preemption").
type Preemption struct {
	Node    string
	Victims []*corev1.Pod // in the order in which they are to go
}

// candidates bounds the nodes that are looked at: a tenth of them, at least 100.
func candidates(n int) int { return max(n/10, min(n, 100)) }

// Why preemption does not help, worded as upstream's.
const (
	whyNever      = "not eligible due to preemptionPolicy=Never."
	whyNotHelpful = "Preemption is not helpful for scheduling"
	whyNoVictims  = "No preemption victims found for incoming pod"
)

// Preempt looks for the node where evicting pods of lower priority lets p fit,
// and chooses by: fewest violated disruption budgets, lowest highest priority of
// a victim, lowest sum of priorities, fewest victims, youngest of the highest
// victims. d is what Place said. When there is none, why says so as upstream does.
func (t *Table) Preempt(p *Pod, d Decision) (best Preemption, why string) {
	if pol := p.Object.Spec.PreemptionPolicy; pol != nil && *pol == corev1.PreemptNever {
		return best, whyNever
	}
	var bestCost cost
	found := false
	left := candidates(len(d.resolvable))
	offset := 0
	if len(d.resolvable) > 0 {
		offset = int(tie(p, 0) % uint64(len(d.resolvable)))
	}
	reasons := map[string]int{}
	if n := d.Considered - len(d.resolvable); n > 0 {
		reasons[whyNotHelpful] = n
	}
	budgets := t.budgets()
	for i := range d.resolvable {
		if left == 0 {
			break
		}
		row := d.resolvable[(i+offset)%len(d.resolvable)]
		victims, violations, why := t.victims(row, p, budgets)
		if why != "" {
			for _, w := range strings.Split(why, "\x00") {
				reasons[w]++
			}
			continue
		}
		left--
		c := costOf(victims, violations)
		if !found || c.less(bestCost) {
			found, bestCost = true, c
			best = Preemption{Node: t.nodes[row].name}
			for _, v := range victims {
				best.Victims = append(best.Victims, v.Object)
			}
		}
	}
	if !found {
		return best, message(d.Considered, reasons)
	}
	return best, ""
}

type cost struct {
	violations int
	highest    int32
	sum        int64
	count      int
	started    int64 // of the oldest among the highest; later is better
}

func (a cost) less(b cost) bool {
	switch {
	case a.violations != b.violations:
		return a.violations < b.violations
	case a.highest != b.highest:
		return a.highest < b.highest
	case a.sum != b.sum:
		return a.sum < b.sum
	case a.count != b.count:
		return a.count < b.count
	}
	return a.started > b.started
}

func costOf(victims []*Pod, violations int) cost {
	c := cost{violations: violations, count: len(victims)}
	for i, v := range victims {
		pr := v.Priority()
		c.sum += int64(pr) + 1<<31
		started := v.Object.CreationTimestamp.Unix()
		if v.Object.Status.StartTime != nil {
			started = v.Object.Status.StartTime.Unix()
		}
		if i == 0 || pr > c.highest {
			c.highest, c.started = pr, started
		} else if pr == c.highest {
			c.started = min(c.started, started)
		}
	}
	return c
}

// victims takes all pods of lower priority off a node, and if p fits then, puts
// back as many as possible: first those whose budget would be violated, and the
// more important before the less. why is empty if p fits.
func (t *Table) victims(row int, p *Pod, budgets []*budget) (victims []*Pod, violations int, why string) {
	var lower []*Pod
	for _, q := range t.nodes[row].pods {
		if q.Priority() < p.Priority() {
			lower = append(lower, q)
		}
	}
	if len(lower) == 0 {
		return nil, 0, whyNoVictims
	}
	for _, q := range lower {
		t.take(q)
	}
	victims = lower // put back by the deferred call if nothing else is decided
	defer func() {
		for _, q := range victims {
			t.put(q, row)
		}
	}()
	if why, _ := t.check(t.filters(p), row); why != "" {
		return victims, 0, why
	}
	sort.SliceStable(lower, func(i, j int) bool { return moreImportant(lower[i], lower[j]) })
	violating, rest := splitByBudget(lower, budgets)
	var out []*Pod
	keep := func(q *Pod) bool {
		t.put(q, row)
		if why, _ := t.check(t.filters(p), row); why == "" {
			return true
		}
		t.take(q)
		out = append(out, q)
		return false
	}
	for _, q := range violating {
		if !keep(q) {
			violations++
		}
	}
	for _, q := range rest {
		keep(q)
	}
	victims = out
	return out, violations, ""
}

func moreImportant(a, b *Pod) bool {
	if a.Priority() != b.Priority() {
		return a.Priority() > b.Priority()
	}
	x, y := a.Object.Status.StartTime, b.Object.Status.StartTime
	if x != nil && y != nil && !x.Equal(y) {
		return x.Before(y)
	}
	return a.Object.UID < b.Object.UID
}

type budget struct {
	namespace string
	selector  labels.Selector
	allowed   int32
	disrupted map[string]metav1.Time
}

func (t *Table) budgets() []*budget {
	var out []*budget
	for b := range view.List[*policyv1.PodDisruptionBudget](t.snapshot, kind.PodDisruptionBudget, "") {
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || sel.Empty() {
			continue
		}
		out = append(out, &budget{b.Namespace, sel, b.Status.DisruptionsAllowed, b.Status.DisruptedPods})
	}
	return out
}

func splitByBudget(pods []*Pod, budgets []*budget) (violating, rest []*Pod) {
	left := make([]int32, len(budgets))
	for i, b := range budgets {
		left[i] = b.allowed
	}
	for _, p := range pods {
		bad := false
		for i, b := range budgets {
			if b.namespace != p.Object.Namespace || !b.selector.Matches(labels.Set(p.Object.Labels)) {
				continue
			}
			if _, already := b.disrupted[p.Object.Name]; already {
				continue
			}
			if left[i]--; left[i] < 0 {
				bad = true
			}
		}
		if bad {
			violating = append(violating, p)
		} else {
			rest = append(rest, p)
		}
	}
	return violating, rest
}
