// Package daemonset runs one pod of a DaemonSet on each node that is eligible
// (Kubernetes docs, "DaemonSet", "Perform a Rolling Update on a DaemonSet").
//
// Pods are placed by the scheduler: each is bound to its node by an affinity to
// the node's name, and tolerates what the docs list. A node is eligible when the
// template's node selector and affinity match and every NoSchedule and NoExecute
// taint is tolerated; a pod that runs stays while NoExecute taints are.
//
// A template is a ControllerRevision; its hash labels the pods.
package daemonset

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	source = "daemonset-controller"
	burst  = 250
	// failedPause keeps a pod that fails at once from being made again in a loop.
	failedPause = 10 * time.Second
)

// Part registers the controller.
func Part() control.Part {
	return control.Part{
		Name: source, Kind: kind.DaemonSet, Plan: Plan, Failed: failed,
		Wakes: []control.Wake{
			{Kind: kind.Pod, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				if refs := control.ToOwner(kind.DaemonSet)(s, o); refs != nil || metav1.GetControllerOfNoCopy(o) != nil {
					return refs
				}
				var refs []view.Ref
				for d := range s.Selecting(kind.DaemonSet, o.GetNamespace(), o.GetLabels()) {
					if sel, err := metav1.LabelSelectorAsSelector(d.(*appsv1.DaemonSet).Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(o.GetLabels())) {
						refs = append(refs, view.RefOf(kind.DaemonSet, d))
					}
				}
				return refs
			}},
			{Kind: kind.ControllerRevision, To: control.ToOwner(kind.DaemonSet)},
			{Kind: kind.Node, When: nodeMatters, To: func(s view.Snapshot, _ kind.Object) []view.Ref {
				var refs []view.Ref
				for d := range s.All(kind.DaemonSet, "") {
					refs = append(refs, view.RefOf(kind.DaemonSet, d))
				}
				return refs
			}},
		},
		Writes: []control.Write{
			{Kind: kind.Pod, Verbs: []string{"create", "delete", "patch"}},
			{Kind: kind.ControllerRevision, Verbs: []string{"create", "update", "delete"}},
			{Kind: kind.DaemonSet, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

func failed(s view.Snapshot, ref view.Ref, a act.Action, err error, _ time.Time) act.List {
	ds := view.Get[*appsv1.DaemonSet](s, kind.DaemonSet, ref.Namespace, ref.Name)
	if ds == nil {
		return nil
	}
	events, _ := workload.Failed(kind.DaemonSet, ds, source, a, err)
	return events
}

func nodeMatters(old, new kind.Object) bool {
	a, ok := old.(*corev1.Node)
	b, ok2 := new.(*corev1.Node)
	return !ok || !ok2 || !apiequality.Semantic.DeepEqual(a.Labels, b.Labels) || !apiequality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints)
}

// Plan decides for one DaemonSet.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	ds := view.Get[*appsv1.DaemonSet](s, kind.DaemonSet, ref.Namespace, ref.Name)
	if ds == nil {
		return nil, time.Time{}
	}
	sel, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil || sel.Empty() {
		return nil, time.Time{}
	}
	mine, actions := workload.Claim(s, kind.DaemonSet, ds, sel)
	if len(actions) > 0 {
		return actions, time.Time{}
	}
	p := &planner{s: s, ds: ds, now: now, onNode: map[string][]*corev1.Pod{}}
	p.revisions = workload.History(s, kind.DaemonSet, ds, &ds.Spec.Template, ds.Spec.Selector.MatchLabels, ds.Status.CollisionCount)
	if p.revisions.Collision {
		c := ds.DeepCopy()
		n := int32(1)
		if c.Status.CollisionCount != nil {
			n = *c.Status.CollisionCount + 1
		}
		c.Status.CollisionCount = &n
		return act.List{act.Update{Kind: kind.DaemonSet, Object: c, Sub: "status", Reason: "hash collision"}}, time.Time{}
	}
	p.place(mine)
	if ds.DeletionTimestamp == nil {
		p.actions = append(p.actions, p.revisions.Actions...)
		p.manage()
		if len(p.creates)+len(p.deletes) == 0 {
			p.update()
		}
		p.actions = append(p.actions, p.emit()...)
		if len(p.actions) == 0 {
			p.actions = p.revisions.Prune(ds.Spec.RevisionHistoryLimit, func(hash string) bool {
				return slices.ContainsFunc(mine, func(pod *corev1.Pod) bool { return pod.Labels[appsv1.ControllerRevisionHashLabelKey] == hash })
			})
		}
	}
	p.status()
	return p.actions, p.wake
}

type planner struct {
	s         view.Snapshot
	ds        *appsv1.DaemonSet
	now       time.Time
	revisions workload.Revisions
	nodes     []node
	onNode    map[string][]*corev1.Pod
	lost      []*corev1.Pod // bound to no node and wanting one that is not there
	creates   []string      // nodes
	deletes   []removal
	actions   act.List
	wake      time.Time
}

type removal struct {
	pod    *corev1.Pod
	reason string
}

type node struct {
	name                string
	should, mayStay     bool
	pods                []*corev1.Pod
	oldPod, newPod      *corev1.Pod // not ended; oldPod may be terminating
	oldReady, newUsable bool
}

// nodeOf is the node that a pod is on or is meant for.
func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range t.MatchFields {
				if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
					return f.Values[0]
				}
			}
		}
	}
	return ""
}

