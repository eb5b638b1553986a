package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// stream is one request with its answer. All but id, c, req and w is under conn.mu;
// whole is the reading goroutine's.
type stream struct {
	id     uint32
	c      *conn
	req    *http.Request
	handle func(http.ResponseWriter, *http.Request)
	cancel context.CancelFunc
	w      response

	err      error // it is over
	window   int64
	recv     inflow
	body     []byte // received
	read     int    // of it, by the handler
	got      int64
	declared int64 // Content-Length; -1: none
	ended    bool  // all is received
	whole    bool  // so it was when the reading goroutine looked
	bodyErr  error // once all that was received is read
	unread   bool  // the handler has closed the body
	carries  bool  // there is a body
	expects  bool  // 100-continue is waited for
	trailer  http.Header
	readBy   time.Time
	writeBy  time.Time
}

var errDeadline = fmt.Errorf("%w", os.ErrDeadlineExceeded)

// broken says why nothing can be sent any more.
func (st *stream) broken() error {
	if st.err != nil {
		return st.err
	}
	return st.c.err
}

// accept makes a stream of request headers.
func (c *conn) accept(f *http2.MetaHeadersFrame) (*stream, error) {
	malformed := http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	method, scheme, authority, path := f.PseudoValue("method"), f.PseudoValue("scheme"), f.PseudoValue("authority"), f.PseudoValue("path")
	connect := method == http.MethodConnect
	switch {
	case f.PseudoValue("protocol") != "":
		return nil, malformed
	case connect && (path != "" || scheme != "" || authority == ""):
		return nil, malformed
	case !connect && (method == "" || path == "" || scheme != "https" && scheme != "http"):
		return nil, malformed
	}
	fields := f.RegularFields()
	header := make(http.Header, len(fields))
	values := make([]string, len(fields))
	for i, hf := range fields {
		key := canonical(hf.Name)
		if have := header[key]; have != nil {
			header[key] = append(have, hf.Value)
			continue
		}
		values[i] = hf.Value
		header[key] = values[i : i+1 : i+1]
	}
	if authority == "" {
		authority = header.Get("Host")
	}
	if strings.Contains(authority, "@") {
		return nil, malformed
	}
	st := &stream{id: f.StreamID, c: c, window: c.initial, recv: inflow{left: c.l.streamWindow}, declared: -1, ended: f.StreamEnded(), handle: c.handler.ServeHTTP}
	if st.whole = st.ended; st.ended {
		st.bodyErr = io.EOF
	}
	u, uri := &url.URL{Host: authority}, authority
	if !connect {
		var err error
		if u, err = url.ParseRequestURI(path); err != nil {
			return nil, malformed
		}
		uri = path
	}
	if httpguts.HeaderValuesContainsToken(header["Expect"], "100-continue") {
		st.expects = true
		delete(header, "Expect")
	}
	if cookies := header["Cookie"]; len(cookies) > 1 {
		header["Cookie"] = []string{strings.Join(cookies, "; ")}
	}
	req := &http.Request{Method: method, URL: u, RemoteAddr: c.remote, Header: header, RequestURI: uri, Proto: "HTTP/2.0", ProtoMajor: 2, Host: authority, Trailer: declared(header)}
	if scheme == "https" {
		req.TLS = c.state
	}
	switch {
	case f.Truncated:
		st.handle = refuse(http.StatusRequestHeaderFieldsTooLarge, "<h1>HTTP Error 431</h1><p>Request Header Field(s) Too Large</p>", "text/html; charset=utf-8")
	default:
		if what := forbidden(header); what != "" {
			st.handle = refuse(http.StatusBadRequest, what, "text/plain; charset=utf-8")
		}
	}
	if st.carries = !st.ended; st.carries {
		req.ContentLength = -1
		if v := header["Content-Length"]; v != nil {
			if n, err := strconv.ParseUint(v[0], 10, 63); err == nil {
				req.ContentLength, st.declared = int64(n), int64(n)
			} else {
				req.ContentLength = 0
			}
		}
		req.Body = (*body)(st)
	} else {
		req.Body = http.NoBody
	}
	ctx, cancel := context.WithCancel(c.ctx)
	st.cancel = cancel
	st.req = req.WithContext(ctx)
	st.w.st = st
	return st, nil
}

// declared takes the names of the trailers out of the headers.
func declared(h http.Header) (t http.Header) {
	for _, list := range h["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name))
			switch name {
			case "", "Transfer-Encoding", "Trailer", "Content-Length":
			default:
				if t == nil {
					t = http.Header{}
				}
				t[name] = nil
			}
		}
	}
	delete(h, "Trailer")
	return t
}

// forbidden is what HTTP/2 does not allow among headers (RFC 9113 section 8.2.2).
func forbidden(h http.Header) string {
	for _, name := range []string{"Connection", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Keep-Alive"} {
		if _, ok := h[name]; ok {
			return fmt.Sprintf("request header %q is not valid in HTTP/2", name)
		}
	}
	if te := h["Te"]; len(te) > 1 || len(te) == 1 && te[0] != "trailers" && te[0] != "" {
		return `request header "TE" may only be "trailers" in HTTP/2`
	}
	return ""
}

