package grpcserver

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
)

// Reasons why calls and connections are refused or ended, as the counter labels
// them.
const (
	limitedFirstMessage = "first_message"
	limitedIdleStream   = "idle_stream"
	limitedAgentStreams = "agent_streams"
	limitedUnread       = "unread_streams"
	limitedSlowReader   = "slow_reader"
	limitedCoderdCalls  = "coderd_calls"
	limitedOpenCalls    = "open_calls"
	limitedMessageBytes = "message_bytes"
	limitedReceiving    = "receiving_bytes"
	limitedSlowMessage  = "slow_message"
	limitedConnections  = "connections"
	limitedAddress      = "address_connections"
	limitedStranger     = "authentication_timeout"
	limitedCalls        = "unauthenticated_calls"
	limitedRate         = "unauthenticated_rate"
	limitedCallRate     = "call_rate"
	limitedTurnedAway   = "turned_away_calls"
)

var limitedReasons = []string{
	limitedFirstMessage, limitedIdleStream, limitedAgentStreams, limitedUnread, limitedSlowReader, limitedCoderdCalls, limitedOpenCalls,
	limitedMessageBytes, limitedReceiving, limitedSlowMessage, limitedConnections, limitedAddress, limitedStranger, limitedCalls, limitedRate,
	limitedCallRate, limitedTurnedAway,
}

// Methods that are open to anyone may have Options.MaxOpenCalls streams at once. Half
// of them are for checks of health, a quarter for watches of health, a quarter for
// reflection.
// One address has at most a quarter of each, so that a stranger does not keep probes
// out.
const (
	// openRequestTimeout bounds the time to the request of an open stream. No
	// client waits between the two, so no operator needs another value.
	openRequestTimeout = 5 * time.Second
	// A client that watches health comes back when its stream ends, whenever that is.
	openWatchLife = 10 * time.Minute
	openLife      = time.Minute
)

// limitStream bounds what a caller, who is known by now, may have at once. It also
// bounds the time to the first message.
func (s *Server) limitStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	switch s.roleOf(info.FullMethod) {
	case RoleAgent:
		return s.limitAgent(srv, stream, handler)
	case RoleCoderd:
		return s.limitCoderd(srv, stream, info, handler)
	}
	return s.serveOpen(srv, stream, info, handler)
}

// limitAgent does for agents. The handler bounds the time to the hello itself.
func (s *Server) limitAgent(srv any, stream grpc.ServerStream, handler grpc.StreamHandler) error {
	id := CallerFrom(stream.Context()).Agent
	if err := s.acquireStream(id); err != nil {
		return s.refuseCall(id, err)
	}
	defer s.agentStreams.release(id)
	if err := s.admitUnread(id); err != nil {
		return s.refuseCall(id, err)
	}
	return handler(srv, stream)
}

// limitCoderd does for coderd and the holders of other tokens.
func (s *Server) limitCoderd(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	prompt := s.prompt(stream, s.opts.Load().HelloTimeout)
	defer prompt.stop()
	calls := s.coderdCalls
	if who := CallerFrom(stream.Context()); who.IsPusher || who.IsOperator {
		calls = s.pusherCalls
	}
	if info.IsServerStream {
		if !s.unread.admitCoderd() {
			return Exhausted(time.Second, fmt.Sprintf("want at most %d ended streams of coderd whose responses are not read (%s)", s.opts.Load().MaxUnreadOfCoderd, FlagWatches))
		}
		// Until its first message is there, nothing else bounds it.
		if err := s.awaitCall(stream.Context(), calls); err != nil {
			return err
		}
		responses, err := s.boundResponses(prompt, calls)
		if err != nil {
			calls.Release()
			return err
		}
		defer func() {
			responses.ReleaseSlot()
			responses.timer.Stop()
			s.unread.add(stream.Context(), Caller{}, &responses.box)
		}()
		return handler(srv, responses)
	}
	if err := s.awaitCall(stream.Context(), calls); err != nil {
		return err
	}
	call := &callStream{prompt, callSlot{calls: calls}}
	defer call.ReleaseSlot()
	return handler(srv, call)
}

// admitUnread returns the status that refuses an agent which does not read the responses of
// its ended streams, nil: it does.
func (s *Server) admitUnread(id agent.ID) error {
	if s.unread.admit(id) {
		return nil
	}
	opts := s.opts.Load()
	return Exhausted(opts.HelloTimeout, fmt.Sprintf("want at most %d ended streams of an agent whose responses are not read (%s)", opts.MaxStreamsPerAgent, flagStreamsPerAgent))
}

// acquireStream counts an open stream of the agent, which agentStreams.release ends. The
// error is a status.
func (s *Server) acquireStream(id agent.ID) error {
	if s.agentStreams.acquire(id) {
		return nil
	}
	s.metrics.limited.WithLabelValues(limitedAgentStreams).Inc()
	return Exhausted(s.opts.Load().HelloTimeout, fmt.Sprintf("want at most %d streams of an agent at once (%s)", s.opts.Load().MaxStreamsPerAgent, flagStreamsPerAgent))
}

// refusedCallItems is how many refused items a call counts as that is refused for
// an agent's open streams.
const refusedCallItems = 20

// refuseCall charges an agent for a refused call, and returns its status.
func (s *Server) refuseCall(id agent.ID, err error) error {
	s.auth.agents.ChargeRefused(id, refusedCallItems, 0)
	if s.refused != nil {
		s.refused(id, err)
	}
	return err
}

