// Package workload holds what the controllers of pods share: making a pod from a
// template, telling active, ready and available pods, choosing which pods go
// first, taking and releasing ownership. Pure functions.
package workload

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sort"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/act"
	"proa.dev/internal/suffix"
	"proa.dev/kind"
	"proa.dev/view"
)

// Name is prefix and five characters derived from a seed: the owner's UID, the
// snapshot's revision and a counter give the same name for the same plan and
// another one for every other plan.
func Name(prefix string, uid types.UID, revision int64, n int) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d/%d", uid, revision, n)
	return suffix.Append(prefix, h.Sum64())
}

// FreshName is a Name that no object of kind k in the namespace has in s; n is
// advanced past it.
func FreshName(s view.Snapshot, k *kind.Kind, namespace, prefix string, uid types.UID, n *int) string {
	for {
		name := Name(prefix, uid, s.Revision(), *n)
		*n++
		if s.Get(k, namespace, name) == nil {
			return name
		}
	}
}

// OwnerRef makes owner the controller of another object.
func OwnerRef(k *kind.Kind, owner kind.Object) metav1.OwnerReference {
	return *metav1.NewControllerRef(owner, k.GVK())
}

// Pod from a template, owned by owner. The caller names it.
func Pod(k *kind.Kind, owner kind.Object, t *corev1.PodTemplateSpec) *corev1.Pod {
	c := t.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), GenerateName: owner.GetName() + "-",
			Labels: c.Labels, Annotations: c.Annotations, Finalizers: c.Finalizers,
			OwnerReferences: []metav1.OwnerReference{OwnerRef(k, owner)},
		},
		Spec: c.Spec,
	}
}

// Ended says that the pod's containers will not run again.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Active pods count towards replicas: not ended and not being deleted.
func Active(p *corev1.Pod) bool { return !Ended(p) && p.DeletionTimestamp == nil }

