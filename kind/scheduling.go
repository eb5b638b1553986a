package kind

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/utils/ptr"

	"proa.dev/kind/validate"
)

// PriorityClass names a pod priority.
var PriorityClass = define[schedulingv1.PriorityClassList](Row[*schedulingv1.PriorityClass]{
	Names: Names{
		Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses",
		ShortNames: []string{"pc"},
		Scope:      Cluster,
		Prefix:     "priorityclasses",
	},
	Validate:            validate.PriorityClass,
	ValidateUpdate:      validate.PriorityClassUpdate,
	UnconditionalUpdate: true,
	Default:             func(p *schedulingv1.PriorityClass) { fillPtr(&p.PreemptionPolicy, corev1.PreemptLowerPriority) },
	PrepareCreate:       func(p *schedulingv1.PriorityClass) { p.Generation = 1 },
	Columns:             columnsExactly("Name, Value:integer, Global-Default:boolean, Age, PreemptionPolicy"),
	Cells: func(p *schedulingv1.PriorityClass, now time.Time) []any {
		return []any{p.Name, int64(p.Value), p.GlobalDefault, age(p, now), string(ptr.Deref(p.PreemptionPolicy, ""))}
	},
})
