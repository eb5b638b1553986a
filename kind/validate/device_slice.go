package validate

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ResourceSlice checks what a driver offers.
func ResourceSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	return append(ObjectMeta(&s.ObjectMeta, false, NameDNSSubdomain, meta()), sliceSpec(&s.Spec, nil)...)
}

// ResourceSliceUpdate checks an update of an offer: driver, pool name and node stay.
func ResourceSliceUpdate(new, old *resourcev1.ResourceSlice) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), sliceSpec(&new.Spec, &old.Spec)...)
}

func sliceSpec(s, old *resourcev1.ResourceSliceSpec) field.ErrorList {
	path := spec()
	errs := csiDriverName(s.Driver, path.Child("driver"))
	pool := path.Child("pool")
	errs = append(errs, poolName(s.Pool.Name, pool.Child("name"))...)
	errs = append(errs, positive(s.Pool.ResourceSliceCount, pool.Child("resourceSliceCount"))...)
	errs = append(errs, nonNegative(s.Pool.Generation, pool.Child("generation"))...)
	if old != nil {
		errs = append(errs, unchanged(s.Pool.Name, old.Pool.Name, pool.Child("name"))...)
		errs = append(errs, unchanged(s.Driver, old.Driver, path.Child("driver"))...)
		errs = append(errs, unchanged(s.NodeName, old.NodeName, path.Child("nodeName"))...)
	}
	errs = append(errs, sliceNodes(s, path)...)
	if s.SharedCounters != nil && s.Devices != nil {
		errs = append(errs, field.Invalid(path, "", "only one of `sharedCounters` or `devices` is allowed"))
	}
	most, advanced := resourcev1.ResourceSliceMaxDevices, func(d resourcev1.Device) bool {
		return len(d.Taints) > 0 || len(d.ConsumesCounters) > 0 || slices.ContainsFunc(slices.Collect(maps.Values(d.Attributes)), isListAttribute)
	}
	if slices.ContainsFunc(s.Devices, advanced) {
		most = resourcev1.ResourceSliceMaxDevicesWithAdvancedFeatures
	}
	was := map[string]*resourcev1.Device{}
	if old != nil {
		for i := range old.Devices {
			was[old.Devices[i].Name] = &old.Devices[i]
		}
	}
	dp := path.Child("devices")
	perDevice := deref(s.PerDeviceNodeSelection)
	errs = append(errs, atMost(s.Devices, most, dp, func(d resourcev1.Device, p *field.Path) field.ErrorList {
		return device(&d, was[d.Name], perDevice, p)
	})...)
	if len(s.Devices) <= most {
		errs = append(errs, distinct(s.Devices, dp, func(d resourcev1.Device) string { return d.Name }, func(d resourcev1.Device) any { return d.Name })...)
	}
	cp := path.Child("sharedCounters")
	errs = append(errs, atMost(s.SharedCounters, resourcev1.ResourceSliceMaxCounterSets, cp, func(c resourcev1.CounterSet, p *field.Path) field.ErrorList {
		return counters(c.Name, "name", c.Counters, resourcev1.ResourceSliceMaxCountersPerCounterSet, p)
	})...)
	if len(s.SharedCounters) <= resourcev1.ResourceSliceMaxCounterSets {
		errs = append(errs, distinct(s.SharedCounters, cp, func(c resourcev1.CounterSet) string { return c.Name }, whole[resourcev1.CounterSet])...)
	}
	if s.PartitionTypeAttribute != nil {
		errs = append(errs, field.Forbidden(path.Child("partitionTypeAttribute"), ""))
	}
	return errs
}

func isListAttribute(a resourcev1.DeviceAttribute) bool {
	return a.BoolValues != nil || a.IntValues != nil || a.StringValues != nil || a.VersionValues != nil
}

