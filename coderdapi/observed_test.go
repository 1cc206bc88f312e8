package coderdapi_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// observed is the registration of agent 1 with what coderd knows of it now.
func observed(status pb.AgentStatus, state pb.Lifecycle_State, health pb.AppHealth) *pb.AgentRegistration {
	r := edgetest.Registration(1)
	r.Apps[0].Health = health
	r.Observed = &pb.Observation{
		At: timestamppb.Now(), Status: status,
		Lifecycle: &pb.Lifecycle{State: state, ChangedAt: timestamppb.New(edgetest.Day)},
		Network: &pb.Network{PreferredRegionId: 1, Regions: []*pb.Network_Region{
			{Id: 1, Name: "Frankfurt", Latency: durationpb.New(12 * time.Millisecond)},
		}},
	}
	return r
}

// What coderd saw of an agent is served while it has no session, and had none since.
func TestObserved(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		register := func(regs ...*pb.AgentRegistration) {
			t.Helper()
			resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: regs})
			require.NoError(t, err)
			require.Empty(t, resp.GetRefused())
		}
		served := func() []string {
			synctest.Wait()
			return s.Exposition("coderd_agents_")
		}
		const labels = `username="ada",workspace_name="ws1"`
		series := func(up, state, status, health string, more ...string) []string {
			return append([]string{
				`coderd_agents_up{template_name="docker",` + labels + `} ` + up,
				`coderd_agents_connections{agent_name="main",lifecycle_state="` + state + `",status="` + status + `",tailnet_node="unknown",` + labels + `} 1`,
				`coderd_agents_apps{agent_name="main",app_name="code",health="` + health + `",` + labels + `} 1`,
			}, more...)
		}
		const latency = `coderd_agents_connection_latencies_seconds{agent_name="main",derp_region="Frankfurt",preferred="true",` + labels + `} 0.012`
		require.Empty(t, served())

		register(observed(pb.AgentStatus_AGENT_STATUS_CONNECTED, pb.Lifecycle_STATE_READY, pb.AppHealth_APP_HEALTH_HEALTHY))
		require.ElementsMatch(t, series("1", "ready", "connected", "healthy", latency), served())
		agents, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err)
		require.False(t, agents.GetAgents()[0].GetConnected(), "it has no session")
		require.Equal(t, pb.Lifecycle_STATE_READY, agents.GetAgents()[0].GetLifecycle().GetState())

		// The same again is no write. A registration without it leaves it.
		before, err := s.Store.Registrations(t.Context(), 0)
		require.NoError(t, err)
		time.Sleep(5 * time.Minute)
		register(observed(pb.AgentStatus_AGENT_STATUS_CONNECTED, pb.Lifecycle_STATE_READY, pb.AppHealth_APP_HEALTH_HEALTHY))
		partial := edgetest.Registration(1)
		partial.Apps[0].Health = pb.AppHealth_APP_HEALTH_HEALTHY
		register(partial)
		after, err := s.Store.Registrations(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, before.Revision, after.Revision)
		require.ElementsMatch(t, series("1", "ready", "connected", "healthy", latency), served())

		// A session of its own counts more, but for the lifecycle that it has not said.
		c := s.Connect(edgetest.Session{Agent: 1})
		require.ElementsMatch(t, series("1", "ready", "connected", "healthy"), served())
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_SHUTTING_DOWN))
		c.SendNext(&pb.ConnectRequest{AppHealth: &pb.AppHealthReport{
			Updates: []*pb.AppHealthUpdate{{Id: edgetest.IDBytes(50_001), Health: pb.AppHealth_APP_HEALTH_UNHEALTHY}},
		}})
		register(observed(pb.AgentStatus_AGENT_STATUS_DISCONNECTED, pb.Lifecycle_STATE_READY, pb.AppHealth_APP_HEALTH_HEALTHY))
		require.ElementsMatch(t, series("1", "shutting_down", "connected", "unhealthy"), served())
		after, err = s.Store.Registrations(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, before.Revision, after.Revision, "nor while it has a session")
		time.Sleep(time.Second)
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.OK, "")
		require.ElementsMatch(t, series("0", "shutting_down", "disconnected", "unhealthy"), served(), "that was before the end")

		// What is seen later counts again, the older of two does not.
		time.Sleep(time.Second)
		older := observed(pb.AgentStatus_AGENT_STATUS_CONNECTED, pb.Lifecycle_STATE_STARTING, pb.AppHealth_APP_HEALTH_HEALTHY)
		time.Sleep(time.Second)
		register(observed(pb.AgentStatus_AGENT_STATUS_DISCONNECTED, pb.Lifecycle_STATE_OFF, pb.AppHealth_APP_HEALTH_HEALTHY))
		register(older)
		require.ElementsMatch(t, series("0", "off", "disconnected", "healthy"), served())
		register(observed(pb.AgentStatus_AGENT_STATUS_CONNECTED, pb.Lifecycle_STATE_OFF, pb.AppHealth_APP_HEALTH_HEALTHY))
		time.Sleep(time.Second)
		register(observed(pb.AgentStatus_AGENT_STATUS_CONNECTED, pb.Lifecycle_STATE_OFF, pb.AppHealth_APP_HEALTH_HEALTHY))
		require.ElementsMatch(t, series("1", "off", "connected", "healthy", latency), served())

		// Nobody has seen it for an hour. The lifecycle is what the agent said last.
		time.Sleep(time.Hour + 2*time.Second)
		require.ElementsMatch(t, series("0", "shutting_down", "disconnected", "unhealthy"), served())
	})
}

