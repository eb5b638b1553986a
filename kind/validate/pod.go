package validate

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// Pod checks a new pod.
func Pod(pod *corev1.Pod) field.ErrorList {
	errs := podMetaAndSpec(pod, nil)
	if len(pod.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(spec().Child("ephemeralContainers"), "cannot be set on create"))
	}
	if pod.Spec.NodeName != "" && len(pod.Spec.SchedulingGates) != 0 {
		errs = append(errs, field.Forbidden(spec().Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return append(errs, podIPs(pod, nil)...)
}

func podMetaAndSpec(pod, old *corev1.Pod) field.ErrorList {
	errs := ObjectMeta(&pod.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, podAnnotations(pod.Annotations, &pod.Spec, meta().Child("annotations"))...)
	var oldIPs []string
	if old != nil {
		oldIPs = podSpecIPs(&old.Spec)
	}
	errs = append(errs, podSpec(&pod.Spec, &pod.ObjectMeta, oldIPs, spec())...)
	if pod.Spec.ServiceAccountName == "" {
		for v := range pod.Spec.Volumes {
			if pod.Spec.Volumes[v].Projected == nil {
				continue
			}
			for s, source := range pod.Spec.Volumes[v].Projected.Sources {
				if source.ServiceAccountToken != nil {
					errs = append(errs, field.Forbidden(spec().Child("volumes").Index(v).Child("projected", "sources").Index(s).Child("serviceAccountToken"), "must not be specified when serviceAccountName is not set"))
				}
			}
		}
	}
	errs = append(errs, imageSpaces(pod.Spec.Containers, spec().Child("containers"))...)
	return append(errs, imageSpaces(pod.Spec.InitContainers, spec().Child("initContainers"))...)
}

func imageSpaces(list []corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		if image := list[i].Image; image != strings.TrimSpace(image) {
			errs = append(errs, field.Invalid(path.Index(i).Child("image"), image, "must not have leading or trailing whitespace"))
		}
	}
	return errs
}

func podSpecIPs(ps *corev1.PodSpec) []string {
	var ips []string
	for _, a := range ps.HostAliases {
		ips = append(ips, a.IP)
	}
	if ps.DNSConfig != nil {
		ips = append(ips, ps.DNSConfig.Nameservers...)
	}
	for i := range ps.Containers {
		for _, p := range ps.Containers[i].Ports {
			ips = append(ips, p.HostIP)
		}
	}
	return ips
}

// podIPs checks the addresses in a pod's status.
func podIPs(pod, old *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	path := status().Child("podIPs")
	var known []string
	if old != nil {
		for _, ip := range old.Status.PodIPs {
			known = append(known, ip.IP)
		}
	}
	for i, ip := range pod.Status.PodIPs {
		errs = append(errs, legacyIP(ip.IP, path.Index(i), known)...)
	}
	if len(errs) > 0 || len(pod.Status.PodIPs) < 2 {
		return errs
	}
	var ips []string
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if dual, _ := netutils.IsDualStackIPStrings(ips); !dual || len(ips) > 2 {
		errs = append(errs, field.Invalid(path, pod.Status.PodIPs, "may specify no more than one IP for each IP family"))
	}
	seen := sets.New[string]()
	for i, ip := range ips {
		if seen.Has(ip) {
			errs = append(errs, field.Duplicate(path.Index(i), pod.Status.PodIPs[i]))
		}
		seen.Insert(ip)
	}
	return errs
}

const (
	appArmorAnnotation       = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix
	seccompPodAnnotation     = "seccomp.security.alpha.kubernetes.io/pod"
	seccompContainerPrefix   = "container.seccomp.security.alpha.kubernetes.io/"
	mirrorAnnotation         = corev1.MirrorPodAnnotationKey
	podDeletionCost          = corev1.PodDeletionCost
	onlyAdditions            = "only additions are allowed to spec.nodeSelector (no mutations or deletions)"
	seccompProfileFormat     = "must be a valid seccomp profile"
	localhostProfilePrefix   = "localhost/"
	notDeletionCost          = "must be a 32bit integer"
	mirrorNeedsNode          = "must set spec.nodeName if mirror pod annotation is set"
	mirrorUpdate             = "may not remove or update mirror pod annotation"
	appArmorUpdate           = "may not update AppArmor annotations"
	annotationContainerUnset = "container not found"
)

func podAnnotations(values map[string]string, ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if v, ok := values[mirrorAnnotation]; ok && ps.NodeName == "" {
		errs = append(errs, field.Invalid(path.Key(mirrorAnnotation), v, mirrorNeedsNode))
	}
	if v, ok := values[podDeletionCost]; ok {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || strconv.FormatInt(n, 10) != v {
			errs = append(errs, field.Invalid(path.Key(podDeletionCost), v, notDeletionCost))
		}
	}
	names := sets.New[string]()
	for _, c := range slices.Concat(ps.InitContainers, ps.Containers) {
		names.Insert(c.Name)
	}
	for _, key := range sets.List(sets.KeySet(values)) {
		v := values[key]
		if name, ok := strings.CutPrefix(key, appArmorAnnotation); ok {
			if !names.Has(name) {
				errs = append(errs, field.Invalid(path.Key(key), name, annotationContainerUnset))
			}
			if v != "" && v != "runtime/default" && v != "unconfined" && !strings.HasPrefix(v, localhostProfilePrefix) {
				errs = append(errs, field.Invalid(path.Key(key), v, fmt.Sprintf("invalid AppArmor profile name: %q", v)))
			}
		}
		if key == seccompPodAnnotation || strings.HasPrefix(key, seccompContainerPrefix) {
			if profile, ok := strings.CutPrefix(v, localhostProfilePrefix); ok {
				errs = append(errs, descendingPath(profile, path.Child(key))...)
			} else if v != "runtime/default" && v != "docker/default" && v != "unconfined" {
				errs = append(errs, field.Invalid(path.Child(key), v, seccompProfileFormat))
			}
		}
	}
	return errs
}

func podAnnotationUpdates(new, old *corev1.Pod, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, key := range sets.List(sets.KeySet(old.Annotations).Union(sets.KeySet(new.Annotations))) {
		was, had := old.Annotations[key]
		is, has := new.Annotations[key]
		if had == has && was == is {
			continue
		}
		if strings.HasPrefix(key, appArmorAnnotation) {
			errs = append(errs, field.Forbidden(path.Key(key), appArmorUpdate))
		}
		if key == mirrorAnnotation {
			errs = append(errs, field.Forbidden(path.Key(key), mirrorUpdate))
		}
	}
	return errs
}

// updatablePodFields is what an ordinary update of a pod may change.
const updatablePodFields = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`," +
	"`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

// PodUpdate checks an update of a pod through the main resource.
func PodUpdate(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podMetaAndSpec(new, old)...)
	errs = append(errs, podAnnotationUpdates(new, old, meta().Child("annotations"))...)

	containerErrs, stop := containerImageUpdates(new.Spec.Containers, old.Spec.Containers, spec().Child("containers"))
	errs = append(errs, containerErrs...)
	if stop {
		return errs
	}
	containerErrs, stop = containerImageUpdates(new.Spec.InitContainers, old.Spec.InitContainers, spec().Child("initContainers"))
	errs = append(errs, containerErrs...)
	if stop {
		return errs
	}
	errs = append(errs, activeDeadlineUpdate(new.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds)...)
	errs = append(errs, addedTolerations(new.Spec.Tolerations, old.Spec.Tolerations, spec().Child("tolerations"))...)
	errs = append(errs, removedGates(new.Spec.SchedulingGates, old.Spec.SchedulingGates, spec().Child("schedulingGates"))...)

	// Everything else must be as before: put the old values of what may change
	// into a copy of the new pod and compare.
	same := new.Spec.DeepCopy()
	for i := range same.Containers {
		same.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range same.InitContainers {
		same.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	same.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	same.SchedulingGates = old.Spec.SchedulingGates
	same.Tolerations = old.Spec.Tolerations
	if s := old.Spec.TerminationGracePeriodSeconds; s != nil && *s < 0 &&
		same.TerminationGracePeriodSeconds != nil && *same.TerminationGracePeriodSeconds == 1 {
		same.TerminationGracePeriodSeconds = s
	}
	if len(old.Spec.SchedulingGates) > 0 {
		errs = append(errs, gatedUpdate(same, &old.Spec)...)
	}
	if !equality.Semantic.DeepEqual(*same, old.Spec) {
		errs = append(errs, field.Forbidden(spec(), fmt.Sprintf("pod updates may not change fields other than %s\n%v", updatablePodFields, diff.Diff(old.Spec, *same))))
	}
	return errs
}

func containerImageUpdates(new, old []corev1.Container, path *field.Path) (errs field.ErrorList, stop bool) {
	if len(new) != len(old) {
		return field.ErrorList{field.Forbidden(path, "pod updates may not add or remove containers")}, true
	}
	return nil, false
}

func activeDeadlineUpdate(new, old *int64) field.ErrorList {
	path := spec().Child("activeDeadlineSeconds")
	switch {
	case new == nil && old != nil:
		return field.ErrorList{field.Invalid(path, new, "must not update from a positive integer to nil value")}
	case new == nil:
		return nil
	case *new < 0 || *new > math.MaxInt32:
		return field.ErrorList{field.Invalid(path, *new, validation.InclusiveRangeError(0, math.MaxInt32))}
	case old != nil && *old < *new:
		return field.ErrorList{field.Invalid(path, *new, "must be less than or equal to previous value")}
	}
	return nil
}

func addedTolerations(new, old []corev1.Toleration, path *field.Path) field.ErrorList {
	for _, o := range old {
		o.TolerationSeconds = nil
		if !slices.ContainsFunc(new, func(n corev1.Toleration) bool {
			n.TolerationSeconds = nil
			return n == o
		}) {
			return field.ErrorList{field.Forbidden(path, "existing toleration can not be modified except its tolerationSeconds")}
		}
	}
	return nil
}

func removedGates(new, old []corev1.PodSchedulingGate, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, g := range new {
		if !slices.Contains(old, g) {
			errs = append(errs, field.Forbidden(path.Index(i), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name)))
		}
	}
	return errs
}

// gatedUpdate lets the placement of a pod that still waits at a scheduling gate be
// narrowed, and takes the allowed changes out of new.
func gatedUpdate(new, old *corev1.PodSpec) field.ErrorList {
	var errs field.ErrorList
	for k, v := range old.NodeSelector {
		if got, ok := new.NodeSelector[k]; !ok || got != v {
			errs = append(errs, field.Invalid(spec().Child("nodeSelector"), new.NodeSelector, onlyAdditions))
			break
		}
	}
	new.NodeSelector = old.NodeSelector
	var newNode, oldNode *corev1.NodeAffinity
	if new.Affinity != nil {
		newNode = new.Affinity.NodeAffinity
	}
	if old.Affinity != nil {
		oldNode = old.Affinity.NodeAffinity
	}
	if !equality.Semantic.DeepEqual(newNode, oldNode) {
		errs = append(errs, narrowedAffinity(newNode, oldNode, spec().Child("affinity", "nodeAffinity"))...)
		switch {
		case new.Affinity == nil && old.Affinity != nil:
			new.Affinity = &corev1.Affinity{NodeAffinity: oldNode}
		case old.Affinity == nil && new.Affinity.PodAffinity == nil && new.Affinity.PodAntiAffinity == nil:
			new.Affinity = nil
		default:
			new.Affinity.NodeAffinity = oldNode
		}
	}
	return errs
}

func narrowedAffinity(new, old *corev1.NodeAffinity, path *field.Path) field.ErrorList {
	if old == nil || old.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	path = path.Child(requiredTerms, "nodeSelectorTerms")
	var terms []corev1.NodeSelectorTerm
	if new != nil && new.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms = new.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	before := old.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	if len(before) > 0 && len(terms) != len(before) {
		return field.ErrorList{field.Invalid(path, terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")}
	}
	var errs field.ErrorList
	for i := range before {
		if !containsAll(terms[i].MatchExpressions, before[i].MatchExpressions) || !containsAll(terms[i].MatchFields, before[i].MatchFields) {
			errs = append(errs, field.Invalid(path.Index(i), terms[i], "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}

func containsAll(have, want []corev1.NodeSelectorRequirement) bool {
	return len(have) >= len(want) && equality.Semantic.DeepEqual(have[:len(want)], want)
}

// PodStatusUpdate checks an update of a pod's status.
func PodStatusUpdate(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podAnnotationUpdates(new, old, meta().Child("annotations"))...)
	for i, c := range new.Status.Conditions {
		errs = append(errs, nonNegative(c.ObservedGeneration, status().Child("conditions").Index(i).Child("observedGeneration"))...)
	}
	path := status()
	if new.Spec.NodeName != old.Spec.NodeName {
		errs = append(errs, field.Forbidden(path.Child("nodeName"), "may not be changed directly"))
	}
	if n := new.Status.NominatedNodeName; n != "" {
		errs = append(errs, invalid(path.Child("nominatedNodeName"), n, NameDNSSubdomain(n, false))...)
	}
	errs = append(errs, nonNegative(new.Status.ObservedGeneration, path.Child("observedGeneration"))...)

	errs = append(errs, stateTransitions(new.Status.ContainerStatuses, old.Status.ContainerStatuses, old.Spec.Containers, old.Spec.RestartPolicy, path.Child("containerStatuses"))...)
	initPolicy := old.Spec.RestartPolicy
	if initPolicy == corev1.RestartPolicyAlways {
		// A finished init container of an Always pod may run again when its sandbox is made anew.
		initPolicy = corev1.RestartPolicyOnFailure
	}
	errs = append(errs, initTransitions(new.Status.InitContainerStatuses, old.Status.InitContainerStatuses, &old.Spec, initPolicy, path.Child("initContainerStatuses"))...)
	// Debugging containers never restart.
	errs = append(errs, stateTransitions(new.Status.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, nil, corev1.RestartPolicyNever, path.Child("ephemeralContainerStatuses"))...)
	errs = append(errs, claimStatuses(new, path.Child("resourceClaimStatuses"))...)
	errs = append(errs, podIPs(new, old)...)
	return append(errs, hostIPs(new, old)...)
}

func hostIPs(new, old *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	path := status().Child("hostIPs")
	var known []string
	for _, ip := range old.Status.HostIPs {
		known = append(known, ip.IP)
	}
	if len(new.Status.HostIPs) > 0 && new.Status.HostIP != new.Status.HostIPs[0].IP {
		errs = append(errs, field.Invalid(path.Index(0).Child("ip"), new.Status.HostIPs[0].IP, "must be equal to `hostIP`"))
	}
	seen := sets.New[string]()
	for i, ip := range new.Status.HostIPs {
		errs = append(errs, legacyIP(ip.IP, path.Index(i), known)...)
		if seen.Has(ip.IP) {
			errs = append(errs, field.Duplicate(path.Index(i), ip))
		}
		seen.Insert(ip.IP)
	}
	return errs
}

const notTerminated = "may not be transitioned to non-terminated state"

func stateTransitions(new, old []corev1.ContainerStatus, specs []corev1.Container, policy corev1.RestartPolicy, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, was := range old {
		if was.State.Terminated == nil {
			continue
		}
		p, rules := policy, false
		for c := range specs {
			if specs[c].Name == was.Name && specs[c].RestartPolicy != nil {
				p, rules = corev1.RestartPolicy(*specs[c].RestartPolicy), len(specs[c].RestartPolicyRules) > 0
			}
		}
		if rules || p == corev1.RestartPolicyAlways || (p == corev1.RestartPolicyOnFailure && was.State.Terminated.ExitCode != 0) {
			continue
		}
		for _, is := range new {
			if is.Name == was.Name && is.State.Terminated == nil {
				errs = append(errs, field.Forbidden(path.Index(i).Child("state"), notTerminated))
			}
		}
	}
	return errs
}

func initTransitions(new, old []corev1.ContainerStatus, ps *corev1.PodSpec, policy corev1.RestartPolicy, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, was := range old {
		if was.State.Terminated == nil {
			continue
		}
		exempt := was.State.Terminated.ExitCode != 0 && policy == corev1.RestartPolicyOnFailure
		for c := range ps.InitContainers {
			if ps.InitContainers[c].Name == was.Name && ps.InitContainers[c].RestartPolicy != nil {
				exempt = true
			}
		}
		for _, is := range new {
			if !exempt && is.Name == was.Name && is.State.Terminated == nil {
				errs = append(errs, field.Forbidden(path.Index(i).Child("state"), notTerminated))
			}
		}
	}
	return errs
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
			errs = append(errs, field.Duplicate(p, s.Name))
		}
		seen.Insert(s.Name)
		if s.ResourceClaimName != nil {
			errs = append(errs, dnsSubdomain(*s.ResourceClaimName, p.Child("name"))...)
		}
	}
	return errs
}

// PodEphemeralContainersUpdate checks an update through the ephemeralcontainers door.
func PodEphemeralContainersUpdate(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podMetaAndSpec(new, old)...)
	errs = append(errs, podAnnotationUpdates(new, old, meta().Child("annotations"))...)
	if _, ok := old.Annotations[mirrorAnnotation]; ok {
		return append(errs, field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers"))
	}
	path := spec().Child("ephemeralContainers")
	now := map[string]*corev1.EphemeralContainer{}
	for i := range new.Spec.EphemeralContainers {
		now[new.Spec.EphemeralContainers[i].Name] = &new.Spec.EphemeralContainers[i]
	}
	for i := range old.Spec.EphemeralContainers {
		was := &old.Spec.EphemeralContainers[i]
		is, ok := now[was.Name]
		switch {
		case !ok:
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name)))
		case !equality.Semantic.DeepEqual(*was, *is):
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", was.Name, diff.Diff(was, is))))
		}
	}
	return errs
}

// PodResize checks an update through the resize door.
func PodResize(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podMetaAndSpec(new, old)...)
	if _, ok := old.Annotations[mirrorAnnotation]; ok {
		return append(errs, field.Forbidden(field.NewPath(""), "static pods cannot be resized"))
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		return append(errs, field.Forbidden(field.NewPath(""), "windows pods cannot be resized"))
	}
	if len(new.Spec.Containers) != len(old.Spec.Containers) {
		return append(errs, field.Forbidden(spec().Child("containers"), "containers may not be added or removed on resize"))
	}
	if len(new.Spec.InitContainers) != len(old.Spec.InitContainers) {
		return append(errs, field.Forbidden(spec().Child("initContainers"), "initContainers may not be added or removed on resize"))
	}
	if QOSClass(&old.Spec) != QOSClass(&new.Spec) {
		errs = append(errs, field.Invalid(spec(), QOSClass(&new.Spec), "Pod QOS Class may not change as a result of resizing"))
	}
	same := new.Spec.DeepCopy()
	check := func(list, was []corev1.Container, path *field.Path) {
		for i := range list {
			p := path.Index(i).Child("resources")
			if removed(list[i].Resources.Limits, was[i].Resources.Limits) {
				errs = append(errs, field.Forbidden(p.Child("limits"), "resource limits cannot be removed"))
			}
			if removed(list[i].Resources.Requests, was[i].Resources.Requests) {
				errs = append(errs, field.Forbidden(p.Child("requests"), "resource requests cannot be removed"))
			}
			list[i].Resources.Limits = withOld(list[i].Resources.Limits, was[i].Resources.Limits)
			list[i].Resources.Requests = withOld(list[i].Resources.Requests, was[i].Resources.Requests)
			list[i].ResizePolicy = was[i].ResizePolicy
		}
	}
	check(same.Containers, old.Spec.Containers, spec().Child("containers"))
	check(same.InitContainers, old.Spec.InitContainers, spec().Child("initContainers"))
	if same.Resources != nil && old.Spec.Resources != nil {
		same.Resources.Limits = withOld(same.Resources.Limits, old.Spec.Resources.Limits)
		same.Resources.Requests = withOld(same.Resources.Requests, old.Spec.Resources.Requests)
	}
	if !equality.Semantic.DeepEqual(*same, old.Spec) {
		errs = append(errs, field.Forbidden(spec(), fmt.Sprintf("only cpu and memory resources are mutable\n%v", diff.Diff(old.Spec, *same))))
	}
	return errs
}

func removed(new, old corev1.ResourceList) bool {
	for name := range old {
		if _, ok := new[name]; !ok {
			return true
		}
	}
	return false
}

// withOld puts the old cpu and memory into new.
func withOld(new, old corev1.ResourceList) corev1.ResourceList {
	out := new.DeepCopy()
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if q, ok := old[name]; ok {
			if out == nil {
				out = corev1.ResourceList{}
			}
			out[name] = q
		} else {
			delete(out, name)
		}
	}
	return out
}

