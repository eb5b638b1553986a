package kind

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// Service gives pods a lasting address. Addresses, ports and IP families are
// allocated by the API server; nothing here invents them.
var Service = define[corev1.ServiceList](Row[*corev1.Service]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Service", Plural: "services",
		ShortNames: []string{"svc"},
		Categories: []string{"all"},
		Scope:      Namespaced,
		Prefix:     "services/specs",
	},
	Validate:            validate.Service,
	ValidateUpdate:      validate.ServiceUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Default:             defaultService,
	PrepareCreate: func(s *corev1.Service) {
		s.Status = corev1.ServiceStatus{}
		if s.Spec.ClusterIP != "" && len(s.Spec.ClusterIPs) == 0 {
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		}
	},
	PrepareUpdate: func(new, old *corev1.Service) {
		new.Status = old.Status
		followClusterIP(&new.Spec, &old.Spec)
		keepAllocated(&new.Spec, &old.Spec)
		dropOutgrown(&new.Spec, &old.Spec)
	},
	Warnings: serviceWarnings,
	Subresources: []Subresource{
		{Name: "proxy", Kind: "ServiceProxyOptions", Verbs: []string{"create", "delete", "get", "patch", "update"}},
	},
	Status: &DoorOf[*corev1.Service]{
		ValidateUpdate: validate.ServiceStatusUpdate,
		PrepareUpdate:  func(new, old *corev1.Service) { new.Spec = old.Spec },
	},
	Selectable: map[string]func(*corev1.Service) string{
		"spec.clusterIP": func(s *corev1.Service) string { return s.Spec.ClusterIP },
		"spec.type":      func(s *corev1.Service) string { return string(s.Spec.Type) },
	},
	Columns: columns("Type, Cluster-IP, External-IP, Port(s) | Selector"),
	Cells: func(s *corev1.Service, now time.Time) []any {
		ip := none
		if len(s.Spec.ClusterIPs) > 0 {
			ip = s.Spec.ClusterIPs[0]
		}
		return []any{s.Name, string(s.Spec.Type), ip, externalCell(s), portsCell(s.Spec.Ports), age(s, now), mapCell(s.Spec.Selector)}
	},
})

