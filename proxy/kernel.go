package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"proa.dev/network/nft"
	"proa.dev/proxy/rule"
)

// KernelConfig says what the fixed part of the rules looks like.
type KernelConfig struct {
	// Table is the nftables table's name; nobody else may use it. Required.
	Table string
	// PodLinks is what the names of this host's pod links start with. Required.
	PodLinks string
	// PodCIDRs are the pod ranges of the whole cluster.
	PodCIDRs []netip.Prefix
	// ServiceCIDRs: what goes there and is no service is rejected.
	ServiceCIDRs []netip.Prefix
}

// Kernel keeps a rule set in nftables. Not safe for concurrent use.
type Kernel struct {
	cfg  KernelConfig
	conn *nft.Conn
	ct   *netlink.Handle
	// uses counts the service elements of each pick chain; a chain exists when its
	// class is here. Without uses it stays for a while, see settle.
	uses map[pick]int
	// noTimeouts: this kernel has no timeouts per connection (CONFIG_NF_CONNTRACK_TIMEOUT).
	noTimeouts bool
}

// closeTimeout is how many seconds a connection that its server has reset is
// remembered, with the endpoint that it went to. The kernel's default is 10; even
// one is long enough for a client to come again from the same port (Linux picks
// ports at random, now and then the same within a second), and to be sent to an endpoint
// that is gone by now: Linux looks a new SYN up anew after an orderly end, and
// after the client's reset, but not after the server's. What is lost with the memory
// is that a forged reset which the client would have questioned (RFC 5961, section
// 3.2) ends the connection.
const closeTimeout = 0

// pick is the identity of a pick chain.
type pick struct {
	class   rule.Class
	outside bool
	is6     bool
}

// usualCounts is up to which number of endpoints chains exist without need.
const usualCounts = 16

// idleCounts is how many other chains stay without need.
const idleCounts = 16

// OpenKernel connects to the network namespace of the calling thread.
func OpenKernel(cfg KernelConfig) (*Kernel, error) {
	if cfg.Table == "" || cfg.PodLinks == "" {
		return nil, errors.New("open service rules: table and podLinks must be set")
	}
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	ct, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open conntrack socket: %w", err)
	}
	return &Kernel{cfg: cfg, conn: conn, ct: ct, uses: map[pick]int{}}, nil
}

// Close lets go of the sockets; rules stay.
func (k *Kernel) Close() error {
	k.ct.Close()
	return k.conn.Close()
}

// Sizes of addresses, and the suffix of the sets of each family.
func size(is6 bool) int {
	if is6 {
		return 16
	}
	return 4
}

func suffix(name string, is6 bool) string {
	if is6 {
		return name + "6"
	}
	return name + "4"
}

func addrType(is6 bool) nft.Type {
	if is6 {
		return nft.IPv6
	}
	return nft.IPv4
}

var setBase = map[rule.Set]string{
	rule.Services: "services", rule.Outside: "outside", rule.Endpoints: "endpoints", rule.Members: "members",
	rule.Empty: "empty", rule.Guarded: "guarded", rule.Allowed: "allowed",
}

// sets of one family, by their base name.
func sets(is6 bool) map[string]*nft.Set {
	a := addrType(is6)
	dest := []nft.Type{a, nft.Proto, nft.Port}
	group := []nft.Type{nft.Mark, nft.Mark}
	target := []nft.Type{nft.Mark, nft.Mark, nft.Mark, nft.Mark, nft.Mark}
	out := map[string]*nft.Set{
		"services":       {Key: dest, Data: target},
		"outside":        {Key: dest, Data: target},
		"endpoints":      {Key: append(group, nft.Mark), Data: []nft.Type{a, nft.Port}},
		"members":        {Key: append([]nft.Type{a, nft.Port}, group...)},
		"empty":          {Key: dest},
		"guarded":        {Key: dest},
		"allowed":        {Key: append(dest, a), Interval: true},
		"sticky":         {Key: append(group, a), Data: []nft.Type{a, nft.Port}, Dynamic: true, Size: 1 << 18},
		"classes":        {Key: group, Verdict: true},
		"classesoutside": {Key: group, Verdict: true},
	}
	for base, s := range out {
		s.Name = suffix(base, is6)
	}
	return out
}

