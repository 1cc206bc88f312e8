package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agentapi/internal/ackschedule"
	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxUnsentRefusals bounds the refusals that an agent has not read. Beyond it the
// agent's requests are not read either, as the fleet would drop the names of further
// refusals.
const maxUnsentRefusals = 32

// metadataInterval is multiplied by the factor while intervals are lengthened, or the
// report interval if that is shorter. Most templates collect metadata each 10 s. At a
// factor of 1 agents send values as often as they change.
const metadataInterval = 10 * time.Second

// Reasons of please-reconnect.
const (
	reconnectAge   = "session_age"
	reconnectDrain = "draining"
)

// phase is how far an agent's stream has come. It never goes back, and may skip phases.
//
//	handshake   nothing is sent but the status
//	    │  the session is open: the settings are due
//	    ▼
//	open        requests are taken in, responses are sent
//	    │  a goodbye is taken in: the session is closed
//	    ▼
//	goodbye     responses are sent, requests are refused
//	    │  the goodbye is received: its ack is due
//	    ▼
//	last ack    the same, until all is durable or Options.GoodbyeTimeout has passed
//	    │  the status is sent, or the handler has ended the stream
//	    ▼
//	closed      nothing is sent any more
//
// Each phase leads to closed when the stream is to end: the status is due then. It is
// sent after all else that is due.
type phase uint8

const (
	phaseHandshake phase = iota
	phaseOpen
	phaseGoodbye
	phaseLastAck
	phaseClosed
)

// String returns the name of the phase.
func (p phase) String() string {
	switch p {
	case phaseHandshake:
		return "handshake"
	case phaseOpen:
		return "open"
	case phaseGoodbye:
		return "goodbye"
	case phaseLastAck:
		return "last ack"
	case phaseClosed:
		return "closed"
	}
	return fmt.Sprintf("phase(%d)", uint8(p))
}

// connection is an agent's stream. As there are many agents, mostly idle, it has one
// goroutine: its handler, which reads. A goroutine that makes something due sends it,
// one at a time. mu is not locked while it sends.
type connection struct {
	service *Service
	stream  agentStream
	who     grpcserver.Caller
	// version of the agent, as its hello says it; empty: it does not.
	version string
	// session is nil until the hello.
	session *fleet.Session
	// frame has the request that is being handled. Only the handler uses frame and
	// goodbyeRead.
	frame       wire.Frame
	goodbyeRead bool
	// active is set by each message, and cleared by the check for idle streams.
	active atomic.Bool
	// sendScheduled is true while a goroutine is about to send what is due.
	sendScheduled atomic.Bool

	mu sync.Mutex
	// Guarded by mu.

	phase     phase
	due       due
	opts      *inForce // of the settings that were sent last
	factor    float64  // of the intervals in them
	askedAged bool     // the please-reconnect of an old session was sent
	relayed   bool     // by coderd; it does not change

	acks     ackschedule.Schedule
	ackTimer *time.Timer // for acks.At; nil: it is not set

	sending bool          // a goroutine sends what is due
	resend  bool          // something may be due since that goroutine looked
	sent    chan struct{} // closed when something was sent; nil: nobody waits for that

	closeTimer *time.Timer // bounds the last ack; nil: it is not waited for
	end        fleet.End   // how the session will end
}

// What Connect has on its stack stays there as long as the agent is connected, so it is
// not to be inlined.
//
//go:noinline
func newConnection(s *Service, stream agentStream, who grpcserver.Caller, relayed bool) *connection {
	return &connection{
		service: s, stream: stream, who: who, end: fleet.EndDisconnect, opts: s.opts.Load(), relayed: relayed,
		frame: wire.NewFrame(who.Agent, s.server.MaxAgentMessageBytes()),
	}
}

// ackDelaysLocked returns the delays of acks.
func (c *connection) ackDelaysLocked() *ackschedule.Delays {
	if c.relayed {
		return &c.opts.relayedAcks
	}
	return &c.opts.acks
}

// advanceLocked moves the connection to a later phase.
func (c *connection) advanceLocked(p phase) { c.phase = max(c.phase, p) }

