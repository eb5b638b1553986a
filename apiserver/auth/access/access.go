// Package access puts the authenticators and authorizers of one API server
// together from what a person configures: files and flags as kube-apiserver
// takes them (Kubernetes docs, "Authenticating", "Authorization", "kube-apiserver"
// reference; KEP-3331, KEP-3221, KEP-4633).
//
// New reads every file once and fails on the first mistake. Run follows the files
// then: certificate authorities, AuthenticationConfiguration and
// AuthorizationConfiguration are read again within ten seconds of a change (or
// when Reload is called), and replace what was in force as a whole; a file with a
// mistake changes nothing and is logged. Requests never wait for a reload.
//
// Order of authenticators: request headers, client certificates, tokens (static
// file, service accounts, bootstrap, OIDC issuers, webhook), then the caller's own,
// anonymous at the end. Members of system:masters are allowed everything before any authorizer
// is asked.
package access

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	config "k8s.io/apiserver/pkg/apis/apiserver/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/oidc"
	"proa.dev/apiserver/auth/webhook"
	"proa.dev/env"
	"proa.dev/view"
)

// RequestHeader is the front proxy that is believed.
type RequestHeader struct {
	CAFile                            string // PEM; "": nobody is believed
	AllowedNames                      []string
	Username, UID, Group, ExtraPrefix []string
}

// TokenWebhook is a service that knows tokens.
type TokenWebhook struct {
	ConfigFile string
	Version    string        // "": v1beta1, as upstream's flag
	CacheTTL   time.Duration // 0: two minutes
}

// AuthorizationWebhook is the service of mode Webhook when it is configured by
// flags.
type AuthorizationWebhook struct {
	ConfigFile                     string
	Version                        string        // "": v1beta1, as upstream's flag
	AuthorizedTTL, UnauthorizedTTL time.Duration // 0: five minutes, thirty seconds
}

// Config of New. View and Clock are needed.
type Config struct {
	View  *view.View
	Clock env.Clock
	Log   *slog.Logger

	// ClientCA are the roots of client certificates; ClientCAFile replaces them.
	ClientCA      *x509.CertPool
	ClientCAFile  string
	RequestHeader RequestHeader
	// ServiceAccounts checks the cluster's own tokens; nil: none are known.
	ServiceAccounts *auth.ServiceAccountTokens
	BootstrapTokens bool
	TokenFile       string // lines of: token,user,uid,"group1,group2"
	OIDC            *oidc.Flags
	// AuthenticationFile is an AuthenticationConfiguration; not with OIDC or Anonymous.
	AuthenticationFile string
	TokenWebhook       TokenWebhook
	// Audiences of the API server.
	Audiences []string
	// Anonymous lets requests without credentials in as system:anonymous; nil: yes.
	Anonymous *bool
	// Authenticators are asked after all of those.
	Authenticators []auth.Authenticator

	// Modes in order: AlwaysAllow, AlwaysDeny, Node, RBAC, Webhook. Nil: Node, RBAC.
	Modes                []string
	AuthorizationWebhook AuthorizationWebhook
	// AuthorizationFile is an AuthorizationConfiguration; not with Modes.
	AuthorizationFile string
	// Authorizers are asked before the modes.
	Authorizers []auth.Authorizer
	// Retry of questions to webhooks.
	Retry webhook.Retry
}

// Access is what an API server asks.
type Access struct {
	c    Config
	rbac *auth.RBAC

	authn  auth.Authenticator
	static auth.Tokens
	hook   *auth.CachedTokens

	files  []*file
	reload sync.Mutex
	authnC atomic.Pointer[authnState]
	authzC atomic.Pointer[authzState]
	wake   chan struct{}
}

// authnState is what an AuthenticationConfiguration says.
type authnState struct {
	tokens    []auth.TokenAuthenticator
	issuers   []*oidc.Authenticator
	anonymous *config.AnonymousAuthConfig // nil: as Config says
}

// authzState is one chain.
type authzState struct {
	chain      auth.Chain
	hooks      []*webhook.Authorizer
	incomplete error // why rules cannot be listed in full
	node, rbac bool
}

// file is followed; load puts its content into force.
type file struct {
	path string
	seen []byte
	load func(data []byte) error
}

// poll is how often files are looked at.
const poll = 10 * time.Second

// maxFile of configuration.
const maxFile = 4 << 20

