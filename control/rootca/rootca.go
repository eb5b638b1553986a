// Package rootca publishes the cluster's certificate authority as ConfigMap
// kube-root-ca.crt in each namespace, and repairs it when someone changes it.
package rootca

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/act"
	"proa.dev/control"
	"proa.dev/kind"
	"proa.dev/view"
)

const (
	name        = "kube-root-ca.crt"
	file        = "ca.crt"
	describe    = "kubernetes.io/description"
	description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Part registers the controller; it plans per namespace. ca is in PEM.
func Part(ca string) control.Part {
	return control.Part{
		Name: "root-ca-certificate-publisher", Kind: kind.Namespace,
		Plan: func(s view.Snapshot, ref view.Ref, _ time.Time) (act.List, time.Time) {
			return Plan(s, ref, ca), time.Time{}
		},
		Wakes: []control.Wake{{Kind: kind.ConfigMap, To: func(_ view.Snapshot, o kind.Object) []view.Ref {
			if o.GetName() != name {
				return nil
			}
			return []view.Ref{{Kind: kind.Namespace, Name: o.GetNamespace()}}
		}}},
		Writes: []control.Write{{Kind: kind.ConfigMap, Verbs: []string{"create", "update"}}},
	}
}

// Plan makes or mends the ConfigMap of one namespace.
func Plan(s view.Snapshot, ref view.Ref, ca string) act.List {
	ns := view.Get[*corev1.Namespace](s, kind.Namespace, "", ref.Name)
	if ns == nil || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return nil
	}
	have := view.Get[*corev1.ConfigMap](s, kind.ConfigMap, ns.Name, name)
	if have == nil {
		return act.List{act.Create{Kind: kind.ConfigMap, Reason: "every namespace has one", Object: &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name, Annotations: map[string]string{describe: description}},
			Data:       map[string]string{file: ca}}}}
	}
	if len(have.Data) == 1 && have.Data[file] == ca && have.Annotations[describe] != "" {
		return nil
	}
	want := have.DeepCopy()
	want.Data, want.BinaryData = map[string]string{file: ca}, nil
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	want.Annotations[describe] = description
	return act.List{act.Update{Kind: kind.ConfigMap, Object: want, Reason: "content was changed"}}
}
