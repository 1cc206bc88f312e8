package clienttest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// fakeRelay is a service that takes in all that relayed agents send, by the comments of
// the contract.
type fakeRelay struct {
	agentstatsv1.UnimplementedAgentServiceServer

	mu      sync.Mutex
	streams []*fakeRelayStream // by the order in which they were opened
	// withheld are the agents that get no credit.
	withheld map[uuid.UUID]bool
}

// fakeRelayStream is one stream of a fakeRelay, whose mu guards it.
type fakeRelayStream struct {
	agentstatsv1.AgentService_RelayAgentsServer
	agents   map[uint32]uuid.UUID // of open sessions
	newest   uint32
	messages int
	requests map[uuid.UUID]int
	ended    bool
	problem  string // how the client broke the contract
}

func (f *fakeRelay) RelayAgents(server agentstatsv1.AgentService_RelayAgentsServer) error {
	s := &fakeRelayStream{AgentService_RelayAgentsServer: server, agents: map[uint32]uuid.UUID{}, requests: map[uuid.UUID]int{}}
	f.mu.Lock()
	f.streams = append(f.streams, s)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		s.ended = true
		f.mu.Unlock()
	}()
	for {
		m, err := server.Recv()
		if err != nil {
			return nil
		}
		f.mu.Lock()
		s.messages++
		responses := &agentstatsv1.RelayAgentsResponse{}
		for _, q := range m.GetRequests() {
			responses.Responses = append(responses.Responses, f.answerLocked(s, q))
		}
		err = server.Send(responses)
		f.mu.Unlock()
		if err != nil {
			return nil
		}
	}
}

func (f *fakeRelay) answerLocked(s *fakeRelayStream, q *agentstatsv1.RelayedRequest) *agentstatsv1.RelayedResponse {
	r := &agentstatsv1.RelayedResponse{Index: q.GetIndex()}
	if len(q.GetAgentId()) > 0 {
		if q.GetIndex() <= s.newest || q.GetRequest().GetHello() == nil {
			s.problem = fmt.Sprintf("after %d: %v", s.newest, q)
		}
		s.newest = q.GetIndex()
		s.agents[q.GetIndex()] = uuid.UUID(q.GetAgentId())
		r.Response = &agentstatsv1.ConnectResponse{Settings: &agentstatsv1.Settings{
			ReportInterval: durationpb.New(30 * time.Second), Resume: &agentstatsv1.Resume{}, Limits: &agentstatsv1.Limits{MessageBytes: 64 << 10, MetadataReportKeyBytes: 6144},
		}}
	}
	agent := s.agents[q.GetIndex()]
	switch sequence := q.GetRequest().GetSequence(); {
	case q.GetEnd():
		delete(s.agents, q.GetIndex())
		r.End = &agentstatsv1.RelayedEnd{}
		return r
	case sequence > 0:
		r.Response = &agentstatsv1.ConnectResponse{Ack: &agentstatsv1.Ack{ReceivedSequence: sequence, DurableSequence: sequence}}
		if f.withheld[agent] {
			r.Response.Ack.ReceivedSequence, r.Response.Ack.DurableSequence = 0, 0
		}
	}
	s.requests[agent]++
	if !f.withheld[agent] {
		r.Credit = 1
	}
	return r
}

// open returns how many sessions each stream has that has not ended.
func (f *fakeRelay) open() (sessions []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.streams {
		if !s.ended {
			sessions = append(sessions, len(s.agents))
		}
	}
	return sessions
}

// askToReconnect sends all sessions of a stream a please-reconnect.
func (f *fakeRelay) askToReconnect(t *testing.T, stream int, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	responses := &agentstatsv1.RelayAgentsResponse{}
	for index := range f.streams[stream].agents {
		responses.Responses = append(responses.Responses, &agentstatsv1.RelayedResponse{Index: index, Response: &agentstatsv1.ConnectResponse{
			Reconnect: &agentstatsv1.Reconnect{Reason: reason},
		}})
	}
	require.NoError(t, f.streams[stream].Send(responses))
}

// relayedFleet has agents that run until the end of the test.
type relayedFleet struct {
	t      *testing.T
	coderd *client.Coderd
	agents []*client.Agent
	cancel []context.CancelFunc
	run    sync.WaitGroup
}

