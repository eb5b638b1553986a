package meter

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/client"
	"proa.dev/control/parts"
	"proa.dev/env"
	"proa.dev/kind"
	"proa.dev/sched/loop"
)

// answers is a client that gives one error.
type answers struct {
	client.Client
	err error
}

func (a answers) Get(context.Context, *kind.Kind, string, string, metav1.GetOptions) (kind.Object, error) {
	return nil, a.err
}

func (a answers) Delete(context.Context, *kind.Kind, string, string, metav1.DeleteOptions) error {
	return a.err
}

func TestClients(t *testing.T) {
	m := New()
	c := m.Clients(env.SystemClock())
	for _, err := range []error{nil, apierrors.NewNotFound(kind.Pod.GroupResource(), "x"), apierrors.NewNotFound(kind.Pod.GroupResource(), "y"), errors.New("no answer")} {
		cl := c.Of(answers{err: err})
		if _, got := cl.Get(t.Context(), kind.Pod, "a", "b", metav1.GetOptions{}); got != err {
			t.Errorf("%v became %v", err, got)
		}
		if got := cl.Delete(t.Context(), kind.Pod, "a", "b", metav1.DeleteOptions{}); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	want := "# HELP rest_client_requests_total Number of HTTP requests, partitioned by status code, method, and host.\n# TYPE rest_client_requests_total counter\n"
	for _, code := range []string{"200", "404", "<error>"} {
		n := "1"
		if code == "404" {
			n = "2"
		}
		for _, method := range []string{"DELETE", "GET"} {
			want += `rest_client_requests_total{code="` + code + `",host="in-process",method="` + method + `"} ` + n + "\n"
		}
	}
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), "rest_client_requests_total"); err != nil {
		t.Error(err)
	}
}

func TestLeads(t *testing.T) {
	m := New()
	tell := m.Leads("kube-scheduler")
	for _, is := range []bool{true, false} {
		tell(is)
		n := "0"
		if is {
			n = "1"
		}
		want := "# HELP leader_election_master_status Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease. Please make sure to group by name.\n" +
			"# TYPE leader_election_master_status gauge\nleader_election_master_status{name=\"kube-scheduler\"} " + n + "\n"
		if err := testutil.CollectAndCompare(m, strings.NewReader(want), "leader_election_master_status"); err != nil {
			t.Error(err)
		}
	}
}

// Every upstream name belongs to a part that is there.
func TestQueueNames(t *testing.T) {
	known := map[string]bool{"certificatesigningrequest-approving-controller": true, "customresource-finalizer": true, "customresource-naming": true,
		"validatingadmissionpolicy-status-controller": true} // made by server
	for _, p := range parts.All(kind.All, "") {
		known[p.Name] = true
	}
	for part := range queueNames {
		if !known[part] {
			t.Errorf("there is no part %q", part)
		}
	}
}

func TestAttempts(t *testing.T) {
	m := New()
	s := m.Scheduler()
	for _, n := range []int{1, 14, 15, 99} {
		s.Bound(n, time.Second)
	}
	if n := testutil.CollectAndCount(m.scheduler.sli); n != 3 {
		t.Errorf("%d series of attempts, want 1, 14 and 15+", n)
	}
	s.Preempted(0)
	s.Preempted(3)
	s.Attempted("something else", time.Second)
	s.Pending(loop.Pending{Active: 1, Backoff: 2, Unschedulable: 3, Gated: 4})
	want := `# HELP scheduler_preemption_attempts_total Total preemption attempts in the cluster till now
# TYPE scheduler_preemption_attempts_total counter
scheduler_preemption_attempts_total 2
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), "scheduler_preemption_attempts_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(m.scheduler.pending[3]); n != 4 {
		t.Errorf("%v gated pods", n)
	}
}

// Measuring costs next to nothing: no memory, and no label is hashed.
func TestMeasuringAllocatesNothing(t *testing.T) {
	m := New()
	c := m.Clients(env.SystemClock())
	q := m.Parts(parts.All(kind.All, ""))
	s := m.Scheduler()
	began := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		c.done("GET", 200, began, nil)
		q.Waited(0, time.Millisecond)
		q.Worked(0, time.Millisecond)
		s.Attempted(loop.Scheduled, time.Millisecond)
		s.Bound(1, time.Millisecond)
		s.Pending(loop.Pending{})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Two of one process do not meet in a registry.
func TestRegisters(t *testing.T) {
	if err := prometheus.NewPedanticRegistry().Register(New()); err != nil {
		t.Error(err)
	}
}

func BenchmarkClient(b *testing.B) {
	c := New().Clients(env.SystemClock()).Of(answers{})
	b.ReportAllocs()
	for b.Loop() {
		c.Get(context.Background(), kind.Pod, "a", "b", metav1.GetOptions{})
	}
}

func BenchmarkQueue(b *testing.B) {
	q := New().Parts(parts.All(kind.All, ""))
	b.ReportAllocs()
	for b.Loop() {
		q.Waited(0, time.Millisecond)
		q.Worked(0, time.Millisecond)
	}
}
