package validate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ClusterTrustBundle checks a new bundle of certificates.
func ClusterTrustBundle(b *certificatesv1.ClusterTrustBundle) field.ErrorList {
	return append(trustBundleMeta(b), trustAnchors(b.Spec.TrustBundle, spec().Child("trustBundle"))...)
}

func trustBundleMeta(b *certificatesv1.ClusterTrustBundle) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, false, trustBundleName(b.Spec.SignerName), meta())
	if b.Spec.SignerName != "" {
		errs = append(errs, signerName(b.Spec.SignerName, spec().Child("signerName"))...)
	}
	return errs
}

func trustAnchors(text string, path *field.Path) field.ErrorList {
	const shown = "<value omitted>"
	if limit := 1024 * 1024; len(text) > limit {
		return field.ErrorList{field.TooLong(path, "", limit)}
	}
	var errs field.ErrorList
	var order []string
	places := map[string][]int{}
	for i, rest := 0, []byte(text); ; i++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		bad := ""
		if block.Type != "CERTIFICATE" {
			bad = "has bad block type: " + block.Type
		} else if len(block.Headers) != 0 {
			bad = "has PEM block headers"
		} else if cert, err := x509.ParseCertificate(block.Bytes); err != nil {
			bad = "does not parse as X.509"
		} else if !cert.IsCA {
			bad = "does not have the CA bit set"
		} else if !cert.BasicConstraintsValid {
			bad = "has invalid basic constraints"
		}
		if bad != "" {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("entry %d %s", i, bad)))
			continue
		}
		key := string(block.Bytes)
		if places[key] == nil {
			order = append(order, key)
		}
		places[key] = append(places[key], i)
	}
	if len(errs) > 0 {
		return errs
	}
	if len(order) == 0 {
		errs = append(errs, field.Invalid(path, shown, "at least one trust anchor must be provided"))
	}
	for _, key := range order {
		if len(places[key]) > 1 {
			errs = append(errs, field.Invalid(path, shown, fmt.Sprintf("duplicate trust anchor (indices %v)", places[key])))
		}
	}
	return errs
}

// ClusterTrustBundleUpdate checks an update of a bundle: its signer stays, and
// anchors that did not change are not read again.
func ClusterTrustBundleUpdate(new, old *certificatesv1.ClusterTrustBundle) field.ErrorList {
	errs := trustBundleMeta(new)
	if new.Spec.TrustBundle != old.Spec.TrustBundle {
		errs = append(errs, trustAnchors(new.Spec.TrustBundle, spec().Child("trustBundle"))...)
	}
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	return append(errs, unchanged(new.Spec.SignerName, old.Spec.SignerName, spec().Child("signerName"))...)
}

// Bounds of a pod's certificate request.
const (
	minCertificateSeconds  = 3600
	maxCertificateSeconds  = 91 * 24 * 3600
	maxKubernetesSeconds   = 24 * 3600
	maxStubRequestBytes    = 10 * 1024
	maxCertificateChain    = 100 * 1024
	maxUserAnnotationBytes = 256 * 1024
)

// PodCertificateRequest checks a new request of a node for a pod's certificate,
// also that the node holds the key: the request in it is signed with it.
func PodCertificateRequest(r *certificatesv1.PodCertificateRequest) field.ErrorList {
	errs := ObjectMeta(&r.ObjectMeta, true, func(string, bool) []string { return nil }, meta())
	s, path := &r.Spec, spec()
	errs = append(errs, signerName(s.SignerName, path.Child("signerName"))...)
	errs = append(errs, invalid(path.Child("podName"), s.PodName, NameDNSSubdomain(s.PodName, false))...)
	errs = append(errs, uidText(string(s.PodUID), path.Child("podUID"))...)
	errs = append(errs, invalid(path.Child("serviceAccountName"), s.ServiceAccountName, NameDNSSubdomain(s.ServiceAccountName, false))...)
	errs = append(errs, uidText(string(s.ServiceAccountUID), path.Child("serviceAccountUID"))...)
	errs = append(errs, invalid(path.Child("nodeName"), s.NodeName, NameDNSSubdomain(string(s.NodeName), false))...)
	errs = append(errs, uidText(string(s.NodeUID), path.Child("nodeUID"))...)
	errs = append(errs, certificateSeconds(s.SignerName, s.MaxExpirationSeconds, path.Child("maxExpirationSeconds"))...)
	errs = append(errs, userAnnotations(s.UnverifiedUserAnnotations, path.Child("unverifiedUserAnnotations"))...)
	return append(errs, stubRequest(s.StubPKCS10Request, path.Child("stubPKCS10Request"))...)
}

