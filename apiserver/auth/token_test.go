package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/kind"
	"proa.dev/view"
)

type issuer struct {
	*ServiceAccountTokens
	view *view.View
	now  time.Time
	rev  int64
	sa   *corev1.ServiceAccount
}

func newIssuer(t testing.TB, objects ...kind.Object) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "sa", UID: "sa-1"}}
	i := &issuer{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), rev: 1, sa: sa, view: loaded(append(objects, sa)...)}
	n := 0
	i.ServiceAccountTokens = &ServiceAccountTokens{Issuer: "https://issuer", Audiences: []string{"api"}, Key: key, Now: func() time.Time { return i.now },
		Snapshot: i.view.Snapshot, NewID: func() string { n++; return fmt.Sprint("id-", n) }}
	return i
}

func (i *issuer) set(k *kind.Kind, o kind.Object) {
	i.rev++
	i.view.Apply(view.Change{Kind: k, Revision: i.rev, New: o})
}

func (i *issuer) remove(k *kind.Kind, o kind.Object) {
	i.rev++
	i.view.Apply(view.Change{Kind: k, Revision: i.rev, Last: o})
}

func (i *issuer) token(t testing.TB, bound *authenticationv1.BoundObjectReference, audiences ...string) string {
	t.Helper()
	tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: bound}}
	if err := i.Issue(i.sa, tr); err != nil {
		t.Fatal(err)
	}
	return tr.Status.Token
}

func (i *issuer) who(token string, audiences ...string) (User, error) {
	u, _, ok, err := i.AuthenticateToken(context.Background(), token, audiences)
	if err == nil && !ok {
		err = fmt.Errorf("unknown")
	}
	return u, err
}

func bound(kindName, name string, uid types.UID) *authenticationv1.BoundObjectReference {
	return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kindName, Name: name, UID: uid}
}

func TestTokenIdentity(t *testing.T) {
	p := pod("n", "p", "node1")
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", UID: "node-1"}}
	i := newIssuer(t, p, node)
	u, err := i.who(i.token(t, bound("Pod", "p", p.UID)))
	if err != nil || u.Name != "system:serviceaccount:n:sa" || u.UID != "sa-1" || !u.In(ServiceAccounts) || !u.In("system:serviceaccounts:n") || u.In(Masters) {
		t.Fatalf("%+v %v", u, err)
	}
	for key, want := range map[string]string{"pod-name": "p", "pod-uid": "n/p", "node-name": "node1", "node-uid": "node-1", "credential-id": "JTI=id-1"} {
		if got := u.Extra["authentication.kubernetes.io/"+key]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestTokenTimeAndAudience(t *testing.T) {
	i := newIssuer(t)
	plain, vault := i.token(t, nil), i.token(t, nil, "vault", "x")
	if _, err := i.who(vault); err == nil || !strings.Contains(err.Error(), "audience") {
		t.Errorf("a token for another audience: %v", err)
	}
	if _, err := i.who(vault, "vault"); err != nil {
		t.Error(err)
	}
	if _, err := i.who(plain, "vault"); err == nil {
		t.Error("the API's token is good for vault")
	}
	if _, matched, _, err := i.AuthenticateToken(context.Background(), vault, []string{"y", "x", "vault"}); err != nil || len(matched) != 2 {
		t.Errorf("%v %v", matched, err)
	}
	for _, step := range []struct {
		by   time.Duration
		good bool
	}{{-5 * time.Second, true}, {-time.Minute, false}, {59 * time.Minute, true}, {time.Hour + 5*time.Second, true}, {time.Hour + time.Minute, false}} {
		i.now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).Add(step.by)
		if _, err := i.who(plain); (err == nil) != step.good {
			t.Errorf("after %s: %v", step.by, err)
		}
	}
}

func TestTokenEndsWithWhatItIsBoundTo(t *testing.T) {
	when := func(o kind.Object, at time.Time) kind.Object {
		o = o.DeepCopyObject().(kind.Object)
		d := metav1.NewTime(at)
		o.SetDeletionTimestamp(&d)
		return o
	}
	p := pod("n", "p", "node1")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s", UID: "s-1"}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", UID: "node-1"}}
	for _, c := range []struct {
		name string
		k    *kind.Kind
		o    kind.Object
		ref  *authenticationv1.BoundObjectReference
	}{{"pod", kind.Pod, p, bound("Pod", "p", "")}, {"secret", kind.Secret, secret, bound("Secret", "s", "s-1")}, {"node", kind.Node, node, bound("Node", "node1", "")},
		{"service account", kind.ServiceAccount, nil, nil}} {
		t.Run(c.name, func(t *testing.T) {
			i := newIssuer(t, p, secret, node)
			o := c.o
			if o == nil {
				o = i.sa
			}
			tok := i.token(t, c.ref)
			good := func(want bool, what string) {
				t.Helper()
				if _, err := i.who(tok); (err == nil) != want {
					t.Errorf("%s: %v", what, err)
				}
			}
			good(true, "fresh")
			i.set(c.k, when(o, i.now.Add(-30*time.Second)))
			good(true, "being deleted")
			i.set(c.k, when(o, i.now.Add(-2*time.Minute)))
			good(false, "deleted long ago and held")
			i.remove(c.k, o)
			good(false, "gone")
			again := o.DeepCopyObject().(kind.Object)
			again.SetUID("another")
			i.set(c.k, again)
			good(false, "made again under the same name")
		})
	}
}

