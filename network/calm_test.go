package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"proa.dev/network/netlab"
)

func TestBacklogs(t *testing.T) {
	got, err := parseBacklogs([]byte("0124a6ef 00000000 00000001 0 0 0 0 0 0 0 0 0000001f 00000000 0 0\n01267537 0 4 0 0 0 0 0 0 0 0 0 00000003 0 0\n"))
	if err != nil || len(got) != 2 || got[0] != (backlog{0x0124a6ef, 0x1f}) || got[3] != (backlog{0x01267537, 0}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseBacklogs([]byte("0124a6ef 0 0 0 0 0 0 0 0\n")); err == nil {
		t.Error("columns of an old kernel are believed")
	}
	var c calm
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(c.wait)
	}
	wg.Wait()
	if n := c.begun.Load(); n < 1 || n > 10 {
		t.Errorf("50 waits at a time took %d rounds", n)
	}
}

// A request that the program has read and not answered yet counts as not taken up.
func TestWaitTakenForAnswers(t *testing.T) {
	host, ns := netlab.New(t, "host"), netlab.New(t, "pod")
	n, err := New(Config{ClusterName: "taken", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, StateDir: t.TempDir(), HostNetns: host.Path()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	ips, err := n.Setup(context.Background(), "p", ns.Path(), nil)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr(ips[0])
	wait := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		return n.WaitTaken(ctx, addr)
	}
	if err := wait(10 * time.Second); err != nil {
		t.Errorf("nothing listens: %v", err)
	}

	var l net.Listener
	ns.Must(func() (err error) { l, err = net.Listen("tcp4", ":8080"); return err })
	defer l.Close()
	answer, read := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, 8))
		close(read)
		<-answer
		c.Write([]byte("answer"))
		io.Copy(io.Discard, c)
	})
	var c net.Conn
	host.Must(func() (err error) { c, err = net.Dial("tcp4", ips[0]+":8080"); return err })
	defer c.Close()
	c.Write([]byte("question"))
	<-read
	var isAnswered atomic.Bool
	answered := time.AfterFunc(150*time.Millisecond, func() { isAnswered.Store(true); close(answer) })
	defer answered.Stop()
	if err := wait(10 * time.Second); err != nil {
		t.Error(err)
	}
	if !isAnswered.Load() {
		t.Error("taken up before the answer")
	}
	if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
		t.Error(err)
	}
	began := time.Now()
	if err := wait(10 * time.Second); err != nil {
		t.Error(err)
	}
	t.Logf("quiet after %s", time.Since(began))
}
