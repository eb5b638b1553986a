package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestWeight(t *testing.T) {
	for shares, want := range map[int64]int64{1: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 20: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestLife(t *testing.T) {
	tree, err := Detect("self")
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("proa-cgroup-test-%d/pod/c", os.Getpid())
	top := filepath.Dir(filepath.Dir(group))
	t.Cleanup(func() {
		tree.Kill(top, time.Second)
		if err := tree.Remove(top); err != nil {
			t.Error(err)
		}
		for _, d := range tree.Dirs(top) {
			if _, err := os.Stat(d); err == nil {
				t.Errorf("%s is left", d)
			}
		}
	})
	if err := tree.Make(group); err != nil {
		t.Fatal(err)
	}
	if err := tree.Limit(group, Limits{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20, Pids: 50}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range tree.Dirs(group) {
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
			t.Fatalf("%s: %v", d, err)
		}
	}
	u, ok := tree.Usage(group)
	if !ok || u.Processes != 1 || u.MemoryLimit != 64<<20 {
		t.Errorf("usage %+v, %v", u, ok)
	}
	if err := tree.Remove(group); err == nil {
		t.Error("a group with a process in it was removed")
	}
	if err := tree.Kill(group, 5*time.Second); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if err := tree.Remove(group); err != nil {
		t.Error(err)
	}
	if _, ok := tree.Usage(group); ok {
		t.Error("a removed group has usage")
	}
	if err := tree.Remove(group); err != nil {
		t.Errorf("removing twice: %v", err)
	}
}
