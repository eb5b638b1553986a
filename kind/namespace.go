package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var Namespace = define[corev1.NamespaceList](Row[*corev1.Namespace]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Namespace", Plural: "namespaces",
		ShortNames: []string{"ns"},
		Scope:      Cluster,
		Prefix:     "namespaces",
	},
	Verbs: []string{"create", "delete", "get", "list", "patch", "update", "watch"},
	Subresources: []Subresource{
		{Name: "finalize", Kind: "Namespace", Verbs: []string{"update"}},
	},
	Status: &DoorOf[*corev1.Namespace]{},
})
