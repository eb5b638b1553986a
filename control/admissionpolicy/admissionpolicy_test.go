package admissionpolicy_test

import (
	"testing"

	admissionregv1 "k8s.io/api/admissionregistration/v1"

	"proa.dev/control"
	"proa.dev/control/admissionpolicy"
	"proa.dev/control/scenario"
	"proa.dev/kind"
)

func TestScenarios(t *testing.T) {
	check := func(_ *kind.Table, p *admissionregv1.ValidatingAdmissionPolicy) []admissionregv1.ExpressionWarning {
		if p.Spec.Validations[0].Expression == "object.spec.replicas > 1" {
			return nil
		}
		return []admissionregv1.ExpressionWarning{{FieldRef: "spec.validations[0].expression", Warning: "no such field"}}
	}
	scenario.Run(t, "testdata/*.txtar", func() []control.Part { return []control.Part{admissionpolicy.Part(check)} })
}
