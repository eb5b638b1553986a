package admit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
	"proa.dev/internal/suffix"
	"proa.dev/kind"
	"proa.dev/view"
)

// newPod is the pod of a create through the main door.
func newPod(r *Request) *corev1.Pod {
	if r.Operation != Create || r.Sub != "" {
		return nil
	}
	p, _ := r.Object.(*corev1.Pod)
	return p
}

// tokenPath is where clients inside a pod look for their credentials (docs,
// "Configure Service Accounts for Pods").
const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// namespaceGrace: a pod created together with its namespace waits this long for
// the default service account to appear instead of failing.
const namespaceGrace = 2 * time.Second

// ServiceAccount gives each pod its account, the account's pull secrets and a
// projected token.
func ServiceAccount(v *view.View, rand env.Rand) Plugin {
	return Plugin{Name: "ServiceAccount", Mutate: func(ctx context.Context, r *Request) error {
		p := newPod(r)
		if p == nil {
			return nil
		}
		if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
			if p.Spec.ServiceAccountName != "" {
				return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("a mirror pod may not reference service accounts"))
			}
			switch refs := auth.References(p); {
			case refs.Secrets:
				return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("a mirror pod may not reference secrets"))
			case refs.Tokens:
				return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("a mirror pod may not use ServiceAccountToken volume projections"))
			}
			return nil
		}
		if p.Spec.ServiceAccountName == "" {
			p.Spec.ServiceAccountName = cmp.Or(p.Spec.DeprecatedServiceAccount, "default")
		}
		p.Spec.DeprecatedServiceAccount = p.Spec.ServiceAccountName
		sa := account(ctx, v, r, p.Spec.ServiceAccountName)
		if sa == nil {
			return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("error looking up service account %s/%s: serviceaccount %q not found", r.Namespace, p.Spec.ServiceAccountName, p.Spec.ServiceAccountName))
		}
		if err := mountable(p, sa); err != nil {
			return err
		}
		if len(p.Spec.ImagePullSecrets) == 0 {
			p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, sa.ImagePullSecrets...)
		}
		mount := true
		if sa.AutomountServiceAccountToken != nil {
			mount = *sa.AutomountServiceAccountToken
		}
		if p.Spec.AutomountServiceAccountToken != nil {
			mount = *p.Spec.AutomountServiceAccountToken
		}
		if mount {
			mountToken(p, rand)
		}
		return nil
	}}
}

// mountable holds a pod to the secrets that its account lists, when the account
// asks for that (deprecated upstream, and still enforced).
func mountable(p *corev1.Pod, sa *corev1.ServiceAccount) error {
	if sa.Annotations["kubernetes.io/enforce-mountable-secrets"] != "true" {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf(format, args...))
	}
	listed := func(name string) bool {
		return slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == name })
	}
	for _, v := range p.Spec.Volumes {
		if v.Secret != nil && !listed(v.Secret.SecretName) {
			return refuse("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", v.Secret.SecretName, sa.Name)
		}
	}
	for _, list := range []struct {
		what string
		of   []corev1.Container
	}{{"init container", p.Spec.InitContainers}, {"container", p.Spec.Containers}} {
		for _, c := range list.of {
			for _, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && !listed(e.ValueFrom.SecretKeyRef.Name) {
					return refuse("%s %s with envVar %s referencing secret.secretName=%q is not allowed because service account %s does not reference that secret", list.what, c.Name, e.Name, e.ValueFrom.SecretKeyRef.Name, sa.Name)
				}
			}
			for _, e := range c.EnvFrom {
				if e.SecretRef != nil && !listed(e.SecretRef.Name) {
					return refuse("%s %s with envFrom referencing secret.secretName=%q is not allowed because service account %s does not reference that secret", list.what, c.Name, e.SecretRef.Name, sa.Name)
				}
			}
		}
	}
	for _, r := range p.Spec.ImagePullSecrets {
		if !slices.ContainsFunc(sa.ImagePullSecrets, func(have corev1.LocalObjectReference) bool { return have.Name == r.Name }) {
			return refuse("imagePullSecrets[\"%s\"] is not allowed because service account %s does not reference that imagePullSecret", r.Name, sa.Name)
		}
	}
	return nil
}

