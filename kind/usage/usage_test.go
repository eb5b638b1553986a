package usage

import (
	"sort"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

func list(text string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for f := range strings.FieldsSeq(text) {
		n, q, _ := strings.Cut(f, "=")
		out[corev1.ResourceName(n)] = resource.MustParse(q)
	}
	return out
}

func text(l corev1.ResourceList) string {
	var parts []string
	for n, q := range l {
		parts = append(parts, string(n)+"="+q.String())
	}
	sort.Strings(parts)
	return strings.Join(parts, " ")
}

func container(requests, limits string) corev1.Container {
	return corev1.Container{Resources: corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}
}

func sidecar(requests string) corev1.Container {
	c, always := container(requests, ""), corev1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func TestPodRequests(t *testing.T) {
	type cs = []corev1.Container
	for _, c := range []struct {
		name string
		spec corev1.PodSpec
		want string
	}{
		{"sum", corev1.PodSpec{Containers: cs{container("cpu=1 memory=1Gi", ""), container("cpu=500m", "")}}, "cpu=1500m memory=1Gi"},
		{"init is larger", corev1.PodSpec{Containers: cs{container("cpu=1", "")}, InitContainers: cs{container("cpu=3", ""), container("cpu=2 memory=1", "")}}, "cpu=3 memory=1"},
		{"init is smaller", corev1.PodSpec{Containers: cs{container("cpu=1", "")}, InitContainers: cs{container("cpu=500m", "")}}, "cpu=1"},
		{"sidecar", corev1.PodSpec{Containers: cs{container("cpu=1", "")}, InitContainers: cs{sidecar("cpu=2")}}, "cpu=3"},
		{"init beside an earlier sidecar", corev1.PodSpec{Containers: cs{container("cpu=1", "")}, InitContainers: cs{sidecar("cpu=2"), container("cpu=4", "")}}, "cpu=6"},
		{"init before the sidecar", corev1.PodSpec{Containers: cs{container("cpu=1", "")}, InitContainers: cs{container("cpu=4", ""), sidecar("cpu=2")}}, "cpu=4"},
		{"overhead", corev1.PodSpec{Containers: cs{container("cpu=1", "")}, Overhead: list("cpu=100m memory=5Mi")}, "cpu=1100m memory=5Mi"},
		{"of the pod", corev1.PodSpec{Containers: cs{container("cpu=1 memory=1", "")}, Resources: &corev1.ResourceRequirements{Requests: list("cpu=4")}}, "cpu=4 memory=1"},
	} {
		p := &corev1.Pod{Spec: c.spec}
		before := p.DeepCopy()
		if got := text(PodRequests(p)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if before.String() != p.String() {
			t.Errorf("%s: the pod was changed", c.name)
		}
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: cs{container("", "cpu=1")}, Overhead: list("cpu=100m memory=5Mi")}}
	if got := text(PodLimits(p)); got != "cpu=1100m" {
		t.Errorf("limits with overhead: %s", got)
	}
}

func TestOf(t *testing.T) {
	no, gold := false, "gold"
	ports := []corev1.ServicePort{{Port: 1}, {Port: 2, NodePort: 30000}}
	for _, c := range []struct {
		name string
		k    *kind.Kind
		o    kind.Object
		want string
	}{
		{"pod", kind.Pod, &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{container("cpu=1 nvidia.com/gpu=2", "memory=1Gi nvidia.com/gpu=2")}}},
			"count/pods=1 cpu=1 limits.memory=1Gi pods=1 requests.cpu=1 requests.nvidia.com/gpu=2"},
		{"ended pod", kind.Pod, &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}, Spec: corev1.PodSpec{Containers: []corev1.Container{container("cpu=1", "")}}}, "count/pods=1"},
		{"cluster IP", kind.Service, &corev1.Service{Spec: corev1.ServiceSpec{Ports: ports}}, "count/services=1 services=1"},
		{"node port", kind.Service, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: ports}}, "count/services=1 services.nodeports=2 services=1"},
		{"load balancer", kind.Service, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: ports}}, "count/services=1 services.loadbalancers=1 services.nodeports=2 services=1"},
		{"load balancer alone", kind.Service, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: ports, AllocateLoadBalancerNodePorts: &no}}, "count/services=1 services.loadbalancers=1 services.nodeports=1 services=1"},
		{"claim", kind.PersistentVolumeClaim, &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &gold, Resources: corev1.VolumeResourceRequirements{Requests: list("storage=1Gi")}}},
			"count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/requests.storage=1Gi persistentvolumeclaims=1 requests.storage=1Gi"},
		{"deployment", kind.Deployment, &appsv1.Deployment{}, "count/deployments.apps=1"},
		{"secret", kind.Secret, &corev1.Secret{}, "count/secrets=1 secrets=1"},
	} {
		if got := text(Of(c.k, c.o)); got != c.want {
			t.Errorf("%s:\n%s, want\n%s", c.name, got, c.want)
		}
	}
}

func TestMatches(t *testing.T) {
	pod := func(change func(*corev1.PodSpec)) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{container("", "")}}}
		change(&p.Spec)
		return p
	}
	plain := pod(func(*corev1.PodSpec) {})
	busy := pod(func(s *corev1.PodSpec) { s.Containers[0] = container("cpu=1", "") })
	short := pod(func(s *corev1.PodSpec) { n := int64(5); s.ActiveDeadlineSeconds = &n })
	high := pod(func(s *corev1.PodSpec) { s.PriorityClassName = "high" })
	cross := pod(func(s *corev1.PodSpec) {
		s.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
			{PodAffinityTerm: corev1.PodAffinityTerm{NamespaceSelector: &metav1.LabelSelector{}}}}}}
	})
	fast := "fast"
	claim := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeAttributesClassName: &fast}}
	where := func(name corev1.ResourceQuotaScope, op corev1.ScopeSelectorOperator, values ...string) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{{ScopeName: name, Operator: op, Values: values}}}}}
	}
	of := func(s ...corev1.ResourceQuotaScope) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Scopes: s}}
	}
	for i, c := range []struct {
		q    *corev1.ResourceQuota
		o    kind.Object
		want bool
	}{
		{of(), plain, true}, {of(), &corev1.Secret{}, true}, {of("BestEffort"), &corev1.Secret{}, false},
		{of("BestEffort"), plain, true}, {of("BestEffort"), busy, false}, {of("NotBestEffort"), busy, true}, {of("NotBestEffort"), plain, false},
		{of("Terminating"), short, true}, {of("Terminating"), plain, false}, {of("NotTerminating"), plain, true}, {of("NotTerminating"), short, false},
		{of("BestEffort", "Terminating"), short, true}, {of("BestEffort", "Terminating"), plain, false},
		{of("PriorityClass"), high, true}, {of("PriorityClass"), plain, false},
		{where("PriorityClass", "In", "low", "high"), high, true}, {where("PriorityClass", "In", "low"), high, false},
		{where("PriorityClass", "NotIn", "low"), high, true}, {where("PriorityClass", "DoesNotExist"), plain, true}, {where("PriorityClass", "DoesNotExist"), high, false},
		{of("CrossNamespacePodAffinity"), cross, true}, {of("CrossNamespacePodAffinity"), plain, false},
		{where("VolumeAttributesClass", "In", "fast"), claim, true}, {where("VolumeAttributesClass", "In", "slow"), claim, false}, {of("BestEffort"), claim, false},
		{of("Unknown"), plain, false},
	} {
		k := kind.Pod
		if got := Matches(c.q, k, c.o); got != c.want {
			t.Errorf("case %d: %v, want %v (%+v)", i, got, c.want, c.q.Spec)
		}
	}
}
