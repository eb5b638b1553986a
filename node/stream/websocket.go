package stream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// The channel protocol of remote commands over WebSocket: the first byte of each
// message, binary or text, names the channel; v5 adds channel 255, whose one byte of content
// names a channel that is closed. Source: KEP-4006.
const (
	chStdin  = 0
	chStdout = 1
	chStderr = 2
	chStatus = 3
	chResize = 4
	chClose  = 255

	protocolV5     = "v5.channel.k8s.io"
	protocolV4     = "v4.channel.k8s.io"
	protocolTunnel = "SPDY/3.1+portforward.k8s.io"

	writeWait = 30 * time.Second
	pingEvery = 5 * time.Second
	pingLimit = 60 * time.Second
	copyBytes = 32 << 10
	// controlBytes of a size or of a closed channel are looked at.
	controlBytes = 1 << 10
)

func speaksChannels(r *http.Request) bool {
	p := websocket.Subprotocols(r)
	return slices.Contains(p, protocolV5) || slices.Contains(p, protocolV4)
}

func wantsTunnel(r *http.Request) bool {
	return slices.Contains(websocket.Subprotocols(r), protocolTunnel)
}

// upgrader accepts every origin: requests are authenticated before.
func upgrader(protocols ...string) *websocket.Upgrader {
	return &websocket.Upgrader{Subprotocols: protocols, CheckOrigin: func(*http.Request) bool { return true }, ReadBufferSize: copyBytes, WriteBufferSize: copyBytes}
}

// channelConn is one remote command's connection.
type channelConn struct {
	ws     *websocket.Conn
	resize chan Size
	stdin  *io.PipeReader
	feed   *io.PipeWriter

	mu sync.Mutex // of writing
}

func (c *channelConn) in() io.Reader {
	if c.stdin == nil {
		return nil
	}
	return c.stdin
}

type channelWriter struct {
	c  *channelConn
	ch byte
}

func (c *channelConn) out(ch byte, wanted bool) io.Writer {
	if !wanted {
		return nil
	}
	return channelWriter{c, ch}
}

// Write sends p in messages of bounded size.
func (w channelWriter) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n := min(len(p), copyBytes)
		if err := w.c.send(w.ch, p[:n]); err != nil {
			return sent, err
		}
		sent += n
		p = p[n:]
	}
	return sent, nil
}

// send writes one message. The deadlines here are of the machine's clock, the only
// one that connections know.
func (c *channelConn) send(ch byte, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ws.SetWriteDeadline(time.Now().Add(writeWait))
	m, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := m.Write([]byte{ch}); err != nil {
		return err
	}
	if _, err := m.Write(p); err != nil {
		return err
	}
	return m.Close()
}

// channels upgrades and runs f on the connection, then reports how it ended.
func (s *server) channels(w http.ResponseWriter, r *http.Request, o *remotecommand.Options, f func(ctx context.Context, c *channelConn) error) {
	ws, err := upgrader(protocolV5, protocolV4).Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	defer ws.Close()
	ctx, cancel := context.WithCancel(r.Context())
	c := &channelConn{ws: ws}
	if o.Stdin {
		c.stdin, c.feed = io.Pipe()
	}
	if o.TTY {
		c.resize = make(chan Size)
	}
	var group sync.WaitGroup
	group.Add(2)
	go func() {
		defer group.Done()
		defer cancel()
		c.receive(ctx, ws.Subprotocol() == protocolV5)
	}()
	go func() {
		defer group.Done()
		c.ping(ctx)
	}()
	c.send(lowestOutput(o), nil)
	err = f(ctx, c)
	c.send(chStatus, statusOf(err))
	c.mu.Lock()
	ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	c.mu.Unlock()
	cancel()
	if c.stdin != nil {
		c.stdin.CloseWithError(io.ErrClosedPipe)
	}
	ws.SetReadDeadline(time.Now().Add(time.Second)) // the client's own close message
	group.Wait()
}

// lowestOutput is where an empty message tells the client that the connection
// stands: clients parse what comes on the channel of the status as JSON.
func lowestOutput(o *remotecommand.Options) byte {
	switch {
	case o.Stdout:
		return chStdout
	case o.Stderr:
		return chStderr
	}
	return chStatus
}

