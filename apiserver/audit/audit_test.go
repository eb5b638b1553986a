package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
	"proa.dev/internal/await"
)

func parse(t *testing.T, rules string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\n" + rules))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPolicy(t *testing.T) {
	jane := auth.User{Name: "jane", Groups: []string{"devs", "system:authenticated"}}
	pods := auth.Attributes{User: jane, Verb: "get", Version: "v1", Resource: "pods", Namespace: "shop", Name: "p"}
	status := pods
	status.Subresource = "status"
	deploy := pods
	deploy.Group, deploy.Resource = "apps", "deployments"
	path := auth.Attributes{User: jane, Verb: "get", Path: "/metrics/slis"}
	for _, c := range []struct {
		rule string
		a    auth.Attributes
		want bool
	}{
		{"users: [jane]", pods, true}, {"users: [joe]", pods, false}, {"userGroups: [devs]", pods, true}, {"userGroups: [ops]", pods, false},
		{"verbs: [get]", pods, true}, {"verbs: [list]", pods, false}, {"namespaces: [shop]", pods, true}, {"namespaces: [\"\"]", pods, false}, {"namespaces: [shop]", path, false},
		{"resources: [{group: \"\"}]", pods, true}, {"resources: [{group: \"\"}]", deploy, false}, {"resources: [{group: \"*\"}]", deploy, true},
		{"resources: [{resources: [pods]}]", pods, true}, {"resources: [{resources: [pods]}]", status, false}, {"resources: [{resources: [pods/status]}]", status, true},
		{"resources: [{resources: [pods/*]}]", status, true}, {"resources: [{resources: [pods/*]}]", pods, true}, {"resources: [{resources: [\"*/status\"]}]", status, true},
		{"resources: [{resources: [\"*\"]}]", status, true}, {"resources: [{resources: [pods], resourceNames: [p]}]", pods, true}, {"resources: [{resources: [pods], resourceNames: [q]}]", pods, false},
		{"nonResourceURLs: [/metrics*]", path, true}, {"nonResourceURLs: [/metrics]", path, false}, {"nonResourceURLs: [\"*\"]", path, true}, {"nonResourceURLs: [\"*\"]", pods, false},
	} {
		p := parse(t, "rules: [{level: Metadata, "+c.rule+"}]")
		if got := p.decide(&c.a).level == auditv1.LevelMetadata; got != c.want {
			t.Errorf("rule %s on %s %s%s: %v, want %v", c.rule, c.a.Verb, c.a.Resource, c.a.Path, got, c.want)
		}
	}
	first := parse(t, "rules: [{level: None, users: [jane]}, {level: Request}]")
	if got := first.decide(&pods).level; got != auditv1.LevelNone {
		t.Errorf("the second rule won: %s", got)
	}
}

func TestPolicyErrors(t *testing.T) {
	const head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n"
	for text, want := range map[string]string{
		head: "loaded illegal policy with 0 rules",
		"apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]": "audit.k8s.io/v1 and Policy",
		head + "rules: [{}]":                                                    "rules[0].level: Required value",
		head + "rules: [{level: All}]":                                          "rules[0].level: Unsupported value",
		head + "rules: [{level: None, colour: red}]":                            `unknown field "rules[0].colour"`,
		head + "omitStages: [Later]\nrules: [{level: None}]":                    "allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
		head + "rules: [{level: None, nonResourceURLs: [metrics]}]":             "must begin with a '/' character",
		head + "rules: [{level: None, nonResourceURLs: [/a*b]}]":                "must be the final character",
		head + "rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]": "cannot apply to both",
		head + "rules: [{level: None, resources: [{group: apps/v1}]}]":          "resources.group: Invalid value",
		head + "rules: [{level: None, resources: [{resourceNames: [a]}]}]":      "requires at least one resource",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", text, err, want)
		}
	}
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time                     { return c.now }
func (c *clock) NewTimer(d time.Duration) env.Timer { return env.SystemClock().NewTimer(d) }

