package network

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
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

// change is one line of the ledger: a setting of the kernel before and after.
type change struct {
	Path   string `json:"path"` // below /proc/sys
	Before string `json:"before"`
	After  string `json:"after"`
}

func (n *Network) ledgerPath() string { return filepath.Join(n.cfg.StateDir, "settings.json") }

func (n *Network) readLedger() ([]change, error) {
	b, err := os.ReadFile(n.ledgerPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ledger of changed settings: %w", err)
	}
	var out []change
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("read ledger of changed settings %q: %w; remove the file to go on", n.ledgerPath(), err)
	}
	return out, nil
}

func (n *Network) writeLedger(changes []change) error {
	b, err := json.MarshalIndent(changes, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("write ledger of changed settings: %w", err)
	}
	tmp := n.ledgerPath() + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write ledger of changed settings: %w", err)
	}
	return os.Rename(tmp, n.ledgerPath())
}

func sysPath(setting string) string { return filepath.Join("/proc/sys", setting) }

// set writes a kernel setting, after noting the old value.
func (n *Network) set(setting, value string) error {
	b, err := os.ReadFile(sysPath(setting))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the link went away
	}
	if err != nil {
		return fmt.Errorf("read setting %s: %w", setting, err)
	}
	before := strings.TrimSpace(string(b))
	if before == value {
		return nil
	}
	ledger, err := n.readLedger()
	if err != nil {
		return err
	}
	known := false
	for _, c := range ledger {
		known = known || c.Path == setting
	}
	if !known {
		if err := n.writeLedger(append(ledger, change{setting, before, value})); err != nil {
			return err
		}
	}
	if err := os.WriteFile(sysPath(setting), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s=%s: %w; set it yourself if this process may not", strings.ReplaceAll(setting, "/", "."), value, err)
	}
	return nil
}

// restoreSettings puts back what set has changed and nobody has changed since.
func (n *Network) restoreSettings() error {
	return inNetns(n.hostNS, func() error {
		ledger, err := n.readLedger()
		if err != nil {
			return err
		}
		var errs []error
		for i := len(ledger) - 1; i >= 0; i-- {
			c := ledger[i]
			b, err := os.ReadFile(sysPath(c.Path))
			if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) != c.After {
				continue
			}
			if err == nil {
				err = os.WriteFile(sysPath(c.Path), []byte(c.Before), 0o644)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("put %s back to %s: %w", c.Path, c.Before, err))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if err := os.Remove(n.ledgerPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove ledger of changed settings: %w", err)
		}
		return nil
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
