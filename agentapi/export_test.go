package agentapi

import (
	"google.golang.org/grpc/mem"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
)

// Intake takes in encoded requests of one agent as a stream does.
type Intake struct{ frame wire.Frame }

// NewIntake returns an Intake of a stream with the default limit.
func NewIntake() *Intake { return &Intake{wire.NewFrame(agent.ID{}, 1<<20)} }

// Take takes in a request.
func (in *Intake) Take(s *Service, r fleet.Request, data mem.BufferSlice) ([]agent.Refusal, error) {
	if err := in.frame.UnmarshalMessage(data); err != nil {
		return nil, err
	}
	defer in.frame.Release()
	return s.takeRequest(r, &in.frame), nil
}
