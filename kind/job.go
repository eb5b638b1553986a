package kind

import (
	batchv1 "k8s.io/api/batch/v1"
)

var Job = define[batchv1.JobList](Row[*batchv1.Job]{
	Names: Names{
		Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs",
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "jobs",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*batchv1.Job]{},
})
