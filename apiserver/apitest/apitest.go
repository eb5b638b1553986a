// Package apitest starts a whole API server in a test: memory store, view, fed
// from the store, and the handler on a loopback port with TLS and HTTP/2. With
// PROA_TEST_STORE=etcd in the environment the store is one on a real etcd that the
// test starts; "make test" runs the API's tests in both ways. The bearer token
// names the user: "admin" may do everything, any other name nothing but read
// health, version and discovery, unless Authz says otherwise.
package apitest

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"proa.dev/apiserver"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/extend/crd"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/client"
	"proa.dev/control"
	"proa.dev/control/customresource"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/store"
	"proa.dev/store/etcd"
	"proa.dev/store/etcd/etcdtest"
	"proa.dev/store/mem"
	"proa.dev/view"
	"proa.dev/view/feed"
)

// Cluster is a running server.
type Cluster struct {
	Store  store.Store
	View   *view.View
	Server *apiserver.Server
	HTTP   *httptest.Server
	// Admin is a configuration for client-go with every right.
	Admin *rest.Config
}

// Tokens authenticates by the name in the token.
type Tokens struct{}

// Authenticate implements auth.Authenticator.
func (Tokens) Authenticate(r *http.Request) (auth.User, bool, error) {
	t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return auth.User{}, false, nil
	}
	u, _, ok, err := Tokens{}.AuthenticateToken(r.Context(), t, nil)
	return u, ok, err
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (Tokens) AuthenticateToken(_ context.Context, token string, _ []string) (auth.User, []string, bool, error) {
	if token == "" || token == "unknown" {
		return auth.User{}, nil, false, nil
	}
	u := auth.User{Name: token, Groups: []string{auth.AllAuthenticated}}
	if token == "admin" {
		u.Groups = append(u.Groups, auth.Masters)
	}
	return u, []string{"api"}, true, nil
}

// AdminOnly allows system:masters everything and everyone what is public.
type AdminOnly struct{}

// Authorize implements auth.Authorizer.
func (AdminOnly) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	if a.User.In(auth.Masters) {
		return auth.Allow, "", nil
	}
	for _, p := range []string{"/healthz", "/livez", "/readyz", "/version", "/api", "/openapi"} {
		if a.Path != "" && strings.HasPrefix(a.Path, p) {
			return auth.Allow, "", nil
		}
	}
	return auth.NoOpinion, "", nil
}

// Admin is the identity of the admin token.
var Admin = auth.User{Name: "admin", Groups: []string{auth.AllAuthenticated, auth.Masters}}

// Etcd starts an etcd of the test's own and says how to reach it, if the
// environment chooses one.
func Etcd(t testing.TB) (c etcd.Config, chosen bool) {
	t.Helper()
	switch which := os.Getenv("PROA_TEST_STORE"); which {
	case "", "mem":
		return c, false
	case "etcd":
		return etcd.Config{Endpoints: []string{etcdtest.Start(t).URL}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, true
	default:
		t.Fatalf("PROA_TEST_STORE is %q: it must be mem or etcd", which)
		return c, false
	}
}

// Store opens the store that the environment chooses: in memory, or on an etcd of
// the test's own.
func Store(t testing.TB) store.Store {
	t.Helper()
	cfg, chosen := Etcd(t)
	if !chosen {
		return mem.Open(mem.Config{})
	}
	st, err := etcd.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// Start runs a server until the test ends. change may adapt the configuration.
func Start(t testing.TB, change func(*apiserver.Config)) *Cluster {
	t.Helper()
	st := Store(t)
	v := view.New(kind.All, 0)
	cfg := apiserver.Config{Table: kind.All, Store: st, View: v, Authn: Tokens{}, Tokens: Tokens{}, Authz: AdminOnly{},
		Version: version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.0+proa"}}
	if _, ok := st.(store.Shared); !ok {
		cfg.Written = 1 // nobody else has written it
	}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	f := feed.New(cfg.Store, cfg.View, kind.DecodeStored, slog.New(slog.NewTextHandler(t.Output(), nil)))
	hooks := hook.New(hook.Config{View: cfg.View})
	f.Extend(kind.CustomResourceDefinition, crd.New(crd.Config{Caller: hooks, UID: uuid.NewUUID}))
	if err := f.Load(ctx); err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		if err := f.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("feed the view: %v", err)
		}
	})
	s, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rt := control.New(control.Config{Parts: customresource.Parts(), View: cfg.View, Clock: env.SystemClock(), Workers: 2,
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
		Client: func(string) client.Client { return s.Local(Admin) }})
	running.Go(func() { rt.Run(ctx) })
	hs := httptest.NewUnstartedServer(s.Handler())
	hs.EnableHTTP2 = true
	hs.StartTLS()
	t.Cleanup(func() {
		s.Drain()
		hs.CloseClientConnections()
		hs.Close()
		cancel()
		running.Wait()
		cfg.Store.Close()
		if n := f.Skipped(); n > 0 {
			t.Errorf("%d stored objects could not be decoded", n)
		}
	})
	return &Cluster{Store: cfg.Store, View: cfg.View, Server: s, HTTP: hs,
		Admin: &rest.Config{Host: hs.URL, BearerToken: "admin", TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: -1}}
}

// Clock is the system's clock, ahead by what Jump has added. Timers that run keep
// their time.
type Clock struct {
	env.Clock
	ahead atomic.Int64
}

// NewClock is not ahead yet.
func NewClock() *Clock { return &Clock{Clock: env.SystemClock()} }

// Now implements env.Clock.
func (c *Clock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.ahead.Load())) }

// Jump moves the clock forward.
func (c *Clock) Jump(d time.Duration) { c.ahead.Add(int64(d)) }
