package h2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"proa.dev/internal/await"
)

// start serves h by this package (or by net/http's own HTTP/2) and returns its
// address and a client.
func start(t testing.TB, own bool, h http.Handler, change func(*http.Server)) (string, *http.Client) {
	t.Helper()
	ts := httptest.NewUnstartedServer(h)
	ts.EnableHTTP2 = true
	ts.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 100}
	if change != nil {
		change(ts.Config)
	}
	if own {
		Configure(ts.Config)
		ts.TLS = &tls.Config{NextProtos: []string{"h2"}}
		ts.EnableHTTP2 = false
	}
	ts.StartTLS()
	t.Cleanup(ts.Close)
	pool := x509.NewCertPool()
	pool.AddCert(ts.Certificate())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return ts.URL, &http.Client{Transport: tr}
}

// answers are as different as handlers' may be.
func answers() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>hello") })
	mux.HandleFunc("/nothing", func(w http.ResponseWriter, r *http.Request) {})
	mux.HandleFunc("/code", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header()["X-Odd"] = []string{"a", "b\nc", "d"}
		w.Header()["bad name"] = []string{"x"}
		w.WriteHeader(http.StatusConflict)
		w.Header().Set("Late", "too late")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "{}")
	})
	for _, code := range []int{204, 304} {
		mux.HandleFunc("/"+strconv.Itoa(code), func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(code)
			if _, err := w.Write([]byte("x")); err != http.ErrBodyNotAllowed {
				panic(err)
			}
		})
	}
	mux.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "4")
		io.WriteString(w, "abcd")
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		for i := range 300 {
			w.Write(bytes.Repeat([]byte{byte('a' + i%26)}, 1+i*97%40_000))
		}
	})
	mux.HandleFunc("/flushed", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.Flush()
		for range 5 {
			io.WriteString(w, "piece")
			rc.Flush()
		}
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Sum, Other")
		io.WriteString(w, "body")
		w.Header().Set("Sum", "1")
		w.Header().Set(http.TrailerPrefix+"Unannounced", "2")
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%d %x %v %d %v %v %v", n, sum.Sum(nil), err, r.ContentLength, r.Header["Content-Length"], r.Trailer, r.Header["Expect"])
	})
	mux.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("User-Agent")
		fmt.Fprintf(w, "%s %s %s %s %v %v tls=%t %v", r.Method, r.URL, r.RequestURI, r.Proto, r.Header, r.ContentLength, r.TLS != nil && r.TLS.ServerName == "example.com", r.Body == nil)
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style>")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "after hints")
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/panic/late", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		http.NewResponseController(w).Flush()
		panic("oops")
	})
	mux.HandleFunc("/unread", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
	return mux
}

// TestAsNetHTTP asks this server and net/http's the same and compares all that a
// client sees.
func TestAsNetHTTP(t *testing.T) {
	url, c := start(t, true, answers(), nil)
	refURL, ref := start(t, false, answers(), nil)
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for _, q := range []struct { // each buffer that one leaves serves the next ones
		method, path string
		body         func() io.Reader
		header       http.Header
		trailer      http.Header
	}{
		{method: "GET", path: "/small"}, {method: "HEAD", path: "/small"}, {method: "GET", path: "/nothing"}, {method: "HEAD", path: "/nothing"}, {method: "GET", path: "/code"},
		{method: "HEAD", path: "/code"}, {method: "GET", path: "/204"}, {method: "GET", path: "/304"}, {method: "GET", path: "/length"}, {method: "HEAD", path: "/length"}, {method: "GET", path: "/large"},
		{method: "GET", path: "/flushed"}, {method: "HEAD", path: "/flushed"}, {method: "GET", path: "/trailers"}, {method: "GET", path: "/missing"}, {method: "GET", path: "/hints"},
		{method: "GET", path: "/request?a=b%20c&d", header: http.Header{"Cookie": {"a=1", "b=2"}, "X-Two": {"1", "2"}}}, {method: "OPTIONS", path: "/request"}, {method: "DELETE", path: "/request"},
		{method: "GET", path: "/panic"}, {method: "GET", path: "/panic/late"},
		{method: "POST", path: "/echo", body: func() io.Reader { return strings.NewReader("small") }},
		{method: "POST", path: "/echo", body: func() io.Reader { return bytes.NewReader(big) }},
		{method: "PUT", path: "/echo", body: func() io.Reader { return io.MultiReader(bytes.NewReader(big), strings.NewReader("end")) }},
		{method: "PUT", path: "/echo", body: func() io.Reader { return io.MultiReader(strings.NewReader("unknown length")) }, trailer: http.Header{"Checked": {"yes"}}},
		{method: "POST", path: "/echo", body: func() io.Reader { return strings.NewReader("continue") }, header: http.Header{"Expect": {"100-continue"}}},
		{method: "POST", path: "/unread", body: func() io.Reader { return bytes.NewReader(big) }},
	} {
		ask := func(url string, c *http.Client) string {
			var body io.Reader
			if q.body != nil {
				body = q.body()
			}
			req, err := http.NewRequest(q.method, url+q.path, body)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range q.header {
				req.Header[k] = v
			}
			req.Trailer = q.trailer
			var hints []string
			req = req.WithContext(httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints = append(hints, fmt.Sprint(code, h))
				return nil
			}}))
			r, err := c.Do(req)
			if err != nil {
				return "error " + strings.Replace(err.Error(), url, "", 1)
			}
			defer r.Body.Close()
			data, err := io.ReadAll(r.Body)
			if r.Header.Get("Date") == "" {
				t.Errorf("%s %s: no date", q.method, q.path)
			}
			r.Header.Del("Date")
			return fmt.Sprintf("%s %v %v %d %x %v %v %v %v", r.Status, r.Header, r.ContentLength, len(data), sha256.Sum256(data), err != nil, r.Trailer, r.Proto, hints)
		}
		got, want := ask(url, c), ask(refURL, ref)
		if i := strings.Index(got, "stream ID "); i >= 0 && strings.Contains(want, "stream ID ") {
			got, want = got[:i], want[:i] // numbers differ with what went before
		}
		if got != want {
			t.Errorf("%s %s:\n%s\nwant\n%s", q.method, q.path, got, want)
		}
	}
}

