package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"proa.dev/apiserver/admit"
	"proa.dev/apiserver/extend/expr"
	"proa.dev/apiserver/extend/match"
	"proa.dev/kind"
)

// mutating is one MutatingAdmissionPolicy.
type mutating struct {
	head
	spec *admissionregv1.MutatingAdmissionPolicySpec
	*patches
}

// patches are a policy's compiled expressions.
type patches struct {
	scope      *expr.Scope
	conditions *expr.Conditions
	patchers   []patch.Patcher // nil where a mutation is of an unknown type
}

func parseMutating(o kind.Object) *mutating {
	p := o.(*admissionregv1.MutatingAdmissionPolicy)
	return &mutating{spec: &p.Spec, patches: new(patches), head: head{name: p.Name, uid: p.UID, gen: p.Generation, match: p.Spec.MatchConstraints,
		selectors: selectorsOf(p.Spec.MatchConstraints), params: p.Spec.ParamKind, failure: p.Spec.FailurePolicy}}
}

func bindMutating(o kind.Object) *binding {
	b := o.(*admissionregv1.MutatingAdmissionPolicyBinding)
	return &binding{name: b.Name, policy: b.Spec.PolicyName, ref: b.Spec.ParamRef, match: b.Spec.MatchResources, selectors: selectorsOf(b.Spec.MatchResources)}
}

func (m *mutating) compiled() *patches {
	m.compile.Do(func() {
		scope := expr.NewScope(m.params != nil)
		for i := range m.spec.Variables {
			x := &m.spec.Variables[i]
			scope.Add(&expr.Variable{Name: x.Name, Expression: x.Expression}, environment.StoredExpressions)
		}
		m.patches.scope = scope
		m.patches.conditions = expr.CompileConditions(m.spec.MatchConditions, scope)
		declared := expr.Declared{Authorizer: true, Patch: true}
		for i := range m.spec.Mutations {
			x := &m.spec.Mutations[i]
			var p patch.Patcher
			switch {
			case x.PatchType == admissionregv1.PatchTypeJSONPatch && x.JSONPatch != nil:
				p = patch.NewJSONPatcher(plugincel.NewMutatingEvaluator(scope.Compile(&patch.JSONPatchCondition{Expression: x.JSONPatch.Expression}, declared, environment.StoredExpressions)))
			case x.PatchType == admissionregv1.PatchTypeApplyConfiguration && x.ApplyConfiguration != nil:
				p = patch.NewApplyConfigurationPatcher(plugincel.NewMutatingEvaluator(scope.Compile(&patch.ApplyConfigurationCondition{Expression: x.ApplyConfiguration.Expression}, declared, environment.StoredExpressions)))
			}
			m.patches.patchers = append(m.patches.patchers, p)
		}
	})
	return m.patches
}

// share takes over what was compiled for the same generation.
func (m *mutating) share(old any) {
	if o, ok := old.(*mutating); ok {
		o.compiled()
		m.patches = o.patches
		m.compile.Do(func() {})
	}
}

// invocation is a policy with a binding and a parameter; comparable.
type invocation struct{ policy, binding, paramSpace, param string }

// problem is why a policy could not do its work.
type problem struct {
	policy  *mutating
	binding *binding
	err     error
	reason  metav1.StatusReason
}

func (p *problem) Error() string {
	if p.binding != nil {
		return fmt.Sprintf("policy '%s' with binding '%s' denied request: %s", p.policy.name, p.binding.name, p.err)
	}
	return fmt.Sprintf("policy %q denied request: %s", p.policy.name, p.err)
}

// mutate carries out all policies that match.
func (p *Policies) mutate(ctx context.Context, r *admit.Request) error {
	policies := p.mutating.in(r.Snapshot)
	if len(policies) == 0 || r.Operation == admit.Delete || match.Exempt(r) || admit.IsInner(ctx) {
		return nil
	}
	run := &mutation{p: p, q: match.New(r), ctx: ctx}
	for _, m := range policies {
		if err := run.choose(m); err != nil {
			return err
		}
	}
	if len(run.steps) > 0 {
		if err := run.carryOut(); err != nil {
			return err
		}
	}
	var refused []*problem
	for i := range run.problems {
		if !run.problems[i].policy.ignores() {
			refused = append(refused, &run.problems[i])
		}
	}
	if len(refused) == 0 {
		return nil
	}
	err := run.q.Forbidden(errors.New("admission request denied by policy"))
	err.ErrStatus.Message = refused[0].Error()
	if refused[0].reason != "" {
		err.ErrStatus.Reason = refused[0].reason
	}
	for _, x := range refused {
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: x.Error()})
	}
	return err
}

// mutation is one request on its way through all policies.
type mutation struct {
	p        *Policies
	q        *match.Request
	ctx      context.Context
	steps    []step
	problems []problem
}

type step struct {
	policy  *mutating
	binding *binding
	row     *kind.Kind
	param   runtime.Object
}

func (s *step) id() invocation {
	id := invocation{policy: s.policy.name, binding: s.binding.name}
	if o, ok := s.param.(metav1.Object); ok && s.param != nil {
		id.paramSpace, id.param = o.GetNamespace(), o.GetName()
	}
	return id
}

func (run *mutation) wrong(err error, m *mutating, b *binding) {
	what := "binding"
	if b == nil {
		what = "policy"
	}
	run.problems = append(run.problems, problem{policy: m, binding: b, err: fmt.Errorf("failed to configure %s: %w", what, err)})
}

