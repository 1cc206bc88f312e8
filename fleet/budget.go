package fleet

import (
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Why an agent is limited, as the counters label it.
const (
	limitedMessages = "message_rate"
	limitedBytes    = "byte_rate"
	limitedRefused  = "refused"
)

const (
	// floodGrace is how long an agent is slowed without a pause before its session
	// is ended. With the default rates that is another 2,000 messages or 5 MB after
	// the bursts of 2,000 and 8 MB.
	floodGrace = 10 * time.Second
	// floodPenalty is how long it must stay away then. Its series outlast that: the
	// TTL is 2 min.
	floodPenalty = 30 * time.Second
	// sessionMessages is how many messages the opening of a session counts as:
	// with its authentication, settings and the end of the one before it takes
	// about as much.
	sessionMessages = 20
	// messageSeries that a message made count as one more message: a new series costs
	// some 10 us, as labels are checked and rendered, and a new value next to nothing.
	messageSeries = 5
	// refusedBytes of a message of which something is refused count as one refused
	// item.
	refusedBytes = 1024
)

// budget is what an agent has used of what it may send, over all its sessions.
// What it lacks is the time since: an agent that is silent costs nothing.
//
// An agent that sends faster than its rates is slowed: each of its messages waits
// before it is taken in, and meanwhile the flow control of its stream stops it.
// One that is slowed for floodGrace, or has too much refused, is away: it cannot
// open a session for a while.
type budget struct {
	messages, bytes, refused bucket
	// behind is since when the agent is slowed without a pause; 0: it is not.
	// until is when it may come back; 0: now. Both in nanoseconds since 1970.
	throttledSince, penaltyUntil int64
	// reason is why it must not come, and got the debt of that.
	reason string
	got    float64
}

// bucket is a token bucket that can be overdrawn: it has debt, which time pays.
type bucket struct {
	debt float64
	at   int64 // nanoseconds since 1970
}

// take adds n to the debt. It returns how long to wait until the debt is within the
// burst; 0: it is.
func (b *bucket) add(now time.Time, n, perSecond, burst int) time.Duration {
	at := now.UnixNano()
	if passed := time.Duration(at - b.at); b.at != 0 && passed > 0 {
		b.debt = max(0, b.debt-passed.Seconds()*float64(perSecond))
	}
	b.at = at
	b.debt += float64(n)
	over := b.debt - float64(burst)
	if over <= 0 {
		return 0
	}
	return time.Duration(over / float64(perSecond) * float64(time.Second))
}

// charge counts messages of so many bytes together. The message is to wait, or if
// retry is above 0, the agent to go for so long, for the reason.
func (b *budget) charge(now time.Time, o *Options, messages, bytes int) (wait, retry time.Duration, reason string) {
	wait, reason = b.messages.add(now, messages, o.MessagesPerSecond, o.MessagesBurst), limitedMessages
	if w := b.bytes.add(now, bytes, o.BytesPerSecond, o.BytesBurst); w > wait {
		wait, reason = w, limitedBytes
	}
	switch {
	case wait == 0:
		b.throttledSince = 0
		return 0, 0, ""
	case b.throttledSince == 0:
		b.throttledSince = now.UnixNano()
	case now.Sub(time.Unix(0, b.throttledSince)) >= floodGrace:
		b.throttledSince = 0
		b.penaltyUntil = now.Add(floodPenalty).UnixNano()
		b.reason, b.got = reason, b.messages.debt
		if reason == limitedBytes {
			b.got = b.bytes.debt
		}
		return 0, floodPenalty, reason
	}
	return wait, 0, reason
}

// create counts series that a message made. The next message waits for them.
func (b *budget) chargeSeries(series int) { b.messages.debt += float64(series / messageSeries) }

// refuse counts refused items of a message of so many bytes. The agent is to go if
// retry is above 0.
func (b *budget) chargeRefused(now time.Time, o *Options, items, bytes int) (retry time.Duration) {
	over := b.refused.add(now, items+bytes/refusedBytes, o.RefusedPerSecond, o.RefusedBurst)
	if over == 0 {
		return 0
	}
	// One message can hold tens of thousands of bad items: the agent pays for at
	// most two bursts.
	b.refused.debt = min(b.refused.debt, 2*float64(o.RefusedBurst))
	retry = min(over, time.Duration(float64(o.RefusedBurst)/float64(o.RefusedPerSecond)*float64(time.Second)))
	b.penaltyUntil = max(b.penaltyUntil, now.Add(retry).UnixNano())
	b.reason, b.got = limitedRefused, b.refused.debt
	return retry
}

// excess says which limit the agent is above, with its flags and by what.
func (b *budget) excess(now time.Time, o *Options) string {
	reason, got := b.reason, b.got
	if b.penaltyLeft(now) == 0 { // it is slowed
		reason, got = limitedMessages, b.messages.debt
		if b.bytes.add(now, 0, o.BytesPerSecond, o.BytesBurst) > b.messages.add(now, 0, o.MessagesPerSecond, o.MessagesBurst) {
			reason, got = limitedBytes, b.bytes.debt
		}
	}
	what, flag, rate, burst := "messages", "message", o.MessagesPerSecond, o.MessagesBurst
	switch reason {
	case limitedBytes:
		what, flag, rate, burst = "bytes", "byte", o.BytesPerSecond, o.BytesBurst
	case limitedRefused:
		what, flag, rate, burst = "refused items", "refused", o.RefusedPerSecond, o.RefusedBurst
	}
	return fmt.Sprintf("%s of the agent: want at most %d at once (--agent-%s-burst) and %d a second after that (--agent-%s-rate), got %.0f", what, burst, flag, rate, flag, got)
}

// Excess says which limit an agent that must stay away is above, with its flags and by
// what.
func (f *Fleet) Excess(id agent.ID) string {
	e, err := f.entry(id)
	if err != nil {
		return "the agent: is not registered any more"
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.budget.excess(time.Now(), &f.opts)
}

// slowed returns how long a message would have to wait now.
func (b *budget) delay(now time.Time, o *Options) time.Duration {
	return max(b.messages.add(now, 0, o.MessagesPerSecond, o.MessagesBurst), b.bytes.add(now, 0, o.BytesPerSecond, o.BytesBurst))
}

// away returns how long the agent must still stay away; 0: it may come.
func (b *budget) penaltyLeft(now time.Time) time.Duration {
	return max(0, time.Duration(b.penaltyUntil-now.UnixNano()))
}

// Admit counts the opening of a session by an agent, and returns how long it must
// stay away instead, which counts as nothing; 0: it may come.
func (f *Fleet) Admit(id agent.ID) (retry time.Duration) {
	e, err := f.entry(id)
	if err != nil {
		return 0 // Connect says so
	}
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if retry := e.budget.penaltyLeft(now); retry > 0 {
		f.metrics.sessionsRefused.Inc()
		return retry
	}
	if wait := e.budget.delay(now, &f.opts); wait > 0 {
		f.metrics.sessionsRefused.Inc()
		return wait
	}
	// One that tries all the time goes like one that sends all the time. That it
	// has to wait is said to its first message.
	_, retry, reason := e.budget.charge(now, &f.opts, sessionMessages, 0)
	f.countLimited(0, retry, reason)
	return retry
}

// Charge counts a message of the agent, of so many bytes, before it is taken in. It
// returns how long the message must wait for that, or how long the agent must stay
// away: its session is to be ended, for Fleet.Excess. It has been kept waiting for too
// long then, or, if refused is true, too much of what it sent before was refused since.
func (s *Session) Charge(bytes int) (wait, retry time.Duration, refused bool) {
	e := s.entry
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if retry := e.budget.penaltyLeft(now); retry > 0 {
		return 0, retry, true // which was counted then
	}
	wait, retry, reason := e.budget.charge(now, &s.fleet.opts, 1, bytes)
	s.fleet.countLimited(wait, retry, reason)
	return wait, retry, false
}

// Created counts the series that the request's report made, towards the agent's rate
// of messages.
func (r Request) Created(series int) {
	if series < messageSeries {
		return // as of reports as they should be
	}
	r.entry.mu.Lock()
	defer r.entry.mu.Unlock()
	r.entry.budget.chargeSeries(series)
}

func (f *Fleet) countLimited(wait, retry time.Duration, reason string) {
	switch {
	case retry > 0:
		f.metrics.limited.WithLabelValues(reason).Inc()
	case wait > 0:
		f.metrics.delayed.WithLabelValues(reason).Inc()
	}
}

// Refused counts refused items of the agent, of a message of so many bytes. It
// returns how long the agent must stay away; 0: it may go on.
func (s *Session) Refused(items, bytes int) time.Duration {
	return s.fleet.chargeRefused(s.entry, items, bytes)
}

// Refused is Session.Refused for what an agent sends before it has a session.
func (f *Fleet) Refused(id agent.ID, items, bytes int) time.Duration {
	e, err := f.entry(id)
	if err != nil {
		return 0
	}
	return f.chargeRefused(e, items, bytes)
}

func (f *Fleet) chargeRefused(e *entry, items, bytes int) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	retry := e.budget.chargeRefused(time.Now(), &f.opts, items, bytes)
	f.countLimited(0, retry, limitedRefused)
	return retry
}
