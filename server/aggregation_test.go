package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/cluster/pki"
	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/view"
)

// byName authenticates the name in the token.
type byName struct{}

func (byName) Authenticate(r *http.Request) (auth.User, bool, error) {
	name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer user-")
	u := auth.User{Name: name, UID: "uid-" + name, Groups: []string{"people", auth.AllAuthenticated}, Extra: map[string][]string{"example.org/team": {"blue"}}}
	if name == "admin" {
		u.Groups = append(u.Groups, auth.Masters)
	}
	return u, ok, nil
}

// extension is an API server with a resource "gadgets" in ext.example.org/v1.
type extension struct {
	*httptest.Server
	ca *pki.Authority

	mu      sync.Mutex
	gadgets map[string]string // UID by NAMESPACE/NAME
	last    http.Header       // of the last request of a user
	peer    string
	slow    bool
}

func newExtension(t *testing.T, clients []byte) *extension {
	t.Helper()
	ca, err := pki.New(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(pki.Names{CommonName: "ext", DNS: []string{"ext.default.svc"}, Server: true}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(clients) {
		t.Fatalf("no certificates in %q", clients)
	}
	e := &extension{ca: ca, gadgets: map[string]string{}}
	e.Server = httptest.NewUnstartedServer(e)
	e.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	e.EnableHTTP2 = true
	e.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelInfo)
	e.StartTLS()
	t.Cleanup(func() { e.CloseClientConnections(); e.Close() })
	return e
}

func (e *extension) uid(gadget string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.gadgets[gadget]
}

func (e *extension) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const base = "/apis/ext.example.org/v1"
	e.mu.Lock()
	slow := e.slow
	if r.Header.Get("X-Remote-User") != "system:kube-aggregator" {
		e.last, e.peer = r.Header.Clone(), r.TLS.PeerCertificates[0].Subject.CommonName
	}
	e.mu.Unlock()
	if slow {
		<-r.Context().Done()
		return
	}
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(v)
	}
	gadget := func(ns, name string) map[string]any {
		return map[string]any{"apiVersion": "ext.example.org/v1", "kind": "Gadget", "metadata": map[string]any{"namespace": ns, "name": name}}
	}
	rest, _ := strings.CutPrefix(r.URL.Path, base+"/namespaces/")
	ns, rest, _ := strings.Cut(rest, "/")
	switch {
	case r.URL.Path == base:
		answer(200, metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "ext.example.org/v1", APIResources: []metav1.APIResource{
			{Name: "gadgets", SingularName: "gadget", Namespaced: true, Kind: "Gadget", Verbs: metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "watch"}, ShortNames: []string{"gd"}},
			{Name: "gadgets/exec", Namespaced: true, Kind: "Gadget", Verbs: metav1.Verbs{"create", "get"}}}})
	case r.URL.Path == "/openapi/v3":
		answer(200, map[string]any{"paths": map[string]any{"apis/ext.example.org/v1": map[string]any{"serverRelativeURL": "/openapi/v3/apis/ext.example.org/v1?hash=1"}}})
	case r.URL.Path == "/openapi/v3/apis/ext.example.org/v1":
		answer(200, map[string]any{"openapi": "3.0.0", "info": map[string]any{"title": "gadget server"}, "paths": map[string]any{base + "/": map[string]any{}}})
	case r.URL.Path == "/openapi/v2":
		answer(200, map[string]any{"swagger": "2.0", "paths": map[string]any{base + "/x": map[string]any{"get": map[string]any{"schema": map[string]any{"$ref": "#/definitions/io.k8s.api.core.v1.Pod"}}},
			"/apis/other/v1/": map[string]any{}}, "definitions": map[string]any{"io.k8s.api.core.v1.Pod": map[string]any{"type": "object", "description": "not that one"}}})
	case rest == "gadgets" && r.Method == "GET" && r.URL.Query().Get("watch") == "1":
		w.Header().Set("Content-Type", "application/json")
		for i := range 2 {
			json.NewEncoder(w).Encode(map[string]any{"type": "ADDED", "object": gadget(ns, fmt.Sprint("g", i))})
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	case rest == "gadgets" && r.Method == "GET":
		items := []any{}
		e.mu.Lock()
		for k := range e.gadgets {
			if n, name, _ := strings.Cut(k, "/"); n == ns {
				items = append(items, gadget(n, name))
			}
		}
		e.mu.Unlock()
		answer(200, map[string]any{"apiVersion": "ext.example.org/v1", "kind": "GadgetList", "metadata": map[string]any{}, "items": items})
	case strings.HasPrefix(rest, "gadgets/") && r.Method == "GET" && e.uid(ns+rest[len("gadgets"):]) != "":
		g := gadget(ns, rest[len("gadgets/"):])
		g["metadata"].(map[string]any)["uid"] = e.uid(ns + rest[len("gadgets"):])
		answer(200, g)
	case rest == "gadgets" && r.Method == "POST":
		var in metav1.PartialObjectMetadata
		json.NewDecoder(r.Body).Decode(&in)
		e.mu.Lock()
		e.gadgets[ns+"/"+in.Name] = ""
		e.mu.Unlock()
		answer(201, gadget(ns, in.Name))
	case rest == "gadgets" && r.Method == "DELETE":
		e.mu.Lock()
		for k := range e.gadgets {
			if strings.HasPrefix(k, ns+"/") {
				delete(e.gadgets, k)
			}
		}
		e.mu.Unlock()
		answer(200, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"})
	case strings.HasSuffix(rest, "/exec") && r.Header.Get("Upgrade") == "echo":
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		io.Copy(c, rw)
	default:
		answer(404, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 404})
	}
}

