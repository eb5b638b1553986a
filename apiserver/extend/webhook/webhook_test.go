package webhook_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"proa.dev/apiserver"
	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/extend/hook"
	"proa.dev/apiserver/extend/policy"
	"proa.dev/apiserver/extend/webhook"
	"proa.dev/env"
	"proa.dev/internal/await"
)

// fixture is a server with webhooks.
type fixture struct {
	*apitest.Cluster
	*kubernetes.Clientset
}

func start(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{}
	f.Cluster = apitest.Start(t, func(c *apiserver.Config) {
		hooks := webhook.New(webhook.Config{Client: hook.New(hook.Config{View: c.View, Dial: toLoopback}), Authz: c.Authz})
		addresses := &admit.Addresses{Range: netip.MustParsePrefix("10.96.0.0/16"), PortFirst: 30000, PortEnd: 32768, View: c.View, Rand: env.SystemRand()}
		c.Admit = admit.Chain{
			{Name: "count", Mutate: func(ctx context.Context, r *admit.Request) error {
				// An in-tree plugin: it adds what a webhook may have asked for.
				if cm, ok := r.Object.(*corev1.ConfigMap); ok && cm.Labels["wants"] != "" {
					cm.Labels["has"] = cm.Labels["wants"]
				}
				return nil
			}},
			policy.Expressions(), hooks.Mutating(), hooks.Validating(), addresses.Plugin(),
		}
	})
	var err error
	if f.Clientset, err = kubernetes.NewForConfig(f.Admin); err != nil {
		t.Fatal(err)
	}
	f.namespace(t, "one", nil)
	return f
}

func (f *fixture) namespace(t testing.TB, name string, labels map[string]string) {
	t.Helper()
	_, err := f.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	ok(t, err)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// backend is a webhook server.
type backend struct {
	*httptest.Server
	ca    []byte
	mu    sync.Mutex
	asked []admissionv1.AdmissionRequest
}

// reply decides about one request.
type reply func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

func serve(t testing.TB, decide reply) *backend {
	return raw(t, func(b *backend, w http.ResponseWriter, doc *admissionv1.AdmissionReview) {
		doc.Response = decide(doc.Request)
		if doc.Response != nil && doc.Response.UID == "" {
			doc.Response.UID = doc.Request.UID
		}
		doc.Request = nil
		json.NewEncoder(w).Encode(doc)
	})
}

func raw(t testing.TB, answer func(b *backend, w http.ResponseWriter, doc *admissionv1.AdmissionReview)) *backend {
	b := &backend{}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var doc admissionv1.AdmissionReview
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &doc); err != nil || doc.Request == nil {
			http.Error(w, "no review", 400)
			return
		}
		b.mu.Lock()
		b.asked = append(b.asked, *doc.Request)
		b.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		answer(b, w, &doc)
	}))
	b.StartTLS()
	t.Cleanup(func() { b.CloseClientConnections(); b.Close() })
	b.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Certificate().Raw})
	return b
}

func (b *backend) count() int { b.mu.Lock(); defer b.mu.Unlock(); return len(b.asked) }

func (b *backend) last() admissionv1.AdmissionRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[len(b.asked)-1]
}

func (b *backend) client() admissionregv1.WebhookClientConfig {
	url := b.URL + "/hook"
	return admissionregv1.WebhookClientConfig{URL: &url, CABundle: b.ca}
}

func rules(resource string, ops ...admissionregv1.OperationType) []admissionregv1.RuleWithOperations {
	group, version := "", "v1"
	if g, r, ok := strings.Cut(resource, ":"); ok {
		group, resource = g, r
	}
	return []admissionregv1.RuleWithOperations{{Operations: ops, Rule: admissionregv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}}}}
}

func none() *admissionregv1.SideEffectClass { e := admissionregv1.SideEffectClassNone; return &e }

func (f *fixture) validating(t testing.TB, name string, b admissionregv1.WebhookClientConfig, change func(*admissionregv1.ValidatingWebhook)) {
	t.Helper()
	w := admissionregv1.ValidatingWebhook{Name: name + ".example.com", ClientConfig: b, SideEffects: none(), AdmissionReviewVersions: []string{"v1"},
		Rules: rules("configmaps", admissionregv1.Create, admissionregv1.Update, admissionregv1.Delete)}
	if change != nil {
		change(&w)
	}
	_, err := f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(),
		&admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregv1.ValidatingWebhook{w}}, metav1.CreateOptions{})
	ok(t, err)
}

