package apiserver

import (
	"context"
	"crypto/tls"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"proa.dev/apiserver/auth"
	"proa.dev/kind"
	"proa.dev/store"
)

// metrics under upstream's names, labels and types (Kubernetes docs, "Kubernetes
// Metrics Reference"). They live in a registry of their own, so that several
// servers fit into one process. What can be read when it is asked for costs
// nothing in a request; the series of a request are found by one map access.
type metrics struct {
	s        *Server
	registry *prometheus.Registry
	slis     *prometheus.Registry
	handler  http.Handler

	requests, terminations *prometheus.CounterVec
	seconds, sli, sizes    *prometheus.HistogramVec
	running                *prometheus.GaugeVec
	events                 *prometheus.CounterVec
	eventSizes             *prometheus.HistogramVec
	panics                 prometheus.Counter
	attempts, users        *prometheus.CounterVec
	badTokens              prometheus.Counter
	authn                  [3]outcome // of authentication
	authz                  [4]outcome // of authorization
	deprecated             *prometheus.GaugeVec
	tls                    prometheus.Counter
	health                 *prometheus.GaugeVec
	checks                 *prometheus.CounterVec
	certificates           prometheus.Histogram
	admission              *admissionMeter

	mu      sync.RWMutex
	series  map[seriesKey]*series
	watches map[*kind.Kind]*watchSeries
}

type seriesKey struct {
	group, version, plural, sub string
	verb, scope                 string
	code                        int
	dry                         bool
}

// series are the metrics of one kind of request, found without hashing labels.
type series struct {
	count               prometheus.Counter
	seconds, sli, sizes prometheus.Observer
	running             prometheus.Gauge
}

// watchSeries are those of watches of one kind.
type watchSeries struct {
	count prometheus.Counter
	sizes prometheus.Observer
}

func (w *watchSeries) sent(bytes int) {
	w.count.Inc()
	w.sizes.Observe(float64(bytes))
}

var (
	slowBuckets = []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60}
	sliBuckets  = slowBuckets[2:]
	routeLabels = []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	dryLabels   = []string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"}
)

