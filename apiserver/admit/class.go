package admit

import (
	"context"
	"fmt"
	"iter"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/kind"
	"proa.dev/view"
)

// newest of the classes that are marked as the default: the youngest, then the
// first by name; the zero value when none is.
func newest[T kind.Object](all iter.Seq[T], annotations ...string) (best T, found bool) {
	for c := range all {
		marked := false
		for _, a := range annotations {
			marked = marked || c.GetAnnotations()[a] == "true"
		}
		if !marked {
			continue
		}
		if !found {
			best, found = c, true
			continue
		}
		a, b := c.GetCreationTimestamp(), best.GetCreationTimestamp()
		if a.After(b.Time) || a.Time.Equal(b.Time) && c.GetName() < best.GetName() {
			best = c
		}
	}
	return best, found
}

// DefaultStorageClass gives claims that name no class the default one, if there
// is one (docs, "Storage Classes").
func DefaultStorageClass() Plugin {
	return Plugin{Name: "DefaultStorageClass", Mutate: func(_ context.Context, r *Request) error {
		c, _ := r.Object.(*corev1.PersistentVolumeClaim)
		if c == nil || r.Operation != Create || r.Sub != "" || c.Spec.StorageClassName != nil {
			return nil
		}
		if _, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
			return nil
		}
		if class, ok := newest(view.List[*storagev1.StorageClass](r.Snapshot, kind.StorageClass, ""),
			"storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"); ok {
			c.Spec.StorageClassName = &class.Name
		}
		return nil
	}}
}

// DefaultIngressClass gives Ingresses that name no class the default one, if
// there is one (docs, "Ingress").
func DefaultIngressClass() Plugin {
	return Plugin{Name: "DefaultIngressClass", Mutate: func(_ context.Context, r *Request) error {
		i, _ := r.Object.(*networkingv1.Ingress)
		if i == nil || r.Operation != Create || r.Sub != "" || i.Spec.IngressClassName != nil {
			return nil
		}
		if _, ok := i.Annotations["kubernetes.io/ingress.class"]; ok {
			return nil
		}
		if class, ok := newest(view.List[*networkingv1.IngressClass](r.Snapshot, kind.IngressClass, ""), networkingv1.AnnotationIsDefaultIngressClass); ok {
			i.Spec.IngressClassName = &class.Name
		}
		return nil
	}}
}

// RuntimeClass gives a pod the overhead of its class and where the class can run
// (docs, "Runtime Class", "Pod Overhead").
func RuntimeClass() Plugin {
	find := func(r *Request, p *corev1.Pod) (*nodev1.RuntimeClass, error) {
		if p.Spec.RuntimeClassName == nil {
			return nil, nil
		}
		c := view.Get[*nodev1.RuntimeClass](r.Snapshot, kind.RuntimeClass, "", *p.Spec.RuntimeClassName)
		if c == nil {
			return nil, refusePod(p, "pod rejected: RuntimeClass %q not found", *p.Spec.RuntimeClassName)
		}
		return c, nil
	}
	return Plugin{Name: "RuntimeClass",
		Mutate: func(_ context.Context, r *Request) error {
			p := newPod(r)
			if p == nil {
				return nil
			}
			c, err := find(r, p)
			if c == nil {
				return err
			}
			if c.Overhead != nil {
				if p.Spec.Overhead != nil && !apiequality.Semantic.DeepEqual(p.Spec.Overhead, c.Overhead.PodFixed) {
					return refusePod(p, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
				}
				p.Spec.Overhead = c.Overhead.PodFixed.DeepCopy()
			}
			if c.Scheduling == nil {
				return nil
			}
			for k, v := range c.Scheduling.NodeSelector {
				if have, ok := p.Spec.NodeSelector[k]; ok && have != v {
					return refusePod(p, "conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, v, k, have)
				}
				if p.Spec.NodeSelector == nil {
					p.Spec.NodeSelector = map[string]string{}
				}
				p.Spec.NodeSelector[k] = v
			}
			for _, t := range c.Scheduling.Tolerations {
				has := false
				for i := range p.Spec.Tolerations {
					has = has || apiequality.Semantic.DeepEqual(p.Spec.Tolerations[i], t)
				}
				if !has {
					p.Spec.Tolerations = append(p.Spec.Tolerations, *t.DeepCopy())
				}
			}
			return nil
		},
		Validate: func(_ context.Context, r *Request) error {
			p := newPod(r)
			if p == nil {
				return nil
			}
			c, err := find(r, p)
			if err != nil {
				return err
			}
			if c != nil && c.Overhead != nil {
				if !apiequality.Semantic.DeepEqual(p.Spec.Overhead, c.Overhead.PodFixed) {
					return refusePod(p, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
				}
			} else if p.Spec.Overhead != nil {
				return refusePod(p, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
			}
			return nil
		}}
}

func refusePod(p *corev1.Pod, format string, args ...any) error {
	return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf(format, args...))
}

// TaintNodesByCondition keeps pods off a new node until it has said that it is
// ready; the node controller takes the taint away then.
func TaintNodesByCondition() Plugin {
	return Plugin{Name: "TaintNodesByCondition", Mutate: func(_ context.Context, r *Request) error {
		n, _ := r.Object.(*corev1.Node)
		if n == nil || r.Operation != Create || r.Sub != "" {
			return nil
		}
		taint := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
		for i := range n.Spec.Taints {
			if n.Spec.Taints[i].MatchTaint(&taint) {
				return nil
			}
		}
		n.Spec.Taints = append(n.Spec.Taints, taint)
		return nil
	}}
}
