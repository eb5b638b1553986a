package admit

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
)

// CertificateApproval asks that who approves or denies a request may do so for
// its signer: the verb approve on signers (docs, "Certificate Signing Requests").
func CertificateApproval(z auth.Authorizer) Plugin {
	return Plugin{Name: "CertificateApproval", Validate: func(ctx context.Context, r *Request) error {
		if r.Kind.Root() != kind.CertificateSigningRequest || r.Operation != Update || r.Sub != "approval" {
			return nil
		}
		return signer(ctx, z, r, "approve")
	}}
}

// CertificateSigning asks that who issues a certificate, or says that it failed,
// may do so for its signer: the verb sign on signers.
func CertificateSigning(z auth.Authorizer) Plugin {
	return Plugin{Name: "CertificateSigning", Validate: func(ctx context.Context, r *Request) error {
		if r.Kind.Root() != kind.CertificateSigningRequest || r.Operation != Update || r.Sub != "status" {
			return nil
		}
		now, _ := r.Object.(*certificatesv1.CertificateSigningRequest)
		old, _ := r.Old.(*certificatesv1.CertificateSigningRequest)
		if now == nil || old == nil || apiequality.Semantic.DeepEqual(now.Status, old.Status) {
			return nil
		}
		return signer(ctx, z, r, "sign")
	}}
}

// signer: the verb for this signer by name, or for all of its domain.
func signer(ctx context.Context, z auth.Authorizer, r *Request, verb string) error {
	// The old one: a signer's name cannot change, and an update must not choose it.
	old, _ := r.Old.(*certificatesv1.CertificateSigningRequest)
	if old == nil {
		return nil
	}
	name := old.Spec.SignerName
	domain, _, _ := strings.Cut(name, "/")
	for _, n := range []string{name, domain + "/*"} {
		d, _, err := z.Authorize(ctx, auth.Attributes{User: r.User, Verb: verb, Group: certificatesv1.GroupName, Version: "*", Resource: "signers", Name: n})
		if d == auth.Allow && err == nil {
			return nil
		}
	}
	return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("user not permitted to %s requests with signerName %q", verb, name))
}

// CertificateSubjectRestriction refuses requests for a client certificate of the
// administrators' group, which no policy could take back.
func CertificateSubjectRestriction() Plugin {
	return Plugin{Name: "CertificateSubjectRestriction", Validate: func(_ context.Context, r *Request) error {
		c, _ := r.Object.(*certificatesv1.CertificateSigningRequest)
		if c == nil || r.Operation != Create || r.Sub != "" || c.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
			return nil
		}
		block, _ := pem.Decode(c.Spec.Request)
		if block == nil {
			return nil // validation says so
		}
		x, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return nil
		}
		if slices.Contains(x.Subject.Organization, auth.Masters) {
			return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, errors.New("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"))
		}
		return nil
	}}
}
