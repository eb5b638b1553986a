package node_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sys/unix"

	"proa.dev/kind"
	"proa.dev/view"
)

// TestMonitorDies kills the process that every pod has beside its containers: what
// it watched is ended, reported as failed, and restarted as the pod's policy says.
func TestMonitorDies(t *testing.T) {
	m := newMachine(t)
	m.box("always", "sleep 1000", func(p *corev1.Pod) {
		second := p.Spec.Containers[0]
		second.Name = "second"
		p.Spec.Containers = append(p.Spec.Containers, second)
	})
	m.box("never", "sleep 1000", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
	m.until("ready", func() bool { return ready(m.pod("always")) && ready(m.pod("never")) })
	boxes, err := m.real.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(boxes.Items) != 2 {
		t.Fatalf("sandboxes %v %v", boxes, err)
	}
	var inside []int
	for _, b := range boxes.Items {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(m.dir), "run/sandbox", b.Id, "monitor.pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		inside = append(inside, children(t, pid)...)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if len(inside) != 3 {
		t.Errorf("%d containers' processes, want 3", len(inside))
	}
	m.until("never has failed", func() bool { return m.pod("never").Status.Phase == corev1.PodFailed })
	if s := m.pod("never").Status.ContainerStatuses[0].State.Terminated; s.ExitCode != 255 || s.Reason != "Unknown" {
		t.Errorf("never: %+v", s)
	}
	m.until("always runs again", func() bool {
		p := m.pod("always")
		return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[1].RestartCount == 1
	})
	for _, c := range m.pod("always").Status.ContainerStatuses {
		if l := c.LastTerminationState.Terminated; l == nil || l.ExitCode != 255 || l.Reason != "Unknown" {
			t.Errorf("always: %s ended before as %+v", c.Name, l)
		}
	}
	for _, pid := range inside {
		m.until("process is gone", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	}
	for e := range view.List[*corev1.Event](m.view.Snapshot(), kind.Event, "default") {
		if e.Reason == "Failed" {
			t.Errorf("event %s: %s", e.InvolvedObject.Name, e.Message)
		}
	}
	m.delete("always")
	m.delete("never")
	m.until("all gone", func() bool { return len(m.agentPods()) == 0 })
}

func children(t *testing.T, pid int) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("children of %d: %v %v", pid, files, err)
	}
	var out []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(w)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, n)
		}
	}
	return out
}
