package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// fakeNetwork leads upstream addresses, which have port 53, to servers of the
// test; listening is real, on loopback.
type fakeNetwork struct {
	systemNetwork
	mu    sync.Mutex
	to    map[netip.AddrPort]netip.AddrPort
	dials []string
}

func (f *fakeNetwork) Dial(ctx context.Context, network string, a netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	f.dials = append(f.dials, network+" "+a.Addr().String())
	to, ok := f.to[a]
	f.mu.Unlock()
	if !ok {
		return nil, errors.New("no such server in this test")
	}
	return f.systemNetwork.Dial(ctx, network, to)
}

func (f *fakeNetwork) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dials)
}

type fakeFiles struct {
	mu    sync.Mutex
	text  string
	stamp int
}

func (f *fakeFiles) set(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text = text
	f.stamp++
}

func (f *fakeFiles) ReadFile(string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []byte(f.text), nil
}

func (f *fakeFiles) Stamp(string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stamp == 0 {
		return "", errors.New("no such file")
	}
	return fmt.Sprint(f.stamp), nil
}

type lab struct {
	t        testing.TB
	view     *view.View
	revision int64
	files    *fakeFiles
	network  *fakeNetwork
	server   *Server
	addr     string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, view: view.New(kind.NewTable(kind.Namespace, kind.Service, kind.EndpointSlice), 16),
		files: &fakeFiles{}, network: &fakeNetwork{to: map[netip.AddrPort]netip.AddrPort{}}}
	s, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, View: l.view, Files: l.files, Network: l.network,
		Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	l.server = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Listening():
	case <-time.After(5 * time.Second):
		t.Fatal("does not listen")
	}
	l.addr = s.Addrs()[0].String()
	return l
}

func (l *lab) put(objects ...kind.Object) {
	for _, o := range objects {
		l.revision++
		k := kind.Service
		switch o.(type) {
		case *corev1.Namespace:
			k = kind.Namespace
		case *discoveryv1.EndpointSlice:
			k = kind.EndpointSlice
		}
		l.view.Apply(view.Change{Kind: k, Revision: l.revision, New: o})
	}
}

func (l *lab) ask(network, name string, typ uint16, edit ...func(*dns.Msg)) *dns.Msg {
	l.t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), typ)
	for _, e := range edit {
		e(m)
	}
	c := dns.Client{Net: network, Timeout: 8 * time.Second, UDPSize: dns.MaxMsgSize}
	r, _, err := c.Exchange(m, l.addr)
	if err != nil {
		l.t.Fatalf("ask %s for %s: %v", network, name, err)
	}
	return r
}

// summary is such as "NOERROR 10.96.0.1 10.96.0.2".
func summary(r *dns.Msg) string {
	parts := []string{dns.RcodeToString[r.Rcode]}
	for _, rr := range r.Answer {
		parts = append(parts, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(parts, " ")
}

func (l *lab) want(name string, typ uint16, want string) {
	l.t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got := summary(l.ask(network, name, typ)); got != want {
			l.t.Errorf("%s %s over %s: %s, want %s", name, dns.TypeToString[typ], network, got, want)
		}
	}
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
}

// resolver starts an upstream server; answer may be nil for silence.
func (l *lab) resolver(at string, answer func(*dns.Msg, string) *dns.Msg) {
	l.t.Helper()
	p, tl, err := l.server.open(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		l.t.Fatal(err)
	}
	var wg sync.WaitGroup
	l.t.Cleanup(wg.Wait) // behind the shutdowns, which run first
	for _, s := range []*dns.Server{{PacketConn: p}, {Listener: tl}} {
		network := "udp"
		if s.Listener != nil {
			network = "tcp"
		}
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
			if r := answer(m, network); r != nil {
				w.WriteMsg(r)
			}
		})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { s.ActivateAndServe() })
		<-started
		l.t.Cleanup(func() { s.Shutdown() })
	}
	l.network.mu.Lock()
	l.network.to[netip.AddrPortFrom(netip.MustParseAddr(at), 53)] = netip.MustParseAddrPort(p.LocalAddr().String())
	l.network.mu.Unlock()
}

