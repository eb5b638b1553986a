package apiserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/discovery"
	"proa.dev/client/wire"
)

// documents are made on first use and kept encoded.
type documents struct {
	mu   sync.Mutex
	made map[string]document
}

type document struct {
	data []byte
	etag string
}

func (d *documents) get(name string, make_ func() ([]byte, error)) (document, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if doc, ok := d.made[name]; ok {
		return doc, nil
	}
	data, err := make_()
	if err != nil {
		return document{}, err
	}
	sum := sha256.Sum256(data)
	doc := document{data, strings.ToUpper(hex.EncodeToString(sum[:]))}
	if d.made == nil {
		d.made = map[string]document{}
	}
	d.made[name] = doc
	return doc, nil
}

// serveOther answers everything that is not below a group version's resources.
func (q *request) serveOther(ctx context.Context) error {
	path := q.r.URL.Path
	switch {
	case path == "/healthz" || path == "/livez" || path == "/readyz" || strings.HasPrefix(path, "/healthz/") || strings.HasPrefix(path, "/livez/") || strings.HasPrefix(path, "/readyz/"):
		return q.serveHealth(ctx)
	case path == "/debug/pprof" || strings.HasPrefix(path, "/debug/pprof/"):
		if q.s.cfg.NoProfiling {
			return errPath()
		}
		return q.servePprof()
	case path == "/debug/flags/v" && q.s.cfg.Verbosity != nil:
		return q.serveVerbosity()
	case strings.HasPrefix(path, "/debug/api_priority_and_fairness/") && q.s.cfg.Fair != nil:
		return q.serveFairness(strings.TrimPrefix(path, "/debug/api_priority_and_fairness/"))
	}
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		if path == "/version" || path == "/api" || path == "/apis" {
			return errMethod
		}
		return errPath()
	}
	switch trimmed := strings.TrimSuffix(path, "/"); {
	case trimmed == "/version":
		return q.plain(http.StatusOK, wire.JSONType, indent(q.s.cfg.Version))
	case trimmed == "":
		return q.serveIndex()
	case trimmed == "/api":
		return q.serveDiscovery("api", func() runtime.Object { return discovery.APIVersions(q.s.kinds(), q.r.Host) },
			func() runtime.Object { return discovery.Aggregated(q.s.kinds(), true) })
	case trimmed == "/apis":
		return q.serveDiscovery("apis", func() runtime.Object { return discovery.APIGroupList(q.s.kinds(), q.s.remotes().Remotes...) },
			func() runtime.Object {
				return discovery.Aggregated(q.s.kinds(), false, q.s.remotes().Remotes...)
			})
	case strings.HasPrefix(trimmed, "/api/"), strings.HasPrefix(trimmed, "/apis/"):
		return q.serveGroup(trimmed)
	case trimmed == "/metrics":
		return q.serveMetrics()
	case trimmed == "/metrics/slis":
		return q.serveSLIs()
	case strings.HasPrefix(path, "/openapi/v2"), strings.HasPrefix(path, "/openapi/v3"):
		return q.serveOpenAPI(path)
	case path == "/.well-known/openid-configuration" && q.s.cfg.OpenIDConfiguration != nil:
		q.w.Header().Set("Cache-Control", "public, max-age=3600")
		return q.plain(http.StatusOK, wire.JSONType, q.s.cfg.OpenIDConfiguration())
	case path == "/openid/v1/jwks" && q.s.cfg.JWKS != nil:
		q.w.Header().Set("Cache-Control", "public, max-age=3600")
		return q.plain(http.StatusOK, "application/jwk-set+json", q.s.cfg.JWKS())
	}
	return errPath()
}

func indent(v any) []byte {
	b, _ := json.MarshalIndent(v, "", "  ")
	return b
}

func (q *request) plain(code int, contentType string, data []byte) error {
	b := q.newBody(code, contentType)
	b.Write(data)
	return b.Close()
}

