package view

import (
	"iter"
	"slices"
	"strings"

	"github.com/tidwall/btree"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/kind"
)

var kindPod = kind.Pod

func labelKey(namespace, key, value, name string) string {
	return namespace + "\x00" + key + "=" + value + "\x00" + name
}

// podsWith walks the index entries of all labels side by side, jumping ahead to
// the largest name that any of them stands at.
func podsWith(index, pods *tree, namespace string, labels map[string]string) iter.Seq[*corev1.Pod] {
	return func(yield func(*corev1.Pod) bool) {
		if index == nil || pods == nil || len(labels) == 0 {
			return
		}
		prefixes := make([]string, 0, len(labels))
		for k, v := range labels {
			prefixes = append(prefixes, labelKey(namespace, k, v, ""))
		}
		its := make([]btree.MapIter[string, kind.Object], len(prefixes))
		for i := range its {
			its[i] = index.Iter()
		}
		// stand moves iterator i to the first name at or behind from.
		stand := func(i int, from string) (string, bool) {
			if !its[i].Seek(prefixes[i] + from) {
				return "", false
			}
			return strings.CutPrefix(its[i].Key(), prefixes[i])
		}
		name, ok := stand(0, "")
		for ok {
			agreed := true
			for i := range its {
				at, found := stand(i, name)
				if !found {
					return
				}
				if at != name {
					name, agreed = at, false
					break
				}
			}
			if !agreed {
				continue
			}
			if o, there := pods.Get(key(namespace, name)); there && !yield(o.(*corev1.Pod)) {
				return
			}
			name, ok = stand(0, name+"\x00")
		}
	}
}

// selectorOf is the equality part of an object's selector; ok is false when it
// selects nothing.
func selectorOf(o kind.Object) (labels map[string]string, ok bool) {
	of := func(s *metav1.LabelSelector) (map[string]string, bool) {
		if s == nil {
			return nil, false
		}
		return s.MatchLabels, true
	}
	switch o := o.(type) {
	case *corev1.Service:
		return o.Spec.Selector, len(o.Spec.Selector) > 0
	case *corev1.ReplicationController:
		return o.Spec.Selector, len(o.Spec.Selector) > 0
	case *appsv1.ReplicaSet:
		return of(o.Spec.Selector)
	case *appsv1.Deployment:
		return of(o.Spec.Selector)
	case *appsv1.DaemonSet:
		return of(o.Spec.Selector)
	case *appsv1.StatefulSet:
		return of(o.Spec.Selector)
	case *batchv1.Job:
		return of(o.Spec.Selector)
	case *policyv1.PodDisruptionBudget:
		return of(o.Spec.Selector)
	}
	return nil, false
}

// firstLabel of a selector in order of keys; "" when it has no equality part.
func firstLabel(labels map[string]string) string {
	first := ""
	for k := range labels {
		if first == "" || k < first {
			first = k
		}
	}
	if first == "" {
		return ""
	}
	return first + "=" + labels[first]
}

func selectKey(plural string, o kind.Object) (string, bool) {
	labels, ok := selectorOf(o)
	if !ok {
		return "", false
	}
	return plural + "\x00" + o.GetNamespace() + "\x00" + firstLabel(labels) + "\x00" + o.GetName(), true
}

// setSelector keeps the index of selectors.
func (v *View) setSelector(plural string, old, new kind.Object) {
	was, is := "", ""
	if old != nil {
		was, _ = selectKey(plural, old)
	}
	if new != nil {
		is, _ = selectKey(plural, new)
	}
	if was == is {
		return
	}
	if was != "" {
		v.selects.Delete(was)
	}
	if is != "" {
		v.selects.Set(is, nil)
	}
}

func selecting(index, objects *tree, plural, namespace string, labels map[string]string) iter.Seq[kind.Object] {
	return func(yield func(kind.Object) bool) {
		if index == nil || objects == nil {
			return
		}
		pairs := make([]string, 1, len(labels)+1)
		for k, v := range labels {
			pairs = append(pairs, k+"="+v)
		}
		slices.Sort(pairs)
		for _, pair := range pairs {
			prefix := plural + "\x00" + namespace + "\x00" + pair + "\x00"
			stop := false
			index.Ascend(prefix, func(k string, _ kind.Object) bool {
				name, ok := strings.CutPrefix(k, prefix)
				if !ok {
					return false
				}
				if o, there := objects.Get(key(namespace, name)); there && !yield(o) {
					stop = true
					return false
				}
				return true
			})
			if stop {
				return
			}
		}
	}
}
