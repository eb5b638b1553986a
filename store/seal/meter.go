package seal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// meter measures key services and the configuration under upstream's names,
// labels, types and buckets. The label apiserver_id_hash is empty, as upstream's is
// for a server without an identity.
type meter struct {
	operations *prometheus.HistogramVec
	used       *prometheus.CounterVec
	usedAt     *prometheus.GaugeVec
	toldAt     *prometheus.GaugeVec
	invalid    *prometheus.CounterVec
	seeds      *prometheus.GaugeVec
	reloads    *prometheus.CounterVec
	reloadedAt *prometheus.GaugeVec

	mu   sync.RWMutex
	keys map[keyUse]keySeries
}

type keyUse struct{ direction, provider, keyID string }

type keySeries struct {
	count prometheus.Counter
	at    prometheus.Gauge
}

// maxKeys whose use is told apart, as upstream.
const maxKeys = 100

// Directions of a value.
const (
	fromStorage = "from_storage"
	toStorage   = "to_storage"
)

func newMeter() *meter {
	const kms, file = "apiserver_envelope_encryption_", "apiserver_encryption_config_controller_"
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &meter{
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: kms + "kms_operations_latency_seconds", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20),
			Help: "KMS operation duration with gRPC error code status total."}, []string{"provider_name", "method_name", "grpc_status_code"}),
		used:       counter(kms+"key_id_hash_total", "Number of times a keyID is used split by transformation type, provider, and apiserver identity.", "transformation_type", "provider_name", "key_id_hash", "apiserver_id_hash"),
		usedAt:     gauge(kms+"key_id_hash_last_timestamp_seconds", "The last time in seconds when a keyID was used.", "transformation_type", "provider_name", "key_id_hash", "apiserver_id_hash"),
		toldAt:     gauge(kms+"key_id_hash_status_last_timestamp_seconds", "The last time in seconds when a keyID was returned by the Status RPC call.", "provider_name", "key_id_hash", "apiserver_id_hash"),
		invalid:    counter(kms+"invalid_key_id_from_status_total", "Number of times an invalid keyID is returned by the Status RPC call split by error.", "provider_name", "error"),
		seeds:      gauge(kms+"dek_source_cache_size", "Number of records in data encryption key (DEK) source cache. On a restart, this value is an approximation of the number of decrypt RPC calls the server will make to the KMS plugin.", "provider_name"),
		reloads:    counter(file+"automatic_reloads_total", "Total number of reload successes and failures of encryption configuration split by apiserver identity.", "status", "apiserver_id_hash"),
		reloadedAt: gauge(file+"automatic_reload_last_timestamp_seconds", "Timestamp of the last successful or failed automatic reload of encryption configuration split by apiserver identity.", "status", "apiserver_id_hash"),
		keys:       map[keyUse]keySeries{},
	}
}

func (m *meter) all() []prometheus.Collector {
	return []prometheus.Collector{m.operations, m.used, m.usedAt, m.toldAt, m.invalid, m.seeds, m.reloads, m.reloadedAt}
}

// Describe implements prometheus.Collector.
func (s *Set) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.meter.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.meter.all() {
		c.Collect(ch)
	}
}

func hashed(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// called measures a call of a key service.
func (m *meter) called(provider, method string, took time.Duration, err error) {
	code := codes.OK.String()
	if err != nil {
		code = "unknown-non-grpc"
		var s interface{ GRPCStatus() *status.Status }
		if errors.As(err, &s) {
			code = s.GRPCStatus().Code().String()
		}
	}
	m.operations.WithLabelValues(provider, method, code).Observe(took.Seconds())
}

// use notes that a key sealed or opened a value.
func (m *meter) use(direction, provider, keyID string, now time.Time) {
	k := keyUse{direction, provider, keyID}
	m.mu.RLock()
	s, ok := m.keys[k]
	m.mu.RUnlock()
	if !ok {
		m.mu.Lock()
		if len(m.keys) >= maxKeys {
			clear(m.keys)
			m.used.Reset()
			m.usedAt.Reset()
		}
		hash := hashed(keyID)
		s = keySeries{m.used.WithLabelValues(direction, provider, hash, ""), m.usedAt.WithLabelValues(direction, provider, hash, "")}
		m.keys[k] = s
		m.mu.Unlock()
	}
	s.count.Inc()
	s.at.Set(float64(now.UnixNano()) / 1e9)
}

// told notes the key that a service named; err says why it is none.
func (m *meter) told(provider, keyID string, now time.Time, err error) {
	if err != nil {
		m.invalid.WithLabelValues(provider, invalidKey(keyID)).Inc()
		return
	}
	m.toldAt.DeletePartialMatch(prometheus.Labels{"provider_name": provider}) // only the newest counts
	m.toldAt.WithLabelValues(provider, hashed(keyID), "").Set(float64(now.UnixNano()) / 1e9)
}

// invalidKey is upstream's word for what is wrong with a key's name.
func invalidKey(id string) string {
	if id == "" {
		return "empty"
	}
	return "too_long"
}

// reloaded counts a look at a changed file.
func (m *meter) reloaded(now time.Time, ok bool) {
	result := "failure"
	if ok {
		result = "success"
	}
	m.reloads.WithLabelValues(result, "").Inc()
	m.reloadedAt.WithLabelValues(result, "").Set(float64(now.UnixNano()) / 1e9)
}