// TestRotation: a file that would grow too large is set aside; only so many, and
// none that is too old, stay; no line is lost or split.
func TestRotation(t *testing.T) {
	c := &clock{time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	path := filepath.Join(t.TempDir(), "deep", "audit.log")
	r, err := openRotating(path, 1, 2, 10, c)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 300<<10) + "\n")
	backups := func() []string {
		all, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "audit-*.log"))
		return all
	}
	for i := range 13 {
		c.now = c.now.Add(time.Hour)
		if _, err := r.Write(line); err != nil {
			t.Fatal(err)
		}
		if st, _ := os.Stat(path); st.Size() > 1<<20 {
			t.Fatalf("after line %d the file has %d bytes", i, st.Size())
		}
	}
	if got := backups(); len(got) != 2 {
		t.Fatalf("backups %v, want 2", got)
	}
	c.now = c.now.Add(20 * 24 * time.Hour)
	for range 3 {
		r.Write(line)
	}
	if got := backups(); len(got) != 1 {
		t.Fatalf("backups after twenty days %v, want the newest only", got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// begun makes a log that posts to url, and one request in it.
func kubeconfig(t *testing.T, url string) (policy, config string) {
	dir := t.TempDir()
	policy, config = filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "kubeconfig")
	os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"), 0o600)
	os.WriteFile(config, fmt.Appendf(nil, "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]\nusers: [{name: u, user: {token: secret}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", url), 0o600)
	return policy, config
}

func TestWebhook(t *testing.T) {
	var mu sync.Mutex
	var got []auditv1.Event
	tries := 0
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if tries++; tries == 1 {
			w.WriteHeader(503)
			return
		}
		var l auditv1.EventList
		if err := json.NewDecoder(r.Body).Decode(&l); err != nil || l.Kind != "EventList" || r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("posted %+v with %v: %v", l.TypeMeta, r.Header, err)
		}
		got = append(got, l.Items...)
	}))
	defer hook.Close()
	policy, config := kubeconfig(t, hook.URL)
	l, err := New(Config{PolicyFile: policy, WebhookConfigFile: config, WebhookMaxWait: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l.webhook.first = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	send := func(n int) {
		for i := range n {
			r := httptest.NewRequest("GET", fmt.Sprintf("/api/v1/pods?n=%d", i), nil)
			e := l.Begin(r, &auth.Attributes{User: auth.User{Name: "jane"}, Verb: "list", Version: "v1", Resource: "pods"}, fmt.Sprint("id", i), time.Now(), true)
			e.Response(&metav1.Status{Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound})
			e.Started(404, false)
			e.Complete(false)
			e.Complete(false)
		}
	}
	send(1000)
	await.Nil(t, 10*time.Second, "2000 events", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(got) != 2000 {
			return fmt.Errorf("%d arrived", len(got))
		}
		return nil
	})
	send(3)
	cancel()
	<-done
	if len(got) != 2006 {
		t.Errorf("%d events after the end, want 2006", len(got))
	}
	if last := got[len(got)-1]; last.Stage != auditv1.StageResponseComplete || last.ResponseStatus.Reason != metav1.StatusReasonNotFound || last.ResponseStatus.Code != 404 {
		t.Errorf("last event %+v", last)
	}
	// Nobody takes events any more: the buffer is bounded.
	send(bufferEvents)
	if n := len(l.webhook.events); n != bufferEvents || l.webhook.lost != bufferEvents {
		t.Errorf("%d events wait and %d were lost, want %d of each", n, l.webhook.lost, bufferEvents)
	}
}

func TestLegacyAndFullDisk(t *testing.T) {
	policy, _ := kubeconfig(t, "http://127.0.0.1:1")
	path := filepath.Join(t.TempDir(), "a.log")
	l, err := New(Config{PolicyFile: policy, LogPath: path, LogFormat: "legacy"})
	if err != nil {
		t.Fatal(err)
	}
	e := l.Begin(httptest.NewRequest("GET", "/version", nil), &auth.Attributes{User: auth.User{Name: "jane", Groups: []string{"a", "b"}}, Verb: "get", Path: "/version"}, "id", time.Unix(0, 0).UTC(), true)
	l.Close()
	e.Complete(false) // counted as lost, the request goes on
	data, _ := os.ReadFile(path)
	want := `1970-01-01T00:00:00Z AUDIT: id="id" stage="RequestReceived" ip="192.0.2.1" method="get" user="jane" groups="\"a\",\"b\"" as="<self>" asgroups="<lookup>" user-agent="" namespace="<none>" uri="/version" response="<deferred>"` + "\n"
	if string(data) != want {
		t.Errorf("line\n%s\nwant\n%s", data, want)
	}
	for _, c := range []Config{{PolicyFile: policy, LogPath: path, LogFormat: "xml"}, {PolicyFile: policy, LogPath: path, LogMaxAge: -1}, {PolicyFile: path + "none", LogPath: path}, {PolicyFile: policy, WebhookConfigFile: path + "none"}} {
		if _, err := New(c); err == nil {
			t.Errorf("config %+v was accepted", c)
		}
	}
	if l, err := New(Config{LogPath: path}); l != nil || err != nil {
		t.Errorf("without a policy: %v %v, want nothing", l, err)
	}
	var none *Log
	none.Begin(nil, nil, "", time.Time{}, false).Complete(true)
}

func BenchmarkMetadata(b *testing.B) {
	dir := b.TempDir()
	policy := filepath.Join(dir, "p.yaml")
	os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n"), 0o600)
	l, err := New(Config{PolicyFile: policy, LogPath: filepath.Join(dir, "a.log")})
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/api/v1/namespaces/default/configmaps/a", nil)
	a := &auth.Attributes{User: auth.User{Name: "jane", Groups: []string{"a", "b"}}, Verb: "get", Version: "v1", Resource: "configmaps", Namespace: "default", Name: "a"}
	b.ReportAllocs()
	for b.Loop() {
		e := l.Begin(r, a, "387e3762-4f1d-4105-88de-89b44be735a1", time.Now(), true)
		e.Started(200, false)
		e.Complete(false)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, resources: [{group: '', resources: [pods/*]}]}]\n")
	f.Add("a: &a [1]\nb: [*a,*a]\n")
	f.Add("rules: [{nonResourceURLs: ['', '*', '/*']}]")
	a := &auth.Attributes{User: auth.User{Name: "jane"}, Verb: "get", Version: "v1", Resource: "pods", Subresource: "status"}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy([]byte(text))
		if err == nil {
			p.decide(a)
			p.decide(&auth.Attributes{Path: "/x"})
		}
	})
}
