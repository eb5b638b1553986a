package validate

import (
	"fmt"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// JobStatusUpdate checks an update of a job's status. Most rules about how fields go
// together look only at what the update changes, so that a status written by an older
// release may stay.
func JobStatusUpdate(new, old *batchv1.Job) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, jobCounts(&new.Status)...)
	errs = append(errs, jobConditions(new, old)...)
	errs = append(errs, jobTimes(new, old)...)
	return append(errs, jobProgress(new, old)...)
}

func jobCounts(s *batchv1.JobStatus) field.ErrorList {
	path := status()
	errs := nonNegative(int64(s.Active), path.Child("active"))
	errs = append(errs, nonNegative(int64(s.Succeeded), path.Child("succeeded"))...)
	errs = append(errs, nonNegative(int64(s.Failed), path.Child("failed"))...)
	errs = append(errs, nonNegative(int64(deref(s.Ready)), path.Child("ready"))...)
	errs = append(errs, nonNegative(int64(deref(s.Terminating)), path.Child("terminating"))...)
	if s.UncountedTerminatedPods == nil {
		return errs
	}
	seen := sets.New[types.UID]()
	check := func(list []types.UID, p *field.Path) {
		for i, uid := range list {
			if uid == "" {
				errs = append(errs, field.Invalid(p.Index(i), uid, "must not be empty"))
			} else if seen.Has(uid) {
				errs = append(errs, field.Duplicate(p.Index(i), uid))
			}
			seen.Insert(uid)
		}
	}
	check(s.UncountedTerminatedPods.Succeeded, path.Child("uncountedTerminatedPods", "succeeded"))
	check(s.UncountedTerminatedPods.Failed, path.Child("uncountedTerminatedPods", "failed"))
	return errs
}

