package admit

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
	"proa.dev/view"
)

// NamespaceLifecycle refuses objects in namespaces that are absent or end, and
// the removal of the namespaces that every cluster has.
func NamespaceLifecycle() Plugin {
	return Plugin{Name: "NamespaceLifecycle", Mutate: func(_ context.Context, r *Request) error {
		if r.Operation == Delete && r.Sub == "" && r.Kind.Root() == kind.Namespace {
			switch r.Name {
			case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
				return apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("this namespace may not be deleted"))
			}
		}
		if r.Operation != Create || r.Kind.Scope != kind.Namespaced || r.Kind.Virtual {
			return nil
		}
		ns := view.Get[*corev1.Namespace](r.Snapshot, kind.Namespace, "", r.Namespace)
		if ns == nil {
			return apierrors.NewNotFound(kind.Namespace.GroupResource(), r.Namespace)
		}
		if ns.Status.Phase == corev1.NamespaceTerminating || ns.DeletionTimestamp != nil {
			err := apierrors.NewForbidden(r.Kind.GroupResource(), r.Name, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", r.Namespace))
			err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
				Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", r.Namespace), Field: "metadata.namespace"})
			return err
		}
		return nil
	}}
}