func refuse(code int, text, contentType string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		io.WriteString(w, text)
	}
}

// trailers of a request.
func (st *stream) trailers(f *http2.MetaHeadersFrame) error {
	switch {
	case st.ended:
		return http2.StreamError{StreamID: st.id, Code: http2.ErrCodeStreamClosed}
	case !f.StreamEnded(), len(f.PseudoFields()) > 0, f.Truncated:
		return http2.StreamError{StreamID: st.id, Code: http2.ErrCodeProtocol}
	}
	for _, hf := range f.RegularFields() {
		key := canonical(hf.Name)
		if !httpguts.ValidTrailerHeader(key) {
			return http2.StreamError{StreamID: st.id, Code: http2.ErrCodeProtocol}
		}
		if _, ok := st.req.Trailer[key]; ok {
			if st.trailer == nil {
				st.trailer = http.Header{}
			}
			st.trailer[key] = append(st.trailer[key], hf.Value)
		}
	}
	st.endOfBody()
	st.c.cond.Broadcast()
	return nil
}

// endOfBody notes that the client has sent all.
func (st *stream) endOfBody() {
	st.ended, st.whole = true, true
	if st.declared >= 0 && st.got != st.declared {
		st.endBody(fmt.Errorf("request declared a Content-Length of %d but only wrote %d bytes", st.declared, st.got))
		return
	}
	st.endBody(io.EOF)
}

// endBody ends what the handler reads, behind what is there.
func (st *stream) endBody(err error) {
	if st.bodyErr == nil {
		st.bodyErr = err
		st.c.cond.Broadcast()
	}
}

// body of a request.
type body stream

func (b *body) Read(p []byte) (int, error) {
	st, c := (*stream)(b), b.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if st.unread {
			return 0, http.ErrBodyReadAfterClose
		}
		if st.expects {
			st.expects = false
			if st.err == nil {
				c.putHeaders(st.id, http.StatusContinue, nil, false)
				c.flush()
				continue
			}
		}
		if st.read < len(st.body) {
			n := copy(p, st.body[st.read:])
			if st.read += n; st.read == len(st.body) {
				st.body, st.read = st.body[:0], 0
			}
			if st.err == nil {
				c.putWindow(0, c.recv.give(n))
				if !st.ended {
					c.putWindow(st.id, st.recv.give(n))
				}
				c.kick()
			}
			return n, nil
		}
		if err := st.bodyErr; err != nil {
			if err == io.EOF {
				for k, v := range st.trailer {
					st.req.Trailer[k] = v
				}
				st.trailer = nil
			}
			return 0, err
		}
		if len(p) == 0 {
			return 0, nil
		}
		c.cond.Wait()
	}
}

func (b *body) Close() error {
	st, c := (*stream)(b), b.c
	c.mu.Lock()
	defer c.mu.Unlock()
	st.dropBody()
	return nil
}

// dropBody: nobody reads it any more.
func (st *stream) dropBody() {
	if !st.unread {
		st.unread = true
		if n := len(st.body) - st.read; n > 0 && st.err == nil {
			st.c.putWindow(0, st.c.recv.give(n))
			st.c.kick()
		}
		st.body, st.read = nil, 0
	}
}

// run is the handler's goroutine.
func (st *stream) run() {
	defer st.cancel()
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				st.c.logf("http2: panic serving %v: %v", st.c.remote, p)
			}
			st.c.mu.Lock()
			st.c.reset(st.id, http2.ErrCodeInternal, false)
			st.dropBody()
			st.c.mu.Unlock()
		}
	}()
	st.handle(&st.w, st.req)
	st.w.done()
	if st.carries {
		st.c.mu.Lock()
		st.dropBody()
		st.c.mu.Unlock()
	}
}

// canonical is the key of a header in net/http's form.
func canonical(name string) string {
	if k, ok := keys[name]; ok {
		return k
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

// keys and names are those of common headers, in both directions.
var keys, names = func() (k, n map[string]string) {
	k, n = map[string]string{}, map[string]string{}
	for _, h := range []string{"accept", "accept-encoding", "accept-language", "age", "allow", "audit-id", "authorization", "cache-control", "content-disposition",
		"content-encoding", "content-language", "content-length", "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect", "expires", "forwarded",
		"host", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "kubectl-command", "kubectl-session", "last-modified", "link", "location", "origin",
		"range", "referer", "retry-after", "server", "set-cookie", "strict-transport-security", "te", "traceparent", "tracestate", "trailer", "user-agent", "vary", "via", "warning",
		"www-authenticate", "x-content-type-options", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"} {
		key := textproto.CanonicalMIMEHeaderKey(h)
		k[h], n[key] = key, h
	}
	return k, n
}()

// lower is the name of a header as it is sent; "" if it cannot be.
func lower(key string) string {
	if n, ok := names[key]; ok {
		return n
	}
	if !httpguts.ValidHeaderFieldName(key) {
		return ""
	}
	return strings.ToLower(key)
}

var errNotDone = errors.New("http2: handler has ended")
