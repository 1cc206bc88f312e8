package agentapi_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// report30 is a report of 30 samples with two labels each.
func report30() *pb.ConnectRequest {
	s := &pb.Stats{RxBytes: 1000, TxBytes: 2000, ConnectionCount: 3, ConnectionMedianLatencyMs: 1.5}
	for i := range 30 {
		s.Metrics = append(s.Metrics, &pb.Stats_Metric{
			Name: fmt.Sprint("agent_metric_", i), Type: pb.Stats_Metric_TYPE_GAUGE, Value: float64(i),
			Labels: []*pb.Stats_Metric_Label{{Name: "kind", Value: "p2p"}, {Name: "success", Value: "true"}},
		})
	}
	return edgetest.Stats(s)
}

// BenchmarkStream sends reports of 30 samples on one stream and receives its
// acks: client, transport, decoding and aggregator together.
func BenchmarkStream(b *testing.B) {
	// An agent's rates would be what is measured.
	const unlimited = 1 << 40
	s := edgetest.Start(b, edgetest.Settings{Fleet: fleet.Options{
		MessagesPerSecond: unlimited, MessagesBurst: unlimited, BytesPerSecond: unlimited, BytesBurst: unlimited,
	}})
	s.Register(1)
	c := s.Connect(edgetest.Session{Agent: 1})
	c.Patient = true
	req := report30()
	ended := make(chan error)
	go func() {
		var err error
		for err == nil {
			_, err = c.Recv()
		}
		ended <- err
	}()
	b.ReportAllocs()
	for b.Loop() {
		c.SendNext(req)
	}
	require.NoError(b, c.CloseSend())
	require.Equal(b, io.EOF, <-ended) // all of them were taken in
}

// BenchmarkIdleStreams measures what a session without anything to say takes,
// client and server together, many on one connection.
func BenchmarkIdleStreams(b *testing.B) {
	const n = 1000
	s := edgetest.Start(b, edgetest.Settings{Server: grpcserver.Options{AgentCallRate: 1 << 20}})
	req := &pb.RegisterAgentsRequest{}
	for i := range n {
		req.Agents = append(req.Agents, edgetest.Registration(i+1))
	}
	_, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
	require.NoError(b, err)
	for b.Loop() {
		before := memory()
		ctx, cancel := context.WithCancel(b.Context())
		for i := range n {
			s.Open(edgetest.As(ctx, edgetest.Token(i+1))).SayHello(edgetest.Session{})
		}
		b.ReportMetric(float64(memory()-before)/n, "bytes/stream")
		cancel()
	}
}

func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
