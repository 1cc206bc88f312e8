package agentapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/ackschedule"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// protocolVersion of this contract.
const protocolVersion = 1

// Connect implements agentstatsv1.AgentServiceServer.
func (s *Service) Connect(stream connectStream) error {
	own, err := newOwnStream(stream)
	if err != nil {
		return err
	}
	c := newConnection(s, own, grpcserver.CallerFrom(stream.Context()), false)
	release, err := s.server.Admit(stream.Context(), c, &own.outbox)
	if err != nil {
		return err
	}
	defer release()
	defer c.close() // also if a panic comes through here
	err = c.awaitEnd(c.serve())
	s.noteEndOf(c.who.Agent, c.version, err)
	return err
}

// suspendedDelay delays the status for a suspended agent. An agent that connects all
// the same opens one stream a second for each stream that it may have open.
const suspendedDelay = time.Second

// refuseSuspended delays the status for a suspended agent, and returns it.
func (c *connection) refuseSuspended(retry time.Duration) error {
	asked := time.Now()
	if err := c.pause(min(retry, suspendedDelay)); err != nil {
		return err
	}
	return grpcserver.Exhausted(max(retry-time.Since(asked), time.Millisecond), c.excess()+": it must wait before it connects again")
}

// pause waits for d. It returns an error if the stream is to end before that.
func (c *connection) pause(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	var ended <-chan struct{}
	if c.session != nil {
		ended = c.session.Done()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ended:
		return endStatus(c.session.End())
	case <-c.service.server.Stopping():
		return grpcserver.ErrDraining
	case <-c.stream.Context().Done():
		return c.stream.Context().Err()
	}
}

// serve handles what the agent sends. It returns io.EOF when the agent has half-closed
// the stream, or the error with which the stream is to end.
func (c *connection) serve() error {
	if err := c.open(); err != nil {
		return err
	}
	return c.handleAll()
}

// open reads the hello and opens the session. Its error is like that of serve.
func (c *connection) open() error {
	agents, id := c.service.Fleet, c.who.Agent
	if retry := agents.Admit(id); retry > 0 {
		return c.refuseSuspended(retry)
	}
	hello, err := c.awaitHello()
	if err != nil {
		if isRefusal(err) {
			agents.ChargeRefused(id, brokenItems, c.frame.Size)
		}
		return err
	}
	return c.openSession(hello)
}

// openSession opens the session of a hello.
func (c *connection) openSession(hello *agentstatsv1.Hello) error {
	ctx, s, who := c.stream.Context(), c.service, c.who
	version := versionOf(hello)
	session, err := s.Fleet.Connect(ctx, who.Agent, fleet.Hello{
		Instance: agent.Instance(hello.GetInstanceId()),
		Ordinal:  hello.GetSession(),
		Epoch:    hello.GetEpoch(),
		Durable:  hello.GetDurableSequence(),
		Relayed:  who.Token == "",
		Version:  version,
	})
	if err != nil {
		return s.failure(ctx, who, "open a session", err)
	}
	c.version = version
	c.setSession(session)
	c.tapHello(session)
	if !s.recheckToken(ctx, who) {
		c.setEnd(fleet.EndRevoked)
		return endStatus(fleet.EndRevoked)
	}
	c.startSending()
	c.logSession("session opened", session)
	return nil
}

// recheckToken reports whether the caller's token is still the agent's, after its
// session was opened. From then on a revoked token ends the session.
func (s *Service) recheckToken(ctx context.Context, c grpcserver.Caller) bool {
	if c.Token == "" {
		return true
	}
	id, err := s.Fleet.Authenticate(ctx, c.Token)
	return err == nil && id == c.Agent
}

// awaitHello waits for the first message.
func (c *connection) awaitHello() (*agentstatsv1.Hello, error) {
	within := c.service.server.HelloTimeout()
	timeout := time.AfterFunc(within, func() {
		c.CloseStream(grpcserver.Invalid("hello", "want it within %v (%s)", within, grpcserver.FlagFirstMessage))
	})
	defer timeout.Stop()
	switch err := c.stream.receive(&c.frame); {
	case errors.Is(err, io.EOF):
		return nil, grpcserver.Invalid("hello", "want it as the first message, got none")
	case err != nil:
		return nil, err
	}
	defer c.frame.Release()
	if c.frame.Refused != nil {
		return nil, c.frame.Refused
	}
	return checkHello(c.frame.Request)
}

func checkHello(req *agentstatsv1.ConnectRequest) (*agentstatsv1.Hello, error) {
	hello := req.GetHello()
	switch {
	case hello == nil:
		return nil, grpcserver.Invalid("hello", "want it as the first message")
	case hello.GetProtocolVersion() != protocolVersion:
		return nil, status.Errorf(codes.FailedPrecondition, "hello.protocol_version: want %d, got %d", protocolVersion, hello.GetProtocolVersion())
	case req.GetSequence() != 0:
		return nil, grpcserver.Invalid("sequence", "want 0 with hello, got %d", req.GetSequence())
	case len(hello.GetInstanceId()) != len(agent.Instance{}):
		return nil, grpcserver.Invalid("hello.instance_id", "want %d bytes, got %d", len(agent.Instance{}), len(hello.GetInstanceId()))
	case hello.GetSession() < 0:
		return nil, grpcserver.Invalid("hello.session", "want at least 0, got %d", hello.GetSession())
	case hello.GetEpoch() < 0:
		return nil, grpcserver.Invalid("hello.epoch", "want at least 0, got %d", hello.GetEpoch())
	case hello.GetDurableSequence() < 0:
		return nil, grpcserver.Invalid("hello.durable_sequence", "want at least 0, got %d", hello.GetDurableSequence())
	case !proto.Equal(req, &agentstatsv1.ConnectRequest{Hello: hello}):
		return nil, grpcserver.Invalid("hello", "want nothing beside it")
	}
	return hello, nil
}

