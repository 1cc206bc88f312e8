package agentapi_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/pubsub"
)

// startReplicas starts services on one bus. Each knows the agents 1 to 3.
func startReplicas(t *testing.T, n int) (*agentapi.FaultyBus, []*service) {
	t.Helper()
	memory, err := pubsub.NewMemory(prometheus.NewRegistry())
	require.NoError(t, err)
	bus := &agentapi.FaultyBus{Memory: memory}
	var replicas []*service
	for i := range n {
		s := start(t, settings{
			api:    agentapi.Options{ReplicaID: nid(i + 1)},
			change: func(c *agentapi.Components) { c.Bus = bus },
		})
		s.register(1, 2, 3)
		replicas = append(replicas, s)
	}
	return bus, replicas
}

func TestReplicasRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, replicas := startReplicas(t, 2)
		a, b := replicas[0], replicas[1]
		named, cut := a.watchName("insights", 0, 0)
		only, unnamed := a.watchStats(2), a.watchStats()
		activity := a.watchActivity(durationpb.New(time.Second))
		time.Sleep(time.Second)

		reported := time.Now()
		b.connect(1, 1, 1).send(stats(&pb.Stats{RxBytes: 1, TxBytes: 2, RxPackets: 3, TxPackets: 4, SessionCountSsh: 1, Metrics: gauge("g", 1).GetMetrics()}))
		for _, w := range []*statsWatcher{named, unnamed} {
			m := w.next()
			require.Len(t, m.GetAgents(), 1)
			got := m.GetAgents()[0]
			require.Equal(t, bid(1), got.GetAgentId())
			require.Equal(t, bid(10_001), got.GetWorkspaceId())
			require.EqualValues(t, 1, got.GetReports())
			require.Equal(t, reported, got.GetReceivedAt().AsTime().Local())
			require.EqualValues(t, 1, got.GetStats().GetSessionCountSsh())
			require.Empty(t, got.GetStats().GetMetrics())
			require.LessOrEqual(t, time.Since(reported), time.Second)
			w.ack(m.GetSequence())
		}
		used, err := activity.Recv()
		require.NoError(t, err)
		require.Len(t, used.GetWorkspaces(), 1)
		require.Equal(t, bid(10_001), used.GetWorkspaces()[0].GetWorkspaceId())
		require.Equal(t, reported, used.GetWorkspaces()[0].GetLastUsedAt().AsTime().Local())

		// Of an agent that reports here and there, the newest report counts.
		b.report(2, &pb.Stats{RxBytes: 1, ConnectionCount: 5})
		time.Sleep(time.Millisecond)
		a.report(2, &pb.Stats{RxBytes: 2, ConnectionCount: 3})
		sum := int64(0)
		for sum < 3 {
			m := only.next()
			require.Equal(t, bid(2), m.GetAgents()[0].GetAgentId())
			sum += m.GetAgents()[0].GetStats().GetRxBytes()
			only.ack(m.GetSequence())
		}
		require.EqualValues(t, 3, sum)

		// The next replica goes on where this one ended.
		first := named.next()
		cut()
		moved, cut := b.watchName("insights", first.GetEpoch(), first.GetSequence()-1)
		again := moved.next()
		require.NotEqual(t, first.GetEpoch(), again.GetEpoch())
		require.EqualValues(t, 3, again.GetAgents()[0].GetStats().GetRxBytes())
		require.EqualValues(t, 3, again.GetAgents()[0].GetStats().GetConnectionCount())
		require.Equal(t, 1.0, b.counter("agentstatsd_stats_watches_moved_total", ""))
		require.Equal(t, 0.0, a.counter("agentstatsd_stats_watches_parked", ""))
		require.Equal(t, 1.0, a.counter("agentstatsd_relay_replicas", ""))
		require.NotZero(t, a.counter("agentstatsd_relay_parcels_total", "taken"))
		cut()
	})
}

// TestReplicasTakeWatches shows that a stream of a name ends when a newer one
// comes to another replica.
func TestReplicasTakeWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, replicas := startReplicas(t, 2)
		old, _ := replicas[0].watchName("insights", 0, 0)
		replicas[0].report(1, &pb.Stats{RxBytes: 1})
		epoch := old.requireBytes(1, 1).GetEpoch()
		time.Sleep(time.Second)
		w, _ := replicas[1].watchName("insights", epoch, 1)
		_, err := old.Recv()
		requireCode(t, err, codes.Aborted, "superseded by a newer watch of the name")
		replicas[0].report(1, &pb.Stats{RxBytes: 2})
		w.requireBytes(1, 2)
		require.NoError(t, w.CloseSend())
		_, err = w.Recv()
		require.Equal(t, io.EOF, err)
	})
}

// TestReplicasStop shows that a watch goes on when the service is replaced, one
// replica after another.
func TestReplicasStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, replicas := startReplicas(t, 3)
		ctx, cancel := context.WithTimeout(replicas[0].asCoderd(), time.Hour) // what is lost does not come
		defer cancel()
		w := replicas[0].resumeStats(ctx, &pb.WatchStatsRequest{Name: "insights"})
		time.Sleep(time.Second)
		var epoch uint64
		var acked, sum, reports int64
		read := func(until int64) {
			t.Helper()
			for sum < until {
				m := w.next()
				for _, a := range m.GetAgents() {
					sum += a.GetStats().GetRxBytes()
					reports += a.GetReports()
				}
				epoch, acked = m.GetEpoch(), m.GetSequence()
				w.ack(acked)
			}
		}
		for i, s := range replicas[:2] {
			for _, on := range replicas[i:] {
				on.report(1, &pb.Stats{RxBytes: 1})
			}
			if i == 0 {
				read(1)
			}
			stopped := make(chan struct{})
			go func() { s.stop(); close(stopped) }()
			for err := error(nil); err == nil; _, err = w.Recv() { // what is told now is not processed
			}
			w = replicas[i+1].resumeStats(ctx, &pb.WatchStatsRequest{Name: "insights", Epoch: epoch, AckedSequence: acked})
			<-stopped
		}
		read(5)
		require.EqualValues(t, 5, sum)
		require.EqualValues(t, 5, reports)
	})
}

// deafBus has no subscriptions.
type deafBus struct{ agentapi.Bus }

func (deafBus) Subscribe(string, func([]byte)) (func(), error) { return nil, io.ErrClosedPipe }

// closedListener tells whether it was closed.
type closedListener struct {
	net.Listener
	closed bool
}

func (l *closedListener) Close() error {
	l.closed = true
	return nil
}

func TestReplicaOptions(t *testing.T) {
	_, replicas := startReplicas(t, 1)
	parts := agentapi.Components{Fleet: replicas[0].fleet, Pushes: &pushes{}}
	log := slog.New(slog.DiscardHandler)
	_, err := agentapi.NewServer(parts, agentapi.Options{ReplicaID: agent.ID{1}}, prometheus.NewRegistry(), log)
	require.ErrorContains(t, err, "a bus needs the id of the replica")
	parts.Bus = deafBus{}
	_, err = agentapi.NewServer(parts, agentapi.Options{ReplicaID: uuid.Nil}, prometheus.NewRegistry(), log)
	require.ErrorContains(t, err, "a bus needs the id of the replica")
	s, err := agentapi.NewServer(parts, agentapi.Options{ReplicaID: agent.ID{1}}, prometheus.NewRegistry(), log)
	require.NoError(t, err)
	lis := &closedListener{}
	require.ErrorIs(t, s.Serve(t.Context(), lis), io.ErrClosedPipe)
	require.True(t, lis.closed)
}
