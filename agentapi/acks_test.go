package agentapi_test

import (
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// patient is a stream that asks for no acks, and when it began.
type patient struct {
	*edgetest.Stream
	began time.Time
	// gather is how long an ack may wait for those of other agents.
	gather time.Duration
}

func connectPatient(s *edgetest.Service, session edgetest.Session) *patient {
	s.T.Helper()
	c := s.Connect(session)
	c.Patient = true
	p := &patient{Stream: c, began: time.Now()}
	if edgetest.IsOverRelay(s.T) {
		p.gather = 200 * time.Millisecond
	}
	return p
}

// until sleeps until so long after the stream began.
func (p *patient) until(after time.Duration) {
	time.Sleep(after - time.Since(p.began))
	synctest.Wait()
}

// requireMessage receives the next message, so long after the stream began.
func (p *patient) requireMessage(after time.Duration) *pb.ConnectResponse {
	p.T.Helper()
	m, err := p.AgentService_ConnectClient.Recv()
	require.NoError(p.T, err)
	got := time.Since(p.began)
	require.GreaterOrEqual(p.T, got, after)
	require.LessOrEqual(p.T, got, after+p.gather)
	return m
}

// requireAck receives the next message, which is this ack alone.
func (p *patient) requireAck(after time.Duration, want edgetest.Ack) {
	p.T.Helper()
	m := p.requireMessage(after)
	require.Equal(p.T, want, edgetest.Ack{Received: m.GetAck().GetReceivedSequence(), Durable: m.GetAck().GetDurableSequence()})
	require.Nil(p.T, m.GetReconnect())
	require.Empty(p.T, m.GetRefusals())
}

// connectToSchedule returns a stream of a service that flushes metadata each 5 s, the
// first time 5 s after the stream began.
func connectToSchedule(t *testing.T, set edgetest.Settings) (*edgetest.Service, *patient) {
	t.Helper()
	s := edgetest.Start(t, set)
	s.Register(1)
	c := connectPatient(s, edgetest.Session{Agent: 1})
	return s, c
}

func custom(v float64) *pb.ConnectRequest { return edgetest.Stats(edgetest.Gauge("custom", v)) }

// An ack waits for what is sent anyway, and for what will be durable soon.
func TestAcksWait(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, c := connectToSchedule(t, edgetest.Settings{})
		c.until(time.Second)
		c.SendNext(custom(1))
		c.until(3 * time.Second)
		c.SendNext(custom(2))
		c.requireAck(6*time.Second, edgetest.Ack{Received: 2, Durable: 2})

		c.until(7 * time.Second)
		c.SendNext(edgetest.Metadata("k", "1"))
		c.until(8 * time.Second)
		c.SendNext(custom(3))
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_READY))
		c.requireAck(10*time.Second, edgetest.Ack{Received: 5, Durable: 5})

		c.until(11 * time.Second)
		c.SendNext(edgetest.Lifecycle(pb.Lifecycle_STATE_SHUTTING_DOWN))
		c.requireAck(11*time.Second+500*time.Millisecond, edgetest.Ack{Received: 6, Durable: 6})

		// What is due goes with a refusal.
		c.until(12 * time.Second)
		c.SendNext(custom(4))
		c.until(13 * time.Second)
		c.SendNext(edgetest.Stats(edgetest.Gauge("bad name", 1)))
		m := c.requireMessage(13 * time.Second)
		require.Len(t, m.GetRefusals(), 1)
		require.EqualValues(t, 8, m.GetAck().GetDurableSequence())

		// Nothing is left to be said.
		c.until(time.Minute)
		require.NoError(t, c.CloseSend())
		_, err := c.Recv()
		require.Equal(t, io.EOF, err)
	})
}

// Eight requests are acked soon, of very many each 32nd at once.
func TestManyRequestsAreAcked(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, c := connectToSchedule(t, edgetest.Settings{})
		for range 2*32 + 9 {
			c.SendNext(custom(1))
		}
		c.requireAck(0, edgetest.Ack{Received: 32, Durable: 32})
		c.requireAck(0, edgetest.Ack{Received: 64, Durable: 64})
		c.requireAck(5*time.Millisecond, edgetest.Ack{Received: 73, Durable: 73})
		c.SendNext(custom(1))
		c.requireAck(5*time.Second+5*time.Millisecond, edgetest.Ack{Received: 74, Durable: 74})
	})
}

// While the database is away a request is acked as received after the time in which it
// should have been stored.
func TestAckOfWhatIsNotStored(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, c := connectToSchedule(t, edgetest.Settings{Agents: agentapi.Options{AckDelay: 3 * time.Second, FlushInterval: 5 * time.Second}})
		require.Equal(t, 3*time.Second, c.Settings.GetAckDelay().AsDuration())
		s.Store.SetDown(true)
		c.until(time.Second)
		c.SendNext(edgetest.Metadata("k", "1"))
		c.requireAck(9*time.Second, edgetest.Ack{Received: 1})
		c.SendNext(custom(1))
		c.requireAck(12*time.Second, edgetest.Ack{Received: 2})
		s.Store.SetDown(false)
		received, durable := c.NextAck()
		require.Equal(t, edgetest.Ack{Received: 2, Durable: 2}, edgetest.Ack{Received: received, Durable: durable})
	})
}

// storedAtOnce is a database that has all before it is asked.
type storedAtOnce struct{}

func (storedAtOnce) Add(time.Time, agent.MetadataReport) []agent.Refusal { return nil }

// What is stored before its request is noted is acked at once.
func TestAckOfWhatIsStoredAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, c := connectToSchedule(t, edgetest.Settings{ChangeAgents: func(c *agentapi.Components) { c.Metadata = storedAtOnce{} }})
		c.SendNext(edgetest.Metadata("k", "1"))
		c.requireAck(0, edgetest.Ack{Received: 1, Durable: 1})
	})
}

