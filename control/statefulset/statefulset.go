// Package statefulset runs pods with an identity: numbered names that stay, each
// with claims of its own (Kubernetes docs, "StatefulSets").
//
// OrderedReady makes, removes and updates one pod at a time: upwards when making,
// each waiting for the one before to be available; downwards when removing and
// updating. Parallel does not wait when making and removing. A name is used again
// only when its pod is gone: at most one pod has it.
//
// Updates go from the highest ordinal to the partition; below it pods keep, and
// are made from, the revision in status.currentRevision.
package statefulset

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	source = "statefulset-controller"
	burst  = 250
	// failedPause keeps a pod that fails at once from being made again in a loop.
	failedPause = 10 * time.Second
)

// Part registers the controller.
func Part() control.Part {
	return control.Part{
		Name: source, Kind: kind.StatefulSet, Plan: Plan, Failed: failed,
		Wakes: []control.Wake{
			{Kind: kind.Pod, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				if refs := control.ToOwner(kind.StatefulSet)(s, o); refs != nil || metav1.GetControllerOfNoCopy(o) != nil {
					return refs
				}
				var refs []view.Ref
				for d := range s.Selecting(kind.StatefulSet, o.GetNamespace(), o.GetLabels()) {
					if sel, err := metav1.LabelSelectorAsSelector(d.(*appsv1.StatefulSet).Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(o.GetLabels())) {
						refs = append(refs, view.RefOf(kind.StatefulSet, d))
					}
				}
				return refs
			}},
			{Kind: kind.ControllerRevision, To: control.ToOwner(kind.StatefulSet)},
		},
		Writes: []control.Write{
			{Kind: kind.Pod, Verbs: []string{"create", "delete", "patch"}},
			{Kind: kind.PersistentVolumeClaim, Verbs: []string{"create", "update"}},
			{Kind: kind.ControllerRevision, Verbs: []string{"create", "update", "delete"}},
			{Kind: kind.StatefulSet, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

func failed(s view.Snapshot, ref view.Ref, a act.Action, err error, _ time.Time) act.List {
	set := view.Get[*appsv1.StatefulSet](s, kind.StatefulSet, ref.Namespace, ref.Name)
	if set == nil {
		return nil
	}
	r := a.Ref()
	switch a.(type) {
	case act.Create:
		return act.List{workload.Event(kind.StatefulSet, set, source, corev1.EventTypeWarning, "FailedCreate", "create %s %s in StatefulSet %s failed error: %v", r.Kind.Kind, r.Name, set.Name, err)}
	case act.Delete:
		return act.List{workload.Event(kind.StatefulSet, set, source, corev1.EventTypeWarning, "FailedDelete", "delete %s %s in StatefulSet %s failed error: %v", r.Kind.Kind, r.Name, set.Name, err)}
	}
	return nil
}

type planner struct {
	s         view.Snapshot
	set       *appsv1.StatefulSet
	now       time.Time
	revisions workload.Revisions
	current   string // names of revisions
	update    string
	template  *corev1.PodTemplateSpec // of the current revision
	start     int
	replicas  map[int]*corev1.Pod
	condemned []*corev1.Pod // highest first
	actions   act.List
	wake      time.Time
}

// Plan decides for one set.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	set := view.Get[*appsv1.StatefulSet](s, kind.StatefulSet, ref.Namespace, ref.Name)
	if set == nil {
		return nil, time.Time{}
	}
	sel, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || sel.Empty() {
		return nil, time.Time{}
	}
	mine, actions := workload.Claim(s, kind.StatefulSet, set, sel)
	// Only pods with a name of the set's form can be adopted.
	actions = slices.DeleteFunc(actions, func(a act.Action) bool {
		_, ok := ordinal(set, a.Ref().Name)
		return !ok && strings.HasPrefix(reason(a), "adopt")
	})
	if len(actions) > 0 {
		return actions, time.Time{}
	}
	p := &planner{s: s, set: set, now: now, replicas: map[int]*corev1.Pod{}}
	p.revisions = workload.History(s, kind.StatefulSet, set, &set.Spec.Template, set.Spec.Selector.MatchLabels, set.Status.CollisionCount)
	if p.revisions.Collision {
		c := set.DeepCopy()
		n := int32(1)
		if c.Status.CollisionCount != nil {
			n = *c.Status.CollisionCount + 1
		}
		c.Status.CollisionCount = &n
		return act.List{act.Update{Kind: kind.StatefulSet, Object: c, Sub: "status", Reason: "hash collision"}}, time.Time{}
	}
	p.read(mine)
	if set.DeletionTimestamp == nil {
		p.actions = append(p.actions, p.revisions.Actions...)
		if p.manage() {
			p.roll()
		}
		if len(p.actions) == 0 {
			p.actions = p.revisions.Prune(set.Spec.RevisionHistoryLimit, func(hash string) bool {
				name := set.Name + "-" + hash
				return name == p.current || slices.ContainsFunc(mine, func(pod *corev1.Pod) bool { return revision(pod) == name })
			})
		}
	}
	p.status(mine)
	return p.actions, p.wake
}

func reason(a act.Action) string {
	if p, ok := a.(act.Patch); ok {
		return p.Reason
	}
	return ""
}

func ordinal(set *appsv1.StatefulSet, name string) (int, bool) {
	tail, ok := strings.CutPrefix(name, set.Name+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(tail)
	return n, err == nil && n >= 0 && strconv.Itoa(n) == tail
}

func revision(pod *corev1.Pod) string { return pod.Labels[appsv1.ControllerRevisionHashLabelKey] }

func count(set *appsv1.StatefulSet) int {
	if set.Spec.Replicas == nil {
		return 1
	}
	return int(*set.Spec.Replicas)
}

func (p *planner) read(mine []*corev1.Pod) {
	if o := p.set.Spec.Ordinals; o != nil {
		p.start = int(o.Start)
	}
	p.update = p.revisions.Current.Name
	p.current, p.template = p.update, &p.set.Spec.Template
	if p.set.Status.CurrentRevision != "" {
		for _, r := range p.revisions.All {
			if r.Name == p.set.Status.CurrentRevision && r.Name != p.update {
				var data struct {
					Spec struct {
						Template corev1.PodTemplateSpec `json:"template"`
					} `json:"spec"`
				}
				if json.Unmarshal(r.Data.Raw, &data) == nil {
					p.current, p.template = r.Name, &data.Spec.Template
				}
			}
		}
	}
	for _, pod := range mine {
		n, ok := ordinal(p.set, pod.Name)
		switch {
		case !ok:
		case n >= p.start && n < p.start+count(p.set):
			p.replicas[n] = pod
		default:
			p.condemned = append(p.condemned, pod)
		}
	}
	slices.SortFunc(p.condemned, func(a, b *corev1.Pod) int {
		x, _ := ordinal(p.set, a.Name)
		y, _ := ordinal(p.set, b.Name)
		return y - x
	})
}

func (p *planner) available(pod *corev1.Pod) bool {
	if pod == nil || pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning {
		return false
	}
	ok, at := workload.Available(pod, p.set.Spec.MinReadySeconds, p.now)
	p.wake = workload.Earlier(p.wake, at)
	return ok
}

func (p *planner) ordered() bool {
	return p.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
}

func (p *planner) rolling() (partition, unavailable int, ok bool) {
	if p.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return 0, 0, false
	}
	unavailable = 1
	if ru := p.set.Spec.UpdateStrategy.RollingUpdate; ru != nil {
		if ru.Partition != nil {
			partition = int(*ru.Partition)
		}
		if ru.MaxUnavailable != nil {
			if n, err := intstr.GetScaledValueFromIntOrPercent(ru.MaxUnavailable, count(p.set), false); err == nil {
				unavailable = max(n, 1)
			}
		}
	}
	return p.start + partition, unavailable, true
}

// manage makes what is missing and removes what is too many; true when nothing
// stands in the way of an update.
func (p *planner) manage() bool {
	for n := p.start; n < p.start+count(p.set); n++ {
		pod := p.replicas[n]
		switch {
		case pod == nil:
			p.create(n)
		case pod.DeletionTimestamp != nil:
		case workload.Ended(pod) && p.now.Before(pod.CreationTimestamp.Add(failedPause)):
			p.wake = workload.Earlier(p.wake, pod.CreationTimestamp.Add(failedPause))
		case workload.Ended(pod):
			word := "failed"
			if pod.Status.Phase == corev1.PodSucceeded {
				word = "terminated"
			}
			p.event(corev1.EventTypeWarning, map[string]string{"failed": "RecreatingFailedPod", "terminated": "RecreatingTerminatedPod"}[word],
				"StatefulSet %s/%s is recreating %s Pod %s", p.set.Namespace, p.set.Name, word, pod.Name)
			p.actions = append(p.actions, workload.Delete(pod, word))
		case p.available(pod):
			p.claims(n, pod)
			continue
		default:
			p.claims(n, pod)
			// It is not available anyway, and of another revision: an update mends it
			// (upstream waits here for somebody to delete it).
			if partition, _, ok := p.rolling(); ok && n >= partition && revision(pod) != p.update {
				p.remove(pod, "rolling-update")
			}
		}
		if p.ordered() {
			return false
		}
		if len(p.actions) > burst {
			return false
		}
	}
	for i, pod := range p.condemned {
		if i > burst {
			break
		}
		if pod.DeletionTimestamp == nil {
			// In order: a pod that is not available waits until it is, unless it is the
			// first of all that are not (Kubernetes docs, "StatefulSets", Deployment and
			// Scaling Guarantees).
			if p.ordered() && !p.available(pod) && pod != p.firstUnhealthy() {
				return false
			}
			p.retain(pod)
			p.remove(pod, "scale-down")
		}
		if p.ordered() {
			return false
		}
	}
	return len(p.condemned) == 0
}

// firstUnhealthy is the pod of the lowest ordinal that is not available or is on
// its way out; nil when there is none.
func (p *planner) firstUnhealthy() *corev1.Pod {
	for n := p.start; n < p.start+count(p.set); n++ {
		if pod := p.replicas[n]; pod != nil && (pod.DeletionTimestamp != nil || !p.available(pod)) {
			return pod
		}
	}
	for _, pod := range slices.Backward(p.condemned) {
		if pod.DeletionTimestamp != nil || !p.available(pod) {
			return pod
		}
	}
	return nil
}

func (p *planner) event(kindOf, reason, format string, args ...any) {
	p.actions = append(p.actions, workload.Event(kind.StatefulSet, p.set, source, kindOf, reason, format, args...))
}

func (p *planner) remove(pod *corev1.Pod, reason string) {
	p.actions = append(p.actions, workload.Delete(pod, reason))
	p.event(corev1.EventTypeNormal, "SuccessfulDelete", "delete Pod %s in StatefulSet %s successful", pod.Name, p.set.Name)
}

// roll deletes pods of other revisions, from the highest ordinal down.
func (p *planner) roll() {
	partition, most, ok := p.rolling()
	if !ok {
		return
	}
	unavailable := 0
	for n := p.start; n < p.start+count(p.set); n++ {
		if !p.available(p.replicas[n]) {
			unavailable++
		}
	}
	for n := p.start + count(p.set) - 1; n >= partition; n-- {
		pod := p.replicas[n]
		if pod == nil || revision(pod) == p.update || pod.DeletionTimestamp != nil {
			continue
		}
		broken := !p.available(pod)
		if !broken && unavailable >= most {
			return
		}
		if !broken {
			unavailable++
		}
		p.remove(pod, "rolling-update")
	}
}

// create makes the pod of an ordinal, and before it the claims that are missing.
func (p *planner) create(n int) {
	template, rev := &p.set.Spec.Template, p.update
	if p.current != p.update {
		partition, _, rolling := p.rolling()
		if rolling && n < partition || !rolling && n < p.start+int(p.set.Status.CurrentReplicas) {
			template, rev = p.template, p.current
		}
	}
	pod := workload.Pod(kind.StatefulSet, p.set, template)
	pod.GenerateName, pod.Name = "", fmt.Sprintf("%s-%d", p.set.Name, n)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = pod.Name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
	pod.Labels[appsv1.ControllerRevisionHashLabelKey] = rev
	pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, p.set.Spec.ServiceName
	for i := range p.set.Spec.VolumeClaimTemplates {
		t := &p.set.Spec.VolumeClaimTemplates[i]
		v := corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(p.set, t.Name, n)}}}
		pod.Spec.Volumes = append(slices.DeleteFunc(pod.Spec.Volumes, func(have corev1.Volume) bool { return have.Name == t.Name }), v)
	}
	p.claims(n, nil)
	p.actions = append(p.actions, act.Create{Kind: kind.Pod, Object: pod, Reason: "ordinal " + strconv.Itoa(n)})
	p.event(corev1.EventTypeNormal, "SuccessfulCreate", "create Pod %s in StatefulSet %s successful", pod.Name, p.set.Name)
}

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return fmt.Sprintf("%s-%s-%d", template, set.Name, n)
}

