package readiness

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// The metric and the answer come from the same checks, at each scrape.
func TestComponentReady(t *testing.T) {
	var failed error
	checks := []Check{{"fleet", func() error { return nil }}, {"batcher", func() error { return failed }}}
	reg := prometheus.NewPedanticRegistry()
	require.NoError(t, Register(reg, checks))
	for _, failed = range []error{nil, errors.New("metadata is not written")} {
		families, err := reg.Gather()
		require.NoError(t, err)
		require.Len(t, families, 1)
		r := Of(checks)
		for _, m := range families[0].Metric {
			name := m.Label[0].GetValue()
			_, isReason := r.Reasons[name]
			require.Equal(t, isReason, m.GetGauge().GetValue() == 0, name)
		}
		require.Equal(t, failed == nil, r.Ready)
	}
}

func TestReady(t *testing.T) {
	require.Equal(t, Answer{Ready: true, Reasons: map[string]string{}}, Of([]Check{{"fleet", func() error { return nil }}}))
}