// setSession gives the connection its session.
func (c *connection) setSession(session *fleet.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = session
}

// startSending sends the settings, and from then on what is due.
func (c *connection) startSending() {
	c.session.Watch(c.scheduleSend)
	c.mu.Lock()
	c.advanceLocked(phaseOpen)
	c.acks.Resume(c.session.Resume())
	c.opts, c.factor = c.service.opts.Load(), c.service.intervalFactor()
	c.due.settings = c.firstSettingsLocked()
	c.mu.Unlock()
	c.scheduleSend() // not on this stack, which would keep its size as long as the agent is connected
}

// firstSettingsLocked returns those of a session that opens.
func (c *connection) firstSettingsLocked() *agentstatsv1.Settings {
	resume, settings := c.session.Resume(), c.service.settings(&c.opts.Options, c.factor)
	settings.Resume = &agentstatsv1.Resume{ReceivedSequence: resume.Received, DurableSequence: resume.Durable}
	settings.Epoch = c.session.Info().Epoch
	return settings
}

// settings returns those of all sessions, with intervals that are lengthened by factor.
func (s *Service) settings(opts *Options, factor float64) *agentstatsv1.Settings {
	settings := &agentstatsv1.Settings{
		ReportInterval: opts.lengthened(opts.ReportInterval, factor),
		Limits: &agentstatsv1.Limits{
			MessageBytes:           int64(s.server.MaxAgentMessageBytes()),
			Series:                 int64(opts.Limits.Series),
			MetadataKeys:           int64(s.Fleet.Options().MaxMetadataKeys),
			MetadataKeyBytes:       int64(opts.Limits.MetadataKeyBytes),
			MetadataReportKeyBytes: int64(opts.Limits.MetadataReportKeyBytes),
			MetadataValueBytes:     int64(opts.Limits.MetadataValueBytes),
			MetadataErrorBytes:     int64(opts.Limits.MetadataErrorBytes),
		},
		AckDelay: durationpb.New(opts.AckDelay),
	}
	if factor > 1 {
		settings.MetadataInterval = opts.lengthened(min(metadataInterval, opts.ReportInterval), factor)
	}
	if age := s.Fleet.Options().SessionAge; age > 0 {
		settings.SessionAge = durationpb.New(age)
	}
	return settings
}

// lengthened returns the interval d multiplied by factor, but at most LongestInterval
// unless d is longer.
func (o *Options) lengthened(d time.Duration, factor float64) *durationpb.Duration {
	return durationpb.New(max(d, min(time.Duration(float64(d)*factor), o.LongestInterval)))
}

// intervalFactor returns by how much intervals are lengthened now.
func (s *Service) intervalFactor() float64 {
	if s.Intervals == nil {
		return 1
	}
	return s.Intervals.Factor()
}

// handled schedules the ack of a request that came now. The ack is sent at once if
// something was refused of the request. handled blocks while the agent does not read its
// refusals.
func (c *connection) handled(now time.Time, r ackschedule.Request, refused bool) {
	c.mu.Lock()
	c.acks.Add(r, now, c.ackDelaysLocked())
	atOnce := refused || c.acks.IsDueAtOnce(now)
	if !atOnce {
		c.setAckTimerLocked(now)
	}
	c.mu.Unlock()
	// If all was stored before the request was added, nobody was notified of the ack.
	if atOnce || r.ForStore && c.session.Progress().Durable >= r.Sequence {
		c.sendDue()
		c.awaitRefusals(c.stream.Context(), c.session.UnsentRefusals)
	}
}

// setAckTimerLocked sets the timer that sends what is due at acks.At, if that has
// changed.
func (c *connection) setAckTimerLocked(now time.Time) {
	switch {
	case !c.acks.NeedsTimer(now):
	case c.ackTimer == nil:
		c.ackTimer = time.AfterFunc(c.acks.At().Sub(now), c.sendDue)
	default:
		c.ackTimer.Reset(c.acks.At().Sub(now))
	}
}

// stopAckTimerLocked stops the timer, which takes no memory then.
func (c *connection) stopAckTimerLocked() {
	if c.ackTimer != nil {
		c.ackTimer.Stop()
		c.ackTimer = nil
	}
}

