package auth

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bootstrap is the default policy (Kubernetes docs, "Using RBAC Authorization",
// default roles and role bindings): created when absent, completed at every
// start unless an object opts out with rbac.authorization.kubernetes.io/autoupdate
// "false".
type Bootstrap struct {
	ClusterRoles        []*rbacv1.ClusterRole
	ClusterRoleBindings []*rbacv1.ClusterRoleBinding
	Roles               []*rbacv1.Role
	RoleBindings        []*rbacv1.RoleBinding
}

const (
	aggregateTo = "rbac.authorization.k8s.io/aggregate-to-"
	autoupdate  = "rbac.authorization.kubernetes.io/autoupdate"
)

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "delete", "deletecollection", "patch", "update"}
)

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}
func v(verbs ...string) []string { return verbs }
func urls(paths ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: v("get"), NonResourceURLs: paths}
}
func named(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

const (
	gCore, gApps, gBatch, gAutoscaling, gPolicy = "", "apps", "batch", "autoscaling", "policy"
	gNet, gRBAC, gAuthn, gAuthz                 = "networking.k8s.io", "rbac.authorization.k8s.io", "authentication.k8s.io", "authorization.k8s.io"
	gCert, gCoord, gDisc, gEvents, gStorage     = "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io", "storage.k8s.io"
	gResource                                   = "resource.k8s.io"
)

// NodeRules are what every node may do besides the relations that the Node
// authorizer checks one by one.
var NodeRules = []rbacv1.PolicyRule{
	rule(v("create"), gAuthn, "tokenreviews"),
	rule(v("create"), gAuthz, "subjectaccessreviews", "localsubjectaccessreviews"),
	rule(read, gCore, "services"),
	rule(read, gDisc, "endpointslices"),
	rule(v("create", "get", "list", "watch"), gCore, "nodes"),
	rule(v("update", "patch"), gCore, "nodes", "nodes/status"),
	rule(v("create", "update", "patch"), gCore, "events"),
	rule(v("create", "update", "patch"), gEvents, "events"),
	rule(read, gCore, "pods", "endpoints", "namespaces"),
	rule(v("create", "delete"), gCore, "pods"),
	rule(v("update", "patch"), gCore, "pods/status"),
	rule(v("create"), gCore, "pods/eviction"),
	rule(v("create", "get", "list", "watch"), gCert, "certificatesigningrequests"),
	rule(v("get", "update", "patch"), gCore, "persistentvolumeclaims/status"),
	rule(read, gStorage, "csidrivers", "volumeattachments"),
	rule(read, "node.k8s.io", "runtimeclasses"),
	rule(v("get"), gResource, "resourceclaims"),
	rule(v("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"), gResource, "resourceslices"),
	rule(read, gCert, "clustertrustbundles"),
}

func viewRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read, gCore, "configmaps", "endpoints", "persistentvolumeclaims", "persistentvolumeclaims/status", "pods", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/status"),
		rule(read, gCore, "bindings", "events", "limitranges", "namespaces/status", "pods/log", "pods/status", "replicationcontrollers/status", "resourcequotas", "resourcequotas/status"),
		rule(read, gCore, "namespaces"),
		rule(read, gDisc, "endpointslices"),
		rule(read, gApps, "controllerrevisions", "daemonsets", "daemonsets/status", "deployments", "deployments/scale", "deployments/status", "replicasets", "replicasets/scale", "replicasets/status", "statefulsets", "statefulsets/scale", "statefulsets/status"),
		rule(read, gAutoscaling, "horizontalpodautoscalers", "horizontalpodautoscalers/status"),
		rule(read, gBatch, "cronjobs", "cronjobs/status", "jobs", "jobs/status"),
		rule(read, gPolicy, "poddisruptionbudgets", "poddisruptionbudgets/status"),
		rule(read, gNet, "ingresses", "ingresses/status", "networkpolicies"),
		rule(read, gResource, "resourceclaims", "resourceclaims/status", "resourceclaimtemplates"),
	}
}

func editRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read, gCore, "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"),
		rule(v("impersonate"), gCore, "serviceaccounts"),
		rule(write, gCore, "pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"),
		rule(v("create"), gCore, "pods/eviction"),
		rule(v("update", "patch"), gCore, "pods/ephemeralcontainers", "pods/resize"),
		rule(write, gCore, "configmaps", "events", "persistentvolumeclaims", "replicationcontrollers", "replicationcontrollers/scale", "secrets", "serviceaccounts", "services", "services/proxy"),
		rule(v("create"), gCore, "serviceaccounts/token"),
		rule(write, gApps, "daemonsets", "deployments", "deployments/rollback", "deployments/scale", "replicasets", "replicasets/scale", "statefulsets", "statefulsets/scale"),
		rule(write, gAutoscaling, "horizontalpodautoscalers"),
		rule(write, gBatch, "cronjobs", "jobs"),
		rule(write, gPolicy, "poddisruptionbudgets"),
		rule(write, gNet, "ingresses", "networkpolicies"),
		rule(append(v("get", "list", "watch"), write...), gCoord, "leases"),
		rule(write, gResource, "resourceclaims", "resourceclaimtemplates"),
	}
}

func adminRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(v("create"), gAuthz, "localsubjectaccessreviews"),
		rule(append(append([]string{}, read...), write...), gRBAC, "rolebindings", "roles"),
	}
}

