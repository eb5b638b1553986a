// Package usage says what an object counts against a ResourceQuota (Kubernetes
// docs, "Resource Quotas"): pure functions that admission and the quota
// controller share.
package usage

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"proa.dev/kind"
)

// Of is what one object of kind k uses. Pods that have ended use nothing but
// count/pods.
func Of(k *kind.Kind, o kind.Object) corev1.ResourceList {
	out := corev1.ResourceList{}
	name := "count/" + k.Plural
	if k.Group != "" {
		name += "." + k.Group
	}
	one := *resource.NewQuantity(1, resource.DecimalSI)
	out[corev1.ResourceName(name)] = one
	switch o := o.(type) {
	case *corev1.Pod:
		if Ended(o) {
			break
		}
		out[corev1.ResourcePods] = one
		requests, limits := PodRequests(o), PodLimits(o)
		for r, q := range requests {
			out["requests."+r] = q
			if r == corev1.ResourceCPU || r == corev1.ResourceMemory || r == corev1.ResourceEphemeralStorage || strings.HasPrefix(string(r), corev1.ResourceHugePagesPrefix) {
				out[r] = q
			}
		}
		for r, q := range limits {
			if r == corev1.ResourceCPU || r == corev1.ResourceMemory || r == corev1.ResourceEphemeralStorage {
				out["limits."+r] = q
			}
		}
	case *corev1.Service:
		out[corev1.ResourceServices] = one
		switch o.Spec.Type {
		case corev1.ServiceTypeLoadBalancer:
			out[corev1.ResourceServicesLoadBalancers] = one
			ports := len(o.Spec.Ports)
			if a := o.Spec.AllocateLoadBalancerNodePorts; a != nil && !*a {
				ports = 0 // but those that were named
				for i := range o.Spec.Ports {
					if o.Spec.Ports[i].NodePort != 0 {
						ports++
					}
				}
			}
			out[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(ports), resource.DecimalSI)
		case corev1.ServiceTypeNodePort:
			out[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(len(o.Spec.Ports)), resource.DecimalSI)
		}
	case *corev1.ConfigMap:
		out[corev1.ResourceConfigMaps] = one
	case *corev1.Secret:
		out[corev1.ResourceSecrets] = one
	case *corev1.ReplicationController:
		out[corev1.ResourceReplicationControllers] = one
	case *corev1.ResourceQuota:
		out[corev1.ResourceQuotas] = one
	case *corev1.PersistentVolumeClaim:
		out[corev1.ResourcePersistentVolumeClaims] = one
		size := o.Spec.Resources.Requests[corev1.ResourceStorage]
		out[corev1.ResourceRequestsStorage] = size
		class := o.Annotations[corev1.BetaStorageClassAnnotation]
		if c := o.Spec.StorageClassName; class == "" && c != nil {
			class = *c
		}
		if class != "" {
			out[corev1.ResourceName(class+".storageclass.storage.k8s.io/requests.storage")] = size
			out[corev1.ResourceName(class+".storageclass.storage.k8s.io/persistentvolumeclaims")] = one
		}
	}
	return out
}

// Ended pods hold no resources.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// PodRequests are a pod's effective requests: the larger of what its containers
// and sidecars ask for together, and what any init container asks for beside the
// sidecars started before it, plus overhead (KEP-753). Pod-level resources win
// where they are set (KEP-2837).
func PodRequests(p *corev1.Pod) corev1.ResourceList {
	out := effective(p, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests })
	if p.Spec.Resources != nil {
		for r, q := range p.Spec.Resources.Requests {
			out[r] = q
		}
	}
	add(out, p.Spec.Overhead)
	return out
}

// PodLimits are a pod's effective limits.
func PodLimits(p *corev1.Pod) corev1.ResourceList {
	out := effective(p, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits })
	if p.Spec.Resources != nil {
		for r, q := range p.Spec.Resources.Limits {
			out[r] = q
		}
	}
	for r, q := range p.Spec.Overhead {
		if have, ok := out[r]; ok {
			have.Add(q)
			out[r] = have
		}
	}
	return out
}

func effective(p *corev1.Pod, of func(*corev1.Container) corev1.ResourceList) corev1.ResourceList {
	total, sidecars, peak := corev1.ResourceList{}, corev1.ResourceList{}, corev1.ResourceList{}
	for i := range p.Spec.Containers {
		add(total, of(&p.Spec.Containers[i]))
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(total, of(c))
			add(sidecars, of(c))
			raise(peak, sidecars)
			continue
		}
		with := corev1.ResourceList{}
		add(with, sidecars)
		add(with, of(c))
		raise(peak, with)
	}
	raise(total, peak)
	return total
}

func add(to, from corev1.ResourceList) {
	for r, q := range from {
		have := to[r].DeepCopy()
		have.Add(q)
		to[r] = have
	}
}

func raise(to, from corev1.ResourceList) {
	for r, q := range from {
		if have, ok := to[r]; !ok || have.Cmp(q) < 0 {
			to[r] = q.DeepCopy()
		}
	}
}

// Matches says whether a quota's scopes select an object; scopes are about pods
// (and volume attributes of claims), so that other kinds match only without any.
func Matches(q *corev1.ResourceQuota, k *kind.Kind, o kind.Object) bool {
	var wanted []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.Spec.Scopes {
		wanted = append(wanted, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		wanted = append(wanted, q.Spec.ScopeSelector.MatchExpressions...)
	}
	if len(wanted) == 0 {
		return true
	}
	for _, w := range wanted {
		switch o := o.(type) {
		case *corev1.Pod:
			if !scope(w, o) {
				return false
			}
		case *corev1.PersistentVolumeClaim:
			class := ""
			if c := o.Spec.VolumeAttributesClassName; c != nil {
				class = *c
			}
			if w.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass || !selects(w, class) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func scope(w corev1.ScopedResourceSelectorRequirement, p *corev1.Pod) bool {
	terminating := p.Spec.ActiveDeadlineSeconds != nil && *p.Spec.ActiveDeadlineSeconds >= 0
	switch w.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return terminating
	case corev1.ResourceQuotaScopeNotTerminating:
		return !terminating
	case corev1.ResourceQuotaScopeBestEffort:
		return BestEffort(p)
	case corev1.ResourceQuotaScopeNotBestEffort:
		return !BestEffort(p)
	case corev1.ResourceQuotaScopePriorityClass:
		return selects(w, p.Spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossNamespace(p)
	}
	return false
}

func selects(w corev1.ScopedResourceSelectorRequirement, name string) bool {
	switch w.Operator {
	case corev1.ScopeSelectorOpExists:
		return name != ""
	case corev1.ScopeSelectorOpDoesNotExist:
		return name == ""
	case corev1.ScopeSelectorOpIn:
		return slices.Contains(w.Values, name)
	case corev1.ScopeSelectorOpNotIn:
		return !slices.Contains(w.Values, name)
	}
	return false
}

func crossNamespace(p *corev1.Pod) bool {
	a := p.Spec.Affinity
	if a == nil {
		return false
	}
	crosses := func(t *corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil }
	var terms []corev1.PodAffinityTerm
	if a.PodAffinity != nil {
		terms = append(terms, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution...)
		for _, w := range a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	if a.PodAntiAffinity != nil {
		terms = append(terms, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution...)
		for _, w := range a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return crosses(&t) })
}

// BestEffort: no container asks for or limits CPU or memory.
func BestEffort(p *corev1.Pod) bool {
	for _, l := range []corev1.ResourceList{PodRequests(p), PodLimits(p)} {
		for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := l[r]; ok && !q.IsZero() {
				return false
			}
		}
	}
	return true
}
