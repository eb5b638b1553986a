package admit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
)

var everything = []rbacv1.PolicyRule{
	{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}},
	{NonResourceURLs: []string{"*"}, Verbs: []string{"*"}},
}

// Escalation refuses roles and bindings that give more than their author has,
// unless the verbs escalate or bind allow it (docs, "Privilege escalation
// prevention and bootstrapping"). Any change counts, labels too: they feed
// aggregated roles. Only finalizers and owners may change freely.
func Escalation(z auth.Authorizer, rules auth.RuleResolver) Plugin {
	return Plugin{Name: "RBAC", Validate: func(ctx context.Context, r *Request) error {
		if r.Operation != Create && r.Operation != Update || r.Object == nil || r.User.In(auth.Masters) {
			return nil
		}
		var wanted []rbacv1.PolicyRule
		a := auth.Attributes{User: r.User, Verb: "escalate", Group: rbacv1.GroupName, Version: "v1", Namespace: r.Namespace, Name: r.Name}
		bound := func(ref rbacv1.RoleRef) error {
			a.Verb, a.Resource, a.Name = "bind", strings.ToLower(ref.Kind)+"s", ref.Name
			if d, _, _ := z.Authorize(ctx, a); d == auth.Allow {
				return nil
			}
			var ok bool
			if wanted, ok = auth.RoleRules(r.Snapshot, ref, r.Namespace); !ok {
				k := kind.ClusterRole
				if ref.Kind == "Role" {
					k = kind.Role
				}
				// Binding what does not exist would take effect when somebody makes it.
				return apierrors.NewNotFound(k.GroupResource(), ref.Name)
			}
			return nil
		}
		aggregates := false
		switch o := r.Object.(type) {
		case *rbacv1.Role, *rbacv1.ClusterRole, *rbacv1.RoleBinding, *rbacv1.ClusterRoleBinding:
			if r.Old != nil && onlyCollected(o.(kind.Object), r.Old) {
				return nil
			}
		default:
			return nil
		}
		switch o := r.Object.(type) {
		case *rbacv1.Role:
			wanted, a.Resource = o.Rules, "roles"
		case *rbacv1.ClusterRole:
			wanted, a.Resource = o.Rules, "clusterroles"
			old, _ := r.Old.(*rbacv1.ClusterRole)
			aggregates = o.AggregationRule != nil || old != nil && old.AggregationRule != nil
		case *rbacv1.RoleBinding:
			if err := bound(o.RoleRef); err != nil {
				return err
			}
		case *rbacv1.ClusterRoleBinding:
			if err := bound(o.RoleRef); err != nil {
				return err
			}
		}
		if a.Verb == "escalate" {
			if d, _, _ := z.Authorize(ctx, a); d == auth.Allow {
				return nil
			}
		}
		owned, _, err := rules.Rules(r.User, r.Namespace)
		if err != nil {
			return err
		}
		if err := covered(r, owned, wanted); err != nil {
			return err
		}
		if aggregates {
			// An aggregation rule gathers what others will add.
			if err := covered(r, owned, everything); err != nil {
				return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("must have cluster-admin privileges to use an aggregationRule"))
			}
		}
		return nil
	}}
}

func covered(r *Request, owned, wanted []rbacv1.PolicyRule) error {
	missing := auth.Compact(auth.Covers(owned, wanted))
	if len(missing) == 0 {
		return nil
	}
	var lines []string
	for _, m := range missing {
		lines = append(lines, auth.Describe(m))
	}
	slices.Sort(lines)
	return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		r.User.Name, r.User.Groups, strings.Join(lines, "\n")))
}

// onlyCollected: the two differ in what the garbage collector changes at most.
func onlyCollected(obj, old kind.Object) bool {
	a, b := obj.DeepCopyObject().(kind.Object), old.DeepCopyObject().(kind.Object)
	for _, o := range []kind.Object{a, b} {
		o.SetOwnerReferences(nil)
		o.SetFinalizers(nil)
		o.SetManagedFields(nil)
		o.SetResourceVersion("")
		o.GetObjectKind().SetGroupVersionKind(kind.Role.GVK())
	}
	return apiequality.Semantic.DeepEqual(a, b)
}
