package machine

import (
	"bufio"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// forward runs kubectl port-forward until stop and returns the local port.
func (b *box) forward(t testing.TB, ns, target, port string) (local string, stop func()) {
	t.Helper()
	c := exec.Command(binary, b.flags("kubectl", "-n", ns, "port-forward", target, ":"+port)...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() { c.Process.Kill(); c.Wait() }
	found := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if m := regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`).FindStringSubmatch(lines.Text()); m != nil {
				found <- m[1]
				break
			}
		}
		for lines.Scan() {
		}
	}()
	select {
	case local = <-found:
	case <-time.After(20 * time.Second):
		stop()
		t.Fatalf("port-forward to %s: no port after 20 s", target)
	}
	return local, stop
}

func started(p *corev1.Pod) bool {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Waiting != nil {
			return false
		}
	}
	return len(p.Status.ContainerStatuses) > 0
}
