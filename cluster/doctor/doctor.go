// Package doctor probes a host by doing what a cluster does: it makes namespaces,
// control groups, an overlay mount, an nftables table, listens on the ports, and
// times the disk, and removes all of it again. Each finding says what to do.
package doctor

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Level of a finding.
type Level string

// A failure keeps a cluster from running; a warning limits it.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is the answer to one question.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

// Config of an examination.
type Config struct {
	DataDir string
	// Ports that the cluster will listen on and that must be free.
	Ports []int
	// ForeignTable names rules of others that drop forwarded traffic; nil: not asked.
	ForeignDrops func() ([]string, error)
}

// Examine answers all questions; it needs root and takes about a second.
func Examine(c Config) []Finding {
	checks := []struct {
		name string
		do   func(Config) (Level, string, string)
	}{
		{"root", root}, {"kernel", kernel}, {"namespaces", namespaces}, {"control groups", cgroups}, {"overlay", overlay},
		{"nftables", rules}, {"forwarding rules", foreign}, {"ports", ports}, {"disk", disk}, {"disk space", space},
		{"keys", keys}, {"certificates", certificates}, {"limits", limits}, {"oom score", oomScore}, {"resolver", resolver},
	}
	var out []Finding
	for _, ch := range checks {
		level, detail, fix := ch.do(c)
		out = append(out, Finding{ch.name, level, detail, fix})
		if ch.name == "root" && level == Fail {
			break // the rest would only repeat it
		}
	}
	return out
}

// Worst of all findings.
func Worst(list []Finding) Level {
	worst := OK
	for _, f := range list {
		if f.Level == Fail || f.Level == Warn && worst == OK {
			worst = f.Level
		}
	}
	return worst
}

func root(Config) (Level, string, string) {
	if os.Geteuid() != 0 {
		return Fail, fmt.Sprintf("running as user %d", os.Geteuid()), "run it with sudo"
	}
	return OK, "yes", ""
}

func kernel(Config) (Level, string, string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Fail, err.Error(), ""
	}
	release := string(bytes.TrimRight(u.Release[:], "\x00"))
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	if major < 5 || major == 5 && minor < 10 {
		return Fail, release, "use Linux 5.10 or newer"
	}
	return OK, release, ""
}

// namespaces are made on a thread of their own, which ends with the goroutine.
func namespaces(Config) (Level, string, string) {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with its namespaces
		result <- unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	}()
	if err := <-result; err != nil {
		return Fail, "unshare: " + err.Error(), "inside a container: run it privileged"
	}
	return OK, "network, mount, ipc, uts", ""
}

func cgroups(Config) (Level, string, string) {
	want := map[string]string{"memory": "memory limits", "cpu": "CPU limits", "pids": "process limits"}
	if data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		have := strings.Fields(string(data))
		dir := "/sys/fs/cgroup/proa-doctor"
		if err := os.Mkdir(dir, 0o755); err != nil {
			return Fail, err.Error(), "mount the cgroup file system writable"
		}
		defer os.Remove(dir)
		return missing(want, have, "v2")
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Fail, err.Error(), "mount cgroups"
	}
	var have []string
	for _, l := range strings.Split(string(data), "\n") {
		parts := strings.SplitN(l, ":", 3)
		if len(parts) != 3 || parts[1] == "" {
			continue
		}
		for _, name := range strings.Split(parts[1], ",") {
			dir := filepath.Join("/sys/fs/cgroup", name, parts[2], "proa-doctor")
			if os.Mkdir(dir, 0o755) == nil {
				os.Remove(dir)
				have = append(have, name)
			}
		}
	}
	return missing(want, have, "v1")
}

func missing(want map[string]string, have []string, version string) (Level, string, string) {
	for _, h := range have {
		delete(want, h)
	}
	if len(want) == 0 {
		return OK, version, ""
	}
	var lack []string
	for controller, what := range want {
		lack = append(lack, what+" (controller "+controller+")")
	}
	sort.Strings(lack)
	return Warn, version + ", not enforced: " + strings.Join(lack, ", "), "enable them at boot, for instance with cgroup_enable=memory on the kernel command line"
}

