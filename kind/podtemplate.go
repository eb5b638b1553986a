package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var PodTemplate = define[corev1.PodTemplateList](Row[*corev1.PodTemplate]{
	Names: Names{
		Group: "", Version: "v1", Kind: "PodTemplate", Plural: "podtemplates",
		Scope:  Namespaced,
		Prefix: "podtemplates",
	},
	UnconditionalUpdate: true,
})
