package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/internal/await"
	"proa.dev/network/netlab"
	"proa.dev/network/nft"
)

type lab struct {
	t    testing.TB
	host *netlab.NS
	cfg  Config
	n    *Network
}

func newLab(t testing.TB, cluster string, host *netlab.NS, cidrs ...string) *lab {
	t.Helper()
	if host == nil {
		host = netlab.New(t, "host")
	}
	l := &lab{t: t, host: host, cfg: Config{
		ClusterName: cluster, StateDir: t.TempDir(), HostNetns: host.Path(),
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	}}
	if cluster != "one" {
		l.cfg.ServiceCIDRs = nil
	}
	for _, c := range cidrs {
		l.cfg.PodCIDRs = append(l.cfg.PodCIDRs, netip.MustParsePrefix(c))
	}
	l.reopen()
	t.Cleanup(func() { l.n.Close() })
	return l
}

// reopen is what a restart of the process does.
func (l *lab) reopen() {
	l.t.Helper()
	if l.n != nil {
		l.n.Close()
	}
	n, err := New(l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.n = n
}

func (l *lab) pod(name string, ports ...*runtimeapi.PortMapping) (*netlab.NS, []string) {
	l.t.Helper()
	ns := netlab.New(l.t, name)
	ips, err := l.n.Setup(context.Background(), name, ns.Path(), &runtimeapi.PodSandboxConfig{PortMappings: ports})
	if err != nil {
		l.t.Fatal(err)
	}
	return ns, ips
}

// trace of what is on the host, to compare before and after.
func hostState(t testing.TB, host *netlab.NS) string {
	t.Helper()
	var b strings.Builder
	h := host.Handle()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		fmt.Fprintln(&b, "link", l.Attrs().Name)
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		fmt.Fprintln(&b, "addr", a.IPNet, a.Label)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue
		}
		fmt.Fprintln(&b, "route", r.Dst, r.LinkIndex)
	}
	host.Must(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		tables, err := c.Tables()
		fmt.Fprintln(&b, "tables", tables)
		paths, _ := filepath.Glob("/proc/sys/net/ipv4/conf/*/forwarding")
		for _, p := range append(paths, "/proc/sys/net/ipv6/conf/all/forwarding") {
			v, _ := os.ReadFile(p)
			fmt.Fprintf(&b, "%s %s", p, v)
		}
		return err
	})
	return b.String()
}

