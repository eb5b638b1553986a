package validate

import (
	"encoding/json"
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// DeviceClass checks a new class of devices. What its expressions mean is
// checked where expressions are compiled.
func DeviceClass(c *resourcev1.DeviceClass) field.ErrorList { return deviceClass(c, nil) }

// DeviceClassUpdate checks an update of a class of devices.
func DeviceClassUpdate(new, old *resourcev1.DeviceClass) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), deviceClass(new, old)...)
}

func deviceClass(c, old *resourcev1.DeviceClass) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	sameSelectors := old != nil && equality.Semantic.DeepEqual(c.Spec.Selectors, old.Spec.Selectors)
	sameConfig := old != nil && equality.Semantic.DeepEqual(c.Spec.Config, old.Spec.Config)
	errs = append(errs, deviceSelectors(c.Spec.Selectors, sameSelectors, spec().Child("selectors"))...)
	errs = append(errs, atMost(c.Spec.Config, resourcev1.DeviceConfigMaxSize, spec().Child("config"), func(x resourcev1.DeviceClassConfiguration, p *field.Path) field.ErrorList {
		return deviceConfig(&x.DeviceConfiguration, sameConfig, p)
	})...)
	if n := c.Spec.ExtendedResourceName; n != nil && (old == nil || !equality.Semantic.DeepEqual(n, old.Spec.ExtendedResourceName)) {
		errs = append(errs, extendedResourceName(*n, spec().Child("extendedResourceName"))...)
	}
	return errs
}

func extendedResourceName(name string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if !strings.Contains(name, "/") {
		errs = append(errs, field.Invalid(path, name, "a name must be a domain-prefixed path, such as 'example.com/my-prop'"))
	} else if strings.Contains(name, "kubernetes.io/") {
		errs = append(errs, field.Invalid(path, name, `must not have "kubernetes.io/" domain`))
	}
	if strings.HasPrefix(name, "requests.") {
		errs = append(errs, field.Invalid(path, name, `must not have "requests." prefix`))
	}
	return append(errs, invalid(path, name, validation.IsQualifiedName("requests."+name))...)
}

// atMost checks the length of a list and, only when it is right, each item.
func atMost[T any](list []T, limit int, path *field.Path, each func(T, *field.Path) field.ErrorList) field.ErrorList {
	if len(list) > limit {
		return field.ErrorList{field.TooMany(path, len(list), limit)}
	}
	var errs field.ErrorList
	for i, x := range list {
		errs = append(errs, each(x, path.Index(i))...)
	}
	return errs
}

// distinct reports items whose key was there before; shown is what is printed.
func distinct[T any, K comparable](list []T, path *field.Path, key func(T) K, shown func(T) any) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[K]()
	for i, x := range list {
		if k := key(x); seen.Has(k) {
			errs = append(errs, field.Duplicate(path.Index(i), shown(x)))
		} else {
			seen.Insert(k)
		}
	}
	return errs
}

func whole[T any](x T) any { return x }

func distinctStrings(list []string, path *field.Path) field.ErrorList {
	return distinct(list, path, func(s string) string { return s }, whole[string])
}

func deviceSelectors(list []resourcev1.DeviceSelector, stored bool, path *field.Path) field.ErrorList {
	return atMost(list, resourcev1.DeviceSelectorsMaxSize, path, func(s resourcev1.DeviceSelector, p *field.Path) field.ErrorList {
		if s.CEL == nil {
			return field.ErrorList{field.Required(p.Child("cel"), "")}
		}
		return deviceExpression(s.CEL.Expression, stored, p.Child("cel", "expression"))
	})
}

func deviceExpression(text string, stored bool, path *field.Path) field.ErrorList {
	if stored {
		return nil
	}
	if limit := resourcev1.CELSelectorExpressionMaxLength; len(text) > limit {
		return field.ErrorList{field.TooLong(path, "", limit)}
	}
	return required(text, path)
}

func deviceConfig(c *resourcev1.DeviceConfiguration, stored bool, path *field.Path) field.ErrorList {
	p := path.Child("opaque")
	if c.Opaque == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := csiDriverName(c.Opaque.Driver, p.Child("driver"))
	return append(errs, jsonObject(c.Opaque.Parameters, stored, resourcev1.OpaqueParametersMaxLength, p.Child("parameters"))...)
}

