package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/kind/usage"
	"proa.dev/view"
)

// window is how long a plan may still be carried out after what it was made from
// has changed.
const window = 2 * time.Second

// observeAll looks at what a new life of the server found.
func (s *server) observeAll() {
	snap := s.view.Snapshot()
	for p := range view.List[*corev1.Pod](snap, kind.Pod, "") {
		if home := s.w.homes[p.UID]; home != "" && home != p.Spec.NodeName {
			s.w.fail("pod %s was bound to %s, after the crash it is on %q", id(p), home, p.Spec.NodeName)
		}
	}
}

// observe checks every write as it appears in the view.
func (s *server) observe() {
	w := s.w
	snap := s.view.Snapshot()
	from := w.seenBy(s)
	if snap.Revision() < w.revision && from > 0 {
		w.fail("the view is at revision %d after revision %d was seen", snap.Revision(), w.revision)
	}
	w.revision = max(w.revision, snap.Revision())
	for _, k := range []*kind.Kind{kind.Deployment, kind.ReplicaSet, kind.Pod} {
		changes, _, _, err := s.view.Changes(k, from)
		if err != nil {
			w.fail("changes since %d: %v", from, err)
			return
		}
		for _, c := range changes {
			if c.Revision <= from {
				w.fail("revision %d came after %d", c.Revision, from)
			}
			switch k {
			case kind.Deployment:
				if d, ok := c.New.(*appsv1.Deployment); ok {
					w.resized(d.UID, int(*d.Spec.Replicas)+surge(d))
				}
			case kind.ReplicaSet:
				w.seeReplicaSet(snap, c)
			case kind.Pod:
				w.seePod(snap, c)
			}
		}
	}
	s.observed = snap.Revision()
}

func (w *world) seenBy(s *server) int64 {
	if s.observed == 0 {
		s.observed = s.view.Snapshot().Revision()
	}
	return s.observed
}

func surge(d *appsv1.Deployment) int {
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return 0
	}
	v := d.Spec.Strategy.RollingUpdate.MaxSurge
	if text := v.StrVal; text != "" {
		percent, _ := strconv.Atoi(strings.TrimSuffix(text, "%"))
		return (int(*d.Spec.Replicas)*percent + 99) / 100
	}
	return v.IntValue()
}

func (w *world) seeReplicaSet(snap view.Snapshot, c *view.Change) {
	rs, ok := c.New.(*appsv1.ReplicaSet)
	if !ok {
		return
	}
	w.resized(rs.UID, int(*rs.Spec.Replicas))
	old, _ := c.Old.(*appsv1.ReplicaSet)
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil || old != nil && *old.Spec.Replicas >= *rs.Spec.Replicas {
		return
	}
	sum := 0
	for o := range view.Owned[*appsv1.ReplicaSet](snap, string(ref.UID), kind.ReplicaSet) {
		if metav1.IsControlledBy(o, &metav1.ObjectMeta{UID: ref.UID}) && o.UID != rs.UID {
			sum += int(*o.Spec.Replicas)
		}
	}
	if sum += int(*rs.Spec.Replicas); sum > w.allowed(ref.UID, window) {
		w.fail("deployment %s/%s wants %d pods, at most %d are allowed", rs.Namespace, ref.Name, sum, w.allowed(ref.UID, window))
	}
}

func (w *world) seePod(snap view.Snapshot, c *view.Change) {
	old, _ := c.Old.(*corev1.Pod)
	p, ok := c.New.(*corev1.Pod)
	if !ok {
		if c.Last != nil {
			delete(w.homes, c.Last.GetUID())
		}
		return
	}
	if old != nil && old.UID != p.UID {
		w.fail("pod %s became another one without going", id(p))
	}
	if old == nil {
		w.seeNewPod(snap, p)
	}
	if home := w.homes[p.UID]; home != "" && home != p.Spec.NodeName {
		w.fail("pod %s moved from %s to %q", id(p), home, p.Spec.NodeName)
	}
	if old != nil && (old.Status.Phase == corev1.PodSucceeded || old.Status.Phase == corev1.PodFailed) && old.Status.Phase != p.Status.Phase {
		w.fail("pod %s was %s and is %s now", id(p), old.Status.Phase, p.Status.Phase)
	}
	if p.Spec.NodeName != "" && w.homes[p.UID] == "" {
		w.homes[p.UID] = p.Spec.NodeName
		w.stats.binds++
		w.seeBound(snap, p)
	}
	if p.Status.PodIP != "" && active(p) && (old == nil || old.Status.PodIP != p.Status.PodIP) {
		for q := range snap.PodsOn(p.Spec.NodeName) {
			if q.UID != p.UID && active(q) && q.Status.PodIP == p.Status.PodIP {
				w.fail("two pods own %s: %s and %s", p.Status.PodIP, id(p), id(q))
			}
		}
	}
}