func (p *planner) policy() (whenDeleted, whenScaled bool) {
	r := p.set.Spec.PersistentVolumeClaimRetentionPolicy
	return r != nil && r.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType, r != nil && r.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// claims makes the missing claims of an ordinal and keeps their owners as the
// retention policy says: the set owns them when they are to go with it.
func (p *planner) claims(n int, pod *corev1.Pod) {
	whenDeleted, _ := p.policy()
	for i := range p.set.Spec.VolumeClaimTemplates {
		t := p.set.Spec.VolumeClaimTemplates[i].DeepCopy()
		name := claimName(p.set, t.Name, n)
		have := view.Get[*corev1.PersistentVolumeClaim](p.s, kind.PersistentVolumeClaim, p.set.Namespace, name)
		if have != nil {
			var want []metav1.OwnerReference
			for _, r := range have.OwnerReferences {
				// Owned by its pod: left over from scaling down.
				if r.UID != p.set.UID && !(r.Kind == "Pod" && pod != nil && r.UID == pod.UID) {
					want = append(want, r)
				}
			}
			if whenDeleted {
				want = append(want, ownerOf(p.set))
			}
			p.own(have, want, "retention policy")
			continue
		}
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: p.set.Namespace, Name: name, Labels: maps.Clone(t.Labels), Annotations: t.Annotations}, Spec: t.Spec}
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, p.set.Spec.Selector.MatchLabels)
		if whenDeleted {
			c.OwnerReferences = []metav1.OwnerReference{ownerOf(p.set)}
		}
		p.actions = append(p.actions, act.Create{Kind: kind.PersistentVolumeClaim, Object: c, Reason: "ordinal " + strconv.Itoa(n)})
		p.event(corev1.EventTypeNormal, "SuccessfulCreate", "create Claim %s Pod %s-%d in StatefulSet %s success", name, p.set.Name, n, p.set.Name)
	}
}