func TestPodsTalk(t *testing.T) {
	ctx := context.Background()
	host := netlab.New(t, "host")
	outside := netlab.New(t, "outside")
	netlab.Wire(t, host, "up0", "192.0.2.1/24", outside, "eth0", "192.0.2.9/24", "")
	before := hostState(t, host)
	l := newLab(t, "one", host, "10.1.0.0/24", "fd00:1::/112")
	a, aIP := l.pod("a")
	b, bIP := l.pod("b", &runtimeapi.PortMapping{HostPort: 8080, ContainerPort: 80}, &runtimeapi.PortMapping{HostPort: 53, ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP})
	if got, want := fmt.Sprint(aIP, bIP), "[10.1.0.2 fd00:1::2] [10.1.0.3 fd00:1::3]"; got != want {
		t.Fatalf("addresses %s, want %s", got, want)
	}
	b.Serve("b", "tcp", "0.0.0.0:80")
	b.Serve("b6", "tcp6", "[::]:81")
	b.Serve("b", "udp", bIP[0]+":53")
	host.Serve("host", "tcp", "192.0.2.1:6443")
	outside.Serve("outside", "tcp", "192.0.2.9:80")

	a.Want("tcp", bIP[0]+":80", "b "+aIP[0])
	a.Want("tcp", "["+bIP[1]+"]:81", "b6 "+aIP[1])
	host.Want("tcp", bIP[0]+":80", "b 10.1.0.1")
	host.Want("tcp", "["+bIP[1]+"]:81", "b6 fd00:1::1")
	a.Want("tcp", "192.0.2.1:6443", "host "+aIP[0])
	a.Want("tcp", "192.0.2.9:80", "outside 192.0.2.1") // masqueraded

	// Host ports: from outside with the client's address, from the host, from
	// 127.0.0.1, from another pod, and from the pod itself.
	outside.Want("tcp", "192.0.2.1:8080", "b 192.0.2.9")
	outside.Want("udp", "192.0.2.1:53", "b 192.0.2.9")
	host.Want("tcp", "192.0.2.1:8080", "b")
	host.Want("tcp", "127.0.0.1:8080", "b 10.1.0.1")
	a.Want("tcp", "192.0.2.1:8080", "b "+aIP[0])
	b.Want("tcp", "192.0.2.1:8080", "b 10.1.0.1")

	// Setting up again changes nothing.
	again, err := l.n.Setup(ctx, "b", b.Path(), &runtimeapi.PodSandboxConfig{})
	if err != nil || !slices.Equal(again, bIP) {
		t.Errorf("second setup: %v %v, want %v", again, err, bIP)
	}
	if _, err := l.n.Setup(ctx, "c", a.Path(), &runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 1}}}); err == nil {
		t.Error("host port 8080 was given twice")
	}

	// A restarted process knows everything and cuts nothing.
	l.reopen()
	if err := l.n.Reconcile(ctx, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	a.Want("tcp", bIP[0]+":80", "b "+aIP[0])
	outside.Want("tcp", "192.0.2.1:8080", "b 192.0.2.9")
	if _, ips := l.pod("d"); ips[0] != "10.1.0.4" {
		t.Errorf("after a restart pod d got %v", ips)
	}

	// Teardown: unreachable at once, the link later; twice is fine.
	for range 2 {
		if err := l.n.Teardown(ctx, "b", b.Path()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := a.AskWithin("tcp", bIP[0]+":80", 200*time.Millisecond); err == nil {
		t.Errorf("torn-down pod answers %q", got)
	}
	outside.WantRefused("tcp", "192.0.2.1:8080")
	if n := l.n.Pending(); n != 1 {
		t.Errorf("%d links pending, want 1", n)
	}
	if err := l.n.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if n := l.n.Pending(); n != 0 {
		t.Errorf("%d links pending after drain", n)
	}
	if err := l.n.Teardown(ctx, "never-seen", "/nowhere"); err != nil {
		t.Errorf("teardown of an unknown sandbox: %v", err)
	}

	for range 2 {
		if err := l.n.Clean(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if after := hostState(t, host); after != before {
		t.Errorf("host before:\n%s\nafter:\n%s", before, after)
	}
}

func TestPodIsConfined(t *testing.T) {
	l := newLab(t, "one", nil, "10.1.0.0/24")
	p, _ := l.pod("p")
	l.host.Serve("secret", "tcp", "127.0.0.1:9")
	// A pod that may change its routes tries to get at the host's loopback.
	h := p.Handle()
	eth, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	p.Must(func() error {
		os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0)
		return os.WriteFile("/proc/sys/net/ipv4/conf/lo/route_localnet", []byte("1"), 0)
	})
	lo, _ := h.LinkByName("lo")
	h.LinkSetDown(lo)
	if err := h.RouteDel(&netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: netOf(netip.MustParsePrefix("127.0.0.0/8")), Type: unix.RTN_LOCAL, LinkIndex: lo.Attrs().Index}); err != nil && err != unix.ESRCH {
		t.Fatal(err)
	}
	if err := h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: netOf(netip.MustParsePrefix("127.0.0.0/8")), Gw: nextHop4, Flags: int(netlink.FLAG_ONLINK)}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.AskWithin("tcp", "127.0.0.1:9", 300*time.Millisecond); err == nil {
		t.Errorf("pod reached the host's loopback: %q", got)
	}
	// A foreign source address does not get through.
	addr, _ := netlink.ParseAddr("10.1.0.77/32")
	if err := h.AddrAdd(eth, addr); err != nil {
		t.Fatal(err)
	}
	q, qIP := l.pod("q")
	q.Serve("q", "udp", qIP[0]+":7")
	if err := h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: hostNet(netip.MustParseAddr(qIP[0])), Gw: nextHop4, Flags: int(netlink.FLAG_ONLINK), Src: addr.IP}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.AskWithin("udp", qIP[0]+":7", 300*time.Millisecond); err == nil {
		t.Errorf("pod spoke with a foreign address: %q", got)
	}
}

func TestTwoClusters(t *testing.T) {
	ctx := context.Background()
	host := netlab.New(t, "host")
	one := newLab(t, "one", host, "10.1.0.0/24")
	two := newLab(t, "two", host, "10.2.0.0/24")
	a, aIP := one.pod("a")
	b, bIP := two.pod("a")
	b.Serve("b", "tcp", ":80")
	a.Serve("a", "tcp", ":80")
	host.Want("tcp", bIP[0]+":80", "b")
	if err := one.n.Clean(ctx); err != nil {
		t.Fatal(err)
	}
	host.Want("tcp", bIP[0]+":80", "b")
	if got, err := host.AskWithin("tcp", aIP[0]+":80", 200*time.Millisecond); err == nil {
		t.Errorf("pod of a removed cluster answers %q", got)
	}
	// The same range twice is refused with the way out.
	same := newLab(t, "three", host, "10.2.0.0/24")
	if err := same.n.Up(ctx); err == nil || !strings.Contains(err.Error(), "choose another") {
		t.Errorf("overlapping range: %v", err)
	}
}

