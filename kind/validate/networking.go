package validate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// NetworkPolicy checks a new policy.
func NetworkPolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	errs := ObjectMeta(&p.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, networkPolicySpec(&p.Spec, nil, metavalidation.LabelSelectorValidationOptions{}, spec())...)
}

// NetworkPolicyUpdate checks an update of a policy.
func NetworkPolicyUpdate(new, old *networkingv1.NetworkPolicy) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	var known []string
	note := func(peers []networkingv1.NetworkPolicyPeer) {
		for _, peer := range peers {
			if peer.IPBlock != nil {
				known = append(append(known, peer.IPBlock.CIDR), peer.IPBlock.Except...)
			}
		}
	}
	for _, r := range old.Spec.Ingress {
		note(r.From)
	}
	for _, r := range old.Spec.Egress {
		note(r.To)
	}
	return append(errs, networkPolicySpec(&new.Spec, known, lax(&old.Spec.PodSelector), spec())...)
}

func networkPolicySpec(s *networkingv1.NetworkPolicySpec, known []string, lax metavalidation.LabelSelectorValidationOptions, path *field.Path) field.ErrorList {
	errs := metavalidation.ValidateLabelSelector(&s.PodSelector, lax, path.Child("podSelector"))
	for i, r := range s.Ingress {
		p := path.Child("ingress").Index(i)
		errs = append(errs, policyPorts(r.Ports, p.Child("ports"))...)
		errs = append(errs, policyPeers(r.From, known, lax, p.Child("from"))...)
	}
	for i, r := range s.Egress {
		p := path.Child("egress").Index(i)
		errs = append(errs, policyPorts(r.Ports, p.Child("ports"))...)
		errs = append(errs, policyPeers(r.To, known, lax, p.Child("to"))...)
	}
	if len(s.PolicyTypes) > 2 {
		return append(errs, field.Invalid(path.Child("policyTypes"), &s.PolicyTypes, "may not specify more than two policyTypes"))
	}
	for i, t := range s.PolicyTypes {
		errs = append(errs, supported(t, path.Child("policyTypes").Index(i), networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)...)
	}
	return errs
}

func policyPorts(ports []networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, port := range ports {
		p := path.Index(i)
		if port.Protocol != nil {
			errs = append(errs, supported(*port.Protocol, p.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
		if port.Port == nil {
			if port.EndPort != nil {
				errs = append(errs, field.Invalid(p.Child("endPort"), *port.EndPort, "may not be specified when `port` is not specified"))
			}
			continue
		}
		errs = append(errs, portNumberOrName(*port.Port, p.Child("port"))...)
		if port.EndPort == nil {
			continue
		}
		if port.Port.Type == intstr.String {
			errs = append(errs, field.Invalid(p.Child("endPort"), *port.EndPort, "may not be specified when `port` is non-numeric"))
			continue
		}
		if *port.EndPort < port.Port.IntVal {
			errs = append(errs, field.Invalid(p.Child("endPort"), *port.EndPort, "must be greater than or equal to `port`"))
		}
		errs = append(errs, portNumber(*port.EndPort, p.Child("endPort"))...)
	}
	return errs
}

func policyPeers(peers []networkingv1.NetworkPolicyPeer, known []string, lax metavalidation.LabelSelectorValidationOptions, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, peer := range peers {
		p, count := path.Index(i), 0
		if peer.PodSelector != nil {
			count++
			errs = append(errs, metavalidation.ValidateLabelSelector(peer.PodSelector, lax, p.Child("podSelector"))...)
		}
		if peer.NamespaceSelector != nil {
			count++
			errs = append(errs, metavalidation.ValidateLabelSelector(peer.NamespaceSelector, lax, p.Child("namespaceSelector"))...)
		}
		if peer.IPBlock != nil {
			count++
			errs = append(errs, ipBlock(peer.IPBlock, known, p.Child("ipBlock"))...)
		}
		if count == 0 {
			errs = append(errs, field.Required(p, "must specify a peer"))
		} else if count > 1 && peer.IPBlock != nil {
			errs = append(errs, field.Forbidden(p, "may not specify both ipBlock and another peer"))
		}
	}
	return errs
}

func ipBlock(b *networkingv1.IPBlock, known []string, path *field.Path) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	errs := validation.IsValidCIDRForLegacyField(path.Child("cidr"), b.CIDR, true, known)
	_, outer, err := netutils.ParseCIDRSloppy(b.CIDR)
	if err != nil {
		return errs
	}
	for i, e := range b.Except {
		p := path.Child("except").Index(i)
		bad := validation.IsValidCIDRForLegacyField(p, e, true, known)
		errs = append(errs, bad...)
		_, inner, err := netutils.ParseCIDRSloppy(e)
		if err != nil {
			continue
		}
		outerBits, _ := outer.Mask.Size()
		innerBits, _ := inner.Mask.Size()
		if !outer.Contains(inner.IP) || outerBits >= innerBits {
			errs = append(errs, field.Invalid(p, e, "must be a strict subset of `cidr`"))
		}
	}
	return errs
}

const ingressClassAnnotation = "kubernetes.io/ingress.class"

// Ingress checks a new ingress.
func Ingress(in *networkingv1.Ingress) field.ErrorList {
	errs := ingress(in, nil)
	if v, ok := in.Annotations[ingressClassAnnotation]; ok && in.Spec.IngressClassName != nil && v != *in.Spec.IngressClassName {
		errs = append(errs, field.Invalid(field.NewPath("annotations", ingressClassAnnotation), v, "must match `ingressClassName` when both are specified"))
	}
	return errs
}

// IngressUpdate checks an update of an ingress.
func IngressUpdate(new, old *networkingv1.Ingress) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), ingress(new, old)...)
}

