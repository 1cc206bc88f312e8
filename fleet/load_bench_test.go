package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store"
)

// cpuTime is what the process took so far, on whichever cores.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLoad reads registrations from SQLite, as at start, and publishes them; with
// had-session also a session of each agent, and what it said: 4.5 rows.
func BenchmarkLoad(b *testing.B) {
	for _, before := range []bool{false, true} {
		for _, n := range []int{10_000, 50_000, 200_000} {
			b.Run(fmt.Sprintf("had-session=%v/%d", before, n), func(b *testing.B) {
				s, err := store.Open(b.Context(), store.Options{Path: filepath.Join(b.TempDir(), "a.db")}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
				require.NoError(b, err)
				defer func() { require.NoError(b, s.Close()) }()
				m := &manyAgents{n: n, before: before}
				m.write(b, s)
				b.ReportAllocs()
				began := cpuTime(b)
				for b.Loop() {
					f, err := New(s, noSeries{}, noSeries{}, Options{MaxAgents: n, MaxBytes: 4 << 30}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
					require.NoError(b, err)
					require.NoError(b, f.Load(context.Background()))
					require.Equal(b, n, f.registry.agents.Len())
				}
				b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N)/float64(n), "cpu-ns/agent")
			})
		}
	}
}

// write writes the agents into a store, with their sessions and states if they had one.
func (m *manyAgents) write(b *testing.B, s *store.Store) {
	revision, err := s.ApplyChange(b.Context(), 1, agent.Change{Agents: m.set().Agents})
	require.NoError(b, err)
	states, _, err := m.States(b.Context(), 0)
	require.NoError(b, err)
	for i := range states {
		states[i].Incarnation = revision
	}
	for page := range slices.Chunk(states, 1000) {
		_, err := s.SaveStates(b.Context(), page)
		require.NoError(b, err)
	}
	records, _, err := m.Sessions(b.Context(), 0)
	require.NoError(b, err)
	for page := range slices.Chunk(records, 1000) {
		_, err := s.SaveSessions(b.Context(), page)
		require.NoError(b, err)
	}
}

// BenchmarkChange registers 1,000 of them with another name.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{10_000, 50_000, 200_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := &manyAgents{n: n}
			f := m.load(b)
			some := (&manyAgents{n: 1000}).set()
			round := 0
			b.ReportAllocs()
			began := cpuTime(b)
			for b.Loop() {
				round++
				for i := range some.Agents {
					some.Agents[i].Name = fmt.Sprint("renamed ", round)
				}
				_, err := f.Register(context.Background(), some)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N)/1000, "cpu-ns/change")
		})
	}
}
