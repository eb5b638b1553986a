package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/kind"
	"proa.dev/view"
)

// ServiceAccountTokens issues and checks bound tokens: JSON web tokens with the
// claims of KEP-1205, signed with RS256 or ES256/384/512 as the key is. A token is
// good while its signature, time, audience and the objects that it is bound to
// (service account, pod, node, secret, by UID) are. It also knows the legacy
// tokens in Secrets of type kubernetes.io/service-account-token (legacy.go).
type ServiceAccountTokens struct {
	Issuer string
	// AlsoIssuers are accepted besides: those of before a change of the issuer.
	AlsoIssuers []string
	// Audiences of the API server; tokens without an audience asked for get them.
	Audiences []string
	Key       crypto.Signer // RSA or ECDSA; nil: nothing is issued
	// VerifyKeys check tokens besides Key's: the old ones during a rotation, or all of
	// them where another process signs.
	VerifyKeys []crypto.PublicKey
	// JWKSURI in the discovery document; "": below the issuer.
	JWKSURI  string
	Now      func() time.Time
	Snapshot func() view.Snapshot
	NewID    func() string // jti
	// MaxExpiration cuts longer lifetimes that are asked for; 0: none.
	MaxExpiration time.Duration
	// Extend makes the token of a pod for this API server good for a year, though the
	// node renews it each hour: for old clients that read it once (Kubernetes docs,
	// kube-apiserver, --service-account-extend-token-expiration).
	Extend bool
	// Stale, if set, is told of the use of a token that lives by Extend only.
	Stale func(u User)

	mu    sync.Mutex
	cache map[[32]byte]*claims
	keys  []verifier // made at first use
}

// Bounds of asked lifetimes (docs, "TokenRequest"): at least ten minutes, at most
// 2^32 seconds; the default is an hour.
const (
	minTokenSeconds     = 600
	maxTokenSeconds     = 1 << 32
	defaultTokenSeconds = 3600
	// warnSeconds is what nodes ask for a pod's token: an hour and something, so that
	// it can be told from an hour that a person chose. extendedSeconds is a year.
	warnSeconds, extendedSeconds = 3600 + 7, 365 * 24 * 3600
	// leeway accepts clocks that jumped back a little.
	leeway       = 10 * time.Second
	maxCacheSize = 4096
	// maxToken bounds what is parsed, in bytes; a token with hundreds of audiences is
	// below it.
	maxToken = 64 << 10
)

type ref struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid,omitempty"`
}

type private struct {
	Namespace      string           `json:"namespace,omitempty"`
	ServiceAccount ref              `json:"serviceaccount,omitempty"`
	Pod            *ref             `json:"pod,omitempty"`
	Secret         *ref             `json:"secret,omitempty"`
	Node           *ref             `json:"node,omitempty"`
	WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
}

type claims struct {
	jwt.Claims
	Kubernetes private `json:"kubernetes.io"`
	legacy
}

