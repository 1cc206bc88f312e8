package clienttest

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// An agent's registry is what it reports, beside what Collect returns. While the registry
// hangs the counts are reported without it, and it ends nothing late.
func TestAgentGathersSamples(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService()
		t.Cleanup(s.close)
		reg := newGate("work_total")
		durations := prometheus.NewRegistry()
		durations.MustRegister(prometheus.NewHistogram(prometheus.HistogramOpts{Name: "work_seconds"}),
			prometheus.NewSummary(prometheus.SummaryOpts{Name: "wait_seconds", Objectives: map[float64]float64{0.5: 0.1}}))
		var counts atomic.Int64
		log, logger := newLog()
		conn := s.conn(agentToken)
		coderdConn := s.conn(coderdToken)
		coderd, err := client.NewCoderd(coderdConn, client.CoderdOptions{})
		require.NoError(t, err)
		_, err = coderd.Register(t.Context(), []*agentstatsv1.AgentRegistration{registration()}, nil)
		require.NoError(t, err)
		failing := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("no database") })
		agent, err := client.NewAgent(conn, client.AgentOptions{
			Collect: func(context.Context) *agentstatsv1.Stats {
				counts.Add(1)
				return &agentstatsv1.Stats{RxBytes: 1}
			},
			Gatherer: prometheus.Gatherers{reg, failing, durations},
			Logger:   logger,
		})
		require.NoError(t, err)
		stop := run(t.Context(), agent.Run)
		serves := func(name string) bool {
			synctest.Wait()
			var b strings.Builder
			require.NoError(t, s.aggregator.WriteText(&b))
			return strings.Contains(b.String(), "\n"+name+"{")
		}
		served := func() bool { return serves("work_total") }
		time.Sleep(70 * time.Second)
		require.True(t, served())
		require.True(t, serves("work_seconds_count"))
		require.True(t, serves("wait_seconds_sum"))
		require.Zero(t, agent.Status().Counts.Refused)
		require.Len(t, log.with("no database"), 1)

		open := reg.shut()
		defer func() { open() }()
		calls := reg.calls.Load()
		time.Sleep(5 * time.Minute)
		require.False(t, served(), "as of a scrape that fails")
		require.Equal(t, calls+1, reg.calls.Load())
		require.GreaterOrEqual(t, agent.Status().Counts.ReportsReceived, counts.Load()-1, "the last may wait for its ack")
		require.Greater(t, counts.Load(), int64(10))
		require.Len(t, log.with("gatherer has not returned"), 1)
		require.Contains(t, log.with("gatherer has not returned")[0], "after=5s")

		open()
		open = func() {}
		time.Sleep(time.Minute)
		require.True(t, served())
		open = reg.shut()
		time.Sleep(30 * time.Second)
		began := time.Now()
		require.NoError(t, stop())
		require.LessOrEqual(t, time.Since(began), 5*time.Second)
		require.NoError(t, conn.Close())
		require.NoError(t, coderdConn.Close())
	})
}
