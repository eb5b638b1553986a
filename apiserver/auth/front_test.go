package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRequestHeaders(t *testing.T) {
	ca, clients := makeCert(t, nil, isCA), makeCert(t, nil, isCA)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	cn := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: name} }
	}
	h, err := NewRequestHeaders(RequestHeaders{Pool: func() *x509.CertPool { return pool }, Now: func() time.Time { return clockZero }, AllowedNames: []string{"front"},
		Username: []string{"X-Remote-User", " X-Other "}, UID: []string{"X-Remote-Uid"}, Group: []string{"X-Remote-Group"}, ExtraPrefix: []string{"X-Remote-Extra-"}})
	if err != nil {
		t.Fatal(err)
	}
	clientPool := x509.NewCertPool()
	clientPool.AddCert(clients.cert)
	un := Strip{Authenticator: Union{h, &X509{Roots: clientPool, Now: h.Now}}}
	req := func(c *authority, kv ...string) *http.Request {
		r := &http.Request{Header: http.Header{}}
		if c != nil {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.cert}}
		}
		for i := 0; i < len(kv); i += 2 {
			r.Header.Add(kv[i], kv[i+1])
		}
		return r
	}
	front, other, jane := makeCert(t, ca, cn("front")), makeCert(t, ca, cn("other")), makeCert(t, clients, nil)
	r := req(front, "X-Remote-User", "joe", "X-Remote-Uid", "u1", "X-Remote-Group", "a", "X-Remote-Group", "b",
		"X-Remote-Extra-Acme.com%2fproject", "p", "x-remote-extra-scopes", "s1", "Authorization", "Bearer x", "Accept", "y")
	u, ok, err := un.Authenticate(r)
	if err != nil || !ok || u.Name != "joe" || u.UID != "u1" || strings.Join(u.Groups, ",") != "a,b,"+AllAuthenticated ||
		u.Extra["acme.com/project"][0] != "p" || u.Extra["scopes"][0] != "s1" {
		t.Fatalf("%+v %v %v", u, ok, err)
	}
	if len(r.Header) != 1 {
		t.Errorf("headers left: %v", r.Header)
	}
	if u, ok, err := un.Authenticate(req(other, "X-Remote-User", "joe")); ok || err == nil || !strings.Contains(err.Error(), "not in the allowed list") {
		t.Errorf("a name that is not allowed: %+v %v", u, err)
	}
	if _, ok, err := un.Authenticate(req(nil, "X-Remote-User", "root", "X-Remote-Group", Masters)); ok || err != nil {
		t.Errorf("headers without a certificate: %v %v", ok, err)
	}
	r = req(jane, "X-Remote-User", "root", "X-Remote-Group", Masters)
	if u, ok, err := un.Authenticate(r); !ok || err != nil || u.Name != "jane" || u.In(Masters) || len(r.Header) != 0 {
		t.Errorf("a client that spoofs headers is %+v %v, %v left", u, err, r.Header)
	}
	if _, ok, _ := un.Authenticate(req(front)); ok {
		t.Error("the proxy itself is somebody")
	}
	if _, err := NewRequestHeaders(RequestHeaders{Username: []string{" "}}); err == nil {
		t.Error("an empty header name")
	}
}

