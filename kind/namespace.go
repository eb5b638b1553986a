package kind

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"proa.dev/kind/validate"
)

// Namespace is a room for names.
var Namespace = define[corev1.NamespaceList](Row[*corev1.Namespace]{
	Names: Names{
		Group: "", Version: "v1", Kind: "Namespace", Plural: "namespaces",
		ShortNames: []string{"ns"},
		Scope:      Cluster,
		Prefix:     "namespaces",
	},
	Validate:       validate.Namespace,
	ValidateUpdate: validate.NamespaceUpdate,
	Verbs:          []string{"create", "delete", "get", "list", "patch", "update", "watch"},
	Default: func(n *corev1.Namespace) {
		fill(&n.Status.Phase, corev1.NamespaceActive)
		labelNamespace(n)
	},
	PrepareCreate: func(n *corev1.Namespace) {
		n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
		if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
			n.Spec.Finalizers = append(slices.Clip(n.Spec.Finalizers), corev1.FinalizerKubernetes)
		}
		labelNamespace(n)
	},
	PrepareUpdate: func(new, old *corev1.Namespace) { new.Spec, new.Status = old.Spec, old.Status },
	Subresources: []Subresource{
		{Name: "finalize", Kind: "Namespace", Verbs: []string{"update"}, Door: (&DoorOf[*corev1.Namespace]{
			PrepareUpdate:  func(new, old *corev1.Namespace) { new.Status = old.Status },
			ValidateUpdate: validate.NamespaceFinalizeUpdate,
		}).erase()},
	},
	Status: &DoorOf[*corev1.Namespace]{
		ValidateUpdate: validate.NamespaceStatusUpdate,
		PrepareUpdate:  func(new, old *corev1.Namespace) { new.Spec = old.Spec },
	},
	Selectable: map[string]func(*corev1.Namespace) string{
		"status.phase": func(n *corev1.Namespace) string { return string(n.Status.Phase) },
	},
	Columns: columns("Status"),
	Cells: func(n *corev1.Namespace, now time.Time) []any {
		return []any{n.Name, string(n.Status.Phase), age(n, now)}
	},
})

// labelNamespace sets the label that carries the name, so that selectors can
// choose a namespace by name. Before generateName made one there is none.
func labelNamespace(n *corev1.Namespace) {
	if n.Name == "" || n.Labels[corev1.LabelMetadataName] == n.Name {
		return
	}
	labels := maps.Clone(n.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = n.Name
	n.Labels = labels
}
