package oidc_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"proa.dev/apiserver/auth/oidc"
)

// FuzzToken: no token but one that the issuer signed names anybody. Expressions of
// the configuration see the claims.
func FuzzToken(f *testing.F) {
	i := start(f)
	var all []*oidc.Authenticator
	for _, text := range []string{plain, `{claimMappings: {username: {expression: "'oidc:' + claims.sub"}, groups: {expression: "claims.groups.split(',')"}, extra: [{key: example.org/x, valueExpression: "claims.x.y[0]"}]},
		claimValidationRules: [{expression: "claims.sub == 'jane'"}], userValidationRules: [{expression: "!user.username.startsWith('system:')"}]}`} {
		a, _ := i.authenticator(f, text)
		all = append(all, a)
	}
	good := i.token(f, claims{"groups": "a,b", "x": map[string]any{"y": []string{"z"}}})
	parts := strings.Split(good, ".")
	enc := base64.RawURLEncoding.EncodeToString
	for _, s := range []string{good, "..", parts[0] + "." + parts[1] + ".", parts[0] + "." + enc([]byte(`{"iss":"`+i.URL+`","sub":"root"}`)) + "." + parts[2],
		enc([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", enc([]byte(`{"alg":"ES256","kid":"two","crit":["b64"],"b64":false}`)) + "." + parts[1] + "." + parts[2],
		enc([]byte(`{"alg":"ES256","jwk":{"kty":"EC"}}`)) + "." + parts[1] + "." + parts[2], good + "." + good, strings.Repeat("A", 1<<17)} {
		f.Add(s)
	}
	i.token(f, nil)
	f.Fuzz(func(t *testing.T, token string) {
		for _, a := range all {
			u, ok, err := who(a, token)
			if !ok || err != nil {
				continue
			}
			if p := strings.Split(token, "."); len(p) != 3 || p[0] != parts[0] || p[1] != parts[1] || u.Name != "oidc:jane" {
				t.Fatalf("%q names %+v", token, u)
			}
		}
	})
}
