package machine

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// host is everything of a machine that a cluster could leave traces in, as lines
// per subject. Links, routes, rules, mounts and settings are those of the space it
// is taken in; control groups and processes are the machine's, those that carry
// the cluster's name.
type host map[string][]string

func look(t testing.TB, s *space, b *box) host {
	t.Helper()
	h := host{}
	if err := s.do(func() error {
		for _, f := range []func(host) error{links, packetRules, mounts, settings} {
			if err := f(h); err != nil {
				return err
			}
		}
		files(h, "/run", "/var/lib/proa", filepath.Dir(b.data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	controlGroups(h, b.name)
	processes(h, b.name)
	for k := range h {
		slices.Sort(h[k])
	}
	return h
}

// compare returns what differs.
func (before host) compare(after host, except ...string) (diff []string) {
	for _, subject := range []string{"links", "addresses", "routes", "rules", "nftables", "mounts", "settings", "files", "control groups", "processes"} {
		if slices.Contains(except, subject) {
			continue
		}
		for _, l := range after[subject] {
			if !slices.Contains(before[subject], l) {
				diff = append(diff, "new in "+subject+": "+l)
			}
		}
		for _, l := range before[subject] {
			if !slices.Contains(after[subject], l) {
				diff = append(diff, "gone from "+subject+": "+l)
			}
		}
	}
	return diff
}

func links(h host) error {
	ls, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range ls {
		h["links"] = append(h["links"], fmt.Sprintf("%s %s %s mtu %d", l.Type(), l.Attrs().Name, l.Attrs().Flags, l.Attrs().MTU))
	}
	as, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range as {
		h["addresses"] = append(h["addresses"], fmt.Sprint(a.LinkIndex, " ", a.IPNet, " ", a.Scope))
	}
	rs, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE) // of all tables
	if err != nil {
		return err
	}
	for _, r := range rs {
		h["routes"] = append(h["routes"], fmt.Sprintf("table %d %v via %v link %d", r.Table, r.Dst, r.Gw, r.LinkIndex))
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		h["rules"] = append(h["rules"], r.String())
	}
	return nil
}

// packetRules names tables and chains. It asks the kernel: the nft program need not
// be there.
func packetRules(h host) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		h["nftables"] = append(h["nftables"], fmt.Sprintf("table %d %s", t.Family, t.Name))
	}
	chains, err := c.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		h["nftables"] = append(h["nftables"], fmt.Sprintf("chain %d %s %s", ch.Table.Family, ch.Table.Name, ch.Name))
	}
	return nil
}

func mounts(h host) error {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		// Mounts below other programs' directories come and go with other tests; in
		// this space only what happens in it does, so all lines count.
		h["mounts"] = append(h["mounts"], strings.Join(f[3:], " "))
	}
	return nil
}

// settings reads the kernel's settings that networks and containers touch.
func settings(h host) error {
	for _, root := range []string{"/proc/sys/net", "/proc/sys/kernel", "/proc/sys/user", "/proc/sys/vm", "/proc/sys/fs/inotify"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			for _, moving := range []string{"random/", "pty/nr", "ns_last_pid", "/stat_refresh", "tcp_fastopen_key", "nf_conntrack_count", "ipv6/route/flush"} {
				if strings.Contains(path, moving) {
					return nil
				}
			}
			if data, err := os.ReadFile(path); err == nil {
				h["settings"] = append(h["settings"], path+" = "+strings.TrimSpace(string(data)))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func files(h host, roots ...string) {
	for _, root := range roots {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && path != root {
				h["files"] = append(h["files"], path)
			}
			return nil
		})
	}
}

func controlGroups(h host, name string) {
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, name) {
			h["control groups"] = append(h["control groups"], path)
		}
		return nil
	})
}

func processes(h host, name string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue
		}
		cg, _ := os.ReadFile(d + "/cgroup")
		line := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		if strings.Contains(line, name) || strings.Contains(string(cg), name) {
			h["processes"] = append(h["processes"], filepath.Base(d)+" "+line)
		}
	}
}