func ownerOf(set *appsv1.StatefulSet) metav1.OwnerReference {
	r := workload.OwnerRef(kind.StatefulSet, set)
	r.BlockOwnerDeletion = nil
	return r
}

// retain gives the claims of a pod that goes for good to that pod, when they are
// to go with it.
func (p *planner) retain(pod *corev1.Pod) {
	_, whenScaled := p.policy()
	n, _ := ordinal(p.set, pod.Name)
	for i := range p.set.Spec.VolumeClaimTemplates {
		have := view.Get[*corev1.PersistentVolumeClaim](p.s, kind.PersistentVolumeClaim, p.set.Namespace, claimName(p.set, p.set.Spec.VolumeClaimTemplates[i].Name, n))
		if have == nil || !whenScaled {
			continue
		}
		want := slices.DeleteFunc(slices.Clone(have.OwnerReferences), func(r metav1.OwnerReference) bool { return r.UID == p.set.UID || r.UID == pod.UID })
		p.own(have, append(want, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}), "retention policy")
	}
}

func (p *planner) own(c *corev1.PersistentVolumeClaim, want []metav1.OwnerReference, reason string) {
	if apiequality.Semantic.DeepEqual(c.OwnerReferences, want) {
		return
	}
	o := c.DeepCopy()
	o.OwnerReferences = want
	p.actions = append(p.actions, act.Update{Kind: kind.PersistentVolumeClaim, Object: o, Note: "owners", Reason: reason})
}

