package agentapi

import (
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// due is what is to be sent beside the session's refusals and progress, in this order.
// mu of the connection guards it.
type due struct {
	settings *agentstatsv1.Settings // nil: not due
	drain    bool                   // a please-reconnect, as the service stops
	close    bool                   // the status, which is the last to be sent
	closeErr error                  // of the status
}

// responses are sent by one round of sendDue, in one message.
type responses struct {
	settings *agentstatsv1.Settings
	refusals []fleet.Refusal
	drain    bool
	aged     bool // a please-reconnect, as the session is old
	acks     bool // there is an ack
	urgent   bool // somebody waits for the ack
	ack      wire.Ack
}

// sendDue sends what is due. One goroutine sends at a time. If another one is sending,
// it checks again for what is due. sendDue may block while the agent does not read.
// That delays the responses to that agent, and its requests if there are too many
// refusals. The session can be taken over or removed meanwhile.
func (c *connection) sendDue() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resend = true
	if c.sending {
		return
	}
	c.sending = true
	for c.resend && c.phase != phaseClosed {
		c.resend = false
		r := c.takeDueLocked()
		c.mu.Unlock()
		c.noteStored(r.refusals)
		err := c.send(&r)
		c.mu.Lock()
		if err != nil {
			c.closeLocked(err)
		}
		if c.sent != nil {
			close(c.sent)
			c.sent = nil
		}
	}
	c.sending = false
	if c.due.close && c.phase != phaseClosed {
		c.phase = phaseClosed
		_ = c.stream.WriteStatus(status.Convert(c.due.closeErr)) // the stream may have ended already
	}
}

// takeDueLocked returns what is due, and marks it as sent.
func (c *connection) takeDueLocked() (r responses) {
	if c.phase == phaseHandshake {
		return r
	}
	select {
	case <-c.session.Done():
		if c.phase < phaseGoodbye {
			// Another session of the instance sends the rest.
			c.closeLocked(endStatus(c.session.End()))
			return r
		}
	default:
	}
	r.settings, c.due.settings = c.due.settings, nil
	r.drain, c.due.drain = c.due.drain, false
	if c.session.Aged() && !c.askedAged {
		c.askedAged, r.aged = true, true
	}
	progress, refusals, ok := c.session.NextAck()
	if !ok {
		return r // another session of the instance sends acks and refusals
	}
	r.refusals = refusals
	now := time.Now()
	if sends := c.due.close || !r.isEmpty(); sends && progress != c.acks.Acked() || c.acks.IsDue(progress, now, c.ackDelaysLocked()) {
		r.acks, r.urgent, r.ack = true, c.acks.IsAwaited(), wire.Ack{Received: progress.Received, Durable: progress.Durable}
		c.acks.Sent(progress)
		c.stopAckTimerLocked()
	} else {
		c.setAckTimerLocked(now)
	}
	c.addSettingsLocked(&r)
	if c.phase == phaseLastAck && progress.Durable >= c.acks.Awaited() {
		c.closeLocked(nil)
	}
	return r
}

// addSettingsLocked adds the settings to a response if they or the interval factor have changed.
// No response is sent for them alone. So a change reaches agents spread over a report
// interval.
func (c *connection) addSettingsLocked(r *responses) {
	if r.settings != nil || !r.acks && len(r.refusals) == 0 && !r.drain && !r.aged {
		return
	}
	if opts, factor := c.service.opts.Load(), c.service.intervalFactor(); opts != c.opts || factor != c.factor {
		c.opts, c.factor, r.settings = opts, factor, c.service.settings(&opts.Options, factor)
	}
}

// send sends what was due in one message.
func (c *connection) send(r *responses) error {
	if r.isAckOnly() {
		return c.stream.sendAck(r.ack, r.urgent)
	}
	if m := r.message(); m != nil {
		return c.stream.send(m)
	}
	return nil
}

func (r *responses) isAckOnly() bool { return r.acks && r.isEmpty() }

// isEmpty reports whether there is nothing beside the ack.
func (r *responses) isEmpty() bool {
	return r.settings == nil && len(r.refusals) == 0 && !r.drain && !r.aged
}

// message returns the responses as one message; nil: there are none.
func (r *responses) message() *agentstatsv1.ConnectResponse {
	m := &agentstatsv1.ConnectResponse{Settings: r.settings}
	for i := range r.refusals {
		refusal := &r.refusals[i]
		m.Refusals = append(m.Refusals, contract.RefusalMessage(refusal.First, refusal.Sequence, &refusal.Refusal))
	}
	if r.acks {
		m.Ack = &agentstatsv1.Ack{ReceivedSequence: r.ack.Received, DurableSequence: r.ack.Durable}
	}
	switch {
	case r.drain:
		m.Reconnect = reconnect(reconnectDrain)
	case r.aged:
		m.Reconnect = reconnect(reconnectAge)
	}
	if m.Settings == nil && m.Refusals == nil && m.Ack == nil && m.Reconnect == nil {
		return nil
	}
	return m
}

// reconnect returns a request to the agent to connect again, without a delay.
func reconnect(reason string) *agentstatsv1.Reconnect {
	return &agentstatsv1.Reconnect{Delay: durationpb.New(0), Reason: reason}
}
