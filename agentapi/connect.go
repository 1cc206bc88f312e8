package agentapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// protocolVersion of this contract.
const protocolVersion = 1

type connectStream = grpc.BidiStreamingServer[agentstatsv1.ConnectRequest, agentstatsv1.ConnectResponse]

// Connect implements agentstatsv1.AgentServiceServer.
func (s *Service) Connect(stream connectStream) error {
	c, err := newConnection(s, stream)
	if err != nil {
		return err
	}
	leave, err := s.server.Admit(stream.Context(), c, &c.outbox)
	if err != nil {
		return err
	}
	defer leave()
	defer c.close() // also if a panic comes through here
	return c.leave(c.serve())
}

// awayHold is how long the stream of an agent that must stay away is held before
// it is told so: agents that do not obey cost a stream a second for each one that
// they may have open.
const awayHold = time.Second

// awaitLeave holds the stream of an agent that must stay away, and returns the
// status that says so.
func (c *connection) awaitLeave(retry time.Duration) error {
	asked := time.Now()
	if err := c.pause(min(retry, awayHold)); err != nil {
		return err
	}
	return grpcserver.Exhausted(max(retry-time.Since(asked), time.Millisecond), c.excess()+": it must stay away for a while")
}

// pause waits. An error is why the stream should end before.
func (c *connection) pause(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	var over <-chan struct{}
	if c.session != nil {
		over = c.session.Done()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-over:
		return ended(c.session.End())
	case <-c.service.server.Stopping():
		return grpcserver.ErrDraining
	case <-c.stream.Context().Done():
		return c.stream.Context().Err()
	}
}

// serve takes in what the agent sends until its stream ends, which is io.EOF if
// it has half-closed, or is to be ended with the error.
func (c *connection) serve() error {
	ctx, s := c.stream.Context(), c.service
	who := grpcserver.CallerFrom(ctx)
	if retry := s.Fleet.Admit(who.Agent); retry > 0 {
		return c.awaitLeave(retry)
	}
	hello, err := c.hello()
	if err != nil {
		if isRefusal(err) {
			s.Fleet.ChargeRefused(who.Agent, brokenItems, c.frame.Size)
		}
		return err
	}
	session, err := s.Fleet.Connect(ctx, who.Agent, fleet.Hello{
		Instance: agent.Instance(hello.GetInstanceId()),
		Ordinal:  hello.GetSession(),
		Epoch:    hello.GetEpoch(),
		Durable:  hello.GetDurableSequence(),
	})
	if err != nil {
		return s.failure(ctx, "open a session", err)
	}
	c.open(session)
	if !s.recheck(ctx, who) {
		c.setEnd(fleet.EndRevoked)
		return ended(fleet.EndRevoked)
	}
	c.greet()
	for {
		if err := c.next(); err != nil {
			return err
		}
	}
}

// recheck tells whether the caller's token is still the agent's, after its
// session was opened: from then on a revoked token ends the session.
func (s *Service) recheck(ctx context.Context, c grpcserver.Caller) bool {
	if c.Token == "" {
		return true
	}
	id, err := s.Fleet.Authenticate(ctx, c.Token)
	return err == nil && id == c.Agent
}

// hello waits for the first message.
func (c *connection) hello() (*agentstatsv1.Hello, error) {
	within := c.service.server.Options().HelloTimeout
	timeout := time.AfterFunc(within, func() {
		c.CloseStream(grpcserver.Invalid("hello", "want it within %v (%s)", within, grpcserver.FlagFirstMessage))
	})
	defer timeout.Stop()
	switch err := c.stream.RecvMsg(&c.frame); {
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
	}
	return hello, nil
}

// brokenItems is how many refused items a message counts as that breaks the
// contract and ends the stream: ten of them are the burst.
const brokenItems = 500

// isRefusal tells whether err is a status that says that the agent's message
// breaks the contract.
func isRefusal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition:
		return true
	}
	return false
}

// next takes in the next request. An agent that sends too fast is not read for a
// while after it, so that its own flow control stops it, or is sent away before.
func (c *connection) next() error {
	if err := c.stream.RecvMsg(&c.frame); err != nil {
		return err
	}
	c.heard.Store(true)
	wait, err := c.take()
	if err != nil {
		return err
	}
	return c.pause(wait)
}

// take takes in the frame, which it releases.
func (c *connection) take() (wait time.Duration, err error) {
	defer c.frame.Release()
	wait, retry, _ := c.session.Charge(c.frame.Size)
	if retry > 0 {
		c.setEnd(fleet.EndRefused)
		return 0, c.sentAway(retry)
	}
	if err := c.check(&c.frame); err != nil {
		c.session.ChargeRefused(brokenItems, c.frame.Size)
		c.setEnd(fleet.EndRefused)
		return 0, err
	}
	if err := c.accept(&c.frame); err != nil {
		c.setEnd(fleet.EndRefused)
		return 0, err
	}
	return wait, nil
}

// check returns how a request breaks the contract, which ends the stream.
func (c *connection) check(f *wire.Frame) error {
	switch {
	case f.Refused != nil:
		return f.Refused
	case c.saidGoodbye:
		return grpcserver.Invalid("message", "want none after goodbye")
	case f.Request.GetHello() != nil:
		return grpcserver.Invalid("hello", "want it as the first message only")
	case !f.HasMessage():
		return grpcserver.Invalid("message", "want one of stats, metadata, lifecycle, app_health, network and goodbye, got none")
	case f.Sequence < 1:
		return grpcserver.Invalid("sequence", "want at least 1, got %d", f.Sequence)
	}
	return nil
}

// accept takes in a request. An error ends the stream.
func (c *connection) accept(f *wire.Frame) error {
	var refused []agent.Refusal
	goodbye := f.Request.GetGoodbye() != nil
	err := c.session.Receive(f.Sequence, func(r fleet.Request) {
		if goodbye {
			c.endSession() // before anybody can ack it
		}
		refused = c.service.takeRequest(r, f)
		r.Refuse(ownRefusals(refused)) // this, too
	})
	if err != nil {
		// The session is over: by whom is told by its channel.
		<-c.session.Done()
		return ended(c.session.End())
	}
	if goodbye {
		c.goodbye()
		return nil
	}
	err = c.refused(refused, f.Size)
	c.received(len(refused) > 0)
	return err
}

// refused counts what was refused of a message of size bytes. Too much of it ends
// the stream.
func (c *connection) refused(refusals []agent.Refusal, size int) error {
	n := 0
	for _, r := range refusals {
		n += r.Count
	}
	if n == 0 {
		return nil
	}
	if retry := c.session.ChargeRefused(n, size); retry > 0 {
		return c.sentAway(retry)
	}
	return nil
}

// sentAway returns the status of an agent that must stay away for a while.
func (c *connection) sentAway(retry time.Duration) error {
	return grpcserver.Exhausted(retry, c.excess())
}

// excess says which limit the agent is above.
func (c *connection) excess() string {
	return c.service.Fleet.Excess(grpcserver.CallerFrom(c.stream.Context()).Agent)
}
