package adminapi

import (
	"context"
	"encoding/hex"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// ListPushes implements agentstatsv1.AdminServiceServer.
func (s *Service) ListPushes(context.Context, *agentstatsv1.ListPushesRequest) (*agentstatsv1.ListPushesResponse, error) {
	resp := &agentstatsv1.ListPushesResponse{}
	for _, p := range s.Pushes.Instances() {
		resp.Pushers = append(resp.Pushers, &agentstatsv1.Pusher{
			Replica: p.Replica, Instance: hex.EncodeToString(p.Instance[:]), Families: float64(p.Families),
			Series: float64(p.Lines), PushedAt: timestamppb.New(p.PushedAt), Expired: !p.Live, PassThrough: p.PassThrough,
		})
	}
	return resp, nil
}