var setOrder = []string{"services", "outside", "endpoints", "members", "empty", "guarded", "allowed", "sticky", "classes", "classesoutside"}

// element is what a rule element looks like in the kernel.
func element(key rule.Key, d rule.Data) (set string, e nft.Element) {
	set = suffix(setBase[key.Set], key.Is6(d))
	dest := func() []byte {
		return nft.Key(nft.AddrBytes(key.Dest.Addr), nft.ProtoBytes(key.Dest.Proto), nft.PortBytes(key.Dest.Port))
	}
	switch key.Set {
	case rule.Services, rule.Outside:
		e.Key = dest()
		e.Data = nft.Key(nft.NumberBytes(0), groupBytes(d.Group), nft.NumberBytes(d.Count), nft.NumberBytes(d.Timeout))
	case rule.Endpoints:
		e.Key = nft.Key(groupBytes(key.Group), nft.NumberBytes(key.Index))
		e.Data = nft.Key(nft.AddrBytes(d.To.Addr()), nft.PortBytes(d.To.Port()))
	case rule.Members:
		e.Key = nft.Key(nft.AddrBytes(key.To.Addr()), nft.PortBytes(key.To.Port()), groupBytes(key.Group))
	case rule.Empty, rule.Guarded:
		e.Key = dest()
	case rule.Allowed:
		first := key.From.Masked().Addr()
		e.Key = nft.Key(dest(), nft.AddrBytes(first))
		e.KeyEnd = nft.Key(dest(), lastOf(key.From))
	}
	return set, e
}

func groupBytes(g uint64) []byte {
	return nft.Key(nft.NumberBytes(uint32(g>>32)), nft.NumberBytes(uint32(g)))
}

