package coderdapi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

type watchingAgents struct {
	pb.CoderdService_WatchAgentsClient
	t testing.TB
}

func watchAgents(s *edgetest.Service, numbers ...int) watchingAgents {
	s.T.Helper()
	req := &pb.WatchAgentsRequest{}
	for _, n := range numbers {
		req.AgentIds = append(req.AgentIds, edgetest.IDBytes(n))
	}
	w, err := s.Coderd().WatchAgents(s.AsCoderd(), req)
	require.NoError(s.T, err)
	return watchingAgents{w, s.T}
}

// next returns the next message as text: each agent with its status, relay, lifecycle and app
// healths, the removed ones, and whether the message is synced.
func (w watchingAgents) next() []string {
	w.t.Helper()
	m, err := w.Recv()
	require.NoError(w.t, err)
	var words []string
	for _, a := range m.GetAgents() {
		word := fmt.Sprint(a.GetAgentId()[15], " ", strings.TrimPrefix(a.GetStatus().String(), "AGENT_STATUS_"))
		if a.GetRelayed() {
			word += " relayed"
		}
		if a.GetLifecycle() != nil {
			word += " " + strings.TrimPrefix(a.GetLifecycle().GetState().String(), "STATE_")
		}
		for _, h := range a.GetAppHealth() {
			word += " " + strings.TrimPrefix(h.GetHealth().String(), "APP_HEALTH_")
		}
		words = append(words, word)
	}
	slices.Sort(words)
	for _, id := range m.GetRemovedIds() {
		words = append(words, fmt.Sprint("removed ", id[15]))
	}
	if m.GetSynced() {
		words = append(words, "synced")
	}
	return words
}

func TestWatchAgents(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		created := time.Now()
		fresh := func(n int) *pb.AgentRegistration {
			r := edgetest.Registration(n)
			r.CreatedAt = timestamppb.New(created)
			r.ConnectionTimeout = durationpb.New(time.Minute)
			return r
		}
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{fresh(1), fresh(2)}})
		require.NoError(t, err)
		all, first := watchAgents(s), watchAgents(s, 1, 99)
		require.Equal(t, []string{"1 CONNECTING INITIALIZING", "2 CONNECTING INITIALIZING"}, all.next())
		require.Equal(t, []string{"synced"}, all.next())
		require.Equal(t, []string{"1 CONNECTING INITIALIZING"}, first.next())
		require.Equal(t, []string{"synced"}, first.next())
		require.Equal(t, 2.0, s.Counter("agentstatsd_watches", "agents"))

		time.Sleep(time.Second)
		began := time.Now()
		c := s.Connect(edgetest.Session{Agent: 1})
		for _, w := range []watchingAgents{all, first} {
			require.Equal(t, []string{"1 CONNECTED INITIALIZING"}, w.next())
		}
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_READY))
		synctest.Wait()
		require.Equal(t, []string{"1 CONNECTED READY INITIALIZING"}, all.next())
		c.SendNext(&pb.ConnectRequest{AppHealth: &pb.AppHealthReport{
			Updates: []*pb.AppHealthUpdate{{Id: edgetest.IDBytes(50_001), Health: pb.AppHealth_APP_HEALTH_HEALTHY}},
		}})
		synctest.Wait()
		require.Equal(t, []string{"1 CONNECTED READY HEALTHY"}, all.next())
		require.Less(t, time.Since(began), 5*time.Second, "by a notification, not by the re-read")

		// Reports change nothing that is sent. Statuses move by time.
		for range 10 {
			c.SendNext(edgetest.Stats(&pb.Stats{RxBytes: 1}))
			time.Sleep(5 * time.Second)
		}
		require.Equal(t, []string{"2 TIMEOUT INITIALIZING"}, all.next())
		require.Less(t, time.Since(created), 62*time.Second)

		// A watcher who did not read gets the newest state.
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.OK, "")
		time.Sleep(time.Minute)
		require.Equal(t, []string{"1 DISCONNECTED READY HEALTHY"}, all.next())

		registerYoung := func(n int) {
			r := edgetest.Registration(n)
			r.CreatedAt = timestamppb.Now()
			_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
			require.NoError(t, err)
		}
		registerYoung(3)
		require.Equal(t, []string{"3 CONNECTING INITIALIZING"}, all.next())
		_, err = s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1), edgetest.IDBytes(3)}})
		require.NoError(t, err)
		time.Sleep(31 * time.Second)
		var removed []string
		for len(removed) < 2 {
			removed = append(removed, all.next()...)
		}
		slices.Sort(removed)
		require.Equal(t, []string{"removed 1", "removed 3"}, removed)
		registerYoung(3)
		require.Equal(t, []string{"3 CONNECTING INITIALIZING"}, all.next(), "who comes back is sent again")
		for last := first.next(); !slices.Equal(last, []string{"removed 1"}); last = first.next() {
			require.Contains(t, last[0], "1 ")
		}
	})
}

