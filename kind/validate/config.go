package validate

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const whenImmutable = "field is immutable when `immutable` is set"

// ConfigMap checks a new config map.
func ConfigMap(c *corev1.ConfigMap) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, true, NameDNSSubdomain, meta())
	size := 0
	for _, key := range sets.List(sets.KeySet(c.Data)) {
		p := field.NewPath("data").Key(key)
		errs = append(errs, invalid(p, key, validation.IsConfigMapKey(key))...)
		if _, dup := c.BinaryData[key]; dup {
			errs = append(errs, field.Invalid(p, key, "duplicate of key present in binaryData"))
		}
		size += len(c.Data[key])
	}
	for _, key := range sets.List(sets.KeySet(c.BinaryData)) {
		errs = append(errs, invalid(field.NewPath("binaryData").Key(key), key, validation.IsConfigMapKey(key))...)
		size += len(c.BinaryData[key])
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
	return errs
}

// ConfigMapUpdate checks an update of a config map.
func ConfigMapUpdate(new, old *corev1.ConfigMap) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if deref(old.Immutable) {
		if !deref(new.Immutable) {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), whenImmutable))
		}
		if !equality.Semantic.DeepEqual(new.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), whenImmutable))
		}
		if !equality.Semantic.DeepEqual(new.BinaryData, old.BinaryData) {
			errs = append(errs, field.Forbidden(field.NewPath("binaryData"), whenImmutable))
		}
	}
	return append(errs, ConfigMap(new)...)
}

// Secret checks a new secret.
func Secret(s *corev1.Secret) field.ErrorList {
	errs := ObjectMeta(&s.ObjectMeta, true, NameDNSSubdomain, meta())
	path := field.NewPath("data")
	size := 0
	for _, key := range sets.List(sets.KeySet(s.Data)) {
		errs = append(errs, invalid(path.Key(key), key, validation.IsConfigMapKey(key))...)
		size += len(s.Data[key])
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(path, "", corev1.MaxSecretSize))
	}
	must := func(keys ...string) {
		for _, key := range keys {
			if _, ok := s.Data[key]; !ok {
				errs = append(errs, field.Required(path.Key(key), ""))
			}
		}
	}
	mustJSON := func(key string) {
		data, ok := s.Data[key]
		if !ok {
			errs = append(errs, field.Required(path.Key(key), ""))
			return
		}
		if err := json.Unmarshal(data, &map[string]any{}); err != nil {
			errs = append(errs, field.Invalid(path.Key(key), "<secret contents redacted>", err.Error()))
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(meta().Child("annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	case corev1.SecretTypeDockercfg:
		mustJSON(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		mustJSON(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			must(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(path.Key(corev1.SSHAuthPrivateKey), ""))
		}
	case corev1.SecretTypeTLS:
		must(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return errs
}

// SecretUpdate checks an update of a secret.
func SecretUpdate(new, old *corev1.Secret) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, unchanged(new.Type, old.Type, field.NewPath("type"))...)
	if deref(old.Immutable) {
		if !deref(new.Immutable) {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), whenImmutable))
		}
		if !equality.Semantic.DeepEqual(new.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), whenImmutable))
		}
	}
	return append(errs, Secret(new)...)
}

// ServiceAccount checks a new service account.
func ServiceAccount(sa *corev1.ServiceAccount) field.ErrorList {
	return ObjectMeta(&sa.ObjectMeta, true, NameDNSSubdomain, meta())
}

// ServiceAccountUpdate checks an update of a service account.
func ServiceAccountUpdate(new, old *corev1.ServiceAccount) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), ServiceAccount(new)...)
}
