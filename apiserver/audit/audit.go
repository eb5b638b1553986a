// Package audit records who did what: an audit.k8s.io/v1 Event for each stage of
// each request that the policy wants, as upstream writes it (Kubernetes docs,
// "Auditing"; the types are upstream's).
//
// New reads the policy and opens the backends; it starts nothing. Run sends
// batches to the webhook until its context ends, then what is left, for a few
// seconds. The log file needs no Run: an event is written before the stage goes on,
// as upstream's default mode does, and a full disk costs events, not requests; each
// is counted in apiserver_audit_error_total. The webhook's buffer is bounded (10,000
// events); what does not fit is lost and counted.
//
// Admission adds annotations through admit.Annotate.
//
// A nil *Log and a nil *Entry are valid and do nothing: without a policy a request
// pays one comparison.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"

	"proa.dev/apiserver/auth"
	"proa.dev/env"
)

// Config has upstream's flags in its fields.
type Config struct {
	PolicyFile string // --audit-policy-file; "": nothing is recorded

	LogPath      string // --audit-log-path; "-": standard output, "": no log
	LogFormat    string // --audit-log-format: json (also when "") or legacy
	LogMaxAge    int    // --audit-log-maxage, days; 0: kept
	LogMaxBackup int    // --audit-log-maxbackup, files; 0: all
	LogMaxSize   int    // --audit-log-maxsize, megabytes; 0: 100

	WebhookConfigFile string // --audit-webhook-config-file, a kubeconfig
	// WebhookMaxWait is how long an event waits for others (0: 30 s).
	WebhookMaxWait time.Duration

	Clock env.Clock // nil: the system's
	Log   *slog.Logger
}

// Log records events.
type Log struct {
	policy  *Policy
	clock   env.Clock
	log     *slog.Logger
	legacy  bool
	out     io.WriteCloser
	outMu   sync.Mutex
	webhook *webhook

	events   prometheus.Counter
	levels   map[auditv1.Level]prometheus.Counter
	errors   *prometheus.CounterVec
	rejected prometheus.Counter
	vectors  []prometheus.Collector
}

// New opens what c asks for. Without a policy file or without a backend it returns
// nil: nothing is recorded.
func New(c Config) (*Log, error) {
	if c.PolicyFile == "" || c.LogPath == "" && c.WebhookConfigFile == "" {
		return nil, nil
	}
	p, err := ReadPolicy(c.PolicyFile)
	if err != nil {
		return nil, err
	}
	l := &Log{policy: p, clock: c.Clock, log: c.Log}
	if l.clock == nil {
		l.clock = env.SystemClock()
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	switch c.LogFormat {
	case "", "json":
	case "legacy":
		l.legacy = true
	default:
		return nil, fmt.Errorf("open audit log: format %q is unknown; use json or legacy", c.LogFormat)
	}
	if c.LogMaxAge < 0 || c.LogMaxBackup < 0 || c.LogMaxSize < 0 {
		return nil, errors.New("open audit log: maxage, maxbackup and maxsize must not be negative")
	}
	l.makeMetrics()
	switch c.LogPath {
	case "":
	case "-":
		l.out = keepOpen{os.Stdout}
	default:
		if l.out, err = openRotating(c.LogPath, c.LogMaxSize, c.LogMaxBackup, c.LogMaxAge, l.clock); err != nil {
			return nil, err
		}
	}
	if c.WebhookConfigFile != "" {
		if l.webhook, err = openWebhook(c.WebhookConfigFile, c.WebhookMaxWait, l); err != nil {
			return nil, err
		}
	}
	return l, nil
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// Run serves the webhook until ctx ends, then closes the backends.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	if l.webhook != nil {
		l.webhook.run(ctx)
	} else {
		<-ctx.Done()
	}
	return nil
}

// Close closes the log file; events that come later are lost and counted.
func (l *Log) Close() error {
	if l == nil || l.out == nil {
		return nil
	}
	l.outMu.Lock()
	defer l.outMu.Unlock()
	err := l.out.Close()
	l.out = closed{}
	return err
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, os.ErrClosed }
func (closed) Close() error              { return nil }

