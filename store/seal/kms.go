package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	kmsapi "k8s.io/kms/apis/v2"

	"proa.dev/env"
)

// Bounds of KMS v2 (KEP-3299): what a plugin may answer, and for how long a data
// key is used after the plugin has last confirmed it.
const (
	kmsTimeout   = 3 * time.Second
	kmsAgain     = 10 * time.Second
	kmsConfirmed = 3 * time.Minute
	kmsMaxKey    = 1 << 10
	kmsMaxNotes  = 32 << 10
	kmsMaxSeeds  = 1000
	seedSize     = 32
	infoSize     = 32
)

// kms is a provider whose key-encryption key is with a plugin on a socket. The
// plugin seals one seed; every value gets a key of its own, derived from the seed
// and 32 random bytes (HKDF-SHA256), so that a seed is good for any number of
// values. A seed is made at the first write and whenever the plugin's key changes.
type kms struct {
	name    string
	timeout time.Duration
	conn    *grpc.ClientConn
	api     kmsapi.KeyManagementServiceClient
	rand    env.Rand
	clock   env.Clock
	rotated *atomic.Int64
	rev     func() int64
	meter   *meter

	asking sync.Mutex // one refresh at once
	state  atomic.Pointer[kmsState]

	mu    sync.Mutex
	seeds map[[sha256.Size]byte][]byte // opened ones, by what the plugin was asked
}

// kmsState is the seed that seals, with the plugin's answer about it.
type kmsState struct {
	seed, sealed []byte
	keyID        string
	notes        map[string][]byte
	until        time.Time
}

func newKMS(c *configKMS, path string, o Options, m *meter, rotated *atomic.Int64) (*kms, []error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(path+format, args...)) }
	switch c.APIVersion {
	case "v2":
	case "", "v1":
		bad(".apiVersion: Invalid value: %q: KMS v1 is switched off since Kubernetes 1.29; the plugin must speak v2", c.APIVersion)
	default:
		bad(".apiVersion: Invalid value: %q: unsupported apiVersion %s for KMS provider, only v1 and v2 are supported", c.APIVersion, c.APIVersion)
	}
	if c.Name == "" {
		bad(".name: Required value: name is a mandatory field for a provider")
	}
	if strings.Contains(c.Name, ":") {
		bad(".name: Invalid value: %q: invalid KMS provider name %s, must not contain ':'", c.Name, c.Name)
	}
	if c.CacheSize != nil {
		bad(".cachesize: Invalid value: %d: cachesize is not supported in v2", *c.CacheSize)
	}
	timeout := kmsTimeout
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d <= 0 {
			bad(".timeout: Invalid value: %q: timeout should be a positive value", c.Timeout)
		}
		timeout = d
	}
	at, unix := strings.CutPrefix(c.Endpoint, "unix://")
	switch {
	case c.Endpoint == "":
		bad(".endpoint: Required value: endpoint is a mandatory field for a provider")
	case !unix:
		scheme, _, _ := strings.Cut(c.Endpoint, ":")
		bad(".endpoint: Invalid value: %q: unsupported scheme %q for KMS provider, only unix is supported", c.Endpoint, scheme)
	case at == "" || at[0] != '/' && at[0] != '@':
		bad(".endpoint: Invalid value: %q: invalid endpoint for kms provider, error: the socket's path is not absolute", c.Endpoint)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	target := "unix://" + at
	if name, abstract := strings.CutPrefix(strings.TrimPrefix(at, "/"), "@"); abstract {
		target = "unix-abstract:" + name
	}
	measured := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		began := o.Clock.Now()
		err := call(ctx, method, req, reply, conn, opts...)
		m.called(c.Name, method, o.Clock.Now().Sub(began), err)
		return err
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(measured), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, []error{fmt.Errorf("%s.endpoint: %w", path, err)}
	}
	return &kms{name: c.Name, timeout: timeout, conn: conn, api: kmsapi.NewKeyManagementServiceClient(conn), rand: o.Rand, clock: o.Clock, meter: m,
		rotated: rotated, rev: o.Revision, seeds: map[[sha256.Size]byte][]byte{}}, nil
}

func (k *kms) prefix() string { return encrypted + "kms:v2:" + k.name + ":" }

func (k *kms) write() string {
	if st := k.state.Load(); st != nil {
		return k.prefix() + st.keyID
	}
	return k.prefix()
}

// status asks the plugin which key it has now.
func (k *kms) status(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	r, err := k.api.Status(ctx, &kmsapi.StatusRequest{})
	switch {
	case err != nil:
		return "", fmt.Errorf("ask KMS %q for its status: %w", k.name, err)
	case r.Version != "v2" && r.Version != "v2beta1":
		return "", fmt.Errorf("ask KMS %q for its status: expected KMSv2 API version v2 or v2beta1, got %q", k.name, r.Version)
	case r.Healthz != "ok":
		return "", fmt.Errorf("ask KMS %q for its status: got unexpected healthz status: %s", k.name, r.Healthz)
	}
	err = checkKeyID(r.KeyId)
	k.meter.told(k.name, r.KeyId, k.clock.Now(), err)
	return r.KeyId, err
}

