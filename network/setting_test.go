package network

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"proa.dev/network/netlab"
)

// Two clusters need the same setting of their host: it is put back when the second
// one goes, not the first.
func TestSettingsAreShared(t *testing.T) {
	host, outside := netlab.New(t, "host"), netlab.New(t, "outside")
	netlab.Wire(t, host, "up0", "192.0.2.1/24", outside, "eth0", "192.0.2.9/24", "")
	read := func(setting string) (v string) {
		host.Must(func() error {
			b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + setting)
			v = strings.TrimSpace(string(b))
			return err
		})
		return v
	}
	if v := read("up0/forwarding"); v != "0" {
		t.Fatalf("forwarding of a new link: %s", v)
	}
	shared := filepath.Join(t.TempDir(), "shared")
	up := func(name, cidr string) *Network {
		l := newLab(t, name, host, cidr)
		l.cfg.SharedDir = shared
		l.reopen()
		if err := l.n.Up(context.Background()); err != nil {
			t.Fatal(err)
		}
		return l.n
	}
	a, b := up("a", "10.1.0.0/24"), up("b", "10.2.0.0/24")
	if v := read("up0/forwarding"); v != "1" {
		t.Fatalf("forwarding with two clusters: %s", v)
	}
	if err := a.Clean(context.Background()); err != nil {
		t.Fatal(err)
	}
	if v := read("up0/forwarding"); v != "1" {
		t.Errorf("forwarding after one of two clusters went: %s", v)
	}
	if err := b.Clean(context.Background()); err != nil {
		t.Fatal(err)
	}
	if v := read("up0/forwarding"); v != "0" {
		t.Errorf("forwarding after both clusters went: %s", v)
	}
	if _, err := os.Stat(shared); !os.IsNotExist(err) {
		t.Errorf("the shared directory: %v", err)
	}

	// What the host had so itself, or has changed since, stays.
	host.Must(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/up0/forwarding", []byte("1"), 0o644) })
	c := up("c", "10.3.0.0/24")
	if err := c.Clean(context.Background()); err != nil {
		t.Fatal(err)
	}
	if v := read("up0/forwarding"); v != "1" {
		t.Errorf("the host's own setting was changed to %s", v)
	}
}
