package engine

import (
	"context"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRunOne(t *testing.T) {
	r := newRig(t)
	t0 := time.Now()
	sb, sc := r.pod(nil)
	t1 := time.Now()
	id := r.create(sb, sc, shell("echo hello; echo problem >&2; exit 3"))
	t2 := time.Now()
	if _, err := r.StartContainer(context.Background(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	t.Logf("sandbox %v, create %v, start %v", t1.Sub(t0), t2.Sub(t1), time.Since(t2))
	st := r.exited(id)
	if st.ExitCode != 3 || st.Reason != "Error" || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("status %v", st)
	}
	if got := logText(t, st.LogPath); got != "hello\nproblem\n" && got != "problem\nhello\n" {
		t.Errorf("log %q", got)
	}
}
