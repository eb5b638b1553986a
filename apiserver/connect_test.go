package apiserver_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	streamforward "k8s.io/cri-streaming/pkg/streaming/portforward"
	streamcommand "k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"proa.dev/apiserver"
	"proa.dev/apiserver/apitest"
)

// fakeNode is a node's port 10250: exec echoes its input behind the command,
// logs come in two pieces, port-forward greets with the port number.
type fakeNode struct{ server *httptest.Server }

func (n *fakeNode) RoundTripperFor(string) (http.RoundTripper, *url.URL, error) {
	u, err := url.Parse(n.server.URL)
	return n.server.Client().Transport, u, err
}

func (n *fakeNode) PodTransport() http.RoundTripper { return http.DefaultTransport }

type executor struct{}

func (executor) ExecInContainer(_ context.Context, name, _, container string, cmd []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan streamcommand.TerminalSize, _ time.Duration) error {
	fmt.Fprintf(out, "%s/%s:%s:", name, container, strings.Join(cmd, " "))
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if errs != nil {
		fmt.Fprint(errs, "oops")
	}
	return nil
}

type forwarder struct{}

func (forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	_, err := fmt.Fprintf(stream, "port %d\n", port)
	return err
}

// execV5 speaks the v5.channel.k8s.io protocol: the first byte of each message is
// the channel (0 stdin, 1 stdout, 2 stderr, 3 status, 255 "channel is closed").
func execV5(t *testing.T, w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		t.Errorf("upgrade: %v", err)
		return
	}
	defer conn.Close()
	out := []byte("\x01" + r.PathValue("pod") + "/" + r.PathValue("container") + ":" + strings.Join(r.URL.Query()["command"], " ") + ":")
	for {
		_, m, err := conn.ReadMessage()
		if err != nil {
			t.Errorf("read: %v", err)
			return
		}
		if m[0] == 255 && m[1] == 0 {
			break
		}
		out = append(out, m[1:]...)
	}
	conn.WriteMessage(websocket.BinaryMessage, out)
	conn.WriteMessage(websocket.BinaryMessage, []byte("\x02oops"))
	conn.WriteMessage(websocket.BinaryMessage, []byte("\x03"+`{"status":"Success"}`))
	conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}

// TestLogsOverWebSocket: the log comes as binary messages.
func TestLogsOverWebSocket(t *testing.T) {
	release := make(chan struct{})
	close(release)
	c := withPod(t, release)
	d := websocket.Dialer{TLSClientConfig: c.HTTP.Client().Transport.(*http.Transport).TLSClientConfig.Clone(), Subprotocols: []string{"binary.k8s.io"}}
	d.TLSClientConfig.NextProtos = []string{"http/1.1"}
	conn, _, err := d.Dial("wss"+strings.TrimPrefix(c.HTTP.URL, "https")+"/api/v1/namespaces/n/pods/p/log", http.Header{"Authorization": {"Bearer admin"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var all []byte
	for {
		typ, data, err := conn.ReadMessage()
		if err != nil {
			break
		}
		if typ != websocket.BinaryMessage {
			t.Fatalf("message of type %d", typ)
		}
		all = append(all, data...)
	}
	if string(all) != "first \nsecond\n" {
		t.Fatalf("%q", all)
	}
}

func newFakeNode(t *testing.T, release <-chan struct{}) *fakeNode {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{ns}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			execV5(t, w, r)
			return
		}
		q := r.URL.Query()
		o := &streamcommand.Options{Stdin: q.Get("input") == "1", Stdout: q.Get("output") == "1", Stderr: q.Get("error") == "1", TTY: q.Get("tty") == "1"}
		streamcommand.ServeExec(w, r, executor{}, r.PathValue("pod"), "", r.PathValue("container"), q["command"], o, time.Minute, 10*time.Second, streamcommand.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/portForward/{ns}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		o, err := streamforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		streamforward.ServePortForward(w, r, forwarder{}, r.PathValue("pod"), "", o, time.Minute, 10*time.Second, streamforward.SupportedProtocols)
	})
	mux.HandleFunc("/containerLogs/{ns}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "first %s\n", r.URL.RawQuery)
		w.(http.Flusher).Flush()
		<-release
		fmt.Fprintln(w, "second")
	})
	n := &fakeNode{httptest.NewTLSServer(mux)}
	t.Cleanup(n.server.Close)
	return n
}

func withPod(t *testing.T, release <-chan struct{}) *apitest.Cluster {
	c := apitest.Start(t, func(cfg *apiserver.Config) { cfg.Nodes = newFakeNode(t, release) })
	cs := clients(t, c)["json"]
	if _, err := cs.CoreV1().Pods("n").Create(ctx, pod("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cs.CoreV1().Pods("n").Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExec(t *testing.T) {
	c := withPod(t, nil)
	cs := clients(t, c)["json"]
	target := cs.CoreV1().RESTClient().Post().Namespace("n").Resource("pods").Name("p").SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"echo", "a"}, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	ws, err := remotecommand.NewWebSocketExecutor(c.Admin, "GET", target.String())
	if err != nil {
		t.Fatal(err)
	}
	sp, err := remotecommand.NewSPDYExecutor(c.Admin, "POST", target)
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]remotecommand.Executor{"websocket": ws, "spdy": sp} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			short, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if err := e.StreamWithContext(short, remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &errs}); err != nil {
				t.Fatal(err)
			}
			if out.String() != "p/c:echo a:input" || errs.String() != "oops" {
				t.Fatalf("stdout %q stderr %q", out.String(), errs.String())
			}
		})
	}
}

func TestPortForward(t *testing.T) {
	c := withPod(t, nil)
	transport, upgrader, err := spdy.RoundTripperFor(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(c.HTTP.URL + "/api/v1/namespaces/n/pods/p/portforward")
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u)
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (httpDialer{}).dial(ports[0].Local)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	conn.Close()
	close(stop)
	<-done
	if err != nil || line != "port 8080\n" {
		t.Fatalf("through the tunnel came %q %v", line, err)
	}
}

func TestLogsStream(t *testing.T) {
	release := make(chan struct{})
	c := withPod(t, release)
	cs := clients(t, c)["json"]
	ten := int64(10)
	r, err := cs.CoreV1().Pods("n").GetLogs("p", &corev1.PodLogOptions{Follow: true, TailLines: &ten, Timestamps: true}).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	br := bufio.NewReader(r)
	// The first line must come before the node has written the second.
	line, err := br.ReadString('\n')
	if err != nil || line != "first follow=true&tailLines=10&timestamps=true\n" {
		t.Fatalf("%q %v", line, err)
	}
	close(release)
	if line, err = br.ReadString('\n'); err != nil || line != "second\n" {
		t.Fatalf("%q %v", line, err)
	}
	code, _, body := call(t, c, "GET", "/api/v1/namespaces/n/pods/p/log?container=x", "", "", "")
	if code != 400 || !strings.Contains(body, "container x is not valid for pod p") {
		t.Fatalf("%d %s", code, body)
	}
	code, _, body = call(t, c, "GET", "/api/v1/namespaces/n/pods/p/log?tailLines=-1", "", "", "")
	if code != 400 || !strings.Contains(body, "must be greater than or equal to 0") {
		t.Fatalf("%d %s", code, body)
	}
}

type httpDialer struct{}

func (httpDialer) dial(port uint16) (net.Conn, error) {
	return net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
}
