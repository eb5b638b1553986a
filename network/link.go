package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"proa.dev/network/nft"
)

// routeProtocol marks the routes made here (linux/rtnetlink.h leaves numbers from
// 192 on to whoever wants them).
const routeProtocol = 0xd0

// The pods' next hop. It stands on no link: the pod has a permanent neighbour
// entry for it.
var (
	nextHop4 = net.IPv4(169, 254, 1, 1).To4()
	nextHop6 = net.ParseIP("fe80::1")
)

// Settings of a link, as linux/ip.h numbers them (IPV4_DEVCONF_…).
const (
	devconfForwarding    = 1
	devconfSendRedirects = 6
	devconfRPFilter      = 8
	devconfRouteLocalnet = 26
)

// open makes the sockets to the kernel. The caller holds n.up.
func (n *Network) open() (err error) {
	if n.nl != nil {
		return nil
	}
	defer func() {
		if err != nil {
			n.closeSockets()
		}
	}()
	return inNetns(n.hostNS, func() error {
		var err error
		if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open route socket: %w", err)
		}
		if n.raw, err = openRawLink(); err != nil {
			return err
		}
		n.nft, err = nft.Open()
		return err
	})
}

// Up programs the host's part: address, service routes, rules (those of the
// recorded sandboxes too, at once), forwarding. It does so once; Setup and
// Teardown call it.
func (n *Network) Up(ctx context.Context) error {
	n.up.Lock()
	defer n.up.Unlock()
	if n.isUp {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.cleaned {
		return fmt.Errorf("bring network of cluster %q up: it was cleaned; make a new one", n.cfg.ClusterName)
	}
	if err := n.open(); err != nil {
		return fmt.Errorf("bring network of cluster %q up: %w", n.cfg.ClusterName, err)
	}
	n.mtu = n.cfg.MTU
	if n.mtu == 0 {
		n.mtu = n.defaultMTU()
	}
	for _, step := range []func() error{n.checkOverlap, n.addHostAddresses, n.forwardHostLinks, n.fillTable} {
		if err := step(); err != nil {
			return fmt.Errorf("bring network of cluster %q up: %w", n.cfg.ClusterName, err)
		}
	}
	n.isUp = true
	return nil
}

// MTU of pod links; known once the network is up.
func (n *Network) MTU() int {
	n.up.Lock()
	defer n.up.Unlock()
	return n.mtu
}

func (n *Network) defaultMTU() int {
	mtu := 1500
	routes, err := steady(func() ([]netlink.Route, error) {
		return n.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if l, err := n.nl.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU > 0 {
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return mtu
}

// steady repeats a list that something changed under, which the kernel reports
// when the machine is busy with links of others; a few times, then it takes what
// there is.
func steady[T any](list func() ([]T, error)) ([]T, error) {
	for n := 0; ; n++ {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
		if n == 20 {
			return out, nil
		}
	}
}

// checkOverlap refuses ranges that the host already uses for something else.
func (n *Network) checkOverlap() error {
	routes, err := steady(func() ([]netlink.Route, error) {
		return n.nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	links, err := n.ownLinks()
	if err != nil {
		return err
	}
	isOwn := map[int]bool{}
	for _, l := range links {
		isOwn[l.Attrs().Index] = true
	}
	ranges := append(slices.Clone(n.cfg.PodCIDRs), n.cfg.ServiceCIDRs...)
	for _, r := range routes {
		dst, ok := prefixOf(r.Dst)
		if !ok || isOwn[r.LinkIndex] || slices.Contains(n.Gateways(), dst.Addr()) || int(r.Protocol) == routeProtocol && slices.Contains(ranges, dst) {
			continue
		}
		for _, own := range ranges {
			// A wider route (a VPN's 10.0.0.0/8) is no harm: ours are closer.
			if own.Contains(dst.Addr()) && dst.Bits() >= own.Bits() {
				name := "?"
				if l, err := n.nl.LinkByIndex(r.LinkIndex); err == nil {
					name = l.Attrs().Name
				}
				return fmt.Errorf("range %s: this host already routes %s to link %q; choose another range for this cluster, or remove that route", own, dst, name)
			}
		}
	}
	return nil
}

func prefixOf(d *net.IPNet) (netip.Prefix, bool) {
	if d == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(d.IP)
	bits, _ := d.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), bits), true
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hostNet(a netip.Addr) *net.IPNet { return netOf(netip.PrefixFrom(a, a.BitLen())) }

// addHostAddresses puts the host's address among the pods on lo and routes the
// service ranges there.
func (n *Network) addHostAddresses() error {
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := n.nl.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set link lo up: %w", err)
		}
	}
	present, err := steady(func() ([]netlink.Addr, error) { return n.nl.AddrList(lo, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of lo: %w", err)
	}
	for _, g := range n.Gateways() {
		for _, a := range present {
			if a.IP.Equal(g.AsSlice()) && a.Label != n.hostAddr(g).Label {
				return fmt.Errorf("address %s is on lo already (%s), so another cluster or program uses this range; choose another pod range", g, a.Label)
			}
		}
		if err := n.nl.AddrAdd(lo, n.hostAddr(g)); ignore(err, unix.EEXIST) != nil {
			return fmt.Errorf("add address %s to lo: %w", g, err)
		}
	}
	for _, s := range n.cfg.ServiceCIDRs {
		if r := n.serviceRoute(lo, s); r != nil {
			if err := n.nl.RouteReplace(r); err != nil {
				return fmt.Errorf("route services %s to lo: %w", s, err)
			}
		}
	}
	for _, p := range n.cfg.PodCIDRs {
		if err := n.nl.RouteReplace(emptyRoute(p)); err != nil {
			return fmt.Errorf("keep packets to pods %s on this host: %w", p, err)
		}
	}
	return nil
}

// emptyRoute refuses packets to an address of the range that no pod has: without
// it they would leave by the default route, and whoever is there might answer.
func emptyRoute(p netip.Prefix) *netlink.Route {
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	return &netlink.Route{Family: family, Dst: netOf(p.Masked()), Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Priority: 4096}
}

func (n *Network) hostAddr(g netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: hostNet(g), Scope: unix.RT_SCOPE_UNIVERSE}
	if g.Is4() {
		a.Label = "lo:" + n.names.prefix
	} else {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// serviceRoute is nil when the node has no pod range of that family.
func (n *Network) serviceRoute(lo netlink.Link, s netip.Prefix) *netlink.Route {
	for _, g := range n.Gateways() {
		if g.Is4() == s.Addr().Is4() {
			header := 40 // IPv4 and TCP
			if !g.Is4() {
				header = 60
			}
			return &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: netOf(s.Masked()), Src: g.AsSlice(),
				Protocol: routeProtocol, MTU: n.mtu, AdvMSS: n.mtu - header}
		}
	}
	return nil
}

func (n *Network) removeHostAddresses() error {
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	var errs []error
	for _, s := range n.cfg.ServiceCIDRs {
		if r := n.serviceRoute(lo, s); r != nil {
			errs = append(errs, ignore(n.nl.RouteDel(r), unix.ESRCH, unix.ENOENT, unix.EINVAL))
		}
	}
	for _, p := range n.cfg.PodCIDRs {
		errs = append(errs, ignore(n.nl.RouteDel(emptyRoute(p)), unix.ESRCH, unix.ENOENT, unix.EINVAL))
	}
	for _, g := range n.Gateways() {
		errs = append(errs, ignore(n.nl.AddrDel(lo, n.hostAddr(g)), unix.EADDRNOTAVAIL, unix.ENOENT))
	}
	return errors.Join(errs...)
}

// connect makes what is missing of a sandbox's link, on both sides.
func (n *Network) connect(rec *record, netnsPath string) error {
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return fmt.Errorf("open network namespace %q: %w", netnsPath, err)
	}
	defer ns.Close()

	host, err := n.nl.LinkByName(rec.Link)
	if err == nil && host.Attrs().Group == n.names.dead {
		// Torn down a moment ago and set up again.
		err = n.nl.LinkDel(host)
		if ignore(err, unix.ENODEV) != nil {
			return fmt.Errorf("remove link %s: %w", rec.Link, err)
		}
		err = netlink.LinkNotFoundError{}
	}
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil:
	case errors.As(err, &missing):
		hostMAC, podMAC := macs(rec.Link)
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: rec.Link, MTU: n.mtu, HardwareAddr: hostMAC, TxQLen: -1},
			PeerName:         "eth0",
			PeerHardwareAddr: podMAC,
			PeerNamespace:    netlink.NsFd(ns),
			PeerMTU:          uint32(n.mtu),
		}
		if err := n.nl.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s to %q: %w", rec.Link, netnsPath, err)
		}
		if host, err = n.nl.LinkByName(rec.Link); err != nil {
			return fmt.Errorf("find link %s: %w", rec.Link, err)
		}
		if err := n.nl.LinkSetAlias(host, n.names.alias(rec.Sandbox)); err != nil {
			return fmt.Errorf("name link %s: %w", rec.Link, err)
		}
	default:
		return fmt.Errorf("find link %s: %w", rec.Link, err)
	}
	n.mu.Lock()
	delete(n.doomed, rec.Link)
	n.mu.Unlock()

	if err := n.connectPod(ns, rec); err != nil {
		return err
	}
	return n.connectHost(host, rec)
}

