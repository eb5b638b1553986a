package validate

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// Namespace checks a new namespace.
func Namespace(ns *corev1.Namespace) field.ErrorList {
	errs := ObjectMeta(&ns.ObjectMeta, false, NameDNSLabel, meta())
	return append(errs, namespaceFinalizers(ns.Spec.Finalizers, spec().Child("finalizers"))...)
}

func namespaceFinalizers(names []corev1.FinalizerName, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, name := range names {
		errs = append(errs, apivalidation.ValidateFinalizerName(string(name), path.Index(i))...)
		errs = append(errs, kubeFinalizer(string(name), path.Index(i))...)
	}
	return errs
}

// NamespaceUpdate checks an update of a namespace.
func NamespaceUpdate(new, old *corev1.Namespace) field.ErrorList {
	return ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
}

// NamespaceStatusUpdate checks an update of a namespace's status.
func NamespaceStatusUpdate(new, old *corev1.Namespace) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	path := field.NewPath("status", "Phase")
	if new.DeletionTimestamp.IsZero() {
		if new.Status.Phase != corev1.NamespaceActive {
			errs = append(errs, field.Invalid(path, new.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty"))
		}
	} else if new.Status.Phase != corev1.NamespaceTerminating {
		errs = append(errs, field.Invalid(path, new.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"))
	}
	return errs
}

// NamespaceFinalizeUpdate checks an update through the finalize door.
func NamespaceFinalizeUpdate(new, old *corev1.Namespace) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, namespaceFinalizers(new.Spec.Finalizers, spec().Child("finalizers"))...)
}

// Node checks a new node.
func Node(n *corev1.Node) field.ErrorList {
	errs := ObjectMeta(&n.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, taints(n.Spec.Taints, spec().Child("taints"))...)
	errs = append(errs, nodeResources(n)...)
	path := spec().Child("podCIDRs")
	for i, cidr := range n.Spec.PodCIDRs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(path.Index(i), cidr, true, nil)...)
	}
	if len(n.Spec.PodCIDRs) > 1 {
		dual, err := netutils.IsDualStackCIDRStrings(n.Spec.PodCIDRs)
		if err != nil {
			errs = append(errs, field.InternalError(path, err))
		} else if !dual || len(n.Spec.PodCIDRs) > 2 {
			errs = append(errs, field.Invalid(path, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
		}
	}
	return errs
}

func nodeResources(n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	for _, name := range sortedNames(n.Status.Capacity) {
		errs = append(errs, resourceQuantity(string(name), n.Status.Capacity[name], status().Child("capacity").Key(string(name)))...)
	}
	for _, name := range sortedNames(n.Status.Allocatable) {
		errs = append(errs, resourceQuantity(string(name), n.Status.Allocatable[name], status().Child("allocatable").Key(string(name)))...)
	}
	return errs
}

func taints(list []corev1.Taint, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	type pair struct {
		key    string
		effect corev1.TaintEffect
	}
	seen := map[pair]bool{}
	for i, t := range list {
		p := path.Index(i)
		errs = append(errs, labelName(t.Key, p.Child("key"))...)
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) != 0 {
			errs = append(errs, field.Invalid(p.Child("value"), t.Value, strings.Join(msgs, ";")))
		}
		if t.Effect == "" {
			errs = append(errs, field.Required(p.Child("effect"), ""))
		} else {
			errs = append(errs, taintEffect(t.Effect, p.Child("effect"))...)
		}
		k := pair{t.Key, t.Effect}
		if seen[k] {
			dup := field.Duplicate(p, t)
			dup.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, dup)
		}
		seen[k] = true
	}
	return errs
}

// NodeUpdate checks an update of a node, also of its status.
func NodeUpdate(new, old *corev1.Node) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, nodeResources(new)...)
	seen := sets.New[corev1.NodeAddress]()
	for i, a := range new.Status.Addresses {
		if seen.Has(a) {
			errs = append(errs, field.Duplicate(status().Child("addresses").Index(i), a))
		}
		seen.Insert(a)
	}
	same := old.DeepCopy()
	if len(old.Spec.PodCIDRs) == 0 {
		same.Spec.PodCIDR, same.Spec.PodCIDRs = new.Spec.PodCIDR, new.Spec.PodCIDRs
	} else if !equality.Semantic.DeepEqual(old.Spec.PodCIDRs, new.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(spec().Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID == "" {
		same.Spec.ProviderID = new.Spec.ProviderID
	} else if old.Spec.ProviderID != new.Spec.ProviderID {
		errs = append(errs, field.Forbidden(spec().Child("providerID"), "node updates may not change providerID except from \"\" to valid"))
	}
	same.ObjectMeta = new.ObjectMeta
	same.Status = new.Status
	errs = append(errs, taints(new.Spec.Taints, spec().Child("taints"))...)
	same.Spec.Taints = new.Spec.Taints
	same.Spec.Unschedulable = new.Spec.Unschedulable
	same.Spec.ConfigSource = new.Spec.ConfigSource
	same.Spec.PodPreemptionPolicy = new.Spec.PodPreemptionPolicy
	same.TypeMeta = new.TypeMeta
	if !equality.Semantic.DeepEqual(same, new) {
		errs = append(errs, field.Forbidden(field.NewPath(""), "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)"))
	}
	return errs
}
