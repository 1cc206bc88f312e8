//go:build !race

package aggregator

import (
	"io"
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

// The states of an agent without a session and its workspace take no more than 400 bytes, and
// setting them again allocates nothing.
func TestStateMemory(t *testing.T) {
	const agents = 10_000
	require.LessOrEqual(t, stateMemory(t, agents), 400.0, "bytes of an agent")
	a := newTest(t, Options{})
	setUnreachable(a, 1)
	ofAgent, _ := unreachableState(1)
	again := []agent.KeySeries{{Key: agent.SeriesKey{ID: benchID(1)}, Series: ofAgent}}
	require.Zero(t, testing.AllocsPerRun(100, func() { _ = a.SetStates(again) }))
}

// Neither a scrape nor a report like the one before allocates for each series.
func TestAllocations(t *testing.T) {
	for _, n := range []int{10 * perAgent, 20_000} {
		a := fleetOf(t, n, Options{})
		reports := make([]*report, n/perAgent)
		for i := range reports {
			reports[i] = benchReport(i, 0)
		}
		now := time.Now()
		report := func() {
			for i, r := range reports {
				for j := range r.samples {
					r.samples[j].Value++
				}
				a.Report(benchID(i), 1, now, r)
			}
		}
		report()
		once := func() {
			_ = a.WriteText(io.Discard)
			_ = a.WriteProtobuf(io.Discard)
		}
		// Pools may be emptied meanwhile: some chunks are made anew.
		require.LessOrEqual(t, testing.AllocsPerRun(10, func() { report(); once() }), 60.0, "%d series", n)
		require.LessOrEqual(t, testing.AllocsPerRun(10, report), 2.0, "%d series", n)
	}
}

// What a scrape allocates does not depend on the number of series, in any format
// and encoding.
func TestScrapeAllocations(t *testing.T) {
	for _, n := range []int{10 * perAgent, 20_000} {
		a := fleetOf(t, n, Options{})
		h := newScrape(t, a)
		round := 0
		for _, accept := range []string{textType, protoType} {
			for _, encoding := range []string{"identity", "gzip"} {
				once := func() { serve(t, h, accept, encoding) }
				once()
				round++
				for i := range n / perAgent {
					a.Report(benchID(i), 1, time.Now(), benchReport(i, round))
				}
				// 200 to 250 are the registry's and the request's, the rest is what
				// pools may have to make anew.
				require.LessOrEqual(t, testing.AllocsPerRun(5, once), 350.0, "%d series, %s, %s", n, accept, encoding)
			}
		}
	}
}
