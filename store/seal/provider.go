package seal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/nacl/secretbox"

	"proa.dev/env"
)

// encrypted is how every value begins that some provider sealed.
const encrypted = "k8s:enc:"

// provider seals with one key, or lets values be.
type provider interface {
	// prefix of its values; "" is identity.
	prefix() string
	// write names what seals now: it changes when another key does.
	write() string
	seal(ctx context.Context, key string, plain []byte) ([]byte, error)
	// open gets the value without its prefix; stale: the same provider would now seal
	// with another key.
	open(ctx context.Context, key string, data []byte) (plain []byte, stale bool, err error)
}

// aead is a provider on a cipher with associated data: aesgcm.
type gcm struct {
	head string
	aead cipher.AEAD
	rand env.Rand
}

func newGCM(name string, secret []byte, rand env.Rand) (provider, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCM(block)
	return &gcm{prefix + name + ":", a, rand}, err
}

func (g *gcm) prefix() string { return g.head }
func (g *gcm) write() string  { return g.head }

func (g *gcm) seal(_ context.Context, key string, plain []byte) ([]byte, error) {
	return sealGCM(g.aead, g.rand, []byte(g.head), key, plain)
}

// sealGCM appends a nonce, the ciphertext and its tag to head.
func sealGCM(a cipher.AEAD, rand env.Rand, head []byte, key string, plain []byte) ([]byte, error) {
	n := len(head) + a.NonceSize()
	out := make([]byte, n, n+len(plain)+a.Overhead())
	copy(out, head)
	if _, err := rand.Read(out[len(head):]); err != nil {
		return nil, err
	}
	return a.Seal(out, out[len(head):], plain, []byte(key)), nil
}

func (g *gcm) open(_ context.Context, key string, data []byte) ([]byte, bool, error) {
	plain, err := openGCM(g.aead, key, data)
	return plain, false, err
}

func openGCM(a cipher.AEAD, key string, data []byte) ([]byte, error) {
	if len(data) < a.NonceSize() {
		return nil, errors.New("the stored data was shorter than the required size")
	}
	n := a.NonceSize()
	return a.Open(make([]byte, 0, len(data)), data[:n], data[n:], []byte(key))
}

// cbc is AES-CBC with PKCS #7 padding: readable for whoever comes from it, but
// nothing proves that a value was not changed.
type cbc struct {
	head  string
	block cipher.Block
	rand  env.Rand
}

func (c *cbc) prefix() string { return c.head }
func (c *cbc) write() string  { return c.head }

func (c *cbc) seal(_ context.Context, _ string, plain []byte) ([]byte, error) {
	size := c.block.BlockSize()
	pad := size - len(plain)%size
	out := make([]byte, len(c.head)+size+len(plain)+pad)
	copy(out, c.head)
	iv := out[len(c.head):][:size]
	if _, err := c.rand.Read(iv); err != nil {
		return nil, err
	}
	body := out[len(c.head)+size:]
	copy(body, plain)
	copy(body[len(plain):], bytes.Repeat([]byte{byte(pad)}, pad))
	cipher.NewCBCEncrypter(c.block, iv).CryptBlocks(body, body)
	return out, nil
}

var errPadding = errors.New("invalid padding on input")

func (c *cbc) open(_ context.Context, _ string, data []byte) ([]byte, bool, error) {
	size := c.block.BlockSize()
	switch {
	case len(data) < 2*size:
		return nil, false, errors.New("the stored data was shorter than the required size")
	case len(data)%size != 0:
		return nil, false, errors.New("the stored data is not a multiple of the block size")
	}
	out := make([]byte, len(data)-size)
	cipher.NewCBCDecrypter(c.block, data[:size]).CryptBlocks(out, data[size:])
	pad := int(out[len(out)-1])
	if pad == 0 || pad > size {
		return nil, false, errPadding
	}
	for _, b := range out[len(out)-pad:] {
		if int(b) != pad {
			return nil, false, errPadding
		}
	}
	return out[:len(out)-pad], false, nil
}

// box is XSalsa20 with Poly1305.
type box struct {
	head string
	key  [32]byte
	rand env.Rand
}

func (b *box) prefix() string { return b.head }
func (b *box) write() string  { return b.head }

const boxNonce = 24

func (b *box) seal(_ context.Context, _ string, plain []byte) ([]byte, error) {
	var nonce [boxNonce]byte
	if _, err := b.rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(b.head)+boxNonce+secretbox.Overhead+len(plain))
	out = append(append(out, b.head...), nonce[:]...)
	return secretbox.Seal(out, plain, &nonce, &b.key), nil
}

func (b *box) open(_ context.Context, _ string, data []byte) ([]byte, bool, error) {
	if len(data) < boxNonce+secretbox.Overhead {
		return nil, false, errors.New("the stored data was shorter than the required size")
	}
	nonce := [boxNonce]byte(data)
	out, ok := secretbox.Open(nil, data[boxNonce:], &nonce, &b.key)
	if !ok {
		return nil, false, errors.New("the key is another one, or the value was changed")
	}
	return out, false, nil
}

// identity lets values be as they are.
type identity struct{}

func (identity) prefix() string { return "" }
func (identity) write() string  { return "" }
func (identity) seal(_ context.Context, _ string, plain []byte) ([]byte, error) {
	return plain, nil
}
func (identity) open(_ context.Context, _ string, data []byte) ([]byte, bool, error) {
	return data, false, nil
}

var keySizes = map[string][]int{"aesgcm": {16, 24, 32}, "aescbc": {16, 24, 32}, "secretbox": {32}}

// fixed makes the providers of one entry with keys of its own; every key is one.
func fixed(kindOf string, keys []configKey, rand env.Rand, path string) (out []provider, errs []error) {
	if len(keys) == 0 {
		return nil, []error{fmt.Errorf("%s.keys: Required value: at least one keys is required", path)}
	}
	for i, k := range keys {
		p := fmt.Sprintf("%s.keys[%d]", path, i)
		if k.Name == "" {
			errs = append(errs, fmt.Errorf("%s.name: Required value: name is a mandatory field for a key", p))
		}
		if strings.Contains(k.Name, ":") {
			errs = append(errs, fmt.Errorf("%s.name: Invalid value: %q: must not contain ':'", p, k.Name))
		}
		if k.Secret == "" {
			errs = append(errs, fmt.Errorf("%s.secret: Required value: secret is a mandatory field for a key", p))
			continue
		}
		secret, err := base64.StdEncoding.DecodeString(k.Secret)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.secret: Invalid value: \"REDACTED\": secrets must be base64 encoded", p))
			continue
		}
		if sizes := keySizes[kindOf]; !slices.Contains(sizes, len(secret)) {
			errs = append(errs, fmt.Errorf("%s.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got %d, expected one of %v", p, len(secret), sizes))
			continue
		}
		switch head := encrypted + kindOf + ":v1:" + k.Name + ":"; kindOf {
		case "aesgcm":
			g, err := newGCM(k.Name, secret, rand)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p, err))
				continue
			}
			out = append(out, g)
		case "aescbc":
			block, err := aes.NewCipher(secret)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p, err))
				continue
			}
			out = append(out, &cbc{head, block, rand})
		case "secretbox":
			out = append(out, &box{head, [32]byte(secret), rand})
		}
	}
	return out, errs
}
