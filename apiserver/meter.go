package apiserver

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Meter counts what admission webhooks and policies do (apiserver/extend/match.Meter),
// under upstream's names. Put it into Config.Collectors.
type Meter struct {
	webhooks, policies                             *prometheus.HistogramVec
	requests, rejections, open, failed, exclusions *prometheus.CounterVec
	validating, mutating                           *prometheus.CounterVec
	mutations                                      *prometheus.HistogramVec
}

// NewMeter makes one.
func NewMeter() *Meter {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	expressions := []float64{0.0000005, 0.001, 0.01, 0.1, 1.0}
	return &Meter{
		webhooks:   histogram("apiserver_admission_webhook_admission_duration_seconds", "Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).", []float64{0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10, 25}, "name", "type", "operation", "rejected"),
		requests:   counter("apiserver_admission_webhook_request_total", "Admission webhook request total, identified by name and broken out for each admission type (validating or mutating) and operation. Additional labels specify whether the request was rejected or not and an HTTP status code.", "name", "type", "operation", "code", "rejected"),
		rejections: counter("apiserver_admission_webhook_rejection_count", "Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400).", "name", "type", "operation", "error_type", "rejection_code"),
		open:       counter("apiserver_admission_webhook_fail_open_count", "Admission webhook fail open count, identified by name and broken out for each admission type (validating or mutating).", "name", "type"),
		failed:     counter("apiserver_admission_match_condition_evaluation_errors_total", "Admission match condition evaluation errors count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).", "name", "kind", "type", "operation"),
		exclusions: counter("apiserver_admission_match_condition_exclusions_total", "Admission match condition evaluation exclusions count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).", "name", "kind", "type", "operation"),
		validating: counter("apiserver_validating_admission_policy_check_total", "Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.", "policy", "policy_binding", "error_type", "enforcement_action"),
		policies:   histogram("apiserver_validating_admission_policy_check_duration_seconds", "Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.", expressions, "policy", "policy_binding", "error_type", "enforcement_action"),
		mutating:   counter("apiserver_mutating_admission_policy_check_total", "Mutation admission policy check total, labeled by policy and further identified by binding.", "policy", "policy_binding", "error_type"),
		mutations:  histogram("apiserver_mutating_admission_policy_check_duration_seconds", "Mutation admission latency for individual mutation expressions in seconds, labeled by policy and binding.", expressions, "policy", "policy_binding", "error_type"),
	}
}

func (m *Meter) all() []prometheus.Collector {
	return []prometheus.Collector{m.webhooks, m.requests, m.rejections, m.open, m.failed, m.exclusions, m.validating, m.policies, m.mutating, m.mutations}
}

// Describe implements prometheus.Collector.
func (m *Meter) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Meter) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

// Webhook counts one call.
func (m *Meter) Webhook(name, kind, operation string, rejected bool, code int, errorType string, took time.Duration) {
	r := strconv.FormatBool(rejected)
	m.webhooks.WithLabelValues(name, kind, operation, r).Observe(took.Seconds())
	m.requests.WithLabelValues(name, kind, operation, strconv.Itoa(min(code, 600)), r).Inc()
	if rejected {
		if code < 400 {
			code = 0
		}
		m.rejections.WithLabelValues(name, kind, operation, errorType, strconv.Itoa(min(code, 600))).Inc()
	}
}

// FailOpen counts a webhook that was ignored.
func (m *Meter) FailOpen(name, kind string) { m.open.WithLabelValues(name, kind).Inc() }

// Condition counts match conditions that failed or excluded a request.
func (m *Meter) Condition(name, owner, kind, operation string, failed bool) {
	c := m.exclusions
	if failed {
		c = m.failed
	}
	c.WithLabelValues(name, owner, kind, operation).Inc()
}

// Policy counts one expression.
func (m *Meter) Policy(mutating bool, policy, binding, errorType, action string, took time.Duration) {
	if mutating {
		m.mutating.WithLabelValues(policy, binding, errorType).Inc()
		m.mutations.WithLabelValues(policy, binding, errorType).Observe(took.Seconds())
		return
	}
	m.validating.WithLabelValues(policy, binding, errorType, action).Inc()
	m.policies.WithLabelValues(policy, binding, errorType, action).Observe(took.Seconds())
}