// handleAll handles requests. Its error is that of serve.
func (c *connection) handleAll() error {
	for {
		if err := c.handleNext(); err != nil {
			return err
		}
	}
}

// A message that breaks the contract ends the stream, and is charged as brokenItems
// refused items. Ten of them exhaust the default burst.
const brokenItems = 500

// isRefusal reports whether err is the status of a message that breaks the
// contract.
func isRefusal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition:
		return true
	}
	return false
}

// handleNext handles the next request. After that it does not read from an agent that
// sends too fast for a while, so that flow control slows the agent. If it goes on, its
// stream ends.
func (c *connection) handleNext() error {
	if err := c.stream.receive(&c.frame); err != nil {
		return err
	}
	c.active.Store(true)
	wait, err := c.handleFrame()
	if err != nil {
		return err
	}
	return c.pause(wait)
}

// handleFrame handles the request in the frame, and releases the frame. wait is how
// long the stream is not to be read.
func (c *connection) handleFrame() (wait time.Duration, err error) {
	defer c.frame.Release()
	now := time.Now() // for all that is done with it: the clock is not free
	wait, retry, _ := c.session.Charge(now, c.frame.Size)
	if retry > 0 {
		c.setEnd(fleet.EndRefused)
		return 0, c.suspendedStatus(retry)
	}
	if err := c.checkFrame(&c.frame); err != nil {
		c.session.ChargeRefused(brokenItems, c.frame.Size)
		c.setEnd(fleet.EndRefused)
		return 0, err
	}
	if err := c.handleRequest(now, &c.frame); err != nil {
		c.setEnd(fleet.EndRefused)
		return 0, err
	}
	return wait, nil
}

// checkFrame returns how a request breaks the contract, which ends the stream.
func (c *connection) checkFrame(f *wire.Frame) error {
	switch {
	case f.Refused != nil:
		return f.Refused
	case c.goodbyeRead:
		return grpcserver.Invalid("message", "want none after goodbye")
	case f.Request.GetHello() != nil:
		return grpcserver.Invalid("hello", "want it as the first message only")
	case f.IsEmpty():
		return grpcserver.Invalid("message", "want any of stats, metadata, lifecycle, app_health, network, goodbye and ack_now, got none")
	case f.Request.GetStatsSuperseded() && f.Request.GetStats() == nil:
		return grpcserver.Invalid("stats_superseded", "want it with stats only")
	case f.Request.GetStatsUncounted() && f.Request.GetStats() == nil:
		return grpcserver.Invalid("stats_uncounted", "want it with stats only")
	case f.Sequence < 1:
		return grpcserver.Invalid("sequence", "want at least 1, got %d", f.Sequence)
	}
	return nil
}

// handleRequest handles a request that came now. An error ends the stream.
func (c *connection) handleRequest(now time.Time, f *wire.Frame) error {
	var refused []agent.Refusal
	goodbye, watched := f.Request.GetGoodbye() != nil, c.service.Taps.Watches(c.who.Agent)
	err := c.session.Receive(now, f.Sequence, func(r fleet.Request) {
		if goodbye {
			c.closeSession() // before anybody can ack it
		}
		if watched {
			c.tapRequest(now, f) // before anything of it is changed
		}
		refused = contract.OwnRefusals(c.service.takeRequest(r, f))
		r.Refuse(refused) // this, too
	})
	if err != nil {
		// The session has ended. Its channel is closed with the reason.
		<-c.session.Done()
		return endStatus(c.session.End())
	}
	c.noteRefused(f.Sequence, refused)
	if goodbye {
		c.awaitLastAck(f.Sequence)
		return nil
	}
	err = c.chargeRefused(refused, f.Size)
	c.handled(now, ackschedule.Request{Sequence: f.Sequence, ForStore: f.ForStore(), Now: f.AckNow}, len(refused) > 0)
	return err
}

// chargeRefused charges the agent for what was refused of a message of size bytes. Its
// error ends the stream of an agent that is above its budget.
func (c *connection) chargeRefused(refusals []agent.Refusal, size int) error {
	n := 0
	for _, r := range refusals {
		n += r.Count
	}
	if n == 0 {
		return nil
	}
	if retry := c.session.ChargeRefused(n, size); retry > 0 {
		return c.suspendedStatus(retry)
	}
	return nil
}

// suspendedStatus returns the status of an agent that is suspended for the time.
func (c *connection) suspendedStatus(retry time.Duration) error {
	return grpcserver.Exhausted(retry, c.excess())
}

// excess names the limit that the agent is above.
func (c *connection) excess() string {
	return c.service.Fleet.Excess(c.who.Agent)
}