// An agent that is seen connecting times out.
func TestObservedConnecting(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		r := observed(pb.AgentStatus_AGENT_STATUS_CONNECTING, pb.Lifecycle_STATE_CREATED, pb.AppHealth_APP_HEALTH_INITIALIZING)
		r.CreatedAt = timestamppb.Now()
		r.Observed.At = timestamppb.New(time.Now().Add(time.Hour)) // a clock that is wrong
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
		require.NoError(t, err)
		require.Len(t, s.Exposition(`status="connecting"`), 1)
		time.Sleep(62 * time.Second)
		require.Len(t, s.Exposition(`status="timeout"`), 1)
	})
}

// A lifecycle that an agent with a session said to coderd and not here is served, until it
// says another one. What coderd showed before, or shows of an earlier time, is not.
func TestObservedLater(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{})
		register := func(state pb.Lifecycle_State, since time.Time) {
			t.Helper()
			r := observed(pb.AgentStatus_AGENT_STATUS_CONNECTED, state, pb.AppHealth_APP_HEALTH_HEALTHY)
			r.Observed.Lifecycle.ChangedAt = nil
			if !since.IsZero() {
				r.Observed.Lifecycle.ChangedAt = timestamppb.New(since)
			}
			resp, err := s.Coderd().RegisterAgents(s.AsCoderd(), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{r}})
			require.NoError(t, err)
			require.Empty(t, resp.GetRefused())
			time.Sleep(time.Second)
		}
		requireServed := func(state string) {
			t.Helper()
			synctest.Wait()
			require.Len(t, s.Exposition(`lifecycle_state="`+state+`",status="connected"`), 1, s.Exposition("coderd_agents_connections"))
		}
		register(pb.Lifecycle_STATE_STARTING, time.Now())
		c := s.Connect(edgetest.Session{Agent: 1})
		requireServed("starting")
		register(pb.Lifecycle_STATE_READY, time.Now())
		requireServed("ready")
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_STARTING)) // once more
		said := time.Now()
		time.Sleep(time.Second)
		register(pb.Lifecycle_STATE_READY, said.Add(-time.Second))
		requireServed("starting")
		register(pb.Lifecycle_STATE_CREATED, time.Time{})
		requireServed("starting")
		register(pb.Lifecycle_STATE_READY, said.Add(time.Second))
		requireServed("ready")
		before, err := s.Store.Registrations(t.Context(), 0)
		require.NoError(t, err)
		register(pb.Lifecycle_STATE_READY, said.Add(time.Second))
		after, err := s.Store.Registrations(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, before.Revision, after.Revision)
		register(pb.Lifecycle_STATE_SHUTTING_DOWN, time.Time{})
		requireServed("shutting_down")
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_OFF))
		requireServed("off")
	})
}
