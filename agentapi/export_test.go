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
func (s *CoderdService) TakeReads(ctx context.Context) (giveBack func(), err error) {
	hold, err := s.watchBytes.acquire(ctx, int(s.watchBytes.limit), time.Second)
	if err != nil {
		return nil, err
	}
	return hold.release, nil
}

// Intake takes in encoded requests of one agent as a stream does.
type Intake struct{ frame frame }

// NewIntake returns an Intake of a stream with the default limit.
func NewIntake() *Intake { return &Intake{frame{limit: 1 << 20}} }

// Take takes in a request.
func (in *Intake) Take(s *AgentService, r fleet.Request, data mem.BufferSlice) ([]agent.Refusal, error) {
	if err := in.frame.UnmarshalMessage(data); err != nil {
		return nil, err
	}
	defer in.frame.release()
	return s.takeRequest(r, &in.frame), nil
}
