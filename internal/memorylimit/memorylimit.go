// Package memorylimit finds out how much memory the process may take, and has Go keep to it.
package memorylimit

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
)

// variable is Go's own, by which an operator sets its limit.
const variable = "GOMEMLIMIT"

// ofGo is the share of the container's limit from which Go collects garbage more often. The
// rest is for what Go does not count, such as the kernel's buffers of connections.
const ofGo = 0.9

// Set has Go keep below nine tenths of the limit of the process's container, a cgroup such as
// a pod or a unit with MemoryMax. It changes nothing if GOMEMLIMIT is in the environment,
// or if there is no limit. It logs the limit, or that it cannot be read.
func Set(log *slog.Logger) { set(memlimit.FromCgroup, log) }

func set(container memlimit.Provider, log *slog.Logger) {
	if _, ok := os.LookupEnv(variable); ok {
		return
	}
	if _, err := container(); err != nil {
		return // there is none, and the gauge is 0
	}
	limit, err := memlimit.Set(memlimit.WithProvider(container), memlimit.WithRatio(ofGo))
	if err != nil {
		log.Warn("Go's memory limit is not set", "error", err)
		return
	}
	log.Info("the container has a memory limit: Go's is nine tenths of it", "gomemlimit_bytes", limit)
}

// Collector returns the gauge of how much memory the process may take.
func Collector() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "agentstatsd_memory_limit_bytes",
		Help: "Memory that the process may take, in bytes: the limit of its container, or GOMEMLIMIT divided by 0.9 if that is less; 0: none is known.",
	}, func() float64 { return lower(configured(), memlimit.FromCgroup) })
}

// configured returns the limit that an operator gave Go; math.MaxInt64: none.
func configured() int64 {
	if _, ok := os.LookupEnv(variable); !ok {
		return math.MaxInt64 // Set may have set another one
	}
	return debug.SetMemoryLimit(-1)
}

// lower returns the lower one of what a process with Go's limit may take, math.MaxInt64 if
// there is none, and of the container's limit, which is an error if there is none; 0: there
// is neither. Up to its limit Go lets a healthy process grow, so that is as the nine tenths
// that Set leaves it.
func lower(goLimit int64, container func() (uint64, error)) float64 {
	limit, err := container()
	if whole := float64(goLimit) / ofGo; goLimit < math.MaxInt64 && (err != nil || whole < float64(limit)) {
		return whole
	}
	if err != nil {
		return 0
	}
	return float64(limit)
}
