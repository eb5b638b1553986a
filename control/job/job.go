// Package job runs the pods of a Job until enough have succeeded or too many have
// failed (Kubernetes docs, "Jobs"; KEP-2307, 3329, 3850, 3939, 3998).
//
// Each pod is counted once, whatever is deleted when: it carries the finalizer
// batch.kubernetes.io/job-tracking and goes through
//
//	ended, with finalizer     → its UID is written to status.uncountedTerminatedPods
//	UID written               → the finalizer is taken off the pod
//	finalizer off, or pod gone → the UID leaves the list and the counter is raised
//
// The status is written under the job's revision before any finalizer goes, so a
// plan that is repeated counts nothing twice. In an Indexed job a success is its
// index in status.completedIndexes.
//
// An outcome is said in two steps: SuccessCriteriaMet or FailureTarget when it is
// decided (remaining pods are deleted), Complete or Failed when no pod is left
// that has not ended.
package job

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	source = "job-controller"
	// burst bounds the pods that one plan creates, deletes or counts.
	burst = 500
	// A failed pod is replaced after firstBackoff, doubling to maxBackoff.
	firstBackoff = 10 * time.Second
	maxBackoff   = 10 * time.Minute
)

// Part registers the controller of jobs.
func Part() control.Part {
	return control.Part{
		Name: source, Kind: kind.Job, Plan: Plan, Failed: failed,
		Wakes: []control.Wake{{Kind: kind.Pod, To: wakeJob}},
		Writes: []control.Write{
			{Kind: kind.Pod, Verbs: []string{"create", "delete", "patch"}},
			{Kind: kind.Job, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

func failed(s view.Snapshot, ref view.Ref, a act.Action, err error, _ time.Time) act.List {
	j := view.Get[*batchv1.Job](s, kind.Job, ref.Namespace, ref.Name)
	if j == nil {
		return nil
	}
	events, _ := workload.Failed(kind.Job, j, source, a, err)
	return events
}

// planner is one planning of one job.
type planner struct {
	s       view.Snapshot
	j       *batchv1.Job
	now     time.Time
	st      batchv1.JobStatus
	indexed bool
	limit   int // completions, of an Indexed job

	pods        []*corev1.Pod
	active      []*corev1.Pod
	terminating []*corev1.Pod
	done, lost  indexes // completed and failed indexes

	// outcome that has been decided; nil: none.
	outcome *batchv1.JobCondition

	claims, status, patches, deletes, creates, events act.List
	wake                                              time.Time
}

// Plan decides for one job.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	j := view.Get[*batchv1.Job](s, kind.Job, ref.Namespace, ref.Name)
	if j == nil || j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != batchv1.JobControllerName {
		return nil, time.Time{}
	}
	p := &planner{s: s, j: j, now: now, st: *j.Status.DeepCopy(), indexed: ptr.Deref(j.Spec.CompletionMode, "") == batchv1.IndexedCompletion}
	if p.indexed {
		p.limit = int(ptr.Deref(j.Spec.Completions, 0))
	}
	p.claim()
	if len(p.claims) > 0 {
		return p.claims, time.Time{} // the next plan counts what they bring
	}
	if j.DeletionTimestamp != nil || finished(&j.Status) {
		for _, pod := range p.pods {
			if tracked(pod) && (workload.Ended(pod) || j.DeletionTimestamp != nil) {
				p.patches = append(p.patches, untrack(pod, "job is done"))
			}
		}
		return p.patches, time.Time{}
	}
	p.sort()
	p.settle()
	p.start()
	p.decide()
	p.count()
	if p.outcome != nil {
		p.conclude()
	} else {
		p.manage()
	}
	p.report()
	return slices.Concat(p.status, p.patches, p.deletes, p.creates, p.events), p.wake
}

func condition(st *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range st.Conditions {
		if st.Conditions[i].Type == t {
			return &st.Conditions[i]
		}
	}
	return nil
}

func isTrue(st *batchv1.JobStatus, t batchv1.JobConditionType) bool {
	c := condition(st, t)
	return c != nil && c.Status == corev1.ConditionTrue
}

func finished(st *batchv1.JobStatus) bool {
	return isTrue(st, batchv1.JobComplete) || isTrue(st, batchv1.JobFailed)
}

func tracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

// untrack takes the finalizer off, if the pod is still as it is here.
func untrack(pod *corev1.Pod, reason string) act.Action {
	keep := slices.DeleteFunc(slices.Clone(pod.Finalizers), func(f string) bool { return f == batchv1.JobTrackingFinalizer })
	merge, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID, "resourceVersion": pod.ResourceVersion, "finalizers": keep}})
	if err != nil {
		panic(fmt.Sprintf("job: encode finalizers: %v", err))
	}
	return act.Patch{Target: view.RefOf(kind.Pod, pod), UID: pod.UID, Merge: merge, Reason: reason}
}

