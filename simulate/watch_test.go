package simulate_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/simulate"
)

// coderd gets each report that the service has, once.
func TestRunWatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService(t)
		opts := s.options()
		opts.Agents, opts.Watch, opts.Duration, opts.ReportInterval = 10, true, time.Minute, 5*time.Second
		summary, err := simulate.Run(t.Context(), opts, discard)
		require.NoError(t, err)
		require.NotNil(t, summary.Watched)
		require.Positive(t, summary.ReportsAcked)
		require.Equal(t, summary.ReportsAcked, summary.Watched.Reports)
		require.Positive(t, summary.Watched.Uses)
		require.Less(t, summary.Watched.Batches, summary.Watched.Reports)
	})
}
