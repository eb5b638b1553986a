package admit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Addresses gives Services their cluster IPs and node ports. What is taken
// follows the view's changes; on top is what has been promised to requests that
// the view does not show yet, under one lock. A promise ends when the view shows
// its write, or the request failed.
//
// Addresses come from the server's own range and, when that is full, from the
// ServiceCIDRs that are ready, in the order of their names. An IPAddress that
// belongs to no Service keeps its address from Services.
//
// Bounds: the first sixteenth of each range (at least 16, at most 256 addresses)
// is left for Services that name their address (KEP-3070), and so are the first
// ports of the node port range (KEP-3668). The networks are IPv4.
type Addresses struct {
	Range              netip.Prefix // service network, IPv4
	PortFirst, PortEnd int32        // node ports in [PortFirst, PortEnd)
	View               *view.View
	Rand               env.Rand
	Tokens             Tokens // nil: no other server writes

	mu       sync.Mutex
	at       int64 // the view's changes up to here are in
	loaded   bool
	ips      map[netip.Addr]types.UID // → the Service that has it
	ports    map[int32]types.UID
	promised map[*Request]*given
}

// given is what a request's Service would have. base is the revision of the
// object that it replaces, 0 for a new one.
type given struct {
	uid   types.UID
	base  int64
	ips   []netip.Addr
	ports []int32
	until time.Time
}

// Plugin is the admission step; it must come after those that change a Service.
func (a *Addresses) Plugin() Plugin {
	return Plugin{Name: "ServiceAddresses", Mutate: a.assign, Release: a.release, Once: true}
}

func (a *Addresses) release(r *Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.promised, r)
}

// sync follows the view; called with the lock held.
func (a *Addresses) sync(now time.Time) {
	s := a.View.Snapshot()
	changes, _, _, err := a.View.Changes(kind.Service, a.at)
	shown := map[types.UID]int64{}
	if !a.loaded || err != nil {
		a.ips, a.ports = map[netip.Addr]types.UID{}, map[int32]types.UID{}
		for svc := range view.List[*corev1.Service](s, kind.Service, "") {
			a.enter(svc)
			shown[svc.UID] = revisionOf(svc)
		}
		a.loaded = true
	} else {
		for _, c := range changes {
			if c.Revision > s.Revision() {
				break
			}
			if old, ok := c.Old.(*corev1.Service); ok {
				a.leave(old)
			}
			if svc, ok := c.New.(*corev1.Service); ok {
				a.enter(svc)
			}
			shown[uidOf(c)] = c.Revision
		}
	}
	a.at = s.Revision()
	for r, g := range a.promised {
		if shown[g.uid] > g.base || now.After(g.until) {
			delete(a.promised, r)
		}
	}
}

func addressesOf(svc *corev1.Service) (ips []netip.Addr, ports []int32) {
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			ips = append(ips, addr)
		}
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			ports = append(ports, p.NodePort)
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		ports = append(ports, svc.Spec.HealthCheckNodePort)
	}
	return ips, ports
}

func (a *Addresses) enter(svc *corev1.Service) {
	ips, ports := addressesOf(svc)
	for _, ip := range ips {
		a.ips[ip] = svc.UID
	}
	for _, p := range ports {
		a.ports[p] = svc.UID
	}
}

func (a *Addresses) leave(svc *corev1.Service) {
	ips, ports := addressesOf(svc)
	for _, ip := range ips {
		if a.ips[ip] == svc.UID {
			delete(a.ips, ip)
		}
	}
	for _, p := range ports {
		if a.ports[p] == svc.UID {
			delete(a.ports, p)
		}
	}
}

// taken says whether somebody else than the Service has it.
type taken struct {
	ip   func(netip.Addr) bool
	port func(int32) bool
}

func (a *Addresses) taken(uid types.UID) taken {
	ips, ports := map[netip.Addr]bool{}, map[int32]bool{}
	for _, g := range a.promised {
		if g.uid == uid {
			continue
		}
		for _, ip := range g.ips {
			ips[ip] = true
		}
		for _, p := range g.ports {
			ports[p] = true
		}
	}
	return taken{
		ip: func(ip netip.Addr) bool {
			by, ok := a.ips[ip]
			return ok && by != uid || ips[ip] || !ok && a.kept(ip)
		},
		port: func(p int32) bool {
			by, ok := a.ports[p]
			return ok && by != uid || ports[p]
		},
	}
}

