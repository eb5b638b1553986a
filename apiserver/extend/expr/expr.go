// Package expr compiles and evaluates the CEL expressions of dynamic admission:
// match conditions of webhooks, and the variables, conditions, validations, messages,
// annotations and mutations of admission policies (Kubernetes docs, "Common
// Expression Language in Kubernetes"). The language, its libraries, cost limits and
// the patch types are those of k8s.io/apiserver.
//
// The environments cost some milliseconds and are made on first use, one for each
// set of declared variables, and shared by all policies; only a policy with
// variables of its own has one more.
package expr

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"k8s.io/apimachinery/pkg/util/version"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/lazy"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/mutation"
)

// Declared says which variables expressions may use besides object, oldObject,
// request and namespaceObject.
type Declared struct {
	Params, Authorizer bool
	Patch              bool // the types Object and JSONPatch
	Variables          bool // variables, even without any field
}

// always: these options are present in every version of the language.
var always = version.MajorMinor(1, 0)

var base = sync.OnceValue(func() *environment.EnvSet {
	return environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
})

var requestTypes = sync.OnceValues(func() (request, namespace *apiservercel.DeclType) {
	return plugincel.BuildRequestType(), plugincel.BuildNamespaceType()
})

var environments sync.Map // Declared → func() (*environment.EnvSet, error)

// shared is the environment of expressions without variables of their own.
func shared(d Declared) (*environment.EnvSet, error) {
	made, ok := environments.Load(d)
	if !ok {
		made, _ = environments.LoadOrStore(d, sync.OnceValues(func() (*environment.EnvSet, error) {
			if d.Variables {
				return build(d, variablesType())
			}
			return build(d, nil)
		}))
	}
	return made.(func() (*environment.EnvSet, error))()
}

func build(d Declared, variables *apiservercel.DeclType) (*environment.EnvSet, error) {
	return buildTyped(d, Types{}, variables)
}

func buildTyped(d Declared, t Types, variables *apiservercel.DeclType) (*environment.EnvSet, error) {
	request, namespace := requestTypes()
	object := cel.DynType
	if t.Object != nil {
		object = t.Object.CelType()
	}
	options := []cel.EnvOption{
		cel.Variable(plugincel.ObjectVarName, object),
		cel.Variable(plugincel.OldObjectVarName, object),
		cel.Variable(plugincel.NamespaceVarName, namespace.CelType()),
		cel.Variable(plugincel.RequestVarName, request.CelType()),
	}
	declared := []*apiservercel.DeclType{namespace, request}
	if t.Object != nil {
		declared = append(declared, t.Object)
	}
	if d.Params {
		params := cel.DynType
		if t.Params != nil {
			params, declared = t.Params.CelType(), append(declared, t.Params)
		}
		options = append(options, cel.Variable(plugincel.ParamsVarName, params))
	}
	if d.Authorizer {
		options = append(options, cel.Variable(plugincel.AuthorizerVarName, library.AuthorizerType),
			cel.Variable(plugincel.RequestResourceAuthorizerVarName, library.ResourceCheckType))
	}
	if variables != nil {
		options = append(options, cel.Variable(plugincel.VariableVarName, variables.CelType()))
		declared = append(declared, variables)
	}
	set, err := base().Extend(environment.VersionedOptions{IntroducedVersion: always, EnvOptions: options, DeclTypes: declared}, environment.StrictCostOpt)
	if err == nil && d.Patch {
		set, err = set.Extend(environment.VersionedOptions{IntroducedVersion: always, EnvOptions: []cel.EnvOption{
			common.ResolverEnvOption(&mutation.DynamicTypeResolver{}), environment.UnversionedLib(library.JSONPatch)}})
	}
	if err != nil {
		return nil, fmt.Errorf("make the environment of expressions: %w", err)
	}
	return set, nil
}

func variablesType() *apiservercel.DeclType {
	return apiservercel.NewObjectType("kubernetes.variables", map[string]*apiservercel.DeclField{})
}

// Compile checks one expression and makes its program. Its error is upstream's.
func Compile(a plugincel.ExpressionAccessor, d Declared, mode environment.Type) plugincel.CompilationResult {
	set, err := shared(d)
	return compile(set, err, a, mode)
}

func compile(set *environment.EnvSet, err error, a plugincel.ExpressionAccessor, mode environment.Type) plugincel.CompilationResult {
	fail := func(kind apiservercel.ErrorType, detail string, cause error) plugincel.CompilationResult {
		return plugincel.CompilationResult{ExpressionAccessor: a, Error: &apiservercel.Error{Type: kind, Detail: detail, Cause: cause}}
	}
	if err != nil {
		return fail(apiservercel.ErrorTypeInternal, err.Error(), nil)
	}
	env, err := set.Env(mode)
	if err != nil {
		return fail(apiservercel.ErrorTypeInternal, fmt.Sprintf("unexpected error loading CEL environment: %v", err), nil)
	}
	ast, issues := env.Compile(a.GetExpression())
	if issues != nil {
		return fail(apiservercel.ErrorTypeInvalid, "compilation failed: "+issues.String(), apiservercel.NewCompilationError(issues))
	}
	wanted := a.ReturnTypes()
	if !returns(ast.OutputType(), wanted) {
		if len(wanted) == 1 {
			return fail(apiservercel.ErrorTypeInvalid, fmt.Sprintf("must evaluate to %v but got %v", wanted[0].String(), ast.OutputType().String()), nil)
		}
		return fail(apiservercel.ErrorTypeInvalid, fmt.Sprintf("must evaluate to one of %v but got %v", wanted, ast.OutputType().String()), nil)
	}
	program, err := env.Program(ast, cel.InterruptCheckFrequency(celconfig.CheckFrequency))
	if err != nil {
		return fail(apiservercel.ErrorTypeInternal, "program instantiation failed: "+err.Error(), nil)
	}
	return plugincel.CompilationResult{Program: program, ExpressionAccessor: a, OutputType: ast.OutputType()}
}

