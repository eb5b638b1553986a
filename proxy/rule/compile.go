package rule

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Node is the machine that the rules are for.
type Node struct {
	Name string
	Zone string // of label topology.kubernetes.io/zone; "": hints are not followed
}

// Service is one service as the compiler sees it: nil Service means that there is
// none. Slices may be in any order.
type Service struct {
	Service *corev1.Service
	Slices  []*discoveryv1.EndpointSlice
}

// Part is what one service contributes.
type Part struct {
	Rules RuleSet
	// Groups are the endpoint groups in use.
	Groups []Group
	// Pods that new connections are sent to because they are ready. A pod that is
	// used as the last resort (terminating, when no other is left) is not here.
	Pods map[types.UID]bool
	// HealthPort answers load balancers whether this node has endpoints; 0: none.
	HealthPort     uint16
	LocalEndpoints int
}

// Group is a numbered list of endpoints.
type Group struct {
	ID   uint64
	Name string // such as "shop/web:http", with "!local" and "!6" where it is so
	To   []netip.AddrPort
}

func groupOf(name string) Group {
	sum := sha256.Sum256([]byte(name))
	return Group{ID: binary.BigEndian.Uint64(sum[:]), Name: name}
}

// Labels that hand a service over to another proxy.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// Compile makes the elements of one service. before is its part as it is now, or
// nil: its endpoints keep their numbers where they can.
func Compile(in Service, node Node, before *Part) *Part {
	p := &Part{Rules: RuleSet{}, Pods: map[types.UID]bool{}}
	svc := in.Service
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Labels[labelProxyName] != "" ||
		svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" {
		return p
	}
	c := compiler{in: in, node: node, before: before, part: p, made: map[string]*choice{}}
	if svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		c.timeout = uint32(corev1.DefaultClientIPServiceAffinitySeconds)
		if a := svc.Spec.SessionAffinityConfig; a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil && *a.ClientIP.TimeoutSeconds > 0 {
			c.timeout = uint32(*a.ClientIP.TimeoutSeconds)
		}
	}
	for i := range svc.Spec.Ports {
		c.port(&svc.Spec.Ports[i])
	}
	c.health()
	return p
}

type compiler struct {
	in      Service
	node    Node
	before  *Part
	part    *Part
	timeout uint32
	made    map[string]*choice
}

// choice is a group and how it came about.
type choice struct {
	group     Group
	elsewhere bool // empty here, while other nodes have endpoints
}

func (c *compiler) port(sp *corev1.ServicePort) {
	svc := c.in.Service
	proto := protoOf(sp.Protocol)
	if proto == 0 || sp.Port < 1 || sp.Port > math.MaxUint16 {
		return
	}
	internalLocal := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	externalLocal := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal

	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{svc.Spec.ClusterIP}
	}
	is := map[bool]bool{} // families of the service, by "is IPv6"
	for _, s := range ips {
		ip, ok := parse(s)
		if !ok {
			continue
		}
		is[ip.Is6()] = true
		c.internal(Dest{ip, uint16(sp.Port), proto}, sp, internalLocal)
	}
	external := func(ip netip.Addr, port int32) (Dest, bool) {
		if !is[ip.Is6()] {
			return Dest{}, false
		}
		d := Dest{ip, uint16(port), proto}
		c.external(d, sp, externalLocal)
		return d, true
	}
	if sp.NodePort > 0 && svc.Spec.Type != corev1.ServiceTypeClusterIP {
		external(netip.IPv4Unspecified(), sp.NodePort)
		external(netip.IPv6Unspecified(), sp.NodePort)
	}
	for _, s := range svc.Spec.ExternalIPs {
		if ip, ok := parse(s); ok {
			external(ip, sp.Port)
		}
	}
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		ip, ok := parse(in.IP)
		if !ok || in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy {
			continue
		}
		if d, ok := external(ip, sp.Port); ok {
			c.guard(d)
		}
	}
}

// internal is a cluster address.
func (c *compiler) internal(d Dest, sp *corev1.ServicePort, local bool) {
	ch := c.choose(sp, d.Addr.Is6(), local)
	switch {
	case len(ch.group.To) > 0:
		c.target(Services, d, ch)
	case ch.elsewhere:
		c.part.Rules[Key{Set: Services, Dest: d}] = Data{} // drop
	default:
		c.part.Rules[Key{Set: Empty, Dest: d}] = Data{}
	}
}

