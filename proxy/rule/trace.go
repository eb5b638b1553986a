package rule

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Host is what the rules ask the kernel about when a packet comes.
type Host struct {
	Addrs []netip.Addr   // of this host
	Pods  []netip.Prefix // pod ranges of the cluster
	Here  []netip.Prefix // pod ranges behind this host's own pod links
	// ServiceCIDRs: what is sent there and not rewritten is rejected.
	ServiceCIDRs []netip.Prefix
}

// Packet is the first of a connection.
type Packet struct {
	From netip.Addr
	To   Dest
}

// Fate is what becomes of a packet.
type Fate struct {
	Verdict    string // "pass", "reject", "drop" or "send"
	To         []netip.AddrPort
	Masquerade []bool // for each of To: whether the endpoint sees this host as the client
	Timeout    uint32 // seconds that the client stays with its endpoint
}

// String is such as "10.1.2.4:53 10.1.2.5:53 (masqueraded)", or the verdict.
func (f Fate) String() string {
	if f.Verdict != "send" {
		return f.Verdict
	}
	var parts []string
	for i, to := range f.To {
		p := to.String()
		if f.Masquerade[i] {
			p += " (masqueraded)"
		}
		parts = append(parts, p)
	}
	s := strings.Join(parts, " ")
	if f.Timeout > 0 {
		s += fmt.Sprintf(" (affinity %ds)", f.Timeout)
	}
	return s
}

func within(a netip.Addr, in []netip.Prefix) bool {
	return slices.ContainsFunc(in, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Trace follows a packet through the rules, as the kernel does; all endpoints
// that it may be sent to are listed, in order.
func (r RuleSet) Trace(p Packet, h Host) Fate {
	isLocal := func(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(h.Addrs, a) }
	fromHere := isLocal(p.From)
	outside := !fromHere && !within(p.From, h.Pods)
	node := p.To
	node.Addr = netip.IPv4Unspecified()
	if p.To.Addr.Is6() {
		node.Addr = netip.IPv6Unspecified()
	}
	// find asks for the address itself, then for every address of the host.
	find := func(set Set) (Data, bool) {
		if d, ok := r[Key{Set: set, Dest: p.To}]; ok {
			return d, true
		}
		d, ok := r[Key{Set: set, Dest: node}]
		return d, ok && isLocal(p.To.Addr)
	}

	if _, ok := find(Guarded); ok && !fromHere {
		allowed := false
		for k := range r {
			if k.Set == Allowed && k.Dest == p.To && k.From.Contains(p.From) {
				allowed = true
			}
		}
		if !allowed {
			return Fate{Verdict: "drop"}
		}
	}
	viaOutside := false
	var d Data
	var ok bool
	if outside {
		d, ok = find(Outside)
		viaOutside = ok
	}
	if !ok {
		d, ok = find(Services)
	}
	if !ok {
		if _, empty := find(Empty); empty || within(p.To.Addr, h.ServiceCIDRs) {
			return Fate{Verdict: "reject"}
		}
		return Fate{Verdict: "pass"}
	}
	if d.Count == 0 {
		return Fate{Verdict: "drop"}
	}
	f := Fate{Verdict: "send", Timeout: d.Timeout}
	for i := range d.Count {
		to, ok := r[Key{Set: Endpoints, Group: d.Group, Index: i}]
		if !ok {
			panic(fmt.Sprintf("rule: group %016x of %s has no endpoint %d of %d", d.Group, p.To, i, d.Count))
		}
		f.To = append(f.To, to.To)
	}
	slices.SortFunc(f.To, netip.AddrPort.Compare)
	for _, to := range f.To {
		self := to.Addr() == p.From && !fromHere
		away := outside && !viaOutside && !within(to.Addr(), h.Here) && !isLocal(to.Addr())
		loopback := p.From.IsLoopback() && !isLocal(to.Addr())
		f.Masquerade = append(f.Masquerade, self || away || loopback)
	}
	return f
}

// Check finds what cannot be in a correct rule set; nil when all is well.
func (r RuleSet) Check() error {
	count := map[uint64]uint32{}
	for k := range r {
		if k.Set == Endpoints {
			count[k.Group]++
		}
	}
	for k, d := range r {
		if k.Set != Services && k.Set != Outside {
			continue
		}
		if d.Count != count[d.Group] && d.Count != 0 {
			return fmt.Errorf("%s: counts %d endpoints, its group has %d", k.text(nil), d.Count, count[d.Group])
		}
		if _, both := r[Key{Set: Empty, Dest: k.Dest}]; both {
			return fmt.Errorf("%s: is empty too", k.text(nil))
		}
		for i := range d.Count {
			e, ok := r[Key{Set: Endpoints, Group: d.Group, Index: i}]
			if !ok {
				return fmt.Errorf("%s: endpoint %d of %d is missing", k.text(nil), i, d.Count)
			}
			if _, ok := r[Key{Set: Members, Group: d.Group, To: e.To}]; ok != (d.Timeout > 0) {
				return fmt.Errorf("%s: endpoint %s: membership %v, affinity %d", k.text(nil), e.To, ok, d.Timeout)
			}
		}
	}
	return nil
}
