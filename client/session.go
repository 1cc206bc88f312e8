package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/client/internal/outbox"
	"github.com/coder/agentstatsd/client/internal/relaystream"
	"github.com/coder/agentstatsd/client/internal/standby"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	protocolVersion = 1
	// handshakeTimeout bounds the time from the connect to the settings.
	handshakeTimeout = 30 * time.Second
	// minReportInterval is the least that the contract allows.
	minReportInterval = time.Second
)

// errReconnect is why a session ended that the service asked to end.
var errReconnect = errors.New("the service asked to reconnect")

// sessionEnd is how a session ended.
type sessionEnd struct {
	err error
	// delay that the service asked for.
	delay time.Duration
	// lived is true if the session was useful, so that the backoff begins anew.
	lived bool
	// closed is true if the goodbye was sent and no ack is pending.
	closed bool
}

// session is one stream.
type session struct {
	agent *Agent
	// stream does not keep a request after Send: reports are changed and sent again.
	stream agentstatsv1.AgentService_ConnectClient
	opened time.Time
	// reconnect gets the delay of a please-reconnect.
	reconnect chan time.Duration

	// done is closed when receive has ended. Then the fields below may be read.
	done chan struct{}
	err  error
	// ended is true if the service ended the stream without an error.
	ended bool
	// acked is true if there was an ack.
	acked bool
}

// session opens a session and serves it until it ends.
func (a *Agent) session(ctx context.Context) (end sessionEnd) {
	defer func() { a.noteEnd(end.err) }()
	a.setState(State{Connection: Connecting})
	conn, hangUp, err := a.connect()
	if err != nil {
		return sessionEnd{err: fmt.Errorf("open session: %w", err)}
	}
	defer hangUp()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	s := &session{
		agent:     a,
		reconnect: make(chan time.Duration, 1),
		done:      make(chan struct{}),
	}
	if err := s.open(ctx, cancel, conn); err != nil {
		return sessionEnd{err: err, delay: retryDelay(err)}
	}
	s.opened = time.Now()
	a.setState(State{Connection: Connected})
	a.failures.Opened(ctx, time.Now())
	a.recovery.Opened(time.Now())
	a.log.Log(ctx, a.routine, "session opened")

	go s.receive()
	end = s.send(ctx)
	cancel(nil)
	<-s.done
	if end.err == nil {
		end.err = s.err
	}
	end.delay = max(end.delay, retryDelay(end.err))
	lived := time.Since(s.opened) >= a.opts.Backoff.Max
	superseded := status.Code(end.err) == codes.Aborted
	end.lived = lived || s.acked && !superseded
	if superseded {
		a.mu.Lock()
		_, due := a.outbox.DueAt()
		a.standby.Superseded(time.Now(), a.outbox.Confirmed(), !due && a.received >= a.sent)
		a.mu.Unlock()
	}
	return end
}

// open opens a stream over conn, sends the hello and applies the settings.
func (s *session) open(ctx context.Context, cancel context.CancelCauseFunc, conn grpc.ClientConnInterface) error {
	a := s.agent
	guard := time.AfterFunc(handshakeTimeout, func() {
		cancel(fmt.Errorf("open session: no settings within %s", handshakeTimeout))
	})
	defer guard.Stop()
	resp, err := s.hello(ctx, conn)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		return fmt.Errorf("open session: %w", err)
	}
	settings := resp.GetSettings()
	if settings.GetResume() == nil {
		return errors.New("open session: the first response is not settings with resume")
	}

	a.mu.Lock()
	// From here on the service may count what this instance reports, so that
	// the next session is not its first.
	a.status.Counts.Sessions++
	a.epoch = settings.GetEpoch()
	a.isOpen, a.received = true, max(a.received, settings.GetResume().GetReceivedSequence())
	stored := a.outbox.Resume(settings.GetResume())
	a.outbox.Pace.BeginSession(time.Now())
	a.applySettingsLocked(settings)
	a.standby.Opened(time.Now(), a.status.ReportInterval)
	a.mu.Unlock()
	a.notifyDurable(stored)
	a.wakeWaiting()
	s.handle(resp)
	return nil
}