// Issue fills in tr for the account. Errors are apimachinery StatusErrors that
// say what is wrong with the request.
func (t *ServiceAccountTokens) Issue(sa *corev1.ServiceAccount, tr *authenticationv1.TokenRequest) error {
	seconds := int64(defaultTokenSeconds)
	if tr.Spec.ExpirationSeconds != nil {
		seconds = *tr.Spec.ExpirationSeconds
	}
	invalid := func(why string) error {
		return apierrors.NewInvalid(schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}, sa.Name,
			field.ErrorList{field.Invalid(field.NewPath("spec", "expirationSeconds"), seconds, why)})
	}
	if seconds < minTokenSeconds {
		return invalid("may not specify a duration less than 10 minutes")
	}
	if seconds > maxTokenSeconds {
		return invalid("may not specify a duration larger than 2^32 seconds")
	}
	if t.Key == nil {
		return apierrors.NewInternalError(errors.New("no key for service account tokens is configured; set --service-account-signing-key-file"))
	}
	audiences := tr.Spec.Audiences
	if len(audiences) == 0 {
		audiences = t.Audiences
	}
	if t.MaxExpiration > 0 {
		seconds = min(seconds, int64(t.MaxExpiration/time.Second))
	}
	now := t.Now()
	c := claims{Claims: jwt.Claims{
		Issuer:    t.Issuer,
		Subject:   ServiceAccountUser + sa.Namespace + ":" + sa.Name,
		Audience:  jwt.Audience(audiences),
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now),
		Expiry:    jwt.NewNumericDate(now.Add(time.Duration(seconds) * time.Second)),
		ID:        t.NewID(),
	}, Kubernetes: private{Namespace: sa.Namespace, ServiceAccount: ref{sa.Name, sa.UID}}}
	if b := tr.Spec.BoundObjectRef; b != nil {
		s := t.Snapshot()
		var k *kind.Kind
		switch {
		case b.Kind == "Pod" && b.APIVersion == "v1":
			k = kind.Pod
		case b.Kind == "Secret" && b.APIVersion == "v1":
			k = kind.Secret
		case b.Kind == "Node" && b.APIVersion == "v1":
			k = kind.Node
		default:
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", schema.FromAPIVersionAndKind(b.APIVersion, b.Kind)))
		}
		o := s.Get(k, scoped(k, sa.Namespace), b.Name)
		if o == nil {
			return apierrors.NewNotFound(k.GroupResource(), b.Name)
		}
		if b.UID != "" && b.UID != o.GetUID() {
			return apierrors.NewConflict(schema.GroupResource{Resource: b.Kind}, b.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", b.UID))
		}
		r := &ref{b.Name, o.GetUID()}
		switch o := o.(type) {
		case *corev1.Pod:
			if o.Spec.ServiceAccountName != sa.Name {
				return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", sa.Name))
			}
			c.Kubernetes.Pod = r
			if o.Spec.NodeName != "" {
				c.Kubernetes.Node = &ref{Name: o.Spec.NodeName}
				if n := s.Get(kind.Node, "", o.Spec.NodeName); n != nil {
					c.Kubernetes.Node.UID = n.GetUID()
				}
			}
		case *corev1.Secret:
			c.Kubernetes.Secret = r
		case *corev1.Node:
			c.Kubernetes.Node = r
		}
	}
	expiry := c.Expiry.Time()
	if t.Extend && c.Kubernetes.Pod != nil && seconds == warnSeconds && !slices.ContainsFunc(audiences, func(a string) bool { return !slices.Contains(t.Audiences, a) }) {
		long := int64(extendedSeconds)
		if t.MaxExpiration > 0 {
			long = max(seconds, min(long, int64(t.MaxExpiration/time.Second)))
		}
		c.Expiry, c.Kubernetes.WarnAfter = jwt.NewNumericDate(now.Add(time.Duration(long)*time.Second)), jwt.NewNumericDate(expiry)
	}
	token, err := t.sign(c)
	if err != nil {
		return err
	}
	tr.Spec.Audiences, tr.Spec.ExpirationSeconds = audiences, &seconds
	tr.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expiry)}
	return nil
}

// sign any claims with Key.
func (t *ServiceAccountTokens) sign(c any) (string, error) {
	alg, err := algorithm(t.Key.Public())
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: t.Key, KeyID: KeyID(t.Key.Public())}}, nil)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return token, nil
}

// algorithm that upstream uses with a kind of key.
func algorithm(pub crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
		return "", fmt.Errorf("elliptic curve %s: use P-256, P-384 or P-521", k.Params().Name)
	}
	return "", fmt.Errorf("key of type %T: use RSA or ECDSA", pub)
}

var tokenAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// verifier is one public key with the only algorithm that it is used with.
type verifier struct {
	id  string
	alg jose.SignatureAlgorithm
	key crypto.PublicKey
}

// verifiers are Key's and VerifyKeys, each once; t.mu is held.
func (t *ServiceAccountTokens) verifiers() []verifier {
	if t.keys != nil {
		return t.keys
	}
	all := t.VerifyKeys
	if t.Key != nil {
		all = append([]crypto.PublicKey{t.Key.Public()}, all...)
	}
	for _, k := range all {
		alg, err := algorithm(k)
		id := KeyID(k)
		if err == nil && !slices.ContainsFunc(t.keys, func(v verifier) bool { return v.id == id }) {
			t.keys = append(t.keys, verifier{id, alg, k})
		}
	}
	return t.keys
}

func scoped(k *kind.Kind, namespace string) string {
	if k.Scope == kind.Cluster {
		return ""
	}
	return namespace
}