// An ack that is waited for comes at once, and another one with each progress.
func TestAckNow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, c := connectToSchedule(t, edgetest.Settings{})
		c.until(time.Second)
		c.SendNext(custom(1))
		c.SendNext(edgetest.Metadata("k", "1"))
		c.SendNext(&pb.ConnectRequest{AckNow: true})
		c.requireAck(time.Second, edgetest.Ack{Received: 3, Durable: 1})
		c.until(4 * time.Second)
		c.SendNext(custom(2))
		c.requireAck(5*time.Second, edgetest.Ack{Received: 4, Durable: 4})
		c.SendNext(custom(3))
		c.requireAck(10*time.Second, edgetest.Ack{Received: 5, Durable: 5})
	})
}

// A flush has one ack, also if what the agent has in it is written in two batches. What
// is written long before the rest is acked a second later.
func TestFlushHasOneAck(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, c := connectToSchedule(t, edgetest.Settings{Batcher: batcher.Options{BatchSize: 10, FlushInterval: 5 * time.Second, MaxPending: 1000}})
		report := func(first int) {
			var pairs []string
			for n := range 7 {
				pairs = append(pairs, fmt.Sprint("k", first+n), "v")
			}
			c.SendNext(edgetest.Metadata(pairs...))
			synctest.Wait()
		}
		c.until(4500 * time.Millisecond)
		report(0)
		report(7) // the batch is full, and written
		c.requireAck(5*time.Second, edgetest.Ack{Received: 2, Durable: 2})

		c.until(6 * time.Second)
		report(0)
		report(7)
		c.requireAck(7*time.Second, edgetest.Ack{Received: 4, Durable: 3})
		c.requireAck(10*time.Second, edgetest.Ack{Received: 4, Durable: 4})
	})
}

// No ack is lost when a stream ends in good order.
func TestAckBeforeTheEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, c := connectToSchedule(t, edgetest.Settings{})
		c.SendNext(custom(1))
		require.NoError(t, c.CloseSend())
		c.requireAck(0, edgetest.Ack{Received: 1, Durable: 1})
		c.RequireEnd(codes.OK, "")

		c = connectPatient(s, edgetest.Session{Agent: 1, Number: 2})
		c.SendNext(custom(2))
		require.NoError(t, c.Send(&pb.ConnectRequest{Sequence: -1, AckNow: true}))
		c.requireAck(0, edgetest.Ack{Received: 2, Durable: 2})
		c.RequireEnd(codes.InvalidArgument, "sequence: want at least 1, got -1")

		c = connectPatient(s, edgetest.Session{Agent: 1, Number: 3})
		c.SendNext(custom(3))
		c.SendNext(edgetest.Goodbye())
		c.requireAck(0, edgetest.Ack{Received: 4, Durable: 4})
		c.RequireEnd(codes.OK, "")
		synctest.Wait()
	})
}

// A please-reconnect has the acks with it.
func TestReconnectHasTheAck(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, c := connectToSchedule(t, edgetest.Settings{
			Fleet:  fleet.Options{SessionAge: 10 * time.Minute, Random: func() float64 { return 0.5 }},
			Server: grpcserver.Options{DrainTimeout: 4 * time.Second}, // below the ack's delay
		})
		c.until(10*time.Minute - time.Second)
		c.SendNext(custom(1))
		m, err := c.AgentService_ConnectClient.Recv()
		require.NoError(t, err)
		require.Equal(t, "session_age", m.GetReconnect().GetReason())
		require.EqualValues(t, 1, m.GetAck().GetDurableSequence())
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.OK, "")

		c = connectPatient(s, edgetest.Session{Agent: 1, Number: 2})
		sequence := c.SendNext(custom(2))
		synctest.Wait()
		var stopping sync.WaitGroup
		stopping.Go(s.Stop)
		m, err = c.AgentService_ConnectClient.Recv()
		require.NoError(t, err)
		require.Equal(t, "draining", m.GetReconnect().GetReason())
		require.Equal(t, sequence, m.GetAck().GetDurableSequence())
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.OK, "")
		stopping.Wait()
	})
}

// An agent with two reports and six times metadata in a minute exchanges twelve messages
// in it, whether its reports are watched or not.
func TestMessagesOfAnAgent(t *testing.T) {
	for _, watched := range []bool{false, true} {
		t.Run(fmt.Sprint("watched ", watched), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s, c := connectToSchedule(t, edgetest.Settings{})
				if watched {
					_, err := s.Store.OpenSubscription(t.Context(), agent.SubscriptionOpening{Name: "a", Stream: uuid.New(), Incarnation: 1, Max: 1, Lease: time.Hour})
					require.NoError(t, err)
					require.NoError(t, s.Reports.Load(t.Context()))
				}
				const minutes = 10
				acks := 0
				var receiving sync.WaitGroup
				receiving.Go(func() {
					for {
						if _, err := c.AgentService_ConnectClient.Recv(); err != nil {
							return
						}
						acks++
					}
				})
				for n := range minutes * 6 {
					c.until(time.Duration(n)*10*time.Second + 2*time.Second)
					req := edgetest.Metadata("a", fmt.Sprint(n), "b", fmt.Sprint(n))
					if n%3 == 0 {
						req.Stats = &pb.Stats{RxBytes: 10, Metrics: edgetest.Gauge("custom", float64(n)).GetMetrics()}
					}
					c.SendNext(req)
				}
				c.until(minutes * time.Minute)
				require.NoError(t, c.CloseSend())
				receiving.Wait()
				require.Equal(t, minutes*6, acks)
			})
		})
	}
}