// TestTooMuchWritten: more than was declared is refused.
func TestTooMuchWritten(t *testing.T) {
	errs := make(chan error, 1)
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "4")
		io.WriteString(w, "abcd")
		_, err := io.WriteString(w, "e")
		errs <- err
	}), nil)
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r.Body)
	if e := <-errs; e != http.ErrContentLength || err != nil || string(data) != "abcd" {
		t.Errorf("the write gave %v, the client got %q, %v", e, data, err)
	}
}

// TestManyStreams: large and small requests side by side on one connection arrive whole.
func TestManyStreams(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("random seed %d", seed)
	var peers sync.Map
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peers.Store(r.RemoteAddr, true)
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			t.Error(err)
		}
		w.Header().Set("Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		for n > 0 {
			k, _ := w.Write(make([]byte, min(n, 30_000)))
			n -= k
		}
	}), nil)
	if r, err := c.Get(url); err != nil {
		t.Fatal(err)
	} else {
		r.Body.Close()
	}
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			src := rand.New(rand.NewSource(seed + int64(i)))
			for range 12 {
				body := make([]byte, src.Intn(1<<src.Intn(21)))
				src.Read(body)
				n := src.Intn(1 << src.Intn(21))
				r, err := c.Post(fmt.Sprintf("%s/?n=%d", url, n), "x/y", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.Copy(io.Discard, r.Body)
				r.Body.Close()
				if err != nil || got != int64(n) || r.Header.Get("Sum") != fmt.Sprintf("%x", sha256.Sum256(body)) {
					t.Errorf("%d bytes of %d, error %v, sum right: %t", got, n, err, r.Header.Get("Sum") == fmt.Sprintf("%x", sha256.Sum256(body)))
					return
				}
			}
		})
	}
	wg.Wait()
	n := 0
	peers.Range(func(any, any) bool { n++; return true })
	if n > 2 {
		t.Errorf("%d connections were used", n)
	}
}

// TestCancelled: who goes away ends the handler's context and its body.
func TestCancelled(t *testing.T) {
	ends := make(chan error, 2)
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		if r.Method == "POST" {
			_, err := io.Copy(io.Discard, r.Body)
			ends <- err
			return
		}
		<-r.Context().Done()
		ends <- r.Context().Err()
	}), nil)
	for _, method := range []string{"GET", "POST"} {
		ctx, cancel := context.WithCancel(context.Background())
		reader, writer := io.Pipe()
		req, _ := http.NewRequestWithContext(ctx, method, url, nil)
		if method == "POST" {
			req.Body = reader
		}
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		r.Body.Close()
		if err := <-ends; err == nil {
			t.Errorf("%s: the handler saw no end", method)
		}
		writer.Close()
	}
}

