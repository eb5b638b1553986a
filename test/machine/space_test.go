package machine

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var defaultParallel = runtime.GOMAXPROCS(0)

// space is a network and a mount namespace of its own: what happens in it is
// nobody else's, so that "the host looks as before" can be compared exactly while
// other tests use the machine.
type space struct {
	calls chan func()
	done  chan struct{}
}

// newSpace makes one: a loopback, a veth pair as the outside world with the
// default route through it, and empty directories for /run/proa and
// /var/lib/proa.
func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{calls: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // and never unlock: the thread ends with its namespaces
		ready <- enter()
		for f := range s.calls {
			f()
		}
	}()
	t.Cleanup(func() { close(s.calls); <-s.done })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	return s
}

func enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	// What others have mounted there is theirs, and ends when they like.
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && (strings.HasPrefix(f[4], "/run/") || strings.HasPrefix(f[4], "/var/") || strings.HasPrefix(f[4], "/tmp/")) {
			unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	for _, d := range []string{"/run", "/var/lib/proa"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", d, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "outside"}, PeerName: "world"}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	for i, name := range []string{"outside", "world"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		// Link-local addresses would appear some seconds later and look like a trace.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/addr_gen_mode", []byte("1"), 0); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if i == 0 {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, 1), Mask: net.CIDRMask(24, 32)}}); err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(198, 51, 100, 2)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// do calls f in the space; on a nil space it just calls f.
func (s *space) do(f func() error) (err error) {
	if s == nil {
		return f()
	}
	end := make(chan struct{})
	s.calls <- func() { defer close(end); err = f() }
	<-end
	return err
}