// KeyID names a public key in token headers and the JWKS: a hash of its PKIX form.
func KeyID(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// JWKS is the document at /openid/v1/jwks: every key whose tokens are good.
func (t *ServiceAccountTokens) JWKS() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, v := range t.verifiers() {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: v.key, KeyID: v.id, Algorithm: string(v.alg), Use: "sig"})
	}
	return json.Marshal(set)
}

// Discovery is the document at /.well-known/openid-configuration.
func (t *ServiceAccountTokens) Discovery() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	algs := []string{}
	for _, v := range t.verifiers() {
		if !slices.Contains(algs, string(v.alg)) {
			algs = append(algs, string(v.alg))
		}
	}
	slices.Sort(algs)
	jwks := t.JWKSURI
	if jwks == "" {
		jwks = strings.TrimSuffix(t.Issuer, "/") + "/openid/v1/jwks"
	}
	return json.Marshal(struct {
		Issuer   string   `json:"issuer"`
		JWKS     string   `json:"jwks_uri"`
		Response []string `json:"response_types_supported"`
		Subject  []string `json:"subject_types_supported"`
		Algs     []string `json:"id_token_signing_alg_values_supported"`
	}{t.Issuer, jwks, []string{"id_token"}, []string{"public"}, algs})
}

// AuthenticateToken implements TokenAuthenticator.
func (t *ServiceAccountTokens) AuthenticateToken(_ context.Context, token string, audiences []string) (User, []string, bool, error) {
	if strings.Count(token, ".") != 2 {
		return User{}, nil, false, nil
	}
	c, mine, err := t.parse(token)
	if !mine || err != nil {
		return User{}, nil, false, err
	}
	if c.Issuer == LegacyIssuer {
		return t.legacyUser(token, c, audiences)
	}
	if len(audiences) == 0 {
		audiences = t.Audiences
	}
	var matched []string
	for _, a := range audiences {
		if slices.Contains(c.Audience, a) {
			matched = append(matched, a)
		}
	}
	if len(matched) == 0 {
		return User{}, nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(c.Audience), audiences)
	}
	now := t.Now()
	if c.Expiry == nil || now.After(c.Expiry.Time().Add(leeway)) {
		return User{}, nil, false, errors.New("service account token has expired")
	}
	if c.NotBefore != nil && now.Add(leeway).Before(c.NotBefore.Time()) {
		return User{}, nil, false, errors.New("service account token is not valid yet")
	}
	k := c.Kubernetes
	s := t.Snapshot()
	if !alive(s, kind.ServiceAccount, k.Namespace, &k.ServiceAccount, now) {
		return User{}, nil, false, errors.New("service account token has been invalidated: its service account is gone")
	}
	if c.Subject != ServiceAccountUser+k.Namespace+":"+k.ServiceAccount.Name {
		return User{}, nil, false, fmt.Errorf("service account token of %q names %q as its subject", k.ServiceAccount.Name, c.Subject)
	}
	extra := map[string][]string{CredentialID: {"JTI=" + c.ID}}
	if k.Pod != nil {
		if !alive(s, kind.Pod, k.Namespace, k.Pod, now) {
			return User{}, nil, false, errors.New("service account token has been invalidated: its pod is gone")
		}
		extra["authentication.kubernetes.io/pod-name"] = []string{k.Pod.Name}
		extra["authentication.kubernetes.io/pod-uid"] = []string{string(k.Pod.UID)}
	}
	if k.Secret != nil && !alive(s, kind.Secret, k.Namespace, k.Secret, now) {
		return User{}, nil, false, errors.New("service account token has been invalidated: its secret is gone")
	}
	if k.Node != nil {
		if k.Pod == nil && !alive(s, kind.Node, "", k.Node, now) {
			return User{}, nil, false, errors.New("service account token has been invalidated: its node is gone")
		}
		extra["authentication.kubernetes.io/node-name"] = []string{k.Node.Name}
		if k.Node.UID != "" {
			extra["authentication.kubernetes.io/node-uid"] = []string{string(k.Node.UID)}
		}
	}
	u := User{
		Name: c.Subject, UID: string(k.ServiceAccount.UID),
		Groups: []string{ServiceAccounts, ServiceAccounts + ":" + k.Namespace},
		Extra:  extra,
	}
	if k.WarnAfter != nil && now.After(k.WarnAfter.Time()) && t.Stale != nil {
		t.Stale(u)
	}
	return u, matched, true, nil
}

