package adminapi

import (
	"context"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// SetDraining implements agentstatsv1.AdminServiceServer.
func (s *Service) SetDraining(ctx context.Context, req *agentstatsv1.SetDrainingRequest) (*agentstatsv1.SetDrainingResponse, error) {
	streams := s.server.SetDraining(req.GetDraining())
	text := "agents may connect again"
	if req.GetDraining() {
		text = "agents are sent away, as an operator says"
	}
	s.log.InfoContext(ctx, text, "streams", streams)
	return &agentstatsv1.SetDrainingResponse{Streams: float64(streams)}, nil
}
