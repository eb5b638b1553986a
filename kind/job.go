package kind

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// Job runs pods until enough of them succeed.
var Job = define[batchv1.JobList](Row[*batchv1.Job]{
	Names: Names{
		Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs",
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "jobs",
	},
	Validate:            validate.Job,
	ValidateUpdate:      validate.JobUpdate,
	UnconditionalUpdate: true,
	Default:             defaultJob,
	PrepareCreate: func(j *batchv1.Job) {
		selectOwnPods(j)
		j.Generation, j.Status = 1, batchv1.JobStatus{}
	},
	PrepareUpdate: func(new, old *batchv1.Job) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *batchv1.Job) []string {
		var out []string
		if old == nil {
			if s := &new.Spec; ptr.Deref(s.CompletionMode, "") == batchv1.IndexedCompletion &&
				ptr.Deref(s.Completions, 0) > 100_000 && ptr.Deref(s.Parallelism, 0) > 10_000 {
				out = append(out, "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail")
			}
			return append(out, templateWarnings(templatePath, &new.Spec.Template, nil)...)
		}
		return append(out, templateWarnings(templatePath, &new.Spec.Template, &old.Spec.Template)...)
	},
	Status: &DoorOf[*batchv1.Job]{
		ValidateUpdate: validate.JobStatusUpdate,
		PrepareUpdate:  func(new, old *batchv1.Job) { new.Spec = old.Spec },
	},
	Selectable: map[string]func(*batchv1.Job) string{
		"status.successful": func(j *batchv1.Job) string { return strconv.Itoa(int(j.Status.Succeeded)) },
	},
	Columns: columns("Status, Completions, Duration | Containers, Images, Selector"),
	Cells: func(j *batchv1.Job, now time.Time) []any {
		names, images := containerCells(j.Spec.Template.Spec.Containers)
		return []any{j.Name, jobState(j), jobCompletions(j), jobDuration(j, now), age(j, now), names, images, selectorCell(j.Spec.Selector)}
	},
})

func defaultJob(j *batchv1.Job) {
	s := &j.Spec
	if s.Completions == nil && s.Parallelism == nil {
		s.Completions, s.Parallelism = ptr.To[int32](1), ptr.To[int32](1)
	}
	fillPtr(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		fillPtr(&s.BackoffLimit, math.MaxInt32)
	}
	fillPtr(&s.BackoffLimit, 6)
	if len(j.Labels) == 0 && len(s.Template.Labels) > 0 {
		j.Labels = maps.Clone(s.Template.Labels)
	}
	fillPtr(&s.CompletionMode, batchv1.NonIndexedCompletion)
	fillPtr(&s.Suspend, false)
	if s.PodReplacementPolicy == nil {
		s.PodReplacementPolicy = ptr.To(batchv1.TerminatingOrFailed)
		if s.PodFailurePolicy != nil {
			s.PodReplacementPolicy = ptr.To(batchv1.Failed)
		}
	}
	fillPtr(&s.ManualSelector, false)
	defaultFailurePolicy(s.PodFailurePolicy)
	defaultTemplate(&s.Template)
}

func defaultFailurePolicy(p *batchv1.PodFailurePolicy) {
	if p == nil {
		return
	}
	for i := range p.Rules {
		for j := range p.Rules[i].OnPodConditions {
			fill(&p.Rules[i].OnPodConditions[j].Status, corev1.ConditionTrue)
		}
	}
}

// selectOwnPods makes the selector and the template's labels from the job's own
// UID and name, unless the user manages the selector. Labels that are there stay;
// validation then tells.
func selectOwnPods(j *batchv1.Job) {
	if ptr.Deref(j.Spec.ManualSelector, false) {
		return
	}
	labels := map[string]string{
		batchv1.ControllerUidLabel: string(j.UID), "controller-uid": string(j.UID),
		batchv1.JobNameLabel: j.Name, "job-name": j.Name,
	}
	maps.Copy(labels, j.Spec.Template.Labels)
	j.Spec.Template.Labels = labels
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	if _, ok := j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !ok {
		j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
	}
}

func jobState(j *batchv1.Job) string {
	has := func(kind batchv1.JobConditionType) bool {
		for _, c := range j.Status.Conditions {
			if c.Type == kind {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	}
	switch {
	case has(batchv1.JobComplete):
		return "Complete"
	case has(batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case has(batchv1.JobSuspended):
		return "Suspended"
	case has(batchv1.JobFailureTarget):
		return "FailureTarget"
	case has(batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func jobCompletions(j *batchv1.Job) string {
	if j.Spec.Completions != nil {
		return fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
	}
	if n := ptr.Deref(j.Spec.Parallelism, 0); n > 1 {
		return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, n)
	}
	return fmt.Sprintf("%d/1", j.Status.Succeeded)
}

func jobDuration(j *batchv1.Job, now time.Time) string {
	switch {
	case j.Status.StartTime == nil:
		return ""
	case j.Status.CompletionTime == nil:
		return duration.HumanDuration(now.Sub(j.Status.StartTime.Time))
	}
	return duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
}
