package meter

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"proa.dev/sched/loop"
)

// Scheduler measures the scheduler. It is a prometheus.Collector.
type Scheduler struct {
	attempts   *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	algorithm  prometheus.Histogram
	tries      prometheus.Histogram
	sli        *prometheus.HistogramVec
	preemption prometheus.Counter
	victims    prometheus.Histogram
	waiting    *prometheus.GaugeVec

	series  map[string]attemptSeries
	pending [4]prometheus.Gauge
	bound   [maxAttempts + 1]atomic.Pointer[prometheus.Observer]
}

type attemptSeries struct {
	count   prometheus.Counter
	seconds prometheus.Observer
}

// maxAttempts is where the label attempts ends: "15+".
const maxAttempts = 15

func newScheduler() *Scheduler {
	s := &Scheduler{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "scheduler_schedule_attempts_total",
			Help: "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem."}, []string{"profile", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "scheduler_scheduling_attempt_duration_seconds", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
			Help: "Scheduling attempt latency in seconds (scheduling algorithm + binding)"}, []string{"profile", "result"}),
		algorithm: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scheduler_scheduling_algorithm_duration_seconds", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
			Help: "Scheduling algorithm latency in seconds"}),
		tries: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scheduler_pod_scheduling_attempts", Buckets: prometheus.ExponentialBuckets(1, 2, 5),
			Help: "Number of attempts to successfully schedule a pod."}),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "scheduler_pod_scheduling_sli_duration_seconds", Buckets: prometheus.ExponentialBuckets(0.01, 2, 20),
			Help: "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts."}, []string{"attempts"}),
		preemption: prometheus.NewCounter(prometheus.CounterOpts{Name: "scheduler_preemption_attempts_total", Help: "Total preemption attempts in the cluster till now"}),
		victims: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scheduler_preemption_victims", Buckets: prometheus.ExponentialBuckets(1, 2, 7),
			Help: "Number of selected preemption victims"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "scheduler_pending_pods",
			Help: "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are gated."}, []string{"queue"}),
		series: map[string]attemptSeries{},
	}
	for _, r := range []string{loop.Scheduled, loop.Unschedulable, loop.Failed} {
		s.series[r] = attemptSeries{s.attempts.WithLabelValues(loop.Name, r), s.seconds.WithLabelValues(loop.Name, r)}
	}
	for i, q := range []string{"active", "backoff", "unschedulable", "gated"} {
		s.pending[i] = s.waiting.WithLabelValues(q)
	}
	return s
}

var _ loop.Meter = (*Scheduler)(nil)

// Placed implements loop.Meter.
func (s *Scheduler) Placed(took time.Duration) { s.algorithm.Observe(took.Seconds()) }

// Attempted implements loop.Meter.
func (s *Scheduler) Attempted(result string, took time.Duration) {
	if of, ok := s.series[result]; ok {
		of.count.Inc()
		of.seconds.Observe(took.Seconds())
	}
}

// Bound implements loop.Meter.
func (s *Scheduler) Bound(attempts int, took time.Duration) {
	s.tries.Observe(float64(attempts))
	at := &s.bound[min(attempts, maxAttempts)]
	o := at.Load()
	if o == nil {
		label := strconv.Itoa(attempts)
		if attempts >= maxAttempts {
			label = strconv.Itoa(maxAttempts) + "+"
		}
		made := s.sli.WithLabelValues(label)
		o = &made
		at.Store(o)
	}
	(*o).Observe(took.Seconds())
}

// Preempted implements loop.Meter.
func (s *Scheduler) Preempted(victims int) {
	s.preemption.Inc()
	if victims > 0 {
		s.victims.Observe(float64(victims))
	}
}

// Pending implements loop.Meter.
func (s *Scheduler) Pending(p loop.Pending) {
	for i, n := range [...]int{p.Active, p.Backoff, p.Unschedulable, p.Gated} {
		s.pending[i].Set(float64(n))
	}
}

func (s *Scheduler) all() []prometheus.Collector {
	return []prometheus.Collector{s.attempts, s.seconds, s.algorithm, s.tries, s.sli, s.preemption, s.victims, s.waiting}
}

// Describe implements prometheus.Collector.
func (s *Scheduler) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Scheduler) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.all() {
		c.Collect(ch)
	}
}
