package auth

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	rbacv1 "k8s.io/api/rbac/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// RBAC authorizes by Roles, ClusterRoles and their bindings as the view has them.
// Bindings are indexed by subject; the index is made anew when one of the four
// kinds has changed, at the first request after that. A change that is in the
// view is in force: nobody who saw the answer to a write meets the policy before
// it. Without changes a request takes no lock.
type RBAC struct {
	View *view.View

	mu    sync.Mutex // held while the index is made
	index atomic.Pointer[policyIndex]
}

// policyIndex is the policy at one moment. It holds until one of stale is closed;
// the view closes them when a change of the kind comes in, before it shows it.
type policyIndex struct {
	grants map[string][]grant // "u/name", "g/group" → grants
	stale  []<-chan struct{}
}

func (x *policyIndex) holds() bool {
	if x == nil {
		return false
	}
	for _, c := range x.stale {
		select {
		case <-c:
			return false
		default:
		}
	}
	return true
}

// grant is one binding seen from a subject. Namespace "" is the whole cluster.
// Why is the reason that clients read.
type grant struct {
	namespace, why string
	rules          []rbacv1.PolicyRule
}

var rbacKinds = func() []*kind.Kind {
	return []*kind.Kind{kind.Role, kind.RoleBinding, kind.ClusterRole, kind.ClusterRoleBinding}
}

// Authorize implements Authorizer.
func (r *RBAC) Authorize(_ context.Context, a Attributes) (Decision, string, error) {
	if a.User.In(Masters) {
		return Allow, "", nil
	}
	grants := r.current()
	why := ""
	visit(grants, a.User, a.Namespace, func(g grant) bool {
		for i := range g.rules {
			if RuleAllows(&g.rules[i], &a) {
				why = g.why
				return false
			}
		}
		return true
	})
	if why == "" {
		return NoOpinion, "", nil
	}
	return Allow, why, nil
}

