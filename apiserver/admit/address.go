package admit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/view"
)

// Addresses gives Services their cluster IPs and node ports. What is taken is
// derived from the view, plus what has been promised to requests that are not
// yet visible there; a promise ends when its Service is visible or the request
// failed.
//
// Bounds: the first sixteenth of the range (at least 16, at most 256 addresses)
// is left for Services that name their address (KEP-3070), and so are the first
// ports of the node port range (KEP-3668).
type Addresses struct {
	Range              netip.Prefix // service network, IPv4
	PortFirst, PortEnd int32        // node ports in [PortFirst, PortEnd)
	View               *view.View
	Rand               env.Rand

	mu       sync.Mutex
	at       int64
	ips      map[netip.Addr]string // → namespace/name
	ports    map[int32]string
	promised map[string]*corev1.Service
}

// Plugin is the admission step; it must come after those that change a Service.
func (a *Addresses) Plugin() Plugin {
	return Plugin{Name: "ServiceAddresses", Mutate: a.assign, Release: a.release}
}

func (a *Addresses) release(r *Request) {
	if svc, ok := r.Object.(*corev1.Service); ok && r.Sub == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.promised, svc.Namespace+"/"+svc.Name)
		a.at = -1
	}
}

// sync follows the view; called with the lock held.
func (a *Addresses) sync() {
	changes, progress, _, err := a.View.Changes(kind.Service, a.at)
	if a.ips != nil && a.at >= 0 && err == nil && len(changes) == 0 {
		a.at = progress
		return
	}
	s := a.View.Snapshot()
	a.ips, a.ports = map[netip.Addr]string{}, map[int32]string{}
	for svc := range view.List[*corev1.Service](s, kind.Service, "") {
		a.take(svc)
		if p := a.promised[svc.Namespace+"/"+svc.Name]; p != nil && p.Spec.ClusterIP == svc.Spec.ClusterIP && slices.Equal(p.Spec.Ports, svc.Spec.Ports) {
			delete(a.promised, svc.Namespace+"/"+svc.Name)
		}
	}
	for _, svc := range a.promised {
		a.take(svc)
	}
	a.at = s.Revision()
}

func (a *Addresses) take(svc *corev1.Service) {
	id := svc.Namespace + "/" + svc.Name
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			a.ips[addr] = id
		}
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			a.ports[p.NodePort] = id
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		a.ports[svc.Spec.HealthCheckNodePort] = id
	}
}