func TestTokenForgeries(t *testing.T) {
	i, j := newIssuer(t), newIssuer(t)
	good := i.token(t, nil)
	if _, err := i.who(good); err != nil {
		t.Fatal(err)
	}
	part := strings.Split(good, ".")
	enc := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
	raw, _ := base64.RawURLEncoding.DecodeString(part[1])
	var body map[string]any
	json.Unmarshal(raw, &body)
	body["sub"] = "system:serviceaccount:kube-system:admin"
	none := enc(map[string]string{"alg": "none", "typ": "JWT"})
	pub, _ := json.Marshal(jose.JSONWebKey{Key: i.Key.Public()})
	mac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: pub}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, _ := mac.Sign(raw)
	symmetric, _ := signed.CompactSerialize()
	j.Issuer = "https://issuer"
	foreign := j.token(t, nil)
	j.Issuer = "https://elsewhere"
	stranger := j.token(t, nil)
	flip := "A"
	if strings.HasPrefix(part[2], "A") {
		flip = "B"
	}
	for name, tok := range map[string]string{
		"payload changed": part[0] + "." + enc(body) + "." + part[2], "no algorithm": none + "." + part[1] + ".", "no algorithm, signature kept": none + "." + part[1] + "." + part[2],
		"signed with the public key": symmetric, "another key": foreign, "another issuer": stranger, "signature changed": part[0] + "." + part[1] + "." + flip + part[2][1:],
		"no signature": part[0] + "." + part[1] + ".", "empty": "", "dots": "..", "noise": "a.b.c", "a part too many": good + ".x",
	} {
		if u, err := i.who(tok); err == nil {
			t.Errorf("%s: accepted as %+v", name, u)
		}
	}
}

// TestTokenCache: bounded, and never a way around what is checked each time.
func TestTokenCache(t *testing.T) {
	i := newIssuer(t)
	tok := i.token(t, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if _, err := i.who(tok); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(i.cache) != 1 {
		t.Errorf("%d entries for one token", len(i.cache))
	}
	i.who("a.b.c")
	if len(i.cache) != 1 {
		t.Error("a bad token is kept")
	}
	for n := range maxCacheSize + 10 {
		i.cache[[32]byte{byte(n), byte(n >> 8), 1}] = new(claims)
		if len(i.cache) >= maxCacheSize {
			break
		}
	}
	if _, err := i.who(i.token(t, nil)); err != nil || len(i.cache) > maxCacheSize {
		t.Errorf("%d entries, %v", len(i.cache), err)
	}
	if _, err := i.who(tok); err != nil {
		t.Error(err)
	}
	i.remove(kind.ServiceAccount, i.sa)
	if _, err := i.who(tok); err == nil {
		t.Error("the cache keeps a revoked token alive")
	}
}

func TestIssueRefuses(t *testing.T) {
	other := pod("n", "other", "")
	other.Spec.ServiceAccountName = "else"
	i := newIssuer(t, other, pod("n", "p", ""))
	short, long := int64(599), int64(1<<32+1)
	for _, c := range []struct {
		spec authenticationv1.TokenRequestSpec
		is   func(error) bool
		text string
	}{
		{authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}, apierrors.IsInvalid, "may not specify a duration less than 10 minutes"},
		{authenticationv1.TokenRequestSpec{ExpirationSeconds: &long}, apierrors.IsInvalid, "may not specify a duration larger than 2^32 seconds"},
		{authenticationv1.TokenRequestSpec{BoundObjectRef: bound("Pod", "none", "")}, apierrors.IsNotFound, `pods "none" not found`},
		{authenticationv1.TokenRequestSpec{BoundObjectRef: bound("Pod", "p", "wrong")}, apierrors.IsConflict, "the UID in the bound object reference (wrong) does not match the UID in record"},
		{authenticationv1.TokenRequestSpec{BoundObjectRef: bound("Pod", "other", "")}, apierrors.IsBadRequest, `cannot bind token for serviceaccount "sa" to pod running with different serviceaccount name.`},
		{authenticationv1.TokenRequestSpec{BoundObjectRef: bound("ConfigMap", "x", "")}, apierrors.IsBadRequest, "cannot bind token to object of type /v1, Kind=ConfigMap"},
	} {
		err := i.Issue(i.sa, &authenticationv1.TokenRequest{Spec: c.spec})
		if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("want %q, got %v", c.text, err)
		}
	}
}

