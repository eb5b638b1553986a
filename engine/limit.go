package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"proa.dev/engine/cgroup"
)

// hostLimits are what this process may hand to containers.
type hostLimits struct {
	caps     []string // capabilities of our bounding set, "CAP_…"
	resource bool     // CAP_SYS_RESOURCE: may raise rlimits and lower oom_score_adj
	oomScore int      // our own oom_score_adj
}

// capNames has the kernel's order: the index is the number.
var capNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCaps is what a container has that asks for nothing; the list is the
// one that container engines have agreed on.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func detectLimits() (hostLimits, error) {
	var h hostLimits
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return h, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		text, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		if err != nil {
			return h, fmt.Errorf("parse capability set %q: %w", text, err)
		}
		for i, name := range capNames {
			if set&(1<<i) != 0 {
				h.caps = append(h.caps, name)
			}
		}
	}
	h.resource = slices.Contains(h.caps, "CAP_SYS_RESOURCE")
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return h, err
	}
	h.oomScore, err = strconv.Atoi(strings.TrimSpace(string(score)))
	return h, err
}

// score is an oom_score_adj that can be set.
func (h hostLimits) score(want int) int {
	want = min(max(want, -1000), 1000)
	if !h.resource {
		return max(want, h.oomScore)
	}
	return want
}

// monitorScore protects a monitor like the agent, if that is possible.
func (h hostLimits) monitorScore() string {
	if !h.resource {
		return ""
	}
	return "-998"
}

// leaveCgroup makes room for groups beside us: on v2 a group that hands on
// controllers holds no processes, so that this one moves into a leaf of its own.
func (e *Engine) leaveCgroup(t *cgroup.Tree) error {
	if !t.V2 || filepath.IsAbs(e.cfg.CgroupParent) {
		return nil
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	own := strings.TrimSpace(strings.TrimPrefix(string(b), "0::"))
	if own == "/" || filepath.Base(own) == "proa.agent" {
		return nil
	}
	// t.Dir of a relative group lies beside our own: below us after the move.
	leaf := filepath.Join("/sys/fs/cgroup", own, "proa.agent")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return fmt.Errorf("make own control group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(unix.Getpid())), 0); err != nil {
		return fmt.Errorf("move into own control group: %w", err)
	}
	return nil
}