// external is an address for clients outside of the cluster, who meet policy
// Local where it is set; pods and the host always reach every endpoint.
func (c *compiler) external(d Dest, sp *corev1.ServicePort, local bool) {
	all := c.choose(sp, d.Addr.Is6(), false)
	if len(all.group.To) == 0 {
		c.part.Rules[Key{Set: Empty, Dest: d}] = Data{}
		return
	}
	c.target(Services, d, all)
	if !local {
		return
	}
	if here := c.choose(sp, d.Addr.Is6(), true); len(here.group.To) > 0 {
		c.target(Outside, d, here)
	} else {
		c.part.Rules[Key{Set: Outside, Dest: d}] = Data{} // drop
	}
}

func (c *compiler) target(set Set, d Dest, ch *choice) {
	c.part.Rules[Key{Set: set, Dest: d}] = Data{Group: ch.group.ID, Count: uint32(len(ch.group.To)), Timeout: c.timeout}
}

func (c *compiler) guard(d Dest) {
	ranges := c.in.Service.Spec.LoadBalancerSourceRanges
	if len(ranges) == 0 {
		return
	}
	c.part.Rules[Key{Set: Guarded, Dest: d}] = Data{}
	for _, s := range ranges {
		p, err := netip.ParsePrefix(trim(s))
		if err != nil || p.Addr().Is4() != d.Addr.Is4() {
			continue
		}
		c.part.Rules[Key{Set: Allowed, Dest: d, From: p.Masked()}] = Data{}
	}
}

// choose picks the endpoints of a port, numbers them and puts them into the part.
func (c *compiler) choose(sp *corev1.ServicePort, is6, local bool) *choice {
	svc := c.in.Service
	name := fmt.Sprintf("%s/%s:%s", svc.Namespace, svc.Name, sp.Name)
	if sp.Name == "" {
		name = fmt.Sprintf("%s/%s:%d/%s", svc.Namespace, svc.Name, sp.Port, protoName(protoOf(sp.Protocol)))
	}
	if local {
		name += "!local"
	}
	if is6 {
		name += "!6"
	}
	if ch := c.made[name]; ch != nil {
		return ch
	}
	ch := &choice{group: groupOf(name)}
	c.made[name] = ch

	all := c.endpoints(sp, is6)
	var use []endpoint
	if local {
		use = keep(all, func(e endpoint) bool { return e.here })
	} else {
		use = c.hinted(all)
	}
	best := keep(use, func(e endpoint) bool { return e.ready })
	if len(best) == 0 {
		best = keep(use, func(e endpoint) bool { return e.serving && e.terminating })
	}
	if local && len(best) == 0 {
		ch.elsewhere = len(keep(all, func(e endpoint) bool { return e.ready || e.serving && e.terminating })) > 0
	}
	var want []netip.AddrPort
	for _, e := range best {
		want = append(want, e.to)
		if e.ready && e.pod != "" {
			c.part.Pods[e.pod] = true
		}
	}
	slices.SortFunc(want, netip.AddrPort.Compare)
	want = slices.Compact(want)
	if len(want) == 0 {
		return ch
	}
	ch.group.To = number(c.before.group(ch.group.ID), want)
	c.part.Groups = append(c.part.Groups, ch.group)
	for i, to := range ch.group.To {
		c.part.Rules[Key{Set: Endpoints, Group: ch.group.ID, Index: uint32(i)}] = Data{To: to, Proto: protoOf(sp.Protocol)}
		if c.timeout > 0 {
			c.part.Rules[Key{Set: Members, Group: ch.group.ID, To: to}] = Data{}
		}
	}
	return ch
}

func (p *Part) group(id uint64) []netip.AddrPort {
	if p != nil {
		for i := range p.Groups {
			if p.Groups[i].ID == id {
				return p.Groups[i].To
			}
		}
	}
	return nil
}

// number orders want so that as few as possible get another number than before:
// gaps are filled by new ones, then by the last.
func number(before, want []netip.AddrPort) []netip.AddrPort {
	fresh := make(map[netip.AddrPort]bool, len(want))
	for _, w := range want {
		fresh[w] = true
	}
	out := make([]netip.AddrPort, 0, len(want))
	var gaps []int
	for _, b := range before {
		if fresh[b] {
			delete(fresh, b)
			out = append(out, b)
		} else {
			gaps = append(gaps, len(out))
			out = append(out, netip.AddrPort{})
		}
	}
	for _, w := range want { // in order, for a fixed result
		if !fresh[w] {
			continue
		}
		if len(gaps) > 0 {
			out[gaps[0]] = w
			gaps = gaps[1:]
		} else {
			out = append(out, w)
		}
	}
	for len(gaps) > 0 {
		last := len(out) - 1
		if gaps[len(gaps)-1] == last {
			gaps = gaps[:len(gaps)-1]
		} else {
			out[gaps[0]] = out[last]
			gaps = gaps[1:]
		}
		out = out[:last]
	}
	return out
}