// serveDiscovery answers /api and /apis, classic or aggregated.
func (q *request) serveDiscovery(name string, classic, aggregated func() runtime.Object) error {
	q.w.Header().Add("Vary", "Accept")
	c, ok := wire.Negotiate(q.r.Header.Get("Accept"), false, true)
	if !ok {
		return notAcceptable(wire.Accepted)
	}
	q.choice = c
	if !c.Discovery {
		obj := classic()
		return q.send(http.StatusOK, obj, obj.GetObjectKind().GroupVersionKind())
	}
	gvk := schema.GroupVersionKind{Group: "apidiscovery.k8s.io", Version: "v2", Kind: "APIGroupDiscoveryList"}
	doc, err := q.s.documents().get(fmt.Sprintf("aggregated/%s/%d/%v", name, c.Format, c.Pretty), func() ([]byte, error) {
		return wire.Encode(c.Format, aggregated(), gvk, c.Pretty)
	})
	if err != nil {
		return err
	}
	if q.notModified(doc) {
		return nil
	}
	return q.plain(http.StatusOK, c.Format.ContentType()+";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", doc.data)
}

// notModified answers 304 when the client has the document already.
func (q *request) notModified(doc document) bool {
	tag := `"` + doc.etag + `"`
	q.w.Header().Set("ETag", tag)
	for _, have := range strings.Split(q.r.Header.Get("If-None-Match"), ",") {
		if have = strings.TrimPrefix(strings.TrimSpace(have), "W/"); have == tag {
			q.w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

// serveGroup answers /api/v1, /apis/GROUP and /apis/GROUP/VERSION.
func (q *request) serveGroup(path string) error {
	if err := q.negotiate(false); err != nil {
		return err
	}
	var obj runtime.Object
	parts := strings.Split(path[1:], "/")
	switch {
	case parts[0] == "api" && len(parts) == 2:
		if l := discovery.ResourceList(q.s.kinds(), "", parts[1]); l != nil {
			obj = l
		}
	case parts[0] == "apis" && len(parts) == 2:
		if g := discovery.APIGroup(q.s.kinds(), parts[1], q.s.remotes().Remotes...); g != nil {
			obj = g
		}
	case parts[0] == "apis" && len(parts) == 3:
		if l := discovery.ResourceList(q.s.kinds(), parts[1], parts[2]); l != nil {
			obj = l
		}
	}
	if obj == nil {
		return errPath()
	}
	gvk := obj.GetObjectKind().GroupVersionKind()
	if gvk.Version == "" {
		gvk.Version = "v1"
	}
	if q.choice.Format != wire.Protobuf {
		gvk = obj.GetObjectKind().GroupVersionKind()
	}
	return q.send(http.StatusOK, obj, gvk)
}

// serveVerbosity sets how much is logged (PUT, a number), with upstream's answers.
func (q *request) serveVerbosity() error {
	answer := func(code int, text string) error {
		h := q.w.Header()
		h.Set("Content-Type", "text/plain")
		h.Set("X-Content-Type-Options", "nosniff")
		q.w.WriteHeader(code)
		io.WriteString(q.w, text)
		return nil
	}
	if q.r.Method != http.MethodPut {
		return answer(http.StatusNotAcceptable, "unsupported http method")
	}
	body, err := io.ReadAll(io.LimitReader(q.r.Body, 100))
	if err != nil {
		return answer(http.StatusBadRequest, "error reading request body: "+err.Error())
	}
	n, err := strconv.ParseInt(string(body), 10, 32)
	if err != nil {
		return answer(http.StatusBadRequest, fmt.Sprintf("failed set klog.logging.verbosity %s: %v", body, err))
	}
	q.s.cfg.Verbosity(int(n))
	return answer(http.StatusOK, fmt.Sprintf("successfully set klog.logging.verbosity to %s", body))
}

// serveIndex lists the paths of the server.
func (q *request) serveIndex() error {
	paths := []string{"/.well-known/openid-configuration", "/api"}
	for _, g := range discovery.Groups(q.s.kinds(), q.s.remotes().Remotes...) {
		if g.Name == "" {
			paths = append(paths, "/api/v1", "/apis", "/apis/")
			continue
		}
		paths = append(paths, "/apis/"+g.Name)
		for _, v := range g.Versions {
			paths = append(paths, "/apis/"+g.Name+"/"+v)
		}
	}
	paths = append(paths, "/healthz", "/livez", "/metrics", "/metrics/slis", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version")
	return q.plain(http.StatusOK, wire.JSONType, indent(map[string]any{"paths": paths}))
}

// serveFairness answers the tables of Priority and Fairness.
func (q *request) serveFairness(name string) error {
	var out bytes.Buffer
	_, details := q.query["includeRequestDetails"]
	found, err := q.s.cfg.Fair.Dump(&out, name, details)
	if err != nil {
		return err
	}
	if !found {
		return errPath()
	}
	q.w.Header().Set("X-Content-Type-Options", "nosniff")
	return q.plain(http.StatusOK, "text/plain; charset=utf-8", out.Bytes())
}

func (q *request) servePprof() error {
	switch name := strings.TrimPrefix(strings.TrimPrefix(q.r.URL.Path, "/debug/pprof"), "/"); name {
	case "cmdline":
		pprof.Cmdline(q.w, q.r)
	case "profile":
		pprof.Profile(q.w, q.r)
	case "symbol":
		pprof.Symbol(q.w, q.r)
	case "trace":
		pprof.Trace(q.w, q.r)
	default:
		pprof.Index(q.w, q.r)
	}
	return nil
}

// storageCheckTimeout bounds the check of the store, as upstream's
// --etcd-healthcheck-timeout.
const storageCheckTimeout = 2 * time.Second

// checks of one health endpoint.
func (s *Server) checks(endpoint string) []Check {
	ping := Check{"ping", func(context.Context) error { return nil }}
	log := Check{"log", func(context.Context) error { return nil }}
	storage := Check{"etcd", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, storageCheckTimeout)
		defer cancel()
		_, _, err := s.store.Get(ctx, "/registry/health", 0)
		if err == nil || isNotFoundKey(err) {
			return nil
		}
		return err
	}}
	list := []Check{ping, log, storage}
	switch endpoint {
	case "livez":
		list = append(list, s.cfg.Live...)
	case "readyz":
		list = append(list, Check{"informer-sync", func(context.Context) error {
			if at, rev := s.view.Snapshot().Revision(), s.store.Revision(); at == 0 && rev > 0 {
				return fmt.Errorf("view has not loaded revision %d", rev)
			}
			return nil
		}}, Check{"shutdown", func(context.Context) error {
			select {
			case <-s.draining:
				return fmt.Errorf("process is shutting down")
			default:
				return nil
			}
		}})
		list = append(list, s.cfg.Live...)
		list = append(list, s.cfg.Ready...)
	default:
		list = append(list, s.cfg.Live...)
		list = append(list, s.cfg.Ready...)
	}
	return list
}

// serveHealth answers /livez, /readyz and /healthz: "ok", or each check with
// ?verbose or when one fails; below them each check by name.
func (q *request) serveHealth(ctx context.Context) error {
	endpoint, one, _ := strings.Cut(strings.TrimPrefix(q.r.URL.Path, "/"), "/")
	var out bytes.Buffer
	failed := []string{}
	excluded := map[string]bool{}
	for _, e := range q.query["exclude"] {
		excluded[e] = true
	}
	found := one == ""
	for _, c := range q.s.checks(endpoint) {
		if one != "" && c.Name != one {
			continue
		}
		found = true
		if excluded[c.Name] {
			fmt.Fprintf(&out, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		err := c.Do(ctx)
		q.s.metrics.checked(endpoint, c.Name, err)
		if err != nil {
			failed = append(failed, c.Name)
			q.s.log.Warn("health check failed", "endpoint", endpoint, "check", c.Name, "error", err)
			fmt.Fprintf(&out, "[-]%s failed: reason withheld\n", c.Name)
			continue
		}
		fmt.Fprintf(&out, "[+]%s ok\n", c.Name)
	}
	if !found {
		return errPath()
	}
	h := q.w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	const text = "text/plain; charset=utf-8"
	if len(failed) > 0 {
		fmt.Fprintf(&out, "%s check failed\n", endpoint)
		return q.plain(http.StatusInternalServerError, text, out.Bytes())
	}
	if _, verbose := q.query["verbose"]; verbose && one == "" {
		fmt.Fprintf(&out, "%s check passed\n", endpoint)
		return q.plain(http.StatusOK, text, out.Bytes())
	}
	return q.plain(http.StatusOK, text, []byte("ok"))
}
