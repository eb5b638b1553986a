package kind

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

var Endpoints = define[corev1.EndpointsList](Row[*corev1.Endpoints]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Endpoints", Plural: "endpoints",
		ShortNames: []string{"ep"},
		Scope:      Namespaced,
		Prefix:     "services/endpoints",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})

var EndpointSlice = define[discoveryv1.EndpointSliceList](Row[*discoveryv1.EndpointSlice]{
	Names: Names{
		Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices",
		Scope:  Namespaced,
		Prefix: "endpointslices",
	},
	UnconditionalUpdate: true,
})
