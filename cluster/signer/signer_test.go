package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"proa.dev/cluster/pki"
)

const (
	user    = certificatesv1.KubeAPIServerClientSignerName
	kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
	serving = certificatesv1.KubeletServingSignerName
)

func request(t *testing.T, signer string, usages []certificatesv1.KeyUsage, change func(*x509.CertificateRequest)) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes"}}}
	if change != nil {
		change(x)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, x, crypto.Signer(key))
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Usages: usages,
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
}

func TestSign(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	ca, err := pki.Open(t.TempDir(), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	type use = []certificatesv1.KeyUsage
	asClient, asServer := use{"digital signature", "key encipherment", "client auth"}, use{"digital signature", "server auth"}
	ip := func(x *x509.CertificateRequest) { x.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }
	for _, c := range []struct {
		name   string
		signer string
		usages use
		change func(*x509.CertificateRequest)
		want   string
	}{
		{"user", user, asClient, func(x *x509.CertificateRequest) {
			x.Subject, x.DNSNames = pkix.Name{CommonName: "jane", Organization: []string{"devs"}}, []string{"jane.example.com"}
		}, ""},
		{"user as server", user, asServer, nil, `"server auth" is not allowed`},
		{"user without client auth", user, use{"digital signature"}, nil, `usages must include "client auth"`},
		{"user as authority", user, use{"client auth", "cert sign"}, nil, `"cert sign" is not allowed`},
		{"user of system:masters", user, asClient, func(x *x509.CertificateRequest) { x.Subject.Organization = []string{"a", "system:masters"} }, "system:masters"},
		{"node", kubelet, asClient, nil, ""},
		{"node with address", kubelet, asClient, ip, "DNS and IP subjectAltNames are not allowed"},
		{"node of another group", kubelet, asClient, func(x *x509.CertificateRequest) {
			x.Subject.Organization = append(x.Subject.Organization, "system:masters")
		}, "organization needs to be [system:nodes]"},
		{"no node name", kubelet, asClient, func(x *x509.CertificateRequest) { x.Subject.CommonName = "system:node:" }, "does not begin with system:node:"},
		{"another name", kubelet, asClient, func(x *x509.CertificateRequest) { x.Subject.CommonName = "admin" }, "does not begin with system:node:"},
		{"node as server", kubelet, asServer, nil, `"server auth" is not allowed`},
		{"node port", serving, asServer, ip, ""},
		{"node port without names", serving, asServer, nil, "a DNS or IP subjectAltName is required"},
		{"node port as client", serving, asClient, ip, `"client auth" is not allowed`},
		{"node port with URI", serving, asServer, func(x *x509.CertificateRequest) { ip(x); x.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, "URIs are not allowed"},
		{"node port with mail", serving, asServer, func(x *x509.CertificateRequest) { ip(x); x.EmailAddresses = []string{"a@b"} }, "emailAddresses are not allowed"},
	} {
		data, err := Sign(ca, request(t, c.signer, c.usages, c.change))
		var broken *Broken
		if c.want != "" {
			if !errors.As(err, &broken) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		block, rest := pem.Decode(data)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || len(rest) > 0 || cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Fatalf("%s: %v", c.name, err)
		}
		usage := x509.ExtKeyUsageClientAuth
		if c.signer == serving {
			usage = x509.ExtKeyUsageServerAuth
		}
		if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != usage {
			t.Errorf("%s: %v", c.name, cert.ExtKeyUsage)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}

	// A request changed on its way is not signed by its own key any more.
	r := request(t, user, asClient, nil)
	block, _ := pem.Decode(r.Spec.Request)
	block.Bytes[len(block.Bytes)-1] ^= 1
	r.Spec.Request = pem.EncodeToMemory(block)
	if _, err := Sign(ca, r); err == nil {
		t.Error("a request without proof of its key is signed")
	}

	// Lives: a year unless asked for less, never beyond the authority's.
	for asked, want := range map[int32]time.Duration{0: Longest, 3600: time.Hour, 1: 10 * time.Minute, 1 << 30: Longest} {
		r := request(t, user, asClient, nil)
		if asked != 0 {
			r.Spec.ExpirationSeconds = &asked
		}
		if got := life(t, ca, r).Sub(now); got != want {
			t.Errorf("asked for %d s: %s, want %s", asked, got, want)
		}
	}
	now = ca.Cert.NotAfter.Add(-24 * time.Hour)
	if end := life(t, ca, request(t, user, asClient, nil)); !end.Equal(ca.Cert.NotAfter) {
		t.Errorf("ends %s, after the authority %s", end, ca.Cert.NotAfter)
	}
}

func life(t *testing.T, ca *pki.Authority, r *certificatesv1.CertificateSigningRequest) time.Time {
	t.Helper()
	data, err := Sign(ca, r)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert.NotAfter
}
