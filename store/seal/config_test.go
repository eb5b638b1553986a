package seal_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apiserver/pkg/storage/value"
	upaes "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	"k8s.io/apiserver/pkg/storage/value/encrypt/secretbox"
	kmsapi "k8s.io/kms/apis/v2"
	"k8s.io/kms/pkg/service"

	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/store/seal"
)

var keyA, keyB = bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{9}, 32)

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// resource of keys as the tests use them: /registry/RESOURCE[.GROUP]/...
func resource(key string) string { return strings.Split(key, "/")[2] }

const head = "{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: "

type clock struct {
	env.Clock
	ahead atomic.Int64
}

func (c *clock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.ahead.Load())) }

func open(t *testing.T, text string, change func(*seal.Options)) *seal.Set {
	t.Helper()
	o := seal.Options{Resource: resource, Rand: env.SystemRand(), Clock: env.SystemClock()}
	if text != "" {
		o.File = filepath.Join(t.TempDir(), "encryption.yaml")
		if err := os.WriteFile(o.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(&o)
	}
	s, err := seal.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t *testing.T, s *seal.Set) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func provider(kindOf string, keys ...string) string {
	var list []string
	for i := 0; i < len(keys); i += 2 {
		list = append(list, fmt.Sprintf("{name: %s, secret: %s}", keys[i], keys[i+1]))
	}
	return fmt.Sprintf("{%s: {keys: [%s]}}", kindOf, strings.Join(list, ", "))
}

// TestUpstreamReadsAndWrites: both ways, with upstream's own transformers.
func TestUpstreamReadsAndWrites(t *testing.T) {
	const key = "/registry/secrets/n/s"
	block, _ := aes.NewCipher(keyA)
	gcm, err := upaes.NewGCMTransformer(block)
	if err != nil {
		t.Fatal(err)
	}
	ctx, dc := context.Background(), value.DefaultContext(key)
	for kindOf, theirs := range map[string]value.Transformer{"aesgcm": gcm, "aescbc": upaes.NewCBCTransformer(block), "secretbox": secretbox.NewSecretboxTransformer([32]byte(keyA))} {
		s := open(t, head+"[{resources: [secrets], providers: ["+provider(kindOf, "k1", b64(keyA))+", {identity: {}}]}]}", nil)
		theirs := value.NewPrefixTransformers(errors.New("no"), value.PrefixTransformer{Prefix: []byte("k8s:enc:" + kindOf + ":v1:k1:"), Transformer: theirs})
		for _, text := range []string{"", "x", "k8s\x00 exactly16bytes", strings.Repeat("long ", 1000)} {
			ours, err := s.Seal(key, []byte(text))
			if err != nil || bytes.Contains(ours, []byte("bytes")) {
				t.Fatal(err)
			}
			if got, _, err := theirs.TransformFromStorage(ctx, ours, dc); err != nil || string(got) != text {
				t.Errorf("%s: upstream reads %q %v", kindOf, got, err)
			}
			out, err := theirs.TransformToStorage(ctx, []byte(text), dc)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.Open(key, out); err != nil || string(got) != text {
				t.Errorf("%s: we read %q %v", kindOf, got, err)
			}
			// Cut off or changed values are errors, not noise.
			for n := len("k8s:enc:"+kindOf+":v1:k1:") + 1; n < len(ours); n += 1 + len(ours)/50 {
				if got, err := s.Open(key, ours[:n]); err == nil && kindOf != "aescbc" {
					t.Errorf("%s: cut at %d opens as %q", kindOf, n, got)
				}
			}
			if kindOf == "aesgcm" {
				if _, err := s.Open("/registry/secrets/n/other", ours); err == nil {
					t.Error("a value was moved to another key")
				}
			}
		}
	}
}

func TestRules(t *testing.T) {
	s := open(t, head+`[{resources: [events], providers: [{identity: {}}]}, {resources: [secrets, pandas.awesome.bears.example], providers: [`+provider("aesgcm", "one", b64(keyA))+`]},
  {resources: ["*.apps"], providers: [`+provider("aesgcm", "two", b64(keyB))+`]}, {resources: ["*."], providers: [`+provider("aesgcm", "three", b64(keyB))+`]}, {resources: ["*.*"], providers: [`+provider("secretbox", "four", b64(keyB))+`]}]}`, nil)
	for res, want := range map[string]string{"events": "x", "secrets": "k8s:enc:aesgcm:v1:one:", "pandas.awesome.bears.example": "k8s:enc:aesgcm:v1:one:", "deployments.apps": "k8s:enc:aesgcm:v1:two:",
		"pods": "k8s:enc:aesgcm:v1:three:", "jobs.batch": "k8s:enc:secretbox:v1:four:"} {
		key := "/registry/" + res + "/a"
		out, err := s.Seal(key, []byte("x"))
		if err != nil || !bytes.HasPrefix(out, []byte(want)) {
			t.Errorf("%s: %q %v", res, out, err)
		}
		if got, err := s.Open(key, out); err != nil || string(got) != "x" {
			t.Errorf("%s: %q %v", res, got, err)
		}
	}
	if _, err := s.Open("/registry/secrets/a", []byte("k8s:enc:aesgcm:v1:other:xxxx")); err == nil || !strings.Contains(err.Error(), `"k8s:enc:aesgcm:v1:other"`) {
		t.Error(err)
	}
}

// TestRotation: the documented steps, with a reload instead of restarts.
func TestRotation(t *testing.T) {
	var revision atomic.Int64
	revision.Store(10)
	conf := func(list ...string) string {
		return head + "[{resources: [secrets], providers: [" + strings.Join(list, ", ") + "]}]}"
	}
	one, two := provider("aesgcm", "one", b64(keyA)), provider("secretbox", "two", b64(keyB))
	var file string
	s := open(t, conf(one, "{identity: {}}"), func(o *seal.Options) {
		o.Local, o.Revision, file = []seal.Key{{Name: "key1", Secret: keyB}}, revision.Load, o.File
	})
	run(t, s)
	const key = "/registry/secrets/n/s"
	// Values of before: plain, and by the local key.
	local, _ := seal.New(env.SystemRand(), seal.Key{Name: "key1", Secret: keyB})
	before, _ := local.Seal(key, []byte("x"))
	for _, old := range [][]byte{[]byte("x"), before} {
		if got, err := s.Open(key, old); err != nil || string(got) != "x" || !s.Stale(key, 5) {
			t.Errorf("%q: %q %v", old, got, err)
		}
	}
	sealed, _ := s.Seal(key, []byte("x"))
	if s.Stale(key, 11) {
		t.Error("stale right after a write")
	}
	put := func(text string) {
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Rename(file+".new", file)
		s.Reload()
	}
	sealsWith := func(want string) {
		t.Helper()
		await.Nil(t, 10*time.Second, "sealed with "+want, func() error {
			out, err := s.Seal("/registry/secrets/probe", []byte("x"))
			if err == nil && !bytes.HasPrefix(out, []byte("k8s:enc:"+want)) {
				err = fmt.Errorf("sealed as %.40q", out)
			}
			return err
		})
	}
	revision.Store(20)
	put(conf(two, one))
	sealsWith("secretbox:v1:two:")
	if !s.Stale(key, 11) {
		t.Error("not stale after the key changed")
	}
	if got, err := s.Open(key, sealed); err != nil || string(got) != "x" {
		t.Error(err)
	}
	again, _ := s.Seal(key, []byte("x"))
	if s.Stale(key, 21) {
		t.Error("stale after it was rewritten")
	}
	put("{") // a mistake changes nothing
	put(conf(two))
	await.True(t, 10*time.Second, "the key that was taken away opens no longer", func() bool {
		_, err := s.Open(key, sealed)
		return err != nil
	})
	if got, err := s.Open(key, again); err != nil || string(got) != "x" {
		t.Error(err)
	}
}

func TestLocalKeyAlone(t *testing.T) {
	s := open(t, "", func(o *seal.Options) { o.Local = []seal.Key{{Name: "key1", Secret: keyA}} })
	out, err := s.Seal("/registry/secrets/n/s", []byte("x"))
	if err != nil || !bytes.HasPrefix(out, []byte("k8s:enc:aesgcm:v1:key1:")) {
		t.Fatal(err)
	}
	if out, _ := s.Seal("/registry/pods/n/s", []byte("x")); string(out) != "x" {
		t.Errorf("%q", out)
	}
	old, _ := seal.New(env.SystemRand(), seal.Key{Name: "key1", Secret: keyA})
	if got, err := old.Open("/registry/secrets/n/s", out); err != nil || string(got) != "x" {
		t.Error(err)
	}
}

func TestConfigurationMistakes(t *testing.T) {
	good := provider("aesgcm", "a", b64(keyA))
	for text, want := range map[string]string{
		"[]": "at least one resources is required", "[{resources: [], providers: [" + good + "]}]": "at least one resources[0].resources is required",
		"[{resources: [secrets], providers: []}]":                                                                      "at least one resources[0].providers is required",
		"[{resources: [secrets], providers: [{}]}]":                                                                    "does not contain any of the expected providers",
		"[{resources: [secrets], providers: [{identity: {}, aesgcm: {keys: []}}]}]":                                    "more than one provider specified",
		"[{resources: [secrets], providers: [" + provider("aesgcm", "a", "x-") + "]}]":                                 "secrets must be base64 encoded",
		"[{resources: [secrets], providers: [" + provider("aesgcm", "a", b64(keyA[:9])) + "]}]":                        "secret is not of the expected length, got 9, expected one of [16 24 32]",
		"[{resources: [secrets], providers: [" + provider("secretbox", "a", b64(keyA[:16])) + "]}]":                    "expected one of [32]",
		"[{resources: [secrets], providers: [{aesgcm: {keys: []}}]}]":                                                  "at least one keys is required",
		"[{resources: [Secrets], providers: [" + good + "]}]":                                                          "should not contain capital letters",
		"[{resources: ['*'], providers: [" + good + "]}]":                                                              "use '*.' to encrypt all the resources",
		"[{resources: [secrets, '*.'], providers: [" + good + "]}]":                                                    "overlapping resources",
		"[{resources: [secrets, secrets], providers: [" + good + "]}]":                                                 "the same resource cannot be specified multiple times",
		"[{resources: ['*.extensions'], providers: [" + good + "]}]":                                                   "'extensions' group has been removed",
		"[{resources: ['secrets.*'], providers: [" + good + "]}]":                                                      "across groups is not supported",
		"[{resources: [secrets], providers: [{kms: {apiVersion: v1, name: a, endpoint: 'unix:///a'}}]}]":               "KMS v1 is switched off",
		"[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: a, endpoint: 'http://a'}}]}]":                `unsupported scheme "http" for KMS provider, only unix is supported`,
		"[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: 'a:b', endpoint: 'unix:///a'}}]}]":           "must not contain ':'",
		"[{resources: [secrets], providers: [{kms: {apiVersion: v2, endpoint: 'unix:///a', timeout: -1s}}]}]":          "name is a mandatory field",
		"[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: a, endpoint: 'unix:///a', cachesize: 5}}]}]": "cachesize is not supported in v2",
		"[{resources: [secrets], provider: []}]":                                                                       "unknown field",
	} {
		path := filepath.Join(t.TempDir(), "x")
		os.WriteFile(path, []byte(head+text+"}"), 0o600)
		_, err := seal.Open(seal.Options{File: path, Resource: resource, Rand: env.SystemRand(), Clock: env.SystemClock()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n gives %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), b64(keyA[:9])) {
			t.Error("the message tells a key")
		}
	}
}

// plugin is a KMS v2 plugin that xors with its current key.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	mu       sync.Mutex
	keyID    string
	healthz  string
	hang     bool
	patience time.Duration // that the last call which hung brought
	encrypts int
	decrypts int
}