func (l *Log) makeMetrics() {
	l.events = prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_audit_event_total", Help: "Counter of audit events generated and sent to the audit backend."})
	l.errors = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_audit_error_total",
		Help: "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error."}, []string{"plugin"})
	perLevel := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_audit_level_total", Help: "Counter of policy levels for audit events (1 per request)."}, []string{"level"})
	l.rejected = prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_audit_requests_rejected_total", Help: "Counter of apiserver requests rejected due to an error in audit logging backend."})
	l.levels = map[auditv1.Level]prometheus.Counter{}
	for _, v := range levels {
		l.levels[v] = perLevel.WithLabelValues(string(v))
	}
	l.vectors = []prometheus.Collector{l.events, l.errors, perLevel, l.rejected}
}

// Describe implements prometheus.Collector.
func (l *Log) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range l.vectors {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (l *Log) Collect(ch chan<- prometheus.Metric) {
	for _, c := range l.vectors {
		c.Collect(ch)
	}
}

// Entry is the record of one request. Its methods may be called from several
// goroutines, and on nil.
type Entry struct {
	log   *Log
	mu    sync.Mutex
	ev    auditv1.Event
	omit  []auditv1.Stage
	bare  bool // managed fields are left out
	ended bool
}

// maxAgent is how much of a user agent is kept.
const maxAgent = 1024

// Begin asks the policy about a request that came at received and records the
// stage RequestReceived; nil when the policy does not want it. id is the value of
// the Audit-ID header. known is false while nobody is authenticated.
func (l *Log) Begin(r *http.Request, a *auth.Attributes, id string, received time.Time, known bool) *Entry {
	e := l.entry(a, id, received)
	if e == nil {
		return nil
	}
	e.ev.RequestURI, e.ev.UserAgent = r.URL.RequestURI(), agent(r.UserAgent())
	for _, ip := range utilnet.SourceIPs(r) {
		e.ev.SourceIPs = append(e.ev.SourceIPs, ip.String())
	}
	if known {
		e.ev.User = a.User.Info()
	}
	e.stage(auditv1.StageRequestReceived)
	return e
}

// BeginLocal is Begin for a request that is a call in process: uri is its URL, had
// it come over HTTP.
func (l *Log) BeginLocal(a *auth.Attributes, id, uri, userAgent string, received time.Time) *Entry {
	e := l.entry(a, id, received)
	if e == nil {
		return nil
	}
	e.ev.RequestURI, e.ev.UserAgent = uri, agent(userAgent)
	e.ev.SourceIPs = []string{loopback}
	e.ev.User = a.User.Info()
	e.stage(auditv1.StageRequestReceived)
	return e
}

// loopback is where calls in process come from.
const loopback = "127.0.0.1"

func agent(s string) string {
	if len(s) > maxAgent {
		return s[:maxAgent] + "...TRUNCATED"
	}
	return s
}

// entry asks the policy; nil when it does not want the request.
func (l *Log) entry(a *auth.Attributes, id string, received time.Time) *Entry {
	if l == nil {
		return nil
	}
	d := l.policy.decide(a)
	l.levels[d.level].Inc()
	if d.level == auditv1.LevelNone {
		return nil
	}
	e := &Entry{log: l, omit: d.omit, bare: d.omitManagedFields, ev: auditv1.Event{
		TypeMeta: metav1.TypeMeta{Kind: "Event", APIVersion: "audit.k8s.io/v1"},
		Level:    d.level, AuditID: types.UID(id), Verb: a.Verb, RequestReceivedTimestamp: metav1.NewMicroTime(received),
	}}
	if a.Path == "" {
		e.ev.ObjectRef = &auditv1.ObjectReference{Namespace: a.Namespace, Name: a.Name, Resource: a.Resource, Subresource: a.Subresource, APIGroup: a.Group, APIVersion: a.Version}
	}
	return e
}

// Annotate adds an annotation; the first value of a key stays.
func (e *Entry) Annotate(key, value string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ev.Annotations == nil {
		e.ev.Annotations = map[string]string{}
	}
	if _, ok := e.ev.Annotations[key]; !ok {
		e.ev.Annotations[key] = value
	}
}

// Impersonated records as whom the request is carried out.
func (e *Entry) Impersonated(u auth.User) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	i := u.Info()
	e.ev.ImpersonatedUser = &i
}