func TestRunRemovesLinks(t *testing.T) {
	l := newLab(t, "one", nil, "10.1.0.0/24")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	h := l.host.Handle()
	for i := range 20 {
		name := fmt.Sprintf("pod%d", i)
		ns, _ := l.pod(name)
		if err := l.n.Teardown(ctx, name, ns.Path()); err != nil {
			t.Fatal(err)
		}
	}
	await.True(t, 10*time.Second, "torn-down links are removed", func() bool {
		links, err := h.LinkList()
		return err == nil && len(links) == 1 && l.n.Pending() == 0
	})
	// A link that the host gets later is forwarding too.
	out := netlab.New(t, "outside")
	netlab.Wire(t, l.host, "late0", "192.0.2.1/24", out, "eth0", "192.0.2.9/24", "192.0.2.1")
	await.True(t, 10*time.Second, "late link forwards", func() bool {
		var v []byte
		l.host.Must(func() (err error) { v, err = os.ReadFile("/proc/sys/net/ipv4/conf/late0/forwarding"); return err })
		return string(v) == "1\n"
	})
	cancel()
	wg.Wait()
}

func TestManyAtOnce(t *testing.T) {
	ctx := context.Background()
	l := newLab(t, "one", nil, "10.1.0.0/24")
	const pods = 24
	var mu sync.Mutex
	seen := map[string]bool{}
	for round := range 3 {
		var wg sync.WaitGroup
		for i := range pods {
			name := fmt.Sprintf("pod%d-%d", round, i)
			ns := netlab.New(t, name)
			wg.Go(func() {
				ips, err := l.n.Setup(ctx, name, ns.Path(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[ips[0]] {
					t.Errorf("%s was handed out again while others are free", ips[0])
				}
				seen[ips[0]] = true
				mu.Unlock()
				if err := l.n.Teardown(ctx, name, ns.Path()); err != nil {
					t.Error(err)
				}
				ns.Close()
			})
		}
		wg.Wait()
	}
	if err := l.n.Drain(ctx); err != nil {
		t.Error(err)
	}
}

func TestTableRemovedByOthers(t *testing.T) {
	ctx := context.Background()
	l := newLab(t, "one", nil, "10.1.0.0/24")
	a, _ := l.pod("a", &runtimeapi.PortMapping{HostPort: 80, ContainerPort: 80})
	a.Serve("a", "tcp", ":80")
	if err := l.n.nft.DeleteTable(l.n.Table()); err != nil {
		t.Fatal(err)
	}
	l.pod("b")
	l.host.Want("tcp", "127.0.0.1:80", "a")
	if err := l.n.nft.DeleteTable(l.n.Table()); err != nil {
		t.Fatal(err)
	}
	if err := l.n.Teardown(ctx, "a", ""); err != nil {
		t.Error(err)
	}
}

func TestObstacles(t *testing.T) {
	l := newLab(t, "one", nil, "10.1.0.0/24")
	if _, err := exec.LookPath("nft"); err == nil {
		l.host.Must(func() error {
			return exec.Command("nft", "add table ip guard; add chain ip guard only { type filter hook forward priority 0; policy drop; }").Run()
		})
		got, err := l.n.Obstacles()
		if err != nil || len(got) != 1 || !strings.Contains(got[0].What, `"guard", chain "only"`) {
			t.Errorf("obstacles %+v, %v", got, err)
		}
		return
	}
	got, err := l.n.Obstacles()
	if err != nil || len(got) != 0 {
		t.Errorf("obstacles on an empty host: %+v, %v", got, err)
	}
}

func BenchmarkSetupTeardown(b *testing.B) {
	ctx := context.Background()
	l := newLab(b, "one", nil, "10.0.0.0/16")
	var setup, teardown time.Duration
	for b.Loop() {
		b.StopTimer()
		ns := netlab.New(b, "p")
		b.StartTimer()
		t0 := time.Now()
		if _, err := l.n.Setup(ctx, "p", ns.Path(), nil); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := l.n.Teardown(ctx, "p", ns.Path()); err != nil {
			b.Fatal(err)
		}
		setup += t1.Sub(t0)
		teardown += time.Since(t1)
		b.StopTimer()
		ns.Close()
		l.n.Drain(ctx)
		b.StartTimer()
	}
	b.ReportMetric(setup.Seconds()*1000/float64(b.N), "ms/setup")
	b.ReportMetric(teardown.Seconds()*1000/float64(b.N), "ms/teardown")
}
