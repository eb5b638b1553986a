package validate

import (
	"fmt"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const maxUserPriority = int32(1000000000)

// systemPriorities are the classes that every cluster has.
var systemPriorities = map[string]int32{"system-node-critical": 2000001000, "system-cluster-critical": 2000000000}

// PriorityClass checks a new priority class.
func PriorityClass(pc *schedulingv1.PriorityClass) field.ErrorList {
	errs := ObjectMeta(&pc.ObjectMeta, false, NameDNSSubdomain, meta())
	if strings.HasPrefix(pc.Name, "system-") {
		if err := systemPriority(pc); err != nil {
			errs = append(errs, field.Forbidden(meta().Child("name"), "priority class names with 'system-' prefix are reserved for system use only. error: "+err.Error()))
		}
	} else if pc.Value > maxUserPriority {
		errs = append(errs, field.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", maxUserPriority)))
	}
	if pc.PreemptionPolicy != nil {
		errs = append(errs, requiredSupported(*pc.PreemptionPolicy, field.NewPath("preemptionPolicy"), corev1.PreemptLowerPriority, corev1.PreemptNever)...)
	}
	return errs
}

func systemPriority(pc *schedulingv1.PriorityClass) error {
	want, ok := systemPriorities[pc.Name]
	switch {
	case !ok:
		return fmt.Errorf("%v is not a known system priority class", pc.Name)
	case pc.Value != want:
		return fmt.Errorf("value of %v PriorityClass must be %v", pc.Name, want)
	case pc.GlobalDefault:
		return fmt.Errorf("globalDefault of %v PriorityClass must be %v", pc.Name, false)
	}
	return nil
}

// PriorityClassUpdate checks an update of a priority class: its value stays.
func PriorityClassUpdate(new, old *schedulingv1.PriorityClass) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.Value != old.Value {
		errs = append(errs, field.Forbidden(field.NewPath("value"), "may not be changed in an update."))
	}
	return append(errs, unchanged(new.PreemptionPolicy, old.PreemptionPolicy, field.NewPath("preemptionPolicy"))...)
}

var limitTypes = sets.New(corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim)

// LimitRange checks a new or changed limit range.
func LimitRange(l *corev1.LimitRange) field.ErrorList {
	errs := ObjectMeta(&l.ObjectMeta, true, NameDNSSubdomain, meta())
	seen := sets.New[corev1.LimitType]()
	for i := range l.Spec.Limits {
		item, p := &l.Spec.Limits[i], spec().Child("limits").Index(i)
		bad := qualifiedName(string(item.Type), p.Child("type"))
		if len(bad) == 0 && !strings.Contains(string(item.Type), "/") && !limitTypes.Has(item.Type) {
			bad = append(bad, field.Invalid(p.Child("type"), item.Type, "must be a standard limit type or fully qualified"))
		}
		errs = append(errs, bad...)
		if seen.Has(item.Type) {
			errs = append(errs, field.Duplicate(p.Child("type"), item.Type))
		}
		seen.Insert(item.Type)
		errs = append(errs, limitItem(item, p)...)
	}
	return errs
}

// LimitRangeUpdate checks an update of a limit range.
func LimitRangeUpdate(new, old *corev1.LimitRange) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), LimitRange(new)...)
}

