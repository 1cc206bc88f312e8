package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// recorder is a service that acks all that it gets.
type recorder struct {
	agentstatsv1.UnimplementedAgentServiceServer
	agentstatsv1.UnimplementedCoderdServiceServer

	mu       sync.Mutex
	tokens   []string
	requests []*agentstatsv1.ConnectRequest
	families []string
}

func (r *recorder) addToken(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens = append(r.tokens, md.Get("authorization")...)
}

func (r *recorder) Connect(stream grpc.BidiStreamingServer[agentstatsv1.ConnectRequest, agentstatsv1.ConnectResponse]) error {
	r.addToken(stream.Context())
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&agentstatsv1.ConnectResponse{Settings: &agentstatsv1.Settings{
		ReportInterval: durationpb.New(30 * time.Second),
		Epoch:          1,
		Resume:         &agentstatsv1.Resume{},
		Limits:         &agentstatsv1.Limits{MessageBytes: 64 << 10, MetadataReportKeyBytes: 6144},
	}}); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.requests = append(r.requests, req)
		r.mu.Unlock()
		ack := &agentstatsv1.Ack{ReceivedSequence: req.GetSequence(), DurableSequence: req.GetSequence()}
		if err := stream.Send(&agentstatsv1.ConnectResponse{Ack: ack}); err != nil {
			return err
		}
	}
}

func (r *recorder) PushMetrics(stream grpc.BidiStreamingServer[agentstatsv1.PushMetricsRequest, agentstatsv1.PushMetricsResponse]) error {
	r.addToken(stream.Context())
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, encoded := range req.GetFamilies().GetFamilies() {
			family := &dto.MetricFamily{}
			if err := proto.Unmarshal(encoded, family); err != nil {
				return err
			}
			r.mu.Lock()
			r.families = append(r.families, family.GetName())
			r.mu.Unlock()
		}
		if end := req.GetEnd(); end != nil {
			if err := stream.Send(&agentstatsv1.PushMetricsResponse{Snapshot: end.GetSnapshot()}); err != nil {
				return err
			}
		}
	}
}

// An agent's session and a push over TCP, with the versions of go.mod: the oldest ones.
// What breaks, and what the service does, is tested with the newest (internal/clienttest).
func TestSessionAndPush(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	service, server := &recorder{}, grpc.NewServer()
	agentstatsv1.RegisterAgentServiceServer(server, service)
	agentstatsv1.RegisterCoderdServiceServer(server, service)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	conn, err := client.DialURL("agentstatsd://" + listener.Addr().String() + "?plaintext=true&token=secret")
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()

	var durable []client.Metadata
	agent, err := client.NewAgent(conn, client.AgentOptions{OnDurable: func(entries []client.Metadata) { durable = append(durable, entries...) }})
	require.NoError(t, err)
	running := make(chan error, 1)
	go func() { running <- agent.Run(ctx) }()
	agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
	agent.Report(&agentstatsv1.Stats{RxBytes: 1200})
	require.NoError(t, agent.UpdateMetadata(client.Metadata{Key: "cpu_usage", Value: "12%"}))
	require.NoError(t, agent.Flush(ctx))
	require.NoError(t, agent.Close(ctx))
	require.NoError(t, <-running)
	require.Len(t, durable, 1)
	require.Equal(t, "12%", durable[0].Value)

	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "coderd_prebuilt_workspaces_running"}))
	ended, end := context.WithCancel(ctx)
	end()
	// The end of its context has it push a last time.
	require.NoError(t, client.PushGatherer(ended, conn, registry, client.PushOptions{}))

	service.mu.Lock()
	defer service.mu.Unlock()
	all := &agentstatsv1.ConnectRequest{}
	for _, req := range service.requests {
		proto.Merge(all, req)
	}
	require.Equal(t, agentstatsv1.Lifecycle_STATE_READY, all.GetLifecycle().GetState())
	require.Equal(t, int64(1200), all.GetStats().GetRxBytes())
	require.NotNil(t, all.GetGoodbye())
	require.Equal(t, []string{"coderd_prebuilt_workspaces_running"}, service.families)
	require.Equal(t, []string{"Bearer secret", "Bearer secret"}, service.tokens)
}
