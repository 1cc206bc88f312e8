package fleet

import (
	"cmp"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/budget"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
)

// fewSeries of one report are not charged: healthy agents make no more.
const fewSeries = 5

// limits returns the limits of each agent's budget.
func (o *Options) limits() *budget.Limits {
	return &budget.Limits{
		MessagesPerSecond: o.MessagesPerSecond, MessagesBurst: o.MessagesBurst,
		BytesPerSecond: o.BytesPerSecond, BytesBurst: o.BytesBurst,
		RefusedPerSecond: o.RefusedPerSecond, RefusedBurst: o.RefusedBurst,
	}
}

// capacity returns the limits of the registrations.
func (o *Options) capacity() capacity.Limits {
	return capacity.Limits{Agents: o.MaxAgents, Bytes: o.MaxBytes}
}

// Admit charges the agent for opening a session. It returns how long the agent must
// wait instead, which costs it nothing; 0: it is admitted.
func (f *Fleet) Admit(id agent.ID) (retry time.Duration) {
	e, err := f.entry(id)
	if err != nil {
		return 0 // Connect returns the error
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	b := &e.activeLocked().budget
	if retry := cmp.Or(b.PenaltyLeft(now), b.Delay(now, f.opts.Load().limits())); retry > 0 {
		f.metrics.sessionsRefused.Inc()
		return retry
	}
	// An agent that keeps reconnecting is penalized like one that keeps sending. A
	// delay applies to the first message of the session.
	_, retry, reason := b.Charge(now, f.opts.Load().limits(), budget.SessionMessages, 0)
	f.countLimited(0, retry, reason)
	return retry
}

// RetryAfter returns how long the agent must wait before it may open a session; 0: it
// may now. It charges nothing.
func (f *Fleet) RetryAfter(id agent.ID) time.Duration {
	e, err := f.entry(id)
	if err != nil {
		return 0
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.active == nil {
		return 0
	}
	b := &e.active.budget
	return max(b.PenaltyLeft(now), b.Delay(now, f.opts.Load().limits()))
}

// Charge charges the agent for a message of so many bytes that was received now, before it
// is handled. It returns how long the message must wait. If retry is above 0, the session must end,
// and the agent must wait so long: see Fleet.Excess. Then refused is true if the
// reason is refused items of earlier messages, otherwise its rate.
func (s *Session) Charge(now time.Time, bytes int) (wait, retry time.Duration, refused bool) {
	f, e := s.fleet, s.entry
	e.mu.Lock()
	defer e.mu.Unlock()
	b, past := &e.activeLocked().budget, e.historyLocked()
	past.traffic.Messages++
	past.traffic.Bytes += int64(bytes)
	if retry := b.PenaltyLeft(now); retry > 0 {
		return 0, retry, true // counted when the penalty began
	}
	wait, retry, reason := b.Charge(now, f.opts.Load().limits(), 1, bytes)
	f.countLimited(wait, retry, reason)
	return wait, retry, false
}

// ChargeSeries charges the agent's rate of messages for the series that a report created.
func (r Request) ChargeSeries(series int) {
	if series < fewSeries {
		return
	}
	r.entry.mu.Lock()
	defer r.entry.mu.Unlock()
	r.entry.activeLocked().budget.ChargeSeries(series)
}

// Excess describes the limit that the agent exceeds, with its flags and the value.
func (f *Fleet) Excess(id agent.ID) string {
	e, err := f.entry(id)
	if err != nil {
		return "the agent: is not registered any more"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.activeLocked().budget.Excess(time.Now(), f.opts.Load().limits())
}

// ChargeRefused charges the agent for refused items of a message of so many bytes. It
// returns how long the agent must wait; 0: the session goes on.
func (s *Session) ChargeRefused(items, bytes int) time.Duration {
	return s.fleet.chargeRefusedTo(s.entry, items, bytes)
}

// ChargeRefused is Session.ChargeRefused for an agent without a session.
func (f *Fleet) ChargeRefused(id agent.ID, items, bytes int) time.Duration {
	e, err := f.entry(id)
	if err != nil {
		return 0
	}
	return f.chargeRefusedTo(e, items, bytes)
}

func (f *Fleet) chargeRefusedTo(e *entry, items, bytes int) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	retry := e.activeLocked().budget.ChargeRefused(time.Now(), f.opts.Load().limits(), items, bytes)
	f.countLimited(0, retry, budget.ReasonRefused)
	return retry
}

func (f *Fleet) countLimited(wait, retry time.Duration, reason string) {
	switch {
	case retry > 0:
		f.metrics.limited.WithLabelValues(reason).Inc()
	case wait > 0:
		f.metrics.delayed.WithLabelValues(reason).Inc()
	}
}
