// Package pki is a cluster's own certificate authority and keys.
//
// Files in the directory (mode 0700, files 0600): ca.crt, ca.key (ECDSA P-256, ten
// years), sa.key (ECDSA P-256, signs service account tokens), secrets.key (32
// random bytes, base64, encrypts Secrets at rest). Leaf certificates live in
// memory only: Leaf renews itself at two thirds of its life.
//
// Names follow Kubernetes docs, "PKI certificates and requirements": the admin is
// system:masters, a node is CN=system:node:NAME, O=system:nodes.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Lifetimes of what is signed. Leaves are short because they renew themselves;
// the admin's is a file in a kubeconfig, renewed by the server while it runs and
// by every up.
const (
	CALife    = 10 * 365 * 24 * time.Hour
	LeafLife  = 30 * 24 * time.Hour
	AdminLife = 365 * 24 * time.Hour
	// backdate tolerates clocks that are behind.
	backdate = time.Hour
)

// Authority signs for one cluster.
type Authority struct {
	Cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
	// ServiceAccountKey signs tokens.
	ServiceAccountKey *ecdsa.PrivateKey
	// SecretsKey encrypts Secrets at rest: 32 bytes.
	SecretsKey []byte
	// FrontProxy signs the API server's certificate as front proxy: an authority of
	// its own, so that no other certificate of the cluster lets its holder speak for
	// others. It has no keys besides.
	FrontProxy *Authority
	now        func() time.Time
}

// FrontProxyName is the common name of the API server as front proxy.
const FrontProxyName = "front-proxy-client"

// Open reads the authority in dir, or makes one. A file that is there but cannot
// be read, or does not fit the others, is an error: it is never replaced. Keys
// that others than the owner could read are made private again.
func Open(dir string, now func() time.Time) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create key directory %q: %w", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make key directory %q private: %w", dir, err)
	}
	a, err := openCA(dir, "ca", "proa-ca", now)
	if err != nil {
		return nil, err
	}
	if a.FrontProxy, err = openCA(dir, "front-proxy-ca", "proa-front-proxy-ca", now); err != nil {
		return nil, err
	}
	if a.ServiceAccountKey, err = loadOrMakeKey(filepath.Join(dir, "sa.key")); err != nil {
		return nil, err
	}
	if a.SecretsKey, err = loadOrMakeSecret(filepath.Join(dir, "secrets.key")); err != nil {
		return nil, err
	}
	return a, nil
}

// openCA reads NAME.key and NAME.crt, or makes them.
func openCA(dir, name, commonName string, now func() time.Time) (*Authority, error) {
	a := &Authority{now: now}
	key, err := loadOrMakeKey(filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, err
	}
	a.key = key
	crt := filepath.Join(dir, name+".crt")
	a.pem, err = os.ReadFile(crt)
	if os.IsNotExist(err) {
		der, err := selfSign(key, commonName, now())
		if err != nil {
			return nil, fmt.Errorf("sign the cluster's own certificate: %w", err)
		}
		a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := writeFile(crt, a.pem, 0o644); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("read certificate %q: %w", crt, err)
	}
	block, _ := pem.Decode(a.pem)
	if block == nil {
		return nil, fmt.Errorf("read certificate %q: no PEM block; restore it from a backup", crt)
	}
	if a.Cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("read certificate %q: %w", crt, err)
	}
	if !key.PublicKey.Equal(a.Cert.PublicKey) {
		return nil, fmt.Errorf("read certificate %q: it does not belong to %s.key beside it; restore both from the same backup", crt, name)
	}
	if !now().Before(a.Cert.NotAfter) {
		return nil, fmt.Errorf("read certificate %q: it expired at %s; check the clock, or create the cluster anew", crt, a.Cert.NotAfter.Format(time.RFC3339))
	}
	return a, nil
}

// PEM of the authority's certificate.
func (a *Authority) PEM() []byte { return a.pem }

// Pool with the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.Cert)
	return p
}

// Names of one leaf.
type Names struct {
	CommonName    string
	Organizations []string // groups
	DNS           []string
	IPs           []net.IP
	Server        bool
	Client        bool
}

