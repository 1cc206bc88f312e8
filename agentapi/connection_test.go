package agentapi_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// An agent that is idle has one goroutine beside those of its connection.
func TestStreamsHaveOneGoroutine(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const agents = 50
		s := edgetest.Start(t, edgetest.Settings{})
		numbers := make([]int, agents)
		for i := range numbers {
			numbers[i] = i + 1
		}
		s.Register(numbers...)
		synctest.Wait()
		before := ownGoroutines()
		for _, n := range numbers {
			c := s.Connect(edgetest.Session{Agent: n})
			c.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
			c.RequireDurable(1)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, agents, ownGoroutines()-before)
	})
}

// ownGoroutines counts those that run something of this package.
func ownGoroutines() (n int) {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "agentstatsd/agentapi.(") {
			n++
		}
	}
	return n
}

// An agent that does not read its responses is not read either, in the end, and stands
// in nobody's way.
func TestAgentThatDoesNotRead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const bad, requests = 40, 2000
		s := edgetest.Start(t, edgetest.Settings{
			Fleet: fleet.Options{RefusedBurst: bad * requests, RefusedPerSecond: 1},
			// Else the client would have bigger windows in time.
			Dial: []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(1 << 20)},
		})
		s.Register(1, 2)
		silent := s.Connect(edgetest.Session{Agent: 1})
		m := &pb.Stats{}
		for range bad {
			m.Metrics = append(m.Metrics, &pb.Stats_Metric{Name: strings.Repeat("bad name ", 20)})
		}
		var sent atomic.Int64
		go func() {
			for i := range int64(requests) {
				req := edgetest.Stats(m)
				req.Sequence = i + 1
				if silent.Send(req) != nil {
					return
				}
				sent.Add(1)
			}
		}()
		synctest.Wait()
		require.Less(t, sent.Load(), int64(requests/4), "its requests wait")

		other := s.Connect(edgetest.Session{Agent: 2})
		other.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
		other.RequireDurable(1)
		second := s.Connect(edgetest.Session{Agent: 1, Instance: 2})
		second.SendNext(edgetest.Stats(edgetest.Gauge("custom", 2)))
		second.RequireDurable(1)

		refusals := 0
		for {
			m, err := silent.Recv()
			if err != nil {
				edgetest.RequireCode(t, err, codes.Aborted, "superseded by a newer session")
				break
			}
			if edgetest.RefusalOf(m) != nil {
				refusals++
			}
		}
		require.Positive(t, refusals, "refusals wait before they are sent")
	})
}

// Agents that do not read do not hold up the stop of the service.
func TestStopWithAgentThatDoesNotRead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{
			Fleet: fleet.Options{RefusedBurst: 1 << 20, RefusedPerSecond: 1},
			Dial:  []grpc.DialOption{grpc.WithStaticStreamWindowSize(64 << 10), grpc.WithStaticConnWindowSize(1 << 20)},
		})
		s.Register(1)
		silent := s.Connect(edgetest.Session{Agent: 1})
		m := &pb.Stats{}
		for range 16 {
			m.Metrics = append(m.Metrics, &pb.Stats_Metric{Name: strings.Repeat("bad name ", 20)})
		}
		go func() {
			for i := range int64(500) {
				req := edgetest.Stats(m)
				req.Sequence = i + 1
				if silent.Send(req) != nil {
					return
				}
			}
		}()
		synctest.Wait()
		began := time.Now()
		s.Stop()
		require.Equal(t, 12*time.Second, time.Since(began))
	})
}

// The ack of a goodbye is sent after the series are removed, also if another goroutine
// than the handler sends it. Here metadata becomes durable when the goodbye arrives.
func TestSeriesAreGoneWhenGoodbyeIsAcked(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{
		Batcher: batcher.Options{BatchSize: 1, FlushInterval: time.Hour, MaxPending: 10},
		Fleet:   fleet.Options{MessagesBurst: 100_000},
	})
	s.Register(1)
	for i := range int64(300) {
		c := s.Connect(edgetest.Session{Agent: 1, Instance: byte(1 + i%250)})
		c.SendNext(edgetest.Stats(edgetest.Gauge("custom", 1)))
		for range 3 {
			c.SendNext(edgetest.Metadata("k", fmt.Sprint(i)))
		}
		c.SendNext(edgetest.Goodbye())
		for received := int64(0); received < 5; {
			received, _ = c.NextAck()
		}
		require.Empty(t, s.Exposition("custom"), "round %d", i)
		require.NoError(t, c.CloseSend())
		c.RequireEnd(codes.OK, "")
	}
}
