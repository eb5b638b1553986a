package validate

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PodEphemeralContainersUpdate checks an update through the ephemeralcontainers door.
func PodEphemeralContainersUpdate(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podMetaAndSpec(new, old)...)
	errs = append(errs, podAnnotationUpdates(new, old, meta().Child("annotations"))...)
	if _, ok := old.Annotations[mirrorAnnotation]; ok {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
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

const cpuAndMemory = "only cpu and memory resources are mutable"

// PodResize checks an update through the resize door.
func PodResize(new, old *corev1.Pod) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, podMetaAndSpec(new, old)...)
	if _, ok := old.Annotations[mirrorAnnotation]; ok {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "windows pods cannot be resized")}
	}
	class := old.Status.QOSClass
	if class == "" {
		class = QOSClass(&old.Spec)
	}
	if class != QOSClass(&new.Spec) {
		errs = append(errs, field.Invalid(spec(), new.Status.QOSClass, "Pod QOS Class may not change as a result of resizing"))
	}
	if !showsResources(old) {
		errs = append(errs, field.Forbidden(spec(), "Pod running on node without support for resize"))
	}
	same := new.Spec.DeepCopy()
	errs = append(errs, podLevelResize(same, &new.Spec, &old.Spec)...)
	if len(old.Status.NodeAllocatableResourceClaimStatuses) > 0 {
		errs = append(errs, field.Forbidden(spec(), "pods with node allocatable resource claims cannot be resized"))
	}
	order := sameContainers(new.Spec.Containers, old.Spec.Containers, "containers")
	order = append(order, sameContainers(new.Spec.InitContainers, old.Spec.InitContainers, "initContainers")...)
	if len(order) > 0 {
		return append(errs, order...)
	}
	errs = append(errs, keptResources(new.Spec.InitContainers, old.Spec.InitContainers, spec().Child("initContainers"))...)
	errs = append(errs, keptResources(new.Spec.Containers, old.Spec.Containers, spec().Child("containers"))...)
	for i := range same.Containers {
		if withOldResources(&same.Containers[i], &old.Spec.Containers[i]); !equality.Semantic.DeepEqual(same.Containers[i], old.Spec.Containers[i]) {
			errs = append(errs, field.Forbidden(spec(), cpuAndMemory))
		}
	}
	for i := range same.InitContainers {
		c, was, p := &same.InitContainers[i], &old.Spec.InitContainers[i], spec().Child("initContainers").Index(i)
		modified := !equality.Semantic.DeepEqual(*c, *was)
		if withOldResources(c, was); !equality.Semantic.DeepEqual(*c, *was) {
			errs = append(errs, field.Forbidden(p, "only cpu and memory resources for init or sidecar containers are mutable"))
		}
		if modified && restartsOnResize(same.InitContainers[i:i+1]) {
			errs = append(errs, field.Forbidden(p, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized"))
		}
	}
	if len(errs) == 0 && !equality.Semantic.DeepEqual(*same, old.Spec) {
		errs = append(errs, field.Forbidden(spec(), cpuAndMemory))
	}
	return errs
}

// showsResources says whether the pod's node tells what its first running container has
// got, as a node does that can change it. Of a container that asks for nothing a node
// may tell nothing.
func showsResources(pod *corev1.Pod) bool {
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		if s.State.Running == nil {
			continue
		}
		asks := slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
			return c.Name == s.Name && len(c.Resources.Requests)+len(c.Resources.Limits) > 0
		})
		return s.Resources != nil || !asks
	}
	return true
}

// podLevelResize checks the resources of the pod as a whole and puts the old ones into
// same where they may change.
func podLevelResize(same, new, old *corev1.PodSpec) field.ErrorList {
	set := func(r *corev1.ResourceRequirements) bool { return r != nil && len(r.Requests)+len(r.Limits) > 0 }
	if !set(new.Resources) && !set(old.Resources) {
		return nil
	}
	path := spec().Child("resources")
	was := old.Resources
	if was == nil {
		was = &corev1.ResourceRequirements{}
	} else if new.Resources == nil {
		return field.ErrorList{field.Forbidden(path, "pod-level resources cannot be removed")}
	}
	var errs field.ErrorList
	if removed(new.Resources.Requests, was.Requests) {
		errs = append(errs, field.Forbidden(path.Child("requests"), "pod-level resource requests cannot be removed"))
	}
	if removed(new.Resources.Limits, was.Limits) {
		errs = append(errs, field.Forbidden(path.Child("limits"), "pod-level resource limits cannot be removed"))
	}
	r := same.Resources
	r.Requests, r.Limits = withOld(r.Requests, was.Requests), withOld(r.Limits, was.Limits)
	if old.Resources == nil && len(r.Requests)+len(r.Limits)+len(r.Claims) == 0 {
		same.Resources = nil
	}
	if !equality.Semantic.DeepEqual(same.Resources, old.Resources) {
		errs = append(errs, field.Forbidden(spec(), cpuAndMemory+" at pod-level"))
	}
	return errs
}

func sameContainers(new, old []corev1.Container, name string) field.ErrorList {
	path := spec().Child(name)
	if len(new) != len(old) {
		return field.ErrorList{field.Forbidden(path, name+" may not be added or removed on resize")}
	}
	var errs field.ErrorList
	for i := range old {
		if new[i].Name != old[i].Name {
			errs = append(errs, field.Forbidden(path.Index(i).Child("name"), name+" may not be renamed or reordered on resize"))
		}
	}
	return errs
}

func keptResources(new, old []corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range old {
		p := path.Index(i).Child("resources")
		if removed(new[i].Resources.Requests, old[i].Resources.Requests) {
			errs = append(errs, field.Forbidden(p.Child("requests"), "resource requests cannot be removed"))
		}
		if removed(new[i].Resources.Limits, old[i].Resources.Limits) {
			errs = append(errs, field.Forbidden(p.Child("limits"), "resource limits cannot be removed"))
		}
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

// withOldResources puts the old cpu and memory into a container. Its claims go, as in
// upstream: a container with claims cannot be resized.
func withOldResources(c, old *corev1.Container) {
	c.Resources = corev1.ResourceRequirements{
		Limits:   withOld(c.Resources.Limits, old.Resources.Limits),
		Requests: withOld(c.Resources.Requests, old.Resources.Requests),
	}
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
