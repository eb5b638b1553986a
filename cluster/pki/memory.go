package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// New makes an authority that is kept nowhere: for a control plane that lives as
// long as one test.
func New(now func() time.Time) (*Authority, error) {
	a, err := newCA("proa-ca", now)
	if err != nil {
		return nil, err
	}
	if a.FrontProxy, err = newCA("proa-front-proxy-ca", now); err != nil {
		return nil, err
	}
	if a.ServiceAccountKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	a.SecretsKey = make([]byte, 32)
	rand.Read(a.SecretsKey)
	return a, nil
}

func newCA(name string, now func() time.Time) (*Authority, error) {
	a := &Authority{now: now}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a.key = key
	der, err := selfSign(key, name, now())
	if err != nil {
		return nil, fmt.Errorf("sign the certificate %q: %w", name, err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.Cert, err = x509.ParseCertificate(der)
	return a, err
}