func TestDiscoveryAndKeys(t *testing.T) {
	i := newIssuer(t)
	data, err := i.JWKS()
	var set jose.JSONWebKeySet
	if err != nil || json.Unmarshal(data, &set) != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("%s %v", data, err)
	}
	tok, err := jose.ParseSigned(i.token(t, nil), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || len(set.Key(tok.Signatures[0].Header.KeyID)) != 1 {
		t.Fatalf("the key of a token is not in the set: %v", err)
	}
	if _, err := tok.Verify(set.Keys[0].Key); err != nil {
		t.Error(err)
	}
	if data, err = i.Discovery(); err != nil || !strings.Contains(string(data), `"jwks_uri":"https://issuer/openid/v1/jwks"`) {
		t.Errorf("%s %v", data, err)
	}
}

type tokenNames struct{}

func (tokenNames) AuthenticateToken(_ context.Context, token string, _ []string) (User, []string, bool, error) {
	if token == "bad" {
		return User{}, nil, false, nil
	}
	return User{Name: token}, nil, true, nil
}

func TestBearer(t *testing.T) {
	enc := func(s string) string { return webSocketBearer + base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		header    map[string]string
		user, err string
		left      string
	}{
		{map[string]string{}, "", "", ""},
		{map[string]string{"Authorization": "Bearer joe"}, "joe", "", ""},
		{map[string]string{"Authorization": "bearer  joe "}, "joe", "", ""},
		{map[string]string{"Authorization": "Basic joe"}, "", "", ""},
		{map[string]string{"Authorization": "Bearer"}, "", "", ""},
		{map[string]string{"Authorization": "Bearer "}, "", "", ""},
		{map[string]string{"Authorization": "Bearer bad"}, "", "invalid bearer token", ""},
		{map[string]string{"Upgrade": "websocket", "Sec-WebSocket-Protocol": "v5.channel.k8s.io, " + enc("joe")}, "joe", "", "v5.channel.k8s.io"},
		{map[string]string{"Upgrade": "WebSocket", "Sec-WebSocket-Protocol": enc("joe") + ",a,b"}, "joe", "", "a,b"},
		{map[string]string{"Sec-WebSocket-Protocol": "a," + enc("joe")}, "", "", "a," + enc("joe")},
		{map[string]string{"Upgrade": "websocket", "Sec-WebSocket-Protocol": enc("joe")}, "", "missing additional subprotocol", enc("joe")},
		{map[string]string{"Upgrade": "websocket", "Sec-WebSocket-Protocol": "a," + enc("joe") + "," + enc("eve")}, "", "multiple base64", "a," + enc("joe") + "," + enc("eve")},
		{map[string]string{"Upgrade": "websocket", "Sec-WebSocket-Protocol": "a," + webSocketBearer + "!!"}, "", "token encoding", "a," + webSocketBearer + "!!"},
		{map[string]string{"Upgrade": "websocket", "Sec-WebSocket-Protocol": "a," + enc("\xff\xfe")}, "", "token encoding", "a," + enc("\xff\xfe")},
		{map[string]string{"Upgrade": "websocket", "Sec-WebSocket-Protocol": "a,b"}, "", "", "a,b"},
	} {
		r := &http.Request{Header: http.Header{}}
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		u, ok, err := Bearer{tokenNames{}}.Authenticate(r)
		if u.Name != c.user || ok != (c.user != "") || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v: %q %v %v", c.header, u.Name, ok, err)
		}
		if got := r.Header.Get("Sec-WebSocket-Protocol"); got != c.left {
			t.Errorf("%v: %q is left", c.header, got)
		}
	}
}
