package kind

import (
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"proa.dev/kind/validate"
)

// ClusterRoleBinding gives a ClusterRole to subjects everywhere.
var ClusterRoleBinding = define[rbacv1.ClusterRoleBindingList](Row[*rbacv1.ClusterRoleBinding]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings",
		Scope:  Cluster,
		Prefix: "clusterrolebindings",
	},
	Validate:            validate.ClusterRoleBinding,
	ValidateUpdate:      validate.ClusterRoleBindingUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Default:             func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
	Columns:             columns("Role | Users, Groups, ServiceAccounts"),
	Cells: func(b *rbacv1.ClusterRoleBinding, now time.Time) []any {
		users, groups, accounts := subjectCells(b.Subjects)
		return []any{b.Name, b.RoleRef.Kind + "/" + b.RoleRef.Name, age(b, now), users, groups, accounts}
	},
})

// ClusterRole is a set of permissions, cluster-wide.
var ClusterRole = define[rbacv1.ClusterRoleList](Row[*rbacv1.ClusterRole]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles",
		Scope:  Cluster,
		Prefix: "clusterroles",
	},
	Validate:            validate.ClusterRole,
	ValidateUpdate:      validate.ClusterRoleUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Columns:             columnsExactly("Name, Created At:date"),
	Cells:               func(r *rbacv1.ClusterRole, _ time.Time) []any { return []any{r.Name, createdAt(r)} },
})

// RoleBinding gives a Role or ClusterRole to subjects within a namespace.
var RoleBinding = define[rbacv1.RoleBindingList](Row[*rbacv1.RoleBinding]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings",
		Scope:  Namespaced,
		Prefix: "rolebindings",
	},
	Validate:            validate.RoleBinding,
	ValidateUpdate:      validate.RoleBindingUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Default:             func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
	Columns:             columns("Role | Users, Groups, ServiceAccounts"),
	Cells: func(b *rbacv1.RoleBinding, now time.Time) []any {
		users, groups, accounts := subjectCells(b.Subjects)
		return []any{b.Name, b.RoleRef.Kind + "/" + b.RoleRef.Name, age(b, now), users, groups, accounts}
	},
})

// Role is a set of permissions within a namespace.
var Role = define[rbacv1.RoleList](Row[*rbacv1.Role]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles",
		Scope:  Namespaced,
		Prefix: "roles",
	},
	Validate:            validate.Role,
	ValidateUpdate:      validate.RoleUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Columns:             columnsExactly("Name, Created At:date"),
	Cells:               func(r *rbacv1.Role, _ time.Time) []any { return []any{r.Name, createdAt(r)} },
})

func defaultBinding(role *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	fill(&role.APIGroup, rbacv1.GroupName)
	for i := range subjects {
		if kind := subjects[i].Kind; kind == rbacv1.UserKind || kind == rbacv1.GroupKind {
			fill(&subjects[i].APIGroup, rbacv1.GroupName)
		}
	}
}

func subjectCells(subjects []rbacv1.Subject) (users, groups, accounts string) {
	var u, g, a []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			u = append(u, s.Name)
		case rbacv1.GroupKind:
			g = append(g, s.Name)
		case rbacv1.ServiceAccountKind:
			a = append(a, s.Namespace+"/"+s.Name)
		}
	}
	return strings.Join(u, ", "), strings.Join(g, ", "), strings.Join(a, ", ")
}
