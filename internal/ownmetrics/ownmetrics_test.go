package ownmetrics

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

func TestRegister(t *testing.T) {
	reg := prometheus.NewRegistry()
	gauge := func(name string) prometheus.Collector {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: name})
	}
	require.NoError(t, Register(reg, gauge("a"), gauge("b")))
	require.ErrorContains(t, Register(reg, gauge("c"), gauge("b"), gauge("d")), "register metrics: duplicate metrics collector")
	families, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, families, 3, "those before the first that is refused")
}
