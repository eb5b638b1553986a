package expr

import (
	"errors"

	"github.com/google/cel-go/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/openapi"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Types are what expressions see of objects and parameters; nil: anything.
type Types struct{ Object, Params *apiservercel.DeclType }

// TypeOf is the type of a resolved schema of a whole object under a name, which must
// be the only one of its kind among Types. Nil: nothing is known of it.
func TypeOf(s *spec.Schema, name string) *apiservercel.DeclType {
	t := common.SchemaDeclType(&openapi.Schema{Schema: s}, true)
	if t == nil {
		return nil
	}
	return t.MaybeAssignTypeName(name)
}

// Checker checks expressions of a policy against the types of one kind. It says
// more than Compile, where objects may be anything, and nothing of what an
// expression gives.
type Checker struct {
	env *cel.Env
}

// NewChecker makes the environment of a policy with its variables. A variable that
// does not compile is of any type.
func NewChecker(t Types, params bool, variables []Variable) (*Checker, error) {
	d, fields := Declared{Params: params, Authorizer: true, Variables: true}, variablesType()
	env, err := typed(d, t, fields)
	for i := range variables {
		if err != nil {
			return nil, err
		}
		var kind *cel.Type
		if ast, issues := env.Compile(variables[i].Expression); issues.Err() == nil {
			kind = ast.OutputType()
		}
		fields.Fields[variables[i].Name] = apiservercel.NewDeclField(variables[i].Name, declOf(kind), true, nil, nil)
		env, err = typed(d, t, fields)
	}
	if err != nil {
		return nil, err
	}
	return &Checker{env}, nil
}

func typed(d Declared, t Types, variables *apiservercel.DeclType) (*cel.Env, error) {
	set, err := buildTyped(d, t, variables)
	if err != nil {
		return nil, err
	}
	return set.Env(environment.StoredExpressions)
}

// Check says what is wrong with an expression, in the words of the language's
// compiler; nil: nothing.
func (c *Checker) Check(expression string) error {
	if _, issues := c.env.Compile(expression); issues != nil && issues.Err() != nil {
		return errors.New(issues.String())
	}
	return nil
}
