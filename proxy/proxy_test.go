package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"proa.dev/internal/await"
	"proa.dev/kind"
	"proa.dev/network"
	"proa.dev/network/netlab"
	"proa.dev/network/nft"
	"proa.dev/proxy/rule"
	"proa.dev/view"
)

// world is a host with pods, a second node with one, and a client outside:
//
//	outside 203.0.113.5 ── host 203.0.113.1, 192.0.2.1 ── node2 192.0.2.2, pods 10.1.2.0/24
//	                        pods 10.1.0.0/24
type world struct {
	t                    testing.TB
	host, outside, node2 *netlab.NS
	net                  *network.Network
	kernel               *Kernel
	view                 *view.View
	revision             int64
	proxy                *Proxy
	stop                 func()
}

func newWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{t: t, host: netlab.New(t, "host"), outside: netlab.New(t, "outside"), node2: netlab.New(t, "node2")}
	netlab.Wire(t, w.host, "up0", "203.0.113.1/24", w.outside, "eth0", "203.0.113.5/24", "")
	netlab.Wire(t, w.host, "lan0", "192.0.2.1/24", w.node2, "eth0", "192.0.2.2/24", "192.0.2.1")
	cluster := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	services := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	n, err := network.New(network.Config{ClusterName: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
		ClusterCIDRs: cluster, ServiceCIDRs: services, StateDir: t.TempDir(), HostNetns: w.host.Path()})
	if err != nil {
		t.Fatal(err)
	}
	w.net = n
	t.Cleanup(func() { n.Close() })
	if err := n.Up(context.Background()); err != nil {
		t.Fatal(err)
	}
	// External addresses are rejected on their way on; there must be one.
	if err := w.host.Handle().RouteAdd(&netlink.Route{Gw: net.ParseIP("203.0.113.5")}); err != nil {
		t.Fatal(err)
	}
	// The other node's pods, played by node2 itself.
	h2 := w.node2.Handle()
	lo, _ := h2.LinkByName("lo")
	addr, _ := netlink.ParseAddr("10.1.2.9/32")
	if err := h2.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	_, remote, _ := net.ParseCIDR("10.1.2.0/24")
	if err := w.host.Handle().RouteAdd(&netlink.Route{Dst: remote, Gw: net.ParseIP("192.0.2.2")}); err != nil {
		t.Fatal(err)
	}
	_, far, _ := net.ParseCIDR("198.51.100.0/24") // addresses that lead to the host from outside
	eth, _ := w.outside.Handle().LinkByName("eth0")
	for _, dst := range []*net.IPNet{far, {IP: net.IP{10, 96, 0, 0}, Mask: net.CIDRMask(16, 32)}} {
		if err := w.outside.Handle().RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst, Gw: net.ParseIP("203.0.113.1")}); err != nil {
			t.Fatal(err)
		}
	}
	w.host.Must(func() (err error) {
		w.kernel, err = OpenKernel(KernelConfig{Table: network.ServiceTable(name), PodLinks: n.LinkPrefix(), PodCIDRs: cluster, ServiceCIDRs: services})
		return err
	})
	t.Cleanup(func() { w.kernel.Close() })

	w.view = view.New(kind.NewTable(kind.Service, kind.EndpointSlice, kind.Node), 0)
	w.apply(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}})
	return w
}

func kindOf(o kind.Object) *kind.Kind {
	switch o.(type) {
	case *corev1.Service:
		return kind.Service
	case *discoveryv1.EndpointSlice:
		return kind.EndpointSlice
	}
	return kind.Node
}

func (w *world) apply(objects ...kind.Object) {
	for _, o := range objects {
		w.revision++
		w.view.Apply(view.Change{Kind: kindOf(o), Revision: w.revision, New: o})
	}
}

func (w *world) remove(objects ...kind.Object) {
	for _, o := range objects {
		w.revision++
		w.view.Apply(view.Change{Kind: kindOf(o), Revision: w.revision, Last: o})
	}
}