// New reads the files. It starts nothing.
func New(c Config) (*Access, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Retry.Clock == nil {
		c.Retry.Clock = c.Clock
	}
	a := &Access{c: c, rbac: &auth.RBAC{View: c.View}, wake: make(chan struct{}, 1)}
	if c.AuthenticationFile != "" && (c.OIDC != nil || c.Anonymous != nil) {
		return nil, errors.New("authentication: a configuration file and the flags --oidc-* or --anonymous-auth exclude each other; say all in the file")
	}
	if c.AuthorizationFile != "" && (c.Modes != nil || c.AuthorizationWebhook.ConfigFile != "") {
		return nil, errors.New("authorization: a configuration file and the flags --authorization-mode or --authorization-webhook-* exclude each other; say all in the file")
	}
	if err := a.authenticators(); err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	if err := a.authorizers(); err != nil {
		return nil, fmt.Errorf("authorization: %w", err)
	}
	return a, nil
}

// follow loads a file now and at each change.
func (a *Access) follow(path string, load func(data []byte) error) error {
	data, err := read(path)
	if err != nil {
		return err
	}
	if err := load(data); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	a.files = append(a.files, &file{path, data, load})
	return nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("read %q: %d bytes are more than %d", path, info.Size(), maxFile)
	}
	return os.ReadFile(path)
}

// pool follows a file of certificates.
func (a *Access) pool(path string) (func() *x509.CertPool, error) {
	var at atomic.Pointer[x509.CertPool]
	err := a.follow(path, func(data []byte) error {
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(data) {
			return errors.New("has no certificate in PEM")
		}
		at.Store(p)
		return nil
	})
	return at.Load, err
}

func (a *Access) authenticators() error {
	c := &a.c
	var union auth.Union
	strip := auth.Strip{}
	if h := c.RequestHeader; h.CAFile != "" {
		pool, err := a.pool(h.CAFile)
		if err != nil {
			return err
		}
		front, err := auth.NewRequestHeaders(auth.RequestHeaders{Pool: pool, Now: c.Clock.Now, AllowedNames: h.AllowedNames,
			Username: h.Username, UID: h.UID, Group: h.Group, ExtraPrefix: h.ExtraPrefix})
		if err != nil {
			return err
		}
		union = append(union, front)
		strip.Headers, strip.Prefixes = slices.Concat(h.Username, h.UID, h.Group), h.ExtraPrefix
	}
	switch {
	case c.ClientCAFile != "":
		pool, err := a.pool(c.ClientCAFile)
		if err != nil {
			return err
		}
		union = append(union, &auth.X509{Pool: pool, Now: c.Clock.Now})
	case c.ClientCA != nil:
		union = append(union, &auth.X509{Roots: c.ClientCA, Now: c.Clock.Now})
	}
	agnostic := func(t auth.TokenAuthenticator) auth.TokenAuthenticator {
		return auth.Agnostic{TokenAuthenticator: t, API: c.Audiences}
	}
	if c.TokenFile != "" {
		data, err := read(c.TokenFile)
		if err != nil {
			return err
		}
		t, err := parseTokenFile(data)
		if err != nil {
			return fmt.Errorf("%q: %w", c.TokenFile, err)
		}
		a.static = append(a.static, agnostic(t))
	}
	if c.ServiceAccounts != nil {
		a.static = append(a.static, c.ServiceAccounts)
	}
	if c.BootstrapTokens {
		a.static = append(a.static, agnostic(auth.BootstrapTokens{Snapshot: c.View.Snapshot, Now: c.Clock.Now}))
	}
	if w := c.TokenWebhook; w.ConfigFile != "" {
		if w.Version == "" {
			w.Version = "v1beta1"
		}
		if w.CacheTTL == 0 {
			w.CacheTTL = 2 * time.Minute
		}
		t, err := webhook.NewTokens(webhook.TokenConfig{KubeConfig: w.ConfigFile, Version: w.Version, Audiences: c.Audiences, Retry: c.Retry})
		if err != nil {
			return err
		}
		a.hook = &auth.CachedTokens{TokenAuthenticator: t, TTL: w.CacheTTL, Now: c.Clock.Now}
	}
	switch {
	case c.AuthenticationFile != "":
		if err := a.follow(c.AuthenticationFile, a.loadAuthentication); err != nil {
			return err
		}
	case c.OIDC != nil && c.OIDC.IssuerURL != "":
		st, err := a.issuers([]config.JWTAuthenticator{c.OIDC.JWT()}, c.OIDC.SigningAlgs)
		if err != nil {
			return err
		}
		a.authnC.Store(st)
	default:
		a.authnC.Store(new(authnState))
	}
	union = append(union, auth.Bearer{Tokens: a.Tokens()})
	strip.Authenticator = append(union, c.Authenticators...)
	a.authn = strip
	return nil
}