func startRelayedFleet(t *testing.T) (*fakeRelay, *relayedFleet) {
	t.Helper()
	fake := &fakeRelay{withheld: map[uuid.UUID]bool{}}
	n := newNetwork(func(s *grpc.Server) { agentstatsv1.RegisterAgentServiceServer(s, fake) })
	conn, err := grpc.NewClient("passthrough:///fake", n.plaintext()...)
	require.NoError(t, err)
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	require.NoError(t, err)
	fleet := &relayedFleet{t: t, coderd: coderd}
	t.Cleanup(func() {
		for _, cancel := range fleet.cancel {
			cancel()
		}
		fleet.run.Wait()
		require.NoError(t, conn.Close())
		n.stop()
		for _, s := range fake.streams {
			require.Empty(t, s.problem)
		}
	})
	return fake, fleet
}

// add starts so many more agents, in turn.
func (f *relayedFleet) add(agents int, opts client.AgentOptions) {
	f.t.Helper()
	for range agents {
		agent, err := f.coderd.Relay(relayedID(len(f.agents)), opts)
		require.NoError(f.t, err)
		ctx, cancel := context.WithCancel(context.Background())
		f.agents, f.cancel = append(f.agents, agent), append(f.cancel, cancel)
		f.run.Go(func() { _ = agent.Run(ctx) })
	}
	synctest.Wait()
}

func relayedID(n int) uuid.UUID { return uuid.NewSHA1(uuid.Nil, fmt.Append(nil, n)) }

// Sessions share a stream, from 250 on several, and streams without sessions end. A stream
// whose replica stops gets no more.
func TestRelaySpreadsSessions(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, fleet := startRelayedFleet(t)
		fleet.add(240, client.AgentOptions{})
		require.Equal(t, []int{240}, fake.open())
		fleet.add(240, client.AgentOptions{})
		require.Equal(t, []int{250, 230}, fake.open())
		fleet.add(80, client.AgentOptions{})
		require.Equal(t, []int{250, 250, 60}, fake.open())
		// Each agent says hello and reports, which many do in one message.
		messages := 0
		for _, s := range fake.streams {
			messages += s.messages
		}
		require.Less(t, messages, 560)

		fake.askToReconnect(t, 0, "session_age")
		time.Sleep(time.Minute)
		require.Equal(t, 560, sum(fake.open()), "all are back, on any stream")
		fake.askToReconnect(t, 1, "draining")
		time.Sleep(time.Minute)
		open := fake.open()
		require.Equal(t, 560, sum(open))
		require.True(t, fake.streams[1].ended, "all of its agents are elsewhere: %v", open)

		for _, cancel := range fleet.cancel {
			cancel()
		}
		time.Sleep(time.Minute)
		require.Empty(t, fake.open(), "streams without sessions end")
		fleet.add(1, client.AgentOptions{})
		require.Equal(t, []int{1}, fake.open())
	})
}

func sum(numbers []int) (n int) {
	for _, v := range numbers {
		n += v
	}
	return n
}

// An agent without credit waits, and no other one.
func TestRelayedAgentWithoutCreditWaitsAlone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, fleet := startRelayedFleet(t)
		fake.withheld[relayedID(0)] = true
		fleet.add(2, client.AgentOptions{})
		for n := range 40 {
			for _, agent := range fleet.agents {
				require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "k", Value: fmt.Sprint(n)}))
				agent.Report(&agentstatsv1.Stats{RxBytes: 1})
			}
			time.Sleep(5 * time.Second)
		}
		require.NoError(t, fleet.agents[1].Flush(t.Context()))
		fake.mu.Lock()
		require.LessOrEqual(t, fake.streams[0].requests[relayedID(0)], 16, "its hello included")
		require.Greater(t, fake.streams[0].requests[relayedID(1)], 16)
		fake.mu.Unlock()
		// It can still be stopped.
		fleet.cancel[0]()
		synctest.Wait()
		require.Equal(t, client.Stopped, fleet.agents[0].Status().Connection)
		require.Equal(t, []int{1}, fake.open())
	})
}

// A relay does not take the credentials of an agent.
func TestRelayNeedsNoCredentials(t *testing.T) {
	coderd, err := client.NewCoderd(nil, client.CoderdOptions{})
	require.NoError(t, err)
	_, err = coderd.Relay(agentID, client.AgentOptions{Credentials: client.Token("x", true)})
	require.EqualError(t, err, "relay an agent: want no credentials, the connection has those of coderd")
}
