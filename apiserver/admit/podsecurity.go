package admit

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"proa.dev/kind"
	"proa.dev/view"
)

// PodSecurityConfig is what PodSecurity's configuration says (docs, "Enforce Pod
// Security Standards by Configuring the Built-in Admission Controller"): levels for
// what a namespace's labels leave out, and whom nothing is asked of.
type PodSecurityConfig struct {
	Defaults struct {
		Enforce        string `json:"enforce,omitempty"`
		EnforceVersion string `json:"enforce-version,omitempty"`
		Audit          string `json:"audit,omitempty"`
		AuditVersion   string `json:"audit-version,omitempty"`
		Warn           string `json:"warn,omitempty"`
		WarnVersion    string `json:"warn-version,omitempty"`
	} `json:"defaults"`
	Exemptions struct {
		Usernames      []string `json:"usernames,omitempty"`
		Namespaces     []string `json:"namespaces,omitempty"`
		RuntimeClasses []string `json:"runtimeClasses,omitempty"`
	} `json:"exemptions"`
}

// policy of the defaults; what is empty is privileged and latest.
func (c *PodSecurityConfig) policy() (api.Policy, error) {
	p := privileged
	d := &c.Defaults
	for _, x := range []struct {
		name, level, version string
		to                   *api.LevelVersion
	}{{"enforce", d.Enforce, d.EnforceVersion, &p.Enforce}, {"audit", d.Audit, d.AuditVersion, &p.Audit}, {"warn", d.Warn, d.WarnVersion, &p.Warn}} {
		var err error
		if x.level != "" {
			if x.to.Level, err = api.ParseLevel(x.level); err != nil {
				return p, fmt.Errorf("defaults.%s: %w", x.name, err)
			}
		}
		if x.version != "" {
			if x.to.Version, err = api.ParseVersion(x.version); err != nil {
				return p, fmt.Errorf("defaults.%s-version: %w", x.name, err)
			}
		}
	}
	return p, nil
}

// Check says what is wrong with a configuration.
func (c *PodSecurityConfig) Check() error {
	_, err := c.policy()
	return err
}

// PodSecurity holds pods to the level that their namespace's labels or c's defaults
// name (docs, "Pod Security Admission"): enforce refuses, warn warns, for workloads
// too, audit annotates the audit event. c has passed its Check.
func PodSecurity(c PodSecurityConfig) Plugin {
	defaults, err := c.policy()
	if err != nil {
		panic("admit: PodSecurity: " + err.Error())
	}
	evaluator := sync.OnceValues(func() (policy.Evaluator, error) { return policy.NewEvaluator(policy.DefaultChecks(), nil) })
	return Plugin{Name: "PodSecurity", Validate: func(ctx context.Context, r *Request) error {
		if r.Operation != Create && r.Operation != Update || r.Object == nil {
			return nil
		}
		p := &podSecurity{Request: r, ctx: ctx, config: &c, defaults: defaults, evaluate: func(lv api.LevelVersion, m *metav1.ObjectMeta, s *corev1.PodSpec) (policy.AggregateCheckResult, error) {
			e, err := evaluator()
			if err != nil {
				return policy.AggregateCheckResult{}, err
			}
			return policy.AggregateCheckResults(e.EvaluatePod(lv, m, s)), nil
		}}
		if ns, ok := r.Object.(*corev1.Namespace); ok {
			return p.namespace(ns)
		}
		meta, spec := podOf(r.Object)
		if spec == nil {
			return nil
		}
		return p.pod(meta, spec)
	}}
}

type podSecurity struct {
	*Request
	ctx      context.Context
	config   *PodSecurityConfig
	defaults api.Policy
	evaluate func(api.LevelVersion, *metav1.ObjectMeta, *corev1.PodSpec) (policy.AggregateCheckResult, error)
}

var privileged = func() api.Policy {
	lv := api.LevelVersion{Level: api.LevelPrivileged, Version: api.LatestVersion()}
	return api.Policy{Enforce: lv, Audit: lv, Warn: lv}
}()

// podOf finds the pod, or the template of pods, in an object.
func podOf(o kind.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	var t *corev1.PodTemplateSpec
	switch o := o.(type) {
	case *corev1.Pod:
		return &o.ObjectMeta, &o.Spec
	case *corev1.PodTemplate:
		t = &o.Template
	case *corev1.ReplicationController:
		t = o.Spec.Template
	case *appsv1.ReplicaSet:
		t = &o.Spec.Template
	case *appsv1.Deployment:
		t = &o.Spec.Template
	case *appsv1.DaemonSet:
		t = &o.Spec.Template
	case *appsv1.StatefulSet:
		t = &o.Spec.Template
	case *batchv1.Job:
		t = &o.Spec.Template
	case *batchv1.CronJob:
		t = &o.Spec.JobTemplate.Spec.Template
	}
	if t == nil {
		return nil, nil
	}
	return &t.ObjectMeta, &t.Spec
}

