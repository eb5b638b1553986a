package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
	"proa.dev/apiserver/auth"
)

// podNetwork leads every address to one backend, which says where the request
// was meant to go.
type podNetwork struct{ backend *httptest.Server }

func (n podNetwork) RoundTripperFor(string) (http.RoundTripper, *url.URL, error) {
	u, err := url.Parse("http://192.168.0.1:10250")
	return n.PodTransport(), u, err
}

func (n podNetwork) PodTransport() http.RoundTripper {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, n.backend.Listener.Addr().String())
	}}
}

func TestProxy(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the client's credentials reached the backend")
		}
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/there", http.StatusFound)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", r.Method+" "+r.Host+r.URL.RequestURI()+" "+string(body)+".")
	}))
	t.Cleanup(backend.Close)
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Nodes = podNetwork{backend} })
	cs := clients(t, c)["json"]
	p := pod("p")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	if _, err := cs.CoreV1().Pods("n").Create(ctx, p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	address := func(ip string) {
		t.Helper()
		p, err := cs.CoreV1().Pods("n").Get(ctx, "p", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
		if _, err := cs.CoreV1().Pods("n").UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cs.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cs.CoreV1().Services("n").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	yes, port, name := true, int32(9090), "web"
	if _, err := cs.DiscoveryV1().EndpointSlices("n").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	web := c.HTTP.Client()
	web.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	do := func(method, path, body string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, method, c.HTTP.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer admin")
		resp, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	const pods, services = "/api/v1/namespaces/n/pods/", "/api/v1/namespaces/n/services/"
	if r := do("GET", pods+"p/proxy/", ""); r.StatusCode != http.StatusBadRequest {
		t.Errorf("a pod without an address: %d", r.StatusCode)
	}
	for _, ip := range []string{"127.0.0.1", "169.254.169.254", "::1"} {
		address(ip)
		if r := do("GET", pods+"p/proxy/", ""); r.StatusCode != http.StatusBadRequest {
			t.Errorf("a pod at %s: %d", ip, r.StatusCode)
		}
	}
	address("10.0.0.7")
	for _, test := range []struct{ method, path, want string }{
		{"GET", pods + "p/proxy/some/path?a=b", "GET 10.0.0.7:8080/some/path?a=b ."},
		{"PUT", pods + "p:1234/proxy/", "PUT 10.0.0.7:1234/ x."},
		{"POST", pods + "http:p:/proxy/x%2Fy", "POST 10.0.0.7:8080/x%2Fy x."},
		{"DELETE", pods + "p/proxy", "DELETE 10.0.0.7:8080/ x."},
		{"PATCH", services + "s/proxy/", "PATCH 10.0.0.9:9090/ x."},
		{"OPTIONS", services + "s:web/proxy/a/", "OPTIONS 10.0.0.9:9090/a/ x."},
		{"GET", services + "s:80/proxy/a", "GET 10.0.0.9:9090/a ."},
		{"GET", "/api/v1/nodes/n1/proxy/stats/summary", "GET 192.168.0.1:10250/stats/summary ."},
	} {
		body := "x"
		if test.method == "GET" {
			body = ""
		}
		r := do(test.method, test.path, body)
		if got := r.Header.Get("X-Seen"); got != test.want || r.StatusCode != http.StatusOK {
			t.Errorf("%s %s: %d, the backend saw %q, want %q", test.method, test.path, r.StatusCode, got, test.want)
		}
	}
	if r := do("GET", pods+"p/proxy?a=b", ""); r.StatusCode != http.StatusMovedPermanently || r.Header.Get("Location") != pods+"p/proxy/?a=b" {
		t.Errorf("without a slash: %d to %q", r.StatusCode, r.Header.Get("Location"))
	}
	if r := do("GET", services+"s/proxy/moved", ""); r.StatusCode != http.StatusFound || r.Header.Get("Location") != services+"s/proxy/there" {
		t.Errorf("a redirect of the backend: %d to %q", r.StatusCode, r.Header.Get("Location"))
	}
	if r := do("GET", services+"s:99/proxy/", ""); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a port that the service has not: %d", r.StatusCode)
	}
	if r := do("GET", services+"nothing/proxy/", ""); r.StatusCode != http.StatusNotFound {
		t.Errorf("a service that is not: %d", r.StatusCode)
	}
}

// rights allows what is listed: user verb resource/subresource name.
type rights []string

func (list rights) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	want := fmt.Sprintf("%s %s %s/%s %s", a.User.Name, a.Verb, a.Resource, a.Subresource, a.Name)
	for _, r := range list {
		if r == want {
			return auth.Allow, "", nil
		}
	}
	if a.User.In(auth.Masters) || a.Resource == "selfsubjectreviews" {
		return auth.Allow, "", nil
	}
	return auth.NoOpinion, "", nil
}

func TestImpersonation(t *testing.T) {
	c := apitest.Start(t, func(cfg *apiserver.Config) {
		cfg.Authz = rights{"proxy impersonate users/ jane", "proxy impersonate groups/ dev", "proxy impersonate userextras/scopes view", "proxy impersonate uids/ 42",
			"proxy impersonate serviceaccounts/ robot"}
	})
	who := func(i rest.ImpersonationConfig) (authenticationv1.UserInfo, error) {
		cfg := rest.CopyConfig(c.Admin)
		cfg.BearerToken, cfg.Impersonate = "proxy", i
		cs, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, err := cs.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return authenticationv1.UserInfo{}, err
		}
		return r.Status.UserInfo, nil
	}
	u, err := who(rest.ImpersonationConfig{UserName: "jane", UID: "42", Groups: []string{"dev"}, Extra: map[string][]string{"scopes": {"view"}}})
	if err != nil {
		t.Fatal(err)
	}
	if u.Username != "jane" || u.UID != "42" || strings.Join(u.Groups, " ") != "dev system:authenticated" || fmt.Sprint(u.Extra["scopes"]) != "[view]" {
		t.Errorf("impersonated: %+v", u)
	}
	u, err = who(rest.ImpersonationConfig{UserName: "system:serviceaccount:n:robot"})
	if err != nil || strings.Join(u.Groups, " ") != "system:serviceaccounts system:serviceaccounts:n system:authenticated" {
		t.Errorf("a service account: %+v %v", u, err)
	}
	for name, i := range map[string]rest.ImpersonationConfig{
		"another user":  {UserName: "john"},
		"another group": {UserName: "jane", Groups: []string{auth.Masters}},
		"another extra": {UserName: "jane", Extra: map[string][]string{"scopes": {"view", "edit"}}},
		"another UID":   {UserName: "jane", UID: "43"},
	} {
		if u, err := who(i); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %+v %v, want Forbidden", name, u, err)
		}
	}
	if _, err := who(rest.ImpersonationConfig{Groups: []string{"dev"}}); err == nil {
		t.Error("groups without a user were impersonated")
	}
}

// TestApproval: conditions come through approval alone, the certificate through
// status alone.
func TestApproval(t *testing.T) {
	c := apitest.Start(t, nil)
	cs := clients(t, c)["json"]
	api := cs.CertificatesV1().CertificateSigningRequests()
	csr, err := api.Create(ctx, &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: "example.com/signer", Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, Request: request(t)}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if csr.Spec.Username != "admin" {
		t.Errorf("requested by %q", csr.Spec.Username)
	}
	approved := certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{approved}
	if got, err := api.UpdateStatus(ctx, csr.DeepCopy(), metav1.UpdateOptions{}); err == nil && len(got.Status.Conditions) > 0 {
		t.Error("approved through status")
	}
	csr, err = api.Get(ctx, "c", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{approved}
	csr.Status.Certificate = []byte("not through approval")
	csr, err = api.UpdateApproval(ctx, "c", csr, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.Status.Conditions) != 1 || csr.Status.Conditions[0].LastUpdateTime.IsZero() || len(csr.Status.Certificate) != 0 {
		t.Errorf("after approval: %+v", csr.Status)
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue})
	if _, err := api.UpdateApproval(ctx, "c", csr, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("approved and denied: %v, want Invalid", err)
	}
}

func request(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