func (p *planner) onlyReplaceFailed() bool {
	return ptr.Deref(p.j.Spec.PodReplacementPolicy, "") == batchv1.Failed
}

// failedPod: it has failed, or is being deleted, which counts as a failure unless
// the job waits for the real end.
func (p *planner) failedPod(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || !p.onlyReplaceFailed() && pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded
}

func (p *planner) sort() {
	slices.SortStableFunc(p.pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for _, pod := range p.pods {
		switch {
		case workload.Ended(pod):
		case pod.DeletionTimestamp != nil:
			p.terminating = append(p.terminating, pod)
		default:
			p.active = append(p.active, pod)
		}
	}
	p.done, p.lost = indexes{}, indexes{}
	if p.indexed {
		p.done = parseIndexes(p.st.CompletedIndexes, p.limit)
		if p.st.FailedIndexes != nil {
			p.lost = parseIndexes(*p.st.FailedIndexes, p.limit)
		}
	}
}

// settle moves UIDs whose pods carry the finalizer no more from the list to the
// counters.
func (p *planner) settle() {
	if p.st.UncountedTerminatedPods == nil {
		p.st.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	waiting := map[types.UID]bool{}
	for _, pod := range p.pods {
		if tracked(pod) {
			waiting[pod.UID] = true
		}
	}
	u := p.st.UncountedTerminatedPods
	move := func(list []types.UID, counter *int32) (keep []types.UID) {
		for _, uid := range list {
			if waiting[uid] {
				keep = append(keep, uid)
			} else {
				*counter++
			}
		}
		return keep
	}
	u.Succeeded, u.Failed = move(u.Succeeded, &p.st.Succeeded), move(u.Failed, &p.st.Failed)
}

func (p *planner) setCondition(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) {
	at := metav1.NewTime(p.now.Truncate(time.Second))
	if c := condition(&p.st, t); c != nil {
		if c.Status != status || c.Reason != reason || c.Message != message {
			if c.Status != status {
				c.LastTransitionTime = at
			}
			c.Status, c.Reason, c.Message, c.LastProbeTime = status, reason, message, at
		}
		return
	}
	p.st.Conditions = append(p.st.Conditions, batchv1.JobCondition{Type: t, Status: status, LastProbeTime: at, LastTransitionTime: at, Reason: reason, Message: message})
}

func (p *planner) suspended() bool { return p.j.Spec.Suspend != nil && *p.j.Spec.Suspend }

// start keeps the start time and the condition Suspended.
func (p *planner) start() {
	was := isTrue(&p.st, batchv1.JobSuspended)
	switch {
	case p.suspended() && !was:
		p.setCondition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended")
		p.st.StartTime = nil
		p.event(corev1.EventTypeNormal, "Suspended", "Job suspended")
	case !p.suspended() && was:
		p.setCondition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed")
		p.event(corev1.EventTypeNormal, "Resumed", "Job resumed")
	}
	if !p.suspended() && p.st.StartTime == nil {
		p.st.StartTime = ptr.To(metav1.NewTime(p.now.Truncate(time.Second)))
	}
}

func (p *planner) event(kindOf, reason, format string, args ...any) {
	p.events = append(p.events, workload.Event(kind.Job, p.j, source, kindOf, reason, format, args...))
}

func (p *planner) fail(reason, message string) {
	p.outcome = &batchv1.JobCondition{Type: batchv1.JobFailed, Reason: reason, Message: message}
}

func (p *planner) succeed(reason, message string) {
	p.outcome = &batchv1.JobCondition{Type: batchv1.JobComplete, Reason: reason, Message: message}
}

// tally are the counts including what this plan is about to count.
func (p *planner) tally() (succeeded, failures int) {
	u := p.st.UncountedTerminatedPods
	succeeded, failures = int(p.st.Succeeded)+len(u.Succeeded), int(p.st.Failed)+len(u.Failed)
	for _, pod := range p.pods {
		if !tracked(pod) || slices.Contains(u.Succeeded, pod.UID) || slices.Contains(u.Failed, pod.UID) {
			continue
		}
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			succeeded++
			if i := indexOf(pod); p.indexed && i >= 0 && i < p.limit {
				p.done[i] = true
			}
		case p.failedPod(pod) && judge(p.j.Spec.PodFailurePolicy, pod).counts():
			failures++
		}
	}
	if p.indexed {
		succeeded = len(p.done)
	}
	return succeeded, failures
}

// decide finds the outcome.
func (p *planner) decide() {
	if c := condition(&p.st, batchv1.JobFailureTarget); c != nil && c.Status == corev1.ConditionTrue {
		p.fail(c.Reason, c.Message)
		return
	}
	if c := condition(&p.st, batchv1.JobSuccessCriteriaMet); c != nil && c.Status == corev1.ConditionTrue {
		p.succeed(c.Reason, c.Message)
		p.tally()
		return
	}
	succeeded, failures := p.tally()
	if p.perIndex() {
		p.judgeIndexes()
	}
	for _, pod := range p.pods {
		if v := judge(p.j.Spec.PodFailurePolicy, pod); v.action == batchv1.PodFailurePolicyActionFailJob && tracked(pod) {
			p.fail(batchv1.JobReasonPodFailurePolicy, v.message)
			return
		}
	}
	switch {
	case failures > int(ptr.Deref(p.j.Spec.BackoffLimit, 6)) || p.tooManyRestarts():
		p.fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	case p.overdue():
		p.fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	case p.perIndex() && p.j.Spec.MaxFailedIndexes != nil && len(p.lost) > int(*p.j.Spec.MaxFailedIndexes):
		p.fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
	case p.perIndex() && len(p.lost) > 0 && len(p.lost)+len(p.done) >= p.limit:
		p.fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
	}
	if p.outcome != nil {
		return
	}
	if p.indexed {
		if i := metBy(p.j.Spec.SuccessPolicy, p.done, p.limit); i >= 0 {
			p.succeed(batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", i))
			return
		}
	}
	const reached = "Reached expected number of succeeded pods"
	switch c := p.j.Spec.Completions; {
	case c == nil && succeeded > 0 && len(p.active) == 0:
		p.succeed(batchv1.JobReasonCompletionsReached, reached)
	case c != nil && succeeded >= int(*c):
		p.succeed(batchv1.JobReasonCompletionsReached, reached)
	}
}

// tooManyRestarts: with restart policy OnFailure, restarts inside pods count.
func (p *planner) tooManyRestarts() bool {
	if p.j.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := 0
	for _, pod := range p.active {
		if pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == corev1.PodPending {
			for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
				for i := range list {
					n += int(list[i].RestartCount)
				}
			}
		}
	}
	limit := int(ptr.Deref(p.j.Spec.BackoffLimit, 6))
	return limit == 0 && n > 0 || limit > 0 && n >= limit
}

func (p *planner) overdue() bool {
	d := p.j.Spec.ActiveDeadlineSeconds
	if d == nil || p.st.StartTime == nil || p.suspended() {
		return false
	}
	due := p.st.StartTime.Add(time.Duration(*d) * time.Second)
	if p.now.Before(due) {
		p.wake = workload.Earlier(p.wake, due)
		return false
	}
	return true
}

func (p *planner) perIndex() bool { return p.indexed && p.j.Spec.BackoffLimitPerIndex != nil }

// failuresOf an index, from the pod that knows most.
func (p *planner) failuresOf(i int) (n int, last *corev1.Pod) {
	for _, pod := range p.pods {
		if indexOf(pod) != i || !p.failedPod(pod) {
			continue
		}
		c := failuresBefore(pod)
		if judge(p.j.Spec.PodFailurePolicy, pod).counts() {
			c++
		}
		if last == nil || c > n || c == n && endedAt(pod).After(endedAt(last)) {
			n, last = c, pod
		}
	}
	return n, last
}

// judgeIndexes finds the indexes that have failed for good.
func (p *planner) judgeIndexes() {
	for _, pod := range p.pods {
		i := indexOf(pod)
		if i < 0 || i >= p.limit || p.done[i] || p.lost[i] || !p.failedPod(pod) {
			continue
		}
		if n, _ := p.failuresOf(i); n > int(*p.j.Spec.BackoffLimitPerIndex) || judge(p.j.Spec.PodFailurePolicy, pod).action == batchv1.PodFailurePolicyActionFailIndex {
			p.lost[i] = true
		}
	}
}

// keeps: the pod's finalizer stays because the pod is what remembers its index's
// failures, until a pod that knows more has been made.
func (p *planner) keeps(pod *corev1.Pod) bool {
	i := indexOf(pod)
	if !p.perIndex() || p.outcome != nil || i < 0 || i >= p.limit || p.done[i] || p.lost[i] {
		return false
	}
	n, last := p.failuresOf(i)
	if last != pod {
		return false
	}
	return !slices.ContainsFunc(p.pods, func(q *corev1.Pod) bool { return q != pod && indexOf(q) == i && failuresBefore(q) >= n })
}

// count writes ended pods to the list, and takes the finalizer off those that are
// there.
func (p *planner) count() {
	u := p.st.UncountedTerminatedPods
	failing := p.outcome != nil && p.outcome.Type == batchv1.JobFailed
	n := 0
	for _, pod := range p.pods {
		if !tracked(pod) || n == burst {
			continue
		}
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			if !p.indexed && !slices.Contains(u.Succeeded, pod.UID) && !slices.Contains(u.Failed, pod.UID) {
				u.Succeeded = append(u.Succeeded, pod.UID)
			}
		case p.failedPod(pod), p.outcome != nil && (pod.DeletionTimestamp != nil || failing):
			if p.keeps(pod) {
				continue
			}
			valid := !p.indexed || indexOf(pod) >= 0 && indexOf(pod) < p.limit
			counts := p.failedPod(pod) || failing
			if counts && valid && judge(p.j.Spec.PodFailurePolicy, pod).counts() && !slices.Contains(u.Failed, pod.UID) {
				u.Failed = append(u.Failed, pod.UID)
			}
		default:
			continue
		}
		n++
		p.patches = append(p.patches, untrack(pod, "counted"))
	}
	if n == burst {
		p.wake = p.now
	}
	if p.indexed {
		p.st.CompletedIndexes, p.st.Succeeded = p.done.String(), int32(len(p.done))
		if p.perIndex() {
			p.st.FailedIndexes = ptr.To(p.lost.String())
		}
	}
}

