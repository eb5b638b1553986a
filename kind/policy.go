package kind

import (
	policyv1 "k8s.io/api/policy/v1"

	"proa.dev/kind/validate"
)

var PodDisruptionBudget = define[policyv1.PodDisruptionBudgetList](Row[*policyv1.PodDisruptionBudget]{
	Names: Names{
		Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets",
		ShortNames: []string{"pdb"},
		Scope:      Namespaced,
		Prefix:     "poddisruptionbudgets",
	},
	Validate:       validate.PodDisruptionBudget,
	ValidateUpdate: validate.PodDisruptionBudgetUpdate,
	Status: &DoorOf[*policyv1.PodDisruptionBudget]{
		ValidateUpdate: validate.PodDisruptionBudgetStatusUpdate},
})