// relook makes the server read the resolver file with the next question, and
// adds addresses to its own.
func (l *lab) relook(own ...netip.AddrPort) {
	u := l.server.upstream
	u.mu.Lock()
	defer u.mu.Unlock()
	u.looked = time.Time{}
	u.self = append(u.self, own...)
}

func says(ip string, ttl uint32) func(*dns.Msg, string) *dns.Msg {
	return func(m *dns.Msg, _ string) *dns.Msg {
		r := new(dns.Msg).SetReply(m)
		r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.ParseIP(ip).To4()}}
		return r
	}
}

func TestFollowsTheView(t *testing.T) {
	l := newLab(t)
	l.want("web.ns.svc.cluster.local", dns.TypeA, "NXDOMAIN")
	l.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}, service("web", "10.96.0.7"))
	l.want("web.ns.svc.cluster.local", dns.TypeA, "NOERROR 10.96.0.7")
	l.want("WeB.ns.svc.cluster.local", dns.TypeAAAA, "NOERROR")
	l.want("7.0.96.10.in-addr.arpa", dns.TypePTR, "NOERROR web.ns.svc.cluster.local.")
	l.want("10-1-0-9.ns.pod.cluster.local", dns.TypeA, "NOERROR 10.1.0.9")
	l.put(service("web", "10.96.0.8"))
	l.want("web.ns.svc.cluster.local", dns.TypeA, "NOERROR 10.96.0.8")
	l.want("7.0.96.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN")
	// More changes than the view keeps.
	for i := range 100 {
		l.put(service(fmt.Sprint("s", i), fmt.Sprintf("10.96.1.%d", i)))
	}
	l.want("s0.ns.svc.cluster.local", dns.TypeA, "NOERROR 10.96.1.0")
	l.want("web.ns.svc.cluster.local", dns.TypeA, "NOERROR 10.96.0.8")
	l.revision++
	l.view.Apply(view.Change{Kind: kind.Service, Revision: l.revision, Last: service("web", "10.96.0.8")})
	l.want("web.ns.svc.cluster.local", dns.TypeA, "NXDOMAIN")

	r := l.ask("udp", "WEB2.ns.svc.Cluster.Local", dns.TypeA)
	if r.Question[0].Name != "WEB2.ns.svc.Cluster.Local." || !r.Authoritative || len(r.Ns) != 1 {
		t.Errorf("spelling or authority lost: %v", r)
	}
}

func TestLargeAnswers(t *testing.T) {
	l := newLab(t)
	svc := service("big", "None")
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "big-1", Labels: map[string]string{discoveryv1.LabelServiceName: "big"}}, AddressType: discoveryv1.AddressTypeIPv4}
	for i := range 200 {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.0.%d", i)}})
	}
	l.put(svc, slice)
	const name = "big.ns.svc.cluster.local"
	r := l.ask("udp", name, dns.TypeA)
	r.Compress = true // as it was sent
	if !r.Truncated || r.Len() > dns.MinMsgSize || r.IsEdns0() != nil {
		t.Errorf("plain UDP: truncated %v, %d bytes", r.Truncated, r.Len())
	}
	r = l.ask("udp", name, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(4096, false) })
	r.Compress = true
	if !r.Truncated || r.Len() > maxUDP || r.IsEdns0() == nil {
		t.Errorf("EDNS: truncated %v, %d bytes, opt %v", r.Truncated, r.Len(), r.IsEdns0())
	}
	r = l.ask("tcp", name, dns.TypeA)
	if r.Truncated || len(r.Answer) != 200 {
		t.Errorf("TCP: truncated %v, %d addresses", r.Truncated, len(r.Answer))
	}
	// The order changes, for clients that take the first.
	firsts := map[string]bool{}
	for range 20 {
		firsts[l.ask("tcp", name, dns.TypeA).Answer[0].String()] = true
	}
	if len(firsts) < 5 {
		t.Errorf("20 answers begin with %d different addresses", len(firsts))
	}
}