func TestBootstrapTokens(t *testing.T) {
	now := clockZero
	secret := func(id string, change func(*corev1.Secret)) *corev1.Secret {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-" + id}, Type: BootstrapTokenType, Data: map[string][]byte{
			"token-id": []byte(id), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")}}
		if change != nil {
			change(s)
		}
		return s
	}
	set := func(k, v string) func(*corev1.Secret) {
		return func(s *corev1.Secret) { s.Data[k] = []byte(v) }
	}
	v := loaded(secret("good00", set("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token,system:bootstrappers:x")),
		secret("expire", set("expiration", now.Add(time.Minute).Format(time.RFC3339))), secret("badexp", set("expiration", "tomorrow")),
		secret("nouse0", set("usage-bootstrap-authentication", "yes")), secret("otheri", set("token-id", "good00")),
		secret("master", set("auth-extra-groups", "system:masters")), secret("opaque", func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }),
		secret("deleti", func(s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: now} }))
	b := BootstrapTokens{Snapshot: v.Snapshot, Now: func() time.Time { return now }}
	who := func(token string) (User, bool, error) {
		u, _, ok, err := b.AuthenticateToken(context.Background(), token, nil)
		return u, ok, err
	}
	u, ok, err := who("good00.0123456789abcdef")
	if !ok || err != nil || u.Name != "system:bootstrap:good00" || len(u.Groups) != 3 || !u.In("system:bootstrappers:kubeadm:default-node-token") {
		t.Fatalf("%+v %v", u, err)
	}
	if _, ok, _ := who("expire.0123456789abcdef"); !ok {
		t.Error("a token before its end is refused")
	}
	now = now.Add(2 * time.Minute)
	for _, token := range []string{"expire.0123456789abcdef", "badexp.0123456789abcdef", "nouse0.0123456789abcdef", "otheri.0123456789abcdef", "opaque.0123456789abcdef",
		"deleti.0123456789abcdef", "good00.0123456789abcdeg", "absent.0123456789abcdef", "good00.0123456789abcdef\n", "GOOD00.0123456789abcdef", "x", strings.Repeat("a", 1<<20)} {
		if u, ok, err := who(token); ok || err != nil {
			t.Errorf("%.30q is %+v %v", token, u, err)
		}
	}
	if u, ok, err := who("master.0123456789abcdef"); ok || err == nil {
		t.Errorf("a group outside its room: %+v", u)
	}
}

type countedTokens struct {
	n    atomic.Int64
	hold chan struct{}
	err  error
}

func (c *countedTokens) AuthenticateToken(_ context.Context, token string, audiences []string) (User, []string, bool, error) {
	c.n.Add(1)
	if c.hold != nil {
		<-c.hold
	}
	return User{Name: token}, audiences, token != "unknown", c.err
}

func TestCachedTokens(t *testing.T) {
	now := clockZero
	inner := &countedTokens{hold: make(chan struct{})}
	c := &CachedTokens{TokenAuthenticator: inner, TTL: time.Minute, Now: func() time.Time { return now }}
	ctx := context.Background()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if u, _, ok, err := c.AuthenticateToken(ctx, "joe", nil); !ok || err != nil || u.Name != "joe" {
				t.Errorf("%+v %v", u, err)
			}
		})
	}
	close(inner.hold)
	all.Wait()
	if n := inner.n.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	c.AuthenticateToken(ctx, "joe", []string{"a"})
	if n := inner.n.Load(); n != 2 {
		t.Errorf("other audiences: asked %d times", n)
	}
	now = now.Add(2 * time.Minute)
	c.AuthenticateToken(ctx, "joe", nil)
	if n := inner.n.Load(); n != 3 {
		t.Errorf("after its time: asked %d times", n)
	}
	for range 2 {
		if _, _, ok, _ := c.AuthenticateToken(ctx, "unknown", nil); ok {
			t.Error("unknown is known")
		}
	}
	if n := inner.n.Load(); n != 5 {
		t.Errorf("failures are not remembered: asked %d times", n)
	}
	inner.err = errors.New("down")
	c.AuthenticateToken(ctx, "new", nil)
	inner.err = nil
	if _, _, ok, err := c.AuthenticateToken(ctx, "new", nil); !ok || err != nil {
		t.Errorf("an error was remembered: %v", err)
	}
	for i := range maxCachedTokens + 10 {
		c.AuthenticateToken(ctx, "t"+string(rune(i)), []string{"b", string(rune(i >> 8))})
	}
	if len(c.kept) > maxCachedTokens {
		t.Errorf("%d kept", len(c.kept))
	}
}

func TestAgnostic(t *testing.T) {
	a := Agnostic{&countedTokens{}, []string{"api", "https://api"}}
	if _, m, ok, _ := a.AuthenticateToken(context.Background(), "joe", []string{"x", "api"}); !ok || len(m) != 1 || m[0] != "api" {
		t.Error(m, ok)
	}
	if _, _, ok, _ := a.AuthenticateToken(context.Background(), "joe", []string{"x"}); ok {
		t.Error("good for a foreign audience")
	}
	if _, m, ok, _ := a.AuthenticateToken(context.Background(), "joe", nil); !ok || m != nil {
		t.Error(m, ok)
	}
}