// TestSlowReader: an answer waits for a client that does not read, others go on, and
// a deadline ends it.
func TestSlowReader(t *testing.T) {
	ended := make(chan error, 1)
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/endless" {
			io.WriteString(w, "quick")
			return
		}
		rc := http.NewResponseController(w)
		var err error
		for sent := 0; err == nil; {
			var n int
			n, err = w.Write(make([]byte, 100_000))
			if sent += n; sent > 8<<20 {
				rc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			}
			if sent > 64<<20 {
				err = errors.New("the client's window was not heeded")
			}
		}
		ended <- err
	}), nil)
	r, err := c.Get(url + "/endless")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	q, err := c.Get(url + "/other")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(q.Body); err != nil || string(data) != "quick" {
		t.Errorf("other stream: %q, %v", data, err)
	}
	// The client's transport takes some megabytes, then only what is read.
	go io.CopyN(io.Discard, r.Body, 10<<20)
	if err := <-ended; !strings.Contains(err.Error(), "INTERNAL_ERROR") {
		t.Errorf("the write ended with %v", err)
	}
}

// TestReadDeadline ends a body that does not come.
func TestReadDeadline(t *testing.T) {
	ended := make(chan error, 1)
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := io.ReadAll(r.Body)
		ended <- err
	}), nil)
	reader, writer := io.Pipe()
	defer writer.Close()
	go c.Post(url, "x/y", reader)
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading ended with %v", err)
	}
}

// TestServerTimeouts: the server's own limits hold without a handler asking.
func TestServerTimeouts(t *testing.T) {
	read, written := make(chan error, 1), make(chan error, 1)
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, err := io.ReadAll(r.Body)
			read <- err
			return
		}
		<-r.Context().Done()
		_, err := w.Write(make([]byte, 1<<20))
		written <- err
	}), func(s *http.Server) { s.ReadTimeout, s.WriteTimeout = 100*time.Millisecond, 200*time.Millisecond })
	reader, writer := io.Pipe()
	defer writer.Close()
	go c.Post(url, "x/y", reader)
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading ended with %v", err)
	}
	if _, err := c.Get(url); err == nil {
		t.Error("an answer that takes too long was given")
	}
	if err := <-written; err == nil {
		t.Error("it was written after its time")
	}
}

// TestShutdown: requests in work end, new ones go elsewhere.
func TestShutdown(t *testing.T) {
	began, goOn := make(chan bool), make(chan bool)
	var srv *http.Server
	url, c := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-goOn
		io.WriteString(w, "done")
	}), func(s *http.Server) { srv = s })
	got := make(chan string, 1)
	go func() {
		r, err := c.Get(url)
		if err != nil {
			got <- err.Error()
			return
		}
		data, _ := io.ReadAll(r.Body)
		got <- string(data)
	}()
	<-began
	ended := make(chan error, 1)
	go func() { ended <- srv.Shutdown(context.Background()) }()
	await.True(t, 20*time.Second, "the listener is closed", func() bool {
		_, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "https://"), time.Second)
		return err != nil
	})
	close(goOn)
	if s := <-got; s != "done" {
		t.Errorf("the request in work got %q", s)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// raw is a connection on which anything can be said.
type raw struct {
	t testing.TB
	*tls.Conn
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func dial(t testing.TB, url string) *raw {
	t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	r := &raw{t: t, Conn: c, Framer: http2.NewFramer(c, c)}
	r.AllowIllegalWrites, r.AllowIllegalReads = true, true
	r.enc = hpack.NewEncoder(&r.block)
	return r
}

func (r *raw) greet() *raw {
	io.WriteString(r.Conn, http2.ClientPreface)
	r.WriteSettings()
	return r
}

func (r *raw) headers(id uint32, end bool, pairs ...string) {
	r.block.Reset()
	if len(pairs) == 0 {
		pairs = []string{":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/"}
	}
	for i := 0; i < len(pairs); i += 2 {
		r.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block.Bytes(), EndStream: end, EndHeaders: true})
}

// reaction reads until the server resets a stream, goes away or closes.
func (r *raw) reaction() string {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			return "goaway " + f.ErrCode.String()
		case *http2.RSTStreamFrame:
			return fmt.Sprintf("reset %d %s", f.StreamID, f.ErrCode)
		case *http2.HeadersFrame:
			fields, _ := hpack.NewDecoder(4096, nil).DecodeFull(f.HeaderBlockFragment())
			return "status " + fields[0].Value
		}
	}
}

