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

func podSpec(ps *corev1.PodSpec, podMeta *metav1.ObjectMeta, old *corev1.PodSpec, path *field.Path) field.ErrorList {
	var oldIPs []string
	if old != nil {
		oldIPs = podSpecIPs(old)
	}
	known, errs := volumes(ps.Volumes, podMeta, path.Child("volumes"))
	claims, claimErrs := podResourceClaims(ps.ResourceClaims, podMeta, path.Child("resourceClaims"))
	errs = append(errs, claimErrs...)
	pc := &podContext{volumes: known, claims: claims, graceSeconds: ps.TerminationGracePeriodSeconds,
		hostUsers: ps.HostUsers, os: ps.OS, old: old, restartPolicy: ps.RestartPolicy}

	errs = append(errs, containers(ps.Containers, pc, path.Child("containers"))...)
	errs = append(errs, initContainers(ps.InitContainers, ps.Containers, pc, path.Child("initContainers"))...)
	errs = append(errs, ephemeralContainers(ps.EphemeralContainers, ps.Containers, ps.InitContainers, pc, path.Child("ephemeralContainers"))...)
	errs = append(errs, podResources(ps, path)...)
	errs = append(errs, hostNetwork(ps, podMeta != nil, path)...)
	errs = append(errs, requiredSupported(ps.RestartPolicy, path.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, requiredSupported(ps.DNSPolicy, path.Child("dnsPolicy"), corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	errs = append(errs, labels(ps.NodeSelector, path.Child("nodeSelector"))...)
	errs = append(errs, podSecurityContext(ps.SecurityContext, ps, old, path.Child("securityContext"))...)
	errs = append(errs, hostUsers(ps, old, path)...)
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
	errs = append(errs, tolerations(ps.Tolerations, old, path.Child("tolerations"))...)
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
	errs = append(errs, podOS(ps, path)...)
	return append(errs, fileKeyVolumes(ps, path)...)
}

func overhead(list corev1.ResourceList, path *field.Path) field.ErrorList {
	if list == nil {
		return nil
	}
	return requirements(&corev1.ResourceRequirements{Limits: list}, path, containerResourceName)
}

// hostNetwork checks that the ports of a pod in the machine's network are the
// machine's. A template may leave them out: the pod gets them by default.
func hostNetwork(ps *corev1.PodSpec, isPod bool, path *field.Path) field.ErrorList {
	if !ps.HostNetwork {
		return nil
	}
	var errs field.ErrorList
	for c := range ps.Containers {
		for i, port := range ps.Containers[c].Ports {
			if (isPod || port.HostPort != 0) && port.HostPort != port.ContainerPort {
				errs = append(errs, field.Invalid(path.Child("containers").Index(c).Child("ports").Index(i).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
		}
	}
	return errs
}

func hostUsers(ps, old *corev1.PodSpec, path *field.Path) field.ErrorList {
	if ps.HostUsers == nil || *ps.HostUsers {
		return nil
	}
	const msg = "when `hostUsers` is false"
	var errs field.ErrorList
	if ps.HostNetwork {
		errs = append(errs, field.Forbidden(path.Child("hostNetwork"), msg))
	}
	// The paths of these two are upstream's.
	if ps.HostPID {
		errs = append(errs, field.Forbidden(path.Child("HostPID"), msg))
	}
	if ps.HostIPC {
		errs = append(errs, field.Forbidden(path.Child("HostIPC"), msg))
	}
	devices := func(ps *corev1.PodSpec) (errs field.ErrorList) {
		eachContainer(ps, path, func(c *corev1.EphemeralContainerCommon, p *field.Path) {
			if len(c.VolumeDevices) > 0 {
				errs = append(errs, field.Forbidden(p.Child("volumeDevices"), msg))
			}
		})
		return errs
	}
	if old != nil && old.HostUsers != nil && !*old.HostUsers && len(devices(old)) > 0 {
		return errs
	}
	return append(errs, devices(ps)...)
}

// eachContainer visits all containers: those that run first, the regular and those for
// debugging.
func eachContainer(ps *corev1.PodSpec, path *field.Path, visit func(*corev1.EphemeralContainerCommon, *field.Path)) {
	for i := range ps.InitContainers {
		visit((*corev1.EphemeralContainerCommon)(&ps.InitContainers[i]), path.Child("initContainers").Index(i))
	}
	for i := range ps.Containers {
		visit((*corev1.EphemeralContainerCommon)(&ps.Containers[i]), path.Child("containers").Index(i))
	}
	for i := range ps.EphemeralContainers {
		visit(&ps.EphemeralContainers[i].EphemeralContainerCommon, path.Child("ephemeralContainers").Index(i))
	}
}

// fileKeyVolumes checks that files with environment variables lie in volumes that the
// pod's own containers write.
func fileKeyVolumes(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	sources := map[string]*corev1.VolumeSource{}
	for i := range ps.Volumes {
		sources[ps.Volumes[i].Name] = &ps.Volumes[i].VolumeSource
	}
	eachContainer(ps, path, func(c *corev1.EphemeralContainerCommon, p *field.Path) {
		for i, v := range c.Env {
			if v.ValueFrom == nil || v.ValueFrom.FileKeyRef == nil {
				continue
			}
			name, at := v.ValueFrom.FileKeyRef.VolumeName, p.Child("env").Index(i).Child("valueFrom", "fileKeyRef", "volumeName")
			switch source := sources[name]; {
			case source == nil:
				errs = append(errs, field.NotFound(at, name))
			case source.EmptyDir == nil:
				errs = append(errs, field.Invalid(at, name, "referenced volume must be of type emptyDir"))
			}
		}
	})
	return errs
}

func hostnameOverride(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if ps.HostnameOverride == nil {
		return nil
	}
	p := path.Child("hostnameOverride")
	var errs field.ErrorList
	if ps.SetHostnameAsFQDN != nil && *ps.SetHostnameAsFQDN {
		errs = append(errs, field.Forbidden(p, "may not be specified when setHostnameAsFQDN is true"))
	}
	if ps.HostNetwork {
		errs = append(errs, field.Forbidden(p, "may not be specified when hostNetwork is true"))
	}
	if len(*ps.HostnameOverride) > 64 {
		errs = append(errs, field.TooLong(p, "", 64))
	}
	return append(errs, dnsSubdomain(*ps.HostnameOverride, p)...)
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

func podResourceClaims(list []corev1.PodResourceClaim, podMeta *metav1.ObjectMeta, path *field.Path) (sets.Set[string], field.ErrorList) {
	var errs field.ErrorList
	if podMeta != nil && len(list) > 0 {
		if _, ok := podMeta.Annotations[mirrorAnnotation]; ok {
			errs = append(errs, field.Forbidden(field.NewPath(""), "static pods do not support resource claims"))
		}
	}
	names := sets.New[string]()
	for i, c := range list {
		p := path.Index(i)
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		} else {
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