// ingress checks all of it. Rules behind hosts with a wildcard and names of secrets
// were not checked once: they are not when old has wrong ones.
func ingress(in, old *networkingv1.Ingress) field.ErrorList {
	errs := ObjectMeta(&in.ObjectMeta, true, NameDNSSubdomain, meta())
	laxRules, laxSecrets := false, false
	if old != nil {
		laxRules = slices.ContainsFunc(old.Spec.Rules, func(r networkingv1.IngressRule) bool {
			return strings.Contains(r.Host, "*") && r.HTTP != nil && len(ingressPaths(r.HTTP.Paths, nil)) > 0
		})
		laxSecrets = slices.ContainsFunc(old.Spec.TLS, func(t networkingv1.IngressTLS) bool {
			return t.SecretName != "" && len(NameDNSSubdomain(t.SecretName, false)) > 0
		})
	}
	s, path := &in.Spec, spec()
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		errs = append(errs, field.Invalid(path, s.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if s.DefaultBackend != nil {
		errs = append(errs, ingressBackend(s.DefaultBackend, path.Child("defaultBackend"))...)
	}
	for i := range s.Rules {
		r, p := &s.Rules[i], path.Child("rules").Index(i)
		wildcard := strings.Contains(r.Host, "*")
		if netutils.ParseIPSloppy(r.Host) != nil {
			errs = append(errs, field.Invalid(p.Child("host"), r.Host, "must be a DNS name, not an IP address"))
		}
		switch {
		case r.Host == "":
		case wildcard:
			errs = append(errs, invalid(p.Child("host"), r.Host, validation.IsWildcardDNS1123Subdomain(r.Host))...)
		default:
			errs = append(errs, dnsSubdomain(r.Host, p.Child("host"))...)
		}
		if r.HTTP != nil && !(wildcard && laxRules) {
			errs = append(errs, ingressPaths(r.HTTP.Paths, p.Child("http", "paths"))...)
		}
	}
	for i, t := range s.TLS {
		p := path.Child("tls").Index(i)
		for j, host := range t.Hosts {
			hp := p.Child("hosts").Index(j)
			if strings.Contains(host, "*") {
				errs = append(errs, invalid(hp, host, validation.IsWildcardDNS1123Subdomain(host))...)
			} else {
				errs = append(errs, dnsSubdomain(host, hp)...)
			}
		}
		if t.SecretName != "" && !laxSecrets {
			errs = append(errs, invalid(p.Child("secretName"), t.SecretName, NameDNSSubdomain(t.SecretName, false))...)
		}
	}
	if n := s.IngressClassName; n != nil {
		errs = append(errs, invalid(path.Child("ingressClassName"), *n, NameDNSSubdomain(*n, false))...)
	}
	return errs
}

func ingressPaths(paths []networkingv1.HTTPIngressPath, path *field.Path) field.ErrorList {
	if len(paths) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	for i := range paths {
		h, p := &paths[i], path.Index(i)
		if h.PathType == nil {
			errs = append(errs, field.Required(p.Child("pathType"), "pathType must be specified"))
			continue
		}
		absolute := strings.HasPrefix(h.Path, "/")
		switch *h.PathType {
		case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
			if !absolute {
				errs = append(errs, field.Invalid(p.Child("path"), h.Path, "must be an absolute path"))
			}
			for _, seq := range []string{"//", "/./", "/../", "%2f", "%2F"} {
				if strings.Contains(h.Path, seq) {
					errs = append(errs, field.Invalid(p.Child("path"), h.Path, fmt.Sprintf("must not contain '%s'", seq)))
				}
			}
			for _, end := range []string{"/..", "/."} {
				if strings.HasSuffix(h.Path, end) {
					errs = append(errs, field.Invalid(p.Child("path"), h.Path, fmt.Sprintf("cannot end with '%s'", end)))
				}
			}
		case networkingv1.PathTypeImplementationSpecific:
			if h.Path != "" && !absolute {
				errs = append(errs, field.Invalid(p.Child("path"), h.Path, "must be an absolute path"))
			}
		default:
			errs = append(errs, field.NotSupported(p.Child("pathType"), *h.PathType, []networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix}))
		}
		errs = append(errs, ingressBackend(&h.Backend, p.Child("backend"))...)
	}
	return errs
}

func ingressBackend(b *networkingv1.IngressBackend, path *field.Path) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(path, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		return typedReference(b.Resource, path.Child("resource"))
	case b.Service == nil:
		return field.ErrorList{field.Invalid(path, "", "resource or service backend is required")}
	}
	var errs field.ErrorList
	p := path.Child("service")
	if b.Service.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalid(p.Child("name"), b.Service.Name, NameDNSLabel(b.Service.Name, false))...)
	}
	port := b.Service.Port
	switch {
	case port.Name != "" && port.Number != 0:
		errs = append(errs, field.Invalid(path, "", "cannot set both port name & port number"))
	case port.Name != "":
		errs = append(errs, invalid(p.Child("port", "name"), port.Name, validation.IsValidPortName(port.Name))...)
	case port.Number != 0:
		errs = append(errs, portNumber(port.Number, p.Child("port", "number"))...)
	default:
		errs = append(errs, field.Required(path, "port name or number is required"))
	}
	return errs
}

