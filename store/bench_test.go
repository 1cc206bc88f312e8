package store

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

// Flushes of 500 rows over 2,000 agents with 10 keys each, one after another, each
// commit synced. All keys are known, as in the steady state of a fleet. The values are
// new, or stored already.
func BenchmarkUpsertMetadata500(b *testing.B) {
	for _, database := range []struct {
		name string
		open func(*testing.B) *Store
	}{
		{"sqlite", func(b *testing.B) *Store { return openTemp(b) }},
		{"postgres", func(b *testing.B) *Store {
			return openURL(b, Options{URL: postgrestest.Start(b, postgrestest.Durable()).URL()})
		}},
		{"pooled", func(b *testing.B) *Store {
			server := postgrestest.Start(b, postgrestest.Durable())
			return openURL(b, Options{URL: server.PgBouncer(b, server.URL()), TransactionPooling: true})
		}},
	} {
		b.Run(database.name, func(b *testing.B) {
			s := database.open(b)
			s.touchInterval = time.Hour
			rows := benchmarkRows(b, s)
			b.Run("changed", func(b *testing.B) { benchmarkUpsert(b, s, rows, true) })
			b.Run("unchanged", func(b *testing.B) { benchmarkUpsert(b, s, rows, false) })
		})
	}
}

func benchmarkRows(b *testing.B, s *Store) []agent.Metadata {
	agents := make([]agent.ID, 2000)
	var rows []agent.Metadata
	for i := range agents {
		agents[i] = uuid.New()
		for k := range 10 {
			rows = append(rows, row(agents[i], fmt.Sprintf("%d_metadata_key", k), strings.Repeat("v", 40), 1, 1))
		}
	}
	register(b, s, agents...)
	upsert(b, s, rows)
	return rows
}

func benchmarkUpsert(b *testing.B, s *Store, rows []agent.Metadata, change bool) {
	const size = 500
	var wal int64
	if s.dialect == &postgresDialect {
		_, err := s.writer.ExecContext(b.Context(), `CHECKPOINT`)
		require.NoError(b, err)
		wal = walPosition(b, s)
	}
	from := 0
	b.ReportAllocs()
	for b.Loop() {
		batch := rows[from : from+size]
		from = (from + size) % len(rows)
		for i := range batch {
			batch[i].Order.Sequence++
			if change {
				batch[i].Value = fmt.Sprintf("%040d", batch[i].Order.Sequence)
			}
		}
		upsert(b, s, batch)
	}
	b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "rows/s")
	if s.dialect == &postgresDialect {
		b.ReportMetric(float64(walPosition(b, s)-wal)/float64(size*b.N), "WAL-B/row")
	}
}
