package adminapi

import (
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/tap"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// watchRetry is when to ask again to watch an agent, if too many are watched.
const watchRetry = 10 * time.Second

// WatchAgent implements agentstatsv1.AdminServiceServer. The header is sent when the watch
// has begun. An agent without a session here may open one.
func (s *Service) WatchAgent(req *agentstatsv1.WatchAgentRequest, stream grpc.ServerStreamingServer[agentstatsv1.WatchAgentResponse]) error {
	info, err := s.findAgent(req.GetAgent())
	if err != nil {
		return err
	}
	if err := s.server.BeginStream(); err != nil {
		return err
	}
	defer s.server.EndStream()
	id := info.Registration.ID
	watched, err := s.Taps.Open(id)
	if err != nil {
		return grpcserver.Exhausted(watchRetry, err.Error())
	}
	defer watched.Close()
	changed := make(chan struct{}, 1)
	defer s.Fleet.Watch(func(ids []agent.ID) {
		if ids == nil || slices.Contains(ids, id) {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	})()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for s.Fleet.Registration(id) != nil {
		select {
		case e := <-watched.Events():
			if err := stream.Send(eventMessage(&e)); err != nil {
				return err
			}
		case <-changed:
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	for len(watched.Events()) > 0 {
		e := <-watched.Events()
		if err := stream.Send(eventMessage(&e)); err != nil {
			return err
		}
	}
	return notFound(id.String())
}

func eventMessage(e *tap.Event) *agentstatsv1.WatchAgentResponse {
	return &agentstatsv1.WatchAgentResponse{
		At: timestamppb.New(e.At), Kind: e.Kind, Sequence: float64(e.Sequence), Text: e.Text, Missed: float64(e.Missed),
	}
}