func typedReference(r *corev1.TypedLocalObjectReference, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if r.APIGroup != nil {
		errs = append(errs, dnsSubdomain(*r.APIGroup, path.Child("apiGroup"))...)
	}
	return append(errs, kindAndName(r.Kind, r.Name, path)...)
}

// kindAndName checks the two path segments of a reference.
func kindAndName(kind, name string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if kind == "" {
		errs = append(errs, field.Required(path.Child("kind"), ""))
	} else {
		errs = append(errs, invalid(path.Child("kind"), kind, NamePathSegment(kind, false))...)
	}
	if name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		errs = append(errs, invalid(path.Child("name"), name, NamePathSegment(name, false))...)
	}
	return errs
}

// IngressStatusUpdate checks an update of an ingress' status.
func IngressStatusUpdate(new, old *networkingv1.Ingress) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	var known []string
	for _, i := range old.Status.LoadBalancer.Ingress {
		known = append(known, i.IP)
	}
	for i, in := range new.Status.LoadBalancer.Ingress {
		p := status().Child("loadBalancer", "ingress").Index(i)
		if in.IP != "" {
			errs = append(errs, legacyIP(in.IP, p.Child("ip"), known)...)
		}
		if in.Hostname != "" {
			errs = append(errs, dnsSubdomain(in.Hostname, p.Child("hostname"))...)
			if netutils.ParseIPSloppy(in.Hostname) != nil {
				errs = append(errs, field.Invalid(p.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}

// IngressClass checks a new ingress class.
func IngressClass(c *networkingv1.IngressClass) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	return append(errs, ingressClassSpec(&c.Spec, spec())...)
}

// IngressClassUpdate checks an update of an ingress class: its controller stays.
func IngressClassUpdate(new, old *networkingv1.IngressClass) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, IngressClass(new)...)
	return append(errs, unchanged(new.Spec.Controller, old.Spec.Controller, spec().Child("controller"))...)
}

func ingressClassSpec(s *networkingv1.IngressClassSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if limit := 250; len(s.Controller) > limit {
		errs = append(errs, field.TooLong(path.Child("controller"), "", limit))
	}
	errs = append(errs, validation.IsDomainPrefixedPath(path.Child("controller"), s.Controller)...)
	ref := s.Parameters
	if ref == nil {
		return errs
	}
	p := path.Child("parameters")
	if ref.APIGroup != nil {
		errs = append(errs, dnsSubdomain(*ref.APIGroup, p.Child("apiGroup"))...)
	}
	errs = append(errs, kindAndName(ref.Kind, ref.Name, p)...)
	if ref.Scope == nil {
		return append(errs, field.Required(p.Child("scope"), ""))
	}
	errs = append(errs, supported(*ref.Scope, p.Child("scope"), networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace)...)
	if *ref.Scope == networkingv1.IngressClassParametersReferenceScopeNamespace {
		if ref.Namespace == nil {
			errs = append(errs, field.Required(p.Child("namespace"), "`parameters.scope` is set to 'Namespace'"))
		} else {
			errs = append(errs, dnsLabel(*ref.Namespace, p.Child("namespace"))...)
		}
	}
	if *ref.Scope == networkingv1.IngressClassParametersReferenceScopeCluster && ref.Namespace != nil {
		errs = append(errs, field.Forbidden(p.Child("namespace"), "`parameters.scope` is set to 'Cluster'"))
	}
	return errs
}

// ipAddressName is the rule for names of IPAddress objects.
func ipAddressName(name string, _ bool) []string {
	var msgs []string
	for _, err := range validation.IsValidIP(nil, name) {
		msgs = append(msgs, err.Detail)
	}
	return msgs
}

// IPAddress checks a new IPAddress.
func IPAddress(ip *networkingv1.IPAddress) field.ErrorList {
	errs := ObjectMeta(&ip.ObjectMeta, false, ipAddressName, meta())
	ref, path := ip.Spec.ParentRef, spec().Child("parentRef")
	if ref == nil {
		return append(errs, field.Required(path, ""))
	}
	if ref.Group != "" {
		errs = append(errs, dnsSubdomain(ref.Group, path.Child("group"))...)
	}
	for _, f := range []struct{ name, value string }{{"resource", ref.Resource}, {"name", ref.Name}} {
		if f.value == "" {
			errs = append(errs, field.Required(path.Child(f.name), ""))
		} else {
			errs = append(errs, invalid(path.Child(f.name), f.value, NamePathSegment(f.value, false))...)
		}
	}
	if ref.Namespace != "" {
		errs = append(errs, invalid(path.Child("namespace"), ref.Namespace, NamePathSegment(ref.Namespace, false))...)
	}
	return errs
}

// IPAddressUpdate checks an update of an IPAddress: its owner stays.
func IPAddressUpdate(new, old *networkingv1.IPAddress) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, fixed(new.Spec.ParentRef, old.Spec.ParentRef, spec().Child("parentRef"))...)
}