func (f *fixture) mutating(t testing.TB, name string, b admissionregv1.WebhookClientConfig, change func(*admissionregv1.MutatingWebhook)) {
	t.Helper()
	w := admissionregv1.MutatingWebhook{Name: name + ".example.com", ClientConfig: b, SideEffects: none(), AdmissionReviewVersions: []string{"v1"},
		Rules: rules("configmaps", admissionregv1.Create, admissionregv1.Update)}
	if change != nil {
		change(&w)
	}
	_, err := f.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(),
		&admissionregv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregv1.MutatingWebhook{w}}, metav1.CreateOptions{})
	ok(t, err)
}

func (f *fixture) configMap(ctx context.Context, name string, data map[string]string) (*corev1.ConfigMap, error) {
	return f.CoreV1().ConfigMaps("one").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"l": "v"}}, Data: data}, metav1.CreateOptions{})
}

func allow(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func patchWith(patch string) reply {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		t := admissionv1.PatchTypeJSONPatch
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(patch), PatchType: &t}
	}
}

func TestDenied(t *testing.T) {
	f := start(t)
	b := serve(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if strings.Contains(string(r.Object.Raw), "forbidden") {
			return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: "the word is forbidden", Reason: "Bad", Code: 418}}
		}
		return &admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{"seen"}}
	})
	f.validating(t, "deny", b.client(), nil)
	_, err := f.configMap(t.Context(), "bad", map[string]string{"a": "forbidden"})
	apitest.Refused(t, err, 418, `admission webhook "deny.example.com" denied the request: the word is forbidden`)
	cm, err := f.configMap(t.Context(), "good", map[string]string{"a": "b"})
	ok(t, err)
	r := b.last()
	if r.UID == "" || r.Kind.Kind != "ConfigMap" || r.Resource.Resource != "configmaps" || r.RequestKind == nil || r.RequestKind.Kind != "ConfigMap" ||
		r.Name != "good" || r.Namespace != "one" || r.Operation != admissionv1.Create || r.UserInfo.Username != "admin" || r.DryRun == nil || *r.DryRun ||
		!strings.Contains(string(r.Object.Raw), `"kind":"ConfigMap"`) || string(r.OldObject.Raw) != "null" && r.OldObject.Raw != nil {
		t.Errorf("asked %+v, object %s, old %s", r, r.Object.Raw, r.OldObject.Raw)
	}
	cm.Data["a"] = "forbidden"
	_, err = f.CoreV1().ConfigMaps("one").Update(t.Context(), cm, metav1.UpdateOptions{})
	apitest.Refused(t, err, 418, "denied the request")
	_, err = f.CoreV1().ConfigMaps("one").Patch(t.Context(), "good", types.MergePatchType, []byte(`{"data":{"b":"forbidden"}}`), metav1.PatchOptions{})
	apitest.Refused(t, err, 418, "denied the request")
	if r := b.last(); r.Operation != admissionv1.Update || !strings.Contains(string(r.OldObject.Raw), `"good"`) {
		t.Errorf("asked about an update: %+v", r)
	}
	ok(t, f.CoreV1().ConfigMaps("one").Delete(t.Context(), "good", metav1.DeleteOptions{}))
	if r := b.last(); r.Operation != admissionv1.Delete || len(r.Object.Raw) > 4 || !strings.Contains(string(r.OldObject.Raw), `"good"`) {
		t.Errorf("asked about a delete: %+v", r)
	}
	// A refusal without any word.
	silent := serve(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{}
	})
	f.validating(t, "silent", silent.client(), nil)
	_, err = f.configMap(t.Context(), "x", nil)
	apitest.Refused(t, err, 400, `admission webhook "silent.example.com" denied the request without explanation`)
}

