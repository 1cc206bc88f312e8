// Package agentapi is the gRPC edge for agents: it validates and converts what they
// send, and calls the components. It serves agentstats.v1.AgentService.
package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/ackschedule"
	"github.com/coder/agentstatsd/agentapi/internal/relayresponses"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/tap"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Stats stores reports of stats and samples. aggregator.Aggregator is one. It touches
// memory only. The report is valid during the call. A report is ignored if its epoch is
// not that of the agent's open session. created is the number of the report's series
// that are new.
type Stats interface {
	Report(id agent.ID, epoch int64, now time.Time, r agent.Report) (refused []agent.Refusal, created int)
	// AddBytes adds the bytes of an older report, which a newer one follows.
	AddBytes(id agent.ID, epoch int64, now time.Time, s agent.Stats) (refused []agent.Refusal)
}

// Metadata accepts metadata that is to be stored. batcher.Batcher is one. It touches
// memory only. The texts of the report are valid during the call.
type Metadata interface {
	Add(now time.Time, r agent.MetadataReport) []agent.Refusal
}

// Reports adds up reports for watchers. reports.Reports is one.
type Reports interface {
	// Wanted reports whether there is a subscription. Otherwise a report costs no more
	// than this call.
	Wanted() bool
	// Add adds a report. It touches memory only, and copies the data. The sum's tracker
	// is notified once, also if there is no subscription any more.
	Add(sum *agent.ReportSum)
}

// Intervals has the factor by which the intervals of agents are lengthened under load.
// intervals.Intervals is one.
type Intervals interface {
	// Factor is at least 1. It is called for each response and reads memory only.
	Factor() float64
}

// Components are what an AgentService calls; Intervals, Refusals and Taps may be absent.
type Components struct {
	Fleet     *fleet.Fleet
	Stats     Stats
	Metadata  Metadata
	Reports   Reports
	Intervals Intervals // nil: they are never lengthened
	Refusals  Refusals  // nil: they are not noted
	Taps      *tap.Taps // nil: nobody can watch what agents send
}

var _ agentstatsv1.AgentServiceServer = (*Service)(nil)

// Service serves agents.
type Service struct {
	agentstatsv1.UnsafeAgentServiceServer // without methods: none may be missing
	Components
	server   *grpcserver.Server
	opts     atomic.Pointer[inForce] // Reconfigure replaces them
	metrics  *metrics
	log      *slog.Logger
	relays   *grpcserver.Slots // streams that relay
	relaying sync.Map          // of *relay: these streams
}

// inForce are options that are in force.
type inForce struct {
	Options
	// acks are the delays of acks, relayedAcks those of relayed agents, which wait once
	// more.
	acks, relayedAcks ackschedule.Delays
}

// New returns a Service that the server serves: it is registered with
// it. Its metrics are registered with reg.
func New(server *grpcserver.Server, c Components, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Service, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("agentapi options: %w", err)
	}
	if c.Reports == nil {
		return nil, errors.New("agentapi components: reports is absent")
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("agentapi: %w", err)
	}
	s := &Service{Components: c, server: server, metrics: m, log: log, relays: grpcserver.NewSlots(opts.MaxRelayStreams)}
	s.use(opts)
	if err := s.registerLimits(reg); err != nil {
		return nil, fmt.Errorf("agentapi: %w", err)
	}
	server.OnRefused(s.noteEnd)
	server.Register(grpcserver.Service{
		Desc: &agentstatsv1.AgentService_ServiceDesc,
		Impl: s,
		Role: grpcserver.RoleAgent,
		MethodRoles: map[string]grpcserver.Role{
			agentstatsv1.AgentService_RelayAgents_FullMethodName: grpcserver.RoleCoderd,
		},
		Ready: func(context.Context) error { return c.Fleet.Ready() },
	})
	return s, nil
}

// use makes opts those in force.
func (s *Service) use(opts Options) {
	s.opts.Store(&inForce{
		Options: opts, acks: ackschedule.Delays{Ack: opts.AckDelay, Flush: opts.FlushInterval},
		relayedAcks: ackschedule.Delays{Ack: max(0, opts.AckDelay-relayresponses.GatherTime), Flush: opts.FlushInterval},
	})
}

// Options returns the options in force, with their defaults.
func (s *Service) Options() Options { return s.opts.Load().Options }

// Reconfigure changes the options. Agents get their settings with the next response, and
// streams above a lowered MaxRelayStreams stay. After an error nothing has changed.
func (s *Service) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("agentapi options: %w", err)
	}
	s.relays.SetLimit(opts.MaxRelayStreams)
	s.use(opts)
	return nil
}

// failure returns the status for the caller of an error of the components.
func (s *Service) failure(ctx context.Context, who grpcserver.Caller, doing string, err error) error {
	switch {
	case errors.Is(err, fleet.ErrUnavailable):
		return grpcserver.ErrNotLoaded
	case errors.Is(err, fleet.ErrUnknownAgent):
		// An agent on its own stream was authenticated by its token, which was revoked
		// meanwhile.
		if who.Token == "" {
			return status.Error(codes.NotFound, "agent_id: no such agent is registered")
		}
		return status.Error(codes.Unauthenticated, "unknown token")
	}
	return s.server.Failure(ctx, doing, err)
}

// endStatus returns the status of a stream whose session ended by the fleet.
func endStatus(end fleet.End) error {
	switch end {
	case fleet.EndTakeover:
		return status.Error(codes.Aborted, "superseded by a newer session")
	case fleet.EndDeregistered:
		return status.Error(codes.Unauthenticated, "the agent was deregistered")
	case fleet.EndSuperseded:
		return status.Error(codes.Unauthenticated, "the agent was superseded by that of a newer build")
	case fleet.EndRevoked:
		return status.Error(codes.Unauthenticated, "the token was revoked")
	case fleet.EndAged:
		return status.Error(codes.Unavailable, "the session is too old; connect again")
	case fleet.EndOutdated:
		return status.Error(codes.Unavailable, "what another session said was stored in its place; connect again")
	}
	return grpcserver.ErrDraining
}