func (a *Addresses) assign(_ context.Context, r *Request) error {
	svc, ok := r.Object.(*corev1.Service)
	if !ok || r.Sub != "" || r.Operation != Create && r.Operation != Update {
		return nil
	}
	old, _ := r.Old.(*corev1.Service)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sync()
	id := svc.Namespace + "/" + svc.Name
	wrong := kind.Service.Validate
	if old != nil {
		keep(svc, old)
		wrong = func(o kind.Object) field.ErrorList { return kind.Service.ValidateUpdate(o, old) }
	}
	if len(wrong(svc)) > 0 {
		return nil // nothing is given to a Service that validation refuses, with all its problems at once
	}
	spec := &svc.Spec
	invalid := func(p *field.Path, value any, why string) error {
		return apierrors.NewInvalid(kind.Service.GVK().GroupKind(), svc.Name, field.ErrorList{field.Invalid(p, value, why)})
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		spec.ClusterIP, spec.ClusterIPs = "", nil
		return nil
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	if spec.IPFamilyPolicy == nil {
		single := corev1.IPFamilyPolicySingleStack
		spec.IPFamilyPolicy = &single
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	ipPath := field.NewPath("spec", "clusterIPs").Index(0)
	switch spec.ClusterIP {
	case corev1.ClusterIPNone:
		spec.ClusterIPs = []string{corev1.ClusterIPNone}
	case "":
		addr, ok := a.freeIP()
		if !ok {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: range is full"))
		}
		spec.ClusterIP, spec.ClusterIPs = addr.String(), []string{addr.String()}
	default:
		addr, err := netip.ParseAddr(spec.ClusterIP)
		if err != nil {
			break // validation says so
		}
		if !a.Range.Contains(addr) {
			return invalid(ipPath, spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: the provided IP (%s) is not in the valid range. The range of valid IPs is %s", addr, addr, a.Range))
		}
		if by := a.ips[addr]; by != "" && by != id {
			return invalid(ipPath, spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", addr))
		}
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	wantPorts := spec.Type == corev1.ServiceTypeNodePort ||
		spec.Type == corev1.ServiceTypeLoadBalancer && (spec.AllocateLoadBalancerNodePorts == nil || *spec.AllocateLoadBalancerNodePorts)
	given := map[int32]map[corev1.Protocol]int32{}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		path := field.NewPath("spec", "ports").Index(i).Child("nodePort")
		switch {
		case p.NodePort != 0:
			if p.NodePort < a.PortFirst || p.NodePort >= a.PortEnd {
				return invalid(path, p.NodePort, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", a.PortFirst, a.PortEnd-1))
			}
			if by := a.ports[p.NodePort]; by != "" && by != id {
				return invalid(path, p.NodePort, "provided port is already allocated")
			}
		case wantPorts:
			// The same port number over two protocols gets one node port.
			for proto, n := range given[p.Port] {
				if proto != p.Protocol {
					p.NodePort = n
				}
			}
			if p.NodePort == 0 {
				n, ok := a.freePort()
				if !ok {
					return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: range is full"))
				}
				p.NodePort = n
			}
		}
		if p.NodePort != 0 {
			a.ports[p.NodePort] = id
			if given[p.Port] == nil {
				given[p.Port] = map[corev1.Protocol]int32{}
			}
			given[p.Port][p.Protocol] = p.NodePort
		}
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer && spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && spec.HealthCheckNodePort == 0 {
		if n, ok := a.freePort(); ok {
			spec.HealthCheckNodePort = n
		}
	}
	if !r.DryRun {
		if a.promised == nil {
			a.promised = map[string]*corev1.Service{}
		}
		a.promised[id] = svc.DeepCopy()
		a.take(svc)
	} else {
		a.at = -1
	}
	return nil
}

// keep carries over what an update left out: clients that apply their manifest
// again do not know what was allocated.
func keep(svc, old *corev1.Service) {
	n, o := &svc.Spec, &old.Spec
	if n.Type != corev1.ServiceTypeExternalName && o.Type != corev1.ServiceTypeExternalName {
		if n.ClusterIP == "" && len(n.ClusterIPs) == 0 {
			n.ClusterIP, n.ClusterIPs = o.ClusterIP, o.ClusterIPs
		}
		if len(n.IPFamilies) == 0 {
			n.IPFamilies = o.IPFamilies
		}
		if n.IPFamilyPolicy == nil {
			n.IPFamilyPolicy = o.IPFamilyPolicy
		}
	}
	hasPorts := func(t corev1.ServiceType) bool {
		return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer
	}
	if hasPorts(n.Type) && hasPorts(o.Type) {
		for i := range n.Ports {
			for j := range o.Ports {
				if n.Ports[i].NodePort == 0 && n.Ports[i].Port == o.Ports[j].Port && n.Ports[i].Protocol == o.Ports[j].Protocol {
					n.Ports[i].NodePort = o.Ports[j].NodePort
				}
			}
		}
	} else if !hasPorts(n.Type) && hasPorts(o.Type) {
		for i := range n.Ports {
			for j := range o.Ports {
				if n.Ports[i].NodePort == o.Ports[j].NodePort {
					n.Ports[i].NodePort = 0
				}
			}
		}
	}
	if n.HealthCheckNodePort == 0 && n.Type == corev1.ServiceTypeLoadBalancer && n.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		n.HealthCheckNodePort = o.HealthCheckNodePort
	}
}

func (a *Addresses) freeIP() (netip.Addr, bool) {
	size := uint64(1) << min(a.Range.Addr().BitLen()-a.Range.Bits(), 31)
	static := min(max(size/16, 16), 256)
	if size <= 2*static {
		static = 0
	}
	base := a.Range.Masked().Addr()
	try := func(from, to uint64) (netip.Addr, bool) {
		if to <= from {
			return netip.Addr{}, false
		}
		n := to - from
		start := a.Rand.Uint64() % n
		for i := range n {
			addr := plus(base, from+(start+i)%n)
			if a.ips[addr] == "" {
				return addr, true
			}
		}
		return netip.Addr{}, false
	}
	if addr, ok := try(static+1, size-1); ok {
		return addr, true
	}
	return try(1, static+1)
}

func plus(base netip.Addr, n uint64) netip.Addr {
	b := base.As4()
	v := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	v += n
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (a *Addresses) freePort() (int32, bool) {
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
			p := a.PortFirst + r[0] + (start+i)%n
			if a.ports[p] == "" {
				return p, true
			}
		}
	}
	return 0, false
}
