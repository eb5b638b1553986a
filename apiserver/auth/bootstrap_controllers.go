package auth

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// controllerRoles are the roles system:controller:NAME of upstream's controllers,
// each bound to the service account kube-system/NAME (Kubernetes docs, "Using RBAC
// Authorization", roles for built-in controllers). A line is "verbs groups
// resources[=names]", lists with commas; "core" is the group without a name; "url
// verbs paths" is about paths. A letter stands for a verb: g get, l list, w watch,
// c create, u update, p patch, d delete, x deletecollection; any other verb is
// written out. "events" is the rule that most have.
//
// proa's deciders act as these accounts (server.DeciderUser); those that it does not
// have are for programs that take such an account's place.
var controllerRoles = []struct {
	name  string
	rules string
}{
	{"attachdetach-controller", `lw core persistentvolumeclaims,persistentvolumes; glw core nodes; pu core nodes/status; lw core pods; events;
		cdglw storage.k8s.io volumeattachments; glw storage.k8s.io csidrivers; glw storage.k8s.io csinodes`},
	{"certificate-controller", `dglw certificates.k8s.io certificatesigningrequests; u certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status;
		approve certificates.k8s.io signers=kubernetes.io/kube-apiserver-client-kubelet;
		sign certificates.k8s.io signers=kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown;
		c authorization.k8s.io subjectaccessreviews; events`},
	{"clusterrole-aggregation-controller", `escalate,get,list,patch,update,watch rbac.authorization.k8s.io clusterroles`},
	{"cronjob-controller", `gluw batch cronjobs; cdglpuw batch jobs; u batch cronjobs/status; u batch cronjobs/finalizers; dlw core pods; events`},
	{"daemon-set-controller", `glw apps,extensions daemonsets; u apps,extensions daemonsets/status; u apps,extensions daemonsets/finalizers; lw core nodes; cdlpw core pods;
		c core pods/binding; cdglpuw apps controllerrevisions; events`},
	{"deployment-controller", `gluw apps,extensions deployments; u apps,extensions deployments/status; u apps,extensions deployments/finalizers;
		cdglpuw apps,extensions replicasets; gluw core pods; events`},
	{"device-taint-eviction-controller", `dglw core pods; pu core pods/status; glw resource.k8s.io resourceclaims; glw resource.k8s.io resourceslices; glw resource.k8s.io deviceclasses;
		events; pu resource.k8s.io devicetaintrules/status; glw resource.k8s.io devicetaintrules`},
	{"disruption-controller", `glw apps,extensions deployments; glw apps,extensions replicasets; glw core replicationcontrollers; glw policy poddisruptionbudgets;
		glw apps statefulsets; u policy poddisruptionbudgets/status; pu core pods/status; g * */scale; events`},
	{"endpoint-controller", `glw core pods,services; cdgluw core endpoints; c core endpoints/restricted; events`},
	{"endpointslice-controller", `glw core nodes,pods,services; u core services/finalizers; cdgluw discovery.k8s.io endpointslices; events`},
	{"endpointslicemirroring-controller", `glw core endpoints,services; u core services/finalizers; u core endpoints/finalizers; cdgluw discovery.k8s.io endpointslices; events`},
	{"ephemeral-volume-controller", `glw core pods; u core pods/finalizers; cglw core persistentvolumeclaims; events`},
	{"expand-controller", `glpuw core persistentvolumes; pu core persistentvolumeclaims/status; glw core persistentvolumeclaims; events`},
	{"generic-garbage-collector", `dglpuw * *; events`},
	{"horizontal-pod-autoscaler", `glw autoscaling horizontalpodautoscalers; u autoscaling horizontalpodautoscalers/status; gu * */scale; lw core pods;
		lw metrics.k8s.io pods; glw custom.metrics.k8s.io *; glw external.metrics.k8s.io *; events`},
	{"job-controller", `glpuw batch jobs; u batch jobs/status; u batch jobs/finalizers; cdlpw core pods; events`},
	{"kube-apiserver-serving-clustertrustbundle-publisher", `attest certificates.k8s.io signers=kubernetes.io/kube-apiserver-serving;
		cdluw certificates.k8s.io clustertrustbundles; events`},
	{"legacy-service-account-token-cleaner", `g core configmaps=kube-apiserver-legacy-service-account-token-tracking; dp core secrets`},
	{"namespace-controller", `dglw core namespaces; u core namespaces/finalize,namespaces/status; dxglw * *`},
	{"node-controller", `dglpuw core nodes; pu core nodes/status; pu core pods/status; dglw core pods; events`},
	{"persistent-volume-binder", `cdgluw core persistentvolumes; u core persistentvolumes/status; gluw core persistentvolumeclaims; u core persistentvolumeclaims/status;
		cdglw core pods; glw storage.k8s.io storageclasses; lw core nodes; events; w core events`},
	{"pod-garbage-collector", `dlw core pods; glw core nodes; p core pods/status`},
	{"podcertificaterequestcleaner", `dglw certificates.k8s.io podcertificaterequests`},
	{"pv-protection-controller", `gluw core persistentvolumes; events`},
	{"pvc-protection-controller", `gluw core persistentvolumeclaims; u core persistentvolumeclaims/status; glw core pods; events`},
	{"replicaset-controller", `gluw apps,extensions replicasets; u apps,extensions replicasets/status; u apps,extensions replicasets/finalizers; cdlpw core pods; events`},
	{"replication-controller", `gluw core replicationcontrollers; u core replicationcontrollers/status; u core replicationcontrollers/finalizers; cdlpw core pods; events`},
	{"resource-claim-controller", `glw core pods; u core pods/finalizers; cdglw resource.k8s.io resourceclaims; pu resource.k8s.io resourceclaims,resourceclaims/status;
		pu core pods/status; events; pu resource.k8s.io resourceclaims/binding`},
	{"resourcequota-controller", `lw * *; u core resourcequotas/status; events`},
	{"root-ca-cert-publisher", `cu core configmaps; events`},
	{"route-controller", `lw core nodes; p core nodes/status; events`},
	{"selinux-warning-controller", `events; glw core persistentvolumes; glw core persistentvolumeclaims; glw core pods; glw storage.k8s.io csidrivers`},
	{"service-account-controller", `c core serviceaccounts; events`},
	{"service-cidrs-controller", `glpuw networking.k8s.io servicecidrs; pu networking.k8s.io servicecidrs/finalizers; pu networking.k8s.io servicecidrs/status;
		glw networking.k8s.io ipaddresses; events`},
	{"service-controller", `glw core services; pu core services/status; lw core nodes; events`},
	{"statefulset-controller", `lw core pods; glw apps statefulsets; u apps statefulsets/status; u apps statefulsets/finalizers; cdgpu core pods; cdglpuw apps controllerrevisions;
		cglw core persistentvolumeclaims; du core persistentvolumeclaims; u core pods/finalizers; events`},
	{"storage-version-migrator-controller", `clp * *; u storagemigration.k8s.io storageversionmigrations/status`},
	{"ttl-after-finished-controller", `dglw batch jobs; events`},
	{"ttl-controller", `lpuw core nodes; events`},
	{"validatingadmissionpolicy-status-controller", `glw admissionregistration.k8s.io validatingadmissionpolicies; gpu admissionregistration.k8s.io validatingadmissionpolicies/status; events`},
	{"volumeattributesclass-protection-controller", `glw core persistentvolumeclaims; glw core persistentvolumes; gluw storage.k8s.io volumeattributesclasses; events`},
}

