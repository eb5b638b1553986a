package server

import (
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"proa.dev/internal/await"
	"proa.dev/kind"
)

// scrape reads a server's metrics as Prometheus does.
func scrape(t *testing.T, s *Server) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(s.API.Registry(), promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %v", w.Code, err)
	}
	return families
}

// find is the series of a family that has these labels ("name=value"), nil: there
// is none.
func find(f *dto.MetricFamily, labels ...string) *dto.Metric {
	for _, m := range f.GetMetric() {
		have := map[string]bool{}
		for _, l := range m.Label {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		if !slices.ContainsFunc(labels, func(l string) bool { return !have[l] }) {
			return m
		}
	}
	return nil
}

// number is the value of a counter or gauge, or how much a histogram observed.
func number(m *dto.Metric) float64 {
	switch {
	case m.GetHistogram() != nil:
		return float64(m.Histogram.GetSampleCount())
	case m.GetCounter() != nil:
		return m.Counter.GetValue()
	case m.GetGauge() != nil:
		return m.Gauge.GetValue()
	}
	return math.NaN()
}

// TestRuntimeMetrics: what dashboards and alerts of Kubernetes ask of controllers,
// scheduler and clients is there under upstream's names, with its types, labels and
// buckets, and with numbers that are those of what was done.
func TestRuntimeMetrics(t *testing.T) {
	s, _, end := run(t, func(c *Config) {})
	defer end()
	c := s.Admin()
	if _, err := c.Create(t.Context(), kind.Namespace, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await.Nil(t, time.Minute, "the namespace has its service account", func() error {
		_, err := c.Get(t.Context(), kind.ServiceAccount, "shop", "default", metav1.GetOptions{})
		return err
	})
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("10")}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Capacity: room, Allocatable: room}}
	if _, err := c.Create(t.Context(), kind.Node, node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		name, cpu string
		gates     []corev1.PodSchedulingGate
	}{{"fits", "1m", nil}, {"large", "2", nil}, {"gated", "1m", []corev1.PodSchedulingGate{{Name: "example.com/wait"}}}} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: p.name}, Spec: corev1.PodSpec{SchedulingGates: p.gates,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers:  []corev1.Container{{Name: "c", Image: "x", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(p.cpu)}}}}}}
		if _, err := c.Create(t.Context(), kind.Pod, pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var families map[string]*dto.MetricFamily
	least := func(n float64) func(float64) bool { return func(v float64) bool { return v >= n } }
	exactly := func(n float64) func(float64) bool { return func(v float64) bool { return v == n } }
	rows := []struct {
		name   string
		typ    dto.MetricType
		labels string // of the series, by spaces
		holds  func(float64) bool
		first  float64 // upper bound of the first bucket
		count  int     // of buckets without +Inf
	}{
		{"workqueue_depth", dto.MetricType_GAUGE, "name=serviceaccount", least(0), 0, 0},
		{"workqueue_adds_total", dto.MetricType_COUNTER, "name=serviceaccount", least(1), 0, 0},
		{"workqueue_retries_total", dto.MetricType_COUNTER, "name=serviceaccount", least(0), 0, 0},
		{"workqueue_unfinished_work_seconds", dto.MetricType_GAUGE, "name=serviceaccount", least(0), 0, 0},
		{"workqueue_longest_running_processor_seconds", dto.MetricType_GAUGE, "name=serviceaccount", least(0), 0, 0},
		{"workqueue_queue_duration_seconds", dto.MetricType_HISTOGRAM, "name=serviceaccount", least(1), 10e-9, 10},
		{"workqueue_work_duration_seconds", dto.MetricType_HISTOGRAM, "name=serviceaccount", least(1), 10e-9, 10},
		{"workqueue_adds_total", dto.MetricType_COUNTER, "name=crd_naming_condition_controller", least(0), 0, 0},
		{"rest_client_requests_total", dto.MetricType_COUNTER, "code=201 host=in-process method=POST", least(1), 0, 0},
		{"rest_client_request_duration_seconds", dto.MetricType_HISTOGRAM, "host=in-process verb=POST", least(1), 0.005, 12},
		{"scheduler_schedule_attempts_total", dto.MetricType_COUNTER, "profile=default-scheduler result=scheduled", exactly(1), 0, 0},
		{"scheduler_schedule_attempts_total", dto.MetricType_COUNTER, "profile=default-scheduler result=unschedulable", least(1), 0, 0},
		{"scheduler_schedule_attempts_total", dto.MetricType_COUNTER, "profile=default-scheduler result=error", exactly(0), 0, 0},
		{"scheduler_scheduling_attempt_duration_seconds", dto.MetricType_HISTOGRAM, "profile=default-scheduler result=scheduled", exactly(1), 0.001, 15},
		{"scheduler_scheduling_algorithm_duration_seconds", dto.MetricType_HISTOGRAM, "", least(2), 0.001, 15},
		{"scheduler_pod_scheduling_sli_duration_seconds", dto.MetricType_HISTOGRAM, "attempts=1", exactly(1), 0.01, 20},
		{"scheduler_pod_scheduling_attempts", dto.MetricType_HISTOGRAM, "", exactly(1), 1, 5},
		{"scheduler_pending_pods", dto.MetricType_GAUGE, "queue=active", exactly(0), 0, 0},
		{"scheduler_pending_pods", dto.MetricType_GAUGE, "queue=gated", exactly(1), 0, 0},
		{"scheduler_preemption_attempts_total", dto.MetricType_COUNTER, "", least(1), 0, 0},
		{"scheduler_preemption_victims", dto.MetricType_HISTOGRAM, "", exactly(0), 1, 7},
		{"authorization_attempts_total", dto.MetricType_COUNTER, "result=allowed", least(1), 0, 0},
		{"authorization_duration_seconds", dto.MetricType_HISTOGRAM, "result=allowed", least(1), 0.001, 15},
		{"proa_certificate_expiration_timestamp_seconds", dto.MetricType_GAUGE, "", least(float64(time.Now().Unix())), 0, 0},
	}
	await.Nil(t, time.Minute, "the numbers are there", func() error {
		families = scrape(t, s)
		for _, r := range rows {
			f := families[r.name]
			if m := find(f, strings.Fields(r.labels)...); m == nil || !r.holds(number(m)) {
				return &missing{r.name, r.labels, f}
			}
		}
		waiting := families["scheduler_pending_pods"]
		if n := number(find(waiting, "queue=unschedulable")) + number(find(waiting, "queue=backoff")); n != 1 {
			return &missing{"scheduler_pending_pods", "one pod that fits nowhere", waiting}
		}
		return nil
	})
	for _, r := range rows {
		f := families[r.name]
		m := find(f, strings.Fields(r.labels)...)
		if f.GetType() != r.typ {
			t.Errorf("%s is a %v, want %v", r.name, f.GetType(), r.typ)
		}
		if len(m.Label) != len(strings.Fields(r.labels)) {
			t.Errorf("%s has the labels %v, want %s", r.name, m.Label, r.labels)
		}
		if r.count == 0 {
			continue
		}
		var bounds []float64
		for _, b := range m.Histogram.Bucket {
			if !math.IsInf(b.GetUpperBound(), 1) {
				bounds = append(bounds, b.GetUpperBound())
			}
		}
		if len(bounds) != r.count || bounds[0] != r.first {
			t.Errorf("%s has the buckets %v, want %d from %v", r.name, bounds, r.count, r.first)
		}
	}
}

type missing struct {
	name, labels string
	have         *dto.MetricFamily
}

func (m *missing) Error() string { return m.name + " {" + m.labels + "} among " + m.have.String() }
