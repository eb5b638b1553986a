package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func mustPool(t *testing.T, dir string, cidr string) *pool {
	t.Helper()
	p, err := openPool(dir, []netip.Prefix{netip.MustParsePrefix(cidr)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustTake(t *testing.T, p *pool, id string) string {
	t.Helper()
	r, _, err := p.take(id, func(*record) {})
	if err != nil {
		t.Fatal(err)
	}
	return r.IPs[0].String()
}

func TestAddressesAreReusedLate(t *testing.T) {
	dir := t.TempDir()
	p := mustPool(t, dir, "10.1.0.0/29") // .2 … .6
	want := func(id, ip string) {
		t.Helper()
		if got := mustTake(t, p, id); got != ip {
			t.Fatalf("%s got %s, want %s", id, got, ip)
		}
	}
	want("a", "10.1.0.2")
	want("b", "10.1.0.3")
	if err := p.release("a"); err != nil {
		t.Fatal(err)
	}
	want("c", "10.1.0.4") // not a's
	p.release("c")
	p = mustPool(t, dir, "10.1.0.0/29") // the process is killed and starts again
	want("b", "10.1.0.3")
	want("d", "10.1.0.5")
	want("e", "10.1.0.6")
	want("f", "10.1.0.2") // free for the longest time
	want("g", "10.1.0.4")
	if _, _, err := p.take("h", func(*record) {}); err == nil {
		t.Fatal("took an address from a full range")
	}
	p.release("b")
	want("h", "10.1.0.3")
}

func TestPoolSurvivesTornFiles(t *testing.T) {
	dir := t.TempDir()
	p := mustPool(t, dir, "10.1.0.0/24")
	mustTake(t, p, "a")
	mustTake(t, p, "b")
	if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(`{"sandb`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c.tmp"), []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	p = mustPool(t, dir, "10.1.0.0/24")
	if len(p.records) != 1 || p.records["b"] == nil {
		t.Fatalf("records %v, want b only", p.records)
	}
}

func TestLargeRangeIsBounded(t *testing.T) {
	for _, c := range []struct{ cidr, last string }{
		{"10.0.0.0/8", "10.0.255.254"}, {"10.3.4.0/24", "10.3.4.254"}, {"fd00::/64", "fd00::fffe"}, {"fd00::100/120", "fd00::1fe"},
	} {
		if got := newRange(netip.MustParsePrefix(c.cidr)).last.String(); got != c.last {
			t.Errorf("last of %s is %s, want %s", c.cidr, got, c.last)
		}
	}
}
