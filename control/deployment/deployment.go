// Package deployment rolls a Deployment's pods from one template to the next
// through ReplicaSets, one for each template (Kubernetes docs, "Deployments").
//
// One plan does the first of these that has something to do, and always brings
// the status up to date:
//
//	paused, or replicas changed   → scale the ReplicaSets in proportion
//	no ReplicaSet for the template → create it
//	Recreate                       → old ones to zero, then the new one up
//	RollingUpdate                  → new one up within maxSurge, else old ones down
//	                                 within maxUnavailable, unhealthy pods first
//	complete                       → remove history beyond revisionHistoryLimit
package deployment

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"sort"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	source      = "deployment-controller"
	revision    = "deployment.kubernetes.io/revision"
	history     = "deployment.kubernetes.io/revision-history"
	desired     = "deployment.kubernetes.io/desired-replicas"
	maxReplicas = "deployment.kubernetes.io/max-replicas"
)

// notCopied annotations of a Deployment stay away from its ReplicaSets.
var notCopied = map[string]bool{
	corev1.LastAppliedConfigAnnotation: true, revision: true, history: true, desired: true, maxReplicas: true,
	"deprecated.deployment.rollback.to": true,
}

// Part registers the controller.
func Part() control.Part {
	return control.Part{
		Name: source, Kind: kind.Deployment, Plan: Plan,
		Wakes: []control.Wake{
			{Kind: kind.ReplicaSet, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				if refs := control.ToOwner(kind.Deployment)(s, o); refs != nil || metav1.GetControllerOfNoCopy(o) != nil {
					return refs
				}
				var refs []view.Ref
				for found := range s.Selecting(kind.Deployment, o.GetNamespace(), o.GetLabels()) {
					d := found.(*appsv1.Deployment)
					if sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(o.GetLabels())) {
						refs = append(refs, view.RefOf(kind.Deployment, d))
					}
				}
				return refs
			}},
			// Recreate waits for the last old pod to be gone.
			{Kind: kind.Pod, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				ref := metav1.GetControllerOfNoCopy(o)
				if ref == nil || ref.Kind != "ReplicaSet" {
					return nil
				}
				rs := view.Get[*appsv1.ReplicaSet](s, kind.ReplicaSet, o.GetNamespace(), ref.Name)
				if rs == nil || rs.UID != ref.UID {
					return nil
				}
				refs := control.ToOwner(kind.Deployment)(s, rs)
				if len(refs) == 1 {
					if d := view.Get[*appsv1.Deployment](s, kind.Deployment, refs[0].Namespace, refs[0].Name); d != nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
						return refs
					}
				}
				return nil
			}},
		},
		Writes: []control.Write{
			{Kind: kind.ReplicaSet, Verbs: []string{"create", "update", "delete", "patch"}},
			{Kind: kind.Deployment, Verbs: []string{"update"}},
			{Kind: kind.Deployment, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

// Plan decides for one Deployment.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	d := view.Get[*appsv1.Deployment](s, kind.Deployment, ref.Namespace, ref.Name)
	if d == nil {
		return nil, time.Time{}
	}
	sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || sel.Empty() {
		return nil, time.Time{}
	}
	r := &roll{s: s, d: d, now: now, status: *d.Status.DeepCopy()}
	if actions := r.claim(sel); len(actions) > 0 {
		return actions, time.Time{}
	}
	if d.DeletionTimestamp == nil {
		r.decide()
	}
	return r.finish()
}

// roll is one planning.
type roll struct {
	s       view.Snapshot
	d       *appsv1.Deployment
	now     time.Time
	sets    []*appsv1.ReplicaSet // all of them
	new     *appsv1.ReplicaSet   // the template's, or nil
	old     []*appsv1.ReplicaSet // the others, oldest first
	actions act.List
	status  appsv1.DeploymentStatus
	created bool
	wake    time.Time
}

// claim finds the ReplicaSets, and takes or releases what selectors say.
func (r *roll) claim(sel labels.Selector) (actions act.List) {
	for rs := range view.Owned[*appsv1.ReplicaSet](r.s, string(r.d.UID), kind.ReplicaSet) {
		if c := metav1.GetControllerOfNoCopy(rs); c != nil && c.UID == r.d.UID {
			if sel.Matches(labels.Set(rs.Labels)) || r.d.DeletionTimestamp != nil || rs.DeletionTimestamp != nil {
				r.sets = append(r.sets, rs)
			} else {
				actions = append(actions, owners(rs, nil, "release: labels no longer match the selector"))
			}
		}
	}
	if r.d.DeletionTimestamp == nil {
		for rs := range view.List[*appsv1.ReplicaSet](r.s, kind.ReplicaSet, r.d.Namespace) {
			if metav1.GetControllerOfNoCopy(rs) == nil && rs.DeletionTimestamp == nil && sel.Matches(labels.Set(rs.Labels)) {
				actions = append(actions, owners(rs, []metav1.OwnerReference{workload.OwnerRef(kind.Deployment, r.d)}, "adopt: selector matches "+r.d.Name))
			}
		}
	}
	sort.SliceStable(r.sets, func(i, j int) bool {
		a, b := r.sets[i], r.sets[j]
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Before(&b.CreationTimestamp)
		}
		return a.Name < b.Name
	})
	for _, rs := range r.sets {
		if r.new == nil && rs.DeletionTimestamp == nil && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			r.new = rs
		} else {
			r.old = append(r.old, rs)
		}
	}
	return actions
}

