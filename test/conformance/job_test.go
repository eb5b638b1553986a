package conformance

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Scripts that pods of jobs run; a hollow node knows what they come to.
const (
	succeed   = "exit 0"
	fail      = "exit 1"
	fail42    = "exit 42"
	failOdd   = "exit $((JOB_COMPLETION_INDEX % 2))"
	onlyFirst = "[ $JOB_COMPLETION_INDEX = 0 ] || sleep 3600"
)

// script is the exit code of a container's script; -1: it goes on.
func script(c *corev1.Container, p *corev1.Pod) int32 {
	if len(c.Command) == 0 {
		return -1
	}
	index, _ := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	switch c.Command[len(c.Command)-1] {
	case succeed:
		return 0
	case fail:
		return 1
	case fail42:
		return 42
	case failOdd:
		return int32(index % 2)
	case onlyFirst:
		if index == 0 {
			return 0
		}
	}
	return -1
}

func init() {
	jobs := part("job-controller")
	it("Job should delete a job", jobDelete, jobs)
	it("Job should apply changes to a job status", jobStatus, jobs)
	it("Job should adopt matching orphans and release non-matching pods", jobAdopts, jobs)
	it("should create pods for an Indexed job with completion indexes and specified hostname", jobIndexed, jobs)
	it("should allow to use the pod failure policy on exit code to fail the job early", jobFailsEarly, jobs)
	it("should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition", jobDisrupted, jobs)
	it("should execute all indexes despite some failing when using backoffLimitPerIndex", jobBackoffPerIndex, jobs)
	it("should mark indexes as failed when the FailIndex action is matched in podFailurePolicy", jobFailIndex, jobs)
	it("should terminate job execution when the number of failed indexes exceeds maxFailedIndexes", jobMaxFailed, jobs)
	it("Job with successPolicy should succeeded when all indexes succeeded", jobSuccess(succeed, batchv1.SuccessPolicyRule{SucceededIndexes: new("0-1")}), jobs)
	it("Job with successPolicy succeededCount rule should succeeded even when some indexes remain pending", jobSuccess(onlyFirst, batchv1.SuccessPolicyRule{SucceededCount: new(int32(1))}), jobs)
	it("Job with successPolicy succeededIndexes rule should succeeded even when some indexes remain pending", jobSuccess(onlyFirst, batchv1.SuccessPolicyRule{SucceededIndexes: new("0")}), jobs)
}

func job(script string, parallelism, completions int32) *batchv1.Job {
	p := pausePod("job").Spec
	p.RestartPolicy = corev1.RestartPolicyNever
	p.Containers[0].Command = []string{"sh", "-c", script}
	return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j"}, Spec: batchv1.JobSpec{Parallelism: &parallelism, Completions: &completions,
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"job": "j"}}, Spec: p}}}
}

func indexed(script string, n int32) *batchv1.Job {
	j := job(script, n, n)
	j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
	return j
}

func (c *cluster) job(t *testing.T, ns string, j *batchv1.Job) {
	t.Helper()
	_, err := c.BatchV1().Jobs(ns).Create(t.Context(), j, metav1.CreateOptions{})
	ok(t, err)
}

// ended waits for a condition of the job.
func (c *cluster) ended(t *testing.T, ns string, kind batchv1.JobConditionType, reason string) *batchv1.Job {
	t.Helper()
	var j *batchv1.Job
	eventually(t, func() string {
		var err error
		j, err = c.BatchV1().Jobs(ns).Get(t.Context(), "j", metav1.GetOptions{})
		ok(t, err)
		if slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
			return c.Type == kind && c.Status == corev1.ConditionTrue && (reason == "" || c.Reason == reason)
		}) {
			return ""
		}
		return fmt.Sprintf("no condition %s %s: %+v", kind, reason, j.Status)
	})
	return j
}

