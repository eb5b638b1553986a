// Package controllerruntime holds proa to what an operator does that is made with
// controller-runtime: the envtest of controller-runtime starts proa as it would start
// kube-apiserver and etcd, installs definitions and webhooks from files, and managers
// with leader election reconcile a kind of two versions. Nothing in the operator
// knows of proa.
package controllerruntime

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	applymetav1 "k8s.io/client-go/applyconfigurations/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/recorder"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const (
	finalizer = "sea.example.com/farewell"
	byHarbour = "spec.harbour"
)

// webhooks default and check boats.
type webhooks struct{}

func (webhooks) Default(_ context.Context, b *Boat) error {
	if b.Spec.Image == "" {
		b.Spec.Image = "registry.example.com/sail:1"
	}
	return nil
}

func (webhooks) ValidateCreate(_ context.Context, b *Boat) (admission.Warnings, error) {
	if b.Spec.Sails > 9 {
		return nil, fmt.Errorf("%d sails are too many", b.Spec.Sails)
	}
	if b.Spec.Sails == 0 {
		return admission.Warnings{"a boat without sails drifts"}, nil
	}
	return nil, nil
}

func (w webhooks) ValidateUpdate(ctx context.Context, old, b *Boat) (admission.Warnings, error) {
	if b.Spec.Harbour != old.Spec.Harbour {
		return nil, errors.New("a boat keeps its harbour")
	}
	return w.ValidateCreate(ctx, b)
}

func (webhooks) ValidateDelete(_ context.Context, b *Boat) (admission.Warnings, error) {
	if b.Labels["anchored"] == "true" {
		return nil, errors.New("the boat is anchored")
	}
	return nil, nil
}

// reconciler makes a Deployment and a ConfigMap for each boat, and follows the
// metadata of its harbour's Secret.
type reconciler struct {
	client.Client
	events recorder.EventRecorder
	id     string
	runs   atomic.Int64
}

func (r *reconciler) setUp(ctx context.Context, m ctrl.Manager) error {
	r.Client, r.events = m.GetClient(), m.GetEventRecorder("sea.example.com/boats")
	if err := m.GetFieldIndexer().IndexField(ctx, &Boat{}, byHarbour, func(o client.Object) []string { return []string{o.(*Boat).Spec.Harbour} }); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).For(&Boat{}).Owns(&appsv1.Deployment{}).Owns(&corev1.ConfigMap{}).
		WatchesMetadata(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			var list BoatList
			if err := r.List(ctx, &list, client.InNamespace(o.GetNamespace()), client.MatchingFields{byHarbour: o.GetName()}); err != nil {
				return nil
			}
			var out []reconcile.Request
			for _, b := range list.Items {
				out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&b)})
			}
			return out
		})).Complete(r)
}

// Reconcile brings one boat nearer to its spec.
func (r *reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	r.runs.Add(1)
	var b Boat
	if err := r.Get(ctx, req.NamespacedName, &b); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !b.DeletionTimestamp.IsZero() {
		if controllerutil.RemoveFinalizer(&b, finalizer) {
			r.events.Eventf(&b, nil, corev1.EventTypeNormal, "Farewell", "Delete", "boat %s goes", b.Name)
			return ctrl.Result{}, r.Update(ctx, &b)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&b, finalizer) {
		if err := r.Update(ctx, &b); err != nil {
			return ctrl.Result{}, err
		}
	}
	crew := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: b.Namespace, Name: b.Name}}
	done, err := controllerutil.CreateOrUpdate(ctx, r.Client, crew, func() error {
		labels := map[string]string{"boat": b.Name}
		crew.Spec.Replicas = &b.Spec.Sails
		crew.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		crew.Spec.Template.Labels = labels
		if len(crew.Spec.Template.Spec.Containers) == 0 {
			crew.Spec.Template.Spec.Containers = []corev1.Container{{Name: "sail"}}
		}
		crew.Spec.Template.Spec.Containers[0].Image = b.Spec.Image
		return controllerutil.SetControllerReference(&b, crew, r.Scheme())
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	if done != controllerutil.OperationResultNone {
		r.events.Eventf(&b, crew, corev1.EventTypeNormal, "Rigged", "Reconcile", "deployment %s", done)
	}
	owner := applymetav1.OwnerReference().WithAPIVersion(v1.String()).WithKind("Boat").WithName(b.Name).WithUID(b.UID).WithController(true)
	log := applycorev1.ConfigMap(b.Name, b.Namespace).WithOwnerReferences(owner).WithData(map[string]string{"sails": fmt.Sprint(b.Spec.Sails), "by": r.id})
	if err := r.Apply(ctx, log, client.FieldOwner("boats"), client.ForceOwnership); err != nil {
		return ctrl.Result{}, err
	}
	old := b.DeepCopyObject().(*Boat)
	if b.Spec.Harbour != "" {
		secret := &metav1.PartialObjectMetadata{}
		secret.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
		if err := r.Get(ctx, types.NamespacedName{Namespace: b.Namespace, Name: b.Spec.Harbour}, secret); client.IgnoreNotFound(err) != nil {
			return ctrl.Result{}, err
		}
		b.Status.Password = secret.ResourceVersion
	}
	b.Status.ObservedGeneration = b.Generation
	meta.SetStatusCondition(&b.Status.Conditions, metav1.Condition{Type: "Rigged", Status: metav1.ConditionTrue, Reason: "Reconciled", Message: "by " + r.id, ObservedGeneration: b.Generation})
	if equality.Semantic.DeepEqual(old.Status, b.Status) {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, r.Status().Patch(ctx, &b, client.MergeFrom(old))
}
