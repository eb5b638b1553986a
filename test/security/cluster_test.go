// Package security holds a whole control plane to its promises about who may do
// what, in one process and without containers: certificates, tokens, policy,
// admission, sealed secrets and the node's own port, wired as cmd/proa does it.
package security

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"proa.dev/act"
	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/cluster/first"
	"proa.dev/cluster/pki"
	"proa.dev/cluster/signer"
	"proa.dev/control"
	"proa.dev/control/parts"
	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/server"
	"proa.dev/store"
	"proa.dev/store/mem"
	"proa.dev/view"
	"proa.dev/view/feed"
)

const serviceNetwork = "10.96.0.0/24"

// plane is a control plane that runs until the test ends.
type plane struct {
	t      *testing.T
	ctx    context.Context
	ca     *pki.Authority
	view   *view.View
	api    *apiserver.Server
	admin  client.Client
	authn  auth.Authenticator
	authz  auth.Authorizer
	server *httptest.Server
	cfg    first.Config
}

// start runs a control plane on st (nil: in memory).
func start(t *testing.T, st store.Store) *plane {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if st == nil {
		st = mem.Open(mem.Config{})
	}
	p := &plane{t: t, ctx: ctx, view: view.New(kind.All, 0)}
	clock, rand := env.SystemClock(), env.SystemRand()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	var running sync.WaitGroup
	f := feed.New(st, p.view, kind.DecodeStored, log)
	must(t, f.Load(ctx))
	feeding, stopFeed := context.WithCancel(context.Background())
	var fed sync.WaitGroup
	fed.Go(func() { f.Run(feeding) })
	var err error
	p.ca, err = pki.Open(t.TempDir(), clock.Now)
	must(t, err)
	tokens := &auth.ServiceAccountTokens{Issuer: "https://kubernetes.default.svc", Audiences: []string{"https://kubernetes.default.svc"}, Key: p.ca.ServiceAccountKey,
		Now: clock.Now, Snapshot: p.view.Snapshot, NewID: func() string { var b [8]byte; rand.Read(b[:]); return string(b[:]) }}
	p.authn = auth.Union{&auth.X509{Roots: p.ca.Pool(), Now: clock.Now}, auth.Bearer{Tokens: tokens}}
	rbac := &auth.RBAC{View: p.view}
	p.authz = auth.Chain{auth.Node{Snapshot: p.view.Snapshot}, rbac}
	chain, err := server.Admission{View: p.view, Rand: rand, Authz: p.authz, Rules: rbac, Services: netip.MustParsePrefix(serviceNetwork), PortFirst: 30000, PortEnd: 30200}.Chain()
	must(t, err)
	p.api, err = apiserver.New(apiserver.Config{Table: kind.All, Store: st, View: p.view, Authn: p.authn, Tokens: tokens, Authz: p.authz, Rules: rbac, Log: log,
		Admit: chain,
		IssueToken: func(_ context.Context, r *admit.Request, tr *authenticationv1.TokenRequest) error {
			return tokens.Issue(r.Old.(*corev1.ServiceAccount), tr)
		}})
	must(t, err)
	p.admin = p.api.Local(auth.User{Name: "system:proa", Groups: []string{auth.Masters, auth.AllAuthenticated}})
	p.cfg = first.Config{API: netip.MustParseAddr("10.244.0.1"), APIPort: 6443, APIService: netip.MustParseAddr("10.96.0.1"), DNSService: netip.MustParseAddr("10.96.0.10"), CA: p.ca.PEM(), PublicURL: "https://127.0.0.1:6443"}
	must(t, first.Ensure(ctx, p.admin, p.cfg))
	rt := control.New(control.Config{Parts: parts.All(kind.All, string(p.ca.PEM())), View: p.view, Clock: clock, Log: log,
		Client: func(string) client.Client { return p.admin }, Record: func(act.Event) {}})
	running.Go(func() { rt.Run(ctx) })
	running.Go(func() { signer.Run(ctx, signer.Config{Client: p.admin, CA: p.ca, Clock: clock, Log: log}) })
	p.server = httptest.NewUnstartedServer(p.api.Handler())
	p.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	p.server.EnableHTTP2 = true
	p.server.StartTLS()
	t.Cleanup(func() {
		cancel()
		p.api.Drain()
		p.server.CloseClientConnections()
		p.server.Close()
		running.Wait()
		st.Close()
		stopFeed()
		fed.Wait()
	})
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as is a client with a certificate of the cluster.
func (p *plane) as(name string, groups ...string) *kubernetes.Clientset {
	p.t.Helper()
	c, err := p.ca.Issue(pki.Names{CommonName: name, Organizations: groups, Client: true}, time.Hour)
	must(p.t, err)
	crt, key, err := pki.EncodePair(c)
	must(p.t, err)
	return p.with(rest.Config{TLSClientConfig: rest.TLSClientConfig{CertData: crt, KeyData: key}})
}

func (p *plane) bearer(token string) *kubernetes.Clientset {
	return p.with(rest.Config{BearerToken: token})
}

func (p *plane) with(c rest.Config) *kubernetes.Clientset {
	p.t.Helper()
	c.Host, c.Insecure, c.QPS = p.server.URL, true, -1
	cs, err := kubernetes.NewForConfig(&c)
	must(p.t, err)
	return cs
}

// get asks for a path without credentials, or with headers "Name: value".
func (p *plane) get(path string, headers ...string) (code int, body string) {
	p.t.Helper()
	r, err := http.NewRequest("GET", p.server.URL+path, nil)
	must(p.t, err)
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Set(k, v)
	}
	// HTTP/1: an Upgrade header has no place in HTTP/2.
	tr := p.server.Client().Transport.(*http.Transport).Clone()
	tr.ForceAttemptHTTP2, tr.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
	tr.TLSClientConfig.NextProtos = nil
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(r)
	must(p.t, err)
	defer resp.Body.Close()
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	return resp.StatusCode, b.String()
}

// create as the administrator.
func (p *plane) create(k *kind.Kind, o kind.Object) kind.Object {
	p.t.Helper()
	out, err := p.admin.Create(p.ctx, k, o, metav1.CreateOptions{})
	must(p.t, err)
	return out
}

// namespace with its default service account.
func (p *plane) namespace(name string) {
	p.t.Helper()
	p.create(kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	p.until("the default service account of "+name, func() bool {
		return p.view.Snapshot().Get(kind.ServiceAccount, name, "default") != nil
	})
}

// until polls a condition, for ten seconds at most.
func (p *plane) until(what string, ok func() bool) {
	p.t.Helper()
	await.True(p.t, 10*time.Second, what, ok)
}

// denied checks that err is refused with a message that contains want.
func denied(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
