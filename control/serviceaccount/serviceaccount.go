// Package serviceaccount keeps one ServiceAccount named default in each
// namespace (Kubernetes docs, "Managing Service Accounts").
package serviceaccount

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

// Part registers the controller; it plans per namespace.
func Part() control.Part {
	return control.Part{
		Name: "serviceaccount-controller", Kind: kind.Namespace, Plan: Plan,
		Wakes: []control.Wake{{Kind: kind.ServiceAccount, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			if o.GetName() != "default" {
				return nil
			}
			return []view.Ref{{Kind: kind.Namespace, Name: o.GetNamespace()}}
		}}},
		Writes: []control.Write{{Kind: kind.ServiceAccount, Verbs: []string{"create"}}},
	}
}

// Plan creates the account when the namespace is active and has none.
func Plan(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
	ns := view.Get[*corev1.Namespace](s, kind.Namespace, "", ref.Name)
	if ns == nil || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return nil, time.Time{}
	}
	if s.Get(kind.ServiceAccount, ns.Name, "default") != nil {
		return nil, time.Time{}
	}
	return act.List{act.Create{Kind: kind.ServiceAccount, Reason: "every namespace has one",
		Object: &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "default"}}}}, time.Time{}
}