func (w *world) start() {
	w.t.Helper()
	p, err := New(Config{NodeName: "here", View: w.view, Kernel: w.kernel, VerifyEvery: 20 * time.Millisecond,
		Listen: func(port uint16) (l net.Listener, err error) {
			w.host.Must(func() error { l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port)); return nil })
			return l, err
		}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(w.stop)
	w.live()
}

// live waits until the kernel has everything.
func (w *world) live() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.proxy.WaitRevision(ctx, w.revision); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pod(name string) (*netlab.NS, string) {
	w.t.Helper()
	ns := netlab.New(w.t, name)
	ips, err := w.net.Setup(context.Background(), name, ns.Path(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return ns, ips[0]
}

func service(name, clusterIP string, edit func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.ServiceSpec{
		ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, Ports: []corev1.ServicePort{{Port: 80}, {Name: "udp", Port: 53, Protocol: corev1.ProtocolUDP}}}}
	if edit != nil {
		edit(s)
	}
	return s
}

// endpoints of a service: "IP" here, "IP@node" elsewhere, "IP!" terminating.
func endpoints(service string, port int32, ips ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}, {Name: ptr("udp"), Port: &port, Protocol: ptr(corev1.ProtocolUDP)}}}
	for _, ip := range ips {
		e := discoveryv1.Endpoint{NodeName: ptr("here")}
		if bare, ok := strings.CutSuffix(ip, "!"); ok {
			ip = bare
			e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
		}
		if bare, node, ok := strings.Cut(ip, "@"); ok {
			ip, e.NodeName = bare, &node
		}
		e.Addresses = []string{ip}
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", UID: types.UID("uid-" + ip)}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func ptr[T any](v T) *T { return &v }

func TestServices(t *testing.T) {
	w := newWorld(t, "services")
	a, aIP := w.pod("a")
	b, bIP := w.pod("b")
	c, cIP := w.pod("c")
	for _, p := range []struct {
		name string
		ns   *netlab.NS
	}{{"b", b}, {"c", c}} {
		p.ns.Serve(p.name, "tcp4", "0.0.0.0:8080")
		p.ns.Serve(p.name, "udp4", "0.0.0.0:8080")
	}
	w.node2.Serve("remote", "tcp4", "10.1.2.9:8080")
	w.node2.Serve("remote", "udp4", "10.1.2.9:8080")
	w.host.Serve("api", "tcp4", "192.0.2.1:6443")

	external := func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalIPs = []string{"198.51.100.7"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	}
	w.apply(
		service("near", "10.96.0.2", nil), endpoints("near", 8080, bIP),
		service("far", "10.96.0.3", func(s *corev1.Service) {
			external(s)
			s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 81, 30081
		}), endpoints("far", 8080, "10.1.2.9@node2"),
		service("web", "10.96.0.4", func(s *corev1.Service) {
			external(s)
			s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30053
		}), endpoints("web", 8080, bIP),
		service("local", "10.96.0.5", func(s *corev1.Service) {
			external(s)
			s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 82, 30082
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.HealthCheckNodePort = 32000
		}), endpoints("local", 8080, bIP, "10.1.2.9@node2"),
		service("elsewhere", "10.96.0.6", func(s *corev1.Service) {
			external(s)
			s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 83, 30083
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
			s.Spec.HealthCheckNodePort = 32001
		}), endpoints("elsewhere", 8080, "10.1.2.9@node2"),
		service("empty", "10.96.0.7", func(s *corev1.Service) {
			external(s)
			s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 84, 30084
			s.Spec.Ports[1].Port = 54
		}),
		service("api", "10.96.0.1", func(s *corev1.Service) { s.Spec.Ports = []corev1.ServicePort{{Port: 443}} }), endpoints("api", 6443, "192.0.2.1"),
		service("ranges", "10.96.0.8", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.Ports = []corev1.ServicePort{{Port: 85}, {Name: "udp", Port: 85, Protocol: corev1.ProtocolUDP}}
			s.Spec.LoadBalancerSourceRanges = []string{"198.18.0.0/15", "10.1.0.0/24"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		}), endpoints("ranges", 8080, bIP),
	)
	w.start()

	t.Run("cluster address", func(t *testing.T) {
		a.Want("tcp", "10.96.0.2:80", "b "+aIP)
		a.Want("udp", "10.96.0.2:53", "b "+aIP)
		b.Want("tcp", "10.96.0.2:80", "b 10.1.0.1") // itself
		w.host.Want("tcp", "10.96.0.2:80", "b 10.1.0.1")
		w.host.Want("udp", "10.96.0.2:53", "b 10.1.0.1")
		a.Want("tcp", "10.96.0.3:81", "remote "+aIP)
		w.host.Want("tcp", "10.96.0.3:81", "remote 10.1.0.1")
		w.outside.Want("tcp", "10.96.0.2:80", "b 203.0.113.5")
		w.outside.Want("tcp", "10.96.0.3:81", "remote 192.0.2.1")
	})
	t.Run("endpoint on the host", func(t *testing.T) {
		a.Want("tcp", "10.96.0.1:443", "api "+aIP)
		w.host.Want("tcp", "10.96.0.1:443", "api")
	})
	t.Run("node port", func(t *testing.T) {
		w.outside.Want("tcp", "203.0.113.1:30080", "b 203.0.113.5") // no masquerade needed
		w.outside.Want("udp", "203.0.113.1:30053", "b 203.0.113.5")
		w.outside.Want("tcp", "203.0.113.1:30081", "remote 192.0.2.1")
		w.host.Want("tcp", "127.0.0.1:30080", "b 10.1.0.1")
		w.host.Want("tcp", "192.0.2.1:30080", "b 192.0.2.1")
		a.Want("tcp", "192.0.2.1:30080", "b "+aIP)
		b.Want("tcp", "192.0.2.1:30080", "b 10.1.0.1")
	})
	t.Run("load balancer and external address", func(t *testing.T) {
		w.outside.Want("tcp", "203.0.113.1:80", "b 203.0.113.5")
		w.outside.Want("tcp", "198.51.100.7:80", "b 203.0.113.5")
		w.outside.Want("tcp", "198.51.100.7:81", "remote 192.0.2.1")
		w.host.Want("tcp", "203.0.113.1:80", "b")
		a.Want("tcp", "203.0.113.1:80", "b "+aIP)
	})
	t.Run("policy local", func(t *testing.T) {
		for range 8 {
			w.outside.Want("tcp", "203.0.113.1:82", "b 203.0.113.5")
			w.outside.Want("tcp", "203.0.113.1:30082", "b 203.0.113.5")
		}
		seen := map[string]bool{}
		for range 40 {
			got, err := a.Ask("tcp", "203.0.113.1:82")
			if err != nil {
				t.Fatal(err)
			}
			seen[got] = true
		}
		if !seen["b "+aIP] || !seen["remote "+aIP] {
			t.Errorf("a pod reaches %v through policy Local, want all endpoints", seen)
		}
		if got, err := w.outside.AskWithin("tcp", "203.0.113.1:83", 200*time.Millisecond); err == nil || strings.Contains(err.Error(), "refused") {
			t.Errorf("no local endpoint: got %q %v, want silence", got, err)
		}
		if got, err := a.AskWithin("tcp", "10.96.0.6:83", 200*time.Millisecond); err == nil || strings.Contains(err.Error(), "refused") {
			t.Errorf("no local endpoint inside: got %q %v, want silence", got, err)
		}
		a.Want("tcp", "203.0.113.1:83", "remote "+aIP)
	})
	t.Run("no endpoints", func(t *testing.T) {
		a.WantRefused("tcp", "10.96.0.7:84")
		a.WantRefused("udp", "10.96.0.7:54")
		w.host.WantRefused("tcp", "10.96.0.7:84")
		w.outside.WantRefused("tcp", "203.0.113.1:84")
		w.outside.WantRefused("tcp", "203.0.113.1:30084")
		w.outside.WantRefused("tcp", "198.51.100.7:84")
		a.WantRefused("tcp", "10.96.0.2:4444")
		a.WantRefused("tcp", "10.96.99.99:80")
		w.host.WantRefused("tcp", "10.96.99.99:80")
	})
	t.Run("source ranges", func(t *testing.T) {
		if got, err := w.outside.AskWithin("tcp", "203.0.113.1:85", 200*time.Millisecond); err == nil {
			t.Errorf("a source outside of the ranges got %q", got)
		}
		a.Want("tcp", "203.0.113.1:85", "b "+aIP)
		a.Want("udp", "203.0.113.1:85", "b "+aIP)
	})
	t.Run("health check port", func(t *testing.T) {
		for port, want := range map[int]int{32000: 200, 32001: 503} {
			w.outside.Must(func() error {
				conn, err := net.Dial("tcp4", fmt.Sprintf("203.0.113.1:%d", port))
				if err != nil {
					return err
				}
				client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
				r, err := client.Get("http://x/healthz")
				if err != nil {
					return err
				}
				defer r.Body.Close()
				if r.StatusCode != want {
					t.Errorf("health check port %d says %d, want %d", port, r.StatusCode, want)
				}
				return nil
			})
		}
	})
	t.Run("spread", func(t *testing.T) {
		w.apply(endpoints("near", 8080, bIP, cIP, "10.1.2.9@node2"))
		w.live()
		count := map[string]int{}
		for range 300 {
			got, err := a.Ask("tcp", "10.96.0.2:80")
			if err != nil {
				t.Fatal(err)
			}
			count[strings.Fields(got)[0]]++
		}
		for _, name := range []string{"b", "c", "remote"} {
			if count[name] < 60 || count[name] > 140 { // 100 ± 5 standard deviations
				t.Errorf("300 connections went to %v", count)
			}
		}
	})
	t.Run("rules are as compiled", func(t *testing.T) {
		if err := w.kernel.VerifyRules(w.proxy.stateRules()); err != nil {
			t.Error(err)
		}
		if err := w.kernel.VerifyFrame(); err != nil {
			t.Error(err)
		}
	})
	t.Run("everything goes", func(t *testing.T) {
		w.remove(service("near", "10.96.0.2", nil), endpoints("near", 8080))
		w.live()
		a.WantRefused("tcp", "10.96.0.2:80")
	})
}

// stateRules is for tests: the compiled rules while Run is idle.
func (p *Proxy) stateRules() rule.RuleSet { return p.state.Rules() }

func TestAffinity(t *testing.T) {
	w := newWorld(t, "affinity")
	a, _ := w.pod("a")
	d, _ := w.pod("d")
	var ips []string
	byName := map[string]string{}
	for _, name := range []string{"b0", "b1", "b2", "b3"} {
		ns, ip := w.pod(name)
		ns.Serve(name, "tcp4", ":8080")
		ips = append(ips, ip)
		byName[name] = ip
	}
	sticky := service("s", "10.96.0.2", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30080
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(2))}}
	})
	w.apply(sticky, endpoints("s", 8080, ips...))
	w.start()

	first, err := a.Ask("tcp", "10.96.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 { // each renews it
		a.Want("tcp", "10.96.0.2:80", first)
	}
	// Another client has its own; so has the node port, through the same group.
	a.Want("tcp", "192.0.2.1:30080", first)
	others := map[string]bool{}
	for range 30 {
		got, err := d.Ask("tcp", "10.96.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		others[got] = true
	}
	if len(others) != 1 {
		t.Errorf("client d went to %v", others)
	}
	// The endpoint goes: the client moves at once, and stays with its new one.
	gone := byName[strings.Fields(first)[0]]
	var rest []string
	for _, ip := range ips {
		if ip != gone {
			rest = append(rest, ip)
		}
	}
	w.apply(endpoints("s", 8080, rest...))
	w.live()
	second, err := a.Ask("tcp", "10.96.0.2:80")
	if err != nil || second == first {
		t.Fatalf("after its endpoint went: %q, %v", second, err)
	}
	for range 20 {
		a.Want("tcp", "10.96.0.2:80", second)
	}
	// Without connections the kernel forgets the client, and the choice is free.
	await.True(t, 10*time.Second, "affinity ends", func() bool {
		known, err := w.kernel.conn.Elements(w.kernel.cfg.Table, "sticky4")
		return err == nil && len(known) == 0
	})
	await.True(t, 10*time.Second, "another endpoint is chosen", func() bool {
		w.host.Must(func() error { return w.kernel.conn.Apply(forgetAll(w)) })
		got, err := a.Ask("tcp", "10.96.0.2:80")
		return err == nil && got != second
	})
}

