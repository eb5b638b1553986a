// Package zone answers questions about the cluster's domain from an index of
// services, endpoint slices and namespaces. It is pure.
//
// Names, below the domain (usually cluster.local), all letter cases alike:
//
//	SVC.NS.svc                     A, AAAA of a service; of a headless one, its endpoints
//	HOST.SVC.NS.svc                A, AAAA of one endpoint of a headless service
//	_PORT._PROTO.SVC.NS.svc        SRV, and SVC.NS.svc too: all ports
//	a-b-c-d.NS.pod                 A, AAAA of the address in the name, if NS exists
//	dns-version                    TXT
//	reverse names                  PTR of service addresses and of endpoints of headless services
//
// A service of type ExternalName is a CNAME. An endpoint without a host name goes
// by its address with dashes. A name that exists, also as the parent of others,
// but not with the type asked for, has no data; any other is NXDOMAIN; both with the
// SOA. Answers carry the name as it was asked.
//
// Source: Kubernetes DNS-Based Service Discovery, version 1.1.0; RFC 1035, 2308,
// 2782, 8020. Where the text leaves it open, answers are CoreDNS's.
package zone

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Version of the specification that dns-version tells.
const Version = "1.1.0"

// TTL of all answers, in seconds, and of the absence of one.
const TTL = 5

// Config of a zone.
type Config struct {
	Domain string // such as "cluster.local", without a dot at the end
	// Reverse ranges are answered here and nowhere else: service and pod ranges.
	Reverse []netip.Prefix
	// Servers are the addresses of the name server itself, for NS.
	Servers []netip.Addr
}

// Index holds what answers are made of. Set and Delete change it; not safe for
// concurrent use with them.
type Index struct {
	cfg        Config
	domain     string // lower case, with dot
	labels     int
	serial     uint32
	namespaces map[string]bool
	services   map[types.NamespacedName]*corev1.Service
	slices     map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice
	addresses  map[netip.Addr]map[types.NamespacedName]int // for reverse names
}

// NewIndex makes an empty index.
func NewIndex(cfg Config) *Index {
	domain := strings.ToLower(dns.Fqdn(cfg.Domain))
	return &Index{cfg: cfg, domain: domain, labels: dns.CountLabel(domain),
		namespaces: map[string]bool{}, services: map[types.NamespacedName]*corev1.Service{},
		slices: map[types.NamespacedName]map[string]*discoveryv1.EndpointSlice{}, addresses: map[netip.Addr]map[types.NamespacedName]int{}}
}

// SetSerial is the number of the SOA: it should grow with changes.
func (x *Index) SetSerial(n uint32) { x.serial = n }

// SetNamespace says whether a namespace exists.
func (x *Index) SetNamespace(name string, exists bool) {
	if exists {
		x.namespaces[name] = true
	} else {
		delete(x.namespaces, name)
	}
}

// SetService puts a service in place of old; either may be nil.
func (x *Index) SetService(old, new *corev1.Service) {
	if old != nil {
		name := types.NamespacedName{Namespace: old.Namespace, Name: old.Name}
		for _, a := range clusterIPs(old) {
			x.address(a, name, -1)
		}
		delete(x.services, name)
	}
	if new != nil {
		name := types.NamespacedName{Namespace: new.Namespace, Name: new.Name}
		for _, a := range clusterIPs(new) {
			x.address(a, name, +1)
		}
		x.services[name] = new
	}
}

// SetSlice puts an endpoint slice in place of old; either may be nil.
func (x *Index) SetSlice(old, new *discoveryv1.EndpointSlice) {
	if old != nil {
		if name := serviceOf(old); name.Name != "" {
			for i := range old.Endpoints {
				for _, a := range addressesOf(old, &old.Endpoints[i]) {
					x.address(a, name, -1)
				}
			}
			delete(x.slices[name], old.Name)
			if len(x.slices[name]) == 0 {
				delete(x.slices, name)
			}
		}
	}
	if new != nil {
		if name := serviceOf(new); name.Name != "" {
			for i := range new.Endpoints {
				for _, a := range addressesOf(new, &new.Endpoints[i]) {
					x.address(a, name, +1)
				}
			}
			if x.slices[name] == nil {
				x.slices[name] = map[string]*discoveryv1.EndpointSlice{}
			}
			x.slices[name][new.Name] = new
		}
	}
}

func (x *Index) address(a netip.Addr, name types.NamespacedName, by int) {
	m := x.addresses[a]
	if m == nil {
		m = map[types.NamespacedName]int{}
		x.addresses[a] = m
	}
	if m[name] += by; m[name] == 0 {
		delete(m, name)
	}
	if len(m) == 0 {
		delete(x.addresses, a)
	}
}

