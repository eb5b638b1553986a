// Package clusterrole fills in the rules of ClusterRoles that aggregate others by
// label (Kubernetes docs, "Aggregated ClusterRoles").
package clusterrole

import (
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Part registers the controller; it plans per aggregating role.
func Part() control.Part {
	return control.Part{
		Name: "clusterrole-aggregation-controller", Kind: kind.ClusterRole, Plan: Plan,
		Wakes: []control.Wake{{Kind: kind.ClusterRole, To: func(s view.Snapshot, o kind.Object) []view.Ref {
			var refs []view.Ref
			for r := range view.List[*rbacv1.ClusterRole](s, kind.ClusterRole, "") {
				if r.AggregationRule != nil && r.Name != o.GetName() && selects(r.AggregationRule, o.GetLabels()) {
					refs = append(refs, view.RefOf(kind.ClusterRole, r))
				}
			}
			return refs
		}}},
		Writes: []control.Write{{Kind: kind.ClusterRole, Verbs: []string{"update"}}},
	}
}

// Plan sets the rules to the sum of the selected roles', in order of their names,
// each rule once.
func Plan(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	have := view.Get[*rbacv1.ClusterRole](s, kind.ClusterRole, "", ref.Name)
	if have == nil || have.AggregationRule == nil || have.DeletionTimestamp != nil {
		return nil, time.Time{}
	}
	var rules []rbacv1.PolicyRule
	for r := range view.List[*rbacv1.ClusterRole](s, kind.ClusterRole, "") {
		if r.Name == have.Name || !selects(have.AggregationRule, r.Labels) {
			continue
		}
		for _, rule := range r.Rules {
			if !slices.ContainsFunc(rules, func(x rbacv1.PolicyRule) bool { return apiequality.Semantic.DeepEqual(x, rule) }) {
				rules = append(rules, rule)
			}
		}
	}
	if apiequality.Semantic.DeepEqual(rules, have.Rules) {
		return nil, time.Time{}
	}
	want := have.DeepCopy()
	want.Rules = rules
	return act.List{act.Update{Kind: kind.ClusterRole, Object: want, Reason: "aggregated roles changed"}}, time.Time{}
}

func selects(a *rbacv1.AggregationRule, set map[string]string) bool {
	for i := range a.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&a.ClusterRoleSelectors[i])
		if err == nil && !sel.Empty() && sel.Matches(labels.Set(set)) {
			return true
		}
	}
	return false
}
