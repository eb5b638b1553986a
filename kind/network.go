package kind

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// IngressClass names a controller of Ingresses.
var IngressClass = define[networkingv1.IngressClassList](Row[*networkingv1.IngressClass]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses",
		Scope:  Cluster,
		Prefix: "ingressclasses",
	},
	Validate:            validate.IngressClass,
	ValidateUpdate:      validate.IngressClassUpdate,
	UnconditionalUpdate: true,
	Default: func(c *networkingv1.IngressClass) {
		if c.Spec.Parameters != nil {
			fillPtr(&c.Spec.Parameters.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
		}
	},
	PrepareCreate: func(c *networkingv1.IngressClass) { c.Generation = 1 },
	PrepareUpdate: func(new, old *networkingv1.IngressClass) { raiseIf(!same(new.Spec, old.Spec), new) },
	Columns:       columns("Controller, Parameters"),
	Cells: func(c *networkingv1.IngressClass, now time.Time) []any {
		parameters := none
		if p := c.Spec.Parameters; p != nil {
			parameters = p.Kind
			if p.APIGroup != nil {
				parameters += "." + *p.APIGroup
			}
			parameters += "/" + p.Name
		}
		return []any{c.Name, c.Spec.Controller, parameters, age(c, now)}
	},
})

// Ingress routes HTTP from outside to services.
var Ingress = define[networkingv1.IngressList](Row[*networkingv1.Ingress]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses",
		ShortNames: []string{"ing"},
		Scope:      Namespaced,
		Prefix:     "ingress",
	},
	Validate:            validate.Ingress,
	ValidateUpdate:      validate.IngressUpdate,
	UnconditionalUpdate: true,
	PrepareCreate: func(i *networkingv1.Ingress) {
		i.Generation, i.Status = 1, networkingv1.IngressStatus{}
	},
	PrepareUpdate: func(new, old *networkingv1.Ingress) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Warnings: func(new, old *networkingv1.Ingress) []string {
		if _, ok := new.Annotations[ingressClassAnnotation]; ok && old == nil {
			return []string{`annotation "` + ingressClassAnnotation + `" is deprecated, please use 'spec.ingressClassName' instead`}
		}
		return nil
	},
	Status: &DoorOf[*networkingv1.Ingress]{
		ValidateUpdate: validate.IngressStatusUpdate,
		PrepareUpdate:  func(new, old *networkingv1.Ingress) { new.Spec = old.Spec },
	},
	Columns: columns("Class, Hosts, Address, Ports"),
	Cells: func(i *networkingv1.Ingress, now time.Time) []any {
		addresses := map[string]bool{}
		for _, in := range i.Status.LoadBalancer.Ingress {
			noteAddress(addresses, in.IP, in.Hostname)
		}
		ports := "80"
		if len(i.Spec.TLS) > 0 {
			ports = "80, 443"
		}
		return []any{i.Name, ptr.Deref(i.Spec.IngressClassName, none), hostsCell(i.Spec.Rules),
			strings.Join(slices.Sorted(maps.Keys(addresses)), ","), ports, age(i, now)}
	},
})

const ingressClassAnnotation = "kubernetes.io/ingress.class"

// hostsCell names three hosts; what is counted behind them are rules.
func hostsCell(rules []networkingv1.IngressRule) string {
	const limit = 3
	var hosts []string
	more := false
	for _, r := range rules {
		if more = more || len(hosts) == limit; !more && r.Host != "" {
			hosts = append(hosts, r.Host)
		}
	}
	if len(hosts) == 0 {
		return "*"
	}
	text := strings.Join(hosts, ",")
	if more {
		text += fmt.Sprintf(" + %d more...", len(rules)-limit)
	}
	return text
}

// IPAddress says which object has an address of the service ranges.
var IPAddress = define[networkingv1.IPAddressList](Row[*networkingv1.IPAddress]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "IPAddress", Plural: "ipaddresses",
		ShortNames: []string{"ip"},
		Scope:      Cluster,
		Prefix:     "ipaddresses",
	},
	Validate:            validate.IPAddress,
	ValidateUpdate:      validate.IPAddressUpdate,
	UnconditionalUpdate: true,
	AllowCreateOnUpdate: true,
	Columns:             columnsExactly("Name, ParentRef"),
	Cells: func(a *networkingv1.IPAddress, _ time.Time) []any {
		parent := none
		if r := a.Spec.ParentRef; r != nil {
			parent = strings.ToLower(schema.GroupResource{Group: r.Group, Resource: r.Resource}.String())
			if r.Namespace != "" {
				parent += "/" + r.Namespace
			}
			parent += "/" + r.Name
		}
		return []any{a.Name, parent}
	},
})

// NetworkPolicy says who may talk to pods.
var NetworkPolicy = define[networkingv1.NetworkPolicyList](Row[*networkingv1.NetworkPolicy]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies",
		ShortNames: []string{"netpol"},
		Scope:      Namespaced,
		Prefix:     "networkpolicies",
	},
	Validate:            validate.NetworkPolicy,
	ValidateUpdate:      validate.NetworkPolicyUpdate,
	UnconditionalUpdate: true,
	Default:             defaultNetworkPolicy,
	PrepareCreate:       func(p *networkingv1.NetworkPolicy) { p.Generation = 1 },
	PrepareUpdate:       func(new, old *networkingv1.NetworkPolicy) { raiseIf(!same(new.Spec, old.Spec), new) },
	Columns:             columns("Pod-Selector"),
	Cells: func(p *networkingv1.NetworkPolicy, now time.Time) []any {
		return []any{p.Name, selectorCell(&p.Spec.PodSelector), age(p, now)}
	},
})

func defaultNetworkPolicy(p *networkingv1.NetworkPolicy) {
	ports := func(list []networkingv1.NetworkPolicyPort) {
		for i := range list {
			fillPtr(&list[i].Protocol, corev1.ProtocolTCP)
		}
	}
	for i := range p.Spec.Ingress {
		ports(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		ports(p.Spec.Egress[i].Ports)
	}
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

// ServiceCIDR is a range of service addresses.
var ServiceCIDR = define[networkingv1.ServiceCIDRList](Row[*networkingv1.ServiceCIDR]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR", Plural: "servicecidrs",
		Scope:  Cluster,
		Prefix: "servicecidrs",
	},
	Validate:            validate.ServiceCIDR,
	ValidateUpdate:      validate.ServiceCIDRUpdate,
	UnconditionalUpdate: true,
	PrepareCreate: func(c *networkingv1.ServiceCIDR) {
		c.Generation, c.Status = 1, networkingv1.ServiceCIDRStatus{}
	},
	PrepareUpdate: func(new, old *networkingv1.ServiceCIDR) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*networkingv1.ServiceCIDR]{
		ValidateUpdate: validate.ServiceCIDRUpdate,
		PrepareUpdate:  func(new, old *networkingv1.ServiceCIDR) { new.Spec = old.Spec },
	},
	Columns: columnsExactly("Name, CIDRs, Age"),
	Cells: func(c *networkingv1.ServiceCIDR, now time.Time) []any {
		return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), age(c, now)}
	},
})
