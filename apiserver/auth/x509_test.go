package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func makeCert(t *testing.T, parent *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "jane", Organization: []string{"devs", "ops"}},
		NotBefore: clockZero.Add(-time.Hour), NotAfter: clockZero.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	if change != nil {
		change(c)
	}
	self := &authority{c, key}
	if parent == nil {
		parent = self
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	if self.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return self
}

var clockZero = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func isCA(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.Subject = true, x509.KeyUsageCertSign, nil, pkix.Name{CommonName: "ca"}
	c.NotAfter = clockZero.Add(24 * time.Hour)
}

func TestX509(t *testing.T) {
	ca, other := makeCert(t, nil, isCA), makeCert(t, nil, isCA)
	between := makeCert(t, ca, isCA)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	now := clockZero
	x := &X509{Roots: pool, Now: func() time.Time { return now }}
	ask := func(chain ...*authority) (User, bool, error) {
		r := &http.Request{TLS: &tls.ConnectionState{}}
		for _, c := range chain {
			r.TLS.PeerCertificates = append(r.TLS.PeerCertificates, c.cert)
		}
		return x.Authenticate(r)
	}
	jane := makeCert(t, ca, nil)
	for range 2 { // verified, then remembered
		u, ok, err := ask(jane)
		if err != nil || !ok || u.Name != "jane" || !u.In("ops") || len(u.Groups) != 3 || !strings.HasPrefix(u.Extra[CredentialID][0], "X509SHA256=") {
			t.Fatalf("%+v %v %v", u, ok, err)
		}
	}
	if _, ok, err := ask(); ok || err != nil {
		t.Errorf("no certificate: %v %v", ok, err)
	}
	if _, ok, err := x.Authenticate(&http.Request{}); ok || err != nil {
		t.Errorf("no TLS: %v %v", ok, err)
	}
	if _, ok, err := ask(makeCert(t, ca, func(c *x509.Certificate) { c.Subject.CommonName = "" })); ok || err != nil {
		t.Errorf("no name: %v %v", ok, err)
	}
	for name, chain := range map[string][]*authority{
		"another authority":  {makeCert(t, other, nil)},
		"server only":        {makeCert(t, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		"not yet":            {makeCert(t, ca, func(c *x509.Certificate) { c.NotBefore = clockZero.Add(time.Minute) })},
		"expired":            {makeCert(t, ca, func(c *x509.Certificate) { c.NotAfter = clockZero.Add(-time.Minute) })},
		"intermediate left":  {makeCert(t, between, nil)},
		"self-signed":        {makeCert(t, nil, nil)},
		"signed by a leaf":   {makeCert(t, jane, nil), jane},
		"other intermediate": {makeCert(t, between, nil), other},
	} {
		if u, ok, err := ask(chain...); ok || err == nil {
			t.Errorf("%s: accepted as %q", name, u.Name)
		}
	}
	deep := makeCert(t, between, nil)
	if _, ok, err := ask(deep, between); !ok || err != nil {
		t.Errorf("with its intermediate: %v", err)
	}
	if _, ok, _ := ask(deep); ok {
		t.Error("what was verified with an intermediate is remembered without it")
	}
	now = clockZero.Add(2 * time.Hour)
	if _, ok, err := ask(jane); ok || err == nil {
		t.Error("a remembered certificate outlives its time")
	}
	now = clockZero
	for len(x.verified) < maxVerified {
		x.verified[new(x509.Certificate)] = known{}
	}
	ask(makeCert(t, ca, nil))
	if len(x.verified) > maxVerified {
		t.Errorf("%d remembered", len(x.verified))
	}
	// Another pool: what was verified under the first says nothing.
	ask(jane)
	swapped := x509.NewCertPool()
	swapped.AddCert(other.cert)
	x.Pool = func() *x509.CertPool { return swapped }
	if u, ok, err := ask(jane); ok || err == nil {
		t.Errorf("%q of a removed authority is still known", u.Name)
	}
	if _, ok, err := ask(makeCert(t, other, nil)); !ok || err != nil {
		t.Errorf("the new authority: %v", err)
	}
	x.Pool = func() *x509.CertPool { return nil }
	if _, ok, err := ask(jane); ok || err != nil {
		t.Errorf("no authority: %v %v", ok, err)
	}
}

func TestX509UID(t *testing.T) {
	ca := makeCert(t, nil, isCA)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	x := &X509{Roots: pool, Now: func() time.Time { return clockZero }}
	for _, c := range []struct {
		uids []any
		want string
		bad  bool
	}{{nil, "", false}, {[]any{"u-1"}, "u-1", false}, {[]any{"u-1", "u-2"}, "", true}, {[]any{""}, "", true}} {
		leaf := makeCert(t, ca, func(x *x509.Certificate) {
			for _, u := range c.uids {
				x.Subject.ExtraNames = append(x.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: uidOID, Value: u})
			}
		})
		u, ok, err := x.Authenticate(&http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf.cert}}})
		if (err != nil) != c.bad || ok == c.bad || u.UID != c.want {
			t.Errorf("%v: %q %v %v", c.uids, u.UID, ok, err)
		}
	}
}

func BenchmarkX509(b *testing.B) {
	t := new(testing.T)
	ca := makeCert(t, nil, isCA)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	x := &X509{Roots: pool, Now: func() time.Time { return clockZero }}
	r := &http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{makeCert(t, ca, nil).cert}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := x.Authenticate(r); !ok || err != nil {
			b.Fatal(err)
		}
	}
}

func TestUnion(t *testing.T) {
	ca := makeCert(t, nil, isCA)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	un := Union{&X509{Roots: pool, Now: func() time.Time { return clockZero }}, Bearer{tokenNames{}}}
	bad := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{makeCert(t, nil, nil).cert}}
	r := &http.Request{TLS: bad, Header: http.Header{"Authorization": {"Bearer joe"}}}
	if u, ok, err := un.Authenticate(r); !ok || err != nil || u.Name != "joe" || !u.In(AllAuthenticated) {
		t.Errorf("a good token beside a bad certificate: %+v %v", u, err)
	}
	if _, ok, err := un.Authenticate(&http.Request{TLS: bad}); ok || err == nil {
		t.Error("a bad certificate is anonymous")
	}
	if _, ok, err := un.Authenticate(&http.Request{}); ok || err != nil {
		t.Errorf("nothing: %v %v", ok, err)
	}
}
