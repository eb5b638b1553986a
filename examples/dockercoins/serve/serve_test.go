package serve

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, h http.Handler) (address string, end context.CancelFunc, done chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done = make(chan error, 1)
	go func() { done <- Listener(ctx, l, h) }()
	return l.Addr().String(), cancel, done
}

func wait(t *testing.T, done chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still serving")
	}
}

// A request in work when the end is asked for is answered whole.
func TestEndAwaitsRequests(t *testing.T) {
	in, release := make(chan bool), make(chan bool)
	address, end, done := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(in)
		<-release
		fmt.Fprint(w, "whole")
	}))
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-in
	end()
	select {
	case err := <-done:
		t.Fatalf("ended with a request in work: %v", err)
	case <-time.After(2500 * time.Millisecond): // longer than the drain
	}
	close(release)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	wait(t, done)
}

// An open connection may send one more request; its answer says goodbye.
func TestOpenConnectionIsTold(t *testing.T) {
	address, end, done := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hi") }))
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	ask := func() *http.Response {
		t.Helper()
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		bufio.NewReader(res.Body).WriteTo(&b)
		if b.String() != "ok\n" {
			t.Fatalf("healthz answered %q", b.String())
		}
		return res
	}
	if ask().Close {
		t.Error("the connection is closed early")
	}
	end()
	for began := time.Now(); !ask().Close; {
		if time.Since(began) > 2*time.Second {
			t.Fatal("never told")
		}
	}
	wait(t, done)
}

func TestDuration(t *testing.T) {
	t.Setenv("D", "250ms")
	if d, err := Duration("D", time.Second); d != 250*time.Millisecond || err != nil {
		t.Error(d, err)
	}
	if d, err := Duration("E", time.Second); d != time.Second || err != nil {
		t.Error(d, err)
	}
	for _, bad := range []string{"x", "-1s", "3"} {
		t.Setenv("D", bad)
		if _, err := Duration("D", 0); err == nil {
			t.Errorf("%q is no duration", bad)
		}
	}
}
