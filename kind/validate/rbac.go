package validate

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Role checks a new role.
func Role(r *rbacv1.Role) field.ErrorList {
	errs := ObjectMeta(&r.ObjectMeta, true, NamePathSegment, meta())
	return append(errs, policyRules(r.Rules, true)...)
}

// RoleUpdate checks an update of a role.
func RoleUpdate(new, old *rbacv1.Role) field.ErrorList {
	return append(Role(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

// ClusterRole checks a new cluster role.
func ClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	errs := ObjectMeta(&r.ObjectMeta, false, NamePathSegment, meta())
	errs = append(errs, policyRules(r.Rules, false)...)
	if r.AggregationRule != nil {
		p := field.NewPath("aggregationRule", "clusterRoleSelectors")
		if len(r.AggregationRule.ClusterRoleSelectors) == 0 {
			errs = append(errs, field.Required(p, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
		}
		for i := range r.AggregationRule.ClusterRoleSelectors {
			errs = append(errs, labelSelector(&r.AggregationRule.ClusterRoleSelectors[i], p.Index(i))...)
		}
	}
	return errs
}

// ClusterRoleUpdate checks an update of a cluster role.
func ClusterRoleUpdate(new, old *rbacv1.ClusterRole) field.ErrorList {
	return append(ClusterRole(new), ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
}

func policyRules(rules []rbacv1.PolicyRule, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i := range rules {
		r, p := &rules[i], field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			errs = append(errs, field.Required(p.Child("verbs"), ""))
		}
		if len(r.NonResourceURLs) > 0 {
			if namespaced {
				errs = append(errs, field.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
			}
			if len(r.APIGroups) > 0 || len(r.Resources) > 0 || len(r.ResourceNames) > 0 {
				errs = append(errs, field.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			errs = append(errs, field.Required(p.Child("apiGroups"), "resource rules must supply at least one api group"))
		}
		if len(r.Resources) == 0 {
			errs = append(errs, field.Required(p.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return errs
}

// RoleBinding checks a new role binding.
func RoleBinding(b *rbacv1.RoleBinding) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, true, NamePathSegment, meta())
	errs = append(errs, roleRef(b.RoleRef, "Role", "ClusterRole")...)
	return append(errs, subjects(b.Subjects, true)...)
}

// RoleBindingUpdate checks an update of a role binding: its role stays.
func RoleBindingUpdate(new, old *rbacv1.RoleBinding) field.ErrorList {
	errs := RoleBinding(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	return append(errs, sameRole(new.RoleRef, old.RoleRef)...)
}

// ClusterRoleBinding checks a new cluster role binding.
func ClusterRoleBinding(b *rbacv1.ClusterRoleBinding) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, false, NamePathSegment, meta())
	errs = append(errs, roleRef(b.RoleRef, "ClusterRole")...)
	return append(errs, subjects(b.Subjects, false)...)
}

// ClusterRoleBindingUpdate checks an update of a cluster role binding: its role stays.
func ClusterRoleBindingUpdate(new, old *rbacv1.ClusterRoleBinding) field.ErrorList {
	errs := ClusterRoleBinding(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	return append(errs, sameRole(new.RoleRef, old.RoleRef)...)
}

func sameRole(new, old rbacv1.RoleRef) field.ErrorList {
	if new != old {
		return field.ErrorList{field.Invalid(field.NewPath("roleRef"), new, "cannot change roleRef")}
	}
	return nil
}

func roleRef(ref rbacv1.RoleRef, kinds ...string) field.ErrorList {
	path := field.NewPath("roleRef")
	errs := supported(ref.APIGroup, path.Child("apiGroup"), rbacv1.GroupName)
	errs = append(errs, supported(ref.Kind, path.Child("kind"), kinds...)...)
	if ref.Name == "" {
		return append(errs, field.Required(path.Child("name"), ""))
	}
	return append(errs, invalid(path.Child("name"), ref.Name, NamePathSegment(ref.Name, false))...)
}

func subjects(list []rbacv1.Subject, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i, s := range list {
		p := field.NewPath("subjects").Index(i)
		if s.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		}
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			if s.Name != "" {
				errs = append(errs, invalid(p.Child("name"), s.Name, NameDNSSubdomain(s.Name, false))...)
			}
			errs = append(errs, supported(s.APIGroup, p.Child("apiGroup"), "")...)
			if !namespaced && s.Namespace == "" {
				errs = append(errs, field.Required(p.Child("namespace"), ""))
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
			if s.Name == "" {
				errs = append(errs, field.Invalid(p.Child("name"), s.Name, strings.ToLower(s.Kind)+" name cannot be empty"))
			}
			errs = append(errs, supported(s.APIGroup, p.Child("apiGroup"), rbacv1.GroupName)...)
		default:
			errs = append(errs, field.NotSupported(p.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
		}
	}
	return errs
}
