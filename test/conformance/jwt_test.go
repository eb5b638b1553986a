package conformance

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	same(t, "parts of the token", len(parts), 3)
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	ok(t, err)
	var claims map[string]any
	ok(t, json.Unmarshal(b, &claims))
	return claims
}

// verify checks a token's signature with a published key set.
func verify(token string, set []byte) error {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil {
		return err
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(set, &keys); err != nil {
		return err
	}
	var claims map[string]any
	return parsed.Claims(&keys, &claims)
}
