// Package clientgo holds proa to what an operator does that is written on client-go
// alone: informers with Protobuf for built-in kinds and a dynamic one for its own
// kind, a workqueue, leader election by Lease, finalizers, owned objects,
// server-side apply, status, events. The operator knows nothing of proa.
package clientgo

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	applymetav1 "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

const (
	manager   = "boatswain"
	finalizer = "sea.example.com/farewell"
	namespace = "sea" // of the Lease
)

var boats = schema.GroupVersionResource{Group: "sea.example.com", Version: "v1", Resource: "boats"}

// operator makes for each boat a ConfigMap that tells its sails, and writes a
// farewell when it goes.
type operator struct {
	id        string
	core      *kubernetes.Clientset // Protobuf
	dyn       *dynamic.DynamicClient
	leads     atomic.Bool
	conflicts atomic.Int64

	boats  cache.GenericLister
	maps   corelisters.ConfigMapLister
	queue  workqueue.TypedRateLimitingInterface[types.NamespacedName]
	events record.EventRecorder
}

func newOperator(id string, config *rest.Config) (*operator, error) {
	proto := rest.CopyConfig(config)
	proto.ContentType, proto.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf"
	core, err := kubernetes.NewForConfig(proto)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &operator{id: id, core: core, dyn: dyn}, nil
}

// run is a candidate until ctx ends, and does the work while it leads. It does not
// give the Lease back: others wait until it has run out, as after a crash.
func (o *operator) run(ctx context.Context) error {
	failed := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: manager},
			Client:     o.core.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: o.id},
		},
		LeaseDuration: 6 * time.Second, RenewDeadline: 5 * time.Second, RetryPeriod: 250 * time.Millisecond,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				o.leads.Store(true)
				failed <- o.lead(ctx)
			},
			OnStoppedLeading: func() { o.leads.Store(false) },
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	if ctx.Err() == nil {
		return fmt.Errorf("candidate %q lost the lease", o.id)
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil // never led
	}
}

func (o *operator) lead(ctx context.Context) error {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: o.core.CoreV1().Events("")})
	o.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: manager, Host: o.id})

	o.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](5*time.Millisecond, time.Second))
	add := func(obj any) {
		if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = d.Obj
		}
		m := obj.(metav1.Object)
		name := m.GetName()
		if _, ok := obj.(*corev1.ConfigMap); ok {
			owner := metav1.GetControllerOf(m)
			if owner == nil || owner.Kind != "Boat" {
				return
			}
			name = owner.Name
		}
		o.queue.Add(types.NamespacedName{Namespace: m.GetNamespace(), Name: name})
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, obj any) { add(obj) }, DeleteFunc: add}
	typed := informers.NewSharedInformerFactory(o.core, 0)
	custom := dynamicinformer.NewDynamicSharedInformerFactory(o.dyn, 0)
	o.maps, o.boats = typed.Core().V1().ConfigMaps().Lister(), custom.ForResource(boats).Lister()
	var synced []cache.InformerSynced
	for _, informer := range []cache.SharedIndexInformer{typed.Core().V1().ConfigMaps().Informer(), custom.ForResource(boats).Informer()} {
		reg, err := informer.AddEventHandler(handler)
		if err != nil {
			return err
		}
		synced = append(synced, reg.HasSynced)
	}
	typed.Start(ctx.Done())
	custom.Start(ctx.Done())
	defer custom.Shutdown()
	defer typed.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	go func() { <-ctx.Done(); o.queue.ShutDown() }()
	for {
		key, ended := o.queue.Get()
		if ended {
			return nil
		}
		if err := o.reconcile(ctx, key); err == nil {
			o.queue.Forget(key)
		} else if ctx.Err() == nil {
			if apierrors.IsConflict(err) {
				o.conflicts.Add(1)
			}
			o.queue.AddRateLimited(key)
		}
		o.queue.Done(key)
	}
}

func (o *operator) reconcile(ctx context.Context, key types.NamespacedName) error {
	obj, err := o.boats.ByNamespace(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	boat := obj.(*unstructured.Unstructured).DeepCopy()
	door := o.dyn.Resource(boats).Namespace(key.Namespace)
	finalizers := boat.GetFinalizers()
	if boat.GetDeletionTimestamp() != nil {
		i := slices.Index(finalizers, finalizer)
		if i < 0 {
			return nil
		}
		o.events.Eventf(boat, corev1.EventTypeNormal, "Farewell", "boat %s goes", key.Name)
		boat.SetFinalizers(slices.Delete(finalizers, i, i+1))
		boat.SetAnnotations(map[string]string{"sea.example.com/last-words": o.id})
		_, err := door.Update(ctx, boat, metav1.UpdateOptions{FieldManager: manager})
		return err
	}
	if !slices.Contains(finalizers, finalizer) {
		boat.SetFinalizers(append(finalizers, finalizer))
		if boat, err = door.Update(ctx, boat, metav1.UpdateOptions{FieldManager: manager}); err != nil {
			return err
		}
	}
	sails, _, err := unstructured.NestedInt64(boat.Object, "spec", "sails")
	if err != nil {
		return err
	}
	have, err := o.maps.ConfigMaps(key.Namespace).Get(key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if want := fmt.Sprint(sails); have == nil || have.Data["sails"] != want {
		owner := applymetav1.OwnerReference().WithAPIVersion(boat.GetAPIVersion()).WithKind(boat.GetKind()).
			WithName(boat.GetName()).WithUID(boat.GetUID()).WithController(true).WithBlockOwnerDeletion(true)
		_, err := o.core.CoreV1().ConfigMaps(key.Namespace).Apply(ctx,
			applycorev1.ConfigMap(key.Name, key.Namespace).WithOwnerReferences(owner).WithData(map[string]string{"sails": want}),
			metav1.ApplyOptions{FieldManager: manager, Force: true})
		if err != nil {
			return err
		}
		o.events.Eventf(boat, corev1.EventTypeNormal, "Rigged", "sails: %d", sails)
	}
	status := map[string]any{"sails": sails, "by": o.id, "observedGeneration": boat.GetGeneration()}
	if old, _, _ := unstructured.NestedMap(boat.Object, "status"); old["sails"] == sails && old["by"] == o.id && old["observedGeneration"] == boat.GetGeneration() {
		return nil
	}
	boat.Object["status"] = status
	_, err = door.UpdateStatus(ctx, boat, metav1.UpdateOptions{FieldManager: manager})
	return err
}