// TestBrokenClients: what RFC 9113 forbids is answered as it says.
func TestBrokenClients(t *testing.T) {
	url, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			return
		}
		io.Copy(io.Discard, r.Body)
	}), nil)
	hang := []string{":method", "POST", ":scheme", "https", ":authority", "a", ":path", "/hang"}
	for name, c := range map[string]struct {
		do   func(r *raw)
		want string
	}{
		"no preface":            {func(r *raw) { io.WriteString(r.Conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") }, "closed"},
		"no settings":           {func(r *raw) { io.WriteString(r.Conn, http2.ClientPreface); r.WritePing(false, [8]byte{}) }, "goaway PROTOCOL_ERROR"},
		"even stream":           {func(r *raw) { r.greet().headers(2, true) }, "goaway PROTOCOL_ERROR"},
		"stream goes back":      {func(r *raw) { r.greet().headers(5, true, hang...); r.headers(3, true) }, "goaway PROTOCOL_ERROR"},
		"data on idle":          {func(r *raw) { r.greet().WriteData(1, true, []byte("x")) }, "goaway PROTOCOL_ERROR"},
		"data on zero":          {func(r *raw) { r.greet().WriteRawFrame(http2.FrameData, 0, 0, []byte("x")) }, "goaway PROTOCOL_ERROR"},
		"data after the end":    {func(r *raw) { r.greet().headers(1, true, hang...); r.WriteData(1, true, []byte("x")) }, "reset 1 STREAM_CLOSED"},
		"headers after the end": {func(r *raw) { r.greet().headers(1, true, hang...); r.headers(1, true, "a", "b") }, "reset 1 STREAM_CLOSED"},
		"reset of idle":         {func(r *raw) { r.greet().WriteRSTStream(1, http2.ErrCodeCancel) }, "goaway PROTOCOL_ERROR"},
		"window of idle":        {func(r *raw) { r.greet().WriteWindowUpdate(1, 1) }, "goaway PROTOCOL_ERROR"},
		"window overflows":      {func(r *raw) { r.greet().WriteWindowUpdate(0, 1<<31-1) }, "goaway FLOW_CONTROL_ERROR"},
		"stream overflows":      {func(r *raw) { r.greet().headers(1, true, hang...); r.WriteWindowUpdate(1, 1<<31-1) }, "reset 1 FLOW_CONTROL_ERROR"},
		"zero window":           {func(r *raw) { r.greet().WriteWindowUpdate(0, 0) }, "goaway PROTOCOL_ERROR"},
		"settings twice":        {func(r *raw) { r.greet().WriteSettings(http2.Setting{ID: 4, Val: 1}, http2.Setting{ID: 4, Val: 2}) }, "goaway PROTOCOL_ERROR"},
		"settings too large":    {func(r *raw) { r.greet().WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, "goaway FLOW_CONTROL_ERROR"},
		"push": {func(r *raw) {
			r.greet().WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, "goaway PROTOCOL_ERROR"},
		"frame too large": {func(r *raw) {
			r.greet().headers(1, false, hang...)
			r.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 2<<20))
		}, "goaway FRAME_SIZE_ERROR"},
		"no path": {func(r *raw) { r.greet().headers(1, true, ":method", "GET", ":scheme", "https", ":authority", "a") }, "reset 1 PROTOCOL_ERROR"},
		"upper case": {func(r *raw) {
			r.greet().headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", "Aa", "b")
		}, "reset 1 PROTOCOL_ERROR"},
		"pseudo behind": {func(r *raw) { r.greet().headers(1, true, ":method", "GET", ":scheme", "https", "a", "b", ":path", "/") }, "reset 1 PROTOCOL_ERROR"},
		"connection header": {func(r *raw) {
			r.greet().headers(1, true, ":method", "GET", ":scheme", "https", ":path", "/", "connection", "close")
		}, "status 400"},
		"large headers": {func(r *raw) {
			many := []string{":method", "GET", ":scheme", "https", ":path", "/"}
			for range 10 {
				many = append(many, "a", strings.Repeat("x", 1000))
			}
			r.greet().headers(1, true, many...)
		}, "status 431"},
		"too much body": {func(r *raw) {
			r.greet().headers(1, false, append(hang, "content-length", "1")...)
			r.WriteData(1, false, []byte("xx"))
		}, "reset 1 PROTOCOL_ERROR"},
		"too many streams": {func(r *raw) {
			r.greet()
			for i := range 101 {
				r.headers(uint32(2*i+1), false, hang...)
			}
		}, "reset 201 REFUSED_STREAM"},
		"window not heeded": {func(r *raw) {
			r.greet().headers(1, false, hang...)
			for range 70 {
				r.WriteData(1, false, make([]byte, 16384))
			}
		}, "goaway FLOW_CONTROL_ERROR"},
		"unknown frame": {func(r *raw) { r.greet().WriteRawFrame(77, 0, 0, []byte("x")); r.headers(1, true) }, "status 200"},
		"priority":      {func(r *raw) { r.greet().WritePriority(9, http2.PriorityParam{StreamDep: 1}); r.headers(11, true) }, "status 200"},
		"on itself":     {func(r *raw) { r.greet().WritePriority(9, http2.PriorityParam{StreamDep: 9}) }, "reset 9 PROTOCOL_ERROR"},
		"continued":     {func(r *raw) { r.greet().WriteContinuation(1, true, nil) }, "goaway PROTOCOL_ERROR"},
		"bad compression": {func(r *raw) {
			r.greet().WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, "goaway COMPRESSION_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			small := url
			if name == "large headers" {
				small, _ = start(t, true, http.NotFoundHandler(), func(s *http.Server) { s.MaxHeaderBytes = 4096 })
			}
			r := dial(t, small)
			c.do(r)
			if got := r.reaction(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestRapidReset: streams that are reset at once keep their handlers' places, and a
// client that goes on is sent away.
func TestRapidReset(t *testing.T) {
	var running, most atomic.Int64
	release := make(chan bool)
	url, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
	}), func(s *http.Server) { s.HTTP2.MaxConcurrentStreams = 10 })
	defer close(release)
	r := dial(t, url).greet()
	go func() {
		for i := range 200 {
			r.headers(uint32(2*i+1), true)
			if r.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel) != nil {
				return
			}
		}
	}()
	if got := r.reaction(); got != "goaway ENHANCE_YOUR_CALM" {
		t.Errorf("got %q", got)
	}
	if n := most.Load(); n > 10 {
		t.Errorf("%d handlers ran at once", n)
	}
}

// TestPings: a client that does not answer is dropped.
func TestPings(t *testing.T) {
	gone := make(chan bool)
	url, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(gone)
	}), func(s *http.Server) {
		s.HTTP2.SendPingTimeout, s.HTTP2.PingTimeout = 50*time.Millisecond, 50*time.Millisecond
	})
	dial(t, url).greet().headers(1, true)
	<-gone
}

