package validate

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PodStatusUpdate checks an update of a pod's status.
func PodStatusUpdate(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podAnnotationUpdates(new, old, meta().Child("annotations"))...)
	errs = append(errs, podAnnotations(new.Annotations, &new.Spec, meta().Child("annotations"))...)
	path := status()
	for i, c := range new.Status.Conditions {
		p := path.Child("conditions").Index(i)
		if c.ObservedGeneration < 0 {
			errs = append(errs, field.Invalid(p.Child("observedGeneration"), c.ObservedGeneration, notNegativeInteger))
		}
		if c.Type != corev1.PodScheduled && c.Type != corev1.PodReady && c.Type != corev1.PodInitialized {
			errs = append(errs, qualifiedName(string(c.Type), p.Child("Type"))...)
		}
	}
	if new.Spec.NodeName != old.Spec.NodeName {
		errs = append(errs, field.Forbidden(path.Child("nodeName"), "may not be changed directly"))
	}
	if n := new.Status.NominatedNodeName; n != "" && n != old.Status.NominatedNodeName {
		errs = append(errs, invalid(path.Child("nominatedNodeName"), n, NameDNSSubdomain(n, false))...)
		if old.Spec.NodeName != "" {
			errs = append(errs, field.Forbidden(path.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node"))
		}
	}
	if g := new.Status.ObservedGeneration; g < 0 {
		errs = append(errs, field.Invalid(path.Child("observedGeneration"), g, notNegativeInteger))
	}
	errs = append(errs, unchanged(new.Status.QOSClass, old.Status.QOSClass, path.Child("qosClass"))...)

	errs = append(errs, containerTransitions(new.Status.ContainerStatuses, old.Status.ContainerStatuses, old.Spec.Containers, &old.Spec, path.Child("containerStatuses"))...)
	errs = append(errs, containerTransitions(new.Status.InitContainerStatuses, old.Status.InitContainerStatuses, old.Spec.InitContainers, &old.Spec, path.Child("initContainerStatuses"))...)
	// Debugging containers never restart.
	errs = append(errs, transitions(new.Status.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, path.Child("ephemeralContainerStatuses"), func(string, int32) bool { return false })...)
	errs = append(errs, claimStatuses(new, path.Child("resourceClaimStatuses"))...)
	errs = append(errs, extendedClaim(new.Status.ExtendedResourceClaimStatus, &new.Spec, path.Child("extendedResourceClaimStatus"))...)
	errs = append(errs, statusIPs(podIPs(new), podIPs(old), new.Status.PodIPs, path.Child("podIPs"))...)
	if ips := new.Status.HostIPs; len(ips) > 0 {
		p := path.Child("hostIPs")
		if new.Status.HostIP != ips[0].IP {
			errs = append(errs, field.Invalid(p.Index(0).Child("ip"), ips[0].IP, "must be equal to `hostIP`"))
		}
		errs = append(errs, statusIPs(hostIPs(new), hostIPs(old), ips, p)...)
	}
	regular, inits, debuggers := new.Status.ContainerStatuses, new.Status.InitContainerStatuses, new.Status.EphemeralContainerStatuses
	errs = append(errs, containerUsers(regular, new.Spec.OS, path.Child("containerStatuses"))...)
	errs = append(errs, containerUsers(inits, new.Spec.OS, path.Child("initContainerStatuses"))...)
	errs = append(errs, containerUsers(debuggers, new.Spec.OS, path.Child("ephemeralContainerStatuses"))...)
	errs = append(errs, deviceHealth(regular, new.Spec.Containers, path.Child("containerStatuses"))...)
	errs = append(errs, deviceHealth(inits, new.Spec.InitContainers, path.Child("initContainerStatuses"))...)
	for i := range debuggers {
		if len(debuggers[i].AllocatedResourcesStatus) > 0 {
			errs = append(errs, field.Forbidden(path.Child("ephemeralContainerStatuses").Index(i).Child("allocatedResourcesStatus"), "must not be specified in container status"))
		}
	}
	return errs
}

const notNegativeInteger = "must be a non-negative integer"

// containerTransitions checks that what has ended stays so, unless its policy or a rule
// lets it run again.
func containerTransitions(new, old []corev1.ContainerStatus, specs []corev1.Container, ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if restartsAll(ps.InitContainers) || restartsAll(ps.Containers) {
		return nil
	}
	return transitions(new, old, path, func(name string, code int32) bool {
		i := slices.IndexFunc(specs, func(c corev1.Container) bool { return c.Name == name })
		return i >= 0 && mayRestart(&specs[i], ps.RestartPolicy, code)
	})
}

func transitions(new, old []corev1.ContainerStatus, path *field.Path, allowed func(name string, code int32) bool) field.ErrorList {
	var errs field.ErrorList
	for i, was := range old {
		if was.State.Terminated == nil || allowed(was.Name, was.State.Terminated.ExitCode) {
			continue
		}
		for _, is := range new {
			if is.Name == was.Name && is.State.Terminated == nil {
				errs = append(errs, field.Forbidden(path.Index(i).Child("state"), "may not be transitioned to non-terminated state"))
				break
			}
		}
	}
	return errs
}

func restartsAll(list []corev1.Container) bool {
	return slices.ContainsFunc(list, func(c corev1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	})
}

// mayRestart says whether a container that ended with code runs again: the first rule
// that speaks of the code decides, then the container's policy, then the pod's.
func mayRestart(c *corev1.Container, pod corev1.RestartPolicy, code int32) bool {
	policy := pod
	if c.RestartPolicy != nil {
		for _, r := range c.RestartPolicyRules {
			if r.ExitCodes == nil {
				continue
			}
			in := slices.Contains(r.ExitCodes.Values, code)
			if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
				if r.Action == corev1.ContainerRestartRuleActionRestart {
					return true
				}
				break
			}
		}
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	return policy == corev1.RestartPolicyAlways || (policy == corev1.RestartPolicyOnFailure && code != 0)
}

// extendedClaim checks which claim holds the devices that containers asked for as
// extended resources.
func extendedClaim(s *corev1.PodExtendedResourceClaimStatus, ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	var errs field.ErrorList
	list := path.Child("requestMappings")
	if len(s.RequestMappings) == 0 {
		errs = append(errs, field.Required(list, "at least one request mapping is required"))
	}
	asked := map[string]corev1.ResourceList{}
	for _, c := range slices.Concat(ps.InitContainers, ps.Containers) {
		asked[c.Name] = c.Resources.Requests
	}
	seen := sets.New[corev1.ContainerExtendedResourceRequest]()
	for i, m := range s.RequestMappings {
		p := list.Index(i)
		if requests, ok := asked[m.ContainerName]; !ok {
			errs = append(errs, field.Invalid(p.Child("containerName"), m.ContainerName, "must match the name of an entry in spec.initContainers.name or spec.containers.name"))
		} else if _, ok := requests[corev1.ResourceName(m.ResourceName)]; !ok {
			errs = append(errs, field.Invalid(p.Child("resourceName"), m.ResourceName, "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests"))
		}
		errs = append(errs, dnsLabel(m.RequestName, path.Child("requestName"))...)
		if seen.Has(m) {
			errs = append(errs, field.Duplicate(p.Child("containerName"), m.ContainerName),
				field.Duplicate(p.Child("resourceName"), m.ResourceName), field.Duplicate(p.Child("requestName"), m.RequestName))
		}
		seen.Insert(m)
	}
	name := path.Child("resourceClaimName")
	if s.ResourceClaimName == "" {
		return append(errs, field.Required(name, ""))
	}
	return append(errs, dnsSubdomain(s.ResourceClaimName, name)...)
}

// containerUsers checks as whom containers run.
func containerUsers(list []corev1.ContainerStatus, os *corev1.PodOS, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		if list[i].User == nil || list[i].User.Linux == nil {
			continue
		}
		u, p := list[i].User.Linux, path.Index(i).Child("user", "linux")
		switch {
		case os != nil && os.Name == corev1.Windows:
			errs = append(errs, field.Forbidden(p, "cannot be set for a windows pod"))
		case os == nil || os.Name == corev1.Linux:
			errs = append(errs, invalid(p.Child("uid"), u.UID, validation.IsValidUserID(u.UID))...)
			errs = append(errs, invalid(p.Child("gid"), u.GID, validation.IsValidGroupID(u.GID))...)
			for g, gid := range u.SupplementalGroups {
				errs = append(errs, invalid(p.Child("supplementalGroups").Index(g), gid, validation.IsValidGroupID(gid))...)
			}
		}
	}
	return errs
}