// place sorts nodes and pods.
func (p *planner) place(mine []*corev1.Pod) {
	for _, pod := range mine {
		p.onNode[nodeOf(pod)] = append(p.onNode[nodeOf(pod)], pod)
	}
	proto := p.pod("")
	affinity := nodeaffinity.GetRequiredNodeAffinity(proto)
	hash := p.revisions.Hash()
	for n := range view.List[*corev1.Node](p.s, kind.Node, "") {
		e := node{name: n.Name, pods: p.onNode[n.Name]}
		delete(p.onNode, n.Name)
		if match, err := affinity.Match(n); err == nil && match && (p.ds.Spec.Template.Spec.NodeName == "" || p.ds.Spec.Template.Spec.NodeName == n.Name) && n.DeletionTimestamp == nil {
			e.mayStay = tolerated(proto, n, corev1.TaintEffectNoExecute)
			e.should = e.mayStay && tolerated(proto, n, corev1.TaintEffectNoSchedule)
		}
		slices.SortStableFunc(e.pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		for _, pod := range e.pods {
			if workload.Ended(pod) {
				continue
			}
			if pod.Labels[appsv1.ControllerRevisionHashLabelKey] == hash {
				if e.newPod == nil && pod.DeletionTimestamp == nil {
					e.newPod = pod
					e.newUsable = p.available(pod)
				}
			} else if e.oldPod == nil || e.oldPod.DeletionTimestamp != nil {
				e.oldPod = pod
				e.oldReady = p.available(pod)
			}
		}
		p.nodes = append(p.nodes, e)
	}
	for _, pods := range p.onNode {
		for _, pod := range pods {
			if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
				p.lost = append(p.lost, pod)
			}
		}
	}
	slices.SortFunc(p.lost, func(a, b *corev1.Pod) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
}

func (p *planner) available(pod *corev1.Pod) bool {
	ok, at := workload.Available(pod, p.ds.Spec.MinReadySeconds, p.now)
	p.wake = workload.Earlier(p.wake, at)
	return ok
}

// tolerated: every taint of the effect.
func tolerated(pod *corev1.Pod, n *corev1.Node, effect corev1.TaintEffect) bool {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == effect && !slices.ContainsFunc(pod.Spec.Tolerations, func(tol corev1.Toleration) bool { return workload.Tolerates(&tol, t) }) {
			return false
		}
	}
	return true
}

