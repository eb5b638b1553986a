package apiserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/apiserver/fair"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/store/storetest"
)

// audited starts a server that records by the policy, and returns how to read
// what was recorded.
func audited(t *testing.T, policy string, change func(*apiserver.Config)) (*apitest.Cluster, func() []auditv1.Event) {
	t.Helper()
	dir := t.TempDir()
	file, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(file, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\n"+policy), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := audit.New(audit.Config{PolicyFile: file, LogPath: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		cfg.Audit = l
		if change != nil {
			change(cfg)
		}
	})
	return c, func() (out []auditv1.Event) {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			var e auditv1.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("audit line %q: %v", line, err)
			}
			if e.Kind != "Event" || e.APIVersion != "audit.k8s.io/v1" || e.AuditID == "" || e.RequestReceivedTimestamp.IsZero() || e.StageTimestamp.IsZero() {
				t.Fatalf("audit event lacks what every event has: %s", line)
			}
			out = append(out, e)
		}
		return out
	}
}

// badTokens refuses the token "bad".
type badTokens struct{ apitest.Tokens }

func (badTokens) Authenticate(r *http.Request) (auth.User, bool, error) {
	if r.Header.Get("Authorization") == "Bearer bad" {
		return auth.User{}, false, errors.New("bad token")
	}
	return apitest.Tokens{}.Authenticate(r)
}

