package kind

import (
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"proa.dev/kind/validate"
)

// CertificateSigningRequest asks a signer for a certificate. Who asks (spec's
// username, uid, groups and extra) is written by the server after PrepareCreate.
var CertificateSigningRequest = define[certificatesv1.CertificateSigningRequestList](Row[*certificatesv1.CertificateSigningRequest]{
	Names: Names{
		Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest", Plural: "certificatesigningrequests",
		ShortNames: []string{"csr"},
		Scope:      Cluster,
		Prefix:     "certificatesigningrequests",
	},
	Validate:            validate.CertificateSigningRequest,
	ValidateUpdate:      validate.CertificateSigningRequestUpdate,
	UnconditionalUpdate: true,
	Default: func(c *certificatesv1.CertificateSigningRequest) {
		for i := range c.Status.Conditions {
			fill(&c.Status.Conditions[i].Status, corev1.ConditionTrue)
		}
	},
	PrepareCreate: func(c *certificatesv1.CertificateSigningRequest) {
		c.Spec.Username, c.Spec.UID, c.Spec.Groups, c.Spec.Extra = "", "", nil, nil
		c.Status = certificatesv1.CertificateSigningRequestStatus{}
	},
	PrepareUpdate: func(new, old *certificatesv1.CertificateSigningRequest) {
		new.Spec, new.Status = old.Spec, old.Status
	},
	Subresources: []Subresource{
		{Name: "approval", Kind: "CertificateSigningRequest", Verbs: []string{"get", "patch", "update"},
			Door: (&DoorOf[*certificatesv1.CertificateSigningRequest]{
				PrepareUpdate: func(new, old *certificatesv1.CertificateSigningRequest) {
					conditions := new.Status.Conditions
					new.Spec, new.Status = old.Spec, old.Status
					new.Status.Conditions = conditions
				},
				ValidateUpdate: validate.CertificateSigningRequestApprovalUpdate,
			}).erase()},
	},
	Status: &DoorOf[*certificatesv1.CertificateSigningRequest]{
		ValidateUpdate: validate.CertificateSigningRequestStatusUpdate,
		PrepareUpdate:  func(new, old *certificatesv1.CertificateSigningRequest) { new.Spec = old.Spec },
	},
	Selectable: map[string]func(*certificatesv1.CertificateSigningRequest) string{
		"spec.signerName": func(c *certificatesv1.CertificateSigningRequest) string { return c.Spec.SignerName },
	},
	Columns: columnsExactly("Name, Age, SignerName, Requestor, RequestedDuration, Condition"),
	Cells: func(c *certificatesv1.CertificateSigningRequest, now time.Time) []any {
		wanted := none
		if c.Spec.ExpirationSeconds != nil {
			wanted = duration.HumanDuration(time.Duration(*c.Spec.ExpirationSeconds) * time.Second)
		}
		return []any{c.Name, age(c, now), orNone(c.Spec.SignerName), c.Spec.Username, wanted, requestState(c)}
	},
})

func requestState(c *certificatesv1.CertificateSigningRequest) string {
	has := func(kind certificatesv1.RequestConditionType) bool {
		return slices.ContainsFunc(c.Status.Conditions, func(x certificatesv1.CertificateSigningRequestCondition) bool { return x.Type == kind })
	}
	state := []string{"Pending"}
	switch {
	case has(certificatesv1.CertificateDenied):
		state[0] = "Denied"
	case has(certificatesv1.CertificateApproved):
		state[0] = "Approved"
	}
	if has(certificatesv1.CertificateFailed) {
		state = append(state, "Failed")
	}
	if len(c.Status.Certificate) > 0 {
		state = append(state, "Issued")
	}
	return strings.Join(state, ",")
}

// ClusterTrustBundle is a set of trust anchors.
var ClusterTrustBundle = define[certificatesv1.ClusterTrustBundleList](Row[*certificatesv1.ClusterTrustBundle]{
	Names: Names{
		Group: "certificates.k8s.io", Version: "v1", Kind: "ClusterTrustBundle", Plural: "clustertrustbundles",
		Scope:  Cluster,
		Prefix: "clustertrustbundles",
	},
	Validate:       validate.ClusterTrustBundle,
	ValidateUpdate: validate.ClusterTrustBundleUpdate,
	Selectable: map[string]func(*certificatesv1.ClusterTrustBundle) string{
		"spec.signerName": func(b *certificatesv1.ClusterTrustBundle) string { return b.Spec.SignerName },
	},
	Columns: columnsExactly("Name, SignerName"),
	Cells: func(b *certificatesv1.ClusterTrustBundle, _ time.Time) []any {
		return []any{b.Name, orNone(b.Spec.SignerName)}
	},
})

// PodCertificateRequest asks a signer for a certificate of a pod.
var PodCertificateRequest = define[certificatesv1.PodCertificateRequestList](Row[*certificatesv1.PodCertificateRequest]{
	Names: Names{
		Group: "certificates.k8s.io", Version: "v1", Kind: "PodCertificateRequest", Plural: "podcertificaterequests",
		Scope:  Namespaced,
		Prefix: "podcertificaterequests",
	},
	Validate:       validate.PodCertificateRequest,
	ValidateUpdate: validate.PodCertificateRequestUpdate,
	Default: func(r *certificatesv1.PodCertificateRequest) {
		fillPtr(&r.Spec.MaxExpirationSeconds, 24*60*60)
	},
	PrepareCreate: func(r *certificatesv1.PodCertificateRequest) {
		r.Status = certificatesv1.PodCertificateRequestStatus{}
	},
	PrepareUpdate: func(new, old *certificatesv1.PodCertificateRequest) { new.Status = old.Status },
	Status: &DoorOf[*certificatesv1.PodCertificateRequest]{
		ValidateUpdate: validate.PodCertificateRequestStatusUpdate,
		PrepareUpdate:  func(new, old *certificatesv1.PodCertificateRequest) { new.Spec = old.Spec },
	},
	Selectable: map[string]func(*certificatesv1.PodCertificateRequest) string{
		"spec.signerName": func(r *certificatesv1.PodCertificateRequest) string { return r.Spec.SignerName },
		"spec.podName":    func(r *certificatesv1.PodCertificateRequest) string { return r.Spec.PodName },
		"spec.nodeName":   func(r *certificatesv1.PodCertificateRequest) string { return string(r.Spec.NodeName) },
	},
	Columns: columns("PodName, ServiceAccountName, NodeName, SignerName, State, Reason"),
	Cells: func(r *certificatesv1.PodCertificateRequest, now time.Time) []any {
		state, reason := "Pending", ""
		for _, c := range r.Status.Conditions {
			if c.Type == validate.CertificateVerdict(r) {
				state, reason = c.Type, c.Reason
			}
		}
		return []any{r.Name, r.Spec.PodName, r.Spec.ServiceAccountName, string(r.Spec.NodeName), r.Spec.SignerName, state, reason, age(r, now)}
	},
})
