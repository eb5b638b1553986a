package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiservercel "k8s.io/apiserver/pkg/cel"

	"proa.dev/apiserver/extend/expr"
	"proa.dev/apiserver/openapi"
	"proa.dev/kind"
)

// maxChecked bounds the kinds that one rule of a policy is checked for.
const maxChecked = 10

// Warnings are what type checking says about a policy's validations and their
// messages (Kubernetes docs, "Validating Admission Policy", "Type checking"): each
// expression is compiled against the schema of each kind that the rules name
// without a wildcard. The same table and policy give the same warnings. They change
// nothing about what the policy does.
func Warnings(t *kind.Table, p *admissionregv1.ValidatingAdmissionPolicy) []admissionregv1.ExpressionWarning {
	rows := checkedRows(t, p.Spec.MatchConstraints)
	if len(rows) == 0 {
		return nil
	}
	params := typeOf(paramKind(t, p.Spec.ParamKind), "Params")
	variables := make([]expr.Variable, len(p.Spec.Variables))
	for i, v := range p.Spec.Variables {
		variables[i] = expr.Variable{Name: v.Name, Expression: v.Expression}
	}
	checkers := make([]*expr.Checker, len(rows))
	broken := make([]error, len(rows))
	for i, row := range rows {
		types := expr.Types{Object: typeOf(row, "Object"), Params: params}
		if types.Object != nil {
			checkers[i], broken[i] = expr.NewChecker(types, p.Spec.ParamKind != nil, variables)
		}
	}
	check := func(at *field.Path, expression string) []admissionregv1.ExpressionWarning {
		var found []string
		for i, row := range rows {
			switch {
			case broken[i] != nil:
				found = append(found, fmt.Sprintf("%v: type checking error: %v\n", row.GVK(), broken[i]))
			case checkers[i] != nil:
				if err := checkers[i].Check(expression); err != nil {
					found = append(found, fmt.Sprintf("%v: %v\n", row.GVK(), err))
				}
			}
		}
		if len(found) == 0 {
			return nil
		}
		return []admissionregv1.ExpressionWarning{{FieldRef: at.String(), Warning: strings.Join(found, "\n")}}
	}
	var out []admissionregv1.ExpressionWarning
	for i, v := range p.Spec.Validations {
		at := field.NewPath("spec", "validations").Index(i)
		out = append(out, check(at.Child("expression"), v.Expression)...)
		if v.MessageExpression != "" {
			out = append(out, check(at.Child("messageExpression"), v.MessageExpression)...)
		}
	}
	return out
}

func typeOf(row *kind.Kind, role string) *apiservercel.DeclType {
	if row == nil {
		return nil
	}
	s, err := openapi.Resolved(row)
	if err != nil {
		return nil
	}
	return expr.TypeOf(s, row.Kind+role)
}

func paramKind(t *kind.Table, p *admissionregv1.ParamKind) *kind.Kind {
	if p == nil {
		return nil
	}
	gv, err := schema.ParseGroupVersion(p.APIVersion)
	if err != nil {
		return nil
	}
	return t.ByKind(gv.WithKind(p.Kind))
}

// checkedRows are the rows that the rules name, in order of group, version, kind. A
// rule with a wildcard in its groups or versions names none; resources with a
// wildcard and subresources are passed over.
func checkedRows(t *kind.Table, m *admissionregv1.MatchResources) []*kind.Kind {
	if m == nil {
		return nil
	}
	var out []*kind.Kind
	wild := func(s string) bool { return strings.Contains(s, "*") }
	for _, rule := range m.ResourceRules {
		if slices.ContainsFunc(rule.APIGroups, wild) || slices.ContainsFunc(rule.APIVersions, wild) {
			continue
		}
		count := 0
		for _, group := range slices.Sorted(slices.Values(rule.APIGroups)) {
			for _, version := range slices.Sorted(slices.Values(rule.APIVersions)) {
				for _, resource := range slices.Sorted(slices.Values(rule.Resources)) {
					if strings.ContainsAny(resource, "*/") || count == maxChecked {
						continue
					}
					if row := t.ByResource(schema.GroupVersionResource{Group: group, Version: version, Resource: resource}); row != nil {
						count++
						if !slices.Contains(out, row) {
							out = append(out, row)
						}
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b *kind.Kind) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Version, b.Version), strings.Compare(a.Kind, b.Kind))
	})
	return out
}
