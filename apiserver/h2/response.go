package h2

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// gather is how much of an answer is kept back until more comes, the handler ends or
// flushes: an answer that is smaller goes out in one piece.
const gather = 16<<10 - 256

// sniffed is how much of a body tells its type.
const sniffed = 512

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// response is the ResponseWriter. Its methods are called by the handler's goroutine,
// those for deadlines by any.
type response struct {
	st       *stream
	header   http.Header
	code     int // 0: not yet
	fields   []hpack.HeaderField
	length   int64 // declared; -1: not
	written  int64
	buf      *[]byte
	sent     bool // headers are out
	whole    bool // and nothing may follow them
	over     bool
	trailers []string
}

var (
	_ http.ResponseWriter = (*response)(nil)
	_ http.Flusher        = (*response)(nil)
)

func (w *response) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header, 8)
	}
	return w.header
}

func bodyAllowed(code int) bool {
	return code >= 200 && code != http.StatusNoContent && code != http.StatusNotModified
}

func (w *response) WriteHeader(code int) {
	if w.code != 0 || w.over {
		return
	}
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", code))
	}
	if code < 200 {
		st, c := w.st, w.st.c
		fields := w.collect(nil, code)
		c.mu.Lock()
		defer c.mu.Unlock()
		if code == http.StatusContinue {
			st.expects = false
		}
		if st.broken() == nil {
			c.putHeaders(st.id, code, fields, false)
			c.flush()
		}
		return
	}
	w.code, w.length = code, -1
	w.fields = w.collect(make([]hpack.HeaderField, 0, len(w.header)+3), code)
}

// collect takes the headers as they are now.
func (w *response) collect(fields []hpack.HeaderField, code int) []hpack.HeaderField {
	for k, list := range w.header {
		if strings.HasPrefix(k, http.TrailerPrefix) {
			continue
		}
		switch k {
		case "Connection":
			if len(list) > 0 && list[0] == "close" {
				w.st.c.leave()
			}
			continue
		case "Content-Length":
			if code < 200 {
				continue
			}
			if len(list) > 0 && list[0] != "" {
				n, err := strconv.ParseUint(list[0], 10, 63)
				if err != nil {
					continue
				}
				w.length = int64(n)
			} else {
				continue
			}
		case "Trailer":
			if code >= 200 {
				w.declare(list)
			}
		}
		name := lower(k)
		if name == "" {
			continue
		}
		for _, v := range list {
			if !httpguts.ValidHeaderFieldValue(v) || name == "transfer-encoding" && v != "trailers" {
				continue
			}
			fields = append(fields, hpack.HeaderField{Name: name, Value: v})
		}
	}
	return fields
}

func (w *response) declare(list []string) {
	for _, v := range list {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); httpguts.ValidTrailerHeader(name) {
				w.trailers = append(w.trailers, name)
			}
		}
	}
}

func (w *response) Write(p []byte) (int, error) { return write(w, p) }

// WriteString implements io.StringWriter.
func (w *response) WriteString(s string) (int, error) { return write(w, s) }