// deviceHealth checks what is said about the devices of containers.
func deviceHealth(list []corev1.ContainerStatus, specs []corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		c := slices.IndexFunc(specs, func(c corev1.Container) bool { return c.Name == list[i].Name })
		for j, r := range list[i].AllocatedResourcesStatus {
			p := path.Index(i).Child("allocatedResourcesStatus").Index(j)
			if c >= 0 {
				if msg := asksFor(&specs[c], r.Name); msg != "" {
					errs = append(errs, field.Invalid(p.Child("name"), r.Name, msg))
				}
			}
			seen := sets.New[corev1.ResourceID]()
			for k, device := range r.Resources {
				d := p.Child("resources").Index(k)
				errs = append(errs, supported(device.Health, d.Child("health"), corev1.ResourceHealthStatusHealthy, corev1.ResourceHealthStatusUnhealthy, corev1.ResourceHealthStatusUnknown)...)
				if m := device.Message; m != nil && *m == "" {
					errs = append(errs, field.Required(d.Child("message"), "must be non-empty if specified"))
				} else if m != nil && len(*m) > corev1.ResourceHealthMessageMaxLength {
					errs = append(errs, field.TooLong(d.Child("message"), "", corev1.ResourceHealthMessageMaxLength))
				}
				if seen.Has(device.ResourceID) {
					errs = append(errs, field.Duplicate(d.Child("resourceID"), device.ResourceID))
				}
				seen.Insert(device.ResourceID)
			}
		}
	}
	return errs
}

// asksFor says what is wrong with a resource that a container does not ask for.
func asksFor(c *corev1.Container, name corev1.ResourceName) string {
	if strings.HasPrefix(string(name), "claim:") {
		for _, claim := range c.Resources.Claims {
			full := "claim:" + claim.Name
			if claim.Request != "" {
				full += "/" + claim.Request
			}
			if full == string(name) {
				return ""
			}
		}
		return "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty"
	}
	if _, ok := c.Resources.Requests[name]; ok {
		return ""
	}
	return "must match one of the container's resource requests"
}

func claimStatuses(pod *corev1.Pod, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	known := sets.New[string]()
	for _, c := range pod.Spec.ResourceClaims {
		known.Insert(c.Name)
	}
	seen := sets.New[string]()
	for i, s := range pod.Status.ResourceClaimStatuses {
		p := path.Index(i)
		if !known.Has(s.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), s.Name, "must match the name of an entry in `spec.resourceClaims`"))
		}
		if seen.Has(s.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), s.Name))
		}
		seen.Insert(s.Name)
		if s.ResourceClaimName != nil {
			errs = append(errs, dnsSubdomain(*s.ResourceClaimName, p.Child("resourceClaimName"))...)
		}
	}
	return errs
}
