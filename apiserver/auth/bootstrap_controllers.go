package auth

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// controllerRoles are the roles system:controller:NAME of upstream's controllers,
// each bound to the service account kube-system/NAME (Kubernetes docs, "Using RBAC
// Authorization", roles for built-in controllers). A line is "verbs group
// resources", lists with commas; "core" is the group without a name. A
// letter stands for a verb: g get, l list, w watch, c create, u update, p patch,
// d delete, x deletecollection; any other verb is written out.
//
// The controllers inside proa do not need them; programs that take such an
// account's place, and people who look for the roles, do.
var controllerRoles = []struct {
	name  string
	rules string
}{
	{"attachdetach-controller", `lw core persistentvolumes,persistentvolumeclaims; glw core nodes; pu core nodes/status; lw core pods; events;
		glw storage.k8s.io csidrivers,csinodes; cdglwpu storage.k8s.io volumeattachments`},
	{"clusterrole-aggregation-controller", `escalate,get,list,patch,update,watch rbac.authorization.k8s.io clusterroles`},
	{"cronjob-controller", `gluw batch cronjobs; cdgluwp batch jobs; u batch cronjobs/status,cronjobs/finalizers; dl core pods; events`},
	{"daemon-set-controller", `glw apps daemonsets; u apps daemonsets/status,daemonsets/finalizers; lw core nodes; cdlpw core pods; c core pods/binding;
		cdgluwp apps controllerrevisions; events`},
	{"deployment-controller", `gluw apps deployments; u apps deployments/status,deployments/finalizers; cdglpuw apps replicasets; gluw core pods; events`},
	{"device-taint-eviction-controller", `glwd core pods; up core pods/status; glw resource.k8s.io resourceclaims,resourceslices,deviceclasses,devicetaintrules; events`},
	{"disruption-controller", `glw apps deployments,replicasets,statefulsets; glw core replicationcontrollers,pods,nodes; pu core pods/status;
		glw policy poddisruptionbudgets; u policy poddisruptionbudgets/status; g * */scale; events`},
	{"endpoint-controller", `glw core services,pods; cdgluw core endpoints; c core endpoints/restricted; events`},
	{"endpointslice-controller", `glw core services,pods,nodes; u core services/finalizers; cdgluw discovery.k8s.io endpointslices; c core endpoints/restricted; events`},
	{"endpointslicemirroring-controller", `glw core endpoints,services; u core endpoints/finalizers,services/finalizers; cdgluw discovery.k8s.io endpointslices; events`},
	{"ephemeral-volume-controller", `glw core pods; u core pods/finalizers; cglw core persistentvolumeclaims; events`},
	{"expand-controller", `glpuw core persistentvolumes; pu core persistentvolumeclaims/status; glw core persistentvolumeclaims; glw storage.k8s.io storageclasses; events`},
	{"generic-garbage-collector", `dglpuw * *; events`},
	{"horizontal-pod-autoscaler", `glw autoscaling horizontalpodautoscalers; u autoscaling horizontalpodautoscalers/status; gu * */scale; l core pods;
		l metrics.k8s.io pods; gl custom.metrics.k8s.io *; gl external.metrics.k8s.io *; events`},
	{"job-controller", `glpuw batch jobs; u batch jobs/status,jobs/finalizers; cdlpw core pods; events`},
	{"legacy-service-account-token-cleaner", `g core configmaps; glw core pods; dpw core secrets; lw core serviceaccounts`},
	{"namespace-controller", `dglw core namespaces; u core namespaces/finalize,namespaces/status; dxglw * *`},
	{"node-controller", `dglpuw core nodes; pu core nodes/status; pu core pods/status; dlgw core pods; glw networking.k8s.io clustercidrs; events`},
	{"persistent-volume-binder", `cdgluw core persistentvolumes; u core persistentvolumes/status; gluw core persistentvolumeclaims; u core persistentvolumeclaims/status;
		cdglw core pods; glw storage.k8s.io storageclasses; glw core nodes; cdg core endpoints,services; g core secrets; events`},
	{"pod-garbage-collector", `dlw core pods; gl core nodes; p core pods/status`},
	{"pv-protection-controller", `gluw core persistentvolumes; events`},
	{"pvc-protection-controller", `gluw core persistentvolumeclaims; glw core pods; events`},
	{"replicaset-controller", `gluw apps replicasets; u apps replicasets/status,replicasets/finalizers; cdlpw core pods; events`},
	{"replication-controller", `gluw core replicationcontrollers; u core replicationcontrollers/status,replicationcontrollers/finalizers; cdlpw core pods; events`},
	{"resource-claim-controller", `glw core pods; u core pods/finalizers; cdglw resource.k8s.io resourceclaims; up resource.k8s.io resourceclaims/binding,resourceclaims/driver;
		up resource.k8s.io resourceclaims/status; up core pods/status; glw resource.k8s.io resourceclaimtemplates,deviceclasses; events`},
	{"resourcequota-controller", `lw * *; u core resourcequotas/status; events`},
	{"root-ca-cert-publisher", `cu core configmaps; events`},
	{"route-controller", `lw core nodes; p core nodes/status; events`},
	{"selinux-warning-controller", `glw core pods,persistentvolumes,persistentvolumeclaims; glw storage.k8s.io csidrivers; events`},
	{"service-account-controller", `c core serviceaccounts; events`},
	{"service-cidrs-controller", `glpuw networking.k8s.io servicecidrs; pu networking.k8s.io servicecidrs/finalizers,servicecidrs/status; glw networking.k8s.io ipaddresses; events`},
	{"service-controller", `glw core services; pu core services/status; lw core nodes; events`},
	{"statefulset-controller", `lw core pods; glw apps statefulsets; u apps statefulsets/status,statefulsets/finalizers; gcdup core pods; cdgluwp apps controllerrevisions;
		cglwud core persistentvolumeclaims; events`},
	{"storage-version-migrator-controller", `lpw * *; glw storagemigration.k8s.io storageversionmigrations; u storagemigration.k8s.io storageversionmigrations/status`},
	{"ttl-after-finished-controller", `dglw batch jobs; events`},
	{"ttl-controller", `lpuw core nodes; events`},
	{"validatingadmissionpolicy-status-controller", `glw admissionregistration.k8s.io validatingadmissionpolicies; gpu admissionregistration.k8s.io validatingadmissionpolicies/status; events`},
	{"volumeattributesclass-protection-controller", `lw core persistentvolumeclaims,persistentvolumes; gluw storage.k8s.io volumeattributesclasses; events`},
	{"certificate-controller", `dglw certificates.k8s.io certificatesigningrequests; u certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status;
		approve certificates.k8s.io signers=kubernetes.io/kube-apiserver-client-kubelet;
		sign certificates.k8s.io signers=kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown;
		c authorization.k8s.io subjectaccessreviews; events`},
}

