package loop

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/sched"
	"proa.dev/view"
)

// unplaced evicts others if that helps, reports why a pod fits nowhere, and lets
// it wait.
func (s *Scheduler) unplaced(ctx context.Context, it *item, p *sched.Pod, d sched.Decision) {
	s.backOff(it)
	it.social = p.IsSocial()
	nominated := it.pod.Status.NominatedNodeName
	message := d.Message
	var victims []*corev1.Pod
	if d.Considered > 0 {
		why := "not eligible due to a terminating pod on the nominated node."
		if !s.ending(it.pod) {
			var pre sched.Preemption
			if pre, why = s.table.Preempt(p, d); why == "" {
				victims = pre.Victims
			}
			s.cfg.Meter.Preempted(len(victims))
			nominated = pre.Node
			s.table.Nominate(p, nominated)
		}
		if why != "" {
			message += " preemption: " + why
		}
	}
	pod, reported := it.pod, message == it.message && nominated == it.pod.Status.NominatedNodeName
	it.message = message
	if victims == nil && reported {
		return
	}
	s.carry(ctx, func() {
		if !reported {
			s.cfg.Record(act.Event{About: view.RefOf(kind.Pod, pod), UID: pod.UID, Type: corev1.EventTypeWarning, Reason: "FailedScheduling", Source: Name, Message: message})
			s.report(ctx, pod, message, nominated)
		}
		if err := s.evict(ctx, pod, nominated, victims); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("preemption failed", "pod", pod.Namespace+"/"+pod.Name, "node", nominated, "error", err)
		}
	})
}

// ending: victims of an earlier preemption for this pod are still on their way.
func (s *Scheduler) ending(p *corev1.Pod) bool {
	if p.Status.NominatedNodeName == "" {
		return false
	}
	for q := range s.cfg.View.Snapshot().PodsOn(p.Status.NominatedNodeName) {
		if q.DeletionTimestamp != nil && priority(q) < priority(p) {
			return true
		}
	}
	return false
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

func (s *Scheduler) evict(ctx context.Context, p *corev1.Pod, node string, victims []*corev1.Pod) error {
	for _, v := range victims {
		if v.DeletionTimestamp != nil {
			continue
		}
		c := v.DeepCopy()
		condition(&c.Status, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
			Message: fmt.Sprintf("%s: preempting to accommodate a higher priority pod", Name), LastTransitionTime: metav1.NewTime(s.cfg.Clock.Now())})
		if _, err := s.cfg.Client.Update(ctx, kind.Pod, c, "status", metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return err
		}
		if _, err := control.Do(ctx, s.cfg.Client, act.Delete{Target: view.RefOf(kind.Pod, v), UID: v.UID, Reason: "preempted"}, nil); err != nil {
			return err
		}
		s.cfg.Record(act.Event{About: view.RefOf(kind.Pod, v), UID: v.UID, Type: corev1.EventTypeNormal, Reason: "Preempted", Source: Name,
			Message: fmt.Sprintf("Preempted by pod %s on node %s", p.UID, node)})
	}
	return nil
}

// report writes the condition PodScheduled and the nominated node.
func (s *Scheduler) report(ctx context.Context, p *corev1.Pod, message, nominated string) {
	for range 3 {
		c := p.DeepCopy()
		condition(&c.Status, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message, LastTransitionTime: metav1.NewTime(s.cfg.Clock.Now())})
		c.Status.NominatedNodeName = nominated
		_, err := s.cfg.Client.Update(ctx, kind.Pod, c, "status", metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				s.cfg.Log.Warn("status of an unschedulable pod was not written", "pod", p.Namespace+"/"+p.Name, "error", err)
			}
			return
		}
		fresh := view.Get[*corev1.Pod](s.cfg.View.Snapshot(), kind.Pod, p.Namespace, p.Name)
		if fresh == nil || fresh.UID != p.UID || fresh.Spec.NodeName != "" {
			return
		}
		p = fresh
	}
}

func condition(st *corev1.PodStatus, c corev1.PodCondition) {
	for i := range st.Conditions {
		if old := &st.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}
