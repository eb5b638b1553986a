package proxy

import (
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The nft program lists what stands in the kernel, even if it cannot say it all:
// operators and other programs call it.
func TestProgramLists(t *testing.T) {
	program, err := exec.LookPath("nft")
	if err != nil {
		t.Fatalf("%v; tools/deps.sh test installs it", err)
	}
	w := newWorld(t, "list")
	w.apply(service("s", "10.96.0.2", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.Ports[0].NodePort = 30080
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.LoadBalancerSourceRanges = []string{"198.18.0.0/15"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	}), endpoints("s", 8080, "10.1.0.9"), service("empty", "10.96.0.3", nil))
	w.start()
	w.host.Must(func() error {
		out, err := exec.Command(program, "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Errorf("nft list ruleset: %v: %s", err, out[max(0, len(out)-300):])
		}
		for _, want := range []string{"map services4", "10.96.0.2 . tcp . 80", "chain prerouting-again", "chain masquerade4", "198.18.0.0/15"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("nft list ruleset does not show %q", want)
			}
		}
		return nil
	})
}
