package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// verdict is what the pod failure policy says about one failed pod.
type verdict struct {
	action  batchv1.PodFailurePolicyAction // "": no rule matches
	message string
}

// counts: the failure counts against the limits.
func (v verdict) counts() bool { return v.action != batchv1.PodFailurePolicyActionIgnore }

// judge applies the first rule that matches (KEP-3329). Only pods that have
// failed are judged.
func judge(policy *batchv1.PodFailurePolicy, p *corev1.Pod) verdict {
	if policy == nil || p.Status.Phase != corev1.PodFailed {
		return verdict{}
	}
	for i := range policy.Rules {
		r := &policy.Rules[i]
		switch {
		case r.OnExitCodes != nil:
			if name, code, ok := exitCode(r.OnExitCodes, p); ok {
				return verdict{r.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d", name, p.Namespace, p.Name, code, r.Action, i)}
			}
		case len(r.OnPodConditions) > 0:
			for _, want := range r.OnPodConditions {
				if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == want.Type && c.Status == want.Status }) {
					return verdict{r.Action, fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", p.Namespace, p.Name, want.Type, r.Action, i)}
				}
			}
		}
	}
	return verdict{}
}

func exitCode(r *batchv1.PodFailurePolicyOnExitCodesRequirement, p *corev1.Pod) (name string, code int32, ok bool) {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			c := &list[i]
			if r.ContainerName != nil && *r.ContainerName != c.Name || c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 {
				continue
			}
			in := slices.Contains(r.Values, c.State.Terminated.ExitCode)
			if in == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c.Name, c.State.Terminated.ExitCode, true
			}
		}
	}
	return "", 0, false
}

// metBy says which success rule the completed indexes satisfy (KEP-3998); -1: none.
func metBy(policy *batchv1.SuccessPolicy, done indexes, completions int) int {
	if policy == nil {
		return -1
	}
	for i, r := range policy.Rules {
		n := len(done)
		want := -1
		if r.SucceededIndexes != nil {
			chosen := parseIndexes(*r.SucceededIndexes, completions)
			n, want = 0, len(chosen)
			for x := range chosen {
				if done[x] {
					n++
				}
			}
		}
		if r.SucceededCount != nil {
			want = int(*r.SucceededCount)
		}
		if want >= 0 && n >= want {
			return i
		}
	}
	return -1
}
