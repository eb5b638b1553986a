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

var read = []string{"get", "list", "watch"}

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}
func v(verbs ...string) []string { return verbs }

const (
	gCore, gRBAC, gAuthn, gAuthz = "", "rbac.authorization.k8s.io", "authentication.k8s.io", "authorization.k8s.io"
	gCert, gDisc, gEvents        = "certificates.k8s.io", "discovery.k8s.io", "events.k8s.io"
	gStorage, gResource          = "storage.k8s.io", "resource.k8s.io"
)

// NodeRules are what every node may do besides the relations that the Node
// authorizer checks one by one. They are more than the role system:node has, which
// nobody is bound to: proa's agent is proxy and resolver too.
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

// componentRoles are the roles that are not of one controller, in the notation of
// controllerRoles. into is what a role is aggregated to; sum says that it is made of
// those aggregated to it.
var componentRoles = []struct {
	name, into string
	sum        bool
	rules      string
}{
	{name: "cluster-admin", rules: `* * *; url * *`},
	{name: "admin", sum: true},
	{name: "edit", sum: true, into: "admin"},
	{name: "view", sum: true, into: "edit"},
	{name: "system:aggregate-to-admin", into: "admin", rules: `c authorization.k8s.io localsubjectaccessreviews; glwcdxpu rbac.authorization.k8s.io rolebindings,roles`},
	// Not pods/ephemeralcontainers and pods/resize: who gives them to editors does so
	// knowingly, with a role that is aggregated to edit.
	{name: "system:aggregate-to-edit", into: "edit", rules: `glw core pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy; impersonate core serviceaccounts;
		cdxpu core pods,pods/attach,pods/exec,pods/portforward,pods/proxy; c core pods/eviction;
		cdxpu core configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy; c core serviceaccounts/token;
		cdxpu apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale;
		cdxpu autoscaling horizontalpodautoscalers; cdxpu batch cronjobs,jobs;
		cdxpu extensions daemonsets,deployments,deployments/rollback,deployments/scale,ingresses,networkpolicies,replicasets,replicasets/scale,replicationcontrollers/scale;
		cdxpu policy poddisruptionbudgets; cdxpu networking.k8s.io ingresses,networkpolicies; glwcdxpu coordination.k8s.io leases;
		cdxpu resource.k8s.io resourceclaims,resourceclaimtemplates`},
	{name: "system:aggregate-to-view", into: "view", rules: `glw core configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status;
		glw core bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status; glw core namespaces;
		glw discovery.k8s.io endpointslices;
		glw apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status;
		glw autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status; glw batch cronjobs,cronjobs/status,jobs,jobs/status;
		glw extensions daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,ingresses,ingresses/status,networkpolicies,replicasets,replicasets/scale,replicasets/status,replicationcontrollers/scale;
		glw policy poddisruptionbudgets,poddisruptionbudgets/status; glw networking.k8s.io ingresses,ingresses/status,networkpolicies;
		glw resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates`},

	{name: "system:discovery", rules: `url get /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/`},
	{name: "system:basic-user", rules: `c authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews; c authentication.k8s.io selfsubjectreviews`},
	{name: "system:public-info-viewer", rules: `url get /healthz,/livez,/readyz,/version,/version/`},
	{name: "system:monitoring", rules: `url get /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*`},
	{name: "system:service-account-issuer-discovery", rules: `url get /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/`},
	{name: "system:cluster-trust-bundle-discovery", rules: `glw certificates.k8s.io clustertrustbundles`},
	{name: "system:auth-delegator", rules: `c authentication.k8s.io tokenreviews; c authorization.k8s.io subjectaccessreviews`},

	{name: "system:node", rules: `c authentication.k8s.io tokenreviews; c authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews; glw core services;
		cglw core nodes; pu core nodes/status; pu core nodes; cpu core events; glw core pods; cd core pods; pu core pods/status; c core pods/eviction;
		glw core configmaps,secrets; g core persistentvolumeclaims,persistentvolumes; g core endpoints; cglw certificates.k8s.io certificatesigningrequests;
		cdgpu coordination.k8s.io leases; g storage.k8s.io volumeattachments; c core serviceaccounts/token; gpu core persistentvolumeclaims/status;
		glw storage.k8s.io csidrivers; cdgpu storage.k8s.io csinodes; glw node.k8s.io runtimeclasses; g resource.k8s.io resourceclaims; x resource.k8s.io resourceslices;
		glw certificates.k8s.io clustertrustbundles; g core serviceaccounts; cglw certificates.k8s.io podcertificaterequests`},
	{name: "system:node-problem-detector", rules: `g core nodes; p core nodes/status; events`},
	{name: "system:node-proxier", rules: `lw core endpoints,services; glw core nodes; events; lw networking.k8s.io servicecidrs; lw discovery.k8s.io endpointslices`},
	{name: "system:node-bootstrapper", rules: `cglw certificates.k8s.io certificatesigningrequests`},
	{name: "system:kubelet-api-admin", rules: `glw core nodes; proxy core nodes; * core nodes/log,nodes/metrics,nodes/proxy,nodes/stats; * core nodes/configz,nodes/healthz,nodes/pods`},
	{name: "system:kube-aggregator", rules: `glw core endpoints,services`},
	{name: "system:kube-dns", rules: `lw core endpoints,services`},
	{name: "system:heapster", rules: `glw core events,namespaces,nodes,pods; glw extensions deployments`},
	{name: "system:persistent-volume-provisioner", rules: `cdglw core persistentvolumes; gluw core persistentvolumeclaims; glw storage.k8s.io storageclasses; w core events; events`},
	{name: "system:volume-scheduler", rules: `glpuw core persistentvolumes; glw storage.k8s.io storageclasses; glpuw core persistentvolumeclaims`},
	{name: "system:kube-scheduler", rules: `events; c coordination.k8s.io leases; gluw coordination.k8s.io leases=kube-scheduler; glwcdxpu coordination.k8s.io leasecandidates;
		glw core nodes; dglw core pods; c core bindings,pods/binding; pu core pods/status; glw core replicationcontrollers,services; glw apps,extensions replicasets;
		glw apps statefulsets; glw policy poddisruptionbudgets; glw core persistentvolumeclaims,persistentvolumes; c authentication.k8s.io tokenreviews;
		c authorization.k8s.io subjectaccessreviews; glw storage.k8s.io csinodes; glw storage.k8s.io volumeattachments; glw core namespaces; glw storage.k8s.io csidrivers;
		glw storage.k8s.io csistoragecapacities; glw resource.k8s.io deviceclasses; glpuw resource.k8s.io resourceclaims; glpuw resource.k8s.io resourceclaims/status;
		glpuw core pods/finalizers; glw resource.k8s.io resourceslices; glw resource.k8s.io devicetaintrules; pu resource.k8s.io resourceclaims/binding`},
	{name: "system:kube-controller-manager", rules: `events; c coordination.k8s.io leases; gu coordination.k8s.io leases=kube-controller-manager; c core secrets,serviceaccounts;
		d core secrets; g core configmaps,namespaces,secrets,serviceaccounts; u core secrets,serviceaccounts; c authentication.k8s.io tokenreviews;
		c authorization.k8s.io subjectaccessreviews; lw * *; c core serviceaccounts/token`},

	{name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient", rules: `c certificates.k8s.io certificatesigningrequests/nodeclient`},
	{name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", rules: `c certificates.k8s.io certificatesigningrequests/selfnodeclient`},
	{name: "system:certificates.k8s.io:kube-apiserver-client-approver", rules: `approve certificates.k8s.io signers=kubernetes.io/kube-apiserver-client`},
	{name: "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", rules: `approve certificates.k8s.io signers=kubernetes.io/kube-apiserver-client-kubelet`},
	{name: "system:certificates.k8s.io:kubelet-serving-approver", rules: `approve certificates.k8s.io signers=kubernetes.io/kubelet-serving`},
	{name: "system:certificates.k8s.io:legacy-unknown-approver", rules: `approve certificates.k8s.io signers=kubernetes.io/legacy-unknown`},
}

func toGroup(n string) rbacv1.Subject { return rbacv1.Subject{Kind: "Group", APIGroup: gRBAC, Name: n} }
func toUser(n string) rbacv1.Subject  { return rbacv1.Subject{Kind: "User", APIGroup: gRBAC, Name: n} }
func toAccount(n string) rbacv1.Subject {
	return rbacv1.Subject{Kind: "ServiceAccount", Namespace: metav1.NamespaceSystem, Name: n}
}

// Policy is the whole default policy.
func Policy() Bootstrap {
	var b Bootstrap
	for _, c := range componentRoles {
		r := &rbacv1.ClusterRole{ObjectMeta: bootMeta("", c.name)}
		if c.into != "" {
			r.Labels[aggregateTo+c.into] = "true"
		}
		if c.sum {
			r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{aggregateTo + c.name: "true"}}}}
		} else {
			r.Rules = compactRules(c.rules)
		}
		b.ClusterRoles = append(b.ClusterRoles, r)
	}
	for _, c := range []struct {
		role     string
		subjects []rbacv1.Subject
	}{
		{"cluster-admin", []rbacv1.Subject{toGroup(Masters)}},
		{"system:discovery", []rbacv1.Subject{toGroup(AllAuthenticated)}},
		{"system:basic-user", []rbacv1.Subject{toGroup(AllAuthenticated)}},
		{"system:public-info-viewer", []rbacv1.Subject{toGroup(AllAuthenticated), toGroup(AllUnauthenticated)}},
		{"system:monitoring", []rbacv1.Subject{toGroup("system:monitoring")}},
		{"system:service-account-issuer-discovery", []rbacv1.Subject{toGroup(ServiceAccounts)}},
		{"system:cluster-trust-bundle-discovery", []rbacv1.Subject{toGroup(ServiceAccounts)}},
		{"system:node", nil}, // the Node authorizer knows nodes
		{"system:node-proxier", []rbacv1.Subject{toUser("system:kube-proxy")}},
		{"system:kube-dns", []rbacv1.Subject{toAccount("kube-dns")}},
		{"system:volume-scheduler", []rbacv1.Subject{toUser("system:kube-scheduler")}},
		{"system:kube-scheduler", []rbacv1.Subject{toUser("system:kube-scheduler")}},
		{"system:kube-controller-manager", []rbacv1.Subject{toUser("system:kube-controller-manager")}},
	} {
		b.ClusterRoleBindings = append(b.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: bootMeta("", c.role),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "ClusterRole", Name: c.role}, Subjects: c.subjects})
	}
	b.addControllers()
	for _, c := range namespaceRoles {
		b.Roles = append(b.Roles, &rbacv1.Role{ObjectMeta: bootMeta(c.namespace, c.name), Rules: compactRules(c.rules)})
		name := c.name
		if c.binding != "" {
			name = c.binding
		}
		b.RoleBindings = append(b.RoleBindings, &rbacv1.RoleBinding{ObjectMeta: bootMeta(c.namespace, name),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "Role", Name: c.name}, Subjects: c.subjects})
	}
	return b
}

