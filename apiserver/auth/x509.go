package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// CredentialID is the extra that says which credential was used (Kubernetes docs,
// "Authenticating"): JTI=… of a token, X509SHA256=… of a certificate.
const CredentialID = "authentication.kubernetes.io/credential-id"

// uidOID is the attribute of a subject that carries a user's UID (Kubernetes docs,
// "X509 client certificates").
var uidOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}

// X509 authenticates client certificates signed by Roots: the common name is the
// user, the organizations are the groups (Kubernetes docs, "X509 client
// certificates"). The TLS layer asks for a certificate but does not verify it, so
// that a bad one is a 401 with a reason and not a broken connection.
//
// What was verified is remembered, for 1024 connections' certificates at most,
// with the time in which it holds, under the certificates' addresses: TLS parses
// them once for a connection, so that each further request costs a look-up. The
// user that is returned is shared: nobody may change its groups and extras.
type X509 struct {
	Roots *x509.CertPool
	// Pool, if set, is asked for the roots instead, at each request; what was verified
	// under another pool is forgotten. It may return nil: then nobody is known.
	Pool func() *x509.CertPool
	Now  func() time.Time

	mu       sync.RWMutex
	under    *x509.CertPool
	verified map[*x509.Certificate]known
}

// known is a verified certificate with what was sent beside it, and when all
// certificates of the chain are valid.
type known struct {
	sent     []*x509.Certificate
	from, to time.Time
	user     User
}

const maxVerified = 1024

// Authenticate implements Authenticator.
func (x *X509) Authenticate(r *http.Request) (User, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return User{}, false, nil
	}
	roots := x.Roots
	if x.Pool != nil {
		if roots = x.Pool(); roots == nil {
			return User{}, false, nil
		}
	}
	sent, now := r.TLS.PeerCertificates, x.Now()
	x.mu.RLock()
	k, ok := x.verified[sent[0]]
	same := x.under == roots
	x.mu.RUnlock()
	// The intermediates take part: the same leaf may hold with some and not others.
	if ok && same && slices.Equal(k.sent, sent) && !now.Before(k.from) && !now.After(k.to) {
		return k.user, k.user.Name != "", nil
	}
	k, err := verify(roots, sent, now)
	if err != nil {
		return User{}, false, err
	}
	x.mu.Lock()
	if x.verified == nil || len(x.verified) >= maxVerified || x.under != roots {
		x.verified, x.under = map[*x509.Certificate]known{}, roots
	}
	x.verified[sent[0]] = k
	x.mu.Unlock()
	return k.user, k.user.Name != "", nil
}

// verify a chain for client authentication and read the user from its leaf.
func verify(roots *x509.CertPool, sent []*x509.Certificate, now time.Time) (known, error) {
	leaf := sent[0]
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range sent[1:] {
		o.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(o)
	if err != nil {
		return known{}, fmt.Errorf("verify client certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	k := known{sent: slices.Clone(sent), from: leaf.NotBefore, to: leaf.NotAfter}
	for _, c := range chains[0][1:] {
		if c.NotBefore.After(k.from) {
			k.from = c.NotBefore
		}
		if c.NotAfter.Before(k.to) {
			k.to = c.NotAfter
		}
	}
	if leaf.Subject.CommonName == "" {
		return k, nil
	}
	uid, err := uidOf(leaf)
	if err != nil {
		return known{}, fmt.Errorf("read client certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	sum := sha256.Sum256(leaf.Raw)
	k.user = User{Name: leaf.Subject.CommonName, UID: uid, Groups: authenticated(leaf.Subject.Organization),
		Extra: map[string][]string{CredentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}}}
	return k, nil
}

// uidOf the subject of a certificate; "" when it has none.
func uidOf(c *x509.Certificate) (string, error) {
	uid, found := "", false
	for _, n := range c.Subject.Names {
		if !n.Type.Equal(uidOID) {
			continue
		}
		s, ok := n.Value.(string)
		switch {
		case !ok:
			return "", errors.New("unable to parse UID into a string")
		case found:
			return "", errors.New("expected 1 UID, but found multiple")
		case s == "":
			return "", errors.New("UID cannot be an empty string")
		}
		uid, found = s, true
	}
	return uid, nil
}

// authenticated are the groups with that of all authenticated users, copied.
func authenticated(groups []string) []string {
	out := append(make([]string, 0, len(groups)+1), groups...)
	if !slices.Contains(out, AllAuthenticated) {
		out = append(out, AllAuthenticated)
	}
	return out
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
				u.Groups = authenticated(u.Groups)
			}
			return u, true, nil
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return User{}, false, first
}