func defaultService(svc *corev1.Service) {
	s := &svc.Spec
	fill(&s.SessionAffinity, corev1.ServiceAffinityNone)
	switch s.SessionAffinity {
	case corev1.ServiceAffinityNone:
		s.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if s.SessionAffinityConfig == nil || s.SessionAffinityConfig.ClientIP == nil || s.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(corev1.DefaultClientIPServiceAffinitySeconds)},
			}
		}
	}
	fill(&s.Type, corev1.ServiceTypeClusterIP)
	for i := range s.Ports {
		p := &s.Ports[i]
		fill(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(s) {
		fill(&s.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if hasClusterIP(s) {
		fillPtr(&s.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if s.Type == corev1.ServiceTypeLoadBalancer {
		fillPtr(&s.AllocateLoadBalancerNodePorts, true)
		for i := range svc.Status.LoadBalancer.Ingress {
			if in := &svc.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				fillPtr(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
}

func hasClusterIP(s *corev1.ServiceSpec) bool { return s.Type != corev1.ServiceTypeExternalName }

func hasNodePorts(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer
}

func hasHealthPort(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func externallyAccessible(s *corev1.ServiceSpec) bool {
	return hasNodePorts(s) || s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
}

// followClusterIP keeps the singular and the plural address field in step when a
// client that knows only the singular changed it.
func followClusterIP(new, old *corev1.ServiceSpec) {
	if !same(new.ClusterIPs, old.ClusterIPs) {
		return
	}
	switch {
	case new.ClusterIP == "" && old.ClusterIP != "":
		new.ClusterIPs = nil
	case new.ClusterIP != old.ClusterIP:
		new.ClusterIPs = []string{new.ClusterIP}
	}
}

// keepAllocated lets an update that leaves out what was allocated keep it.
func keepAllocated(new, old *corev1.ServiceSpec) {
	if hasClusterIP(old) && hasClusterIP(new) && new.ClusterIP == "" && len(new.ClusterIPs) == 0 {
		new.ClusterIP, new.ClusterIPs = old.ClusterIP, old.ClusterIPs
	}
	if hasNodePorts(old) && hasNodePorts(new) {
		type port struct {
			protocol corev1.Protocol
			port     int32
		}
		allocated, used := map[port]int32{}, map[int32]bool{}
		for _, p := range old.Ports {
			allocated[port{p.Protocol, p.Port}] = p.NodePort
		}
		for _, p := range new.Ports {
			used[p.NodePort] = true
		}
		for i := range new.Ports {
			p := &new.Ports[i]
			if was := allocated[port{p.Protocol, p.Port}]; p.NodePort == 0 && !used[was] {
				p.NodePort = was
			}
		}
	}
	if hasHealthPort(old) && hasHealthPort(new) {
		fill(&new.HealthCheckNodePort, old.HealthCheckNodePort)
	}
}

// dropOutgrown clears what belonged to the old type and was not touched, so that
// changing the type alone is a valid update.
func dropOutgrown(new, old *corev1.ServiceSpec) {
	if hasClusterIP(old) && !hasClusterIP(new) {
		if new.ClusterIP == old.ClusterIP && same(new.ClusterIPs, old.ClusterIPs) {
			new.ClusterIP, new.ClusterIPs = "", nil
		}
		if same(new.IPFamilies, old.IPFamilies) {
			new.IPFamilies = nil
		}
		if same(new.IPFamilyPolicy, old.IPFamilyPolicy) {
			new.IPFamilyPolicy = nil
		}
		if same(new.InternalTrafficPolicy, old.InternalTrafficPolicy) {
			new.InternalTrafficPolicy = nil
		}
	}
	if hasNodePorts(old) && !hasNodePorts(new) && sameNodePorts(new, old) {
		for i := range new.Ports {
			new.Ports[i].NodePort = 0
		}
	}
	if hasHealthPort(old) && !hasHealthPort(new) && new.HealthCheckNodePort == old.HealthCheckNodePort {
		new.HealthCheckNodePort = 0
	}
	if old.Type == corev1.ServiceTypeLoadBalancer && new.Type != corev1.ServiceTypeLoadBalancer {
		if same(new.AllocateLoadBalancerNodePorts, old.AllocateLoadBalancerNodePorts) {
			new.AllocateLoadBalancerNodePorts = nil
		}
		if same(new.LoadBalancerClass, old.LoadBalancerClass) {
			new.LoadBalancerClass = nil
		}
	}
	if externallyAccessible(old) && !externallyAccessible(new) && new.ExternalTrafficPolicy == old.ExternalTrafficPolicy {
		new.ExternalTrafficPolicy = ""
	}
	if old.Type == corev1.ServiceTypeExternalName && new.Type != corev1.ServiceTypeExternalName && new.ExternalName == old.ExternalName {
		new.ExternalName = ""
	}
}

// sameNodePorts says that new has no node port that old had not.
func sameNodePorts(new, old *corev1.ServiceSpec) bool {
	had := map[int32]bool{0: true}
	for _, p := range old.Ports {
		had[p.NodePort] = true
	}
	for _, p := range new.Ports {
		if !had[p.NodePort] {
			return false
		}
	}
	return true
}

func serviceWarnings(new, old *corev1.Service) []string {
	if old != nil && same(new.Spec, old.Spec) && same(new.Annotations, old.Annotations) {
		return nil
	}
	var out []string
	warn := func(at *field.Path, format string, args ...any) {
		out = append(out, at.String()+": "+fmt.Sprintf(format, args...))
	}
	path := field.NewPath("spec")
	if key := corev1.DeprecatedAnnotationTopologyAwareHints; new.Annotations[key] != "" {
		warn(field.NewPath("metadata", "annotations").Key(key), "annotation is deprecated, use %q instead", corev1.AnnotationTopologyMode)
	}
	if len(new.Spec.ClusterIPs) > 0 && new.Spec.ClusterIP != corev1.ClusterIPNone {
		for i, ip := range new.Spec.ClusterIPs {
			addressWarning(path.Child("clusterIPs").Index(i), ip, warn)
		}
	}
	for i, ip := range new.Spec.ExternalIPs {
		addressWarning(path.Child("externalIPs").Index(i), ip, warn)
	}
	addressWarning(path.Child("loadBalancerIP"), new.Spec.LoadBalancerIP, warn)
	if new.Spec.Type == corev1.ServiceTypeExternalName && new.Spec.ExternalTrafficPolicy != "" {
		warn(path.Child("externalTrafficPolicy"), "may not be set when `type` is 'ExternalName'")
	}
	return out
}

func externalCell(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		all := map[string]bool{}
		for _, in := range s.Status.LoadBalancer.Ingress {
			noteAddress(all, in.IP, in.Hostname)
		}
		words := append(slices.Sorted(maps.Keys(all)), s.Spec.ExternalIPs...)
		if len(words) == 0 {
			return "<pending>"
		}
		return strings.Join(words, ",")
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return orNone(strings.Join(s.Spec.ExternalIPs, ","))
	}
	return unknown
}

// noteAddress collects where a load balancer can be reached: an IP before a name.
func noteAddress(all map[string]bool, ip, name string) {
	if ip == "" {
		ip = name
	}
	if ip != "" {
		all[ip] = true
	}
}

func portsCell(ports []corev1.ServicePort) string {
	words := make([]string, len(ports))
	for i, p := range ports {
		words[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort > 0 {
			words[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	return orNone(strings.Join(words, ","))
}