func jobDelete(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.job(t, ns, job("sleep 3600", 2, 4))
	c.havePods(t, ns, "job=j", 2)
	ok(t, c.BatchV1().Jobs(ns).Delete(t.Context(), "j", propagation(metav1.DeletePropagationForeground)))
	gone(t, "job", func() error { _, err := c.BatchV1().Jobs(ns).Get(t.Context(), "j", metav1.GetOptions{}); return err })
	c.havePods(t, ns, "job=j", 0)
}

func jobStatus(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.job(t, ns, job("sleep 3600", 2, 4))
	eventually(t, func() string {
		j, err := c.BatchV1().Jobs(ns).Get(t.Context(), "j", metav1.GetOptions{})
		ok(t, err)
		if j.Status.Active == 2 {
			return ""
		}
		return fmt.Sprintf("%d pods are active", j.Status.Active)
	})
	api := c.BatchV1().Jobs(ns)
	j, err := api.Patch(t.Context(), "j", types.MergePatchType, []byte(`{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"conditions":[{"type":"CustomConditionType","status":"True"}]}}`), metav1.PatchOptions{}, "status")
	ok(t, err)
	same(t, "annotation", j.Annotations["patchedstatus"], "true")
	eventually(t, func() string {
		j, err := api.Get(t.Context(), "j", metav1.GetOptions{})
		ok(t, err)
		j.Status.Conditions = append(j.Status.Conditions, batchv1.JobCondition{Type: "Other", Status: corev1.ConditionTrue})
		j, err = api.UpdateStatus(t.Context(), j, metav1.UpdateOptions{})
		if err != nil {
			return err.Error()
		}
		same(t, "last condition", j.Status.Conditions[len(j.Status.Conditions)-1].Type, "Other")
		return ""
	})
	got, err := c.BatchV1().RESTClient().Get().Namespace(ns).Resource("jobs").Name("j").SubResource("status").Do(t.Context()).Get()
	ok(t, err)
	same(t, "name by status", got.(*batchv1.Job).Name, "j")
}

func jobAdopts(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	c.job(t, ns, job("sleep 3600", 2, 4))
	c.havePods(t, ns, "job=j", 2)
	j, err := c.BatchV1().Jobs(ns).Get(t.Context(), "j", metav1.GetOptions{})
	ok(t, err)
	pod := c.pods(t, ns, "job=j")[0].Name
	c.running(t, ns, pod)
	c.changePod(t, ns, pod, func(p *corev1.Pod) { p.OwnerReferences = nil })
	c.owned(t, ns, pod, j.UID, true)
	c.changePod(t, ns, pod, func(p *corev1.Pod) { p.Labels = nil })
	c.owned(t, ns, pod, j.UID, false)
}

func jobIndexed(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	j := indexed(succeed, 4)
	j.Spec.Parallelism = new(int32(2))
	c.job(t, ns, j)
	done := c.ended(t, ns, batchv1.JobComplete, "")
	same(t, "completed indexes", done.Status.CompletedIndexes, "0-3")
	seen := map[string]bool{}
	for _, p := range c.pods(t, ns, "job=j") {
		index := p.Annotations[batchv1.JobCompletionIndexAnnotation]
		seen[index] = true
		same(t, "index label", p.Labels[batchv1.JobCompletionIndexAnnotation], index)
		same(t, "host name", p.Spec.Hostname, "j-"+index)
		if !slices.ContainsFunc(p.Spec.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == "JOB_COMPLETION_INDEX" }) {
			t.Errorf("pod %s does not know its index", p.Name)
		}
	}
	same(t, "indexes", len(seen), 4)
}

func jobFailsEarly(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	j := job(fail42, 1, 1)
	j.Spec.BackoffLimit = new(int32(6))
	j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionFailJob,
		OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}}}}
	c.job(t, ns, j)
	c.ended(t, ns, batchv1.JobFailed, batchv1.JobReasonPodFailurePolicy)
	same(t, "pods", len(c.pods(t, ns, "job=j")), 1)
}

