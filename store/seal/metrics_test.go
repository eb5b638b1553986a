package seal_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"proa.dev/env"
	"proa.dev/store/seal"
)

// gathered are the series of a set: name and label values, and how much.
func gathered(t *testing.T, s *seal.Set) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(s)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := strings.TrimPrefix(f.GetName(), "apiserver_envelope_encryption_") + "{" + strings.Join(labels, ",") + "}"
			switch f.GetType() {
			case dto.MetricType_HISTOGRAM:
				out[key] = float64(m.Histogram.GetSampleCount())
			case dto.MetricType_COUNTER:
				out[key] = m.Counter.GetValue()
			default:
				out[key] = m.Gauge.GetValue()
			}
		}
	}
	return out
}

// TestKMSMetrics: what upstream's server tells of a key service is told.
func TestKMSMetrics(t *testing.T) {
	p, path := startPlugin(t)
	c := &clock{Clock: env.SystemClock()}
	text := head + "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: vault, endpoint: 'unix://" + path + "', timeout: 500ms}}, {identity: {}}]}]}"
	set := func() *seal.Set { return open(t, text, func(o *seal.Options) { o.Clock = c }) }
	s, s2 := set(), set()
	const key = "/registry/secrets/n/s"
	for range 3 {
		v, err := s.Seal(key, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s2.Open(key, v); err != nil {
			t.Fatal(err)
		}
	}
	hash := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(p.keyID)))
	for _, w := range []struct {
		s    *seal.Set
		name string
		want float64
	}{
		{s, "kms_operations_latency_seconds{grpc_status_code=OK,method_name=/v2.KeyManagementService/Status,provider_name=vault}", 1},
		{s, "kms_operations_latency_seconds{grpc_status_code=OK,method_name=/v2.KeyManagementService/Encrypt,provider_name=vault}", 1},
		{s2, "kms_operations_latency_seconds{grpc_status_code=OK,method_name=/v2.KeyManagementService/Decrypt,provider_name=vault}", 1},
		{s, "key_id_hash_total{apiserver_id_hash=,key_id_hash=" + hash + ",provider_name=vault,transformation_type=to_storage}", 3},
		{s2, "key_id_hash_total{apiserver_id_hash=,key_id_hash=" + hash + ",provider_name=vault,transformation_type=from_storage}", 3},
		{s2, "dek_source_cache_size{provider_name=vault}", 1},
	} {
		if got := gathered(t, w.s); got[w.name] != w.want {
			t.Errorf("%s is %v, want %v; there are %v", w.name, got[w.name], w.want, got)
		}
	}
	told := "key_id_hash_status_last_timestamp_seconds{apiserver_id_hash=,key_id_hash=" + hash + ",provider_name=vault}"
	if at := gathered(t, s)[told]; at < 1e9 {
		t.Errorf("the key was told at %v", at)
	}
	p.set(func() { p.keyID = "" })
	if err := s.Health(t.Context()); err == nil {
		t.Error("a key without a name is accepted")
	}
	if got := gathered(t, s); got["invalid_key_id_from_status_total{error=empty,provider_name=vault}"] != 1 {
		t.Errorf("an empty key was told: %v", got)
	}
	run(t, s)
	run(t, s2)
}