func serviceOf(s *discoveryv1.EndpointSlice) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

func addressesOf(s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) []netip.Addr {
	if s.AddressType == discoveryv1.AddressTypeFQDN || e.Conditions.Ready != nil && !*e.Conditions.Ready {
		return nil
	}
	var out []netip.Addr
	for _, t := range e.Addresses {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func clusterIPs(s *corev1.Service) []netip.Addr {
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{s.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func isHeadless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// Question is one question; Name as it came, with or without a dot at the end.
type Question struct {
	Name string
	Type uint16 // dns.TypeA …
}

// Answer to a question.
type Answer struct {
	// Foreign: the name is not of this zone; ask elsewhere. Nothing else is set.
	Foreign bool
	Rcode   int // dns.RcodeSuccess or dns.RcodeNameError
	// Answer, Authority and Additional are the sections of the message. Records are
	// in a fixed order.
	Answer, Authority, Additional []dns.RR
	// Chase is where the last CNAME leads, outside of this zone: its addresses
	// belong behind the answer. "" if there is none.
	Chase string
}

// Answer a question.
func (x *Index) Answer(q Question) Answer {
	name := dns.Fqdn(q.Name)
	lower := strings.ToLower(name)
	if lower == x.domain || strings.HasSuffix(lower, "."+x.domain) {
		return x.finish(q, x.forward(name, lower, q.Type, 0))
	}
	if a, ok, isReverse := reverseAddr(lower); isReverse {
		return x.reverse(q, name, a, ok)
	}
	return Answer{Foreign: true}
}

// found is what stands at a name: nil records mean that the name does not exist.
type found struct {
	exists     bool
	records    []dns.RR
	additional []dns.RR
	chase      string
}

func (x *Index) finish(q Question, f found) Answer {
	a := Answer{Answer: f.records, Additional: f.additional, Chase: f.chase}
	if !f.exists {
		a.Rcode = dns.RcodeNameError
	}
	if len(f.records) == 0 {
		a.Authority = []dns.RR{x.soa(x.domain)}
	}
	return a
}

func header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: TTL}
}

func (x *Index) soa(name string) dns.RR {
	return &dns.SOA{Hdr: header(name, dns.TypeSOA), Ns: "ns.dns." + x.domain, Mbox: "hostmaster." + x.domain,
		Serial: x.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: TTL}
}

// maxCNAMEs bounds how far names within the zone lead on.
const maxCNAMEs = 8

// forward answers for a name of the zone. name is as asked, lower the same in
// lower case.
func (x *Index) forward(name, lower string, typ uint16, depth int) found {
	labels := dns.SplitDomainName(strings.TrimSuffix(lower, x.domain))
	n := len(labels)
	if n == 0 {
		return x.apex(name, typ)
	}
	switch labels[n-1] {
	case "dns-version":
		if n > 1 {
			return found{}
		}
		f := found{exists: true}
		if typ == dns.TypeTXT || typ == dns.TypeANY {
			f.records = []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{Version}}}
		}
		return f
	case "dns":
		if n == 1 {
			return found{exists: true}
		}
		if n == 2 && labels[0] == "ns" {
			return found{exists: true, records: addressRecords(name, typ, x.cfg.Servers)}
		}
		return found{}
	case "pod":
		return x.pod(name, labels[:n-1], typ)
	case "svc":
		return x.svc(name, labels[:n-1], typ, depth)
	}
	return found{}
}

func (x *Index) apex(name string, typ uint16) found {
	f := found{exists: true}
	if typ == dns.TypeSOA || typ == dns.TypeANY {
		f.records = append(f.records, x.soa(name))
	}
	if typ == dns.TypeNS || typ == dns.TypeANY {
		f.records = append(f.records, &dns.NS{Hdr: header(name, dns.TypeNS), Ns: "ns.dns." + x.domain})
		f.additional = append(addressRecords("ns.dns."+x.domain, dns.TypeA, x.cfg.Servers), addressRecords("ns.dns."+x.domain, dns.TypeAAAA, x.cfg.Servers)...)
	}
	return f
}

