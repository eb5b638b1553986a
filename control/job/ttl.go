package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// TTLPart registers the controller that deletes jobs ttlSecondsAfterFinished
// (Kubernetes docs, "Automatic Cleanup for Finished Jobs").
func TTLPart() control.Part {
	return control.Part{
		Name: "ttl-after-finished-controller", Kind: kind.Job, Plan: PlanTTL,
		Writes: []control.Write{{Kind: kind.Job, Verbs: []string{"delete"}}},
	}
}

// PlanTTL deletes one job when its time has come.
func PlanTTL(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	j := view.Get[*batchv1.Job](s, kind.Job, ref.Namespace, ref.Name)
	if j == nil || j.DeletionTimestamp != nil || j.Spec.TTLSecondsAfterFinished == nil || !finished(&j.Status) {
		return nil, time.Time{}
	}
	var at time.Time
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			at = c.LastTransitionTime.Time
		}
	}
	if due := at.Add(time.Duration(*j.Spec.TTLSecondsAfterFinished) * time.Second); now.Before(due) {
		return nil, due
	}
	return act.List{act.Delete{Target: ref, UID: j.UID, ResourceVersion: j.ResourceVersion, Propagation: metav1.DeletePropagationForeground, Reason: "ttl"}}, time.Time{}
}

// OrphanPart registers what frees pods that a job tracked, when the job is gone.
func OrphanPart() control.Part {
	return control.Part{
		Name: "job-orphan-controller", Kind: kind.Pod, Plan: PlanOrphan,
		When: func(old, new kind.Object) bool {
			if new == nil || !tracked(new.(*corev1.Pod)) {
				return false
			}
			return old == nil || !slices.EqualFunc(old.GetOwnerReferences(), new.GetOwnerReferences(), func(a, b metav1.OwnerReference) bool { return a.UID == b.UID })
		},
		Wakes: []control.Wake{{Kind: kind.Job, When: func(_, new kind.Object) bool { return new == nil }, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for pod := range s.OwnedBy(string(o.GetUID()), kind.Pod) {
				refs = append(refs, view.RefOf(kind.Pod, pod))
			}
			return refs
		}}},
		Writes: []control.Write{{Kind: kind.Pod, Verbs: []string{"patch"}}},
	}
}

// PlanOrphan takes the tracking finalizer off a pod that no job counts.
func PlanOrphan(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	pod := view.Get[*corev1.Pod](s, kind.Pod, ref.Namespace, ref.Name)
	if pod == nil || !tracked(pod) {
		return nil, time.Time{}
	}
	if c := metav1.GetControllerOfNoCopy(pod); c != nil && c.Kind == "Job" {
		if j := view.Get[*batchv1.Job](s, kind.Job, pod.Namespace, c.Name); j != nil && j.UID == c.UID {
			return nil, time.Time{}
		}
	}
	return act.List{untrack(pod, "job is gone")}, time.Time{}
}