func TestPatched(t *testing.T) {
	f := start(t)
	first := serve(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if strings.Contains(string(r.Object.Raw), "start") {
			return patchWith(`[{"op":"add","path":"/data/one","value":"yes"},{"op":"add","path":"/metadata/labels/wants","value":"it"}]`)(r)
		}
		return allow(r)
	})
	second := serve(t, func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if strings.Contains(string(r.Object.Raw), `"one":"yes"`) {
			return patchWith(`[{"op":"add","path":"/data/two","value":"yes"}]`)(r)
		}
		return allow(r)
	})
	again := admissionregv1.IfNeededReinvocationPolicy
	f.mutating(t, "a-first", first.client(), func(w *admissionregv1.MutatingWebhook) { w.ReinvocationPolicy = &again })
	f.mutating(t, "b-second", second.client(), nil)
	cm, err := f.configMap(t.Context(), "m", map[string]string{"start": "now"})
	ok(t, err)
	if cm.Data["one"] != "yes" || cm.Data["two"] != "yes" || cm.Labels["has"] != "it" {
		t.Errorf("got data %v labels %v", cm.Data, cm.Labels)
	}
	if first.count() != 2 || second.count() != 1 {
		t.Errorf("asked %d and %d times: the first was to be asked again, the second not", first.count(), second.count())
	}
	if cm.UID == "" || cm.Name != "m" {
		t.Errorf("identity %q %q", cm.UID, cm.Name)
	}
}

// TestWrongAnswers: whatever a webhook answers, the write is refused with the reason
// and nothing else happens.
func TestWrongAnswers(t *testing.T) {
	f := start(t)
	one := func(name string, b *backend, code int32, words ...string) {
		t.Run(name, func(t *testing.T) {
			f.mutating(t, name, b.client(), func(w *admissionregv1.MutatingWebhook) {
				w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"l": "v"}}
			})
			defer f.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
			_, err := f.configMap(t.Context(), name, map[string]string{"a": "b"})
			if code == 0 {
				ok(t, err)
				return
			}
			apitest.Refused(t, err, code, words...)
			if _, err := f.CoreV1().ConfigMaps("one").Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("it is there: %v", err)
			}
		})
	}
	failed := func(name string) string {
		return `Internal error occurred: failed calling webhook "` + name + `.example.com": `
	}
	answer := func(text string) *backend {
		return raw(t, func(_ *backend, w http.ResponseWriter, _ *admissionv1.AdmissionReview) { io.WriteString(w, text) })
	}
	one("garbage", answer("<html>"), 500, failed("garbage")+"failed to call webhook: couldn't get version/kind; json parse error")
	one("kindless", answer(`{"response":{}}`), 500, failed("kindless"), "Object 'Kind' is missing")
	one("absent", answer(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`), 500, "received invalid webhook response: webhook response was absent")
	one("other-kind", raw(t, func(_ *backend, w http.ResponseWriter, d *admissionv1.AdmissionReview) {
		fmt.Fprintf(w, `{"apiVersion":"v1","kind":"Pod","response":{"uid":%q,"allowed":true}}`, d.Request.UID)
	}), 500, "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=Pod")
	one("other-uid", serve(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{UID: "else", Allowed: true}
	}), 500, `expected response.uid=`, `got "else"`)
	one("half", serve(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte("[]")}
	}), 500, "webhook returned response.patch but not response.patchType")
	one("no-patch", serve(t, patchWith(`{"a":1}`)), 500, "received undecodable patch in webhook response")
	one("lost-path", serve(t, patchWith(`[{"op":"replace","path":"/nowhere/at","value":1}]`)), 500)
	one("wrong-type", serve(t, patchWith(`[{"op":"replace","path":"/data","value":7}]`)), 500)
	one("other-object", serve(t, patchWith(`[{"op":"replace","path":"/kind","value":"Secret"}]`)), 500, "Kind=Secret")
	one("other-space", serve(t, patchWith(`[{"op":"replace","path":"/metadata/namespace","value":"kube-system"}]`)), 400, "does not match the namespace sent on the request")
	one("uid", serve(t, patchWith(`[{"op":"replace","path":"/metadata/uid","value":"mine"}]`)), 0)
	if cm, err := f.CoreV1().ConfigMaps("one").Get(t.Context(), "uid", metav1.GetOptions{}); err != nil || cm.UID == "mine" {
		t.Errorf("a webhook gave an object its uid: %v %v", cm.UID, err)
	}
	one("code", raw(t, func(_ *backend, w http.ResponseWriter, _ *admissionv1.AdmissionReview) {
		http.Error(w, "I am ill", 503)
	}), 500, failed("code"), "the server is currently unable to handle the request")
	one("redirect", raw(t, func(_ *backend, w http.ResponseWriter, _ *admissionv1.AdmissionReview) {
		w.Header().Set("Location", "https://127.0.0.1:1/")
		w.WriteHeader(307)
	}), 500, failed("redirect"))
	one("huge", raw(t, func(_ *backend, w http.ResponseWriter, _ *admissionv1.AdmissionReview) {
		chunk := []byte(strings.Repeat("x", 1<<20))
		for range 12 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}), 500, failed("huge"), "longer than")
	one("laughs", serve(t, patchWith(laughs())), 500)
	closed := serve(t, allow)
	closed.Close()
	one("closed", closed, 500, failed("closed")+`failed to call webhook: Post "https://127.0.0.1:`, "connection refused")
	stranger, known := serve(t, allow), serve(t, allow)
	_ = known
	stranger.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: otherCA(t)})
	one("stranger", stranger, 500, failed("stranger"), "certificate signed by unknown authority")
	stranger.ca = []byte("no pem")
	one("no-ca", stranger, 500, "could not get REST client: unable to load root certificates")
}

