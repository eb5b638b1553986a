package kind

import (
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// CronJob makes Jobs at the times of a schedule.
var CronJob = define[batchv1.CronJobList](Row[*batchv1.CronJob]{
	Names: Names{
		Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs",
		ShortNames: []string{"cj"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "cronjobs",
	},
	Validate:            validate.CronJob,
	ValidateUpdate:      validate.CronJobUpdate,
	UnconditionalUpdate: true,
	Default: func(c *batchv1.CronJob) {
		s := &c.Spec
		fill(&s.ConcurrencyPolicy, batchv1.AllowConcurrent)
		fillPtr(&s.Suspend, false)
		fillPtr(&s.SuccessfulJobsHistoryLimit, 3)
		fillPtr(&s.FailedJobsHistoryLimit, 1)
		defaultFailurePolicy(s.JobTemplate.Spec.PodFailurePolicy)
		defaultTemplate(&s.JobTemplate.Spec.Template)
	},
	PrepareCreate: func(c *batchv1.CronJob) {
		c.Generation, c.Status = 1, batchv1.CronJobStatus{}
	},
	PrepareUpdate: func(new, old *batchv1.CronJob) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *batchv1.CronJob) []string {
		path := field.NewPath("spec", "jobTemplate", "spec", "template")
		if old == nil {
			return templateWarnings(path, &new.Spec.JobTemplate.Spec.Template, nil)
		}
		return templateWarnings(path, &new.Spec.JobTemplate.Spec.Template, &old.Spec.JobTemplate.Spec.Template)
	},
	Status: &DoorOf[*batchv1.CronJob]{
		ValidateUpdate: func(new, old *batchv1.CronJob) field.ErrorList {
			return validate.ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, field.NewPath("metadata"))
		},
		PrepareUpdate: func(new, old *batchv1.CronJob) { new.Spec = old.Spec },
	},
	Columns: columns("Schedule, Timezone, Suspend:boolean, Active:integer, Last Schedule | Containers, Images, Selector"),
	Cells: func(c *batchv1.CronJob, now time.Time) []any {
		last := none
		if c.Status.LastScheduleTime != nil {
			last = since(*c.Status.LastScheduleTime, now)
		}
		names, images := containerCells(c.Spec.JobTemplate.Spec.Template.Spec.Containers)
		return []any{c.Name, c.Spec.Schedule, ptr.Deref(c.Spec.TimeZone, none), boolCell(c.Spec.Suspend), int64(len(c.Status.Active)),
			last, age(c, now), names, images, selectorCell(c.Spec.JobTemplate.Spec.Selector)}
	},
})

// boolCell prints a boolean as tables do, "<unset>" when it is not there.
func boolCell(b *bool) string {
	switch {
	case b == nil:
		return unset
	case *b:
		return "True"
	}
	return "False"
}
