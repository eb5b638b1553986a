// Package serviceaddress keeps the objects that say which addresses Services have
// (Kubernetes docs, "Extend Service IP Ranges"; KEP-1880):
//
//   - an IPAddress for each cluster IP, made when the Service appears and removed
//     when it has gone or has let go of the address. It carries the labels of
//     upstream's allocator; one without them is somebody else's, keeps its address
//     from Services, and is left alone.
//   - a ServiceCIDR called kubernetes for the range that the server was started
//     with, made by package cluster/first and said to be ready here.
//   - other ServiceCIDRs are ranges to give addresses from as soon as they are ready,
//     and stay, when deleted, while an address in them is used and no other range
//     has it.
//
// Addresses are promised by admission (apiserver/admit.Addresses) from the Services
// themselves; an IPAddress follows some milliseconds after its Service.
package serviceaddress

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Default is the ServiceCIDR of the range that the server was started with.
const Default = "kubernetes"

// What upstream's allocator and controller write.
const (
	managedBy = "ipallocator.k8s.io"
	finalizer = "networking.k8s.io/service-cidr-finalizer"
	// grace is how long a range that is not used stays after its deletion: servers
	// that have not heard of it may give addresses from it yet.
	grace = 10 * time.Second
)

// Parts of every server.
func Parts() []control.Part {
	return []control.Part{{
		Name: "ipallocator-repair-controller", Kind: kind.Service, When: moved, Plan: PlanService,
		Wakes: []control.Wake{{Kind: kind.IPAddress, When: func(_, new kind.Object) bool { return new == nil }, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			if r := o.(*networkingv1.IPAddress).Spec.ParentRef; ofService(r) {
				return []view.Ref{{Kind: kind.Service, Namespace: r.Namespace, Name: r.Name}}
			}
			return nil
		}}},
		Writes: []control.Write{{Kind: kind.IPAddress, Verbs: []string{"create", "delete"}}},
	}, {
		Name: "ipaddress-cleaner-controller", Kind: kind.IPAddress, Plan: PlanAddress,
		Wakes: []control.Wake{{Kind: kind.Service, When: func(old, new kind.Object) bool { return old != nil && moved(old, new) }, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for _, ip := range addresses(o.(*corev1.Service)) {
				refs = append(refs, view.Ref{Kind: kind.IPAddress, Name: ip.String()})
			}
			return refs
		}}},
		Writes: []control.Write{{Kind: kind.IPAddress, Verbs: []string{"delete"}}},
	}, {
		Name: "default-servicecidr-controller", Kind: kind.ServiceCIDR, Plan: PlanDefault,
		Writes: []control.Write{{Kind: kind.ServiceCIDR, Sub: "status", Verbs: []string{"update"}}},
	}}
}

// moved: the Service's addresses change.
func moved(old, new kind.Object) bool {
	if old == nil || new == nil {
		return true
	}
	return !slices.Equal(old.(*corev1.Service).Spec.ClusterIPs, new.(*corev1.Service).Spec.ClusterIPs)
}

func addresses(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func ofService(r *networkingv1.ParentReference) bool {
	return r != nil && r.Group == "" && r.Resource == "services"
}

// holds says whether the address is its parent's.
func holds(s view.Snapshot, a *networkingv1.IPAddress) bool {
	r := a.Spec.ParentRef
	svc := view.Get[*corev1.Service](s, kind.Service, r.Namespace, r.Name)
	if svc == nil {
		return false
	}
	for _, ip := range addresses(svc) {
		if ip.String() == a.Name {
			return true
		}
	}
	return false
}

// stale is an address of the allocator that no Service has.
func stale(s view.Snapshot, a *networkingv1.IPAddress) bool {
	return a.DeletionTimestamp == nil && a.Labels[networkingv1.LabelManagedBy] == managedBy && ofService(a.Spec.ParentRef) && !holds(s, a)
}

func release(a *networkingv1.IPAddress) act.Action {
	return act.Delete{Target: view.Ref{Kind: kind.IPAddress, Name: a.Name}, UID: a.UID, Reason: "no Service has it"}
}

// PlanService gives each address of a Service its object.
func PlanService(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	svc := view.Get[*corev1.Service](s, kind.Service, ref.Namespace, ref.Name)
	if svc == nil {
		return nil, time.Time{}
	}
	var out act.List
	for _, ip := range addresses(svc) {
		if have := view.Get[*networkingv1.IPAddress](s, kind.IPAddress, "", ip.String()); have != nil {
			if !stale(s, have) {
				continue // its own, or one that has to be sorted out by people
			}
			out = append(out, release(have))
		}
		family := corev1.IPv4Protocol
		if ip.Is6() {
			family = corev1.IPv6Protocol
		}
		out = append(out, act.Create{Kind: kind.IPAddress, Reason: "the Service has it", Object: &networkingv1.IPAddress{
			ObjectMeta: metav1.ObjectMeta{Name: ip.String(), Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: string(family), networkingv1.LabelManagedBy: managedBy}},
			Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: svc.Namespace, Name: svc.Name}},
		}})
	}
	return out, time.Time{}
}

