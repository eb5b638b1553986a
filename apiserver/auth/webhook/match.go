package webhook

import (
	"context"
	"errors"
	"fmt"
	"sync"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/version"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// Matcher evaluates match conditions over a review's spec. Nil matches all.
type Matcher struct{ programs []program }

type program struct {
	text string
	celgo.Program
}

// maxConditions of one webhook.
const maxConditions = 64

// language declares the variable request; it takes 10 ms to make, so it is made when
// the first condition is compiled.
var language = sync.OnceValues(func() (*celgo.Env, error) {
	object := func(name string, fields ...*apicel.DeclField) *apicel.DeclType {
		m := make(map[string]*apicel.DeclField, len(fields))
		for _, f := range fields {
			m[f.Name] = f
		}
		return apicel.NewObjectType(name, m)
	}
	field := func(name string, t *apicel.DeclType) *apicel.DeclField {
		return apicel.NewDeclField(name, t, false, nil, nil)
	}
	text := func(names ...string) (out []*apicel.DeclField) {
		for _, n := range names {
			out = append(out, field(n, apicel.StringType))
		}
		return out
	}
	texts := apicel.NewListType(apicel.StringType, -1)
	requirement := object("kubernetes.SelectorRequirement", append(text("key", "operator"), field("values", texts))...)
	selector := func(name string) *apicel.DeclType {
		return object(name, append(text("rawSelector"), field("requirements", apicel.NewListType(requirement, -1)))...)
	}
	resource := object("kubernetes.ResourceAttributes", append(text("namespace", "verb", "group", "version", "resource", "subresource", "name"),
		field("fieldSelector", selector("kubernetes.FieldSelectorAttributes")), field("labelSelector", selector("kubernetes.LabelSelectorAttributes")))...)
	request := object("kubernetes.SubjectAccessReviewSpec", append(text("user", "uid"), field("resourceAttributes", resource),
		field("nonResourceAttributes", object("kubernetes.NonResourceAttributes", text("path", "verb")...)),
		field("groups", texts), field("extra", apicel.NewMapType(apicel.StringType, texts, -1)))...)
	set, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Extend(environment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: []celgo.EnvOption{celgo.Variable("request", request.CelType())}, DeclTypes: []*apicel.DeclType{request}})
	if err != nil {
		return nil, err
	}
	return set.Env(environment.StoredExpressions)
})

// NewMatcher compiles conditions; none: nil.
func NewMatcher(expressions []string) (*Matcher, error) {
	if len(expressions) == 0 {
		return nil, nil
	}
	if len(expressions) > maxConditions {
		return nil, fmt.Errorf("matchConditions: Too many: %d: must have at most %d items", len(expressions), maxConditions)
	}
	e, err := language()
	if err != nil {
		return nil, fmt.Errorf("make CEL environment: %w", err)
	}
	m := new(Matcher)
	seen := map[string]bool{}
	var bad []error
	for i, text := range expressions {
		fail := func(format string, args ...any) {
			bad = append(bad, fmt.Errorf("matchConditions[%d].expression: "+format, append([]any{i}, args...)...))
		}
		switch {
		case text == "":
			fail("Required value")
			continue
		case seen[text]:
			fail("Duplicate value: %q", text)
			continue
		}
		seen[text] = true
		ast, issues := e.Compile(text)
		if issues != nil {
			fail("Invalid value: %q: compilation failed: %s", text, issues.String())
			continue
		}
		if ast.OutputType() != celgo.BoolType {
			fail("Invalid value: %q: must evaluate to bool but got %v", text, ast.OutputType())
			continue
		}
		p, err := e.Program(ast)
		if err != nil {
			fail("Invalid value: %q: program instantiation failed: %w", text, err)
			continue
		}
		m.programs = append(m.programs, program{text, p})
	}
	return m, errors.Join(bad...)
}

// Match is true when all conditions are. One that is false decides, though
// others fail.
func (m *Matcher) Match(ctx context.Context, s *authorizationv1.SubjectAccessReviewSpec) (bool, error) {
	if m == nil {
		return true, nil
	}
	vars := map[string]any{"request": plain(s)}
	var bad []error
	for _, p := range m.programs {
		v, _, err := p.ContextEval(ctx, vars)
		switch {
		case err != nil:
			bad = append(bad, fmt.Errorf("cel evaluation error: expression '%v' resulted in error: %w", p.text, err))
		case v != types.True:
			return false, nil
		}
	}
	return len(bad) == 0, errors.Join(bad...)
}

// plain are all fields, empty ones too, so that conditions need no has().
func plain(s *authorizationv1.SubjectAccessReviewSpec) map[string]any {
	extra := map[string][]string{}
	for k, v := range s.Extra {
		extra[k] = v
	}
	groups := s.Groups
	if groups == nil {
		groups = []string{}
	}
	out := map[string]any{"user": s.User, "uid": s.UID, "groups": groups, "extra": extra}
	if n := s.NonResourceAttributes; n != nil {
		out["nonResourceAttributes"] = map[string]any{"path": n.Path, "verb": n.Verb}
	}
	r := s.ResourceAttributes
	if r == nil {
		return out
	}
	res := map[string]any{"namespace": r.Namespace, "verb": r.Verb, "group": r.Group, "version": r.Version, "resource": r.Resource, "subresource": r.Subresource, "name": r.Name}
	requirement := func(key, op string, values []string) map[string]any {
		return map[string]any{"key": key, "operator": op, "values": values}
	}
	if f := r.FieldSelector; f != nil && len(f.Requirements) > 0 {
		var list []any
		for _, q := range f.Requirements {
			list = append(list, requirement(q.Key, string(q.Operator), q.Values))
		}
		res["fieldSelector"] = map[string]any{"requirements": list}
	}
	if l := r.LabelSelector; l != nil && len(l.Requirements) > 0 {
		var list []any
		for _, q := range l.Requirements {
			list = append(list, requirement(q.Key, string(q.Operator), q.Values))
		}
		res["labelSelector"] = map[string]any{"requirements": list}
	}
	out["resourceAttributes"] = res
	return out
}