func forgetAll(w *world) *nft.Batch {
	var b nft.Batch
	b.Flush(w.kernel.cfg.Table, "sticky4")
	return &b
}

func TestRemovalIsAcknowledged(t *testing.T) {
	w := newWorld(t, "ack")
	a, _ := w.pod("a")
	b, bIP := w.pod("b")
	c, cIP := w.pod("c")
	b.Serve("b", "tcp4", ":8080")
	c.Serve("c", "tcp4", ":8080")
	b.Serve("b", "udp4", "0.0.0.0:8080")
	c.Serve("c", "udp4", "0.0.0.0:8080")
	w.apply(service("s", "10.96.0.2", nil), endpoints("s", 8080, bIP, cIP))
	w.start()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	uid := types.UID("uid-" + bIP)
	if err := w.proxy.WaitLive(ctx, uid); err != nil {
		t.Fatal(err)
	}
	// In use: the wait is bounded by its context.
	short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	if err := w.proxy.WaitRemoved(short, uid); err == nil || !strings.Contains(err.Error(), "1 services use it") {
		t.Errorf("pod in use: %v", err)
	}
	stop()
	// A pod that serves nothing is removed at once, also when the view moved on with
	// things that are not ours.
	w.revision++
	w.view.Advance(w.revision)
	if err := w.proxy.WaitRemoved(ctx, "uid-unknown"); err != nil {
		t.Error(err)
	}

	// One UDP client keeps its socket; it must follow.
	var udp net.Conn
	a.Must(func() (err error) { udp, err = net.Dial("udp4", "10.96.0.2:53"); return err })
	defer udp.Close()
	ask := func() string {
		buf := make([]byte, 100)
		udp.SetDeadline(time.Now().Add(3 * time.Second))
		udp.Write([]byte("?"))
		n, err := udp.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(buf[:n]))[0]
	}
	ask()

	// Rounds of removal under load: after the acknowledgement no connection reaches
	// the pod.
	var worst, sum time.Duration
	const rounds = 50
	for range rounds {
		w.apply(endpoints("s", 8080, bIP, cIP))
		if err := w.proxy.WaitLive(ctx, uid); err != nil {
			t.Fatal(err)
		}
		w.apply(endpoints("s", 8080, bIP+"!", cIP))
		t0 := time.Now()
		if err := w.proxy.WaitRemoved(ctx, uid); err != nil {
			t.Fatal(err)
		}
		took := time.Since(t0)
		worst, sum = max(worst, took), sum+took
		for range 6 {
			a.Want("tcp", "10.96.0.2:80", "c")
		}
		if got := ask(); got != "c" {
			t.Fatalf("UDP client still reaches %s", got)
		}
	}
	t.Logf("removal acknowledged after %s on average, %s at worst", sum/rounds, worst)

	// The last resort does not hold anyone up.
	w.apply(endpoints("s", 8080, bIP+"!"))
	if err := w.proxy.WaitRemoved(ctx, uid); err != nil {
		t.Error(err)
	}
	a.Want("tcp", "10.96.0.2:80", "b")
}

