package validate

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TokenRequest checks what is asked of a service account token.
func TokenRequest(t *authenticationv1.TokenRequest) field.ErrorList {
	var errs field.ErrorList
	path := spec().Child("expirationSeconds")
	if s := t.Spec.ExpirationSeconds; s != nil {
		if *s < minTokenSeconds {
			errs = append(errs, field.Invalid(path, *s, "may not specify a duration less than 10 minutes"))
		}
		if *s > 1<<32 {
			errs = append(errs, field.Invalid(path, *s, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	return errs
}

// TokenReview checks a question about a token.
func TokenReview(t *authenticationv1.TokenReview) field.ErrorList {
	return required(t.Spec.Token, spec().Child("token"))
}

func emptyMeta(m metav1.ObjectMeta) field.ErrorList {
	m.ManagedFields = nil
	if !equality.Semantic.DeepEqual(metav1.ObjectMeta{}, m) {
		return field.ErrorList{field.Invalid(meta(), m, "must be empty")}
	}
	return nil
}

func accessAttributes(resource *authorizationv1.ResourceAttributes, other *authorizationv1.NonResourceAttributes) field.ErrorList {
	var errs field.ErrorList
	if resource != nil && other != nil {
		errs = append(errs, field.Invalid(spec().Child("nonResourceAttributes"), other, "cannot be specified in combination with resourceAttributes"))
	}
	if resource == nil && other == nil {
		errs = append(errs, field.Invalid(spec().Child("resourceAttributes"), other, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if resource != nil {
		p := spec().Child("resourceAttributes")
		if f := resource.FieldSelector; f != nil {
			errs = append(errs, oneSelector(f.RawSelector, len(f.Requirements), p.Child("fieldSelector"))...)
		}
		if l := resource.LabelSelector; l != nil {
			errs = append(errs, oneSelector(l.RawSelector, len(l.Requirements), p.Child("labelSelector"))...)
		}
	}
	return errs
}

func oneSelector(raw string, requirements int, path *field.Path) field.ErrorList {
	if raw != "" && requirements > 0 {
		return field.ErrorList{field.Invalid(path.Child("rawSelector"), raw, "may not specified at the same time as requirements")}
	}
	if raw == "" && requirements == 0 {
		return field.ErrorList{field.Required(path.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", path))}
	}
	return nil
}

// SubjectAccessReview checks a question about anyone's rights.
func SubjectAccessReview(r *authorizationv1.SubjectAccessReview) field.ErrorList {
	return append(accessSpec(&r.Spec), emptyMeta(r.ObjectMeta)...)
}

func accessSpec(s *authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	errs := accessAttributes(s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(spec().Child("user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

// SelfSubjectAccessReview checks a question about the caller's own rights.
func SelfSubjectAccessReview(r *authorizationv1.SelfSubjectAccessReview) field.ErrorList {
	return append(accessAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes), emptyMeta(r.ObjectMeta)...)
}

// LocalSubjectAccessReview checks a question about anyone's rights in one namespace.
func LocalSubjectAccessReview(r *authorizationv1.LocalSubjectAccessReview) field.ErrorList {
	errs := accessSpec(&r.Spec)
	m := r.ObjectMeta
	m.Namespace = ""
	errs = append(errs, emptyMeta(m)...)
	if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != r.Namespace {
		errs = append(errs, field.Invalid(spec().Child("resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace"))
	}
	if r.Spec.NonResourceAttributes != nil {
		errs = append(errs, field.Invalid(spec().Child("nonResourceAttributes"), r.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	}
	return errs
}

var keyUsages = sets.New(certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment,
	certificatesv1.UsageKeyEncipherment, certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment, certificatesv1.UsageCertSign,
	certificatesv1.UsageCRLSign, certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly, certificatesv1.UsageAny,
	certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning, certificatesv1.UsageEmailProtection,
	certificatesv1.UsageSMIME, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser,
	certificatesv1.UsageTimestamping, certificatesv1.UsageOCSPSigning, certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC)

// anyName is for kinds whose names were never restricted.
func anyName(string, bool) []string { return nil }

// CertificateSigningRequest checks a new request.
func CertificateSigningRequest(c *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, anyName, meta())
	path := spec()
	if err := parseRequest(c.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(path.Child("request"), c.Spec.Request, fmt.Sprintf("%v", err)))
	}
	if len(c.Spec.Usages) == 0 {
		errs = append(errs, field.Required(path.Child("usages"), ""))
	}
	seen := sets.New[certificatesv1.KeyUsage]()
	for i, u := range c.Spec.Usages {
		if seen.Has(u) {
			errs = append(errs, field.Duplicate(path.Child("usages").Index(i), u))
		}
		if !keyUsages.Has(u) {
			errs = append(errs, field.NotSupported(path.Child("usages").Index(i), u, sets.List(keyUsages)))
		}
		seen.Insert(u)
	}
	if c.Spec.SignerName == "kubernetes.io/legacy-unknown" {
		errs = append(errs, field.Invalid(path.Child("signerName"), c.Spec.SignerName, "the legacy signerName is not allowed via this API version"))
	} else {
		errs = append(errs, signerName(c.Spec.SignerName, path.Child("signerName"))...)
	}
	if s := c.Spec.ExpirationSeconds; s != nil && *s < 600 {
		errs = append(errs, field.Invalid(path.Child("expirationSeconds"), *s, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	return append(errs, requestConditions(c.Status.Conditions)...)
}

func parseRequest(data []byte) error {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	_, err := x509.ParseCertificateRequest(block.Bytes)
	return err
}

func requestConditions(list []certificatesv1.CertificateSigningRequestCondition) field.ErrorList {
	var errs field.ErrorList
	path := status().Child("conditions")
	approved, denied := false, false
	seen := sets.New[certificatesv1.RequestConditionType]()
	for i, c := range list {
		p := path.Index(i)
		if c.Type == "" {
			errs = append(errs, field.Required(p.Child("type"), ""))
		}
		switch {
		case c.Status == "":
			errs = append(errs, field.Required(p.Child("status"), ""))
		case c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed:
			errs = append(errs, supported(c.Status, p.Child("status"), corev1.ConditionTrue)...)
		default:
			errs = append(errs, supported(c.Status, p.Child("status"), corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
		}
		if seen.Has(c.Type) {
			errs = append(errs, field.Duplicate(p.Child("type"), c.Type))
		}
		seen.Insert(c.Type)
		approved = approved || c.Type == certificatesv1.CertificateApproved
		denied = denied || c.Type == certificatesv1.CertificateDenied
		if approved && denied && (c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied) {
			other := certificatesv1.CertificateDenied
			if c.Type == certificatesv1.CertificateDenied {
				other = certificatesv1.CertificateApproved
			}
			errs = append(errs, field.Invalid(p.Child("type"), c.Type, fmt.Sprintf("%s and %s conditions are mutually exclusive", other, c.Type)))
		}
	}
	return errs
}

// CertificateSigningRequestUpdate checks an update through the main resource.
func CertificateSigningRequestUpdate(new, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	return requestUpdate(new, old, false, false)
}

// CertificateSigningRequestStatusUpdate checks the signer's update.
func CertificateSigningRequestStatusUpdate(new, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	return requestUpdate(new, old, true, false)
}

// CertificateSigningRequestApprovalUpdate checks the approver's update.
func CertificateSigningRequestApprovalUpdate(new, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	return requestUpdate(new, old, false, true)
}

func requestUpdate(new, old *certificatesv1.CertificateSigningRequest, setCertificate, setApproval bool) field.ErrorList {
	errs := CertificateSigningRequest(new)
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	path := status().Child("conditions")
	count := func(c *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) []certificatesv1.CertificateSigningRequestCondition {
		var out []certificatesv1.CertificateSigningRequestCondition
		for _, cond := range c.Status.Conditions {
			if cond.Type == t {
				out = append(out, cond)
			}
		}
		return out
	}
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed} {
		was, is := count(old, t), count(new, t)
		if len(is) > len(was) && t != certificatesv1.CertificateFailed && !setApproval {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("updates may not add a condition of type %q", t)))
		}
		if len(is) < len(was) {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("updates may not remove a condition of type %q", t)))
		} else if len(is) == len(was) && !equality.Semantic.DeepEqual(is, was) {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("updates may not modify a condition of type %q", t)))
		}
	}
	p := status().Child("certificate")
	if !equality.Semantic.DeepEqual(new.Status.Certificate, old.Status.Certificate) {
		switch {
		case len(old.Status.Certificate) > 0:
			errs = append(errs, field.Forbidden(p, "updates may not modify existing certificate content"))
		case !setCertificate:
			errs = append(errs, field.Forbidden(p, "updates may not set certificate content"))
		default:
			errs = append(errs, certificateChain(new.Status.Certificate, p)...)
		}
	}
	return errs
}

func certificateChain(data []byte, path *field.Path) field.ErrorList {
	const shown = "<certificate data>"
	blocks := 0
	for rest := data; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		blocks++
		if block.Type != "CERTIFICATE" {
			return field.ErrorList{field.Invalid(path, shown, "only CERTIFICATE PEM blocks are allowed, found "+fmt.Sprintf("%q", block.Type))}
		}
		if len(block.Headers) != 0 {
			return field.ErrorList{field.Invalid(path, shown, "no PEM block headers are permitted")}
		}
		certs, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return field.ErrorList{field.Invalid(path, shown, err.Error())}
		}
		if len(certs) == 0 {
			return field.ErrorList{field.Invalid(path, shown, "found CERTIFICATE PEM block containing 0 certificates")}
		}
	}
	if blocks == 0 {
		return field.ErrorList{field.Invalid(path, shown, "must contain at least one CERTIFICATE PEM block")}
	}
	return nil
}