// ServiceCIDR checks a new ServiceCIDR.
func ServiceCIDR(c *networkingv1.ServiceCIDR) field.ErrorList {
	return append(ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta()), serviceRanges(&c.Spec, spec().Child("cidrs"))...)
}

func serviceRanges(s *networkingv1.ServiceCIDRSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(s.CIDRs) == 0 {
		return field.ErrorList{field.Required(path, "at least one CIDR required")}
	}
	if len(s.CIDRs) > 2 {
		return field.ErrorList{field.Invalid(path, s, "may only hold up to 2 values")}
	}
	for i, cidr := range s.CIDRs {
		errs = append(errs, validation.IsValidCIDR(path.Index(i), cidr)...)
	}
	if len(s.CIDRs) == 2 {
		first := netutils.IPFamilyOfCIDRString(s.CIDRs[0])
		if first != netutils.IPFamilyUnknown && first == netutils.IPFamilyOfCIDRString(s.CIDRs[1]) {
			errs = append(errs, field.Invalid(path, s.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
		}
	}
	return errs
}

// ServiceCIDRUpdate checks an update: a second family may be added, nothing else.
func ServiceCIDRUpdate(new, old *networkingv1.ServiceCIDR) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	path := spec().Child("cidrs")
	before, after := old.Spec.CIDRs, new.Spec.CIDRs
	added := len(before) == 1 && len(after) == 2
	if len(before) != len(after) && !added {
		return append(errs, field.Invalid(path, after, immutable))
	}
	for i := range before {
		if before[i] != after[i] {
			errs = append(errs, field.Invalid(path.Index(i), after[i], immutable))
		}
	}
	if added {
		errs = append(errs, serviceRanges(&new.Spec, path)...)
	}
	return errs
}