func uidText(uid string, path *field.Path) field.ErrorList {
	if uid == "" {
		return field.ErrorList{field.Required(path, "must not be empty")}
	}
	if limit := 128; len(uid) > limit {
		return field.ErrorList{field.TooLong(path, "", limit)}
	}
	return nil
}

func certificateSeconds(signer string, seconds *int32, path *field.Path) field.ErrorList {
	if seconds == nil {
		return field.ErrorList{field.Required(path, "must be set")}
	}
	most := int32(maxCertificateSeconds)
	if strings.HasPrefix(signer, "kubernetes.io/") {
		most = maxKubernetesSeconds
	}
	if *seconds < minCertificateSeconds || *seconds > most {
		return field.ErrorList{field.Invalid(path, *seconds, fmt.Sprintf("must be in the range [%d, %d]", minCertificateSeconds, most))}
	}
	return nil
}

// userAnnotations checks what the author of a pod tells the signer: annotations
// whose keys all have a domain.
func userAnnotations(values map[string]string, path *field.Path) field.ErrorList {
	errs := annotations(values, path)
	size := 0
	for _, key := range sortedKeys(values) {
		size += len(key) + len(values[key])
		if !strings.Contains(key, "/") {
			errs = append(errs, field.Invalid(path, key, "must be a domain-prefixed key"))
		}
	}
	if size > maxUserAnnotationBytes {
		errs = append(errs, field.TooLong(path, "", maxUserAnnotationBytes))
	}
	return errs
}

func stubRequest(der []byte, path *field.Path) field.ErrorList {
	if len(der) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	if len(der) > maxStubRequestBytes {
		return field.ErrorList{field.TooLong(path, "", maxStubRequestBytes)}
	}
	const shown = "<value omitted>"
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return field.ErrorList{field.Invalid(path, shown, "must be a valid PKCS#10 CSR")}
	}
	switch key := request.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			return field.ErrorList{field.Invalid(path, "curve "+key.Curve.Params().Name, "elliptic public keys must use curve P256, P384, or P521")}
		}
	case *rsa.PublicKey:
		if bits := key.Size() * 8; bits != 3072 && bits != 4096 {
			return field.ErrorList{field.Invalid(path, fmt.Sprintf("%d-bit modulus", bits), "RSA keys must have modulus size 3072 or 4096")}
		}
	default:
		return field.ErrorList{field.Invalid(path, shown, "unknown public key type; supported types are Ed25519, ECDSA, and RSA")}
	}
	if err := request.CheckSignature(); err != nil {
		return field.ErrorList{field.Invalid(path, shown, "could not verify proof-of-possession signature")}
	}
	return nil
}

// PodCertificateRequestUpdate checks an update of a request: its spec stays.
func PodCertificateRequestUpdate(new, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, unchanged(new.Spec, old.Spec, spec())...)
}

