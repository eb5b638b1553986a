package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

func pemOf(t *testing.T, kindOf string, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kindOf, Bytes: der})
}

func TestKeysAndRotation(t *testing.T) {
	r, _ := rsa.GenerateKey(rand.Reader, 2048)
	e, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	old, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for _, c := range []struct {
		key crypto.Signer
		alg jose.SignatureAlgorithm
	}{{r, jose.RS256}, {e, jose.ES384}} {
		i := newIssuer(t)
		i.Key = old
		before := i.token(t, nil)
		// The key changes: a new process has the new one and the old public half.
		j := *newIssuer(t)
		j.ServiceAccountTokens = &ServiceAccountTokens{Issuer: "https://issuer", AlsoIssuers: []string{"https://old"}, Audiences: i.Audiences, Key: c.key,
			VerifyKeys: []crypto.PublicKey{c.key.Public(), old.Public()}, Now: i.Now, Snapshot: i.Snapshot, NewID: i.NewID}
		after := j.token(t, nil)
		if tok, err := jose.ParseSigned(after, []jose.SignatureAlgorithm{c.alg}); err != nil || tok.Signatures[0].Header.KeyID != KeyID(c.key.Public()) {
			t.Fatalf("%s: %v", c.alg, err)
		}
		for _, tok := range []string{before, after} {
			if _, err := j.who(tok); err != nil {
				t.Errorf("%s: %v", c.alg, err)
			}
		}
		i.Issuer = "https://old"
		if _, err := j.who(i.token(t, nil)); err != nil {
			t.Errorf("a token of the issuer before: %v", err)
		}
		if _, err := i.who(after); err == nil {
			t.Error("a key that nobody configured is believed")
		}
		data, _ := j.JWKS()
		var set jose.JSONWebKeySet
		if json.Unmarshal(data, &set) != nil || len(set.Keys) != 2 {
			t.Errorf("%s", data)
		}
		if data, _ := j.Discovery(); !strings.Contains(string(data), string(c.alg)) || !strings.Contains(string(data), `"ES256"`) {
			t.Errorf("%s", data)
		}
	}
	none := newIssuer(t)
	none.Key = nil
	if err := none.Issue(none.sa, &authenticationv1.TokenRequest{}); err == nil {
		t.Error("issued without a key")
	}
}

func TestParseKeys(t *testing.T) {
	e, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	r, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	cert := makeCert(t, nil, isCA)
	sec1, err1 := x509.MarshalECPrivateKey(e)
	pkcs8, err8 := x509.MarshalPKCS8PrivateKey(r)
	edDER, errEd := x509.MarshalPKCS8PrivateKey(ed)
	pkix, errP := x509.MarshalPKIXPublicKey(&e.PublicKey)
	var all []byte
	for _, p := range [][]byte{pemOf(t, "EC PRIVATE KEY", sec1, err1), pemOf(t, "PUBLIC KEY", pkix, errP), pemOf(t, "RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&r.PublicKey), nil),
		pemOf(t, "CERTIFICATE", cert.cert.Raw, nil), pemOf(t, "PRIVATE KEY", pkcs8, err8)} {
		all = append(all, p...)
	}
	keys, err := ParsePublicKeys(all)
	if err != nil || len(keys) != 5 || !e.PublicKey.Equal(keys[0]) || !r.PublicKey.Equal(keys[4]) || !cert.key.PublicKey.Equal(keys[3]) {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), pemOf(t, "PUBLIC KEY", []byte("x"), nil), pemOf(t, "PRIVATE KEY", edDER, errEd)} {
		if _, err := ParsePublicKeys(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
		if _, err := ParsePrivateKey(bad); err == nil {
			t.Errorf("%q is a private key", bad)
		}
	}
	if k, err := ParsePrivateKey(all); err != nil || !e.Equal(k) {
		t.Error(err)
	}
}

func TestLegacyTokens(t *testing.T) {
	i := newIssuer(t)
	tok, err := i.IssueLegacy(i.sa, "s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.who(tok); err == nil {
		t.Error("a legacy token without its secret is good")
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "s"}, Type: corev1.SecretTypeServiceAccountToken, Data: map[string][]byte{"token": []byte(tok)}}
	i.set(kind.Secret, secret)
	i.now = i.now.Add(5 * 365 * 24 * time.Hour) // no end
	if u, err := i.who(tok); err != nil || u.Name != "system:serviceaccount:n:sa" || u.UID != "sa-1" || !u.In("system:serviceaccounts:n") {
		t.Fatalf("%+v %v", u, err)
	}
	if _, err := i.who(tok, "vault"); err == nil {
		t.Error("good for another audience")
	}
	if _, m, _, err := i.AuthenticateToken(context.Background(), tok, []string{"api", "vault"}); err != nil || len(m) != 1 {
		t.Error(m, err)
	}
	marked := secret.DeepCopy()
	marked.Labels = map[string]string{legacyInvalid: "2026-01-01"}
	i.set(kind.Secret, marked)
	if _, err := i.who(tok); err == nil || !strings.Contains(err.Error(), "has been marked invalid") {
		t.Error(err)
	}
	other := secret.DeepCopy()
	other.Data["token"] = []byte("x")
	i.set(kind.Secret, other)
	if _, err := i.who(tok); err == nil {
		t.Error("good though its secret holds another")
	}
	i.set(kind.Secret, secret)
	again := i.sa.DeepCopy()
	again.UID = "sa-2"
	i.set(kind.ServiceAccount, again)
	if _, err := i.who(tok); err == nil {
		t.Error("good for an account made again")
	}
}

func TestExtendedTokens(t *testing.T) {
	p := pod("n", "p", "node1")
	i := newIssuer(t, p)
	i.Extend = true
	stale := 0
	i.Stale = func(User) { stale++ }
	ask := func(seconds int64, ref *authenticationv1.BoundObjectReference, audiences ...string) (string, time.Duration) {
		tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: ref, Audiences: audiences}}
		if err := i.Issue(i.sa, tr); err != nil {
			t.Fatal(err)
		}
		return tr.Status.Token, tr.Status.ExpirationTimestamp.Sub(i.now)
	}
	start := i.now
	for _, c := range []struct {
		seconds   int64
		ref       *authenticationv1.BoundObjectReference
		audiences []string
		extended  bool
	}{{3607, bound("Pod", "p", ""), nil, true}, {3607, bound("Pod", "p", ""), []string{"api"}, true}, {3607, bound("Pod", "p", ""), []string{"vault", "api"}, false},
		{3600, bound("Pod", "p", ""), nil, false}, {3607, nil, nil, false}} {
		i.now = start
		tok, told := ask(c.seconds, c.ref, c.audiences...)
		if told != time.Duration(c.seconds)*time.Second {
			t.Errorf("%+v: told %s", c, told)
		}
		stale = 0
		i.now = start.Add(2 * time.Hour)
		if _, err := i.who(tok, "api"); (err == nil) != c.extended || (stale == 1) != c.extended {
			t.Errorf("%+v after two hours: %v, %d warnings", c, err, stale)
		}
		i.now = start.Add(366 * 24 * time.Hour)
		if _, err := i.who(tok, "api"); err == nil {
			t.Errorf("%+v: good after a year", c)
		}
	}
	i.now, i.MaxExpiration = start, 30*time.Minute
	if _, told := ask(7200, nil); told != 30*time.Minute {
		t.Errorf("longest: %s", told)
	}
}
