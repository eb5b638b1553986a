package etcd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa.dev/store"
	"proa.dev/store/etcd"
	"proa.dev/store/etcd/etcdtest"
)

// authority signs certificates for etcd and its clients, in files.
type authority struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.write(t, "ca", &x509.Certificate{Subject: pkix.Name{CommonName: "etcd"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// write makes name.crt and name.key, signed by the authority, or by itself when it
// is the authority.
func (a *authority) write(t testing.TB, name string, c *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if a.cert == nil {
		a.cert, a.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert == c {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: k}} {
		if err := os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// leaf is a certificate of the server on loopback and of clients alike.
func (a *authority) leaf(t testing.TB, name string) {
	t.Helper()
	a.write(t, name, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
}

// TestTLS: etcd lets in who has a certificate of its authority, and who is not let
// in, or does not trust it, is told why.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	for _, a := range []*authority{ca, other} {
		a.leaf(t, "server")
		a.leaf(t, "client")
	}
	e := etcdtest.StartTLS(t, ca.file("ca.crt"), ca.file("server.crt"), ca.file("server.key"))
	dial := func(roots, cert, key string) (*etcd.Store, error) {
		t.Helper()
		c, err := etcd.ClientTLS(roots, cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return etcd.Open(t.Context(), etcd.Config{Endpoints: []string{e.URL}, TLS: c})
	}
	st, err := dial(ca.file("ca.crt"), ca.file("client.crt"), ca.file("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Put(t.Context(), "/registry/a", []byte("1"), store.PutOptions{Expect: store.Absent}); err != nil {
		t.Error(err)
	}
	// A certificate that was renewed is used by the next connection.
	ca.leaf(t, "client")
	e.Stop()
	e.Restart()
	if kv, _, err := st.Get(t.Context(), "/registry/a", 0); err != nil || string(kv.Value) != "1" {
		t.Errorf("after etcd has come again: %q, %v", kv.Value, err)
	}
	for name, c := range map[string]struct{ roots, cert, key, want string }{
		"another authority":      {other.file("ca.crt"), ca.file("client.crt"), ca.file("client.key"), "certificate signed by unknown authority"},
		"another's client":       {ca.file("ca.crt"), other.file("client.crt"), other.file("client.key"), "tls: "},
		"no client":              {ca.file("ca.crt"), "", "", "tls: certificate required"},
		"the system's authority": {"", ca.file("client.crt"), ca.file("client.key"), "certificate signed by unknown authority"},
	} {
		st, err := dial(c.roots, c.cert, c.key)
		if err == nil {
			st.Close()
			t.Errorf("%s: it connects", name)
		} else if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), e.URL) {
			t.Errorf("%s: %q does not say %q", name, err, c.want)
		}
	}
	// Without TLS at all; etcd closes the connection.
	plain := "http" + strings.TrimPrefix(e.URL, "https")
	if st, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{plain}, OpenTimeout: 4 * time.Second}); err == nil {
		st.Close()
		t.Error("plain: it connects")
	} else if !strings.Contains(err.Error(), plain+": ") || strings.Contains(err.Error(), "deadline") {
		t.Errorf("plain: %v", err)
	}
}
