package policy

import (
	"context"
	"strings"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/extend/expr"
	"proa.dev/kind"
)

// Expressions is the plugin that refuses webhook configurations and policies whose
// expressions do not compile. It is a part of their validation: it comes after the
// checks of their form, and is always on. An expression that was stored already is
// held to what was valid then.
func Expressions() admit.Plugin {
	return admit.Plugin{Name: "AdmissionExpressions", Validate: func(_ context.Context, r *admit.Request) error {
		if r.Object == nil || r.Sub != "" || r.Kind.Group != "admissionregistration.k8s.io" {
			return nil
		}
		if errs := checkExpressions(r.Object, r.Old); len(errs) > 0 {
			return apierrors.NewInvalid(r.Kind.GVK().GroupKind(), r.Object.GetName(), errs)
		}
		return nil
	}}
}

// checker compiles the expressions of one object.
type checker struct {
	known map[string]bool // stored before
	errs  field.ErrorList
}

func (c *checker) mode(text string) environment.Type {
	if c.known[text] {
		return environment.StoredExpressions
	}
	return environment.NewExpressions
}

// take notes the error of a compilation; shown is the expression as it was sent.
func (c *checker) take(r plugincel.CompilationResult, shown string, path *field.Path) {
	if r.Error == nil {
		return
	}
	switch r.Error.Type {
	case apiservercel.ErrorTypeRequired:
		c.errs = append(c.errs, field.Required(path, r.Error.Detail))
	case apiservercel.ErrorTypeInvalid:
		c.errs = append(c.errs, field.Invalid(path, shown, r.Error.Detail))
	default:
		c.errs = append(c.errs, field.InternalError(path, r.Error))
	}
}

func (c *checker) conditions(list []admissionregv1.MatchCondition, params bool, path *field.Path) {
	for i := range list {
		text := strings.TrimSpace(list[i].Expression)
		if text == "" {
			continue // told by the check of the form
		}
		c.take(expr.Compile(boolean(text), expr.Declared{Params: params, Authorizer: true}, c.mode(list[i].Expression)), text, path.Index(i).Child("expression"))
	}
}

func (c *checker) variables(scope *expr.Scope, list []admissionregv1.Variable, path *field.Path) {
	for i := range list {
		v := &list[i]
		if strings.TrimSpace(v.Expression) != "" && v.Name != "" {
			c.take(scope.Add(&expr.Variable{Name: v.Name, Expression: v.Expression}, c.mode(v.Expression)), v.Expression, path.Index(i).Child("expression"))
		}
	}
}

func checkExpressions(obj, old kind.Object) field.ErrorList {
	c := &checker{known: map[string]bool{}}
	for _, text := range expressionsOf(old) {
		c.known[text] = true
	}
	spec := field.NewPath("spec")
	switch o := obj.(type) {
	case *admissionregv1.ValidatingWebhookConfiguration:
		for i := range o.Webhooks {
			c.conditions(o.Webhooks[i].MatchConditions, false, field.NewPath("webhooks").Index(i).Child("matchConditions"))
		}
	case *admissionregv1.MutatingWebhookConfiguration:
		for i := range o.Webhooks {
			c.conditions(o.Webhooks[i].MatchConditions, false, field.NewPath("webhooks").Index(i).Child("matchConditions"))
		}
	case *admissionregv1.ValidatingAdmissionPolicy:
		params := o.Spec.ParamKind != nil
		scope := expr.NewScope(params)
		c.conditions(o.Spec.MatchConditions, params, spec.Child("matchConditions"))
		c.variables(scope, o.Spec.Variables, spec.Child("variables"))
		for i := range o.Spec.Validations {
			v, p := &o.Spec.Validations[i], spec.Child("validations").Index(i)
			if strings.TrimSpace(v.Expression) != "" {
				c.take(scope.Compile(boolean(v.Expression), expr.Declared{Authorizer: true}, c.mode(v.Expression)), v.Expression, p.Child("expression"))
			}
			if strings.TrimSpace(v.MessageExpression) != "" {
				c.take(scope.Compile(text(v.MessageExpression), expr.Declared{}, c.mode(v.MessageExpression)), v.MessageExpression, p.Child("messageExpression"))
			}
		}
		for i := range o.Spec.AuditAnnotations {
			a := &o.Spec.AuditAnnotations[i]
			if t := strings.TrimSpace(a.ValueExpression); t != "" {
				c.take(scope.Compile(annotation(t), expr.Declared{Authorizer: true}, c.mode(a.ValueExpression)), a.ValueExpression, spec.Child("auditAnnotations").Index(i).Child("valueExpression"))
			}
		}
	case *admissionregv1.MutatingAdmissionPolicy:
		params := o.Spec.ParamKind != nil
		scope := expr.NewScope(params)
		c.conditions(o.Spec.MatchConditions, params, spec.Child("matchConditions"))
		c.variables(scope, o.Spec.Variables, spec.Child("variables"))
		declared := expr.Declared{Authorizer: true, Patch: true}
		for i := range o.Spec.Mutations {
			m, p := &o.Spec.Mutations[i], spec.Child("mutations").Index(i)
			switch {
			case m.PatchType == admissionregv1.PatchTypeJSONPatch && m.JSONPatch != nil:
				if t := strings.TrimSpace(m.JSONPatch.Expression); t != "" {
					c.take(scope.Compile(&patch.JSONPatchCondition{Expression: t}, declared, c.mode(m.JSONPatch.Expression)), t, p.Child("jsonPatch", "expression"))
				}
			case m.PatchType == admissionregv1.PatchTypeApplyConfiguration && m.ApplyConfiguration != nil:
				if t := strings.TrimSpace(m.ApplyConfiguration.Expression); t != "" {
					c.take(scope.Compile(&patch.ApplyConfigurationCondition{Expression: t}, declared, c.mode(m.ApplyConfiguration.Expression)), t, p.Child("applyConfiguration", "expression"))
				}
			}
		}
	}
	return c.errs
}

// expressionsOf are all expressions of a stored object.
func expressionsOf(obj kind.Object) []string {
	var out []string
	conditions := func(list []admissionregv1.MatchCondition) {
		for i := range list {
			out = append(out, list[i].Expression)
		}
	}
	variables := func(list []admissionregv1.Variable) {
		for i := range list {
			out = append(out, list[i].Expression)
		}
	}
	switch o := obj.(type) {
	case nil:
	case *admissionregv1.ValidatingWebhookConfiguration:
		for i := range o.Webhooks {
			conditions(o.Webhooks[i].MatchConditions)
		}
	case *admissionregv1.MutatingWebhookConfiguration:
		for i := range o.Webhooks {
			conditions(o.Webhooks[i].MatchConditions)
		}
	case *admissionregv1.ValidatingAdmissionPolicy:
		conditions(o.Spec.MatchConditions)
		variables(o.Spec.Variables)
		for i := range o.Spec.Validations {
			out = append(out, o.Spec.Validations[i].Expression, o.Spec.Validations[i].MessageExpression)
		}
		for i := range o.Spec.AuditAnnotations {
			out = append(out, o.Spec.AuditAnnotations[i].ValueExpression)
		}
	case *admissionregv1.MutatingAdmissionPolicy:
		conditions(o.Spec.MatchConditions)
		variables(o.Spec.Variables)
		for i := range o.Spec.Mutations {
			if m := &o.Spec.Mutations[i]; m.JSONPatch != nil {
				out = append(out, m.JSONPatch.Expression)
			} else if m.ApplyConfiguration != nil {
				out = append(out, m.ApplyConfiguration.Expression)
			}
		}
	}
	return out
}