// conclude ends the job: what still runs is deleted, and when everything has
// ended and is counted the last condition is set.
func (p *planner) conclude() {
	interim := batchv1.JobSuccessCriteriaMet
	if p.outcome.Type == batchv1.JobFailed {
		interim = batchv1.JobFailureTarget
	}
	p.setCondition(interim, corev1.ConditionTrue, p.outcome.Reason, p.outcome.Message)
	if p.outcome.Type == batchv1.JobComplete {
		p.remove(p.active, p.outcome.Reason)
	} else {
		for _, pod := range p.active[:min(len(p.active), burst)] {
			p.deletes = append(p.deletes, workload.Delete(pod, p.outcome.Reason))
			p.event(corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
		}
	}
	u := p.st.UncountedTerminatedPods
	if len(p.active)+len(p.terminating)+len(u.Failed)+len(u.Succeeded)+len(p.patches) > 0 {
		return
	}
	p.setCondition(p.outcome.Type, corev1.ConditionTrue, p.outcome.Reason, p.outcome.Message)
	if p.outcome.Type == batchv1.JobComplete {
		p.st.CompletionTime = ptr.To(metav1.NewTime(p.now.Truncate(time.Second)))
		p.event(corev1.EventTypeNormal, "Completed", "Job completed")
	} else {
		p.event(corev1.EventTypeWarning, p.outcome.Reason, "%s", p.outcome.Message)
	}
}

// report writes the status when it has changed.
func (p *planner) report() {
	p.st.Active, p.st.Ready, p.st.Terminating = int32(len(p.active)), ptr.To[int32](0), ptr.To(int32(len(p.terminating)))
	for _, pod := range p.active {
		if workload.Ready(pod) {
			*p.st.Ready++
		}
	}
	if apiequality.Semantic.DeepEqual(p.st, p.j.Status) {
		return
	}
	c := p.j.DeepCopy()
	c.Status = p.st
	note := fmt.Sprintf("active=%d succeeded=%d failed=%d", p.st.Active, p.st.Succeeded, p.st.Failed)
	for _, x := range p.st.Conditions {
		if x.Status == corev1.ConditionTrue && !isTrue(&p.j.Status, x.Type) {
			note += " " + string(x.Type)
		}
	}
	p.status = act.List{act.Update{Kind: kind.Job, Object: c, Sub: "status", Note: note}}
}

func endedAt(pod *corev1.Pod) time.Time {
	var at time.Time
	for i := range pod.Status.ContainerStatuses {
		if t := pod.Status.ContainerStatuses[i].State.Terminated; t != nil && t.FinishedAt.After(at) {
			at = t.FinishedAt.Time
		}
	}
	if at.IsZero() {
		if c := workload.ReadyCondition(pod); c != nil && c.Status == corev1.ConditionFalse {
			at = c.LastTransitionTime.Time
		}
	}
	if at.IsZero() && pod.DeletionTimestamp != nil {
		// When it was asked to end.
		at = pod.DeletionTimestamp.Add(-time.Duration(ptr.Deref(pod.DeletionGracePeriodSeconds, 0)) * time.Second)
	}
	if at.IsZero() {
		at = pod.CreationTimestamp.Time
	}
	return at
}

// backoff after n failures in a row.
func backoff(n int) time.Duration {
	d := firstBackoff
	for ; n > 1 && d < maxBackoff; n-- {
		d *= 2
	}
	return min(d, maxBackoff)
}

func env(pod *corev1.Pod, index int) {
	v := corev1.EnvVar{Name: "JOB_COMPLETION_INDEX", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
		FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation)}}}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if !slices.ContainsFunc(list[i].Env, func(e corev1.EnvVar) bool { return e.Name == v.Name }) {
				list[i].Env = append(list[i].Env, v)
			}
		}
	}
	for _, m := range []*map[string]string{&pod.Annotations, &pod.Labels} {
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[batchv1.JobCompletionIndexAnnotation] = strconv.Itoa(index)
	}
}
