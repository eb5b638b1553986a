package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"proa.dev/apiserver/admit"
	"proa.dev/kind"
	"proa.dev/store"
)

func msec(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// delete removes an object or, when a grace period or finalizers keep it, marks
// it. gone says which; obj is its last or its marked state.
func (s *Server) delete(ctx context.Context, c *call, o metav1.DeleteOptions) (obj kind.Object, gone bool, err error) {
	if errs := metav1validation.ValidateDeleteOptions(&o); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", errs)
	}
	k := c.kind.Root()
	for try := 0; ; try++ {
		if err := s.fresh(ctx); err != nil {
			return nil, false, err
		}
		snap := s.view.Snapshot()
		old := snap.Get(k, c.namespace, c.name)
		if old == nil {
			return nil, false, notFound(c, c.name)
		}
		if err := checkPreconditions(c, old, o.Preconditions); err != nil {
			return nil, false, err
		}
		oldServed, err := served(c.kind, old)
		if err != nil {
			return nil, false, err
		}
		if !k.Custom {
			oldServed = old
		}
		r := &admit.Request{Kind: k, Served: c.kind, Options: &o, Operation: admit.Delete, User: c.user, Namespace: c.namespace, Name: c.name,
			Old: oldServed, DryRun: isDryRun(o.DryRun), Delete: &o, Now: s.clock.Now(), Snapshot: snap, Warn: c.warn}
		if err := s.mutate(ctx, r); err != nil {
			return nil, false, err
		}
		release, err := s.check(ctx, r)
		if err != nil {
			return nil, false, err
		}
		obj, gone, err := s.deleteOnce(ctx, c, old, o)
		if err == nil {
			out, err := served(c.kind, obj)
			return out, gone, err
		}
		release()
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
			if o.Preconditions != nil && o.Preconditions.ResourceVersion != nil || try >= maxTries {
				return nil, false, modified(c, c.name)
			}
			if try > 8 {
				if err := s.pause(ctx, try); err != nil {
					return nil, false, err
				}
			}
			continue
		}
		return nil, false, storeError(c, c.name, err)
	}
}

func checkPreconditions(c *call, old kind.Object, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != old.GetUID() {
		return apierrors.NewConflict(c.kind.GroupResource(), c.name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). "+
			"The object might have been deleted and then recreated", *p.UID, old.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion() {
		return apierrors.NewConflict(c.kind.GroupResource(), c.name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). "+
			"The object might have been modified", *p.ResourceVersion, old.GetResourceVersion()))
	}
	return nil
}

// deleteOnce is one attempt; its conflicts are the store's errors.
func (s *Server) deleteOnce(ctx context.Context, c *call, old kind.Object, o metav1.DeleteOptions) (kind.Object, bool, error) {
	k := c.kind.Root()
	obj := old.DeepCopyObject().(kind.Object)
	obj.SetFinalizers(propagationFinalizers(obj.GetFinalizers(), o))
	var grace *int64
	if k.Grace != nil {
		grace = k.Grace(old, o.GracePeriodSeconds)
	}
	seconds := int64(0)
	if grace != nil {
		seconds = max(*grace, 0)
	}
	changed := len(obj.GetFinalizers()) != len(old.GetFinalizers())
	switch {
	case old.GetDeletionTimestamp() == nil:
		if k.PrepareDelete != nil {
			k.PrepareDelete(obj, s.now())
		}
		if seconds == 0 && !held(obj) {
			return s.deleteNow(ctx, c, obj, old, o)
		}
		now := s.clock.Now().Truncate(time.Second)
		at := metav1.NewTime(now.Add(time.Duration(seconds) * time.Second))
		obj.SetDeletionTimestamp(&at)
		obj.SetDeletionGracePeriodSeconds(&seconds)
		if obj.GetGeneration() > 0 {
			obj.SetGeneration(obj.GetGeneration() + 1)
		}
		if ns, ok := obj.(*corev1.Namespace); ok {
			ns.Status.Phase = corev1.NamespaceTerminating
		}
		changed = true
	default:
		// Already going: the period may become shorter, never longer.
		left := old.GetDeletionGracePeriodSeconds()
		asked := o.GracePeriodSeconds != nil || grace == nil
		if left != nil && *left > 0 && asked && seconds < *left {
			start := old.GetDeletionTimestamp().Add(-time.Duration(*left) * time.Second)
			at := metav1.NewTime(start.Add(time.Duration(seconds) * time.Second))
			obj.SetDeletionTimestamp(&at)
			obj.SetDeletionGracePeriodSeconds(&seconds)
			changed = true
		}
		if goesNow(obj) {
			return s.deleteNow(ctx, c, obj, old, o)
		}
	}
	if !changed {
		return old, false, nil
	}
	if isDryRun(o.DryRun) {
		return obj, false, nil
	}
	if err := s.put(ctx, c, obj, objectVersion(old)); err != nil {
		return nil, false, err
	}
	return obj, false, nil
}

