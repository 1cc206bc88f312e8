package reports

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		"reports options: max subscriptions: want at least 1, got -1": {MaxSubscriptions: -1},
		"reports options: max pending: want at least 1, got -1":       {MaxPending: -1},
		"reports options: max pending bytes: want at least 1, got -1": {MaxPendingBytes: -1},
		"reports options: max sums: want at least 1, got -1":          {MaxSums: -1},
		"reports options: max sum bytes: want at least 1, got -1":     {MaxSumBytes: -1},
		"reports options: retention: want at least 1m, got 1s":        {Retention: time.Second},
		"reports options: lease: want at least 1s, got 1ms":           {Lease: time.Millisecond},
	} {
		_, err := New(nil, opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)))
		require.EqualError(t, err, want)
	}
	problems, err := testutil.GatherAndLint(func() prometheus.Gatherer {
		reg := prometheus.NewRegistry()
		_, err := New(nil, Options{}, reg, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		return reg
	}())
	require.NoError(t, err)
	require.Empty(t, problems)
}