// Whether an agent is relayed is told when it changes, also if it stays connected.
func TestWatchAgentsRelayed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		s.Register(1)
		w := watchAgents(s, 1)
		require.Equal(t, []string{"1 TIMEOUT INITIALIZING"}, w.next())
		require.Equal(t, []string{"synced"}, w.next())
		began := time.Now()
		requireIs := func(words string, relayed bool) {
			t.Helper()
			require.Equal(t, []string{words}, w.next())
			resp, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
			require.NoError(t, err)
			require.Equal(t, relayed, resp.GetAgents()[0].GetRelayed())
		}
		own := s.Connect(edgetest.Session{Agent: 1})
		requireIs("1 CONNECTED INITIALIZING", false)
		relay := s.OpenRelay(s.AsCoderd())
		relay.Connect(t, edgetest.Session{Agent: 1, Instance: 2})
		requireIs("1 CONNECTED relayed INITIALIZING", true)
		own.RequireEnd(codes.Aborted, "superseded by a newer session")
		own = s.Connect(edgetest.Session{Agent: 1})
		requireIs("1 CONNECTED INITIALIZING", false)
		require.Less(t, time.Since(began), 10*time.Second, "by a notification, not by the re-read")
		relay.Connect(t, edgetest.Session{Agent: 1, Instance: 3})
		requireIs("1 CONNECTED relayed INITIALIZING", true)
		require.NoError(t, relay.CloseSend())
		requireIs("1 DISCONNECTED INITIALIZING", false)
		_ = own
	})
}

func TestWatchAgentsOfMany(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		var numbers []int
		for n := range 1100 {
			numbers = append(numbers, n+1)
		}
		s.Register(numbers...)
		w := watchAgents(s)
		sent := 0
		for {
			words := w.next()
			if slices.Equal(words, []string{"synced"}) {
				break
			}
			sent += len(words)
		}
		require.Equal(t, 1100, sent)
		go s.Stop()
		_, err := w.Recv()
		edgetest.RequireCode(t, err, codes.Unavailable, "the service is stopping; connect again elsewhere or later")
	})
}

// What watches of agents remember is bounded together with what all other watches have.
// A look at all agents finds those that are gone.
func TestWatchesOfAgentsAreBoundedTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const size = 64 << 10
		s := edgetest.Start(t, edgetest.Settings{
			Fleet:  fleet.Options{MaxAgents: 2000},
			Server: grpcserver.Options{MaxMessageBytes: size, MaxAgentMessageBytes: size},
			Coderd: coderdapi.Options{MaxWatchBytes: 6 * size, MaxWatchesBytes: 6 * size},
		})
		for from := 0; from < 1500; from += 150 {
			var numbers []int
			for n := range 150 {
				numbers = append(numbers, from+n+1)
			}
			s.Register(numbers...)
		}
		requireAll := func(w watchingAgents, want int) {
			t.Helper()
			sent := 0
			for words := w.next(); !slices.Equal(words, []string{"synced"}); words = w.next() {
				sent += len(words)
			}
			require.Equal(t, want, sent)
		}
		ctx, cancel := context.WithCancel(s.AsCoderd())
		first, err := s.Coderd().WatchAgents(ctx, &pb.WatchAgentsRequest{})
		require.NoError(t, err)
		requireAll(watchingAgents{first, t}, 1500)
		used := s.Counter("agentstatsd_coderd_memory_bytes", "watches")
		require.InDelta(t, 100_000, used, 10_000)

		second := watchAgents(s)
		for err == nil {
			_, err = second.Recv()
		}
		edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "message: want at most 196608 bytes in memory of all watches under way (--max-watches-bytes)")
		require.Equal(t, 1.0, s.Counter("agentstatsd_coderd_memory_refused_total", "watches"))
		synctest.Wait()
		require.InDelta(t, used, s.Counter("agentstatsd_coderd_memory_bytes", "watches"), 0)
		cancel()
		synctest.Wait()
		require.Zero(t, s.Counter("agentstatsd_coderd_memory_bytes", "watches"))

		third := watchAgents(s)
		requireAll(third, 1500)
		var ids [][]byte
		for n := range 400 {
			ids = append(ids, edgetest.IDBytes(n+1))
		}
		_, err = s.Coderd().DeregisterAgents(s.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: ids})
		require.NoError(t, err)
		removed := 0
		for removed < 400 {
			m, err := third.Recv()
			require.NoError(t, err)
			require.Empty(t, m.GetAgents())
			removed += len(m.GetRemovedIds())
		}
		require.Equal(t, 400, removed)
	})
}

func TestWatchAgentsBeforeTheFleetIsLoaded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Down: true})
	_, err := watchAgents(s).Recv()
	edgetest.RequireCode(t, err, codes.Unavailable, "the registrations are not available now; try again")
}
