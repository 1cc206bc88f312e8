package agentapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// rejecting is a database that refuses every row.
type rejecting struct{}

func (rejecting) UpsertMetadata(context.Context, []agent.Metadata) ([]agent.ID, []agent.StoredEpoch, error) {
	return nil, nil, fmt.Errorf("value out of range: %w", agent.ErrRejected)
}

type noPublisher struct{}

func (noPublisher) PublishMetadata(context.Context, []agent.ID) error { return nil }

// startRejecting starts a service whose database refuses all metadata, and whose refusals
// are noted. flush ends the batcher, after its last flush.
func startRejecting(t *testing.T, set edgetest.Settings, opts batcher.Options, noted ...agentapi.Refusals) (s *edgetest.Service, flush func()) {
	t.Helper()
	b, err := batcher.New(rejecting{}, noPublisher{}, opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = b.Run(ctx) })
	flush = func() { cancel(); running.Wait() }
	t.Cleanup(flush)
	set.ChangeAgents = func(c *agentapi.Components) {
		c.Metadata = b
		for _, n := range noted {
			c.Refusals = n
		}
	}
	return edgetest.Start(t, set), flush
}

// A refusal of the database is sent before an ack covers it: else the client
// takes it for durable.
func TestRefusalsComeBeforeAcks(t *testing.T) {
	s, _ := startRejecting(t, edgetest.Settings{}, batcher.Options{BatchSize: 1, FlushInterval: 5 * time.Millisecond, MaxPending: 1000})
	const agents, requests = 4, 300
	var numbers []int
	for n := range agents {
		numbers = append(numbers, n+1)
	}
	s.Register(numbers...)
	var sessions sync.WaitGroup
	for _, n := range numbers {
		c := s.Connect(edgetest.Session{Agent: n})
		sessions.Go(func() {
			// All are handled while the refusals of earlier ones are sent.
			slots := make(chan struct{}, 8)
			sessions.Go(func() {
				for seq := int64(1); seq <= requests; seq++ {
					slots <- struct{}{}
					_ = c.Send(&pb.ConnectRequest{Sequence: seq, Metadata: &pb.MetadataReport{
						Metadata: []*pb.Metadata{{Key: fmt.Sprint("k", seq%100), Result: &pb.Metadata_Result{Value: "v"}}},
					}})
				}
				_ = c.CloseSend()
			})
			refused := make(map[int64]bool)
			wrong := 0
			for covered := int64(0); covered < requests; {
				m, err := c.Recv()
				if err != nil {
					break // half-closed: the rest may be of no session
				}
				if r := edgetest.RefusalOf(m); r != nil {
					for seq := r.GetSequence(); seq >= max(1, r.GetFirstSequence()) && r.GetFirstSequence() > 0; seq-- {
						refused[seq] = true
					}
					refused[r.GetSequence()] = true
					continue
				}
				for covered < m.GetAck().GetDurableSequence() {
					covered++
					<-slots
					if !refused[covered] {
						wrong++
					}
				}
			}
			if wrong > 0 {
				t.Errorf("agent %d: %d requests whose only value was refused were acked before the refusal was sent", n, wrong)
			}
		})
	}
	sessions.Wait()
}

// collected collects what the client of an agent says of its metadata.
type collected struct {
	mu      sync.Mutex
	durable []string
	refused []string
}

func (o *collected) options(n int) client.AgentOptions {
	return client.AgentOptions{
		Credentials: client.Token(edgetest.Token(n), true),
		OnDurable: func(list []client.Metadata) {
			o.mu.Lock()
			defer o.mu.Unlock()
			for _, m := range list {
				o.durable = append(o.durable, m.Key)
			}
		},
		OnRefusal: func(r *pb.Refusal) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.refused = append(o.refused, r.GetNames()...)
		},
	}
}

// requireRefused checks that these keys were refused, each once, and none was acked as
// durable.
func (o *collected) requireRefused(t *testing.T, keys []string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Empty(t, o.durable)
	require.ElementsMatch(t, keys, o.refused)
}

func flushAll(t *testing.T, a *client.Agent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, a.Flush(ctx))
}