// jsonObject checks data that only a driver understands: a JSON object of a bounded size.
func jsonObject(data runtime.RawExtension, stored bool, limit int, path *field.Path) field.ErrorList {
	const shown = "<value omitted>"
	if len(data.Raw) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	if !stored && len(data.Raw) > limit {
		return field.ErrorList{field.TooLong(path, "", limit)}
	}
	var value any
	if err := json.Unmarshal(data.Raw, &value); err != nil {
		return field.ErrorList{field.Invalid(path, shown, "error parsing data as JSON: "+err.Error())}
	}
	if value == nil {
		return field.ErrorList{field.Required(path, "")}
	}
	if _, ok := value.(map[string]any); !ok {
		return field.ErrorList{field.Invalid(path, shown, "must be a valid JSON object")}
	}
	return nil
}

// ResourceClaim checks a new claim for devices.
func ResourceClaim(c *resourcev1.ResourceClaim) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, deviceClaim(&c.Spec.Devices, spec().Child("devices"))...)
}

// ResourceClaimUpdate checks an update of a claim: its spec stays.
func ResourceClaimUpdate(new, old *resourcev1.ResourceClaim) field.ErrorList {
	errs := ObjectMeta(&new.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())...)
	if !equality.Semantic.DeepEqual(new.Spec, old.Spec) {
		errs = append(errs, field.Invalid(spec(), nil, immutable))
	}
	return errs
}

// ResourceClaimTemplate checks a new template of claims.
func ResourceClaimTemplate(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
	errs := ObjectMeta(&t.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, templateMeta(&t.Spec.ObjectMeta, spec().Child("metadata"))...)
	return append(errs, deviceClaim(&t.Spec.Spec.Devices, spec().Child("spec", "devices"))...)
}

// ResourceClaimTemplateUpdate checks an update of a template: its spec stays.
func ResourceClaimTemplateUpdate(new, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, unchanged(new.Spec, old.Spec, spec())...)
}

// requestNames are the names of a claim's requests and of the requests below them.
type requestNames map[string]sets.Set[string]

func namesOf(c *resourcev1.DeviceClaim) requestNames {
	names := requestNames{}
	for _, r := range c.Requests {
		names[r.Name] = sets.New[string]()
		for _, s := range r.FirstAvailable {
			names[r.Name].Insert(s.Name)
		}
	}
	return names
}

// check reports what does not name a request of the claim.
func (n requestNames) check(name string, path *field.Path) field.ErrorList {
	const msg = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
	parts := strings.Split(name, "/")
	if len(parts) > 2 {
		return field.ErrorList{field.Invalid(path, name, msg)}
	}
	var errs field.ErrorList
	for _, part := range parts {
		errs = append(errs, dnsLabel(part, path)...)
	}
	if sub, ok := n[parts[0]]; !ok || len(parts) == 2 && !sub.Has(parts[1]) {
		errs = append(errs, field.Invalid(path, name, msg))
	}
	return errs
}

func (n requestNames) checkList(list []string, path *field.Path) field.ErrorList {
	errs := atMost(list, resourcev1.DeviceRequestsMaxSize, path, n.check)
	if len(list) > resourcev1.DeviceRequestsMaxSize {
		return errs
	}
	return append(errs, distinctStrings(list, path)...)
}