func owners(rs *appsv1.ReplicaSet, refs []metav1.OwnerReference, reason string) act.Action {
	if refs == nil {
		refs = []metav1.OwnerReference{}
	}
	merge, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": rs.UID, "resourceVersion": rs.ResourceVersion, "ownerReferences": refs}})
	if err != nil {
		panic(fmt.Sprintf("deployment: encode owner references: %v", err))
	}
	return act.Patch{Target: view.RefOf(kind.ReplicaSet, rs), UID: rs.UID, Merge: merge, Reason: reason}
}

func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	delete(x.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(y.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return apiequality.Semantic.DeepEqual(x, y)
}

func (r *roll) decide() {
	switch {
	case r.d.Spec.Paused:
		r.number()
		r.scaleInProportion()
		r.prune()
	case r.scaling():
		r.number()
		if len(r.actions) == 0 {
			r.scaleInProportion()
		}
	case r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate()
	default:
		r.rolling()
	}
}

// scaling: someone changed spec.replicas since the ReplicaSets were sized.
func (r *roll) scaling() bool {
	for _, rs := range r.sets {
		if size(rs) > 0 {
			n, err := strconv.Atoi(rs.Annotations[desired])
			if err == nil && n != want(r.d) {
				return true
			}
		}
	}
	return false
}

func want(d *appsv1.Deployment) int {
	if d.Spec.Replicas == nil {
		return 1
	}
	return int(*d.Spec.Replicas)
}

func size(rs *appsv1.ReplicaSet) int {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return int(*rs.Spec.Replicas)
}

// surge and unavailable in pods: surge rounds up, unavailable down; not both zero.
func (r *roll) surge() int {
	if r.d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || want(r.d) == 0 {
		return 0
	}
	s, _ := r.bounds()
	return s
}

func (r *roll) unavailable() int {
	if r.d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || want(r.d) == 0 {
		return 0
	}
	_, u := r.bounds()
	return min(u, want(r.d))
}

func (r *roll) bounds() (surge, unavailable int) {
	ru := r.d.Spec.Strategy.RollingUpdate
	quarter := intstr.FromString("25%")
	sv, uv := &quarter, &quarter
	if ru != nil && ru.MaxSurge != nil {
		sv = ru.MaxSurge
	}
	if ru != nil && ru.MaxUnavailable != nil {
		uv = ru.MaxUnavailable
	}
	surge, _ = intstr.GetScaledValueFromIntOrPercent(sv, want(r.d), true)
	unavailable, _ = intstr.GetScaledValueFromIntOrPercent(uv, want(r.d), false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

func revisionOf(o kind.Object) int64 {
	n, _ := strconv.ParseInt(o.GetAnnotations()[revision], 10, 64)
	return n
}

// number keeps the new ReplicaSet's revision above all others, copies the
// Deployment's annotations to it and its revision to the Deployment.
func (r *roll) number() {
	var top int64
	for _, rs := range r.old {
		top = max(top, revisionOf(rs))
	}
	if r.new == nil {
		return
	}
	next := strconv.FormatInt(top+1, 10)
	if revisionOf(r.new) > top {
		next = r.new.Annotations[revision]
	}
	c := r.new.DeepCopy()
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	changed := copyAnnotations(r.d, c)
	if before := c.Annotations[revision]; before != next {
		if before != "" {
			if h := c.Annotations[history]; h != "" {
				c.Annotations[history] = h + "," + before
			} else {
				c.Annotations[history] = before
			}
		}
		c.Annotations[revision] = next
		changed = true
	}
	if c.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		c.Spec.MinReadySeconds, changed = r.d.Spec.MinReadySeconds, true
	}
	if changed {
		r.actions = append(r.actions, act.Update{Kind: kind.ReplicaSet, Object: c, Reason: "revision " + next})
		r.new = c
	}
	r.markRevision(next)
}

func (r *roll) markRevision(n string) {
	if r.d.Annotations[revision] == n {
		return
	}
	c := r.d.DeepCopy()
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations[revision] = n
	r.actions = append(r.actions, act.Update{Kind: kind.Deployment, Object: c, Reason: "revision " + n})
}

func copyAnnotations(d *appsv1.Deployment, rs *appsv1.ReplicaSet) bool {
	changed := false
	for k, v := range d.Annotations {
		if !notCopied[k] && rs.Annotations[k] != v {
			rs.Annotations[k], changed = v, true
		}
	}
	return changed
}

func setDesired(rs *appsv1.ReplicaSet, n, top int) bool {
	a, b := strconv.Itoa(n), strconv.Itoa(top)
	if rs.Annotations[desired] == a && rs.Annotations[maxReplicas] == b {
		return false
	}
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	rs.Annotations[desired], rs.Annotations[maxReplicas] = a, b
	return true
}

// create makes the template's ReplicaSet with n pods to start with.
func (r *roll) create(n int) {
	var top int64
	for _, rs := range r.old {
		top = max(top, revisionOf(rs))
	}
	template := r.d.Spec.Template.DeepCopy()
	hash := templateHash(template, r.status.CollisionCount)
	name := r.d.Name + "-" + hash
	if taken := view.Get[*appsv1.ReplicaSet](r.s, kind.ReplicaSet, r.d.Namespace, name); taken != nil {
		// Another template hashes to the same name: count up and try again.
		c := int32(1)
		if r.status.CollisionCount != nil {
			c += *r.status.CollisionCount
		}
		r.status.CollisionCount = &c
		return
	}
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	selector := r.d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	count := int32(n)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.d.Namespace, Name: name, Labels: template.Labels, Annotations: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{workload.OwnerRef(kind.Deployment, r.d)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: &count, MinReadySeconds: r.d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	copyAnnotations(r.d, rs)
	next := strconv.FormatInt(top+1, 10)
	rs.Annotations[revision] = next
	setDesired(rs, want(r.d), want(r.d)+r.surge())
	r.actions = append(r.actions, act.Create{Kind: kind.ReplicaSet, Object: rs, Reason: "new-template"})
	if n > 0 {
		r.event("Scaled up replica set %s from 0 to %d", name, n)
	}
	r.created = true
	r.markRevision(next)
	progress(&r.status, r.now, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", name))
}

func (r *roll) event(format string, args ...any) {
	r.actions = append(r.actions, workload.Event(kind.Deployment, r.d, source, corev1.EventTypeNormal, "ScalingReplicaSet", format, args...))
}

// templateHash names a template; the collision count is salt.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	data, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("deployment: encode template: %v", err))
	}
	h := fnv.New32a()
	h.Write(data)
	if collisions != nil {
		fmt.Fprintf(h, "/%d", *collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func (r *roll) scale(rs *appsv1.ReplicaSet, n int, reason string) {
	n = max(n, 0)
	c := rs.DeepCopy()
	before := size(rs)
	annotated := setDesired(c, want(r.d), want(r.d)+r.surge())
	if before == n && !annotated {
		return
	}
	count := int32(n)
	c.Spec.Replicas = &count
	// One write for each ReplicaSet and plan: the last one wins.
	for i, a := range r.actions {
		if u, ok := a.(act.Update); ok && u.Kind == kind.ReplicaSet && u.Object.GetName() == rs.Name {
			c.Annotations = u.Object.GetAnnotations()
			setDesired(c, want(r.d), want(r.d)+r.surge())
			r.actions = slices.Delete(r.actions, i, i+1)
			break
		}
	}
	r.actions = append(r.actions, act.Update{Kind: kind.ReplicaSet, Object: c, Note: fmt.Sprintf("replicas %d→%d", before, n), Reason: reason})
	switch {
	case n > before:
		r.event("Scaled up replica set %s from %d to %d", rs.Name, before, n)
	case n < before:
		r.event("Scaled down replica set %s from %d to %d", rs.Name, before, n)
	}
}

func total(sets []*appsv1.ReplicaSet) (n int) {
	for _, rs := range sets {
		n += size(rs)
	}
	return n
}

func available(sets []*appsv1.ReplicaSet) (n int) {
	for _, rs := range sets {
		n += int(rs.Status.AvailableReplicas)
	}
	return n
}

func (r *roll) all() []*appsv1.ReplicaSet {
	if r.new == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.new)
}

// scaleInProportion spreads a change of size over the active ReplicaSets by their
// share (docs, "Proportional scaling").
func (r *roll) scaleInProportion() {
	var active []*appsv1.ReplicaSet
	for _, rs := range r.all() {
		if size(rs) > 0 {
			active = append(active, rs)
		}
	}
	switch {
	case len(active) == 1 || len(active) == 0 && r.new != nil:
		one := r.new
		if len(active) == 1 {
			one = active[0]
		}
		r.scale(one, want(r.d), "replicas-changed")
		return
	case len(active) == 0:
		return
	}
	if r.new != nil && int(r.new.Status.AvailableReplicas) == want(r.d) && size(r.new) == want(r.d) {
		for _, rs := range r.old {
			if size(rs) > 0 {
				r.scale(rs, 0, "rolled-out")
			}
		}
		return
	}
	if r.d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return
	}
	allowed := 0
	if want(r.d) > 0 {
		allowed = want(r.d) + r.surge()
	}
	toAdd := allowed - total(active)
	// Larger first; when shrinking, older first among equals, else newer.
	sort.SliceStable(active, func(i, j int) bool {
		a, b := active[i], active[j]
		if size(a) != size(b) {
			return size(a) > size(b)
		}
		if toAdd > 0 {
			return b.CreationTimestamp.Before(&a.CreationTimestamp)
		}
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	})
	share := map[string]int{}
	added := 0
	for _, rs := range active {
		n := size(rs)
		if toAdd != 0 {
			f := fraction(r.d, rs, allowed)
			if toAdd > 0 {
				f = min(f, toAdd-added)
			} else {
				f = max(f, toAdd-added)
			}
			n += f
			added += f
		}
		share[rs.Name] = n
	}
	for i, rs := range active {
		n := share[rs.Name]
		if i == 0 && toAdd != 0 {
			n = max(n+toAdd-added, 0)
		}
		r.scale(rs, n, "replicas-changed")
	}
}

func fraction(d *appsv1.Deployment, rs *appsv1.ReplicaSet, allowed int) int {
	if want(d) == 0 {
		return -size(rs)
	}
	before, err := strconv.Atoi(rs.Annotations[maxReplicas])
	if err != nil || before == 0 {
		before = int(d.Status.Replicas)
		if before == 0 {
			return 0
		}
	}
	exact := float64(size(rs)*allowed) / float64(before)
	n := int(exact + 0.5)
	return n - size(rs)
}

// recreate stops every old pod before it starts a new one.
func (r *roll) recreate() {
	down := false
	for _, rs := range r.old {
		if size(rs) > 0 {
			r.scale(rs, 0, "recreate")
			down = true
		}
	}
	if down {
		r.number()
		return
	}
	for _, rs := range r.old {
		for p := range view.Owned[*corev1.Pod](r.s, string(rs.UID), kind.Pod) {
			if !workload.Ended(p) {
				return
			}
		}
	}
	if r.new == nil {
		r.create(want(r.d))
		return
	}
	r.number()
	if size(r.new) != want(r.d) {
		r.scale(r.new, want(r.d), "recreate")
	}
	r.prune()
}

func (r *roll) rolling() {
	if r.new == nil {
		n := want(r.d)
		if room := want(r.d) + r.surge() - total(r.old); room < n {
			n = max(room, 0)
		}
		r.create(n)
		return
	}
	r.number()
	if n := r.newSize(); n != size(r.new) {
		r.scale(r.new, n, "rolling-update")
		return
	}
	r.shrinkOld()
	r.prune()
}

// newSize is how large the new ReplicaSet may be now.
func (r *roll) newSize() int {
	if size(r.new) >= want(r.d) {
		return want(r.d)
	}
	room := want(r.d) + r.surge() - total(r.all())
	if room <= 0 {
		return size(r.new)
	}
	return min(size(r.new)+room, want(r.d))
}

// shrinkOld takes old pods away as far as enough stay available.
func (r *roll) shrinkOld() {
	oldTotal := total(r.old)
	if oldTotal == 0 {
		return
	}
	least := want(r.d) - r.unavailable()
	newUnavailable := size(r.new) - int(r.new.Status.AvailableReplicas)
	budget := total(r.all()) - least - newUnavailable
	if budget <= 0 {
		return
	}
	left := map[string]int{}
	for _, rs := range r.old {
		left[rs.Name] = size(rs)
	}
	// Unhealthy ones first: they serve nobody.
	for _, rs := range r.old {
		if budget == 0 {
			break
		}
		n := min(budget, size(rs)-int(rs.Status.AvailableReplicas))
		if n > 0 {
			left[rs.Name] -= n
			budget -= n
		}
	}
	spare := available(r.all()) - least
	for _, rs := range r.old {
		n := min(spare, budget, left[rs.Name])
		if n > 0 {
			left[rs.Name] -= n
			spare -= n
			budget -= n
		}
	}
	for _, rs := range r.old {
		if left[rs.Name] != size(rs) {
			r.scale(rs, left[rs.Name], "rolling-update")
		}
	}
}

// complete: every pod is new and available, none is left over.
func (r *roll) complete() bool {
	n := int32(want(r.d))
	return r.status.UpdatedReplicas == n && r.status.Replicas == n && r.status.AvailableReplicas == n && r.d.Status.ObservedGeneration >= r.d.Generation
}

// prune removes old, empty ReplicaSets beyond the history limit.
func (r *roll) prune() {
	if r.d.Spec.RevisionHistoryLimit == nil || len(r.actions) > 0 {
		return
	}
	if !r.d.Spec.Paused && (r.new == nil || int(r.new.Status.AvailableReplicas) != want(r.d)) {
		return
	}
	var empty []*appsv1.ReplicaSet
	for _, rs := range r.old {
		if size(rs) == 0 && rs.Status.Replicas == 0 && rs.Generation <= rs.Status.ObservedGeneration && rs.DeletionTimestamp == nil {
			empty = append(empty, rs)
		}
	}
	sort.SliceStable(empty, func(i, j int) bool { return revisionOf(empty[i]) < revisionOf(empty[j]) })
	for i := 0; i < len(empty)-int(*r.d.Spec.RevisionHistoryLimit); i++ {
		r.actions = append(r.actions, act.Delete{Target: view.RefOf(kind.ReplicaSet, empty[i]), UID: empty[i].UID, Reason: "history-limit"})
	}
}
