package validate

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	accessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
	volumeModes = []corev1.PersistentVolumeMode{corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem}
)

const onePodMode = "may not use ReadWriteOncePod with other access modes"

// claimSpec checks what a claim asks of its volume. What was not checked once is
// not checked where old has it wrong.
func claimSpec(s, old *corev1.PersistentVolumeClaimSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	laxSelector, laxGroup := metavalidation.LabelSelectorValidationOptions{}, false
	if old != nil {
		laxSelector = lax(old.Selector)
		laxGroup = old.DataSource != nil && old.DataSource.APIGroup != nil || old.DataSourceRef != nil && old.DataSourceRef.APIGroup != nil
	}
	if len(s.AccessModes) == 0 {
		errs = append(errs, field.Required(path.Child("accessModes"), "at least 1 access mode is required"))
	}
	errs = append(errs, metavalidation.ValidateLabelSelector(s.Selector, laxSelector, path.Child("selector"))...)
	errs = append(errs, accessModeList(s.AccessModes, path.Child("accessModes"))...)
	storage, ok := s.Resources.Requests[corev1.ResourceStorage]
	p := path.Child("resources").Key(string(corev1.ResourceStorage))
	if !ok {
		errs = append(errs, field.Required(p, ""))
	} else {
		errs = append(errs, positiveQuantity(storage, p)...)
	}
	if s.StorageClassName != nil && *s.StorageClassName != "" {
		errs = append(errs, invalid(path.Child("storageClassName"), *s.StorageClassName, NameDNSSubdomain(*s.StorageClassName, false))...)
	}
	if s.VolumeMode != nil {
		errs = append(errs, supported(*s.VolumeMode, path.Child("volumeMode"), volumeModes...)...)
	}
	if d := s.DataSource; d != nil {
		errs = append(errs, dataSource(deref(d.APIGroup), d.Kind, d.Name, laxGroup, path.Child("dataSource"))...)
	}
	if d := s.DataSourceRef; d != nil {
		errs = append(errs, dataSource(deref(d.APIGroup), d.Kind, d.Name, laxGroup, path.Child("dataSourceRef"))...)
		if d.Namespace != nil && *d.Namespace != "" {
			errs = append(errs, invalid(path.Child("dataSourceRef", "namespace"), *d.Namespace, NameDNSLabel(*d.Namespace, false))...)
			if s.DataSource != nil {
				errs = append(errs, field.Invalid(path, path.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified"))
			}
		}
	}
	if s.DataSource != nil && s.DataSourceRef != nil && (s.DataSourceRef.Namespace == nil || *s.DataSourceRef.Namespace == "") {
		a, b := s.DataSource, s.DataSourceRef
		if !equality.Semantic.DeepEqual(a.APIGroup, b.APIGroup) || a.Kind != b.Kind || a.Name != b.Name {
			errs = append(errs, field.Invalid(path, path.Child("dataSource"), "must match dataSourceRef"))
		}
	}
	if n := s.VolumeAttributesClassName; n != nil && *n != "" {
		errs = append(errs, invalid(path.Child("volumeAttributesClassName"), *n, NameDNSSubdomain(*n, false))...)
	}
	return errs
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

func accessModeList(modes []corev1.PersistentVolumeAccessMode, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	once, other := false, false
	for _, m := range modes {
		if bad := supported(m, path, accessModes...); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if m == corev1.ReadWriteOncePod {
			once = true
		} else {
			other = true
		}
	}
	if once && other {
		errs = append(errs, field.Forbidden(path, onePodMode))
	}
	return errs
}

func dataSource(group, kind, name string, laxGroup bool, path *field.Path) field.ErrorList {
	errs := required(name, path.Child("name"))
	errs = append(errs, required(kind, path.Child("kind"))...)
	if group == "" && kind != "PersistentVolumeClaim" {
		errs = append(errs, field.Invalid(path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup"))
	}
	if group != "" && !laxGroup {
		errs = append(errs, dnsSubdomain(group, path.Child("apiGroup"))...)
	}
	return errs
}