func newMetrics(s *Server) *metrics {
	m := &metrics{s: s, registry: prometheus.NewRegistry(), slis: prometheus.NewRegistry(), series: map[seriesKey]*series{}, watches: map[*kind.Kind]*watchSeries{}}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m.requests = counter("apiserver_request_total", "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.", append(dryLabels[:len(dryLabels):len(dryLabels)], "code")...)
	m.seconds = histogram("apiserver_request_duration_seconds", "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.", slowBuckets, dryLabels...)
	m.sli = histogram("apiserver_request_sli_duration_seconds", "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.", sliBuckets, routeLabels...)
	m.sizes = histogram("apiserver_response_sizes", "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.", prometheus.ExponentialBuckets(1000, 10, 7), routeLabels...)
	m.running = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiserver_longrunning_requests", Help: "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way."}, routeLabels)
	m.terminations = counter("apiserver_request_terminations_total", "Number of requests which apiserver terminated in self-defense.", append(routeLabels[:len(routeLabels):len(routeLabels)], "code")...)
	m.events = counter("apiserver_watch_events_total", "Number of events sent in watch clients", "group", "version", "resource")
	m.eventSizes = histogram("apiserver_watch_events_sizes", "Watch event size distribution in bytes", prometheus.ExponentialBuckets(1024, 2, 8), "group", "version", "resource")
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_panics_total", Help: "Requests that ended in a panic."})
	m.tls = prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_tls_handshake_errors_total", Help: "Number of requests dropped with 'TLS handshake error from' error"})
	m.attempts = counter("authentication_attempts", "Counter of authenticated attempts.", "result")
	m.users = counter("authenticated_user_requests", "Counter of authenticated requests broken out by username.", "username")
	doors := prometheus.ExponentialBuckets(0.001, 2, 15)
	authnSeconds := histogram("authentication_duration_seconds", "Authentication duration in seconds broken out by result.", doors, "result")
	for i, result := range []string{succeeded: "success", unknown: "failure", broken: "error"} {
		m.authn[i] = outcome{m.attempts.WithLabelValues(result), authnSeconds.WithLabelValues(result)}
	}
	decisions := counter("authorization_attempts_total", "Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'.", "result")
	authzSeconds := histogram("authorization_duration_seconds", "Authorization duration in seconds broken out by result.", doors, "result")
	for i, result := range []string{allowed: "allowed", denied: "denied", noOpinion: "no-opinion", undecided: "error"} {
		m.authz[i] = outcome{decisions.WithLabelValues(result), authzSeconds.WithLabelValues(result)}
	}
	m.deprecated = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiserver_requested_deprecated_apis",
		Help: "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release."}, []string{"group", "version", "resource", "subresource", "removed_release"})
	m.badTokens = m.users.WithLabelValues("other")
	m.health = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubernetes_healthcheck", Help: "This metric records the result of a single healthcheck."}, []string{"name", "type"})
	m.checks = counter("kubernetes_healthchecks_total", "This metric records the results of all healthcheck.", "name", "status", "type")
	m.certificates = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "apiserver_client_certificate_expiration_seconds", Help: "Distribution of the remaining lifetime on the certificate used to authenticate a request.",
		Buckets: []float64{0, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 345600, 604800, 2592000, 7776000, 15552000, 31104000}})
	inflight := func(kind string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "apiserver_current_inflight_requests",
			Help: "Maximal number of currently used inflight request limit of this apiserver per request kind in last second.", ConstLabels: prometheus.Labels{"request_kind": kind}}, f)
	}
	v := s.cfg.Version
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubernetes_build_info", Help: "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
		ConstLabels: prometheus.Labels{"major": v.Major, "minor": v.Minor, "git_version": v.GitVersion, "git_commit": v.GitCommit, "git_tree_state": v.GitTreeState,
			"build_date": v.BuildDate, "go_version": runtime.Version(), "compiler": runtime.Compiler, "platform": runtime.GOOS + "/" + runtime.GOARCH}}, func() float64 { return 1 })
	m.registry.MustRegister(m.requests, m.seconds, m.sli, m.sizes, m.running, m.terminations, m.events, m.eventSizes, m.panics, m.tls, m.attempts, m.users, m.certificates,
		authnSeconds, decisions, authzSeconds, m.deprecated,
		&objectCounter{s}, &storageSize{s}, build,
		inflight("readOnly", func() float64 { return float64(s.reading.Load()) }),
		inflight("mutating", func() float64 { return float64(s.writing.Load()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.admission = newAdmissionMeter(s.cfg.Admit, s.cfg.Clock)
	m.registry.MustRegister(m.admission.controllers, m.admission.step)
	m.slis.MustRegister(m.health, m.checks)
	if s.cfg.Fair != nil {
		m.registry.MustRegister(s.cfg.Fair)
	}
	if s.cfg.Audit != nil {
		m.registry.MustRegister(s.cfg.Audit)
	}
	m.registry.MustRegister(s.cfg.Collectors...)
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	return m
}

// Registry of this server's metrics, for other parts of the process to add theirs.
func (s *Server) Registry() *prometheus.Registry { return s.metrics.registry }

// objectCounter gives apiserver_storage_objects from the view when asked.
type objectCounter struct{ s *Server }

var (
	objectsDesc  = prometheus.NewDesc("apiserver_storage_objects", "Number of stored objects at the time of last check split by kind.", []string{"resource"}, nil)
	resourceDesc = prometheus.NewDesc("apiserver_resource_objects", "Number of stored objects at the time of last check split by kind.", []string{"group", "resource"}, nil)
)

func (o *objectCounter) Describe(ch chan<- *prometheus.Desc) { ch <- objectsDesc; ch <- resourceDesc }
func (o *objectCounter) Collect(ch chan<- prometheus.Metric) {
	snap := o.s.view.Snapshot()
	seen := map[*kind.Kind]bool{}
	for _, k := range o.s.kinds().Rows() {
		if root := k.Root(); !k.Virtual && !seen[root] {
			seen[root] = true
			n := float64(snap.Len(root))
			ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, n, k.String())
			ch <- prometheus.MustNewConstMetric(resourceDesc, prometheus.GaugeValue, n, k.Group, k.Plural)
		}
	}
}

// storageSize gives apiserver_storage_size_bytes when asked, where the store knows.
type storageSize struct{ s *Server }

var sizeDesc = prometheus.NewDesc("apiserver_storage_size_bytes", "Size of the storage database file physically allocated in bytes.", []string{"storage_cluster_id"}, nil)

func (z *storageSize) Describe(ch chan<- *prometheus.Desc) { ch <- sizeDesc }
func (z *storageSize) Collect(ch chan<- prometheus.Metric) {
	st, ok := z.s.cfg.Store.(store.Sized)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), sizePatience)
	defer cancel()
	database, bytes, err := st.Size(ctx)
	if err != nil {
		z.s.log.Debug("the size of the store is not known", "error", err)
		return
	}
	ch <- prometheus.MustNewConstMetric(sizeDesc, prometheus.GaugeValue, float64(bytes), database)
}

