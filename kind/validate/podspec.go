package validate

import (
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of a pod's DNS configuration.
const (
	maxNameservers      = 3
	maxSearchPaths      = 32
	maxSearchCharacters = 2048
)

// PodSpec checks a pod's specification. podMeta is nil for a template.
func PodSpec(ps *corev1.PodSpec, podMeta *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	return podSpec(ps, podMeta, nil, path)
}

func podSpec(ps *corev1.PodSpec, podMeta *metav1.ObjectMeta, oldIPs []string, path *field.Path) field.ErrorList {
	known, errs := volumes(ps.Volumes, podMeta, path.Child("volumes"))
	claims, claimErrs := podResourceClaims(ps.ResourceClaims, path.Child("resourceClaims"))
	errs = append(errs, claimErrs...)
	pc := &podContext{volumes: known, claims: claims, graceSeconds: ps.TerminationGracePeriodSeconds,
		hostUsers: ps.HostUsers, os: ps.OS, oldIPs: oldIPs, restartPolicy: ps.RestartPolicy}

	errs = append(errs, containers(ps.Containers, pc, path.Child("containers"))...)
	errs = append(errs, initContainers(ps.InitContainers, ps.Containers, pc, path.Child("initContainers"))...)
	errs = append(errs, ephemeralContainers(ps.EphemeralContainers, ps.Containers, ps.InitContainers, pc, path.Child("ephemeralContainers"))...)
	errs = append(errs, podResources(ps, path)...)
	errs = append(errs, hostNetwork(ps, path)...)
	errs = append(errs, requiredSupported(ps.RestartPolicy, path.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, requiredSupported(ps.DNSPolicy, path.Child("dnsPolicy"), corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	errs = append(errs, labels(ps.NodeSelector, path.Child("nodeSelector"))...)
	errs = append(errs, podSecurityContext(ps.SecurityContext, ps, path.Child("securityContext"))...)
	errs = append(errs, hostUsers(ps, path)...)
	for i, ref := range ps.ImagePullSecrets {
		errs = append(errs, required(ref.Name, path.Child("imagePullSecrets").Index(i).Child("name"))...)
	}
	errs = append(errs, affinity(ps.Affinity, path.Child("affinity"))...)
	errs = append(errs, dnsConfig(ps.DNSConfig, ps.DNSPolicy, oldIPs, path.Child("dnsConfig"))...)
	for i, gate := range ps.ReadinessGates {
		errs = append(errs, qualifiedName(string(gate.ConditionType), path.Child("readinessGates").Index(i).Child("conditionType"))...)
	}
	errs = append(errs, schedulingGates(ps.SchedulingGates, path.Child("schedulingGates"))...)
	errs = append(errs, topologySpread(ps.TopologySpreadConstraints, path.Child("topologySpreadConstraints"))...)
	errs = append(errs, hostProcess(ps, path)...)
	if ps.ServiceAccountName != "" {
		errs = append(errs, invalid(path.Child("serviceAccountName"), ps.ServiceAccountName, NameDNSSubdomain(ps.ServiceAccountName, false))...)
	}
	if ps.NodeName != "" {
		errs = append(errs, invalid(path.Child("nodeName"), ps.NodeName, NameDNSSubdomain(ps.NodeName, false))...)
	}
	if s := ps.ActiveDeadlineSeconds; s != nil && (*s < 1 || *s > math.MaxInt32) {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *s, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	if ps.Hostname != "" {
		errs = append(errs, dnsLabel(ps.Hostname, path.Child("hostname"))...)
	}
	if ps.Subdomain != "" {
		errs = append(errs, dnsLabel(ps.Subdomain, path.Child("subdomain"))...)
	}
	errs = append(errs, hostnameOverride(ps, path)...)
	errs = append(errs, tolerations(ps.Tolerations, path.Child("tolerations"))...)
	errs = append(errs, hostAliases(ps.HostAliases, oldIPs, path.Child("hostAliases"))...)
	if ps.PriorityClassName != "" {
		errs = append(errs, invalid(path.Child("priorityClassName"), ps.PriorityClassName, NameDNSSubdomain(ps.PriorityClassName, false))...)
	}
	if ps.RuntimeClassName != nil {
		errs = append(errs, invalid(path.Child("runtimeClassName"), *ps.RuntimeClassName, NameDNSSubdomain(*ps.RuntimeClassName, false))...)
	}
	if ps.PreemptionPolicy != nil {
		errs = append(errs, requiredSupported(*ps.PreemptionPolicy, path.Child("preemptionPolicy"), corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	errs = append(errs, overhead(ps.Overhead, path.Child("overhead"))...)
	return append(errs, podOS(ps, path)...)
}

func overhead(list corev1.ResourceList, path *field.Path) field.ErrorList {
	if list == nil {
		return nil
	}
	return requirements(&corev1.ResourceRequirements{Limits: list}, path, containerResourceName)
}

func hostNetwork(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if !ps.HostNetwork {
		return nil
	}
	var errs field.ErrorList
	check := func(list []corev1.Container, path *field.Path) {
		for c := range list {
			for i, port := range list[c].Ports {
				if port.HostPort != port.ContainerPort {
					errs = append(errs, field.Invalid(path.Index(c).Child("ports").Index(i).Child("containerPort"), port.ContainerPort, "must match `hostPort` when `hostNetwork` is true"))
				}
			}
		}
	}
	check(ps.Containers, path.Child("containers"))
	check(ps.InitContainers, path.Child("initContainers"))
	return errs
}

func hostUsers(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if ps.HostUsers == nil || *ps.HostUsers {
		return nil
	}
	const msg = "when `hostUsers` is false"
	var errs field.ErrorList
	if ps.HostNetwork {
		errs = append(errs, field.Forbidden(path.Child("hostNetwork"), msg))
	}
	if ps.HostPID {
		errs = append(errs, field.Forbidden(path.Child("hostPID"), msg))
	}
	if ps.HostIPC {
		errs = append(errs, field.Forbidden(path.Child("hostIPC"), msg))
	}
	for i := range ps.Containers {
		if len(ps.Containers[i].VolumeDevices) > 0 {
			errs = append(errs, field.Forbidden(path.Child("containers").Index(i).Child("volumeDevices"), msg))
		}
	}
	for i := range ps.InitContainers {
		if len(ps.InitContainers[i].VolumeDevices) > 0 {
			errs = append(errs, field.Forbidden(path.Child("initContainers").Index(i).Child("volumeDevices"), msg))
		}
	}
	return errs
}

func hostnameOverride(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if ps.HostnameOverride == nil {
		return nil
	}
	p := path.Child("hostnameOverride")
	if *ps.HostnameOverride == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := dnsSubdomain(*ps.HostnameOverride, p)
	if len(*ps.HostnameOverride) > 64 {
		errs = append(errs, field.TooLong(p, "", 64))
	}
	if ps.HostNetwork {
		errs = append(errs, field.Forbidden(p, "may not be specified when hostNetwork is true"))
	}
	if ps.SetHostnameAsFQDN != nil && *ps.SetHostnameAsFQDN {
		errs = append(errs, field.Forbidden(p, "may not be specified when setHostnameAsFQDN is true"))
	}
	return errs
}

func dnsConfig(c *corev1.PodDNSConfig, policy corev1.DNSPolicy, oldIPs []string, path *field.Path) field.ErrorList {
	if policy == corev1.DNSNone {
		if c == nil {
			return field.ErrorList{field.Required(path, fmt.Sprintf("must provide `dnsConfig` when `dnsPolicy` is %s", corev1.DNSNone))}
		}
		if len(c.Nameservers) == 0 {
			return field.ErrorList{field.Required(path.Child("nameservers"), fmt.Sprintf("must provide at least one DNS nameserver when `dnsPolicy` is %s", corev1.DNSNone))}
		}
	}
	if c == nil {
		return nil
	}
	var errs field.ErrorList
	if len(c.Nameservers) > maxNameservers {
		errs = append(errs, field.Invalid(path.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers)))
	}
	for i, ns := range c.Nameservers {
		errs = append(errs, legacyIP(ns, path.Child("nameservers").Index(i), oldIPs)...)
	}
	if len(c.Searches) > maxSearchPaths {
		errs = append(errs, field.Invalid(path.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearchPaths)))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchCharacters {
		errs = append(errs, field.Invalid(path.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchCharacters)))
	}
	for i, s := range c.Searches {
		if s == "." {
			continue
		}
		s = strings.TrimSuffix(s, ".")
		errs = append(errs, invalid(path.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(s))...)
	}
	for i, o := range c.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(path.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

func schedulingGates(gates []corev1.PodSchedulingGate, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i, g := range gates {
		errs = append(errs, qualifiedName(g.Name, path.Index(i))...)
		if seen.Has(g.Name) {
			errs = append(errs, field.Duplicate(path.Index(i), g.Name))
		}
		seen.Insert(g.Name)
	}
	return errs
}

func hostAliases(aliases []corev1.HostAlias, oldIPs []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, a := range aliases {
		errs = append(errs, legacyIP(a.IP, path.Index(i).Child("ip"), oldIPs)...)
		for j, name := range a.Hostnames {
			errs = append(errs, dnsSubdomain(name, path.Index(i).Child("hostnames").Index(j))...)
		}
	}
	return errs
}

func podResourceClaims(list []corev1.PodResourceClaim, path *field.Path) (sets.Set[string], field.ErrorList) {
	var errs field.ErrorList
	names := sets.New[string]()
	for i, c := range list {
		p := path.Index(i)
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else {
			if names.Has(c.Name) {
				errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
			}
			errs = append(errs, dnsLabel(c.Name, p.Child("name"))...)
			names.Insert(c.Name)
		}
		const one = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
		switch {
		case c.ResourceClaimName != nil && c.ResourceClaimTemplateName != nil:
			errs = append(errs, field.Invalid(p, c, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"))
		case c.ResourceClaimName == nil && c.ResourceClaimTemplateName == nil:
			errs = append(errs, field.Invalid(p, c, one))
		}
		if n := c.ResourceClaimName; n != nil {
			errs = append(errs, dnsSubdomain(*n, p.Child("resourceClaimName"))...)
		}
		if n := c.ResourceClaimTemplateName; n != nil {
			errs = append(errs, dnsSubdomain(*n, p.Child("resourceClaimTemplateName"))...)
		}
	}
	return names, errs
}

// PodTemplateSpec checks the template from which a workload makes its pods.
func PodTemplateSpec(t *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	errs := labels(t.Labels, path.Child("labels"))
	errs = append(errs, annotations(t.Annotations, path.Child("annotations"))...)
	errs = append(errs, podAnnotations(t.Annotations, &t.Spec, path.Child("annotations"))...)
	errs = append(errs, PodSpec(&t.Spec, nil, path.Child("spec"))...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(path.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}
