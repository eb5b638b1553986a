package audit

import (
	"fmt"
	"os"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/auth"
)

// Policy says at which level a request is recorded: the first rule that matches.
type Policy struct{ auditv1.Policy }

// maxPolicy bounds the file; a policy is written by people.
const maxPolicy = 3 << 20

// ReadPolicy reads a policy file.
func ReadPolicy(path string) (*Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read audit policy: %w", err)
	}
	p, err := ParsePolicy(data)
	if err != nil {
		return nil, fmt.Errorf("read audit policy %q: %w", path, err)
	}
	return p, nil
}

// ParsePolicy reads an audit.k8s.io/v1 Policy in YAML or JSON. Unknown fields are
// an error, and so is a policy without rules, as upstream.
func ParsePolicy(data []byte) (*Policy, error) {
	if len(data) > maxPolicy {
		return nil, fmt.Errorf("parse policy: %d bytes are more than the %d allowed", len(data), maxPolicy)
	}
	j, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("parse policy: %w", err)
	}
	p := new(Policy)
	strict, err := kjson.UnmarshalStrict(j, &p.Policy)
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse policy: %w", err)
	case p.APIVersion != "audit.k8s.io/v1" || p.Kind != "Policy":
		return nil, fmt.Errorf("parse policy: apiVersion %q and kind %q; it must be audit.k8s.io/v1 and Policy", p.APIVersion, p.Kind)
	case len(strict) > 0:
		return nil, fmt.Errorf("parse policy: %w", strict[0])
	case len(p.Rules) == 0:
		return nil, fmt.Errorf("loaded illegal policy with 0 rules; add at least one rule such as {level: Metadata}")
	}
	if errs := validate(&p.Policy); len(errs) > 0 {
		return nil, fmt.Errorf("parse policy: %w", errs.ToAggregate())
	}
	for i := range p.Rules {
		p.Rules[i].OmitStages = append(slices.Clone(p.Rules[i].OmitStages), p.OmitStages...)
	}
	return p, nil
}

var (
	levels = []auditv1.Level{auditv1.LevelNone, auditv1.LevelMetadata, auditv1.LevelRequest, auditv1.LevelRequestResponse}
	stages = []auditv1.Stage{auditv1.StageRequestReceived, auditv1.StageResponseStarted, auditv1.StageResponseComplete, auditv1.StagePanic}
)

func validate(p *auditv1.Policy) field.ErrorList {
	errs := validateStages(p.OmitStages, field.NewPath("omitStages"))
	for i := range p.Rules {
		r, path := &p.Rules[i], field.NewPath("rules").Index(i)
		switch {
		case r.Level == "":
			errs = append(errs, field.Required(path.Child("level"), ""))
		case !slices.Contains(levels, r.Level):
			errs = append(errs, field.NotSupported(path.Child("level"), r.Level, levels))
		}
		urls := path.Child("nonResourceURLs")
		for j, u := range r.NonResourceURLs {
			if u == "*" {
				continue
			}
			if !strings.HasPrefix(u, "/") {
				errs = append(errs, field.Invalid(urls.Index(j), u, "non-resource URL rules must begin with a '/' character"))
			}
			if u != "" && strings.ContainsRune(u[:len(u)-1], '*') {
				errs = append(errs, field.Invalid(urls.Index(j), u, "non-resource URL wildcards '*' must be the final character of the rule"))
			}
		}
		for _, g := range r.Resources {
			if g.Group != "" && g.Group != "*" {
				if bad := apivalidation.NameIsDNSSubdomain(g.Group, false); len(bad) > 0 {
					errs = append(errs, field.Invalid(path.Child("resources", "group"), g.Group, strings.Join(bad, ",")))
				}
			}
			if len(g.ResourceNames) > 0 && len(g.Resources) == 0 {
				errs = append(errs, field.Invalid(path.Child("resources", "resourceNames"), g.ResourceNames, "using resourceNames requires at least one resource"))
			}
		}
		errs = append(errs, validateStages(r.OmitStages, path.Child("omitStages"))...)
		if len(r.NonResourceURLs) > 0 && (len(r.Resources) > 0 || len(r.Namespaces) > 0) {
			errs = append(errs, field.Invalid(urls, r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
	}
	return errs
}

func validateStages(list []auditv1.Stage, path *field.Path) (errs field.ErrorList) {
	for i, s := range list {
		if !slices.Contains(stages, s) {
			errs = append(errs, field.Invalid(path.Index(i), string(s), "allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic"))
		}
	}
	return errs
}

// decision is what the policy says about one request.
type decision struct {
	level             auditv1.Level
	omit              []auditv1.Stage
	omitManagedFields bool
}

func (p *Policy) decide(a *auth.Attributes) decision {
	for i := range p.Rules {
		if r := &p.Rules[i]; matches(r, a) {
			d := decision{r.Level, r.OmitStages, p.OmitManagedFields}
			if r.OmitManagedFields != nil {
				d.omitManagedFields = *r.OmitManagedFields
			}
			return d
		}
	}
	return decision{level: auditv1.LevelNone}
}

func matches(r *auditv1.PolicyRule, a *auth.Attributes) bool {
	if len(r.Users) > 0 && !slices.Contains(r.Users, a.User.Name) {
		return false
	}
	if len(r.UserGroups) > 0 && !slices.ContainsFunc(r.UserGroups, a.User.In) {
		return false
	}
	if len(r.Verbs) > 0 && !slices.Contains(r.Verbs, a.Verb) {
		return false
	}
	if len(r.Namespaces) > 0 || len(r.Resources) > 0 {
		if a.Path != "" || len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, a.Namespace) {
			return false
		}
		return len(r.Resources) == 0 || slices.ContainsFunc(r.Resources, func(g auditv1.GroupResources) bool { return matchesResource(&g, a) })
	}
	if len(r.NonResourceURLs) > 0 {
		return a.Path != "" && slices.ContainsFunc(r.NonResourceURLs, func(u string) bool {
			prefix, wild := strings.CutSuffix(u, "*")
			return u == a.Path || wild && strings.HasPrefix(a.Path, prefix)
		})
	}
	return true
}

func matchesResource(g *auditv1.GroupResources, a *auth.Attributes) bool {
	if g.Group != a.Group && g.Group != "*" {
		return false
	}
	if len(g.Resources) == 0 {
		return true
	}
	if len(g.ResourceNames) > 0 && !slices.Contains(g.ResourceNames, a.Name) {
		return false
	}
	for _, r := range g.Resources {
		resource, sub, deep := strings.Cut(r, "/")
		switch {
		case r == "*", deep && sub == "*" && resource == a.Resource:
			return true
		case deep && resource == "*" && a.Subresource != "" && sub == a.Subresource:
			return true
		case resource == a.Resource && sub == a.Subresource && deep == (a.Subresource != ""):
			return true
		}
	}
	return false
}
