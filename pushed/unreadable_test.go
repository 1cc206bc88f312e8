package pushed

import (
	"bytes"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// spoil makes the stored row of an instance undecodable, in a new version, as if
// another replica had written it.
func (m *memory) spoil(id agent.Instance, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.rows[id]
	row.Data = data
	row.Version++
	m.rows[id] = row
}

// garbage returns data that cannot be decoded, in each of the ways that there are.
func garbage(t *testing.T) map[string][]byte {
	c, err := family.NewCodec()
	require.NoError(t, err)
	noHistogram, err := c.Encode(&family.Row{Families: family.Set{"h": {Name: "h", Type: metrics.Histogram, Series: []family.Series{{Labels: ""}}}}})
	require.NoError(t, err)
	whole, err := c.Encode(&family.Row{})
	require.NoError(t, err)
	zstandard, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return map[string][]byte{
		"empty": nil, "no zstd": []byte("garbage"), "cut": whole[:len(whole)/2],
		"no gob": zstandard.EncodeAll([]byte("garbage"), nil), "no histogram": noHistogram,
	}
}

// One row that cannot be decoded is skipped, reported and counted; the others are
// served, and its instance goes on with its next snapshot.
func TestUndecodableRow(t *testing.T) {
	for name, data := range garbage(t) {
		t.Run(name, func(t *testing.T) {
			database := new(memory)
			a, b := open(t, database, Options{}), open(t, database, Options{})
			pushText(t, a, start, 1, 1, counter("5"))
			pushText(t, a, start, 2, 1, counter("7"))
			follow(t, b, start)
			database.spoil(instanceID(1), data)
			for range 3 { // reported once, not each time
				follow(t, b, start)
			}
			require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.undecodable))
			require.Equal(t, 1, b.view.Load().unreadable)
			require.Equal(t, 12.0, total(t, b), "what it knew")
			fresh := open(t, database, Options{})
			require.NoError(t, fresh.Healthy())
			require.Equal(t, 7.0, total(t, fresh))
			pushText(t, b, start, 2, 2, counter("8"))
			follow(t, fresh, start)
			require.Equal(t, 8.0, total(t, fresh))

			// The instance goes on, here as what is known, there as new.
			pushText(t, fresh, start, 1, 2, counter("6"))
			follow(t, b, start)
			require.Equal(t, 14.0, total(t, b))
			require.Equal(t, total(t, b), total(t, fresh))
			require.Zero(t, b.view.Load().unreadable)
			database.spoil(instanceID(1), data)
			follow(t, b, start)
			pushText(t, b, start, 1, 3, counter("2")) // a reset
			require.Equal(t, 16.0, total(t, b))
			require.Equal(t, 16.0, total(t, open(t, database, Options{})))

			// If it does not come back, the row goes.
			database.spoil(instanceID(1), data)
			c := open(t, database, Options{})
			late := start.Add(8 * 24 * time.Hour)
			c.expire(late)
			require.NoError(t, c.foldIdle(t.Context(), late))
			require.NotContains(t, database.rows, instanceID(1))
			require.Zero(t, c.view.Load().unreadable)
			require.Equal(t, 8.0, total(t, c))
		})
	}
}

// Totals that cannot be decoded are kept under another id when they are replaced;
// what is folded later counts.
func TestUndecodableTotals(t *testing.T) {
	database := new(memory)
	a := open(t, database, Options{})
	late := start.Add(25 * time.Hour)
	pushText(t, a, start, 1, 1, counter("5"))
	a.expire(late)
	require.NoError(t, a.foldIdle(t.Context(), late))
	pushText(t, a, late, 2, 1, counter("7"))
	database.spoil(agent.Instance{}, []byte("garbage"))

	fresh := open(t, database, Options{})
	require.Equal(t, 7.0, total(t, fresh), "what was folded cannot be known")
	follow(t, a, late)
	require.Equal(t, 12.0, total(t, a), "who knows it goes on")
	late = late.Add(25 * time.Hour)
	a.expire(late)
	require.NoError(t, a.foldIdle(t.Context(), late))
	require.Equal(t, 12.0, total(t, a))
	follow(t, fresh, late)
	require.Equal(t, 12.0, total(t, fresh))
	aside := 0
	for _, row := range database.rows {
		if bytes.Equal(row.Data, []byte("garbage")) {
			aside++
			require.NotEqual(t, agent.Instance{}, row.Instance)
		}
	}
	require.Equal(t, 1, aside)
	last := open(t, database, Options{})
	require.Equal(t, 12.0, total(t, last))
	require.Equal(t, 1, last.view.Load().unreadable)
	late = late.Add(9 * 24 * time.Hour)
	last.expire(late)
	require.NoError(t, last.foldIdle(t.Context(), late))
	require.Len(t, database.rows, 1)
	require.Equal(t, 12.0, total(t, last))
}
