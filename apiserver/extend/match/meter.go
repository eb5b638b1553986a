package match

import "time"

// Meter counts what webhooks and policies do. The names behind are upstream's:
//
//	apiserver_admission_webhook_admission_duration_seconds{name, type, operation, rejected}
//	apiserver_admission_webhook_request_total{name, type, operation, code, rejected}
//	apiserver_admission_webhook_rejection_count{name, type, operation, error_type, rejection_code}
//	apiserver_admission_webhook_fail_open_count{name, type}
//	apiserver_admission_match_condition_evaluation_errors_total{name, kind, type, operation}
//	apiserver_admission_match_condition_exclusions_total{name, kind, type, operation}
//	apiserver_validating_admission_policy_check_total{policy, policy_binding, error_type, enforcement_action}
//	apiserver_mutating_admission_policy_check_total{policy, policy_binding, error_type}
type Meter interface {
	// Webhook: one call has ended; kind is "admit" or "validating"; errorType is empty
	// or "calling_webhook_error", "apiserver_internal_error", "no_error" (of a rejection).
	Webhook(name, kind, operation string, rejected bool, code int, errorType string, took time.Duration)
	// FailOpen: a webhook could not be called and is ignored.
	FailOpen(name, kind string)
	// Condition: match conditions of a webhook or policy gave an error or excluded a
	// request; owner is "webhook" or "policy".
	Condition(name, owner, kind, operation string, failed bool)
	// Policy: one expression's decision; action is allow, deny, audit or warn; errorType
	// "no_error", "compile_error", "out_of_budget" or "invalid_error".
	Policy(mutating bool, policy, binding, errorType, action string, took time.Duration)
}

// NoMeter counts nothing.
type NoMeter struct{}

// Webhook implements Meter.
func (NoMeter) Webhook(string, string, string, bool, int, string, time.Duration) {}

// FailOpen implements Meter.
func (NoMeter) FailOpen(string, string) {}

// Condition implements Meter.
func (NoMeter) Condition(string, string, string, string, bool) {}

// Policy implements Meter.
func (NoMeter) Policy(bool, string, string, string, string, time.Duration) {}