var letters = map[rune]string{'g': "get", 'l': "list", 'w': "watch", 'c': "create", 'u': "update", 'p': "patch", 'd': "delete", 'x': "deletecollection"}

// compactRules reads the notation of controllerRoles.
func compactRules(text string) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for line := range strings.SplitSeq(text, ";") {
		f := strings.Fields(line)
		if len(f) == 1 && f[0] == "events" {
			out = append(out, rbacv1.PolicyRule{Verbs: v("create", "patch", "update"), APIGroups: []string{gCore, gEvents}, Resources: []string{"events"}})
			continue
		}
		if f[0] == "url" {
			out = append(out, rbacv1.PolicyRule{Verbs: strings.Split(f[1], ","), NonResourceURLs: strings.Split(f[2], ",")})
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
		groups := strings.Split(f[1], ",")
		for i := range groups {
			if groups[i] == "core" {
				groups[i] = gCore
			}
		}
		resources, names, _ := strings.Cut(f[2], "=")
		r := rbacv1.PolicyRule{Verbs: verbs, APIGroups: groups, Resources: strings.Split(resources, ",")}
		if names != "" {
			r.ResourceNames = strings.Split(names, ",")
		}
		slices.Sort(r.Verbs)
		out = append(out, r)
	}
	return out
}

// addControllers adds the roles of upstream's controllers.
func (b *Bootstrap) addControllers() {
	for _, c := range controllerRoles {
		name := "system:controller:" + c.name
		b.ClusterRoles = append(b.ClusterRoles, &rbacv1.ClusterRole{ObjectMeta: bootMeta("", name), Rules: compactRules(c.rules)})
		b.ClusterRoleBindings = append(b.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: bootMeta("", name),
			RoleRef: rbacv1.RoleRef{APIGroup: gRBAC, Kind: "ClusterRole", Name: name}, Subjects: []rbacv1.Subject{toAccount(c.name)}})
	}
}