// addressRecords of the type asked for, in order, without doubles.
func addressRecords(name string, typ uint16, addrs []netip.Addr) []dns.RR {
	var out []dns.RR
	addrs = slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare))
	for _, a := range addrs {
		switch {
		case a.Is4() && (typ == dns.TypeA || typ == dns.TypeANY):
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && (typ == dns.TypeAAAA || typ == dns.TypeANY):
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

func (x *Index) pod(name string, labels []string, typ uint16) found {
	switch len(labels) {
	case 0:
		return found{exists: true}
	case 1:
		return found{exists: x.namespaces[labels[0]]}
	case 2:
		if !x.namespaces[labels[1]] {
			return found{}
		}
		a, ok := parseDashed(labels[0])
		if !ok {
			return found{}
		}
		return found{exists: true, records: addressRecords(name, typ, []netip.Addr{a})}
	}
	return found{}
}

func dashed(a netip.Addr) string {
	if a.Is4() {
		return strings.ReplaceAll(a.String(), ".", "-")
	}
	return strings.ReplaceAll(a.StringExpanded(), ":", "-")
}

func parseDashed(s string) (netip.Addr, bool) {
	if strings.Count(s, "-") == 3 && !strings.Contains(s, "--") {
		if a, err := netip.ParseAddr(strings.ReplaceAll(s, "-", ".")); err == nil {
			return a, true
		}
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(s, "-", ":"))
	return a, err == nil && a.Is6() && !a.Is4In6()
}

// svc answers for names below svc: labels are [… service namespace].
func (x *Index) svc(name string, labels []string, typ uint16, depth int) found {
	n := len(labels)
	if n == 0 {
		return found{exists: true}
	}
	if n == 1 {
		return found{exists: x.namespaces[labels[0]]}
	}
	key := types.NamespacedName{Namespace: labels[n-1], Name: labels[n-2]}
	s := x.services[key]
	if s == nil {
		return found{}
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		if n > 2 || s.Spec.ExternalName == "" {
			return found{}
		}
		return x.external(name, s, typ, depth)
	}
	switch n {
	case 2:
		f := found{exists: true}
		if isHeadless(s) {
			var all []netip.Addr
			for _, e := range x.endpoints(key) {
				all = append(all, e.addr)
			}
			f.records = addressRecords(name, typ, all)
		} else {
			f.records = addressRecords(name, typ, clusterIPs(s))
		}
		if typ == dns.TypeSRV {
			return x.srv(name, s, key, "", "")
		}
		return f
	case 3:
		host := labels[0]
		if strings.HasPrefix(host, "_") { // _PROTO: the parent of _PORT._PROTO
			return found{exists: x.hasProtocol(s, host[1:])}
		}
		if !isHeadless(s) {
			return found{}
		}
		var here []netip.Addr
		for _, e := range x.endpoints(key) {
			if e.host == host {
				here = append(here, e.addr)
			}
		}
		return found{exists: len(here) > 0, records: addressRecords(name, typ, here)}
	case 4:
		if strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_") {
			f := x.srv(name, s, key, labels[0][1:], labels[1][1:])
			if typ != dns.TypeSRV && typ != dns.TypeANY {
				f.records, f.additional = nil, nil
			}
			return f
		}
	}
	return found{}
}

func (x *Index) hasProtocol(s *corev1.Service, proto string) bool {
	return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name != "" && protoName(p.Protocol) == proto })
}

func protoName(p corev1.Protocol) string {
	if p == "" {
		return "tcp"
	}
	return strings.ToLower(string(p))
}

// external is a CNAME, followed as far as it stays within the zone.
func (x *Index) external(name string, s *corev1.Service, typ uint16, depth int) found {
	target := dns.Fqdn(s.Spec.ExternalName)
	f := found{exists: true, records: []dns.RR{&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: target}}}
	if typ == dns.TypeCNAME {
		return f
	}
	lower := strings.ToLower(target)
	if lower != x.domain && !strings.HasSuffix(lower, "."+x.domain) {
		f.chase = target
		return f
	}
	if depth >= maxCNAMEs || strings.EqualFold(target, name) {
		return f
	}
	next := x.forward(target, lower, typ, depth+1)
	f.records = append(f.records, next.records...)
	f.chase = next.chase
	return f
}

type endpoint struct {
	addr  netip.Addr
	host  string // lower case
	ports []discoveryv1.EndpointPort
}

// endpoints of a service that are ready, in order.
func (x *Index) endpoints(name types.NamespacedName) []endpoint {
	var out []endpoint
	for _, s := range x.slices[name] {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			for _, a := range addressesOf(s, e) {
				host := dashed(a)
				if e.Hostname != nil && *e.Hostname != "" {
					host = strings.ToLower(*e.Hostname)
				}
				out = append(out, endpoint{a, host, s.Ports})
			}
		}
	}
	slices.SortFunc(out, func(a, b endpoint) int { return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.host, b.host)) })
	return out
}

