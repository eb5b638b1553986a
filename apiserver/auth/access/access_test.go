package access_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/access"
	"proa.dev/env"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/view"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// hook answers reviews of tokens ("hook-NAME") and of access (user "friend").
func hook(t *testing.T, dir string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "TokenReview") {
			var q authenticationv1.TokenReview
			json.Unmarshal(body, &q)
			if name, ok := strings.CutPrefix(q.Spec.Token, "hook-"); ok {
				q.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: name}}
			}
			json.NewEncoder(w).Encode(q)
			return
		}
		var q authorizationv1.SubjectAccessReview
		json.Unmarshal(body, &q)
		q.Status.Allowed = q.Spec.User == "friend"
		json.NewEncoder(w).Encode(q)
	}))
	t.Cleanup(s.Close)
	return write(t, filepath.Join(dir, "hook.kubeconfig"), fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: c}}], clusters: [{name: c, cluster: {server: %q}}]}`, s.URL))
}

func get(t *testing.T, c *apitest.Cluster, path, token string) (int, string) {
	t.Helper()
	r, _ := http.NewRequest("GET", c.HTTP.URL+path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.HTTP.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

// start a server with this access.
func start(t *testing.T, conf access.Config) (*access.Access, *apitest.Cluster) {
	t.Helper()
	var a *access.Access
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		conf.View, conf.Clock = cfg.View, env.SystemClock()
		var err error
		if a, err = access.New(conf); err != nil {
			t.Fatal(err)
		}
		cfg.Authn, cfg.Tokens, cfg.Authz, cfg.Rules, cfg.Anonymous = a.Authenticator(), a.Tokens(), a, a, a.Anonymous
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, c
}

func TestStructuredFilesAndReload(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := hook(t, dir)
	tokens := write(t, filepath.Join(dir, "tokens.csv"), "root-token,root,1,system:masters\nfriend-token,friend,2,\"a,b\"\nother-token,other,3\n")
	authn := write(t, filepath.Join(dir, "authn.yaml"), "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, anonymous: {enabled: true, conditions: [{path: /livez}]}}")
	authzText := func(deny string) string {
		return fmt.Sprintf(`
apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Webhook
  name: ours
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: NoOpinion
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: %s}
    matchConditions: [{expression: "request.user != '%s'"}]