// PodCertificateRequestStatusUpdate checks what a signer answers: one of Issued,
// Denied and Failed, once; with a certificate for the request's key whose times
// the status repeats. That they are near the server's own time is checked by
// PodCertificateTimes.
func PodCertificateRequestStatusUpdate(new, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	if errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()); len(errs) > 0 {
		return errs
	}
	path := status().Child("conditions")
	errs := metavalidation.ValidateConditions(new.Status.Conditions, path)
	decided := 0
	for i, c := range new.Status.Conditions {
		if !slices.Contains(certificateVerdicts, c.Type) {
			errs = append(errs, field.NotSupported(path.Index(i).Child("type"), c.Type, certificateVerdicts))
			continue
		}
		if decided++; decided > 1 {
			errs = append(errs, field.Invalid(path.Index(i).Child("type"), c.Type, `There may be at most one condition with type "Issued", "Denied", or "Failed"`))
		}
		if c.Status != metav1.ConditionTrue {
			errs = append(errs, field.NotSupported(path.Index(i).Child("status"), c.Status, []metav1.ConditionStatus{metav1.ConditionTrue}))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if CertificateVerdict(old) != "" {
		return unchanged(new.Status, old.Status, status())
	}
	switch CertificateVerdict(new) {
	case certificatesv1.PodCertificateRequestConditionTypeIssued:
		return issued(new)
	case "":
		return unchanged(new.Status, old.Status, status())
	}
	want := certificatesv1.PodCertificateRequestStatus{Conditions: new.Status.Conditions}
	if !equality.Semantic.DeepEqual(new.Status, want) {
		return field.ErrorList{field.Invalid(status(), "<value omitted>", "non-condition status fields must be empty when denying or failing the PodCertificateRequest")}
	}
	return nil
}

var certificateVerdicts = []string{certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed, certificatesv1.PodCertificateRequestConditionTypeIssued}

// CertificateVerdict is the condition that ended a request, or "".
func CertificateVerdict(r *certificatesv1.PodCertificateRequest) string {
	for _, c := range r.Status.Conditions {
		if c.Status == metav1.ConditionTrue && slices.Contains(certificateVerdicts, c.Type) {
			return c.Type
		}
	}
	return ""
}

// PodCertificateTimes checks that a certificate which is being issued starts near
// now, within five minutes.
func PodCertificateTimes(new, old *certificatesv1.PodCertificateRequest, now time.Time) field.ErrorList {
	t := new.Status.NotBefore
	if new.Status.CertificateChain == old.Status.CertificateChain || t == nil {
		return nil
	}
	if d := t.Sub(now); d <= -5*time.Minute || d >= 5*time.Minute {
		return field.ErrorList{field.Invalid(status().Child("notBefore"), t.UTC(), "must be set to within 5 minutes of kube-apiserver's current time")}
	}
	return nil
}

func issued(r *certificatesv1.PodCertificateRequest) field.ErrorList {
	chain := status().Child("certificateChain")
	bad := func(path *field.Path, value any, msg string) field.ErrorList {
		return field.ErrorList{field.Invalid(path, value, msg)}
	}
	const shown = "<value omitted>"
	if len(r.Status.CertificateChain) > maxCertificateChain {
		return field.ErrorList{field.TooLong(chain, "", maxCertificateChain)}
	}
	var leaf *x509.Certificate
	for rest := []byte(r.Status.CertificateChain); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return bad(chain, shown, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil && leaf == nil:
			return bad(chain, shown, "leaf certificate does not parse as valid X.509")
		case err != nil:
			return bad(chain, shown, "intermediate certificate does not parse as valid X.509")
		case leaf == nil:
			leaf = cert
		}
	}
	if leaf == nil {
		return bad(chain, shown, "issued certificate chain must contain at least one certificate")
	}
	if request, err := x509.ParseCertificateRequest(r.Spec.StubPKCS10Request); err != nil || !samePublicKey(request.PublicKey, leaf.PublicKey) {
		return bad(chain, shown, "leaf certificate was not issued to the requested public key")
	}
	s := &r.Status
	if s.NotBefore == nil {
		return field.ErrorList{field.Required(status().Child("notBefore"), "must be present and consistent with the issued certificate")}
	}
	if !s.NotBefore.Time.Equal(leaf.NotBefore) {
		return bad(status().Child("notBefore"), s.NotBefore.UTC(), "must be set to the NotBefore time encoded in the leaf certificate")
	}
	if s.NotAfter == nil {
		return field.ErrorList{field.Required(status().Child("notAfter"), "must be present and consistent with the issued certificate")}
	}
	if !s.NotAfter.Time.Equal(leaf.NotAfter) {
		return bad(status().Child("notAfter"), s.NotAfter.UTC(), "must be set to the NotAfter time encoded in the leaf certificate")
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	if life < time.Hour {
		return bad(chain, life.String(), "leaf certificate lifetime must be >= 1 hour")
	}
	if most := r.Spec.MaxExpirationSeconds; most != nil && life > time.Duration(*most)*time.Second {
		return bad(chain, life.String(), fmt.Sprintf("leaf certificate lifetime must be <= spec.maxExpirationSeconds (%v)", *most))
	}
	refresh := status().Child("beginRefreshAt")
	switch {
	case s.BeginRefreshAt == nil:
		return field.ErrorList{field.Required(refresh, "must be present and at least 10 minutes before the certificate expires")}
	case s.BeginRefreshAt.Time.Before(leaf.NotBefore.Add(10 * time.Minute)):
		return bad(refresh, s.BeginRefreshAt.UTC(), "must be at least 10 minutes after status.notBefore")
	case s.BeginRefreshAt.Time.After(leaf.NotAfter.Add(-10 * time.Minute)):
		return bad(refresh, s.BeginRefreshAt.UTC(), "must be at least 10 minutes before status.notAfter")
	}
	return nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	x, err := x509.MarshalPKIXPublicKey(a)
	if err != nil {
		return false
	}
	y, err := x509.MarshalPKIXPublicKey(b)
	return err == nil && bytes.Equal(x, y)
}
