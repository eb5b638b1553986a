package cluster

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// roots sends all clusters of a test below a directory of its own.
func roots(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	data, run := dataRoot, runRoot
	dataRoot, runRoot = filepath.Join(dir, "data"), filepath.Join(dir, "run")
	t.Cleanup(func() { dataRoot, runRoot = data, run })
	return dir
}

func at(t *testing.T, name string) Cluster {
	t.Helper()
	c, err := At(name, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{"proa": true, "a": true, "a-1": true, strings.Repeat("x", 32): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "../x": false, "a/b": false, strings.Repeat("x", 33): false} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := At("../etc", ""); err == nil {
		t.Error("a name with dots leads out of the directory")
	}
}

// What the API server is told is remembered, and forgotten when the next up says
// that it is nothing.
func TestCardRemembersTheAPI(t *testing.T) {
	roots(t)
	c := at(t, "one")
	a := API{AuditLogFile: "-", AuditPolicyFile: "/p.yaml", EnableAdmission: []string{"EventRateLimit"}, AdmissionFile: "/a.yaml"}
	if _, err := c.Prepare(Settings{Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []API{a, {}, {Controllers: []string{"*", "-job"}}} {
		before, err := c.Load()
		if err != nil {
			t.Fatal(err)
		}
		if card, err := c.Prepare(Settings{API: want}); err != nil || !card.Told().Equal(before.Told()) {
			t.Fatalf("before the server has started, %s is remembered: %v", card.Told(), err)
		}
		if err := c.Remember(want); err != nil {
			t.Fatal(err)
		}
		if card, err := c.Load(); err != nil || !card.Told().Equal(want) {
			t.Errorf("remembered is %s, want %s: %v", card.Told(), want, err)
		}
	}
}

func TestPrepareKeepsItsCard(t *testing.T) {
	roots(t)
	c := at(t, "one")
	first, err := c.Prepare(Settings{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Prepare(Settings{})
	if err != nil || second != first {
		t.Fatalf("%+v, want %+v: %v", second, first, err)
	}
	if _, err := c.Prepare(Settings{Node: "n1", PodNetwork: first.PodNetwork, APIPort: first.APIPort, MaxPods: first.MaxPods}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for _, s := range []Settings{{Node: "n2"}, {PodNetwork: "10.9.0.0/16"}, {ServiceNetwork: "10.9.0.0/16"}, {APIPort: 1}, {KubeletPort: 1}, {MaxPods: 1}, {NoNode: true}} {
		if _, err := c.Prepare(s); err == nil || !strings.Contains(err.Error(), "keeps it; leave the flag out") {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if again, _ := c.Load(); again != first {
		t.Errorf("a refused setting changed the card: %+v", again)
	}
	for _, d := range []string{c.DataDir, c.RunDir} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", d, st.Mode(), err)
		}
	}
	if st, _ := os.Stat(c.Path("cluster.json")); st.Mode().Perm() != 0o600 {
		t.Errorf("cluster.json: %v", st.Mode())
	}
	if o, err := At("two", c.DataDir); err != nil {
		t.Fatal(err)
	} else if _, err := o.Prepare(Settings{}); err == nil || !strings.Contains(err.Error(), `it holds the cluster "one", not "two"`) {
		t.Errorf("another cluster's directory: %v", err)
	}
}

// TestOneEtcd: servers on one etcd are one cluster, on one machine too: their networks
// are the same and their ports are not.
func TestOneEtcd(t *testing.T) {
	roots(t)
	shared := func(prefix string) *Etcd {
		return &Etcd{Servers: []string{"https://10.0.0.1:2379"}, Prefix: prefix}
	}
	one, err := at(t, "one").Prepare(Settings{Node: "x", Etcd: shared("")})
	if err != nil {
		t.Fatal(err)
	}
	two, err := at(t, "two").Prepare(Settings{Node: "y", NoNode: true, Etcd: shared(""), PodNetwork: one.PodNetwork})
	if err != nil {
		t.Fatal(err)
	}
	if two.PodNetwork != one.PodNetwork || two.ServiceNetwork != one.ServiceNetwork || two.APIPort == one.APIPort {
		t.Errorf("the first is %+v, the second %+v", one, two)
	}
	if other, err := at(t, "other").Prepare(Settings{Node: "z", NoNode: true, Etcd: shared("/other")}); err != nil || other.ServiceNetwork == one.ServiceNetwork {
		t.Errorf("with another prefix: %+v, %v", other, err)
	}
	for want, s := range map[string]Settings{
		`--service-network "10.200.0.0/16": server`:      {NoNode: true, ServiceNetwork: "10.200.0.0/16", Etcd: shared("")},
		`server "one" has the same etcd and a node here`: {Etcd: shared("")},
	} {
		s.Node = "w"
		if _, err := at(t, "three").Prepare(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	dir := roots(t)
	if _, err := at(t, "other").Prepare(Settings{Node: "x", PodNetwork: "10.77.0.0/16", ServiceNetwork: "10.78.0.0/16"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		s    Settings
		want string
	}{
		{Settings{PodNetwork: "10.1.2.3"}, `--pod-network "10.1.2.3": must be an IPv4 network`},
		{Settings{PodNetwork: "10.1.0.0/25"}, "from /8 to /24"},
		{Settings{PodNetwork: "fd00::/64"}, "must be an IPv4 network"},
		{Settings{PodNetwork: "10.77.128.0/17"}, `overlaps 10.77.0.0/16 of cluster "other"`},
		{Settings{PodNetwork: "10.5.0.0/16", ServiceNetwork: "10.5.9.0/24"}, "overlaps the network of pods 10.5.0.0/16"},
		{Settings{APIPort: 70000}, "--api-port 70000: must be from 1 to 65535"},
		{Settings{APIPort: 7000, KubeletPort: 7000}, "is the port of the API too"},
		{Settings{MaxPods: -1}, "--max-pods -1"},
		{Settings{Node: "No_de"}, `node name "No_de"`},
	} {
		if c.s.Node == "" {
			c.s.Node = "x"
		}
		cl := at(t, "new")
		if _, err := cl.Prepare(c.s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.s, err, c.want)
		}
		if _, err := cl.Load(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%+v: a card was written: %v", c.s, err)
		}
	}
	// A directory that cannot be made, below a file.
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := At("new", filepath.Join(file, "below"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Prepare(Settings{}); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("%v", err)
	}
	broken := at(t, "broken")
	if err := os.MkdirAll(broken.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken.Path("cluster.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Prepare(Settings{}); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
		t.Errorf("%v", err)
	}
	if data, _ := os.ReadFile(broken.Path("cluster.json")); string(data) != "{" {
		t.Error("the broken card was replaced")
	}
}

// TestPrepareAtOnce: clusters that come up together share nothing.
func TestPrepareAtOnce(t *testing.T) {
	roots(t)
	const n = 8
	cards := make([]Card, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		c := at(t, "c"+strconv.Itoa(i))
		wg.Go(func() { cards[i], errs[i] = c.Prepare(Settings{Node: "n"}) })
	}
	wg.Wait()
	ports, nets := map[int]string{}, []netip.Prefix{}
	for i, c := range cards {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		for _, p := range []int{c.APIPort, c.KubeletPort} {
			if by, ok := ports[p]; ok {
				t.Errorf("port %d is both %s's and %s's", p, by, c.Name)
			}
			ports[p] = c.Name
		}
		for _, s := range []string{c.PodNetwork, c.ServiceNetwork} {
			p := netip.MustParsePrefix(s)
			for _, q := range nets {
				if p.Overlaps(q) {
					t.Errorf("%s overlaps %s", p, q)
				}
			}
			nets = append(nets, p)
		}
	}
}

func TestFreeThings(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	got, err := freePort(port, []Card{{APIPort: port + 1}}, func(c Card) int { return c.APIPort })
	if err != nil || got <= port+1 {
		t.Errorf("%d %v, want one after %d", got, err, port+1)
	}
	named := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	_, services, err := freeNetworks(nil, named)
	if err != nil || netip.MustParsePrefix(services).Overlaps(named[0]) {
		t.Errorf("%s %v", services, err)
	}
	if _, _, err := freeNetworks(nil, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err == nil || !strings.Contains(err.Error(), "--pod-network") {
		t.Errorf("%v", err)
	}
	if a := HostAddress(); !a.Is4() || a.IsUnspecified() {
		t.Errorf("%v", a)
	}
}
