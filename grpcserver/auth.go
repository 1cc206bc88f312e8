package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
)

// maxTokenBytes bounds what is hashed for a stranger.
const maxTokenBytes = 1024

// Caller is who calls a method.
type Caller struct {
	// Agent that the call is of; zero for the holders of other tokens.
	Agent agent.ID
	// Token of the agent; empty for them.
	Token string
	// IsPusher: it has a token of those who may only push.
	IsPusher bool
	// IsOperator: it has a token of those who may only read.
	IsOperator bool
}

type callerKey struct{}

// CallerFrom returns who calls; auth has put it there.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Agents finds agents by their tokens, and keeps the agents' budgets.
type Agents interface {
	// Authenticate returns the agent with the token. The error is
	// agent.ErrUnknownToken if there is none, else why that is not known now. It
	// may block.
	Authenticate(ctx context.Context, token string) (agent.ID, error)
	// RetryAfter returns how long the agent must wait before it may open a session; 0: it
	// may now. It charges nothing.
	RetryAfter(id agent.ID) time.Duration
	// ChargeRefused charges the agent for refused items, and the bytes that they came in.
	ChargeRefused(id agent.ID, items, bytes int) (retry time.Duration)
}

// authenticator finds out who calls, and whether they may.
type authenticator struct {
	agents    Agents
	tokens    tokens
	clientSAN string
	metrics   *metrics
	log       *slog.Logger
	logged    logLimit
	// roleOf returns the role of a method; 0: it has none.
	roleOf func(fullMethod string) Role
	// isFor reports whether those of a role that is not the method's may call it.
	isFor func(role Role, fullMethod string) bool
	// authenticated is called for each call that has a credential. For calls of agents
	// that are refused for a while turnedAway is called instead.
	authenticated func(ctx context.Context, who Caller)
	turnedAway    func(ctx context.Context)
}

func (a *authenticator) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, end, err := a.begin(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	defer end()
	return handler(srv, &streamWithContext{ServerStream: stream, ctx: ctx})
}

// begin admits a stream. It returns the context of its handler, and what is to be called at
// its end.
func (a *authenticator) begin(ctx context.Context, fullMethod string) (_ context.Context, end func(), _ error) {
	ctx, token, err := a.admit(ctx, fullMethod)
	switch {
	case err != nil:
		return nil, nil, err
	case token == (Token{}):
		return ctx, func() {}, nil
	}
	end, ok := a.tokens.begin(ctx, token)
	if !ok {
		return nil, nil, errTokenRemoved.Err()
	}
	return ctx, end, nil
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *streamWithContext) Context() context.Context { return s.ctx }

// authError is a call that is not let in.
type authError struct {
	reason string
	code   codes.Code
	text   string
}

func (e *authError) Error() string { return e.text }

// admit returns the context of the handler and the token that let it in, zero for those of
// agents, or the status for the peer.
func (a *authenticator) admit(ctx context.Context, fullMethod string) (context.Context, Token, error) {
	if isOpen(serviceOf(fullMethod)) {
		return ctx, Token{}, nil
	}
	c, token, err := a.authenticate(ctx, fullMethod)
	if err == nil {
		if c.Token != "" && a.agents.RetryAfter(c.Agent) > 0 {
			a.turnedAway(ctx)
		} else {
			a.authenticated(ctx, c)
		}
		return context.WithValue(ctx, callerKey{}, c), token, nil
	}
	a.metrics.authFailures.WithLabelValues(err.reason).Inc()
	host := peerHost(ctx)
	if suppressed, ok := a.logged.allow(host, time.Now()); ok {
		a.log.Warn("a gRPC call was not let in", "peer", host, "method", fullMethod, "reason", err.reason, "suppressed", suppressed)
	}
	return nil, Token{}, status.Error(err.code, err.text)
}

// isOpen reports whether the service needs no credential: health and reflection.
func isOpen(service string) bool {
	switch service {
	case healthpb.Health_ServiceDesc.ServiceName,
		reflectionpb.ServerReflection_ServiceDesc.ServiceName, reflectionalphapb.ServerReflection_ServiceDesc.ServiceName:
		return true
	}
	return false
}