func laughs() string {
	ops := []string{`{"op":"add","path":"/data/x","value":"` + strings.Repeat("ha", 5000) + `"}`}
	for i := range 9000 {
		ops = append(ops, fmt.Sprintf(`{"op":"copy","from":"/data","path":"/data/c%d"}`, i))
	}
	return "[" + strings.Join(ops, ",") + "]"
}

func TestUpdateMayNotMove(t *testing.T) {
	f := start(t)
	_, err := f.configMap(t.Context(), "stays", nil)
	ok(t, err)
	b := serve(t, patchWith(`[{"op":"replace","path":"/metadata/name","value":"moved"}]`))
	f.mutating(t, "mover", b.client(), nil)
	_, err = f.CoreV1().ConfigMaps("one").Patch(t.Context(), "stays", types.MergePatchType, []byte(`{"data":{"a":"b"}}`), metav1.PatchOptions{})
	apitest.Refused(t, err, 422, `metadata.name: Invalid value: "moved": field is immutable`)
}

func TestTimeoutAndFailurePolicy(t *testing.T) {
	f := start(t)
	hanging := func() (b *backend, release func()) {
		until := make(chan struct{})
		b = raw(t, func(*backend, http.ResponseWriter, *admissionv1.AdmissionReview) { <-until })
		release = sync.OnceFunc(func() { close(until) })
		t.Cleanup(release)
		return b, release
	}
	slow, release := hanging()
	long, one, ignore := int32(30), int32(1), admissionregv1.Ignore
	f.validating(t, "slow", slow.client(), func(w *admissionregv1.ValidatingWebhook) {
		w.TimeoutSeconds = &long
		w.Rules = rules("secrets", admissionregv1.Create)
	})
	secret := func(name string) error {
		_, err := f.CoreV1().Secrets("one").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	var calls sync.WaitGroup
	var ended, failures atomic.Int32
	eight := func(name string) {
		for i := range 8 {
			calls.Go(func() {
				err := secret(fmt.Sprint(name, i))
				ended.Add(1)
				if err != nil && strings.Contains(err.Error(), "context deadline exceeded") && strings.Contains(err.Error(), "timeout=1s") {
					failures.Add(1)
				}
			})
		}
	}
	// While it hangs, what does not depend on it goes on.
	eight("hangs")
	await.True(t, 20*time.Second, "eight calls hang", func() bool { return slow.count() == 8 })
	for i := range 20 {
		_, err := f.configMap(t.Context(), fmt.Sprintf("free%d", i), nil)
		ok(t, err)
	}
	if n := ended.Load(); n != 0 {
		t.Errorf("others waited for a webhook that they do not depend on: %d of its 8 calls had ended before", n)
	}
	release()
	calls.Wait()
	// After its timeout, the policy decides.
	slow, _ = hanging()
	w, err := f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), "slow", metav1.GetOptions{})
	ok(t, err)
	w.Webhooks[0].ClientConfig, w.Webhooks[0].TimeoutSeconds = slow.client(), &one
	w, err = f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), w, metav1.UpdateOptions{})
	ok(t, err)
	eight("fails")
	calls.Wait()
	if failures.Load() != 8 {
		t.Errorf("%d of 8 failed with the deadline", failures.Load())
	}
	w.Webhooks[0].FailurePolicy = &ignore
	_, err = f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), w, metav1.UpdateOptions{})
	ok(t, err)
	ok(t, secret("ignored"))
}

