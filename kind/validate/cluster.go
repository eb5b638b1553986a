package validate

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// Namespace checks a new namespace.
func Namespace(ns *corev1.Namespace) field.ErrorList {
	errs := ObjectMeta(&ns.ObjectMeta, false, NameDNSLabel, meta())
	for _, name := range ns.Spec.Finalizers {
		errs = append(errs, finalizer(string(name), spec().Child("finalizers"))...)
	}
	return errs
}

func finalizer(name string, path *field.Path) field.ErrorList {
	return append(apivalidation.ValidateFinalizerName(name, path), kubeFinalizer(name, path)...)
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
	for i, name := range new.Spec.Finalizers {
		errs = append(errs, finalizer(string(name), spec().Child("finalizers").Index(i))...)
	}
	return errs
}

// Node checks a new node.
func Node(n *corev1.Node) field.ErrorList {
	errs := ObjectMeta(&n.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, nodeAnnotations(n.Annotations, meta().Child("annotations"))...)
	errs = append(errs, taints(n.Spec.Taints, meta().Child("taints"))...)
	errs = append(errs, nodeResources(n)...)
	errs = append(errs, declaredFeatures(n.Status.DeclaredFeatures, status().Child("declaredFeatures"))...)
	path := spec().Child("podCIDRs")
	for i, cidr := range n.Spec.PodCIDRs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(path.Index(i), cidr, true, nil)...)
	}
	if len(n.Spec.PodCIDRs) > 1 {
		dual, err := netutils.IsDualStackCIDRStrings(n.Spec.PodCIDRs)
		if err != nil {
			errs = append(errs, field.InternalError(path, fmt.Errorf("invalid PodCIDRs. failed to check with dual stack with error:%v", err)))
		}
		if !dual || len(n.Spec.PodCIDRs) > 2 {
			errs = append(errs, field.Invalid(path, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
		}
	}
	return errs
}

func nodeResources(n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	for _, name := range sortedNames(n.Status.Capacity) {
		errs = append(errs, resourceQuantity(string(name), n.Status.Capacity[name], status().Child("capacity", string(name)))...)
	}
	for _, name := range sortedNames(n.Status.Allocatable) {
		errs = append(errs, resourceQuantity(string(name), n.Status.Allocatable[name], status().Child("allocatable", string(name)))...)
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

// NodeUpdate checks an update of a node, also of its status. The path of taints is
// the API's.
func NodeUpdate(new, old *corev1.Node) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, nodeAnnotations(new.Annotations, meta().Child("annotations"))...)
	errs = append(errs, nodeResources(new)...)
	errs = append(errs, declaredFeatures(new.Status.DeclaredFeatures, status().Child("declaredFeatures"))...)
	seen := sets.New[corev1.NodeAddress]()
	for i, a := range new.Status.Addresses {
		if seen.Has(a) {
			errs = append(errs, field.Duplicate(status().Child("addresses").Index(i), a))
		}
		seen.Insert(a)
	}
	if was, is := old.Spec.PodCIDRs, new.Spec.PodCIDRs; len(was) > 0 && !slices.Equal(was, is) {
		errs = append(errs, field.Forbidden(spec().Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid"))
	}
	if old.Spec.ProviderID != "" && old.Spec.ProviderID != new.Spec.ProviderID {
		errs = append(errs, field.Forbidden(spec().Child("providerID"), "node updates may not change providerID except from \"\" to valid"))
	}
	if s := new.Spec.ConfigSource; s != nil {
		errs = append(errs, configSource(s, false, spec().Child("configSource"))...)
	}
	if c := new.Status.Config; c != nil {
		for _, f := range []struct {
			name   string
			source *corev1.NodeConfigSource
		}{{"assigned", c.Assigned}, {"active", c.Active}, {"lastKnownGood", c.LastKnownGood}} {
			if f.source != nil {
				errs = append(errs, configSource(f.source, true, status().Child("config", f.name))...)
			}
		}
	}
	errs = append(errs, taints(new.Spec.Taints, meta().Child("taints"))...)
	if new.Spec.DoNotUseExternalID != old.Spec.DoNotUseExternalID {
		errs = append(errs, field.Forbidden(spec().Child("externalID"), "may not be updated"))
	}
	return errs
}

// configSource checks a place of a node's configuration, which nothing reads any
// more: what was observed has a version, what is wished has none.
func configSource(s *corev1.NodeConfigSource, observed bool, path *field.Path) field.ErrorList {
	c, p := s.ConfigMap, path.Child("configMap")
	if c == nil {
		return field.ErrorList{field.Invalid(path, s, "exactly one reference subfield must be non-nil")}
	}
	var errs field.ErrorList
	for _, f := range []struct{ name, value string }{{"uid", string(c.UID)}, {"resourceVersion", c.ResourceVersion}} {
		if observed && f.value == "" {
			errs = append(errs, field.Required(p.Child(f.name), ""))
		} else if !observed && f.value != "" {
			errs = append(errs, field.Forbidden(p.Child(f.name), f.name+" must not be set in spec"))
		}
	}
	for _, f := range []struct {
		name, value string
		rule        func(string) []string
	}{
		{"namespace", c.Namespace, func(v string) []string { return NameDNSLabel(v, false) }},
		{"name", c.Name, func(v string) []string { return NameDNSSubdomain(v, false) }},
		{"kubeletConfigKey", c.KubeletConfigKey, validation.IsConfigMapKey},
	} {
		if f.value == "" {
			errs = append(errs, field.Required(p.Child(f.name), ""))
		} else {
			errs = append(errs, invalid(p.Child(f.name), f.value, f.rule(f.value))...)
		}
	}
	return errs
}

// nodeAnnotations checks the annotations that were fields before there were fields.
func nodeAnnotations(values map[string]string, path *field.Path) field.ErrorList {
	const taintsKey = "scheduler.alpha.kubernetes.io/taints"
	text := values[taintsKey]
	if text == "" {
		return nil
	}
	var list []corev1.Taint
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return field.ErrorList{field.Invalid(path, taintsKey, err.Error())}
	}
	return taints(list, path.Child(taintsKey))
}

var featureName = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*(/[a-zA-Z][a-zA-Z0-9]*)*$`)

// declaredFeatures checks the sorted names of what a node can do.
func declaredFeatures(names []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, name := range names {
		p := path.Index(i)
		if n := validation.DNS1123SubdomainMaxLength; len(name) > n {
			errs = append(errs, field.Invalid(p, name, fmt.Sprintf("invalid feature name %q: must be no more than %d characters", name, n)))
		} else if !featureName.MatchString(name) {
			errs = append(errs, field.Invalid(p, name, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", name)))
		}
		if i == 0 {
			continue
		}
		switch before := names[i-1]; {
		case before == name:
			errs = append(errs, field.Duplicate(p, name))
		case before > name:
			errs = append(errs, field.Invalid(p, name, "list must be sorted alphabetically"))
		}
	}
	return errs
}
