package agentapi

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// protocolVersion of this contract.
const protocolVersion = 1

// maxBurst requests are answered by one ack.
const maxBurst = 32

// drainSpread of the drain's time is what the requests to connect again are
// spread over: evenly, so that the other replicas are not stormed. In the rest
// the last ones to be asked can leave.
const drainSpread = 0.75

// Reasons of please-reconnect.
const (
	reconnectAge   = "session_age"
	reconnectDrain = "draining"
)

type agentService struct {
	agentstatsv1.UnimplementedAgentServiceServer
	*Server
}

type connectStream = grpc.BidiStreamingServer[agentstatsv1.ConnectRequest, agentstatsv1.ConnectResponse]

// received is one message of a stream, or how it ended.
type received[T any] struct {
	message T
	err     error
}

// receive reads messages until the stream ends or ctx, that of the stream, is
// done. gRPC has no other way to wait for a message and something else; the
// handler stays the only one who takes messages in and sends.
func receive[T any](ctx context.Context, wg *sync.WaitGroup, next func() (T, error)) <-chan received[T] {
	ch := make(chan received[T], 4)
	wg.Go(func() {
		for {
			m, err := next()
			select {
			case ch <- received[T]{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return ch
}

// awaitFirst waits for the first message of a stream, which holds the field.
func awaitFirst[T any](ctx context.Context, s *Server, messages <-chan received[T], field string) (T, error) {
	var none T
	timeout := time.NewTimer(s.opts.HelloTimeout)
	defer timeout.Stop()
	select {
	case r := <-messages:
		if errors.Is(r.err, io.EOF) {
			return none, invalid(field, "want it as the first message, got none")
		}
		return r.message, r.err
	case <-timeout.C:
		return none, invalid(field, "want it within %v", s.opts.HelloTimeout)
	case <-s.streams.draining:
		return none, errDraining
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// Connect implements agentstatsv1.AgentServiceServer.
func (s *agentService) Connect(stream connectStream) error {
	if !s.streams.enter() {
		return errDraining
	}
	defer s.streams.leave()
	ctx := stream.Context()
	who := callerFrom(ctx)
	frames := receive(ctx, &s.receivers, func() (frame, error) {
		var f frame
		err := stream.RecvMsg(&f)
		return f, err
	})
	hello, err := s.hello(ctx, frames)
	if err != nil {
		return err
	}
	session, err := s.Fleet.Connect(ctx, who.agent, fleet.Hello{
		Instance: agent.Instance(hello.GetInstanceId()),
		Ordinal:  hello.GetSession(),
		Epoch:    hello.GetEpoch(),
	})
	if err != nil {
		return s.failure(ctx, "open a session", err)
	}
	c := &connection{
		server:  s.Server,
		stream:  stream,
		frames:  frames,
		session: session,
		over:    session.Done(),
		end:     fleet.EndDisconnect,
	}
	defer func() { session.Close(c.end) }()
	if !s.auth.recheck(ctx, who) {
		c.end = fleet.EndRevoked
		return ended(fleet.EndRevoked)
	}
	return c.run()
}

// hello waits for the first message.
func (s *agentService) hello(ctx context.Context, frames <-chan received[frame]) (*agentstatsv1.Hello, error) {
	timeout := time.NewTimer(s.opts.HelloTimeout)
	defer timeout.Stop()
	select {
	case r := <-frames:
		if r.err != nil {
			if errors.Is(r.err, io.EOF) {
				return nil, invalid("hello", "want it as the first message, got none")
			}
			return nil, r.err
		}
		defer r.message.release()
		if r.message.refused != nil {
			return nil, r.message.refused
		}
		return checkHello(r.message.request)
	case <-timeout.C:
		return nil, invalid("hello", "want it within %v", s.opts.HelloTimeout)
	case <-s.streams.stopping:
		return nil, errDraining
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func checkHello(req *agentstatsv1.ConnectRequest) (*agentstatsv1.Hello, error) {
	hello := req.GetHello()
	switch {
	case hello == nil:
		return nil, invalid("hello", "want it as the first message")
	case hello.GetProtocolVersion() != protocolVersion:
		return nil, status.Errorf(codes.FailedPrecondition, "hello.protocol_version: want %d, got %d", protocolVersion, hello.GetProtocolVersion())
	case req.GetSequence() != 0:
		return nil, invalid("sequence", "want 0 with hello, got %d", req.GetSequence())
	case len(hello.GetInstanceId()) != len(agent.Instance{}):
		return nil, invalid("hello.instance_id", "want %d bytes, got %d", len(agent.Instance{}), len(hello.GetInstanceId()))
	case hello.GetSession() < 0:
		return nil, invalid("hello.session", "want at least 0, got %d", hello.GetSession())
	case hello.GetEpoch() < 0:
		return nil, invalid("hello.epoch", "want at least 0, got %d", hello.GetEpoch())
	}
	return hello, nil
}

// connection is an agent's stream after its hello. Its goroutine is the only one
// that sends.
type connection struct {
	server  *Server
	stream  connectStream
	frames  <-chan received[frame]
	session *fleet.Session
	// over is closed when the session ended by the fleet; nil after goodbye.
	over <-chan struct{}
	// end is how the session will end.
	end fleet.End

	refusals []*agentstatsv1.Refusal // to be sent
	ackDue   bool
	acked    fleet.Progress
	asked    bool        // to connect again, as the session is old
	goodbye  *time.Timer // runs while the last ack is waited for
}

func (c *connection) run() error {
	if err := c.sendSettings(); err != nil {
		return err
	}
	ctx := c.stream.Context()
	draining := c.server.streams.draining
	// turn fires when the agent is to leave, as the service stops.
	turn := time.NewTimer(0)
	defer turn.Stop()
	<-turn.C
	var goodbye <-chan time.Time
	for {
		var err error
		select {
		case r := <-c.frames:
			err = c.take(r)
		case <-c.session.Notify():
		case <-c.over:
			return ended(c.session.End())
		case <-draining:
			draining = nil
			turn.Reset(time.Duration(rand.Float64() * drainSpread * float64(c.server.opts.DrainTimeout)))
		case <-turn.C:
			c.end = fleet.EndDrain
			err = c.sendReconnect(0, reconnectDrain)
		case <-c.server.streams.stopping:
			return errDraining
		case <-goodbye:
			return nil // what is not durable is told by the last ack
		case <-ctx.Done():
			c.takeQueued()
			return ctx.Err()
		}
		// The answers go out before the verdict.
		if sendErr := c.answer(); sendErr != nil && err == nil {
			err = sendErr
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case c.goodbye == nil:
		case c.acked.Durable == c.acked.Received:
			c.goodbye.Stop()
			return nil
		default:
			goodbye = c.goodbye.C
		}
	}
}

// take takes in a message and those that wait behind it. The error is io.EOF
// when the agent has ended the stream, else the status to end it with.
func (c *connection) take(r received[frame]) error {
	for n := 1; ; n++ {
		if r.err != nil {
			return c.halfClosed(r.err)
		}
		if err := c.request(r.message); err != nil {
			return err
		}
		if n == maxBurst {
			return nil
		}
		select {
		case r = <-c.frames:
		default:
			return nil
		}
	}
}

// takeQueued takes in what was read before the stream broke.
func (c *connection) takeQueued() {
	select {
	case r := <-c.frames:
		_ = c.take(r) // there is nobody to tell
	default:
	}
}

// halfClosed returns what the end of the agent's side means.
func (c *connection) halfClosed(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	if c.goodbye != nil {
		c.frames = nil // it half-closed and waits for the last ack
		return nil
	}
	return io.EOF
}

// request takes in one request. An error breaks the contract and ends the
// stream.
func (c *connection) request(f frame) error {
	defer f.release()
	err := c.accept(&f)
	if err != nil && c.end == fleet.EndDisconnect {
		c.end = fleet.EndRefused
	}
	return err
}

func (c *connection) accept(f *frame) error {
	switch {
	case f.refused != nil:
		return f.refused
	case c.goodbye != nil:
		return invalid("message", "want none after goodbye")
	case f.request.GetHello() != nil:
		return invalid("hello", "want it as the first message only")
	case !f.hasMessage():
		return invalid("message", "want one of stats, metadata, lifecycle, app_health, network and goodbye, got none")
	case f.sequence < 1:
		return invalid("sequence", "want at least 1, got %d", f.sequence)
	}
	var refused []agent.Refusal
	err := c.session.Receive(f.sequence, func(r fleet.Request) { refused = c.server.takeRequest(r, f) })
	if err != nil {
		// The session is over: by whom is told by its channel.
		<-c.session.Done()
		return ended(c.session.End())
	}
	c.ackDue = true
	if f.request.GetGoodbye() != nil {
		c.end, c.over = fleet.EndGoodbye, nil
		c.session.Close(fleet.EndGoodbye)
		c.goodbye = time.NewTimer(c.server.opts.GoodbyeTimeout)
		return nil
	}
	return c.refuse(f.sequence, refused)
}

// refuse has the refusals told. Too many of them end the stream.
func (c *connection) refuse(sequence int64, refused []agent.Refusal) error {
	if len(refused) == 0 {
		return nil
	}
	n := 0
	for _, r := range refused {
		n += r.Count
		c.refusals = append(c.refusals, refusalMessage(sequence, r))
	}
	retry := c.session.Refused(n)
	if retry == 0 {
		return nil
	}
	return exhausted(retry, "too much of what the agent sends is refused")
}

// answer sends what is due: refusals, please-reconnect and an ack.
func (c *connection) answer() error {
	for _, late := range c.session.LateRefusals() {
		c.refusals = append(c.refusals, refusalMessage(late.Sequence, late.Refusal))
	}
	for _, r := range c.refusals {
		if err := c.send(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Refusal{Refusal: r}}); err != nil {
			return err
		}
	}
	c.refusals = nil
	if c.session.Aged() && !c.asked {
		c.asked = true
		if err := c.sendReconnect(0, reconnectAge); err != nil {
			return err
		}
	}
	progress := c.session.Progress()
	if !c.ackDue && progress == c.acked {
		return nil
	}
	c.ackDue, c.acked = false, progress
	return c.send(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Ack{Ack: &agentstatsv1.Ack{
		ReceivedSequence: progress.Received,
		DurableSequence:  progress.Durable,
	}}})
}

func (c *connection) sendSettings() error {
	opts := &c.server.opts
	resume := c.session.Resume()
	c.acked = resume
	settings := &agentstatsv1.Settings{
		ReportInterval: durationpb.New(opts.ReportInterval),
		Limits: &agentstatsv1.Limits{
			MessageBytes:           int64(opts.MaxAgentMessageBytes),
			Series:                 int64(opts.Limits.Series),
			MetadataKeys:           int64(c.server.Fleet.MaxMetadataKeys()),
			MetadataReportKeyBytes: int64(opts.Limits.MetadataReportKeyBytes),
			MetadataValueBytes:     int64(opts.Limits.MetadataValueBytes),
			MetadataErrorBytes:     int64(opts.Limits.MetadataErrorBytes),
		},
		Resume: &agentstatsv1.Resume{ReceivedSequence: resume.Received, DurableSequence: resume.Durable},
		Epoch:  c.session.Info().Epoch,
	}
	if age := c.server.Fleet.SessionAge(); age > 0 {
		settings.SessionAge = durationpb.New(age)
	}
	return c.send(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Settings{Settings: settings}})
}

func (c *connection) sendReconnect(delay time.Duration, reason string) error {
	return c.send(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Reconnect{Reconnect: &agentstatsv1.Reconnect{
		Delay:  durationpb.New(delay),
		Reason: reason,
	}}})
}

// send may block while the agent does not read. That stops only its own
// requests; its session can be taken over or removed meanwhile.
func (c *connection) send(m *agentstatsv1.ConnectResponse) error { return c.stream.Send(m) }
