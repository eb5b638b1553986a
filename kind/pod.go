package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var Binding = defineVirtual(Row[*corev1.Binding]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Binding", Plural: "bindings",
		Scope: Namespaced,
	},
	Verbs: []string{"create"},
})

var Pod = define[corev1.PodList](Row[*corev1.Pod]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Pod", Plural: "pods",
		ShortNames: []string{"po"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "pods",
	},
	UnconditionalUpdate: true,
	Subresources: []Subresource{
		{Name: "attach", Kind: "PodAttachOptions", Verbs: []string{"create", "get"}},
		{Name: "binding", Kind: "Binding", Verbs: []string{"create"}},
		{Name: "ephemeralcontainers", Kind: "Pod", Verbs: []string{"get", "patch", "update"}},
		{Name: "eviction", Group: "policy", Version: "v1", Kind: "Eviction", Verbs: []string{"create"}},
		{Name: "exec", Kind: "PodExecOptions", Verbs: []string{"create", "get"}},
		{Name: "log", Kind: "Pod", Verbs: []string{"get"}},
		{Name: "portforward", Kind: "PodPortForwardOptions", Verbs: []string{"create", "get"}},
		{Name: "proxy", Kind: "PodProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
		{Name: "resize", Kind: "Pod", Verbs: []string{"get", "patch", "update"}},
	},
	Status: &DoorOf[*corev1.Pod]{},
})