func deviceClaim(c *resourcev1.DeviceClaim, path *field.Path) field.ErrorList {
	names := namesOf(c)
	p := path.Child("requests")
	errs := atMost(c.Requests, resourcev1.DeviceRequestsMaxSize, p, deviceRequest)
	if len(c.Requests) <= resourcev1.DeviceRequestsMaxSize {
		errs = append(errs, distinct(c.Requests, p, func(r resourcev1.DeviceRequest) string { return r.Name }, whole[resourcev1.DeviceRequest])...)
	}
	errs = append(errs, atMost(c.Constraints, resourcev1.DeviceConstraintsMaxSize, path.Child("constraints"), func(x resourcev1.DeviceConstraint, p *field.Path) field.ErrorList {
		errs := names.checkList(x.Requests, p.Child("requests"))
		switch {
		case x.MatchAttribute != nil:
			errs = append(errs, fullName(string(*x.MatchAttribute), p.Child("matchAttribute"))...)
		case x.DistinctAttribute != nil:
			errs = append(errs, fullName(string(*x.DistinctAttribute), p.Child("distinctAttribute"))...)
		default:
			errs = append(errs, field.Required(p, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`))
		}
		return errs
	})...)
	return append(errs, atMost(c.Config, resourcev1.DeviceConfigMaxSize, path.Child("config"), func(x resourcev1.DeviceClaimConfiguration, p *field.Path) field.ErrorList {
		return append(names.checkList(x.Requests, p.Child("requests")), deviceConfig(&x.DeviceConfiguration, false, p)...)
	})...)
}

func deviceRequest(r resourcev1.DeviceRequest, path *field.Path) field.ErrorList {
	errs := dnsLabel(r.Name, path.Child("name"))
	const one = "exactly one of `exactly` or `firstAvailable` is required"
	switch {
	case r.Exactly != nil && len(r.FirstAvailable) > 0:
		errs = append(errs, field.Invalid(path, nil, one+", but multiple fields are set"))
	case r.Exactly != nil:
		e, p := r.Exactly, path.Child("exactly")
		errs = append(errs, deviceWish(e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, e.Tolerations, p)...)
	case len(r.FirstAvailable) > 0:
		p := path.Child("firstAvailable")
		errs = append(errs, atMost(r.FirstAvailable, resourcev1.FirstAvailableDeviceRequestMaxSize, p, func(s resourcev1.DeviceSubRequest, p *field.Path) field.ErrorList {
			errs := dnsLabel(s.Name, p.Child("name"))
			return append(errs, deviceWish(s.DeviceClassName, s.Selectors, s.AllocationMode, s.Count, s.Tolerations, p)...)
		})...)
		if len(r.FirstAvailable) <= resourcev1.FirstAvailableDeviceRequestMaxSize {
			errs = append(errs, distinct(r.FirstAvailable, p, func(s resourcev1.DeviceSubRequest) string { return s.Name }, whole[resourcev1.DeviceSubRequest])...)
		}
	default:
		errs = append(errs, field.Required(path, one))
	}
	return errs
}

// deviceWish is what a request and the requests below it have in common.
func deviceWish(class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64, tolerations []resourcev1.DeviceToleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := path.Child("deviceClassName"); class == "" {
		errs = append(errs, field.Required(p, ""))
	} else {
		errs = append(errs, dnsSubdomain(class, p)...)
	}
	errs = append(errs, deviceSelectors(selectors, false, path.Child("selectors"))...)
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(path.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		errs = append(errs, positive(count, path.Child("count"))...)
	default:
		errs = append(errs, field.NotSupported(path.Child("allocationMode"), mode, []resourcev1.DeviceAllocationMode{resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount}))
	}
	return append(errs, deviceTolerations(tolerations, path.Child("tolerations"))...)
}

func deviceTolerations(list []resourcev1.DeviceToleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, t := range list {
		p := path.Index(i)
		if t.Key != "" {
			errs = append(errs, qualifiedName(t.Key, p.Child("key"))...)
		}
		switch t.Operator {
		case resourcev1.DeviceTolerationOpExists:
			if t.Value != "" {
				errs = append(errs, field.Invalid(p.Child("value"), t.Value, "must be empty for operator `Exists`"))
			}
		case resourcev1.DeviceTolerationOpEqual:
			errs = append(errs, invalid(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
		case "":
			errs = append(errs, field.Required(p.Child("operator"), ""))
		default:
			errs = append(errs, field.NotSupported(p.Child("operator"), t.Operator, []resourcev1.DeviceTolerationOperator{resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists}))
		}
		if t.Effect != "" {
			errs = append(errs, deviceEffect(t.Effect, p.Child("effect"))...)
		}
	}
	return errs
}

func deviceEffect(e resourcev1.DeviceTaintEffect, path *field.Path) field.ErrorList {
	return requiredSupported(e, path, resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone)
}

// ResourceClaimStatusUpdate checks an update of a claim's status: an allocation
// stays until it is taken back, consumers are at most 256 and differ, and devices
// report only on what was allocated.
func ResourceClaimStatusUpdate(new, old *resourcev1.ResourceClaim) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	s, names := &new.Status, namesOf(&new.Spec.Devices)
	p := status().Child("reservedFor")
	limit := resourcev1.ResourceClaimReservedForMaxSize
	errs = append(errs, atMost(s.ReservedFor, limit, p, func(r resourcev1.ResourceClaimConsumerReference, p *field.Path) field.ErrorList {
		errs := required(r.Resource, p.Child("resource"))
		errs = append(errs, required(r.Name, p.Child("name"))...)
		return append(errs, required(string(r.UID), p.Child("uid"))...)
	})...)
	if len(s.ReservedFor) <= limit {
		errs = append(errs, distinct(s.ReservedFor, p, func(r resourcev1.ResourceClaimConsumerReference) string { return string(r.UID) }, whole[resourcev1.ResourceClaimConsumerReference])...)
	}
	allocated := sets.New[deviceID]()
	if s.Allocation != nil {
		for _, r := range s.Allocation.Devices.Results {
			allocated.Insert(deviceID{r.Driver, r.Pool, r.Device, string(deref(r.ShareID))})
		}
	}
	for i := range s.Devices {
		errs = append(errs, deviceStatus(&s.Devices[i], allocated, status().Child("devices").Index(i))...)
	}
	errs = append(errs, distinct(s.Devices, status().Child("devices"), statusID, whole[resourcev1.AllocatedDeviceStatus])...)
	if len(s.ReservedFor) > 0 {
		if s.Allocation == nil {
			errs = append(errs, field.Forbidden(p, "may not be specified when `allocated` is not set"))
		} else if new.DeletionTimestamp != nil && sets.New(s.ReservedFor...).Difference(sets.New(old.Status.ReservedFor...)).Len() > 0 {
			errs = append(errs, field.Forbidden(p, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
		}
	}
	switch {
	case s.Allocation == nil:
	case old.Status.Allocation == nil:
		errs = append(errs, allocation(s.Allocation, names, status().Child("allocation"))...)
	case !equality.Semantic.DeepEqual(s.Allocation, old.Status.Allocation):
		errs = append(errs, field.Invalid(status().Child("allocation"), nil, "field cannot be modified once set"))
	}
	return errs
}

// deviceID names one share of a device.
type deviceID struct{ driver, pool, device, share string }

func (d deviceID) String() string {
	s := d.driver + "/" + d.pool + "/" + d.device
	if d.share != "" {
		s += "/" + d.share
	}
	return s
}

func statusID(d resourcev1.AllocatedDeviceStatus) deviceID {
	return deviceID{d.Driver, d.Pool, d.Device, deref(d.ShareID)}
}

func deviceStatus(d *resourcev1.AllocatedDeviceStatus, allocated sets.Set[deviceID], path *field.Path) field.ErrorList {
	errs := csiDriverName(d.Driver, path.Child("driver"))
	errs = append(errs, poolName(d.Pool, path.Child("pool"))...)
	errs = append(errs, dnsLabel(d.Device, path.Child("device"))...)
	if d.ShareID != nil {
		errs = append(errs, uuidForm(*d.ShareID, path.Child("shareID"))...)
	}
	if id := statusID(*d); !allocated.Has(id) {
		errs = append(errs, field.Invalid(path, id.String(), "must be an allocated device in the claim"))
	}
	if limit := resourcev1.AllocatedDeviceStatusMaxConditions; len(d.Conditions) > limit {
		errs = append(errs, field.TooMany(path.Child("conditions"), len(d.Conditions), limit))
	}
	errs = append(errs, metavalidation.ValidateConditions(d.Conditions, path.Child("conditions"))...)
	if d.Data != nil && len(d.Data.Raw) > 0 {
		errs = append(errs, jsonObject(*d.Data, false, resourcev1.AllocatedDeviceStatusDataMaxLength, path.Child("data"))...)
	}
	n := d.NetworkData
	if n == nil {
		return errs
	}
	p := path.Child("networkData")
	if limit := resourcev1.NetworkDeviceDataInterfaceNameMaxLength; len(n.InterfaceName) > limit {
		errs = append(errs, field.TooLong(p.Child("interfaceName"), "", limit))
	}
	if limit := resourcev1.NetworkDeviceDataHardwareAddressMaxLength; len(n.HardwareAddress) > limit {
		errs = append(errs, field.TooLong(p.Child("hardwareAddress"), "", limit))
	}
	errs = append(errs, atMost(n.IPs, resourcev1.NetworkDeviceDataMaxIPs, p.Child("ips"), func(ip string, p *field.Path) field.ErrorList {
		return validation.IsValidInterfaceAddress(p, ip)
	})...)
	if len(n.IPs) <= resourcev1.NetworkDeviceDataMaxIPs {
		errs = append(errs, distinctStrings(n.IPs, p.Child("ips"))...)
	}
	return errs
}

func allocation(a *resourcev1.AllocationResult, names requestNames, path *field.Path) field.ErrorList {
	p := path.Child("devices")
	errs := atMost(a.Devices.Results, resourcev1.AllocationResultsMaxSize, p.Child("results"), func(r resourcev1.DeviceRequestAllocationResult, p *field.Path) field.ErrorList {
		errs := names.check(r.Request, p.Child("request"))
		errs = append(errs, csiDriverName(r.Driver, p.Child("driver"))...)
		errs = append(errs, poolName(r.Pool, p.Child("pool"))...)
		errs = append(errs, dnsLabel(r.Device, p.Child("device"))...)
		errs = append(errs, bindingConditions(r.BindingConditions, r.BindingFailureConditions, p)...)
		errs = append(errs, deviceTolerations(r.Tolerations, p.Child("tolerations"))...)
		if r.ShareID != nil {
			errs = append(errs, uuidForm(string(*r.ShareID), p.Child("shareID"))...)
		}
		return errs
	})
	errs = append(errs, atMost(a.Devices.Config, 2*resourcev1.DeviceConfigMaxSize, p.Child("config"), func(c resourcev1.DeviceAllocationConfiguration, p *field.Path) field.ErrorList {
		errs := requiredSupported(c.Source, p.Child("source"), resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)
		errs = append(errs, names.checkList(c.Requests, p.Child("requests"))...)
		return append(errs, deviceConfig(&c.DeviceConfiguration, false, p)...)
	})...)
	if a.NodeSelector != nil {
		errs = append(errs, nodeSelector(a.NodeSelector, path.Child("nodeSelector"))...)
	}
	return errs
}

func poolName(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	if limit := resourcev1.PoolNameMaxLength; len(name) > limit {
		errs = append(errs, field.TooLong(path, "", limit))
	}
	for part := range strings.SplitSeq(name, "/") {
		errs = append(errs, dnsSubdomain(part, path)...)
	}
	return errs
}

func uuidForm(id string, path *field.Path) field.ErrorList {
	ok := len(id) == 36
	for i := 0; ok && i < len(id); i++ {
		switch c := id[i]; i {
		case 8, 13, 18, 23:
			ok = c == '-'
		default:
			ok = '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		}
	}
	if ok {
		return nil
	}
	return field.ErrorList{field.Invalid(path, id, "must be a lowercase UUID in 8-4-4-4-12 format")}
}

// DeviceTaintRule checks a new rule that taints devices.
func DeviceTaintRule(r *resourcev1.DeviceTaintRule) field.ErrorList {
	return append(ObjectMeta(&r.ObjectMeta, false, NameDNSSubdomain, meta()), taintRuleSpec(&r.Spec, nil)...)
}

// DeviceTaintRuleUpdate checks an update of a rule.
func DeviceTaintRuleUpdate(new, old *resourcev1.DeviceTaintRule) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), taintRuleSpec(&new.Spec, &old.Spec.Taint)...)
}

// DeviceTaintRuleStatusUpdate checks an update of a rule's status.
func DeviceTaintRuleStatusUpdate(new, old *resourcev1.DeviceTaintRule) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	path := status().Child("conditions")
	errs = append(errs, metavalidation.ValidateConditions(new.Status.Conditions, path)...)
	if limit := resourcev1.DeviceTaintRuleStatusMaxConditions; len(new.Status.Conditions) > limit {
		errs = append(errs, field.TooMany(path, len(new.Status.Conditions), limit))
	}
	return errs
}

func taintRuleSpec(s *resourcev1.DeviceTaintRuleSpec, old *resourcev1.DeviceTaint) field.ErrorList {
	var errs field.ErrorList
	if d := s.DeviceSelector; d != nil {
		p := spec().Child("deviceSelector")
		if d.Driver != nil {
			errs = append(errs, csiDriverName(*d.Driver, p.Child("driver"))...)
		}
		if d.Pool != nil {
			errs = append(errs, poolName(*d.Pool, p.Child("pool"))...)
		}
		if d.Device != nil {
			errs = append(errs, dnsLabel(*d.Device, p.Child("device"))...)
		}
	}
	return append(errs, deviceTaint(s.Taint, old, spec().Child("taint"))...)
}

func deviceTaint(t resourcev1.DeviceTaint, old *resourcev1.DeviceTaint, path *field.Path) field.ErrorList {
	errs := labelName(t.Key, path.Child("key"))
	if t.Value != "" {
		errs = append(errs, invalid(path.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
	}
	if old == nil || old.Effect != t.Effect {
		errs = append(errs, deviceEffect(t.Effect, path.Child("effect"))...)
	}
	return errs
}
