package apiserver

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"proa.dev/apiserver/admit"
)

// admissionMeter times the steps of admission and each plugin in them, under
// upstream's names. A series appears when something was first observed in it, and
// is found by position from then on.
type admissionMeter struct {
	clock             interface{ Now() time.Time }
	plugins           admit.Chain
	controllers, step *prometheus.HistogramVec
	passed            [][2][4]atomic.Pointer[prometheus.Observer] // plugin (the last: the step), type, operation
}

// Types of a step.
const (
	mutating = iota
	validating
)

var stepNames = [2]string{mutating: "admit", validating: "validate"}

func newAdmissionMeter(chain admit.Chain, clock interface{ Now() time.Time }) *admissionMeter {
	buckets := []float64{0.005, 0.025, 0.1, 0.5, 1.0, 2.5}
	return &admissionMeter{clock: clock, plugins: chain, passed: make([][2][4]atomic.Pointer[prometheus.Observer], len(chain)+1),
		controllers: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_admission_controller_admission_duration_seconds", Buckets: buckets,
			Help: "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit)."},
			[]string{"name", "type", "operation", "rejected"}),
		step: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_admission_step_admission_duration_seconds", Buckets: buckets,
			Help: "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit)."},
			[]string{"type", "operation", "rejected"})}
}

// plugin observes what one of the chain took since an instant, and returns the
// present one.
func (m *admissionMeter) plugin(i, kind int, op admit.Operation, since time.Time, err error) time.Time {
	now := m.clock.Now()
	took := now.Sub(since).Seconds()
	if err != nil {
		m.controllers.WithLabelValues(m.plugins[i].Name, stepNames[kind], string(op), "true").Observe(took)
		return now
	}
	at := &m.passed[i][kind][ordinal(op)]
	o := at.Load()
	if o == nil {
		made := m.controllers.WithLabelValues(m.plugins[i].Name, stepNames[kind], string(op), "false")
		o = &made
		at.Store(o)
	}
	(*o).Observe(took)
	return now
}

// whole observes a step that has ended.
func (m *admissionMeter) whole(kind int, op admit.Operation, since, now time.Time, err error) {
	took := now.Sub(since).Seconds()
	if err != nil {
		m.step.WithLabelValues(stepNames[kind], string(op), "true").Observe(took)
		return
	}
	at := &m.passed[len(m.plugins)][kind][ordinal(op)]
	o := at.Load()
	if o == nil {
		made := m.step.WithLabelValues(stepNames[kind], string(op), "false")
		o = &made
		at.Store(o)
	}
	(*o).Observe(took)
}

func ordinal(op admit.Operation) int {
	switch op {
	case admit.Create:
		return 0
	case admit.Update:
		return 1
	case admit.Delete:
		return 2
	}
	return 3
}
