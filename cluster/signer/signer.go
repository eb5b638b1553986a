// Package signer signs approved certificate requests for the built-in signers
// (Kubernetes docs, "Certificate Signing Requests", Kubernetes signers):
//
//	kubernetes.io/kube-apiserver-client          users; usages: client auth
//	kubernetes.io/kube-apiserver-client-kubelet  nodes; system:nodes, CN system:node:NAME, no alternative names
//	kubernetes.io/kubelet-serving                nodes' own ports; as above, with DNS or IP names
//
// A request that is approved and breaks its signer's rules gets the condition
// Failed and is left alone. Approval is somebody else's business. The life is the
// one asked for, a year at most, and never beyond the authority's.
//
// It is a small runtime and no Plan, since signing needs the authority's key: it
// follows the requests through the API, and looks at all of them again every ten
// minutes.
package signer

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/client"
	"proa.dev/cluster/pki"
	"proa.dev/env"
	"proa.dev/kind"
)

// Longest life of a certificate, and the default.
const Longest = 365 * 24 * time.Hour

// Config of a Signer; all but Log are needed.
type Config struct {
	Client client.Client
	CA     *pki.Authority
	Clock  env.Clock
	Log    *slog.Logger
}

// again is how long a failure of the API or of one request waits.
const again, resync = 2 * time.Second, 10 * time.Minute

// Run signs until ctx ends, and returns nil then.
func Run(ctx context.Context, c Config) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for ctx.Err() == nil {
		if err := c.follow(ctx); err != nil && ctx.Err() == nil {
			c.Log.Warn("certificate requests are not signed for a while", "error", err)
			env.Sleep(ctx, c.Clock, again)
		}
	}
	return nil
}

// follow lists, then watches until the stream ends or it is time to look anew.
func (c *Config) follow(ctx context.Context) error {
	list, err := c.Client.List(ctx, kind.CertificateSigningRequest, "", metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list certificate requests: %w", err)
	}
	var failed error
	for _, o := range list.Items {
		failed = errors.Join(failed, c.one(ctx, o.(*certificatesv1.CertificateSigningRequest)))
	}
	if failed != nil {
		return failed
	}
	w, err := c.Client.Watch(ctx, kind.CertificateSigningRequest, "", metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return fmt.Errorf("watch certificate requests: %w", err)
	}
	defer w.Stop()
	t := c.Clock.NewTimer(resync)
	defer t.Stop()
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return nil
			}
			if o, is := e.Object.(*certificatesv1.CertificateSigningRequest); is && e.Type != watch.Deleted {
				if err := c.one(ctx, o); err != nil {
					return err
				}
			}
			if e.Type == watch.Error {
				return nil // list again
			}
		case <-t.C():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func has(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(r.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Type == t && c.Status == corev1.ConditionTrue
	})
}

// one signs a request that waits for it.
func (c *Config) one(ctx context.Context, r *certificatesv1.CertificateSigningRequest) error {
	if len(r.Status.Certificate) > 0 || !has(r, certificatesv1.CertificateApproved) || has(r, certificatesv1.CertificateDenied) || has(r, certificatesv1.CertificateFailed) {
		return nil
	}
	if _, ours := rules[r.Spec.SignerName]; !ours {
		return nil
	}
	out := r.DeepCopy()
	cert, err := Sign(c.CA, r)
	var broken *Broken
	switch {
	case errors.As(err, &broken):
		now := metav1.NewTime(c.Clock.Now())
		out.Status.Conditions = append(out.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateFailed,
			Status: corev1.ConditionTrue, Reason: "SignerValidationFailure", Message: broken.Why, LastUpdateTime: now, LastTransitionTime: now})
	case err != nil:
		return fmt.Errorf("sign certificate request %q: %w", r.Name, err)
	default:
		out.Status.Certificate = cert
	}
	_, err = c.Client.Update(ctx, kind.CertificateSigningRequest, out, "status", metav1.UpdateOptions{})
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil // the watch shows the newer one
	case err != nil:
		return fmt.Errorf("answer certificate request %q: %w", r.Name, err)
	}
	c.Log.Info("certificate request answered", "name", r.Name, "signer", r.Spec.SignerName, "user", r.Spec.Username, "refused", broken != nil)
	return nil
}

// Broken says which rule of its signer a request breaks.
type Broken struct{ Why string }

