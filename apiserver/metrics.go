package apiserver

import (
	"net/http"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics under upstream's names (Kubernetes docs, "Kubernetes Metrics
// Reference"). They live in a registry of their own, so that several servers fit
// into one process.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	panics   prometheus.Counter
	watches  prometheus.Gauge
	handler  http.Handler

	mu     sync.RWMutex
	series map[seriesKey]*series
}

type seriesKey struct {
	route string // group/version/plural/sub
	verb  string
	code  int
	scope string
}

// series are the counters of one kind of request, found without hashing labels.
type series struct {
	count   prometheus.Counter
	seconds prometheus.Observer
}

func newMetrics(s *Server) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), series: map[seriesKey]*series{}}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiserver_request_total",
		Help: "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code."},
		[]string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component", "code"})
	m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_request_duration_seconds",
		Help:    "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
		Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60}},
		[]string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"})
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{Name: "apiserver_panics_total", Help: "Requests that ended in a panic."})
	m.watches = prometheus.NewGauge(prometheus.GaugeOpts{Name: "apiserver_longrunning_requests", Help: "Gauge of all active long-running apiserver requests.",
		ConstLabels: prometheus.Labels{"verb": "WATCH", "component": "apiserver"}})
	inflight := func(kind string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "apiserver_current_inflight_requests",
			Help: "Requests in work, per request kind.", ConstLabels: prometheus.Labels{"request_kind": kind}}, f)
	}
	m.registry.MustRegister(m.requests, m.seconds, m.panics, m.watches, &objectCounter{s},
		inflight("readOnly", func() float64 { return float64(s.reading.Load()) }),
		inflight("mutating", func() float64 { return float64(s.writing.Load()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	return m
}

// Registry of this server's metrics, for other parts of the process to add theirs.
func (s *Server) Registry() *prometheus.Registry { return s.metrics.registry }

// objectCounter gives apiserver_storage_objects from the view when asked.
type objectCounter struct{ s *Server }

var objectsDesc = prometheus.NewDesc("apiserver_storage_objects", "Number of stored objects at the time of last check split by kind.", []string{"resource"}, nil)

func (o *objectCounter) Describe(ch chan<- *prometheus.Desc) { ch <- objectsDesc }
func (o *objectCounter) Collect(ch chan<- prometheus.Metric) {
	snap := o.s.view.Snapshot()
	for _, k := range o.s.kinds().Roots() {
		if k.Stored == nil && !k.Virtual {
			ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(snap.Len(k)), k.String())
		}
	}
}

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
	if q.r.Method == http.MethodPatch && q.r.Header.Get("Content-Type") == "application/apply-patch+yaml" {
		return "APPLY"
	}
	switch q.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return q.r.Method
	}
	return "other"
}

// observe counts a finished request.
func (m *metrics) observe(q *request) {
	key := seriesKey{verb: verbLabel(q), code: q.code}
	r := &q.route
	if r.kind != nil {
		key.route = r.group + "/" + r.version + "/" + r.plural + "/" + r.sub
		switch {
		case r.name != "":
			key.scope = "resource"
		case r.namespace != "":
			key.scope = "namespace"
		default:
			key.scope = "cluster"
		}
	}
	m.mu.RLock()
	s := m.series[key]
	m.mu.RUnlock()
	if s == nil {
		labels := []string{key.verb, "", "", "", "", "", key.scope, "apiserver"}
		if r.kind != nil {
			labels = []string{key.verb, "", r.group, r.version, r.plural, r.sub, key.scope, "apiserver"}
			// Only subresources that are served may become label values.
			if found, _ := r.serves(); !found {
				labels[5] = ""
			}
		}
		s = &series{seconds: m.seconds.WithLabelValues(labels...), count: m.requests.WithLabelValues(append(labels, strconv.Itoa(q.code))...)}
		m.mu.Lock()
		if len(m.series) < 20000 {
			m.series[key] = s
		}
		m.mu.Unlock()
	}
	s.count.Inc()
	if r.verb != "watch" {
		s.seconds.Observe(q.s.clock.Now().Sub(q.started).Seconds())
	}
}

func (q *request) serveMetrics() error {
	q.s.metrics.handler.ServeHTTP(q.w, q.r)
	return nil
}