// PlanAddress removes an address that no Service has.
func PlanAddress(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	if a := view.Get[*networkingv1.IPAddress](s, kind.IPAddress, "", ref.Name); a != nil && stale(s, a) {
		return act.List{release(a)}, time.Time{}
	}
	return nil, time.Time{}
}

// PlanDefault says that the server's own range is ready.
func PlanDefault(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	c := view.Get[*networkingv1.ServiceCIDR](s, kind.ServiceCIDR, "", ref.Name)
	if c == nil || c.Name != Default || c.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	return ready(c, now, "Kubernetes default Service CIDR is ready"), time.Time{}
}

// ready sets the condition, unless there is one.
func ready(c *networkingv1.ServiceCIDR, now time.Time, message string) act.List {
	if slices.ContainsFunc(c.Status.Conditions, func(x metav1.Condition) bool { return x.Type == networkingv1.ServiceCIDRConditionReady }) {
		return nil
	}
	return condition(c, now, metav1.Condition{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Message: message})
}

func condition(c *networkingv1.ServiceCIDR, now time.Time, x metav1.Condition) act.List {
	x.LastTransitionTime = metav1.NewTime(now)
	want := c.DeepCopy()
	i := slices.IndexFunc(want.Status.Conditions, func(y metav1.Condition) bool { return y.Type == x.Type })
	switch {
	case i < 0:
		want.Status.Conditions = append(want.Status.Conditions, x)
	case want.Status.Conditions[i].Status == x.Status && want.Status.Conditions[i].Reason == x.Reason:
		return nil
	default:
		want.Status.Conditions[i] = x
	}
	return act.List{act.Update{Kind: kind.ServiceCIDR, Object: want, Sub: "status", Reason: x.Message}}
}

// RangePart registers the controller of ServiceCIDRs.
func RangePart() control.Part {
	going := func(s view.Snapshot, _ kind.Object) []view.Ref {
		var refs []view.Ref
		for c := range view.List[*networkingv1.ServiceCIDR](s, kind.ServiceCIDR, "") {
			if c.DeletionTimestamp != nil {
				refs = append(refs, view.RefOf(kind.ServiceCIDR, c))
			}
		}
		return refs
	}
	return control.Part{
		Name: "service-cidrs-controller", Kind: kind.ServiceCIDR, Plan: PlanRange,
		Wakes: []control.Wake{
			{Kind: kind.IPAddress, When: func(_, new kind.Object) bool { return new == nil }, To: going},
			{Kind: kind.ServiceCIDR, To: going},
		},
		Writes: []control.Write{{Kind: kind.ServiceCIDR, Verbs: []string{"update"}}, {Kind: kind.ServiceCIDR, Sub: "status", Verbs: []string{"update"}}},
	}
}

// PlanRange protects a range that is used, and says that it is ready.
func PlanRange(s view.Snapshot, ref view.Ref, now time.Time) (act.List, time.Time) {
	c := view.Get[*networkingv1.ServiceCIDR](s, kind.ServiceCIDR, "", ref.Name)
	if c == nil {
		return nil, time.Time{}
	}
	protected := slices.Contains(c.Finalizers, finalizer)
	if c.DeletionTimestamp == nil {
		var out act.List
		if !protected {
			want := c.DeepCopy()
			want.Finalizers = append(want.Finalizers, finalizer)
			return append(out, act.Update{Kind: kind.ServiceCIDR, Object: want, Reason: "it is to be protected"}), time.Time{}
		}
		return ready(c, now, "Kubernetes Service CIDR is ready"), time.Time{}
	}
	if !protected {
		return nil, time.Time{}
	}
	if used(s, c) {
		return condition(c, now, metav1.Condition{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionFalse, Reason: networkingv1.ServiceCIDRReasonTerminating,
			Message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"}), time.Time{}
	}
	if end := c.DeletionTimestamp.Add(grace); now.Before(end) {
		return nil, end
	}
	want := c.DeepCopy()
	want.Finalizers = slices.DeleteFunc(want.Finalizers, func(f string) bool { return f == finalizer })
	return act.List{act.Update{Kind: kind.ServiceCIDR, Object: want, Reason: "no address in it is used"}}, time.Time{}
}

// used: an address in the range is in no other one that stays.
func used(s view.Snapshot, c *networkingv1.ServiceCIDR) bool {
	mine := prefixes(c)
	var others []netip.Prefix
	for o := range view.List[*networkingv1.ServiceCIDR](s, kind.ServiceCIDR, "") {
		if o.Name != c.Name && o.DeletionTimestamp == nil {
			others = append(others, prefixes(o)...)
		}
	}
	has := func(ps []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for a := range view.List[*networkingv1.IPAddress](s, kind.IPAddress, "") {
		if ip, err := netip.ParseAddr(a.Name); err == nil && has(mine, ip) && !has(others, ip) {
			return true
		}
	}
	return false
}

// prefixes of a ServiceCIDR.
func prefixes(c *networkingv1.ServiceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, cidr := range c.Spec.CIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}
