// Package loadbalancer gives Services of type LoadBalancer their addresses at
// once: those of the ready nodes, on which the service proxy answers at the
// service's own ports. No cloud is asked.
//
// Two such services cannot share a port of one protocol: the elder keeps it, the
// younger gets a Warning and no address until the port is free. A service with a
// loadBalancerClass belongs to somebody else and is left alone. With
// externalTrafficPolicy Local only nodes with ready pods of the service are named,
// all when there is none.
package loadbalancer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/control/workload"
	"proa.dev/kind"
	"proa.dev/view"
)

const source = "service-controller"

// Part registers the controller; it plans per service.
func Part() control.Part {
	return control.Part{
		Name: source, Kind: kind.Service, Plan: Plan,
		Wakes: []control.Wake{
			{Kind: kind.Node, When: nodeMatters, To: func(s view.Snapshot, _ kind.Object) []view.Ref {
				var refs []view.Ref
				for svc := range view.List[*corev1.Service](s, kind.Service, "") {
					if ours(svc) {
						refs = append(refs, view.RefOf(kind.Service, svc))
					}
				}
				return refs
			}},
			// A port that is taken or set free.
			{Kind: kind.Service, When: func(old, new kind.Object) bool { return !slices.Equal(claims(old), claims(new)) }, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				var refs []view.Ref
				changed := o.(*corev1.Service)
				for svc := range view.List[*corev1.Service](s, kind.Service, "") {
					if ours(svc) && svc.UID != changed.UID && clash(svc, changed) != "" {
						refs = append(refs, view.RefOf(kind.Service, svc))
					}
				}
				return refs
			}},
			{Kind: kind.EndpointSlice, To: func(s view.Snapshot, o kind.Object) []view.Ref {
				svc := view.Get[*corev1.Service](s, kind.Service, o.GetNamespace(), o.GetLabels()[discoveryv1.LabelServiceName])
				if svc == nil || !ours(svc) || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
					return nil
				}
				return []view.Ref{view.RefOf(kind.Service, svc)}
			}},
		},
		Writes: []control.Write{{Kind: kind.Service, Sub: "status", Verbs: []string{"update"}}},
	}
}

func ours(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.LoadBalancerClass == nil && svc.DeletionTimestamp == nil
}

// claims are the ports that a service asks for.
func claims(o kind.Object) []string {
	svc, ok := o.(*corev1.Service)
	if !ok || !ours(svc) {
		return nil
	}
	var out []string
	for _, p := range svc.Spec.Ports {
		out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	return out
}

// clash is a port that both ask for, as "80/TCP".
func clash(a, b *corev1.Service) string {
	for _, p := range a.Spec.Ports {
		for _, q := range b.Spec.Ports {
			if p.Port == q.Port && p.Protocol == q.Protocol {
				return fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			}
		}
	}
	return ""
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func nodeMatters(old, new kind.Object) bool {
	addresses := func(o kind.Object) string {
		n, ok := o.(*corev1.Node)
		if !ok || !usable(n) {
			return ""
		}
		return fmt.Sprint(n.Status.Addresses)
	}
	return addresses(old) != addresses(new)
}

func usable(n *corev1.Node) bool {
	_, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]
	return ready(n) && !excluded && n.DeletionTimestamp == nil
}

// before: a has the older right.
func before(a, b *corev1.Service) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name)) < 0
}

// Plan writes the addresses of one service.
func Plan(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	svc := view.Get[*corev1.Service](s, kind.Service, ref.Namespace, ref.Name)
	if svc == nil || svc.DeletionTimestamp != nil || svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.LoadBalancerClass != nil {
		return nil, time.Time{}
	}
	want := svc.DeepCopy()
	want.Status.LoadBalancer.Ingress = nil
	var actions act.List
	if ours(svc) {
		for other := range view.List[*corev1.Service](s, kind.Service, "") {
			if !ours(other) || other.UID == svc.UID || !before(other, svc) {
				continue
			}
			if port := clash(svc, other); port != "" {
				actions = append(actions, workload.Event(kind.Service, svc, source, corev1.EventTypeWarning, "PortConflict",
					"Port %s belongs to service %s/%s already; choose another port or delete that service", port, other.Namespace, other.Name))
				break
			}
		}
		if len(actions) == 0 {
			want.Status.LoadBalancer.Ingress = ingress(s, svc)
		}
	}
	if apiequality.Semantic.DeepEqual(want.Status.LoadBalancer, svc.Status.LoadBalancer) {
		return actions, time.Time{}
	}
	var names []string
	for _, i := range want.Status.LoadBalancer.Ingress {
		names = append(names, i.IP)
	}
	actions = append(actions, act.Update{Kind: kind.Service, Object: want, Sub: "status", Note: fmt.Sprintf("addresses=%v", names)})
	if len(svc.Status.LoadBalancer.Ingress) == 0 && len(names) > 0 {
		actions = append(actions, workload.Event(kind.Service, svc, source, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Ensured load balancer"))
	}
	return actions, time.Time{}
}

func ingress(s view.Snapshot, svc *corev1.Service) (out []corev1.LoadBalancerIngress) {
	var local map[string]bool
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		local = map[string]bool{}
		for p := range s.PodsWith(svc.Namespace, svc.Spec.Selector) {
			if workload.Active(p) && workload.Ready(p) {
				local[p.Spec.NodeName] = true
			}
		}
	}
	mode := corev1.LoadBalancerIPModeVIP
	for n := range view.List[*corev1.Node](s, kind.Node, "") {
		if !usable(n) || len(local) > 0 && !local[n.Name] {
			continue
		}
		for _, a := range n.Status.Addresses {
			family := corev1.IPv4Protocol
			if strings.Contains(a.Address, ":") {
				family = corev1.IPv6Protocol
			}
			if a.Type == corev1.NodeInternalIP && (len(svc.Spec.IPFamilies) == 0 || slices.Contains(svc.Spec.IPFamilies, family)) {
				out = append(out, corev1.LoadBalancerIngress{IP: a.Address, IPMode: &mode})
			}
		}
	}
	return out
}