// sizePatience bounds how long a scrape waits for the store.
const sizePatience = 2 * time.Second

// CertificateExpiry adds the earliest end of the server's own certificates as
// proa_certificate_expiration_timestamp_seconds; f says it when it is asked for, zero
// when there are none.
func (s *Server) CertificateExpiry(f func() time.Time) error {
	return s.metrics.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "proa_certificate_expiration_timestamp_seconds",
		Help: "Earliest end of the certificates that this server uses, in seconds since 1970."}, func() float64 {
		at := f()
		if at.IsZero() {
			return math.Inf(1)
		}
		return float64(at.Unix())
	}))
}

// outcome is a result of authentication or authorization.
type outcome struct {
	count   prometheus.Counter
	seconds prometheus.Observer
}

func (o *outcome) add(took time.Duration) {
	o.count.Inc()
	o.seconds.Observe(took.Seconds())
}

// Results of authentication: somebody, nobody known, bad credentials.
const (
	succeeded = iota
	unknown
	broken
)

// Results of authorization.
const (
	allowed = iota
	denied
	noOpinion
	undecided
)

// authenticated counts an outcome: an error is bad credentials.
func (m *metrics) authenticated(err error, ok bool, took time.Duration) {
	switch {
	case err != nil:
		m.authn[broken].add(took)
	case ok:
		m.authn[succeeded].add(took)
		m.badTokens.Inc()
	default:
		m.authn[unknown].add(took)
	}
}

// authorized counts a decision.
func (m *metrics) authorized(d auth.Decision, err error, took time.Duration) {
	switch {
	case err != nil:
		m.authz[undecided].add(took)
	case d == auth.Allow:
		m.authz[allowed].add(took)
	case d == auth.Deny:
		m.authz[denied].add(took)
	default:
		m.authz[noOpinion].add(took)
	}
}

// old notes that a deprecated kind was asked for.
func (m *metrics) old(k *kind.Kind, sub string) {
	m.deprecated.WithLabelValues(k.Group, k.Version, k.Plural, sub, "").Set(1)
}

// certificate notes how long a client's certificate still lasts.
func (m *metrics) certificate(state *tls.ConnectionState, now time.Time) {
	if state != nil && len(state.PeerCertificates) > 0 {
		m.certificates.Observe(state.PeerCertificates[0].NotAfter.Sub(now).Seconds())
	}
}

// checked notes the result of a health check.
func (m *metrics) checked(endpoint, name string, err error) {
	status, value := "success", 1.0
	if err != nil {
		status, value = "error", 0
	}
	m.health.WithLabelValues(name, endpoint).Set(value)
	m.checks.WithLabelValues(name, status, endpoint).Inc()
}

// watch returns the series of watches of a kind.
func (m *metrics) watch(k *kind.Kind) *watchSeries {
	m.mu.RLock()
	w := m.watches[k]
	m.mu.RUnlock()
	if w == nil {
		w = &watchSeries{m.events.WithLabelValues(k.Group, k.Version, k.Plural), m.eventSizes.WithLabelValues(k.Group, k.Version, k.Plural)}
		m.mu.Lock()
		if len(m.watches) < maxSeries {
			m.watches[k] = w
		}
		m.mu.Unlock()
	}
	return w
}

// maxSeries bounds what is remembered; beyond it series are looked up each time.
const maxSeries = 20000

