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
	a := &Authority{now: now, SecretsKey: make([]byte, 32)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a.key = key
	if a.ServiceAccountKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	rand.Read(a.SecretsKey)
	der, err := selfSign(key, now())
	if err != nil {
		return nil, fmt.Errorf("sign the cluster's own certificate: %w", err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.Cert, err = x509.ParseCertificate(der)
	return a, err
}
