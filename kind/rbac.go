package kind

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

var ClusterRoleBinding = define[rbacv1.ClusterRoleBindingList](Row[*rbacv1.ClusterRoleBinding]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings",
		Scope:  Cluster,
		Prefix: "clusterrolebindings",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})

var ClusterRole = define[rbacv1.ClusterRoleList](Row[*rbacv1.ClusterRole]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "ClusterRole", Plural: "clusterroles",
		Scope:  Cluster,
		Prefix: "clusterroles",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})

var RoleBinding = define[rbacv1.RoleBindingList](Row[*rbacv1.RoleBinding]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding", Plural: "rolebindings",
		Scope:  Namespaced,
		Prefix: "rolebindings",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})

var Role = define[rbacv1.RoleList](Row[*rbacv1.Role]{
	Names: Names{
		Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role", Plural: "roles",
		Scope:  Namespaced,
		Prefix: "roles",
	},
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
})