// eventually waits until f says ok; now is what there is.
func eventually(t *testing.T, what string, f func() (ok bool, now any)) {
	t.Helper()
	await.Nil(t, 30*time.Second, what, func() error {
		if ok, now := f(); !ok {
			return fmt.Errorf("it is %v", now)
		}
		return nil
	})
}

func available(s *Server, name string) string {
	svc := view.Get[*apiregistrationv1.APIService](s.View.Snapshot(), kind.APIService, "", name)
	if svc == nil {
		return "absent"
	}
	for _, c := range svc.Status.Conditions {
		return string(c.Status) + " " + c.Reason + " " + c.Message
	}
	return ""
}

// An API server behind an APIService, from its registration to its end.
func TestAggregation(t *testing.T) {
	var mu sync.Mutex
	var to string // where the Service's endpoints really are
	s, base, end := run(t, func(c *Config) {
		c.Authenticators = []auth.Authenticator{byName{}}
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if address != "192.0.2.1:8443" {
				return nil, fmt.Errorf("dial %s: that is not the endpoint", address)
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		}
	})
	defer end()
	ctx, admin := t.Context(), s.Admin()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	ask := func(user, method, path, body string, headers ...string) (int, string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer user-"+user)
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(data)
	}

	// What the server registers by itself, and repairs.
	eventually(t, "v1.apps", func() (bool, any) {
		a := available(s, "v1.apps")
		return a == "True Local Local APIServices are always available", a
	})
	eventually(t, "v1.", func() (bool, any) { a := available(s, "v1."); return strings.HasPrefix(a, "True Local"), a })
	if err := admin.Delete(ctx, kind.APIService, "", "v1.apps", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "v1.apps again", func() (bool, any) { a := available(s, "v1.apps"); return a != "absent", a })

	// Whom to believe.
	var trust *corev1.ConfigMap
	eventually(t, "the ConfigMap of trust", func() (bool, any) {
		trust = view.Get[*corev1.ConfigMap](s.View.Snapshot(), kind.ConfigMap, "kube-system", "extension-apiserver-authentication")
		return trust != nil, nil
	})
	if trust.Data["requestheader-allowed-names"] != `["front-proxy-client"]` || trust.Data["requestheader-username-headers"] != `["X-Remote-User"]` || trust.Data["client-ca-file"] == "" {
		t.Errorf("trust is %v", trust.Data)
	}
	ext := newExtension(t, []byte(trust.Data["requestheader-client-ca-file"]))
	mu.Lock()
	to = ext.Listener.Addr().String()
	mu.Unlock()

	// Nothing behind it, step by step.
	port := int32(443)
	reg := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.ext.example.org"}, Spec: apiregistrationv1.APIServiceSpec{Group: "ext.example.org", Version: "v1",
		GroupPriorityMinimum: 2000, VersionPriority: 10, Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "ext", Port: &port}, CABundle: s.cfg.Authority.PEM()}}
	create := func(k *kind.Kind, o kind.Object) {
		t.Helper()
		if _, err := admin.Create(ctx, k, o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	is := func(want string) {
		t.Helper()
		eventually(t, "available", func() (bool, any) { a := available(s, "v1.ext.example.org"); return strings.HasPrefix(a, want), a })
	}
	create(kind.APIService, reg)
	is(`False ServiceNotFound service/ext in "default" is not present`)
	if code, body := ask("admin", "GET", "/apis/ext.example.org/v1/namespaces/default/gadgets", ""); code != 503 || body != "service unavailable\n" {
		t.Errorf("while unavailable: %d %q", code, body)
	}
	create(kind.Service, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ext"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}}})
	is(`False EndpointsNotFound cannot find endpointslices for service/ext in "default"`)
	name, target, proto := "https", int32(8443), corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ext-1", Labels: map[string]string{discoveryv1.LabelServiceName: "ext"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &target, Protocol: &proto}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}}}
	create(kind.EndpointSlice, slice)
	is(`False FailedDiscoveryCheck failing or missing response from https://192.0.2.1:8443/apis/ext.example.org/v1: Get "https://192.0.2.1:8443/apis/ext.example.org/v1": tls: failed to verify certificate: x509: certificate signed by unknown authority`)

	// Discovery is whole all the same; only this group is stale.
	aggregated := []string{"Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}
	if code, body := ask("admin", "GET", "/apis", "", aggregated...); code != 200 || !strings.Contains(body, `"deployments"`) || !strings.Contains(body, `"freshness":"Stale"`) {
		t.Errorf("discovery while one is unavailable: %d %s", code, body)
	}
	patch := func(spec string) {
		t.Helper()
		if _, err := admin.Patch(ctx, kind.APIService, "", "v1.ext.example.org", "application/merge-patch+json", []byte(`{"spec":`+spec+`}`), "", metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	bundle, _ := json.Marshal(ext.ca.PEM())
	patch(`{"caBundle":` + string(bundle) + `}`)
	is("True Passed all checks passed")

	eventually(t, "aggregated discovery", func() (bool, any) {
		_, body := ask("admin", "GET", "/apis", "", aggregated...)
		return strings.Contains(body, `"gadgets"`) && !strings.Contains(body, `"Stale"`), body
	})
	if code, body := ask("admin", "GET", "/apis/ext.example.org", ""); code != 200 || !strings.Contains(body, `"preferredVersion":{"groupVersion":"ext.example.org/v1"`) {
		t.Errorf("group: %d %s", code, body)
	}
	if code, body := ask("admin", "GET", "/apis/ext.example.org/v1", ""); code != 200 || !strings.Contains(body, `"gd"`) {
		t.Errorf("resources: %d %s", code, body)
	}

	// Authorization is here, identity goes along, and what a client made up does not.
	create(kind.ClusterRole, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "gadgets"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"ext.example.org"}, Resources: []string{"*"}, Verbs: []string{"*"}}}})
	create(kind.ClusterRoleBinding, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "gadgets"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "gadgets"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "alice"}}})
	const gadgets = "/apis/ext.example.org/v1/namespaces/default/gadgets"
	if code, body := ask("bob", "GET", gadgets, ""); code != 403 || !strings.Contains(body, `cannot list resource \"gadgets\" in API group \"ext.example.org\"`) {
		t.Errorf("bob: %d %s", code, body)
	}
	if code, body := ask("alice", "POST", gadgets, `{"metadata":{"name":"one"}}`, "Content-Type", "application/json",
		"X-Remote-User", "root", "X-Remote-Group", auth.Masters, "X-Remote-Uid", "0", "X-Remote-Extra-Evil", "yes"); code != 201 || !strings.Contains(body, `"one"`) {
		t.Errorf("create: %d %s", code, body)
	}
	ext.mu.Lock()
	h, peer := ext.last, ext.peer
	ext.mu.Unlock()
	if got := fmt.Sprintf("%v %v %v %v %v %v %s", h["X-Remote-User"], h["X-Remote-Uid"], h["X-Remote-Group"], h["X-Remote-Extra-Evil"], h["X-Remote-Extra-Example.org%2fteam"], h["Authorization"], peer); got !=
		"[alice] [uid-alice] [people system:authenticated] [] [blue] [] front-proxy-client" {
		t.Errorf("the server behind saw %s of %v", got, h)
	}
	if code, body := ask("alice", "GET", gadgets, ""); code != 200 || !strings.Contains(body, `"one"`) {
		t.Errorf("list: %d %s", code, body)
	}

	// A watch streams.
	req, _ := http.NewRequestWithContext(ctx, "GET", base+gadgets+"?watch=1", nil)
	req.Header.Set("Authorization", "Bearer user-alice")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	for i := range 2 {
		if !lines.Scan() || !strings.Contains(lines.Text(), fmt.Sprint(`"g`, i, `"`)) {
			t.Errorf("watch: %q", lines.Text())
		}
	}
	resp.Body.Close()

	// An upgrade is a tunnel.
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET %s/one/exec HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-alice\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", gadgets)
	answer := bufio.NewReader(conn)
	up, err := http.ReadResponse(answer, nil)
	if err != nil || up.StatusCode != 101 {
		t.Fatalf("upgrade: %v %v", up, err)
	}
	conn.Write([]byte("hello"))
	echo := make([]byte, 5)
	if _, err := io.ReadFull(answer, echo); err != nil || string(echo) != "hello" {
		t.Errorf("echo: %q %v", echo, err)
	}
	conn.Close()

	// OpenAPI.
	eventually(t, "OpenAPI v3", func() (bool, any) {
		_, body := ask("admin", "GET", "/openapi/v3", "")
		return strings.Contains(body, "/openapi/v3/apis/ext.example.org/v1?hash="), body
	})
	if code, body := ask("admin", "GET", "/openapi/v3/apis/ext.example.org/v1", ""); code != 200 || !strings.Contains(body, "gadget server") {
		t.Errorf("OpenAPI v3: %d %s", code, body)
	}
	if code, body := ask("admin", "GET", "/openapi/v2", ""); code != 200 || !strings.Contains(body, `"#/definitions/io.k8s.api.core.v1.Pod_v2"`) || strings.Contains(body, "/apis/other/v1/") ||
		!strings.Contains(body, `"io.k8s.api.apps.v1.Deployment":`) {
		t.Errorf("OpenAPI v2: %d, %d bytes", code, len(body))
	}

	// A namespace that is deleted is emptied there, too.
	namespace := func(name string) {
		create(kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if code, body := ask("alice", "POST", "/apis/ext.example.org/v1/namespaces/"+name+"/gadgets", `{"metadata":{"name":"two"}}`); code != 201 {
			t.Errorf("create: %d %s", code, body)
		}
	}
	namespace("gone")
	namespace("stuck")
	drop := func(name string) {
		if err := admin.Delete(ctx, kind.Namespace, "", name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	drop("gone")
	eventually(t, "the namespace is gone", func() (bool, any) {
		o := s.View.Snapshot().Get(kind.Namespace, "", "gone")
		return o == nil, o
	})
	ext.mu.Lock()
	_, left := ext.gadgets["gone/two"]
	ext.mu.Unlock()
	if left {
		t.Error("the namespace is gone, and what was in it elsewhere is not")
	}

	// Owners over there are asked about: what is owned by one that is there stays.
	ext.mu.Lock()
	ext.gadgets["default/keeper"] = "u-keeper"
	ext.mu.Unlock()
	own := func(name, owner, uid string) {
		create(kind.ConfigMap, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "ext.example.org/v1", Kind: "Gadget", Name: owner, UID: types.UID(uid)}}}})
	}
	own("kept", "keeper", "u-keeper")
	own("old", "keeper", "u-old")
	own("lost", "nobody", "u-nobody")
	for _, name := range []string{"old", "lost"} {
		eventually(t, name+" is collected", func() (bool, any) {
			o := s.View.Snapshot().Get(kind.ConfigMap, "default", name)
			return o == nil, o
		})
	}
	eventually(t, "the owner is looked up", func() (bool, any) {
		o, ok := s.others.Owner(s.View.Snapshot(), metav1.OwnerReference{APIVersion: "ext.example.org/v1", Kind: "Gadget", Name: "keeper", UID: "u-keeper"}, "default")
		return ok && o.IsKnown && !o.IsAbsent, o
	})
	if s.View.Snapshot().Get(kind.ConfigMap, "default", "kept") == nil {
		t.Error("what is owned by an object elsewhere was collected")
	}

	// A server that hangs harms itself.
	ext.mu.Lock()
	ext.slow = true
	ext.mu.Unlock()
	if code, body := ask("alice", "GET", gadgets+"?timeout=200ms", ""); code != 504 {
		t.Errorf("slow: %d %s", code, body)
	}
	if code, _ := ask("admin", "GET", "/apis/ext.example.org", ""); code != 200 {
		t.Errorf("group while its server hangs: %d", code)
	}
	if code, _ := ask("admin", "GET", "/apis/apps/v1/deployments", ""); code != 200 {
		t.Errorf("deployments while another server hangs: %d", code)
	}
	patch(`{"versionPriority":11}`) // so that it is looked at now
	is("False FailedDiscoveryCheck failing or missing response from https://192.0.2.1:8443/apis/ext.example.org/v1:")
	drop("stuck")
	eventually(t, "the condition of the namespace", func() (bool, any) {
		ns := view.Get[*corev1.Namespace](s.View.Snapshot(), kind.Namespace, "", "stuck")
		if ns == nil {
			return false, "gone"
		}
		for _, c := range ns.Status.Conditions {
			if c.Type == corev1.NamespaceDeletionDiscoveryFailure && c.Status == corev1.ConditionTrue {
				return c.Message == "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: ext.example.org/v1: stale GroupVersion discovery: ext.example.org/v1", c.Message
			}
		}
		return false, ns.Status
	})

	// Without its registration the group is gone, and nothing waits for it.
	if err := admin.Delete(ctx, kind.APIService, "", "v1.ext.example.org", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask("admin", "GET", gadgets, ""); code != 404 {
		t.Errorf("after its end: %d", code)
	}
	eventually(t, "stuck", func() (bool, any) { o := s.View.Snapshot().Get(kind.Namespace, "", "stuck"); return o == nil, o })
	_, body := ask("admin", "GET", "/apis", "")
	if bytes.Contains([]byte(body), []byte("ext.example.org")) {
		t.Error("the group is still in discovery")
	}
}
