package validate

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubelabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of a Job.
const (
	maxIndexedParallelism = 100000
	maxFailedIndexes      = 100000
	maxManagedByLen       = 63
	maxPolicyRules        = 20
	maxExitCodes          = 255
	maxPodPatterns        = 20
	maxSucceededIndexes   = 64 * 1024
	maxHighCompletions    = 100000
	maxHighParallelism    = 10000
	maxHighFailedIndexes  = 10000
)

// Job checks a new job whose selector and labels the server has filled in.
func Job(j *batchv1.Job) field.ErrorList {
	errs := ObjectMeta(&j.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, generatedSelector(j)...)
	errs = append(errs, jobSpecWithSelector(&j.Spec, spec())...)
	errs = append(errs, noScheduling(&j.Spec, spec())...)
	if deref(j.Spec.CompletionMode) == batchv1.IndexedCompletion && deref(j.Spec.Completions) > 0 {
		pod := fmt.Sprintf("%s-%d", j.Name, *j.Spec.Completions-1)
		if msgs := validation.IsDNS1123Label(pod); len(msgs) > 0 {
			errs = append(errs, field.Invalid(meta().Child("name"), j.Name, fmt.Sprintf("will not able to create pod with invalid DNS label: %s", pod)))
		}
	}
	return errs
}

// generatedSelector checks that the selector which the server made is still there.
func generatedSelector(j *batchv1.Job) field.ErrorList {
	if deref(j.Spec.ManualSelector) {
		return nil
	}
	if j.Spec.Selector == nil {
		return nil // reported as required with the rest of the spec
	}
	var errs field.ErrorList
	if uid := string(j.UID); uid != "" {
		want := map[string]string{batchv1.ControllerUidLabel: uid, batchv1.JobNameLabel: j.Name,
			"controller-uid": uid, "job-name": j.Name}
		for _, key := range sets.List(sets.KeySet(want)) {
			errs = append(errs, hasLabel(&j.Spec.Template.ObjectMeta, spec().Child("template", "metadata"), key, want[key])...)
		}
		sel, err := metav1.LabelSelectorAsSelector(j.Spec.Selector)
		if err != nil {
			return append(errs, field.Invalid(spec().Child("selector"), j.Spec.Selector, err.Error()))
		}
		if !sel.Matches(kubelabels.Set(want)) {
			errs = append(errs, field.Invalid(spec().Child("selector"), j.Spec.Selector, "`selector` not auto-generated"))
		}
	}
	return errs
}

func hasLabel(m *metav1.ObjectMeta, path *field.Path, key, want string) field.ErrorList {
	got, ok := m.Labels[key]
	if !ok {
		return field.ErrorList{field.Required(path.Child("labels").Key(key), fmt.Sprintf("must be '%s'", want))}
	}
	if got != want {
		return field.ErrorList{field.Invalid(path.Child("labels").Key(key), m.Labels, fmt.Sprintf("must be '%s'", want))}
	}
	return nil
}

func jobSpecWithSelector(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	errs := jobSpec(s, path)
	if s.Selector == nil {
		errs = append(errs, field.Required(path.Child("selector"), ""))
	} else {
		errs = append(errs, labelSelector(s.Selector, path.Child("selector"))...)
	}
	if sel, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !sel.Matches(kubelabels.Set(s.Template.Labels)) {
		errs = append(errs, field.Invalid(path.Child("template", "metadata", "labels"), s.Template.Labels, noMatch))
	}
	return errs
}

