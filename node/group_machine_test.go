package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"proa.dev/engine/cgroup"
)

// groupFile reads the weight or quota of a group below the engine's.
func (m *machine) groupFile(group, v1Controller, v1File, v2File string) string {
	m.t.Helper()
	tree, err := cgroup.Detect("self")
	if err != nil {
		m.t.Fatal(err)
	}
	file := v1File
	if tree.V2 {
		file = v2File
	}
	b, err := os.ReadFile(filepath.Join(tree.Dir(v1Controller, filepath.Join(fmt.Sprintf("proa-nodetest-%d", os.Getpid()), group)), file))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

func TestWeightsAndImageVolumes(t *testing.T) {
	m := newMachine(t)
	asks := func(cpu string) func(p *corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		}
	}
	m.box("effort", "sleep 1000", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "tools", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "box:1", PullPolicy: corev1.PullIfNotPresent}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "tools", MountPath: "/tools"}}
		p.Spec.Containers[0].Command = []string{"sh", "-c", "/tools/bin/echo from the volume; sleep 1000"}
	})
	m.box("burst", "sleep 1000", asks("500m"))
	m.box("more", "sleep 1000", asks("250m"))
	m.box("without", "sleep 1000", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "tools", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "nowhere.invalid/no:1", PullPolicy: corev1.PullNever}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "tools", MountPath: "/tools"}}
	})
	m.until("ready", func() bool { return ready(m.pod("effort")) && ready(m.pod("burst")) && ready(m.pod("more")) })
	m.until("the volume's program has spoken", func() bool { return m.log(t, "effort", "app", "") == "from the volume\n" })
	m.until("missing volume image", func() bool {
		s := waiting(m.pod("without"))
		return s != nil && s.Reason == "ErrImageNeverPull" && strings.HasPrefix(s.Message, `volume "tools": Container image "nowhere.invalid/no:1" is not present`)
	})
	uid := func(name string) string { return "pod" + string(m.pod(name).UID) }
	for _, c := range []struct{ group, v1, v2 string }{
		{"besteffort", "2", "1"}, {"burstable", "768", "80"}, {"burstable/" + uid("burst"), "512", "59"}, {"burstable/" + uid("more"), "256", "35"}, {"besteffort/" + uid("effort"), "2", "1"},
	} {
		m.until("weight of "+c.group, func() bool {
			got := m.groupFile(c.group, "cpu", "cpu.shares", "cpu.weight")
			return got == c.v1 || got == c.v2
		})
	}
	m.delete("more")
	m.until("weight of what is left", func() bool {
		got := m.groupFile("burstable", "cpu", "cpu.shares", "cpu.weight")
		return got == "512" || got == "59"
	})
	for _, name := range []string{"effort", "burst", "without"} {
		m.delete(name)
	}
	m.until("all gone", func() bool { return len(m.agentPods()) == 0 })
}