func account(ctx context.Context, v *view.View, r *Request, name string) *corev1.ServiceAccount {
	if sa := view.Get[*corev1.ServiceAccount](r.Snapshot, kind.ServiceAccount, r.Namespace, name); sa != nil || name != "default" {
		return sa
	}
	ctx, cancel := context.WithTimeout(ctx, namespaceGrace)
	defer cancel()
	for {
		_, moved := v.Moved()
		if sa := view.Get[*corev1.ServiceAccount](v.Snapshot(), kind.ServiceAccount, r.Namespace, name); sa != nil {
			return sa
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil
		}
	}
}

func mountToken(p *corev1.Pod, rand env.Rand) {
	var volume string
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			has := false
			for _, m := range c.VolumeMounts {
				has = has || m.MountPath == tokenPath
			}
			if has {
				continue
			}
			if volume == "" {
				volume = freshVolume(p, rand)
			}
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, ReadOnly: true, MountPath: tokenPath})
		}
	}
	if volume == "" {
		return
	}
	mode, seconds := int32(0o644), int64(3607)
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"}}}}},
		}}}})
}

func freshVolume(p *corev1.Pod, rand env.Rand) string {
	for {
		name := suffix.Append("kube-api-access-", rand.Uint64())
		if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }) {
			return name
		}
	}
}

// tolerationSeconds is how long a pod stays on a node that is not ready or cannot
// be reached when it says nothing itself.
const tolerationSeconds = 300

// DefaultTolerationSeconds adds the two tolerations for node failures.
func DefaultTolerationSeconds() Plugin {
	return Plugin{Name: "DefaultTolerationSeconds", Mutate: func(_ context.Context, r *Request) error {
		p := newPod(r)
		if p == nil {
			return nil
		}
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			has := false
			for _, t := range p.Spec.Tolerations {
				has = has || (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
			}
			if !has {
				seconds := int64(tolerationSeconds)
				p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds})
			}
		}
		return nil
	}}
}

// Priority resolves priorityClassName to a number and a preemption policy, and
// holds the class's own rules.
func Priority() Plugin {
	return Plugin{Name: "Priority", Mutate: func(_ context.Context, r *Request) error {
		p := newPod(r)
		if p == nil {
			keepPriority(r)
			return nil
		}
		var value int32
		var policy *corev1.PreemptionPolicy
		if p.Spec.PriorityClassName == "" {
			if c := globalDefault(r.Snapshot); c != nil {
				p.Spec.PriorityClassName, value, policy = c.Name, c.Value, c.PreemptionPolicy
			}
		} else {
			c := view.Get[*schedulingv1.PriorityClass](r.Snapshot, kind.PriorityClass, "", p.Spec.PriorityClassName)
			if c == nil {
				return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("no PriorityClass with name %s was found", p.Spec.PriorityClassName))
			}
			value, policy = c.Value, c.PreemptionPolicy
		}
		if p.Spec.Priority != nil && *p.Spec.Priority != value {
			return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p.Spec.Priority, value))
		}
		if policy == nil {
			lower := corev1.PreemptLowerPriority
			policy = &lower
		}
		if p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy != *policy {
			return apierrors.NewForbidden(kind.Pod.GroupResource(), p.Name, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p.Spec.PreemptionPolicy, *policy))
		}
		p.Spec.Priority, p.Spec.PreemptionPolicy = &value, policy
		return nil
	}, Validate: func(_ context.Context, r *Request) error {
		c, _ := r.Object.(*schedulingv1.PriorityClass)
		if c == nil || !c.GlobalDefault || r.Operation != Create && r.Operation != Update {
			return nil
		}
		if d := globalDefault(r.Snapshot); d != nil && d.Name != c.Name {
			return apierrors.NewForbidden(kind.PriorityClass.GroupResource(), c.Name, fmt.Errorf("PriorityClass %s is already marked as default. Only one default can exist", d.Name))
		}
		return nil
	}}
}

// keepPriority lets an update that leaves the numbers out keep them.
func keepPriority(r *Request) {
	p, _ := r.Object.(*corev1.Pod)
	old, _ := r.Old.(*corev1.Pod)
	if r.Operation != Update || r.Sub != "" || p == nil || old == nil {
		return
	}
	if p.Spec.Priority == nil {
		p.Spec.Priority = old.Spec.Priority
	}
	if p.Spec.PreemptionPolicy == nil {
		p.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
	}
}

func globalDefault(s view.Snapshot) *schedulingv1.PriorityClass {
	var best *schedulingv1.PriorityClass
	for c := range view.List[*schedulingv1.PriorityClass](s, kind.PriorityClass, "") {
		if c.GlobalDefault && (best == nil || c.Value < best.Value) {
			best = c
		}
	}
	return best
}
