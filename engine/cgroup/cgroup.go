// Package cgroup reads, limits and removes control groups of containers and
// pods. Building a container's group at its start is libcontainer's work; this
// package finds the same directories by the same rule.
//
// A group is named by a path. A relative one lies below the group that this
// process started in: on v1 in each hierarchy, which is needed where the root of
// the memory hierarchy belongs to somebody else; on v2 beside our own group,
// since a group with processes cannot hand controllers on. An absolute one is
// taken as it is.
//
// Versions: v2 (unified), or v1 with or without a v2 tree beside it (hybrid),
// whose groups have no controllers but can be killed as a whole. Bytes, nanoseconds and counts throughout.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where the v2 tree is mounted: alone, or beside v1.
const (
	unified = "/sys/fs/cgroup"
	hybrid  = "/sys/fs/cgroup/unified"
)

// Tree is the control group file system of this machine as one process sees it.
type Tree struct {
	V2 bool

	mounts map[string]string // controller → mount point; "" is the v2 tree
	own    map[string]string // controller → our group, rooted at the mount
}

// Detect reads the mounts of this process and the groups of process pid ("self" or a number).
func Detect(pid string) (*Tree, error) {
	t := &Tree{mounts: map[string]string{}, own: map[string]string{}}
	groups := map[string]string{}
	err := eachLine("/proc/"+pid+"/cgroup", func(line string) {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			return
		}
		if f[1] == "" {
			groups[""] = f[2]
			return
		}
		for _, c := range strings.Split(f[1], ",") {
			groups[c] = f[2]
		}
	})
	if err != nil {
		return nil, err
	}
	err = eachLine("/proc/self/mountinfo", func(line string) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			return
		}
		root, point := f[3], f[4]
		switch g[0] {
		case "cgroup2":
			if point != unified && point != hybrid {
				return
			}
			t.V2 = point == unified
			t.mounts[""], t.own[""] = point, below(root, groups[""])
		case "cgroup":
			for _, o := range strings.Split(g[2], ",") {
				if p, ok := groups[o]; ok {
					if _, dup := t.mounts[o]; !dup {
						t.mounts[o], t.own[o] = point, below(root, p)
					}
				}
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if len(t.mounts) == 0 {
		return nil, errors.New("find control groups: no cgroup file system is mounted; mount cgroup2 at /sys/fs/cgroup")
	}
	return t, nil
}

// below is path p of a hierarchy as it appears under a mount of its subtree root.
func below(root, p string) string {
	if root == "/" {
		return p
	}
	return "/" + strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
}

// Dir is the directory of a group for a controller; "" if that is not mounted.
func (t *Tree) Dir(controller, group string) string {
	if t.V2 {
		controller = ""
	}
	m, ok := t.mounts[controller]
	if !ok {
		return ""
	}
	if filepath.IsAbs(group) {
		return filepath.Join(m, group)
	}
	own := t.own[controller]
	if t.V2 {
		own = filepath.Dir(own)
	}
	return filepath.Join(m, own, group)
}

// Dirs are the directories of a group in all hierarchies.
func (t *Tree) Dirs(group string) []string {
	var out []string
	for c := range t.mounts {
		if d := t.Dir(c, group); d != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	slices.Sort(out)
	return out
}

// Killers are files for whoever wants to end all processes of a group: v2's
// cgroup.kill, to be written, and lists of process numbers, to be read.
func (t *Tree) Killers(group string) []string {
	var out []string
	if d := t.Dir("", group); d != "" {
		out = append(out, filepath.Join(d, "cgroup.kill"))
		if t.V2 {
			return append(out, filepath.Join(d, "cgroup.procs"))
		}
	}
	for _, c := range []string{"pids", "devices", "freezer", "memory"} {
		if d := t.Dir(c, group); d != "" {
			return append(out, filepath.Join(d, "cgroup.procs"))
		}
	}
	return out
}

// OOMFile is the file with the line "oom_kill N"; "" if there is none.
func (t *Tree) OOMFile(group string) string {
	d := t.Dir("memory", group)
	switch {
	case d == "":
		return ""
	case t.V2:
		return filepath.Join(d, "memory.events")
	}
	return filepath.Join(d, "memory.oom_control")
}

// Kill ends all processes in a group and waits until it is empty, at most for wait.
func (t *Tree) Kill(group string, wait time.Duration) error {
	for end := time.Now().Add(wait); ; time.Sleep(2 * time.Millisecond) {
		n := 0
		for _, k := range t.Killers(group) {
			if filepath.Base(k) == "cgroup.kill" {
				os.WriteFile(k, []byte("1"), 0) // a kernel before 5.14 has none
				continue
			}
			for _, pid := range numbers(k) {
				if pid > 1 && pid != os.Getpid() && unix.Kill(pid, unix.SIGKILL) == nil {
					n++
				}
			}
		}
		if n == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("kill control group %q: %d processes are left", group, n)
		}
	}
}

// Remove removes a group and the groups below it in all hierarchies. A group
// with processes in it is an error, one that is not there is not.
func (t *Tree) Remove(group string) error {
	var errs []error
	for _, d := range t.Dirs(group) {
		if err := removeTree(d); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	// The kernel says "busy" for a moment after the last process has ended.
	var err error
	for try := range 6 {
		if try > 0 {
			time.Sleep(time.Millisecond << try)
		}
		err = unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY {
			break
		}
		entries, rerr := os.ReadDir(dir)
		if rerr != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				if cerr := removeTree(filepath.Join(dir, e.Name())); cerr != nil {
					return cerr
				}
			}
		}
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}

// RemoveEmpty removes a group if nothing is in it, and says nothing if there is.
func (t *Tree) RemoveEmpty(group string) {
	for _, d := range t.Dirs(group) {
		unix.Rmdir(d)
	}
}

func numbers(file string) []int {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out []int
	for _, w := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(w); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func eachLine(path string, f func(string)) error {
	h, err := os.Open(path)
	if err != nil {
		return err
	}
	defer h.Close()
	s := bufio.NewScanner(h)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		f(s.Text())
	}
	return s.Err()
}
