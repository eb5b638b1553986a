package auth

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"time"
)

// X509 authenticates client certificates signed by Roots: the common name is the
// user, the organizations are the groups (Kubernetes docs, "X509 client
// certificates"). The TLS layer asks for a certificate but does not verify it, so
// that a bad one is a 401 with a reason and not a broken connection.
type X509 struct {
	Roots *x509.CertPool
	Now   func() time.Time
}

// Authenticate implements Authenticator.
func (x X509) Authenticate(r *http.Request) (User, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return User{}, false, nil
	}
	leaf := r.TLS.PeerCertificates[0]
	o := x509.VerifyOptions{Roots: x.Roots, Intermediates: x509.NewCertPool(), CurrentTime: x.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range r.TLS.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return User{}, false, fmt.Errorf("verify client certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	if leaf.Subject.CommonName == "" {
		return User{}, false, nil
	}
	return User{Name: leaf.Subject.CommonName, Groups: leaf.Subject.Organization}, true, nil
}

// Union asks each authenticator in turn; the first that knows the credentials
// wins, and gets the group of all authenticated users added.
type Union []Authenticator

// Authenticate implements Authenticator.
func (un Union) Authenticate(r *http.Request) (User, bool, error) {
	var first error
	for _, a := range un {
		u, ok, err := a.Authenticate(r)
		if ok {
			if !u.In(AllAuthenticated) && u.Name != Anonymous {
				u.Groups = append(append([]string(nil), u.Groups...), AllAuthenticated)
			}
			return u, true, nil
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return User{}, false, first
}