// Policy is the whole default policy.
func Policy() Bootstrap {
	var b Bootstrap
	add := func(name string, rules ...rbacv1.PolicyRule) {
		b.ClusterRoles = append(b.ClusterRoles, &rbacv1.ClusterRole{ObjectMeta: bootMeta("", name), Rules: rules})
	}
	aggregated := func(name string, into string, rules []rbacv1.PolicyRule) {
		r := &rbacv1.ClusterRole{ObjectMeta: bootMeta("", name), Rules: rules}
		r.Labels[aggregateTo+into] = "true"
		b.ClusterRoles = append(b.ClusterRoles, r)
	}
	sum := func(name string, into ...string) {
		r := &rbacv1.ClusterRole{ObjectMeta: bootMeta("", name), AggregationRule: &rbacv1.AggregationRule{}}
		r.AggregationRule.ClusterRoleSelectors = []metav1.LabelSelector{{MatchLabels: map[string]string{aggregateTo + name: "true"}}}
		for _, up := range into {
			r.Labels[aggregateTo+up] = "true"
		}
		b.ClusterRoles = append(b.ClusterRoles, r)
	}
	bind := func(role string, subjects ...rbacv1.Subject) {
		b.ClusterRoleBindings = append(b.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: bootMeta("", role),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "ClusterRole", Name: role}, Subjects: subjects})
	}
	group := func(n string) rbacv1.Subject { return rbacv1.Subject{Kind: "Group", APIGroup: gRBAC, Name: n} }
	user := func(n string) rbacv1.Subject { return rbacv1.Subject{Kind: "User", APIGroup: gRBAC, Name: n} }

	add("cluster-admin", rule(v("*"), "*", "*"), rbacv1.PolicyRule{Verbs: v("*"), NonResourceURLs: []string{"*"}})
	bind("cluster-admin", group(Masters))
	sum("admin")
	sum("edit", "admin")
	sum("view", "edit")
	aggregated("system:aggregate-to-admin", "admin", adminRules())
	aggregated("system:aggregate-to-edit", "edit", editRules())
	aggregated("system:aggregate-to-view", "view", viewRules())

	add("system:discovery", urls("/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"))
	bind("system:discovery", group(AllAuthenticated))
	add("system:basic-user", rule(v("create"), gAuthz, "selfsubjectaccessreviews", "selfsubjectrulesreviews"), rule(v("create"), gAuthn, "selfsubjectreviews"))
	bind("system:basic-user", group(AllAuthenticated))
	add("system:public-info-viewer", urls("/healthz", "/livez", "/readyz", "/version", "/version/"))
	bind("system:public-info-viewer", group(AllAuthenticated), group(AllUnauthenticated))
	add("system:monitoring", urls("/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"))
	bind("system:monitoring", group("system:monitoring"))
	add("system:service-account-issuer-discovery", urls("/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/"))
	bind("system:service-account-issuer-discovery", group(ServiceAccounts))

	add("system:node", append([]rbacv1.PolicyRule{
		rule(v("get"), gCore, "configmaps", "secrets"),
		rule(v("get"), gCore, "persistentvolumeclaims", "persistentvolumes"),
		rule(v("create"), gCore, "serviceaccounts/token"),
		rule(v("create", "delete", "get", "patch", "update"), gCoord, "leases"),
		rule(v("create", "delete", "get", "patch", "update"), gStorage, "csinodes"),
	}, NodeRules...)...)
	b.ClusterRoleBindings = append(b.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: bootMeta("", "system:node"),
		RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "ClusterRole", Name: "system:node"}})
	add("system:node-problem-detector", rule(v("get"), gCore, "nodes"), rule(v("patch"), gCore, "nodes/status"),
		rule(v("create", "patch", "update"), gCore, "events"), rule(v("create", "patch", "update"), gEvents, "events"))
	add("system:node-proxier", rule(v("list", "watch"), gCore, "endpoints", "services"), rule(v("get", "list", "watch"), gCore, "nodes"),
		rule(v("create", "patch", "update"), gCore, "events"), rule(v("create", "patch", "update"), gEvents, "events"),
		rule(v("list", "watch"), gDisc, "endpointslices"), rule(v("list", "watch"), gNet, "servicecidrs"))
	bind("system:node-proxier", user("system:kube-proxy"))
	add("system:node-bootstrapper", rule(v("create", "get", "list", "watch"), gCert, "certificatesigningrequests"))
	add("system:kubelet-api-admin", rule(read, gCore, "nodes"), rule(v("proxy"), gCore, "nodes"),
		rule(v("*"), gCore, "nodes/configz", "nodes/healthz", "nodes/log", "nodes/metrics", "nodes/pods", "nodes/proxy", "nodes/stats"))
	add("system:auth-delegator", rule(v("create"), gAuthn, "tokenreviews"), rule(v("create"), gAuthz, "subjectaccessreviews"))
	add("system:kube-aggregator", rule(read, gCore, "endpoints", "services"))
	add("system:kube-dns", rule(v("list", "watch"), gCore, "endpoints", "services"))
	bind("system:kube-dns", rbacv1.Subject{Kind: "ServiceAccount", Namespace: "kube-system", Name: "kube-dns"})
	add("system:cluster-trust-bundle-discovery", rule(read, gCert, "clustertrustbundles"))
	bind("system:cluster-trust-bundle-discovery", group(ServiceAccounts))
	add("system:heapster", rule(read, gCore, "events", "namespaces", "nodes", "pods"), rule(read, "extensions", "deployments"))
	add("system:persistent-volume-provisioner", rule(v("get", "list", "watch", "create", "delete"), gCore, "persistentvolumes"),
		rule(v("get", "list", "watch", "update"), gCore, "persistentvolumeclaims"), rule(read, gStorage, "storageclasses"),
		rule(v("watch"), gCore, "events"), rule(v("create", "patch", "update"), gCore, "events"))
	add("system:volume-scheduler", rule(v("get", "list", "patch", "update", "watch"), gCore, "persistentvolumes"), rule(read, gStorage, "storageclasses"),
		rule(v("get", "list", "patch", "update", "watch"), gCore, "persistentvolumeclaims"))
	bind("system:volume-scheduler", user("system:kube-scheduler"))
	add("system:kube-scheduler",
		rule(v("create", "patch", "update"), gCore, "events"), rule(v("create", "patch", "update"), gEvents, "events"),
		rule(v("create"), gCoord, "leases"), rule(v("get", "list", "update", "watch"), gCoord, "leases"),
		rule(read, gCore, "nodes", "namespaces", "persistentvolumeclaims", "persistentvolumes", "replicationcontrollers", "services"),
		rule(v("delete", "get", "list", "watch"), gCore, "pods"), rule(v("create"), gCore, "bindings", "pods/binding"), rule(v("patch", "update"), gCore, "pods/status"),
		rule(read, gApps, "replicasets", "statefulsets"), rule(read, gPolicy, "poddisruptionbudgets"),
		rule(v("create"), gAuthn, "tokenreviews"), rule(v("create"), gAuthz, "subjectaccessreviews"),
		rule(read, gStorage, "csinodes", "csidrivers", "csistoragecapacities", "storageclasses", "volumeattachments"))
	bind("system:kube-scheduler", user("system:kube-scheduler"))
	add("system:kube-controller-manager",
		rule(v("create", "patch", "update"), gCore, "events"), rule(v("create", "patch", "update"), gEvents, "events"),
		rule(v("create", "get", "update"), gCoord, "leases"), rule(v("create"), gCore, "secrets", "serviceaccounts", "serviceaccounts/token"),
		rule(v("delete"), gCore, "secrets"), rule(v("get"), gCore, "configmaps", "namespaces", "secrets", "serviceaccounts"),
		rule(v("update"), gCore, "secrets", "serviceaccounts"), rule(v("create"), gAuthn, "tokenreviews"),
		rule(v("create"), gAuthz, "subjectaccessreviews"), rule(v("list", "watch"), "*", "*"))
	bind("system:kube-controller-manager", user("system:kube-controller-manager"))
	for _, c := range []struct{ name, verb, signer, resource string }{
		{"system:certificates.k8s.io:certificatesigningrequests:nodeclient", "create", "", "certificatesigningrequests/nodeclient"},
		{"system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "create", "", "certificatesigningrequests/selfnodeclient"},
		{"system:certificates.k8s.io:kube-apiserver-client-approver", "approve", "kubernetes.io/kube-apiserver-client", "signers"},
		{"system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", "approve", "kubernetes.io/kube-apiserver-client-kubelet", "signers"},
		{"system:certificates.k8s.io:kubelet-serving-approver", "approve", "kubernetes.io/kubelet-serving", "signers"},
		{"system:certificates.k8s.io:legacy-unknown-approver", "approve", "kubernetes.io/legacy-unknown", "signers"},
	} {
		r := rule(v(c.verb), gCert, c.resource)
		if c.signer != "" {
			r.ResourceNames = []string{c.signer}
		}
		add(c.name, r)
	}

	nsRole := func(ns, name string, rules ...rbacv1.PolicyRule) {
		b.Roles = append(b.Roles, &rbacv1.Role{ObjectMeta: bootMeta(ns, name), Rules: rules})
	}
	nsBind := func(ns, name, role string, subjects ...rbacv1.Subject) {
		b.RoleBindings = append(b.RoleBindings, &rbacv1.RoleBinding{ObjectMeta: bootMeta(ns, name),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "Role", Name: role}, Subjects: subjects})
	}
	nsRole("kube-system", "extension-apiserver-authentication-reader", named(rule(read, gCore, "configmaps"), "extension-apiserver-authentication"))
	nsBind("kube-system", "system::extension-apiserver-authentication-reader", "extension-apiserver-authentication-reader", user("system:kube-controller-manager"), user("system:kube-scheduler"))
	nsRole("kube-system", "system::leader-locking-kube-controller-manager", rule(v("watch"), gCore, "configmaps"), named(rule(v("get", "update"), gCore, "configmaps"), "kube-controller-manager"))
	nsBind("kube-system", "system::leader-locking-kube-controller-manager", "system::leader-locking-kube-controller-manager", user("system:kube-controller-manager"))
	nsRole("kube-system", "system::leader-locking-kube-scheduler", rule(v("watch"), gCore, "configmaps"), named(rule(v("get", "update"), gCore, "configmaps"), "kube-scheduler"))
	nsBind("kube-system", "system::leader-locking-kube-scheduler", "system::leader-locking-kube-scheduler", user("system:kube-scheduler"))
	b.addControllers()
	return b
}

func bootMeta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{autoupdate: "true"}}
}
