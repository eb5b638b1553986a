package kind

import (
	corev1 "k8s.io/api/core/v1"
)

var ConfigMap = define[corev1.ConfigMapList](Row[*corev1.ConfigMap]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ConfigMap", Plural: "configmaps",
		ShortNames: []string{"cm"},
		Scope:      Namespaced,
		Prefix:     "configmaps",
	},
	UnconditionalUpdate: true,
})

var Secret = define[corev1.SecretList](Row[*corev1.Secret]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Secret", Plural: "secrets",
		Scope:  Namespaced,
		Prefix: "secrets",
	},
	UnconditionalUpdate: true,
})

var ServiceAccount = define[corev1.ServiceAccountList](Row[*corev1.ServiceAccount]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts",
		ShortNames: []string{"sa"},
		Scope:      Namespaced,
		Prefix:     "serviceaccounts",
	},
	Subresources: []Subresource{
		{Name: "token", Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest", Verbs: []string{"create"}},
	},
})
