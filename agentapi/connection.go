package agentapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// ackPause is the shortest time between two acks of a stream, but for those that
// tell more or are of ackRequests requests: a busy agent gets one ack for many
// reports, and one that lets only some be without an ack need not pause.
const (
	ackPause    = 5 * time.Millisecond
	ackRequests = 32
)

// maxUntold refusals of an agent; while there are more, and it does not read, it
// is not read: the fleet would tell it the rest without their names.
const maxUntold = 32

// Reasons of please-reconnect.
const (
	reconnectAge   = "session_age"
	reconnectDrain = "draining"
)

// connection is an agent's stream. Agents are many and mostly idle, so it has
// one goroutine, its handler's, which reads. Whoever has news of it answers, one
// at a time.
type connection struct {
	service *Service
	stream  connectStream
	ender   grpcserver.StreamEnder
	outbox  grpcserver.Outbox
	// session is nil until the hello.
	session *fleet.Session
	// frame is what is being taken in. It and the next field are the handler's.
	frame       wire.Frame
	saidGoodbye bool
	// heard is set by each message, and cleared by the check for idle streams.
	heard atomic.Bool
	// woken and paced are true while somebody is about to answer, at once or in
	// a while.
	woken, paced atomic.Bool

	mu sync.Mutex
	// Guarded by mu.

	answering bool // somebody is
	again     bool // there may be something to answer since it was looked for
	greeted   bool // before, there is nothing to answer

	settings *agentstatsv1.Settings // to be sent first
	drains   bool                   // it is to be asked to leave
	asked    bool                   // to connect again, as the session is old
	ackDue   bool
	unacked  int // requests since the last ack
	acked    fleet.Progress
	ackedAt  time.Time
	sent     chan struct{} // closed when something was; nil: nobody waits for that

	leaving bool        // goodbye was said
	bye     *time.Timer // bounds the wait for the last ack; nil: it is not waited for
	end     fleet.End   // how the session will end
	over    bool
	verdict error // that the stream is over with
	told    bool
}

func newConnection(s *Service, stream connectStream) (*connection, error) {
	ender, err := grpcserver.EnderOf(stream.Context())
	if err != nil {
		return nil, err
	}
	return &connection{
		service: s, stream: stream, ender: ender, end: fleet.EndDisconnect,
		frame: wire.NewFrame(grpcserver.CallerFrom(stream.Context()).Agent, s.server.Options().MaxAgentMessageBytes),
	}, nil
}

// open gives the connection its session.
func (c *connection) open(session *fleet.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = session
}

// greet sends the settings, and from then on what is due.
func (c *connection) greet() {
	c.session.Watch(c.wake)
	c.mu.Lock()
	c.greeted = true
	c.acked = c.session.Resume()
	c.settings = c.service.settings(c.session)
	c.mu.Unlock()
	c.answer()
}

// settings returns what an agent is told when its session opens.
func (s *Service) settings(session *fleet.Session) *agentstatsv1.Settings {
	opts, resume := &s.opts, session.Resume()
	settings := &agentstatsv1.Settings{
		ReportInterval: durationpb.New(opts.ReportInterval),
		Limits: &agentstatsv1.Limits{
			MessageBytes:           int64(s.server.Options().MaxAgentMessageBytes),
			Series:                 int64(opts.Limits.Series),
			MetadataKeys:           int64(s.Fleet.MaxMetadataKeys()),
			MetadataKeyBytes:       int64(opts.Limits.MetadataKeyBytes),
			MetadataReportKeyBytes: int64(opts.Limits.MetadataReportKeyBytes),
			MetadataValueBytes:     int64(opts.Limits.MetadataValueBytes),
			MetadataErrorBytes:     int64(opts.Limits.MetadataErrorBytes),
		},
		Resume: &agentstatsv1.Resume{ReceivedSequence: resume.Received, DurableSequence: resume.Durable},
		Epoch:  session.Info().Epoch,
	}
	if age := s.Fleet.SessionAge(); age > 0 {
		settings.SessionAge = durationpb.New(age)
	}
	return settings
}

