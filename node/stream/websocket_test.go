package stream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// echo copies stdin back; its command's first word is the exit code.
type echo struct{}

func (echo) Exec(_ context.Context, _ string, cmd []string, _ bool, in io.Reader, out, errs io.Writer, _ <-chan Size) (int, error) {
	if in != nil {
		io.Copy(out, in)
	}
	if errs != nil {
		io.WriteString(errs, "oops")
	}
	return len(cmd) - 1, nil
}
func (echo) Attach(context.Context, string, bool, io.Reader, io.Writer, io.Writer, <-chan Size) error {
	return errors.New("not here")
}
func (echo) PortForward(context.Context, string, int32, io.ReadWriteCloser) error {
	return errors.New("not here")
}

type onePod struct{}

func (onePod) Pods() []*corev1.Pod                                          { return nil }
func (onePod) Container(_, _, _, c string) (string, error)                  { return c, nil }
func (onePod) Sandbox(_, _, _ string) (string, error)                       { return "s", nil }
func (onePod) Log(_, _, _ string, _ bool) (LogSource, error)                { return LogSource{}, nil }
func (onePod) Summary(context.Context) (*statsv1alpha1.Summary, error)      { return nil, nil }
func (onePod) Config() any                                                  { return nil }
func (onePod) Metrics(_ context.Context, _ string, _ io.Writer) (err error) { return nil }

// Clients of other languages send stdin as text, and parse every message of the
// status channel as JSON.
func TestChannelsOfOtherClients(t *testing.T) {
	h := httptest.NewServer(Handler(Config{Backend: onePod{}, Streams: echo{},
		Authenticate: func(*http.Request) (User, bool) { return User{Name: "u"}, true },
		Authorize:    func(context.Context, User, string, string) bool { return true }}))
	defer h.Close()
	for _, c := range []struct {
		name, query, protocol string
		messageType           int
		first                 string // the message that says that the connection stands
		stdout, status        string
	}{
		{"text", "input=1&output=1&error=1&command=a&command=b", protocolV5, websocket.TextMessage, "\x01", "ping\n", `"NonZeroExitCode"`},
		{"binary", "input=1&output=1&error=1&command=a", protocolV5, websocket.BinaryMessage, "\x01", "ping\n", `"Success"`},
		{"no output", "error=1&command=a", protocolV4, websocket.BinaryMessage, "\x02", "", `"Success"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := websocket.Dialer{Subprotocols: []string{c.protocol}}
			ws, _, err := d.Dial("ws"+strings.TrimPrefix(h.URL, "http")+"/exec/n/p/c?"+c.query, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer ws.Close()
			ws.SetReadDeadline(time.Now().Add(10 * time.Second))
			if strings.Contains(c.query, "input") {
				ws.WriteMessage(c.messageType, []byte("\x00ping\n"))
				ws.WriteMessage(c.messageType, []byte{chClose, chStdin})
			}
			var all [4]string
			for i := 0; ; i++ {
				_, m, err := ws.ReadMessage()
				if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 && string(m) != c.first {
					t.Errorf("the first message is %q, want %q", m, c.first)
				}
				if m[0] == chStatus && len(m) == 1 {
					t.Error("an empty status: clients parse it as JSON")
				}
				all[m[0]] += string(m[1:])
			}
			if all[chStdout] != c.stdout || all[chStderr] != "oops" || !strings.Contains(all[chStatus], c.status) {
				t.Errorf("got %q", all)
			}
		})
	}
}
