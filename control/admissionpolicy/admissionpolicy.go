// Package admissionpolicy fills in the status of ValidatingAdmissionPolicies: what
// type checking says about each generation of a policy, once (Kubernetes docs,
// "Validating Admission Policy", "Type checking").
package admissionpolicy

import (
	"time"

	admissionregv1 "k8s.io/api/admissionregistration/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Check gives the warnings about a policy; it is pure.
type Check func(*kind.Table, *admissionregv1.ValidatingAdmissionPolicy) []admissionregv1.ExpressionWarning

// Part registers the controller.
func Part(check Check) control.Part {
	return control.Part{
		Name: "validatingadmissionpolicy-status-controller", Kind: kind.ValidatingAdmissionPolicy,
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			p := view.Get[*admissionregv1.ValidatingAdmissionPolicy](s, kind.ValidatingAdmissionPolicy, "", ref.Name)
			if p == nil || p.DeletionTimestamp != nil || p.Generation <= p.Status.ObservedGeneration {
				return nil, time.Time{}
			}
			next := p.DeepCopy()
			next.Status.ObservedGeneration = p.Generation
			next.Status.TypeChecking = &admissionregv1.TypeChecking{ExpressionWarnings: check(s.Table(), p)}
			return act.List{act.Update{Kind: kind.ValidatingAdmissionPolicy, Object: next, Sub: "status", Reason: "type checking"}}, time.Time{}
		},
		Writes: []control.Write{{Kind: kind.ValidatingAdmissionPolicy, Sub: "status", Verbs: []string{"update"}}},
	}
}