- {type: RBAC, name: rbac}
`, kubeconfig, deny)
	}
	authz := write(t, filepath.Join(dir, "authz.yaml"), authzText("nobody"))
	a, c := start(t, access.Config{TokenFile: tokens, AuthenticationFile: authn, AuthorizationFile: authz, TokenWebhook: access.TokenWebhook{ConfigFile: kubeconfig, Version: "v1"}})
	code := func(path, token string, want int) {
		t.Helper()
		if got, body := get(t, c, path, token); got != want {
			t.Errorf("%s as %q: %d %s", path, token, got, body)
		}
	}
	code("/api/v1/nodes", "root-token", 200)
	code("/api/v1/nodes", "friend-token", 200)
	code("/api/v1/nodes", "hook-friend", 200)
	code("/api/v1/nodes", "hook-else", 403)
	code("/api/v1/nodes", "other-token", 403)
	code("/api/v1/nodes", "wrong", 401)
	code("/api/v1/nodes", "", 401) // anonymous on /livez only
	code("/livez", "", 403)        // let in; no bootstrap policy in this test
	write(t, authz, authzText("friend"))
	a.Reload()
	await.True(t, 10*time.Second, "the new chain", func() bool { got, _ := get(t, c, "/api/v1/nodes", "friend-token"); return got == 403 })
	// A mistake changes nothing; administrators keep their access.
	write(t, authz, "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: []}")
	write(t, authn, "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, anonymous: {enabled: false}}")
	a.Reload()
	await.True(t, 10*time.Second, "no anonymous requests", func() bool { got, _ := get(t, c, "/livez", ""); return got == 401 })
	code("/api/v1/nodes", "friend-token", 403)
	code("/api/v1/nodes", "root-token", 200)
	write(t, authz, "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: [{type: AlwaysAllow, name: all}]}")
	a.Reload()
	await.True(t, 10*time.Second, "all allowed", func() bool { got, _ := get(t, c, "/api/v1/nodes", "other-token"); return got == 200 })
	os.Remove(authz)
	a.Reload()
	code("/api/v1/nodes", "other-token", 200)
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	no := false
	_, c := start(t, access.Config{Modes: []string{"RBAC", "Webhook"}, Anonymous: &no, AuthorizationWebhook: access.AuthorizationWebhook{ConfigFile: hook(t, dir), Version: "v1"},
		TokenFile: write(t, filepath.Join(dir, "t"), "f,friend,1\n")})
	if got, body := get(t, c, "/api/v1/pods", "f"); got != 200 {
		t.Error(got, body)
	}
	if got, _ := get(t, c, "/livez", ""); got != 401 {
		t.Error(got)
	}
	v := view.New(kind.All, 0)
	empty := filepath.Join(dir, "x.yaml")
	for name, k := range map[string]struct {
		c    access.Config
		want string
	}{
		"ABAC":             {access.Config{Modes: []string{"ABAC"}}, "not part of proa"},
		"unknown":          {access.Config{Modes: []string{"Nobody"}}, `Unsupported value: "Nobody"`},
		"twice":            {access.Config{Modes: []string{"RBAC", "RBAC"}}, `Duplicate value: "RBAC"`},
		"webhook no file":  {access.Config{Modes: []string{"Webhook"}}, "--authorization-webhook-config-file"},
		"both":             {access.Config{Modes: []string{"RBAC"}, AuthorizationFile: empty}, "exclude each other"},
		"both authn":       {access.Config{AuthenticationFile: empty, Anonymous: &no}, "exclude each other"},
		"no such file":     {access.Config{ClientCAFile: "/nowhere/ca"}, "/nowhere/ca"},
		"no certificate":   {access.Config{ClientCAFile: write(t, empty, "x")}, "has no certificate"},
		"other kind":       {access.Config{AuthorizationFile: write(t, empty+"1", "{apiVersion: v1, kind: Pod}")}, "must be AuthorizationConfiguration"},
		"unknown field":    {access.Config{AuthenticationFile: write(t, empty+"2", "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, jwts: []}")}, `unknown field "jwts"`},
		"token file":       {access.Config{TokenFile: write(t, empty+"3", "a,b")}, "at least 3 columns"},
		"relative webhook": {access.Config{AuthorizationFile: write(t, empty+"4", "{apiVersion: apiserver.config.k8s.io/v1beta1, kind: AuthorizationConfiguration, authorizers: [{type: Webhook, name: A b, webhook: {connectionInfo: {type: KubeConfigFile, kubeConfigFile: x}}}]}")}, "must be an absolute path"},
	} {
		k.c.View, k.c.Clock = v, env.SystemClock()
		if _, err := access.New(k.c); err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func certificate(t *testing.T, parent *pair, cn string) *pair {
	t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	self := &pair{c, key}
	if parent == nil {
		parent, c.IsCA, c.KeyUsage, c.ExtKeyUsage = self, true, x509.KeyUsageCertSign, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	self.cert, _ = x509.ParseCertificate(der)
	return self
}

func (p *pair) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))
}

// TestFrontProxyAndCAReload goes over real TLS.
func TestFrontProxyAndCAReload(t *testing.T) {
	dir := t.TempDir()
	clients, newer, fronts := certificate(t, nil, "clients"), certificate(t, nil, "newer"), certificate(t, nil, "fronts")
	caFile := write(t, filepath.Join(dir, "ca.crt"), clients.pem())
	conf := access.Config{ClientCAFile: caFile, Modes: []string{"AlwaysAllow"}, RequestHeader: access.RequestHeader{CAFile: write(t, filepath.Join(dir, "front.crt"), fronts.pem()),
		AllowedNames: []string{"front"}, Username: []string{"X-Remote-User"}, Group: []string{"X-Remote-Group"}, ExtraPrefix: []string{"X-Remote-Extra-"}}}
	v := view.New(kind.All, 0)
	v.Loaded(1)
	conf.View, conf.Clock = v, env.SystemClock()
	a, err := access.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, ok, err := a.Authenticator().Authenticate(r)
		fmt.Fprint(w, u.Name, " ", strings.Join(u.Groups, ","), " ", ok, " ", err != nil, " ", r.Header.Get("X-Remote-User"))
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	defer s.Close()
	ask := func(p *pair) string {
		t.Helper()
		tr := s.Client().Transport.(*http.Transport).Clone()
		defer tr.CloseIdleConnections()
		if p != nil {
			tr.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key}}
		}
		r, _ := http.NewRequest("GET", s.URL, nil)
		r.Header.Set("X-Remote-User", "joe")
		r.Header.Set("X-Remote-Group", "g")
		res, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return string(b)
	}
	jane, new := certificate(t, clients, "jane"), certificate(t, newer, "new")
	for _, c := range []struct {
		p    *pair
		want string
	}{{certificate(t, fronts, "front"), "joe g,system:authenticated true false "}, {certificate(t, fronts, "else"), "  false true joe"}, {nil, "  false false joe"},
		{jane, "jane system:authenticated true false "}, {new, "  false true joe"}, {certificate(t, clients, "front"), "front system:authenticated true false "}} {
		if got := ask(c.p); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	write(t, caFile, newer.pem())
	a.Reload()
	await.True(t, 10*time.Second, "the new authority", func() bool { return strings.HasPrefix(ask(new), "new ") })
	if got := ask(jane); got != "  false true joe" {
		t.Errorf("a client of the removed authority: %q", got)
	}
}

func TestRules(t *testing.T) {
	v := view.New(kind.All, 0)
	v.Loaded(1)
	a, err := access.New(access.Config{View: v, Clock: env.SystemClock()})
	if err != nil {
		t.Fatal(err)
	}
	if _, incomplete, err := a.Rules(auth.User{Name: "x"}, "n"); incomplete || err != nil {
		t.Error(incomplete, err)
	}
	if _, incomplete, err := a.Rules(auth.User{Name: "system:node:x", Groups: []string{auth.NodesGroup}}, "n"); !incomplete || err == nil {
		t.Error("a node's rules are complete")
	}
	if d, _, _ := a.Authorize(context.Background(), auth.Attributes{User: auth.User{Groups: []string{auth.Masters}}}); d != auth.Allow {
		t.Error("administrators are refused")
	}
}
