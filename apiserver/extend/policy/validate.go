package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/extend/expr"
	"proa.dev/apiserver/extend/match"
	"proa.dev/kind"
)

// Bounds of what goes into the audit.
const (
	maxFailures        = 50
	maxAnnotationBytes = 10 << 10
)

// expression is one CEL expression with the types that it may give.
type expression struct {
	text  string
	types []*cel.Type
}

// GetExpression implements plugincel.ExpressionAccessor.
func (e *expression) GetExpression() string { return e.text }

// ReturnTypes implements plugincel.ExpressionAccessor.
func (e *expression) ReturnTypes() []*cel.Type { return e.types }

func boolean(text string) *expression { return &expression{text, []*cel.Type{cel.BoolType}} }
func text(text string) *expression    { return &expression{text, []*cel.Type{cel.StringType}} }
func annotation(text string) *expression {
	return &expression{text, []*cel.Type{cel.StringType, cel.NullType}}
}

// validating is one ValidatingAdmissionPolicy.
type validating struct {
	head
	spec *admissionregv1.ValidatingAdmissionPolicySpec
	*checks
}

// checks are a policy's compiled expressions.
type checks struct {
	scope       *expr.Scope
	conditions  *expr.Conditions
	validations plugincel.ConditionEvaluator
	messages    plugincel.ConditionEvaluator
	annotations plugincel.ConditionEvaluator
}

func parseValidating(o kind.Object) *validating {
	p := o.(*admissionregv1.ValidatingAdmissionPolicy)
	return &validating{spec: &p.Spec, checks: new(checks), head: head{name: p.Name, uid: p.UID, gen: p.Generation, match: p.Spec.MatchConstraints,
		selectors: selectorsOf(p.Spec.MatchConstraints), params: p.Spec.ParamKind, failure: p.Spec.FailurePolicy}}
}

func bindValidating(o kind.Object) *binding {
	b := o.(*admissionregv1.ValidatingAdmissionPolicyBinding)
	return &binding{name: b.Name, policy: b.Spec.PolicyName, ref: b.Spec.ParamRef, match: b.Spec.MatchResources,
		selectors: selectorsOf(b.Spec.MatchResources), actions: b.Spec.ValidationActions}
}

// compiled makes the programs when they are first needed.
func (v *validating) compiled() *checks {
	v.compile.Do(func() {
		scope := expr.NewScope(v.params != nil)
		for i := range v.spec.Variables {
			x := &v.spec.Variables[i]
			scope.Add(&expr.Variable{Name: x.Name, Expression: x.Expression}, environment.StoredExpressions)
		}
		full, plain := expr.Declared{Authorizer: true}, expr.Declared{}
		v.checks.scope = scope
		v.checks.conditions = expr.CompileConditions(v.spec.MatchConditions, scope)
		var validations, messages, annotations []plugincel.CompilationResult
		for i := range v.spec.Validations {
			x := &v.spec.Validations[i]
			validations = append(validations, scope.Compile(boolean(x.Expression), full, environment.StoredExpressions))
			var message plugincel.CompilationResult
			if x.MessageExpression != "" {
				message = scope.Compile(text(x.MessageExpression), plain, environment.StoredExpressions)
			}
			messages = append(messages, message)
		}
		for i := range v.spec.AuditAnnotations {
			annotations = append(annotations, scope.Compile(annotation(v.spec.AuditAnnotations[i].ValueExpression), full, environment.StoredExpressions))
		}
		v.checks.validations, v.checks.messages, v.checks.annotations = plugincel.NewCondition(validations), plugincel.NewCondition(messages), plugincel.NewCondition(annotations)
	})
	return v.checks
}

// decision is the outcome of one expression.
type decision struct {
	denied, failed bool // failed: by an error, not by the expression's value
	index          int
	message        string
	reason         metav1.StatusReason
	took           time.Duration
	binding        *binding // nil: the policy itself is wrong
	policy         *validating
}

func (d *decision) errorType() string {
	switch {
	case !d.denied && !d.failed:
		return "no_error"
	case strings.HasPrefix(d.message, "compilation"):
		return "compile_error"
	case strings.HasPrefix(d.message, "validation failed due to running out of cost budget"):
		return "out_of_budget"
	}
	return "invalid_error"
}

// validate evaluates all policies that match.
func (p *Policies) validate(ctx context.Context, r *admit.Request) error {
	policies := p.validating.in(r.Snapshot)
	if len(policies) == 0 || match.Exempt(r) || admit.IsInner(ctx) {
		return nil
	}
	q := match.New(r)
	run := &validation{p: p, q: q, ctx: ctx}
	for _, v := range policies {
		if err := run.policy(v); err != nil {
			return err
		}
	}
	run.publish()
	if len(run.denied) == 0 {
		return nil
	}
	return refusal(q, run.denied[0])
}

