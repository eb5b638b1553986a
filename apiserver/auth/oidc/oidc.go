package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"k8s.io/apimachinery/pkg/util/validation/field"
	config "k8s.io/apiserver/pkg/apis/apiserver/v1"
	authcel "k8s.io/apiserver/pkg/authentication/cel"

	"proa.dev/apiserver/auth"
)

const (
	wellKnown   = "/.well-known/openid-configuration"
	maxToken    = 64 << 10
	maxDocument = 1 << 20
	fetchTime   = 10 * time.Second
	// between two fetches of an issuer's documents.
	fetchPause = 5 * time.Second
	// nbfLeeway is what the clocks of issuer and server may differ at a token's begin.
	nbfLeeway = 5 * time.Minute
)

// Algorithms that structured configuration accepts; the flags' default is RS256.
var Algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512}

// Options of New besides the issuer.
type Options struct {
	Algorithms []jose.SignatureAlgorithm // nil: Algorithms
	Disallowed []string                  // issuers that the server itself uses
	Now        func() time.Time
	// Transport instead of one with the issuer's authority, for tests.
	Transport http.RoundTripper
}

// Authenticator of one issuer's tokens.
type Authenticator struct {
	conf   config.JWTAuthenticator
	mapper mapper
	algs   []jose.SignatureAlgorithm
	now    func() time.Time
	client *http.Client

	fetching sync.Mutex
	mu       sync.Mutex
	keys     []jose.JSONWebKey
	at       time.Time // of the last fetch that was tried
	failed   error
}

var _ auth.TokenAuthenticator = (*Authenticator)(nil)

// New checks and compiles the configuration of one issuer; it fetches nothing.
func New(j config.JWTAuthenticator, o Options) (*Authenticator, error) {
	m, errs := compile(authcel.NewDefaultCompiler(), &j, field.NewPath("jwt"), o.Disallowed)
	if err := errs.ToAggregate(); err != nil {
		return nil, err
	}
	a := &Authenticator{conf: j, mapper: m, algs: o.Algorithms, now: o.Now}
	if a.algs == nil {
		a.algs = Algorithms
	}
	for _, alg := range a.algs {
		if !slices.Contains(Algorithms, alg) {
			return nil, fmt.Errorf("oidc: unsupported signing alg: %q", alg)
		}
	}
	transport := o.Transport
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		if ca := j.Issuer.CertificateAuthority; ca != "" {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM([]byte(ca))
			t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		}
		transport = t
	}
	a.client = &http.Client{Transport: transport, Timeout: fetchTime}
	return a, nil
}

// Close gives idle connections back.
func (a *Authenticator) Close() { a.client.CloseIdleConnections() }

// Issuer is the URL that tokens must name.
func (a *Authenticator) Issuer() string { return a.conf.Issuer.URL }

// Health fetches the keys when they are not there yet and says why they are not.
func (a *Authenticator) Health(ctx context.Context) error {
	if _, err := a.published(ctx, time.Time{}); err != nil {
		return fmt.Errorf("oidc: issuer %q: %w", a.Issuer(), err)
	}
	return nil
}

// AuthenticateToken implements auth.TokenAuthenticator; audiences are ignored
// (wrap it in auth.Agnostic).
func (a *Authenticator) AuthenticateToken(ctx context.Context, token string, _ []string) (auth.User, []string, bool, error) {
	if len(token) > maxToken || issuerOf(token) != a.Issuer() {
		return auth.User{}, nil, false, nil
	}
	tok, err := jwt.ParseSigned(token, a.algs)
	if err != nil || len(tok.Headers) != 1 {
		return auth.User{}, nil, false, fmt.Errorf("oidc: verify token: %w", errors.Join(err, errHeaders))
	}
	raw, err := a.verify(ctx, tok)
	if err != nil {
		return auth.User{}, nil, false, fmt.Errorf("oidc: verify token: %w", err)
	}
	var std jwt.Claims
	if err := tok.UnsafeClaimsWithoutVerification(&std); err != nil { // verified above
		return auth.User{}, nil, false, fmt.Errorf("oidc: parse claims: %w", err)
	}
	now := a.now()
	switch {
	case !slices.ContainsFunc(a.conf.Issuer.Audiences, func(x string) bool { return slices.Contains(std.Audience, x) }):
		return auth.User{}, nil, false, fmt.Errorf("oidc: expected audience in %q got %q", a.conf.Issuer.Audiences, []string(std.Audience))
	case std.Expiry == nil || !now.Before(std.Expiry.Time()):
		return auth.User{}, nil, false, errors.New("oidc: verify token: token is expired")
	case std.NotBefore != nil && now.Add(nbfLeeway).Before(std.NotBefore.Time()):
		return auth.User{}, nil, false, errors.New("oidc: verify token: token is not valid yet")
	}
	u, err := a.user(ctx, raw)
	if err != nil {
		return auth.User{}, nil, false, err
	}
	return u, nil, true, nil
}

var errHeaders = errors.New("it must have one signature")