func (a *authenticator) authenticate(ctx context.Context, fullMethod string) (Caller, Token, *authError) {
	text, err := bearerToken(ctx)
	if err != nil {
		return Caller{}, Token{}, err
	}
	forCoderd := a.roleOf(fullMethod) != RoleAgent
	token, role := a.tokens.now.Load().find(text)
	if role != 0 {
		a.metrics.tokenCalls.WithLabelValues(role.String(), token.Name).Inc()
	}
	switch {
	case role == rolePusher || role == roleOperator:
		if a.isFor(role, fullMethod) {
			return Caller{IsPusher: role == rolePusher, IsOperator: role == roleOperator}, token, nil
		}
		may := "push (--push-token-file)"
		if role == roleOperator {
			may = "read (--operator-token-file)"
		}
		return Caller{}, Token{}, &authError{authForbidden, codes.PermissionDenied, "this method is not for a token that may only " + may}
	case role == RoleCoderd || text == "" && a.hasNameOfCoderd(ctx):
		if forCoderd {
			return Caller{}, token, nil
		}
		return Caller{}, Token{}, &authError{authForbidden, codes.PermissionDenied, "this method is for agents, not for coderd, which relays for them by RelayAgents"}
	case text == "":
		return Caller{}, Token{}, &authError{authMissing, codes.Unauthenticated, "missing credentials: want the request metadata authorization with a bearer token"}
	}
	id, lookupErr := a.agents.Authenticate(ctx, text)
	switch {
	case errors.Is(lookupErr, agent.ErrUnknownToken):
		return Caller{}, Token{}, &authError{authUnknown, codes.Unauthenticated, "unknown token"}
	case lookupErr != nil:
		return Caller{}, Token{}, &authError{authUnavailable, codes.Unavailable, "the token cannot be checked now"}
	case forCoderd:
		return Caller{}, Token{}, &authError{authForbidden, codes.PermissionDenied, "this method is for coderd, not for agents"}
	}
	return Caller{Agent: id, Token: text}, Token{}, nil
}

// bearerToken returns the token of the call; empty: there is none.
func bearerToken(ctx context.Context) (string, *authError) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	problem := ""
	switch {
	case len(values) > 1:
		problem = fmt.Sprintf("want it once, got it %d times", len(values))
	case !strings.EqualFold(scheme, "bearer") || token == "":
		problem = "want Bearer and a token" // what came instead may be a secret
	case len(token) > maxTokenBytes:
		problem = fmt.Sprintf("want a token of at most %d bytes, got %d", maxTokenBytes, len(token))
	default:
		return token, nil
	}
	return "", &authError{authMalformed, codes.Unauthenticated, "authorization: " + problem}
}

// hasNameOfCoderd reports whether the peer has a client certificate with coderd's name.
func (a *authenticator) hasNameOfCoderd(ctx context.Context) bool {
	if a.clientSAN == "" {
		return false
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return false
	}
	leaf := info.State.VerifiedChains[0][0]
	return slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return strings.EqualFold(name, a.clientSAN) })
}

func peerHost(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

// logLimit bounds log lines about strangers: one a minute for a host, and for
// at most maxLoggedHosts hosts.
type logLimit struct {
	mu sync.Mutex
	// Guarded by mu.
	since      time.Time
	hosts      map[string]struct{}
	suppressed int
}

const maxLoggedHosts = 16

// allow reports whether to log, and how many lines were not logged since the last
// one.
func (l *logLimit) allow(host string, now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts == nil || now.Sub(l.since) >= time.Minute {
		l.since, l.hosts = now, make(map[string]struct{})
	}
	if _, seen := l.hosts[host]; seen || len(l.hosts) >= maxLoggedHosts {
		l.suppressed++
		return 0, false
	}
	l.hosts[host] = struct{}{}
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
