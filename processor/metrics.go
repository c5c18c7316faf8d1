package processor

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/betterdata/webhooks/internal/stream"
)

// registerLag shows how far a group is behind, over the partitions that this process owns.
func registerLag(reg prometheus.Registerer, name string, group *stream.Group) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "webhooks_processor_lag_records",
		Help:        "Input records that wait, over the partitions owned by this process.",
		ConstLabels: prometheus.Labels{"group": name},
	}, func() float64 { return float64(group.Lag()) }))
}
