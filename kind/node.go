package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var ComponentStatus = define[corev1.ComponentStatusList](Row[*corev1.ComponentStatus]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ComponentStatus", Plural: "componentstatuses",
		ShortNames: []string{"cs"},
		Scope:      Cluster,
	},
	Verbs:   []string{"get", "list"},
	Virtual: true,
})

var Node = define[corev1.NodeList](Row[*corev1.Node]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Node", Plural: "nodes",
		ShortNames: []string{"no"},
		Scope:      Cluster,
		Prefix:     "minions",
	},
	UnconditionalUpdate: true,
	Subresources: []Subresource{
		{Name: "proxy", Kind: "NodeProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
	},
	Status: &DoorOf[*corev1.Node]{},
})