func lastOf(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

func pickOf(key rule.Key, d rule.Data) (pick, bool) {
	if key.Set != rule.Services && key.Set != rule.Outside || d.Count == 0 {
		return pick{}, false
	}
	return pick{d.Class(), key.Set == rule.Outside, key.Dest.Addr.Is6()}, true
}

func (p pick) chain() string {
	name := "pick"
	if p.outside {
		name = "outpick"
	}
	name = suffix(name, p.is6) + fmt.Sprintf("-%d", p.class.Count)
	if p.class.Timeout > 0 {
		name += fmt.Sprintf("-stick%d", p.class.Timeout)
	}
	return name
}

func (p pick) element() (set string, e nft.Element) {
	set = "classes"
	if p.outside {
		set = "classesoutside"
	}
	return suffix(set, p.is6), nft.Element{
		Key:     nft.Key(nft.NumberBytes(p.class.Count), nft.NumberBytes(p.class.Timeout)),
		Verdict: &expr.Verdict{Kind: expr.VerdictGoto, Chain: p.chain()},
	}
}

// isUsual chains are never removed.
func (p pick) isUsual() bool {
	return !p.outside && !p.is6 && p.class.Timeout == 0 && p.class.Count <= usualCounts
}

// Registers: the destination's key from 0 on, what it maps to from 7 on. That begins
// with a zero which no rule uses: the nft program (1.0.6) aborts on a key that begins
// in the register that a map's value was loaded to.
const (
	atKey    = 0
	atValue  = 7
	atTarget = 8 // group, group, count, timeout
	atIndex  = 10
)

// loadDest loads the key of the packet's destination; anyAddr stands for all
// addresses of this host.
func loadDest(is6, anyAddr bool) []expr.Any {
	n := size(is6)
	w := n / 4
	addr := nft.Daddr(n, atKey)
	if anyAddr {
		addr = nft.Immediate(atKey, make([]byte, n))
	}
	return nft.Exprs(addr, nft.Protocol(w), nft.Dport(w+1))
}

func (k *Kernel) addPick(b *nft.Batch, p pick) {
	t, chain := k.cfg.Table, p.chain()
	b.AddChain(t, nft.Chain{Name: chain})
	if !k.noTimeouts {
		b.AddRule(t, chain, nft.Exprs(nft.IsTCP(), nft.CloseTimeout(suffix("closed", p.is6)))...)
	}
	services := suffix("services", p.is6)
	if p.outside {
		services = suffix("outside", p.is6)
	}
	n := size(p.is6)
	w := n / 4
	endpoints, members, sticky := suffix("endpoints", p.is6), suffix("members", p.is6), suffix("sticky", p.is6)
	draw := nft.Exprs(nft.Random(p.class.Count, atIndex), nft.Map(endpoints, atTarget, 0))
	if p.class.Timeout > 0 {
		timeout := time.Duration(p.class.Timeout) * time.Second
		for _, anyAddr := range []bool{false, true} {
			b.AddRule(t, chain, nft.Exprs(loadDest(p.is6, anyAddr), nft.Map(services, atKey, atValue),
				nft.Saddr(n, atIndex), nft.Map(sticky, atTarget, 0), // group . client → address . port
				nft.Copy(atTarget, w+1, 4), nft.Copy(atTarget+1, w+2, 4), nft.In(members, 0),
				nft.Remember(sticky, atTarget, 0, timeout), nft.DNAT(n, 0))...)
		}
		for _, anyAddr := range []bool{false, true} {
			b.AddRule(t, chain, nft.Exprs(loadDest(p.is6, anyAddr), nft.Map(services, atKey, atValue), draw,
				nft.Saddr(n, atIndex), nft.Forget(sticky, atTarget, 0), nft.Remember(sticky, atTarget, 0, timeout), nft.DNAT(n, 0))...)
		}
		// Only when sticky is full.
	}
	for _, anyAddr := range []bool{false, true} {
		b.AddRule(t, chain, nft.Exprs(loadDest(p.is6, anyAddr), nft.Map(services, atKey, atValue), draw, nft.DNAT(n, 0))...)
	}
	set, e := p.element()
	b.Add(t, set, e)
}

func (k *Kernel) removePick(b *nft.Batch, p pick) {
	set, e := p.element()
	b.Delete(k.cfg.Table, set, e)
	b.DeleteChain(k.cfg.Table, p.chain())
}

// frame makes the table with what does not depend on services.
//
// Every look at a map sees the maps as they are at that instant, so that a packet
// whose way through the chains overlaps the commit of a transaction meets the
// number of endpoints from before and the endpoints from after, finds none, and
// falls through. It is therefore looked up again, in a base chain of its own:
// rules are those of the instant at which the kernel entered the base chain. The
// priority lies behind that of the first look, so that during the replacement of
// the whole table, when both tables hang on the hooks, one of the new table's
// looks comes after the old table's. Packets to services never get as far.
func (k *Kernel) frame(b *nft.Batch) {
	t := k.cfg.Table
	b.ReplaceTable(t)
	if !k.noTimeouts {
		b.AddCloseTimeout(t, suffix("closed", false), unix.NFPROTO_IPV4, closeTimeout)
		b.AddCloseTimeout(t, suffix("closed", true), unix.NFPROTO_IPV6, closeTimeout)
	}
	for _, is6 := range []bool{false, true} {
		all := sets(is6)
		for _, base := range setOrder {
			b.AddSet(t, all[base])
		}
	}
	for _, c := range []nft.Chain{
		{Name: "guard", Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -150},
		{Name: "prerouting", Type: "nat", Hook: unix.NF_INET_PRE_ROUTING, Priority: -100},
		{Name: "output", Type: "nat", Hook: unix.NF_INET_LOCAL_OUT, Priority: -100},
		{Name: "postrouting", Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: 100},
		{Name: "prerouting-again", Type: "nat", Hook: unix.NF_INET_PRE_ROUTING, Priority: -98},
		{Name: "output-again", Type: "nat", Hook: unix.NF_INET_LOCAL_OUT, Priority: -98},
		{Name: "postrouting-again", Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: 104},
		// Right behind the rewriting and before routing, which refuses to forward to
		// where there is nothing (Linux 5.9 rejects here).
		{Name: "reject-in", Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -90},
		{Name: "reject-out", Type: "filter", Hook: unix.NF_INET_LOCAL_OUT, Priority: -90},
		{Name: "services"}, {Name: "reject"}, {Name: "refuse"},
	} {
		b.AddChain(t, c)
	}
	for _, chain := range []string{"prerouting", "output", "prerouting-again", "output-again"} {
		b.AddRule(t, chain, nft.Jump("services"))
	}
	for _, hook := range []string{"reject-in", "reject-out"} {
		b.AddRule(t, hook, nft.Exprs(nft.IsNew(), nft.NotDNAT(), nft.Jump("reject"))...)
	}
	b.AddRule(t, "refuse", nft.Exprs(nft.IsTCP(), nft.Reset())...)
	b.AddRule(t, "refuse", nft.Unreachable())

	for _, is6 := range []bool{false, true} {
		n := size(is6)
		w := n / 4
		family := nft.FamilyOf(n)
		in := func(base string) string { return suffix(base, is6) }
		var foreign []expr.Any // the client is neither a pod nor this host
		for _, c := range k.cfg.PodCIDRs {
			if c.Addr().Is6() == is6 {
				foreign = append(foreign, nft.SaddrOutside(c)...)
			}
		}
		foreign = append(foreign, nft.SaddrNotLocal()...)
		local := func(anyAddr bool) []expr.Any {
			if anyAddr {
				return nft.DaddrLocal()
			}
			return nil
		}

		b.AddRule(t, "guard", nft.Exprs(family, loadDest(is6, false), nft.In(in("guarded"), atKey),
			nft.Saddr(n, w+2), nft.NotIn(in("allowed"), atKey), nft.Drop())...)
		for _, anyAddr := range []bool{false, true} {
			b.AddRule(t, "services", nft.Exprs(family, loadDest(is6, anyAddr), nft.Map(in("outside"), atKey, atValue),
				local(anyAddr), foreign, nft.VMap(in("classesoutside"), atTarget+2))...)
		}
		for _, anyAddr := range []bool{false, true} {
			b.AddRule(t, "services", nft.Exprs(family, loadDest(is6, anyAddr), nft.Map(in("services"), atKey, atValue),
				local(anyAddr), nft.VMap(in("classes"), atTarget+2))...)
		}
		for _, anyAddr := range []bool{false, true} {
			b.AddRule(t, "reject", nft.Exprs(family, loadDest(is6, anyAddr), nft.In(in("empty"), atKey), local(anyAddr), nft.Goto("refuse"))...)
		}

		masquerade := in("masquerade")
		b.AddChain(t, nft.Chain{Name: masquerade})
		for _, chain := range []string{"postrouting", "postrouting-again"} {
			b.AddRule(t, chain, nft.Exprs(family, nft.WasDNAT(), foreign, nft.NotOifPrefix(k.cfg.PodLinks), nft.Goto(masquerade))...)
		}
		for _, anyAddr := range []bool{false, true} {
			addr := nft.OriginalDaddr(n, atKey)
			if anyAddr {
				addr = nft.Immediate(atKey, make([]byte, n))
			}
			original := nft.Exprs(addr, nft.Protocol(w), nft.OriginalDport(w+1))
			b.AddRule(t, masquerade, nft.Exprs(original, nft.Map(in("outside"), atKey, atValue), nft.Return())...)
			b.AddRule(t, masquerade, nft.Exprs(original, nft.Map(in("services"), atKey, atValue), nft.Masquerade())...)
		}
		// Count 0: all endpoints are elsewhere.
		for _, base := range []string{"classes", "classesoutside"} {
			b.Add(t, in(base), nft.Element{Key: make([]byte, 8), Verdict: &expr.Verdict{Kind: expr.VerdictDrop}})
		}
	}
	for _, c := range k.cfg.ServiceCIDRs {
		b.AddRule(t, "reject", nft.Exprs(nft.DaddrWithin(c), nft.Goto("refuse"))...)
	}
}

// Replace puts a whole rule set in place of what is there, in one transaction.
func (k *Kernel) Replace(rules rule.RuleSet) error {
	err := k.replace(rules)
	if (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT)) && !k.noTimeouts {
		k.noTimeouts = true
		err = k.replace(rules)
	}
	return err
}