func TestRepair(t *testing.T) {
	w := newWorld(t, "repair")
	a, aIP := w.pod("a")
	b, bIP := w.pod("b")
	b.Serve("b", "tcp4", ":8080")
	w.apply(service("s", "10.96.0.2", nil), endpoints("s", 8080, bIP))
	w.start()
	a.Want("tcp", "10.96.0.2:80", "b "+aIP)

	// Someone removes the table.
	var other *Kernel
	w.host.Must(func() (err error) { other, err = OpenKernel(w.kernel.cfg); return err })
	defer other.Close()
	if err := other.Delete(); err != nil {
		t.Fatal(err)
	}
	await.True(t, 10*time.Second, "the table comes back", func() bool {
		got, err := a.AskWithin("tcp", "10.96.0.2:80", 100*time.Millisecond)
		return err == nil && got == "b "+aIP
	})
	// Someone removes it right before a change.
	if err := other.Delete(); err != nil {
		t.Fatal(err)
	}
	w.apply(service("s2", "10.96.0.3", nil), endpoints("s2", 8080, bIP))
	w.live()
	a.Want("tcp", "10.96.0.2:80", "b")
	a.Want("tcp", "10.96.0.3:80", "b")

	// A restart takes over without a gap: connections succeed all the time.
	stopAsking := make(chan struct{})
	var failed, asked int
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stopAsking:
				return
			default:
			}
			asked++
			if _, err := a.Ask("tcp", "10.96.0.2:80"); err != nil {
				failed++
			}
		}
	})
	for range 5 {
		w.stop()
		w.start()
	}
	close(stopAsking)
	wg.Wait()
	if failed > 0 || asked == 0 {
		t.Errorf("%d of %d connections failed during restarts", failed, asked)
	}
}