// awaitRefusals waits while another goroutine sends and there are too many unsent
// refusals.
func (c *connection) awaitRefusals(ctx context.Context, unsent func() int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.sending && unsent() > maxUnsentRefusals && ctx.Err() == nil {
		c.awaitSentLocked(ctx)
	}
}

// awaitSentLocked waits, without the lock, until something was sent.
func (c *connection) awaitSentLocked(ctx context.Context) {
	if c.sent == nil {
		c.sent = make(chan struct{})
	}
	sent := c.sent
	c.mu.Unlock()
	select {
	case <-sent:
	case <-ctx.Done():
	}
	c.mu.Lock()
}

// closeSession closes the session of an agent that said goodbye.
func (c *connection) closeSession() {
	c.goodbyeRead = true
	c.mu.Lock()
	c.advanceLocked(phaseGoodbye)
	c.end = fleet.EndGoodbye
	c.mu.Unlock()
	c.session.Close(fleet.EndGoodbye)
}

// awaitLastAck makes the stream end with the last ack, which covers the goodbye with the
// sequence as durable.
func (c *connection) awaitLastAck(sequence int64) {
	if !c.goodbyeRead { // another connection received it before
		c.closeSession()
	}
	c.mu.Lock()
	c.advanceLocked(phaseLastAck)
	c.acks.Await(sequence)
	c.closeTimer = time.AfterFunc(c.service.opts.Load().GoodbyeTimeout, func() { c.CloseStream(nil) })
	c.mu.Unlock()
	c.sendDue()
}

// AskToReconnect makes a please-reconnect due, as the service stops. It does not block.
func (c *connection) AskToReconnect() {
	c.mu.Lock()
	c.end, c.due.drain = fleet.EndDrain, true
	c.mu.Unlock()
	c.scheduleSend()
}

// ReceivedMessage reports whether a message came since its last call.
func (c *connection) ReceivedMessage() bool { return c.active.Swap(false) }

// scheduleSend sends what is due in another goroutine. It does not block.
func (c *connection) scheduleSend() {
	if c.sendScheduled.CompareAndSwap(false, true) {
		go func() {
			c.sendScheduled.Store(false)
			c.sendDue()
		}()
	}
}

// setEnd sets how the session will end, unless that is set.
func (c *connection) setEnd(end fleet.End) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == fleet.EndDisconnect {
		c.end = end
	}
}

// awaitEnd ends the stream, unless the last ack is pending, and waits for its end. err
// is what serve returned. It returns the handler's result.
func (c *connection) awaitEnd(err error) error {
	halfClosed := errors.Is(err, io.EOF)
	c.mu.Lock()
	waits := halfClosed && c.phase >= phaseGoodbye // for the last ack
	c.mu.Unlock()
	if halfClosed {
		err = nil
	}
	if !waits {
		c.CloseStream(err)
	}
	// The end of the stream cancels its context.
	ctx := c.stream.Context()
	<-ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advanceLocked(phaseClosed)
	for c.sending { // which the end of the stream ends, too
		c.awaitSentLocked(context.Background())
	}
	c.closeLocked(ctx.Err())
	return c.due.closeErr
}

// close closes the session. The stream must not be used from now on.
func (c *connection) close() {
	c.mu.Lock()
	c.advanceLocked(phaseClosed)
	session, end, err, timer := c.session, c.end, c.due.closeErr, c.closeTimer
	c.stopAckTimerLocked()
	c.mu.Unlock()
	if timer != nil {
		timer.Stop()
	}
	if session != nil {
		session.Close(end)
		c.tapEnd(session, err)
		c.logSession("session ended", session, slog.String("end", string(session.End())))
	}
}

// CloseStream ends the stream with an error, nil: none, unless it has a status already.
// What is due is sent before. It may block while the agent does not read.
func (c *connection) CloseStream(err error) {
	c.mu.Lock()
	c.closeLocked(err)
	c.mu.Unlock()
	c.sendDue()
}

// closeLocked makes the status due, unless one is.
func (c *connection) closeLocked(err error) {
	if !c.due.close {
		c.due.close, c.due.closeErr = true, err
	}
}
