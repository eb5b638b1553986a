package kind

import (
	schedulingv1 "k8s.io/api/scheduling/v1"
)

var PriorityClass = define[schedulingv1.PriorityClassList](Row[*schedulingv1.PriorityClass]{
	Names: Names{
		Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses",
		ShortNames: []string{"pc"},
		Scope:      Cluster,
		Prefix:     "priorityclasses",
	},
	UnconditionalUpdate: true,
})
