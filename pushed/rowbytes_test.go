package pushed

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// unlike is the text of a family of series whose labels compress badly.
func unlike(name, typ string, value, from, to int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# TYPE %s %s\n", name, typ)
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "%s{l=\"%x\"} %d\n", name, sha256.Sum256(fmt.Append(nil, name, i)), value)
	}
	return b.String()
}

// A snapshot whose row would be too large is taken in as far as there is room: first
// the series that are known.
func TestRowBytes(t *testing.T) {
	const most = 20_000 // some 500 of the series
	store := new(memory)
	f := open(t, store, Options{MaxRowBytes: most})
	rowBytes := func() int { return len(store.rows[instanceID(1)].Data) }
	push := func(snapshot int64, text string) (series int) {
		t.Helper()
		now := start.Add(time.Duration(snapshot) * time.Second)
		for _, r := range pushText(t, f, now, 1, snapshot, text) {
			require.Equal(t, "too_many_bytes", r.Reason)
			require.Regexp(t, `no room: at most 20000 bytes stored of one instance, compressed \(--max-push-row-bytes\)$`, r.Message)
			series += r.Series
		}
		require.LessOrEqual(t, rowBytes(), most)
		return series
	}
	first := unlike("a_total", "counter", 1, 0, 200)
	require.Zero(t, push(1, first))
	require.Greater(t, rowBytes(), most/4)

	// The rest has room for some of 2,000 more.
	refused := push(2, unlike("a_total", "counter", 2, 0, 200)+unlike("b", "gauge", 1, 0, 1000)+unlike("c_total", "counter", 1, 0, 1000))
	require.Positive(t, refused)
	require.Less(t, refused, 2000)
	require.Greater(t, rowBytes(), most*3/4, "what has room is taken")
	got := check(t, f)
	require.Len(t, got, 2200-refused)
	require.EqualValues(t, refused, testutil.ToFloat64(f.metrics.refusedSeries.WithLabelValues("too_many_bytes")))
	counted := 0
	for series, value := range got {
		if strings.Contains(series, "a_total") {
			require.Equal(t, 2.0, value, series)
			counted++
		}
	}
	require.Equal(t, 200, counted, "known series come first")

	// What was counted goes on, also if the row has no room for anything else.
	for snapshot := int64(3); snapshot < 6; snapshot++ {
		push(snapshot, unlike("a_total", "counter", int(snapshot), 0, 200)+unlike("c_total", "counter", int(snapshot), 0, 5000))
		for series, value := range check(t, f) {
			require.Equal(t, float64(snapshot), value, series)
		}
	}
	require.Equal(t, 5.0, testutil.ToFloat64(f.metrics.pushes.WithLabelValues(outcomeStored)))
	before := check(t, f)

	// What it does not push any more makes room, and stays in the totals.
	push(6, unlike("d_total", "counter", 1, 0, 5000))
	after := check(t, f)
	for series, value := range before {
		require.Equal(t, value, after[series], series)
	}
	require.Greater(t, len(after), len(before)+100)

	other := open(t, store, Options{MaxRowBytes: most})
	requireSameSamples(t, after, check(t, other))

	// With a limit that what was counted is above, nothing is taken in.
	lower := open(t, store, Options{MaxRowBytes: most / 4})
	_, err := lower.Push(t.Context(), start.Add(time.Minute), agent.Push{
		Instance: instanceID(1), Snapshot: 7, Families: serialize(t, parseText(t, unlike("d_total", "counter", 2, 0, 5000))...),
	})
	require.ErrorIs(t, err, agent.ErrNoRoom)
	require.ErrorContains(t, err, "bytes to store, at most 5000")
	require.Equal(t, 1.0, testutil.ToFloat64(lower.metrics.pushes.WithLabelValues(outcomeNoRoom)))
}
