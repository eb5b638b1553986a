package fair

import (
	"cmp"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"proa.dev/apiserver/auth"
)

// flow is one FlowSchema made ready for matching, bound to its level.
type flow struct {
	schema *flowcontrolv1.FlowSchema
	level  *level
	rules  []rule
	by     flowcontrolv1.FlowDistinguisherMethodType
	seed   uint64 // hash of the schema's name: the start of every flow's hash
	// uid and levelUID are header values, made once.
	uid, levelUID []string
	m             *flowMetrics
}

// rule is PolicyRulesWithSubjects with its subjects sorted by sort.
type rule struct {
	everyone bool
	users    []string
	groups   []string
	accounts []account
	resource []flowcontrolv1.ResourcePolicyRule
	other    []flowcontrolv1.NonResourcePolicyRule
}

type account struct{ prefix, name string } // prefix is system:serviceaccount:NAMESPACE:

func compileRules(s *flowcontrolv1.FlowSchema) []rule {
	rules := make([]rule, len(s.Spec.Rules))
	for i, p := range s.Spec.Rules {
		r := rule{resource: p.ResourceRules, other: p.NonResourceRules}
		for _, sub := range p.Subjects {
			switch {
			case sub.Kind == flowcontrolv1.SubjectKindUser && sub.User != nil:
				r.everyone = r.everyone || sub.User.Name == flowcontrolv1.NameAll
				r.users = append(r.users, sub.User.Name)
			case sub.Kind == flowcontrolv1.SubjectKindGroup && sub.Group != nil:
				r.everyone = r.everyone || sub.Group.Name == flowcontrolv1.NameAll
				r.groups = append(r.groups, sub.Group.Name)
			case sub.Kind == flowcontrolv1.SubjectKindServiceAccount && sub.ServiceAccount != nil:
				r.accounts = append(r.accounts, account{auth.ServiceAccountUser + sub.ServiceAccount.Namespace + ":", sub.ServiceAccount.Name})
			}
		}
		rules[i] = r
	}
	return rules
}

func (r *rule) covers(u *auth.User) bool {
	if r.everyone || slices.Contains(r.users, u.Name) {
		return true
	}
	for _, g := range r.groups {
		if u.In(g) {
			return true
		}
	}
	for _, a := range r.accounts {
		if rest, ok := strings.CutPrefix(u.Name, a.prefix); ok && (a.name == flowcontrolv1.NameAll || rest == a.name) {
			return true
		}
	}
	return false
}

// has reads a list in which the wildcard stands alone.
func has(list []string, x, wildcard string) bool {
	return len(list) == 1 && list[0] == wildcard || slices.Contains(list, x)
}

func hasResource(list []string, resource, sub string) bool {
	if len(list) == 1 && list[0] == flowcontrolv1.ResourceAll {
		return true
	}
	for _, e := range list {
		if sub == "" {
			if e == resource {
				return true
			}
		} else if len(e) == len(resource)+1+len(sub) && strings.HasPrefix(e, resource) && e[len(resource)] == '/' && strings.HasSuffix(e, sub) {
			return true
		}
	}
	return false
}

func hasPath(list []string, path string) bool {
	for _, p := range list {
		if p == flowcontrolv1.NonResourceAll || p == path {
			return true
		}
		if p = strings.TrimSuffix(strings.TrimSuffix(p, "*"), "/"); len(path) > len(p) && path[len(p)] == '/' && strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// matches is the rule of the FlowSchema documentation: one subject and one
// resource or path rule of the same entry.
func (f *flow) matches(a *auth.Attributes) bool {
	for i := range f.rules {
		r := &f.rules[i]
		if !r.covers(&a.User) {
			continue
		}
		if a.Path != "" {
			for j := range r.other {
				if n := &r.other[j]; has(n.Verbs, a.Verb, flowcontrolv1.VerbAll) && hasPath(n.NonResourceURLs, a.Path) {
					return true
				}
			}
			continue
		}
		for j := range r.resource {
			n := &r.resource[j]
			if !has(n.Verbs, a.Verb, flowcontrolv1.VerbAll) || !hasResource(n.Resources, a.Resource, a.Subresource) || !has(n.APIGroups, a.Group, flowcontrolv1.APIGroupAll) {
				continue
			}
			if a.Namespace == "" && n.ClusterScope || a.Namespace != "" && has(n.Namespaces, a.Namespace, flowcontrolv1.NamespaceEvery) {
				return true
			}
		}
	}
	return false
}

// distinguisher tells the flows of one schema apart.
func (f *flow) distinguisher(a *auth.Attributes) string {
	switch f.by {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		return a.User.Name
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		return a.Namespace
	}
	return ""
}

// fnv continues an FNV-1a hash.
func fnv(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// mix spreads the hash over all its bits (the finalizer of MurmurHash3): the
// dealing of queues takes them by division.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func bySchema(a, b *flowcontrolv1.FlowSchema) int {
	return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), strings.Compare(a.Name, b.Name))
}