// sliceNodes checks that exactly one way says for which nodes the devices are.
func sliceNodes(s *resourcev1.ResourceSliceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	var set []string
	if n := s.NodeName; n != nil {
		if *n == "" {
			errs = append(errs, field.Invalid(path.Child("nodeName"), *n, "must be either unset or set to a non-empty string"))
		} else {
			set = append(set, "`nodeName`")
			errs = append(errs, invalid(path.Child("nodeName"), *n, NameDNSSubdomain(*n, false))...)
		}
	}
	if n := s.NodeSelector; n != nil {
		set = append(set, "`nodeSelector`")
		errs = append(errs, nodeSelector(n, path.Child("nodeSelector"))...)
		if len(n.NodeSelectorTerms) != 1 {
			errs = append(errs, field.Invalid(path.Child("nodeSelector", "nodeSelectorTerms"), n.NodeSelectorTerms, "must have exactly one node selector term"))
		}
	}
	for _, f := range []struct {
		name  string
		value *bool
	}{{"allNodes", s.AllNodes}, {"perDeviceNodeSelection", s.PerDeviceNodeSelection}} {
		if f.value == nil {
			continue
		}
		if *f.value {
			set = append(set, "`"+f.name+"`")
		} else {
			errs = append(errs, field.Invalid(path.Child(f.name), false, "must be either unset or set to true"))
		}
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	if len(set) == 0 {
		errs = append(errs, field.Required(path, one))
	} else if len(set) > 1 {
		errs = append(errs, field.Invalid(path, "{"+strings.Join(set, ", ")+"}", one+", but multiple fields are set"))
	}
	return errs
}

func device(d, old *resourcev1.Device, perDevice bool, path *field.Path) field.ErrorList {
	errs := dnsLabel(d.Name, path.Child("name"))
	if n, most := len(d.Attributes)+len(d.Capacity), resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice; n > most {
		errs = append(errs, field.Invalid(path, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", most)))
	}
	values := 0
	for _, a := range d.Attributes {
		values += max(1, len(a.BoolValues)+len(a.IntValues)+len(a.StringValues)+len(a.VersionValues))
	}
	if most := resourcev1.ResourceSliceMaxAttributeValuesPerDevice; values > most {
		errs = append(errs, field.Invalid(path, values, fmt.Sprintf("the total number of attribute values must not exceed %d", most)))
	}
	for _, name := range sortedKeys(d.Attributes) {
		p := path.Child("attributes")
		errs = append(errs, deviceName(string(name), p)...)
		errs = append(errs, attribute(d.Attributes[name], p.Key(shorten(string(name))))...)
	}
	if old == nil || !equality.Semantic.DeepEqual(old.Capacity, d.Capacity) {
		for _, name := range sortedKeys(d.Capacity) {
			p := path.Child("capacity")
			errs = append(errs, deviceName(string(name), p)...)
			c := d.Capacity[name]
			if c.RequestPolicy == nil {
				continue
			}
			pp := p.Key(shorten(string(name))).Child("requestPolicy")
			if deref(d.AllowMultipleAllocations) {
				errs = append(errs, requestPolicy(c.Value, c.RequestPolicy, pp)...)
			} else {
				errs = append(errs, field.Forbidden(pp, "allowMultipleAllocations must be true"))
			}
		}
	}
	if old == nil || !equality.Semantic.DeepEqual(old.Taints, d.Taints) {
		errs = append(errs, atMost(d.Taints, resourcev1.DeviceTaintsMaxLength, path.Child("taints"), func(t resourcev1.DeviceTaint, p *field.Path) field.ErrorList {
			return deviceTaint(t, nil, p)
		})...)
	}
	cp := path.Child("consumesCounters")
	errs = append(errs, atMost(d.ConsumesCounters, resourcev1.ResourceSliceMaxDeviceCounterConsumptionsPerDevice, cp, func(c resourcev1.DeviceCounterConsumption, p *field.Path) field.ErrorList {
		return counters(c.CounterSet, "counterSet", c.Counters, resourcev1.ResourceSliceMaxCountersPerDeviceCounterConsumption, p)
	})...)
	if len(d.ConsumesCounters) <= resourcev1.ResourceSliceMaxDeviceCounterConsumptionsPerDevice {
		errs = append(errs, distinct(d.ConsumesCounters, cp, func(c resourcev1.DeviceCounterConsumption) string { return c.CounterSet }, whole[resourcev1.DeviceCounterConsumption])...)
	}
	errs = append(errs, deviceNodes(d, perDevice, path)...)
	return append(errs, bindingConditions(d.BindingConditions, d.BindingFailureConditions, path)...)
}

func deviceNodes(d *resourcev1.Device, perDevice bool, path *field.Path) field.ErrorList {
	if !perDevice {
		if d.NodeName != nil || d.NodeSelector != nil || d.AllNodes != nil {
			return field.ErrorList{field.Invalid(path, nil, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec")}
		}
		return nil
	}
	var errs field.ErrorList
	var set []string
	if n := d.NodeName; n != nil {
		if *n == "" {
			errs = append(errs, field.Invalid(path.Child("nodeName"), *n, "must not be empty"))
		} else {
			set = append(set, "`nodeName`")
			errs = append(errs, invalid(path.Child("nodeName"), *n, NameDNSSubdomain(*n, false))...)
		}
	}
	if d.NodeSelector != nil {
		set = append(set, "`nodeSelector`")
		errs = append(errs, nodeSelector(d.NodeSelector, path.Child("nodeSelector"))...)
	}
	if d.AllNodes != nil {
		if *d.AllNodes {
			set = append(set, "`allNodes`")
		} else {
			errs = append(errs, field.Invalid(path.Child("allNodes"), false, "must be either unset or set to true"))
		}
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
	if len(set) == 0 {
		errs = append(errs, field.Required(path, one))
	} else if len(set) > 1 {
		errs = append(errs, field.Invalid(path, "{"+strings.Join(set, ", ")+"}", one))
	}
	return errs
}

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// counters checks a set of counters; name is the set's and member its field.
func counters(name, member string, set map[string]resourcev1.Counter, most int, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p := path.Child(member); name == "" {
		errs = append(errs, field.Required(p, ""))
	} else {
		errs = append(errs, dnsLabel(name, p)...)
	}
	p := path.Child("counters")
	if len(set) == 0 {
		return append(errs, field.Required(p, ""))
	}
	if len(set) > most {
		return append(errs, field.TooMany(p, len(set), most))
	}
	for _, key := range sortedKeys(set) {
		errs = append(errs, dnsLabel(key, p)...)
	}
	return errs
}

// shorten keeps a key that is far too long from filling the error.
func shorten(key string) string {
	const most = resourcev1.DeviceMaxDomainLength + 1 + resourcev1.DeviceMaxIDLength
	if len(key) <= most {
		return key
	}
	rest := most - len("...")
	return key[:(rest+1)/2] + "..." + key[len(key)-rest/2:]
}

// deviceName checks the name of an attribute or a capacity: an identifier, with or
// without a domain before it.
func deviceName(name string, path *field.Path) field.ErrorList {
	domain, id, two := strings.Cut(name, "/")
	if !two {
		return identifier(name, path)
	}
	if strings.Contains(id, "/") {
		return field.ErrorList{field.Invalid(path, name, "must not contain more than one slash")}
	}
	var errs field.ErrorList
	if domain == "" {
		errs = append(errs, field.Invalid(path, "", "the domain must not be empty"))
	} else {
		errs = append(errs, csiDriverName(domain, path)...)
	}
	if id == "" {
		return append(errs, field.Invalid(path, "", "the name must not be empty"))
	}
	return append(errs, identifier(id, path)...)
}

func identifier(id string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if limit := resourcev1.DeviceMaxIDLength; len(id) > limit {
		errs = append(errs, field.TooLong(path, "", limit))
	}
	return append(errs, invalid(path, id, content.IsCIdentifier(id))...)
}

// fullName checks the name of an attribute that must have a domain.
func fullName(name string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch parts := strings.Split(name, "/"); len(parts) {
	case 1:
		errs = append(identifier(name, path), field.Invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash"))
	case 2:
		if domain := parts[0]; domain == "" {
			errs = append(errs, field.Invalid(path, "", "prefix must not be empty"))
		} else {
			if limit := resourcev1.DeviceMaxDomainLength; len(domain) > limit {
				errs = append(errs, field.TooLong(path, "", limit))
			}
			for _, msg := range validation.IsDNS1123Subdomain(domain) {
				errs = append(errs, field.Invalid(path, domain, "prefix: "+msg))
			}
		}
		if parts[1] == "" {
			errs = append(errs, field.Invalid(path, "", "name must not be empty"))
		} else {
			errs = append(errs, identifier(parts[1], path)...)
		}
	}
	return errs
}

// semanticVersion is the form of versions on semver.org, release 2.0.0.
var semanticVersion = regexp.MustCompile(`^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?` +
	`(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

func attribute(a resourcev1.DeviceAttribute, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	const most = resourcev1.DeviceAttributeMaxValueLength
	var set []string
	text := func(s string, p *field.Path) {
		if len(s) > most {
			errs = append(errs, field.TooLong(p, "", most))
		}
	}
	version := func(s string, p *field.Path) {
		if !semanticVersion.MatchString(s) {
			errs = append(errs, field.Invalid(p, s, "must be a string compatible with semver.org spec 2.0.0"))
		}
		text(s, p)
	}
	for _, f := range []struct {
		name  string
		set   bool
		check func(p *field.Path)
	}{
		{"int", a.IntValue != nil, nil},
		{"bool", a.BoolValue != nil, nil},
		{"string", a.StringValue != nil, func(p *field.Path) { text(*a.StringValue, p) }},
		{"version", a.VersionValue != nil, func(p *field.Path) { version(*a.VersionValue, p) }},
		{"ints", a.IntValues != nil, func(p *field.Path) { errs = append(errs, filled(a.IntValues, p)...) }},
		{"bools", a.BoolValues != nil, func(p *field.Path) { errs = append(errs, filled(a.BoolValues, p)...) }},
		{"strings", a.StringValues != nil, func(p *field.Path) {
			errs = append(errs, filled(a.StringValues, p)...)
			for i, s := range a.StringValues {
				text(s, p.Index(i))
			}
		}},
		{"versions", a.VersionValues != nil, func(p *field.Path) {
			errs = append(errs, filled(a.VersionValues, p)...)
			for i, s := range a.VersionValues {
				version(s, p.Index(i))
			}
		}},
	} {
		if !f.set {
			continue
		}
		set = append(set, "`"+f.name+"`")
		if f.check != nil {
			f.check(path.Child(f.name))
		}
	}
	const all = "`int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`"
	if len(set) == 0 {
		errs = append(errs, field.Invalid(path, "", "must specify one of: "+all))
	} else if len(set) > 1 {
		errs = append(errs, field.Invalid(path, "{"+strings.Join(set, ", ")+"}", "must specify exactly one of: "+all))
	}
	return errs
}

func filled[T any](list []T, path *field.Path) field.ErrorList {
	if len(list) == 0 {
		return field.ErrorList{field.Invalid(path, list, "must not be empty if specified")}
	}
	return nil
}

// requestPolicy checks how much of a shared capacity requests may take.
func requestPolicy(most resource.Quantity, r *resourcev1.CapacityRequestPolicy, path *field.Path) field.ErrorList {
	switch {
	case len(r.ValidValues) > 0 && r.ValidRange != nil:
		return field.ErrorList{field.Forbidden(path, `exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time`)}
	case len(r.ValidValues) > 0:
		if r.Default == nil {
			return field.ErrorList{field.Required(path.Child("default"), "required when validValues is defined")}
		}
		return requestValues(*r.Default, most, r.ValidValues, path.Child("validValues"))
	case r.ValidRange != nil:
		if r.Default == nil {
			return field.ErrorList{field.Required(path.Child("default"), "required when validRange is defined")}
		}
		return requestRange(*r.Default, most, r.ValidRange, path.Child("validRange"))
	}
	return nil
}

// maxRequestValues is how many values a policy may list.
const maxRequestValues = 10

func requestValues(standard, most resource.Quantity, values []resource.Quantity, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := 1; i < len(values); i++ {
		if values[i-1].Cmp(values[i]) > 0 {
			errs = append(errs, field.Invalid(path.Index(i), values[i].String(), "values must be sorted in ascending order"))
		}
	}
	found := slices.ContainsFunc(values[:min(len(values), maxRequestValues)], func(q resource.Quantity) bool { return q.Cmp(standard) == 0 })
	errs = append(errs, atMost(values, maxRequestValues, path, func(q resource.Quantity, p *field.Path) field.ErrorList {
		if q.Cmp(most) > 0 {
			return field.ErrorList{field.Invalid(p, q.String(), "option is larger than capacity value: "+most.String())}
		}
		return nil
	})...)
	if len(values) <= maxRequestValues {
		errs = append(errs, distinct(values, path, func(q resource.Quantity) int64 { return q.Value() }, func(q resource.Quantity) any { return fmt.Sprint(q.Value()) })...)
	}
	if !found {
		errs = append(errs, field.Invalid(path, standard.String(), "default value is not valid according to the requestPolicy"))
	}
	return errs
}

func requestRange(standard, most resource.Quantity, r *resourcev1.CapacityRequestPolicyRange, path *field.Path) field.ErrorList {
	if r.Min == nil {
		return field.ErrorList{field.Required(path.Child("min"), "required when validRange is defined")}
	}
	var errs field.ErrorList
	bad := func(name string, q *resource.Quantity, msg string, other *resource.Quantity) {
		errs = append(errs, field.Invalid(path.Child(name), q.String(), msg+": "+other.String()))
	}
	if r.Min.Cmp(most) > 0 {
		bad("min", r.Min, "min is larger than capacity value", &most)
	}
	if standard.Cmp(*r.Min) < 0 {
		bad("default", &standard, "default is less than min", r.Min)
	}
	if r.Max != nil {
		if r.Min.Cmp(*r.Max) > 0 {
			bad("max", r.Min, "min is larger than max", r.Max)
		}
		if r.Max.Cmp(most) > 0 {
			bad("max", r.Max, "max is larger than capacity value", &most)
		}
		if standard.Cmp(*r.Max) > 0 {
			bad("default", &standard, "default is more than max", r.Max)
		}
	}
	if r.Step == nil {
		return errs
	}
	if r.Step.Sign() <= 0 {
		return append(errs, field.Invalid(path.Child("step"), r.Step.String(), notPositive))
	}
	first := r.Min.DeepCopy()
	if first.Add(*r.Step); first.Cmp(most) > 0 {
		errs = append(errs, field.Invalid(path.Child("step"), r.Step.String(), fmt.Sprintf("one step %s is larger than capacity value: %s", first.String(), most.String())))
	}
	whole := true
	for _, f := range []struct {
		name string
		q    *resource.Quantity
	}{{"default", &standard}, {"min", r.Min}, {"max", r.Max}, {"step", r.Step}} {
		if f.q == nil {
			continue
		}
		msg := ""
		if f.q.Sign() < 0 {
			msg = notNegative
		} else if f.q.CmpInt64(math.MaxInt64) > 0 {
			msg = fmt.Sprintf("must not be larger than %d", int64(math.MaxInt64))
		}
		if msg != "" {
			whole = false
			errs = append(errs, field.Invalid(path.Child(f.name), f.q.String(), msg))
		}
	}
	for _, q := range []*resource.Quantity{&standard, r.Max} {
		if whole && q != nil && (q.Value()-r.Min.Value())%r.Step.Value() != 0 {
			errs = append(errs, field.Invalid(path.Child("step"), q.String(), fmt.Sprintf("value is not a multiple of a given step (%s) from (%s)", r.Step.String(), r.Min.String())))
		}
	}
	return errs
}

// bindingConditions checks the conditions that decide whether a pod may be bound:
// both lists or none, all different.
func bindingConditions(wanted, failures []string, path *field.Path) field.ErrorList {
	wp, fp := path.Child("bindingConditions"), path.Child("bindingFailureConditions")
	errs := atMost(wanted, resourcev1.BindingConditionsMaxSize, wp, labelName)
	errs = append(errs, atMost(failures, resourcev1.BindingFailureConditionsMaxSize, fp, labelName)...)
	errs = append(errs, distinctStrings(wanted, wp)...)
	errs = append(errs, distinctStrings(failures, fp)...)
	both := sets.New(wanted...)
	for i, c := range failures {
		if both.Has(c) {
			errs = append(errs, field.Invalid(fp.Index(i), c, "bindingFailureConditions must not overlap with bindingConditions"))
		}
	}
	if len(wanted) == 0 && len(failures) > 0 {
		errs = append(errs, field.Invalid(wp, wanted, "bindingConditions are required to use bindingFailureConditions"))
	}
	if len(failures) == 0 && len(wanted) > 0 {
		errs = append(errs, field.Invalid(fp, failures, "bindingFailureConditions are required to use bindingConditions"))
	}
	return errs
}
