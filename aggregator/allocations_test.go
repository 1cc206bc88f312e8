//go:build !race

package aggregator

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// With the race detector pools drop things at random.

// The first report of an agent allocates its lists once each, whatever their length.
func TestNewReportAllocations(t *testing.T) {
	a := fleetOf(t, 10*perAgent, Options{})
	const id = 1 << 20
	ident := benchIdentity(id)
	for _, samples := range []int{16, forwardedPerAgent} {
		r := benchReport(id, 0)
		r.samples = r.samples[:samples]
		require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
			a.Open(benchID(id), ident, agent.Session{Epoch: 1})
			a.Report(benchID(id), 1, time.Now(), r)
			a.Remove(benchID(id))
		}), 8.0, "%d samples", samples)
	}
}
