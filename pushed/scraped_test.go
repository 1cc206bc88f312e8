package pushed

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// Several senders scrape one instance. What one of them has later than another is known
// by when it was scraped, on every replica.
func TestScrapes(t *testing.T) {
	store := new(memory)
	f := open(t, store, Options{})
	push := func(f *Families, received, scraped time.Time, final bool, text string) error {
		_, err := f.Push(context.Background(), received, agent.Push{
			Instance: instanceID(1), Replica: "coderd-0", Interval: 15 * time.Second,
			Snapshot: 1, ScrapedAt: scraped, Final: final, Families: serialize(t, parseText(t, text)...),
		})
		return err
	}
	requireServed := func(f *Families, want map[string]float64) {
		t.Helper()
		got := make(map[string]float64)
		for series, value := range check(t, f) {
			got[strings.Split(series, `"`)[1]] = value
		}
		require.Equal(t, want, got)
	}
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	require.NoError(t, push(f, at(0), at(0), false, "# TYPE total counter\ntotal 10\n"))
	// What is older, or new too soon, has no effect. An older count would be one of a new process.
	for _, scraped := range []float64{-5, 0, 13.4} {
		require.ErrorIs(t, push(f, at(14), at(scraped), false, "# TYPE total counter\ntotal 9\n"), agent.ErrNewerScrape)
	}
	require.Equal(t, 3.0, testutil.ToFloat64(f.metrics.pushes.WithLabelValues(outcomeSuperseded)))
	requireServed(f, map[string]float64{"total": 10})
	require.NoError(t, push(f, at(14), at(13.5), false, "# TYPE total counter\ntotal 12\n"))
	requireServed(f, map[string]float64{"total": 12})

	// Another replica knows what this one stored.
	other := open(t, store, Options{})
	require.ErrorIs(t, push(other, at(20), at(20), false, "# TYPE total counter\ntotal 11\n"), agent.ErrNewerScrape)
	require.NoError(t, push(other, at(30), at(29), false, "# TYPE total counter\ntotal 13\n# TYPE b gauge\nb 1\n"))
	requireServed(other, map[string]float64{"total": 13, "b": 1})
	// This one decides on its own memory, which is not the newest.
	require.ErrorIs(t, push(f, at(31), at(31), false, "# TYPE total counter\ntotal 12\n"), agent.ErrNewerScrape)

	// Who saw the next process has the last word.
	require.NoError(t, push(f, at(32), at(28), true, ""))
	requireServed(f, map[string]float64{"total": 13})
	require.ErrorIs(t, push(f, at(33), at(27), false, "# TYPE total counter\ntotal 11\n"), agent.ErrNewerScrape)

	// A clock that was far ahead does not refuse all that follows.
	require.NoError(t, push(f, at(3600), at(3600), false, "# TYPE total counter\ntotal 14\n"))
	require.ErrorIs(t, push(f, at(3550), at(3550), false, "# TYPE total counter\ntotal 15\n"), agent.ErrNewerScrape)
	require.NoError(t, push(f, at(100), at(100), false, "# TYPE total counter\ntotal 16\n"))
	requireServed(f, map[string]float64{"total": 16})
}
