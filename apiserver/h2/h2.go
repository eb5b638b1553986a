// Package h2 serves HTTP/2 (RFC 9113) on the connections of a net/http server, in
// place of the implementation that net/http brings: for small answers that one
// spends most of its time in handing pieces between goroutines. Here the one
// goroutine that reads a connection keeps its streams, handlers write their
// answers themselves, headers and body in one piece, and who finds another one
// writing leaves its piece to that one. Framing and header compression are
// golang.org/x/net's.
//
// What handlers see is what net/http shows them: request and response semantics,
// http.ResponseController (deadlines, Flush), 100-continue, trailers,
// informational answers, contexts that end with the stream. Limits are the
// server's: ReadTimeout, WriteTimeout, IdleTimeout, MaxHeaderBytes, and of its
// HTTP2 configuration MaxConcurrentStreams, SendPingTimeout, PingTimeout and the
// receive buffers. Not there: server push, extended CONNECT, priorities (which a
// server may ignore, RFC 9113 section 5.3).
//
// Bounds: streams by MaxConcurrentStreams, handlers by the same number even if
// their streams were reset; what waits for a client that does not read by
// maxQueued bytes, then by its pings not answered.
package h2

import (
	"context"
	"crypto/tls"
	"net/http"
	"sync"
	"time"
)

// Configure makes srv serve HTTP/2 by this package wherever TLS has agreed on it.
// It is to be called before srv serves; srv's TLS configuration must offer "h2".
func Configure(srv *http.Server) {
	s := &server{srv: srv, conns: map[*conn]struct{}{}}
	if srv.TLSNextProto == nil {
		srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	srv.TLSNextProto["h2"] = s.serve
	srv.RegisterOnShutdown(s.shutdown)
}

type server struct {
	srv *http.Server

	mu    sync.Mutex
	conns map[*conn]struct{}
	ended bool
}

func (s *server) serve(_ *http.Server, tc *tls.Conn, h http.Handler) {
	base := context.Background()
	if b, ok := h.(interface{ BaseContext() context.Context }); ok {
		base = b.BaseContext()
	}
	ctx, cancel := context.WithCancel(base)
	defer cancel()
	c := newConn(s.srv, tc, h, ctx)
	s.mu.Lock()
	s.conns[c] = struct{}{}
	ended := s.ended
	s.mu.Unlock()
	if ended {
		c.leave()
	}
	c.serve()
	cancel()
	c.handlers.Wait()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// shutdown tells all clients to go elsewhere.
func (s *server) shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		c.leave()
	}
}

// limits of a server, with net/http's defaults.
type limits struct {
	streams           uint32
	connWindow        int
	streamWindow      int
	headerBytes       uint32
	frame             uint32
	read, write, idle time.Duration
	pingAfter, pingIn time.Duration
}

func limitsOf(srv *http.Server) limits {
	l := limits{streams: 250, connWindow: 1 << 20, streamWindow: 1 << 20, headerBytes: http.DefaultMaxHeaderBytes, frame: 1 << 20,
		read: srv.ReadTimeout, write: srv.WriteTimeout, idle: srv.IdleTimeout, pingIn: 15 * time.Second}
	if srv.MaxHeaderBytes > 0 {
		l.headerBytes = uint32(srv.MaxHeaderBytes)
	}
	l.headerBytes += 320 // ten headers' overhead (RFC 9113 section 6.5.2)
	if l.idle == 0 {
		l.idle = srv.ReadTimeout
	}
	if c := srv.HTTP2; c != nil {
		if c.MaxConcurrentStreams > 0 {
			l.streams = uint32(c.MaxConcurrentStreams)
		}
		if n := c.MaxReceiveBufferPerConnection; n >= 1<<16 {
			l.connWindow = n
		}
		if n := c.MaxReceiveBufferPerStream; n > 0 {
			l.streamWindow = n
		}
		if n := c.MaxReadFrameSize; n >= 1<<14 && n < 1<<24 {
			l.frame = uint32(n)
		}
		l.pingAfter = c.SendPingTimeout
		if c.PingTimeout > 0 {
			l.pingIn = c.PingTimeout
		}
	}
	return l
}
