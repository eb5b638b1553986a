package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	maxWindow = 1<<31 - 1
	// queueSoft is what may wait to be written before who has a body to send waits, too.
	queueSoft = 64 << 10
	// maxQueued ends a connection: only answers to a flood of frames come so far.
	maxQueued = 4 << 20
	// keepQueue bounds the buffers that a connection keeps.
	keepQueue = 32 << 10
	// refund is how much of a window is given back at once, unless less is left.
	refund = 64 << 10
	// greeting is how long a client may take for its first frames.
	greeting = 10 * time.Second
	// parting is how long a connection stays after its last stream when it has been
	// told to go.
	parting = time.Second
)

// conn is one connection. What follows mu is under it.
type conn struct {
	srv      *http.Server
	tc       *tls.Conn
	handler  http.Handler
	ctx      context.Context
	l        limits
	state    *tls.ConnectionState
	remote   string
	handlers sync.WaitGroup

	// The reading goroutine's.
	br    *bufio.Reader
	fr    *http2.Framer
	fresh []*stream // accepted, and their handlers not yet begun

	mu      sync.Mutex
	cond    sync.Cond // anything below has changed that a writer or reader may wait for
	streams map[uint32]*stream
	last    uint32 // greatest stream that the client has opened
	running int
	waiting []*stream // for a handler to end
	idle    chan *stream
	parked  int
	closed  bool
	err     error

	out, spare []byte
	writing    bool
	enc        *hpack.Encoder
	block      bytes.Buffer
	window     int64 // what the client takes
	initial    int64 // of its new streams
	frame      int   // greatest that it reads

	recv inflow

	leaving  bool
	gone     time.Time // when the last stream ended while leaving
	lastRead time.Time
	lastBusy time.Time
	pinged   time.Time // zero: no ping is out
	timer    *time.Timer
	next     time.Time // when the timer fires
}

// inflow is a window for what the client sends.
type inflow struct{ left, owed int }

func (f *inflow) take(n int) bool {
	if n > f.left {
		return false
	}
	f.left -= n
	return true
}

// give notes n bytes as read and returns how many to tell the client of now.
func (f *inflow) give(n int) int {
	f.owed += n
	if f.owed < refund && f.owed < f.left {
		return 0
	}
	n = f.owed
	f.owed = 0
	f.left += n
	return n
}

func newConn(srv *http.Server, tc *tls.Conn, h http.Handler, ctx context.Context) *conn {
	c := &conn{srv: srv, tc: tc, handler: h, ctx: ctx, l: limitsOf(srv), remote: tc.RemoteAddr().String(), br: bufio.NewReader(tc),
		streams: map[uint32]*stream{}, idle: make(chan *stream, 1), window: 65535, initial: 65535, frame: 16384}
	c.cond.L = &c.mu
	state := tc.ConnectionState()
	c.state = &state
	c.recv.left = c.l.connWindow
	c.enc = hpack.NewEncoder(&c.block)
	c.fr = http2.NewFramer(io.Discard, c.br)
	c.fr.SetReuseFrames()
	c.fr.SetMaxReadFrameSize(c.l.frame)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.fr.MaxHeaderListSize = c.l.headerBytes
	return c
}

