package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"proa.dev/node/pod"
)

func TestRegistryMatches(t *testing.T) {
	for _, c := range []struct {
		key, image string
		want       bool
	}{
		{"reg.example", "reg.example/team/web:1", true},
		{"https://reg.example/v1/", "reg.example/web", true},
		{"reg.example/team", "reg.example/team/web", true},
		{"reg.example/team", "reg.example/other/web", false},
		{"reg.example:5000", "reg.example/web", false},
		{"reg.example:5000", "reg.example:5000/web", true},
		{"*.reg.example", "eu.reg.example/web", true},
		{"*.reg.example", "a.eu.reg.example/web", false},
		{"https://index.docker.io/v1/", "nginx:1", true},
		{"docker.io", "library/nginx", true},
		{"reg.example", "nginx", false},
	} {
		if got := registryMatches(c.key, c.image); got != c.want {
			t.Errorf("credentials for %q, image %q: %v", c.key, c.image, got)
		}
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"$(A)": "1", "x$(A)y": "x1y", "$$(A)": "$(A)", "$(NO)": "$(NO)", "$(A": "$(A", "$": "$", "$(B)": "$(A)", "a$b": "a$b", "$$$(A)": "$1",
	} {
		if got := expand0(in, values); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
	if _, err := expandStrict("$(NO)/x", values); err == nil || err.Error() != `missing value for "NO"` {
		t.Errorf("strict: %v", err)
	}
}

func TestServiceVariables(t *testing.T) {
	out := map[string]string{}
	addService(out, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "redis-primary"}, Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.11",
		Ports: []corev1.ServicePort{{Name: "db-main", Port: 6379, Protocol: corev1.ProtocolTCP}}}})
	addService(out, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 1}}}})
	want := map[string]string{
		"REDIS_PRIMARY_SERVICE_HOST": "10.0.0.11", "REDIS_PRIMARY_SERVICE_PORT": "6379", "REDIS_PRIMARY_SERVICE_PORT_DB_MAIN": "6379",
		"REDIS_PRIMARY_PORT": "tcp://10.0.0.11:6379", "REDIS_PRIMARY_PORT_6379_TCP": "tcp://10.0.0.11:6379", "REDIS_PRIMARY_PORT_6379_TCP_PROTO": "tcp",
		"REDIS_PRIMARY_PORT_6379_TCP_PORT": "6379", "REDIS_PRIMARY_PORT_6379_TCP_ADDR": "10.0.0.11",
	}
	if !reflect.DeepEqual(out, want) {
		t.Errorf("variables %v", out)
	}
}

