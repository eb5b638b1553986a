package validate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const notInteger = "must be an integer"

var (
	containerResourceNames = sets.New("cpu", "memory", "ephemeral-storage")
	integerResourceNames   = sets.New("pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps",
		"persistentvolumeclaims", "services.nodeports", "services.loadbalancers")
	quotaResourceNames = sets.New("cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.storage",
		"requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage", "pods", "resourcequotas",
		"services", "replicationcontrollers", "secrets", "persistentvolumeclaims", "configmaps", "services.nodeports",
		"services.loadbalancers")
	standardResourceNames = quotaResourceNames.Union(sets.New("storage"))
)

// hugePageSize returns the page size that a huge page resource is named after.
func hugePageSize(name string) (resource.Quantity, bool) {
	size, ok := strings.CutPrefix(name, corev1.ResourceHugePagesPrefix)
	if !ok {
		return resource.Quantity{}, false
	}
	q, err := resource.ParseQuantity(size)
	return q, err == nil && q.Sign() > 0
}

func isHugePages(name string) bool { return strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) }

func isNativeResource(name string) bool {
	return !strings.Contains(name, "/") || strings.Contains(name, corev1.ResourceDefaultNamespacePrefix)
}

func isExtendedResource(name string) bool {
	if isNativeResource(name) || strings.HasPrefix(name, corev1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+name)) == 0
}

func isStandardResource(name string) bool {
	return standardResourceNames.Has(name) || isHugePages(name) || strings.HasPrefix(name, corev1.ResourceRequestsHugePagesPrefix)
}

func isContainerResource(name string) bool {
	return containerResourceNames.Has(name) || isHugePages(name)
}

func overcommitAllowed(name string) bool { return isNativeResource(name) && !isHugePages(name) }

// resourceName checks the form of any resource's name.
func resourceName(name string, path *field.Path) field.ErrorList {
	errs := qualifiedName(name, path)
	if len(errs) > 0 {
		return errs
	}
	if !strings.Contains(name, "/") && !isStandardResource(name) {
		errs = append(errs, field.Invalid(path, name, "must be a standard resource type or fully qualified"))
	}
	return errs
}

func containerResourceName(name string, path *field.Path) field.ErrorList {
	errs := resourceName(name, path)
	if !strings.Contains(name, "/") {
		if !isContainerResource(name) {
			errs = append(errs, field.Invalid(path, name, "must be a standard resource for containers"))
		}
	} else if !isNativeResource(name) && !isExtendedResource(name) {
		errs = append(errs, field.Invalid(path, name, "doesn't follow extended resource name standard"))
	}
	return errs
}

func nonNegativeQuantity(q resource.Quantity, path *field.Path) field.ErrorList {
	if q.Sign() < 0 {
		return field.ErrorList{field.Invalid(path, q.String(), notNegative)}
	}
	return nil
}

func positiveQuantity(q resource.Quantity, path *field.Path) field.ErrorList {
	if q.Sign() <= 0 {
		return field.ErrorList{field.Invalid(path, q.String(), notPositive)}
	}
	return nil
}

func resourceQuantity(name string, q resource.Quantity, path *field.Path) field.ErrorList {
	errs := nonNegativeQuantity(q, path)
	if (integerResourceNames.Has(name) || isExtendedResource(name)) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(path, q, notInteger))
	}
	return errs
}

func hugePageQuantity(name string, q resource.Quantity, path *field.Path) field.ErrorList {
	if !isHugePages(name) {
		return nil
	}
	if size, ok := hugePageSize(name); !ok || q.Value()%size.Value() != 0 {
		return field.ErrorList{field.Invalid(path, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name))}
	}
	return nil
}

// sortedNames gives the resources of a list in a stable order.
func sortedNames(list corev1.ResourceList) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func containerResources(r *corev1.ResourceRequirements, claims sets.Set[string], path *field.Path) field.ErrorList {
	errs := requirements(r, path, containerResourceName)
	return append(errs, resourceClaims(r.Claims, claims, path.Child("claims"))...)
}