func limitItem(item *corev1.LimitRangeItem, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	keys := sets.New[corev1.ResourceName]()
	for _, f := range []struct {
		name string
		list corev1.ResourceList
	}{{"max", item.Max}, {"min", item.Min}, {"default", item.Default}, {"defaultRequest", item.DefaultRequest}, {"maxLimitRequestRatio", item.MaxLimitRequestRatio}} {
		if item.Type == corev1.LimitTypePod && (f.name == "default" || f.name == "defaultRequest") {
			if len(f.list) > 0 {
				errs = append(errs, field.Forbidden(path.Child(f.name), "may not be specified when `type` is 'Pod'"))
			}
			continue
		}
		for _, name := range sortedNames(f.list) {
			rule := resourceName
			if item.Type == corev1.LimitTypePod || item.Type == corev1.LimitTypeContainer {
				rule = containerResourceName
			}
			errs = append(errs, rule(string(name), path.Child(f.name).Key(string(name)))...)
			keys.Insert(name)
		}
	}
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		_, hasMin := item.Min[corev1.ResourceStorage]
		_, hasMax := item.Max[corev1.ResourceStorage]
		if !hasMin && !hasMax {
			errs = append(errs, field.Required(path.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
		}
	}
	for _, k := range sets.List(keys) {
		errs = append(errs, limitOrder(item, k, path)...)
	}
	return errs
}

// limitOrder checks min ≤ default request ≤ default ≤ max for one resource.
func limitOrder(item *corev1.LimitRangeItem, k corev1.ResourceName, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	lo, hasLo := item.Min[k]
	hi, hasHi := item.Max[k]
	def, hasDef := item.Default[k]
	req, hasReq := item.DefaultRequest[k]
	ratio, hasRatio := item.MaxLimitRequestRatio[k]
	bad := func(name string, value resource.Quantity, format string, a, b resource.Quantity) {
		errs = append(errs, field.Invalid(path.Child(name).Key(string(k)), value, fmt.Sprintf(format, a.String(), b.String())))
	}
	if hasLo && hasHi && lo.Cmp(hi) > 0 {
		bad("min", lo, "min value %s is greater than max value %s", lo, hi)
	}
	if hasReq && hasLo && lo.Cmp(req) > 0 {
		bad("defaultRequest", req, "min value %s is greater than default request value %s", lo, req)
	}
	if hasReq && hasHi && req.Cmp(hi) > 0 {
		bad("defaultRequest", req, "default request value %s is greater than max value %s", req, hi)
	}
	if hasReq && hasDef && req.Cmp(def) > 0 {
		bad("defaultRequest", req, "default request value %s is greater than default limit value %s", req, def)
	}
	if hasDef && hasLo && lo.Cmp(def) > 0 {
		bad("default", lo, "min value %s is greater than default value %s", lo, def)
	}
	if hasDef && hasHi && def.Cmp(hi) > 0 {
		bad("default", hi, "default value %s is greater than max value %s", def, hi)
	}
	if hasRatio && ratio.Cmp(resource.MustParse("1")) < 0 {
		errs = append(errs, field.Invalid(path.Child("maxLimitRequestRatio").Key(string(k)), ratio, fmt.Sprintf("ratio %s is less than 1", ratio.String())))
	}
	if hasRatio && hasLo && hasHi && lo.MilliValue() > 0 {
		if most := float64(hi.MilliValue()) / float64(lo.MilliValue()); float64(ratio.MilliValue())/1000 > most {
			errs = append(errs, field.Invalid(path.Child("maxLimitRequestRatio").Key(string(k)), ratio, fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), most)))
		}
	}
	if !overcommitAllowed(string(k)) && hasDef && hasReq && def.Cmp(req) != 0 {
		errs = append(errs, field.Invalid(path.Child("defaultRequest").Key(string(k)), req, fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", def.String(), req.String(), k)))
	}
	return errs
}

// ResourceQuota checks a new quota.
func ResourceQuota(q *corev1.ResourceQuota) field.ErrorList {
	errs := ObjectMeta(&q.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, quotaSpec(&q.Spec, spec())...)
	return append(errs, quotaStatus(&q.Status)...)
}

// ResourceQuotaUpdate checks an update of a quota: its scopes stay.
func ResourceQuotaUpdate(new, old *corev1.ResourceQuota) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, quotaSpec(&new.Spec, spec())...)
	if !sets.New(new.Spec.Scopes...).Equal(sets.New(old.Spec.Scopes...)) {
		errs = append(errs, field.Invalid(spec().Child("scopes"), new.Spec.Scopes, immutable))
	}
	return errs
}

// ResourceQuotaStatusUpdate checks an update of a quota's status.
func ResourceQuotaStatusUpdate(new, old *corev1.ResourceQuota) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	if new.ResourceVersion == "" {
		errs = append(errs, field.Required(field.NewPath("resourceVersion"), ""))
	}
	return append(errs, quotaStatus(&new.Status)...)
}