func TestDNSConfig(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(resolv, []byte("# host\nnameserver 192.0.2.53\nsearch corp.example.\noptions timeout:1\n"), 0o644)
	a := &Agent{cfg: Config{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", ResolvConf: resolv}}
	two := "2"
	for _, c := range []struct {
		name string
		spec corev1.PodSpec
		want string
	}{
		{"cluster first", corev1.PodSpec{}, "[10.96.0.10] [shop.svc.cluster.local svc.cluster.local cluster.local corp.example] [ndots:5]"},
		{"host network", corev1.PodSpec{HostNetwork: true}, "[192.0.2.53] [corp.example] [timeout:1]"},
		{"host network, cluster", corev1.PodSpec{HostNetwork: true, DNSPolicy: corev1.DNSClusterFirstWithHostNet}, "[10.96.0.10] [shop.svc.cluster.local svc.cluster.local cluster.local corp.example] [ndots:5]"},
		{"default", corev1.PodSpec{DNSPolicy: corev1.DNSDefault}, "[192.0.2.53] [corp.example] [timeout:1]"},
		{"none", corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "1.1.1.1"}, Searches: []string{"x"},
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}}, "[1.1.1.1] [x] [ndots:2 edns0]"},
		{"own ndots", corev1.PodSpec{DNSConfig: &corev1.PodDNSConfig{Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}}}},
			"[10.96.0.10] [shop.svc.cluster.local svc.cluster.local cluster.local corp.example] [ndots:2]"},
	} {
		d, err := a.dnsConfig(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: c.spec})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(d.Servers, " ", d.Searches, " ", d.Options); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 8 {
		if err := os.WriteFile(path, []byte(fmt.Sprintf("part %d\n", i)), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := rotate(context.Background(), path, 5, now.Add(time.Duration(i)*time.Second), func() error { return os.WriteFile(path, nil, 0o644) }); err != nil {
			t.Fatal(err)
		}
	}
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimPrefix(e.Name(), "0.log"))
	}
	sort.Strings(names)
	want := []string{"", ".20260101-000004.000.gz", ".20260101-000005.000.gz", ".20260101-000006.000.gz", ".20260101-000007.000"}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	// A writer that does not reopen keeps its file under the old name.
	if err := rotate(context.Background(), path, 5, now.Add(time.Hour), func() error { return os.ErrPermission }); err == nil {
		t.Error("the failed reopening is not reported")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestRequests(t *testing.T) {
	cpu := func(s string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(s)}}
	}
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "a", Resources: cpu("2")}, {Name: "s", RestartPolicy: &always, Resources: cpu("1")}, {Name: "b", Resources: cpu("4")}},
		Containers:     []corev1.Container{{Name: "m", Resources: cpu("500m")}, {Name: "n", Resources: cpu("500m")}},
		Overhead:       corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}}}
	got := requests(p)[corev1.ResourceCPU]
	if got.MilliValue() != 5100 { // b beside the sidecar, and the overhead
		t.Errorf("requests %s", got.String())
	}
}

func TestShortOfDisk(t *testing.T) {
	e := Eviction{}
	e.defaults("/")
	total := int64(252) << 30
	if short(total, 20<<30, e.DiskPercent, e.DiskBytes) {
		t.Error("a large disk that is 92 % full, with 20 GiB left, counts as full")
	}
	if !short(total, 1<<30, e.DiskPercent, e.DiskBytes) || short(4<<30, 1<<30, e.DiskPercent, e.DiskBytes) {
		t.Error("bounds of disk pressure")
	}
}

func TestJoinTarget(t *testing.T) {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}, {Name: "b"}}, EphemeralContainers: []corev1.EphemeralContainer{
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "look"}, TargetContainerName: "a"},
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "early"}, TargetContainerName: "b"},
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "free"}},
	}}}
	containers := []pod.Container{{Name: "a", ID: "id-a"}, {Name: "b"}}
	shared := p.DeepCopy()
	shared.Spec.ShareProcessNamespace = new(bool)
	*shared.Spec.ShareProcessNamespace = true
	for _, c := range []struct {
		pod            *corev1.Pod
		container      string
		mode           runtimeapi.NamespaceMode
		target, refuse string
	}{
		{p, "look", runtimeapi.NamespaceMode_TARGET, "id-a", ""},
		{p, "early", runtimeapi.NamespaceMode_CONTAINER, "", "unable to find target container b"},
		{p, "free", runtimeapi.NamespaceMode_CONTAINER, "", ""},
		{p, "a", runtimeapi.NamespaceMode_CONTAINER, "", ""},
		{shared, "look", runtimeapi.NamespaceMode_POD, "", ""},
	} {
		cfg := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: c.container},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces(c.pod)}}}
		err := joinTarget(cfg, c.pod, containers)
		ns := cfg.Linux.SecurityContext.NamespaceOptions
		if (err == nil) != (c.refuse == "") || err != nil && err.Error() != c.refuse || ns.Pid != c.mode || ns.TargetId != c.target {
			t.Errorf("%s: %s of %q, %v; want %s of %q, %q", c.container, ns.Pid, ns.TargetId, err, c.mode, c.target, c.refuse)
		}
	}
}