// Object records the decoded body.
func (e *Entry) Object(obj runtime.Object) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if m, err := meta.Accessor(obj); err == nil {
		r := e.ev.ObjectRef
		if r == nil {
			r = &auditv1.ObjectReference{}
			e.ev.ObjectRef = r
		}
		set := func(at *string, v string) {
			if *at == "" {
				*at = v
			}
		}
		set(&r.Namespace, m.GetNamespace())
		set(&r.Name, m.GetName())
		set((*string)(&r.UID), string(m.GetUID()))
		set(&r.ResourceVersion, m.GetResourceVersion())
	}
	if e.ev.Level == auditv1.LevelRequest || e.ev.Level == auditv1.LevelRequestResponse {
		e.ev.RequestObject = e.encode(obj)
	}
}

// Patch records the body of a patch; YAML becomes JSON.
func (e *Entry) Patch(data []byte) {
	if e == nil || e.ev.Level == auditv1.LevelMetadata {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if json.Valid(data) {
		data = bytes.Clone(data)
	} else if j, err := yaml.YAMLToJSON(data); err == nil {
		data = j
	} else {
		return
	}
	e.ev.RequestObject = &runtime.Unknown{Raw: data, ContentType: runtime.ContentTypeJSON}
}

// WantsResponse says whether response objects are recorded.
func (e *Entry) WantsResponse() bool { return e != nil && e.ev.Level == auditv1.LevelRequestResponse }

// Response records the object of an answer; a Status is recorded at every level.
func (e *Entry) Response(obj runtime.Object) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, ok := obj.(*metav1.Status); ok {
		code := s.Code
		if e.ev.ResponseStatus != nil && e.ev.ResponseStatus.Code != 0 {
			code = e.ev.ResponseStatus.Code
		}
		e.ev.ResponseStatus = &metav1.Status{Status: s.Status, Message: s.Message, Reason: s.Reason, Details: s.Details, Code: code}
	}
	if e.ev.Level == auditv1.LevelRequestResponse {
		e.ev.ResponseObject = e.encode(obj)
	}
}

// ResponseJSON records an answer that is encoded already.
func (e *Entry) ResponseJSON(data []byte) {
	if !e.WantsResponse() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ev.ResponseObject = &runtime.Unknown{Raw: data, ContentType: runtime.ContentTypeJSON}
}

func (e *Entry) encode(obj runtime.Object) *runtime.Unknown {
	if e.bare {
		if m, err := meta.Accessor(obj); err == nil && len(m.GetManagedFields()) > 0 {
			obj = obj.DeepCopyObject()
			m, _ = meta.Accessor(obj)
			m.SetManagedFields(nil)
		}
	}
	data, err := json.Marshal(obj)
	if err != nil {
		e.log.log.Warn("audited object could not be encoded", "auditID", e.ev.AuditID, "error", err)
		return nil
	}
	return &runtime.Unknown{Raw: data, ContentType: runtime.ContentTypeJSON}
}

// Bare says whether managed fields are left out.
func (e *Entry) Bare() bool { return e != nil && e.bare }

// Started records the code of the answer; for a long-running request that is a
// stage of its own.
func (e *Entry) Started(code int, long bool) {
	if e == nil {
		return
	}
	e.mu.Lock()
	if e.ev.ResponseStatus == nil {
		e.ev.ResponseStatus = &metav1.Status{}
	}
	e.ev.ResponseStatus.Code = int32(code)
	e.mu.Unlock()
	if long {
		e.stage(auditv1.StageResponseStarted)
	}
}