// manage makes what is missing and takes away what should not be.
func (p *planner) manage() {
	for _, pod := range p.lost {
		p.deletes = append(p.deletes, removal{pod, "node-gone"})
	}
	for i := range p.nodes {
		n := &p.nodes[i]
		switch {
		case n.should && len(n.pods) == 0:
			p.creates = append(p.creates, n.name)
		case n.mayStay:
			var running []*corev1.Pod
			for _, pod := range n.pods {
				switch {
				case pod.DeletionTimestamp != nil:
				case workload.Ended(pod):
					p.ended(pod, n.name)
				default:
					running = append(running, pod)
				}
			}
			if n.should && len(running) == 0 && len(n.pods) > 0 && !slices.ContainsFunc(n.pods, func(pod *corev1.Pod) bool { return !workload.Ended(pod) || pod.DeletionTimestamp == nil }) {
				continue // ended and being deleted: soon gone
			}
			// One of each revision at most, one in all without surge: the oldest stays.
			seen := map[bool]bool{}
			for j, pod := range running {
				isNew := pod.Labels[appsv1.ControllerRevisionHashLabelKey] == p.revisions.Hash()
				if p.surge() == 0 && j > 0 || p.surge() > 0 && seen[isNew] {
					p.deletes = append(p.deletes, removal{pod, "one too many on node " + n.name})
				}
				seen[isNew] = true
			}
		default:
			for _, pod := range n.pods {
				if pod.DeletionTimestamp == nil {
					p.deletes = append(p.deletes, removal{pod, "node not eligible"})
				}
			}
		}
	}
}

func (p *planner) ended(pod *corev1.Pod, node string) {
	if at := pod.CreationTimestamp.Add(failedPause); p.now.Before(at) {
		p.wake = workload.Earlier(p.wake, at)
		return
	}
	reason, word := "FailedDaemonPod", "failed"
	if pod.Status.Phase == corev1.PodSucceeded {
		reason, word = "SucceededDaemonPod", "succeeded"
	}
	p.actions = append(p.actions, workload.Event(kind.DaemonSet, p.ds, source, map[bool]string{true: corev1.EventTypeWarning, false: corev1.EventTypeNormal}[word == "failed"],
		reason, "Found %s daemon pod %s/%s on node %s, will try to %s it", word, pod.Namespace, pod.Name, node, map[bool]string{true: "kill", false: "delete"}[word == "failed"]))
	p.deletes = append(p.deletes, removal{pod, word})
}

func (p *planner) desired() (n int) {
	for i := range p.nodes {
		if p.nodes[i].should {
			n++
		}
	}
	return n
}

func (p *planner) scaled(v *intstr.IntOrString) int {
	if v == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, p.desired(), true)
	if err != nil {
		return 0
	}
	return n
}

func (p *planner) surge() int {
	if ru := p.ds.Spec.UpdateStrategy.RollingUpdate; p.ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType && ru != nil {
		return p.scaled(ru.MaxSurge)
	}
	return 0
}

// update replaces old pods by new ones, as many at a time as the strategy says.
func (p *planner) update() {
	if p.ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType {
		return
	}
	if surge := p.surge(); surge > 0 {
		p.updateBySurge(surge)
		return
	}
	most := 1
	if ru := p.ds.Spec.UpdateStrategy.RollingUpdate; ru != nil && ru.MaxUnavailable != nil {
		most = p.scaled(ru.MaxUnavailable)
	}
	unavailable := 0
	var broken, candidates []*corev1.Pod
	for i := range p.nodes {
		n := &p.nodes[i]
		switch {
		case !n.should:
		case n.oldPod == nil && n.newPod == nil:
			unavailable++
		case n.newPod != nil:
			if !n.newUsable {
				unavailable++
			}
		case n.oldPod.DeletionTimestamp != nil:
			unavailable++
		case !n.oldReady:
			unavailable++
			broken = append(broken, n.oldPod)
		default:
			candidates = append(candidates, n.oldPod)
		}
	}
	for _, pod := range broken {
		p.deletes = append(p.deletes, removal{pod, "rolling-update"})
	}
	for i := 0; i < min(most-unavailable, len(candidates)); i++ {
		p.deletes = append(p.deletes, removal{candidates[i], "rolling-update"})
	}
}

