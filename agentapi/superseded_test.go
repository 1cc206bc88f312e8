package agentapi_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
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

// Of a report that another relay could not send before, watchers get what adds up. The
// sessions, and when the newest report was made, stay those of the newest one. If they
// have that already, they see that this one is older.
func TestWatchedReportOfAnOlderRelay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		w, err := s.Coderd().WatchStats(s.AsCoderd())
		require.NoError(t, err)
		require.NoError(t, w.Send(&pb.WatchStatsRequest{Name: "insights"}))
		_, err = w.Recv()
		require.NoError(t, err)
		next := func() *pb.AgentStats {
			m, err := w.Recv()
			require.NoError(t, err)
			require.Len(t, m.GetAgents(), 1)
			require.NoError(t, w.Send(&pb.WatchStatsRequest{Number: m.GetNumber()}))
			return m.GetAgents()[0]
		}
		relay := s.OpenRelay(s.AsCoderd())
		report := func(ssh int64, age time.Duration) *pb.ConnectRequest {
			return &pb.ConnectRequest{Stats: &pb.Stats{RxBytes: 10, SessionCountSsh: ssh}, StatsAge: age.Microseconds()}
		}
		relay.Connect(t, edgetest.Session{Agent: 1, Instance: 1})
		time.Sleep(10 * time.Second)
		second := relay.Connect(t, edgetest.Session{Agent: 1, Instance: 2})
		made := time.Now()
		second.SendNext(report(2, 0))
		synctest.Wait()
		again := relay.Connect(t, edgetest.Session{Agent: 1, Instance: 1, Number: 2})
		again.SendNext(report(1, 5*time.Second))
		got := next()
		require.EqualValues(t, 20, got.GetStats().GetRxBytes())
		require.EqualValues(t, 2, got.GetStats().GetSessionCountSsh())
		require.Equal(t, made.UTC(), got.GetReceivedAt().AsTime())
		time.Sleep(time.Second)

		again.SendNext(report(4, time.Since(made)+3*time.Second))
		got = next()
		require.Equal(t, made.Add(-3*time.Second).UTC(), got.GetReceivedAt().AsTime())
		require.Equal(t, made.Add(-3*time.Second).UTC(), got.GetLastUsedAt().AsTime())
		again.SendNext(report(3, time.Since(made)-time.Millisecond))
		got = next()
		require.EqualValues(t, 3, got.GetStats().GetSessionCountSsh())
		require.Equal(t, made.Add(time.Millisecond).UTC(), got.GetReceivedAt().AsTime())
	})
}

// What a relay could not say before its session has an age, by app, key and part. What
// another relay was given later stays, and is acked as stored.
func TestStatesWithAges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		relay := s.OpenRelay(s.AsCoderd())
		say := func(c *edgetest.Stream, value string, node uint64, state pb.Lifecycle_State, ages *pb.Ages) {
			q := edgetest.Metadata("a", value, "b", value)
			q.Network, q.Lifecycle = &pb.Network{NodeId: node}, &pb.Lifecycle{State: state}
			q.Ages = ages
			c.RequireDurable(c.SendNext(q))
		}
		state := func() (uint64, agent.LifecycleState) {
			info, err := s.Fleet.Agent(edgetest.ID(1))
			require.NoError(t, err)
			return info.State.Network.NodeID, info.State.CurrentLifecycle()
		}
		relay.Connect(t, edgetest.Session{Agent: 1, Instance: 1})
		time.Sleep(10 * time.Second)
		say(relay.Connect(t, edgetest.Session{Agent: 1, Instance: 2}), "2", 2, pb.Lifecycle_STATE_READY, nil)
		time.Sleep(10 * time.Second)
		us := func(d time.Duration) int64 { return d.Microseconds() }
		say(relay.Connect(t, edgetest.Session{Agent: 1, Instance: 1, Number: 2}), "1", 1, pb.Lifecycle_STATE_STARTING, &pb.Ages{
			Metadata: []int64{us(16 * time.Second), us(5 * time.Second)}, Network: us(16 * time.Second), Lifecycle: us(16 * time.Second),
		})
		node, lifecycle := state()
		require.EqualValues(t, 2, node)
		require.Equal(t, agent.LifecycleReady, lifecycle)
		require.Equal(t, []string{"a=2", "b=1"}, s.StoredMetadata(1))
		say(relay.Connect(t, edgetest.Session{Agent: 1, Instance: 3}), "3", 3, pb.Lifecycle_STATE_OFF, &pb.Ages{
			Metadata: []int64{us(time.Hour * 1e6)}, Lifecycle: us(time.Second),
		})
		node, lifecycle = state()
		require.EqualValues(t, 3, node)
		require.Equal(t, agent.LifecycleOff, lifecycle)
		require.Equal(t, []string{"a=2", "b=3"}, s.StoredMetadata(1))
		// Ages that make no sense are those of a day, and those of nothing are ignored.
		for i, age := range []int64{-1, math.MinInt64, math.MaxInt64} {
			say(relay.Connect(t, edgetest.Session{Agent: 1, Instance: byte(4 + i)}), "4", 4, pb.Lifecycle_STATE_STARTING, &pb.Ages{
				Metadata: []int64{age, age, age, age}, AppHealth: []int64{age}, Network: age, Lifecycle: age,
			})
			node, lifecycle = state()
			require.EqualValues(t, 3, node)
			require.Equal(t, agent.LifecycleOff, lifecycle)
			require.Equal(t, []string{"a=2", "b=3"}, s.StoredMetadata(1))
		}
	})
}