// IPv6 goes through rules of its own.
func TestIPv6(t *testing.T) {
	host := netlab.New(t, "host")
	outside := netlab.New(t, "outside")
	netlab.Wire(t, host, "up0", "192.0.2.1/24", outside, "eth0", "192.0.2.9/24", "")
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/112")}
	services := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	n, err := network.New(network.Config{ClusterName: "six", PodCIDRs: cidrs, ServiceCIDRs: services, StateDir: t.TempDir(), HostNetns: host.Path()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	w := &world{t: t, host: host, net: n}
	a, _ := w.pod("a")
	b, _ := w.pod("b")
	c, _ := w.pod("c")
	aIP, bIP, cIP := n.IPs("a")[1], n.IPs("b")[1], n.IPs("c")[1]
	b.Serve("b", "tcp6", "[::]:8080")
	c.Serve("c", "tcp6", "[::]:8080")
	host.Must(func() (err error) {
		w.kernel, err = OpenKernel(KernelConfig{Table: network.ServiceTable("six"), PodLinks: n.LinkPrefix(), PodCIDRs: cidrs, ServiceCIDRs: services})
		return err
	})
	t.Cleanup(func() { w.kernel.Close() })
	w.view = view.New(kind.NewTable(kind.Service, kind.EndpointSlice, kind.Node), 0)
	six := func(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
		s.AddressType = discoveryv1.AddressTypeIPv6
		return s
	}
	w.apply(service("s", "fd00:96::2", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30080
	}), six(endpoints("s", 8080, bIP)),
		service("sticky", "fd00:96::3", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }), six(endpoints("sticky", 8080, bIP, cIP)),
		service("empty", "fd00:96::4", nil))
	w.start()
	a.Want("tcp", "[fd00:96::2]:80", "b "+aIP)
	b.Want("tcp", "[fd00:96::2]:80", "b fd00:1::1")
	host.Want("tcp", "[fd00:96::2]:80", "b fd00:1::1")
	a.Want("tcp", "[fd00:1::1]:30080", "b "+aIP)
	host.Want("tcp", "[fd00:1::1]:30080", "b")
	first, err := a.Ask("tcp", "[fd00:96::3]:80")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		a.Want("tcp", "[fd00:96::3]:80", first)
	}
	a.WantRefused("tcp", "[fd00:96::4]:80")
	a.WantRefused("tcp", "[fd00:96::77]:80")
	host.WantRefused("tcp", "[fd00:96::4]:80")
}

