package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Usage is what a group has used and uses.
type Usage struct {
	CPUNanos        uint64
	MemoryBytes     uint64 // all, page cache included
	WorkingSetBytes uint64 // without the page cache that could be dropped at once
	RSSBytes        uint64
	PageFaults      uint64
	MajorFaults     uint64
	MemoryLimit     uint64 // 0: none
	SwapBytes       uint64
	Processes       uint64
}

// Usage reads a group; ok is false if it is not there.
func (t *Tree) Usage(group string) (u Usage, ok bool) {
	mem := t.Dir("memory", group)
	if t.V2 {
		if _, err := os.Stat(mem); err != nil {
			return u, false
		}
		u.CPUNanos = fields(filepath.Join(mem, "cpu.stat"))["usage_usec"] * 1000
		u.MemoryBytes, _ = value(filepath.Join(mem, "memory.current"))
		s := fields(filepath.Join(mem, "memory.stat"))
		u.WorkingSetBytes = sub(u.MemoryBytes, s["inactive_file"])
		u.RSSBytes, u.PageFaults, u.MajorFaults = s["anon"], s["pgfault"], s["pgmajfault"]
		u.MemoryLimit, _ = value(filepath.Join(mem, "memory.max"))
		u.SwapBytes, _ = value(filepath.Join(mem, "memory.swap.current"))
		u.Processes, _ = value(filepath.Join(mem, "pids.current"))
		return u, true
	}
	if cpu := t.Dir("cpuacct", group); cpu != "" {
		u.CPUNanos, ok = value(filepath.Join(cpu, "cpuacct.usage"))
	}
	if mem != "" {
		var there bool
		u.MemoryBytes, there = value(filepath.Join(mem, "memory.usage_in_bytes"))
		ok = ok || there
		s := fields(filepath.Join(mem, "memory.stat"))
		u.WorkingSetBytes = sub(u.MemoryBytes, s["total_inactive_file"])
		u.RSSBytes, u.PageFaults, u.MajorFaults = s["total_rss"], s["total_pgfault"], s["total_pgmajfault"]
		u.SwapBytes = s["total_swap"]
		// The largest multiple of a page stands for "no limit".
		if l, ok := value(filepath.Join(mem, "memory.limit_in_bytes")); ok && l < 1<<62 {
			u.MemoryLimit = l
		}
	}
	if pids := t.Dir("pids", group); pids != "" {
		u.Processes, _ = value(filepath.Join(pids, "pids.current"))
	}
	return u, ok
}

func sub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// value reads one number; "max" is 0.
func value(file string) (uint64, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n, true
}

func fields(file string) map[string]uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	out := map[string]uint64{}
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(line, " "); ok {
			out[k], _ = strconv.ParseUint(v, 10, 64)
		}
	}
	return out
}
