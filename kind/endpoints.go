package kind

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// Endpoints is EndpointSlice's elder: all addresses of one service in one object.
var Endpoints = define[corev1.EndpointsList](Row[*corev1.Endpoints]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Endpoints", Plural: "endpoints",
		ShortNames: []string{"ep"},
		Scope:      Namespaced,
		Prefix:     "services/endpoints",
	},
	Validate:            validate.Endpoints,
	ValidateUpdate:      validate.EndpointsUpdate,
	Deprecated:          "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Default: func(e *corev1.Endpoints) {
		for i := range e.Subsets {
			for j := range e.Subsets[i].Ports {
				fill(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	},
	PrepareCreate: func(e *corev1.Endpoints) { e.Subsets = RepackSubsets(e.Subsets) },
	PrepareUpdate: func(new, _ *corev1.Endpoints) { new.Subsets = RepackSubsets(new.Subsets) },
	Columns:       columns("Endpoints"),
	Cells: func(e *corev1.Endpoints, now time.Time) []any {
		return []any{e.Name, endpointsCell(e), age(e, now)}
	},
})

// EndpointSlice is a part of the addresses behind a service.
var EndpointSlice = define[discoveryv1.EndpointSliceList](Row[*discoveryv1.EndpointSlice]{
	Names: Names{
		Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices",
		Scope:  Namespaced,
		Prefix: "endpointslices",
	},
	Validate:            validate.EndpointSlice,
	ValidateUpdate:      validate.EndpointSliceUpdate,
	UnconditionalUpdate: true,
	Default: func(s *discoveryv1.EndpointSlice) {
		for i := range s.Ports {
			fillPtr(&s.Ports[i].Name, "")
			fillPtr(&s.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	},
	PrepareCreate: func(s *discoveryv1.EndpointSlice) { s.Generation = 1 },
	PrepareUpdate: func(new, old *discoveryv1.EndpointSlice) {
		raiseIf(!same(new.Endpoints, old.Endpoints) || !same(new.Ports, old.Ports) || new.AddressType != old.AddressType, new)
	},
	Columns: columnsExactly("Name, AddressType, Ports, Endpoints, Age"),
	Cells: func(s *discoveryv1.EndpointSlice, now time.Time) []any {
		return []any{s.Name, string(s.AddressType), slicePortsCell(s.Ports), sliceAddressesCell(s.Endpoints), age(s, now)}
	},
})

// RepackSubsets sorts addresses and ports and merges what can be merged, so that
// equal endpoints have one form: each subset has its own set of ports, and an
// address that is ready for a port is not listed as not ready for it.
func RepackSubsets(subsets []corev1.EndpointSubset) []corev1.EndpointSubset {
	type addressKey struct{ ip, uid string }
	type entry struct {
		address corev1.EndpointAddress
		ready   bool
	}
	perPort := map[corev1.EndpointPort]map[addressKey]entry{}
	appProtocols := map[corev1.EndpointPort]*string{}
	add := func(port corev1.EndpointPort, address corev1.EndpointAddress, ready bool) {
		key := port
		key.AppProtocol = nil
		if port.AppProtocol != nil {
			key.Name += "\x00" + *port.AppProtocol
		}
		appProtocols[key] = port.AppProtocol
		if perPort[key] == nil {
			perPort[key] = map[addressKey]entry{}
		}
		at := addressKey{ip: address.IP}
		if address.TargetRef != nil {
			at.uid = string(address.TargetRef.UID)
		}
		if was, ok := perPort[key][at]; !ok || ready && !was.ready {
			perPort[key][at] = entry{address, ready}
		}
	}
	for _, s := range subsets {
		ports := s.Ports
		if len(ports) == 0 {
			ports = []corev1.EndpointPort{{Port: -1}} // stands for "no port"
		}
		for _, port := range ports {
			for _, a := range s.Addresses {
				add(port, a, true)
			}
			for _, a := range s.NotReadyAddresses {
				add(port, a, false)
			}
		}
	}
	type group struct {
		entries []entry
		ports   []corev1.EndpointPort
	}
	groups := map[string]*group{}
	for port, addresses := range perPort {
		entries := make([]entry, 0, len(addresses))
		for _, e := range addresses {
			entries = append(entries, e)
		}
		slices.SortFunc(entries, func(a, b entry) int { return compareAddresses(a.address, b.address) })
		var key strings.Builder
		for _, e := range entries {
			uid := ""
			if e.address.TargetRef != nil {
				uid = string(e.address.TargetRef.UID)
			}
			fmt.Fprintf(&key, "%s/%s/%t,", e.address.IP, uid, e.ready)
		}
		g := groups[key.String()]
		if g == nil {
			g = &group{entries: entries}
			groups[key.String()] = g
		}
		if port.Port >= 0 {
			name, _, _ := strings.Cut(port.Name, "\x00")
			g.ports = append(g.ports, corev1.EndpointPort{Name: name, Port: port.Port, Protocol: port.Protocol, AppProtocol: appProtocols[port]})
		}
	}
	var out []corev1.EndpointSubset
	for _, g := range groups {
		slices.SortFunc(g.ports, func(a, b corev1.EndpointPort) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol),
				cmp.Compare(ptr.Deref(a.AppProtocol, ""), ptr.Deref(b.AppProtocol, "")))
		})
		s := corev1.EndpointSubset{Ports: g.ports}
		for _, e := range g.entries {
			if e.ready {
				s.Addresses = append(s.Addresses, e.address)
			} else {
				s.NotReadyAddresses = append(s.NotReadyAddresses, e.address)
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, compareSubsets)
	return out
}

func compareAddresses(a, b corev1.EndpointAddress) int {
	uid := func(x corev1.EndpointAddress) string {
		if x.TargetRef == nil {
			return ""
		}
		return string(x.TargetRef.UID)
	}
	return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(uid(a), uid(b)))
}

func compareSubsets(a, b corev1.EndpointSubset) int {
	return cmp.Or(
		slices.CompareFunc(a.Addresses, b.Addresses, compareAddresses),
		slices.CompareFunc(a.NotReadyAddresses, b.NotReadyAddresses, compareAddresses),
		slices.CompareFunc(a.Ports, b.Ports, func(x, y corev1.EndpointPort) int {
			return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Port, y.Port))
		}))
}

func endpointsCell(e *corev1.Endpoints) string {
	var words []string
	for _, s := range e.Subsets {
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				words = append(words, a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				words = append(words, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	if len(words) == 0 && len(e.Subsets) > 0 {
		return ""
	}
	return firstFew(words, 3, ",")
}

func slicePortsCell(ports []discoveryv1.EndpointPort) string {
	if len(ports) == 0 {
		return unset
	}
	var words []string
	for _, p := range ports {
		switch {
		case p.Port != nil:
			words = append(words, strconv.Itoa(int(*p.Port)))
		case p.Name != nil:
			words = append(words, *p.Name)
		default:
			words = append(words, "*")
		}
	}
	if text := firstFew(words, 3, ","); text != "" {
		return text
	}
	return unset // one port, and neither number nor name
}

func sliceAddressesCell(endpoints []discoveryv1.Endpoint) string {
	var words []string
	for _, e := range endpoints {
		words = append(words, e.Addresses...)
	}
	if len(words) == 0 {
		return unset
	}
	return firstFew(words, 3, ",")
}