// awaitCall waits for a slot of coderd's calls, or of those who may only push. Calls need
// one that stream no responses, or whose first message is to come: each may have a message
// of Options.MaxMessageBytes in memory.
func (s *Server) awaitCall(ctx context.Context, calls *Slots) error {
	if calls.TryAcquire() {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, s.opts.Load().HelloTimeout/2) // before that of the first message
	defer cancel()
	if calls.Acquire(waiting) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.metrics.limited.WithLabelValues(limitedCoderdCalls).Inc()
	return Exhausted(s.opts.Load().HelloTimeout, fmt.Sprintf("want at most %d calls of coderd at once (%s)", calls.Limit(), flagCoderdCalls))
}

// pusherCalls is how many calls those may have at once who may only push, or read.
func pusherCalls(o *Options) int { return max(1, o.MaxCoderdCalls/4) }

// serveOpen serves a method that needs no credential.
func (s *Server) serveOpen(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	kind, limit, life := kindReflection, s.opts.Load().MaxOpenCalls/4, openLife
	switch {
	case info.FullMethod == healthpb.Health_Watch_FullMethodName:
		kind, limit, life = kindWatch, s.opts.Load().MaxOpenCalls/4, openWatchLife
	case strings.HasPrefix(info.FullMethod, "/"+healthpb.Health_ServiceDesc.ServiceName+"/"):
		kind, limit = kindCheck, s.opts.Load().MaxOpenCalls/2
	}
	ctx := stream.Context()
	ender, err := EnderOf(ctx)
	if err != nil {
		return err
	}
	key := openKey{kind, peerHost(ctx)}
	if !s.openCalls.acquire(key, limit) {
		s.metrics.limited.WithLabelValues(limitedOpenCalls).Inc()
		return status.Errorf(codes.ResourceExhausted, "want at most %d calls of this kind at once, and %d of one address (%s %d)", limit, limit/4, flagOpenCalls, s.opts.Load().MaxOpenCalls)
	}
	defer s.openCalls.release(key)
	open := &openStream{ServerStream: stream, life: life}
	open.timer = time.AfterFunc(openRequestTimeout, func() {
		st := status.New(codes.Unavailable, "the call has taken its time; call again")
		if !open.asked.Load() {
			s.metrics.limited.WithLabelValues(limitedFirstMessage).Inc()
			st = status.Convert(Invalid("message", "want the first one within %v", openRequestTimeout))
		}
		_ = ender.WriteStatus(st)
	})
	defer open.timer.Stop()
	done := s.connections.openCall(ctx)
	err = handler(srv, open)
	done(open.asked.Load())
	return err
}

// Kinds of open calls.
type openKind uint8

const (
	kindCheck openKind = iota
	kindWatch
	kindReflection
)

type openKey struct {
	kind openKind
	host string
}

// openCalls counts the open calls by kind and address.
type openCalls struct {
	mu sync.Mutex
	// Guarded by mu.
	kinds [kindReflection + 1]int
	hosts map[openKey]int
}

// acquire returns false if limit calls of the kind are open, or a quarter of them
// of the address.
func (o *openCalls) acquire(key openKey, limit int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.kinds[key.kind] >= limit || o.hosts[key] >= limit/4 {
		return false
	}
	if o.hosts == nil {
		o.hosts = make(map[openKey]int)
	}
	o.kinds[key.kind]++
	o.hosts[key]++
	return true
}

func (o *openCalls) release(key openKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kinds[key.kind]--
	if o.hosts[key]--; o.hosts[key] == 0 {
		delete(o.hosts, key)
	}
}

// count returns how many are open.
func (o *openCalls) count() (open int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range o.kinds {
		open += n
	}
	return open
}

// agentStreams counts the streams that agents have open.
type agentStreams struct {
	mu sync.Mutex
	// Guarded by mu.
	limit int
	open  map[agent.ID]int
}

func newAgentStreams(limit int) *agentStreams {
	return &agentStreams{limit: limit, open: make(map[agent.ID]int)}
}

// acquire returns false if the agent has as many as it may have.
func (a *agentStreams) acquire(id agent.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[id] >= a.limit {
		return false
	}
	a.open[id]++
	return true
}

// most returns how many the agent has that has the most.
func (a *agentStreams) most() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	most := 0
	for _, n := range a.open {
		most = max(most, n)
	}
	return most
}

func (a *agentStreams) release(id agent.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[id]--; a.open[id] == 0 {
		delete(a.open, id)
	}
}

// silentChecks without a whole message between them end an agent's stream. They
// are a third of Options.IdleTimeout apart: no stream needs a timer of its own.
const silentChecks = 3

// watchIdle ends agents' streams that bring no message.
func (s *Server) watchIdle(ctx context.Context) {
	timeout := s.opts.Load().IdleTimeout
	ticker := time.NewTicker(timeout / silentChecks)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if now := s.opts.Load().IdleTimeout; now != timeout {
			timeout = now
			ticker.Reset(timeout / silentChecks)
		}
		s.unread.prune()
		for _, a := range s.streams.allAgents() {
			s.checkIdle(a)
		}
	}
}

// checkIdle is called by one goroutine.
func (s *Server) checkIdle(a *admitted) {
	if a.stream.ReceivedMessage() || !a.checked {
		a.silent = 0
		return
	}
	a.silent++
	if a.silent < silentChecks+1 { // the first check was less than an interval after the message
		return
	}
	err := status.Errorf(codes.DeadlineExceeded, "message: want one within %v (%s)", s.opts.Load().IdleTimeout, flagAgentIdle)
	if a.silent == silentChecks+1 {
		s.metrics.limited.WithLabelValues(limitedIdleStream).Inc()
		go a.stream.CloseStream(err) // it may wait for the agent
		return
	}
	_ = a.ender.WriteStatus(status.Convert(err)) // it does not read either
}
