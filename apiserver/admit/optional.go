package admit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/kind"
)

// AlwaysPullImages makes every container pull its image, so that an image that
// lies on a node is only for who may pull it (docs, "Admission Control in
// Kubernetes"). Off unless enabled.
func AlwaysPullImages() Plugin {
	each := func(p *corev1.Pod, f func(name string, policy *corev1.PullPolicy)) {
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				f(list[i].Name, &list[i].ImagePullPolicy)
			}
		}
		for i := range p.Spec.EphemeralContainers {
			f(p.Spec.EphemeralContainers[i].Name, &p.Spec.EphemeralContainers[i].ImagePullPolicy)
		}
	}
	// An update that changes no image is left alone: pods of before stay as they are.
	concerns := func(r *Request) *corev1.Pod {
		p, _ := r.Object.(*corev1.Pod)
		if p == nil || r.Operation != Create && r.Operation != Update || r.Sub != "" && r.Sub != "ephemeralcontainers" {
			return nil
		}
		old, _ := r.Old.(*corev1.Pod)
		if r.Operation == Update && old != nil && slices.Equal(kind.PodImages(p), kind.PodImages(old)) {
			return nil
		}
		return p
	}
	return Plugin{Name: "AlwaysPullImages", Mutate: func(_ context.Context, r *Request) error {
		if p := concerns(r); p != nil {
			each(p, func(_ string, policy *corev1.PullPolicy) { *policy = corev1.PullAlways })
			for i := range p.Spec.Volumes {
				if img := p.Spec.Volumes[i].Image; img != nil {
					img.PullPolicy = corev1.PullAlways
				}
			}
		}
		return nil
	}, Validate: func(_ context.Context, r *Request) error {
		p := concerns(r)
		if p == nil {
			return nil
		}
		var bad []string
		each(p, func(name string, policy *corev1.PullPolicy) {
			if *policy != corev1.PullAlways {
				bad = append(bad, name)
			}
		})
		if len(bad) > 0 {
			return apierrors.NewForbidden(kind.Pod.GroupResource(), r.Name, fmt.Errorf("spec.containers[%s].imagePullPolicy: Unsupported value: supported values: %q", strings.Join(bad, ","), corev1.PullAlways))
		}
		return nil
	}}
}

// ExtendedResourceToleration lets pods that ask for an extended resource onto nodes
// that are tainted with its name. Off unless enabled.
func ExtendedResourceToleration() Plugin {
	return Plugin{Name: "ExtendedResourceToleration", Mutate: func(_ context.Context, r *Request) error {
		p, _ := r.Object.(*corev1.Pod)
		if p == nil || r.Sub != "" || r.Operation != Create && r.Operation != Update {
			return nil
		}
		var names []string
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for _, c := range list {
				for name := range c.Resources.Requests {
					domain, _, dotted := strings.Cut(string(name), "/")
					if dotted && domain != "kubernetes.io" && !strings.HasSuffix(domain, ".kubernetes.io") && !strings.HasPrefix(string(name), "requests.") {
						names = append(names, string(name))
					}
				}
			}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			t := corev1.Toleration{Key: name, Operator: corev1.TolerationOpExists}
			if !slices.ContainsFunc(p.Spec.Tolerations, func(x corev1.Toleration) bool { return x.Key == t.Key && x.Operator == t.Operator && x.Effect == "" }) {
				p.Spec.Tolerations = append(p.Spec.Tolerations, t)
			}
		}
		return nil
	}}
}
