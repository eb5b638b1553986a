package auth

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// LegacyIssuer is the issuer of tokens that live in Secrets of type
// kubernetes.io/service-account-token (Kubernetes docs, "Managing Service
// Accounts", manual Secret management). They have no end; they are good while the
// Secret holds them and the account is the same.
const LegacyIssuer = "kubernetes/serviceaccount"

// legacyInvalid is the label of a Secret whose token was found unused for long.
const legacyInvalid = "kubernetes.io/legacy-token-invalid-since"

type legacy struct {
	Namespace  string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
	Secret     string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
	Account    string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	AccountUID string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
}

type legacyClaims struct {
	Issuer  string `json:"iss"`
	Subject string `json:"sub"`
	legacy
}

// IssueLegacy makes the token of an account for a Secret of its namespace.
func (t *ServiceAccountTokens) IssueLegacy(sa *corev1.ServiceAccount, secret string) (string, error) {
	if t.Key == nil {
		return "", errors.New("sign token: no key for service account tokens is configured")
	}
	return t.sign(legacyClaims{LegacyIssuer, ServiceAccountUser + sa.Namespace + ":" + sa.Name, legacy{sa.Namespace, secret, sa.Name, string(sa.UID)}})
}

func (t *ServiceAccountTokens) legacyUser(token string, c *claims, audiences []string) (User, []string, bool, error) {
	l := c.legacy
	name := ServiceAccountUser + l.Namespace + ":" + l.Account
	if l.Namespace == "" || l.Account == "" || l.AccountUID == "" || l.Secret == "" || c.Subject != name {
		return User{}, nil, false, errors.New("legacy service account token does not say all that it must")
	}
	matched := t.Audiences
	if len(audiences) > 0 {
		matched = nil
		for _, a := range audiences {
			if slices.Contains(t.Audiences, a) {
				matched = append(matched, a)
			}
		}
		if len(matched) == 0 {
			return User{}, nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", t.Audiences, audiences)
		}
	}
	s := t.Snapshot()
	secret := view.Get[*corev1.Secret](s, kind.Secret, l.Namespace, l.Secret)
	switch {
	case secret == nil, secret.DeletionTimestamp != nil, subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(token)) != 1:
		return User{}, nil, false, errors.New("service account token has been invalidated: its secret is gone or holds another")
	case secret.Labels[legacyInvalid] != "":
		return User{}, nil, false, fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '%s' label from the secret to temporarily allow use of this token",
			l.Namespace, l.Secret, l.Namespace, l.Account, legacyInvalid)
	}
	sa := view.Get[*corev1.ServiceAccount](s, kind.ServiceAccount, l.Namespace, l.Account)
	if sa == nil || sa.DeletionTimestamp != nil || string(sa.UID) != l.AccountUID {
		return User{}, nil, false, errors.New("service account token has been invalidated: its service account is gone")
	}
	return User{Name: name, UID: l.AccountUID, Groups: []string{ServiceAccounts, ServiceAccounts + ":" + l.Namespace}}, matched, true, nil
}

// ParsePublicKeys reads all keys of a PEM file: public keys, private keys (their
// public half) and certificates, RSA and ECDSA.
func ParsePublicKeys(data []byte) ([]crypto.PublicKey, error) {
	var keys []crypto.PublicKey
	for block, rest := pem.Decode(bytes.TrimSpace(data)); block != nil; block, rest = pem.Decode(rest) {
		if key, err := parsePrivate(block); err == nil {
			keys = append(keys, key.Public())
			continue
		}
		switch block.Type {
		case "PUBLIC KEY":
			k, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("read public key: %w", err)
			}
			keys = append(keys, k)
		case "RSA PUBLIC KEY":
			k, err := x509.ParsePKCS1PublicKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("read public key: %w", err)
			}
			keys = append(keys, k)
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("read certificate: %w", err)
			}
			keys = append(keys, c.PublicKey)
		}
	}
	for _, k := range keys {
		if _, err := algorithm(k); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("data does not contain any valid RSA or ECDSA public keys")
	}
	return keys, nil
}

// ParsePrivateKey reads the first private key of a PEM file, RSA (2048 bits or
// more) or ECDSA.
func ParsePrivateKey(data []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(bytes.TrimSpace(data)); block != nil; block, rest = pem.Decode(rest) {
		if key, err := parsePrivate(block); err == nil {
			return key, nil
		}
	}
	return nil, errors.New("data does not contain a valid RSA or ECDSA private key")
}

func parsePrivate(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("block %q is no private key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", key)
	}
	if _, err := algorithm(s.Public()); err != nil {
		return nil, err
	}
	if r, ok := key.(*rsa.PrivateKey); ok && r.N.BitLen() < 1024 {
		return nil, fmt.Errorf("RSA key of %d bits is too short; use 2048", r.N.BitLen())
	}
	return s, nil
}