func (s *Server) deleteNow(ctx context.Context, c *call, obj, old kind.Object, o metav1.DeleteOptions) (kind.Object, bool, error) {
	if isDryRun(o.DryRun) {
		return old, true, nil
	}
	if err := s.remove(ctx, c, obj, objectVersion(old)); err != nil {
		return nil, false, err
	}
	return obj, true, nil
}

// propagationFinalizers gives the finalizers that the garbage collector works by
// (Kubernetes docs, "Garbage Collection"): orphan, foregroundDeletion or none.
func propagationFinalizers(finalizers []string, o metav1.DeleteOptions) []string {
	want, keep := "", false
	switch {
	case o.OrphanDependents != nil && *o.OrphanDependents:
		want = metav1.FinalizerOrphanDependents
	case o.OrphanDependents != nil:
	case o.PropagationPolicy != nil && *o.PropagationPolicy == metav1.DeletePropagationOrphan:
		want = metav1.FinalizerOrphanDependents
	case o.PropagationPolicy != nil && *o.PropagationPolicy == metav1.DeletePropagationForeground:
		want = metav1.FinalizerDeleteDependents
	case o.PropagationPolicy == nil:
		keep = true // what is there decides
	}
	if keep {
		return finalizers
	}
	var out []string
	for _, f := range finalizers {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			out = append(out, f)
		}
	}
	if want != "" {
		out = append(out, want)
	}
	return out
}

// deleteCollection deletes what a list with the same options shows, each with
// its revision left open but its identity fixed. It returns the objects.
func (s *Server) deleteCollection(ctx context.Context, c *call, o metav1.DeleteOptions, lo metav1.ListOptions) (*listing, error) {
	l, err := s.list(ctx, c, lo)
	if err != nil {
		return nil, err
	}
	for i, obj := range l.items {
		one := *c
		one.namespace, one.name = obj.GetNamespace(), obj.GetName()
		uid := obj.GetUID()
		opts := *o.DeepCopy()
		if opts.Preconditions == nil {
			opts.Preconditions = &metav1.Preconditions{UID: &uid}
		}
		marked, _, err := s.delete(ctx, &one, opts)
		switch {
		case err == nil:
			if c.kind.Stored == nil || c.kind.Custom {
				l.items[i] = marked
			}
		case apierrors.IsNotFound(err):
		case apierrors.IsConflict(err) && o.Preconditions == nil:
			// Deleted and made again under the same name: not what was listed.
		default:
			return nil, err
		}
	}
	l.cont, l.remaining = "", nil
	return l, nil
}

// returnsDeleted are the kinds whose delete answers with the object even when it
// is gone at once; the others answer with a Status.
func returnsDeleted(k *kind.Kind) bool {
	switch k.Root() {
	case kind.Pod, kind.Service, kind.PersistentVolumeClaim, kind.PersistentVolume, kind.ServiceAccount, kind.ResourceQuota, kind.PodTemplate:
		return true
	}
	return false
}

func deletedStatus(c *call, obj kind.Object) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: c.name, Group: c.kind.Group, Kind: c.kind.Plural, UID: obj.GetUID()}}
}
