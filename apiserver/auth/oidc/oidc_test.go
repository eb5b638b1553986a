package oidc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	config "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/oidc"
)

// issuer is a real one, over TLS on loopback.
type issuer struct {
	*httptest.Server
	key     atomic.Pointer[jose.JSONWebKey]
	fetched atomic.Int64
	broken  atomic.Bool
}

func newKey(t testing.TB, id string) *jose.JSONWebKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &jose.JSONWebKey{Key: k, KeyID: id, Algorithm: "ES256", Use: "sig"}
}

func start(t testing.TB) *issuer {
	i := new(issuer)
	i.key.Store(newKey(t, "one"))
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.broken.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		switch r.URL.Path {
		case "/.well-known/openid-configuration", "/elsewhere":
			json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
		case "/keys":
			i.fetched.Add(1)
			json.NewEncoder(w).Encode(map[string]any{"keys": []any{i.key.Load().Public(), map[string]string{"kty": "unheard-of"}}})
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}))
}

var zero = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

type claims map[string]any

func (i *issuer) token(t testing.TB, change claims) string {
	t.Helper()
	return sign(t, i.key.Load(), i.claims(change))
}

func (i *issuer) claims(change claims) claims {
	c := claims{"iss": i.URL, "aud": []string{"me"}, "sub": "jane", "exp": zero.Add(time.Hour).Unix(), "iat": zero.Unix(), "jti": "t1"}
	for k, v := range change {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

func sign(t testing.TB, k *jose.JSONWebKey, c claims) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: *k}, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(map[string]any(c)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func (i *issuer) authenticator(t testing.TB, text string) (*oidc.Authenticator, *clock) {
	t.Helper()
	var j config.JWTAuthenticator
	if err := yaml.UnmarshalStrict([]byte(text), &j); err != nil {
		t.Fatal(err)
	}
	j.Issuer.URL, j.Issuer.CertificateAuthority = i.URL, i.ca()
	if j.Issuer.Audiences == nil {
		j.Issuer.Audiences = []string{"me"}
	}
	if j.Issuer.DiscoveryURL != nil {
		u := i.URL + *j.Issuer.DiscoveryURL
		j.Issuer.DiscoveryURL = &u
	}
	c := &clock{zero}
	a, err := oidc.New(j, oidc.Options{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a, c
}

func who(a *oidc.Authenticator, token string) (auth.User, bool, error) {
	u, _, ok, err := a.AuthenticateToken(context.Background(), token, nil)
	return u, ok, err
}

const plain = `{claimMappings: {username: {claim: sub, prefix: "oidc:"}, groups: {claim: groups, prefix: "g:"}, uid: {claim: sub}}}`

func TestClaims(t *testing.T) {
	i := start(t)
	a, _ := i.authenticator(t, plain)
	if i.fetched.Load() != 0 {
		t.Error("fetched before a token came")
	}
	u, ok, err := who(a, i.token(t, claims{"groups": []string{"a", "b"}}))
	if !ok || err != nil || u.Name != "oidc:jane" || strings.Join(u.Groups, ",") != "g:a,g:b" || u.UID != "jane" || u.Extra[auth.CredentialID][0] != "JTI=t1" {
		t.Fatalf("%+v %v", u, err)
	}
	if u, _, _ := who(a, i.token(t, claims{"groups": "one", "aud": "me"})); strings.Join(u.Groups, ",") != "g:one" {
		t.Errorf("%+v", u)
	}
	// Others' tokens are others' business.
	for _, tok := range []string{"", "x", "a.b.c", i.token(t, claims{"iss": "https://other"}), strings.Repeat("a", 1<<20) + ".b.c"} {
		if _, ok, err := who(a, tok); ok || err != nil {
			t.Errorf("%.40q: %v %v", tok, ok, err)
		}
	}
	body := strings.Split(i.token(t, nil), ".")
	none := "eyJhbGciOiJub25lIn0." + body[1] + "."
	for name, c := range map[string]struct{ token, err string }{
		"another audience": {i.token(t, claims{"aud": []string{"you"}}), "expected audience in"}, "no audience": {i.token(t, claims{"aud": nil}), "expected audience in"},
		"expired": {i.token(t, claims{"exp": zero.Unix()}), "expired"}, "no end": {i.token(t, claims{"exp": nil}), "expired"},
		"of the future": {i.token(t, claims{"nbf": zero.Add(time.Hour).Unix()}), "not valid yet"}, "no subject": {i.token(t, claims{"sub": nil}), `parse username claims "sub"`},
		"a number as a name": {i.token(t, claims{"sub": 7}), "parse claims"}, "groups of numbers": {i.token(t, claims{"groups": []int{1}}), "parse groups claim"},
		"another's key": {sign(t, newKey(t, "one"), i.claims(nil)), "failed to verify signature"}, "an unknown key": {sign(t, newKey(t, "two"), i.claims(nil)), "failed to verify signature"},
		"no algorithm": {none, "verify token"}, "no signature": {body[0] + "." + body[1] + ".", "verify"},
		"distributed": {i.token(t, claims{"_claim_names": map[string]string{"groups": "x"}}), "distributed claims"},
	} {
		if u, ok, err := who(a, c.token); ok || err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v %v", name, u, err)
		}
	}
	if n := i.fetched.Load(); n != 1 {
		t.Errorf("keys were fetched %d times within one pause", n)
	}
}

func TestRotationAndOutage(t *testing.T) {
	i := start(t)
	a, c := i.authenticator(t, plain)
	i.broken.Store(true)
	if _, ok, err := who(a, i.token(t, nil)); ok || err == nil || a.Health(t.Context()) == nil {
		t.Fatal("known without keys")
	}
	i.broken.Store(false)
	if _, _, err := who(a, i.token(t, nil)); err == nil {
		t.Error("asked again at once")
	}
	c.at = c.at.Add(6 * time.Second)
	old := i.token(t, nil)
	if _, ok, err := who(a, old); !ok {
		t.Fatal(err)
	}
	i.key.Store(newKey(t, "two"))
	c.at = c.at.Add(6 * time.Second)
	if _, ok, err := who(a, i.token(t, nil)); !ok {
		t.Fatalf("a new key: %v", err)
	}
	if _, ok, _ := who(a, old); ok {
		t.Error("a key that was taken away is still good")
	}
	// The issuer goes: what is known holds.
	i.broken.Store(true)
	c.at = c.at.Add(time.Minute)
	if _, ok, err := who(a, i.token(t, nil)); !ok {
		t.Error(err)
	}
	who(a, sign(t, newKey(t, "three"), i.claims(nil)))
	if _, ok, err := who(a, i.token(t, nil)); !ok {
		t.Errorf("an outage takes the known keys away: %v", err)
	}
	c.at = zero.Add(-time.Hour) // the clock jumps back
	if _, ok, err := who(a, i.token(t, nil)); !ok {
		t.Error(err)
	}
}

func TestExpressions(t *testing.T) {
	i := start(t)
	a, _ := i.authenticator(t, `
issuer: {audiences: [me, you], audienceMatchPolicy: MatchAny, discoveryURL: /elsewhere}
claimMappings:
  username: {expression: 'claims.email'}
  groups: {expression: 'claims.roles.split(",")'}
  uid: {expression: '"u-" + claims.sub'}
  extra:
  - {key: acme.com/team, valueExpression: 'claims.team'}
  - {key: acme.com/none, valueExpression: '""'}
claimValidationRules:
- {expression: 'claims.?email_verified.orValue(true) == true', message: address is not verified}
- {expression: 'claims.exp - claims.iat <= 7200', message: lives too long}
- {claim: hd, requiredValue: acme.com}
userValidationRules:
- {expression: "!user.username.startsWith('system:')", message: reserved}
- {expression: "user.groups.all(g, !g.startsWith('system:'))", message: reserved group}
`)
	good := claims{"email": "jane@acme.com", "roles": "dev,ops", "team": []string{"x", "y"}, "hd": "acme.com", "aud": "you"}
	u, ok, err := who(a, i.token(t, good))
	if !ok || err != nil || u.Name != "jane@acme.com" || strings.Join(u.Groups, ",") != "dev,ops" || u.UID != "u-jane" ||
		strings.Join(u.Extra["acme.com/team"], ",") != "x,y" || u.Extra["acme.com/none"] != nil {
		t.Fatalf("%+v %v", u, err)
	}
	for name, c := range map[string]struct {
		change claims
		err    string
	}{
		"not verified": {claims{"email_verified": false}, "address is not verified"}, "too long": {claims{"exp": zero.Add(3 * time.Hour).Unix()}, "lives too long"},
		"other domain": {claims{"hd": "evil.com"}, "required claim hd value does not match"}, "no domain": {claims{"hd": nil}, "required claim hd not present"},
		"reserved": {claims{"email": "system:admin"}, "reserved"}, "reserved group": {claims{"roles": "system:masters"}, "reserved group"}, "no address": {claims{"email": nil}, "username claim expression"},
		"empty": {claims{"email": ""}, "empty username"}, "a number": {claims{"email": 7}, "must return a string"}, "roles": {claims{"roles": nil}, "group claim expression"},
	} {
		change := claims{}
		for k, v := range good {
			change[k] = v
		}
		for k, v := range c.change {
			change[k] = v
		}
		if u, ok, err := who(a, i.token(t, change)); ok || err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v %v", name, u, err)
		}
	}
}

func TestRefused(t *testing.T) {
	ok := `issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {claim: sub, prefix: ""}}`
	for text, want := range map[string]string{
		`jwt: [{` + ok + `}, {` + ok + `}]`: `jwt[1].issuer.url: Duplicate value: "https://a"`,
		`jwt: [{issuer: {url: http://a, audiences: [x]}, claimMappings: {username: {claim: sub, prefix: ""}}}]`:                            "URL scheme must be https",
		`jwt: [{issuer: {url: https://self, audiences: [x]}, claimMappings: {username: {claim: sub, prefix: ""}}}]`:                        "URL must not overlap with disallowed issuers",
		`jwt: [{issuer: {url: "https://u:p@a", audiences: [x]}, claimMappings: {username: {claim: sub, prefix: ""}}}]`:                     "must not contain a username or password",
		`jwt: [{issuer: {url: https://a, audiences: [x, y]}, claimMappings: {username: {claim: sub, prefix: ""}}}]`:                        "audienceMatchPolicy must be MatchAny for multiple audiences",
		`jwt: [{issuer: {url: https://a}, claimMappings: {username: {claim: sub, prefix: ""}}}]`:                                           "at least one jwt[0].issuer.audiences is required",
		`jwt: [{issuer: {url: https://a, audiences: [x], discoveryURL: https://a/}, claimMappings: {username: {claim: sub, prefix: ""}}}]`: "discoveryURL must be different from URL",
		`jwt: [{issuer: {url: https://a, audiences: [x], certificateAuthority: x}, claimMappings: {username: {claim: sub, prefix: ""}}}]`:  "certificateAuthority",
		`jwt: [{issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {}}}]`:                                                 "claim or expression is required",
		`jwt: [{issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {claim: sub}}}]`:                                       "prefix is required when claim is set",
		`jwt: [{issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {claim: a, expression: b}}}]`:                          "claim and expression can't both be set",
		`jwt: [{issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {expression: "claims."}}}]`:                            "compilation failed",
		`jwt: [{issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {expression: claims.email}}}]`:                         "claims.email_verified must be used in",
		`jwt: [{` + strings.Replace(ok, `prefix: ""}`, `prefix: ""}, extra: [{key: k8s.io/x, valueExpression: "'a'"}]`, 1) + `}]`:          "reserved for Kubernetes use",
		`jwt: [{` + strings.Replace(ok, `prefix: ""}`, `prefix: ""}, extra: [{key: a.com/X, valueExpression: "'a'"}]`, 1) + `}]`:           "must be lowercase",
		`jwt: [{` + ok + `, userValidationRules: [{expression: "user.username"}]}]`:                                                        "must evaluate to bool",
		`jwt: [{` + ok + `, claimValidationRules: [{expression: "true", claim: x}]}]`:                                                      "claim and expression can't both be set",
		`anonymous: {enabled: false, conditions: [{path: /x}]}`:                                                                            "enabled should be set to true when conditions are defined",
	} {
		var c config.AuthenticationConfiguration
		if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := oidc.Validate(&c, []string{"https://self"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n gives %v\n want %s", text, err, want)
		}
	}
	var c config.AuthenticationConfiguration
	yaml.Unmarshal([]byte(`jwt: [{`+ok+`}]`), &c)
	if err := oidc.Validate(&c, nil); err != nil {
		t.Error(err)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		f      oidc.Flags
		prefix string
	}{{oidc.Flags{IssuerURL: "https://a", ClientID: "me"}, "https://a#"}, {oidc.Flags{IssuerURL: "https://a", UsernameClaim: "email"}, ""},
		{oidc.Flags{IssuerURL: "https://a", UsernamePrefix: "-"}, ""}, {oidc.Flags{IssuerURL: "https://a", UsernamePrefix: "x:", UsernameClaim: "email"}, "x:"}} {
		if got := *c.f.JWT().ClaimMappings.Username.Prefix; got != c.prefix {
			t.Errorf("%+v: prefix %q", c.f, got)
		}
	}
	j := oidc.Flags{IssuerURL: "https://a", GroupsClaim: "groups", GroupsPrefix: "g:", RequiredClaims: map[string]string{"b": "2", "a": "1"}}.JWT()
	if *j.ClaimMappings.Groups.Prefix != "g:" || j.ClaimValidationRules[0].Claim != "a" || j.ClaimValidationRules[1].RequiredValue != "2" {
		t.Errorf("%+v", j)
	}
}