// More endpoints than the usual chains, and back.
func TestManyEndpoints(t *testing.T) {
	w := newWorld(t, "many")
	a, _ := w.pod("a")
	b, bIP := w.pod("b")
	b.Serve("b", "tcp4", ":8080")
	h := b.Handle()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	host := w.host.Handle()
	route, err := host.RouteGet(net.ParseIP(bIP))
	if err != nil {
		t.Fatal(err)
	}
	var ips []string
	for i := range 40 {
		ip := fmt.Sprintf("10.1.0.%d", 100+i)
		addr, _ := netlink.ParseAddr(ip + "/32")
		if err := h.AddrAdd(eth, addr); err != nil {
			t.Fatal(err)
		}
		if err := host.RouteAdd(&netlink.Route{LinkIndex: route[0].LinkIndex, Dst: addr.IPNet, Scope: netlink.SCOPE_LINK}); err != nil {
			t.Fatal(err)
		}
		ips = append(ips, ip)
	}
	w.apply(service("s", "10.96.0.2", nil), endpoints("s", 8080, ips[:1]...))
	w.start()
	for _, n := range []int{17, 40, 39, 3, 25, 16, 1, 0, 18} {
		w.apply(endpoints("s", 8080, ips[:n]...))
		w.live()
		if n == 0 {
			a.WantRefused("tcp", "10.96.0.2:80")
			continue
		}
		for range 10 {
			a.Want("tcp", "10.96.0.2:80", "b")
		}
		if err := w.kernel.VerifyFrame(); err != nil {
			t.Errorf("with %d endpoints: %v", n, err)
		}
	}
	for n := 17; n <= 40; n++ {
		w.apply(endpoints("s", 8080, ips[:n]...))
		w.live()
		if n := len(w.kernel.uses); n > usualCounts+idleCounts+2 {
			t.Errorf("%d pick chains, want the usual %d, not more than %d idle ones, and two", n, usualCounts, idleCounts)
		}
	}
	a.Want("tcp", "10.96.0.2:80", "b")
	if err := w.kernel.VerifyFrame(); err != nil {
		t.Error(err)
	}
}

// BenchmarkEndpointLive10k measures the time from a change in the view until the
// kernel sends connections to the new endpoint, with 10,000 services present.
func BenchmarkEndpointLive10k(b *testing.B) {
	w := newWorld(b, "bench")
	for i := range 10000 {
		name := fmt.Sprintf("s%d", i)
		w.apply(service(name, fmt.Sprintf("10.96.%d.%d", 1+i/250, i%250), nil),
			endpoints(name, 8080, fmt.Sprintf("10.1.%d.%d", 3+i/250, i%250)))
	}
	t0 := time.Now()
	w.start()
	fill := time.Since(t0)
	ctx := context.Background()
	var worst time.Duration
	i := 0
	for b.Loop() {
		i++
		t0 := time.Now()
		w.apply(endpoints("s77", 8080, "10.1.3.77", fmt.Sprintf("10.1.200.%d", i%250)))
		if err := w.proxy.WaitRevision(ctx, w.revision); err != nil {
			b.Fatal(err)
		}
		worst = max(worst, time.Since(t0))
	}
	b.ReportMetric(fill.Seconds()*1000, "ms/first-fill")
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms/change")
	b.ReportMetric(worst.Seconds()*1000, "ms/worst")
}
