// Package endpointslice keeps the EndpointSlices, and the classic Endpoints, of
// Services with selectors (Kubernetes docs, "EndpointSlices"; KEP-752), and mirrors
// into slices the Endpoints that users write for Services without one.
//
// One plan reads the pods that the selector matches (by index, not by looking at
// every pod), resolves the ports for each, and changes as few slices as it can:
// endpoints that are right stay in the slice and at the place where they are;
// gaps are filled first; a slice holds at most 100. A pod that is being deleted
// stays as serving and terminating until it is gone, so that the data plane can
// drain it. A service without any endpoint keeps one empty slice per family.
package endpointslice

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	manager = "endpointslice-controller.k8s.io"
	// perSlice is how many endpoints a slice holds, upstream's default.
	perSlice = 100
)

// Part registers the controller of EndpointSlices; it plans per service.
func Part() control.Part {
	return control.Part{
		Name: "endpointslice-controller", Kind: kind.Service, Plan: Plan,
		Wakes: append(podWakes(),
			control.Wake{Kind: kind.EndpointSlice, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				if o.GetLabels()[discoveryv1.LabelManagedBy] != manager {
					return nil
				}
				return []view.Ref{{Kind: kind.Service, Namespace: o.GetNamespace(), Name: o.GetLabels()[discoveryv1.LabelServiceName]}}
			}},
			control.Wake{Kind: kind.Node, When: zoneChanged, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				var refs []view.Ref
				for p := range s.PodsOn(o.GetName()) {
					refs = append(refs, services(s, p)...)
				}
				return refs
			}}),
		Writes: []control.Write{{Kind: kind.EndpointSlice, Verbs: []string{"create", "update", "delete"}}},
	}
}

// podWakes: a pod wakes the services that select it, when what they would say
// about it changes.
func podWakes() []control.Wake {
	return []control.Wake{{Kind: kind.Pod, When: podMatters, To: services}}
}

func services(s view.Snapshot, pod kind.Object) []view.Ref {
	var refs []view.Ref
	for o := range s.Selecting(kind.Service, pod.GetNamespace(), pod.GetLabels()) {
		if selects(o.(*corev1.Service), pod) {
			refs = append(refs, view.RefOf(kind.Service, o))
		}
	}
	return refs
}

func selects(svc *corev1.Service, pod kind.Object) bool {
	have := pod.GetLabels()
	for k, v := range svc.Spec.Selector {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return len(svc.Spec.Selector) > 0
}

// podMatters: something that endpoints show has changed.
func podMatters(old, new kind.Object) bool {
	a, ok := old.(*corev1.Pod)
	b, ok2 := new.(*corev1.Pod)
	if !ok || !ok2 {
		return true
	}
	return workload.Ready(a) != workload.Ready(b) || workload.Ended(a) != workload.Ended(b) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) || a.Spec.NodeName != b.Spec.NodeName || a.UID != b.UID ||
		!slices.Equal(a.Status.PodIPs, b.Status.PodIPs) || a.Status.PodIP != b.Status.PodIP || !maps.Equal(a.Labels, b.Labels)
}

func zoneChanged(old, new kind.Object) bool {
	zone := func(o kind.Object) string {
		if o == nil {
			return ""
		}
		return o.GetLabels()[corev1.LabelTopologyZone]
	}
	return zone(old) != zone(new)
}

// group is the endpoints of one family that share their ports.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

func groupKey(family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	b.WriteString(string(family))
	for _, p := range ports {
		fmt.Fprintf(&b, "|%s/%s/%d/%s", ptr.Deref(p.Name, ""), ptr.Deref(p.Protocol, ""), ptr.Deref(p.Port, -1), ptr.Deref(p.AppProtocol, ""))
	}
	return b.String()
}

// Plan brings the slices of one service up to date.
func Plan(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	svc := view.Get[*corev1.Service](s, kind.Service, ref.Namespace, ref.Name)
	if svc == nil || svc.DeletionTimestamp != nil || len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, time.Time{}
	}
	families := svc.Spec.IPFamilies
	if len(families) == 0 {
		families = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	groups := map[string]*group{}
	var order []string
	for pod := range s.PodsWith(svc.Namespace, svc.Spec.Selector) {
		if workload.Ended(pod) {
			continue
		}
		ports := portsOf(svc, pod)
		for _, f := range families {
			address := addressOf(pod, f)
			if address == "" {
				continue
			}
			key := groupKey(discoveryv1.AddressType(f), ports)
			g := groups[key]
			if g == nil {
				g = &group{family: discoveryv1.AddressType(f), ports: ports}
				groups[key], order = g, append(order, key)
			}
			g.endpoints = append(g.endpoints, endpoint(s, svc, pod, address))
		}
	}
	slices.Sort(order)
	p := packer{s: s, svc: svc, labels: labelsOf(svc)}
	p.read()
	for _, key := range order {
		p.pack(key, groups[key])
	}
	return p.finish(families), time.Time{}
}