func jobSpec(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name  string
		value *int32
	}{{"parallelism", s.Parallelism}, {"completions", s.Completions}} {
		if f.value != nil {
			errs = append(errs, nonNegative(int64(*f.value), path.Child(f.name))...)
		}
	}
	if s.ActiveDeadlineSeconds != nil {
		errs = append(errs, nonNegative(*s.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))...)
	}
	for _, f := range []struct {
		name  string
		value *int32
	}{{"backoffLimit", s.BackoffLimit}, {"ttlSecondsAfterFinished", s.TTLSecondsAfterFinished}, {"backoffLimitPerIndex", s.BackoffLimitPerIndex}} {
		if f.value != nil {
			errs = append(errs, nonNegative(int64(*f.value), path.Child(f.name))...)
		}
	}
	if m := s.MaxFailedIndexes; m != nil {
		errs = append(errs, nonNegative(int64(*m), path.Child("maxFailedIndexes"))...)
		if s.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Required(path.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
		}
	}
	if s.ManagedBy != nil {
		errs = append(errs, validation.IsDomainPrefixedPath(path.Child("managedBy"), *s.ManagedBy)...)
		if len(*s.ManagedBy) > maxManagedByLen {
			errs = append(errs, field.TooLong(path.Child("managedBy"), "", maxManagedByLen))
		}
	}
	if s.CompletionMode != nil {
		errs = append(errs, supported(*s.CompletionMode, path.Child("completionMode"), batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)...)
		if *s.CompletionMode == batchv1.IndexedCompletion {
			errs = append(errs, indexedJob(s, path)...)
		}
	}
	if deref(s.CompletionMode) != batchv1.IndexedCompletion && s.BackoffLimitPerIndex != nil {
		errs = append(errs, field.Invalid(path.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode"))
	}
	if deref(s.CompletionMode) != batchv1.IndexedCompletion && s.MaxFailedIndexes != nil {
		errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "requires indexed completion mode"))
	}
	if s.PodFailurePolicy != nil {
		errs = append(errs, podFailurePolicy(s, path.Child("podFailurePolicy"))...)
	}
	if s.SuccessPolicy != nil {
		if deref(s.CompletionMode) != batchv1.IndexedCompletion {
			errs = append(errs, field.Invalid(path.Child("successPolicy"), s.SuccessPolicy, "requires indexed completion mode"))
		} else {
			errs = append(errs, successPolicy(s, path.Child("successPolicy"))...)
		}
	}
	if r := s.PodReplacementPolicy; r != nil {
		if s.PodFailurePolicy != nil && *r != batchv1.Failed {
			errs = append(errs, supported(*r, path.Child("podReplacementPolicy"), batchv1.Failed)...)
		} else {
			errs = append(errs, supported(*r, path.Child("podReplacementPolicy"), batchv1.Failed, batchv1.TerminatingOrFailed)...)
		}
	}
	errs = append(errs, PodTemplateSpec(&s.Template, path.Child("template"))...)
	restart := s.Template.Spec.RestartPolicy
	rp := path.Child("template", "spec", "restartPolicy")
	if restart != "" && restart != corev1.RestartPolicyAlways && restart != corev1.RestartPolicyOnFailure && restart != corev1.RestartPolicyNever {
		errs = append(errs, supported(restart, rp, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	} else if restart != corev1.RestartPolicyOnFailure && restart != corev1.RestartPolicyNever {
		errs = append(errs, field.Required(rp, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)))
	} else if s.PodFailurePolicy != nil && restart != corev1.RestartPolicyNever {
		errs = append(errs, field.Invalid(rp, restart, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
	}
	return errs
}

func indexedJob(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Completions == nil {
		errs = append(errs, field.Required(path.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion)))
	}
	if p := deref(s.Parallelism); p > maxIndexedParallelism {
		errs = append(errs, field.Invalid(path.Child("parallelism"), p, fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxIndexedParallelism, batchv1.IndexedCompletion)))
	}
	if s.Completions != nil && s.MaxFailedIndexes != nil && *s.MaxFailedIndexes > *s.Completions {
		errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "must be less than or equal to completions"))
	}
	if m := deref(s.MaxFailedIndexes); m > maxFailedIndexes {
		errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), m, fmt.Sprintf("must be less than or equal to %d", maxFailedIndexes)))
	}
	if c := deref(s.Completions); c > maxHighCompletions && s.BackoffLimitPerIndex != nil {
		if s.MaxFailedIndexes == nil {
			errs = append(errs, field.Required(path.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", maxHighCompletions)))
		}
		if p := deref(s.Parallelism); p > maxHighParallelism {
			errs = append(errs, field.Invalid(path.Child("parallelism"), p, fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxHighParallelism, maxHighCompletions)))
		}
		if m := deref(s.MaxFailedIndexes); m > maxHighFailedIndexes {
			errs = append(errs, field.Invalid(path.Child("maxFailedIndexes"), m, fmt.Sprintf("must be less than or equal to %d when completions are above %d and used with backoff limit per index", maxHighFailedIndexes, maxHighCompletions)))
		}
	}
	return errs
}

func quoted[T ~string](values ...T) string {
	return fmt.Sprintf("%q", values)
}

var failureActions = []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
	batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore}

