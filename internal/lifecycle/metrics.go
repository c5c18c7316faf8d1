package lifecycle

import (
	"context"
	"math"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// RegisterMetrics shows what concerns the whole process: whether it is ready, and what its disk has left.
func RegisterMetrics(reg prometheus.Registerer, status Status, dataDir string) {
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("webhooks_ready", "1 while /readyz answers 200, else 0; it says which stage is not ready.", func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
		defer cancel()
		if _, ready := status(ctx); ready {
			return 1
		}
		return 0
	})
	disk := func(bytes func(syscall.Statfs_t) uint64) func() float64 {
		return func() float64 {
			var fs syscall.Statfs_t
			if err := syscall.Statfs(dataDir, &fs); err != nil { // not made yet
				return math.NaN()
			}
			return float64(bytes(fs)) * float64(fs.Bsize)
		}
	}
	gauge("webhooks_data_dir_free_bytes", "What is free of the file system of DATA_DIR.",
		disk(func(fs syscall.Statfs_t) uint64 { return fs.Bavail }))
	gauge("webhooks_data_dir_size_bytes", "The size of the file system of DATA_DIR.",
		disk(func(fs syscall.Statfs_t) uint64 { return fs.Blocks }))
}