// macs are the two ends' hardware addresses: locally administered, from the name.
func macs(link string) (host, pod net.HardwareAddr) {
	sum := sha(link)
	host = net.HardwareAddr{0x0a, sum[0], sum[1], sum[2], sum[3], sum[4]}
	pod = net.HardwareAddr{0x0e, sum[0], sum[1], sum[2], sum[3], sum[4]}
	return host, pod
}

func (n *Network) connectPod(ns netns.NsHandle, rec *record) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open route socket of the pod: %w", err)
	}
	defer h.Close()
	if lo, err := h.LinkByName("lo"); err != nil {
		return fmt.Errorf("find link lo of the pod: %w", err)
	} else if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set link lo of the pod up: %w", err)
		}
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find link eth0 of the pod: %w", err)
	}
	hostMAC, _ := macs(rec.Link)
	for _, ip := range rec.IPs {
		a := &netlink.Addr{IPNet: hostNet(ip), Scope: unix.RT_SCOPE_UNIVERSE}
		if ip.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(eth, a); ignore(err, unix.EEXIST) != nil {
			return fmt.Errorf("add address %s to eth0 of the pod: %w", ip, err)
		}
	}
	if err := h.LinkSetUp(eth); err != nil {
		return fmt.Errorf("set link eth0 of the pod up: %w", err)
	}
	for _, ip := range rec.IPs {
		hop, any := nextHop4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			hop, any = nextHop6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := h.NeighSet(&netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: hop, HardwareAddr: hostMAC}); err != nil {
			return fmt.Errorf("add neighbour %s to the pod: %w", hop, err)
		}
		r := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: netOf(any), Gw: hop, Src: ip.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("add default route to the pod: %w", err)
		}
	}
	return nil
}

