// Package netlab makes network namespaces for tests and runs code in them. It
// needs root and says so.
package netlab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace. It ends with the test, when the last descriptor of
// it is closed.
type NS struct {
	t    testing.TB
	name string
	fd   netns.NsHandle
	file *os.File
}

// New makes a namespace with lo up.
func New(t testing.TB, name string) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	type made struct {
		fd  netns.NsHandle
		err error
	}
	c := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var m made
		if m.err = unix.Unshare(unix.CLONE_NEWNET); m.err == nil {
			m.fd, m.err = netns.Get()
		}
		if m.err == nil {
			var lo netlink.Link
			if lo, m.err = netlink.LinkByName("lo"); m.err == nil {
				m.err = netlink.LinkSetUp(lo)
			}
		}
		c <- m
	}()
	m := <-c
	if m.err != nil {
		t.Fatalf("make network namespace %s: %v", name, m.err)
	}
	ns := &NS{t: t, name: name, fd: m.fd}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// Close lets go of the namespace before the test ends.
func (ns *NS) Close() {
	if ns.fd >= 0 {
		ns.fd.Close()
		ns.fd = -1
	}
}

// Path of the namespace, for code that opens it by name.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/self/fd/%d", int(ns.fd)) }

// Do runs f on a thread inside of the namespace. Sockets opened there stay there.
func (ns *NS) Do(f func() error) error {
	c := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns.fd); err != nil {
			c <- fmt.Errorf("enter namespace %s: %w", ns.name, err)
			return
		}
		c <- f()
	}()
	return <-c
}

// Must is Do for what cannot fail.
func (ns *NS) Must(f func() error) {
	ns.t.Helper()
	if err := ns.Do(f); err != nil {
		ns.t.Fatalf("in namespace %s: %v", ns.name, err)
	}
}

// Handle is a route socket in the namespace.
func (ns *NS) Handle() *netlink.Handle {
	ns.t.Helper()
	h, err := netlink.NewHandleAt(ns.fd, unix.NETLINK_ROUTE)
	if err != nil {
		ns.t.Fatalf("in namespace %s: %v", ns.name, err)
	}
	ns.t.Cleanup(h.Close)
	return h
}

// Wire joins two namespaces by a pair of links with one address each and, unless
// via is empty, a default route from b.
func Wire(t testing.TB, a *NS, aLink, aAddr string, b *NS, bLink, bAddr, via string) {
	t.Helper()
	ah, bh := a.Handle(), b.Handle()
	err := ah.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aLink}, PeerName: bLink, PeerNamespace: netlink.NsFd(b.fd)})
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("wire %s to %s: %v", a.name, b.name, err)
		}
	}
	check(err)
	for _, side := range []struct {
		h          *netlink.Handle
		link, addr string
	}{{ah, aLink, aAddr}, {bh, bLink, bAddr}} {
		l, err := side.h.LinkByName(side.link)
		check(err)
		addr, err := netlink.ParseAddr(side.addr)
		check(err)
		check(side.h.AddrAdd(l, addr))
		check(side.h.LinkSetUp(l))
	}
	if via != "" {
		l, err := bh.LinkByName(bLink)
		check(err)
		check(bh.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(via)}))
	}
}

// Server answers on TCP or UDP with "NAME CLIENT-ADDRESS".
type Server struct {
	Addr  netip.AddrPort
	close func() error
}

// Serve starts a server called name in the namespace; it ends with the test.
func (ns *NS) Serve(name, network, addr string) *Server {
	ns.t.Helper()
	s := &Server{}
	done := make(chan struct{})
	ns.Must(func() error {
		switch {
		case strings.HasPrefix(network, "tcp"):
			l, err := net.Listen(network, addr)
			if err != nil {
				return err
			}
			s.Addr, s.close = netip.MustParseAddrPort(l.Addr().String()), l.Close
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s", name, host(c.RemoteAddr()))
					c.Close()
				}
			}()
		default:
			p, err := net.ListenPacket(network, addr)
			if err != nil {
				return err
			}
			s.Addr, s.close = netip.MustParseAddrPort(p.LocalAddr().String()), p.Close
			go func() {
				defer close(done)
				buf := make([]byte, 2048)
				for {
					_, from, err := p.ReadFrom(buf)
					if err != nil {
						return
					}
					p.WriteTo([]byte(fmt.Sprintf("%s %s", name, host(from))), from)
				}
			}()
		}
		return nil
	})
	ns.t.Cleanup(func() {
		s.Close()
		<-done
	})
	return s
}

// Close ends the server.
func (s *Server) Close() { s.close() }

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// Ask connects from the namespace and returns what the server said.
func (ns *NS) Ask(network, addr string) (answer string, err error) {
	return ns.AskWithin(network, addr, 3*time.Second)
}

// AskWithin is Ask with a bound of its own.
func (ns *NS) AskWithin(network, addr string, limit time.Duration) (answer string, err error) {
	err = ns.Do(func() error {
		c, err := net.DialTimeout(network, addr, limit)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		if strings.HasPrefix(network, "udp") {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			buf := make([]byte, 2048)
			n, err := c.Read(buf)
			answer = string(buf[:n])
			return err
		}
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}

// Want asks and compares; want is "NAME CLIENT-ADDRESS", or "NAME" for any client.
func (ns *NS) Want(network, addr, want string) {
	ns.t.Helper()
	got, err := ns.Ask(network, addr)
	if err != nil {
		ns.t.Errorf("%s → %s/%s: %v, want %q", ns.name, addr, network, err, want)
		return
	}
	if got != want && strings.Fields(got)[0] != want {
		ns.t.Errorf("%s → %s/%s: got %q, want %q", ns.name, addr, network, got, want)
	}
}

// WantRefused asks and expects a refusal at once, not a timeout.
func (ns *NS) WantRefused(network, addr string) {
	ns.t.Helper()
	got, err := ns.Ask(network, addr)
	if !errors.Is(err, unix.ECONNREFUSED) {
		ns.t.Errorf("%s → %s/%s: got %q, %v; want connection refused", ns.name, addr, network, got, err)
	}
}