var letters = map[rune]string{'g': "get", 'l': "list", 'w': "watch", 'c': "create", 'u': "update", 'p': "patch", 'd': "delete", 'x': "deletecollection"}

// compactRules reads the notation of controllerRoles.
func compactRules(text string) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for line := range strings.SplitSeq(text, ";") {
		f := strings.Fields(line)
		if len(f) == 1 && f[0] == "events" {
			out = append(out, rule(v("create", "patch", "update"), gCore, "events"), rule(v("create", "patch", "update"), gEvents, "events"))
			continue
		}
		var verbs []string
		for word := range strings.SplitSeq(f[0], ",") {
			if strings.Trim(word, "glwcupdx") != "" {
				verbs = append(verbs, word)
				continue
			}
			for _, c := range word {
				verbs = append(verbs, letters[c])
			}
		}
		group := f[1]
		if group == "core" {
			group = gCore
		}
		resources, names, _ := strings.Cut(f[2], "=")
		r := rule(verbs, group, strings.Split(resources, ",")...)
		if names != "" {
			r.ResourceNames = strings.Split(names, ",")
		}
		out = append(out, r)
	}
	return out
}

// addControllers adds the roles of upstream's controllers and what they have in
// namespaces.
func (b *Bootstrap) addControllers() {
	account := func(name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: "ServiceAccount", Namespace: "kube-system", Name: name}
	}
	for _, c := range controllerRoles {
		name := "system:controller:" + c.name
		b.ClusterRoles = append(b.ClusterRoles, &rbacv1.ClusterRole{ObjectMeta: bootMeta("", name), Rules: compactRules(c.rules)})
		b.ClusterRoleBindings = append(b.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: bootMeta("", name),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "ClusterRole", Name: name}, Subjects: []rbacv1.Subject{account(c.name)}})
	}
	for _, r := range []struct {
		namespace, name, account, rules string
	}{
		{"kube-system", "system:controller:bootstrap-signer", "bootstrap-signer", `glw core secrets`},
		{"kube-system", "system:controller:token-cleaner", "token-cleaner", `glwd core secrets; events`},
		{"kube-system", "system:controller:cloud-provider", "cloud-provider", `cglwu core configmaps`},
		{"kube-public", "system:controller:bootstrap-signer", "bootstrap-signer", `glw core configmaps; u core configmaps=cluster-info; events`},
	} {
		b.Roles = append(b.Roles, &rbacv1.Role{ObjectMeta: bootMeta(r.namespace, r.name), Rules: compactRules(r.rules)})
		b.RoleBindings = append(b.RoleBindings, &rbacv1.RoleBinding{ObjectMeta: bootMeta(r.namespace, r.name),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "Role", Name: r.name}, Subjects: []rbacv1.Subject{account(r.account)}})
	}
}
