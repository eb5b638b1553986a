package proxy

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/network/netlab"
	"proa.dev/proxy/rule"
)

// knock opens a TCP connection and resets it at once, so that its port is free
// again. It must be called on a thread of the client's namespace.
func knock(to netip.AddrPort, limit time.Duration) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	deadline := time.Now().Add(limit)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != unix.EINPROGRESS {
		return err
	}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n < 1 {
			continue
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code == 0 {
			return err
		}
		return unix.Errno(code)
	}
}

// While endpoints come and go as fast as the kernel takes it, every new connection
// finds one: a packet whose way through the rules overlaps a transaction meets some
// maps as they were and some as they are, and must still not be refused.
func TestNoConnectionIsLostToAChange(t *testing.T) {
	w := newWorld(t, "torn")
	client, _ := w.pod("client")
	var ips []string
	for i := range 6 {
		ns, ip := w.pod(fmt.Sprint("server", i))
		ns.Serve("s", "tcp4", ":8080")
		ips = append(ips, ip)
	}
	make := func(name, ip string, port int32, edit func(*corev1.Service)) *corev1.Service {
		return service(name, ip, func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeNodePort
			s.Spec.Ports = s.Spec.Ports[:1]
			s.Spec.Ports[0].NodePort = port
			if edit != nil {
				edit(s)
			}
		})
	}
	services := []*corev1.Service{
		make("plain", "10.96.0.2", 30080, nil),
		make("sticky", "10.96.0.3", 30081, func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }),
		make("local", "10.96.0.4", 30082, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }),
	}
	state := rule.NewState(rule.Node{Name: "here"})
	set := func(ips []string) rule.Delta {
		d := rule.Delta{}
		for _, s := range services {
			d.Then(state.Set(types.NamespacedName{Namespace: "ns", Name: s.Name}, rule.Service{Service: s, Slices: []*discoveryv1.EndpointSlice{endpoints(s.Name, 8080, ips...)}}))
		}
		return d
	}
	set(ips)
	if err := w.kernel.Replace(state.Rules()); err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	var wg sync.WaitGroup
	var changes, whole int
	wg.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for ctx.Err() == nil {
			some := slices.Clone(ips)
			r.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
			d := set(some[:1+r.IntN(len(some))])
			var err error
			if changes%100 == 99 { // as at a restart of proa
				whole++
				err = w.kernel.Replace(state.Rules())
			} else {
				err = w.kernel.Apply(d)
			}
			if err != nil {
				t.Error(err)
				return
			}
			changes++
		}
	})
	var mu sync.Mutex
	asked, failed := 0, map[string]int{}
	for _, c := range []struct {
		name string
		ns   *netlab.NS
		to   []string
	}{
		{"host", w.host, []string{"10.96.0.2:80", "192.0.2.1:30080", "10.96.0.3:80", "192.0.2.1:30082"}},
		{"pod", client, []string{"10.96.0.2:80", "192.0.2.1:30080", "10.96.0.3:80", "10.96.0.4:80"}},
		{"outside", w.outside, []string{"203.0.113.1:30080", "203.0.113.1:30081", "203.0.113.1:30082"}},
	} {
		wg.Go(func() {
			c.ns.Must(func() error {
				for n := 0; ctx.Err() == nil; n++ {
					to := c.to[n%len(c.to)]
					err := knock(netip.MustParseAddrPort(to), 20*time.Second)
					mu.Lock()
					asked++
					if err != nil {
						failed[fmt.Sprintf("%s to %s: %v", c.name, to, err)]++
					}
					mu.Unlock()
				}
				return nil
			})
		})
	}
	wg.Wait()
	t.Logf("%d connections during %d changes, %d of them of the whole table", asked, changes, whole)
	for what, n := range failed {
		t.Errorf("%d × %s", n, what)
	}
	if changes < 50 || asked < 500 {
		t.Error("too few to say anything")
	}
}

// A client that comes again from the port of a connection that its server has just
// reset is led to where the rules lead now, not to the endpoint of before, which
// may be gone: a resetting server is often one that ends.
func TestResetConnectionIsForgotten(t *testing.T) {
	w := newWorld(t, "reset")
	client, _ := w.pod("client")
	old, oldIP := w.pod("old")
	next, nextIP := w.pod("next")
	next.Serve("next", "tcp4", ":8080")
	svc := service("web", "10.96.0.2", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports = s.Spec.Ports[:1]
		s.Spec.Ports[0].NodePort = 30080
	})
	state := rule.NewState(rule.Node{Name: "here"})
	set := func(ip string) rule.Delta {
		return state.Set(types.NamespacedName{Namespace: "ns", Name: "web"}, rule.Service{Service: svc, Slices: []*discoveryv1.EndpointSlice{endpoints("web", 8080, ip)}})
	}
	set(oldIP)
	if err := w.kernel.Replace(state.Rules()); err != nil {
		t.Fatal(err)
	}
	connect := func(ns *netlab.NS, from int, to string) (c net.Conn) {
		ns.Must(func() (err error) {
			d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{Port: from}}
			if c, err = d.Dial("tcp4", to); err != nil {
				err = fmt.Errorf("from port %d: %w", from, err)
			}
			return err
		})
		return c
	}
	for i, c := range []struct {
		ns *netlab.NS
		to string
	}{{w.host, "10.96.0.2:80"}, {w.host, "192.0.2.1:30080"}, {client, "10.96.0.2:80"}, {client, "192.0.2.1:30080"}, {w.outside, "203.0.113.1:30080"}} {
		if err := w.kernel.Apply(set(oldIP)); err != nil {
			t.Fatal(err)
		}
		var l net.Listener
		old.Must(func() (err error) { l, err = net.Listen("tcp4", ":8080"); return err })
		first := connect(c.ns, 20000+i, c.to)
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.Write([]byte("some")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(first, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		server.(*net.TCPConn).SetLinger(0)
		server.Close() // resets
		if _, err := first.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Fatalf("the server's reset did not arrive: %v", err)
		}
		first.Close()
		if err := w.kernel.Apply(set(nextIP)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		connect(c.ns, 20000+i, c.to).Close()
	}
}