func TestRefuses(t *testing.T) {
	l := newLab(t)
	ask := func(from string, edit func(*dns.Msg)) string {
		m := new(dns.Msg).SetQuestion("x.cluster.local.", dns.TypeA)
		edit(m)
		r := l.server.reply(context.Background(), netip.MustParseAddr(from), m)
		if r == nil {
			return "silence"
		}
		return dns.RcodeToString[r.Rcode]
	}
	for _, c := range []struct {
		name, from, want string
		edit             func(*dns.Msg)
	}{
		{"stranger", "203.0.113.5", "REFUSED", func(m *dns.Msg) {}},
		{"pod", "10.1.2.3", "NXDOMAIN", func(m *dns.Msg) {}},
		{"answer", "10.1.2.3", "silence", func(m *dns.Msg) { m.Response = true }},
		{"update", "10.1.2.3", "NOTIMP", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }},
		{"no question", "10.1.2.3", "FORMERR", func(m *dns.Msg) { m.Question = nil }},
		{"chaos", "10.1.2.3", "REFUSED", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		{"EDNS version", "10.1.2.3", "BADVERS", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }},
	} {
		if got := ask(c.from, c.edit); got != c.want && !(c.want == "BADVERS" && got == "BADSIG") {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestForwards(t *testing.T) {
	l := newLab(t)
	l.resolver("192.0.2.53", says("198.51.100.1", 60))
	l.resolver("192.0.2.54", says("198.51.100.2", 60))
	l.files.set("# comment\nnameserver 192.0.2.53\noptions ndots:5\n")
	l.want("www.example.com", dns.TypeA, "NOERROR 198.51.100.1")
	if n := l.network.count(); n != 1 {
		t.Errorf("asked upstream %d times for one name; the second answer is remembered", n)
	}
	r := l.ask("udp", "WWW.Example.com", dns.TypeA)
	if r.Answer[0].Header().Name != "WWW.Example.com." || r.Authoritative || !r.RecursionAvailable {
		t.Errorf("answer %v", r)
	}
	// An external name is followed.
	l.put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "far"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example.com"}})
	l.want("far.ns.svc.cluster.local", dns.TypeA, "NOERROR www.example.com. 198.51.100.1")
	// The host moves to another network.
	l.files.set("nameserver 192.0.2.54\n")
	deadline := time.Now().Add(5 * time.Second)
	for {
		if got := summary(l.ask("udp", "www.example.com", dns.TypeA)); got == "NOERROR 198.51.100.2" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("still the old resolver: %s", got)
		}
	}
	// The cluster's own names never leave.
	before := l.network.count()
	l.want("nothing.ns.svc.cluster.local", dns.TypeA, "NXDOMAIN")
	l.want("1.0.96.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN")
	if n := l.network.count(); n != before {
		t.Errorf("own names were asked for upstream: %v", l.network.dials[before:])
	}
}

func TestSlowAndBrokenResolvers(t *testing.T) {
	l := newLab(t)
	l.resolver("192.0.2.1", func(m *dns.Msg, _ string) *dns.Msg { return nil })
	l.resolver("192.0.2.2", func(m *dns.Msg, _ string) *dns.Msg { return new(dns.Msg).SetRcode(m, dns.RcodeServerFailure) })
	l.resolver("192.0.2.3", says("198.51.100.3", 0))
	l.files.set("nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n")
	t0 := time.Now()
	l.want("a.example.com", dns.TypeA, "NOERROR 198.51.100.3")
	if took := time.Since(t0); took > 4*time.Second {
		t.Errorf("two questions past a silent and a broken resolver took %s", took)
	}
	// An answer that does not fit comes over TCP; one without EDNS is tried plain.
	l.resolver("192.0.2.4", func(m *dns.Msg, network string) *dns.Msg {
		switch {
		case network == "udp" && m.IsEdns0() != nil && strings.HasPrefix(m.Question[0].Name, "old."):
			return new(dns.Msg).SetRcode(m, dns.RcodeFormatError)
		case network == "udp" && strings.HasPrefix(m.Question[0].Name, "big."):
			r := new(dns.Msg).SetReply(m)
			r.Truncated = true
			return r
		}
		return says("198.51.100.4", 0)(m, network)
	})
	l.relook()
	l.files.set("nameserver 192.0.2.4\n")
	l.want("big.example.com", dns.TypeA, "NOERROR 198.51.100.4")
	l.want("old.example.com", dns.TypeA, "NOERROR 198.51.100.4")
	// Nobody there.
	l.relook()
	l.files.set("search example.com\n")
	l.want("b.example.com", dns.TypeA, "SERVFAIL")
}

func TestNoLoops(t *testing.T) {
	l := newLab(t)
	// The host's resolver asks us.
	l.resolver("127.0.0.53", func(m *dns.Msg, _ string) *dns.Msg {
		r, _, err := (&dns.Client{Timeout: 3 * time.Second}).Exchange(m, l.addr)
		if err != nil {
			return nil
		}
		return r
	})
	l.files.set("nameserver 127.0.0.53\n")
	t0 := time.Now()
	l.want("loop.example.com", dns.TypeA, "SERVFAIL")
	if took := time.Since(t0); took > 4*time.Second {
		t.Errorf("a loop took %s to notice", took)
	}
	if n := l.network.count(); n > 8 {
		t.Errorf("a loop led to %d questions", n)
	}
	// Our own address in the file is passed over.
	own := l.server.addrs[0].Addr().String()
	l.relook(netip.AddrPortFrom(l.server.addrs[0].Addr(), 53))
	l.files.set("nameserver " + own + "\n")
	before := l.network.count()
	l.want("self.example.com", dns.TypeA, "SERVFAIL")
	if n := l.network.count(); n != before {
		t.Errorf("asked itself: %v", l.network.dials[before:])
	}
}

func TestCacheIsBounded(t *testing.T) {
	l := newLab(t)
	u := l.server.upstream
	for i := range 3 * maxCached {
		m := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.com.", i), dns.TypeA)
		u.mu.Lock()
		u.store(question{name: m.Question[0].Name, typ: dns.TypeA}, says("198.51.100.1", 60)(m, ""))
		u.mu.Unlock()
	}
	if n := len(u.cache); n > maxCached {
		t.Errorf("%d answers are remembered", n)
	}
}

func TestParseResolvConf(t *testing.T) {
	r := parseResolvConf([]byte("; x\nnameserver 1.1.1.1 \n\tnameserver ::1\nnameserver junk\nnameserver 9.9.9.9\nnameserver 8.8.8.8\noptions timeout:1 rotate\ndomain x\n"))
	if got := fmt.Sprint(r.servers, r.timeout, r.rotate); got != "[1.1.1.1:53 [::1]:53 9.9.9.9:53] 1s true" {
		t.Error(got)
	}
}

func TestPortInUse(t *testing.T) {
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort(p.LocalAddr().String())}, View: view.New(kind.NewTable(kind.Service), 0)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "address already in use; free the port") {
		t.Errorf("port in use: %v", err)
	}
	if _, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")}}); err == nil || !strings.Contains(err.Error(), "view: must be set") {
		t.Errorf("wrong configuration: %v", err)
	}
}

func BenchmarkAnswer10kServices(b *testing.B) {
	l := newLab(b)
	var all []kind.Object
	for i := range 10000 {
		all = append(all, service(fmt.Sprint("s", i), fmt.Sprintf("10.96.%d.%d", i/250, i%250)))
	}
	l.put(all...)
	m := new(dns.Msg).SetQuestion("s77.ns.svc.cluster.local.", dns.TypeA)
	from := netip.MustParseAddr("127.0.0.1")
	ctx := context.Background()
	for b.Loop() {
		l.put(service("s1", "10.96.0.1")) // the view moves between questions
		if r := l.server.reply(ctx, from, m); len(r.Answer) != 1 {
			b.Fatal(r)
		}
	}
}
