package fair

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics under upstream's names. Gauges and counters are read when they are
// asked for; only histograms cost something in each request.
type metrics struct {
	d         *Dispatcher
	mu        sync.Mutex
	flows     map[[2]string]*flowMetrics
	wait      *prometheus.HistogramVec
	execution *prometheus.HistogramVec
	estimate  *prometheus.HistogramVec
	length    *prometheus.HistogramVec
	reasons   *prometheus.CounterVec
	noRoom    *prometheus.CounterVec
}

// flowMetrics are those of one level and schema.
type flowMetrics struct {
	level, schema         string
	dispatched            atomic.Int64
	executing, seats      atomic.Int64
	inqueue, inqueueSeats atomic.Int64
	waited, waitedFor     prometheus.Observer
	worked, watched       prometheus.Observer
	estimates, length     prometheus.Observer
	reasons               *prometheus.CounterVec
	noRoom                prometheus.Counter
	retry                 retry
}

var (
	seconds   = []float64{0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30}
	byLevel   = []string{"priority_level"}
	bySchema_ = []string{"priority_level", "flow_schema"}
)

func desc(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("apiserver_flowcontrol_"+name, help, labels, nil)
}

var (
	dispatchedDesc = desc("dispatched_requests_total", "Number of requests executed by API Priority and Fairness subsystem", bySchema_)
	inqueueDesc    = desc("current_inqueue_requests", "Number of requests currently pending in queues of the API Priority and Fairness subsystem", bySchema_)
	inqueueSDesc   = desc("current_inqueue_seats", "Number of seats currently pending in queues of the API Priority and Fairness subsystem", bySchema_)
	executingDesc  = desc("current_executing_requests", "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem", bySchema_)
	seatsDesc      = desc("current_executing_seats", "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", bySchema_)
	fairDesc       = desc("seat_fair_frac", "Fair fraction of server's concurrency to allocate to each priority level that can use it", nil)
)

// levelDescs are gauges of one level, in the order in which Collect computes them.
var levelDescs = []*prometheus.Desc{
	desc("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", byLevel),
	desc("lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level", byLevel),
	desc("upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level", byLevel),
	desc("current_limit_seats", "current derived number of execution seats available to each priority level", byLevel),
	desc("demand_seats_high_watermark", "High watermark, over last adjustment period, of demand_seats", byLevel),
	desc("demand_seats_average", "Time-weighted average, over last adjustment period, of demand_seats", byLevel),
	desc("demand_seats_stdev", "Time-weighted standard deviation, over last adjustment period, of demand_seats", byLevel),
	desc("demand_seats_smoothed", "Smoothed seat demands", byLevel),
	desc("target_seats", "Seat allocation targets", byLevel),
	desc("current_r", "R(time of last change)", byLevel),
	desc("latest_s", "S(most recently dispatched request)", byLevel),
}

func newMetrics(d *Dispatcher) *metrics {
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_flowcontrol_" + name, Help: help, Buckets: buckets}, append([]string{"priority_level", "flow_schema"}, labels...))
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_flowcontrol_" + name, Help: help}, append([]string{"priority_level", "flow_schema"}, labels...))
	}
	return &metrics{d: d, flows: map[[2]string]*flowMetrics{},
		wait:      histogram("request_wait_duration_seconds", "Length of time a request spent waiting in its queue", seconds, "execute"),
		execution: histogram("request_execution_seconds", "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem", seconds, "type"),
		estimate:  histogram("work_estimated_seats", "Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness", []float64{1, 2, 4, 8, 16, 32, 64, 100}),
		length:    histogram("request_queue_length_after_enqueue", "Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued", []float64{0, 10, 25, 50, 100, 250, 500, 1000}),
		reasons:   counter("rejected_requests_total", "Number of requests rejected by API Priority and Fairness subsystem", "reason"),
		noRoom:    counter("request_dispatch_no_accommodation_total", "Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats"),
	}
}

