package kind

import (
	networkingv1 "k8s.io/api/networking/v1"

	"proa.dev/kind/validate"
)

var IngressClass = define[networkingv1.IngressClassList](Row[*networkingv1.IngressClass]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses",
		Scope:  Cluster,
		Prefix: "ingressclasses",
	},
	Validate:            validate.IngressClass,
	ValidateUpdate:      validate.IngressClassUpdate,
	UnconditionalUpdate: true,
})

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
	Status: &DoorOf[*networkingv1.Ingress]{
		ValidateUpdate: validate.IngressStatusUpdate},
})

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
})

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
})

var ServiceCIDR = define[networkingv1.ServiceCIDRList](Row[*networkingv1.ServiceCIDR]{
	Names: Names{
		Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR", Plural: "servicecidrs",
		Scope:  Cluster,
		Prefix: "servicecidrs",
	},
	Validate:            validate.ServiceCIDR,
	ValidateUpdate:      validate.ServiceCIDRUpdate,
	UnconditionalUpdate: true,
	Status:              &DoorOf[*networkingv1.ServiceCIDR]{},
})
