package node_test

import (
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"
)

func umount(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Errorf("unmount %q: %v", path, err)
	}
}

func write(t testing.TB, path string, bytes int) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, bytes), 0o644); err != nil {
		t.Fatal(err)
	}
}

// hasReason says whether a pod has a condition for the reason.
func hasReason(p *corev1.Pod, c corev1.PodConditionType, reason string) bool {
	for _, x := range p.Status.Conditions {
		if x.Type == c {
			return x.Status == corev1.ConditionTrue && x.Reason == reason
		}
	}
	return false
}
