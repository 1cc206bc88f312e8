package agentapi

import "google.golang.org/grpc"

// ServiceInfo returns what the server serves.
func (s *Server) ServiceInfo() map[string]grpc.ServiceInfo { return s.grpc.GetServiceInfo() }
