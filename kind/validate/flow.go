package validate

import (
	"fmt"
	"math"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// RuntimeClass checks a new runtime class.
func RuntimeClass(rc *nodev1.RuntimeClass) field.ErrorList {
	errs := ObjectMeta(&rc.ObjectMeta, false, NameDNSSubdomain, meta())
	errs = append(errs, dnsLabel(rc.Handler, field.NewPath("handler"))...)
	if rc.Overhead != nil {
		errs = append(errs, overhead(rc.Overhead.PodFixed, field.NewPath("overhead", "podFixed"))...)
	}
	if s := rc.Scheduling; s != nil {
		p := field.NewPath("scheduling")
		errs = append(errs, labels(s.NodeSelector, p.Child("nodeSelector"))...)
		errs = append(errs, tolerations(s.Tolerations, nil, p.Child("tolerations"))...)
		for i := range s.Tolerations {
			for j := range i {
				if equality.Semantic.DeepEqual(s.Tolerations[i], s.Tolerations[j]) {
					errs = append(errs, field.Duplicate(p.Child("tolerations").Index(i), s.Tolerations[i]))
					break
				}
			}
		}
	}
	return errs
}

// RuntimeClassUpdate checks an update of a runtime class: its handler stays.
func RuntimeClassUpdate(new, old *nodev1.RuntimeClass) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, fixed(new.Handler, old.Handler, field.NewPath("handler"))...)
}

const maxPrecedence = 10000

// FlowSchema checks a new or changed flow schema.
func FlowSchema(f *flowcontrolv1.FlowSchema) field.ErrorList {
	errs := ObjectMeta(&f.ObjectMeta, false, NameDNSSubdomain, meta())
	s, path := &f.Spec, spec()
	if s.MatchingPrecedence <= 0 {
		errs = append(errs, field.Invalid(path.Child("matchingPrecedence"), s.MatchingPrecedence, "must be a positive value"))
	}
	if s.MatchingPrecedence > maxPrecedence {
		errs = append(errs, field.Invalid(path.Child("matchingPrecedence"), s.MatchingPrecedence, fmt.Sprintf("must not be greater than %v", maxPrecedence)))
	}
	if s.MatchingPrecedence == 1 && f.Name != "exempt" {
		errs = append(errs, field.Invalid(path.Child("matchingPrecedence"), s.MatchingPrecedence, "only the schema named 'exempt' may have matchingPrecedence 1"))
	}
	if s.DistinguisherMethod != nil {
		errs = append(errs, supported(s.DistinguisherMethod.Type, path.Child("distinguisherMethod", "type"), flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType)...)
	}
	p := path.Child("priorityLevelConfiguration", "name")
	if name := s.PriorityLevelConfiguration.Name; name == "" {
		errs = append(errs, field.Required(p, "must reference a priority level"))
	} else {
		errs = append(errs, invalid(p, name, NameDNSSubdomain(name, false))...)
	}
	for i := range s.Rules {
		errs = append(errs, flowRule(&s.Rules[i], path.Child("rules").Index(i))...)
	}
	if fixed := FixedFlowSchema(f.Name); fixed != nil && !equality.Semantic.DeepEqual(*s, *fixed) {
		errs = append(errs, field.Invalid(path, *s, fmt.Sprintf("spec of '%s' must equal the fixed value", f.Name)))
	}
	return append(errs, flowConditions(f.Status.Conditions, func(c flowcontrolv1.FlowSchemaCondition) string { return string(c.Type) })...)
}

// FlowSchemaUpdate checks an update of a flow schema.
func FlowSchemaUpdate(new, old *flowcontrolv1.FlowSchema) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), FlowSchema(new)...)
}

// FlowSchemaStatusUpdate checks an update of a flow schema's status.
func FlowSchemaStatusUpdate(new, old *flowcontrolv1.FlowSchema) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, flowConditions(new.Status.Conditions, func(c flowcontrolv1.FlowSchemaCondition) string { return string(c.Type) })...)
}