// Panicked ends the entry.
func (e *Entry) Panicked(value any) {
	if e == nil {
		return
	}
	e.mu.Lock()
	e.ended = true
	e.ev.ResponseStatus = &metav1.Status{Code: http.StatusInternalServerError, Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError,
		Message: fmt.Sprintf("APIServer panic'd: %v", value)}
	e.mu.Unlock()
	e.stage(auditv1.StagePanic)
}

// slow requests say how long they took.
const slow = 500 * time.Millisecond

// Complete ends the entry.
func (e *Entry) Complete(long bool) {
	if e == nil {
		return
	}
	e.mu.Lock()
	if e.ended {
		e.mu.Unlock()
		return
	}
	e.ended = true
	early := e.ev.ResponseStatus == nil
	if early {
		e.ev.ResponseStatus = &metav1.Status{Code: http.StatusOK, Status: metav1.StatusSuccess, Message: "Connection closed early"}
	}
	e.mu.Unlock()
	if early && long {
		e.stage(auditv1.StageResponseStarted)
	}
	if took := e.log.clock.Now().Sub(e.ev.RequestReceivedTimestamp.Time); took > slow && !long {
		e.Annotate("apiserver.latency.k8s.io/total", took.String())
	}
	e.stage(auditv1.StageResponseComplete)
}

// stage hands the event as it is now to the backends.
func (e *Entry) stage(s auditv1.Stage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if slices.Contains(e.omit, s) {
		return
	}
	l := e.log
	e.ev.Stage = s
	e.ev.StageTimestamp = metav1.NewMicroTime(l.clock.Now())
	l.events.Inc()
	var data []byte
	if !l.legacy || l.webhook != nil {
		var err error
		if data, err = json.Marshal(&e.ev); err != nil {
			l.lost("log", 1, err)
			return
		}
	}
	if l.webhook != nil {
		l.webhook.add(data)
	}
	if l.out == nil {
		return
	}
	line := data
	if l.legacy {
		line = []byte(legacy(&e.ev))
	}
	l.outMu.Lock()
	_, err := l.out.Write(append(line[:len(line):len(line)], '\n'))
	l.outMu.Unlock()
	if err != nil {
		l.lost("log", 1, err)
	}
}

func (l *Log) lost(plugin string, n int, err error) {
	l.errors.WithLabelValues(plugin).Add(float64(n))
	l.log.Warn("audit events were lost", "plugin", plugin, "events", n, "error", err)
}

// legacy is the old one-line form.
func legacy(ev *auditv1.Event) string {
	list := func(in []string) string {
		q := make([]string, len(in))
		for i, s := range in {
			q[i] = strconv.Quote(s)
		}
		return strings.Join(q, ",")
	}
	user, groups, as, asGroups := "<none>", "<none>", "<self>", "<lookup>"
	if ev.User.Username != "" {
		if user = ev.User.Username; len(ev.User.Groups) > 0 {
			groups = list(ev.User.Groups)
		}
	}
	if i := ev.ImpersonatedUser; i != nil {
		if as = i.Username; i.Groups != nil {
			asGroups = list(i.Groups)
		}
	}
	namespace, response, ip := "<none>", "<deferred>", "<unknown>"
	if ev.ObjectRef != nil && ev.ObjectRef.Namespace != "" {
		namespace = ev.ObjectRef.Namespace
	}
	if ev.ResponseStatus != nil {
		response = strconv.Itoa(int(ev.ResponseStatus.Code))
	}
	if len(ev.SourceIPs) > 0 {
		ip = ev.SourceIPs[0]
	}
	return fmt.Sprintf("%s AUDIT: id=%q stage=%q ip=%q method=%q user=%q groups=%q as=%q asgroups=%q user-agent=%q namespace=%q uri=%q response=\"%s\"",
		ev.RequestReceivedTimestamp.Format(time.RFC3339Nano), ev.AuditID, ev.Stage, ip, ev.Verb, user, groups, as, asGroups, ev.UserAgent, namespace, ev.RequestURI, response)
}
