package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// TestSemantics holds the API to the tables of Kubernetes' docs, "Kubernetes API
// Concepts" (resource versions, chunks, streaming lists, media types, status codes),
// request by request and text by text; each subtest is one request.
func TestSemantics(t *testing.T) {
	c := start(t)
	h, err := rest.HTTPClientFor(c.config)
	ok(t, err)
	s := &semantics{c: c, http: h, ns: c.namespace(t)}
	t.Run("list", s.lists)
	t.Run("watch", s.watches)
	t.Run("status", s.statuses)
	t.Run("gzip", s.gzip)
}

type semantics struct {
	c    *cluster
	http *http.Client
	ns   string
}

type answer struct {
	code   int
	header http.Header
	body   []byte
	status metav1.Status
}

// do sends one request; headers come as "Name: value".
func (s *semantics) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, strings.TrimSuffix(s.c.config.Host, "/")+path, strings.NewReader(body))
	ok(t, err)
	for _, x := range headers {
		name, value, _ := strings.Cut(x, ": ")
		r.Header.Set(name, value)
	}
	res, err := s.http.Do(r)
	ok(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	ok(t, err)
	a := answer{code: res.StatusCode, header: res.Header, body: data}
	if a.code >= 400 {
		ok(t, json.Unmarshal(data, &a.status))
		same(t, "kind", a.status.Kind+"/"+a.status.APIVersion, "Status/v1")
		same(t, "status", a.status.Status, metav1.StatusFailure)
		same(t, "code in the body", int(a.status.Code), a.code)
	}
	return a
}