func write[T []byte | string](w *response, p T) (int, error) {
	if w.over {
		return 0, errNotDone
	}
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(w.code) {
		return 0, http.ErrBodyNotAllowed
	}
	w.written += int64(len(p))
	if w.length >= 0 && w.written > w.length {
		return 0, http.ErrContentLength
	}
	if w.buf == nil {
		w.buf = buffers.Get().(*[]byte)
	}
	if w.st.req.Method == http.MethodHead {
		// The beginning tells its type, no more is needed.
		*w.buf = append(*w.buf, p[:min(len(p), max(sniffed-len(*w.buf), 0))]...)
		return len(p), nil
	}
	if len(*w.buf)+len(p) <= gather {
		*w.buf = append(*w.buf, p...)
		return len(p), nil
	}
	if err := w.push(false, false); err != nil {
		return 0, err
	}
	if len(p) < gather {
		*w.buf = append(*w.buf, p...)
		return len(p), nil
	}
	if err := w.st.c.send(w.st, 0, nil, []byte(p), false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// push sends what there is. all: no more comes; end: not even trailers.
func (w *response) push(all, end bool) error {
	if w.whole {
		return nil
	}
	code := 0
	var data []byte
	if w.buf != nil {
		data = *w.buf
	}
	if !w.sent {
		w.sent = true
		code = w.code
		w.complete(data, all)
		if w.st.req.Method == http.MethodHead {
			data, end, w.whole = data[:0], true, true
		}
	}
	err := error(nil)
	if code != 0 || len(data) > 0 || end {
		err = w.st.c.send(w.st, code, w.fields, data, end)
	}
	w.fields = nil
	if w.buf != nil {
		*w.buf = data[:0]
	}
	return err
}

// complete adds the headers that a server adds.
func (w *response) complete(data []byte, all bool) {
	has := func(name string) bool {
		for i := range w.fields {
			if w.fields[i].Name == name {
				return true
			}
		}
		return false
	}
	if all && w.length < 0 && bodyAllowed(w.code) && (w.written > 0 || w.st.req.Method != http.MethodHead) {
		w.fields = append(w.fields, hpack.HeaderField{Name: "content-length", Value: strconv.FormatInt(w.written, 10)})
	}
	if _, set := w.header["Content-Type"]; len(data) > 0 && !set && !has("content-type") && !has("content-encoding") && bodyAllowed(w.code) {
		w.fields = append(w.fields, hpack.HeaderField{Name: "content-type", Value: http.DetectContentType(data)})
	}
	if _, set := w.header["Date"]; !set {
		w.fields = append(w.fields, hpack.HeaderField{Name: "date", Value: date()})
	}
}

// second is a time as headers tell it.
type second struct {
	unix int64
	text string
}

var latest atomic.Pointer[second]

func date() string {
	now := time.Now()
	if s := latest.Load(); s != nil && s.unix == now.Unix() {
		return s.text
	}
	s := &second{now.Unix(), now.UTC().Format(http.TimeFormat)}
	latest.Store(s)
	return s.text
}

func (w *response) Flush() { w.FlushError() }

// FlushError is for http.ResponseController.
func (w *response) FlushError() error {
	if w.over {
		return errNotDone
	}
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.push(false, false)
}

// done ends the answer.
func (w *response) done() {
	if w.over {
		return
	}
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	trailers := w.trailerFields()
	if err := w.push(true, len(trailers) == 0); err == nil && len(trailers) > 0 {
		w.st.c.sendTrailers(w.st, trailers)
	}
	w.over = true
	if w.buf != nil {
		if *w.buf = (*w.buf)[:0]; cap(*w.buf) <= gather {
			buffers.Put(w.buf)
		}
		w.buf = nil
	}
}

func (w *response) trailerFields() (fields []hpack.HeaderField) {
	add := func(key string, list []string) {
		name := lower(key)
		if name == "" {
			return
		}
		for _, v := range list {
			if httpguts.ValidHeaderFieldValue(v) {
				fields = append(fields, hpack.HeaderField{Name: name, Value: v})
			}
		}
	}
	for _, key := range w.trailers {
		add(key, w.header[key])
	}
	for k, list := range w.header {
		if rest, ok := strings.CutPrefix(k, http.TrailerPrefix); ok {
			add(textproto.CanonicalMIMEHeaderKey(rest), list)
		}
	}
	return fields
}

// SetReadDeadline is for http.ResponseController.
func (w *response) SetReadDeadline(t time.Time) error {
	c := w.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.st.err != nil {
		return nil
	}
	if w.st.readBy = t; !t.IsZero() && !t.After(time.Now()) {
		w.st.endBody(errDeadline)
	} else if !t.IsZero() {
		c.arm(t)
	}
	return nil
}

// SetWriteDeadline is for http.ResponseController.
func (w *response) SetWriteDeadline(t time.Time) error {
	st, c := w.st, w.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.err != nil {
		return nil
	}
	if st.writeBy = t; !t.IsZero() && !t.After(time.Now()) {
		c.reset(st.id, http2.ErrCodeInternal, false)
	} else if !t.IsZero() {
		c.arm(t)
	}
	return nil
}

// EnableFullDuplex is for http.ResponseController: it always is.
func (w *response) EnableFullDuplex() error { return nil }