func checkKeyID(id string) error {
	if id == "" || len(id) > kmsMaxKey {
		return fmt.Errorf("the plugin's key id has %d bytes; it must have 1 to %d", len(id), kmsMaxKey)
	}
	return nil
}

func (k *kms) health(ctx context.Context) error {
	_, err := k.status(ctx)
	return err
}

// refresh confirms the seed, or makes another when the plugin's key has changed.
func (k *kms) refresh(ctx context.Context) error {
	k.asking.Lock()
	defer k.asking.Unlock()
	return k.refreshLocked(ctx)
}

func (k *kms) refreshLocked(ctx context.Context) error {
	id, err := k.status(ctx)
	if err != nil {
		return err
	}
	until := k.clock.Now().Add(kmsConfirmed)
	old := k.state.Load()
	if old != nil && old.keyID == id {
		st := *old
		st.until = until
		k.state.Store(&st)
		return nil
	}
	seed := make([]byte, seedSize)
	if _, err := k.rand.Read(seed); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	r, err := k.api.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: seed, Uid: k.uid()})
	if err != nil {
		return fmt.Errorf("encrypt a seed with KMS %q: %w", k.name, err)
	}
	if err := checkEncrypted(r.Ciphertext, r.KeyId, r.Annotations); err != nil {
		return fmt.Errorf("encrypt a seed with KMS %q: %w", k.name, err)
	}
	// The key that sealed counts, even if it is not the one that Status told.
	if old != nil && old.keyID == r.KeyId {
		st := *old
		st.until = until
		k.state.Store(&st)
		return nil
	}
	k.state.Store(&kmsState{seed: seed, sealed: r.Ciphertext, keyID: r.KeyId, notes: r.Annotations, until: until})
	if old != nil && k.rev != nil {
		k.rotated.Store(k.rev())
	}
	return nil
}

func checkEncrypted(sealed []byte, id string, notes map[string][]byte) error {
	if len(sealed) == 0 || len(sealed) > kmsMaxKey {
		return fmt.Errorf("the plugin's ciphertext has %d bytes; it must have 1 to %d", len(sealed), kmsMaxKey)
	}
	if err := checkKeyID(id); err != nil {
		return err
	}
	size := 0
	for name, v := range notes {
		size += len(name) + len(v)
		if !strings.Contains(name, ".") {
			return fmt.Errorf("the plugin's annotation %q is not a fully qualified domain name", name)
		}
	}
	if size > kmsMaxNotes {
		return fmt.Errorf("the plugin's annotations have %d bytes; they may have %d", size, kmsMaxNotes)
	}
	return nil
}