// of returns the metrics of one pair, the same every time.
func (m *metrics) of(level, schema string) *flowMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{level, schema}
	f := m.flows[key]
	if f == nil {
		f = &flowMetrics{level: level, schema: schema,
			waited: m.wait.WithLabelValues(level, schema, "true"), waitedFor: m.wait.WithLabelValues(level, schema, "false"),
			worked: m.execution.WithLabelValues(level, schema, "regular"), watched: m.execution.WithLabelValues(level, schema, "watch"),
			estimates: m.estimate.WithLabelValues(level, schema), length: m.length.WithLabelValues(level, schema),
			reasons: m.reasons, noRoom: m.noRoom.WithLabelValues(level, schema)}
		m.flows[key] = f
	}
	return f
}

func (f *flowMetrics) began(seats int, waited time.Duration) {
	f.dispatched.Add(1)
	f.executing.Add(1)
	f.seats.Add(int64(seats))
	f.waited.Observe(waited.Seconds())
}

func (f *flowMetrics) ended(seats int, took time.Duration, kind string) {
	f.executing.Add(-1)
	f.seats.Add(-int64(seats))
	if kind == "watch" {
		f.watched.Observe(took.Seconds())
	} else {
		f.worked.Observe(took.Seconds())
	}
}

func (f *flowMetrics) estimated(seats int) { f.estimates.Observe(float64(seats)) }

func (f *flowMetrics) queued(position, seats int) {
	f.inqueue.Add(1)
	f.inqueueSeats.Add(int64(seats))
	f.length.Observe(float64(position))
}

func (f *flowMetrics) unqueued(seats int) {
	f.inqueue.Add(-1)
	f.inqueueSeats.Add(-int64(seats))
}

func (f *flowMetrics) rejected(reason string) {
	f.reasons.WithLabelValues(f.level, f.schema, reason).Inc()
}

// Describe implements prometheus.Collector.
func (d *Dispatcher) Describe(ch chan<- *prometheus.Desc) {
	for _, e := range append([]*prometheus.Desc{dispatchedDesc, inqueueDesc, inqueueSDesc, executingDesc, seatsDesc, fairDesc}, levelDescs...) {
		ch <- e
	}
	for _, c := range d.metrics.vectors() {
		c.Describe(ch)
	}
}

func (m *metrics) vectors() []prometheus.Collector {
	return []prometheus.Collector{m.wait, m.execution, m.estimate, m.length, m.reasons, m.noRoom}
}

// Collect implements prometheus.Collector.
func (d *Dispatcher) Collect(ch chan<- prometheus.Metric) {
	d.metrics.mu.Lock()
	for _, f := range d.metrics.flows {
		ch <- prometheus.MustNewConstMetric(dispatchedDesc, prometheus.CounterValue, float64(f.dispatched.Load()), f.level, f.schema)
		for _, e := range []struct {
			desc *prometheus.Desc
			n    *atomic.Int64
		}{{inqueueDesc, &f.inqueue}, {inqueueSDesc, &f.inqueueSeats}, {executingDesc, &f.executing}, {seatsDesc, &f.seats}} {
			ch <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(e.n.Load()), f.level, f.schema)
		}
	}
	d.metrics.mu.Unlock()
	for _, l := range d.config.Load().levels {
		l.mu.Lock()
		values := []float64{float64(l.nominal), float64(l.lower), float64(l.upper), float64(l.limit), l.last.high, l.last.average, l.last.deviation, l.smoothed, l.target, l.virtual, l.lastS}
		l.mu.Unlock()
		for i, v := range values {
			ch <- prometheus.MustNewConstMetric(levelDescs[i], prometheus.GaugeValue, v, l.name)
		}
	}
	ch <- prometheus.MustNewConstMetric(fairDesc, prometheus.GaugeValue, math.Float64frombits(d.fraction.Load()))
	for _, c := range d.metrics.vectors() {
		c.Collect(ch)
	}
}
