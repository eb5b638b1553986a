package engine

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMonitorMemory holds the budget of memory per pod outside its processes.
func TestMonitorMemory(t *testing.T) {
	r := newRig(t)
	sb, sc := r.pod(nil)
	r.run(sb, sc, shell("sleep 1000"))
	// A working size is measured: after some output has gone through.
	r.exited(r.run(sb, sc, shell("yes 0123456789012345678901234567890123456789 | head -n 50000")))
	pid, err := os.ReadFile(filepath.Join(r.dir, "run/sandbox", sb, "monitor.pid"))
	if err != nil {
		t.Fatal(err)
	}
	rollup, err := os.ReadFile("/proc/" + string(pid) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	threads, _ := os.ReadDir("/proc/" + string(pid) + "/task")
	kb := map[string]int{}
	for _, line := range strings.Split(string(rollup), "\n") {
		if f := strings.Fields(line); len(f) == 3 {
			kb[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	private := kb["Private_Dirty"] + kb["Private_Clean"]
	t.Logf("monitor: %d KiB private (%d dirty), %d KiB PSS, %d threads", private, kb["Private_Dirty"], kb["Pss"], len(threads))
	if kb["Private_Dirty"] > 2<<10 {
		t.Errorf("monitor has %d KiB of its own, the budget is 2 MiB", kb["Private_Dirty"])
	}
}

func BenchmarkPod(b *testing.B) {
	for name, edit := range map[string]func(*runtimeapi.ContainerConfig){
		"default":    func(*runtimeapi.ContainerConfig) {},
		"unconfined": func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Seccomp = nil },
	} {
		b.Run(name, func(b *testing.B) { benchmarkPod(b, edit) })
	}
}

func benchmarkPod(b *testing.B, edit func(*runtimeapi.ContainerConfig)) {
	r := newRig(b)
	var sandbox, create, start, remove time.Duration
	for b.Loop() {
		t0 := time.Now()
		sb, sc := r.pod(nil)
		t1 := time.Now()
		cfg := shell("sleep 1000")
		edit(cfg)
		id := r.create(sb, sc, cfg)
		t2 := time.Now()
		if _, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		if _, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			b.Fatal(err)
		}
		sandbox, create, start, remove = sandbox+t1.Sub(t0), create+t2.Sub(t1), start+t3.Sub(t2), remove+time.Since(t3)
	}
	for name, d := range map[string]time.Duration{"sandbox": sandbox, "create": create, "start": start, "remove": remove} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms/op")
	}
}
