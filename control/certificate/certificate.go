// Package certificate holds the controllers around certificate requests that need
// no key (Kubernetes docs, "Certificate Signing Requests", "TLS bootstrapping",
// "Cluster trust bundles"; KEP-3257, KEP-4317):
//
//	approver     requests of nodes for client certificates, if who asks may create
//	             certificatesigningrequests/selfnodeclient or /nodeclient
//	cleaner      requests that are settled for an hour, wait for a day, or whose
//	             certificate is over
//	pod cleaner  pod certificate requests half an hour after they were made
//	publisher    the authority of the API server's certificate as a ClusterTrustBundle
//
// Signing needs the authority's key: package cluster/signer.
package certificate

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Allowed says whether who made a request may create certificatesigningrequests
// with this subresource.
type Allowed func(spec *certificatesv1.CertificateSigningRequestSpec, sub string) bool

// again is when a request that was not allowed is looked at once more: a binding
// may have come.
const again = 30 * time.Second

// ApproverPart registers the approver; it plans per request.
func ApproverPart(allowed Allowed) control.Part {
	return control.Part{
		Name: "certificatesigningrequest-approving-controller", Kind: kind.CertificateSigningRequest,
		Plan: func(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
			return Approve(s, ref, now, allowed)
		},
		Writes: []control.Write{{Kind: kind.CertificateSigningRequest, Sub: "approval", Verbs: []string{"update"}}},
	}
}

// Approve decides about one request.
func Approve(s view.Snapshot, ref view.Ref, now time.Time, allowed Allowed) (act.List, time.Time) {
	r := view.Get[*certificatesv1.CertificateSigningRequest](s, kind.CertificateSigningRequest, "", ref.Name)
	if r == nil || r.DeletionTimestamp != nil || len(r.Status.Certificate) > 0 || len(r.Status.Conditions) > 0 || !nodeClient(r) {
		return nil, time.Time{}
	}
	for _, c := range []struct {
		sub, message string
		ours         bool
	}{
		{"selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.", r.Spec.Username == commonName(r)},
		{"nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.", true},
	} {
		if !c.ours || !allowed(&r.Spec, c.sub) {
			continue
		}
		want := r.DeepCopy()
		t := metav1.NewTime(now)
		want.Status.Conditions = append(want.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved,
			Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: c.message, LastUpdateTime: t, LastTransitionTime: t})
		return act.List{act.Update{Kind: kind.CertificateSigningRequest, Object: want, Sub: "approval", Reason: "a node's client certificate"}}, time.Time{}
	}
	return nil, now.Add(again)
}

func parse(r *certificatesv1.CertificateSigningRequest) *x509.CertificateRequest {
	block, _ := pem.Decode(r.Spec.Request)
	if block == nil {
		return nil
	}
	x, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil
	}
	return x
}

func commonName(r *certificatesv1.CertificateSigningRequest) string {
	if x := parse(r); x != nil {
		return x.Subject.CommonName
	}
	return ""
}

// nodeClient: a request that the signer of nodes' client certificates would sign.
func nodeClient(r *certificatesv1.CertificateSigningRequest) bool {
	if r.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return false
	}
	x := parse(r)
	if x == nil || !slices.Equal(x.Subject.Organization, []string{"system:nodes"}) || !strings.HasPrefix(x.Subject.CommonName, "system:node:") ||
		len(x.DNSNames)+len(x.EmailAddresses)+len(x.IPAddresses)+len(x.URIs) > 0 {
		return false
	}
	has := func(u certificatesv1.KeyUsage) bool { return slices.Contains(r.Spec.Usages, u) }
	wanted := 2
	if has(certificatesv1.UsageKeyEncipherment) {
		wanted++
	}
	return has(certificatesv1.UsageDigitalSignature) && has(certificatesv1.UsageClientAuth) && len(r.Spec.Usages) == wanted
}

// How long requests stay, as upstream.
const (
	settledStays = time.Hour
	pendingStays = 24 * time.Hour
	podStays     = 30 * time.Minute
)

// CleanerPart registers the cleaner of certificate signing requests.
func CleanerPart() control.Part {
	return control.Part{
		Name: "certificatesigningrequest-cleaner-controller", Kind: kind.CertificateSigningRequest, Plan: Clean,
		Writes: []control.Write{{Kind: kind.CertificateSigningRequest, Verbs: []string{"delete"}}},
	}
}