// srv answers for one port, or with port "" for all. A port without a name has no
// SRV name of its own.
func (x *Index) srv(name string, s *corev1.Service, key types.NamespacedName, port, proto string) found {
	var f found
	f.exists = port == ""
	base := fmt.Sprintf("%s.%s.svc.%s", key.Name, key.Namespace, x.domain)
	add := func(port uint16, target string, addrs []netip.Addr) {
		rr := &dns.SRV{Hdr: header(name, dns.TypeSRV), Priority: 0, Port: port, Target: target}
		for _, have := range f.records {
			if h := have.(*dns.SRV); h.Port == port && h.Target == target {
				return
			}
		}
		f.records = append(f.records, rr)
		for _, have := range f.additional {
			if have.Header().Name == target {
				return
			}
		}
		f.additional = append(f.additional, addressRecords(target, dns.TypeANY, addrs)...)
	}
	matches := func(pn, pp string) bool { return port == "" || pn != "" && strings.ToLower(pn) == port && pp == proto }
	if isHeadless(s) {
		for _, p := range s.Spec.Ports {
			f.exists = f.exists || matches(p.Name, protoName(p.Protocol))
		}
		all := x.endpoints(key)
		byHost := map[string][]netip.Addr{}
		for _, e := range all {
			byHost[e.host] = append(byHost[e.host], e.addr)
		}
		for _, e := range all {
			for _, p := range e.ports {
				pn, pp := "", corev1.ProtocolTCP
				if p.Name != nil {
					pn = *p.Name
				}
				if p.Protocol != nil {
					pp = *p.Protocol
				}
				if p.Port == nil || !matches(pn, protoName(pp)) {
					continue
				}
				f.exists = true
				add(uint16(*p.Port), e.host+"."+base, byHost[e.host])
			}
		}
	} else {
		for _, p := range s.Spec.Ports {
			if matches(p.Name, protoName(p.Protocol)) {
				f.exists = true
				add(uint16(p.Port), base, clusterIPs(s))
			}
		}
	}
	for _, rr := range f.records {
		// Equal shares of 100, at least 1.
		rr.(*dns.SRV).Weight = uint16(max(1, 100/len(f.records)))
	}
	return f
}

// reverseAddr reads a name below in-addr.arpa or ip6.arpa; ok is false for one
// that is not a whole address.
func reverseAddr(lower string) (a netip.Addr, ok, isReverse bool) {
	switch {
	case strings.HasSuffix(lower, ".in-addr.arpa."):
		labels := dns.SplitDomainName(strings.TrimSuffix(lower, "in-addr.arpa."))
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4(), true
	case strings.HasSuffix(lower, ".ip6.arpa."):
		labels := dns.SplitDomainName(strings.TrimSuffix(lower, "ip6.arpa."))
		if len(labels) != 32 {
			return a, false, true
		}
		slices.Reverse(labels)
		var b strings.Builder
		for i, l := range labels {
			if len(l) != 1 {
				return a, false, true
			}
			if i > 0 && i%4 == 0 {
				b.WriteByte(':')
			}
			b.WriteString(l)
		}
		a, err := netip.ParseAddr(b.String())
		return a, err == nil && a.Is6(), true
	}
	return a, false, false
}

func (x *Index) reverse(q Question, name string, a netip.Addr, whole bool) Answer {
	ours := whole && slices.ContainsFunc(x.cfg.Reverse, func(p netip.Prefix) bool { return p.Contains(a) })
	var targets []string
	if whole {
		for key := range x.addresses[a] {
			s := x.services[key]
			switch {
			case s == nil:
			case slices.Contains(clusterIPs(s), a):
				targets = append(targets, fmt.Sprintf("%s.%s.svc.%s", key.Name, key.Namespace, x.domain))
			case isHeadless(s):
				for _, e := range x.endpoints(key) {
					if e.addr == a {
						targets = append(targets, fmt.Sprintf("%s.%s.%s.svc.%s", e.host, key.Name, key.Namespace, x.domain))
					}
				}
			}
		}
	}
	if len(targets) == 0 && !ours {
		return Answer{Foreign: true}
	}
	f := found{exists: len(targets) > 0}
	slices.Sort(targets)
	if q.Type == dns.TypePTR || q.Type == dns.TypeANY {
		for _, t := range slices.Compact(targets) {
			f.records = append(f.records, &dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: t})
		}
	}
	return x.finish(q, f)
}
