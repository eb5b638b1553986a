package kind

import (
	appsv1 "k8s.io/api/apps/v1"
)

var Deployment = define[appsv1.DeploymentList](Row[*appsv1.Deployment]{
	Names: Names{
		Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments",
		ShortNames: []string{"deploy"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "deployments",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*appsv1.Deployment]{},
	Scale:               &ScaleOf[*appsv1.Deployment]{},
})
