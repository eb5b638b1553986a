package aggregate

import (
	"github.com/prometheus/client_golang/prometheus"
)

// meter counts under upstream's names.
type meter struct {
	unavailable *prometheus.GaugeVec
	total       *prometheus.CounterVec
}

func newMeter() *meter {
	return &meter{
		unavailable: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "aggregator_unavailable_apiservice",
			Help: "[ALPHA] Gauge of APIServices which are marked as unavailable broken down by APIService name."}, []string{"name"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "aggregator_unavailable_apiservice_total",
			Help: "[ALPHA] Counter of APIServices which are marked as unavailable broken down by APIService name and reason."}, []string{"name", "reason"}),
	}
}

// Describe implements prometheus.Collector.
func (a *Aggregator) Describe(c chan<- *prometheus.Desc) {
	a.meter.unavailable.Describe(c)
	a.meter.total.Describe(c)
}

// Collect implements prometheus.Collector.
func (a *Aggregator) Collect(c chan<- prometheus.Metric) {
	a.meter.unavailable.Collect(c)
	a.meter.total.Collect(c)
}
