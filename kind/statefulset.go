package kind

import (
	appsv1 "k8s.io/api/apps/v1"
)

var ControllerRevision = define[appsv1.ControllerRevisionList](Row[*appsv1.ControllerRevision]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions",
		Scope:  Namespaced,
		Prefix: "controllerrevisions",
	},
	UnconditionalUpdate: true,
})

var StatefulSet = define[appsv1.StatefulSetList](Row[*appsv1.StatefulSet]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "StatefulSet", Plural: "statefulsets",
		ShortNames: []string{"sts"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "statefulsets",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*appsv1.StatefulSet]{},
	Scale:               &ScaleOf[*appsv1.StatefulSet]{},
})
