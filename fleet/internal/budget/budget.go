// Package budget bounds what an agent sends, by token buckets of messages, bytes
// and refused items. It does no I/O and has no lock.
package budget

import (
	"fmt"
	"time"
)

// Reasons of limits: values of the label reason.
const (
	ReasonMessages = "message_rate"
	ReasonBytes    = "byte_rate"
	ReasonRefused  = "refused"
)

const (
	// Grace is how long an agent may be delayed without a pause before its session
	// ends. With the default rates that is another 2,000 messages or 5 MB, after the
	// bursts of 2,000 and 8 MB.
	Grace = 10 * time.Second
	// Penalty is how long the agent may open no session then. Its series outlast it:
	// the TTL is 2 min.
	Penalty = 30 * time.Second
	// SessionMessages is the cost of opening a session, in messages. Authentication,
	// settings and the end of the previous session cost about as much.
	SessionMessages = 20
	// messageSeries new series cost as much as one message. A new series costs some
	// 10 us, as its labels are checked and rendered; a new value costs far less.
	messageSeries = 5
	// refusedBytes of a message with a refused part count as one refused item.
	refusedBytes = 1024
)

// Limits are rates a second and bursts. All are above 0.
type Limits struct {
	MessagesPerSecond, MessagesBurst int
	BytesPerSecond, BytesBurst       int
	RefusedPerSecond, RefusedBurst   int
}

// Budget is what an agent used of its limits, over all its sessions. Its debts
// shrink with time only when it is charged: an idle agent costs nothing.
//
//	within its rates --faster--> delayed --for Grace--> penalty --Penalty--> within its rates
//	        any state --too many refused items--> penalty
//
// A delayed agent waits before each message is handled. Meanwhile the flow control
// of its stream stops it. During a penalty it cannot open a session.
//
// The zero value is an agent that has sent nothing. The owner locks it.
type Budget struct {
	messages, bytes, refused bucket
	// delayedSince is when the delay without a pause began; 0: not delayed.
	// penaltyUntil is when the penalty ends; 0: there was none. Both are in
	// nanoseconds since 1970.
	delayedSince, penaltyUntil int64
	// penaltyReason and penaltyDebt are those of the newest penalty.
	penaltyReason string
	penaltyDebt   float64
}

// bucket is a token bucket that can be overdrawn. Its debt shrinks with time.
type bucket struct {
	debt float64
	at   int64 // nanoseconds since 1970
}

// add adds n to the debt. It returns how long the debt exceeds the burst; 0: it does
// not.
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

// Charge charges messages with so many bytes together. It returns how long they must
// wait, or in retry how long the agent is penalized from now on, and the reason.
func (b *Budget) Charge(now time.Time, l *Limits, messages, bytes int) (wait, retry time.Duration, reason string) {
	wait, reason = b.messages.add(now, messages, l.MessagesPerSecond, l.MessagesBurst), ReasonMessages
	if w := b.bytes.add(now, bytes, l.BytesPerSecond, l.BytesBurst); w > wait {
		wait, reason = w, ReasonBytes
	}
	switch {
	case wait == 0:
		b.delayedSince = 0
		return 0, 0, ""
	case b.delayedSince == 0:
		b.delayedSince = now.UnixNano()
	case now.Sub(time.Unix(0, b.delayedSince)) >= Grace:
		b.delayedSince = 0
		b.penaltyUntil = now.Add(Penalty).UnixNano()
		b.penaltyReason, b.penaltyDebt = reason, b.messages.debt
		if reason == ReasonBytes {
			b.penaltyDebt = b.bytes.debt
		}
		return 0, Penalty, reason
	}
	return wait, 0, reason
}

// ChargeSeries charges the new series of a message. The next message waits for them.
func (b *Budget) ChargeSeries(series int) { b.messages.debt += float64(series / messageSeries) }

// ChargeRefused charges refused items of a message with so many bytes. It returns how
// long the agent is penalized; 0: it is not.
func (b *Budget) ChargeRefused(now time.Time, l *Limits, items, bytes int) (retry time.Duration) {
	over := b.refused.add(now, items+bytes/refusedBytes, l.RefusedPerSecond, l.RefusedBurst)
	if over == 0 {
		return 0
	}
	// One message can have tens of thousands of bad items: two bursts are the most
	// that it costs.
	b.refused.debt = min(b.refused.debt, 2*float64(l.RefusedBurst))
	retry = min(over, time.Duration(float64(l.RefusedBurst)/float64(l.RefusedPerSecond)*float64(time.Second)))
	b.penaltyUntil = max(b.penaltyUntil, now.Add(retry).UnixNano())
	b.penaltyReason, b.penaltyDebt = ReasonRefused, b.refused.debt
	return retry
}

// Excess describes the limit that the agent exceeds, with its flags and the value.
func (b *Budget) Excess(now time.Time, l *Limits) string {
	reason, got := b.penaltyReason, b.penaltyDebt
	if b.PenaltyLeft(now) == 0 { // it is delayed
		reason, got = ReasonMessages, b.messages.debt
		if b.bytes.add(now, 0, l.BytesPerSecond, l.BytesBurst) > b.messages.add(now, 0, l.MessagesPerSecond, l.MessagesBurst) {
			reason, got = ReasonBytes, b.bytes.debt
		}
	}
	what, flag, rate, burst := "messages", "message", l.MessagesPerSecond, l.MessagesBurst
	switch reason {
	case ReasonBytes:
		what, flag, rate, burst = "bytes", "byte", l.BytesPerSecond, l.BytesBurst
	case ReasonRefused:
		what, flag, rate, burst = "refused items", "refused", l.RefusedPerSecond, l.RefusedBurst
	}
	return fmt.Sprintf("%s of the agent: want at most %d at once (--agent-%s-burst) and %d a second after that (--agent-%s-rate), got %.0f", what, burst, flag, rate, flag, got)
}

// Delay returns how long a message would have to wait now; 0: not at all.
func (b *Budget) Delay(now time.Time, l *Limits) time.Duration {
	return max(b.messages.add(now, 0, l.MessagesPerSecond, l.MessagesBurst), b.bytes.add(now, 0, l.BytesPerSecond, l.BytesBurst))
}

// PenaltyLeft returns how long the penalty lasts; 0: there is none.
func (b *Budget) PenaltyLeft(now time.Time) time.Duration {
	return max(0, time.Duration(b.penaltyUntil-now.UnixNano()))
}

// IsUnused returns whether an agent that has sent nothing has the same budget.
func (b *Budget) IsUnused(now time.Time, l *Limits) bool {
	unused := *b
	unused.messages.add(now, 0, l.MessagesPerSecond, l.MessagesBurst)
	unused.bytes.add(now, 0, l.BytesPerSecond, l.BytesBurst)
	unused.refused.add(now, 0, l.RefusedPerSecond, l.RefusedBurst)
	return unused.messages.debt == 0 && unused.bytes.debt == 0 && unused.refused.debt == 0 && b.PenaltyLeft(now) == 0
}
