package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var Service = define[corev1.ServiceList](Row[*corev1.Service]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Service", Plural: "services",
		ShortNames: []string{"svc"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "services/specs",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Subresources: []Subresource{
		{Name: "proxy", Kind: "ServiceProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
	},
	Status: &DoorOf[*corev1.Service]{},
})
