package grpcserver

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Role is who may call a service.
type Role uint8

// The roles.
const (
	// RoleAgent is an agent by its token.
	RoleAgent Role = iota + 1
	// RoleCoderd is coderd by its token, or its client certificate.
	RoleCoderd
	// rolePusher are those who may only push, and coderd when it pushes. No method is of
	// this role: it has a share of coderd's room for large messages.
	rolePusher
	// roleOperator are those who may only read. No method is of this role.
	roleOperator
)

// String returns the role as the metrics label it.
func (r Role) String() string {
	switch r {
	case RoleAgent:
		return "agent"
	case RoleCoderd:
		return "coderd"
	case rolePusher:
		return "push"
	case roleOperator:
		return "operator"
	}
	return "none"
}

// Service is a service that a Server serves to those of a role.
type Service struct {
	Desc *grpc.ServiceDesc
	Impl any
	Role Role
	// MethodRoles are the roles of methods by their full names, where they differ from
	// Role.
	MethodRoles map[string]Role
	// ForPushers are methods of coderd, by their full names, that those may call, too,
	// who may only push.
	ForPushers []string
	// ForOperators are likewise those of methods that read only.
	ForOperators []string
	// MessageBytes are limits of messages by the full name of their method, where they
	// are lower than the role's.
	MessageBytes map[string]int
	// Intercept is called last before the handler, when the caller is known and within
	// its limits; nil: the handler is.
	Intercept grpc.StreamServerInterceptor
	// Ready returns why the service cannot be used now, within a second. The health
	// service serves it. nil: the service can always be used.
	Ready func(ctx context.Context) error
}

// isReady reports whether the service can be used now.
func (s *Service) isReady(ctx context.Context) bool {
	if s.Ready == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, healthInterval)
	defer cancel()
	return s.Ready(ctx) == nil
}

// Register adds a service, before Serve.
func (s *Server) Register(service Service) {
	registrar{s.grpc}.RegisterService(service.Desc, service.Impl)
	s.services[service.Desc.ServiceName] = &service
	s.health.SetServingStatus(service.Desc.ServiceName, healthpb.HealthCheckResponse_NOT_SERVING)
}

// ServiceInfo returns what is served, health and reflection included, by name.
func (s *Server) ServiceInfo() map[string]grpc.ServiceInfo { return s.grpc.GetServiceInfo() }

// roleOf returns the role of a method; 0: its service is not registered here.
func (s *Server) roleOf(fullMethod string) Role {
	service := s.services[serviceOf(fullMethod)]
	if service == nil {
		return 0
	}
	if role, ok := service.MethodRoles[fullMethod]; ok {
		return role
	}
	return service.Role
}

// isFor reports whether those who may only push, or read, may call a method.
func (s *Server) isFor(role Role, fullMethod string) bool {
	service := s.services[serviceOf(fullMethod)]
	if service == nil {
		return false
	}
	methods := service.ForPushers
	if role == roleOperator {
		methods = service.ForOperators
	}
	return slices.Contains(methods, fullMethod)
}

// interceptStream calls what the service has registered.
func (s *Server) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if service := s.services[serviceOf(info.FullMethod)]; service != nil && service.Intercept != nil {
		return service.Intercept(srv, stream, info, handler)
	}
	return handler(srv, stream)
}