func podFailurePolicy(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := s.PodFailurePolicy.Rules
	path = path.Child("rules")
	if len(rules) > maxPolicyRules {
		errs = append(errs, field.TooMany(path, len(rules), maxPolicyRules))
	}
	names := sets.New[string]()
	for _, c := range slices.Concat(s.Template.Spec.Containers, s.Template.Spec.InitContainers) {
		names.Insert(c.Name)
	}
	for i := range rules {
		r, p := &rules[i], path.Index(i)
		switch {
		case r.Action == "":
			errs = append(errs, field.Required(p.Child("action"), "valid values: "+quoted(failureActions...)))
		case r.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil:
			errs = append(errs, field.Invalid(p.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
		default:
			errs = append(errs, supported(r.Action, p.Child("action"), failureActions...)...)
		}
		if r.OnExitCodes != nil {
			errs = append(errs, onExitCodes(r.OnExitCodes, names, p.Child("onExitCodes"))...)
		}
		if len(r.OnPodConditions) > 0 {
			errs = append(errs, onPodConditions(r.OnPodConditions, p.Child("onPodConditions"))...)
		}
		if r.OnExitCodes != nil && len(r.OnPodConditions) > 0 {
			errs = append(errs, field.Invalid(p, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
		}
		if r.OnExitCodes == nil && len(r.OnPodConditions) == 0 {
			errs = append(errs, field.Invalid(p, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
		}
	}
	return errs
}

func onExitCodes(r *batchv1.PodFailurePolicyOnExitCodesRequirement, names sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	in, notIn := batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn
	if r.Operator == "" {
		errs = append(errs, field.Required(path.Child("operator"), "valid values: "+quoted(in, notIn)))
	} else {
		errs = append(errs, supported(r.Operator, path.Child("operator"), in, notIn)...)
	}
	if r.ContainerName != nil && !names.Has(*r.ContainerName) {
		errs = append(errs, field.Invalid(path.Child("containerName"), *r.ContainerName, "must be one of the container or initContainer names in the pod template"))
	}
	vp := path.Child("values")
	if len(r.Values) == 0 {
		errs = append(errs, field.Invalid(vp, r.Values, "at least one value is required"))
	} else if len(r.Values) > maxExitCodes {
		errs = append(errs, field.TooMany(vp, len(r.Values), maxExitCodes))
	}
	ordered := true
	seen := sets.New[int32]()
	for i, v := range r.Values {
		if r.Operator == in && v == 0 {
			errs = append(errs, field.Invalid(vp.Index(i), v, "must not be 0 for the In operator"))
		}
		if seen.Has(v) {
			errs = append(errs, field.Duplicate(vp.Index(i), v))
		}
		seen.Insert(v)
		ordered = ordered && (i == 0 || r.Values[i-1] <= v)
	}
	if !ordered {
		errs = append(errs, field.Invalid(vp, r.Values, "must be ordered"))
	}
	return errs
}

func onPodConditions(patterns []batchv1.PodFailurePolicyOnPodConditionsPattern, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(patterns) > maxPodPatterns {
		errs = append(errs, field.TooMany(path, len(patterns), maxPodPatterns))
	}
	for i, c := range patterns {
		p := path.Index(i)
		errs = append(errs, qualifiedName(string(c.Type), p.Child("type"))...)
		if c.Status == "" {
			errs = append(errs, field.Required(p.Child("status"), "valid values: "+quoted(corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)))
		} else {
			errs = append(errs, supported(c.Status, p.Child("status"), corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
		}
	}
	return errs
}

func successPolicy(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := s.SuccessPolicy.Rules
	path = path.Child("rules")
	if len(rules) == 0 {
		errs = append(errs, field.Required(path, "at least one rules must be specified when the successPolicy is specified"))
	}
	if len(rules) > maxPolicyRules {
		errs = append(errs, field.TooMany(path, len(rules), maxPolicyRules))
	}
	completions := deref(s.Completions)
	for i := range rules {
		r, p := &rules[i], path.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			errs = append(errs, field.Required(p, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		total := -1
		if r.SucceededIndexes != nil {
			ip := p.Child("succeededIndexes")
			if len(*r.SucceededIndexes) > maxSucceededIndexes {
				errs = append(errs, field.TooLong(ip, "", maxSucceededIndexes))
			}
			n, err := countIndexes(*r.SucceededIndexes, int(completions))
			if err != nil {
				errs = append(errs, field.Invalid(ip, *r.SucceededIndexes, fmt.Sprintf("error parsing succeededIndexes: %s", err)))
			}
			total = n
		}
		if r.SucceededCount != nil {
			cp := p.Child("succeededCount")
			errs = append(errs, nonNegative(int64(*r.SucceededCount), cp)...)
			if *r.SucceededCount > completions {
				errs = append(errs, field.Invalid(cp, *r.SucceededCount, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", completions)))
			}
			if total >= 0 && int(*r.SucceededCount) > total {
				errs = append(errs, field.Invalid(cp, *r.SucceededCount, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total)))
			}
		}
	}
	return errs
}

// countIndexes counts the completion indexes in a list such as "1,3-5,7".
func countIndexes(list string, completions int) (int, error) {
	if list == "" {
		return 0, nil
	}
	total, last := 0, -1
	for part := range strings.SplitSeq(list, ",") {
		ends := strings.Split(part, "-")
		if len(ends) > 2 {
			return 0, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", part)
		}
		first, err := strconv.Atoi(ends[0])
		if err != nil {
			return 0, fmt.Errorf("cannot convert string to integer for index: %q", ends[0])
		}
		if first >= completions {
			return 0, fmt.Errorf("too large index: %q", ends[0])
		}
		if last >= first {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, first)
		}
		until := first
		if len(ends) == 2 {
			if until, err = strconv.Atoi(ends[1]); err != nil {
				return 0, fmt.Errorf("cannot convert string to integer for index: %q", ends[1])
			}
			if until >= completions {
				return 0, fmt.Errorf("too large index: %q", ends[1])
			}
			if first >= until {
				return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", first, until)
			}
		}
		total += until - first + 1
		last = until
	}
	return total, nil
}

// JobUpdate checks an update of a job.
func JobUpdate(new, old *batchv1.Job) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	path := spec()
	errs = append(errs, jobSpecWithSelector(&new.Spec, path)...)
	errs = append(errs, completionsUpdate(&new.Spec, &old.Spec, path)...)
	errs = append(errs, unchanged(new.Spec.Selector, old.Spec.Selector, path.Child("selector"))...)
	errs = append(errs, jobTemplateUpdate(new, old, path.Child("template"))...)
	errs = append(errs, unchanged(new.Spec.CompletionMode, old.Spec.CompletionMode, path.Child("completionMode"))...)
	errs = append(errs, unchanged(new.Spec.PodFailurePolicy, old.Spec.PodFailurePolicy, path.Child("podFailurePolicy"))...)
	errs = append(errs, unchanged(new.Spec.BackoffLimitPerIndex, old.Spec.BackoffLimitPerIndex, path.Child("backoffLimitPerIndex"))...)
	errs = append(errs, unchanged(new.Spec.ManagedBy, old.Spec.ManagedBy, path.Child("managedBy"))...)
	if old.Spec.Scheduling == nil {
		errs = append(errs, noScheduling(&new.Spec, path)...)
	}
	return append(errs, unchanged(new.Spec.SuccessPolicy, old.Spec.SuccessPolicy, path.Child("successPolicy"))...)
}

// noScheduling refuses the field of a gate that is off (WorkloadWithJob).
func noScheduling(s *batchv1.JobSpec, path *field.Path) field.ErrorList {
	if s.Scheduling == nil {
		return nil
	}
	return field.ErrorList{field.Forbidden(path.Child("scheduling"), "")}
}

func completionsUpdate(new, old *batchv1.JobSpec, path *field.Path) field.ErrorList {
	p := path.Child("completions")
	if deref(new.CompletionMode) != batchv1.IndexedCompletion || new.Completions == nil || old.Completions == nil {
		return unchanged(new.Completions, old.Completions, p)
	}
	if *new.Completions == *old.Completions {
		return nil
	}
	if *new.Completions != deref(new.Parallelism) {
		return field.ErrorList{field.Invalid(p, new.Completions, fmt.Sprintf("can only be modified in tandem with %s", path.Child("parallelism").String()))}
	}
	return nil
}

func jobTemplateUpdate(new, old *batchv1.Job, path *field.Path) field.ErrorList {
	before := old.Spec.Template
	// Where and with what a job's pods run may change while it has none.
	if deref(old.Spec.Suspend) && (old.Status.StartTime == nil || old.Status.Active == 0) {
		before = *before.DeepCopy()
		now := &new.Spec.Template
		if now.Spec.Affinity != nil || before.Spec.Affinity != nil {
			var a corev1.Affinity
			if before.Spec.Affinity != nil {
				a = *before.Spec.Affinity
			}
			if now.Spec.Affinity != nil {
				a.NodeAffinity = now.Spec.Affinity.NodeAffinity
			} else {
				a.NodeAffinity = nil
			}
			before.Spec.Affinity = &a
			if equality.Semantic.DeepEqual(a, corev1.Affinity{}) && now.Spec.Affinity == nil {
				before.Spec.Affinity = nil
			}
		}
		before.Spec.NodeSelector = now.Spec.NodeSelector
		before.Spec.Tolerations = now.Spec.Tolerations
		before.Annotations = now.Annotations
		before.Labels = now.Labels
		before.Spec.SchedulingGates = now.Spec.SchedulingGates
		for _, pair := range [][2][]corev1.Container{{before.Spec.Containers, now.Spec.Containers}, {before.Spec.InitContainers, now.Spec.InitContainers}} {
			for i := range min(len(pair[0]), len(pair[1])) {
				pair[0][i].Resources = pair[1][i].Resources
			}
		}
	}
	return unchanged(new.Spec.Template, before, path)
}

// CronJob checks a new cron job.
func CronJob(c *batchv1.CronJob) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, cronJobSpec(&c.Spec, nil, spec())...)
	// The job's name is the cron job's with 11 characters appended.
	if limit := validation.DNS1035LabelMaxLength - 11; len(c.Name) > limit {
		errs = append(errs, field.Invalid(meta().Child("name"), c.Name, fmt.Sprintf("must be no more than %d characters", limit)))
	}
	return errs
}

// CronJobUpdate checks an update of a cron job.
func CronJobUpdate(new, old *batchv1.CronJob) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, cronJobSpec(&new.Spec, &old.Spec, spec())...)
}

func cronJobSpec(s, old *batchv1.CronJobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Schedule == "" {
		errs = append(errs, field.Required(path.Child("schedule"), ""))
	} else {
		keptZone := old != nil && strings.Contains(old.Schedule, "TZ")
		if err := cronSchedule(s.Schedule); err != nil {
			errs = append(errs, field.Invalid(path.Child("schedule"), s.Schedule, err.Error()))
		}
		if keptZone && strings.Contains(s.Schedule, "TZ") && s.TimeZone != nil {
			errs = append(errs, field.Invalid(path.Child("schedule"), s.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
		} else if strings.Contains(s.Schedule, "TZ") && !keptZone {
			errs = append(errs, field.Invalid(path.Child("schedule"), s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
		}
	}
	if s.StartingDeadlineSeconds != nil {
		errs = append(errs, nonNegative(*s.StartingDeadlineSeconds, path.Child("startingDeadlineSeconds"))...)
	}
	if old == nil || deref(old.TimeZone) != deref(s.TimeZone) {
		errs = append(errs, timeZone(s.TimeZone, path.Child("timeZone"))...)
	}
	errs = append(errs, requiredSupported(s.ConcurrencyPolicy, path.Child("concurrencyPolicy"), batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
	errs = append(errs, jobSpec(&s.JobTemplate.Spec, path.Child("jobTemplate", "spec"))...)
	if sel := s.JobTemplate.Spec.Selector; sel != nil {
		errs = append(errs, field.Invalid(path.Child("jobTemplate", "spec", "selector"), sel, "`selector` will be auto-generated"))
	}
	if m := s.JobTemplate.Spec.ManualSelector; deref(m) {
		errs = append(errs, field.NotSupported(path.Child("jobTemplate", "spec", "manualSelector"), m, []string{"nil", "false"}))
	}
	if s.SuccessfulJobsHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*s.SuccessfulJobsHistoryLimit), path.Child("successfulJobsHistoryLimit"))...)
	}
	if s.FailedJobsHistoryLimit != nil {
		errs = append(errs, nonNegative(int64(*s.FailedJobsHistoryLimit), path.Child("failedJobsHistoryLimit"))...)
	}
	return errs
}

var zonePart = regexp.MustCompile(`^[A-Za-z._0-9+-]{1,14}$`)

func timeZone(zone *string, path *field.Path) field.ErrorList {
	if zone == nil {
		return nil
	}
	if *zone == "" {
		return field.ErrorList{field.Invalid(path, *zone, "timeZone must be nil or non-empty string")}
	}
	for part := range strings.SplitSeq(*zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !zonePart.MatchString(part) {
			return field.ErrorList{field.Invalid(path, *zone, fmt.Sprintf("unknown time zone %s", *zone))}
		}
	}
	if strings.EqualFold(*zone, "Local") {
		return field.ErrorList{field.Invalid(path, *zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")}
	}
	if _, err := time.LoadLocation(*zone); err != nil {
		return field.ErrorList{field.Invalid(path, *zone, err.Error())}
	}
	return nil
}