// Clean takes one request away when its time is over.
func Clean(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	r := view.Get[*certificatesv1.CertificateSigningRequest](s, kind.CertificateSigningRequest, "", ref.Name)
	if r == nil || r.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	at, why := r.CreationTimestamp.Add(pendingStays), "nobody settled it"
	for _, c := range r.Status.Conditions {
		if end := c.LastUpdateTime.Add(settledStays); !c.LastUpdateTime.IsZero() && end.Before(at) {
			at, why = end, "it is settled"
		}
	}
	if block, _ := pem.Decode(r.Status.Certificate); block != nil {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && c.NotAfter.Before(at) {
			at, why = c.NotAfter, "its certificate is over"
		}
	}
	if now.Before(at) {
		return nil, at
	}
	return act.List{act.Delete{Target: ref, UID: r.UID, Reason: why}}, time.Time{}
}

// PodCleanerPart registers the cleaner of pod certificate requests.
func PodCleanerPart() control.Part {
	return control.Part{
		Name: "podcertificaterequest-cleaner-controller", Kind: kind.PodCertificateRequest, Plan: CleanPod,
		When:   func(old, _ kind.Object) bool { return old == nil },
		Writes: []control.Write{{Kind: kind.PodCertificateRequest, Verbs: []string{"delete"}}},
	}
}

// CleanPod takes one pod certificate request away when its time is over.
func CleanPod(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	r := view.Get[*certificatesv1.PodCertificateRequest](s, kind.PodCertificateRequest, ref.Namespace, ref.Name)
	if r == nil || r.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	if at := r.CreationTimestamp.Add(podStays); now.Before(at) {
		return nil, at
	}
	return act.List{act.Delete{Target: ref, UID: r.UID, Reason: "it is old"}}, time.Time{}
}

// ServingSigner is the name under which the API server's authority is published.
const ServingSigner = "kubernetes.io/kube-apiserver-serving"

// PublisherPart registers the publisher of the authority (PEM). It plans for all
// bundles at once, under the namespace kube-system.
func PublisherPart(ca string) control.Part {
	system := []view.Ref{{Kind: kind.Namespace, Name: metav1.NamespaceSystem}}
	return control.Part{
		Name: "kube-apiserver-serving-clustertrustbundle-publisher-controller", Kind: kind.Namespace,
		When: func(old, new kind.Object) bool { return old == nil && new.GetName() == metav1.NamespaceSystem },
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			if ref.Name != metav1.NamespaceSystem || ca == "" {
				return nil, time.Time{}
			}
			return Publish(s, ca), time.Time{}
		},
		Wakes: []control.Wake{{Kind: kind.ClusterTrustBundle, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			if b, ok := o.(*certificatesv1.ClusterTrustBundle); !ok || b.Spec.SignerName != ServingSigner {
				return nil
			}
			return system
		}}},
		Writes: []control.Write{{Kind: kind.ClusterTrustBundle, Verbs: []string{"create", "update", "delete"}}},
	}
}

// Publish makes or mends the bundle and takes those of earlier authorities away.
func Publish(s view.Snapshot, ca string) act.List {
	sum := sha256.Sum256([]byte(ca))
	name := fmt.Sprintf("%s:%x", strings.ReplaceAll(ServingSigner, "/", ":"), sum[:12])
	var actions act.List
	switch have := view.Get[*certificatesv1.ClusterTrustBundle](s, kind.ClusterTrustBundle, "", name); {
	case have == nil:
		actions = append(actions, act.Create{Kind: kind.ClusterTrustBundle, Reason: "the API server's authority", Object: &certificatesv1.ClusterTrustBundle{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: ServingSigner, TrustBundle: ca}}})
	case have.Spec.TrustBundle != ca && have.DeletionTimestamp == nil:
		want := have.DeepCopy()
		want.Spec.TrustBundle = ca
		actions = append(actions, act.Update{Kind: kind.ClusterTrustBundle, Object: want, Reason: "content was changed"})
	}
	for b := range view.List[*certificatesv1.ClusterTrustBundle](s, kind.ClusterTrustBundle, "") {
		if b.Spec.SignerName == ServingSigner && b.Name != name && b.DeletionTimestamp == nil {
			actions = append(actions, act.Delete{Target: view.RefOf(kind.ClusterTrustBundle, b), UID: b.UID, Reason: "of an earlier authority"})
		}
	}
	return actions
}
