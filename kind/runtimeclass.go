package kind

import (
	"time"

	nodev1 "k8s.io/api/node/v1"

	"proa.dev/kind/validate"
)

// RuntimeClass names a way to run containers.
var RuntimeClass = define[nodev1.RuntimeClassList](Row[*nodev1.RuntimeClass]{
	Names: Names{
		Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Plural: "runtimeclasses",
		Scope:  Cluster,
		Prefix: "runtimeclasses",
	},
	Validate:       validate.RuntimeClass,
	ValidateUpdate: validate.RuntimeClassUpdate,
	Default: func(r *nodev1.RuntimeClass) {
		if r.Overhead != nil {
			roundQuantities(r.Overhead.PodFixed)
		}
	},
	Columns: columns("Handler"),
	Cells:   func(r *nodev1.RuntimeClass, now time.Time) []any { return []any{r.Name, r.Handler, age(r, now)} },
})