func (p *podSecurity) pod(meta *metav1.ObjectMeta, spec *corev1.PodSpec) error {
	now, isPod := p.Object.(*corev1.Pod)
	switch {
	case isPod && p.Sub != "" && p.Sub != "ephemeralcontainers" && p.Sub != "resize":
		return nil
	case !isPod && p.Sub != "":
		return nil
	}
	if why := p.exempt(spec); why != "" {
		Annotate(p.ctx, api.AuditAnnotationPrefix+api.ExemptionReasonAnnotationKey, why)
		return nil
	}
	ns := view.Get[*corev1.Namespace](p.Snapshot, kind.Namespace, "", p.Namespace)
	if ns == nil {
		return nil // NamespaceLifecycle says so
	}
	// Labels that cannot be read count as the strictest, which the library does.
	want, _ := api.PolicyToEvaluate(ns.Labels, p.defaults)
	if want.FullyPrivileged() {
		return nil
	}
	if old, _ := p.Old.(*corev1.Pod); isPod && old != nil && !changesImages(now, old) {
		return nil
	}
	if isPod {
		Annotate(p.ctx, api.AuditAnnotationPrefix+api.EnforcedPolicyAnnotationKey, want.Enforce.String())
		res, err := p.evaluate(want.Enforce, meta, spec)
		if err != nil {
			return err
		}
		if !res.Allowed {
			return apierrors.NewForbidden(p.Kind.GroupResource(), p.Name, fmt.Errorf("violates PodSecurity %q: %s", want.Enforce.String(), res.ForbiddenDetail()))
		}
	}
	if res, err := p.evaluate(want.Audit, meta, spec); err == nil && !res.Allowed {
		Annotate(p.ctx, api.AuditAnnotationPrefix+api.AuditViolationsAnnotationKey, fmt.Sprintf("would violate PodSecurity %q: %s", want.Audit.String(), res.ForbiddenDetail()))
	}
	res, err := p.evaluate(want.Warn, meta, spec)
	if err == nil && !res.Allowed && p.Warn != nil {
		p.Warn(fmt.Sprintf("would violate PodSecurity %q: %s", want.Warn.String(), res.ForbiddenDetail()))
	}
	return err
}

// exempt says by what a pod is exempted: namespace, user or runtimeClass.
func (p *podSecurity) exempt(spec *corev1.PodSpec) string {
	e := &p.config.Exemptions
	switch {
	case slices.Contains(e.Namespaces, p.Namespace):
		return "namespace"
	case slices.Contains(e.Usernames, p.User.Name):
		return "user"
	case spec.RuntimeClassName != nil && slices.Contains(e.RuntimeClasses, *spec.RuntimeClassName):
		return "runtimeClass"
	}
	return ""
}

// changesImages: of what an update of a pod may change, only its images and new
// containers matter here.
func changesImages(now, old *corev1.Pod) bool {
	images := func(p *corev1.Pod) map[string]string {
		out := map[string]string{}
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				out[list[i].Name] = list[i].Image
			}
		}
		for i := range p.Spec.EphemeralContainers {
			out[p.Spec.EphemeralContainers[i].Name] = p.Spec.EphemeralContainers[i].Image
		}
		return out
	}
	return !apiequality.Semantic.DeepEqual(images(now), images(old))
}

// maxChecked bounds the pods that a change of a namespace's level looks at.
const maxChecked = 3000

func (p *podSecurity) namespace(ns *corev1.Namespace) error {
	if p.Sub != "" {
		return nil
	}
	now, errs := api.PolicyToEvaluate(ns.Labels, p.defaults)
	old, _ := p.Old.(*corev1.Namespace)
	if old == nil {
		if len(errs) > 0 {
			return apierrors.NewInvalid(kind.Namespace.GVK().GroupKind(), p.Name, errs)
		}
		return nil
	}
	was, oldErrs := api.PolicyToEvaluate(old.Labels, p.defaults)
	if len(errs) > 0 && !apiequality.Semantic.DeepEqual(errs, oldErrs) {
		return apierrors.NewInvalid(kind.Namespace.GVK().GroupKind(), p.Name, errs)
	}
	if now.Enforce == was.Enforce || now.Enforce.Level == api.LevelPrivileged || p.Warn == nil ||
		now.Enforce.Version == was.Enforce.Version && api.CompareLevels(now.Enforce.Level, was.Enforce.Level) < 1 {
		return nil
	}
	if slices.Contains(p.config.Exemptions.Namespaces, p.Name) {
		return nil
	}
	// A stricter level ends nothing that runs; it warns of what would not start again.
	names := map[string][]string{} // what is wrong → pods
	all := slices.Collect(view.List[*corev1.Pod](p.Snapshot, kind.Pod, p.Name))
	for _, pod := range all[:min(len(all), maxChecked)] {
		res, err := p.evaluate(now.Enforce, &pod.ObjectMeta, &pod.Spec)
		if err != nil {
			return err
		}
		if !res.Allowed {
			names[res.ForbiddenReason()] = append(names[res.ForbiddenReason()], pod.Name)
		}
	}
	if len(all) > maxChecked {
		p.Warn(fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", maxChecked, len(all)))
	}
	if len(names) == 0 {
		return nil
	}
	p.Warn(fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", p.Name, now.Enforce.String()))
	var lines []string
	for why, pods := range names {
		first := slices.Min(pods)
		switch len(pods) {
		case 1:
		case 2:
			first += " (and 1 other pod)"
		default:
			first += fmt.Sprintf(" (and %d other pods)", len(pods)-1)
		}
		lines = append(lines, first+": "+why)
	}
	sort.Strings(lines)
	for _, l := range lines {
		p.Warn(l)
	}
	return nil
}