// namespaceRoles are the roles in namespaces with whom they are bound to, by a
// binding of the same name unless it has another.
var namespaceRoles = []struct {
	namespace, name, binding, rules string
	subjects                        []rbacv1.Subject
}{
	{"kube-public", "system:controller:bootstrap-signer", "", `glw core configmaps; u core configmaps=cluster-info; events`, []rbacv1.Subject{toAccount("bootstrap-signer")}},
	{"kube-system", "system:controller:bootstrap-signer", "", `glw core secrets`, []rbacv1.Subject{toAccount("bootstrap-signer")}},
	{"kube-system", "system:controller:token-cleaner", "", `glwd core secrets; events`, []rbacv1.Subject{toAccount("token-cleaner")}},
	{"kube-system", "system:controller:cloud-provider", "", `cglw core configmaps`, []rbacv1.Subject{toAccount("cloud-provider")}},
	{"kube-system", "extension-apiserver-authentication-reader", "system::extension-apiserver-authentication-reader",
		`glw core configmaps=extension-apiserver-authentication`, []rbacv1.Subject{toUser("system:kube-controller-manager"), toUser("system:kube-scheduler")}},
	{"kube-system", "system::leader-locking-kube-controller-manager", "", `cgluw coordination.k8s.io leases; cgluw coordination.k8s.io leasecandidates`,
		[]rbacv1.Subject{toUser("system:kube-controller-manager"), toAccount("kube-controller-manager"), toAccount("leader-election-controller")}},
	{"kube-system", "system::leader-locking-kube-scheduler", "", `cgluw coordination.k8s.io leases; cgluw coordination.k8s.io leasecandidates`,
		[]rbacv1.Subject{toUser("system:kube-scheduler"), toAccount("kube-scheduler")}},
}

func bootMeta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{autoupdate: "true"}}
}