// received has a request acked, at once if something of it was refused or many
// wait for an ack. It waits while the agent does not read what was refused before.
func (c *connection) received(refused bool) {
	c.mu.Lock()
	c.ackDue = true
	c.unacked++
	paced := !refused && c.unacked < ackRequests && time.Since(c.ackedAt) < ackPause
	c.mu.Unlock()
	if paced {
		if c.paced.CompareAndSwap(false, true) {
			time.AfterFunc(ackPause, func() {
				c.paced.Store(false)
				c.answer()
			})
		}
		return
	}
	c.answer()
	c.awaitRoom(c.stream.Context(), c.session.UnsentRefusals)
}

// awaitRoom waits while there is too much to tell.
func (c *connection) awaitRoom(ctx context.Context, untold func() int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.answering && untold() > maxUntold && ctx.Err() == nil {
		c.awaitAnswerLocked(ctx)
	}
}

// awaitAnswerLocked waits, without the lock, until something was sent.
func (c *connection) awaitAnswerLocked(ctx context.Context) {
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

// endSession ends the session of an agent that goes away for good.
func (c *connection) endSession() {
	c.saidGoodbye = true
	c.mu.Lock()
	c.leaving = true
	c.end = fleet.EndGoodbye
	c.mu.Unlock()
	c.session.Close(fleet.EndGoodbye)
}

// goodbye has the stream end with the last ack, which tells what was not durable.
func (c *connection) goodbye() {
	if !c.saidGoodbye { // it was received before, by another connection
		c.endSession()
	}
	c.mu.Lock()
	c.ackDue = true
	c.bye = time.AfterFunc(c.service.opts.GoodbyeTimeout, func() { c.CloseStream(nil) })
	c.mu.Unlock()
	c.answer()
}

// AskToReconnect has the agent told to connect again as the service stops.
func (c *connection) AskToReconnect() {
	c.mu.Lock()
	c.end, c.drains = fleet.EndDrain, true
	c.mu.Unlock()
	c.wake()
}

// Heard tells whether a message came since it was called last.
func (c *connection) ReceivedMessage() bool { return c.heard.Swap(false) }

// wake has somebody answer. It does not block.
func (c *connection) wake() {
	if c.woken.CompareAndSwap(false, true) {
		go func() {
			c.woken.Store(false)
			c.answer()
		}()
	}
}

// setEnd says how the session will end, unless that is known.
func (c *connection) setEnd(end fleet.End) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == fleet.EndDisconnect {
		c.end = end
	}
}

// leave ends the stream for the handler, with the error that serve returned. It
// returns what the handler has to.
func (c *connection) leave(err error) error {
	ended := errors.Is(err, io.EOF)
	c.mu.Lock()
	waits := ended && c.leaving // half-closed, for the last ack
	c.mu.Unlock()
	if ended {
		err = nil
	}
	if !waits {
		c.CloseStream(err)
	}
	// Whoever ends the stream cancels its context.
	ctx := c.stream.Context()
	<-ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = true
	for c.answering { // which the end of the stream ends, too
		c.awaitAnswerLocked(context.Background())
	}
	c.endLocked(ctx.Err())
	return c.verdict
}

// close ends the session. The stream must not be used from now on.
func (c *connection) close() {
	c.mu.Lock()
	c.told = true
	session, end, bye := c.session, c.end, c.bye
	c.mu.Unlock()
	if bye != nil {
		bye.Stop()
	}
	if session != nil {
		session.Close(end)
	}
}

// CloseStream ends the stream with an error, nil: none, unless it is over already.
// What is due is answered before. It may block while the agent does not read.
func (c *connection) CloseStream(err error) {
	c.mu.Lock()
	c.endLocked(err)
	c.mu.Unlock()
	c.answer()
}

func (c *connection) endLocked(err error) {
	if !c.over {
		c.over, c.verdict = true, err
	}
}