func (s *semantics) lists(t *testing.T) {
	path := "/api/v1/namespaces/" + s.ns + "/secrets"
	for i := range 5 {
		s.make(t, fmt.Sprintf("s%d", i))
	}
	var page corev1.SecretList
	ok(t, json.Unmarshal(s.do(t, "GET", path+"?limit=2", "").body, &page))
	exact, token := page.ResourceVersion, page.Continue
	if token == "" || len(page.Items) != 2 || page.RemainingItemCount == nil || *page.RemainingItemCount != 3 {
		t.Fatalf("first page: %+v", page.ListMeta)
	}
	// What was made after the version that the exact answers are of.
	s.make(t, "s9")
	const (
		invalid   = `ListOptions.meta.k8s.io "" is invalid: `
		unless    = invalid + "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
		zero      = invalid + `resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"`
		continued = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided"
	)
	for _, row := range []struct {
		version, match string
		limit          int
		cont           bool
		names          string // of the answer; "any": some state
		code           int
		text           string
	}{
		// No match: the most recent, any, not older than; with a limit the version is exact.
		{names: "s0 s1 s2 s3 s4 s9"},
		{version: "0", names: "any"},
		{version: exact, names: "s0 s1 s2 s3 s4 s9"},
		{limit: 2, names: "s0 s1"},
		{limit: 10, names: "s0 s1 s2 s3 s4 s9"},
		{version: "0", limit: 10, names: "any"},
		{version: exact, limit: 10, names: "s0 s1 s2 s3 s4"},
		// The token carries its own version.
		{cont: true, limit: 2, names: "s2 s3"},
		{cont: true, names: "s2 s3 s4"},
		{cont: true, version: "0", names: "s2 s3 s4"},
		{cont: true, version: exact, code: 400, text: "specifying resource version is not allowed when using continue"},
		{match: "Exact", code: 422, text: unless},
		{match: "Exact", limit: 2, code: 422, text: unless},
		{match: "Exact", version: "0", code: 422, text: zero},
		{match: "Exact", version: "0", limit: 2, code: 422, text: zero},
		{match: "Exact", version: exact, names: "s0 s1 s2 s3 s4"},
		{match: "Exact", version: exact, limit: 2, names: "s0 s1"},
		{match: "Exact", cont: true, code: 422, text: continued},
		{match: "Exact", version: exact, cont: true, code: 422, text: continued},
		{match: "NotOlderThan", code: 422, text: unless},
		{match: "NotOlderThan", limit: 2, code: 422, text: unless},
		{match: "NotOlderThan", version: "0", names: "any"},
		{match: "NotOlderThan", version: "0", limit: 10, names: "any"},
		{match: "NotOlderThan", version: exact, names: "s0 s1 s2 s3 s4 s9"},
		{match: "NotOlderThan", version: exact, limit: 10, names: "s0 s1 s2 s3 s4 s9"},
		{match: "NotOlderThan", cont: true, code: 422, text: continued},
		{match: "Sometimes", version: exact, code: 422, text: invalid + `resourceVersionMatch: Unsupported value: "Sometimes": supported values: "Exact", "NotOlderThan"`},
	} {
		q := url.Values{}
		if row.version != "" {
			q.Set("resourceVersion", row.version)
		}
		if row.match != "" {
			q.Set("resourceVersionMatch", row.match)
		}
		if row.limit > 0 {
			q.Set("limit", fmt.Sprint(row.limit))
		}
		name := q.Encode()
		if row.cont {
			q.Set("continue", token)
			name += "&continue"
		}
		t.Run(name, func(t *testing.T) {
			// The namespace's own secrets, if the cluster makes any, do not count.
			a := s.do(t, "GET", path+"?"+q.Encode(), "")
			if row.code != 0 {
				same(t, "code", a.code, row.code)
				if !strings.Contains(a.status.Message, row.text) {
					t.Errorf("%q, want %q", a.status.Message, row.text)
				}
				return
			}
			same(t, "code", a.code, 200)
			var l corev1.SecretList
			ok(t, json.Unmarshal(a.body, &l))
			var names []string
			for _, x := range l.Items {
				names = append(names, x.Name)
			}
			if have := strings.Join(names, " "); row.names != "any" && have != row.names {
				t.Errorf("%s, want %s", have, row.names)
			}
			if wantExact := row.match == "Exact" || row.cont || row.limit > 0 && row.version == exact && row.match == ""; wantExact && l.ResourceVersion != exact {
				t.Errorf("version %s, want %s", l.ResourceVersion, exact)
			}
			if cut := row.limit > 0 && row.limit == len(l.Items); cut != (l.Continue != "") {
				t.Errorf("%d of %d items, continue %q", len(l.Items), row.limit, l.Continue)
			}
		})
	}
	for q, want := range map[string]string{
		"?continue=garbage": "continue key is not valid",
		"?sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=" + exact: "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
		"?labelSelector=a+in+(":   "unable to parse requirement",
		"?fieldSelector=data%3D1": "field label not supported: data",
		"?resourceVersion=word":   "word",
	} {
		t.Run(q[:min(30, len(q))], func(t *testing.T) {
			a := s.do(t, "GET", path+q, "")
			if a.code != 400 && a.code != 422 || !strings.Contains(a.status.Message, want) {
				t.Errorf("%d %s, want %s", a.code, a.status.Message, want)
			}
		})
	}
	t.Run("a version of the future", func(t *testing.T) {
		a := s.do(t, "GET", path+"?resourceVersion=999999999", "")
		same(t, "code", a.code, http.StatusGatewayTimeout)
		same(t, "reason", a.status.Reason, metav1.StatusReasonTimeout)
		if !strings.HasPrefix(a.status.Message, "Timeout: Too large resource version: 999999999, current: ") || a.status.Details == nil ||
			!slices.ContainsFunc(a.status.Details.Causes, func(c metav1.StatusCause) bool { return c.Type == metav1.CauseTypeResourceVersionTooLarge }) {
			t.Errorf("%+v", a.status)
		}
	})
	t.Run("an object of a version", func(t *testing.T) {
		for v, code := range map[string]int{"": 200, "0": 200, exact: 200, "999999999": 504} {
			same(t, "get at "+v, s.do(t, "GET", path+"/s0?resourceVersion="+v, "").code, code)
		}
	})
	t.Run("own writes are read", func(t *testing.T) {
		for i := range 20 {
			s.make(t, fmt.Sprintf("t%d", i))
			if !strings.Contains(string(s.do(t, "GET", path+"?labelSelector=semantics", "").body), fmt.Sprintf(`"name":"t%d"`, i)) {
				t.Fatalf("t%d is not in the list that follows its creation", i)
			}
		}
	})
}

func (s *semantics) make(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	x, err := s.c.CoreV1().Secrets(s.ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"semantics": ""}}}, metav1.CreateOptions{})
	ok(t, err)
	return x
}

// event is one line of a watch.
type event struct {
	Type   string
	Object struct {
		metav1.ObjectMeta `json:"metadata"`
		Message           string
		Reason            metav1.StatusReason
		Code              int32
	}
}