func (p *plugin) Status(ctx context.Context, _ *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hang {
		if end, ok := ctx.Deadline(); ok {
			p.patience = time.Until(end)
		}
		p.mu.Unlock()
		<-ctx.Done()
		p.mu.Lock()
		return nil, ctx.Err()
	}
	return &kmsapi.StatusResponse{Version: "v2", Healthz: p.healthz, KeyId: p.keyID}, nil
}

func xor(b []byte, id string) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= id[i%len(id)]
	}
	return out
}

func (p *plugin) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.encrypts++
	return &kmsapi.EncryptResponse{Ciphertext: xor(r.Plaintext, p.keyID), KeyId: p.keyID, Annotations: map[string][]byte{"version.test.kms": []byte("1")}}, nil
}

func (p *plugin) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decrypts++
	if string(r.Annotations["version.test.kms"]) != "1" || r.Uid == "" {
		return nil, errors.New("annotations are lost")
	}
	return &kmsapi.DecryptResponse{Plaintext: xor(r.Ciphertext, r.KeyId)}, nil
}

func (p *plugin) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func startPlugin(t *testing.T) (*plugin, string) {
	t.Helper()
	p := &plugin{keyID: "kek-1", healthz: "ok"}
	path := filepath.Join(t.TempDir(), "kms.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(s, p)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return p, path
}

// theirs is upstream's client of the same plugin, without the socket.
type theirs struct{ *plugin }

func (p theirs) Status(context.Context) (*service.StatusResponse, error) { return nil, nil }
func (p theirs) Decrypt(ctx context.Context, uid string, r *service.DecryptRequest) ([]byte, error) {
	out, err := p.plugin.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: r.Ciphertext, Uid: uid, KeyId: r.KeyID, Annotations: r.Annotations})
	if err != nil {
		return nil, err
	}
	return out.Plaintext, nil
}
func (p theirs) Encrypt(ctx context.Context, uid string, data []byte) (*service.EncryptResponse, error) {
	out, err := p.plugin.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: data, Uid: uid})
	return &service.EncryptResponse{Ciphertext: out.Ciphertext, KeyID: out.KeyId, Annotations: out.Annotations}, err
}