// Rules implements RuleResolver.
func (r *RBAC) Rules(u User, namespace string) ([]rbacv1.PolicyRule, bool, error) {
	if u.In(Masters) {
		return []rbacv1.PolicyRule{
			{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
			{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
		}, false, nil
	}
	var rules []rbacv1.PolicyRule
	visit(r.current(), u, namespace, func(g grant) bool {
		rules = append(rules, g.rules...)
		return true
	})
	return rules, false, nil
}

// visit yields cluster-wide grants and those of the namespace until f is false.
func visit(grants map[string][]grant, u User, namespace string, f func(grant) bool) {
	subject := func(id string) bool {
		for _, g := range grants[id] {
			if (g.namespace == "" || g.namespace == namespace) && !f(g) {
				return false
			}
		}
		return true
	}
	if u.Name != "" && !subject("u/"+u.Name) {
		return
	}
	for _, g := range u.Groups {
		if !subject("g/" + g) {
			return
		}
	}
}

func (r *RBAC) current() map[string][]grant {
	if x := r.index.Load(); x.holds() {
		return x.grants
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.index.Load(); x.holds() {
		return x.grants
	}
	// First the bells, then the state: a change after this rings, one before it is in
	// the snapshot.
	x := new(policyIndex)
	for _, k := range rbacKinds() {
		_, _, more, err := r.View.Changes(k, math.MaxInt64)
		if err != nil {
			more = rung
		}
		x.stale = append(x.stale, more)
	}
	s := r.View.Snapshot()
	x.grants = indexOf(s)
	if s.Revision() > 0 { // before the view is loaded nothing rings
		r.index.Store(x)
	}
	return x.grants
}

// rung is closed: what waits for it is stale at once.
var rung = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func indexOf(s view.Snapshot) map[string][]grant {
	out := map[string][]grant{}
	add := func(namespace, binding string, ref rbacv1.RoleRef, rules []rbacv1.PolicyRule, subjects []rbacv1.Subject) {
		for _, sub := range subjects {
			id, who := "", fmt.Sprintf("%s %q", sub.Kind, sub.Name)
			switch {
			case sub.Name == "":
				continue
			case sub.Kind == rbacv1.UserKind:
				id = "u/" + sub.Name
			case sub.Kind == rbacv1.GroupKind:
				id = "g/" + sub.Name
			case sub.Kind == rbacv1.ServiceAccountKind:
				ns := sub.Namespace
				if ns == "" {
					ns = namespace
				}
				if ns == "" {
					continue
				}
				id, who = "u/"+ServiceAccountUser+ns+":"+sub.Name, fmt.Sprintf("%s %q", sub.Kind, sub.Name+"/"+ns)
			default:
				continue
			}
			out[id] = append(out[id], grant{namespace, fmt.Sprintf("RBAC: allowed by %s of %s %q to %s", binding, ref.Kind, ref.Name, who), rules})
		}
	}
	for b := range view.List[*rbacv1.ClusterRoleBinding](s, kind.ClusterRoleBinding, "") {
		if role := view.Get[*rbacv1.ClusterRole](s, kind.ClusterRole, "", b.RoleRef.Name); role != nil && b.RoleRef.Kind == "ClusterRole" {
			add("", fmt.Sprintf("ClusterRoleBinding %q", b.Name), b.RoleRef, role.Rules, b.Subjects)
		}
	}
	for b := range view.List[*rbacv1.RoleBinding](s, kind.RoleBinding, "") {
		rules, ok := RoleRules(s, b.RoleRef, b.Namespace)
		if ok {
			add(b.Namespace, fmt.Sprintf("RoleBinding %q", b.Name+"/"+b.Namespace), b.RoleRef, rules, b.Subjects)
		}
	}
	return out
}

// RoleRules are the rules that a role reference in a namespace ("": cluster-wide)
// stands for; false when the role does not exist.
func RoleRules(s view.Snapshot, ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, bool) {
	switch ref.Kind {
	case "Role":
		if role := view.Get[*rbacv1.Role](s, kind.Role, namespace, ref.Name); role != nil && namespace != "" {
			return role.Rules, true
		}
	case "ClusterRole":
		if role := view.Get[*rbacv1.ClusterRole](s, kind.ClusterRole, "", ref.Name); role != nil {
			return role.Rules, true
		}
	}
	return nil, false
}

// RuleAllows says whether one rule permits a request.
func RuleAllows(r *rbacv1.PolicyRule, a *Attributes) bool {
	if !has(r.Verbs, a.Verb) {
		return false
	}
	if a.Path != "" {
		return slices.ContainsFunc(r.NonResourceURLs, func(u string) bool {
			return u == "*" || u == a.Path || strings.HasSuffix(u, "*") && strings.HasPrefix(a.Path, strings.TrimSuffix(u, "*"))
		})
	}
	if !has(r.APIGroups, a.Group) || !resourceMatches(r.Resources, a.Resource, a.Subresource) {
		return false
	}
	return len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.Name)
}

func has(list []string, v string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, v)
}

func resourceMatches(list []string, resource, sub string) bool {
	full := resource
	if sub != "" {
		full += "/" + sub
	}
	for _, r := range list {
		if r == "*" || r == full || sub != "" && r == "*/"+sub {
			return true
		}
	}
	return false
}

// Covers finds the parts of wanted that none of the owned rules grants; empty
// means no escalation (docs, "Privilege escalation prevention").
func Covers(owned, wanted []rbacv1.PolicyRule) (missing []rbacv1.PolicyRule) {
	for _, w := range wanted {
		for _, part := range split(w) {
			if !slices.ContainsFunc(owned, func(o rbacv1.PolicyRule) bool { return ruleCovers(&o, &part) }) {
				missing = append(missing, part)
			}
		}
	}
	return missing
}

// split breaks a rule into rules of one verb and one resource (or URL) each.
func split(r rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	names := r.ResourceNames
	for _, v := range r.Verbs {
		for _, u := range r.NonResourceURLs {
			out = append(out, rbacv1.PolicyRule{Verbs: []string{v}, NonResourceURLs: []string{u}})
		}
		for _, g := range r.APIGroups {
			for _, res := range r.Resources {
				if len(names) == 0 {
					out = append(out, rbacv1.PolicyRule{Verbs: []string{v}, APIGroups: []string{g}, Resources: []string{res}})
				}
				for _, n := range names {
					out = append(out, rbacv1.PolicyRule{Verbs: []string{v}, APIGroups: []string{g}, Resources: []string{res}, ResourceNames: []string{n}})
				}
			}
		}
	}
	return out
}

func ruleCovers(o, w *rbacv1.PolicyRule) bool {
	if !has(o.Verbs, w.Verbs[0]) {
		return false
	}
	if len(w.NonResourceURLs) > 0 {
		u := w.NonResourceURLs[0]
		return slices.ContainsFunc(o.NonResourceURLs, func(x string) bool {
			return x == "*" || x == u || strings.HasSuffix(x, "*") && strings.HasPrefix(u, strings.TrimSuffix(x, "*"))
		})
	}
	res, sub, _ := strings.Cut(w.Resources[0], "/")
	if !has(o.APIGroups, w.APIGroups[0]) || !(slices.Contains(o.Resources, w.Resources[0]) || resourceMatches(o.Resources, res, sub)) {
		return false
	}
	return len(o.ResourceNames) == 0 || len(w.ResourceNames) > 0 && slices.Contains(o.ResourceNames, w.ResourceNames[0])
}

// Compact merges rules of one group and one resource that differ in their verbs
// only, so that a message names each thing once.
func Compact(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	at := map[string]int{}
	for _, r := range rules {
		id := fmt.Sprintf("%q %q %q %q", r.APIGroups, r.Resources, r.ResourceNames, r.NonResourceURLs)
		i, ok := at[id]
		if !ok {
			at[id] = len(out)
			out = append(out, *r.DeepCopy())
			continue
		}
		for _, v := range r.Verbs {
			if !slices.Contains(out[i].Verbs, v) {
				out[i].Verbs = append(out[i].Verbs, v)
			}
		}
	}
	return out
}

// Describe is a rule on one line, as error messages show it.
func Describe(r rbacv1.PolicyRule) string {
	var parts []string
	for _, p := range []struct {
		name string
		list []string
	}{{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames}, {"Verbs", r.Verbs}} {
		if len(p.list) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", p.name, p.list))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
