// Package cronjob makes the Jobs of CronJobs at their times (Kubernetes docs,
// "CronJob").
//
// A job's name is the cron job's and the scheduled minute since 1970, so one
// instant never has two. When the runtime was away, only the last instant that
// was missed is made up for, if startingDeadlineSeconds still allows it.
package cronjob

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const source = "cronjob-controller"

// Part registers the controller.
func Part() control.Part {
	return control.Part{
		Name: source, Kind: kind.CronJob, Plan: Plan,
		Failed: func(s view.Snapshot, ref view.Ref, a act.Action, err error, _ time.Time) act.List {
			c := view.Get[*batchv1.CronJob](s, kind.CronJob, ref.Namespace, ref.Name)
			if _, ok := a.(act.Create); !ok || c == nil {
				return nil
			}
			return act.List{workload.Event(kind.CronJob, c, source, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)}
		},
		Wakes: []control.Wake{{Kind: kind.Job, To: control.ToOwner(kind.CronJob)}},
		Writes: []control.Write{
			{Kind: kind.Job, Verbs: []string{"create", "delete"}},
			{Kind: kind.CronJob, Sub: "status", Verbs: []string{"update"}},
		},
	}
}

func ended(j *batchv1.Job) (batchv1.JobConditionType, time.Time) {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			if c.Type == batchv1.JobComplete && j.Status.CompletionTime != nil {
				return c.Type, j.Status.CompletionTime.Time
			}
			return c.Type, c.LastTransitionTime.Time
		}
	}
	return "", time.Time{}
}

type planner struct {
	s       view.Snapshot
	c       *batchv1.CronJob
	now     time.Time
	st      batchv1.CronJobStatus
	running []*batchv1.Job
	actions act.List
	events  act.List
	wake    time.Time
}

// Plan decides for one cron job.
func Plan(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	c := view.Get[*batchv1.CronJob](s, kind.CronJob, ref.Namespace, ref.Name)
	if c == nil || c.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	p := &planner{s: s, c: c, now: now, st: *c.Status.DeepCopy()}
	p.account()
	p.run()
	if !apiequality.Semantic.DeepEqual(p.st, c.Status) {
		w := c.DeepCopy()
		w.Status = p.st
		p.actions = append(p.actions, act.Update{Kind: kind.CronJob, Object: w, Sub: "status", Note: fmt.Sprintf("active=%d", len(p.st.Active))})
	}
	return append(p.actions, p.events...), p.wake
}

func (p *planner) event(kindOf, reason, format string, args ...any) {
	p.events = append(p.events, workload.Event(kind.CronJob, p.c, source, kindOf, reason, format, args...))
}

// account brings the list of active jobs up to date and removes old ones.
func (p *planner) account() {
	var good, bad []*batchv1.Job
	was := p.st.Active
	p.st.Active = nil
	for j := range view.Owned[*batchv1.Job](p.s, string(p.c.UID), kind.Job) {
		if o := metav1.GetControllerOfNoCopy(j); o == nil || o.UID != p.c.UID {
			continue
		}
		how, at := ended(j)
		if how == "" {
			p.running = append(p.running, j)
			p.st.Active = append(p.st.Active, corev1.ObjectReference{APIVersion: "batch/v1", Kind: "Job", Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: known(was, j)})
			continue
		}
		if slices.ContainsFunc(was, func(r corev1.ObjectReference) bool { return r.UID == j.UID }) {
			p.event(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, how)
		}
		if how == batchv1.JobComplete {
			good = append(good, j)
			if p.st.LastSuccessfulTime == nil || p.st.LastSuccessfulTime.Time.Before(at) {
				p.st.LastSuccessfulTime = ptr.To(metav1.NewTime(at))
			}
		} else {
			bad = append(bad, j)
		}
	}
	p.trim(good, p.c.Spec.SuccessfulJobsHistoryLimit, 3)
	p.trim(bad, p.c.Spec.FailedJobsHistoryLimit, 1)
}

// known keeps the revision under which a job was first listed, so that the status
// does not follow every change of the job.
func known(was []corev1.ObjectReference, j *batchv1.Job) string {
	for _, r := range was {
		if r.UID == j.UID {
			return r.ResourceVersion
		}
	}
	return j.ResourceVersion
}

func (p *planner) trim(jobs []*batchv1.Job, limit *int32, usual int32) {
	slices.SortStableFunc(jobs, func(a, b *batchv1.Job) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for i := 0; i < len(jobs)-int(ptr.Deref(limit, usual)); i++ {
		if jobs[i].DeletionTimestamp == nil {
			p.delete(jobs[i], "history-limit")
		}
	}
}

func (p *planner) delete(j *batchv1.Job, reason string) {
	p.actions = append(p.actions, act.Delete{Target: view.RefOf(kind.Job, j), UID: j.UID, Propagation: metav1.DeletePropagationBackground, Reason: reason})
	p.event(corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %s", j.Name)
}

// run starts the job of the last instant that is due.
func (p *planner) run() {
	if ptr.Deref(p.c.Spec.Suspend, false) {
		return
	}
	sched, err := parse(p.c.Spec.Schedule, ptr.Deref(p.c.Spec.TimeZone, ""))
	if err != nil {
		p.event(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule %q : %v", p.c.Spec.Schedule, err)
		return
	}
	from := p.c.CreationTimestamp.Time
	if t := p.st.LastScheduleTime; t != nil {
		from = t.Time
	}
	if sched.every > 0 {
		p.wake = from.Add(sched.every)
		if !p.wake.After(p.now) {
			p.wake = p.now.Add(sched.every)
		}
	} else {
		p.wake = sched.next(p.now)
	}
	deadline := p.c.Spec.StartingDeadlineSeconds
	missedFrom := from
	if deadline != nil {
		if d := p.now.Add(-time.Duration(*deadline) * time.Second); d.After(missedFrom) {
			missedFrom = d
		}
	}
	at, missed := sched.last(missedFrom, p.now)
	if at.IsZero() {
		if late, _ := sched.last(from, p.now); !late.IsZero() && deadline != nil {
			p.event(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", late.UTC().Format(time.RFC1123Z))
		}
		return
	}
	if missed > 100 {
		p.event(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	name := fmt.Sprintf("%s-%d", p.c.Name, at.Unix()/60)
	if p.s.Get(kind.Job, p.c.Namespace, name) != nil {
		p.st.LastScheduleTime = ptr.To(metav1.NewTime(at.UTC()))
		return
	}
	switch {
	case p.c.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(p.running) > 0:
		p.event(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return
	case p.c.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, j := range p.running {
			if j.DeletionTimestamp == nil {
				p.delete(j, "replaced")
			}
		}
	}
	t := p.c.Spec.JobTemplate.DeepCopy()
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: p.c.Namespace, Name: name, Labels: t.Labels, Annotations: t.Annotations,
		CreationTimestamp: metav1.NewTime(at), OwnerReferences: []metav1.OwnerReference{workload.OwnerRef(kind.CronJob, p.c)}}, Spec: t.Spec}
	if job.Annotations == nil {
		job.Annotations = map[string]string{}
	}
	job.Annotations[batchv1.CronJobScheduledTimestampAnnotation] = at.In(sched.zone).Format(time.RFC3339)
	p.actions = append(p.actions, act.Create{Kind: kind.Job, Object: job, Reason: "due " + at.UTC().Format("15:04:05")})
	p.event(corev1.EventTypeNormal, "SuccessfulCreate", "Created job %s", name)
	p.st.LastScheduleTime = ptr.To(metav1.NewTime(at.UTC()))
}
