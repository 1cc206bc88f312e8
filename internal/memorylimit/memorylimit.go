// Package memorylimit finds out how much memory the process may take.
package memorylimit

import (
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
)

// Collector returns the gauge of how much memory the process may take.
func Collector() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_memory_limit_bytes",
		Help: "Memory that the process may take, in bytes: the lower one of GOMEMLIMIT and the limit of its container; 0: none is known.",
	}, func() float64 { return lower(debug.SetMemoryLimit(-1), memlimit.FromCgroup) })
}

// lower returns the lower one of Go's limit, math.MaxInt64 if there is none, and of the
// container's, which is an error if there is none; 0: there is neither.
func lower(ofGo int64, container func() (uint64, error)) float64 {
	limit, err := container()
	if ofGo < math.MaxInt64 && (err != nil || float64(ofGo) < float64(limit)) {
		return float64(ofGo)
	}
	if err != nil {
		return 0
	}
	return float64(limit)
}