func (k *Kernel) replace(rules rule.RuleSet) error {
	var b nft.Batch
	k.frame(&b)
	uses := map[pick]int{}
	for n := uint32(1); n <= usualCounts; n++ {
		uses[pick{class: rule.Class{Count: n}}] = 0
	}
	adds := map[string][]nft.Element{}
	for key, d := range rules {
		set, e := element(key, d)
		adds[set] = append(adds[set], e)
		if p, ok := pickOf(key, d); ok {
			uses[p]++
		}
	}
	for p := range uses {
		k.addPick(&b, p)
	}
	for set, elements := range adds {
		b.Add(k.cfg.Table, set, elements...)
	}
	if err := k.conn.Apply(&b); err != nil {
		return fmt.Errorf("replace service rules (%d elements): %w", len(rules), err)
	}
	k.uses = uses
	return nil
}

// Apply carries a change out, in one transaction. An error that wraps
// unix.ENOENT or unix.EEXIST means that the table is not what it was left as:
// Replace it.
func (k *Kernel) Apply(delta rule.Delta) error {
	if len(delta) == 0 {
		return nil
	}
	var b nft.Batch
	uses := map[pick]int{} // changes of the counts
	adds, deletes := map[string][]nft.Element{}, map[string][]nft.Element{}
	for key, c := range delta {
		var oldElem, newElem nft.Element
		var oldSet, newSet string
		if c.Old != nil {
			oldSet, oldElem = element(key, *c.Old)
			if p, ok := pickOf(key, *c.Old); ok {
				uses[p]--
			}
		}
		if c.New != nil {
			newSet, newElem = element(key, *c.New)
			if p, ok := pickOf(key, *c.New); ok {
				uses[p]++
			}
		}
		if oldSet == newSet && bytes.Equal(oldElem.Key, newElem.Key) && bytes.Equal(oldElem.Data, newElem.Data) {
			continue // only what the kernel does not hold
		}
		if c.Old != nil {
			deletes[oldSet] = append(deletes[oldSet], oldElem)
		}
		if c.New != nil {
			adds[newSet] = append(adds[newSet], newElem)
		}
	}
	if err := k.settle(uses); err != nil {
		return err
	}
	for set, elements := range deletes {
		b.Delete(k.cfg.Table, set, elements...)
	}
	for set, elements := range adds {
		b.Add(k.cfg.Table, set, elements...)
	}
	if err := k.conn.Apply(&b); err != nil {
		return fmt.Errorf("change service rules (%d elements): %w", len(delta), err)
	}
	for p, n := range uses {
		k.uses[p] += n
	}
	return nil
}