func (a *Addresses) assign(ctx context.Context, r *Request) error {
	svc, ok := r.Object.(*corev1.Service)
	if !ok || r.Sub != "" || r.Operation != Create && r.Operation != Update {
		return nil
	}
	old, _ := r.Old.(*corev1.Service)
	if a.Tokens != nil {
		if err := a.Tokens.Hold(ctx, "services", r); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sync(r.Now)
	if old != nil {
		keep(svc, old)
	}
	busy := a.taken(svc.UID)
	ranges := a.ranges()
	for _, step := range []func() error{
		func() error { return a.families(svc) },
		func() error { return a.assignIP(svc, ranges, busy) },
		func() error { return a.assignPorts(svc, busy) },
	} {
		if err := step(); err != nil {
			return withOthers(err, svc, old)
		}
	}
	if !r.DryRun {
		if a.promised == nil {
			a.promised = map[*Request]*given{}
		}
		g := &given{uid: svc.UID, until: r.Now.Add(promiseLife)}
		if old != nil {
			g.base = revisionOf(old)
		}
		g.ips, g.ports = addressesOf(svc)
		a.promised[r] = g
	}
	return nil
}

func invalidService(_ *corev1.Service, p *field.Path, value any, why string) error {
	return &refusal{field.Invalid(p, value, why)}
}

// refusal is one reason why a Service cannot have what it asks for.
type refusal struct{ why *field.Error }

func (r *refusal) Error() string { return r.why.Error() }

// withOthers puts what validation would say beside a refusal: all problems are
// told at once.
func withOthers(err error, svc, old *corev1.Service) error {
	r, ok := err.(*refusal)
	if !ok {
		return err
	}
	// What was not assigned because of the refusal is no problem of its own.
	whole := svc.DeepCopy()
	if ip := whole.Spec.ClusterIP; ip != "" && len(whole.Spec.ClusterIPs) == 0 {
		whole.Spec.ClusterIPs = []string{ip}
	}
	var all field.ErrorList
	if old != nil {
		all = kind.Service.ValidateUpdate(whole, old)
	} else {
		all = kind.Service.Validate(whole)
	}
	return apierrors.NewInvalid(kind.Service.GVK().GroupKind(), svc.Name, append(all, r.why))
}

// families fills in IPv4 alone; a Service without a selector and without an
// address may have both, since its endpoints are somebody else's.
func (a *Addresses) families(svc *corev1.Service) error {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	free := spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if free {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec.IPFamilyPolicy = &policy
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	if free {
		if len(spec.IPFamilies) == 1 && *spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
			other := corev1.IPv6Protocol
			if spec.IPFamilies[0] == other {
				other = corev1.IPv4Protocol
			}
			spec.IPFamilies = append(spec.IPFamilies, other)
		}
		return nil
	}
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack {
		return invalidService(svc, field.NewPath("spec", "ipFamilyPolicy"), *spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services")
	}
	for i, f := range spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			return invalidService(svc, field.NewPath("spec", "ipFamilies").Index(i), f, "not configured on this cluster")
		}
	}
	return nil
}

func (a *Addresses) assignIP(svc *corev1.Service, ranges []netip.Prefix, busy taken) error {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	switch spec.ClusterIP {
	case corev1.ClusterIPNone:
		if len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{corev1.ClusterIPNone}
		}
	case "":
		var addr netip.Addr
		found := false
		for _, r := range ranges {
			if addr, found = a.freeIP(r, busy); found {
				break
			}
		}
		if !found {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: range is full"))
		}
		spec.ClusterIP, spec.ClusterIPs = addr.String(), []string{addr.String()}
	default:
		addr, err := netip.ParseAddr(spec.ClusterIP)
		if err != nil {
			break // validation says so
		}
		path := field.NewPath("spec", "clusterIPs").Index(0)
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool {
			first, last := ends(r)
			return !addr.Less(first) && !last.Less(addr)
		}) {
			return invalidService(svc, path, spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: the provided IP (%s) is not in the valid range. The range of valid IPs is %s", addr, addr, a.Range.Masked()))
		}
		if busy.ip(addr) {
			return invalidService(svc, path, spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", addr))
		}
		if len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
	}
	return nil
}

// ends are the first and the last address that a Service may have: the network's
// own and its broadcast address are nobody's.
func ends(r netip.Prefix) (first, last netip.Addr) {
	base := r.Masked().Addr()
	return plus(base, 1), plus(base, size(r)-2)
}

func size(r netip.Prefix) uint64 {
	return uint64(1) << min(r.Addr().BitLen()-r.Bits(), 31)
}