// FixedFlowSchema is the specification of the schemas that must always be there
// as they are: "exempt" and "catch-all". Nil for any other name.
func FixedFlowSchema(name string) *flowcontrolv1.FlowSchemaSpec {
	all := []string{"*"}
	everything := func(groups ...string) []flowcontrolv1.PolicyRulesWithSubjects {
		rules := flowcontrolv1.PolicyRulesWithSubjects{
			ResourceRules:    []flowcontrolv1.ResourcePolicyRule{{Verbs: all, APIGroups: all, Resources: all, Namespaces: all, ClusterScope: true}},
			NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: all, NonResourceURLs: all}},
		}
		for _, g := range groups {
			rules.Subjects = append(rules.Subjects, flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: g}})
		}
		return []flowcontrolv1.PolicyRulesWithSubjects{rules}
	}
	level := flowcontrolv1.PriorityLevelConfigurationReference{Name: name}
	switch name {
	case "exempt":
		return &flowcontrolv1.FlowSchemaSpec{PriorityLevelConfiguration: level, MatchingPrecedence: 1, Rules: everything("system:masters")}
	case "catch-all":
		return &flowcontrolv1.FlowSchemaSpec{PriorityLevelConfiguration: level, MatchingPrecedence: maxPrecedence,
			DistinguisherMethod: &flowcontrolv1.FlowDistinguisherMethod{Type: flowcontrolv1.FlowDistinguisherMethodByUserType},
			Rules:               everything("system:unauthenticated", "system:authenticated")}
	}
	return nil
}

// flowConditions checks that conditions have types, each another one.
func flowConditions[C any](list []C, typ func(C) string) field.ErrorList {
	var errs field.ErrorList
	path := status().Child("conditions")
	seen := map[string]bool{}
	for i, c := range list {
		t := typ(c)
		if seen[t] {
			errs = append(errs, field.Duplicate(path.Index(i).Child("type"), t))
		}
		seen[t] = true
		if t == "" {
			errs = append(errs, field.Required(path.Index(i).Child("type"), "must not be empty"))
		}
	}
	return errs
}

func flowRule(r *flowcontrolv1.PolicyRulesWithSubjects, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(r.Subjects) == 0 {
		errs = append(errs, field.Required(path.Child("subjects"), "subjects must contain at least one value"))
	}
	for i := range r.Subjects {
		errs = append(errs, flowSubject(&r.Subjects[i], path.Child("subjects").Index(i))...)
	}
	if len(r.ResourceRules) == 0 && len(r.NonResourceRules) == 0 {
		errs = append(errs, field.Required(path, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	for i := range r.ResourceRules {
		rr, p := &r.ResourceRules[i], path.Child("resourceRules").Index(i)
		errs = append(errs, flowVerbs(rr.Verbs, p.Child("verbs"))...)
		errs = append(errs, flowList(rr.APIGroups, "api group", "if '*' is present, must not specify other api groups", p.Child("apiGroups"))...)
		errs = append(errs, flowList(rr.Resources, "resource", "if '*' is present, must not specify other resources", p.Child("resources"))...)
		if len(rr.Namespaces) == 0 && !rr.ClusterScope {
			errs = append(errs, field.Required(p.Child("namespaces"), "resource rules that are not cluster scoped must supply at least one namespace"))
		}
		if len(rr.Namespaces) > 1 && slices.Contains(rr.Namespaces, "*") {
			errs = append(errs, field.Invalid(p.Child("namespaces"), rr.Namespaces, "if '*' is present, must not specify other namespaces"))
		}
		for j, ns := range rr.Namespaces {
			if slices.Contains(rr.Namespaces, "*") {
				break
			}
			for _, msg := range NameDNSLabel(ns, false) {
				errs = append(errs, field.Invalid(p.Child("namespaces").Index(j), ns, "each member of this list must be '*' or a DNS-1123 label; "+msg))
			}
		}
	}
	for i := range r.NonResourceRules {
		nr, p := &r.NonResourceRules[i], path.Child("nonResourceRules").Index(i)
		errs = append(errs, flowVerbs(nr.Verbs, p.Child("verbs"))...)
		up := p.Child("nonResourceURLs")
		if len(nr.NonResourceURLs) == 0 {
			errs = append(errs, field.Required(up, "nonResourceURLs must contain at least one value"))
		} else if len(nr.NonResourceURLs) > 1 && slices.Contains(nr.NonResourceURLs, "*") {
			errs = append(errs, field.Invalid(up, nr.NonResourceURLs, "if '*' is present, must not specify other non-resource URLs"))
		}
		for j, u := range nr.NonResourceURLs {
			if slices.Contains(nr.NonResourceURLs, "*") {
				break
			}
			switch rest := strings.TrimSuffix(u, "*"); {
			case u == "":
				errs = append(errs, field.Invalid(up.Index(j), u, "must not be empty"))
			case !strings.HasPrefix(u, "/"):
				errs = append(errs, field.Invalid(up.Index(j), u, "must start with slash"))
			case strings.Contains(u, " "):
				errs = append(errs, field.Invalid(up.Index(j), u, "must not contain white-space"))
			case strings.Contains(u, "//"):
				errs = append(errs, field.Invalid(up.Index(j), u, "must not contain double slash"))
			case strings.Contains(rest, "*") || (rest != u && !strings.HasSuffix(rest, "/")):
				errs = append(errs, field.Invalid(up.Index(j), u, "wildcard can only do suffix matching"))
			}
		}
	}
	return errs
}

var flowVerbNames = []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}

func flowVerbs(verbs []string, path *field.Path) field.ErrorList {
	errs := flowList(verbs, "verb", "if '*' is present, must not specify other verbs", path)
	for _, v := range verbs {
		if slices.Contains(verbs, "*") {
			break
		}
		if !slices.Contains(flowVerbNames, v) {
			return append(errs, field.NotSupported(path, verbs, flowVerbNames))
		}
	}
	return errs
}

func flowList(list []string, what, wildcard string, path *field.Path) field.ErrorList {
	if len(list) == 0 {
		msg := "resource rules must supply at least one " + what
		if what == "verb" {
			msg = "verbs must contain at least one value"
		}
		return field.ErrorList{field.Required(path, msg)}
	}
	if len(list) > 1 && slices.Contains(list, "*") {
		return field.ErrorList{field.Invalid(path, list, wildcard)}
	}
	return nil
}

func flowSubject(s *flowcontrolv1.Subject, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		kind flowcontrolv1.SubjectKind
		name string
		set  bool
	}{{flowcontrolv1.SubjectKindServiceAccount, "serviceAccount", s.ServiceAccount != nil}, {flowcontrolv1.SubjectKindUser, "user", s.User != nil}, {flowcontrolv1.SubjectKindGroup, "group", s.Group != nil}} {
		if f.kind == s.Kind && !f.set {
			errs = append(errs, field.Required(path.Child(f.name), fmt.Sprintf("%s is required when subject kind is '%s'", f.name, f.kind)))
		}
		if f.kind != s.Kind && f.set {
			errs = append(errs, field.Forbidden(path.Child(f.name), fmt.Sprintf("%s is forbidden when subject kind is not '%s'", f.name, f.kind)))
		}
	}
	switch s.Kind {
	case flowcontrolv1.SubjectKindServiceAccount:
		if sa := s.ServiceAccount; sa != nil {
			p := path.Child("serviceAccount")
			if sa.Name == "" {
				errs = append(errs, field.Required(p.Child("name"), ""))
			} else if sa.Name != "*" {
				errs = append(errs, invalid(p.Child("name"), sa.Name, NameDNSSubdomain(sa.Name, false))...)
			}
			if sa.Namespace == "" {
				errs = append(errs, field.Required(p.Child("namespace"), "must specify namespace for service account"))
			} else {
				errs = append(errs, invalid(p.Child("namespace"), sa.Namespace, validation.IsDNS1123Label(sa.Namespace))...)
			}
		}
	case flowcontrolv1.SubjectKindUser:
		if s.User != nil {
			errs = append(errs, required(s.User.Name, path.Child("user", "name"))...)
		}
	case flowcontrolv1.SubjectKindGroup:
		if s.Group != nil {
			errs = append(errs, required(s.Group.Name, path.Child("group", "name"))...)
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("kind"), s.Kind, []flowcontrolv1.SubjectKind{flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser}))
	}
	return errs
}

