package validate

import (
	"errors"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of an EndpointSlice.
const (
	maxTopologyLabels = 16
	maxSliceAddresses = 100
	maxSlicePorts     = 20000
	maxSliceEndpoints = 1000
	maxZoneHints      = 8
	maxNodeHints      = 8
)

// Endpoints checks a new Endpoints object.
func Endpoints(e *corev1.Endpoints) field.ErrorList {
	errs := ObjectMeta(&e.ObjectMeta, true, NameDNSSubdomain, meta())
	return append(errs, endpointSubsets(e.Subsets, field.NewPath("subsets"))...)
}

// EndpointsUpdate checks an update of an Endpoints object.
func EndpointsUpdate(new, old *corev1.Endpoints) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, ObjectMeta(&new.ObjectMeta, true, NameDNSSubdomain, meta())...)
	if bad := endpointSubsets(new.Subsets, field.NewPath("subsets")); len(bad) > 0 && !equality.Semantic.DeepEqual(new.Subsets, old.Subsets) {
		errs = append(errs, bad...) // what was stored once was right once
	}
	return errs
}

func endpointSubsets(subsets []corev1.EndpointSubset, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range subsets {
		s, p := &subsets[i], path.Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(p, "must specify `addresses` or `notReadyAddresses`"))
		}
		for j := range s.Addresses {
			errs = append(errs, endpointAddress(&s.Addresses[j], p.Child("addresses").Index(j))...)
		}
		for j := range s.NotReadyAddresses {
			errs = append(errs, endpointAddress(&s.NotReadyAddresses[j], p.Child("notReadyAddresses").Index(j))...)
		}
		for j := range s.Ports {
			port, pp := &s.Ports[j], p.Child("ports").Index(j)
			if len(s.Ports) > 1 && port.Name == "" {
				errs = append(errs, field.Required(pp.Child("name"), ""))
			} else if port.Name != "" {
				errs = append(errs, dnsLabel(port.Name, pp.Child("name"))...)
			}
			errs = append(errs, portNumber(port.Port, pp.Child("port"))...)
			errs = append(errs, requiredSupported(port.Protocol, pp.Child("protocol"), corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
			if port.AppProtocol != nil {
				errs = append(errs, qualifiedName(*port.AppProtocol, pp.Child("appProtocol"))...)
			}
		}
	}
	return errs
}

func endpointAddress(a *corev1.EndpointAddress, path *field.Path) field.ErrorList {
	errs := legacyIP(a.IP, path.Child("ip"), nil)
	if a.Hostname != "" {
		errs = append(errs, dnsLabel(a.Hostname, path.Child("hostname"))...)
	}
	if a.NodeName != nil {
		errs = append(errs, invalid(path.Child("nodeName"), *a.NodeName, NameDNSSubdomain(*a.NodeName, false))...)
	}
	return append(errs, nonSpecialIP(a.IP, path.Child("ip"))...)
}

// EndpointSlice checks a new slice.
func EndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList { return endpointSlice(s, nil) }

// EndpointSliceUpdate checks an update of a slice.
func EndpointSliceUpdate(new, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	errs = append(errs, endpointSlice(new, old)...)
	return append(errs, fixed(new.AddressType, old.AddressType, field.NewPath("addressType"))...)
}

func endpointSlice(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := ObjectMeta(&s.ObjectMeta, true, NameDNSSubdomain, meta())
	errs = append(errs, requiredSupported(s.AddressType, field.NewPath("addressType"),
		discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)...)
	var known []string
	if old != nil {
		for _, e := range old.Endpoints {
			known = append(known, e.Addresses...)
		}
	}
	errs = append(errs, sliceEndpoints(s, known)...)
	return append(errs, slicePorts(s.Ports)...)
}