func TestAudit(t *testing.T) {
	c, events := audited(t, `
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/healthz*"]
- level: Metadata
  resources: [{group: "", resources: [secrets]}]
- level: RequestResponse
  resources: [{group: "", resources: [configmaps]}]
  omitManagedFields: true
- level: Request
`, func(cfg *apiserver.Config) {
		cfg.Authn = badTokens{}
		cfg.Admit = admit.Chain{{Name: "notes", Validate: func(ctx context.Context, r *admit.Request) error {
			admit.Annotate(ctx, "notes.example/seen", "yes")
			if r.Name == "boom" {
				panic("boom")
			}
			return nil
		}}}
	})
	do := func(method, path, user, body string, header ...string) *http.Response {
		t.Helper()
		req, _ := http.NewRequest(method, c.HTTP.URL+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("User-Agent", "auditor/1")
		if user != "" {
			req.Header.Set("Authorization", "Bearer "+user)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := c.HTTP.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res
	}
	do("GET", "/healthz", "admin", "")
	res := do("POST", "/api/v1/namespaces/default/configmaps", "admin", `{"metadata":{"name":"a"},"data":{"k":"v"}}`, "Audit-ID", "mine-1", "X-Forwarded-For", "192.0.2.7")
	if res.StatusCode != 201 || res.Header.Get("Audit-Id") != "mine-1" {
		t.Fatalf("create: %d with Audit-ID %q, want 201 and mine-1", res.StatusCode, res.Header.Get("Audit-Id"))
	}
	do("POST", "/api/v1/namespaces/default/secrets", "admin", `{"metadata":{"name":"s"},"stringData":{"k":"hidden"}}`)
	do("GET", "/api/v1/namespaces/default/pods/none", "jane", "")
	do("GET", "/api/v1/namespaces/default/pods/none", "admin", "", "Impersonate-User", "jane", "Impersonate-Group", "devs")
	if res := do("GET", "/api/v1/pods", "", "", "Authorization", "Bearer bad"); res.Header.Get("Audit-Id") == "" {
		t.Error("an answer without Audit-ID")
	}
	got := map[string]auditv1.Event{}
	await.True(t, 10*time.Second, "five events", func() bool {
		list := events()
		for _, e := range list {
			key := e.Verb + " " + e.RequestURI + " " + e.User.Username
			if e.ImpersonatedUser != nil {
				key += " as " + e.ImpersonatedUser.Username
			}
			got[key] = e
		}
		return len(list) >= 4
	})
	cm := got["create /api/v1/namespaces/default/configmaps admin"]
	if cm.AuditID != "mine-1" || cm.Stage != auditv1.StageResponseComplete || cm.Level != auditv1.LevelRequestResponse || cm.UserAgent != "auditor/1" ||
		!slices.Contains(cm.User.Groups, auth.Masters) || len(cm.SourceIPs) != 2 || cm.SourceIPs[0] != "192.0.2.7" || cm.ResponseStatus == nil || cm.ResponseStatus.Code != 201 {
		t.Errorf("event of the create: %+v", cm)
	}
	if r := cm.ObjectRef; r == nil || r.Resource != "configmaps" || r.Name != "a" || r.Namespace != "default" || r.APIVersion != "v1" {
		t.Errorf("object of the create: %+v", r)
	}
	if a := cm.Annotations; a["authorization.k8s.io/decision"] != "allow" || a["notes.example/seen"] != "yes" {
		t.Errorf("annotations of the create: %v", a)
	}
	if cm.RequestObject == nil || !strings.Contains(string(cm.RequestObject.Raw), `"k":"v"`) || cm.ResponseObject == nil || !strings.Contains(string(cm.ResponseObject.Raw), `"uid"`) || strings.Contains(string(cm.ResponseObject.Raw), "managedFields") {
		t.Errorf("objects of the create: %s and %s", cm.RequestObject, cm.ResponseObject)
	}
	if s := got["create /api/v1/namespaces/default/secrets admin"]; s.RequestObject != nil || s.ResponseObject != nil || s.ObjectRef == nil || s.ObjectRef.Name != "s" {
		t.Errorf("event of a secret at level Metadata: %+v", s)
	}
	denied := got["get /api/v1/namespaces/default/pods/none jane"]
	if denied.Annotations["authorization.k8s.io/decision"] != "forbid" || denied.ResponseStatus.Code != 403 || denied.ResponseStatus.Reason != metav1.StatusReasonForbidden {
		t.Errorf("event of a denied request: %+v", denied)
	}
	as := got["get /api/v1/namespaces/default/pods/none admin as jane"]
	if as.ImpersonatedUser == nil || !slices.Contains(as.ImpersonatedUser.Groups, "devs") || as.ResponseStatus.Code != 403 {
		t.Errorf("event of an impersonated request: %+v", as)
	}
	for key := range got {
		if strings.Contains(key, "healthz") {
			t.Errorf("recorded although the level is None: %s", key)
		}
	}
	// Bad credentials: one event, at ResponseStarted, without a user.
	do("GET", "/api/v1/pods?limit=1", "", "", "Authorization", "Bearer bad")
	await.True(t, 10*time.Second, "the event of bad credentials", func() bool {
		n := 0
		for _, e := range events() {
			if e.RequestURI == "/api/v1/pods?limit=1" {
				n++
				if e.Stage != auditv1.StageResponseStarted || e.ResponseStatus.Code != 401 || e.ResponseStatus.Message != "Unauthorized" || e.User.Username != "" {
					t.Fatalf("event of bad credentials: %+v", e)
				}
			}
		}
		return n == 1
	})
	// A panic has its own stage and the client a 500.
	if res := do("POST", "/api/v1/namespaces/default/configmaps", "admin", `{"metadata":{"name":"boom"}}`); res.StatusCode != 500 {
		t.Errorf("panic: %d, want 500", res.StatusCode)
	}
	await.True(t, 10*time.Second, "the event of the panic", func() bool {
		return slices.ContainsFunc(events(), func(e auditv1.Event) bool {
			return e.Stage == auditv1.StagePanic && e.ResponseStatus.Code == 500 && strings.Contains(e.ResponseStatus.Message, "APIServer panic'd: boom")
		})
	})
}

// TestAuditStages: a watch has three stages, other requests two.
func TestAuditStages(t *testing.T) {
	c, events := audited(t, "rules:\n- level: Metadata\n", nil)
	stages := func(verb string) (out []auditv1.Stage) {
		for _, e := range events() {
			if e.Verb == verb {
				out = append(out, e.Stage)
			}
		}
		return out
	}
	call(t, c, "GET", "/api/v1/configmaps?watch=1&timeoutSeconds=1", "", "", "")
	call(t, c, "GET", "/api/v1/configmaps", "", "", "")
	await.True(t, 10*time.Second, "all stages", func() bool {
		return slices.Equal(stages("watch"), []auditv1.Stage{auditv1.StageRequestReceived, auditv1.StageResponseStarted, auditv1.StageResponseComplete}) &&
			slices.Equal(stages("list"), []auditv1.Stage{auditv1.StageRequestReceived, auditv1.StageResponseComplete})
	})
}

// gate is an authorizer that allows all; requests of one user wait in it until they
// are let through, one for each value of pass and all when it is closed.
type gate struct {
	user string
	in   atomic.Int64 // requests of the user that came so far
	pass chan struct{}
}

func (g *gate) Authorize(ctx context.Context, a auth.Attributes) (auth.Decision, string, error) {
	if a.User.Name == g.user {
		g.in.Add(1)
		select {
		case <-g.pass:
		case <-ctx.Done():
		}
	}
	return auth.Allow, "", nil
}

// A client that floods with 200 parallel requests, all of which work until the test
// lets them go on, does not keep another's request from its turn; with the two
// bounds of requests alone it does.
func TestFairness(t *testing.T) {
	flood := func(t *testing.T, f *fair.Dispatcher) (noisy *gate, get func(user string) (code int)) {
		noisy = &gate{user: "noisy", pass: make(chan struct{})}
		c := apitest.Start(t, func(cfg *apiserver.Config) {
			cfg.MaxInFlight, cfg.MaxMutatingInFlight = 20, 20
			cfg.Authz, cfg.Fair = noisy, f
		})
		get = func(user string) int {
			req, _ := http.NewRequest("GET", c.HTTP.URL+"/api/v1/namespaces/default/configmaps", nil)
			req.Header.Set("Authorization", "Bearer "+user)
			res, err := c.HTTP.Client().Do(req)
			if err != nil {
				return 0
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			return res.StatusCode
		}
		stop := make(chan struct{})
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				for get("noisy") == 200 { // what is sent away stays away: the others are there still
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		t.Cleanup(func() {
			close(stop)
			close(noisy.pass)
			all.Wait()
		})
		return noisy, get
	}
	const quiet = 20 // requests of the quiet client, one after the other
	t.Run("with", func(t *testing.T) {
		clock := storetest.NewClock() // what a request has used of its seat is the test's, too
		f := fair.New(fair.Config{Seats: 40, Clock: clock})
		waiting := func(user string) int {
			var b strings.Builder
			if ok, err := f.Dump(&b, "dump_requests", true); !ok || err != nil {
				t.Fatal(ok, err)
			}
			n := 0
			for line := range strings.Lines(b.String()) {
				cells := strings.Split(line, ",") // level, schema, queue, place in it (-1: works), distinguisher
				if len(cells) > 4 && strings.TrimSpace(cells[4]) == user && strings.TrimSpace(cells[3]) != "-1" {
					n++
				}
			}
			return n
		}
		noisy, get := flood(t, f)
		await.Nil(t, 20*time.Second, "all noisy requests work or wait", func() error {
			if in, wait := noisy.in.Load(), waiting("noisy"); in == 0 || int(in)+wait != 200 {
				return fmt.Errorf("%d work, %d wait", in, wait)
			}
			return nil
		})
		worst := 0
		for range quiet {
			code := make(chan int, 1)
			go func() { code <- get("quiet") }()
			await.True(t, 20*time.Second, "the quiet request waits", func() bool { return waiting("quiet") == 1 })
			before := 0 // noisy requests that had their turn before it
			for served := false; !served; {
				in := noisy.in.Load()
				clock.Advance(5 * time.Millisecond)
				noisy.pass <- struct{}{} // to the one that works longest
				await.True(t, 20*time.Second, "the next request has its turn", func() bool {
					select {
					case got := <-code:
						if served = true; got != 200 {
							t.Errorf("with fairness the quiet client got %d", got)
						}
					default:
					}
					return served || noisy.in.Load() > in
				})
				if !served {
					before++
				}
			}
			worst = max(worst, before)
		}
		t.Logf("at most %d noisy requests went before a quiet one", worst)
		// Queues take turns, and the noisy client has six (the hand of the level). Each
		// may be a turn behind: then two of its requests come first.
		if worst > 2*6 {
			t.Errorf("%d noisy requests went before a quiet one that waited, want 12 at most", worst)
		}
	})
	t.Run("without", func(t *testing.T) {
		noisy, get := flood(t, nil)
		await.Nil(t, 20*time.Second, "noisy requests have all places", func() error {
			if in := noisy.in.Load(); in != 20 {
				return fmt.Errorf("%d work", in)
			}
			return nil
		})
		for range quiet {
			if code := get("quiet"); code != 429 {
				t.Errorf("without fairness the quiet client got %d: the test shows nothing", code)
			}
		}
	})
}

// TestTooMany: what is sent away gets upstream's answer and headers.
func TestTooMany(t *testing.T) {
	jane := &gate{user: "jane", pass: make(chan struct{})}
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		cfg.Fair = fair.New(fair.Config{Seats: 1, WaitLimit: 20 * time.Millisecond})
		cfg.Authz = jane
	})
	var all sync.WaitGroup
	var sentAway sync.Once
	var mu sync.Mutex
	var refused *http.Response
	var text string
	for range 30 {
		all.Go(func() {
			req, _ := http.NewRequest("GET", c.HTTP.URL+"/api/v1/namespaces/default/configmaps", nil)
			req.Header.Set("Authorization", "Bearer jane")
			res, err := c.HTTP.Client().Do(req)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode == 429 {
				mu.Lock()
				refused, text = res, string(body)
				mu.Unlock()
				sentAway.Do(func() { close(jane.pass) }) // the one with the seat has shown that it is taken
			}
		})
	}
	all.Wait()
	if refused == nil {
		t.Fatal("nobody was sent away")
	}
	if h := refused.Header; h.Get("Retry-After") == "" || h.Get("Content-Type") != "text/plain; charset=utf-8" || text != "Too many requests, please try again later.\n" {
		t.Errorf("429 with %v and %q", h, text)
	}
	_, _, metrics := call(t, c, "GET", "/metrics", "", "", "")
	for _, want := range []string{`apiserver_flowcontrol_rejected_requests_total{flow_schema="global-default",priority_level="global-default",reason="time-out"}`, `apiserver_flowcontrol_nominal_limit_seats{priority_level="system"} 1`,
		`apiserver_flowcontrol_dispatched_requests_total{flow_schema="exempt",priority_level="exempt"}`, `apiserver_request_terminations_total{code="429"`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	for _, name := range []string{"dump_priority_levels", "dump_queues", "dump_requests?includeRequestDetails=1"} {
		if code, _, body := call(t, c, "GET", "/debug/api_priority_and_fairness/"+name, "", "", ""); code != 200 || !strings.HasPrefix(body, "PriorityLevelName,") {
			t.Errorf("%s: %d %q", name, code, body)
		}
	}
}

// TestLimits: what is too large, too deep or a bomb is refused with upstream's
// words, and costs no more memory than a few times its size.
func TestLimits(t *testing.T) {
	c := apitest.Start(t, nil)
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		refs := strings.Repeat(fmt.Sprintf("*a%d,", i), 10)
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(refs, ","))
	}
	deep := strings.Repeat(`{"a":`, 200_000)
	for _, tc := range []struct {
		name, contentType, body string
		code                    int
		text                    string
	}{
		{"large", "application/json", `{"data":{"k":"` + strings.Repeat("x", 3<<20) + `"}}`, 413, "Request entity too large: limit is 3145728"},
		{"deep json", "application/json", `{"metadata":` + deep, 400, "max depth"},
		{"deep yaml flow", "application/yaml", "metadata: " + strings.Repeat("[", 100_000), 400, ""},
		{"bomb", "application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n" + bomb, 400, ""},
		{"deep unknown json", "application/json", `{"metadata":{"name":"a"},"other":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, 400, ""},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		code, _, body := call(t, c, "POST", "/api/v1/namespaces/default/configmaps", "", tc.contentType, tc.body)
		runtime.ReadMemStats(&after)
		if code != tc.code || !strings.Contains(body, tc.text) {
			t.Errorf("%s: %d %.200s, want %d with %q", tc.name, code, body, tc.code, tc.text)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 200<<20 {
			t.Errorf("%s: %d MB were allocated for a body of %d kB", tc.name, got>>20, len(tc.body)>>10)
		}
		if n := after.Mallocs - before.Mallocs; n > 100_000 { // the bomb's refusal needs 24,000
			t.Errorf("%s: %d allocations", tc.name, n)
		}
	}
}

// TestRequestTimeout: what is not done in time is a 504 with upstream's Status.
func TestRequestTimeout(t *testing.T) {
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		cfg.Admit = admit.Chain{{Name: "slow", Validate: func(ctx context.Context, r *admit.Request) error {
			<-ctx.Done()
			return ctx.Err()
		}}}
	})
	code, _, body := call(t, c, "POST", "/api/v1/namespaces/default/configmaps?timeout=50ms", "", "application/json", `{"metadata":{"name":"a"}}`)
	want := `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Timeout: request did not complete within requested timeout - context deadline exceeded","reason":"Timeout","details":{},"code":504}` + "\n"
	if code != 504 || body != want {
		t.Errorf("%d %s, want 504 %s", code, body, want)
	}
	if code, _, body := call(t, c, "GET", "/api/v1/configmaps?timeout=soon", "", "", ""); code != 400 || !strings.Contains(body, "invalid timeout specified in the request URL") {
		t.Errorf("wrong timeout: %d %s", code, body)
	}
}

// TestVanishedWatchers: watchers whose connection broke leave nothing behind.
func TestVanishedWatchers(t *testing.T) {
	c := apitest.Start(t, nil)
	base := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	for range 20 {
		req, _ := http.NewRequestWithContext(ctx, "GET", c.HTTP.URL+"/api/v1/configmaps?watch=1", nil)
		req.Header.Set("Authorization", "Bearer admin")
		res, err := c.HTTP.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
	}
	running := func() string {
		_, _, body := call(t, c, "GET", "/metrics", "", "", "")
		s := bufio.NewScanner(strings.NewReader(body))
		for s.Scan() {
			if strings.HasPrefix(s.Text(), `apiserver_longrunning_requests{`) && strings.Contains(s.Text(), `resource="configmaps"`) {
				return s.Text()[strings.LastIndex(s.Text(), " ")+1:]
			}
		}
		return ""
	}
	if got := running(); got != "20" {
		t.Errorf("apiserver_longrunning_requests: %s, want 20", got)
	}
	cancel()
	await.True(t, 10*time.Second, "no watch is left", func() bool { return running() == "0" })
	await.True(t, 10*time.Second, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= base+10 })
}

// TestMetricNames: dashboards and alerts find the names and labels they key on.
func TestMetricNames(t *testing.T) {
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		cfg.Fair, cfg.Admit = fair.New(fair.Config{}), admit.Chain{{Name: "Refuser", Validate: func(_ context.Context, r *admit.Request) error {
			if r.Name == "refused" || r.Object.GetName() == "refused" {
				return errors.New("no")
			}
			return nil
		}}}
	})
	if err := c.Server.CertificateExpiry(func() time.Time { return time.Unix(2000000000, 0) }); err != nil {
		t.Fatal(err)
	}
	call(t, c, "POST", "/api/v1/namespaces/default/configmaps?dryRun=All", "", "application/json", `{"metadata":{"name":"a"}}`)
	call(t, c, "GET", "/api/v1/configmaps", "", "", "")
	call(t, c, "POST", "/api/v1/namespaces/default/configmaps", "", "application/json", `{"metadata":{"name":"refused"}}`)
	call(t, c, "GET", "/api/v1/configmaps?watch=1&timeoutSeconds=1&allowWatchBookmarks=true", "", "", "")
	call(t, c, "GET", "/api/v1/namespaces/default/pods/none/nosuch/thing", "", "", "")
	_, h, body := call(t, c, "GET", "/metrics", "", "", "")
	if got := h.Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Errorf("content type %q", got)
	}
	for _, want := range []string{
		`apiserver_request_total{code="201",component="apiserver",dry_run="All",group="",resource="configmaps",scope="namespace",subresource="",verb="POST",version="v1"} 1`,
		`apiserver_request_duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="configmaps",scope="cluster",subresource="",verb="LIST",version="v1",le="0.005"}`,
		`apiserver_request_sli_duration_seconds_count{component="apiserver",group="",resource="configmaps",scope="cluster",subresource="",verb="LIST",version="v1"} 1`,
		`apiserver_response_sizes_sum{component="apiserver",group="",resource="configmaps",scope="cluster",subresource="",verb="LIST",version="v1"}`,
		`apiserver_longrunning_requests{component="apiserver",group="",resource="configmaps",scope="cluster",subresource="",verb="WATCH",version="v1"} 0`,
		`apiserver_current_inflight_requests{request_kind="mutating"} 0`,
		`apiserver_storage_objects{resource="configmaps"} 0`,
		`apiserver_resource_objects{group="apps",resource="deployments"} 0`,
		`apiserver_watch_events_total{group="",resource="configmaps",version="v1"}`,
		`apiserver_watch_events_sizes_bucket{group="",resource="configmaps",version="v1",le="1024"}`,
		`authentication_attempts{result="success"}`, `authenticated_user_requests{username="other"}`,
		`kubernetes_build_info{`, `process_cpu_seconds_total`, `go_goroutines`, `apiserver_tls_handshake_errors_total 0`,
		`apiserver_flowcontrol_current_executing_seats{flow_schema="exempt",priority_level="exempt"} 1`,
		`proa_certificate_expiration_timestamp_seconds 2e+09`,
		`apiserver_admission_step_admission_duration_seconds_count{operation="CREATE",rejected="false",type="admit"} 2`,
		`apiserver_admission_controller_admission_duration_seconds_count{name="Refuser",operation="CREATE",rejected="false",type="validate"} 1`,
		`apiserver_admission_controller_admission_duration_seconds_count{name="Refuser",operation="CREATE",rejected="true",type="validate"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	if families, err := parser.TextToMetricFamilies(strings.NewReader(body)); err != nil || len(families) < 50 {
		t.Errorf("%d families of metrics are understood: %v", len(families), err)
	}
	if strings.Contains(body, "nosuch") {
		t.Error("a path that is not served became a label value")
	}
	if code, _, body := call(t, c, "GET", "/metrics/slis", "", "", ""); code != 200 || !strings.Contains(body, `kubernetes_healthcheck{name="ping",type="readyz"} 1`) || !strings.Contains(body, `kubernetes_healthchecks_total{name="etcd",status="success",type="livez"} 1`) {
		t.Errorf("/metrics/slis: %d %s", code, body)
	}
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/goroutine", "/debug/api_priority_and_fairness/dump_queues", "/metrics/slis"} {
		req, _ := http.NewRequest("GET", c.HTTP.URL+path, nil)
		req.Header.Set("Authorization", "Bearer jane")
		res, err := c.HTTP.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 403 {
			t.Errorf("%s for somebody without rights: %d, want 403", path, res.StatusCode)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1"} {
		if code, _, _ := call(t, c, "GET", path, "", "", ""); code != 200 {
			t.Errorf("%s: %d, want 200", path, code)
		}
	}
}

// TestHeaders: no CORS, no HSTS; an Audit-ID on every answer, no two alike.
func TestHeaders(t *testing.T) {
	c := apitest.Start(t, nil)
	ids := map[string]bool{}
	for range 50 {
		req, _ := http.NewRequest("GET", c.HTTP.URL+"/version", nil)
		req.Header.Set("Origin", "https://example.com")
		res, err := c.HTTP.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		for _, h := range []string{"Access-Control-Allow-Origin", "Strict-Transport-Security"} {
			if res.Header.Get(h) != "" {
				t.Fatalf("header %s: %q", h, res.Header.Get(h))
			}
		}
		if res.Header.Get("Cache-Control") != "no-cache, private" || len(res.Header.Get("Audit-Id")) != 36 {
			t.Fatalf("headers %v", res.Header)
		}
		ids[res.Header.Get("Audit-Id")] = true
	}
	if len(ids) != 50 {
		t.Fatalf("%d different Audit-IDs in 50 answers", len(ids))
	}
}

// TestKeeper: the mandatory and suggested objects come, come back, and a level
// that is missing is told by the schema's condition.
func TestKeeper(t *testing.T) {
	d := fair.New(fair.Config{})
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Fair = d })
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	k := &fair.Keeper{Dispatcher: d, View: c.View, Client: c.Server.Local(apitest.Admin), Clock: apitest.NewClock(), Log: discard()}
	running.Go(func() { k.Run(ctx) })
	defer running.Wait()
	defer cancel()
	await.True(t, 10*time.Second, "all objects", func() bool {
		s := c.View.Snapshot()
		return s.Len(kind.FlowSchema) == 11 && s.Len(kind.PriorityLevelConfiguration) == 8
	})
	if code, _, body := call(t, c, "DELETE", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/catch-all", "", "", ""); code != 200 {
		t.Fatalf("delete: %d %s", code, body)
	}
	await.True(t, 10*time.Second, "the mandatory schema is back", func() bool { return c.View.Snapshot().Get(kind.FlowSchema, "", "catch-all") != nil })
	code, _, body := call(t, c, "POST", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas", "", "application/json", `{"metadata":{"name":"lost"},"spec":{"matchingPrecedence":77,"priorityLevelConfiguration":{"name":"nowhere"},
		"rules":[{"subjects":[{"kind":"User","user":{"name":"x"}}],"nonResourceRules":[{"verbs":["*"],"nonResourceURLs":["*"]}]}]}}`)
	if code != 201 {
		t.Fatalf("create: %d %s", code, body)
	}
	await.True(t, 10*time.Second, "the schema is dangling", func() bool {
		_, _, body := call(t, c, "GET", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/lost", "", "", "")
		return strings.Contains(body, `"type":"Dangling","status":"True"`)
	})
	// The headers name the objects.
	await.True(t, 10*time.Second, "headers with UIDs", func() bool {
		_, h, _ := call(t, c, "GET", "/api/v1/configmaps", "", "", "")
		s := c.View.Snapshot()
		return h.Get("X-Kubernetes-PF-FlowSchema-UID") == string(s.Get(kind.FlowSchema, "", "exempt").GetUID()) &&
			h.Get("X-Kubernetes-PF-PriorityLevel-UID") == string(s.Get(kind.PriorityLevelConfiguration, "", "exempt").GetUID())
	})
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
