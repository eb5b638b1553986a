package redis

import (
	"bufio"
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	if got, want := string(Append(nil, "SET", "a", "ö\r\n")), "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\nö\r\n\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want any
		err  string
	}{
		{"+OK\r\n", "OK", ""},
		{":-12\r\n", int64(-12), ""},
		{"$5\r\na\r\nbc\r\n", "a\r\nbc", ""},
		{"$0\r\n\r\n", "", ""},
		{"$-1\r\n", nil, ""},
		{"*-1\r\n", nil, ""},
		{"*0\r\n", []any{}, ""},
		{"*3\r\n$1\r\na\r\n*1\r\n:1\r\n-ERR x\r\n", []any{"a", []any{int64(1)}, Error("ERR x")}, ""},
		{"-NOAUTH no\r\n", nil, "NOAUTH"},
		{"\r\n", nil, "empty"},
		{"hello\r\n", nil, "protocol"},
		{"+OK\n", nil, "end of line"},
		{":x\r\n", nil, "number"},
		{"$x\r\n", nil, "size"},
		{"$-2\r\n", nil, "size"},
		{"$99999999\r\n", nil, "longer"},
		{"*99999999\r\n", nil, "longer"},
		{"$3\r\nabcd\r\n", nil, "no end"},
		{"$3\r\nab", nil, "EOF"},
		{"", nil, "EOF"},
		{strings.Repeat("*1\r\n", 20), nil, "nested"},
		{"+" + strings.Repeat("x", 10000) + "\r\n", nil, "full"},
	} {
		got, err := Read(bufio.NewReader(strings.NewReader(tt.in)))
		if !reflect.DeepEqual(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%.40q: %#v %v, want %#v %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}

// server answers each connection's commands from a script: as many replies as
// commands came, then it closes.
func server(t *testing.T, scripts ...[]string) (address string, heard chan []any) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard = make(chan []any, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, script := range scripts {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			for _, reply := range script {
				cmd, err := Read(r)
				if err != nil {
					break
				}
				heard <- cmd.([]any)
				c.Write([]byte(reply))
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), heard
}

func TestClient(t *testing.T) {
	address, heard := server(t,
		[]string{"+OK\r\n", ":1\r\n", "-ERR wrong\r\n", ":3\r\n"},
		[]string{"+OK\r\n", "$1\r\nx\r\n"})
	c := New(address, "secret")
	defer c.Close()
	ctx := context.Background()
	if v, err := c.Do(ctx, "INCR", "n"); v != int64(1) || err != nil {
		t.Fatal(v, err)
	}
	if got := <-heard; !reflect.DeepEqual(got, []any{"AUTH", "secret"}) {
		t.Errorf("first command %q", got)
	}
	// A refused command leaves the connection as it is.
	replies, err := c.Pipeline(ctx, []string{"BAD"}, []string{"INCR", "n"})
	var refused Error
	if !errors.As(err, &refused) || refused != "ERR wrong" || replies[1] != int64(3) {
		t.Errorf("%v %v", replies, err)
	}
	// The server closes; the command is lost, the next one connects anew.
	if _, err := c.Do(ctx, "GET", "n"); err == nil {
		t.Error("no error from a closed connection")
	}
	if v, err := c.Do(ctx, "GET", "n"); v != "x" || err != nil {
		t.Error(v, err)
	}
}

func TestCancel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			Read(bufio.NewReader(c)) // the command came; no answer
			cancel()
			c.Read(make([]byte, 1)) // until the client goes
		}
	}()
	if _, err := New(l.Addr().String(), "").Do(ctx, "GET", "n"); err == nil {
		t.Error("no error")
	}
}

func TestWrongPassword(t *testing.T) {
	address, _ := server(t, []string{"-WRONGPASS no\r\n"})
	if _, err := New(address, "x").Do(context.Background(), "GET", "n"); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Error(err)
	}
}