func (s *session) hello(ctx context.Context, conn grpc.ClientConnInterface) (*agentstatsv1.ConnectResponse, error) {
	a := s.agent
	stream, err := agentstatsv1.NewAgentServiceClient(conn).Connect(ctx, a.callOptions...)
	if err != nil {
		return nil, err
	}
	s.stream = stream
	a.mu.Lock()
	ordinal, epoch, confirmed := a.status.Counts.Sessions+1, a.epoch, a.outbox.BeginHello(time.Now())
	a.mu.Unlock()
	err = stream.Send(&agentstatsv1.ConnectRequest{Hello: &agentstatsv1.Hello{
		InstanceId:      a.opts.InstanceID[:],
		ProtocolVersion: protocolVersion,
		Session:         ordinal,
		Epoch:           epoch,
		DurableSequence: confirmed,
		Version:         a.opts.Version,
	}})
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream.Recv()
}

// applySettingsLocked applies settings.
func (a *Agent) applySettingsLocked(settings *agentstatsv1.Settings) {
	interval := max(settings.GetReportInterval().AsDuration(), minReportInterval)
	a.status.ReportInterval = interval
	a.limits = outbox.NewLimits(settings.GetLimits())
	metadataInterval := max(settings.GetMetadataInterval().AsDuration(), 0)
	a.outbox.Pace.SetIntervals(cmp.Or(a.opts.ReportInterval, interval), metadataInterval, time.Now())
	a.wakeLocked()
}

// send sends what the outbox has until the session is to end. Then no Send is
// under way, and the caller ends the stream.
func (s *session) send(ctx context.Context) sessionEnd {
	a := s.agent
	timer := time.NewTimer(0)
	defer timer.Stop()
	halfClosed := false

	for {
		s.collect(ctx)
		req, wait, closing, idle := s.next()
		a.notifyRefusals()
		switch {
		case req != nil:
			if err := s.stream.Send(req); errors.Is(err, io.EOF) {
				<-s.done
				return sessionEnd{err: s.err}
			} else if err != nil {
				return sessionEnd{err: fmt.Errorf("send: %w", err)}
			}
			continue
		case closing && idle:
			return sessionEnd{closed: true}
		case closing && !halfClosed && s.goodbyeSent():
			halfClosed = true
			if err := s.stream.CloseSend(); err != nil {
				return sessionEnd{err: fmt.Errorf("close send: %w", err)}
			}
		}

		unneeded, look := a.isUnneeded()
		if unneeded {
			return sessionEnd{err: standby.ErrNothingLeft}
		}
		timer.Reset(min(wait, look))
		select {
		case <-a.wake:
		case <-timer.C:
		case delay := <-s.reconnect:
			return s.endStream(ctx, delay)
		case <-s.done:
			return sessionEnd{err: s.err, closed: s.endedByGoodbye()}
		}
	}
}

// next returns the next request; nil: there is none before wait has passed, unless
// Run is woken. It returns whether Close was called, and whether no ack is pending,
// that of the goodbye included.
func (s *session) next() (req *agentstatsv1.ConnectRequest, wait time.Duration, closing, idle bool) {
	a := s.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	req = a.outbox.Next(a.limits, now)
	a.sent = max(a.sent, req.GetSequence())
	at, due := a.outbox.DueAt()
	wait = standby.MaxSleep
	if due {
		wait = min(wait, at.Sub(now))
	}
	a.sleeps, a.checksAt = req == nil, now.Add(wait)
	return req, wait, a.closing, a.outbox.Idle()
}

func (s *session) goodbyeSent() bool {
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	return s.agent.outbox.GoodbyeSent()
}

// endedByGoodbye reports whether the service ended the stream for the goodbye, when
// no other ack was pending. That acks the goodbye too.
func (s *session) endedByGoodbye() bool {
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	o := s.agent.outbox
	if s.ended && o.GoodbyeSent() {
		o.AckGoodbye()
		return o.Idle()
	}
	return false
}