// watch reads events until enough says so, or the server ends it.
func (s *semantics) watch(t *testing.T, q string, enough func([]event) bool) (events []event, code int, text string) {
	t.Helper()
	if !strings.Contains(q, "timeoutSeconds=") {
		q += "&timeoutSeconds=20"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", strings.TrimSuffix(s.c.config.Host, "/")+"/api/v1/namespaces/"+s.ns+"/secrets?watch=1&labelSelector=semantics&"+q, nil)
	ok(t, err)
	res, err := s.http.Do(r)
	ok(t, err)
	defer res.Body.Close()
	if res.StatusCode != 200 {
		data, _ := io.ReadAll(res.Body)
		return nil, res.StatusCode, string(data)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		ok(t, json.Unmarshal(lines.Bytes(), &e))
		if events = append(events, e); enough(events) {
			return events, 200, ""
		}
	}
	ok(t, lines.Err()) // the server ended it, in its time
	return events, 200, ""
}

func (s *semantics) watches(t *testing.T) {
	first := s.make(t, "watch-1")
	list, err := s.c.CoreV1().Secrets(s.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "semantics"})
	ok(t, err)
	there := len(list.Items)
	last := s.make(t, "watch-2")
	ended := func(events []event) bool {
		e := events[len(events)-1]
		return e.Type == "BOOKMARK" && e.Object.Annotations[metav1.InitialEventsAnnotationKey] == "true"
	}
	n := func(n int) func([]event) bool { return func(e []event) bool { return len(e) == n } }
	const invalid = `ListOptions.meta.k8s.io \"\" is invalid: `
	for _, row := range []struct {
		q, types string
		enough   func([]event) bool
		code     int
		text     string
	}{
		// Without a version, or from 0: what is there first, as ADDED.
		{q: "", types: strings.Repeat("ADDED ", there+1), enough: n(there + 1)},
		{q: "resourceVersion=0", types: strings.Repeat("ADDED ", there+1), enough: n(there + 1)},
		// From a version: only what came after it.
		{q: "resourceVersion=" + first.ResourceVersion, types: "ADDED ", enough: n(1)},
		{q: "resourceVersion=" + first.ResourceVersion + "&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", types: "ADDED ", enough: n(1)},
		// Streaming lists end with a bookmark that says so.
		{q: "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan", types: strings.Repeat("ADDED ", there+1) + "BOOKMARK ", enough: ended},
		{q: "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&resourceVersion=0", types: strings.Repeat("ADDED ", there+1) + "BOOKMARK ", enough: ended},
		{q: "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&resourceVersion=" + last.ResourceVersion, types: strings.Repeat("ADDED ", there+1) + "BOOKMARK ", enough: ended},
		{q: "sendInitialEvents=true&allowWatchBookmarks=true", code: 422, text: invalid + "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"},
		{q: "resourceVersionMatch=NotOlderThan&resourceVersion=0", code: 422, text: invalid + "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"},
		{q: "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=Exact&resourceVersion=" + first.ResourceVersion, code: 422, text: "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"},
	} {
		t.Run(row.q, func(t *testing.T) {
			events, code, text := s.watch(t, row.q, row.enough)
			if row.code != 0 {
				if code != row.code || !strings.Contains(text, row.text) {
					t.Errorf("%d %s", code, text)
				}
				return
			}
			same(t, "code", code, 200)
			types := ""
			for _, e := range events {
				types += e.Type + " "
			}
			same(t, "events", types, row.types)
			if strings.HasSuffix(types, "BOOKMARK ") && events[len(events)-1].Object.ResourceVersion == "" {
				t.Error("the bookmark has no version")
			}
		})
	}
	t.Run("ends when its time is over", func(t *testing.T) {
		_, code, text := s.watch(t, "timeoutSeconds=1&resourceVersion="+last.ResourceVersion, func([]event) bool { return false })
		if code != 200 {
			t.Errorf("%d %s", code, text)
		}
	})
}