// serve reads until the connection ends. Handlers may run on; their contexts are
// over then.
func (c *conn) serve() {
	defer c.end(errors.New("client disconnected"))
	now := time.Now()
	c.mu.Lock()
	c.lastRead, c.lastBusy = now, now
	c.putFrame(http2.FrameSettings, 0, 0, settings(
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: c.l.frame},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.l.streams},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: c.l.headerBytes},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.l.streamWindow)}))
	c.putWindow(0, c.l.connWindow-65535)
	c.timer = time.AfterFunc(time.Hour, c.tick)
	c.arm(now.Add(c.quiet()))
	// Not from here: a client that does not read must not keep us from its preface's deadline.
	c.kick()
	c.mu.Unlock()
	defer c.timer.Stop()
	c.tc.SetReadDeadline(now.Add(greeting))
	if !secure(c.state) {
		c.abort(http2.ErrCodeInadequateSecurity)
		return
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.br, preface); err != nil || string(preface) != http2.ClientPreface {
		return
	}
	held := 0
	for first := true; ; first = false {
		// What came together is taken in first, so that a handler need not wait for its
		// body; a few frames at most.
		if len(c.fresh) > 0 {
			if held++; held > 3 || c.br.Buffered() == 0 || c.fresh[len(c.fresh)-1].whole {
				held = 0
				c.begin()
			}
		}
		f, err := c.fr.ReadFrame()
		if err == nil && first {
			if s, ok := f.(*http2.SettingsFrame); !ok || s.IsAck() {
				err = http2.ConnectionError(http2.ErrCodeProtocol)
			}
			c.tc.SetReadDeadline(time.Time{})
		}
		if err == nil {
			err = c.process(f)
		}
		var se http2.StreamError
		var ce http2.ConnectionError
		switch {
		case err == nil:
		case errors.As(err, &se):
			c.mu.Lock()
			c.reset(se.StreamID, se.Code, true)
			over := len(c.out) > maxQueued
			c.kick()
			c.mu.Unlock()
			if over {
				c.abort(http2.ErrCodeEnhanceYourCalm)
				return
			}
		case errors.As(err, &ce):
			c.abort(http2.ErrCode(ce))
			return
		case errors.Is(err, http2.ErrFrameTooLarge):
			c.abort(http2.ErrCodeFrameSize)
			return
		default:
			return
		}
	}
}

// secure says whether RFC 9113 section 9.2 allows what TLS has agreed on.
func secure(s *tls.ConnectionState) bool {
	if s.Version >= tls.VersionTLS13 {
		return true
	}
	switch s.CipherSuite {
	case tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return s.Version == tls.VersionTLS12
	}
	return false
}

func (c *conn) logf(format string, args ...any) {
	if l := c.srv.ErrorLog; l != nil {
		l.Printf(format, args...)
		return
	}
	log.Printf(format, args...)
}

// abort tells the client what was wrong and ends.
func (c *conn) abort(code http2.ErrCode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putGoAway(code)
	c.tc.SetWriteDeadline(time.Now().Add(parting))
	c.flush()
	for c.writing {
		c.cond.Wait()
	}
	if c.err != nil {
		return
	}
	// With unread data behind it, a close would take the reason away.
	c.mu.Unlock()
	c.tc.CloseWrite()
	c.tc.SetReadDeadline(time.Now().Add(parting))
	io.Copy(io.Discard, c.br)
	c.mu.Lock()
}

// end closes everything.
func (c *conn) end(err error) {
	for range c.fresh {
		c.handlers.Done()
	}
	c.mu.Lock()
	c.fail(err)
	c.waiting = nil
	if !c.closed {
		c.closed = true
		close(c.idle)
	}
	c.mu.Unlock()
}

// fail ends all streams. Under mu.
func (c *conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.tc.NetConn().Close()
	for _, st := range c.streams {
		c.close(st, c.err)
	}
	c.cond.Broadcast()
}

// leave tells the client to open no more streams here.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving || c.err != nil {
		return
	}
	c.leaving = true
	c.putGoAway(http2.ErrCodeNo)
	c.kick()
	c.parted()
}

// parted lets the connection go a moment after its last stream. Under mu.
func (c *conn) parted() {
	if c.leaving && len(c.streams) == 0 && c.gone.IsZero() {
		c.gone = time.Now()
		c.arm(c.gone.Add(parting))
	}
}

// arm makes the timer fire at t at the latest. Under mu.
func (c *conn) arm(t time.Time) {
	if c.timer != nil && (c.next.IsZero() || t.Before(c.next)) {
		c.next = t
		c.timer.Reset(max(time.Until(t), 0))
	}
}