// alive: present with the same UID, and not deleted for longer than a minute past
// its grace (docs, "Managing Service Accounts", bound token invalidation).
func alive(s view.Snapshot, k *kind.Kind, namespace string, r *ref, now time.Time) bool {
	o := s.Get(k, namespace, r.Name)
	if o == nil || (r.UID != "" && o.GetUID() != r.UID) {
		return false
	}
	d := o.GetDeletionTimestamp()
	return d == nil || now.Before(d.Add(time.Minute))
}

// parse checks the signature, once per token; mine is false for tokens of others.
func (t *ServiceAccountTokens) parse(token string) (c *claims, mine bool, err error) {
	sum := sha256.Sum256([]byte(token))
	t.mu.Lock()
	c = t.cache[sum]
	t.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	if len(token) > maxToken {
		return nil, false, nil
	}
	tok, err := jwt.ParseSigned(token, tokenAlgorithms)
	if err != nil || len(tok.Headers) != 1 {
		return nil, false, nil
	}
	c = new(claims)
	if err := tok.UnsafeClaimsWithoutVerification(c); err != nil || c.Issuer != LegacyIssuer && c.Issuer != t.Issuer && !slices.Contains(t.AlsoIssuers, c.Issuer) {
		return nil, false, nil
	}
	t.mu.Lock()
	keys := t.verifiers()
	t.mu.Unlock()
	head := tok.Headers[0]
	good := false
	for _, named := range []bool{true, false} { // the key of that name first; names are hints only
		for _, v := range keys {
			if (v.id == head.KeyID) == named && string(v.alg) == head.Algorithm && tok.Claims(v.key, c) == nil {
				good = true
				break
			}
		}
		if good {
			break
		}
	}
	if !good {
		return nil, true, errors.New("invalid bearer token: its signature is by none of the cluster's keys")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cache == nil || len(t.cache) >= maxCacheSize {
		t.cache = map[[32]byte]*claims{}
	}
	t.cache[sum] = c
	return c, true, nil
}

// Bearer authenticates the Authorization header, and the subprotocol that
// browsers use on WebSockets.
type Bearer struct{ Tokens TokenAuthenticator }

// webSocketBearer begins the subprotocol that carries a token, in base64url
// without padding.
const webSocketBearer = "base64url.bearer.authorization.k8s.io."

// Authenticate implements Authenticator. A token in a WebSocket's subprotocols is
// taken out of the request's header, so that it is neither answered nor passed on.
func (b Bearer) Authenticate(r *http.Request) (User, bool, error) {
	token, err := bearerToken(r)
	if err != nil || token == "" {
		return User{}, false, err
	}
	u, _, ok, err := b.Tokens.AuthenticateToken(r.Context(), token, nil)
	if !ok && err == nil {
		err = errors.New("invalid bearer token")
	}
	return u, ok, err
}

func bearerToken(r *http.Request) (string, error) {
	if scheme, rest, ok := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " "); ok && strings.EqualFold(scheme, "bearer") {
		if rest = strings.TrimSpace(rest); rest != "" {
			return rest, nil
		}
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return "", nil
	}
	token := ""
	var others []string
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			p = strings.TrimSpace(p)
			enc, ok := strings.CutPrefix(p, webSocketBearer)
			if !ok {
				others = append(others, p)
				continue
			}
			if token != "" {
				return "", errors.New("multiple base64.bearer.authorization tokens specified")
			}
			dec, err := base64.RawURLEncoding.DecodeString(enc)
			if err != nil || len(dec) == 0 || !utf8.Valid(dec) {
				return "", errors.New("invalid base64.bearer.authorization token encoding")
			}
			token = string(dec)
		}
	}
	if token == "" {
		return "", nil
	}
	// The server has to choose a subprotocol, and must not choose this one.
	if len(others) == 0 {
		return "", errors.New("missing additional subprotocol")
	}
	r.Header.Set("Sec-WebSocket-Protocol", strings.Join(others, ","))
	return token, nil
}
