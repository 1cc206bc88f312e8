package aggregator

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// A limit below what there is refuses only new series.
func TestReconfigure(t *testing.T) {
	a := newTest(t, Options{MaxSeriesPerAgent: 10})
	a.Open(benchID(1), identity("1"), agent.Session{Epoch: 1})
	send := func(series int) (refused int) {
		r := samples()
		for i := range series {
			r.samples = append(r.samples, sample("x", agent.Gauge, 1, "i", fmt.Sprint(i)))
		}
		for _, f := range refusals(a.Report(benchID(1), 1, time.Now(), r)) {
			refused += f.Count
		}
		return refused
	}
	require.Zero(t, send(8))
	require.Error(t, a.Reconfigure(Options{SeriesTTL: time.Second}))
	require.Equal(t, 10, a.Options().MaxSeriesPerAgent, "nothing has changed")
	require.NoError(t, a.Reconfigure(Options{MaxSeriesPerAgent: 4, GroupBy: []string{"username"}}))
	require.Equal(t, 1, send(9), "what is known stays")
	require.Empty(t, a.Options().GroupBy, "it needs a restart")
	require.NoError(t, a.Reconfigure(Options{MaxSeriesPerAgent: 20}))
	require.Zero(t, send(15))
}