func addressOf(pod *corev1.Pod, f corev1.IPFamily) string {
	for _, ip := range pod.Status.PodIPs {
		if strings.Contains(ip.IP, ":") == (f == corev1.IPv6Protocol) && ip.IP != "" {
			return ip.IP
		}
	}
	if ip := pod.Status.PodIP; len(pod.Status.PodIPs) == 0 && ip != "" && strings.Contains(ip, ":") == (f == corev1.IPv6Protocol) {
		return ip
	}
	return ""
}

// portsOf resolves the service's target ports for one pod; a name that the pod
// does not have is left out.
func portsOf(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		n, ok := targetPort(p, pod)
		if !ok {
			continue
		}
		out = append(out, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(n), AppProtocol: p.AppProtocol})
	}
	return out
}

func targetPort(p *corev1.ServicePort, pod *corev1.Pod) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return p.Port, true
		}
		return p.TargetPort.IntVal, true
	}
	in := func(c *corev1.Container) (int32, bool) {
		for _, cp := range c.Ports {
			if cp.Name == p.TargetPort.StrVal && cp.Protocol == p.Protocol {
				return cp.ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range pod.Spec.Containers {
		if n, ok := in(&pod.Spec.Containers[i]); ok {
			return n, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if n, ok := in(c); ok {
				return n, true
			}
		}
	}
	return 0, false
}

func endpoint(s view.Snapshot, svc *corev1.Service, pod *corev1.Pod, address string) discoveryv1.Endpoint {
	serving, terminating := workload.Ready(pod), pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if hasHostname(svc, pod) {
		e.Hostname = &pod.Spec.Hostname
	}
	if pod.Spec.NodeName != "" {
		e.NodeName = &pod.Spec.NodeName
		if n := view.Get[*corev1.Node](s, kind.Node, "", pod.Spec.NodeName); n != nil && n.Labels[corev1.LabelTopologyZone] != "" {
			e.Zone = ptr.To(n.Labels[corev1.LabelTopologyZone])
		}
	}
	if d := svc.Spec.TrafficDistribution; d != nil && ready {
		hints := discoveryv1.EndpointHints{}
		if e.Zone != nil {
			hints.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
		}
		if *d == corev1.ServiceTrafficDistributionPreferSameNode && e.NodeName != nil {
			hints.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
		}
		if hints.ForZones != nil || hints.ForNodes != nil {
			e.Hints = &hints
		}
	}
	return e
}

func hasHostname(svc *corev1.Service, pod *corev1.Pod) bool {
	return pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name && svc.Namespace == pod.Namespace
}

// labelsOf a service's slices: its own and the reserved ones.
func labelsOf(svc *corev1.Service) map[string]string {
	out := map[string]string{}
	for k, v := range svc.Labels {
		if k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy && k != corev1.IsHeadlessService {
			out[k] = v
		}
	}
	out[discoveryv1.LabelServiceName], out[discoveryv1.LabelManagedBy] = svc.Name, manager
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		out[corev1.IsHeadlessService] = ""
	}
	return out
}

// packer spreads groups over slices with few writes.
type packer struct {
	s      view.Snapshot
	svc    *corev1.Service
	labels map[string]string
	slices []*slice
}

// slice is one EndpointSlice as it is and as it is to be.
type slice struct {
	have      *discoveryv1.EndpointSlice // nil: to be created
	key       string
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
	changed   bool
	used      bool // some group owns it
}

func (p *packer) read() {
	for es := range view.Owned[*discoveryv1.EndpointSlice](p.s, string(p.svc.UID), kind.EndpointSlice) {
		if es.Labels[discoveryv1.LabelManagedBy] != manager || es.DeletionTimestamp != nil {
			continue
		}
		p.slices = append(p.slices, &slice{have: es, key: groupKey(es.AddressType, es.Ports), family: es.AddressType, ports: es.Ports,
			changed: !maps.Equal(es.Labels, p.labels)})
	}
}

func target(e *discoveryv1.Endpoint) string {
	if e.TargetRef == nil {
		return ""
	}
	return string(e.TargetRef.UID) + "/" + e.Addresses[0]
}

func (p *packer) pack(key string, g *group) {
	left := make(map[string]*discoveryv1.Endpoint, len(g.endpoints))
	for i := range g.endpoints {
		left[target(&g.endpoints[i])] = &g.endpoints[i]
	}
	var mine []*slice
	for _, sl := range p.slices {
		if sl.have == nil || sl.key != key {
			continue
		}
		mine = append(mine, sl)
		sl.used = true
		for i := range sl.have.Endpoints {
			old := &sl.have.Endpoints[i]
			want := left[target(old)]
			if want == nil || len(sl.endpoints) == perSlice {
				sl.changed = true
				continue
			}
			delete(left, target(old))
			sl.endpoints = append(sl.endpoints, *want)
			if !apiequality.Semantic.DeepEqual(old, want) {
				sl.changed = true
			}
		}
	}
	var rest []discoveryv1.Endpoint
	for i := range g.endpoints {
		if left[target(&g.endpoints[i])] == &g.endpoints[i] {
			rest = append(rest, g.endpoints[i])
		}
	}
	fill := func(sl *slice) {
		n := min(perSlice-len(sl.endpoints), len(rest))
		if n > 0 {
			sl.endpoints, rest, sl.changed = append(sl.endpoints, rest[:n]...), rest[n:], true
		}
	}
	// Slices that are written anyway, then new full ones, then the fullest of the
	// others that can take the rest.
	for _, sl := range mine {
		if sl.changed {
			fill(sl)
		}
	}
	for len(rest) > 0 {
		var best *slice
		if len(rest) < perSlice {
			for _, sl := range mine {
				if room := perSlice - len(sl.endpoints); room >= len(rest) && (best == nil || len(sl.endpoints) > len(best.endpoints)) {
					best = sl
				}
			}
		}
		if best == nil {
			best = p.reuse(g.family)
			best.key, best.ports, best.used, best.changed, best.endpoints = key, g.ports, true, true, nil
			mine = append(mine, best)
		}
		fill(best)
	}
}

// reuse takes a slice that no group wants, or a new one.
func (p *packer) reuse(family discoveryv1.AddressType) *slice {
	for _, sl := range p.slices {
		if !sl.used && sl.family == family && (len(sl.have.Endpoints) == 0 || !p.wanted(sl)) {
			return sl
		}
	}
	sl := &slice{family: family}
	p.slices = append(p.slices, sl)
	return sl
}

// wanted: endpoints of the slice may belong to a group that comes later.
func (p *packer) wanted(sl *slice) bool {
	for i := range sl.have.Endpoints {
		if t := sl.have.Endpoints[i].TargetRef; t != nil {
			if pod := view.Get[*corev1.Pod](p.s, kind.Pod, t.Namespace, t.Name); pod != nil && pod.UID == t.UID && groupKey(sl.family, portsOf(p.svc, pod)) == sl.key {
				return true
			}
		}
	}
	return false
}

// finish turns slices into actions: new and changed ones first, so that no
// address is missing in between.
func (p *packer) finish(families []corev1.IPFamily) act.List {
	var creates, updates, deletes act.List
	filled := map[discoveryv1.AddressType]int{}
	for _, sl := range p.slices {
		if len(sl.endpoints) > 0 {
			filled[sl.family]++
		}
	}
	n := 0
	keep := func(sl *slice) bool {
		if len(sl.endpoints) > 0 {
			return true
		}
		// One empty slice stays where there would be none.
		if filled[sl.family] == 0 && slices.Contains(families, corev1.IPFamily(sl.family)) {
			filled[sl.family]++
			if len(sl.have.Endpoints) > 0 || len(sl.have.Ports) > 0 {
				sl.ports, sl.changed = nil, true
			}
			return true
		}
		return false
	}
	for _, sl := range p.slices {
		switch {
		case sl.have == nil:
			creates = append(creates, p.create(sl, &n))
		case !keep(sl):
			deletes = append(deletes, act.Delete{Target: view.RefOf(kind.EndpointSlice, sl.have), UID: sl.have.UID, Reason: "empty"})
		case sl.changed:
			want := sl.have.DeepCopy()
			want.Labels, want.Ports, want.Endpoints = p.labels, sl.ports, sl.endpoints
			if apiequality.Semantic.DeepEqual(want, sl.have) {
				continue
			}
			updates = append(updates, act.Update{Kind: kind.EndpointSlice, Object: want, Note: fmt.Sprintf("endpoints=%d", len(sl.endpoints))})
		}
	}
	for _, f := range families {
		if filled[discoveryv1.AddressType(f)] == 0 {
			creates = append(creates, p.create(&slice{family: discoveryv1.AddressType(f)}, &n))
		}
	}
	return append(append(creates, updates...), deletes...)
}

func (p *packer) create(sl *slice, n *int) act.Create {
	prefix := p.svc.Name + "-"
	if len(prefix) > 57 {
		prefix = prefix[:57]
	}
	return act.Create{Kind: kind.EndpointSlice, Reason: fmt.Sprintf("%d endpoints", len(sl.endpoints)), Object: &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.svc.Namespace, GenerateName: prefix, Labels: p.labels,
			Name:            workload.FreshName(p.s, kind.EndpointSlice, p.svc.Namespace, prefix, p.svc.UID, n),
			OwnerReferences: []metav1.OwnerReference{workload.OwnerRef(kind.Service, p.svc)}},
		AddressType: sl.family, Ports: sl.ports, Endpoints: sl.endpoints,
	}}
}
