package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// CredentialID is the extra that says which credential was used (Kubernetes docs,
// "Authenticating"): JTI=… of a token, X509SHA256=… of a certificate.
const CredentialID = "authentication.kubernetes.io/credential-id"

// X509 authenticates client certificates signed by Roots: the common name is the
// user, the organizations are the groups (Kubernetes docs, "X509 client
// certificates"). The TLS layer asks for a certificate but does not verify it, so
// that a bad one is a 401 with a reason and not a broken connection.
//
// What was verified is remembered, for 1024 certificates at most, with the time
// in which it holds: each request of a connection costs a hash, not a signature.
type X509 struct {
	Roots *x509.CertPool
	Now   func() time.Time

	mu       sync.Mutex
	verified map[[sha256.Size]byte]span
}

// span is when all certificates of a verified chain are valid.
type span struct{ from, to time.Time }

const maxVerified = 1024

// Authenticate implements Authenticator.
func (x *X509) Authenticate(r *http.Request) (User, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return User{}, false, nil
	}
	sent := r.TLS.PeerCertificates
	leaf := sent[0]
	// The intermediates take part: the same leaf may hold with some and not others.
	h := sha256.New()
	for _, c := range sent {
		h.Write(c.Raw)
	}
	id := [sha256.Size]byte(h.Sum(nil))
	now := x.Now()
	if !x.remembers(id, now) {
		o := x509.VerifyOptions{Roots: x.Roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		for _, c := range sent[1:] {
			o.Intermediates.AddCert(c)
		}
		chains, err := leaf.Verify(o)
		if err != nil {
			return User{}, false, fmt.Errorf("verify client certificate of %q: %w", leaf.Subject.CommonName, err)
		}
		x.remember(id, chains[0])
	}
	if leaf.Subject.CommonName == "" {
		return User{}, false, nil
	}
	sum := sha256.Sum256(leaf.Raw)
	return User{Name: leaf.Subject.CommonName, Groups: leaf.Subject.Organization,
		Extra: map[string][]string{CredentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}}}, true, nil
}

func (x *X509) remembers(id [sha256.Size]byte, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	v, ok := x.verified[id]
	return ok && !now.Before(v.from) && !now.After(v.to)
}

func (x *X509) remember(id [sha256.Size]byte, chain []*x509.Certificate) {
	v := span{chain[0].NotBefore, chain[0].NotAfter}
	for _, c := range chain[1:] {
		if c.NotBefore.After(v.from) {
			v.from = c.NotBefore
		}
		if c.NotAfter.Before(v.to) {
			v.to = c.NotAfter
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.verified == nil || len(x.verified) >= maxVerified {
		x.verified = map[[sha256.Size]byte]span{}
	}
	x.verified[id] = v
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
