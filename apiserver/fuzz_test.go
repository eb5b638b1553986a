package apiserver

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
	"proa.dev/store/mem"
	"proa.dev/view"
)

func fuzzServer(f *testing.F) *Server {
	s, err := New(Config{Table: kind.All, Store: mem.Open(mem.Config{}), View: view.New(kind.All, 0), Authn: auth.Union{}, Authz: auth.Chain{}})
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// FuzzRoute: any path and query is routed, and what is served names a row and a
// verb of it.
func FuzzRoute(f *testing.F) {
	for _, p := range []string{"/api/v1/pods", "/api/v1/namespaces/a/pods/b/log", "/apis/apps/v1/watch/namespaces/a/deployments/x", "/api/v1/namespaces/a/finalize", "/apis//v1/x", "/api/v1/nodes/n/proxy/a/b?x=%00",
		"/apis/apps/v1/deployments?fieldSelector=metadata.name%3Da&watch=1", "/debug/pprof/", "/api/v1/watch/", "//", "/api/v1/namespaces//pods", "/api/v1/pods?watch=true&fieldSelector=a=b,=,\\"} {
		f.Add("GET", p)
	}
	f.Add("DELETE", "/api/v1/namespaces/a/configmaps")
	f.Add("OPTIONS", "/api/v1")
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(u.Path, "/") {
			return
		}
		q := &request{s: s, r: &http.Request{Method: method, URL: u, Header: http.Header{}}, query: u.Query()}
		q.w = httptest.NewRecorder()
		q.sent = &statusWriter{ResponseWriter: q.w, q: q}
		q.route = s.parseRoute(method, u.Path)
		q.refine()
		q.attributes()
		q.seriesKey()
		if _, err := q.listOptions(); err == nil {
			q.width(10)
		}
		if found, _ := q.route.serves(); found && q.route.kind == nil {
			t.Fatalf("%s %s is served without a row", method, target)
		}
	})
}

// FuzzOptions: query options, selectors, continue tokens and versions.
func FuzzOptions(f *testing.F) {
	for _, q := range []string{"labelSelector=a in (b,c),!d,e!=f&limit=5", "fieldSelector=spec.nodeName=x,metadata.name!=y", "resourceVersion=18446744073709551616", "continue=" + pageToken{Version: tokenVersion, Revision: 3, Name: "x", Issued: 5}.String(),
		"continue=bm9wZQ", "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1", "limit=-1&timeoutSeconds=1e9", "labelSelector=((((", "dryRun=All&force=1", "labelSelector=a%3E5,b%3C-3"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		o, err := parseListOptions(v)
		if err != nil {
			return
		}
		validateListOptions(kind.Pod, o)
		if sel, err := parseSelection(kind.Pod, o); err == nil {
			obj := kind.Pod.New()
			obj.SetLabels(map[string]string{"a": "b"})
			sel.matches(obj)
		}
		parseVersion(o.ResourceVersion)
		if tok, err := parseToken(o.Continue); err == nil {
			if again, err := parseToken(tok.String()); err != nil || again != tok {
				t.Fatalf("token %+v comes back as %+v: %v", tok, again, err)
			}
		}
		_ = metav1.ListOptions(o)
		quoteWarning(query)
	})
}
