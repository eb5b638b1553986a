package kind

import (
	"time"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"proa.dev/kind/validate"
)

// PodDisruptionBudget bounds how many pods may go at the same time by choice.
var PodDisruptionBudget = define[policyv1.PodDisruptionBudgetList](Row[*policyv1.PodDisruptionBudget]{
	Names: Names{
		Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets",
		ShortNames: []string{"pdb"},
		Scope:      Namespaced,
		Prefix:     "poddisruptionbudgets",
	},
	Validate:       validate.PodDisruptionBudget,
	ValidateUpdate: validate.PodDisruptionBudgetUpdate,
	PrepareCreate: func(b *policyv1.PodDisruptionBudget) {
		b.Generation, b.Status = 1, policyv1.PodDisruptionBudgetStatus{}
	},
	PrepareUpdate: func(new, old *policyv1.PodDisruptionBudget) {
		new.Status = old.Status
		raiseIf(!same(new.Spec, old.Spec), new)
	},
	Status: &DoorOf[*policyv1.PodDisruptionBudget]{
		ValidateUpdate: validate.PodDisruptionBudgetStatusUpdate,
		PrepareUpdate:  func(new, old *policyv1.PodDisruptionBudget) { new.Spec = old.Spec },
	},
	Columns: columns("Min Available, Max Unavailable, Allowed Disruptions:integer"),
	Cells: func(b *policyv1.PodDisruptionBudget, now time.Time) []any {
		return []any{b.Name, boundCell(b.Spec.MinAvailable), boundCell(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), age(b, now)}
	},
})

func boundCell(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}
