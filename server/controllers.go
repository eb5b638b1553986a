package server

import (
	"fmt"
	"slices"
	"strings"

	"proa.dev/control"
	"proa.dev/control/admissionpolicy"
	"proa.dev/control/certificate"
	"proa.dev/control/parts"
	"proa.dev/kind"
)

// Deciders that are no parts of the controllers' runtime.
const (
	Scheduler = "scheduler"
	Signer    = "certificatesigningrequest-signing-controller"
)

// shortNames are the names that kube-controller-manager took before v1.28 for its
// --controllers, and still takes, and its present ones where ours differ.
var shortNames = map[string]string{
	"clusterrole-aggregation":          "clusterrole-aggregation-controller",
	"cronjob":                          "cronjob-controller",
	"bootstrapsigner":                  "bootstrap-signer-controller",
	"tokencleaner":                     "token-cleaner-controller",
	"csrapproving":                     "certificatesigningrequest-approving-controller",
	"csrcleaner":                       "certificatesigningrequest-cleaner-controller",
	"csrsigning":                       Signer,
	"pv-protection":                    "persistentvolume-protection-controller",
	"pvc-protection":                   "persistentvolumeclaim-protection-controller",
	"serviceaccount-token":             "serviceaccount-token-controller",
	"daemonset":                        "daemonset-controller",
	"deployment":                       "deployment-controller",
	"disruption":                       "disruption-controller",
	"endpoint":                         "endpoint-controller",
	"endpoints-controller":             "endpoint-controller",
	"endpointslice":                    "endpointslice-controller",
	"endpointslicemirroring":           "endpointslicemirroring-controller",
	"garbagecollector":                 "garbage-collector-controller",
	"job":                              "job-controller",
	"namespace":                        "namespace-controller",
	"nodelifecycle":                    "node-lifecycle-controller",
	"podgc":                            "pod-garbage-collector",
	"replicaset":                       "replicaset-controller",
	"replicationcontroller":            "replication-controller",
	"replicationcontroller-controller": "replication-controller",
	"resourcequota":                    "resourcequota-controller",
	"root-ca-cert-publisher":           "root-ca-certificate-publisher",
	"service":                          "service-controller",
	"service-lb-controller":            "service-controller",
	"serviceaccount":                   "serviceaccount-controller",
	"statefulset":                      "statefulset-controller",
	"ttl-after-finished":               "ttl-after-finished-controller",
	"validatingadmissionpolicy-status": "validatingadmissionpolicy-status-controller",
}

// Controllers are the names of all deciders.
func Controllers() []string {
	var out []string
	for _, p := range append(parts.All(kind.All, ""), certificate.ApproverPart(nil), admissionpolicy.Part(nil)) {
		out = append(out, p.Name)
	}
	return append(out, Signer, Scheduler)
}

// choose reads a list as kube-controller-manager reads --controllers: "*" is all,
// "name" that one, "-name" not that one. Nil is all. A later word wins over "*",
// whatever the order.
func choose(list []string) (on func(name string) bool, err error) {
	if list == nil {
		return func(string) bool { return true }, nil
	}
	known := Controllers()
	chosen, all := map[string]bool{}, false
	for _, word := range list {
		switch word {
		case "":
			continue
		case "*":
			all = true
			continue
		}
		name, not := strings.CutPrefix(word, "-")
		if long, ok := shortNames[name]; ok {
			name = long
		}
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("choose controller %q: there is none of that name; the names are %s", word, strings.Join(known, ", "))
		}
		chosen[name] = !not
	}
	return func(name string) bool {
		if on, ok := chosen[name]; ok {
			return on
		}
		return all
	}, nil
}

// Runs says whether a list has a controller in it.
func Runs(list []string, name string) (bool, error) {
	if long, ok := shortNames[name]; ok {
		name = long
	}
	on, err := choose(list)
	if err != nil {
		return false, err
	}
	return on(name), nil
}

// chosenParts are those of the runtime's parts that are on.
func chosenParts(all []control.Part, on func(string) bool) []control.Part {
	return slices.DeleteFunc(slices.Clone(all), func(p control.Part) bool { return !on(p.Name) })
}