// endStream ends the stream as the service asked, after its last acks.
func (s *session) endStream(ctx context.Context, delay time.Duration) sessionEnd {
	asked := time.Now()
	end := sessionEnd{err: errReconnect}
	if err := s.stream.CloseSend(); err == nil {
		timer := time.NewTimer(relaystream.LastAcksTimeout)
		defer timer.Stop()
		select {
		case <-s.done:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	end.delay = max(0, min(delay, maxRetryDelay)-time.Since(asked))
	return end
}

// collect adds a report of Collect if one is due, and before a goodbye. It adds the
// goodbye if Close was called.
func (s *session) collect(ctx context.Context) {
	a := s.agent
	a.mu.Lock()
	now := time.Now()
	goodbyeDue := a.closing && !a.outbox.HasGoodbye()
	wanted := a.outbox.WantsReport(now) || goodbyeDue && a.opts.Collect != nil
	if wanted {
		a.outbox.Pace.Collect(now)
	}
	a.mu.Unlock()
	var stats *agentstatsv1.Stats
	if wanted {
		stats = a.opts.Collect(ctx)
	}
	if stats == nil && !goodbyeDue {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if stats != nil {
		a.outbox.PutStats(stats, true, time.Now())
	}
	if goodbyeDue {
		a.outbox.PutGoodbye()
	}
}

// receive handles responses until the stream ends.
func (s *session) receive() {
	defer close(s.done)
	for {
		resp, err := s.stream.Recv()
		if err != nil {
			s.err = err
			if errors.Is(err, io.EOF) {
				s.ended = true
				s.err = errors.New("the service ended the stream")
			}
			return
		}
		if settings := resp.GetSettings(); settings != nil {
			s.agent.mu.Lock()
			s.agent.applySettingsLocked(settings)
			s.agent.mu.Unlock()
		}
		s.handle(resp)
	}
}

// handle handles the refusals, the ack and the please-reconnect of a response.
func (s *session) handle(resp *agentstatsv1.ConnectResponse) {
	for _, refusal := range resp.GetRefusals() {
		s.agent.refusal(refusal)
	}
	if ack := resp.GetAck(); ack != nil {
		s.acked = true
		s.agent.ack(ack)
	}
	if reconnect := resp.GetReconnect(); reconnect != nil {
		select {
		case s.reconnect <- reconnect.GetDelay().AsDuration():
		default:
		}
	}
}

func (a *Agent) ack(ack *agentstatsv1.Ack) {
	a.mu.Lock()
	a.received = max(a.received, ack.GetReceivedSequence())
	stored, sent := a.outbox.Ack(ack.GetReceivedSequence(), ack.GetDurableSequence())
	a.mu.Unlock()
	a.notifyDurable(stored)
	if a.opts.OnAck != nil {
		acked := Ack{Received: ack.GetReceivedSequence(), Durable: ack.GetDurableSequence()}
		if !sent.IsZero() {
			acked.RoundTrip = time.Since(sent)
		}
		a.opts.OnAck(acked)
	}
	a.wakeWaiting()
}

func (a *Agent) refusal(refusal *agentstatsv1.Refusal) {
	a.mu.Lock()
	a.outbox.ApplyRefusal(refusal)
	a.mu.Unlock()
	// What a summary stands for is refused by name later, or stored.
	if refusal.GetFirstSequence() == 0 {
		a.notifyRefusal(refusal)
	}
	a.wakeWaiting()
}

// notifyRefusal logs a refusal, and calls OnRefusal.
func (a *Agent) notifyRefusal(refusal *agentstatsv1.Refusal) {
	a.refusals.Refused(context.Background(), a.log, time.Now(), refusal)
	if a.opts.OnRefusal != nil {
		a.opts.OnRefusal(refusal)
	}
}

// notifyRefusals is notifyRefusal of what the Agent itself refused to send.
func (a *Agent) notifyRefusals() {
	a.mu.Lock()
	refusals := a.outbox.TakeRefusals()
	a.mu.Unlock()
	for _, r := range refusals {
		a.notifyRefusal(r)
	}
}

// wakeWaiting wakes those that wait for all acks, and Run if there is more to send
// now, or nothing any more before it ends.
func (a *Agent) wakeWaiting() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.idle != nil && a.settledLocked() {
		close(a.idle)
		a.idle = nil
	}
	if a.closing || a.standby.IsRelay && !a.standby.Present {
		a.signal()
	}
	a.wakeLocked()
}