// settle makes the chains that a change needs, and removes some that nothing needs
// any more: in a transaction before the change's own, so that no packet which meets
// a service's element from before or after the change finds its chain missing.
// (Packets from outside would go on to the rule for those from inside.)
func (k *Kernel) settle(change map[pick]int) error {
	var b nft.Batch
	var fresh, idle []pick
	for p := range change {
		if _, exists := k.uses[p]; !exists {
			fresh = append(fresh, p)
			k.addPick(&b, p)
		}
	}
	for p, n := range k.uses {
		if _, touched := change[p]; n == 0 && !touched && !p.isUsual() {
			idle = append(idle, p)
		}
	}
	if len(idle) <= idleCounts {
		idle = nil
	}
	for _, p := range idle {
		k.removePick(&b, p)
	}
	if err := k.conn.Apply(&b); err != nil {
		return fmt.Errorf("change classes of services (%d new, %d idle): %w", len(fresh), len(idle), err)
	}
	for _, p := range fresh {
		k.uses[p] = 0
	}
	for _, p := range idle {
		delete(k.uses, p)
	}
	return nil
}

// VerifyFrame checks that all chains are there with as many rules as they should
// have. Its cost does not depend on the number of services.
func (k *Kernel) VerifyFrame() error {
	var b nft.Batch
	k.frame(&b)
	for p := range k.uses {
		k.addPick(&b, p)
	}
	have, err := k.conn.RuleCount(k.cfg.Table)
	if err != nil {
		return err
	}
	for chain, n := range b.Rules() {
		if have[chain] != n {
			return fmt.Errorf("chain %q has %d rules, not %d", chain, have[chain], n)
		}
		delete(have, chain)
	}
	for chain := range have {
		return fmt.Errorf("chain %q is not ours", chain)
	}
	return nil
}

