package stream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"proa.dev/internal/locked"
)

// FuzzUpgraded: whatever a client sends after its connection was upgraded (WebSocket
// frames, SPDY frames, SPDY in WebSocket frames) neither crashes the node nor keeps
// the connection: it ends when the client has gone.
func FuzzUpgraded(f *testing.F) {
	const ws = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\n"
	const spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n"
	command := "/exec/n/p/c?input=1&output=1&error=1&command=a"
	doors := []string{
		"GET " + command + " HTTP/1.1\r\n" + fmt.Sprintf(ws, protocolV5),
		"GET " + command + "&tty=1 HTTP/1.1\r\n" + fmt.Sprintf(ws, protocolV4),
		"POST " + command + " HTTP/1.1\r\n" + fmt.Sprintf(spdy, "v4.channel.k8s.io"),
		"POST /portForward/n/p HTTP/1.1\r\n" + fmt.Sprintf(spdy, "portforward.k8s.io"),
		"GET /portForward/n/p HTTP/1.1\r\n" + fmt.Sprintf(ws, protocolTunnel),
	}
	// A frame of a client is masked, here with zeros.
	frame := func(opcode byte, content string) []byte {
		return append([]byte{0x80 | opcode, 0x80 | byte(len(content)), 0, 0, 0, 0}, content...)
	}
	f.Add(uint8(0), append(frame(2, "\x00hello"), frame(2, "\xff\x00")...))
	f.Add(uint8(0), []byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0}) // a length below zero
	f.Add(uint8(0), []byte{0x82, 0xff, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 'x'})     // half a terabyte of stdin
	f.Add(uint8(1), append(frame(1, "\x04{\"Width\":80,\"Height\":1e9}"), frame(9, "ping")...))
	f.Add(uint8(1), frame(8, "\x03\xe8"))
	f.Add(uint8(2), []byte("\x80\x03\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"))         // SYN_STREAM
	f.Add(uint8(3), []byte("\x80\x03\x00\x04\x00\x00\x00\x0c\xff\xff\xff\xff\x00\x00\x00\x04\x00\x00\x00\x07")) // SETTINGS
	f.Add(uint8(3), []byte("\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01"))                                 // PING
	f.Add(uint8(4), frame(2, "\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01"))
	f.Add(uint8(4), frame(1, "text"))
	said := new(locked.Buffer) // of handlers that panic
	var handlers sync.WaitGroup
	inner := Handler(Config{Backend: onePod{}, Streams: echo{}, IdleTimeout: time.Second, CreationTimeout: 100 * time.Millisecond,
		Authenticate: func(*http.Request) (User, bool) { return User{Name: "u"}, true },
		Authorize:    func(context.Context, User, string, string) bool { return true }})
	h := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		inner.ServeHTTP(w, r)
	}))
	h.Config.ErrorLog = log.New(said, "", 0)
	h.Start()
	f.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
		handlers.Wait()
	})
	f.Fuzz(func(t *testing.T, door uint8, data []byte) {
		conn, err := net.Dial("tcp", h.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(conn, doors[int(door)%len(doors)]+"Host: node\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("the upgrade answers %s", res.Status)
		}
		conn.Write(data) // the node may have closed it
		conn.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, r); err != nil {
			if n, ok := err.(net.Error); ok && n.Timeout() {
				t.Fatal("the connection stays after the client has gone")
			}
		}
		if s := said.String(); strings.Contains(s, "panic") {
			t.Fatal(s)
		}
	})
}
