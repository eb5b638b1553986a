package validate

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

const maxAffinitySeconds = 86400

var serviceTypes = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort}

// Service checks a new service, before or after its addresses are allocated.
func Service(s *corev1.Service) field.ErrorList {
	return append(ObjectMeta(&s.ObjectMeta, true, NameDNSLabel, meta()), service(s, nil)...)
}

// service checks everything but the metadata. Addresses and ranges that old has
// are not checked again: older rules allowed others.
func service(s, old *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	path := spec()
	was := &corev1.Service{}
	if old != nil {
		was = old
	}
	hints, hinted := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if mode, ok := s.Annotations[corev1.AnnotationTopologyMode]; ok && hinted && mode != hints {
		errs = append(errs, field.Invalid(meta().Child("annotations").Key(corev1.AnnotationTopologyMode), mode,
			fmt.Sprintf("must match annotations[%s] when both are specified", corev1.DeprecatedAnnotationTopologyAwareHints)))
	}

	if len(s.Spec.Ports) == 0 && !headless(s) && s.Spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(path.Child("ports"), ""))
	}
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		if headless(s) {
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(0), s.Spec.ClusterIPs[0], "may not be set to 'None' for LoadBalancer services"))
		}
	case corev1.ServiceTypeNodePort:
		if headless(s) {
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(0), s.Spec.ClusterIPs[0], "may not be set to 'None' for NodePort services"))
		}
	case corev1.ServiceTypeExternalName:
		if len(s.Spec.ClusterIPs) > 0 {
			errs = append(errs, field.Forbidden(path.Child("clusterIPs"), "may not be set for ExternalName services"))
		}
		if len(s.Spec.IPFamilies) > 0 {
			errs = append(errs, field.Forbidden(path.Child("ipFamilies"), "may not be set for ExternalName services"))
		}
		if s.Spec.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(path.Child("ipFamilyPolicy"), "may not be set for ExternalName services"))
		}
		// A name may end in a dot.
		if cname := strings.TrimSuffix(s.Spec.ExternalName, "."); cname != "" {
			errs = append(errs, dnsSubdomain(cname, path.Child("externalName"))...)
		} else {
			errs = append(errs, field.Required(path.Child("externalName"), ""))
		}
	}

	requireNames := len(s.Spec.Ports) > 1
	names := sets.New[string]()
	for i := range s.Spec.Ports {
		errs = append(errs, servicePort(&s.Spec.Ports[i], requireNames, names, path.Child("ports").Index(i))...)
	}
	errs = append(errs, labels(s.Spec.Selector, path.Child("selector"))...)
	errs = append(errs, requiredSupported(s.Spec.SessionAffinity, path.Child("sessionAffinity"), corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		errs = append(errs, affinityConfig(s.Spec.SessionAffinityConfig, path.Child("sessionAffinityConfig"))...)
	} else if s.Spec.SessionAffinity == corev1.ServiceAffinityNone && s.Spec.SessionAffinityConfig != nil {
		errs = append(errs, field.Forbidden(path.Child("sessionAffinityConfig"), fmt.Sprintf("must not be set when session affinity is %s", corev1.ServiceAffinityNone)))
	}
	errs = append(errs, clusterIPs(s, was.Spec.ClusterIPs)...)
	for i, ip := range s.Spec.ExternalIPs {
		p := path.Child("externalIPs").Index(i)
		if bad := legacyIP(ip, p, was.Spec.ExternalIPs); len(bad) > 0 {
			errs = append(errs, bad...)
		} else {
			errs = append(errs, nonSpecialIP(ip, p)...)
		}
	}
	errs = append(errs, requiredSupported(s.Spec.Type, path.Child("type"), serviceTypes...)...)
	errs = append(errs, distinctPorts(s)...)
	errs = append(errs, sourceRanges(s, was)...)
	if s.Spec.AllocateLoadBalancerNodePorts != nil && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(path.Child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'"))
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.AllocateLoadBalancerNodePorts == nil {
		errs = append(errs, field.Required(field.NewPath("allocateLoadBalancerNodePorts"), ""))
	}
	errs = append(errs, loadBalancerClass(s)...)
	return append(errs, trafficPolicies(s)...)
}

func headless(s *corev1.Service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

func servicePort(port *corev1.ServicePort, requireName bool, names sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch {
	case requireName && port.Name == "":
		errs = append(errs, field.Required(path.Child("name"), ""))
	case port.Name != "":
		errs = append(errs, dnsLabel(port.Name, path.Child("name"))...)
		if names.Has(port.Name) {
			errs = append(errs, field.Duplicate(path.Child("name"), port.Name))
		}
		names.Insert(port.Name)
	}
	errs = append(errs, portNumber(port.Port, path.Child("port"))...)
	errs = append(errs, requiredSupported(port.Protocol, path.Child("protocol"), corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
	errs = append(errs, portNumberOrName(port.TargetPort, path.Child("targetPort"))...)
	if port.AppProtocol != nil {
		errs = append(errs, qualifiedName(*port.AppProtocol, path.Child("appProtocol"))...)
	}
	return errs
}

func affinityConfig(c *corev1.SessionAffinityConfig, path *field.Path) field.ErrorList {
	if c == nil {
		return field.ErrorList{field.Required(path, fmt.Sprintf("when session affinity type is %s", corev1.ServiceAffinityClientIP))}
	}
	p := path.Child("clientIP")
	if c.ClientIP == nil {
		return field.ErrorList{field.Required(p, fmt.Sprintf("when session affinity type is %s", corev1.ServiceAffinityClientIP))}
	}
	if c.ClientIP.TimeoutSeconds == nil {
		return field.ErrorList{field.Required(p.Child("timeoutSeconds"), fmt.Sprintf("when session affinity type is %s", corev1.ServiceAffinityClientIP))}
	}
	if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > maxAffinitySeconds {
		return field.ErrorList{field.Invalid(p.Child("timeoutSeconds"), t, fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds))}
	}
	return nil
}

func distinctPorts(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	path := spec().Child("ports")
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	seen, nodePorts := map[key]bool{}, map[key]bool{}
	if s.Spec.Type == corev1.ServiceTypeClusterIP {
		for i, port := range s.Spec.Ports {
			if port.NodePort != 0 {
				errs = append(errs, field.Forbidden(path.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	}
	for i, port := range s.Spec.Ports {
		if port.NodePort == 0 {
			continue
		}
		k := key{port.Protocol, port.NodePort}
		if nodePorts[k] {
			errs = append(errs, field.Duplicate(path.Index(i).Child("nodePort"), port.NodePort))
		}
		nodePorts[k] = true
	}
	for i, port := range s.Spec.Ports {
		k := key{port.Protocol, port.Port}
		if seen[k] {
			errs = append(errs, field.Duplicate(path.Index(i), corev1.ServicePort{Protocol: port.Protocol, Port: port.Port}))
		}
		seen[k] = true
	}
	return errs
}

// sourceRanges checks the ranges in the field, or in the annotation that was before
// it. The path has always begun with a capital letter.
func sourceRanges(s, old *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	path := spec().Child("LoadBalancerSourceRanges")
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
			errs = append(errs, field.Forbidden(path, "may only be used when `type` is 'LoadBalancer'"))
		}
		var known []string
		for _, r := range old.Spec.LoadBalancerSourceRanges {
			known = append(known, strings.TrimSpace(r))
		}
		for i, r := range s.Spec.LoadBalancerSourceRanges {
			// Surrounding spaces were always allowed.
			errs = append(errs, validation.IsValidCIDRForLegacyField(path.Index(i), strings.TrimSpace(r), true, known)...)
		}
		return errs
	}
	const key = corev1.AnnotationLoadBalancerSourceRangesKey
	v, ok := s.Annotations[key]
	if !ok {
		return errs
	}
	p := meta().Child("annotations").Key(key)
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(p, "may only be used when `type` is 'LoadBalancer'"))
	}
	if v == old.Annotations[key] || strings.TrimSpace(v) == "" {
		return errs
	}
	for r := range strings.SplitSeq(v, ",") {
		errs = append(errs, validation.IsValidCIDRForLegacyField(p, strings.TrimSpace(r), true, nil)...)
	}
	return errs
}

func loadBalancerClass(s *corev1.Service) field.ErrorList {
	path := spec().Child("loadBalancerClass")
	class := s.Spec.LoadBalancerClass
	if class == nil {
		return nil
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return field.ErrorList{field.Forbidden(path, "may only be used when `type` is 'LoadBalancer'")}
	}
	return qualifiedName(*class, path)
}

func trafficPolicies(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	path := spec()
	external := s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort ||
		(s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0)
	if !external {
		if s.Spec.ExternalTrafficPolicy != "" {
			errs = append(errs, field.Invalid(path.Child("externalTrafficPolicy"), s.Spec.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
		}
	} else {
		errs = append(errs, requiredSupported(s.Spec.ExternalTrafficPolicy, path.Child("externalTrafficPolicy"),
			corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	}
	if !checksHealth(s) {
		if s.Spec.HealthCheckNodePort != 0 {
			errs = append(errs, field.Invalid(path.Child("healthCheckNodePort"), s.Spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
	} else if s.Spec.HealthCheckNodePort != 0 {
		errs = append(errs, portNumber(s.Spec.HealthCheckNodePort, path.Child("healthCheckNodePort"))...)
	}
	internal := s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeClusterIP
	if internal && s.Spec.InternalTrafficPolicy == nil {
		errs = append(errs, field.Required(path.Child("internalTrafficPolicy"), ""))
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		errs = append(errs, supported(*p, path.Child("internalTrafficPolicy"), corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		errs = append(errs, supported(*d, path.Child("trafficDistribution"), corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)...)
	}
	return errs
}

// clusterIPs checks the addresses of a service and their families. Nothing is said
// about families as long as an address is wrong.
func clusterIPs(s *corev1.Service, known []string) field.ErrorList {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	var errs field.ErrorList
	path := spec().Child("clusterIPs")
	ips := s.Spec.ClusterIPs
	switch {
	case s.Spec.ClusterIP == "" && len(ips) > 0:
		errs = append(errs, field.Invalid(path, ips, "must be empty when `clusterIP` is not specified"))
	case s.Spec.ClusterIP == "":
	case len(ips) == 0:
		errs = append(errs, field.Required(path, ""))
	case ips[0] != s.Spec.ClusterIP:
		errs = append(errs, field.Invalid(path, ips, "first value must match `clusterIP`"))
	}
	seen := sets.New[corev1.IPFamily]()
	for i, f := range s.Spec.IPFamilies {
		p := spec().Child("ipFamilies").Index(i)
		errs = append(errs, supported(f, p, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		if seen.Has(f) {
			errs = append(errs, field.Duplicate(p, f))
		}
		seen.Insert(f)
	}
	if p := s.Spec.IPFamilyPolicy; p != nil {
		errs = append(errs, supported(*p, spec().Child("ipFamilyPolicy"),
			corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)...)
	}
	wrong := false
	for i, ip := range ips {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(ips) > 1 {
				wrong = true
				errs = append(errs, field.Invalid(path, ips, "'None' must be the first and only value"))
			}
			continue
		}
		bad := legacyIP(ip, path.Index(i), known)
		wrong = wrong || len(bad) > 0
		errs = append(errs, bad...)
	}
	if len(ips) > 2 {
		errs = append(errs, field.Invalid(path, ips, "may only hold up to 2 values"))
	}
	if wrong {
		return errs
	}
	if len(ips) > 1 {
		if dual, err := netutils.IsDualStackIPStrings(ips); err != nil || !dual {
			errs = append(errs, field.Invalid(path, ips, "may specify no more than one IP for each IP family"))
		}
	}
	if headless(s) {
		return errs
	}
	for i, ip := range ips[:min(len(ips), len(s.Spec.IPFamilies))] {
		want := s.Spec.IPFamilies[i]
		v6 := netutils.IsIPv6String(ip)
		if v6 && want == corev1.IPv4Protocol || !v6 && want == corev1.IPv6Protocol {
			errs = append(errs, field.Invalid(path.Index(i), ip, fmt.Sprintf("expected an %v value as indicated by `ipFamilies[%v]`", want, i)))
		}
	}
	return errs
}

// nonSpecialIP refuses addresses that never lead to one machine's service.
func nonSpecialIP(value string, path *field.Path) field.ErrorList {
	ip := netutils.ParseIPSloppy(value)
	if ip == nil {
		return field.ErrorList{field.Invalid(path, value, "must be a valid IP address")}
	}
	var errs field.ErrorList
	if ip.IsUnspecified() {
		errs = append(errs, field.Invalid(path, value, fmt.Sprintf("may not be unspecified (%v)", value)))
	}
	if ip.IsLoopback() {
		errs = append(errs, field.Invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
	}
	if ip.IsLinkLocalUnicast() {
		errs = append(errs, field.Invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
	}
	if ip.IsLinkLocalMulticast() {
		errs = append(errs, field.Invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
	}
	return errs
}

// ServiceUpdate checks an update of a service.
func ServiceUpdate(new, old *corev1.Service) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.Spec.Type != corev1.ServiceTypeExternalName && old.Spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, clusterIPUpdate(new, old)...)
		errs = append(errs, familyUpdate(new, old)...)
	}
	if n, o := new.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass; isLoadBalancer(new) && isLoadBalancer(old) && !equality.Semantic.DeepEqual(n, o) {
		errs = append(errs, field.Invalid(spec().Child("loadBalancerClass"), n, onceSet))
	}
	if checksHealth(new) && checksHealth(old) && new.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(spec().Child("healthCheckNodePort"), immutable))
	}
	return append(errs, service(new, old)...)
}

const onceSet = "may not change once set"

func isLoadBalancer(s *corev1.Service) bool { return s.Spec.Type == corev1.ServiceTypeLoadBalancer }

// checksHealth: nodes answer for the service on a port of its own.
func checksHealth(s *corev1.Service) bool {
	return isLoadBalancer(s) && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// released says that the second address or family was given up without asking for
// one family only.
func released(s *corev1.Service, what string) field.ErrorList {
	if p := s.Spec.IPFamilyPolicy; p == nil || *p != corev1.IPFamilyPolicySingleStack {
		return field.ErrorList{field.Invalid(spec().Child("ipFamilyPolicy"), p, "must be set to 'SingleStack' when releasing the secondary "+what)}
	}
	return nil
}

// clusterIPUpdate lets a second address come and go; the first one stays.
func clusterIPUpdate(new, old *corev1.Service) field.ErrorList {
	if headless(new) && headless(old) {
		return nil
	}
	var errs field.ErrorList
	path := spec().Child("clusterIPs")
	before, after := old.Spec.ClusterIPs, new.Spec.ClusterIPs
	if len(before) == len(after) {
		for i := range before {
			if before[i] != after[i] {
				errs = append(errs, field.Invalid(path.Index(i), after, onceSet))
			}
		}
		return errs
	}
	if len(before) > 0 && len(after) == 0 {
		errs = append(errs, field.Invalid(path.Index(0), after, "primary clusterIP can not be unset"))
	}
	if len(before) > 0 && len(after) > 0 && before[0] != after[0] {
		errs = append(errs, field.Invalid(path.Index(0), after, onceSet))
	}
	if len(before) > len(after) && len(after) == 1 {
		errs = append(errs, released(new, "clusterIP")...)
	}
	return errs
}

// familyUpdate does the same for families. What it shows as the refused value are
// the addresses where the number of families changed, as the API always did.
func familyUpdate(new, old *corev1.Service) field.ErrorList {
	if headless(new) || headless(old) {
		return nil
	}
	var errs field.ErrorList
	path := spec().Child("ipFamilies").Index(0)
	before, after := old.Spec.IPFamilies, new.Spec.IPFamilies
	if len(before) == len(after) {
		for i := range before {
			if before[i] != after[i] {
				errs = append(errs, field.Invalid(path, after, onceSet))
			}
		}
		return errs
	}
	if len(before) > len(after) && len(new.Spec.ClusterIPs) == 0 {
		errs = append(errs, field.Invalid(path, after, "primary ipFamily can not be unset"))
	}
	if len(before) > 0 && len(after) > 0 && before[0] != after[0] {
		errs = append(errs, field.Invalid(path, new.Spec.ClusterIPs, onceSet))
	}
	if len(before) > len(after) && len(after) == 1 {
		errs = append(errs, released(new, "ipFamily")...)
	}
	return errs
}

// ServiceStatusUpdate checks an update of a service's status.
func ServiceStatusUpdate(new, old *corev1.Service) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, loadBalancerStatus(&new.Status.LoadBalancer, &old.Status.LoadBalancer, &new.Spec, status().Child("loadBalancer"))...)
}

func loadBalancerStatus(s, old *corev1.LoadBalancerStatus, ss *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	p := path.Child("ingress")
	var known []string
	for _, in := range old.Ingress {
		known = append(known, in.IP)
	}
	if ss.Type != corev1.ServiceTypeLoadBalancer && len(s.Ingress) != 0 {
		return field.ErrorList{field.Forbidden(p, "may only be used when `spec.type` is 'LoadBalancer'")}
	}
	for i, in := range s.Ingress {
		ip := p.Index(i)
		if in.IP != "" {
			errs = append(errs, legacyIP(in.IP, ip.Child("ip"), known)...)
		}
		switch {
		case in.IPMode == nil && in.IP != "":
			errs = append(errs, field.Required(ip.Child("ipMode"), "must be specified when `ip` is set"))
		case in.IPMode != nil && in.IP == "":
			errs = append(errs, field.Forbidden(ip.Child("ipMode"), "may not be specified when `ip` is not set"))
		case in.IPMode != nil:
			errs = append(errs, supported(*in.IPMode, ip.Child("ipMode"), corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)...)
		}
		if in.Hostname != "" {
			errs = append(errs, dnsSubdomain(in.Hostname, ip.Child("hostname"))...)
			if netutils.ParseIPSloppy(in.Hostname) != nil {
				errs = append(errs, field.Invalid(ip.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}
