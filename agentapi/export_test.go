package agentapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
)

// ServiceInfo returns what the server serves.
func (s *Server) ServiceInfo() map[string]grpc.ServiceInfo { return s.grpc.GetServiceInfo() }

// TakeReads takes all that may be read for watches at once.
func (s *Server) TakeReads(ctx context.Context) (giveBack func(), err error) {
	hold, err := s.watchBytes.acquire(ctx, int(s.watchBytes.limit), time.Second)
	if err != nil {
		return nil, err
	}
	return hold.release, nil
}

// Intake takes in encoded requests of one agent as a stream does.
type Intake struct{ frame frame }

// Take takes in a request.
func (in *Intake) Take(s *Server, r fleet.Request, data mem.BufferSlice) ([]agent.Refusal, error) {
	if err := testCodec.Unmarshal(data, &in.frame); err != nil {
		return nil, err
	}
	defer in.frame.release()
	return s.takeRequest(r, &in.frame), nil
}