// quiet is when to look again at a connection at which nothing is going on.
func (c *conn) quiet() time.Duration {
	d := time.Hour
	if c.l.pingAfter > 0 {
		d = min(d, c.l.pingAfter)
	}
	if c.l.idle > 0 {
		d = min(d, c.l.idle)
	}
	return d
}

// tick looks after everything that has a time: deadlines of streams, pings, idleness.
func (c *conn) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	c.next = time.Time{}
	next := now.Add(c.quiet())
	for _, st := range c.streams {
		if t := st.readBy; !t.IsZero() {
			if now.Before(t) {
				next = earlier(next, t)
			} else {
				st.readBy = time.Time{}
				st.endBody(errDeadline)
			}
		}
		if t := st.writeBy; !t.IsZero() {
			if now.Before(t) {
				next = earlier(next, t)
			} else {
				c.reset(st.id, http2.ErrCodeInternal, false)
			}
		}
	}
	if len(c.streams) > 0 {
		c.lastBusy = now
	} else if !c.gone.IsZero() {
		if !now.Before(c.gone.Add(parting)) {
			c.fail(http.ErrServerClosed)
			return
		}
		next = earlier(next, c.gone.Add(parting))
	} else if c.l.idle > 0 {
		if at := c.lastBusy.Add(c.l.idle); now.Before(at) {
			next = earlier(next, at)
		} else if !c.leaving {
			c.leaving = true
			c.putGoAway(http2.ErrCodeNo)
			c.parted()
			next = earlier(next, now.Add(parting))
		}
	}
	if c.l.pingAfter > 0 {
		switch {
		case !c.pinged.IsZero() && now.Sub(c.pinged) >= c.l.pingIn:
			c.fail(errors.New("client does not answer pings"))
			return
		case !c.pinged.IsZero():
			next = earlier(next, c.pinged.Add(c.l.pingIn))
		case now.Sub(c.lastRead) >= c.l.pingAfter:
			c.pinged = now
			c.putFrame(http2.FramePing, 0, 0, make([]byte, 8))
			next = earlier(next, now.Add(c.l.pingIn))
		default:
			next = earlier(next, c.lastRead.Add(c.l.pingAfter))
		}
	}
	c.arm(next)
	c.kick()
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// process one frame.
func (c *conn) process(f http2.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.lastRead, c.pinged = time.Now(), time.Time{}
	if len(c.out) > maxQueued {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	h := f.Header()
	if c.leaving && h.StreamID > c.last {
		// It will be tried again elsewhere; the window it took is ours to give back.
		if h.Type == http2.FrameData && !c.discard(int(h.Length)) {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		return nil
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.DataFrame:
		return c.data(f)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.RSTStreamFrame:
		if h.StreamID == 0 || h.StreamID > c.last {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if st := c.streams[h.StreamID]; st != nil {
			c.close(st, http2.StreamError{StreamID: h.StreamID, Code: f.ErrCode})
		}
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if h.StreamID != 0 {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if !f.IsAck() {
			c.putFrame(http2.FramePing, http2.FlagPingAck, 0, f.Data[:])
			c.kick()
		}
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			return errors.New("client goes away: " + f.ErrCode.String())
		}
		if !c.leaving {
			c.leaving = true
			c.putGoAway(http2.ErrCodeNo)
			c.kick()
			c.parted()
		}
	case *http2.PriorityFrame:
		if f.StreamDep == h.StreamID {
			return http2.StreamError{StreamID: h.StreamID, Code: http2.ErrCodeProtocol}
		}
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	if id%2 != 1 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if st := c.streams[id]; st != nil {
		return st.trailers(f)
	}
	if id <= c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.last = id
	if uint32(len(c.streams)) >= c.l.streams {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	if f.HasPriority() && f.Priority.StreamDep == id {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	st, err := c.accept(f)
	if err != nil {
		return err
	}
	c.streams[id] = st
	if c.l.read > 0 {
		st.readBy = c.lastRead.Add(c.l.read)
		c.arm(st.readBy)
	}
	if c.l.write > 0 {
		st.writeBy = c.lastRead.Add(c.l.write)
		c.arm(st.writeBy)
	}
	if c.running >= int(c.l.streams) {
		if len(c.waiting) > int(4*c.l.streams) {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		c.waiting = append(c.waiting, st)
		return nil
	}
	c.running++
	c.handlers.Add(1)
	c.fresh = append(c.fresh, st)
	return nil
}

func (c *conn) data(f *http2.DataFrame) error {
	id, n := f.StreamID, int(f.Length)
	if id == 0 || id > c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	st := c.streams[id]
	if st == nil || st.ended {
		if !c.discard(n) {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		if st != nil {
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed}
		}
		return nil // it may have been reset meanwhile
	}
	if !c.recv.take(n) {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if !st.recv.take(n) {
		c.putWindow(0, c.recv.give(n))
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeFlowControl}
	}
	data := f.Data()
	st.got += int64(len(data))
	if st.declared >= 0 && st.got > st.declared {
		c.putWindow(0, c.recv.give(n))
		st.endBody(fmt.Errorf("sender tried to send more than declared Content-Length of %d bytes", st.declared))
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if st.unread {
		// Nobody will read it: the connection's window goes back, the stream's does not.
		c.putWindow(0, c.recv.give(n))
	} else {
		if st.body == nil && st.declared > 0 {
			st.body = make([]byte, 0, min(st.declared, 64<<10))
		}
		st.body = append(st.body, data...)
		if pad := n - len(data); pad > 0 {
			c.putWindow(0, c.recv.give(pad))
			c.putWindow(id, st.recv.give(pad))
		}
	}
	if f.StreamEnded() {
		st.endOfBody()
	}
	c.kick()
	c.cond.Broadcast()
	return nil
}

// discard takes n bytes that belong to no stream. Under mu.
func (c *conn) discard(n int) bool {
	if !c.recv.take(n) {
		return false
	}
	c.putWindow(0, c.recv.give(n))
	c.kick()
	return true
}

func (c *conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	} else if st := c.streams[f.StreamID]; st != nil {
		if st.window += int64(f.Increment); st.window > maxWindow {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
		}
	} else if f.StreamID > c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.cond.Broadcast()
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if f.NumSettings() > 100 || f.HasDuplicates() {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.enc.SetMaxDynamicTableSize(s.Val)
		case http2.SettingMaxFrameSize:
			c.frame = int(s.Val)
		case http2.SettingInitialWindowSize:
			grown := int64(s.Val) - c.initial
			c.initial = int64(s.Val)
			for _, st := range c.streams {
				if st.window += grown; st.window > maxWindow {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.putFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	c.kick()
	c.cond.Broadcast()
	return nil
}

// begin starts the handlers of streams that were accepted, when what came with
// them has been taken in.
func (c *conn) begin() {
	for i, st := range c.fresh {
		c.mu.Lock()
		parked := c.parked > 0
		if parked {
			c.parked--
		}
		c.mu.Unlock()
		if parked {
			c.idle <- st
		} else {
			go c.work(st)
		}
		c.fresh[i] = nil
	}
	c.fresh = c.fresh[:0]
}

// work runs handlers. One goroutine stays for the connection's next stream, so that
// it need not grow its stack again.
func (c *conn) work(st *stream) {
	for {
		st.run()
		c.mu.Lock()
		for st = nil; len(c.waiting) > 0 && (st == nil || st.err != nil); {
			st, c.waiting = c.waiting[0], c.waiting[1:]
		}
		if st != nil && st.err == nil {
			c.handlers.Add(1)
			c.mu.Unlock()
			c.handlers.Done()
			continue
		}
		c.running--
		stay := c.parked == 0 && !c.closed
		if stay {
			c.parked++
		}
		c.mu.Unlock()
		c.handlers.Done()
		if !stay {
			return
		}
		var ok bool
		if st, ok = <-c.idle; !ok {
			return
		}
	}
}