// receive takes stdin and sizes in until the client goes.
func (c *channelConn) receive(ctx context.Context, halfClose bool) {
	defer func() {
		if c.feed != nil {
			c.feed.Close()
		}
		if c.resize != nil {
			close(c.resize)
		}
	}()
	for {
		// A message may be of any length: none is held as a whole.
		_, m, err := c.ws.NextReader()
		if err != nil {
			return
		}
		var ch [1]byte
		if _, err := io.ReadFull(m, ch[:]); err != nil {
			continue // empty; a broken connection says so again
		}
		if ch[0] == chStdin {
			if c.feed != nil {
				c.take(m)
			}
			continue
		}
		content, err := io.ReadAll(io.LimitReader(m, controlBytes))
		if err != nil {
			return
		}
		switch ch[0] {
		case chResize:
			var size Size
			if c.resize == nil || json.Unmarshal(content, &size) != nil {
				continue
			}
			select {
			case c.resize <- size:
			case <-ctx.Done():
				// Keep reading: the close message is still to come.
			}
		case chClose:
			if halfClose && len(content) == 1 && content[0] == chStdin && c.feed != nil {
				c.feed.Close()
			}
		}
	}
}

// take feeds a message to stdin, in pieces; what the command does not read any more
// is passed over.
func (c *channelConn) take(m io.Reader) {
	b := make([]byte, copyBytes)
	for {
		n, err := m.Read(b)
		if n > 0 {
			if _, err := c.feed.Write(b[:n]); err != nil {
				c.feed.Close()
				return // the next message's reader passes over the rest
			}
		}
		if err != nil {
			return
		}
	}
}

// ping finds out about clients that are gone.
func (c *channelConn) ping(ctx context.Context) {
	c.ws.SetReadDeadline(time.Now().Add(pingLimit))
	c.ws.SetPongHandler(func(string) error { return c.ws.SetReadDeadline(time.Now().Add(pingLimit)) })
	t := time.NewTicker(pingEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			c.mu.Lock()
			err := c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeWait))
			c.mu.Unlock()
			if err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// statusOf is the last message of a remote command: a metav1.Status in JSON.
func statusOf(err error) []byte {
	st := metav1.Status{Status: metav1.StatusSuccess}
	st.Kind, st.APIVersion = "Status", "v1"
	var exit utilexec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
		st.Status, st.Reason = metav1.StatusFailure, "NonZeroExitCode"
		st.Message = fmt.Sprintf("command terminated with non-zero exit code: %v", exit)
		st.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(exit.ExitStatus())}}}
	default:
		// The words that the SPDY carrier has for it.
		st = apierrors.NewInternalError(fmt.Errorf("error executing command in container: %w", err)).ErrStatus
		st.Kind, st.APIVersion = "Status", "v1"
	}
	data, _ := json.Marshal(st)
	return data
}

// tunnel carries SPDY port-forwarding inside WebSocket messages.
func (s *server) tunnel(w http.ResponseWriter, r *http.Request, sandbox string) {
	ws, err := upgrader(protocolTunnel).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	inner := r.Clone(r.Context())
	inner.Method = http.MethodPost
	inner.Header = http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {portforward.ProtocolV1Name},
	}
	conn := &messageConn{Conn: ws}
	portforward.ServePortForward(&hijacked{conn: conn, header: http.Header{}}, inner, commands{s.Streams}, sandbox, "", &portforward.V4Options{},
		s.IdleTimeout, s.CreationTimeout, portforward.SupportedProtocols)
}

// hijacked lets the SPDY upgrader believe that it took over a plain connection:
// the upgrade itself has been done by the WebSocket.
type hijacked struct {
	conn   net.Conn
	header http.Header
}

func (h *hijacked) Header() http.Header         { return h.header }
func (h *hijacked) Write(p []byte) (int, error) { return len(p), nil }
func (h *hijacked) WriteHeader(int)             {}

// Hijack hands the tunnel out.
func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// messageConn is a byte stream in binary messages.
type messageConn struct {
	*websocket.Conn
	rest io.Reader
	wmu  sync.Mutex
}

// Read reads on through message borders.
func (c *messageConn) Read(p []byte) (int, error) {
	for {
		if c.rest == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway) {
					return 0, io.EOF
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("tunnel: message of type %d, want binary", kind)
			}
			c.rest = r
		}
		n, err := c.rest.Read(p)
		if err == io.EOF {
			c.rest = nil
			if n == 0 {
				continue
			}
			err = nil
		}
		return n, err
	}
}

// Write sends p as one message.
func (c *messageConn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close says goodbye first.
func (c *messageConn) Close() error {
	c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	return c.Conn.Close()
}

// SetDeadline sets both deadlines.
func (c *messageConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