func (p *planner) updateBySurge(most int) {
	under := 0
	var candidates []string
	for i := range p.nodes {
		n := &p.nodes[i]
		switch {
		case !n.should || n.oldPod == nil:
		case n.newPod != nil && n.newUsable:
			if n.oldPod.DeletionTimestamp == nil {
				p.deletes = append(p.deletes, removal{n.oldPod, "replaced"})
			}
		case n.newPod != nil:
			under++
			if !n.oldReady && n.oldPod.DeletionTimestamp == nil {
				p.deletes = append(p.deletes, removal{n.oldPod, "replaced"})
			}
		case !n.oldReady || n.oldPod.DeletionTimestamp != nil:
			under++
			p.creates = append(p.creates, n.name)
		default:
			candidates = append(candidates, n.name)
		}
	}
	for i := 0; i < min(most-under, len(candidates)); i++ {
		p.creates = append(p.creates, candidates[i])
	}
}

// emit turns what was decided into actions.
func (p *planner) emit() (actions act.List) {
	var events act.List
	n := 0
	for _, name := range p.creates[:min(len(p.creates), burst)] {
		pod := p.pod(name)
		pod.Name = workload.FreshName(p.s, kind.Pod, pod.Namespace, pod.GenerateName, p.ds.UID, &n)
		actions = append(actions, act.Create{Kind: kind.Pod, Object: pod, Reason: "node " + name})
		events = append(events, workload.Event(kind.DaemonSet, p.ds, source, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", pod.Name))
	}
	for _, r := range p.deletes[:min(len(p.deletes), burst)] {
		actions = append(actions, workload.Delete(r.pod, r.reason))
		events = append(events, workload.Event(kind.DaemonSet, p.ds, source, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", r.pod.Name))
	}
	return append(actions, events...)
}

// pod for a node ("": any).
func (p *planner) pod(name string) *corev1.Pod {
	pod := workload.Pod(kind.DaemonSet, p.ds, &p.ds.Spec.Template)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.ControllerRevisionHashLabelKey] = p.revisions.Hash()
	tolerate := func(key string, effect corev1.TaintEffect) {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		for i := range pod.Spec.Tolerations {
			have := &pod.Spec.Tolerations[i]
			if have.Key == t.Key && have.Effect == t.Effect && have.Operator == t.Operator && have.Value == "" {
				have.TolerationSeconds = nil
				return
			}
		}
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
	}
	tolerate(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	tolerate(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	tolerate(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	tolerate(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	tolerate(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	tolerate(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	if pod.Spec.HostNetwork {
		tolerate(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
	if name == "" {
		return pod
	}
	if pod.Spec.Affinity == nil {
		pod.Spec.Affinity = &corev1.Affinity{}
	}
	if pod.Spec.Affinity.NodeAffinity == nil {
		pod.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{name}}}}}}
	return pod
}

func (p *planner) status() {
	c := p.ds.DeepCopy()
	st := &c.Status
	st.ObservedGeneration = p.ds.Generation
	st.DesiredNumberScheduled, st.CurrentNumberScheduled, st.NumberMisscheduled, st.NumberReady = 0, 0, 0, 0
	st.UpdatedNumberScheduled, st.NumberAvailable = 0, 0
	for i := range p.nodes {
		n := &p.nodes[i]
		live := slices.DeleteFunc(slices.Clone(n.pods), func(pod *corev1.Pod) bool { return pod.DeletionTimestamp != nil })
		if !n.should {
			if len(live) > 0 {
				st.NumberMisscheduled++
			}
			continue
		}
		st.DesiredNumberScheduled++
		if len(live) == 0 {
			continue
		}
		st.CurrentNumberScheduled++
		// With surge, the node is as well off as its best pod.
		if slices.ContainsFunc(live, workload.Ready) {
			st.NumberReady++
		}
		if slices.ContainsFunc(live, p.available) {
			st.NumberAvailable++
		}
		if n.newPod != nil {
			st.UpdatedNumberScheduled++
		}
	}
	st.NumberUnavailable = st.DesiredNumberScheduled - st.NumberAvailable
	if !apiequality.Semantic.DeepEqual(c.Status, p.ds.Status) {
		p.actions = append(p.actions, act.Update{Kind: kind.DaemonSet, Object: c, Sub: "status",
			Note: fmt.Sprintf("desired=%d current=%d updated=%d ready=%d available=%d", st.DesiredNumberScheduled, st.CurrentNumberScheduled, st.UpdatedNumberScheduled, st.NumberReady, st.NumberAvailable)})
	}
}