// PriorityLevelConfiguration checks a new or changed priority level.
func PriorityLevelConfiguration(c *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	errs := ObjectMeta(&c.ObjectMeta, false, NameDNSSubdomain, meta())
	s, path := &c.Spec, spec()
	exempt := c.Name == "exempt"
	if exempt != (s.Type == flowcontrolv1.PriorityLevelEnablementExempt) {
		errs = append(errs, field.Invalid(path.Child("type"), s.Type, "type must be 'Exempt' if and only if name is 'exempt'"))
	}
	percent := func(v *int32, p *field.Path) {
		if v != nil && (*v < 0 || *v > 100) {
			errs = append(errs, field.Invalid(p, *v, "must be between 0 and 100, inclusive"))
		}
	}
	switch s.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if s.Limited != nil {
			errs = append(errs, field.Forbidden(path.Child("limited"), "must be nil if the type is not Limited"))
		}
		if e := s.Exempt; e != nil {
			if n := e.NominalConcurrencyShares; n != nil && *n < 0 {
				errs = append(errs, field.Invalid(path.Child("exempt", "nominalConcurrencyShares"), *n, "must be a non-negative integer"))
			}
			percent(e.LendablePercent, path.Child("exempt", "lendablePercent"))
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if s.Exempt != nil {
			errs = append(errs, field.Forbidden(path.Child("exempt"), "must be nil if the type is Limited"))
		}
		if s.Limited == nil {
			errs = append(errs, field.Required(path.Child("limited"), "must not be empty when type is Limited"))
			break
		}
		p := path.Child("limited")
		if n := s.Limited.NominalConcurrencyShares; n != nil && *n < 0 {
			errs = append(errs, field.Invalid(p.Child("nominalConcurrencyShares"), *n, "must be a non-negative integer"))
		}
		errs = append(errs, limitResponse(&s.Limited.LimitResponse, p.Child("limitResponse"))...)
		percent(s.Limited.LendablePercent, p.Child("lendablePercent"))
		if b := s.Limited.BorrowingLimitPercent; b != nil && *b < 0 {
			errs = append(errs, field.Invalid(p.Child("borrowingLimitPercent"), *b, "if specified, must be a non-negative integer"))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("type"), s.Type, []flowcontrolv1.PriorityLevelEnablement{flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited}))
	}
	if fixed := FixedPriorityLevel(c.Name); fixed != nil {
		want, msg := *fixed, "spec of '%s' must equal the fixed value"
		if exempt {
			want.Exempt, msg = s.Exempt, "spec of '%s' except the 'spec.exempt' field must equal the fixed value"
		}
		if !equality.Semantic.DeepEqual(*s, want) {
			errs = append(errs, field.Invalid(path, *s, fmt.Sprintf(msg, c.Name)))
		}
	}
	return append(errs, flowConditions(c.Status.Conditions, func(x flowcontrolv1.PriorityLevelConfigurationCondition) string { return string(x.Type) })...)
}