// statuses: the codes that clients act on, with the bodies that say why.
func (s *semantics) statuses(t *testing.T) {
	path := "/api/v1/namespaces/" + s.ns + "/configmaps"
	made := s.do(t, "POST", path, `{"metadata":{"name":"there"},"data":{"a":"b"}}`, "Content-Type: application/json")
	same(t, "created", made.code, 201)
	for _, row := range []struct {
		name, method, path, body string
		headers                  []string
		code                     int
		reason                   metav1.StatusReason
		text                     string
	}{
		{"no such object", "GET", path + "/nope", "", nil, 404, metav1.StatusReasonNotFound, `configmaps "nope" not found`},
		{"no such resource", "GET", "/api/v1/nothings", "", nil, 404, metav1.StatusReasonNotFound, "the server could not find the requested resource"},
		{"method", "PUT", path, `{}`, []string{"Content-Type: application/json"}, 405, metav1.StatusReasonMethodNotAllowed, "the server does not allow this method on the requested resource"},
		{"exists", "POST", path, `{"metadata":{"name":"there"}}`, []string{"Content-Type: application/json"}, 409, metav1.StatusReasonAlreadyExists, `configmaps "there" already exists`},
		{"conflict", "PUT", path + "/there", `{"metadata":{"name":"there","resourceVersion":"1"}}`, []string{"Content-Type: application/json"}, 409, metav1.StatusReasonConflict,
			`Operation cannot be fulfilled on configmaps "there": the object has been modified; please apply your changes to the latest version and try again`},
		{"invalid", "POST", path, `{"metadata":{"name":"Upper"}}`, []string{"Content-Type: application/json"}, 422, metav1.StatusReasonInvalid, `ConfigMap "Upper" is invalid: metadata.name: Invalid value: "Upper": a lowercase RFC 1123 subdomain must consist of`},
		{"another name", "PUT", path + "/there", `{"metadata":{"name":"other"}}`, []string{"Content-Type: application/json"}, 400, metav1.StatusReasonBadRequest, "the name of the object (other) does not match the name on the URL (there)"},
		{"no name", "POST", path, `{"metadata":{}}`, []string{"Content-Type: application/json"}, 422, metav1.StatusReasonInvalid, "name or generateName is required"},
		{"not JSON", "POST", path, `{`, []string{"Content-Type: application/json"}, 400, metav1.StatusReasonBadRequest, ""},
		{"media type of the body", "POST", path, `x`, []string{"Content-Type: text/plain"}, 415, metav1.StatusReasonUnsupportedMediaType, "the body of the request was in an unknown format - accepted media types include: "},
		{"media type of the patch", "PATCH", path + "/there", `{}`, []string{"Content-Type: application/json"}, 415, metav1.StatusReasonUnsupportedMediaType, "the body of the request was in an unknown format - accepted media types include: "},
		{"media type of the answer", "GET", path + "/there", "", []string{"Accept: application/pdf"}, 406, metav1.StatusReasonNotAcceptable, "only the following media types are accepted: "},
		{"apply conflict", "PATCH", path + "/there?fieldManager=conformance", `{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"mine"}}`, []string{"Content-Type: application/apply-patch+yaml"}, 409, metav1.StatusReasonConflict, "Apply failed with 1 conflict: conflict with "},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := s.do(t, row.method, row.path, row.body, row.headers...)
			same(t, "code", a.code, row.code)
			same(t, "reason", a.status.Reason, row.reason)
			if !strings.Contains(a.status.Message, row.text) {
				t.Errorf("%q, want %q", a.status.Message, row.text)
			}
		})
	}
	t.Run("dry run", func(t *testing.T) {
		same(t, "created", s.do(t, "POST", path+"?dryRun=All", `{"metadata":{"name":"dry"}}`, "Content-Type: application/json").code, 201)
		same(t, "code", s.do(t, "GET", path+"/dry", "").code, 404)
		patched, err := s.c.CoreV1().ConfigMaps(s.ns).Patch(t.Context(), "there", types.MergePatchType, []byte(`{"data":{"a":"dry"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		ok(t, err)
		same(t, "answer", patched.Data["a"], "dry")
		now, err := s.c.CoreV1().ConfigMaps(s.ns).Get(t.Context(), "there", metav1.GetOptions{})
		ok(t, err)
		same(t, "stored", now.Data["a"], "b")
		same(t, "bad value", s.do(t, "POST", path+"?dryRun=Some", `{"metadata":{"name":"dry"}}`, "Content-Type: application/json").code, 422)
	})
}

// gzip: big answers to those who take them so, and only to them.
func (s *semantics) gzip(t *testing.T) {
	_, err := s.c.CoreV1().ConfigMaps(s.ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "big"}, Data: map[string]string{"k": strings.Repeat("conformance ", 20000)}}, metav1.CreateOptions{})
	ok(t, err)
	path := "/api/v1/namespaces/" + s.ns + "/configmaps"
	a := s.do(t, "GET", path, "", "Accept-Encoding: gzip")
	same(t, "encoding", a.header.Get("Content-Encoding"), "gzip")
	if len(a.body) > 50000 || a.header.Get("Vary") == "" {
		t.Errorf("%d bytes, Vary %q", len(a.body), a.header.Get("Vary"))
	}
	same(t, "encoding", s.do(t, "GET", path, "", "Accept-Encoding: identity").header.Get("Content-Encoding"), "")
}
