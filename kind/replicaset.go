package kind

import (
	appsv1 "k8s.io/api/apps/v1"
)

var ReplicaSet = define[appsv1.ReplicaSetList](Row[*appsv1.ReplicaSet]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "ReplicaSet", Plural: "replicasets",
		ShortNames: []string{"rs"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "replicasets",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*appsv1.ReplicaSet]{},
	Scale:               &ScaleOf[*appsv1.ReplicaSet]{},
})
