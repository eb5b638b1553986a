package webhook_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/auth/webhook"
)

// serve starts a service over TLS and writes a kubeconfig for it.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	path := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "%s/hook", certificate-authority-data: %s}}], users: [{name: u, user: {token: secret}}]}`, s.URL, ca)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTokens(t *testing.T) {
	var asked atomic.Int64
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var q authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/hook" || r.Header.Get("Authorization") != "Bearer secret" || q.Kind != "TokenReview" || q.APIVersion != "authentication.k8s.io/v1" {
			t.Errorf("asked %+v %v", q, err)
		}
		n := asked.Add(1)
		switch tok := q.Spec.Token; tok {
		case "flaky":
			if n%3 != 0 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return
			}
			fallthrough
		case "jane":
			q.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: tok, UID: "u1", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"a": {"b"}}}}
		case "vault":
			q.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"vault"}, User: authenticationv1.UserInfo{Username: tok}}
		case "bad":
			q.Status.Error = "revoked"
		case "forbidden":
			http.Error(w, "no", http.StatusForbidden)
			return
		case "garbage":
			fmt.Fprint(w, "<html>")
			return
		case "long":
			w.Write(make([]byte, 2<<20))
			return
		case "slow":
			<-r.Context().Done()
			return
		}
		json.NewEncoder(w).Encode(q)
	})
	hook, err := webhook.NewTokens(webhook.TokenConfig{KubeConfig: path, Audiences: []string{"api"}, Timeout: 300 * time.Millisecond, Retry: webhook.Retry{First: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer hook.Close()
	who := func(token string, audiences ...string) (auth.User, bool, error) {
		u, _, ok, err := hook.AuthenticateToken(context.Background(), token, audiences)
		return u, ok, err
	}
	if u, ok, err := who("jane"); !ok || err != nil || u.Name != "jane" || u.UID != "u1" || !u.In("g") || u.Extra["a"][0] != "b" {
		t.Fatalf("%+v %v", u, err)
	}
	asked.Store(0)
	if _, ok, err := who("flaky"); !ok || asked.Load() != 3 {
		t.Errorf("tried %d times: %v", asked.Load(), err)
	}
	if _, ok, err := who("vault"); ok || err != nil {
		t.Errorf("another audience: %v %v", ok, err)
	}
	if _, ok, _ := who("vault", "vault"); !ok {
		t.Error("its own audience")
	}
	if _, ok, _ := who("jane", "vault"); ok {
		t.Error("a service without audiences speaks for vault")
	}
	if _, ok, err := who("nobody"); ok || err != nil {
		t.Errorf("unknown: %v %v", ok, err)
	}
	for token, want := range map[string]string{"bad": "revoked", "forbidden": "answered 403", "garbage": "no JSON", "long": "too long", "slow": "deadline exceeded"} {
		asked.Store(0)
		if _, ok, err := who(token); ok || err == nil || !strings.Contains(err.Error(), want) || token != "slow" && asked.Load() != 1 {
			t.Errorf("%s: %v %v after %d", token, ok, err, asked.Load())
		}
	}
	if _, err := webhook.NewTokens(webhook.TokenConfig{KubeConfig: "/nowhere"}); err == nil {
		t.Error("no file")
	}
	if _, err := webhook.NewTokens(webhook.TokenConfig{KubeConfig: path, Version: "v2"}); err == nil {
		t.Error("no such version")
	}
}

func TestAuthorizer(t *testing.T) {
	var asked atomic.Int64
	var last atomic.Pointer[authorizationv1.SubjectAccessReview]
	path := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q authorizationv1.SubjectAccessReview
		json.NewDecoder(r.Body).Decode(&q)
		last.Store(q.DeepCopy())
		switch q.Spec.User {
		case "yes":
			q.Status = authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: "nice"}
		case "no":
			q.Status = authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: "bad"}
		case "both":
			q.Status = authorizationv1.SubjectAccessReviewStatus{Denied: true, Allowed: true}
		case "down":
			http.Error(w, "x", http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(q)
	})
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	conf := webhook.AuthorizerConfig{KubeConfig: path, Retry: webhook.Retry{First: time.Millisecond, Tries: 2}, Now: func() time.Time { return now }}
	open := func(c webhook.AuthorizerConfig) *webhook.Authorizer {
		z, err := webhook.NewAuthorizer(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(z.Close)
		return z
	}
	z := open(conf)
	req := func(user string) auth.Attributes {
		return auth.Attributes{User: auth.User{Name: user, Groups: []string{"g"}, Extra: map[string][]string{"k": {"v"}}}, Verb: "list", Version: "v1", Resource: "pods", Namespace: "n",
			FieldSelector: "spec.nodeName=a,status.phase!=Failed", LabelSelector: "x in (a,b),!y"}
	}
	ask := func(z *webhook.Authorizer, a auth.Attributes, want auth.Decision, times int64) {
		t.Helper()
		asked.Store(0)
		if d, why, err := z.Authorize(context.Background(), a); d != want || asked.Load() != times {
			t.Errorf("%s: %d %q %v, asked %d times", a.User.Name, d, why, err, asked.Load())
		}
	}
	ask(z, req("yes"), auth.Allow, 1)
	q := last.Load().Spec
	if f, l := q.ResourceAttributes.FieldSelector, q.ResourceAttributes.LabelSelector; q.User != "yes" || q.Groups[0] != "g" || q.Extra["k"][0] != "v" || len(f.Requirements) != 2 ||
		f.Requirements[1].Operator != "NotIn" || len(l.Requirements) != 2 || l.Requirements[1].Operator != "DoesNotExist" && l.Requirements[0].Operator != "DoesNotExist" {
		t.Errorf("asked %+v %+v %+v", q, f, l)
	}
	ask(z, req("yes"), auth.Allow, 0) // remembered
	ask(z, req("no"), auth.Deny, 1)
	ask(z, req("no"), auth.Deny, 0)
	now = now.Add(31 * time.Second)
	ask(z, req("no"), auth.Deny, 1)
	ask(z, req("yes"), auth.Allow, 0)
	now = now.Add(5 * time.Minute)
	ask(z, req("yes"), auth.Allow, 1)
	ask(z, req("other"), auth.NoOpinion, 1)
	ask(z, req("both"), auth.Deny, 1)
	ask(z, req("down"), auth.NoOpinion, 2)
	ask(z, auth.Attributes{User: auth.User{Name: "yes"}, Verb: "get", Path: "/metrics"}, auth.Allow, 1)
	long := req("yes")
	long.Name = strings.Repeat("x", 20000)
	ask(z, long, auth.Allow, 1)
	ask(z, long, auth.Allow, 1)
	deny := conf
	deny.Deny = true
	ask(open(deny), req("down"), auth.Deny, 2)
	none := conf
	none.AuthorizedTTL = -1
	zn := open(none)
	ask(zn, req("yes"), auth.Allow, 1)
	ask(zn, req("yes"), auth.Allow, 1)
	old := conf
	old.Version = "v1beta1"
	ask(open(old), req("yes"), auth.Allow, 1)
	if got := last.Load(); got.APIVersion != "authorization.k8s.io/v1beta1" || len(got.Spec.Groups) != 0 {
		t.Errorf("%+v", got)
	}
	match := conf
	match.Match = []string{"has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'kube-system'", "!('system:masters' in request.groups)"}
	zm := open(match)
	ask(zm, req("yes"), auth.NoOpinion, 0)
	in := req("yes")
	in.Namespace = "kube-system"
	ask(zm, in, auth.Allow, 1)
	ask(zm, auth.Attributes{User: auth.User{Name: "yes"}, Verb: "get", Path: "/x"}, auth.NoOpinion, 0)
	match.Match, match.Deny = []string{"request.resourceAttributes.namespace == 'n'"}, true
	ask(open(match), auth.Attributes{User: auth.User{Name: "yes"}, Verb: "get", Path: "/x"}, auth.Deny, 0) // evaluates to an error
	match.Match = []string{"request.resourceAttributes.?fieldSelector.requirements.orValue([]).exists(r, r.key == 'spec.nodeName' && r.values == ['a'])"}
	ask(open(match), req("yes"), auth.Allow, 1)
	for text, want := range map[string]string{"": "Required value", "request.usr == 'x'": "undefined field 'usr'", "request.user": "must evaluate to bool but got string"} {
		c := conf
		c.Match = []string{text}
		if _, err := webhook.NewAuthorizer(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := webhook.NewMatcher(make([]string, 65)); err == nil || !strings.Contains(err.Error(), "Too many") {
		t.Error(err)
	}
}
