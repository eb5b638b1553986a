package node_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"proa.dev/internal/locked"
)

// sizes is a queue of terminal sizes.
type sizes chan remotecommand.TerminalSize

// Next waits for a size.
func (s sizes) Next() *remotecommand.TerminalSize {
	v, ok := <-s
	if !ok {
		return nil
	}
	return &v
}

// TestStreamsOfRealContainers talks to real containers by both carriers, with the
// library that kubectl has: terminals that change their size, attachment to a
// shell and to a filter, large input, forwarded ports that are refused.
func TestStreamsOfRealContainers(t *testing.T) {
	m := newMachine(t)
	m.box("shell", "exec sh -i", func(p *corev1.Pod) { p.Spec.Containers[0].Stdin, p.Spec.Containers[0].TTY = true, true })
	m.box("filter", "echo begin; exec cat", func(p *corev1.Pod) {
		p.Spec.Containers[0].Stdin, p.Spec.Containers[0].StdinOnce = true, true
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
	})
	m.box("web", "mkdir /www; echo welcome > /www/index.html; exec httpd -f -p 8080 -h /www", nil)
	m.until("ready", func() bool { return ready(m.pod("shell")) && ready(m.pod("filter")) && ready(m.pod("web")) })
	srv := httptest.NewServer(m.handler())
	defer srv.Close()
	cfg := &rest.Config{Host: srv.URL, BearerToken: "let-me-in"}
	at := func(path string, query url.Values) *url.URL {
		u, err := url.Parse(srv.URL + path + "?" + query.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, carrier := range []string{"spdy", "websocket"} {
		executor := func(t *testing.T, u *url.URL) remotecommand.Executor {
			e, err := remotecommand.NewWebSocketExecutor(cfg, "GET", u.String())
			if carrier == "spdy" {
				e, err = remotecommand.NewSPDYExecutor(cfg, "POST", u)
			}
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		type session struct {
			in    *io.PipeWriter
			out   *locked.Buffer
			sizes sizes
			done  chan error
			leave func()
		}
		begin := func(t *testing.T, u *url.URL) *session {
			sctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			t.Cleanup(cancel)
			r, w := io.Pipe()
			s := &session{in: w, out: &locked.Buffer{}, sizes: make(sizes, 4), done: make(chan error, 1), leave: cancel}
			e := executor(t, u)
			s.sizes <- remotecommand.TerminalSize{Width: 77, Height: 33}
			go func() {
				s.done <- e.StreamWithContext(sctx, remotecommand.StreamOptions{Stdin: r, Stdout: s.out, Tty: true, TerminalSizeQueue: s.sizes})
				r.Close()
			}()
			return s
		}
		says := func(t *testing.T, s *session, send, want string) {
			t.Helper()
			fmt.Fprint(s.in, send)
			m.until(want, func() bool { return strings.Contains(s.out.String(), want) })
		}
		// The shell may look at the size before the resize has come: ask until it is there.
		asks := func(t *testing.T, s *session, want string) {
			t.Helper()
			m.until("size "+want, func() bool {
				fmt.Fprint(s.in, "stty size\n")
				return strings.Contains(s.out.String(), want)
			})
		}
		terminal := url.Values{"input": {"1"}, "output": {"1"}, "tty": {"1"}}

		t.Run(carrier+" exec with a terminal", func(t *testing.T) {
			q := url.Values{"command": {"sh"}}
			for k, v := range terminal {
				q[k] = v
			}
			s := begin(t, at("/exec/default/web/app", q))
			defer close(s.sizes)
			asks(t, s, "33 77")
			s.sizes <- remotecommand.TerminalSize{Width: 100, Height: 40}
			asks(t, s, "40 100")
			says(t, s, "echo $TERM$((20+3))\n", "xterm23")
			fmt.Fprint(s.in, "exit 9\n")
			err := <-s.done
			if coded, ok := err.(interface{ ExitStatus() int }); !ok || coded.ExitStatus() != 9 {
				t.Errorf("exit 9: %v", err)
			}
		})
		t.Run(carrier+" attach with a terminal", func(t *testing.T) {
			s := begin(t, at("/attach/default/shell/app", terminal))
			defer close(s.sizes)
			asks(t, s, "33 77")
			says(t, s, "echo a$((3+4))b\n", "a7b")
			s.leave() // the attachment ends, the shell does not
			<-s.done
			if p := m.pod("shell"); p.Status.ContainerStatuses[0].RestartCount != 0 {
				t.Error("the shell ended with the attachment")
			}
		})
		t.Run(carrier+" large input", func(t *testing.T) {
			sctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			big := strings.Repeat("0123456789abcde\n", 1<<18) // 4 MiB
			var out bytes.Buffer
			err := executor(t, at("/exec/default/web/app", url.Values{"command": {"wc", "-c"}, "input": {"1"}, "output": {"1"}})).
				StreamWithContext(sctx, remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &out})
			if err != nil || strings.TrimSpace(out.String()) != fmt.Sprint(len(big)) {
				t.Errorf("wc of %d bytes: %q %v", len(big), out.String(), err)
			}
			// A command that does not read its input ends all the same.
			out.Reset()
			err = executor(t, at("/exec/default/web/app", url.Values{"command": {"echo", "done"}, "input": {"1"}, "output": {"1"}})).
				StreamWithContext(sctx, remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &out})
			if err != nil || out.String() != "done\n" {
				t.Errorf("echo: %q %v", out.String(), err)
			}
		})
		t.Run(carrier+" no such command", func(t *testing.T) {
			sctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			err := executor(t, at("/exec/default/web/app", url.Values{"command": {"/no/such"}, "output": {"1"}})).
				StreamWithContext(sctx, remotecommand.StreamOptions{Stdout: io.Discard})
			if err == nil || !strings.HasPrefix(err.Error(), "Internal error occurred: error executing command in container: ") ||
				!strings.Contains(err.Error(), `exec: "/no/such": stat /no/such: no such file or directory`) {
				t.Errorf("error %v", err)
			}
		})
		t.Run(carrier+" forwarded port", func(t *testing.T) {
			u := at("/portForward/default/web", nil)
			rt, upgrader, err := spdy.RoundTripperFor(cfg)
			if err != nil {
				t.Fatal(err)
			}
			var dialer httpstream.Dialer = spdy.NewDialer(upgrader, &http.Client{Transport: rt}, "POST", u)
			if carrier == "websocket" {
				if dialer, err = portforward.NewSPDYOverWebsocketDialer(u, cfg); err != nil {
					t.Fatal(err)
				}
			}
			forward(t, dialer, func(t *testing.T, local map[uint16]string) {
				client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
				var g sync.WaitGroup
				for range 20 {
					g.Go(func() {
						resp, err := client.Get("http://" + local[8080])
						if err != nil {
							t.Error(err)
							return
						}
						defer resp.Body.Close()
						if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "welcome\n" {
							t.Errorf("body %q %v", body, err)
						}
					})
				}
				g.Wait()
				c, err := net.Dial("tcp", local[81])
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
					t.Errorf("a port that nobody listens on answers: %d %v", n, err)
				}
			})
		})
	}

	// The filter's input ends with the first attachment, as stdinOnce says.
	e, err := remotecommand.NewWebSocketExecutor(cfg, "GET", at("/attach/default/filter/app", url.Values{"input": {"1"}, "output": {"1"}}).String())
	if err != nil {
		t.Fatal(err)
	}
	sctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out locked.Buffer
	if err := e.StreamWithContext(sctx, remotecommand.StreamOptions{Stdin: strings.NewReader("through\n"), Stdout: &out}); err != nil || out.String() != "through\n" {
		t.Errorf("attach to a filter: %q %v", out.String(), err)
	}
	m.until("the filter has ended", func() bool { return m.pod("filter").Status.Phase == corev1.PodSucceeded })
	if got, want := m.log(t, "filter", "app", ""), "begin\nthrough\n"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
	for _, name := range []string{"shell", "filter", "web"} {
		m.delete(name)
	}
	m.until("all gone", func() bool { return len(m.agentPods()) == 0 })
}

// forward forwards the ports 8080 and 81 while f runs.
func forward(t *testing.T, dialer httpstream.Dialer, f func(t *testing.T, local map[uint16]string)) {
	t.Helper()
	stop, up := make(chan struct{}), make(chan struct{})
	fw, err := portforward.New(dialer, []string{"0:8080", "0:81"}, stop, up, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	select {
	case <-up:
	case err := <-done:
		t.Fatalf("forward: %v", err)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	local := map[uint16]string{}
	for _, p := range ports {
		local[p.Remote] = fmt.Sprintf("127.0.0.1:%d", p.Local)
	}
	f(t, local)
	close(stop)
	<-done
}
