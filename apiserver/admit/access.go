package admit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
)

// NodeRestriction keeps a node agent to its own Node and to pods bound to it, and
// away from labels that isolate workloads (docs, "Admission Controllers").
func NodeRestriction() Plugin {
	forbid := func(r *Request, format string, args ...any) error {
		return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf(format, args...))
	}
	return Plugin{Name: "NodeRestriction", Mutate: func(_ context.Context, r *Request) error {
		node, ok := strings.CutPrefix(r.User.Name, auth.NodePrefix)
		if !ok || !r.User.In(auth.NodesGroup) {
			return nil
		}
		switch r.Kind.Root() {
		case kind.Pod:
			old, _ := r.Old.(*corev1.Pod)
			switch {
			case r.Operation == Create && r.Sub == "":
				p, _ := r.Object.(*corev1.Pod)
				if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; !mirror {
					return forbid(r, "pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
				}
				if p.Spec.NodeName != node {
					return forbid(r, "node %q can only create pods with spec.nodeName set to itself", node)
				}
			case old != nil && old.Spec.NodeName != node:
				return forbid(r, "node %q can only %s pods with spec.nodeName set to itself", node, strings.ToLower(string(r.Operation)))
			case r.Sub == "status" && r.Operation == Update:
				if p, _ := r.Object.(*corev1.Pod); p != nil && old != nil && !maps.Equal(p.Labels, old.Labels) {
					return forbid(r, "node %q cannot update labels through pod status", node)
				}
			}
		case kind.Node:
			if r.Name != node && r.Operation != Delete {
				return forbid(r, "node %q is not allowed to modify node %q", node, r.Name)
			}
			if r.Operation == Delete && r.Name != node {
				return forbid(r, "node %q is not allowed to delete node %q", node, r.Name)
			}
			n, _ := r.Object.(*corev1.Node)
			if n == nil {
				return nil
			}
			var before map[string]string
			if o, _ := r.Old.(*corev1.Node); o != nil {
				before = o.Labels
				if !apiequality.Semantic.DeepEqual(o.Spec.Taints, n.Spec.Taints) {
					return forbid(r, "node %q is not allowed to modify taints", node)
				}
			}
			for k, val := range n.Labels {
				if b, had := before[k]; (!had || b != val) && restrictedLabel(k) {
					return forbid(r, "is not allowed to modify labels: %s", k)
				}
			}
		case kind.Lease:
			if r.Namespace == corev1.NamespaceNodeLease && r.Name != node {
				return forbid(r, "can only access node lease with the same name as the requesting node")
			}
		}
		return nil
	}}
}

func restrictedLabel(k string) bool {
	prefix, _, ok := strings.Cut(k, "/")
	if !ok {
		return false
	}
	return prefix == "node-restriction.kubernetes.io" || strings.HasSuffix(prefix, ".node-restriction.kubernetes.io")
}

// Escalation refuses roles and bindings that give more than their author has,
// unless the verbs escalate or bind allow it (docs, "Privilege escalation
// prevention and bootstrapping").
func Escalation(z auth.Authorizer, rules auth.RuleResolver) Plugin {
	return Plugin{Name: "RBAC", Validate: func(ctx context.Context, r *Request) error {
		if r.Operation != Create && r.Operation != Update || r.User.In(auth.Masters) {
			return nil
		}
		var wanted []rbacv1.PolicyRule
		var verb, resource, name string
		switch o := r.Object.(type) {
		case *rbacv1.Role:
			if old, _ := r.Old.(*rbacv1.Role); old != nil && apiequality.Semantic.DeepEqual(old.Rules, o.Rules) {
				return nil
			}
			wanted, verb, resource, name = o.Rules, "escalate", "roles", o.Name
		case *rbacv1.ClusterRole:
			if old, _ := r.Old.(*rbacv1.ClusterRole); old != nil && apiequality.Semantic.DeepEqual(old.Rules, o.Rules) && apiequality.Semantic.DeepEqual(old.AggregationRule, o.AggregationRule) {
				return nil
			}
			wanted, verb, resource, name = o.Rules, "escalate", "clusterroles", o.Name
			if o.AggregationRule != nil {
				wanted = append(slices.Clone(wanted), rbacv1.PolicyRule{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}, rbacv1.PolicyRule{NonResourceURLs: []string{"*"}, Verbs: []string{"*"}})
			}
		case *rbacv1.RoleBinding:
			if old, _ := r.Old.(*rbacv1.RoleBinding); old != nil && apiequality.Semantic.DeepEqual(old.Subjects, o.Subjects) && old.RoleRef == o.RoleRef {
				return nil
			}
			verb, resource, name = "bind", strings.ToLower(o.RoleRef.Kind)+"s", o.RoleRef.Name
			wanted, _ = auth.RoleRules(r.Snapshot, o.RoleRef, r.Namespace)
		case *rbacv1.ClusterRoleBinding:
			if old, _ := r.Old.(*rbacv1.ClusterRoleBinding); old != nil && apiequality.Semantic.DeepEqual(old.Subjects, o.Subjects) && old.RoleRef == o.RoleRef {
				return nil
			}
			verb, resource, name = "bind", "clusterroles", o.RoleRef.Name
			wanted, _ = auth.RoleRules(r.Snapshot, o.RoleRef, "")
		default:
			return nil
		}
		d, _, _ := z.Authorize(ctx, auth.Attributes{User: r.User, Verb: verb, Group: rbacv1.GroupName, Version: "v1", Resource: resource, Namespace: r.Namespace, Name: name})
		if d == auth.Allow {
			return nil
		}
		owned, _, err := rules.Rules(r.User, r.Namespace)
		if err != nil {
			return err
		}
		missing := auth.Covers(owned, wanted)
		if len(missing) == 0 {
			return nil
		}
		var lines []string
		for _, m := range missing {
			if len(m.NonResourceURLs) > 0 {
				lines = append(lines, fmt.Sprintf("{NonResourceURLs:%q, Verbs:%q}", m.NonResourceURLs, m.Verbs))
				continue
			}
			s := fmt.Sprintf("{APIGroups:%q, Resources:%q", m.APIGroups, m.Resources)
			if len(m.ResourceNames) > 0 {
				s += fmt.Sprintf(", ResourceNames:%q", m.ResourceNames)
			}
			lines = append(lines, s+fmt.Sprintf(", Verbs:%q}", m.Verbs))
		}
		return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s", r.User.Name, r.User.Groups, strings.Join(lines, "\n")))
	}}
}
