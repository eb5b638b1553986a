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
	"proa.dev/kind/validate"
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
		if r.Operation != Update || r.Sub != "status" {
			return nil
		}
		if r.Kind.Root() == kind.PodCertificateRequest {
			return podCertificate(ctx, z, r)
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
	if maySign(ctx, z, r, verb, name) {
		return nil
	}
	return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("user not permitted to %s requests with signerName %q", verb, name))
}

// ClusterTrustBundleAttest asks that who writes trust anchors for a signer may
// speak for it: the verb attest on signers (KEP-3257).
func ClusterTrustBundleAttest(z auth.Authorizer) Plugin {
	return Plugin{Name: "ClusterTrustBundleAttest", Validate: func(ctx context.Context, r *Request) error {
		b, _ := r.Object.(*certificatesv1.ClusterTrustBundle)
		if r.Kind.Root() != kind.ClusterTrustBundle || b == nil || r.Operation != Create && r.Operation != Update || b.Spec.SignerName == "" {
			return nil
		}
		// The garbage collector and others that change metadata only need not.
		if old, _ := r.Old.(*certificatesv1.ClusterTrustBundle); old != nil && apiequality.Semantic.DeepEqual(old.Spec, b.Spec) {
			return nil
		}
		if !maySign(ctx, z, r, "attest", b.Spec.SignerName) {
			return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("user not permitted to attest for signerName %q", b.Spec.SignerName))
		}
		return nil
	}}
}

// podCertificate: who issues a certificate for a pod may do so for its signer, and
// the certificate's times are of now (KEP-4317).
func podCertificate(ctx context.Context, z auth.Authorizer, r *Request) error {
	now, _ := r.Object.(*certificatesv1.PodCertificateRequest)
	old, _ := r.Old.(*certificatesv1.PodCertificateRequest)
	if now == nil || old == nil || apiequality.Semantic.DeepEqual(now.Status, old.Status) {
		return nil
	}
	if !maySign(ctx, z, r, "sign", old.Spec.SignerName) {
		return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("user not permitted to sign requests with signerName %q", old.Spec.SignerName))
	}
	if errs := validate.PodCertificateTimes(now, old, r.Now); len(errs) > 0 {
		return apierrors.NewInvalid(r.Kind.GVK().GroupKind(), r.Name, errs)
	}
	return nil
}

// maySign: the verb for this signer by name, or for all of its domain.
func maySign(ctx context.Context, z auth.Authorizer, r *Request, verb, name string) bool {
	domain, _, _ := strings.Cut(name, "/")
	for _, n := range []string{name, domain + "/*"} {
		if d, _, err := z.Authorize(ctx, auth.Attributes{User: r.User, Verb: verb, Group: certificatesv1.GroupName, Version: "*", Resource: "signers", Name: n}); d == auth.Allow && err == nil {
			return true
		}
	}
	return false
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