func requirements(r *corev1.ResourceRequirements, path *field.Path, nameRule func(string, *field.Path) field.ErrorList) field.ErrorList {
	var errs field.ErrorList
	limits, requests := path.Child("limits"), path.Child("requests")
	huge, base := false, false
	note := func(name corev1.ResourceName) {
		huge = huge || isHugePages(string(name))
		base = base || name == corev1.ResourceCPU || name == corev1.ResourceMemory
	}
	for _, name := range sortedNames(r.Limits) {
		q, p := r.Limits[name], limits.Key(string(name))
		errs = append(errs, nameRule(string(name), p)...)
		errs = append(errs, resourceQuantity(string(name), q, p)...)
		errs = append(errs, hugePageQuantity(string(name), q, p)...)
		note(name)
	}
	for _, name := range sortedNames(r.Requests) {
		q, p := r.Requests[name], requests.Key(string(name))
		errs = append(errs, nameRule(string(name), p)...)
		errs = append(errs, resourceQuantity(string(name), q, p)...)
		limit, limited := r.Limits[name]
		switch {
		case limited && q.Cmp(limit) != 0 && !overcommitAllowed(string(name)):
			errs = append(errs, field.Invalid(requests, q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case limited && q.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(requests, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		case !limited && !overcommitAllowed(string(name)):
			errs = append(errs, field.Required(limits, "Limit must be set for non overcommitable resources"))
		}
		errs = append(errs, hugePageQuantity(string(name), q, p)...)
		note(name)
	}
	if huge && !base {
		errs = append(errs, field.Forbidden(path, "HugePages require cpu or memory"))
	}
	return errs
}

func resourceClaims(list []corev1.ResourceClaim, known sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	type ref struct{ name, request string }
	seen := map[ref]bool{}
	for i, c := range list {
		p := path.Index(i)
		if c.Name == "" {
			errs = append(errs, field.Required(p, ""))
			continue
		}
		r := ref{c.Name, c.Request}
		if seen[r] || (c.Request != "" && seen[ref{c.Name, ""}]) {
			key := c.Name
			if c.Request != "" {
				key += "/" + c.Request
			}
			errs = append(errs, field.Duplicate(p, key))
		}
		seen[r] = true
		if !known.Has(c.Name) {
			e := field.NotFound(p.Child("name"), c.Name)
			e.Detail = "must be one of the names in pod.spec.resourceClaims"
			if known.Len() == 0 {
				e.Detail += " which is empty"
			}
			errs = append(errs, e)
		}
	}
	return errs
}

var podResourceNames = sets.New("cpu", "memory")

// podResources checks spec.resources and that the containers fit in it.
func podResources(ps *corev1.PodSpec, path *field.Path) field.ErrorList {
	if ps.Resources == nil {
		return nil
	}
	p := path.Child("resources")
	if ps.OS != nil && ps.OS.Name == corev1.Windows {
		return field.ErrorList{field.Forbidden(p, "may not be set for a windows pod")}
	}
	errs := requirements(ps.Resources, p, func(name string, p *field.Path) field.ErrorList {
		errs := resourceName(name, p)
		if len(errs) == 0 && !podResourceNames.Has(name) && !isHugePages(name) {
			errs = append(errs, field.NotSupported(p, corev1.ResourceName(name), []string{"cpu", "hugepages-", "memory"}))
		}
		return errs
	})
	if len(ps.Resources.Claims) > 0 {
		errs = append(errs, field.Forbidden(p.Child("claims"), "claims may not be set for Resources at pod-level"))
	}
	requests := together(ps, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests })
	for _, name := range sortedNames(ps.Resources.Requests) {
		total, q := requests[name], ps.Resources.Requests[name]
		if total.Cmp(q) > 0 {
			errs = append(errs, field.Invalid(p.Child("requests").Key(string(name)), q.String(), fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", total.String())))
		}
	}
	limits := together(ps, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits })
	for _, name := range sortedNames(ps.Resources.Limits) {
		total, q := limits[name], ps.Resources.Limits[name]
		if isHugePages(string(name)) && total.Cmp(q) > 0 {
			errs = append(errs, field.Invalid(p.Child("limits").Key(string(name)), q.String(), fmt.Sprintf("must be greater than or equal to aggregate container limits of %s", total.String())))
		}
	}
	for i := range ps.Containers {
		own := ps.Containers[i].Resources.Limits
		for _, name := range sortedNames(own) {
			if q, ok := ps.Resources.Limits[name]; ok && cmp(own[name], q) > 0 {
				l := own[name]
				// The path is upstream's.
				errs = append(errs, field.Invalid(p.Child("containers").Index(i).Key(string(name)).Child("limits"), l.String(), fmt.Sprintf("must be less than or equal to pod limits of %s", q.String())))
			}
		}
	}
	return errs
}

func cmp(a, b resource.Quantity) int { return a.Cmp(b) }

// together is what the containers of a pod need at one time: the regular ones with the
// sidecars, or one that runs before them with the sidecars that it finds running.
func together(ps *corev1.PodSpec, of func(*corev1.Container) corev1.ResourceList) corev1.ResourceList {
	sum, sidecars, before := corev1.ResourceList{}, corev1.ResourceList{}, corev1.ResourceList{}
	for i := range ps.Containers {
		add(sum, of(&ps.Containers[i]))
	}
	for i := range ps.InitContainers {
		need := sidecars.DeepCopy()
		add(need, of(&ps.InitContainers[i]))
		if sidecar(&ps.InitContainers[i]) {
			add(sum, of(&ps.InitContainers[i]))
			sidecars = need
		}
		for name, q := range need {
			if q.Cmp(before[name]) > 0 {
				before[name] = q
			}
		}
	}
	for name, q := range before {
		if q.Cmp(sum[name]) > 0 {
			sum[name] = q
		}
	}
	return sum
}

func add(sum, more corev1.ResourceList) {
	for name, q := range more {
		total := sum[name].DeepCopy()
		total.Add(q)
		sum[name] = total
	}
}
