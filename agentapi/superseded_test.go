package agentapi_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Of a superseded report the counts are added, once: to the window of bytes, and to the
// sums of subscriptions. What the newer one says stays.
func TestSupersededReport(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		w, err := s.Coderd().WatchStats(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, w.Send(&pb.WatchStatsRequest{Name: "insights"}))
		_, err = w.Recv()
		require.NoError(t, err)

		c := s.Connect(edgetest.Session{Agent: 1, Number: 2})
		report := func(st *pb.Stats, superseded bool) *pb.ConnectRequest {
			return &pb.ConnectRequest{Stats: st, StatsSuperseded: superseded}
		}
		newest := &pb.Stats{RxBytes: 100, TxPackets: 7, ConnectionMedianLatencyMs: 20, Metrics: edgetest.Gauge("custom", 3).GetMetrics()}
		older := &pb.Stats{
			RxBytes: 10, TxBytes: 5, RxPackets: 2, ConnectionCount: 4, ConnectionMedianLatencyMs: 90,
			SessionCounts: map[string]int64{"vscode": 2}, Metrics: edgetest.Gauge("custom", 9).GetMetrics(),
		}
		c.SendNext(report(older, true))
		used := time.Now()
		time.Sleep(time.Millisecond)
		c.SendNext(report(newest, false))
		c.SendNext(report(&pb.Stats{RxBytes: 1, ConnectionMedianLatencyMs: 80, Metrics: edgetest.Gauge("custom", 8).GetMetrics()}, true))
		for _, sequence := range []int64{1, 3} { // they are sent again
			again := report(older, true)
			again.Sequence = sequence
			require.NoError(t, c.Send(again))
		}
		synctest.Wait()
		require.Contains(t, s.Exposition("coderd_agentstats_rx_bytes")[0], "} 111")
		require.Contains(t, s.Exposition("coderd_agentstats_tx_bytes")[0], "} 5")
		require.Contains(t, s.Exposition("custom")[0], "} 3")
		require.Contains(t, s.Exposition("connection_median_latency_seconds")[0], "} 0.02")
		require.Contains(t, s.Exposition("session_count_vscode")[0], "} 0")

		m, err := w.Recv()
		require.NoError(t, err)
		require.Len(t, m.GetAgents(), 1)
		got := m.GetAgents()[0]
		require.EqualValues(t, 3, got.GetReports())
		require.EqualValues(t, 111, got.GetStats().GetRxBytes())
		require.EqualValues(t, 5, got.GetStats().GetTxBytes())
		require.EqualValues(t, 2, got.GetStats().GetRxPackets())
		require.EqualValues(t, 7, got.GetStats().GetTxPackets())
		require.Equal(t, used.UTC(), got.GetLastUsedAt().AsTime())
	})
}

// A report that another relay could not send before counts its bytes only: its samples
// are older than those that are served.
func TestReportOfAnOlderRelay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		relay := s.OpenRelay(s.AsCoderd())
		report := func(value float64, bytes int64, age time.Duration) *pb.ConnectRequest {
			q := &pb.ConnectRequest{Stats: &pb.Stats{RxBytes: bytes, Metrics: []*pb.Stats_Metric{{Name: "c_total", Type: pb.Stats_Metric_TYPE_COUNTER, Value: value}}}}
			q.StatsAge = age.Microseconds()
			return q
		}
		relay.Connect(t, edgetest.Session{Agent: 1, Instance: 1})
		second := relay.Connect(t, edgetest.Session{Agent: 1, Instance: 2})
		second.RequireDurable(second.SendNext(report(110, 1, 0)))
		time.Sleep(time.Second)
		again := relay.Connect(t, edgetest.Session{Agent: 1, Instance: 1, Number: 2})
		again.RequireDurable(again.SendNext(report(100, 10, 2*time.Second)))
		require.Contains(t, s.Exposition("c_total")[0], "} 110")
		require.Contains(t, s.Exposition("coderd_agentstats_rx_bytes")[0], "} 11")
		again.RequireDurable(again.SendNext(report(120, 100, time.Second/2)))
		require.Contains(t, s.Exposition("c_total")[0], "} 120")
		require.Contains(t, s.Exposition("coderd_agentstats_rx_bytes")[0], "} 111")
	})
}
