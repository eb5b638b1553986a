// Package seal encrypts values at rest with AES-256-GCM, in the form that
// upstream's aesgcm provider stores:
//
//	k8s:enc:aesgcm:v1:<key name>:  nonce (12 bytes)  ciphertext and tag
//
// The store key is the authenticated data, so that a value cannot be moved to
// another key. The first key seals; all open, so that keys can be changed: put
// the new one first, rewrite, take the old one away.
//
// Nonces are random: one key must not seal more than 2^32 values.
//
// Keys is that with keys of this machine. Set (config.go) is all that an
// EncryptionConfiguration can say: aesgcm, aescbc, secretbox, KMS v2 and identity,
// for each resource its own list (Kubernetes docs, "Encrypting Confidential Data
// at Rest", "Using a KMS provider for data encryption"; KEP-3299).
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"strings"

	"proa.dev/env"
)

const prefix = "k8s:enc:aesgcm:v1:"

// Key is one named key of 16, 24 or 32 bytes.
type Key struct {
	Name   string // no colon
	Secret []byte
}

// Keys seals with its first key. It implements disk.Transform.
type Keys struct {
	rand env.Rand
	keys []sealer
}

type sealer struct {
	prefix []byte
	aead   cipher.AEAD
}

// New makes Keys; rand gives the nonces.
func New(rand env.Rand, keys ...Key) (*Keys, error) {
	if len(keys) == 0 {
		return nil, errors.New("make sealing keys: none is given")
	}
	k := &Keys{rand: rand}
	for _, key := range keys {
		if key.Name == "" || strings.Contains(key.Name, ":") {
			return nil, fmt.Errorf("make sealing key %q: a name is not empty and has no colon", key.Name)
		}
		block, err := aes.NewCipher(key.Secret)
		if err != nil {
			return nil, fmt.Errorf("make sealing key %q: %w", key.Name, err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("make sealing key %q: %w", key.Name, err)
		}
		k.keys = append(k.keys, sealer{[]byte(prefix + key.Name + ":"), aead})
	}
	return k, nil
}

// Seal encrypts plaintext for the store key.
func (k *Keys) Seal(key string, plaintext []byte) ([]byte, error) {
	s := k.keys[0]
	n := len(s.prefix) + s.aead.NonceSize()
	out := make([]byte, n, n+len(plaintext)+s.aead.Overhead())
	copy(out, s.prefix)
	if _, err := k.rand.Read(out[len(s.prefix):]); err != nil {
		return nil, err
	}
	return s.aead.Seal(out, out[len(s.prefix):], plaintext, []byte(key)), nil
}

// Open decrypts what Seal made for the same store key.
func (k *Keys) Open(key string, sealed []byte) ([]byte, error) {
	for _, s := range k.keys {
		rest, ok := bytes.CutPrefix(sealed, s.prefix)
		if !ok {
			continue
		}
		if len(rest) < s.aead.NonceSize() {
			return nil, errors.New("decrypt: value is cut off")
		}
		nonce, ciphertext := rest[:s.aead.NonceSize()], rest[s.aead.NonceSize():]
		plaintext, err := s.aead.Open(make([]byte, 0, len(ciphertext)), nonce, ciphertext, []byte(key))
		if err != nil {
			return nil, fmt.Errorf("decrypt with %s: the key is another one, or the value was changed", bytes.TrimSuffix(s.prefix, []byte(":")))
		}
		return plaintext, nil
	}
	return nil, errors.New("decrypt: the value is sealed with none of the configured keys")
}