func issuerOf(token string) string {
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return ""
	}
	body, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(body, &c) != nil {
		return ""
	}
	if c.Issuer == "accounts.google.com" { // an old habit of that issuer
		return "https://accounts.google.com"
	}
	return c.Issuer
}

// verify finds the key that made the signature; the keys are fetched again when
// none did and the last fetch is old enough.
func (a *Authenticator) verify(ctx context.Context, tok *jwt.JSONWebToken) (map[string]json.RawMessage, error) {
	head := tok.Headers[0]
	var after time.Time
	for range 2 {
		keys, err := a.published(ctx, after)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if head.KeyID != "" && k.KeyID != head.KeyID || k.Algorithm != "" && k.Algorithm != head.Algorithm {
				continue
			}
			claims := map[string]json.RawMessage{}
			if tok.Claims(k.Key, &claims) == nil {
				return claims, nil
			}
		}
		after = a.now()
	}
	return nil, errors.New("failed to verify signature: no key of the issuer made it")
}

// published are the issuer's keys, fetched after an instant if that is allowed
// again. One fetch is under way at most.
func (a *Authenticator) published(ctx context.Context, after time.Time) ([]jose.JSONWebKey, error) {
	have := func() ([]jose.JSONWebKey, error, bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		old := a.keys == nil || !after.IsZero() && a.at.Before(after)
		if old && (a.at.IsZero() || a.now().Sub(a.at) >= fetchPause || a.now().Before(a.at)) {
			return nil, nil, false
		}
		if a.keys == nil {
			return nil, a.failed, true
		}
		return a.keys, nil, true
	}
	if keys, err, ok := have(); ok {
		return keys, err
	}
	a.fetching.Lock()
	defer a.fetching.Unlock()
	if keys, err, ok := have(); ok { // somebody else fetched meanwhile
		return keys, err
	}
	keys, err := a.fetch(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.failed = a.now(), err
	if err != nil && a.keys != nil {
		return a.keys, nil // the old ones still hold
	}
	if err != nil {
		return nil, err
	}
	a.keys = keys
	return keys, nil
}

func (a *Authenticator) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	// One request's end must not be the others'.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
	defer cancel()
	at := strings.TrimSuffix(a.Issuer(), "/") + wellKnown
	if d := a.conf.Issuer.DiscoveryURL; d != nil && *d != "" {
		at = *d
	}
	var doc struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := a.get(ctx, at, &doc); err != nil {
		return nil, fmt.Errorf("discover issuer: %w", err)
	}
	if doc.Issuer != a.Issuer() {
		return nil, fmt.Errorf("discover issuer: document at %q is of issuer %q, expected %q", at, doc.Issuer, a.Issuer())
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := a.get(ctx, doc.JWKS, &set); err != nil {
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	keys := []jose.JSONWebKey{}
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		// Kinds of keys that this library does not know are for others.
		if json.Unmarshal(raw, &k) == nil && k.Valid() && k.IsPublic() && k.Use != "enc" {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("fetch keys: %q has none that can be used", doc.JWKS)
	}
	return keys, nil
}

func (a *Authenticator) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxDocument+1))
	switch {
	case err != nil:
		return fmt.Errorf("read %q: %w", url, err)
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("read %q: status %s", url, res.Status)
	case len(body) > maxDocument:
		return fmt.Errorf("read %q: more than %d bytes", url, maxDocument)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read %q: %w", url, err)
	}
	return nil
}

