package admit

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
	"proa.dev/view"
)

// NodeRestriction keeps a node agent to its own Node and to pods bound to it, and
// away from labels and taints that isolate workloads (docs, "Admission
// Controllers"). It runs in both halves: what other plugins change is looked at
// too.
func NodeRestriction() Plugin {
	check := func(_ context.Context, r *Request) error {
		node, ok := strings.CutPrefix(r.User.Name, auth.NodePrefix)
		if !ok || !r.User.In(auth.NodesGroup) {
			return nil
		}
		n := &restricted{r, node}
		if node == "" {
			return n.forbid("could not determine node from user %q", r.User.Name)
		}
		switch r.Kind.Root() {
		case kind.Pod:
			return n.pod()
		case kind.Node:
			return n.node()
		case kind.ServiceAccount:
			return n.token()
		case kind.Lease:
			switch {
			case r.Namespace != corev1.NamespaceNodeLease:
				return n.forbid("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
			case r.Name != node:
				return n.forbid("can only access node lease with the same name as the requesting node")
			}
		case kind.CSINode:
			if r.Name != node {
				return n.forbid("can only access CSINode with the same name as the requesting node")
			}
		case kind.CertificateSigningRequest:
			return n.request()
		case kind.PersistentVolumeClaim:
			if n.Operation == Update && n.Sub != "status" {
				return n.forbid("may only update PVC status")
			}
		case kind.ResourceSlice:
			return n.slice()
		case kind.PodCertificateRequest:
			return n.podCertificate()
		}
		return nil
	}
	return Plugin{Name: "NodeRestriction", Mutate: check, Validate: check}
}

type restricted struct {
	*Request
	self string
}

func (n *restricted) forbid(format string, args ...any) error {
	return apierrors.NewForbidden(n.Kind.GroupResource(), n.Name, fmt.Errorf(format, args...))
}

func (n *restricted) pod() error {
	old, _ := n.Old.(*corev1.Pod)
	mine := old != nil && old.Spec.NodeName == n.self
	switch {
	case n.Operation == Connect:
		return nil // the authorizer has none of these
	case n.Operation == Delete && n.Sub == "":
		if old != nil && !mine {
			return n.forbid("node %q can only delete pods with spec.nodeName set to itself", n.self)
		}
	case n.Sub == "eviction":
		if old != nil && !mine {
			return n.forbid("node %s can only evict pods with spec.nodeName set to itself", n.self)
		}
	case n.Sub == "status":
		p, _ := n.Object.(*corev1.Pod)
		switch {
		case old == nil || p == nil:
		case !mine:
			return n.forbid("node %q can only update pod status for pods with spec.nodeName set to itself", n.self)
		case !maps.Equal(p.Labels, old.Labels):
			return n.forbid("node %q cannot update labels through pod status", n.self)
		case !apiequality.Semantic.DeepEqual(p.Status.ResourceClaimStatuses, old.Status.ResourceClaimStatuses):
			return n.forbid("node %q cannot update resource claim statuses", n.self)
		}
	case n.Sub != "":
		return n.forbid("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", n.Sub)
	case n.Operation == Create:
		if p, _ := n.Object.(*corev1.Pod); p != nil {
			return n.mirror(p)
		}
	default:
		return n.forbid("unexpected operation %q, node %q can only create and delete mirror pods", n.Operation, n.self)
	}
	return nil
}

// mirror pods show a pod that the node has from a file: they must be the node's
// own and refer to nothing, or they would open what they refer to.
func (n *restricted) mirror(p *corev1.Pod) error {
	if _, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; !ok {
		return n.forbid("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, n.self)
	}
	if p.Spec.NodeName != n.self {
		return n.forbid("node %q can only create pods with spec.nodeName set to itself", n.self)
	}
	if len(p.OwnerReferences) > 1 {
		return n.forbid("node %q can only create pods with a single owner reference set to itself", n.self)
	}
	if len(p.OwnerReferences) == 0 || p.OwnerReferences[0].APIVersion != "v1" || p.OwnerReferences[0].Kind != "Node" || p.OwnerReferences[0].Name != n.self {
		return n.forbid("node %q can only create pods with an owner reference set to itself", n.self)
	}
	owner := p.OwnerReferences[0]
	if owner.Controller == nil || !*owner.Controller {
		return n.forbid("node %q can only create pods with a controller owner reference set to itself", n.self)
	}
	if owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion {
		return n.forbid("node %q must not set blockOwnerDeletion on an owner reference", n.self)
	}
	node := view.Get[*corev1.Node](n.Snapshot, kind.Node, "", n.self)
	if node == nil {
		return n.forbid("node %q not found", n.self)
	}
	if owner.UID != node.UID {
		return n.forbid("node %s UID mismatch: expected %s got %s", n.self, owner.UID, node.UID)
	}
	if p.Spec.ServiceAccountName != "" {
		return n.forbid("node %q can not create pods that reference a service account", n.self)
	}
	refs := auth.References(p)
	for _, c := range []struct {
		has  bool
		what string
	}{{refs.Secrets, "secrets"}, {refs.ConfigMaps, "configmaps"}, {refs.Claims, "persistentvolumeclaims"}, {refs.Tokens, "serviceaccount tokens"}, {refs.Devices, "resourceclaims"}} {
		if c.has {
			return n.forbid("node %q can not create pods that reference %s", n.self, c.what)
		}
	}
	return nil
}

func (n *restricted) node() error {
	if n.Name != n.self {
		return n.forbid("node %q is not allowed to modify node %q", n.self, n.Name)
	}
	o, _ := n.Object.(*corev1.Node)
	if o == nil {
		return nil
	}
	old, _ := n.Old.(*corev1.Node)
	if old == nil {
		if bad := restrictedLabels(o.Labels, nil); len(bad) > 0 {
			return n.forbid("is not allowed to set the following labels on a Node: %s", strings.Join(bad, ", "))
		}
		return nil
	}
	if bad := restrictedLabels(o.Labels, old.Labels); len(bad) > 0 {
		return n.forbid("is not allowed to modify labels: %s", strings.Join(bad, ", "))
	}
	if n.Sub == "" && !apiequality.Semantic.DeepEqual(o.Spec.Taints, old.Spec.Taints) {
		return n.forbid("node %q is not allowed to modify taints", n.self)
	}
	if !apiequality.Semantic.DeepEqual(o.OwnerReferences, old.OwnerReferences) {
		return n.forbid("node %q is not allowed to modify ownerReferences", n.self)
	}
	return nil
}

// nodeLabels of the namespaces kubernetes.io and k8s.io that a node may say about
// itself; with those below kubelet.kubernetes.io and node.kubernetes.io.
var nodeLabels = []string{
	"kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os", "beta.kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type",
	"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
	"node.kubernetes.io/instance-type", "node.kubernetes.io/windows-build",
}

// restrictedLabels are those of the changed labels that a node may not change.
func restrictedLabels(now, before map[string]string) []string {
	var bad []string
	look := func(key string) {
		space, _, ok := strings.Cut(key, "/")
		if !ok || slices.Contains(bad, key) {
			return
		}
		below := func(domain string) bool { return space == domain || strings.HasSuffix(space, "."+domain) }
		switch {
		case below("node-restriction.kubernetes.io"):
			bad = append(bad, key)
		case slices.Contains(nodeLabels, key), below("kubelet.kubernetes.io"), below("node.kubernetes.io"):
		case below("kubernetes.io"), below("k8s.io"):
			bad = append(bad, key)
		}
	}
	for k, v := range now {
		if b, had := before[k]; !had || b != v {
			look(k)
		}
	}
	for k := range before {
		if _, has := now[k]; !has {
			look(k)
		}
	}
	slices.Sort(bad)
	return bad
}

// token requests must be for a pod on the node, and for an audience that the pod
// asks for.
func (n *restricted) token() error {
	tr, ok := n.Body.(*authenticationv1.TokenRequest)
	if n.Sub != "token" || !ok {
		return nil
	}
	ref := tr.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return n.forbid("node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return n.forbid("node requested token with a pod binding without a uid")
	}
	p := view.Get[*corev1.Pod](n.Snapshot, kind.Pod, n.Namespace, ref.Name)
	if p == nil {
		return apierrors.NewNotFound(kind.Pod.GroupResource(), ref.Name)
	}
	if p.UID != ref.UID {
		return n.forbid("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	}
	if p.Spec.NodeName != n.self {
		return n.forbid("node requested token bound to a pod scheduled on a different node")
	}
	wanted := tr.Spec.Audiences
	if len(wanted) == 0 {
		wanted = []string{""}
	}
	for _, a := range wanted {
		if !n.asks(p, a) {
			return n.forbid("audience %q not found in pod spec volume", a)
		}
	}
	return nil
}

// asks: a volume of the pod needs tokens for this audience; "" is the API's own.
func (n *restricted) asks(p *corev1.Pod, audience string) bool {
	for _, v := range p.Spec.Volumes {
		if v.Projected != nil {
			for _, src := range v.Projected.Sources {
				if src.ServiceAccountToken != nil && src.ServiceAccountToken.Audience == audience {
					return true
				}
			}
		}
		driver := auth.DriverOf(n.Snapshot, p, v)
		if driver == nil {
			continue
		}
		for _, t := range driver.Spec.TokenRequests {
			if t.Audience == audience {
				return true
			}
		}
	}
	return false
}

// slice: devices are a node's own.
func (n *restricted) slice() error {
	of := func(o kind.Object) string {
		if s, _ := o.(*resourcev1.ResourceSlice); s != nil && s.Spec.NodeName != nil {
			return *s.Spec.NodeName
		}
		return ""
	}
	switch {
	case n.Operation == Create && of(n.Object) != n.self:
		return n.forbid("can only create ResourceSlice with the same NodeName as the requesting node")
	case (n.Operation == Update || n.Operation == Delete) && n.Old != nil && of(n.Old) != n.self:
		verb := "update"
		if n.Operation == Delete {
			verb = "delete"
		}
		return n.forbid("can only %s ResourceSlice with the same NodeName as the requesting node", verb)
	}
	return nil
}

// podCertificate requests are for pods on the node, by their UIDs (KEP-4317).
func (n *restricted) podCertificate() error {
	r, _ := n.Object.(*certificatesv1.PodCertificateRequest)
	if n.Operation != Create || r == nil {
		return nil
	}
	if string(r.Spec.NodeName) != n.self {
		return n.forbid("PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", r.Spec.NodeName, n.self)
	}
	p := view.Get[*corev1.Pod](n.Snapshot, kind.Pod, n.Namespace, r.Spec.PodName)
	switch {
	case p == nil:
		return n.forbid("while retrieving pod %s/%s named in the PodCertificateRequest: pod not found", n.Namespace, r.Spec.PodName)
	case p.UID != r.Spec.PodUID:
		return n.forbid("PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", n.Namespace+"/"+p.Name, r.Spec.PodUID, p.UID)
	case p.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return n.forbid("pod %q is a mirror pod", n.Namespace+"/"+p.Name)
	case p.Spec.NodeName != n.self:
		return n.forbid("pod %q is not running on node %q", n.Namespace+"/"+p.Name, n.self)
	case p.Spec.ServiceAccountName != r.Spec.ServiceAccountName:
		return n.forbid("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)", n.Namespace+"/"+p.Name, r.Spec.ServiceAccountName, p.Spec.ServiceAccountName)
	}
	if sa := view.Get[*corev1.ServiceAccount](n.Snapshot, kind.ServiceAccount, n.Namespace, r.Spec.ServiceAccountName); sa == nil || sa.UID != r.Spec.ServiceAccountUID {
		return n.forbid("PodCertificateRequest for pod %q contains serviceAccountUID (%q) that differs from that of service account %q", n.Namespace+"/"+p.Name, r.Spec.ServiceAccountUID, r.Spec.ServiceAccountName)
	}
	if node := view.Get[*corev1.Node](n.Snapshot, kind.Node, "", n.self); node == nil || node.UID != r.Spec.NodeUID {
		return n.forbid("PodCertificateRequest for pod %q contains nodeUID (%q) that differs from that of node %q", n.Namespace+"/"+p.Name, r.Spec.NodeUID, n.self)
	}
	// The pod must ask for it: a projected volume for this signer.
	for _, v := range p.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, src := range v.Projected.Sources {
			if src.PodCertificate != nil && src.PodCertificate.SignerName == r.Spec.SignerName {
				return nil
			}
		}
	}
	return n.forbid("pod %q does not have a podCertificate volume for signer %q", n.Namespace+"/"+p.Name, r.Spec.SignerName)
}

// request: a certificate for a node is for the node that asks.
func (n *restricted) request() error {
	c, _ := n.Object.(*certificatesv1.CertificateSigningRequest)
	if n.Operation != Create || c == nil {
		return nil
	}
	switch c.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName:
		block, _ := pem.Decode(c.Spec.Request)
		if block == nil {
			return n.forbid("unable to parse csr: PEM block type must be CERTIFICATE REQUEST")
		}
		x, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return n.forbid("unable to parse csr: %w", err)
		}
		if x.Subject.CommonName != n.User.Name {
			return n.forbid("can only create a node CSR with CN=%s", n.User.Name)
		}
	}
	return nil
}
