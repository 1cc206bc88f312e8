package store

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// Half of the values of a fleet change again and again, and the table stays as large as
// it was when all were there, without a vacuum: new versions find room in their pages.
func TestPostgresMetadataStaysInItsPages(t *testing.T) {
	const agents, keys, batch, rounds = 300, 10, 500, 8
	s := openURL(t, Options{URL: postgrestest.Start(t, postgrestest.Setting("autovacuum", "off")).URL(), TouchInterval: time.Hour})
	random := rand.New(rand.NewPCG(1, 2))
	ids := make([]agent.ID, agents)
	var rows []agent.Metadata
	for i := range ids {
		binary.BigEndian.PutUint64(ids[i][:8], random.Uint64()|1)
		for k := range keys {
			rows = append(rows, row(ids[i], fmt.Sprintf("%d_metadata_key", k), strings.Repeat("v", 40), 1, 1))
		}
	}
	register(t, s, ids...)
	upsert(t, s, rows)
	sizes := func() [2]int64 {
		return [2]int64{ask[int64](t, s, `SELECT pg_relation_size('metadata')`), ask[int64](t, s, `SELECT pg_relation_size('metadata_pkey')`)}
	}
	before := sizes()
	changing := make([]agent.Metadata, 0, len(rows)/2)
	for i := range rows {
		if i%2 == 0 {
			changing = append(changing, rows[i])
		}
	}
	for range rounds {
		for from := 0; from < len(changing); from += batch {
			part := changing[from:min(from+batch, len(changing))]
			for i := range part {
				part[i].Order.Sequence++
				part[i].Value = fmt.Sprintf("%040d", part[i].Order.Sequence)
			}
			upsert(t, s, part)
		}
	}
	after := sizes()
	require.LessOrEqual(t, after[0], before[0]+before[0]/40, "bytes of the table; before: %d", before[0])
	require.Equal(t, before[1], after[1], "bytes of the index")
}

// A few rows that stay keep the pages of the index by when states changed. It is small again
// when it was made anew, as docs/scaling.md says.
func TestPostgresIndexOfChanges(t *testing.T) {
	const agents, batch, rounds = 3000, 100, 12
	s := openURL(t, Options{URL: migratedDatabase(t)})
	_, err := s.writer.ExecContext(t.Context(), `ALTER TABLE agent_states SET (autovacuum_enabled = false)`)
	require.NoError(t, err)
	ids := make([]agent.ID, agents)
	for i := range ids {
		binary.BigEndian.PutUint32(ids[i][:4], uint32(i)+1)
	}
	register(t, s, ids...)
	size := func() int64 { return ask[int64](t, s, `SELECT pg_relation_size('agent_states_changed')`) }
	for round := range rounds {
		order := agent.Order{Epoch: 1, Sequence: int64(round) + 1, Said: 1}
		for from := 0; from < agents; from += batch {
			var states []agent.State
			for i := from; i < from+batch; i++ {
				st := agent.State{Agent: ids[i], NetworkOrder: order}
				if i%100 == round { // it starts, and does not change after that
					st.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, order)
				}
				states = append(states, st)
			}
			saveStates(t, s, states)
		}
		_, err := s.writer.ExecContext(t.Context(), `VACUUM agent_states`)
		require.NoError(t, err)
	}
	grown := size()
	_, err = s.writer.ExecContext(t.Context(), `REINDEX INDEX CONCURRENTLY agent_states_changed`)
	require.NoError(t, err)
	require.Greater(t, grown, 3*size(), "bytes of the index; after: %d", size())
}
