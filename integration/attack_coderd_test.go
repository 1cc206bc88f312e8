package integration

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// coderds have coderd's token and a fault.
var coderds = []attack{
	{name: "empty registrations", run: func(ctx context.Context, at target) (int64, error) {
		message := repeated([]byte{0x0a, 0}, megabytes4)
		return calls(ctx, at, 8, func(ctx context.Context, conn *grpc.ClientConn) error {
			var out []byte
			_ = conn.Invoke(withToken(ctx, at.Token), pathRegister, message, &out, grpc.ForceCodec(rawCodec{}))
			return nil // refused, as it is to be
		})
	}},
	{name: "registrations with large keys", run: func(ctx context.Context, at target) (int64, error) {
		n := 1000
		return calls(ctx, at, 1, func(ctx context.Context, conn *grpc.ClientConn) error {
			n++
			registration := registrationOf("coderd", n)
			for k := range 650 {
				registration.MetadataKeys = append(registration.MetadataKeys, fmt.Sprintf("%d-%d-%s", n, k, strings.Repeat("k", 6000)))
			}
			_, _ = pb.NewCoderdServiceClient(conn).RegisterAgents(withToken(ctx, at.Token), &pb.RegisterAgentsRequest{Agents: []*pb.AgentRegistration{registration}})
			return nil
		})
	}},
	{name: "syncs of empty registrations", run: func(ctx context.Context, at target) (int64, error) {
		message := repeated([]byte{0x0a, 0}, megabytes4)
		return calls(ctx, at, 8, func(ctx context.Context, conn *grpc.ClientConn) error {
			s, err := conn.NewStream(withToken(ctx, at.Token), &grpc.StreamDesc{ClientStreams: true}, pathSync, grpc.ForceCodec(rawCodec{}))
			for err == nil && ctx.Err() == nil {
				err = s.SendMsg(message)
			}
			return nil
		})
	}},
	{name: "syncs that never complete", run: func(ctx context.Context, at target) (int64, error) {
		return calls(ctx, at, 8, func(ctx context.Context, conn *grpc.ClientConn) error {
			s, err := pb.NewCoderdServiceClient(conn).SyncAgents(withToken(ctx, at.Token))
			for n := 0; err == nil && ctx.Err() == nil; n++ {
				request := &pb.SyncAgentsRequest{}
				for i := range 1000 {
					request.Agents = append(request.Agents, registrationOf("coderd", n*1000+i))
				}
				err = s.Send(request)
			}
			return nil
		})
	}},
	{name: "pushes of empty metrics", run: func(ctx context.Context, at target) (int64, error) {
		family := append(wrapped(1, []byte("empty_metrics")), 0x18, 1)
		family = append(family, repeated([]byte{0x22, 0}, megabytes4-1024)...)
		return calls(ctx, at, 8, func(ctx context.Context, conn *grpc.ClientConn) error {
			instance := make([]byte, 16)
			_, _ = rand.Read(instance)
			s, err := pb.NewCoderdServiceClient(conn).PushMetrics(withToken(ctx, at.Token))
			if err == nil {
				err = s.Send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Hello{Hello: &pb.PushHello{
					Replica: "broken", InstanceId: instance, Interval: durationpb.New(time.Second),
				}}})
			}
			for n := int64(1); err == nil && ctx.Err() == nil; n++ {
				for range 4 {
					family[2]++ // another name
					err = s.Send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_Families{Families: &pb.PushFamilies{Families: [][]byte{family}}}})
				}
				if err == nil {
					err = s.Send(&pb.PushMetricsRequest{Message: &pb.PushMetricsRequest_End{End: &pb.PushEnd{Snapshot: n}}})
				}
				if err == nil {
					_, err = s.Recv()
				}
			}
			return nil
		})
	}},
}

// calls lets several callers, each with a connection of its own, call f until ctx
// ends.
func calls(ctx context.Context, at target, callers int, f func(ctx context.Context, conn *grpc.ClientConn) error) (int64, error) {
	connections := make(chan *grpc.ClientConn, callers)
	for range callers {
		conn, err := at.dial()
		if err != nil {
			return 0, err
		}
		defer func() { _ = conn.Close() }()
		connections <- conn
	}
	return repeat(ctx, callers, func() error {
		conn := <-connections
		defer func() { connections <- conn }()
		return f(ctx, conn)
	})
}
