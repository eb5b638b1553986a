package kind

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/kind/validate"
)

// ConfigMap holds configuration.
var ConfigMap = define[corev1.ConfigMapList](Row[*corev1.ConfigMap]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ConfigMap", Plural: "configmaps",
		ShortNames: []string{"cm"},
		Scope:      Namespaced,
		Prefix:     "configmaps",
	},
	Validate:            validate.ConfigMap,
	ValidateUpdate:      validate.ConfigMapUpdate,
	UnconditionalUpdate: true,
	Columns:             columns("Data"),
	Cells: func(c *corev1.ConfigMap, now time.Time) []any {
		return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), age(c, now)}
	},
})

// Secret holds confidential configuration.
var Secret = define[corev1.SecretList](Row[*corev1.Secret]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Secret", Plural: "secrets",
		Scope:  Namespaced,
		Prefix: "secrets",
	},
	Validate:            validate.Secret,
	ValidateUpdate:      validate.SecretUpdate,
	UnconditionalUpdate: true,
	Default:             defaultSecret,
	Selectable: map[string]func(*corev1.Secret) string{
		"type": func(s *corev1.Secret) string { return string(s.Type) },
	},
	Columns: columns("Type, Data"),
	Cells: func(s *corev1.Secret, now time.Time) []any {
		return []any{s.Name, string(s.Type), int64(len(s.Data)), age(s, now)}
	},
})

// defaultSecret moves stringData, which is for writing only, into data.
func defaultSecret(s *corev1.Secret) {
	fill(&s.Type, corev1.SecretTypeOpaque)
	if len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = make(map[string][]byte, len(s.StringData))
		}
		for key, value := range s.StringData {
			s.Data[key] = []byte(value)
		}
	}
	s.StringData = nil
}

// ServiceAccount is an identity for pods.
var ServiceAccount = define[corev1.ServiceAccountList](Row[*corev1.ServiceAccount]{
	Names: Names{
		Group: "", Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts",
		ShortNames: []string{"sa"},
		Scope:      Namespaced,
		Prefix:     "serviceaccounts",
	},
	Validate:       validate.ServiceAccount,
	ValidateUpdate: validate.ServiceAccountUpdate,
	PrepareCreate:  keepSecretNames,
	PrepareUpdate:  func(new, _ *corev1.ServiceAccount) { keepSecretNames(new) },
	Warnings: func(new, old *corev1.ServiceAccount) []string {
		const enforce = "kubernetes.io/enforce-mountable-secrets"
		if new.Annotations[enforce] == "true" && (old == nil || old.Annotations[enforce] != "true") {
			return []string{"metadata.annotations[" + enforce + "]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"}
		}
		return nil
	},
	Subresources: []Subresource{
		{Name: "token", Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest", Verbs: []string{"create"}},
	},
	Columns: columns("Secrets"),
	Cells: func(s *corev1.ServiceAccount, now time.Time) []any {
		return []any{s.Name, int64(len(s.Secrets)), age(s, now)}
	},
})

// keepSecretNames drops everything from the references to secrets but the name.
func keepSecretNames(s *corev1.ServiceAccount) {
	for i := range s.Secrets {
		s.Secrets[i] = corev1.ObjectReference{Name: s.Secrets[i].Name}
	}
}
