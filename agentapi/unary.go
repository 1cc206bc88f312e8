package agentapi

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// refusalKey is the response trailer that carries encoded Refusal messages of a
// call without a session, at most maxTrailers of them.
const refusalKey = "agentstats-refusal-bin"

// maxTrailers refusals of at most 4 KB each stay below gRPC's usual limits of
// header lists.
const maxTrailers = 4

// call takes in a request without a session, and tells the caller in the trailer
// what was refused.
func (s *agentService) call(ctx context.Context, doing string, take func(fleet.Request) []agent.Refusal) ([]agent.Refusal, error) {
	var refused []agent.Refusal
	err := s.Fleet.Call(ctx, callerFrom(ctx).agent, func(r fleet.Request) { refused = take(r) })
	if err != nil {
		return nil, s.failure(ctx, doing, err)
	}
	trailer := metadata.MD{}
	for _, r := range refused[:min(len(refused), maxTrailers)] {
		encoded, err := proto.Marshal(refusalMessage(0, r))
		if err != nil {
			return nil, err
		}
		trailer.Append(refusalKey, string(encoded))
	}
	if len(trailer) > 0 {
		if err := grpc.SetTrailer(ctx, trailer); err != nil {
			return nil, err
		}
	}
	return refused, nil
}

// refusalStatus returns the status for a call of which something was refused;
// the rest was taken in.
func refusalStatus(refused []agent.Refusal) error {
	if len(refused) == 0 {
		return nil
	}
	first := refused[0]
	code := codes.InvalidArgument
	switch first.Kind {
	case agent.RefusedLimit:
		code = codes.ResourceExhausted
	case agent.RefusedNotAllowed:
		code = codes.PermissionDenied
	case agent.RefusedInvalid, agent.RefusedStore:
	}
	return status.Error(code, cut(first.Message, maxRefusalText))
}

// UpdateStats implements agentstatsv1.AgentServiceServer. Refused samples are no
// error: a caller that tried again would count its bytes twice. They are told in
// the trailer.
func (s *agentService) UpdateStats(ctx context.Context, req *agentstatsv1.UpdateStatsRequest) (*agentstatsv1.UpdateStatsResponse, error) {
	if stats := req.GetStats(); stats != nil {
		_, err := s.call(ctx, "take in stats", func(r fleet.Request) []agent.Refusal { return s.takeStats(r, stats) })
		if err != nil {
			return nil, err
		}
	}
	return &agentstatsv1.UpdateStatsResponse{ReportInterval: durationpb.New(s.opts.ReportInterval)}, nil
}

// BatchUpdateMetadata implements agentstatsv1.AgentServiceServer. If anything
// was refused it is an error, as Coder's is; the rest was taken in.
func (s *agentService) BatchUpdateMetadata(ctx context.Context, req *agentstatsv1.BatchUpdateMetadataRequest) (*agentstatsv1.BatchUpdateMetadataResponse, error) {
	refused, err := s.call(ctx, "take in metadata", func(r fleet.Request) []agent.Refusal { return s.takeMetadata(r, req.GetMetadata()) })
	if err == nil {
		err = refusalStatus(refused)
	}
	if err != nil {
		return nil, err
	}
	return &agentstatsv1.BatchUpdateMetadataResponse{}, nil
}

// UpdateLifecycle implements agentstatsv1.AgentServiceServer.
func (s *agentService) UpdateLifecycle(ctx context.Context, req *agentstatsv1.UpdateLifecycleRequest) (*agentstatsv1.UpdateLifecycleResponse, error) {
	if req.GetLifecycle() == nil {
		return nil, invalid("lifecycle", "want it, got none")
	}
	var lifecycle agent.Lifecycle
	refused, err := s.call(ctx, "take in a lifecycle state", func(r fleet.Request) (refused []agent.Refusal) {
		lifecycle, refused = s.takeLifecycle(r, req.GetLifecycle())
		return refused
	})
	if err == nil {
		err = refusalStatus(refused)
	}
	if err != nil {
		return nil, err
	}
	return &agentstatsv1.UpdateLifecycleResponse{
		State:     req.GetLifecycle().GetState(),
		ChangedAt: timestamppb.New(lifecycle.ChangedAt),
	}, nil
}

// BatchUpdateAppHealths implements agentstatsv1.AgentServiceServer. If anything
// was refused it is an error; the rest was taken in.
func (s *agentService) BatchUpdateAppHealths(ctx context.Context, req *agentstatsv1.BatchUpdateAppHealthsRequest) (*agentstatsv1.BatchUpdateAppHealthsResponse, error) {
	refused, err := s.call(ctx, "take in health of apps", func(r fleet.Request) []agent.Refusal { return s.takeAppHealth(r, req.GetUpdates()) })
	if err == nil {
		err = refusalStatus(refused)
	}
	if err != nil {
		return nil, err
	}
	return &agentstatsv1.BatchUpdateAppHealthsResponse{}, nil
}