func sliceEndpoints(s *discoveryv1.EndpointSlice, known []string) field.ErrorList {
	path := field.NewPath("endpoints")
	if len(s.Endpoints) > maxSliceEndpoints {
		return field.ErrorList{field.TooMany(path, len(s.Endpoints), maxSliceEndpoints)}
	}
	var errs field.ErrorList
	for i := range s.Endpoints {
		e, p := &s.Endpoints[i], path.Index(i)
		ap := p.Child("addresses")
		if len(e.Addresses) == 0 {
			errs = append(errs, field.Required(ap, ""))
		} else if len(e.Addresses) > maxSliceAddresses {
			errs = append(errs, field.TooMany(ap, len(e.Addresses), maxSliceAddresses))
		}
		for j, a := range e.Addresses {
			switch s.AddressType {
			case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
				errs = append(errs, sliceAddress(a, s.AddressType, known, ap.Index(j))...)
			case discoveryv1.AddressTypeFQDN:
				errs = append(errs, validation.IsFullyQualifiedDomainName(ap.Index(j), a)...)
			}
		}
		if e.NodeName != nil {
			errs = append(errs, invalid(p.Child("nodeName"), *e.NodeName, NameDNSSubdomain(*e.NodeName, false))...)
		}
		tp := p.Child("deprecatedTopology")
		if len(e.DeprecatedTopology) > maxTopologyLabels {
			errs = append(errs, field.TooMany(tp, len(e.DeprecatedTopology), maxTopologyLabels))
		}
		errs = append(errs, labels(e.DeprecatedTopology, tp)...)
		if _, ok := e.DeprecatedTopology[corev1.LabelTopologyZone]; ok {
			errs = append(errs, field.InternalError(tp.Key(corev1.LabelTopologyZone), errors.New("reserved key was not removed in conversion")))
		}
		if e.Hostname != nil {
			errs = append(errs, dnsLabel(*e.Hostname, p.Child("hostname"))...)
		}
		if e.Hints != nil {
			errs = append(errs, sliceHints(e.Hints, p.Child("hints"))...)
		}
	}
	return errs
}

func sliceAddress(a string, family discoveryv1.AddressType, known []string, path *field.Path) field.ErrorList {
	errs := legacyIP(a, path, known)
	if len(errs) > 0 {
		return errs
	}
	v6 := false
	for _, c := range a {
		v6 = v6 || c == ':'
	}
	if family == discoveryv1.AddressTypeIPv4 && v6 {
		errs = append(errs, field.Invalid(path, a, "must be an IPv4 address"))
	}
	if family == discoveryv1.AddressTypeIPv6 && !v6 {
		errs = append(errs, field.Invalid(path, a, "must be an IPv6 address"))
	}
	return append(errs, nonSpecialIP(a, path)...)
}

func sliceHints(h *discoveryv1.EndpointHints, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	zp := path.Child("forZones")
	if len(h.ForZones) > maxZoneHints {
		return append(errs, field.TooMany(zp, len(h.ForZones), maxZoneHints))
	}
	zones := sets.New[string]()
	for i, z := range h.ForZones {
		p := zp.Index(i).Child("name")
		if zones.Has(z.Name) {
			errs = append(errs, field.Duplicate(p, z.Name))
		}
		zones.Insert(z.Name)
		errs = append(errs, invalid(p, z.Name, validation.IsValidLabelValue(z.Name))...)
	}
	np := path.Child("forNodes")
	if len(h.ForNodes) > maxNodeHints {
		return append(errs, field.TooMany(np, len(h.ForNodes), maxNodeHints))
	}
	nodes := sets.New[string]()
	for i, n := range h.ForNodes {
		p := np.Index(i).Child("name")
		if nodes.Has(n.Name) {
			errs = append(errs, field.Duplicate(p, n.Name))
		}
		nodes.Insert(n.Name)
		errs = append(errs, invalid(p, n.Name, NameDNSSubdomain(n.Name, false))...)
	}
	return errs
}

func slicePorts(ports []discoveryv1.EndpointPort) field.ErrorList {
	path := field.NewPath("ports")
	if len(ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(path, len(ports), maxSlicePorts)}
	}
	var errs field.ErrorList
	names := sets.New[string]()
	for i := range ports {
		p := path.Index(i)
		name := deref(ports[i].Name)
		if name != "" {
			errs = append(errs, invalid(p.Child("name"), name, NameDNSLabel(name, false))...)
		}
		if names.Has(name) {
			errs = append(errs, field.Duplicate(p.Child("name"), name))
		}
		names.Insert(name)
		if ports[i].Protocol == nil {
			errs = append(errs, field.Required(p.Child("protocol"), ""))
		} else {
			errs = append(errs, supported(*ports[i].Protocol, p.Child("protocol"), corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)...)
		}
		if ports[i].Port != nil && (*ports[i].Port < 1 || *ports[i].Port > 65535) {
			errs = append(errs, field.Invalid(p.Child("port"), *ports[i].Port, validation.InclusiveRangeError(1, 65535)))
		}
		if ports[i].AppProtocol != nil {
			errs = append(errs, qualifiedName(*ports[i].AppProtocol, p.Child("appProtocol"))...)
		}
	}
	return errs
}