func (n *Network) connectHost(host netlink.Link, rec *record) error {
	_, podMAC := macs(rec.Link)
	index := host.Attrs().Index
	if err := n.raw.configureV4(index, map[uint16]uint32{
		devconfForwarding:    1, // from the pod to anywhere
		devconfSendRedirects: 0, // a pod that reaches itself has no shorter way
		devconfRPFilter:      1, // only from the pod's own address
		devconfRouteLocalnet: 1, // answers to what the host sent from 127.0.0.1
	}); err != nil {
		return fmt.Errorf("configure link %s: %w", rec.Link, err)
	}
	if err := n.nl.LinkSetUp(host); err != nil {
		return fmt.Errorf("set link %s up: %w", rec.Link, err)
	}
	for _, ip := range rec.IPs {
		if err := n.nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: podMAC}); err != nil {
			return fmt.Errorf("add neighbour %s: %w", ip, err)
		}
		if err := n.nl.RouteReplace(n.podRoute(index, ip)); err != nil {
			return fmt.Errorf("route %s to link %s: %w", ip, rec.Link, err)
		}
	}
	return nil
}

func (n *Network) podRoute(index int, ip netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: hostNet(ip), Protocol: routeProtocol}
	if ip.Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	for _, g := range n.Gateways() {
		if g.Is4() == ip.Is4() {
			r.Src = g.AsSlice()
		}
	}
	return r
}

// disconnect takes a sandbox's addresses off the host and marks its link.
func (n *Network) disconnect(rec *record) error {
	host, err := n.nl.LinkByName(rec.Link)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil // the namespace went first; routes went with it
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", rec.Link, err)
	}
	var errs []error
	for _, ip := range rec.IPs {
		err := n.nl.RouteDel(n.podRoute(host.Attrs().Index, ip))
		if ignore(err, unix.ESRCH, unix.ENOENT, unix.ENODEV) != nil {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", ip, err))
		}
	}
	return errors.Join(append(errs, n.doom(host))...)
}

// doom marks a link for removal.
func (n *Network) doom(link netlink.Link) error {
	if err := n.nl.LinkSetGroup(link, int(n.names.dead)); err != nil {
		return ignore(err, unix.ENODEV)
	}
	n.mu.Lock()
	n.doomed[link.Attrs().Name] = true
	n.mu.Unlock()
	select {
	case n.doomWake <- struct{}{}:
	default:
	}
	return nil
}

// ownLinks lists the pod links of this cluster, by name and alias: a link that
// lost its process between two requests has no alias yet.
func (n *Network) ownLinks() ([]netlink.Link, error) {
	all, err := steady(n.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []netlink.Link
	for _, l := range all {
		a := l.Attrs()
		if strings.HasPrefix(a.Name, n.names.prefix) && (a.Alias == "" || strings.HasPrefix(a.Alias, n.names.aliasPrefix())) {
			out = append(out, l)
		}
	}
	return out, nil
}

// rawLink sends link requests that the netlink library has no call for.
type rawLink struct{ sockets map[int]*nl.SocketHandle }

// openRawLink connects to the network namespace of the calling thread.
func openRawLink() (*rawLink, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route socket: %w", err)
	}
	return &rawLink{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (r *rawLink) close() {
	for _, s := range r.sockets {
		s.Close()
	}
}

func (r *rawLink) request(typ, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, flags|unix.NLM_F_ACK)
	req.Sockets = r.sockets
	return req
}

// configureV4 writes settings of net.ipv4.conf.LINK without a trip through /proc.
func (r *rawLink) configureV4(index int, conf map[uint16]uint32) error {
	req := r.request(unix.RTM_SETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	inet := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil)
	list := inet.AddRtAttr(1|unix.NLA_F_NESTED, nil) // IFLA_INET_CONF
	for key, value := range conf {
		list.AddRtAttr(int(key), nl.Uint32Attr(value))
	}
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// deleteGroup removes all links of a group at the cost of one.
func (r *rawLink) deleteGroup(group uint32) error {
	req := r.request(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
