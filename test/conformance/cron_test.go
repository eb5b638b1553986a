package conformance

import (
	"fmt"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
)

func init() {
	crons := part("cronjob-controller")
	it("CronJob should schedule multiple jobs concurrently", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.cron(t, ns, batchv1.AllowConcurrent)
		c.due(t, ns, 2)
		first := c.cronJobs(t, ns, 1)
		c.due(t, ns, 1)
		if both := c.cronJobs(t, ns, 2); !slices.Contains(both, first[0]) {
			t.Errorf("jobs %v, and before %v", both, first)
		}
		eventually(t, func() string {
			cj, err := c.BatchV1().CronJobs(ns).Get(t.Context(), "cron", metav1.GetOptions{})
			ok(t, err)
			if len(cj.Status.Active) == 2 {
				return ""
			}
			return fmt.Sprintf("active: %v", cj.Status.Active)
		})
	}, crons)
	it("CronJob should replace jobs when ReplaceConcurrent", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.cron(t, ns, batchv1.ReplaceConcurrent)
		c.due(t, ns, 2)
		first := c.cronJobs(t, ns, 1)
		c.due(t, ns, 1)
		eventually(t, func() string {
			if now := c.jobNames(t, ns); len(now) == 1 && now[0] != first[0] {
				return ""
			}
			return fmt.Sprintf("%v was not replaced: %v", first, c.jobNames(t, ns))
		})
	}, crons)
	it("CronJob should not schedule new jobs when ForbidConcurrent", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.cron(t, ns, batchv1.ForbidConcurrent)
		c.due(t, ns, 2)
		first := c.cronJobs(t, ns, 1)
		c.due(t, ns, 1)
		eventually(t, func() string {
			events, err := c.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=cron,reason=JobAlreadyActive"})
			ok(t, err)
			if len(events.Items) == 0 {
				return "no event JobAlreadyActive"
			}
			return ""
		})
		same(t, "jobs", fmt.Sprint(c.jobNames(t, ns)), fmt.Sprint(first))
	}, crons)
	it("CronJob should not schedule jobs when suspended", func(t *testing.T, c *cluster) {
		ns := c.namespace(t)
		c.cron(t, ns, batchv1.AllowConcurrent)
		suspend := func(is bool) {
			ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
				cj, err := c.BatchV1().CronJobs(ns).Get(t.Context(), "cron", metav1.GetOptions{})
				ok(t, err)
				cj.Spec.Suspend = &is
				_, err = c.BatchV1().CronJobs(ns).Update(t.Context(), cj, metav1.UpdateOptions{})
				return err
			}))
		}
		suspend(true)
		c.due(t, ns, 2)
		wait(t, 2)
		same(t, "jobs of a suspended cron job", len(c.jobNames(t, ns)), 0)
		suspend(false)
		c.cronJobs(t, ns, 1)
	}, crons)
}

// cron makes a cron job whose time does not come during the test; its jobs go on.
func (c *cluster) cron(t *testing.T, ns string, policy batchv1.ConcurrencyPolicy) {
	t.Helper()
	j := job("sleep 3600", 1, 1)
	_, err := c.BatchV1().CronJobs(ns).Create(t.Context(), &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "cron"},
		Spec: batchv1.CronJobSpec{Schedule: schedule(time.Now().Add(12 * time.Hour)), TimeZone: new("Etc/UTC"), ConcurrencyPolicy: policy,
			JobTemplate: batchv1.JobTemplateSpec{Spec: j.Spec}}}, metav1.CreateOptions{})
	ok(t, err)
}

// schedule is once a day, at the minute of a time.
func schedule(at time.Time) string {
	at = at.UTC()
	return fmt.Sprintf("%d %d * * *", at.Minute(), at.Hour())
}

// due makes one run of the cron job due: the schedule becomes the minute which
// began so many minutes ago, and the last run lies just before it, so that it was
// missed.
func (c *cluster) due(t *testing.T, ns string, minutesAgo int) {
	t.Helper()
	at := time.Now().Truncate(time.Minute).Add(-time.Duration(minutesAgo-1) * time.Minute)
	api := c.BatchV1().CronJobs(ns)
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		cj, err := api.Get(t.Context(), "cron", metav1.GetOptions{})
		ok(t, err)
		cj.Status.LastScheduleTime = &metav1.Time{Time: at.Add(-time.Second)}
		_, err = api.UpdateStatus(t.Context(), cj, metav1.UpdateOptions{})
		return err
	}))
	ok(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		cj, err := api.Get(t.Context(), "cron", metav1.GetOptions{})
		ok(t, err)
		cj.Spec.Schedule = schedule(at)
		_, err = api.Update(t.Context(), cj, metav1.UpdateOptions{})
		return err
	}))
}

func (c *cluster) jobNames(t *testing.T, ns string) []string {
	t.Helper()
	list, err := c.BatchV1().Jobs(ns).List(t.Context(), metav1.ListOptions{})
	ok(t, err)
	names := []string{}
	for _, j := range list.Items {
		if j.DeletionTimestamp == nil {
			names = append(names, j.Name)
		}
	}
	slices.Sort(names)
	return names
}

// cronJobs waits for n jobs.
func (c *cluster) cronJobs(t *testing.T, ns string, n int) []string {
	t.Helper()
	var names []string
	eventually(t, func() string {
		if names = c.jobNames(t, ns); len(names) == n {
			return ""
		}
		return fmt.Sprintf("%d jobs, want %d", len(names), n)
	})
	return names
}
