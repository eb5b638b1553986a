package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/audit"
	"proa.dev/apiserver/auth"
	"proa.dev/client/wire"
	"proa.dev/kind"
)

// MaxBody bounds one request body: 3 MiB, as upstream.
const MaxBody = 3 << 20

// request is one HTTP request on its way through the handlers.
type request struct {
	s       *Server
	w       http.ResponseWriter
	r       *http.Request
	route   route
	user    auth.User
	query   url.Values
	choice  wire.Choice
	code    int // answered so far; 0: nothing
	long    bool
	warned  map[string]bool
	started time.Time
	waited  time.Duration // in a queue of Priority and Fairness
	auditID []string
	entry   *audit.Entry // nil: not audited
	refused bool         // credentials were not accepted
	leave   func()       // gives the place in the server back, early for watches
	sent    *statusWriter
}

// Handler serves the whole API.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

var errMethod = apierrors.NewGenericServerResponse(405, "", schema.GroupResource{}, "", "", 0, false)

func errPath() error {
	return apierrors.NewGenericServerResponse(404, "", schema.GroupResource{}, "", "", 0, false)
}

func (s *Server) serveHTTP(w http.ResponseWriter, hr *http.Request) {
	q := &request{s: s, w: w, r: hr, started: s.clock.Now()}
	q.sent = &statusWriter{ResponseWriter: w, q: q}
	q.w = q.sent
	w.Header().Set("Cache-Control", "no-cache, private")
	q.identify()
	defer q.finish()
	if hr.URL.RawQuery != "" {
		q.query = hr.URL.Query()
	}
	q.route = s.parseRoute(hr.Method, hr.URL.Path)
	if err := q.serve(); err != nil && err != errAnswered {
		q.fail(err)
	}
}

// finish counts the request and turns a panic into a 500.
func (q *request) finish() {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			q.entry.Complete(q.long)
			q.s.metrics.observe(q)
			panic(p)
		}
		q.entry.Panicked(p)
		q.s.log.Error("request panicked", "method", q.r.Method, "path", q.r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		q.s.metrics.panics.Inc()
		if q.code == 0 {
			q.fail(apierrors.NewInternalError(errors.New("This request caused apiserver to panic. Look in the logs for details.")))
		} else {
			q.s.metrics.observe(q)
			panic(http.ErrAbortHandler)
		}
	}
	if !q.refused {
		q.entry.Complete(q.long)
	}
	q.s.metrics.observe(q)
}

// serve is the chain of filters.
func (q *request) serve() error {
	s := q.s
	user, ok, err := s.cfg.Authn.Authenticate(q.r)
	took := s.clock.Now().Sub(q.started)
	switch {
	case err != nil, !ok && s.cfg.Anonymous != nil && !s.cfg.Anonymous(q.r):
		s.metrics.authenticated(err, false, took)
		return q.refuse()
	case !ok:
		user = auth.User{Name: auth.Anonymous, Groups: []string{auth.AllUnauthenticated}}
	case user.Name != auth.Anonymous && !user.In(auth.AllAuthenticated):
		user.Groups = append(append([]string(nil), user.Groups...), auth.AllAuthenticated)
	}
	s.metrics.authenticated(nil, ok, took)
	s.metrics.certificate(q.r.TLS, q.started)
	q.user = user
	q.refine()
	q.record()
	if err := q.impersonate(); err != nil {
		return err
	}
	leave, err := q.enter()
	if err != nil {
		return err
	}
	q.leave = leave
	defer leave()
	ctx := q.context()
	if !q.long {
		timeout := s.cfg.RequestTimeout
		if t := q.query.Get("timeout"); t != "" {
			d, err := time.ParseDuration(t)
			if err != nil {
				return apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - %v", err))
			}
			if d > 0 {
				timeout = min(timeout, d)
			}
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if err := q.decide(ctx); err != nil {
		return err
	}
	if q.long {
		// It may last: what does not move is ended by its own limits.
		rc := http.NewResponseController(q.w)
		rc.SetReadDeadline(time.Time{})
		rc.SetWriteDeadline(time.Time{})
		defer s.metrics.lasting(q)()
	}
	if svc := q.remote(); svc != nil {
		return q.serveRemote(ctx, svc)
	}
	if !q.route.resource {
		return q.serveOther(ctx)
	}
	found, allowed := q.route.serves()
	if !found {
		return errPath()
	}
	if !allowed {
		return errMethod
	}
	return q.serveResource(ctx)
}

// refine finds out what only the query can say: that a list is a watch, that it
// is about one name, that the request will last.
func (q *request) refine() {
	r := &q.route
	if !r.resource {
		q.long = strings.HasPrefix(q.r.URL.Path, "/debug/pprof/")
		return
	}
	if r.verb == "list" || (r.verb == "get" && r.sub == "") {
		if v, ok := boolParam(q.query, "watch"); ok && v {
			r.verb = "watch"
		}
	}
	if r.verb == "list" || r.verb == "watch" || r.verb == "deletecollection" {
		if f := q.query.Get("fieldSelector"); f != "" && r.name == "" {
			if sel, err := fields.ParseSelector(f); err == nil {
				if name, ok := sel.RequiresExactMatch("metadata.name"); ok && name != "" {
					r.name = name
				}
			}
		}
	}
	q.long = r.verb == "watch" || isOneOf(r.sub, "exec", "attach", "portforward", "proxy", "log")
}

// call is the verb's view of the request.
func (q *request) call() *call {
	c := &call{user: q.user, kind: q.route.kind, sub: q.route.sub, namespace: q.route.namespace, name: q.route.name, warn: q.warn}
	if c.kind.Deprecated != "" {
		q.warn(c.kind.Deprecated)
		q.s.metrics.old(c.kind, c.sub)
	}
	if c.kind.Scope == kind.Cluster {
		c.namespace = ""
	}
	return c
}

// warn adds a Warning header (RFC 7234, code 299), each text once.
func (q *request) warn(text string) {
	if q.warned[text] || q.code != 0 {
		return
	}
	if q.warned == nil {
		q.warned = map[string]bool{}
	}
	q.warned[text] = true
	q.w.Header().Add("Warning", `299 - `+quoteWarning(text))
}

func quoteWarning(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n' || r == '\r' || r == '\t':
			b.WriteByte(' ')
		case r < ' ' || r == 0x7f:
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// body reads the whole request body. done gives the buffer back; what was
// decoded from it must hold copies.
func (q *request) body() (data []byte, done func(), err error) {
	buf := bodies.Get().(*bytes.Buffer)
	buf.Reset()
	done = func() {
		if buf.Cap() <= 1<<20 {
			bodies.Put(buf)
		}
	}
	if q.r.Body == nil {
		return nil, done, nil
	}
	if n := q.r.ContentLength; n > MaxBody {
		done()
		return nil, func() {}, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", MaxBody))
	}
	n, err := buf.ReadFrom(io.LimitReader(q.r.Body, MaxBody+1))
	if err != nil {
		done()
		return nil, func() {}, apierrors.NewBadRequest(err.Error())
	}
	if n > MaxBody {
		done()
		return nil, func() {}, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", MaxBody))
	}
	return buf.Bytes(), done, nil
}

// bodyFormat of the request.
func (q *request) bodyFormat() (wire.Format, error) {
	f, ok := wire.BodyFormat(q.r.Header.Get("Content-Type"))
	if !ok {
		return f, unsupportedBody(wire.Accepted)
	}
	return f, nil
}

func unsupportedBody(accepted string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType,
		Reason:  metav1.StatusReasonUnsupportedMediaType,
		Message: "the body of the request was in an unknown format - accepted media types include: " + accepted}}
}

// accept is the Accept header. Objects of custom kinds have no Protobuf form: such
// clauses count only where something else is asked for (Table, metadata, Scale).
func (q *request) accept() string {
	accept := q.r.Header.Get("Accept")
	if k := q.route.kind; k == nil || !k.Custom || q.route.sub == "scale" || !strings.Contains(accept, wire.ProtobufType) {
		return accept
	}
	var keep []string
	for _, clause := range strings.Split(accept, ",") {
		if !strings.Contains(clause, wire.ProtobufType) || strings.Contains(clause, "as=") {
			keep = append(keep, clause)
		}
	}
	if len(keep) == 0 {
		return "none/none"
	}
	return strings.Join(keep, ",")
}

// negotiate chooses the format of the answer.
func (q *request) negotiate(transforms bool) error {
	c, ok := wire.Negotiate(q.accept(), transforms, false)
	if !ok {
		return notAcceptable(wire.Accepted)
	}
	q.choice = c
	if p, ok := q.query["pretty"]; ok {
		q.choice.Pretty = p[0] != "false" && p[0] != "0"
	}
	return nil
}

func notAcceptable(list string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: "only the following media types are accepted: " + list}}
}