// TestIdle: connections without work are closed.
func TestIdle(t *testing.T) {
	url, _ := start(t, true, http.NotFoundHandler(), func(s *http.Server) { s.IdleTimeout = 50 * time.Millisecond })
	r := dial(t, url).greet()
	if got := r.reaction(); got != "goaway NO_ERROR" {
		t.Errorf("got %q", got)
	}
	if got := r.reaction(); got != "closed" {
		t.Errorf("then %q", got)
	}
}

// FuzzFrames: nothing that a client sends crashes the server or holds a handler.
func FuzzFrames(f *testing.F) {
	var seed bytes.Buffer
	fr := http2.NewFramer(&seed, nil)
	fr.WriteSettings(http2.Setting{ID: 4, Val: 100})
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82, 0x84, 0x87, 0x41, 0x01, 'a'}, EndHeaders: true})
	fr.WriteData(1, true, []byte("hello"))
	fr.WriteWindowUpdate(1, 5)
	fr.WritePing(false, [8]byte{1})
	f.Add(seed.Bytes())
	var running atomic.Int64
	url, _ := start(f, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Add(-1)
		n, _ := io.Copy(io.Discard, r.Body)
		w.Write(make([]byte, 1000+n))
	}), nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		r := dial(t, url)
		io.WriteString(r.Conn, http2.ClientPreface)
		r.Write(data)
		r.CloseWrite()
		io.Copy(io.Discard, r.Conn)
		r.Close()
		await.True(t, 20*time.Second, "handlers end", func() bool { return running.Load() == 0 })
	})
}

// BenchmarkSmall: requests with 1 KB bodies, answers of 1 KB, on 16 connections, by
// this package and by net/http. CPU is of both sides.
func BenchmarkSmall(b *testing.B) {
	for _, own := range []bool{false, true} {
		b.Run(map[bool]string{false: "net/http", true: "own"}[own], func(b *testing.B) {
			url, c := start(b, own, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Header().Set("Content-Length", "1000")
				w.Write(make([]byte, 1000))
			}), func(s *http.Server) { s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute })
			tr := c.Transport.(*http.Transport)
			b.ReportAllocs()
			var n atomic.Int64
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					c := &http.Client{Transport: tr.Clone()}
					defer c.CloseIdleConnections()
					body := make([]byte, 1000)
					for n.Add(1) <= int64(b.N) {
						r, err := c.Post(url, "x/y", bytes.NewReader(body))
						if err != nil {
							b.Error(err)
							return
						}
						io.Copy(io.Discard, r.Body)
						r.Body.Close()
					}
				})
			}
			wg.Wait()
		})
	}
}