func overlay(c Config) (Level, string, string) {
	base := c.DataDir
	for base != "/" {
		if _, err := os.Stat(base); err == nil {
			break
		}
		base = filepath.Dir(base)
	}
	dir, err := os.MkdirTemp(base, ".proa-doctor-")
	if err != nil {
		return Fail, err.Error(), "choose a writable directory with --data-dir"
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return Fail, err.Error(), "choose a writable directory with --data-dir"
		}
	}
	merged := filepath.Join(dir, "merged")
	o := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, o); err != nil {
		return Fail, fmt.Sprintf("mount on %s: %v", base, err), "choose a directory on a local disk (ext4, xfs, btrfs) with --data-dir; overlay on overlay does not work"
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(merged, "x"), nil, 0o600); err != nil {
		return Fail, err.Error(), "choose a directory on a local disk with --data-dir"
	}
	return OK, "on " + base, ""
}

func rules(Config) (Level, string, string) {
	conn, err := nftables.New()
	if err != nil {
		return Fail, err.Error(), "enable nftables in the kernel (CONFIG_NF_TABLES)"
	}
	t := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "proa-doctor"})
	conn.AddChain(&nftables.Chain{Name: "nat", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	if err := conn.Flush(); err != nil {
		return Fail, "make a table with address translation: " + err.Error(), "enable nftables with NAT in the kernel (modules nf_tables, nft_chain_nat)"
	}
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return Warn, "remove the test table: " + err.Error(), "nft delete table inet proa-doctor"
	}
	return OK, "tables and address translation", ""
}

func foreign(c Config) (Level, string, string) {
	if c.ForeignDrops == nil {
		return OK, "not asked", ""
	}
	list, err := c.ForeignDrops()
	if err != nil {
		return Warn, err.Error(), ""
	}
	if len(list) > 0 {
		return Warn, "others' rules drop forwarded traffic: " + strings.Join(list, ", "), "let traffic of the pod network pass there; proa never changes others' tables"
	}
	return OK, "nobody else drops forwarded traffic", ""
}

func ports(c Config) (Level, string, string) {
	if len(c.Ports) == 0 {
		return OK, "not asked: the cluster runs", ""
	}
	var busy []string
	for _, p := range c.Ports {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
		if err != nil {
			busy = append(busy, fmt.Sprint(p))
			continue
		}
		l.Close()
	}
	if len(busy) > 0 {
		return Fail, "in use: " + strings.Join(busy, ", "), "end what uses them, or choose others with --api-port and --kubelet-port"
	}
	return OK, strings.Trim(fmt.Sprint(c.Ports), "[]") + " are free", ""
}

// slowSync: above this, writes are noticeably slow.
const slowSync = 20 * time.Millisecond

func disk(c Config) (Level, string, string) {
	base := c.DataDir
	for base != "/" {
		if _, err := os.Stat(base); err == nil {
			break
		}
		base = filepath.Dir(base)
	}
	f, err := os.CreateTemp(base, ".proa-doctor-")
	if err != nil {
		return Fail, err.Error(), "choose a writable directory with --data-dir"
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	block := make([]byte, 4096)
	for range 20 {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return Fail, "the disk is full", "make room, or choose another directory with --data-dir"
			}
			return Fail, err.Error(), ""
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return Fail, err.Error(), ""
		}
		took = append(took, time.Since(began))
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	median := took[len(took)/2]
	detail := fmt.Sprintf("4 KiB written and synced in %s (median of %d)", median.Round(time.Microsecond), len(took))
	if median > slowSync {
		return Warn, detail, "put the data directory on a faster disk; each write waits that long"
	}
	return OK, detail, ""
}

func space(c Config) (Level, string, string) {
	base := c.DataDir
	var st unix.Statfs_t
	for unix.Statfs(base, &st) != nil && base != "/" {
		base = filepath.Dir(base)
	}
	free := st.Bavail * uint64(st.Bsize)
	detail := fmt.Sprintf("%.1f GB free at %s", float64(free)/(1<<30), base)
	switch {
	case free < 100<<20:
		return Fail, detail, "make room: at least 100 MB"
	case free < 2<<30:
		return Warn, detail, "make room: images need it"
	}
	return OK, detail, ""
}