// VerifyRules compares all elements with what they should be.
func (k *Kernel) VerifyRules(rules rule.RuleSet) error {
	want := map[string]map[string]string{}
	for key, d := range rules {
		set, e := element(key, d)
		if want[set] == nil {
			want[set] = map[string]string{}
		}
		want[set][string(e.Key)] = string(e.Data)
	}
	for _, is6 := range []bool{false, true} {
		for _, base := range setBase {
			set := suffix(base, is6)
			elements, err := k.conn.Elements(k.cfg.Table, set)
			if err != nil {
				return err
			}
			if len(elements) != len(want[set]) {
				return fmt.Errorf("map %q has %d elements, not %d", set, len(elements), len(want[set]))
			}
			for _, e := range elements {
				if d, ok := want[set][string(e.Key)]; !ok || d != string(e.Data) {
					return fmt.Errorf("map %q has an element that differs: %x → %x", set, e.Key, e.Data)
				}
			}
		}
	}
	return nil
}

// Generation grows with each change of any table of the host.
func (k *Kernel) Generation() (uint32, error) { return k.conn.Generation() }

// CutUDP may be called beside the other methods. It forgets the UDP flows to endpoints that are no more, so that the next
// packet of each client is sent to another one. Returns how many there were.
func (k *Kernel) CutUDP(gone []netip.AddrPort) (int, error) {
	if len(gone) == 0 {
		return 0, nil
	}
	total := 0
	for _, is6 := range []bool{false, true} {
		match := udpFilter{}
		for _, g := range gone {
			if g.Addr().Is6() == is6 {
				match[g] = true
			}
		}
		if len(match) == 0 {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if is6 {
			family = unix.AF_INET6
		}
		n, err := k.ct.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
		total += int(n)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return total, fmt.Errorf("forget UDP flows to %d endpoints: %w", len(match), err)
		}
	}
	return total, nil
}

type udpFilter map[netip.AddrPort]bool

// MatchConntrackFlow matches flows that are answered by one of the endpoints.
func (u udpFilter) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	ip, ok := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok && f.Forward.Protocol == unix.IPPROTO_UDP && u[netip.AddrPortFrom(ip.Unmap(), f.Reverse.SrcPort)]
}

// Delete removes the table. What is not there is fine.
func (k *Kernel) Delete() error { return k.conn.DeleteTable(k.cfg.Table) }
