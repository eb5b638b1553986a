package apiserver

import (
	"context"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/apiserver/auth"
	"proa.dev/client"
	"proa.dev/kind"
)

// local calls the verbs as functions, for one identity.
type local struct {
	s    *Server
	user auth.User
}

func (l *local) call(k *kind.Kind, namespace, name, sub string) *call {
	k = l.row(k)
	if k.Scope == kind.Cluster {
		namespace = ""
	}
	return &call{user: l.user, kind: k, namespace: namespace, name: name, sub: sub, warn: noWarning}
}

// row is the served row of a custom kind's root, which controllers know from
// snapshots: in the version that objects are stored in.
func (l *local) row(k *kind.Kind) *kind.Kind {
	if !k.Hidden {
		return k
	}
	for _, row := range l.s.kinds().Custom() {
		if row.Stored == k {
			return row
		}
	}
	return k
}

func (l *local) Get(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.GetOptions) (kind.Object, error) {
	c := l.call(k, namespace, name, "")
	if err := l.s.authorize(ctx, c, "get", ""); err != nil {
		return nil, err
	}
	return l.s.get(ctx, c, o)
}

func (l *local) List(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (client.List, error) {
	c := l.call(k, namespace, "", "")
	if err := l.s.authorize(ctx, c, "list", o.FieldSelector); err != nil {
		return client.List{}, err
	}
	o.Watch = false
	got, err := l.s.list(ctx, c, o)
	if err != nil {
		return client.List{}, err
	}
	m := got.meta()
	out := client.List{Items: got.items, ResourceVersion: m.ResourceVersion, Continue: m.Continue, Remaining: m.RemainingItemCount}
	out.Items, err = servedList(k, out.Items)
	return out, err
}

func (l *local) Watch(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	c := l.call(k, namespace, "", "")
	if err := l.s.authorize(ctx, c, "watch", o.FieldSelector); err != nil {
		return nil, err
	}
	o.Watch = true
	return l.s.watchLocal(ctx, c, o)
}

func (l *local) Create(ctx context.Context, k *kind.Kind, obj kind.Object, o metav1.CreateOptions) (kind.Object, error) {
	c := l.call(k, obj.GetNamespace(), "", "")
	// The name takes part in authorization only over HTTP's URL, where a create
	// has none.
	if err := l.s.authorize(ctx, c, "create", ""); err != nil {
		return nil, err
	}
	if k.Virtual {
		return l.s.answer(ctx, c, obj.DeepCopyObject().(kind.Object))
	}
	obj = obj.DeepCopyObject().(kind.Object)
	if k.Coerce != nil {
		if _, err := k.Coerce(obj, false); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	return l.s.create(ctx, c, obj, o)
}

func (l *local) Update(ctx context.Context, k *kind.Kind, obj kind.Object, sub string, o metav1.UpdateOptions) (kind.Object, error) {
	c := l.call(k, obj.GetNamespace(), obj.GetName(), sub)
	if err := l.s.authorize(ctx, c, "update", ""); err != nil {
		return nil, err
	}
	if sub == "scale" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("update %s %q through scale: send an autoscaling/v1 Scale with Post", k, obj.GetName()))
	}
	obj = obj.DeepCopyObject().(kind.Object)
	if k.Coerce != nil {
		if _, err := k.Coerce(obj, false); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	out, _, err := l.s.update(ctx, c, obj, o)
	return out, err
}

func (l *local) Patch(ctx context.Context, k *kind.Kind, namespace, name string, t types.PatchType, data []byte, sub string, o metav1.PatchOptions) (kind.Object, error) {
	c := l.call(k, namespace, name, sub)
	if err := l.s.authorize(ctx, c, "patch", ""); err != nil {
		return nil, err
	}
	if sub == "scale" {
		sc, err := l.s.patchScale(ctx, c, t, data, o)
		return sc, err
	}
	out, _, err := l.s.patch(ctx, c, t, data, o)
	return out, err
}

func (l *local) Delete(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.DeleteOptions) error {
	c := l.call(k, namespace, name, "")
	if err := l.s.authorize(ctx, c, "delete", ""); err != nil {
		return err
	}
	_, _, err := l.s.delete(ctx, c, o)
	return err
}

func (l *local) Post(ctx context.Context, k *kind.Kind, namespace, name, sub string, body runtime.Object) (runtime.Object, error) {
	c := l.call(k, namespace, name, sub)
	if sc, ok := body.(*autoscalingv1.Scale); ok && sub == "scale" {
		if err := l.s.authorize(ctx, c, "update", ""); err != nil {
			return nil, err
		}
		return l.s.setScale(ctx, c, func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return sc.DeepCopy(), nil }, nil)
	}
	if err := l.s.authorize(ctx, c, "create", ""); err != nil {
		return nil, err
	}
	return l.s.post(ctx, c, body.DeepCopyObject(), nil)
}