// jobConditions checks which conditions may be true together and which may end.
func jobConditions(new, old *batchv1.Job) field.ErrorList {
	var errs field.ErrorList
	refuse := func(wrong bool, msg string) {
		if wrong {
			errs = append(errs, field.Invalid(status().Child("conditions"), field.OmitValueType{}, msg))
		}
	}
	is := func(t batchv1.JobConditionType) bool { return jobCondition(&new.Status, t) }
	was := func(t batchv1.JobConditionType) bool { return jobCondition(&old.Status, t) }
	changed := func(types ...batchv1.JobConditionType) bool {
		for _, t := range types {
			if is(t) != was(t) {
				return true
			}
		}
		return false
	}
	complete, failed, target, met := batchv1.JobComplete, batchv1.JobFailed, batchv1.JobFailureTarget, batchv1.JobSuccessCriteriaMet
	refuse(changed(complete, failed) && is(complete) && is(failed), "cannot set Complete=True and Failed=true conditions")
	refuse(changed(complete, target) && is(complete) && is(target), "cannot set Complete=True and FailureTarget=true conditions")
	refuse(changed(failed, target) && is(failed) && !is(target), "cannot set Failed=True condition without the FailureTarget=true condition")
	refuse(changed(complete, met) && is(complete) && !is(met), "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	refuse(is(met) && is(failed), "cannot set SuccessCriteriaMet=True and Failed=true conditions")
	refuse(is(met) && is(target), "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	refuse(new.Spec.SuccessPolicy != nil && !is(met) && is(complete), "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
	for _, t := range []batchv1.JobConditionType{failed, complete, target} {
		refuse(was(t) && !is(t), fmt.Sprintf("cannot disable the terminal %s=True condition", t))
	}
	refuse(was(met) && !is(met), "cannot disable the SuccessCriteriaMet=True condition")
	refuse(was(complete) && !was(met) && is(met), "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions")
	return errs
}

func jobTimes(new, old *batchv1.Job) field.ErrorList {
	var errs field.ErrorList
	s, was := &new.Status, &old.Status
	complete := jobCondition(s, batchv1.JobComplete)
	started, ended := !s.StartTime.Equal(was.StartTime), !s.CompletionTime.Equal(was.CompletionTime)
	turned := complete != jobCondition(was, batchv1.JobComplete)
	start, end := status().Child("startTime"), status().Child("completionTime")
	if (turned || ended) && s.CompletionTime != nil && !complete {
		errs = append(errs, field.Invalid(end, s.CompletionTime, "cannot set completionTime when there is no Complete=True condition"))
	}
	if (turned || ended) && s.CompletionTime == nil && complete {
		errs = append(errs, field.Required(end, "completionTime is required for Complete jobs"))
	}
	if (started || ended) && s.StartTime != nil && s.CompletionTime.Before(s.StartTime) && s.CompletionTime != nil {
		errs = append(errs, field.Invalid(end, s.CompletionTime, "completionTime cannot be set before startTime"))
	}
	if ended && s.CompletionTime != nil && was.CompletionTime != nil {
		errs = append(errs, field.Invalid(end, s.CompletionTime, "completionTime cannot be mutated"))
	}
	if (started || jobFinished(s) != jobFinished(was)) && s.StartTime == nil && jobFinished(s) {
		errs = append(errs, field.Required(start, "startTime is required for finished job"))
	}
	if started && was.StartTime != nil && !deref(new.Spec.Suspend) {
		errs = append(errs, field.Required(start, "startTime cannot be removed for unsuspended job"))
	}
	return errs
}

// jobProgress checks counters and indexes.
func jobProgress(new, old *batchv1.Job) field.ErrorList {
	var errs field.ErrorList
	s, was, path := &new.Status, &old.Status, status()
	finished := jobFinished(s)
	turned := finished != jobFinished(was)
	if (turned || s.Active != was.Active) && finished && s.Active > 0 {
		errs = append(errs, field.Invalid(path.Child("active"), s.Active, "active>0 is invalid for finished job"))
	}
	if u := s.UncountedTerminatedPods; (turned || !equality.Semantic.DeepEqual(u, was.UncountedTerminatedPods)) && finished && u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
		errs = append(errs, field.Invalid(path.Child("uncountedTerminatedPods"), u, "uncountedTerminatedPods needs to be empty for finished job"))
	}
	if (turned || deref(s.Terminating) != deref(was.Terminating)) && finished && deref(s.Terminating) > 0 {
		errs = append(errs, field.Invalid(path.Child("terminating"), s.Terminating, "terminating>0 is invalid for finished job"))
	}
	if (s.Active != was.Active || deref(s.Ready) != deref(was.Ready)) && deref(s.Ready) > s.Active {
		errs = append(errs, field.Invalid(path.Child("ready"), *s.Ready, "cannot set more ready pods than active"))
	}
	if s.Failed < was.Failed {
		errs = append(errs, field.Invalid(path.Child("failed"), s.Failed, "cannot decrease the failed counter"))
	}
	// An indexed job that may shrink loses what its last indexes did.
	elastic := deref(new.Spec.CompletionMode) == batchv1.IndexedCompletion && equality.Semantic.DeepEqual(new.Spec.Completions, new.Spec.Parallelism)
	if s.Succeeded < was.Succeeded && !elastic {
		errs = append(errs, field.Invalid(path.Child("succeeded"), s.Succeeded, "cannot decrease the succeeded counter"))
	}
	return append(errs, jobIndexes(new, old)...)
}

func jobIndexes(new, old *batchv1.Job) field.ErrorList {
	var errs field.ErrorList
	s, was := &new.Status, &old.Status
	done, lost := s.CompletedIndexes != was.CompletedIndexes, !equality.Semantic.DeepEqual(s.FailedIndexes, was.FailedIndexes)
	completed, failed := status().Child("completedIndexes"), status().Child("failedIndexes")
	completions := new.Spec.Completions
	if done && completions != nil {
		if _, err := countIndexes(s.CompletedIndexes, int(*completions)); err != nil {
			errs = append(errs, field.Invalid(completed, s.CompletedIndexes, fmt.Sprintf("error parsing completedIndexes: %s", err)))
		}
	}
	if done && s.CompletedIndexes != "" && deref(new.Spec.CompletionMode) != batchv1.IndexedCompletion {
		errs = append(errs, field.Invalid(completed, s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode"))
	}
	if s.FailedIndexes == nil {
		return errs
	}
	if lost && new.Spec.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Invalid(failed, *s.FailedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null"))
	} else if lost && completions != nil {
		if _, err := countIndexes(*s.FailedIndexes, int(*completions)); err != nil {
			errs = append(errs, field.Invalid(failed, *s.FailedIndexes, fmt.Sprintf("error parsing failedIndexes: %s", err)))
		}
	}
	if (done || lost) && completions != nil {
		if i := sharedIndex(s.CompletedIndexes, *s.FailedIndexes); i >= 0 {
			errs = append(errs, field.Invalid(failed, *s.FailedIndexes, fmt.Sprintf("failedIndexes and completedIndexes overlap at index: %d", i)))
		}
	}
	return errs
}

// sharedIndex finds the first index that stands in both lists, -1 if there is none.
// Parts that are no intervals are left out.
func sharedIndex(a, b string) int {
	spans := func(list string) (out [][2]int) {
		for part := range strings.SplitSeq(list, ",") {
			var span [2]int
			if n, _ := fmt.Sscanf(part, "%d-%d", &span[0], &span[1]); n == 0 {
				continue
			} else if n == 1 {
				span[1] = span[0]
			}
			out = append(out, span)
		}
		return out
	}
	one, two := spans(a), spans(b)
	for len(one) > 0 && len(two) > 0 {
		if one[0][0] <= two[0][1] && two[0][0] <= one[0][1] {
			return max(one[0][0], two[0][0])
		}
		if one[0][0] <= two[0][0] {
			one = one[1:]
		} else {
			two = two[1:]
		}
	}
	return -1
}

func jobFinished(s *batchv1.JobStatus) bool {
	return jobCondition(s, batchv1.JobComplete) || jobCondition(s, batchv1.JobFailed)
}

func jobCondition(s *batchv1.JobStatus, t batchv1.JobConditionType) bool {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
