package adminapi

import (
	"context"
	"strconv"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// GetConfig implements agentstatsv1.AdminServiceServer.
func (s *Service) GetConfig(context.Context, *agentstatsv1.GetConfigRequest) (*agentstatsv1.GetConfigResponse, error) {
	rows, hash := s.Config()
	resp := &agentstatsv1.GetConfigResponse{Hash: strconv.FormatUint(hash, 10)}
	for _, row := range rows {
		resp.Options = append(resp.Options, &agentstatsv1.Option{
			Flag: row.Flag, Env: row.Env, Group: row.Group, Value: row.Value, DefaultValue: row.Default,
			Source: row.Source, NeedsRestart: !row.Reloadable,
		})
	}
	return resp, nil
}
