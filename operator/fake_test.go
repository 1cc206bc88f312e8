package operator

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/optiontable"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const fakeToken = "0123456789abcdef"

// fake is a replica that answers what its fields say. They are set before it is asked.
type fake struct {
	pb.UnimplementedAdminServiceServer
	address string

	pb.UnimplementedCoderdServiceServer

	statuses    []*pb.ReplicaStatus // its own first; nil: unimplemented
	agents      []*pb.AgentSummary
	noAgents    bool                                 // they are not loaded
	described   map[string]*pb.DescribeAgentResponse // by name and id
	events      []*pb.WatchAgentResponse
	watched     bool // WatchAgent does not end by itself
	refusals    *pb.ListRefusalsResponse
	cardinality *pb.GetCardinalityResponse
	cost        *pb.GetCostResponse
	config      *pb.GetConfigResponse
	pushes      *pb.ListPushesResponse
	explained   *pb.ExplainSeriesResponse
	files       []*pb.CollectBundleResponse
	tops        []*pb.TopAgentsResponse
	topEnds     bool // after tops

	mu sync.Mutex
	// Guarded by mu.
	searches     []*pb.SearchAgentsRequest
	draining     []bool
	deregistered [][]byte
}

// startFake serves f on a port of ip, with a certificate unless it is nil.
func startFake(t *testing.T, ip string, f *fake, cert *tls.Certificate) *fake {
	t.Helper()
	lis, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	require.NoError(t, err)
	f.address = lis.Addr().String()
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if !slices.Equal(metadata.ValueFromIncomingContext(ctx, "authorization"), []string{"Bearer " + fakeToken}) {
				return nil, status.Error(codes.Unauthenticated, "unknown token")
			}
			return next(ctx, req)
		}),
	}
	if cert != nil {
		opts = append(opts, grpc.Creds(credentials.NewServerTLSFromCert(cert)))
	}
	server := grpc.NewServer(opts...)
	pb.RegisterAdminServiceServer(server, f)
	pb.RegisterCoderdServiceServer(server, f)
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(server.Stop)
	return f
}

func (f *fake) GetStatus(context.Context, *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	if f.statuses == nil {
		return nil, status.Error(codes.Unimplemented, "no")
	}
	return &pb.GetStatusResponse{Replicas: f.statuses}, nil
}

// SearchAgents has pages of two agents.
func (f *fake) SearchAgents(_ context.Context, req *pb.SearchAgentsRequest) (*pb.SearchAgentsResponse, error) {
	f.mu.Lock()
	f.searches = append(f.searches, req)
	f.mu.Unlock()
	if req.GetOwner() == "nobody" {
		return nil, status.Error(codes.InvalidArgument, "owner: want somebody")
	}
	if f.noAgents {
		return nil, status.Error(codes.Unavailable, "the registrations are not available now; try again")
	}
	start := 0
	_, _ = fmt.Sscan(req.GetPageToken(), &start)
	end := min(start+2, len(f.agents))
	resp := &pb.SearchAgentsResponse{Agents: f.agents[start:end], Total: float64(len(f.agents))}
	if end < len(f.agents) {
		resp.NextPageToken = fmt.Sprint(end)
	}
	return resp, nil
}

func (f *fake) DescribeAgent(_ context.Context, req *pb.DescribeAgentRequest) (*pb.DescribeAgentResponse, error) {
	if d := f.described[req.GetAgent()]; d != nil {
		return d, nil
	}
	if req.GetAgent() == "ada/many" {
		return nil, status.Error(codes.FailedPrecondition, "agent: may be each of 2: ada/many.a\x1b[2J, ada/many.b\n")
	}
	return nil, status.Error(codes.NotFound, "agent: no agent is named so")
}

