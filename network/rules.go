package network

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"proa.dev/network/nft"
)

// The table of a cluster, family inet; sets and rules exist twice, for IPv4 and
// IPv6, as far as the node has both:
//
//	set hairpin4    { pod . pod }               one element per pod address
//	map hostports4  { host address or 0.0.0.0 . protocol . port : pod . port }
//
//	guard        prerouting, raw    pods do not reach the host's 127.0.0.0/8
//	prerouting   nat                to a local address: hostports
//	output       nat                the same
//	postrouting  nat                masquerade
//
// Priorities of the nat chains are behind those of package proxy, so that a
// service wins where both have a port. Each nat chain exists twice: while the
// table is replaced, the chains of both the old and the new one hang on the hooks, and a
// packet that meets the new one before the commit and the old one after it
// would find rules in neither; the second look finds the new ones.
const (
	prioGuard = -300
	prioDNAT  = -97
	prioSNAT  = 101
	again     = 2 // behind the first look
)

func setName(base string, addrSize int) string {
	if addrSize == 16 {
		return base + "6"
	}
	return base + "4"
}

func (n *Network) addrSizes() []int {
	var out []int
	for _, p := range n.cfg.PodCIDRs {
		out = append(out, p.Addr().BitLen()/8)
	}
	return out
}

func addrType(size int) nft.Type {
	if size == 16 {
		return nft.IPv6
	}
	return nft.IPv4
}

// fillTable replaces this cluster's table, in one transaction, by the rules of
// all recorded sandboxes.
func (n *Network) fillTable() error {
	var b nft.Batch
	t := n.Table()
	b.ReplaceTable(t)
	b.AddChain(t, nft.Chain{Name: "guard", Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: prioGuard})
	b.AddChain(t, nft.Chain{Name: "hostports"})
	b.AddChain(t, nft.Chain{Name: "masquerade"})
	for suffix, later := range map[string]int32{"": 0, "-again": again} {
		b.AddChain(t, nft.Chain{Name: "prerouting" + suffix, Type: "nat", Hook: unix.NF_INET_PRE_ROUTING, Priority: prioDNAT + later})
		b.AddChain(t, nft.Chain{Name: "output" + suffix, Type: "nat", Hook: unix.NF_INET_LOCAL_OUT, Priority: prioDNAT + later})
		b.AddChain(t, nft.Chain{Name: "postrouting" + suffix, Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: prioSNAT + later})
		b.AddRule(t, "prerouting"+suffix, nft.Exprs(nft.DaddrLocal(), nft.Jump("hostports"))...)
		b.AddRule(t, "output"+suffix, nft.Exprs(nft.DaddrLocal(), nft.Jump("hostports"))...)
		b.AddRule(t, "postrouting"+suffix, nft.Jump("masquerade"))
	}
	pods := n.names.prefix

	b.AddRule(t, "guard", nft.Exprs(nft.IifPrefix(pods), nft.DaddrWithin(netip.MustParsePrefix("127.0.0.0/8")), nft.Drop())...)
	for _, size := range n.addrSizes() {
		a := addrType(size)
		w := size / 4
		hairpin, hostports := setName("hairpin", size), setName("hostports", size)
		b.AddSet(t, &nft.Set{Name: hairpin, Key: []nft.Type{a, a}})
		b.AddSet(t, &nft.Set{Name: hostports, Key: []nft.Type{a, nft.Proto, nft.Port}, Data: []nft.Type{a, nft.Port}})

		rest := nft.Exprs(nft.Protocol(w), nft.Dport(w+1), nft.Map(hostports, 0, 0), nft.DNAT(size, 0))
		b.AddRule(t, "hostports", nft.Exprs(nft.FamilyOf(size), nft.Daddr(size, 0), rest)...)
		b.AddRule(t, "hostports", nft.Exprs(nft.FamilyOf(size), nft.Immediate(0, make([]byte, size)), rest)...)

		b.AddRule(t, "masquerade", nft.Exprs(nft.FamilyOf(size), nft.WasDNAT(), nft.Saddr(size, 0), nft.Daddr(size, w),
			nft.In(hairpin, 0), nft.Masquerade())...)
	}
	b.AddRule(t, "masquerade", nft.Exprs(nft.OifPrefix(pods), nft.SaddrWithin(netip.MustParsePrefix("127.0.0.0/8")), nft.Masquerade())...)
	for _, own := range n.cfg.PodCIDRs {
		rule := nft.Exprs(nft.NotOifPrefix(pods), nft.SaddrWithin(own))
		for _, c := range n.cfg.ClusterCIDRs {
			if c.Addr().Is4() == own.Addr().Is4() {
				rule = append(rule, nft.DaddrOutside(c)...)
			}
		}
		b.AddRule(t, "masquerade", append(rule, nft.Masquerade())...)
	}

	n.mu.Lock()
	for _, r := range n.pool.records {
		for set, elements := range n.elementsOf(r) {
			b.Add(t, set, elements...)
		}
	}
	n.mu.Unlock()
	return n.nft.Apply(&b)
}

