package job

import (
	"encoding/json"
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

// wakeJob is the job that owns a pod, or those that may take it.
func wakeJob(s view.Snapshot, o kind.Object) []view.Ref {
	if refs := control.ToOwner(kind.Job)(s, o); refs != nil || metav1.GetControllerOfNoCopy(o) != nil {
		return refs
	}
	var refs []view.Ref
	for j := range s.Selecting(kind.Job, o.GetNamespace(), o.GetLabels()) {
		if sel := selector(j.(*batchv1.Job)); sel.Matches(labels.Set(o.GetLabels())) {
			refs = append(refs, view.RefOf(kind.Job, j))
		}
	}
	return refs
}

func selector(j *batchv1.Job) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(j.Spec.Selector)
	if err != nil || sel.Empty() {
		return labels.Nothing()
	}
	return sel
}

// claim collects the job's pods. Patches take matching orphans, and let go of pods
// whose labels no longer match (docs, "Jobs", Specifying your own Pod selector),
// each under the pod's revision. A pod gets the finalizer with its owner and loses it
// with it: a job counts what it owns.
func (p *planner) claim() {
	sel := selector(p.j)
	for pod := range view.Owned[*corev1.Pod](p.s, string(p.j.UID), kind.Pod) {
		if c := metav1.GetControllerOfNoCopy(pod); c == nil || c.UID != p.j.UID {
			continue
		}
		if p.mayClaim() && pod.DeletionTimestamp == nil && !sel.Matches(labels.Set(pod.Labels)) {
			owners := slices.DeleteFunc(slices.Clone(pod.OwnerReferences), func(r metav1.OwnerReference) bool { return r.UID == p.j.UID })
			finalizers := slices.DeleteFunc(slices.Clone(pod.Finalizers), func(f string) bool { return f == batchv1.JobTrackingFinalizer })
			p.claims = append(p.claims, setOwner(pod, owners, finalizers, "release: labels no longer match the selector"))
			continue
		}
		p.pods = append(p.pods, pod)
	}
	if !p.mayClaim() {
		return
	}
	for pod := range p.s.OrphanPods(p.j.Namespace) {
		if pod.DeletionTimestamp != nil || !sel.Matches(labels.Set(pod.Labels)) {
			continue
		}
		finalizers := pod.Finalizers
		if !tracked(pod) {
			finalizers = append(slices.Clone(finalizers), batchv1.JobTrackingFinalizer)
		}
		p.claims = append(p.claims, setOwner(pod, append(slices.Clone(pod.OwnerReferences), workload.OwnerRef(kind.Job, p.j)), finalizers, "adopt: selector matches "+p.j.Name))
	}
}

// mayClaim: a job that ends or has ended neither takes pods nor lets go of them.
func (p *planner) mayClaim() bool { return p.j.DeletionTimestamp == nil && !finished(&p.j.Status) }

func setOwner(pod *corev1.Pod, owners []metav1.OwnerReference, finalizers []string, reason string) act.Action {
	if owners == nil {
		owners = []metav1.OwnerReference{}
	}
	if finalizers == nil {
		finalizers = []string{}
	}
	merge, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pod.UID, "resourceVersion": pod.ResourceVersion, "ownerReferences": owners, "finalizers": finalizers}})
	if err != nil {
		panic(fmt.Sprintf("job: encode owner references: %v", err))
	}
	return act.Patch{Target: view.RefOf(kind.Pod, pod), UID: pod.UID, Merge: merge, Reason: reason}
}