// QOSClass says how a pod's resources place it among those that are evicted first.
func QOSClass(ps *corev1.PodSpec) corev1.PodQOSClass {
	some, guaranteed := false, true
	visit := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if request.Sign() > 0 || limit.Sign() > 0 {
				some = true
			}
			if limit.Sign() == 0 || (request.Sign() > 0 && request.Cmp(limit) != 0) {
				guaranteed = false
			}
		}
	}
	if ps.Resources != nil && len(ps.Resources.Limits)+len(ps.Resources.Requests) > 0 {
		visit(ps.Resources)
	} else {
		for i := range ps.InitContainers {
			visit(&ps.InitContainers[i].Resources)
		}
		for i := range ps.Containers {
			visit(&ps.Containers[i].Resources)
		}
	}
	switch {
	case !some:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// PodTemplate checks a stored pod template.
func PodTemplate(t *corev1.PodTemplate) field.ErrorList {
	errs := ObjectMeta(&t.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, PodTemplateSpec(&t.Template, field.NewPath("template"))...)
}

// PodTemplateUpdate checks an update of a stored pod template.
func PodTemplateUpdate(new, old *corev1.PodTemplate) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, PodTemplateSpec(&new.Template, field.NewPath("template"))...)
}

// Binding checks the wish to run a pod on a node.
func Binding(b *corev1.Binding) field.ErrorList {
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	return errs
}
