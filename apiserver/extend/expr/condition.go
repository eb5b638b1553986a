package expr

import (
	"context"

	"github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/environment"

	"proa.dev/apiserver/auth"
)

// Condition is one match condition.
type Condition admissionregv1.MatchCondition

// GetExpression implements plugincel.ExpressionAccessor.
func (c *Condition) GetExpression() string { return c.Expression }

// ReturnTypes implements plugincel.ExpressionAccessor.
func (c *Condition) ReturnTypes() []*cel.Type { return []*cel.Type{cel.BoolType} }

// Conditions are the compiled match conditions of a webhook or policy.
type Conditions struct {
	scope *Scope // nil for webhooks
	eval  plugincel.ConditionEvaluator
}

// CompileConditions compiles match conditions; nil when there are none. scope is nil
// for those of webhooks.
func CompileConditions(list []admissionregv1.MatchCondition, scope *Scope) *Conditions {
	if len(list) == 0 {
		return nil
	}
	results := make([]plugincel.CompilationResult, len(list))
	for i := range list {
		c := Condition(list[i])
		if scope == nil {
			results[i] = Compile(&c, Declared{Authorizer: true}, environment.StoredExpressions)
		} else {
			results[i] = scope.Compile(&c, Declared{Authorizer: true}, environment.StoredExpressions)
		}
	}
	return &Conditions{scope: scope, eval: plugincel.NewCondition(results)}
}

// Match says whether all conditions hold: one that is false decides, whatever the
// others are; an error otherwise is returned when failure is Fail and excludes the
// request when it is Ignore. failed says that there were errors.
func (c *Conditions) Match(ctx context.Context, v *admission.VersionedAttributes, resource schema.GroupVersionResource, params runtime.Object, authz authorizer.UnconditionalAuthorizer, failure *admissionregv1.FailurePolicyType) (matches, failed bool, err error) {
	if c == nil {
		return true, false, nil
	}
	ignore := failure != nil && *failure == admissionregv1.Ignore
	if c.scope != nil {
		ctx = c.scope.Context(ctx)
	}
	request := plugincel.CreateAdmissionRequest(v.Attributes, metav1.GroupVersionResource(resource), metav1.GroupVersionKind(v.VersionedKind))
	results, _, err := c.eval.ForInput(ctx, v, request, plugincel.OptionalVariableBindings{VersionedParams: params, Authorizer: authz}, nil, celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		if ignore {
			return false, true, nil
		}
		return false, true, err
	}
	var problems []error
	for _, r := range results {
		if r.Error != nil {
			problems = append(problems, r.Error)
		}
		if r.EvalResult == celtypes.False {
			return false, len(problems) > 0, nil
		}
	}
	switch {
	case len(problems) == 0:
		return true, false, nil
	case ignore:
		return false, true, nil
	}
	return false, true, utilerrors.NewAggregate(problems)
}

// Authorizer lets expressions ask an authorizer.
type Authorizer struct{ auth.Authorizer }

// Authorize implements the library's authorizer.
func (z Authorizer) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	at := auth.Attributes{Verb: a.GetVerb(), Group: a.GetAPIGroup(), Version: a.GetAPIVersion(), Resource: a.GetResource(),
		Subresource: a.GetSubresource(), Namespace: a.GetNamespace(), Name: a.GetName()}
	if u := a.GetUser(); u != nil {
		at.User = auth.User{Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: u.GetExtra()}
	}
	if !a.IsResourceRequest() {
		at.Path = a.GetPath()
	}
	if fields, err := a.GetFieldSelector(); err == nil {
		for i, f := range fields {
			if i > 0 {
				at.FieldSelector += ","
			}
			at.FieldSelector += f.Field + string(f.Operator) + f.Value
		}
	}
	d, reason, err := z.Authorizer.Authorize(ctx, at)
	switch d {
	case auth.Allow:
		return authorizer.DecisionAllow, reason, err
	case auth.Deny:
		return authorizer.DecisionDeny, reason, err
	}
	return authorizer.DecisionNoOpinion, reason, err
}
