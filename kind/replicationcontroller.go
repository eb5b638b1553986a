package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var ReplicationController = define[corev1.ReplicationControllerList](Row[*corev1.ReplicationController]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers",
		ShortNames: []string{"rc"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "controllers",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*corev1.ReplicationController]{},
	Scale:               &ScaleOf[*corev1.ReplicationController]{},
})