// seeNewPod: a ReplicaSet has no more pods than it wants.
func (w *world) seeNewPod(snap view.Snapshot, p *corev1.Pod) {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return
	}
	n := 0
	for o := range view.Owned[*corev1.Pod](snap, string(ref.UID), kind.Pod) {
		if active(o) {
			n++
		}
	}
	if most := w.allowed(ref.UID, window); n > most {
		w.fail("replicaset %s/%s has %d pods, at most %d are wanted", p.Namespace, ref.Name, n, most)
	}
}

// seeBound: the scheduler does not put more on a node than it holds.
func (w *world) seeBound(snap view.Snapshot, p *corev1.Pod) {
	n := view.Get[*corev1.Node](snap, kind.Node, "", p.Spec.NodeName)
	if n == nil {
		return
	}
	var cpu, mem, pods int64
	for q := range snap.PodsOn(n.Name) {
		if usage.Ended(q) {
			continue
		}
		r := usage.PodRequests(q)
		cpu += r.Cpu().MilliValue()
		mem += r.Memory().Value()
		pods++
	}
	a := n.Status.Allocatable
	if cpu > a.Cpu().MilliValue() || mem > a.Memory().Value() || pods > a.Pods().Value() {
		w.fail("node %s is overcommitted by pod %s: %dm CPU, %d bytes, %d pods", n.Name, id(p), cpu, mem, pods)
	}
}

// boxed: a pod is never on two machines, nor two pods at one address.
func (w *world) boxed(m *machine, b *box) {
	if other := w.boxes[b.uid]; other != "" && other != m.name {
		w.fail("pod %s is on %s and on %s", b.name, other, m.name)
	}
	if home := w.homes[b.uid]; home != "" && home != m.name {
		w.fail("pod %s is bound to %s and runs on %s", b.name, home, m.name)
	}
	w.boxes[b.uid] = m.name
	for _, o := range m.boxes {
		if o != b && o.isReady && o.ip == b.ip {
			w.fail("two pods own %s: %s and %s", b.ip, b.name, o.name)
		}
	}
}

func (w *world) gone(m *machine, b *box) {
	if w.boxes[b.uid] == m.name {
		delete(w.boxes, b.uid)
	}
}

// settled says what is not as it is to be in the end.
func (w *world) settled() error {
	s := w.server
	if s == nil {
		return errors.New("the server is down")
	}
	snap := s.view.Snapshot()
	for _, k := range kind.All.Rows() {
		if k.Root() != k || k.Virtual || k == kind.Event {
			continue
		}
		for o := range snap.All(k, "") {
			if o.GetDeletionTimestamp() != nil {
				return fmt.Errorf("%s is still being deleted, finalizers %v", view.RefOf(k, o), o.GetFinalizers())
			}
			if err := owned(snap, k, o); err != nil {
				return err
			}
		}
	}
	if err := w.settledNodes(snap); err != nil {
		return err
	}
	for p := range view.List[*corev1.Pod](snap, kind.Pod, "") {
		if active(p) && !ready(p) {
			return fmt.Errorf("pod %s on %q is not ready: %s", id(p)+"("+string(p.UID)+")", p.Spec.NodeName, short(&p.Status))
		}
	}
	for d := range view.List[*appsv1.Deployment](snap, kind.Deployment, "") {
		n, st := *d.Spec.Replicas, &d.Status
		if st.ObservedGeneration != d.Generation || st.Replicas != n || st.UpdatedReplicas != n || st.ReadyReplicas != n || st.AvailableReplicas != n || st.UnavailableReplicas != 0 {
			return fmt.Errorf("deployment %s of generation %d wants %d: %+v", id(d), d.Generation, n, *st)
		}
	}
	for rs := range view.List[*appsv1.ReplicaSet](snap, kind.ReplicaSet, "") {
		n := int32(0)
		for p := range view.Owned[*corev1.Pod](snap, string(rs.UID), kind.Pod) {
			if active(p) {
				n++
			}
		}
		if n != *rs.Spec.Replicas || rs.Status.Replicas != n || rs.Status.ReadyReplicas != n {
			return fmt.Errorf("replicaset %s wants %d, has %d: %+v", id(rs), *rs.Spec.Replicas, n, rs.Status)
		}
	}
	for d := range view.List[*appsv1.DaemonSet](snap, kind.DaemonSet, "") {
		if st := &d.Status; int(st.NumberReady) != machines || st.ObservedGeneration != d.Generation || int(st.UpdatedNumberScheduled) != machines || st.NumberMisscheduled != 0 {
			return fmt.Errorf("daemonset %s: %+v", id(d), *st)
		}
	}
	for j := range view.List[*batchv1.Job](snap, kind.Job, "") {
		if !slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
			return (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue
		}) {
			return fmt.Errorf("job %s has not ended: %+v", id(j), j.Status)
		}
	}
	for svc := range view.List[*corev1.Service](snap, kind.Service, "") {
		if err := endpoints(snap, svc); err != nil {
			return err
		}
	}
	return nil
}

