package agentapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
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