func (p *planner) status(mine []*corev1.Pod) {
	c := p.set.DeepCopy()
	st := &c.Status
	*st = appsv1.StatefulSetStatus{ObservedGeneration: p.set.Generation, CurrentRevision: p.current, UpdateRevision: p.update,
		CollisionCount: p.set.Status.CollisionCount, Conditions: p.set.Status.Conditions}
	if st.CollisionCount == nil {
		st.CollisionCount = new(int32)
	}
	for _, pod := range mine {
		if _, ok := ordinal(p.set, pod.Name); !ok {
			continue
		}
		st.Replicas++
		if pod.Status.Phase == corev1.PodRunning && workload.Ready(pod) {
			st.ReadyReplicas++
			if p.available(pod) {
				st.AvailableReplicas++
			}
		}
		if pod.DeletionTimestamp != nil || workload.Ended(pod) {
			continue
		}
		if revision(pod) == p.current {
			st.CurrentReplicas++
		}
		if revision(pod) == p.update {
			st.UpdatedReplicas++
		}
	}
	if p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && st.UpdatedReplicas == st.Replicas && st.ReadyReplicas == st.Replicas && int(st.Replicas) == count(p.set) {
		st.CurrentRevision, st.CurrentReplicas = st.UpdateRevision, st.UpdatedReplicas
	}
	if !apiequality.Semantic.DeepEqual(c.Status, p.set.Status) {
		p.actions = append(p.actions, act.Update{Kind: kind.StatefulSet, Object: c, Sub: "status",
			Note: fmt.Sprintf("replicas=%d ready=%d current=%d updated=%d", st.Replicas, st.ReadyReplicas, st.CurrentReplicas, st.UpdatedReplicas)})
	}
}