func short(st *corev1.PodStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", st.Phase, st.Reason)
	for _, c := range st.Conditions {
		fmt.Fprintf(&b, " %s=%s(%s %s)", c.Type, c.Status, c.Reason, c.Message)
	}
	for _, c := range st.ContainerStatuses {
		fmt.Fprintf(&b, " %s: %+v", c.Name, c.State)
	}
	return b.String()
}

// owned: what has owners has one that exists.
func owned(snap view.Snapshot, k *kind.Kind, o kind.Object) error {
	refs := o.GetOwnerReferences()
	for _, r := range refs {
		group, version, _ := strings.Cut(r.APIVersion, "/")
		if version == "" {
			group = ""
		}
		for _, ok := range kind.All.Rows() {
			if ok.Kind == r.Kind && ok.Group == group {
				ns := o.GetNamespace()
				if ok.Scope == kind.Cluster {
					ns = ""
				}
				if owner := snap.Get(ok, ns, r.Name); owner != nil && owner.GetUID() == r.UID {
					return nil
				}
			}
		}
	}
	if len(refs) > 0 {
		return fmt.Errorf("%s has no owner left: %v", view.RefOf(k, o), refs)
	}
	return nil
}

// settledNodes: nodes are well, and hold exactly the pods that are bound to them.
func (w *world) settledNodes(snap view.Snapshot) error {
	for _, m := range w.nodes {
		n := view.Get[*corev1.Node](snap, kind.Node, "", m.name)
		if n == nil {
			return fmt.Errorf("node %s is not registered", m.name)
		}
		for _, t := range n.Spec.Taints {
			return fmt.Errorf("node %s has taint %s", m.name, t.ToString())
		}
		wanted := map[types.UID]string{}
		for p := range snap.PodsOn(m.name) {
			if active(p) {
				wanted[p.UID] = id(p)
			}
		}
		for _, b := range m.boxes {
			running := slices.ContainsFunc(b.containers, func(c *container) bool { return c.running })
			if wanted[b.uid] == "" && (b.isReady || running) {
				return fmt.Errorf("%s still runs %s, which is not wanted there", m.name, b.name)
			}
			if b.isReady {
				delete(wanted, b.uid)
			}
		}
		for _, uid := range sorted(wanted) {
			return fmt.Errorf("%s does not run %s", m.name, wanted[uid])
		}
	}
	return nil
}

// endpoints: a Service's slices name exactly the ready pods that it selects.
func endpoints(snap view.Snapshot, svc *corev1.Service) error {
	want := map[string]bool{}
	for p := range view.List[*corev1.Pod](snap, kind.Pod, svc.Namespace) {
		if labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(p.Labels)) && active(p) && ready(p) {
			want[p.Status.PodIP] = true
		}
	}
	n := 0
	for sl := range view.List[*discoveryv1.EndpointSlice](snap, kind.EndpointSlice, svc.Namespace) {
		if sl.Labels[discoveryv1.LabelServiceName] != svc.Name {
			continue
		}
		for _, e := range sl.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready {
				n++
				if !want[e.Addresses[0]] {
					return fmt.Errorf("service %s leads to %s, where no ready pod is", id(svc), e.Addresses[0])
				}
			}
		}
	}
	if n != len(want) {
		return fmt.Errorf("service %s leads to %d of %d ready pods", id(svc), n, len(want))
	}
	return nil
}
