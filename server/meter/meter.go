// Package meter measures what runs beside the API: the controllers' work queues,
// the scheduler, the clients in this process and leading, under upstream's names,
// labels, types and buckets (Kubernetes docs, "Kubernetes Metrics Reference";
// k8s.io/component-base for work queues and clients), so that dashboards and alerts
// made for Kubernetes work. Deciders know nothing of it: their runtimes tell it.
//
// A part of the runtime is what a controller with a queue is upstream; where
// upstream's queue has another name than proa's part, it is upstream's.
//
// One measurement costs some ten nanoseconds and no memory: series are found once.
package meter

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"proa.dev/control"
	"proa.dev/sched/loop"
)

// Meter is one process's. It is a prometheus.Collector.
type Meter struct {
	waited, worked *prometheus.HistogramVec

	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec

	leads *prometheus.GaugeVec

	scheduler *Scheduler

	mu     sync.Mutex
	queues map[*control.Runtime][]string // names of the parts
}

// New makes one.
func New() *Meter {
	queueBuckets := prometheus.ExponentialBuckets(10e-9, 10, 10)
	m := &Meter{
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "workqueue_queue_duration_seconds", Buckets: queueBuckets,
			Help: "How long in seconds an item stays in workqueue before being requested."}, []string{"name"}),
		worked: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "workqueue_work_duration_seconds", Buckets: queueBuckets,
			Help: "How long in seconds processing an item from workqueue takes."}, []string{"name"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rest_client_requests_total",
			Help: "Number of HTTP requests, partitioned by status code, method, and host."}, []string{"code", "host", "method"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rest_client_request_duration_seconds", Buckets: []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60},
			Help: "Request latency in seconds. Broken down by verb, and host."}, []string{"host", "verb"}),
		leads: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "leader_election_master_status",
			Help: "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master. 'name' is the string used to identify the lease. Please make sure to group by name."}, []string{"name"}),
		queues: map[*control.Runtime][]string{},
	}
	m.scheduler = newScheduler()
	return m
}

// Leads is what elections tell of a Lease.
func (m *Meter) Leads(lease string) func(bool) {
	g := m.leads.WithLabelValues(lease)
	return func(is bool) {
		if is {
			g.Set(1)
		} else {
			g.Set(0)
		}
	}
}

// Scheduler is for loop.Config.
func (m *Meter) Scheduler() loop.Meter { return m.scheduler }

// queueNames are upstream's, where they differ from those of the parts.
var queueNames = map[string]string{
	"certificatesigningrequest-approving-controller": "certificate",
	"clusterrole-aggregation-controller":             "ClusterRoleAggregator",
	"cronjob-controller":                             "cronjob",
	"customresource-finalizer":                       "crd_finalizer",
	"customresource-naming":                          "crd_naming_condition_controller",
	"daemonset-controller":                           "daemonset",
	"deployment-controller":                          "deployment",
	"disruption-controller":                          "disruption",
	"endpointslice-controller":                       "endpoint_slice",
	"endpointslicemirroring-controller":              "endpoint_slice_mirroring",
	"job-controller":                                 "job",
	"job-orphan-controller":                          "job_orphan_pod",
	"namespace-controller":                           "namespace",
	"persistentvolume-protection-controller":         "pvprotection",
	"persistentvolumeclaim-protection-controller":    "pvcprotection",
	"replicaset-controller":                          "replicaset",
	"replication-controller":                         "replicationmanager",
	"resourcequota-controller":                       "resourcequota_primary",
	"root-ca-certificate-publisher":                  "root_ca_cert_publisher",
	"serviceaccount-controller":                      "serviceaccount",
	"statefulset-controller":                         "statefulset",
	"token-cleaner-controller":                       "token_cleaner",
	"ttl-after-finished-controller":                  "ttl_jobs_to_delete",
	"validatingadmissionpolicy-status-controller":    "validating_admission_policy_status",
}

func queueName(part string) string {
	if n, ok := queueNames[part]; ok {
		return n
	}
	return part
}

// queueMeter measures one runtime's parts, by index.
type queueMeter struct{ waited, worked []prometheus.Observer }

func (q *queueMeter) Waited(part int, d time.Duration) { q.waited[part].Observe(d.Seconds()) }
func (q *queueMeter) Worked(part int, d time.Duration) { q.worked[part].Observe(d.Seconds()) }

// Parts is for control.Config.
func (m *Meter) Parts(parts []control.Part) control.Meter {
	q := &queueMeter{}
	for i := range parts {
		name := queueName(parts[i].Name)
		q.waited = append(q.waited, m.waited.WithLabelValues(name))
		q.worked = append(q.worked, m.worked.WithLabelValues(name))
	}
	return q
}

// Follow shows the counts of a runtime with these parts; end stops that.
func (m *Meter) Follow(r *control.Runtime, parts []control.Part) (end func()) {
	names := make([]string, len(parts))
	for i := range parts {
		names[i] = queueName(parts[i].Name)
	}
	m.mu.Lock()
	m.queues[r] = names
	m.mu.Unlock()
	return func() {
		m.mu.Lock()
		delete(m.queues, r)
		m.mu.Unlock()
	}
}

var (
	depthDesc      = prometheus.NewDesc("workqueue_depth", "Current depth of workqueue", []string{"name"}, nil)
	addsDesc       = prometheus.NewDesc("workqueue_adds_total", "Total number of adds handled by workqueue", []string{"name"}, nil)
	retriesDesc    = prometheus.NewDesc("workqueue_retries_total", "Total number of retries handled by workqueue", []string{"name"}, nil)
	unfinishedDesc = prometheus.NewDesc("workqueue_unfinished_work_seconds", "How many seconds of work has done that is in progress and hasn't been observed by work_duration. Large values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this increases.", []string{"name"}, nil)
	longestDesc    = prometheus.NewDesc("workqueue_longest_running_processor_seconds", "How many seconds has the longest running processor for workqueue been running.", []string{"name"}, nil)
)

func (m *Meter) vecs() []prometheus.Collector {
	return []prometheus.Collector{m.waited, m.worked, m.requests, m.seconds, m.leads, m.scheduler}
}

// Describe implements prometheus.Collector.
func (m *Meter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{depthDesc, addsDesc, retriesDesc, unfinishedDesc, longestDesc} {
		ch <- d
	}
	for _, c := range m.vecs() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Meter) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	sums := map[string]control.Count{} // several parts may be one queue
	for r, names := range m.queues {
		for i, n := range r.Counts() {
			s := sums[names[i]]
			s.Depth += n.Depth
			s.Adds += n.Adds
			s.Retries += n.Retries
			s.Unfinished += n.Unfinished
			s.Longest = max(s.Longest, n.Longest)
			sums[names[i]] = s
		}
	}
	m.mu.Unlock()
	for name, n := range sums {
		ch <- prometheus.MustNewConstMetric(depthDesc, prometheus.GaugeValue, float64(n.Depth), name)
		ch <- prometheus.MustNewConstMetric(addsDesc, prometheus.CounterValue, float64(n.Adds), name)
		ch <- prometheus.MustNewConstMetric(retriesDesc, prometheus.CounterValue, float64(n.Retries), name)
		ch <- prometheus.MustNewConstMetric(unfinishedDesc, prometheus.GaugeValue, n.Unfinished.Seconds(), name)
		ch <- prometheus.MustNewConstMetric(longestDesc, prometheus.GaugeValue, n.Longest.Seconds(), name)
	}
	for _, c := range m.vecs() {
		c.Collect(ch)
	}
}
