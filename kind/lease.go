package kind

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// Lease is a lock with a time limit, and a node's heartbeat.
var Lease = define[coordinationv1.LeaseList](Row[*coordinationv1.Lease]{
	Names: Names{
		Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases",
		Scope:  Namespaced,
		Prefix: "leases",
	},
	Validate:            validate.Lease,
	ValidateUpdate:      validate.LeaseUpdate,
	Buffered:            true,
	AllowCreateOnUpdate: true,
	Columns:             columns("Holder"),
	Cells: func(l *coordinationv1.Lease, now time.Time) []any {
		return []any{l.Name, ptr.Deref(l.Spec.HolderIdentity, ""), age(l, now)}
	},
})
