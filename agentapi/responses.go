package agentapi

import (
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// answer sends what is due, and ends the stream if it is over. If somebody else
// does so just then, that one looks again. It may block while the agent does not
// read. That stops only the answers to that agent, and its requests when there is
// too much to answer; its session can be taken over or removed meanwhile.
func (c *connection) answer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.again = true
	if c.answering {
		return
	}
	c.answering = true
	for c.again && !c.told {
		c.again = false
		due := c.dueLocked()
		c.mu.Unlock()
		err := c.send(&due)
		c.mu.Lock()
		if err != nil {
			c.endLocked(err)
		}
		if c.sent != nil {
			close(c.sent)
			c.sent = nil
		}
	}
	c.answering = false
	if c.over && !c.told {
		c.told = true
		_ = c.ender.WriteStatus(status.Convert(c.verdict)) // nobody can be told more
	}
}

// due is what an agent is to be told.
type due struct {
	settings *agentstatsv1.Settings
	refusals []fleet.Refusal
	drains   bool // it is asked to leave
	aged     bool // its session is old
	acks     bool
	ack      wire.Ack
}

// dueLocked takes what is due.
func (c *connection) dueLocked() (d due) {
	if !c.greeted {
		return d
	}
	select {
	case <-c.session.Done():
		if !c.leaving {
			// What is late is another session's to tell.
			c.endLocked(ended(c.session.End()))
			return d
		}
	default:
	}
	d.settings, c.settings = c.settings, nil
	d.drains, c.drains = c.drains, false
	if c.session.Aged() && !c.asked {
		c.asked, d.aged = true, true
	}
	progress, refusals, tells := c.session.NextAck()
	if !tells {
		return d // another session of the instance does
	}
	d.refusals = refusals
	if c.ackDue || progress != c.acked {
		d.acks, d.ack = true, wire.Ack{Received: progress.Received, Durable: progress.Durable, Box: &c.outbox}
		c.ackDue, c.unacked, c.acked, c.ackedAt = false, 0, progress, time.Now()
	}
	if c.bye != nil && progress.Durable == progress.Received {
		c.endLocked(nil)
	}
	return d
}

func (c *connection) send(d *due) error {
	if d.settings != nil {
		if err := c.sendCounted(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Settings{Settings: d.settings}}); err != nil {
			return err
		}
	}
	for i := range d.refusals {
		r := refusalMessage(&d.refusals[i])
		if err := c.sendCounted(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Refusal{Refusal: r}}); err != nil {
			return err
		}
	}
	if d.drains {
		if err := c.sendReconnect(reconnectDrain); err != nil {
			return err
		}
	}
	if d.aged {
		if err := c.sendReconnect(reconnectAge); err != nil {
			return err
		}
	}
	if d.acks {
		return c.stream.SendMsg(&d.ack)
	}
	return nil
}

func (c *connection) sendCounted(m *agentstatsv1.ConnectResponse) error {
	return c.stream.SendMsg(&grpcserver.CountedResponse{Message: m, Box: &c.outbox})
}

// sendReconnect asks the agent to connect again, when it likes.
func (c *connection) sendReconnect(reason string) error {
	return c.sendCounted(&agentstatsv1.ConnectResponse{Message: &agentstatsv1.ConnectResponse_Reconnect{Reconnect: &agentstatsv1.Reconnect{
		Delay:  durationpb.New(0),
		Reason: reason,
	}}})
}