// elementsOf are a sandbox's elements by set.
func (n *Network) elementsOf(r *record) map[string][]nft.Element {
	out := map[string][]nft.Element{}
	for _, ip := range r.IPs {
		size := ip.BitLen() / 8
		if !n.hasFamily(size) {
			continue
		}
		raw := nft.AddrBytes(ip)
		hairpin := setName("hairpin", size)
		out[hairpin] = append(out[hairpin], nft.Element{Key: nft.Key(raw, raw)})
		for _, p := range r.Ports {
			if p.HostIP.IsValid() && p.HostIP.BitLen() != ip.BitLen() {
				continue
			}
			host := make([]byte, size)
			if p.HostIP.IsValid() {
				host = nft.AddrBytes(p.HostIP)
			}
			hostports := setName("hostports", size)
			out[hostports] = append(out[hostports], nft.Element{
				Key:  nft.Key(host, nft.ProtoBytes(p.Protocol), nft.PortBytes(p.HostPort)),
				Data: nft.Key(raw, nft.PortBytes(p.ContainerPort)),
			})
		}
	}
	return out
}

func (n *Network) hasFamily(size int) bool {
	for _, s := range n.addrSizes() {
		if s == size {
			return true
		}
	}
	return false
}

// addRules puts a sandbox's elements in; those that are there already stay.
func (n *Network) addRules(r *record) error {
	var b nft.Batch
	for set, elements := range n.elementsOf(r) {
		b.Add(n.Table(), set, elements...)
	}
	err := n.nft.Apply(&b)
	if ignore(err, unix.ENOENT) == nil && err != nil {
		// Someone has removed the table: make it anew, this sandbox included.
		n.log.Warn("nftables table was removed by someone else; making it anew", "table", n.Table())
		err = n.fillTable()
	}
	return err
}

// removeRules takes a sandbox's elements out.
func (n *Network) removeRules(r *record) error {
	var b nft.Batch
	for set, elements := range n.elementsOf(r) {
		b.Delete(n.Table(), set, elements...)
	}
	err := n.nft.Apply(&b)
	if ignore(err, unix.ENOENT) == nil && err != nil {
		// Not all are there: add and remove, so that none is left.
		b = nft.Batch{}
		b.AddTable(n.Table())
		if err = n.nft.Apply(&b); err != nil {
			return err
		}
		for set, elements := range n.elementsOf(r) {
			for _, e := range elements {
				var one nft.Batch
				one.Delete(n.Table(), set, e)
				if err := n.nft.Apply(&one); ignore(err, unix.ENOENT) != nil {
					return fmt.Errorf("remove rules of sandbox %q: %w", r.Sandbox, err)
				}
			}
		}
		return nil
	}
	return err
}

// Obstacle is something on the host that keeps pods from talking.
type Obstacle struct {
	What string // the thing, such as `table ip "filter", chain "FORWARD"`
	Why  string
	Fix  string
}

// Obstacles looks for foreign chains that drop forwarded packets unless a rule of
// theirs lets them through. Rules inside of chains are not judged, so that a
// finding means "may": doctor tries by doing.
func (n *Network) Obstacles() ([]Obstacle, error) {
	n.up.Lock()
	defer n.up.Unlock()
	if err := n.open(); err != nil {
		return nil, err
	}
	chains, err := n.nft.Chains()
	if err != nil {
		return nil, err
	}
	var out []Obstacle
	families := map[uint8]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	for _, c := range chains {
		if !c.Drops || c.Hook != unix.NF_INET_FORWARD && c.Hook != unix.NF_INET_LOCAL_IN {
			continue
		}
		what := "forwarded packets"
		if c.Hook == unix.NF_INET_LOCAL_IN {
			what = "packets to this host"
		}
		fam := families[c.Family]
		fix := fmt.Sprintf("nft insert rule %s %s %s iifname \"%s*\" accept; nft insert rule %s %s %s oifname \"%s*\" accept",
			fam, c.Table, c.Name, n.names.prefix, fam, c.Table, c.Name, n.names.prefix)
		if c.Hook == unix.NF_INET_LOCAL_IN {
			fix = fmt.Sprintf("nft insert rule %s %s %s iifname \"%s*\" accept", fam, c.Table, c.Name, n.names.prefix)
		}
		out = append(out, Obstacle{
			What: fmt.Sprintf("nftables table %s %q, chain %q", fam, c.Table, c.Name),
			Why:  "its policy drops " + what + " that none of its rules accepts",
			Fix:  fix,
		})
	}
	return out, nil
}
