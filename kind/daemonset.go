package kind

import (
	appsv1 "k8s.io/api/apps/v1"
)

var DaemonSet = define[appsv1.DaemonSetList](Row[*appsv1.DaemonSet]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets",
		ShortNames: []string{"ds"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "daemonsets",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*appsv1.DaemonSet]{},
})
