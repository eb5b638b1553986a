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
	errs = append(errs, seccompMatches(pod)...)
	return append(errs, appArmorMatches(pod)...)
}

// seccompMatches checks that the annotations of old and the fields say the same.
func seccompMatches(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	check := func(key string, p *corev1.SeccompProfile, path *field.Path) {
		old, ok := pod.Annotations[key]
		if !ok || p == nil {
			return
		}
		errs = append(errs, profileMatches(old, string(p.Type), p.LocalhostProfile, "seccomp", path.Child("seccompProfile"))...)
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		check(seccompPodAnnotation, sc.SeccompProfile, spec().Child("securityContext"))
	}
	eachContainer(&pod.Spec, spec(), func(c *corev1.EphemeralContainerCommon, path *field.Path) {
		if c.SecurityContext != nil {
			check(seccompContainerPrefix+c.Name, c.SecurityContext.SeccompProfile, path.Child("securityContext"))
		}
	})
	return errs
}

func appArmorMatches(pod *corev1.Pod) field.ErrorList {
	if pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows {
		return nil
	}
	var errs field.ErrorList
	eachContainer(&pod.Spec, spec(), func(c *corev1.EphemeralContainerCommon, path *field.Path) {
		var p *corev1.AppArmorProfile
		if pod.Spec.SecurityContext != nil {
			p = pod.Spec.SecurityContext.AppArmorProfile
		}
		if c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			p = c.SecurityContext.AppArmorProfile
		}
		if old, ok := pod.Annotations[appArmorAnnotation+c.Name]; ok && p != nil {
			errs = append(errs, profileMatches(old, string(p.Type), p.LocalhostProfile, "apparmor", path.Child("securityContext", "appArmorProfile"))...)
		}
	})
	return errs
}

// profileMatches compares a profile with the annotation that used to name it. The three
// types of profiles have the same names for seccomp and AppArmor.
func profileMatches(old, kind string, local *string, what string, path *field.Path) field.ErrorList {
	same := true
	switch corev1.SeccompProfileType(kind) {
	case corev1.SeccompProfileTypeUnconfined:
		same = old == "unconfined"
	case corev1.SeccompProfileTypeRuntimeDefault:
		same = old == "runtime/default" || (what == "seccomp" && old == "docker/default")
	case corev1.SeccompProfileTypeLocalhost:
		name, ok := strings.CutPrefix(old, localhostProfilePrefix)
		if ok && (local == nil || *local != name) {
			return field.ErrorList{field.Forbidden(path.Child("localhostProfile"), what+" profile in annotation and field must match")}
		}
		same = ok
	}
	if same {
		return nil
	}
	return field.ErrorList{field.Forbidden(path.Child("type"), what+" type in annotation and field must match")}
}

func podMetaAndSpec(pod, old *corev1.Pod) field.ErrorList {
	errs := ObjectMeta(&pod.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, podAnnotations(pod.Annotations, &pod.Spec, meta().Child("annotations"))...)
	var was *corev1.PodSpec
	if old != nil {
		was = &old.Spec
	}
	errs = append(errs, podSpec(&pod.Spec, &pod.ObjectMeta, was, spec())...)
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
	for i := range pod.Spec.Containers {
		errs = append(errs, imageSpaces(&pod.Spec.Containers[i], spec().Child("containers").Index(i))...)
	}
	for i := range pod.Spec.InitContainers {
		errs = append(errs, imageSpaces(&pod.Spec.InitContainers[i], spec().Child("initContainers").Index(i))...)
	}
	return errs
}

func imageSpaces(c *corev1.Container, path *field.Path) field.ErrorList {
	if c.Image != strings.TrimSpace(c.Image) {
		return field.ErrorList{field.Invalid(path.Child("image"), c.Image, "must not have leading or trailing whitespace")}
	}
	return nil
}

func podSpecIPs(ps *corev1.PodSpec) []string {
	var ips []string
	for _, a := range ps.HostAliases {
		ips = append(ips, a.IP)
	}
	if ps.DNSConfig != nil {
		ips = append(ips, ps.DNSConfig.Nameservers...)
	}
	return ips
}

// statusIPs checks a list of addresses in a pod's status: one, or one of each family.
// Those that stand there already may stay as they are.
func statusIPs(now, old []string, shown any, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, ip := range now {
		errs = append(errs, legacyIP(ip, path.Index(i), old)...)
	}
	if len(now) < 2 {
		return errs
	}
	dual, err := netutils.IsDualStackIPStrings(now)
	if err != nil {
		errs = append(errs, field.InternalError(path, fmt.Errorf("failed to check for dual stack with error:%v", err)))
	}
	if !dual || len(now) > 2 {
		errs = append(errs, field.Invalid(path, shown, "may specify no more than one IP for each IP family"))
	}
	return errs
}

func podIPs(pod *corev1.Pod) []string {
	var out []string
	for _, ip := range pod.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

func hostIPs(pod *corev1.Pod) []string {
	var out []string
	for _, ip := range pod.Status.HostIPs {
		out = append(out, ip.IP)
	}
	return out
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
	eachContainer(ps, nil, func(c *corev1.EphemeralContainerCommon, _ *field.Path) { names.Insert(c.Name) })
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
		deed := "may not add "
		if had {
			deed = "may not remove or update "
		}
		if strings.HasPrefix(key, appArmorAnnotation) {
			errs = append(errs, field.Forbidden(path.Key(key), deed+"AppArmor annotations"))
		}
		if key == mirrorAnnotation {
			errs = append(errs, field.Forbidden(path.Key(key), deed+"mirror pod annotation"))
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
			errs = append(errs, field.Forbidden(path.Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name)))
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
		if !onlyAdded(&terms[i], &before[i]) {
			errs = append(errs, field.Invalid(path.Index(i), terms[i], "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}

func onlyAdded(new, old *corev1.NodeSelectorTerm) bool {
	if len(old.MatchExpressions)+len(old.MatchFields) == 0 {
		return len(new.MatchExpressions)+len(new.MatchFields) == 0
	}
	return containsAll(new.MatchExpressions, old.MatchExpressions) && containsAll(new.MatchFields, old.MatchFields)
}

func containsAll(have, want []corev1.NodeSelectorRequirement) bool {
	return len(have) >= len(want) && equality.Semantic.DeepEqual(have[:len(want)], want)
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