type endpoint struct {
	to                          netip.AddrPort
	pod                         types.UID
	here                        bool
	ready, serving, terminating bool
	hints                       *discoveryv1.EndpointHints
}

func keep(in []endpoint, ok func(endpoint) bool) []endpoint {
	var out []endpoint
	for _, e := range in {
		if ok(e) {
			out = append(out, e)
		}
	}
	return out
}

func (c *compiler) endpoints(sp *corev1.ServicePort, is6 bool) []endpoint {
	family := discoveryv1.AddressTypeIPv4
	if is6 {
		family = discoveryv1.AddressTypeIPv6
	}
	var out []endpoint
	for _, s := range c.in.Slices {
		if s.AddressType != family || !s.DeletionTimestamp.IsZero() && len(s.Finalizers) == 0 {
			continue
		}
		var port uint16
		for _, p := range s.Ports {
			name := ""
			if p.Name != nil {
				name = *p.Name
			}
			proto := corev1.ProtocolTCP
			if p.Protocol != nil {
				proto = *p.Protocol
			}
			if name == sp.Name && protoOf(proto) == protoOf(sp.Protocol) && p.Port != nil && *p.Port > 0 && *p.Port <= math.MaxUint16 {
				port = uint16(*p.Port)
				break
			}
		}
		if port == 0 {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if len(e.Addresses) == 0 {
				continue
			}
			ip, ok := parse(e.Addresses[0]) // the others mean the same endpoint
			if !ok || ip.Is6() != is6 {
				continue
			}
			x := endpoint{to: netip.AddrPortFrom(ip, port), hints: e.Hints}
			x.ready = e.Conditions.Ready == nil || *e.Conditions.Ready
			x.terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
			x.serving = x.ready
			if e.Conditions.Serving != nil {
				x.serving = *e.Conditions.Serving
			}
			x.here = e.NodeName != nil && *e.NodeName == c.node.Name
			if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				x.pod = e.TargetRef.UID
			}
			out = append(out, x)
		}
	}
	return out
}

// hinted keeps the endpoints that are meant for this node, or for its zone, if
// every ready endpoint has such a hint and one is meant for us; else all.
func (c *compiler) hinted(all []endpoint) []endpoint {
	var ready, nodes, zones int
	forNode := func(e endpoint) bool {
		return e.hints != nil && slices.ContainsFunc(e.hints.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == c.node.Name })
	}
	forZone := func(e endpoint) bool {
		return c.node.Zone != "" && e.hints != nil && slices.ContainsFunc(e.hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == c.node.Zone })
	}
	var ourNode, ourZone bool
	for _, e := range all {
		if !e.ready {
			continue
		}
		ready++
		if e.hints != nil && len(e.hints.ForNodes) > 0 {
			nodes++
		}
		if e.hints != nil && len(e.hints.ForZones) > 0 {
			zones++
		}
		ourNode = ourNode || forNode(e)
		ourZone = ourZone || forZone(e)
	}
	switch {
	case ready > 0 && nodes == ready && ourNode:
		return keep(all, forNode)
	case ready > 0 && zones == ready && ourZone:
		return keep(all, forZone)
	}
	return all
}

func (c *compiler) health() {
	svc := c.in.Service
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal ||
		svc.Spec.HealthCheckNodePort <= 0 || svc.Spec.HealthCheckNodePort > math.MaxUint16 {
		return
	}
	c.part.HealthPort = uint16(svc.Spec.HealthCheckNodePort)
	here := map[netip.Addr]bool{}
	for i := range svc.Spec.Ports {
		for _, is6 := range []bool{false, true} {
			for _, e := range c.endpoints(&svc.Spec.Ports[i], is6) {
				if e.here && e.ready {
					here[e.to.Addr()] = true
				}
			}
		}
	}
	c.part.LocalEndpoints = len(here)
}

func protoOf(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP
	case corev1.ProtocolUDP:
		return UDP
	case corev1.ProtocolSCTP:
		return SCTP
	}
	return 0
}

func parse(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil && a.Zone() == ""
}

func trim(s string) string {
	for len(s) > 0 && s[0] == ' ' {
		s = s[1:]
	}
	for len(s) > 0 && s[len(s)-1] == ' ' {
		s = s[:len(s)-1]
	}
	return s
}
