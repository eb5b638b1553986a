package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Limits are what a group may use. A zero field is left as it is; -1 lifts a limit.
type Limits struct {
	CPUShares int64  // 2 to 262144
	CPUQuota  int64  // microseconds per period
	CPUPeriod int64  // microseconds
	Memory    int64  // bytes
	Swap      int64  // bytes of memory and swap together, as v1 and OCI count it
	Pids      int64  //
	CPUs      string // list of cores
	Mems      string // list of memory nodes
	Huge      map[string]uint64
	Unified   map[string]string // v2 files, written as they are
}

// Make creates a group, on v2 with all controllers that the parents can hand on.
func (t *Tree) Make(group string) error {
	for _, d := range t.Dirs(group) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if t.V2 {
		return t.delegate(group)
	}
	return t.inheritCpuset(group)
}

// delegate enables all controllers from the root down to the parent of group.
func (t *Tree) delegate(group string) error {
	root := t.mounts[""]
	rel := strings.TrimPrefix(t.Dir("", group), root)
	dir := root
	for _, part := range strings.Split(strings.Trim(rel, "/"), "/") {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return err
		}
		for _, c := range strings.Fields(string(b)) {
			// One by one: a controller that is taken elsewhere must not bar the rest.
			os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
		dir = filepath.Join(dir, part)
	}
	return nil
}

// inheritCpuset fills the v1 files that start empty and bar every process while they are.
func (t *Tree) inheritCpuset(group string) error {
	dir := t.Dir("cpuset", group)
	if dir == "" {
		return nil
	}
	root := t.mounts["cpuset"]
	rel := strings.Trim(strings.TrimPrefix(dir, root), "/")
	at := root
	for _, part := range strings.Split(rel, "/") {
		next := filepath.Join(at, part)
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(next, f))
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(b)) != "" {
				continue
			}
			up, err := os.ReadFile(filepath.Join(at, f))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(next, f), up, 0); err != nil {
				return err
			}
		}
		at = next
	}
	return nil
}

// Limit applies l to an existing group. All problems come back joined; what
// could be set is set.
func (t *Tree) Limit(group string, l Limits) error {
	w := writer{t: t, group: group}
	if t.V2 {
		w.v2(l)
	} else {
		w.v1(l)
	}
	return errors.Join(w.errs...)
}

type writer struct {
	t     *Tree
	group string
	errs  []error
}

func (w *writer) put(controller, file, value string) error {
	d := w.t.Dir(controller, w.group)
	if d == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(d, file), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s of control group %q to %s: %w", file, w.group, value, err)
	}
	return nil
}

func (w *writer) set(controller, file, value string) {
	if err := w.put(controller, file, value); err != nil {
		w.errs = append(w.errs, err)
	}
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func (w *writer) v1(l Limits) {
	if l.CPUShares > 0 {
		w.set("cpu", "cpu.shares", decimal(l.CPUShares))
	}
	// A shorter period with the old quota may be refused, and so may the
	// reverse: try again in the other order.
	if l.CPUPeriod > 0 && w.put("cpu", "cpu.cfs_period_us", decimal(l.CPUPeriod)) != nil && l.CPUQuota != 0 {
		w.put("cpu", "cpu.cfs_quota_us", decimal(l.CPUQuota))
		w.set("cpu", "cpu.cfs_period_us", decimal(l.CPUPeriod))
	}
	if l.CPUQuota != 0 {
		w.set("cpu", "cpu.cfs_quota_us", decimal(l.CPUQuota))
	}
	if l.Memory != 0 || l.Swap != 0 {
		w.memoryV1(l)
	}
	if l.Pids != 0 {
		w.set("pids", "pids.max", limit(l.Pids))
	}
	if l.CPUs != "" {
		w.set("cpuset", "cpuset.cpus", l.CPUs)
	}
	if l.Mems != "" {
		w.set("cpuset", "cpuset.mems", l.Mems)
	}
	for size, n := range l.Huge {
		w.set("hugetlb", "hugetlb."+size+".limit_in_bytes", strconv.FormatUint(n, 10))
	}
}

// memoryV1 keeps "memory ≤ memory+swap" true at every moment. Without swap
// accounting the second file does not exist.
func (w *writer) memoryV1(l Limits) {
	const mem, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	_, err := os.Stat(filepath.Join(w.t.Dir("memory", w.group), both))
	hasSwap := !errors.Is(err, fs.ErrNotExist)
	if l.Swap == 0 || !hasSwap {
		w.set("memory", mem, decimal(l.Memory))
		return
	}
	if w.put("memory", mem, decimal(l.Memory)) == nil {
		w.set("memory", both, decimal(l.Swap))
		return
	}
	w.set("memory", both, decimal(l.Swap))
	w.set("memory", mem, decimal(l.Memory))
}

// weight maps v1's 2…1024…262144 onto v2's 1…100…10000 by the quadratic (in the
// logarithm) that the OCI runtimes agreed on.
func weight(shares int64) int64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return decimal(n)
}

func (w *writer) v2(l Limits) {
	if l.CPUShares > 0 {
		w.set("", "cpu.weight", decimal(weight(l.CPUShares)))
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 {
		period := l.CPUPeriod
		if period == 0 {
			period = 100000
		}
		quota := l.CPUQuota
		if quota == 0 {
			quota = -1
		}
		w.set("", "cpu.max", limit(quota)+" "+decimal(period))
	}
	if l.Memory != 0 {
		w.set("", "memory.max", limit(l.Memory))
	}
	if l.Swap != 0 {
		swap := l.Swap
		if swap > 0 && l.Memory > 0 {
			swap = max(swap-l.Memory, 0)
		}
		w.set("", "memory.swap.max", limit(swap))
	}
	if l.Pids != 0 {
		w.set("", "pids.max", limit(l.Pids))
	}
	if l.CPUs != "" {
		w.set("", "cpuset.cpus", l.CPUs)
	}
	if l.Mems != "" {
		w.set("", "cpuset.mems", l.Mems)
	}
	for size, n := range l.Huge {
		w.set("", "hugetlb."+size+".max", strconv.FormatUint(n, 10))
	}
	for file, value := range l.Unified {
		if strings.Contains(file, "/") {
			w.errs = append(w.errs, fmt.Errorf("set %q of control group %q: not the name of a control file", file, w.group))
			continue
		}
		w.set("", file, value)
	}
}
