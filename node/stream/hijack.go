package stream

import (
	"bufio"
	"net"
	"net/http"
	"sync"
	"time"
)

// endWait is how long an upgraded connection may take to end by itself once its
// handler is done with it.
const endWait = time.Second

// upgraded is a ResponseWriter that knows the connection which an upgrade takes
// over. The library closes it when a command has ended, and forgets it when the
// client never opened its streams: then nobody would until the idle timeout.
type upgraded struct {
	http.ResponseWriter
	conn *knownConn // nil: no upgrade
}

// Hijack implements http.Hijacker.
func (u *upgraded) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	u.conn = &knownConn{Conn: conn, closed: make(chan struct{})}
	return u.conn, buf, nil
}

// end waits for the connection's end, or makes it.
func (u *upgraded) end() {
	if u.conn == nil {
		return
	}
	late := time.NewTimer(endWait)
	defer late.Stop()
	select {
	case <-u.conn.closed:
	case <-late.C:
		u.conn.Close()
	}
}

// knownConn says when it is closed.
type knownConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

// Close implements net.Conn.
func (c *knownConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
