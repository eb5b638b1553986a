package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// inNetns runs do on a thread that is in namespace ns (below 0: stays where it
// is).
func inNetns(ns netns.NsHandle, do func() error) error {
	if ns < 0 {
		return do()
	}
	result := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with the goroutine, and nobody finds it in the
		// wrong namespace.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- do()
	}()
	return <-result
}

// change is an entry of the ledger: a setting of the kernel before and after, and
// the clusters of this host that need it so.
type change struct {
	Before string   `json:"before"`
	After  string   `json:"after"`
	Users  []string `json:"users"`
}

// ledger of one host (one network namespace): the changed settings by their path
// below /proc/sys.
type ledger map[string]*change

// withLedger runs do with the ledger of this thread's network namespace and keeps
// what do makes of it. The clusters of a host wait for each other here; the lock is
// the directory itself, which goes away with its last file.
func (n *Network) withLedger(do func(ledger) error) error {
	dir := n.cfg.SharedDir
	unlock, err := lockDir(dir)
	if err != nil {
		return fmt.Errorf("lock ledger of changed settings: %w", err)
	}
	defer unlock()
	id, err := netnsID()
	if err != nil {
		return fmt.Errorf("open ledger of changed settings: %w", err)
	}
	path := filepath.Join(dir, "settings-"+id+".json")
	l := ledger{}
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ledger of changed settings: %w", err)
	}
	if err == nil {
		if err := json.Unmarshal(before, &l); err != nil {
			return fmt.Errorf("read ledger of changed settings %q: %w; remove the file to go on", path, err)
		}
	}
	done := do(l)
	switch after, err := json.MarshalIndent(l, "", "  "); {
	case err != nil:
		return errors.Join(done, err)
	case len(l) == 0:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(done, fmt.Errorf("remove ledger of changed settings: %w", err))
		}
		_ = os.Remove(dir) // not when others use it
	case !bytes.Equal(before, after):
		if err := write(path, after); err != nil {
			return errors.Join(done, fmt.Errorf("write ledger of changed settings: %w", err))
		}
	}
	return done
}

func write(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// lockDir makes a directory and waits until nobody else holds it.
func lockDir(dir string) (unlock func(), err error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its last user has just removed it
		}
		if err != nil {
			return nil, err
		}
		for {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
		held, err1 := f.Stat()
		there, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(held, there) {
			return func() { f.Close() }, nil
		}
		f.Close()
	}
}

// netnsID names this thread's network namespace: by its cookie, which is never
// used again while the machine runs, or by its inode where there is none (before
// Linux 5.14).
func netnsID() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
			return strconv.FormatUint(cookie, 10), nil
		}
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return "", err
	}
	return "inode" + strconv.FormatUint(st.Ino, 10), nil
}

func sysPath(setting string) string { return filepath.Join("/proc/sys", setting) }

// set writes a kernel setting, after noting the old value and that this cluster
// needs the new one. A setting that the host itself had so is nobody's.
func (n *Network) set(setting, value string) error {
	return n.withLedger(func(l ledger) error {
		b, err := os.ReadFile(sysPath(setting))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the link went away
		}
		if err != nil {
			return fmt.Errorf("read setting %s: %w", setting, err)
		}
		current := strings.TrimSpace(string(b))
		c := l[setting]
		if c == nil {
			if current == value {
				return nil
			}
			c = &change{Before: current}
			l[setting] = c
		}
		c.After = value
		if !slices.Contains(c.Users, n.cfg.ClusterName) {
			c.Users = append(c.Users, n.cfg.ClusterName)
		}
		if current == value {
			return nil
		}
		if err := os.WriteFile(sysPath(setting), []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s=%s: %w; set it yourself if this process may not", strings.ReplaceAll(setting, "/", "."), value, err)
		}
		return nil
	})
}

// restoreSettings takes this cluster off the ledger and puts back what no other
// cluster needs and nobody else has changed since.
func (n *Network) restoreSettings() error {
	return inNetns(n.hostNS, func() error {
		return n.withLedger(func(l ledger) error {
			var errs []error
			for setting, c := range l {
				had := len(c.Users)
				c.Users = slices.DeleteFunc(c.Users, func(u string) bool { return u == n.cfg.ClusterName })
				if len(c.Users) > 0 || had == 0 {
					continue
				}
				b, err := os.ReadFile(sysPath(setting))
				if err == nil && strings.TrimSpace(string(b)) == c.After {
					err = os.WriteFile(sysPath(setting), []byte(c.Before), 0o644)
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					c.Users = append(c.Users, n.cfg.ClusterName) // the next time
					errs = append(errs, fmt.Errorf("put %s back to %s: %w", setting, c.Before, err))
					continue
				}
				delete(l, setting)
			}
			return errors.Join(errs...)
		})
	})
}

// forwardHostLinks lets packets that come in through the host's own links go on
// to pods: answers from outside, node ports. Each link by itself for IPv4; IPv6
// knows it for the whole host only.
func (n *Network) forwardHostLinks() error {
	links, err := steady(n.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	index := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback == 0 && !strings.HasPrefix(a.Name, "proa") {
			index[a.Index] = a.Name
		}
	}
	addrs, err := steady(func() ([]netlink.Addr, error) { return n.nl.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	return inNetns(n.hostNS, func() error {
		var errs []error
		for _, a := range addrs {
			name := index[a.LinkIndex]
			if name == "" || a.Scope != unix.RT_SCOPE_UNIVERSE {
				continue
			}
			index[a.LinkIndex] = ""
			errs = append(errs, n.set("net/ipv4/conf/"+name+"/forwarding", "1"))
		}
		if n.hasFamily(16) {
			// Forwarding makes the kernel ignore router advertisements, and with them
			// perhaps the host's own default route, unless told otherwise first.
			for _, l := range links {
				path := "net/ipv6/conf/" + l.Attrs().Name + "/accept_ra"
				if b, err := os.ReadFile(sysPath(path)); err == nil && strings.TrimSpace(string(b)) == "1" && l.Attrs().Flags&net.FlagLoopback == 0 {
					errs = append(errs, n.set(path, "2"))
				}
			}
			errs = append(errs, n.set("net/ipv6/conf/all/forwarding", "1"))
		}
		return errors.Join(errs...)
	})
}