// PriorityLevelConfigurationStatusUpdate checks an update of a level's status.
func PriorityLevelConfigurationStatusUpdate(new, old *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	errs := ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta())
	return append(errs, flowConditions(new.Status.Conditions, func(x flowcontrolv1.PriorityLevelConfigurationCondition) string { return string(x.Type) })...)
}

// FixedPriorityLevel is the specification of the levels that must always be there:
// "exempt", whose shares may be changed, and "catch-all". Nil for any other name.
func FixedPriorityLevel(name string) *flowcontrolv1.PriorityLevelConfigurationSpec {
	number := func(n int32) *int32 { return &n }
	switch name {
	case "exempt":
		return &flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementExempt,
			Exempt: &flowcontrolv1.ExemptPriorityLevelConfiguration{NominalConcurrencyShares: number(0), LendablePercent: number(0)}}
	case "catch-all":
		return &flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited,
			Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: number(5), LendablePercent: number(0),
				LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}}}
	}
	return nil
}

// handBits is how many bits of a hash it takes to deal a hand from a deck.
func handBits(queues, hand int32) int {
	return int(math.Ceil(math.Log2(float64(queues)) * float64(hand)))
}

func limitResponse(r *flowcontrolv1.LimitResponse, path *field.Path) field.ErrorList {
	switch r.Type {
	case flowcontrolv1.LimitResponseTypeReject:
		if r.Queuing != nil {
			return field.ErrorList{field.Forbidden(path.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited")}
		}
		return nil
	case flowcontrolv1.LimitResponseTypeQueue:
	default:
		return field.ErrorList{field.NotSupported(path.Child("type"), r.Type, []flowcontrolv1.LimitResponseType{flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject})}
	}
	q, p := r.Queuing, path.Child("queuing")
	if q == nil {
		return field.ErrorList{field.Required(p, "must not be empty if limited.limitResponse.type is Limited")}
	}
	var errs field.ErrorList
	if q.QueueLengthLimit <= 0 {
		errs = append(errs, field.Invalid(p.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive"))
	}
	if q.Queues <= 0 {
		errs = append(errs, field.Invalid(p.Child("queues"), q.Queues, "must be positive"))
	} else if most := int32(10 * 1000 * 1000); q.Queues > most {
		errs = append(errs, field.Invalid(p.Child("queues"), q.Queues, fmt.Sprintf("must not be greater than %d", most)))
	}
	if q.HandSize <= 0 {
		errs = append(errs, field.Invalid(p.Child("handSize"), q.HandSize, "must be positive"))
	} else if q.HandSize > q.Queues {
		errs = append(errs, field.Invalid(p.Child("handSize"), q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues)))
	} else if most := 60; handBits(q.Queues, q.HandSize) > most {
		errs = append(errs, field.Invalid(p.Child("handSize"), q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, most)))
	}
	return errs
}

// PriorityLevelConfigurationUpdate checks an update of a priority level.
func PriorityLevelConfigurationUpdate(new, old *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	return append(ObjectMetaUpdate(&new.ObjectMeta, &old.ObjectMeta, meta()), PriorityLevelConfiguration(new)...)
}