func TestKMS(t *testing.T) {
	p, path := startPlugin(t)
	var revision atomic.Int64
	revision.Store(10)
	c := &clock{Clock: env.SystemClock()}
	text := head + "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: vault, endpoint: 'unix://" + path + "', timeout: 500ms}}, {identity: {}}]}]}"
	set := func() *seal.Set {
		return open(t, text, func(o *seal.Options) { o.Revision, o.Clock = revision.Load, c })
	}
	s := set()
	const key = "/registry/secrets/n/s"
	var values [][]byte
	for range 100 {
		v, err := s.Seal(key, []byte("secret"))
		if err != nil || !bytes.HasPrefix(v, []byte("k8s:enc:kms:v2:vault:")) {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	if p.encrypts != 1 {
		t.Errorf("the plugin was asked %d times for 100 values", p.encrypts)
	}
	// A new process opens them, asking once.
	s2 := set()
	for _, v := range values {
		if got, err := s2.Open(key, v); err != nil || string(got) != "secret" {
			t.Fatal(err)
		}
	}
	if p.decrypts != 1 {
		t.Errorf("the plugin was asked %d times to open 100 values", p.decrypts)
	}
	// Upstream reads ours, and we read upstream's.
	ctx, dc := context.Background(), value.DefaultContext(key)
	tr, obj, cacheKey, err := kmsv2.GenerateTransformer(ctx, "uid", theirs{p}, true)
	if err != nil {
		t.Fatal(err)
	}
	up := value.NewPrefixTransformers(errors.New("no"), value.PrefixTransformer{Prefix: []byte("k8s:enc:kms:v2:vault:"), Transformer: kmsv2.NewEnvelopeTransformer(theirs{p}, "vault", func() (kmsv2.State, error) {
		return kmsv2.State{Transformer: tr, EncryptedObjectKeyID: obj.KeyID, EncryptedObjectEncryptedDEKSource: obj.EncryptedDEKSource, EncryptedObjectAnnotations: obj.Annotations,
			EncryptedObjectEncryptedDEKSourceType: obj.EncryptedDEKSourceType, UID: "uid", ExpirationTimestamp: time.Now().Add(time.Hour), CacheKey: cacheKey}, nil
	}, "server")})
	if got, _, err := up.TransformFromStorage(ctx, values[0], dc); err != nil || string(got) != "secret" {
		t.Errorf("upstream reads %q %v", got, err)
	}
	out, err := up.TransformToStorage(ctx, []byte("theirs"), dc)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s2.Open(key, out); err != nil || string(got) != "theirs" {
		t.Errorf("we read %q %v", got, err)
	}
	// The plugin's key changes: a new seed, and what was written before is stale.
	s.Seal(key, []byte("secret"))
	if s.Stale(key, 10) {
		t.Error("stale before")
	}
	p.set(func() { p.keyID = "kek-2" })
	c.ahead.Add(int64(4 * time.Minute))
	if v, err := s.Seal("/registry/secrets/n/other", []byte("x")); err != nil || !bytes.Contains(v, []byte("kek-2")) {
		t.Errorf("%q %v", v, err)
	}
	if !s.Stale(key, 10) {
		t.Error("not stale after the plugin's key changed")
	}
	if got, err := s.Open(key, values[0]); err != nil || string(got) != "secret" {
		t.Error(err)
	}
	// A sick or hanging plugin: reads of known seeds go on, writes end with an error
	// in bounded time, once nothing has confirmed the seed for three minutes.
	p.set(func() { p.healthz = "sealed" })
	if err := s.Health(ctx); err == nil || !strings.Contains(err.Error(), "unexpected healthz status: sealed") {
		t.Error(err)
	}
	if _, err := s.Seal(key, []byte("x")); err != nil {
		t.Errorf("a confirmed seed: %v", err)
	}
	c.ahead.Add(int64(4 * time.Minute))
	if _, err := s.Seal(key, []byte("x")); err == nil {
		t.Error("sealed with a seed that nobody confirmed")
	}
	p.set(func() { p.healthz, p.hang = "ok", true })
	if _, err := s.Seal(key, []byte("x")); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a plugin that hangs: %v", err)
	}
	p.set(func() {
		if p.patience <= 0 || p.patience > 500*time.Millisecond {
			t.Errorf("the plugin had %v for its answer, the file says 500ms", p.patience)
		}
	})
	if got, err := s.Open(key, values[1]); err != nil || string(got) != "secret" {
		t.Error(err)
	}
	for n := len("k8s:enc:kms:v2:vault:"); n < len(values[0]); n++ {
		if _, err := s.Open(key, values[0][:n]); err == nil {
			t.Fatalf("cut at %d opens", n)
		}
	}
	run(t, s)
	run(t, s2)
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "x")
	os.WriteFile(path, []byte(head+"[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: v, endpoint: 'unix:///nowhere', timeout: 1ms}}, "+provider("aescbc", "c", b64(keyA))+", "+provider("secretbox", "s", b64(keyA))+"]}]}"), 0o600)
	s, err := seal.Open(seal.Options{File: path, Resource: resource, Rand: env.SystemRand(), Clock: env.SystemClock()})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"x", "k8s:enc:aescbc:v1:c:0123456789abcdef0123456789abcdef", "k8s:enc:secretbox:v1:s:x", "k8s:enc:kms:v2:v:\x0a\x01a\x12\x01b"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) { s.Open("/registry/secrets/n/s", data) })
}