// ranges to give addresses from: the server's own, then those that people added.
func (a *Addresses) ranges() []netip.Prefix {
	out := []netip.Prefix{a.Range.Masked()}
	for c := range view.List[*networkingv1.ServiceCIDR](a.View.Snapshot(), kind.ServiceCIDR, "") {
		ready := c.DeletionTimestamp == nil && slices.ContainsFunc(c.Status.Conditions, func(x metav1.Condition) bool {
			return x.Type == networkingv1.ServiceCIDRConditionReady && x.Status == metav1.ConditionTrue
		})
		for _, cidr := range c.Spec.CIDRs {
			// The smallest one has an address between the network's own and the broadcast.
			if p, err := netip.ParsePrefix(cidr); err == nil && ready && p.Addr().Is4() && p.Bits() <= 30 && !slices.Contains(out, p.Masked()) {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// kept says whether somebody who is no Service has the address. What is written of
// Services follows them, and does not count.
func (a *Addresses) kept(ip netip.Addr) bool {
	o := view.Get[*networkingv1.IPAddress](a.View.Snapshot(), kind.IPAddress, "", ip.String())
	if o == nil || o.Spec.ParentRef == nil {
		return false
	}
	return o.Spec.ParentRef.Group != "" || o.Spec.ParentRef.Resource != "services"
}

func (a *Addresses) assignPorts(svc *corev1.Service, busy taken) error {
	spec := &svc.Spec
	wanted := spec.Type == corev1.ServiceTypeNodePort ||
		spec.Type == corev1.ServiceTypeLoadBalancer && (spec.AllocateLoadBalancerNodePorts == nil || *spec.AllocateLoadBalancerNodePorts)
	own := map[int32]bool{}
	name := func(path *field.Path, n int32) error {
		if n < a.PortFirst || n >= a.PortEnd {
			return invalidService(svc, path, n, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", a.PortFirst, a.PortEnd-1))
		}
		if busy.port(n) {
			return invalidService(svc, path, n, "provided port is already allocated")
		}
		own[n] = true
		return nil
	}
	// Named ones first: a free one must not be one that is named further down.
	byNumber := map[int32]int32{} // service port → node port, over all protocols
	for i := range spec.Ports {
		if p := &spec.Ports[i]; p.NodePort != 0 {
			if err := name(field.NewPath("spec", "ports").Index(i).Child("nodePort"), p.NodePort); err != nil {
				return err
			}
			byNumber[p.Port] = p.NodePort
		}
	}
	check := spec.Type == corev1.ServiceTypeLoadBalancer && spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if check && spec.HealthCheckNodePort != 0 {
		if err := name(field.NewPath("spec", "healthCheckNodePort"), spec.HealthCheckNodePort); err != nil {
			return err
		}
	}
	full := func(what string) error {
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate a %s: range is full", what))
	}
	free := func() (int32, bool) {
		n, ok := a.freePort(func(p int32) bool { return busy.port(p) || own[p] })
		own[n] = true
		return n, ok
	}
	used := map[string]bool{}
	for i := range spec.Ports {
		if p := &spec.Ports[i]; p.NodePort != 0 {
			used[fmt.Sprint(p.Protocol, p.NodePort)] = true
		}
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.NodePort != 0 || !wanted {
			continue
		}
		// The same port over two protocols gets one node port.
		n, ok := byNumber[p.Port]
		if !ok || used[fmt.Sprint(p.Protocol, n)] {
			if n, ok = free(); !ok {
				return full("nodePort")
			}
		}
		p.NodePort = n
		byNumber[p.Port] = n
		used[fmt.Sprint(p.Protocol, n)] = true
	}
	if check && spec.HealthCheckNodePort == 0 {
		n, ok := free()
		if !ok {
			return full("healthCheckNodePort")
		}
		spec.HealthCheckNodePort = n
	}
	return nil
}

func revisionOf(o kind.Object) int64 {
	n, err := strconv.ParseInt(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keep carries over what an update left out: clients that apply their manifest
// again do not know what was allocated. The row knows how; it runs again later,
// which changes nothing.
func keep(svc, old *corev1.Service) {
	kind.Service.PrepareUpdate(svc, old)
	if n, o := &svc.Spec, &old.Spec; n.Type != corev1.ServiceTypeExternalName && o.Type != corev1.ServiceTypeExternalName {
		if len(n.IPFamilies) == 0 {
			n.IPFamilies = o.IPFamilies
		}
		if n.IPFamilyPolicy == nil {
			n.IPFamilyPolicy = o.IPFamilyPolicy
		}
	}
}

func (a *Addresses) freeIP(of netip.Prefix, busy taken) (netip.Addr, bool) {
	size := size(of)
	static := min(max(size/16, 16), 256)
	if size <= 2*static {
		static = 0
	}
	base := of.Masked().Addr()
	for _, r := range [][2]uint64{{static + 1, size - 1}, {1, static + 1}} {
		from, to := r[0], r[1]
		if to <= from {
			continue
		}
		n := to - from
		start := a.Rand.Uint64() % n
		for i := range n {
			if addr := plus(base, from+(start+i)%n); !busy.ip(addr) {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

func plus(base netip.Addr, n uint64) netip.Addr {
	b := base.As4()
	v := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	v += n
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (a *Addresses) freePort(busy func(int32) bool) (int32, bool) {
	size := a.PortEnd - a.PortFirst
	static := min(max(size/32, 16), 128)
	if size <= 2*static {
		static = 0
	}
	for _, r := range [][2]int32{{static, size}, {0, static}} {
		n := r[1] - r[0]
		if n <= 0 {
			continue
		}
		start := int32(a.Rand.Uint64() % uint64(n))
		for i := range n {
			if p := a.PortFirst + r[0] + (start+i)%n; !busy(p) {
				return p, true
			}
		}
	}
	return 0, false
}