func (b *Broken) Error() string { return b.Why }

func refuse(format string, args ...any) error { return &Broken{fmt.Sprintf(format, args...)} }

var (
	clientAuth = certificatesv1.UsageClientAuth
	serverAuth = certificatesv1.UsageServerAuth
)

type rule struct {
	needs  certificatesv1.KeyUsage
	check  func(*x509.CertificateRequest) error
	purely bool // only signing and key encipherment besides
}

var rules = map[string]rule{
	certificatesv1.KubeAPIServerClientSignerName:        {needs: clientAuth, check: func(*x509.CertificateRequest) error { return nil }},
	certificatesv1.KubeAPIServerClientKubeletSignerName: {needs: clientAuth, purely: true, check: nodeClient},
	certificatesv1.KubeletServingSignerName:             {needs: serverAuth, purely: true, check: nodeServing},
}

func nodeSubject(x *x509.CertificateRequest) error {
	if !slices.Equal(x.Subject.Organization, []string{"system:nodes"}) {
		return refuse("organization needs to be [system:nodes]")
	}
	if name, ok := strings.CutPrefix(x.Subject.CommonName, "system:node:"); !ok || name == "" {
		return refuse("subject common name does not begin with system:node:")
	}
	if len(x.EmailAddresses) > 0 {
		return refuse("emailAddresses are not allowed")
	}
	if len(x.URIs) > 0 {
		return refuse("URIs are not allowed")
	}
	return nil
}

func nodeClient(x *x509.CertificateRequest) error {
	if err := nodeSubject(x); err != nil {
		return err
	}
	if len(x.DNSNames) > 0 || len(x.IPAddresses) > 0 {
		return refuse("DNS and IP subjectAltNames are not allowed")
	}
	return nil
}

func nodeServing(x *x509.CertificateRequest) error {
	if err := nodeSubject(x); err != nil {
		return err
	}
	if len(x.DNSNames) == 0 && len(x.IPAddresses) == 0 {
		return refuse("a DNS or IP subjectAltName is required")
	}
	return nil
}

// Sign checks a request against its signer's rules and returns the certificate in
// PEM. A *Broken error is final.
func Sign(ca *pki.Authority, r *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	ru, ok := rules[r.Spec.SignerName]
	if !ok {
		return nil, fmt.Errorf("signer %q is not one of this cluster's", r.Spec.SignerName)
	}
	block, _ := pem.Decode(r.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, refuse("PEM block type must be CERTIFICATE REQUEST")
	}
	x, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, refuse("unable to parse csr: %v", err)
	}
	// Who asks must hold the key: its signature is the proof.
	if err := x.CheckSignature(); err != nil {
		return nil, refuse("the request is not signed by its own key: %v", err)
	}
	var usage x509.KeyUsage
	var extended []x509.ExtKeyUsage
	for _, u := range r.Spec.Usages {
		switch u {
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageSigning:
			usage |= x509.KeyUsageDigitalSignature
		case certificatesv1.UsageKeyEncipherment:
			usage |= x509.KeyUsageKeyEncipherment
		case clientAuth, serverAuth:
			if u != ru.needs {
				return nil, refuse("usages did not match %q: %q is not allowed", ru.needs, u)
			}
			extended = append(extended, map[certificatesv1.KeyUsage]x509.ExtKeyUsage{clientAuth: x509.ExtKeyUsageClientAuth, serverAuth: x509.ExtKeyUsageServerAuth}[u])
		default:
			return nil, refuse("usages did not match %q: %q is not allowed", ru.needs, u)
		}
	}
	if len(extended) == 0 {
		return nil, refuse("usages must include %q", ru.needs)
	}
	if ru.purely && usage&x509.KeyUsageDigitalSignature == 0 {
		return nil, refuse("usages must include %q", certificatesv1.UsageDigitalSignature)
	}
	if err := ru.check(x); err != nil {
		return nil, err
	}
	// Admission refuses this at the door; a request from before must not pass either.
	if slices.Contains(x.Subject.Organization, "system:masters") {
		return nil, refuse("certificates of the group system:masters are not signed")
	}
	life := Longest
	if s := r.Spec.ExpirationSeconds; s != nil {
		life = max(10*time.Minute, min(life, time.Duration(*s)*time.Second))
	}
	der, err := ca.SignRequest(x, usage, extended, life)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
