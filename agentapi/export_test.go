package agentapi

import (
	"google.golang.org/grpc/mem"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
)

// Ingester takes in encoded requests of one agent as a stream does.
type Ingester struct{ frame wire.Frame }

// NewIngester returns an Ingester of a stream with the default limit.
func NewIngester() *Ingester { return &Ingester{wire.NewFrame(agent.ID{}, 1<<20)} }

// Take takes in a request.
func (in *Ingester) Take(s *Service, r fleet.Request, data mem.BufferSlice) ([]agent.Refusal, error) {
	if err := in.frame.UnmarshalMessage(data); err != nil {
		return nil, err
	}
	defer in.frame.Release()
	return s.takeRequest(r, &in.frame), nil
}