func jobBackoffPerIndex(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	j := indexed(failOdd, 4)
	j.Spec.BackoffLimitPerIndex = new(int32(1))
	c.job(t, ns, j)
	done := c.ended(t, ns, batchv1.JobFailed, batchv1.JobReasonFailedIndexes)
	same(t, "failed indexes", *done.Status.FailedIndexes, "1,3")
	same(t, "completed indexes", done.Status.CompletedIndexes, "0,2")
	same(t, "failed pods", done.Status.Failed, 4)
	same(t, "succeeded pods", done.Status.Succeeded, 2)
}

func jobFailIndex(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	j := indexed(failOdd, 2)
	j.Spec.BackoffLimitPerIndex = new(int32(1))
	j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionFailIndex,
		OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{1}}}}}
	c.job(t, ns, j)
	done := c.ended(t, ns, batchv1.JobFailed, batchv1.JobReasonFailedIndexes)
	same(t, "failed indexes", *done.Status.FailedIndexes, "1")
	same(t, "completed indexes", done.Status.CompletedIndexes, "0")
	same(t, "failed pods", done.Status.Failed, 1)
}

func jobMaxFailed(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	j := indexed(fail, 10)
	j.Spec.Parallelism = new(int32(2))
	j.Spec.BackoffLimitPerIndex = new(int32(0))
	j.Spec.MaxFailedIndexes = new(int32(0))
	c.job(t, ns, j)
	done := c.ended(t, ns, batchv1.JobFailed, batchv1.JobReasonMaxFailedIndexesExceeded)
	if done.Status.Failed == 0 || done.Status.Failed > 4 || done.Status.Succeeded != 0 {
		t.Errorf("status: %+v", done.Status)
	}
}

func jobSuccess(script string, rule batchv1.SuccessPolicyRule) func(*testing.T, *cluster) {
	return func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		j := indexed(script, 2)
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{rule}}
		c.job(t, ns, j)
		c.ended(t, ns, batchv1.JobSuccessCriteriaMet, batchv1.JobReasonSuccessPolicy)
		done := c.ended(t, ns, batchv1.JobComplete, batchv1.JobReasonSuccessPolicy)
		if script == onlyFirst {
			same(t, "completed indexes", done.Status.CompletedIndexes, "0")
		} else if done.Status.CompletedIndexes != "0,1" {
			t.Errorf("completed indexes %q", done.Status.CompletedIndexes)
		}
	}
}

// jobDisrupted: what the pods do is said by a ConfigMap, so that the second may end
// well where the first goes on until it is evicted.
func jobDisrupted(t *testing.T, c *cluster) {
	ns := c.namespace(t)
	maps := c.CoreV1().ConfigMaps(ns)
	m, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "script"}, Data: map[string]string{"do": "sleep 3600"}}, metav1.CreateOptions{})
	ok(t, err)
	j := job(`eval "$DO"`, 1, 1)
	j.Spec.BackoffLimit = new(int32(0))
	j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: batchv1.PodFailurePolicyActionIgnore,
		OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}}}}
	j.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "DO", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "script"}, Key: "do"}}}}
	c.job(t, ns, j)
	pod := ""
	eventually(t, func() string {
		list, err := c.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		ok(t, err)
		if len(list.Items) != 1 || list.Items[0].Status.Phase != corev1.PodRunning {
			return fmt.Sprintf("%d pods, none runs", len(list.Items))
		}
		pod = list.Items[0].Name
		return ""
	})
	m.Data["do"] = succeed
	_, err = maps.Update(t.Context(), m, metav1.UpdateOptions{})
	ok(t, err)
	ok(t, c.PolicyV1().Evictions(ns).Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pod}}))
	done := c.ended(t, ns, batchv1.JobComplete, "")
	same(t, "failed pods that count", done.Status.Failed, 0)
	same(t, "succeeded pods", done.Status.Succeeded, 1)
}