func returns(got *cel.Type, wanted []*cel.Type) bool {
	for _, w := range wanted {
		if got.IsExactType(w) || cel.AnyType.IsExactType(w) {
			return true
		}
	}
	return false
}

// Scope is the environment of one policy: what it declares and its variables.
type Scope struct {
	params    bool
	variables *apiservercel.DeclType
	compiled  []variable
	own       map[Declared]*environment.EnvSet // only when there are variables
}

type variable struct {
	name   string
	result plugincel.CompilationResult
}

// Variable is one named expression.
type Variable struct{ Name, Expression string }

// GetExpression implements plugincel.ExpressionAccessor.
func (v *Variable) GetExpression() string { return v.Expression }

// GetName implements plugincel.NamedExpressionAccessor.
func (v *Variable) GetName() string { return v.Name }

// ReturnTypes implements plugincel.ExpressionAccessor.
func (v *Variable) ReturnTypes() []*cel.Type { return []*cel.Type{cel.AnyType, cel.DynType} }

// NewScope makes a scope without variables.
func NewScope(params bool) *Scope { return &Scope{params: params, variables: variablesType()} }

// Add compiles a variable; those that come after it may refer to it.
func (s *Scope) Add(v *Variable, mode environment.Type) plugincel.CompilationResult {
	if s.own == nil {
		s.own = map[Declared]*environment.EnvSet{}
	}
	result := s.Compile(v, Declared{Authorizer: true}, mode)
	s.variables.Fields[v.Name] = apiservercel.NewDeclField(v.Name, declOf(result.OutputType), true, nil, nil)
	s.compiled = append(s.compiled, variable{v.Name, result})
	return result
}

// Compile compiles an expression in the scope.
func (s *Scope) Compile(a plugincel.ExpressionAccessor, d Declared, mode environment.Type) plugincel.CompilationResult {
	d.Params, d.Variables = s.params, true
	if s.own == nil {
		return Compile(a, d, mode)
	}
	set := s.own[d]
	if set == nil {
		var err error
		if set, err = build(d, s.variables); err != nil {
			return compile(nil, err, a, mode)
		}
		s.own[d] = set
	}
	return compile(set, nil, a, mode)
}

// Context lets the expressions of the scope reach its variables: each is evaluated
// when it is first needed, once in a context made for one evaluation.
func (s *Scope) Context(parent context.Context) context.Context {
	return &composition{Context: parent, scope: s}
}

// composition implements plugincel.CompositionContext.
type composition struct {
	context.Context
	scope *Scope
	cost  int64
}

// Variables implements plugincel.CompositionContext.
func (c *composition) Variables(activation any) ref.Val {
	m := lazy.NewMapValue(c.scope.variables)
	for i := range c.scope.compiled {
		v := &c.scope.compiled[i]
		m.Append(v.name, func(*lazy.MapValue) ref.Val { return c.value(v, activation) })
	}
	return m
}

func (c *composition) value(v *variable, activation any) ref.Val {
	if v.result.Error != nil {
		return types.NewErr("composited variable %q fails to compile: %v", v.name, v.result.Error)
	}
	out, details, err := v.result.Program.ContextEval(c, activation)
	if details == nil {
		return types.NewErr("unable to get evaluation details of variable %q", v.name)
	}
	cost := details.ActualCost()
	if cost == nil {
		return types.NewErr("unable to calculate cost of variable %q", v.name)
	}
	if *cost > math.MaxInt64-uint64(c.cost) {
		c.cost = math.MaxInt64
	} else {
		c.cost += int64(*cost)
	}
	if err != nil {
		return types.NewErr("composited variable %q fails to evaluate: %v", v.name, err)
	}
	return out
}

// GetAndResetCost implements plugincel.CompositionContext.
func (c *composition) GetAndResetCost() int64 {
	cost := c.cost
	c.cost = 0
	return cost
}

// declOf is the declared type of what an expression gives; what is not known
// exactly is dyn.
func declOf(t *cel.Type) *apiservercel.DeclType {
	switch t {
	case nil:
		return apiservercel.DynType
	case cel.AnyType:
		return apiservercel.AnyType
	case cel.BoolType:
		return apiservercel.BoolType
	case cel.BytesType:
		return apiservercel.BytesType
	case cel.DoubleType:
		return apiservercel.DoubleType
	case cel.DurationType:
		return apiservercel.DurationType
	case cel.IntType:
		return apiservercel.IntType
	case cel.NullType:
		return apiservercel.NullType
	case cel.StringType:
		return apiservercel.StringType
	case cel.TimestampType:
		return apiservercel.TimestampType
	case cel.UintType:
		return apiservercel.UintType
	}
	if t.HasTrait(traits.ContainerType) && t.HasTrait(traits.IndexerType) {
		switch p := t.Parameters(); len(p) {
		case 1:
			return apiservercel.NewListType(declOf(p[0]), -1)
		case 2:
			return apiservercel.NewMapType(declOf(p[0]), declOf(p[1]), -1)
		}
	}
	return apiservercel.DynType
}
