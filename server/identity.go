package server

import (
	"runtime"
	"strings"

	"proa.dev/apiserver"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/sched/loop"
)

// Names under which deciders act, as upstream's components do (Kubernetes docs,
// "Using RBAC Authorization", core component roles and roles for built-in
// controllers): what they may is in the ClusterRoles system:kube-scheduler,
// system:kube-controller-manager and system:controller:NAME.
const (
	ControllerManager = "kube-controller-manager"
	KubeScheduler     = "kube-scheduler"
	// APIServer is this server itself, which may everything.
	APIServer = "kube-apiserver"

	apiServerUser = "system:apiserver"
)

// identities of the deciders by their names: the service account in kube-system
// of a controller, or a user (with a colon).
var identities = map[string]string{
	Scheduler: "system:" + KubeScheduler,
	Signer:    "certificate-controller",

	"bootstrap-signer-controller":                                    "bootstrap-signer",
	"certificatesigningrequest-approving-controller":                 "certificate-controller",
	"certificatesigningrequest-cleaner-controller":                   "certificate-controller",
	"clusterrole-aggregation-controller":                             "clusterrole-aggregation-controller",
	"cronjob-controller":                                             "cronjob-controller",
	"daemonset-controller":                                           "daemon-set-controller",
	"deployment-controller":                                          "deployment-controller",
	"disruption-controller":                                          "disruption-controller",
	"endpoint-controller":                                            "endpoint-controller",
	"endpointslice-controller":                                       "endpointslice-controller",
	"endpointslicemirroring-controller":                              "endpointslicemirroring-controller",
	"garbage-collector-controller":                                   "generic-garbage-collector",
	"job-controller":                                                 "job-controller",
	"job-orphan-controller":                                          "job-controller",
	"kube-apiserver-serving-clustertrustbundle-publisher-controller": "kube-apiserver-serving-clustertrustbundle-publisher",
	"namespace-controller":                                           "namespace-controller",
	"node-lifecycle-controller":                                      "node-controller",
	"persistentvolume-protection-controller":                         "pv-protection-controller",
	"persistentvolumeclaim-protection-controller":                    "pvc-protection-controller",
	"pod-garbage-collector":                                          "pod-garbage-collector",
	"podcertificaterequest-cleaner-controller":                       "podcertificaterequestcleaner",
	"replicaset-controller":                                          "replicaset-controller",
	"replication-controller":                                         "replication-controller",
	"resourcequota-controller":                                       "resourcequota-controller",
	"root-ca-certificate-publisher":                                  "root-ca-cert-publisher",
	"service-controller":                                             "service-controller",
	"service-cidrs-controller":                                       "service-cidrs-controller",
	"serviceaccount-controller":                                      "service-account-controller",
	"serviceaccount-token-controller":                                "system:" + ControllerManager,
	"statefulset-controller":                                         "statefulset-controller",
	"storage-version-migrator-controller":                            "storage-version-migrator-controller",
	"taint-eviction-controller":                                      "node-controller",
	"token-cleaner-controller":                                       "token-cleaner",
	"ttl-after-finished-controller":                                  "ttl-after-finished-controller",
	"validatingadmissionpolicy-status-controller":                    "validatingadmissionpolicy-status-controller",
	"volumeattributesclass-protection-controller":                    "volumeattributesclass-protection-controller",
}

// eventSources are the sources of events that are no names of deciders.
var eventSources = map[string]string{
	loop.Name:         Scheduler,
	"node-controller": "node-lifecycle-controller",
}

// DeciderUser is as whom a decider acts; ok is false for one that acts as the
// server.
func DeciderUser(name string) (u auth.User, ok bool) {
	id, ok := identities[name]
	if !ok {
		return auth.User{}, false
	}
	if strings.HasPrefix(id, "system:") {
		return auth.User{Name: id, Groups: []string{auth.AllAuthenticated}}, true
	}
	return auth.User{Name: auth.ServiceAccountUser + "kube-system:" + id,
		Groups: []string{auth.ServiceAccounts, auth.ServiceAccounts + ":kube-system", auth.AllAuthenticated}}, true
}

// agentOf is what a component of upstream's calls itself.
func agentOf(component, user string) string {
	return component + "/" + KubernetesVersion + " (" + runtime.GOOS + "/" + runtime.GOARCH + ") proa/" + user
}

// Admin is the in-process client with every right: the server's own.
func (s *Server) Admin() client.Client {
	u := auth.User{Name: apiServerUser, Groups: []string{auth.Masters, auth.AllAuthenticated}}
	return s.API.LocalAs(apiserver.Identity{User: func() auth.User { return u }, Agent: agentOf(APIServer, u.Name)})
}

// as is the client of a decider. Where RBAC is not asked, nobody could give it
// its rights, so that it acts with all: what a part has declared as its writes
// bounds it.
func (s *Server) as(name string) client.Client {
	u, ok := DeciderUser(name)
	if !ok {
		return s.Admin()
	}
	whole := u
	whole.Groups = append([]string{auth.Masters}, u.Groups...)
	component := ControllerManager
	if name == Scheduler {
		component = KubeScheduler
	}
	return s.API.LocalAs(apiserver.Identity{Agent: agentOf(component, u.Name), User: func() auth.User {
		if !s.access.AsksRBAC() {
			return whole
		}
		return u
	}})
}

// writer is the client that records events of a source.
func (s *Server) writer(source string) client.Client {
	if name, ok := eventSources[source]; ok {
		source = name
	}
	if _, ok := identities[source]; !ok {
		return s.Admin()
	}
	return s.as(source)
}
