package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var LimitRange = define[corev1.LimitRangeList](Row[*corev1.LimitRange]{
	Names: Names{
		Group: "", Version: "v1", Kind: "LimitRange", Plural: "limitranges",
		ShortNames: []string{"limits"},
		Scope:      Namespaced,
		Prefix:     "limitranges",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})

var ResourceQuota = define[corev1.ResourceQuotaList](Row[*corev1.ResourceQuota]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas",
		ShortNames: []string{"quota"},
		Scope:      Namespaced,
		Prefix:     "resourcequotas",
	},
	UnconditionalUpdate: true,
	Status:              &DoorOf[*corev1.ResourceQuota]{},
})