func (f *fake) WatchAgent(req *pb.WatchAgentRequest, stream grpc.ServerStreamingServer[pb.WatchAgentResponse]) error {
	if f.described[req.GetAgent()] == nil {
		return status.Error(codes.NotFound, "agent: no agent is named so")
	}
	for _, event := range f.events {
		if err := stream.Send(event); err != nil {
			return err
		}
	}
	if f.watched {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	return nil
}

func (f *fake) ListRefusals(context.Context, *pb.ListRefusalsRequest) (*pb.ListRefusalsResponse, error) {
	return f.refusals, nil
}

func (f *fake) GetCardinality(_ context.Context, req *pb.GetCardinalityRequest) (*pb.GetCardinalityResponse, error) {
	switch {
	case req.GetLimit() != maxCardinalityRows:
		return nil, status.Error(codes.InvalidArgument, "limit: want all")
	case req.GetBy() == f.cardinality.GetGroup().GetBy():
		return f.cardinality, nil
	}
	return nil, status.Error(codes.Unimplemented, "no")
}

func (f *fake) GetCost(context.Context, *pb.GetCostRequest) (*pb.GetCostResponse, error) {
	return f.cost, nil
}

func (f *fake) GetConfig(context.Context, *pb.GetConfigRequest) (*pb.GetConfigResponse, error) {
	return f.config, nil
}

func (f *fake) ListPushes(context.Context, *pb.ListPushesRequest) (*pb.ListPushesResponse, error) {
	return f.pushes, nil
}

func (f *fake) ExplainSeries(_ context.Context, req *pb.ExplainSeriesRequest) (*pb.ExplainSeriesResponse, error) {
	if req.GetSelector() == "{" {
		return nil, status.Error(codes.InvalidArgument, "selector: want a name")
	}
	return f.explained, nil
}

func (f *fake) CollectBundle(req *pb.CollectBundleRequest, stream grpc.ServerStreamingServer[pb.CollectBundleResponse]) error {
	for _, part := range f.files {
		if part.GetName() == "cpu.pprof" && req.GetCpuProfile() == nil {
			continue
		}
		if err := stream.Send(part); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) TopAgents(_ *pb.TopAgentsRequest, stream grpc.ServerStreamingServer[pb.TopAgentsResponse]) error {
	for _, resp := range f.tops {
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	if f.topEnds {
		return status.Error(codes.Unavailable, "the service is stopping")
	}
	<-stream.Context().Done()
	return nil
}

func (f *fake) SetDraining(_ context.Context, req *pb.SetDrainingRequest) (*pb.SetDrainingResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = append(f.draining, req.GetDraining())
	return &pb.SetDrainingResponse{Streams: 7}, nil
}

func (f *fake) DeregisterAgents(_ context.Context, req *pb.DeregisterAgentsRequest) (*pb.DeregisterAgentsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deregistered = append(f.deregistered, req.GetAgentIds()...)
	return &pb.DeregisterAgentsResponse{Deregistered: int64(len(req.GetAgentIds()))}, nil
}

// ran is what a command has done.
type ran struct {
	stdout, stderr string
	err            error
}

// run runs a command as main does, with the token of fakes unless args have another one.
func run(t *testing.T, args ...string) ran {
	t.Helper()
	if !slices.Contains(args, "--token-file") {
		path := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(path, []byte(fakeToken), 0o600))
		args = append(args, "--token-file", path)
	}
	root := &serpent.Command{Use: "agentstatsd"}
	root.AddSubcommands(Commands()...)
	optiontable.SetHelp(root)
	inv := root.Invoke(args...)
	var stdout, stderr bytes.Buffer
	inv.Stdout, inv.Stderr = &stdout, &stderr
	err := inv.WithContext(t.Context()).Run()
	if wrapped := new(serpent.RunCommandError); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return ran{stdout.String(), stderr.String(), err}
}

// addressesOf returns the addresses of fakes as a flag's value.
func addressesOf(fakes ...*fake) string {
	var all []string
	for _, f := range fakes {
		all = append(all, f.address)
	}
	return strings.Join(all, ",")
}

// replicaStatus is how a replica is that is well.
func replicaStatus(name string) *pb.ReplicaStatus {
	return &pb.ReplicaStatus{
		Id: "id-" + name, Name: name, Alive: true, Ready: true, Version: "v1.2.3", StartedAt: timestamppb.New(time.Now().Add(-50 * time.Hour)),
		Registered: 5, Connected: 2, Series: 70, ResidentBytes: 512 << 20, MemoryLimitBytes: 2 << 30, Cores: 0.25,
		ScrapedAt: timestamppb.New(time.Now().Add(-3*time.Hour - 30*time.Second)), Durability: &pb.Durability{Pending: 3},
	}
}

// asSeen is a status as another replica has it, seconds later.
func asSeen(s *pb.ReplicaStatus, seconds float64) *pb.ReplicaStatus {
	return &pb.ReplicaStatus{Id: s.GetId(), Name: s.GetName(), Alive: true, AgeSeconds: seconds, Version: s.GetVersion()}
}
