package kind

import (
	nodev1 "k8s.io/api/node/v1"
)

var RuntimeClass = define[nodev1.RuntimeClassList](Row[*nodev1.RuntimeClass]{
	Names: Names{
		Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Plural: "runtimeclasses",
		Scope:  Cluster,
		Prefix: "runtimeclasses",
	},
})