// ReadyCondition of a pod, or nil.
func ReadyCondition(p *corev1.Pod) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == corev1.PodReady {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// Ready says that the pod's Ready condition is true.
func Ready(p *corev1.Pod) bool {
	c := ReadyCondition(p)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Available says that the pod has been ready for minReadySeconds; when it is
// ready but not long enough, wake is when it will be.
func Available(p *corev1.Pod, minReadySeconds int32, now time.Time) (ok bool, wake time.Time) {
	c := ReadyCondition(p)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, time.Time{}
	}
	if minReadySeconds == 0 {
		return true, time.Time{}
	}
	at := c.LastTransitionTime.Add(time.Duration(minReadySeconds) * time.Second)
	if c.LastTransitionTime.IsZero() || now.Before(at) {
		return false, at
	}
	return true, time.Time{}
}

// Earlier is the earlier of two wakes; zero means none.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// deletionCost is annotation controller.kubernetes.io/pod-deletion-cost
// (KEP-2255); malformed counts as zero.
func deletionCost(p *corev1.Pod) int64 {
	n, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return n
}

// SortForDeletion puts first what is to go first (docs, "ReplicaSet", Scaling a
// ReplicaSet): without a node, then pending before unknown before running, not
// ready, lower deletion cost, on nodes with more of the pods, ready for a shorter
// time (in powers of two), with more restarts, younger. perNode counts related
// pods on each node.
func SortForDeletion(pods []*corev1.Pod, perNode map[string]int, now time.Time) {
	phase := map[corev1.PodPhase]int{corev1.PodPending: 0, corev1.PodUnknown: 1, corev1.PodRunning: 2}
	bucket := func(t time.Time) int {
		n := 0
		for d := now.Sub(t); d > 0; d /= 2 {
			n++
		}
		return n
	}
	sort.SliceStable(pods, func(i, j int) bool {
		a, b := pods[i], pods[j]
		if x, y := a.Spec.NodeName != "", b.Spec.NodeName != ""; x != y {
			return !x
		}
		if x, y := phase[a.Status.Phase], phase[b.Status.Phase]; x != y {
			return x < y
		}
		x, y := Ready(a), Ready(b)
		if x != y {
			return !x
		}
		if c, d := deletionCost(a), deletionCost(b); c != d {
			return c < d
		}
		if c, d := perNode[a.Spec.NodeName], perNode[b.Spec.NodeName]; c != d {
			return c > d
		}
		if x && y {
			if c, d := bucket(ReadyCondition(a).LastTransitionTime.Time), bucket(ReadyCondition(b).LastTransitionTime.Time); c != d {
				return c < d
			}
		}
		if c, d := restarts(a), restarts(b); c != d {
			return c > d
		}
		if c, d := bucket(a.CreationTimestamp.Time), bucket(b.CreationTimestamp.Time); c != d {
			return c < d
		}
		return a.UID < b.UID
	})
}

func restarts(p *corev1.Pod) int32 {
	var n int32
	for i := range p.Status.ContainerStatuses {
		n = max(n, p.Status.ContainerStatuses[i].RestartCount)
	}
	return n
}

// Claim finds the pods of an owner: those that it owns and that its selector
// still matches. Actions take matching orphans and release owned pods that match
// no more (docs, "ReplicaSet", Non-Template Pod acquisitions). An owner that is
// being deleted takes none.
func Claim(s view.Snapshot, k *kind.Kind, owner kind.Object, sel labels.Selector) (mine []*corev1.Pod, actions act.List) {
	for p := range view.Owned[*corev1.Pod](s, string(owner.GetUID()), kind.Pod) {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil || ref.UID != owner.GetUID() {
			continue
		}
		if sel.Matches(labels.Set(p.Labels)) {
			mine = append(mine, p)
			continue
		}
		if p.DeletionTimestamp == nil && owner.GetDeletionTimestamp() == nil {
			actions = append(actions, release(p, owner))
		}
	}
	if owner.GetDeletionTimestamp() != nil {
		return mine, actions
	}
	for p := range s.OrphanPods(owner.GetNamespace()) {
		if p.DeletionTimestamp == nil && !Ended(p) && sel.Matches(labels.Set(p.Labels)) {
			actions = append(actions, adopt(k, p, owner))
		}
	}
	return mine, actions
}

func adopt(k *kind.Kind, p *corev1.Pod, owner kind.Object) act.Action {
	return setOwners(p, append(append([]metav1.OwnerReference(nil), p.OwnerReferences...), OwnerRef(k, owner)), "adopt: selector matches "+owner.GetName())
}

func release(p *corev1.Pod, owner kind.Object) act.Action {
	var keep []metav1.OwnerReference
	for _, r := range p.OwnerReferences {
		if r.UID != owner.GetUID() {
			keep = append(keep, r)
		}
	}
	return setOwners(p, keep, "release: labels no longer match the selector")
}

// setOwners replaces the owner references under the pod's resourceVersion, so
// that two controllers cannot take one orphan.
func setOwners(p *corev1.Pod, refs []metav1.OwnerReference, reason string) act.Action {
	if refs == nil {
		refs = []metav1.OwnerReference{}
	}
	merge, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": p.UID, "resourceVersion": p.ResourceVersion, "ownerReferences": refs}})
	if err != nil {
		panic(fmt.Sprintf("workload: encode owner references: %v", err))
	}
	return act.Patch{Target: view.RefOf(kind.Pod, p), UID: p.UID, Merge: merge, Reason: reason}
}

// Delete one pod of an owner.
func Delete(p *corev1.Pod, reason string) act.Delete {
	return act.Delete{Target: view.RefOf(kind.Pod, p), UID: p.UID, Reason: reason}
}

// Event about an owner.
func Event(k *kind.Kind, o kind.Object, source, kindOf, reason, format string, args ...any) act.Event {
	return act.Event{About: view.RefOf(k, o), UID: o.GetUID(), Type: kindOf, Reason: reason, Message: fmt.Sprintf(format, args...), Source: source}
}

// Failed is what to tell about a pod that could not be made or deleted: the event
// about its owner and the reason, FailedCreate or FailedDelete; nothing for other
// actions, and in a namespace that is going.
func Failed(k *kind.Kind, owner kind.Object, source string, failed act.Action, err error) (act.List, string) {
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || failed.Ref().Kind != kind.Pod {
		return nil, ""
	}
	switch failed.(type) {
	case act.Create:
		return act.List{Event(k, owner, source, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)}, "FailedCreate"
	case act.Delete:
		return act.List{Event(k, owner, source, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)}, "FailedDelete"
	}
	return nil, ""
}

// Tolerates says that a toleration covers a taint: an empty key tolerates every key with Exists, an empty effect every
// effect.
func Tolerates(tol *corev1.Toleration, t *corev1.Taint) bool {
	if tol.Effect != "" && tol.Effect != t.Effect || tol.Key != "" && tol.Key != t.Key {
		return false
	}
	switch tol.Operator {
	case corev1.TolerationOpExists:
		return true
	case "", corev1.TolerationOpEqual:
		return tol.Key != "" && tol.Value == t.Value
	}
	return false
}