func (k *kms) uid() string {
	var b [16]byte
	k.rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (k *kms) seal(ctx context.Context, key string, plain []byte) ([]byte, error) {
	st := k.state.Load()
	if st == nil || !k.clock.Now().Before(st.until) {
		k.asking.Lock()
		// Whoever waited may find it done.
		if st = k.state.Load(); st == nil || !k.clock.Now().Before(st.until) {
			if err := k.refreshLocked(ctx); err != nil {
				k.asking.Unlock()
				return nil, err
			}
			st = k.state.Load()
		}
		k.asking.Unlock()
	}
	info := make([]byte, infoSize)
	if _, err := k.rand.Read(info); err != nil {
		return nil, err
	}
	a, err := derive(st.seed, info)
	if err != nil {
		return nil, err
	}
	data, err := sealGCM(a, k.rand, info, key, plain)
	if err != nil {
		return nil, err
	}
	k.meter.use(toStorage, k.name, st.keyID, k.clock.Now())
	out := []byte(k.prefix())
	return encryptedObject{data: data, keyID: st.keyID, source: st.sealed, notes: st.notes, seeded: true}.append(out), nil
}

// derive the cipher of one value.
func derive(seed, info []byte) (cipher.AEAD, error) {
	key, err := hkdf.Expand(sha256.New, seed, string(info), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (k *kms) open(ctx context.Context, key string, data []byte) ([]byte, bool, error) {
	e, err := parseObject(data)
	if err != nil {
		return nil, false, err
	}
	seed, err := k.unseal(ctx, e)
	if err != nil {
		return nil, false, err
	}
	k.meter.use(fromStorage, k.name, e.keyID, k.clock.Now())
	st := k.state.Load()
	stale := st != nil && st.keyID != e.keyID
	if !e.seeded { // values of before the seeds: the data key itself
		block, err := aes.NewCipher(seed)
		if err != nil {
			return nil, false, err
		}
		a, err := cipher.NewGCM(block)
		if err != nil {
			return nil, false, err
		}
		plain, err := openGCM(a, key, e.data)
		return plain, true, err
	}
	if len(e.data) < infoSize {
		return nil, false, errors.New("the stored data was shorter than the required size")
	}
	a, err := derive(seed, e.data[:infoSize])
	if err != nil {
		return nil, false, err
	}
	plain, err := openGCM(a, key, e.data[infoSize:])
	return plain, stale, err
}

// unseal a seed: from memory, or by the plugin.
func (k *kms) unseal(ctx context.Context, e *encryptedObject) ([]byte, error) {
	if st := k.state.Load(); st != nil && st.keyID == e.keyID && slices.Equal(st.sealed, e.source) {
		return st.seed, nil
	}
	id := sha256.Sum256(encryptedObject{keyID: e.keyID, source: e.source, notes: e.notes}.append(nil))
	k.mu.Lock()
	seed := k.seeds[id]
	k.mu.Unlock()
	if seed != nil {
		return seed, nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	r, err := k.api.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: e.source, Uid: k.uid(), KeyId: e.keyID, Annotations: e.notes})
	if err != nil {
		return nil, fmt.Errorf("decrypt a seed with KMS %q, key %q: %w", k.name, e.keyID, err)
	}
	if len(r.Plaintext) < 16 {
		return nil, fmt.Errorf("decrypt a seed with KMS %q, key %q: it has %d bytes only", k.name, e.keyID, len(r.Plaintext))
	}
	k.mu.Lock()
	if len(k.seeds) >= kmsMaxSeeds {
		clear(k.seeds)
	}
	k.seeds[id] = r.Plaintext
	k.meter.seeds.WithLabelValues(k.name).Set(float64(len(k.seeds)))
	k.mu.Unlock()
	return r.Plaintext, nil
}

// encryptedObject is the envelope around a value (message EncryptedObject of
// KMS v2's storage format).
type encryptedObject struct {
	data   []byte            // 1
	keyID  string            // 2
	source []byte            // 3
	notes  map[string][]byte // 4
	seeded bool              // 5: HKDF_SHA256_XNONCE_AES_GCM_SEED
}

func (e encryptedObject) append(b []byte) []byte {
	field := func(n protowire.Number, v []byte) {
		if len(v) > 0 {
			b = protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
		}
	}
	field(1, e.data)
	field(2, []byte(e.keyID))
	field(3, e.source)
	names := make([]string, 0, len(e.notes))
	for n := range e.notes {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		pair := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), n)
		pair = protowire.AppendBytes(protowire.AppendTag(pair, 2, protowire.BytesType), e.notes[n])
		b = protowire.AppendBytes(protowire.AppendTag(b, 4, protowire.BytesType), pair)
	}
	if e.seeded {
		b = protowire.AppendVarint(protowire.AppendTag(b, 5, protowire.VarintType), 1)
	}
	return b
}

var errEnvelope = errors.New("the stored data is no envelope of KMS v2")

func parseObject(data []byte) (*encryptedObject, error) {
	e := new(encryptedObject)
	err := eachField(data, func(n protowire.Number, v []byte, number uint64) error {
		switch n {
		case 1:
			e.data = v
		case 2:
			e.keyID = string(v)
		case 3:
			e.source = v
		case 4:
			var name string
			var value []byte
			if err := eachField(v, func(n protowire.Number, v []byte, _ uint64) error {
				switch n {
				case 1:
					name = string(v)
				case 2:
					value = v
				}
				return nil
			}); err != nil {
				return err
			}
			if e.notes == nil {
				e.notes = map[string][]byte{}
			}
			e.notes[name] = value
		case 5:
			if number > 1 {
				return fmt.Errorf("%w: its kind of key %d is unknown", errEnvelope, number)
			}
			e.seeded = number == 1
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(e.data) == 0 {
		return nil, fmt.Errorf("%w: it is empty", errEnvelope)
	}
	return e, checkEncrypted(e.source, e.keyID, e.notes)
}

func eachField(data []byte, f func(n protowire.Number, v []byte, number uint64) error) error {
	for len(data) > 0 {
		n, t, used := protowire.ConsumeTag(data)
		if used < 0 {
			return errEnvelope
		}
		data = data[used:]
		var v []byte
		var number uint64
		switch t {
		case protowire.BytesType:
			v, used = protowire.ConsumeBytes(data)
		case protowire.VarintType:
			number, used = protowire.ConsumeVarint(data)
		default:
			used = protowire.ConsumeFieldValue(n, t, data)
		}
		if used < 0 {
			return errEnvelope
		}
		data = data[used:]
		if err := f(n, v, number); err != nil {
			return err
		}
	}
	return nil
}