func quotaStatus(s *corev1.ResourceQuotaStatus) field.ErrorList {
	return append(quotaList(s.Hard, status().Child("hard")), quotaList(s.Used, status().Child("used"))...)
}

func quotaList(list corev1.ResourceList, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, name := range sortedNames(list) {
		p := path.Key(string(name))
		errs = append(errs, resourceName(string(name), p)...)
		if !strings.Contains(string(name), "/") && !standardQuotaName(string(name)) {
			errs = append(errs, field.Invalid(p, string(name), "must be a standard resource for quota"))
		}
		errs = append(errs, resourceQuantity(string(name), list[name], p)...)
	}
	return errs
}

var (
	quotaScopes = sets.New(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort,
		corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass)
	podComputeNames = sets.New(corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory)
)

func standardQuotaName(name string) bool {
	return quotaResourceNames.Has(name) || isHugePages(name) || strings.HasPrefix(name, corev1.ResourceRequestsHugePagesPrefix)
}

// scopeFits says whether a quota of a scope can count a resource. Of other names
// than the standard ones nothing is known.
func scopeFits(scope corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	if !standardQuotaName(string(name)) {
		return true
	}
	switch scope {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	}
	return name == corev1.ResourcePods || podComputeNames.Has(name)
}

func quotaSpec(s *corev1.ResourceQuotaSpec, path *field.Path) field.ErrorList {
	errs := quotaList(s.Hard, path.Child("hard"))
	if len(s.Scopes) > 0 {
		p := path.Child("scopes")
		seen := sets.New[corev1.ResourceQuotaScope]()
		for _, scope := range s.Scopes {
			if !quotaScopes.Has(scope) {
				errs = append(errs, field.Invalid(p, s.Scopes, "unsupported scope"))
			}
			for _, name := range sortedNames(s.Hard) {
				if quotaScopes.Has(scope) && !scopeFits(scope, name) {
					errs = append(errs, field.Invalid(p, s.Scopes, "unsupported scope applied to resource"))
				}
			}
			seen.Insert(scope)
		}
		if scopesConflict(seen) {
			errs = append(errs, field.Invalid(p, s.Scopes, "conflicting scopes"))
		}
	}
	if s.ScopeSelector != nil {
		errs = append(errs, scopeSelector(s, path.Child("scopeSelector"))...)
	}
	return errs
}

func scopesConflict(seen sets.Set[corev1.ResourceQuotaScope]) bool {
	return seen.HasAll(corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort) ||
		seen.HasAll(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating)
}