// Issue signs a new key for n.
func (a *Authority) Issue(n Names, life time.Duration) (cert tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, fmt.Errorf("make key for %q: %w", n.CommonName, err)
	}
	der, err := a.Sign(&key.PublicKey, n, life)
	if err != nil {
		return cert, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return cert, err
	}
	return tls.Certificate{Certificate: [][]byte{der, a.Cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// Sign makes a certificate for a public key.
func (a *Authority) Sign(pub crypto.PublicKey, n Names, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := a.now()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: n.CommonName, Organization: n.Organizations},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		DNSNames: n.DNS, IPAddresses: n.IPs,
		BasicConstraintsValid: true,
	}
	if t.NotAfter.After(a.Cert.NotAfter) {
		t.NotAfter = a.Cert.NotAfter
	}
	if n.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if n.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %q: %w", n.CommonName, err)
	}
	return der, nil
}

// SignRequest makes the certificate that x asks for: its subject, its names and
// its key, and none of its extensions. It never makes an authority.
func (a *Authority) SignRequest(x *x509.CertificateRequest, usage x509.KeyUsage, extended []x509.ExtKeyUsage, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := a.now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: x.Subject,
		DNSNames: x.DNSNames, IPAddresses: x.IPAddresses, EmailAddresses: x.EmailAddresses, URIs: x.URIs,
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(life),
		KeyUsage: usage, ExtKeyUsage: extended, BasicConstraintsValid: true,
	}
	if t.NotAfter.After(a.Cert.NotAfter) {
		t.NotAfter = a.Cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, x.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %q: %w", x.Subject.CommonName, err)
	}
	return der, nil
}

// RenewAt is when a certificate has to be replaced: two thirds through its life.
func RenewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// EncodePair is a certificate and its key as PEM.
func EncodePair(c tls.Certificate) (cert, key []byte, err error) {
	for _, der := range c.Certificate[:1] {
		cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalECPrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, nil, err
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// Leaf is a certificate that renews itself when it is used after two thirds of
// its life, and when its names have changed. Nothing restarts.
type Leaf struct {
	a     *Authority
	life  time.Duration
	names func() Names

	mu      sync.Mutex
	current *tls.Certificate
	made    Names
}

// Leaf with names that are asked for at every use; the function must be quick.
func (a *Authority) Leaf(life time.Duration, names func() Names) *Leaf {
	return &Leaf{a: a, life: life, names: names}
}

// Certificate returns the current one, renewed if it is due.
func (l *Leaf) Certificate() (*tls.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.names()
	if l.current != nil && sameNames(n, l.made) {
		if l.a.now().Before(RenewAt(l.current.Leaf)) {
			return l.current, nil
		}
	}
	c, err := l.a.Issue(n, l.life)
	if err != nil {
		return nil, err
	}
	l.current, l.made = &c, n
	return l.current, nil
}

// GetCertificate fits tls.Config.
func (l *Leaf) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.Certificate() }

// GetClientCertificate fits tls.Config.
func (l *Leaf) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return l.Certificate()
}

func sameNames(a, b Names) bool {
	return a.CommonName == b.CommonName && slices.Equal(a.Organizations, b.Organizations) && slices.Equal(a.DNS, b.DNS) &&
		slices.EqualFunc(a.IPs, b.IPs, func(x, y net.IP) bool { return x.Equal(y) })
}

func selfSign(key crypto.Signer, name string, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(CALife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
}

func loadOrMakeKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := readPrivate(path)
	if err == nil {
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("read key %q: no PEM block; restore it from a backup", path)
		}
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read key %q: %w", path, err)
		}
		return key, nil
	}
	if !os.IsNotExist(err) {
		return nil, fmt.Errorf("read key %q: %w", path, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// readPrivate reads a key and takes away what others may do with its file.
func readPrivate(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, err
		}
	}
	return os.ReadFile(path)
}

func loadOrMakeSecret(path string) ([]byte, error) {
	data, err := readPrivate(path)
	if err == nil {
		key, err := base64.StdEncoding.DecodeString(string(data))
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("read key %q: want 32 bytes in base64; restore it from a backup, Secrets cannot be read without it", path)
		}
		return key, nil
	}
	if !os.IsNotExist(err) {
		return nil, fmt.Errorf("read key %q: %w", path, err)
	}
	key := make([]byte, 32)
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return nil, err
	}
	return key, writeFile(path, []byte(base64.StdEncoding.EncodeToString(key)), 0o600)
}

// writeFile is durable and all or nothing: temporary file, sync, rename, sync of
// the directory.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}