// refusal is what the client gets: the first reason.
func refusal(q *match.Request, d *decision) error {
	message := fmt.Sprintf("ValidatingAdmissionPolicy '%s' denied request: %s", d.policy.name, d.message)
	if d.binding != nil {
		message = fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", d.policy.name, d.binding.name, d.message)
	}
	err := q.Forbidden(errors.New(message))
	reason := d.reason
	if reason == "" {
		reason = metav1.StatusReasonInvalid
	}
	err.ErrStatus.Reason, err.ErrStatus.Code = reason, codeOf(reason)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	return err
}

func codeOf(r metav1.StatusReason) int32 {
	switch r {
	case metav1.StatusReasonForbidden:
		return http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		return http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusUnprocessableEntity
}

// validation is one request on its way through all policies.
type validation struct {
	p      *Policies
	q      *match.Request
	ctx    context.Context
	denied []*decision
	audit  []failure
	notes  map[string][]string // of one policy
}

// failure is one entry of the audit annotation of failed validations.
type failure struct {
	Message           string                            `json:"message"`
	Policy            string                            `json:"policy"`
	Binding           string                            `json:"binding"`
	ExpressionIndex   int                               `json:"expressionIndex"`
	ValidationActions []admissionregv1.ValidationAction `json:"validationActions"`
}

// wrong notes a mistake of the configuration.
func (run *validation) wrong(err error, v *validating, b *binding) {
	if v.ignores() {
		return
	}
	what := "binding"
	if b == nil {
		what = "policy"
	}
	run.denied = append(run.denied, &decision{denied: true, failed: true, message: fmt.Sprintf("failed to configure %s: %v", what, err), policy: v, binding: b})
}

// policy evaluates one policy with all its bindings.
func (run *validation) policy(v *validating) error {
	q := run.q
	row, err := q.Resources(v.match, &v.selectors)
	if err != nil {
		run.wrong(err, v, nil)
		return nil
	}
	if row == nil {
		return nil
	}
	kindOf, err := paramRow(q, v.params)
	if err != nil {
		run.wrong(err, v, nil)
		return nil
	}
	run.notes = nil
	for _, b := range v.bindings {
		ok, err := b.bound(q)
		if err != nil {
			run.wrong(err, v, b)
			continue
		}
		if !ok {
			continue
		}
		params, err := paramsFor(q, kindOf, b.ref)
		if err != nil {
			run.wrong(err, v, b)
			continue
		}
		if len(params) == 0 {
			continue
		}
		attrs, err := q.Version(row)
		if err != nil {
			run.wrong(fmt.Errorf("failed to convert object version: %w", err), v, b)
			continue
		}
		ns, err := namespaceOf(q)
		if err != nil {
			return err
		}
		for _, param := range params {
			run.evaluate(v, b, row, attrs, ns, param)
		}
	}
	for key, values := range run.notes {
		annotate(run.ctx, v.name+"/"+key, strings.Join(values, ", "))
	}
	return nil
}

// evaluate evaluates one policy with one parameter and does what the binding asks for.
func (run *validation) evaluate(v *validating, b *binding, row *kind.Kind, attrs *admission.VersionedAttributes, ns *corev1.Namespace, param runtime.Object) {
	meter := run.p.cfg.Meter
	decisions, notes := run.decide(v, row, attrs, ns, param)
	for i := range decisions {
		d := &decisions[i]
		d.policy, d.binding = v, b
		if !d.denied {
			if d.failed {
				meter.Policy(false, v.name, b.name, d.errorType(), "allow", d.took)
			}
			continue
		}
		for _, action := range b.actions {
			switch action {
			case admissionregv1.Deny:
				run.denied = append(run.denied, d)
				meter.Policy(false, v.name, b.name, d.errorType(), "deny", d.took)
			case admissionregv1.Audit:
				run.audit = append(run.audit, failure{d.message, v.name, b.name, d.index, b.actions})
				meter.Policy(false, v.name, b.name, d.errorType(), "audit", d.took)
			case admissionregv1.Warn:
				if run.q.Warn != nil {
					run.q.Warn(fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", v.name, b.name, d.message))
				}
				meter.Policy(false, v.name, b.name, d.errorType(), "warn", d.took)
			}
		}
	}
	for i := range notes {
		n := &notes[i]
		if n.err != "" {
			if !v.ignores() {
				d := &decision{denied: true, failed: true, message: n.err, policy: v, binding: b, took: n.took}
				run.denied = append(run.denied, d)
				meter.Policy(false, v.name, b.name, d.errorType(), "deny", d.took)
			}
			continue
		}
		if n.value == "" {
			continue
		}
		value := cut(n.value, maxAnnotationBytes)
		known := false
		for _, have := range run.notes[n.key] {
			known = known || have == value
		}
		if !known {
			if run.notes == nil {
				run.notes = map[string][]string{}
			}
			run.notes[n.key] = append(run.notes[n.key], value)
		}
	}
}

// noted is the value of one audit annotation; an empty one is left out.
type noted struct {
	key, value, err string
	took            time.Duration
}

// decide evaluates the expressions of a policy.
func (run *validation) decide(v *validating, row *kind.Kind, attrs *admission.VersionedAttributes, ns *corev1.Namespace, param runtime.Object) ([]decision, []noted) {
	c, authz := v.compiled(), run.p.authz
	deny := !v.ignores()
	whole := func(err error) []decision {
		return []decision{{denied: deny, failed: true, message: err.Error()}}
	}
	matches, failed, err := c.conditions.Match(run.ctx, attrs, row.GVR(), param, authz, v.failure)
	if failed {
		run.p.cfg.Meter.Condition(v.name, "policy", "validate", string(run.q.Operation), true)
	}
	if err != nil {
		return whole(err), nil
	}
	if !matches {
		return nil, nil
	}
	request := plugincel.CreateAdmissionRequest(attrs.Attributes, metav1.GroupVersionResource(row.GVR()), metav1.GroupVersionKind(attrs.VersionedKind))
	with := plugincel.OptionalVariableBindings{VersionedParams: param, Authorizer: authz}
	without := plugincel.OptionalVariableBindings{VersionedParams: param}
	shown := plugincel.CreateNamespaceObject(ns)
	results, left, err := c.validations.ForInput(c.scope.Context(run.ctx), attrs, request, with, shown, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return whole(err), nil
	}
	messages, _, messageErr := c.messages.ForInput(c.scope.Context(run.ctx), attrs, request, without, shown, left)
	decisions := make([]decision, len(results))
	for i := range results {
		d, result := &decisions[i], &results[i]
		d.index, d.took = i, result.Elapsed
		switch {
		case result.Error != nil:
			d.denied, d.failed, d.message = deny, true, result.Error.Error()
		case errors.Is(messageErr, apiservercel.ErrInternal) || errors.Is(messageErr, apiservercel.ErrOutOfBudget):
			d.denied, d.failed, d.message = deny, true, fmt.Sprintf("failed messageExpression: %s", messageErr)
		case result.EvalResult != celtypes.True:
			spec := &v.spec.Validations[i]
			d.denied, d.reason = true, metav1.StatusReasonInvalid
			if spec.Reason != nil {
				d.reason = *spec.Reason
			}
			if len(messages) > i {
				d.message = messageOf(&messages[i])
			}
			if d.message == "" {
				d.message = strings.TrimSpace(spec.Message)
			}
			if d.message == "" {
				d.message = "failed expression: " + strings.TrimSpace(spec.Expression)
			}
		}
	}
	values, _, err := c.annotations.ForInput(c.scope.Context(run.ctx), attrs, request, with, ns, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return whole(err), nil
	}
	notes := make([]noted, 0, len(values))
	for i := range values {
		value := &values[i]
		n := noted{key: v.spec.AuditAnnotations[i].Key, took: value.Elapsed}
		switch {
		case value.Error != nil:
			n.err = value.Error.Error()
		case value.EvalResult.Type() == celtypes.StringType:
			n.value = strings.TrimSpace(value.EvalResult.Value().(string))
		case value.EvalResult.Type() == celtypes.NullType:
		default:
			n.err = fmt.Sprintf("valueExpression '%v' resulted in unsupported return type: %v. Return type must be either string or null.",
				v.spec.AuditAnnotations[i].ValueExpression, value.EvalResult.Type())
		}
		notes = append(notes, n)
	}
	return decisions, notes
}

// messageOf is what a messageExpression gave, if that can be shown on one line.
func messageOf(r *plugincel.EvaluationResult) string {
	if r.Error != nil || r.EvalResult == nil {
		return ""
	}
	m, ok := r.EvalResult.Value().(string)
	if m = strings.TrimSpace(m); !ok || len(m) > celconfig.MaxEvaluatedMessageExpressionSizeBytes || strings.Contains(m, "\n") {
		return ""
	}
	return m
}

// publish tells the audit what failed.
func (run *validation) publish() {
	if len(run.audit) == 0 {
		return
	}
	if len(run.audit) > maxFailures {
		run.audit = run.audit[:maxFailures]
	}
	if b, err := json.Marshal(run.audit); err == nil {
		annotate(run.ctx, "validation.policy.admission.k8s.io/validation_failure", string(b))
	}
}

// share takes over what was compiled for the same generation.
func (v *validating) share(old any) {
	if o, ok := old.(*validating); ok {
		o.compiled()
		v.checks = o.checks
		v.compile.Do(func() {})
	}
}