// Of many values that are refused in one flush none is acked as durable.
func TestManyRefusals(t *testing.T) {
	s, _ := startRejecting(t, edgetest.Settings{}, batcher.Options{BatchSize: 2000, FlushInterval: 100 * time.Millisecond, MaxPending: 2000})
	s.Register(1)
	var got collected
	a, err := client.NewAgent(s.Conn, got.options(1))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = a.Run(ctx) })
	var keys []string
	for n := range 120 { // an agent without declared keys may have 128
		key := fmt.Sprintf("key%03d", n)
		if n%10 == 0 { // a refusal has no more than its start
			key += strings.Repeat("x", 500)
		}
		require.NoError(t, a.UpdateMetadata(client.Metadata{Key: key, Value: "v"}))
		keys = append(keys, key[:min(len(key), 200)])
	}
	flushAll(t, a)
	got.requireRefused(t, keys)
	require.EqualValues(t, len(keys), a.Status().Counts.MetadataRefused)
}

// A value that the database refuses between two sessions of the agent is not acked as
// durable by the second one.
func TestRefusedBetweenSessions(t *testing.T) {
	s, flush := startRejecting(t, edgetest.Settings{Agents: agentapi.Options{AckDelay: time.Millisecond, FlushInterval: time.Millisecond}}, batcher.Options{FlushInterval: time.Hour})
	s.Register(1)
	var got collected
	received := make(chan struct{}, 10)
	opts := got.options(1)
	opts.OnAck = func(a client.Ack) {
		if a.Received > 0 {
			received <- struct{}{}
		}
	}
	a, err := client.NewAgent(s.Conn, opts)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) })
	require.NoError(t, a.UpdateMetadata(client.Metadata{Key: "cpu", Value: "99"}))
	<-received
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	defer s.Fleet.Watch(func([]agent.ID) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})()
	cancel()
	running.Wait()
	for connected := true; connected; {
		<-changed
		info, err := s.Fleet.Agent(edgetest.ID(1))
		require.NoError(t, err)
		connected = info.Connected
	}
	flush()
	ctx, cancel = context.WithCancel(t.Context())
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = a.Run(ctx) })
	flushAll(t, a)
	got.requireRefused(t, []string{"cpu"})
}

// A refusal on receipt is sent before an ack covers it. If the stream ended meanwhile,
// the next session sends it again, unless the client confirmed an ack that covers it.
func TestRefusalOfALostStream(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	c := s.Connect(edgetest.Session{Agent: 1})
	c.SendNext(edgetest.Metadata("", "v"))
	r, err := c.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 1, edgetest.RefusalOf(r).GetSequence())
	second := s.Connect(edgetest.Session{Agent: 1, Number: 2}) // it does not say that it knows of it
	require.EqualValues(t, 1, second.Settings.GetResume().GetReceivedSequence())
	require.Zero(t, second.Settings.GetResume().GetDurableSequence())
	r, err = second.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 1, edgetest.RefusalOf(r).GetFirstSequence())
	require.EqualValues(t, 1, edgetest.RefusalOf(r).GetSequence())
	r, err = second.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 1, r.GetAck().GetDurableSequence())
}

// An agent whose values the database refuses is refused for a while, like one whose
// values are refused on receipt.
func TestRefusedByTheDatabaseIsSentAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, _ := startRejecting(t, edgetest.Settings{Fleet: fleet.Options{RefusedBurst: 5, RefusedPerSecond: 1}}, batcher.Options{BatchSize: 1, FlushInterval: 5 * time.Millisecond, MaxPending: 1000})
		s.Register(1, 2)
		c := s.Connect(edgetest.Session{Agent: 1})
		refused := 0
		for refused < 6 {
			c.SendNext(edgetest.Metadata(fmt.Sprint("k", refused), "v"))
			for received := false; !received; {
				m, err := c.Recv()
				require.NoError(t, err)
				if r := edgetest.RefusalOf(m); r != nil {
					require.Equal(t, pb.RefusalCode_REFUSAL_CODE_STORE, r.GetCode())
					refused, received = refused+int(r.GetCount()), true
				}
			}
		}
		synctest.Wait()
		c.SendNext(edgetest.Metadata("k", "v"))
		synctest.Wait()
		require.Equal(t, 1.0, s.Counter("agentstatsd_agents_limited_total", "refused"))
		require.Equal(t, 1.0, s.Counter("agentstatsd_sessions_ended_total", "refused"))
		c.RequireEnd(codes.ResourceExhausted, "refused items of the agent: want at most 5 at once (--agent-refused-burst) and 1 a second after that (--agent-refused-rate), got 6")
		s.Connect(edgetest.Session{Agent: 2}) // nobody else is
	})
}