// FuzzConfiguration: whatever the file says is refused or taken; with what was taken
// a value goes in and comes out, unless a plugin would have to be asked.
func FuzzConfiguration(f *testing.F) {
	for _, list := range []string{
		"[{resources: [secrets], providers: [" + provider("aescbc", "a", b64(keyA)) + ", {identity: {}}]}]",
		"[{resources: ['*.*'], providers: [" + provider("secretbox", "a", b64(keyA)) + "]}, {resources: ['*.apps', configmaps], providers: [" + provider("aesgcm", "b", b64(keyB)) + "]}]",
		"[{resources: [secrets, events], providers: [{kms: {apiVersion: v2, name: v, endpoint: 'unix:///nowhere', timeout: 1ms}}]}]",
		"[{resources: [], providers: []}]", "[{resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: c2hvcnQ=}]}, identity: {}}]}]", "&a [*a]", "[{providers: [{kms: {timeout: -1s, endpoint: 'tcp://x'}}]}]",
	} {
		f.Add([]byte(head + list + "}"))
	}
	path := filepath.Join(f.TempDir(), "x")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := seal.Open(seal.Options{File: path, Resource: resource, Rand: env.SystemRand(), Clock: env.SystemClock()})
		if err != nil || bytes.Contains(data, []byte("kms")) {
			return
		}
		for _, key := range []string{"/registry/secrets/n/a", "/registry/deployments.apps/n/a", "/registry/x"} {
			in, err := s.Seal(key, []byte("plain"))
			if err != nil {
				t.Fatalf("seal: %v", err)
			}
			if out, err := s.Open(key, in); err != nil || string(out) != "plain" {
				t.Fatalf("%q is opened to %q, %v", in, out, err)
			}
		}
	})
}