// user made of the claims.
func (a *Authenticator) user(ctx context.Context, raw map[string]json.RawMessage) (auth.User, error) {
	var none auth.User
	m := &a.conf.ClaimMappings
	values := make(map[string]any, len(raw))
	for k, v := range raw {
		var x any
		if err := json.Unmarshal(v, &x); err != nil {
			return none, fmt.Errorf("oidc: parse claim %s: %w", k, err)
		}
		values[k] = x
	}
	var claims traits.Mapper = types.NewStringInterfaceMap(types.DefaultTypeAdapter, values)
	eval := func(r *authcel.CompilationResult) (ref.Val, error) {
		v, _, err := r.Program.ContextEval(ctx, map[string]any{"claims": claims})
		if err == nil && v == nil {
			err = errIncomplete
		}
		return v, err
	}
	text := func(r *authcel.CompilationResult, what string) (string, error) {
		v, err := eval(r)
		if err != nil {
			return "", fmt.Errorf("oidc: error evaluating %s claim expression: %w", what, err)
		}
		s, ok := v.Value().(string)
		if !ok || v.Type() != types.StringType {
			return "", fmt.Errorf("oidc: error evaluating %s claim expression: %s claim expression must return a string", what, what)
		}
		return s, nil
	}
	var u auth.User
	var err error
	if a.mapper.username != nil {
		if u.Name, err = text(a.mapper.username, "username"); err != nil {
			return none, err
		}
		if u.Name == "" {
			return none, errors.New("oidc: empty username via CEL expression is not allowed")
		}
	} else {
		claim := m.Username.Claim
		name, ok := values[claim].(string)
		if !ok {
			return none, fmt.Errorf("oidc: parse username claims %q: claim not present or not a string", claim)
		}
		if claim == "email" {
			if v, present := values["email_verified"]; present {
				if yes, ok := v.(bool); !ok {
					return none, errors.New("oidc: parse 'email_verified' claim: it is not a boolean")
				} else if !yes {
					return none, errors.New("oidc: email not verified")
				}
			}
		}
		u.Name = name
		if m.Username.Prefix != nil {
			u.Name = *m.Username.Prefix + name
		}
	}
	switch claim := m.Groups.Claim; {
	case a.mapper.groups != nil:
		v, err := eval(a.mapper.groups)
		if err == nil {
			u.Groups, err = stringList(v)
		}
		if err != nil {
			return none, fmt.Errorf("oidc: error evaluating group claim expression: %w", err)
		}
	case claim != "":
		v, present := values[claim]
		if !present {
			if names, _ := values["_claim_names"].(map[string]any); names[claim] != nil {
				return none, fmt.Errorf("oidc: could not expand distributed claims: claim %q is with another source, which this server does not ask; let the issuer put it into the token", claim)
			}
			break
		}
		groups, ok := groupsOf(v)
		if !ok {
			return none, fmt.Errorf("oidc: parse groups claim %q: it is neither a string nor a list of strings", claim)
		}
		for _, g := range groups {
			if m.Groups.Prefix != nil {
				g = *m.Groups.Prefix + g
			}
			u.Groups = append(u.Groups, g)
		}
	}
	switch {
	case a.mapper.uid != nil:
		if u.UID, err = text(a.mapper.uid, "uid"); err != nil {
			return none, err
		}
	case m.UID.Claim != "":
		uid, ok := values[m.UID.Claim].(string)
		if !ok {
			return none, fmt.Errorf("oidc: parse uid claim %q: claim not present or not a string", m.UID.Claim)
		}
		u.UID = uid
	}
	extra := map[string][]string{}
	if jti, ok := values["jti"].(string); ok && jti != "" {
		extra[auth.CredentialID] = []string{"JTI=" + jti}
	}
	for i := range a.mapper.extra {
		r := &a.mapper.extra[i]
		v, err := eval(r)
		var list []string
		if err == nil {
			list, err = stringList(v)
		}
		if err != nil {
			return none, fmt.Errorf("oidc: error evaluating extra claim expression: %s: %w", r.ExpressionAccessor.GetExpression(), err)
		}
		if len(list) > 0 {
			extra[r.ExpressionAccessor.(*authcel.ExtraMappingExpression).Key] = list
		}
	}
	if len(extra) > 0 {
		u.Extra = extra
	}
	for _, rule := range a.conf.ClaimValidationRules {
		if rule.Claim == "" {
			continue
		}
		v, present := values[rule.Claim]
		if !present {
			return none, fmt.Errorf("oidc: required claim %s not present in ID token", rule.Claim)
		}
		if s, ok := v.(string); !ok || s != rule.RequiredValue {
			return none, fmt.Errorf("oidc: required claim %s value does not match. Got = %v, want = %s", rule.Claim, v, rule.RequiredValue)
		}
	}
	for i := range a.mapper.claims {
		r := &a.mapper.claims[i]
		v, err := eval(r)
		if err == nil && v != types.True {
			err = fmt.Errorf("validation expression '%s' failed: %s", r.ExpressionAccessor.GetExpression(), r.ExpressionAccessor.(*authcel.ClaimValidationCondition).Message)
		}
		if err != nil {
			return none, fmt.Errorf("oidc: error evaluating claim validation expression: %w", err)
		}
	}
	if len(a.mapper.user) > 0 {
		info := types.NewStringInterfaceMap(types.DefaultTypeAdapter, map[string]any{"username": u.Name, "uid": u.UID,
			"groups": nonNil(u.Groups), "extra": extra})
		for i := range a.mapper.user {
			r := &a.mapper.user[i]
			v, _, err := r.Program.ContextEval(ctx, map[string]any{"user": info})
			if err == nil && v != types.True {
				err = fmt.Errorf("validation expression '%s' failed: %s", r.ExpressionAccessor.GetExpression(), r.ExpressionAccessor.(*authcel.UserValidationCondition).Message)
			}
			if err != nil {
				return none, fmt.Errorf("oidc: error evaluating user info validation rule: %w", err)
			}
		}
	}
	return u, nil
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func groupsOf(v any) ([]string, bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		out := make([]string, 0, len(v))
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

// stringList of what an expression gave: nothing, a string or a list of them,
// empty ones left out.
func stringList(v ref.Val) ([]string, error) {
	switch v := v.(type) {
	case types.Null:
		return nil, nil
	case types.String:
		if v == "" {
			return nil, nil
		}
		return []string{string(v)}, nil
	case traits.Lister:
		var out []string
		for it := v.Iterator(); it.HasNext() == types.True; {
			s, ok := it.Next().(types.String)
			if !ok {
				return nil, errors.New("expression must return a string or a list of strings")
			}
			if s != "" {
				out = append(out, string(s))
			}
		}
		return out, nil
	}
	return nil, errors.New("expression must return a string or a list of strings")
}
