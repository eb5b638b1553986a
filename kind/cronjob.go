package kind

import (
	batchv1 "k8s.io/api/batch/v1"
)

var CronJob = define[batchv1.CronJobList](Row[*batchv1.CronJob]{
	Names: Names{
		Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs",
		ShortNames: []string{"cj"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "cronjobs",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*batchv1.CronJob]{},
})
