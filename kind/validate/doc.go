// Package validate says what is wrong with an API object.
//
// Every function is pure: it reads its arguments (after defaulting), changes
// nothing and returns all problems at once, each with the path of its field, in
// upstream's words and order. An empty list means the object is acceptable.
//
// For a kind K there are, where upstream has the rule:
//
//	K(obj)                    create
//	KUpdate(new, old)         update through the main resource
//	KStatusUpdate(new, old)   update through the status subresource
//
// plus a few doors with their own rules (PodResize, PodEphemeralContainersUpdate,
// NamespaceFinalizeUpdate, CertificateSigningRequestApprovalUpdate, ...).
// Updates expect both objects to be complete and the immutable metadata
// (creation time, UID) and the resource version to be filled in as the server does
// before it validates.
//
// Fields behind a gate that is off never get here (package kind drops them); values
// behind such a gate are refused unless the old object has them. Of the rules that
// upstream relaxes for objects stored before the rule existed, those are relaxed here
// whose objects an older release may have left behind: the form of IP addresses and
// ranges, values of label selectors, names of secrets in volumes, wildcard hosts and
// backends of ingresses, API groups of data sources, endpoints that do not change,
// sysctls of the host, block devices with a user namespace, restarts of init containers
// on resize.
//
// The values within errors are Go structs of k8s.io/api; Shown gives them upstream's
// looks and is called for every row where the row is made.
//
// One thing is read from outside: CronJob looks its time zone up in the time zone
// database (Go's, or the machine's).
//
// Source of the rules: the Kubernetes API reference and the field comments of
// k8s.io/api; the declarative rules in those comments (+k8s: markers) are
// followed where they are enforced.
package validate