// keys of a cluster must be root's alone.
func keys(c Config) (Level, string, string) {
	dir := filepath.Join(c.DataDir, "pki")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return OK, "none yet", ""
	}
	if err != nil {
		return Fail, err.Error(), "give this user the data directory"
	}
	var open []string
	for _, e := range append(entries, nil) {
		path := dir
		if e != nil {
			if !strings.HasSuffix(e.Name(), ".key") {
				continue
			}
			path = filepath.Join(dir, e.Name())
		}
		if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
			open = append(open, path)
		}
	}
	if len(open) > 0 {
		return Warn, "readable by others: " + strings.Join(open, ", "), "chmod go= " + strings.Join(open, " ") + "; `proa up` does it too. If others were on this machine, create the cluster anew"
	}
	return OK, "private, in " + dir, ""
}

// soon: below this, a certificate's end is worth a word. The server renews the
// administrator's long before.
const soon = 30 * 24 * time.Hour

// certificates says which of the files ends first. Those in the server's memory
// renew themselves.
func certificates(c Config) (Level, string, string) {
	var first time.Time
	name := ""
	for _, f := range []string{"ca.crt", "admin.crt"} {
		data, err := os.ReadFile(filepath.Join(c.DataDir, "pki", f))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Warn, err.Error(), ""
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return Fail, f + " has no PEM block", "restore it from a backup"
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Fail, f + ": " + err.Error(), "restore it from a backup"
		}
		if name == "" || cert.NotAfter.Before(first) {
			first, name = cert.NotAfter, f
		}
	}
	if name == "" {
		return OK, "none yet", ""
	}
	left := time.Until(first)
	detail := fmt.Sprintf("the first to end is %s on %s, in %d days", name, first.Format(time.DateOnly), int(left.Hours()/24))
	switch fix := map[string]string{"ca.crt": "create the cluster anew: nothing is trusted after that day", "admin.crt": "`proa up` renews it"}[name]; {
	case left <= 0:
		return Fail, fmt.Sprintf("%s ended on %s", name, first.Format(time.DateOnly)), fix
	case left < soon:
		return Warn, detail, fix
	}
	return OK, detail, ""
}

func limits(Config) (Level, string, string) {
	var notes []string
	for file, least := range map[string]int{"/proc/sys/fs/inotify/max_user_instances": 128, "/proc/sys/fs/inotify/max_user_watches": 8192} {
		var n int
		data, err := os.ReadFile(file)
		if err == nil {
			fmt.Sscan(string(data), &n)
			if n < least {
				notes = append(notes, fmt.Sprintf("%s is %d (at least %d)", filepath.Base(file), n, least))
			}
		}
	}
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil && r.Max < 4096 {
		notes = append(notes, fmt.Sprintf("open files are limited to %d", r.Max))
	}
	if len(notes) > 0 {
		sort.Strings(notes)
		return Warn, strings.Join(notes, ", "), "raise them with sysctl and ulimit"
	}
	return OK, "inotify and open files", ""
}

// oomScore: without CAP_SYS_RESOURCE the kernel refuses to make a process less
// likely to be killed, and to raise resource limits.
func oomScore(Config) (Level, string, string) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return Warn, err.Error(), ""
	}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return Warn, "no CAP_SYS_RESOURCE: oom scores and resource limits of containers are kept within this process's own", "give the capability if pods depend on it"
	}
	return OK, "can be set", ""
}

func resolver(Config) (Level, string, string) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return Warn, err.Error(), "pods resolve cluster names only; write /etc/resolv.conf for others"
	}
	for _, l := range strings.Split(string(data), "\n") {
		if f := strings.Fields(l); len(f) == 2 && f[0] == "nameserver" {
			return OK, "names outside the cluster go to " + f[1], ""
		}
	}
	return Warn, "/etc/resolv.conf names no server", "pods resolve cluster names only"
}
