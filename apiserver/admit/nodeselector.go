package admit

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"proa.dev/kind"
	"proa.dev/view"
)

// DefaultSelector is the key of PodNodeSelector's selectors that stands for
// namespaces without the annotation.
const DefaultSelector = "clusterDefaultNodeSelector"

const selectorAnnotation = "scheduler.alpha.kubernetes.io/node-selector"

// PodNodeSelector adds the node selector of a namespace (its annotation, or the
// default one) to its pods, and holds them to the namespace's own list in selectors
// (docs, "Admission Control in Kubernetes"). Off unless enabled.
func PodNodeSelector(selectors map[string]string) Plugin {
	concerns := func(r *Request) *corev1.Pod {
		p, _ := r.Object.(*corev1.Pod)
		if r.Kind != kind.Pod || r.Operation != Create || r.Sub != "" {
			return nil
		}
		return p
	}
	refuse := func(r *Request, why string) error {
		return apierrors.NewForbidden(kind.Pod.GroupResource(), r.Name, errors.New(why))
	}
	of := func(r *Request) (labels.Set, error) {
		text := selectors[DefaultSelector]
		if ns := view.Get[*corev1.Namespace](r.Snapshot, kind.Namespace, "", r.Namespace); ns != nil {
			if a, ok := ns.Annotations[selectorAnnotation]; ok {
				text = a
			}
		}
		return labels.ConvertSelectorToLabelsMap(text)
	}
	// concerned is the pod that r makes and what its namespace wants, which it does not contradict.
	concerned := func(r *Request) (*corev1.Pod, labels.Set, error) {
		p := concerns(r)
		if p == nil {
			return nil, nil, nil
		}
		want, err := of(r)
		if err == nil && labels.Conflicts(want, p.Spec.NodeSelector) {
			err = refuse(r, "pod node label selector conflicts with its namespace node label selector")
		}
		return p, want, err
	}
	return Plugin{Name: "PodNodeSelector", Mutate: func(_ context.Context, r *Request) error {
		p, want, err := concerned(r)
		if p == nil || err != nil {
			return err
		}
		if len(want) > 0 {
			p.Spec.NodeSelector = labels.Merge(want, p.Spec.NodeSelector)
		}
		return nil
	}, Validate: func(_ context.Context, r *Request) error {
		p, _, err := concerned(r)
		if p == nil || err != nil {
			return err
		}
		text, listed := selectors[r.Namespace]
		if !listed {
			return nil
		}
		list, err := labels.ConvertSelectorToLabelsMap(text)
		if err != nil {
			return err
		}
		for k, v := range p.Spec.NodeSelector {
			if have, ok := list[k]; !ok || have != v {
				return refuse(r, "pod node label selector labels conflict with its namespace whitelist")
			}
		}
		return nil
	}}
}
