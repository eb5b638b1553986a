package deployment

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/kind"
)

// finish adds the status update and says when the progress deadline is due.
func (r *roll) finish() (act.List, time.Time) {
	st := &r.status
	st.ObservedGeneration = r.d.Generation
	st.Replicas, st.ReadyReplicas, st.AvailableReplicas, st.UpdatedReplicas = 0, 0, 0, 0
	var terminating int32
	for _, rs := range r.all() {
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		}
		st.Replicas += rs.Status.Replicas
		st.ReadyReplicas += rs.Status.ReadyReplicas
		st.AvailableReplicas += rs.Status.AvailableReplicas
	}
	st.TerminatingReplicas = &terminating
	if r.new != nil {
		st.UpdatedReplicas = r.new.Status.Replicas
	}
	st.UnavailableReplicas = max(int32(total(r.all()))-st.AvailableReplicas, 0)
	if int(st.AvailableReplicas) >= want(r.d)-r.unavailable() {
		setCondition(st, r.now, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		setCondition(st, r.now, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
	r.failures()
	r.progressing()
	if apiequality.Semantic.DeepEqual(r.status, r.d.Status) {
		return r.actions, r.wake
	}
	want := r.d.DeepCopy()
	want.Status = r.status
	note := fmt.Sprintf("updated=%d available=%d of %d", st.UpdatedReplicas, st.AvailableReplicas, st.Replicas)
	// An update of the Deployment itself in the same plan makes this one conflict;
	// the next plan writes it then.
	for _, a := range r.actions {
		if u, ok := a.(act.Update); ok && u.Kind == kind.Deployment {
			return r.actions, r.now
		}
	}
	return append(r.actions, act.Update{Kind: kind.Deployment, Object: want, Sub: "status", Note: note}), r.wake
}

// failures copies the new ReplicaSet's (else an old one's) ReplicaFailure.
func (r *roll) failures() {
	var found *appsv1.ReplicaSetCondition
	for _, rs := range r.all() {
		for i := range rs.Status.Conditions {
			if rs.Status.Conditions[i].Type == appsv1.ReplicaSetReplicaFailure {
				found = &rs.Status.Conditions[i]
			}
		}
	}
	if found == nil {
		remove(&r.status, appsv1.DeploymentReplicaFailure)
		return
	}
	setCondition(&r.status, r.now, appsv1.DeploymentReplicaFailure, found.Status, found.Reason, found.Message)
}

// progressing keeps the condition Progressing and its deadline (docs,
// "Deployment status").
func (r *roll) progressing() {
	st := &r.status
	limited := r.d.Spec.ProgressDeadlineSeconds != nil && *r.d.Spec.ProgressDeadlineSeconds != 1<<31-1
	if !limited {
		remove(st, appsv1.DeploymentProgressing)
		return
	}
	cond := condition(st, appsv1.DeploymentProgressing)
	if r.d.Spec.Paused {
		if cond == nil || cond.Reason != "DeploymentPaused" {
			progress(st, r.now, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
		}
		return
	}
	if cond != nil && cond.Reason == "DeploymentPaused" {
		progress(st, r.now, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
		cond = condition(st, appsv1.DeploymentProgressing)
	}
	if r.created {
		r.deadline()
		return
	}
	name := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.new != nil {
		name = fmt.Sprintf("ReplicaSet %q", r.new.Name)
	}
	done := cond != nil && cond.Reason == "NewReplicaSetAvailable"
	if r.complete() {
		if !done {
			progress(st, r.now, corev1.ConditionTrue, "NewReplicaSetAvailable", name+" has successfully progressed.")
		}
		return
	}
	if done && st.UpdatedReplicas == r.d.Status.UpdatedReplicas && r.new != nil && !r.rollingNow() {
		return // it had completed; pods come and go now
	}
	old := r.d.Status
	moved := st.UpdatedReplicas > old.UpdatedReplicas || st.Replicas-st.UpdatedReplicas < old.Replicas-old.UpdatedReplicas ||
		st.ReadyReplicas > old.ReadyReplicas || st.AvailableReplicas > old.AvailableReplicas
	switch {
	case cond == nil && r.new != nil:
		progress(st, r.now, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", r.new.Name))
	case moved:
		// The update time is the last sign of progress, from which the deadline counts.
		remove(st, appsv1.DeploymentProgressing)
		at := metav1.NewTime(r.now)
		if cond != nil && cond.Status == corev1.ConditionTrue {
			at = cond.LastTransitionTime
		}
		st.Conditions = append(st.Conditions, appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue,
			Reason: "ReplicaSetUpdated", Message: name + " is progressing.", LastUpdateTime: metav1.NewTime(r.now), LastTransitionTime: at})
	}
	r.deadline()
}

// rollingNow: old pods remain or new ones are missing.
func (r *roll) rollingNow() bool { return total(r.old) > 0 || size(r.new) != want(r.d) }

func (r *roll) deadline() {
	cond := condition(&r.status, appsv1.DeploymentProgressing)
	if cond == nil || cond.Reason == "NewReplicaSetAvailable" || cond.Reason == "ProgressDeadlineExceeded" {
		return
	}
	due := cond.LastUpdateTime.Add(time.Duration(*r.d.Spec.ProgressDeadlineSeconds) * time.Second)
	if r.now.Before(due) {
		r.wake = due
		return
	}
	name := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.new != nil {
		name = fmt.Sprintf("ReplicaSet %q", r.new.Name)
	}
	progress(&r.status, r.now, corev1.ConditionFalse, "ProgressDeadlineExceeded", name+" has timed out progressing.")
}

func progress(st *appsv1.DeploymentStatus, now time.Time, status corev1.ConditionStatus, reason, message string) {
	setCondition(st, now, appsv1.DeploymentProgressing, status, reason, message)
}

func condition(st *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range st.Conditions {
		if st.Conditions[i].Type == t {
			return &st.Conditions[i]
		}
	}
	return nil
}

func remove(st *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	var keep []appsv1.DeploymentCondition
	for _, c := range st.Conditions {
		if c.Type != t {
			keep = append(keep, c)
		}
	}
	st.Conditions = keep
}

// setCondition changes a condition only when its status or reason does; the
// transition time moves with the status alone.
func setCondition(st *appsv1.DeploymentStatus, now time.Time, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	at := metav1.NewTime(now)
	if c := condition(st, t); c != nil {
		if c.Status == status && c.Reason == reason {
			return
		}
		if c.Status == status {
			at = c.LastTransitionTime
		}
	}
	remove(st, t)
	st.Conditions = append(st.Conditions, appsv1.DeploymentCondition{Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: metav1.NewTime(now), LastTransitionTime: at})
}