// verbLabel is upstream's word for a verb in metrics.
func verbLabel(q *request) string {
	switch q.route.verb {
	case "list":
		return "LIST"
	case "watch":
		return "WATCH"
	case "deletecollection":
		return "DELETECOLLECTION"
	}
	switch q.route.sub {
	case "exec", "attach", "portforward", "log", "proxy":
		return "CONNECT"
	}
	if q.r.Method == http.MethodPatch && strings.HasPrefix(q.r.Header.Get("Content-Type"), "application/apply-patch+") {
		return "APPLY"
	}
	switch q.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return q.r.Method
	}
	return "other"
}

func (q *request) seriesKey() seriesKey {
	r := &q.route
	key := seriesKey{verb: verbLabel(q), code: q.code}
	if r.kind == nil {
		return key
	}
	key.group, key.version, key.plural = r.group, r.version, r.plural
	// Only subresources that are served may become label values.
	if r.sub != "" {
		if found, _ := r.serves(); found {
			key.sub = r.sub
		}
	}
	switch {
	case r.name != "":
		key.scope = "resource"
	case r.namespace != "":
		key.scope = "namespace"
	default:
		key.scope = "cluster"
	}
	key.dry = len(q.query["dryRun"]) > 0
	return key
}

func (m *metrics) of(key seriesKey) *series {
	m.mu.RLock()
	s := m.series[key]
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	dry := ""
	if key.dry {
		dry = "All"
	}
	route := []string{key.verb, key.group, key.version, key.plural, key.sub, key.scope, "apiserver"}
	withDry := append([]string{key.verb, dry}, route[1:]...)
	s = &series{seconds: m.seconds.WithLabelValues(withDry...), sli: m.sli.WithLabelValues(route...), sizes: m.sizes.WithLabelValues(route...),
		count: m.requests.WithLabelValues(append(withDry, strconv.Itoa(key.code))...), running: m.running.WithLabelValues(route...)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.series) < maxSeries {
		m.series[key] = s
	}
	return s
}

// lasting counts a long-running request while it lasts.
func (m *metrics) lasting(q *request) (end func()) {
	key := q.seriesKey()
	key.code = 0
	route := []string{key.verb, key.group, key.version, key.plural, key.sub, key.scope, "apiserver"}
	g := m.running.WithLabelValues(route...)
	g.Inc()
	return g.Dec
}

// dropped counts a request that was sent away.
func (m *metrics) dropped(q *request) {
	key := q.seriesKey()
	m.terminations.WithLabelValues(key.verb, key.group, key.version, key.plural, key.sub, key.scope, "apiserver", "429").Inc()
}

// observe counts a finished request.
func (m *metrics) observe(q *request) {
	s := m.of(q.seriesKey())
	s.count.Inc()
	if q.long {
		return
	}
	took := m.s.clock.Now().Sub(q.started)
	s.seconds.Observe(took.Seconds())
	s.sli.Observe((took - q.waited).Seconds())
	if q.route.kind != nil && (q.r.Method == http.MethodGet || q.r.Method == http.MethodHead) {
		s.sizes.Observe(float64(q.sent.bytes))
	}
}

func (q *request) serveMetrics() error {
	q.s.metrics.handler.ServeHTTP(q.w, q.r)
	return nil
}

// serveSLIs answers the health checks as metrics (Kubernetes docs, "Kubernetes
// Component SLI Metrics"): each is made now.
func (q *request) serveSLIs() error {
	ctx, cancel := context.WithTimeout(q.r.Context(), 10*time.Second)
	defer cancel()
	for _, endpoint := range []string{"healthz", "livez", "readyz"} {
		for _, c := range q.s.checks(endpoint) {
			q.s.metrics.checked(endpoint, c.Name, c.Do(ctx))
		}
	}
	promhttp.HandlerFor(q.s.metrics.slis, promhttp.HandlerOpts{}).ServeHTTP(q.w, q.r)
	return nil
}

// handshakes counts the errors of TLS that net/http writes to its log.
type handshakes struct {
	count prometheus.Counter
	next  interface{ Write([]byte) (int, error) }
}

func (h *handshakes) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "TLS handshake error from") {
		h.count.Inc()
	}
	return h.next.Write(p)
}