func scopeSelector(s *corev1.ResourceQuotaSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	p := path.Child("matchExpressions")
	seen := sets.New[corev1.ResourceQuotaScope]()
	for _, r := range s.ScopeSelector.MatchExpressions {
		if !quotaScopes.Has(r.ScopeName) {
			errs = append(errs, field.Invalid(p.Child("scopeName"), r.ScopeName, "unsupported scope"))
		}
		for _, name := range sortedNames(s.Hard) {
			if quotaScopes.Has(r.ScopeName) && !scopeFits(r.ScopeName, name) {
				errs = append(errs, field.Invalid(p, s.ScopeSelector, "unsupported scope applied to resource"))
			}
		}
		valued := r.ScopeName == corev1.ResourceQuotaScopePriorityClass || r.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass
		if !valued && quotaScopes.Has(r.ScopeName) && r.Operator != corev1.ScopeSelectorOpExists {
			errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				errs = append(errs, field.Required(p.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) != 0 {
				errs = append(errs, field.Invalid(p.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
			}
		default:
			errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator"))
		}
		seen.Insert(r.ScopeName)
	}
	if scopesConflict(seen) {
		errs = append(errs, field.Invalid(p, s.Scopes, "conflicting scopes"))
	}
	return errs
}

// Lease checks a new lease.
func Lease(l *coordinationv1.Lease) field.ErrorList {
	errs := ObjectMeta(&l.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, leaseSpec(&l.Spec, spec())...)
}

// LeaseUpdate checks an update of a lease.
func LeaseUpdate(new, old *coordinationv1.Lease) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, leaseSpec(&new.Spec, spec())...)
}

func leaseSpec(s *coordinationv1.LeaseSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if d := s.LeaseDurationSeconds; d != nil && *d <= 0 {
		errs = append(errs, field.Invalid(path.Child("leaseDurationSeconds"), *d, "must be greater than 0"))
	}
	if t := s.LeaseTransitions; t != nil && *t < 0 {
		errs = append(errs, field.Invalid(path.Child("leaseTransitions"), *t, "must be greater than or equal to 0"))
	}
	if st := s.Strategy; st != nil {
		p := path.Child("strategy")
		if strings.Contains(string(*st), "/") {
			errs = append(errs, qualifiedName(string(*st), p)...)
		} else {
			errs = append(errs, supported(*st, p, coordinationv1.OldestEmulationVersion)...)
		}
	}
	if deref(s.PreferredHolder) != "" && (s.Strategy == nil || *s.Strategy == "") {
		errs = append(errs, field.Forbidden(path.Child("preferredHolder"), "may only be specified when `strategy` is defined"))
	}
	return errs
}

// PodDisruptionBudget checks a new budget.
func PodDisruptionBudget(b *policyv1.PodDisruptionBudget) field.ErrorList {
	errs := ObjectMeta(&b.ObjectMeta, true, NamePathSegment, meta())
	return append(errs, budgetSpec(&b.Spec, nil, spec())...)
}

// PodDisruptionBudgetUpdate checks an update of a budget.
func PodDisruptionBudgetUpdate(new, old *policyv1.PodDisruptionBudget) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, budgetSpec(&new.Spec, old.Spec.Selector, spec())...)
}

func budgetSpec(s *policyv1.PodDisruptionBudgetSpec, known *metav1.LabelSelector, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(path, *s, "minAvailable and maxUnavailable cannot be both set"))
	}
	if s.MinAvailable != nil {
		errs = append(errs, positiveIntOrPercent(*s.MinAvailable, path.Child("minAvailable"))...)
		errs = append(errs, atMost100Percent(*s.MinAvailable, path.Child("minAvailable"))...)
	}
	if s.MaxUnavailable != nil {
		errs = append(errs, positiveIntOrPercent(*s.MaxUnavailable, path.Child("maxUnavailable"))...)
		errs = append(errs, atMost100Percent(*s.MaxUnavailable, path.Child("maxUnavailable"))...)
	}
	errs = append(errs, metavalidation.ValidateLabelSelector(s.Selector, lax(known), path.Child("selector"))...)
	if p := s.UnhealthyPodEvictionPolicy; p != nil {
		errs = append(errs, supported(*p, path.Child("unhealthyPodEvictionPolicy"), policyv1.AlwaysAllow, policyv1.IfHealthyBudget)...)
	}
	return errs
}

// PodDisruptionBudgetStatusUpdate checks an update of a budget's status.
func PodDisruptionBudgetStatusUpdate(new, old *policyv1.PodDisruptionBudget) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s, path := &new.Status, status()
	errs = append(errs, metavalidation.ValidateConditions(s.Conditions, path.Child("conditions"))...)
	errs = append(errs, nonNegative(int64(s.DisruptionsAllowed), path.Child("disruptionsAllowed"))...)
	errs = append(errs, nonNegative(int64(s.CurrentHealthy), path.Child("currentHealthy"))...)
	errs = append(errs, nonNegative(int64(s.DesiredHealthy), path.Child("desiredHealthy"))...)
	return append(errs, nonNegative(int64(s.ExpectedPods), path.Child("expectedPods"))...)
}

// Eviction checks the wish to move a pod away.
func Eviction(e *policyv1.Eviction) field.ErrorList {
	if e.DeleteOptions == nil {
		return nil
	}
	return DeleteOptions(e.DeleteOptions)
}
