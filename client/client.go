// Package client is the one door to the API: in process (package apiserver gives
// one that calls the verbs as functions) and over HTTP (HTTP here). clienttest is
// the suite that both pass.
//
// Errors are apimachinery's StatusErrors (k8s.io/apimachinery/pkg/api/errors):
// IsNotFound, IsConflict, IsAlreadyExists, IsInvalid ... tell them apart.
// Objects that come back must not be changed: they may be shared with a view.
package client

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"proa.dev/kind"
)

// List is the answer to a list.
type List struct {
	Items           []kind.Object
	ResourceVersion string
	Continue        string
	Remaining       *int64
}

// Client speaks for one identity. A write that returned is visible to every read
// that starts afterwards through the same server.
type Client interface {
	Get(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.GetOptions) (kind.Object, error)
	List(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (List, error)
	// Watch delivers events until it is stopped or ctx ends.
	Watch(ctx context.Context, k *kind.Kind, namespace string, o metav1.ListOptions) (watch.Interface, error)
	Create(ctx context.Context, k *kind.Kind, obj kind.Object, o metav1.CreateOptions) (kind.Object, error)
	// Update writes through the main door (sub "") or a subresource ("status").
	Update(ctx context.Context, k *kind.Kind, obj kind.Object, sub string, o metav1.UpdateOptions) (kind.Object, error)
	Patch(ctx context.Context, k *kind.Kind, namespace, name string, t types.PatchType, data []byte, sub string, o metav1.PatchOptions) (kind.Object, error)
	Delete(ctx context.Context, k *kind.Kind, namespace, name string, o metav1.DeleteOptions) error
	// Post creates below an object: pods/binding, pods/eviction,
	// serviceaccounts/token. The answer may be the sent object filled in or a Status.
	Post(ctx context.Context, k *kind.Kind, namespace, name, sub string, body runtime.Object) (runtime.Object, error)
}