// fail answers with the Status of err.
func (q *request) fail(err error) {
	if q.code != 0 {
		if !errors.Is(err, context.Canceled) {
			q.s.log.Debug("request failed after its answer began", "path", q.r.URL.Path, "error", err)
		}
		return
	}
	se := statusError(err)
	if errors.Is(err, context.DeadlineExceeded) {
		se = late()
	}
	st := se.ErrStatus
	if st.Code >= 500 && st.Code != 504 {
		level := slog.LevelError
		if st.Code == http.StatusServiceUnavailable {
			level = slog.LevelInfo // what is behind a proxy, or a webhook, is not there: no fault of this server
		}
		q.s.log.Log(q.r.Context(), level, "request failed", "method", q.r.Method, "path", q.r.URL.Path, "error", err)
	}
	if st.Details != nil && st.Details.RetryAfterSeconds > 0 {
		q.w.Header().Set("Retry-After", strconv.Itoa(int(st.Details.RetryAfterSeconds)))
	}
	if st.Code == 0 {
		st.Code = 500
	}
	if st.Status == "" {
		st.Status = metav1.StatusFailure
	}
	if q.choice == (wire.Choice{}) {
		if c, ok := wire.Negotiate(q.r.Header.Get("Accept"), true, true); ok {
			q.choice = c
		}
	}
	q.send(int(st.Code), &st, statusGVK)
}

var statusGVK = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

// statusWriter remembers the code that was sent.
type statusWriter struct {
	http.ResponseWriter
	q     *request
	bytes int64
}

// began remembers the code of the answer once.
func (w *statusWriter) began(code int) {
	q := w.q
	if q.code != 0 {
		return
	}
	q.code = code
	q.entry.Started(code, q.long || q.refused)
}

func (w *statusWriter) WriteHeader(code int) {
	if code >= 200 || code == http.StatusSwitchingProtocols {
		w.began(code)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.began(http.StatusOK)
	w.bytes += int64(len(b))
	return w.ResponseWriter.Write(b)
}

// Hijack hands the connection over for another protocol.
func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.began(http.StatusSwitchingProtocols)
	}
	return c, rw, err
}

// Unwrap lets http.ResponseController reach Flush and Hijack.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) Flush() {
	w.began(http.StatusOK)
	http.NewResponseController(w.ResponseWriter).Flush()
}

// boolParam reads a flag of the query: present counts as true unless it says
// false or 0.
func boolParam(query url.Values, name string) (value, present bool) {
	v, ok := query[name]
	if !ok || len(v) == 0 {
		return false, false
	}
	return !strings.EqualFold(v[0], "false") && v[0] != "0", true
}