// Authenticator of requests.
func (a *Access) Authenticator() auth.Authenticator { return a.authn }

// Tokens checks bearer tokens; TokenReview asks it too.
func (a *Access) Tokens() auth.TokenAuthenticator { return tokens{a} }

type tokens struct{ *Access }

// AuthenticateToken implements auth.TokenAuthenticator.
func (t tokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.User, []string, bool, error) {
	var problems []error
	try := func(list []auth.TokenAuthenticator) (u auth.User, m []string, ok bool) {
		for _, x := range list {
			var err error
			if u, m, ok, err = x.AuthenticateToken(ctx, token, audiences); ok {
				return u, m, true
			}
			if err != nil {
				problems = append(problems, err)
			}
		}
		return u, m, false
	}
	if u, m, ok := try(t.static); ok {
		return u, m, true, nil
	}
	if u, m, ok := try(t.authnC.Load().tokens); ok {
		return u, m, true, nil
	}
	if t.hook != nil {
		if u, m, ok := try([]auth.TokenAuthenticator{t.hook}); ok {
			return u, m, true, nil
		}
	}
	return auth.User{}, nil, false, errors.Join(problems...)
}

// Anonymous says whether a request without credentials may come in.
func (a *Access) Anonymous(r *http.Request) bool {
	conf := a.authnC.Load().anonymous
	if conf == nil {
		return a.c.Anonymous == nil || *a.c.Anonymous
	}
	if !conf.Enabled || len(conf.Conditions) == 0 {
		return conf.Enabled
	}
	return slices.ContainsFunc(conf.Conditions, func(c config.AnonymousAuthCondition) bool { return c.Path == r.URL.Path })
}

// Authorize implements auth.Authorizer with the chain that is in force.
func (a *Access) Authorize(ctx context.Context, at auth.Attributes) (auth.Decision, string, error) {
	if at.User.In(auth.Masters) {
		return auth.Allow, "", nil
	}
	return a.authzC.Load().chain.Authorize(ctx, at)
}

// AsksRBAC says whether RBAC is one of the authorizers that are in force.
func (a *Access) AsksRBAC() bool { return a.authzC.Load().rbac }

// Rules implements auth.RuleResolver.
func (a *Access) Rules(u auth.User, namespace string) ([]rbacv1.PolicyRule, bool, error) {
	st := a.authzC.Load()
	var rules []rbacv1.PolicyRule
	if st.rbac || u.In(auth.Masters) {
		var err error
		if rules, _, err = a.rbac.Rules(u, namespace); err != nil {
			return rules, true, err
		}
	}
	if st.incomplete != nil && !u.In(auth.Masters) {
		return rules, true, st.incomplete
	}
	if st.node && u.In(auth.NodesGroup) {
		return rules, true, errors.New("node authorizer does not support user rule resolution")
	}
	return rules, false, nil
}

// Reload looks at the files at once, beside Run.
func (a *Access) Reload() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run follows the files until ctx ends, and returns nil then.
func (a *Access) Run(ctx context.Context) error {
	defer a.close()
	if len(a.files) == 0 {
		<-ctx.Done()
		return nil
	}
	for {
		t := a.c.Clock.NewTimer(poll)
		select {
		case <-t.C():
		case <-a.wake:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		a.look()
	}
}

// look reads the files that have changed.
func (a *Access) look() {
	a.reload.Lock()
	defer a.reload.Unlock()
	for _, f := range a.files {
		data, err := read(f.path)
		if err != nil {
			a.c.Log.Error("configuration cannot be read; the one before stays in force", "file", f.path, "error", err)
			continue
		}
		if bytes.Equal(data, f.seen) {
			continue
		}
		f.seen = data // a mistake is told once
		if err := f.load(data); err != nil {
			a.c.Log.Error("configuration has a mistake; the one before stays in force", "file", f.path, "error", err)
			continue
		}
		a.c.Log.Info("configuration is in force", "file", f.path)
	}
}

func (a *Access) close() {
	for _, i := range a.authnC.Load().issuers {
		i.Close()
	}
	for _, h := range a.authzC.Load().hooks {
		h.Close()
	}
}
