package kind

import (
	coordinationv1 "k8s.io/api/coordination/v1"
)

var Lease = define[coordinationv1.LeaseList](Row[*coordinationv1.Lease]{
	Names: Names{
		Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases",
		Scope:  Namespaced,
		Prefix: "leases",
	},
	Buffered:            true,
	AllowCreateOnUpdate: true,
})