// choose finds a policy's steps for the request.
func (run *mutation) choose(m *mutating) error {
	q := run.q
	row, err := q.Resources(m.match, &m.selectors)
	if err != nil {
		run.wrong(err, m, nil)
		return nil
	}
	if row == nil {
		return nil
	}
	kindOf, err := paramRow(q, m.params)
	if err != nil {
		run.wrong(err, m, nil)
		return nil
	}
	for _, b := range m.bindings {
		ok, err := b.bound(q)
		if err != nil {
			run.wrong(err, m, b)
			continue
		}
		if !ok {
			continue
		}
		if _, err := q.Version(row); err != nil {
			run.wrong(err, m, nil)
			continue
		}
		params, err := paramsFor(q, kindOf, b.ref)
		if err != nil {
			run.wrong(err, m, b)
			continue
		}
		for _, param := range params {
			run.steps = append(run.steps, step{m, b, row, param})
		}
	}
	return nil
}

// carryOut takes the steps one after the other.
func (run *mutation) carryOut() error {
	q, r := run.q, run.q.Request
	memory := match.Remember[invocation](r, MutatingName)
	if r.Again {
		memory.Resume(r.Object)
	}
	ns, err := namespaceOf(q)
	if err != nil {
		return err
	}
	for i := range run.steps {
		s := &run.steps[i]
		c := s.policy.compiled()
		v, err := q.Version(s.row)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		matches, failed, err := c.conditions.Match(run.ctx, v, s.row.GVR(), s.param, run.p.authz, s.policy.failure)
		if failed {
			run.p.cfg.Meter.Condition(s.policy.name, "policy", "admit", string(q.Operation), true)
		}
		if err != nil {
			run.problems = append(run.problems, problem{s.policy, s.binding, err, metav1.StatusReasonInvalid})
			continue
		}
		id := s.id()
		if !matches || r.Again && !memory.Again(id) {
			continue
		}
		changed, err := run.step(s, c, ns)
		if err != nil {
			return err
		}
		if changed {
			memory.Changed()
			r.Reinvoke = true
		}
		if s.policy.spec.ReinvocationPolicy == admissionregv1.IfNeededReinvocationPolicy {
			memory.Ready(id)
		}
	}
	if !r.Again {
		memory.Keep(r.Object)
	}
	return nil
}

// step carries out the mutations of one policy with one parameter. Errors of the
// policy are noted as problems, those returned end the request.
func (run *mutation) step(s *step, c *patches, ns *corev1.Namespace) (changed bool, err error) {
	q := run.q
	for _, patcher := range c.patchers {
		v, err := q.Version(s.row)
		if err != nil {
			return changed, apierrors.NewInternalError(err)
		}
		before := v.VersionedObject.Object()
		if before == nil {
			continue
		}
		if patcher == nil {
			return changed, apierrors.NewInternalError(fmt.Errorf("policy %q has a mutation of an unknown type", s.policy.name))
		}
		start := run.p.cfg.Clock.Now()
		after, err := run.patch(s, c, patcher, ns)
		took := run.p.cfg.Clock.Now().Sub(start)
		run.p.cfg.Meter.Policy(true, s.policy.name, s.binding.name, errorType(err), "", took)
		if err != nil {
			var se *apierrors.StatusError
			if errors.As(err, &se) {
				return changed, se
			}
			run.problems = append(run.problems, problem{s.policy, s.binding, err, metav1.StatusReasonInvalid})
			continue
		}
		if !apiequality.Semantic.DeepEqual(before, after) {
			changed = true
			if err := q.Update(s.row, after); err != nil {
				return changed, apierrors.NewInternalError(err)
			}
		}
	}
	return changed, nil
}

func errorType(err error) string {
	switch {
	case err == nil:
		return "no_error"
	case strings.HasPrefix(err.Error(), "compilation"):
		return "compile_error"
	case strings.HasPrefix(err.Error(), "validation failed due to running out of cost budget"):
		return "out_of_budget"
	}
	return "invalid_error"
}

// patch evaluates one mutation and gives the new object, complete.
func (run *mutation) patch(s *step, c *patches, patcher patch.Patcher, ns *corev1.Namespace) (runtime.Object, error) {
	q := run.q
	v, err := q.Version(s.row)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	before := v.VersionedObject.Object()
	request := patch.Request{MatchedResource: s.row.GVR(), VersionedAttributes: v, ObjectInterfaces: interfaces{}, Namespace: ns,
		OptionalVariables: plugincel.OptionalVariableBindings{VersionedParams: s.param, Authorizer: run.p.authz}}
	if run.p.cfg.TypeConverter != nil {
		if request.TypeConverter, err = run.p.cfg.TypeConverter(s.row); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	after, err := patcher.Patch(c.scope.Context(run.ctx), request, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return nil, err
	}
	if after == before {
		return after, nil // a test of the patch has failed
	}
	if u, ok := after.(*unstructured.Unstructured); ok {
		if _, ok := before.(*unstructured.Unstructured); !ok {
			typed, err := q.New(s.row)
			if err != nil {
				return nil, apierrors.NewInternalError(err)
			}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, typed); err != nil {
				return nil, fmt.Errorf("failed to convert typed object to object: %w", err)
			}
			after = typed
		}
	}
	after.GetObjectKind().SetGroupVersionKind(before.GetObjectKind().GroupVersionKind())
	q.Default(s.row, after)
	return after, nil
}