func TestDryRunAndConditions(t *testing.T) {
	f := start(t)
	b := serve(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: false}
	})
	some := admissionregv1.SideEffectClassNoneOnDryRun
	f.validating(t, "cond", b.client(), func(w *admissionregv1.ValidatingWebhook) {
		w.SideEffects = &some
		w.MatchConditions = []admissionregv1.MatchCondition{
			{Name: "not-skipped", Expression: `object.metadata.name != "skip-me"`},
			{Name: "may", Expression: `authorizer.group("").resource("configmaps").namespace(request.namespace).check("create").allowed()`},
		}
	})
	_, err := f.configMap(t.Context(), "skip-me", nil)
	ok(t, err)
	_, err = f.configMap(t.Context(), "asked", nil)
	apitest.Refused(t, err, 400, "denied the request")
	_, err = f.CoreV1().ConfigMaps("one").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "dry"}}, metav1.CreateOptions{DryRun: []string{"All"}})
	apitest.Refused(t, err, 400, "denied the request")
	if !*b.last().DryRun {
		t.Error("a dry run is not said to be one")
	}
	for _, bad := range []string{"object.x ==", "1 + 1", "nothing.here == 1"} {
		_, err = f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "bad"},
			Webhooks: []admissionregv1.ValidatingWebhook{{Name: "bad.example.com", ClientConfig: b.client(), SideEffects: none(), AdmissionReviewVersions: []string{"v1"},
				MatchConditions: []admissionregv1.MatchCondition{{Name: "x", Expression: bad}}}}}, metav1.CreateOptions{})
		apitest.Refused(t, err, 422, "webhooks[0].matchConditions[0].expression: Invalid value")
	}
	// Webhooks are not asked about their own kind.
	f.validating(t, "all", b.client(), func(w *admissionregv1.ValidatingWebhook) {
		w.Rules = []admissionregv1.RuleWithOperations{{Operations: []admissionregv1.OperationType{"*"}, Rule: admissionregv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}}}}
	})
	ok(t, f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "all", metav1.DeleteOptions{}))
}

// TestService: a webhook behind a Service is found through its endpoints and must
// show the name of the Service.
func TestService(t *testing.T) {
	f := start(t)
	b := serve(t, allow)
	_, port, _ := net.SplitHostPort(b.Listener.Addr().String())
	path := "/x"
	f.validating(t, "svc", admissionregv1.WebhookClientConfig{CABundle: b.ca, Service: &admissionregv1.ServiceReference{Namespace: "one", Name: "hook", Path: &path}}, nil)
	_, err := f.configMap(t.Context(), "a", nil)
	apitest.Refused(t, err, 500, `Post "https://hook.one.svc:443/x?timeout=10s": service "hook" not found`)
	_, err = f.CoreV1().Services("one").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "hook"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}, metav1.CreateOptions{})
	ok(t, err)
	_, err = f.configMap(t.Context(), "a", nil)
	apitest.Refused(t, err, 500, `no endpoints available for service "hook"`)
	var n int32
	fmt.Sscan(port, &n)
	f.slice(t, n)
	_, err = f.configMap(t.Context(), "a", nil)
	// The test server's certificate is for example.com and 127.0.0.1.
	apitest.Refused(t, err, 500, "certificate is valid for", "not hook.one.svc")
	cert, ca := certificateFor(t, "hook.one.svc")
	b.TLS.Certificates = []tls.Certificate{cert}
	f.validating(t, "svc2", admissionregv1.WebhookClientConfig{CABundle: ca, Service: &admissionregv1.ServiceReference{Namespace: "one", Name: "hook", Path: &path}}, nil)
	ok(t, f.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "svc", metav1.DeleteOptions{}))
	_, err = f.configMap(t.Context(), "a", nil)
	ok(t, err)
	if b.count() != 1 {
		t.Errorf("asked %d times", b.count())
	}
}

// TestBound: a webhook that hangs holds a bounded number of calls; further ones are
// told to come again.
func TestBound(t *testing.T) {
	release := make(chan struct{})
	b := raw(t, func(_ *backend, w http.ResponseWriter, _ *admissionv1.AdmissionReview) { <-release })
	c := hook.New(hook.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var running sync.WaitGroup
	var busy, other atomic.Int32
	body := []byte(`{"request":{}}`)
	for range 2*hook.InFlight + 10 {
		running.Go(func() {
			_, err := c.Post(ctx, hook.Target{URL: b.URL, CABundle: b.ca}, body)
			if hook.IsBusy(err) {
				if busy.Add(1) == 10 {
					close(release)
				}
			} else {
				other.Add(1)
			}
		})
	}
	running.Wait()
	if busy.Load() != 10 || other.Load() != 2*hook.InFlight {
		t.Errorf("%d were refused, %d were not", busy.Load(), other.Load())
	}
}
