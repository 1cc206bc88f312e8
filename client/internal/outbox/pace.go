package outbox

import (
	"math/rand/v2"
	"time"
)

const (
	// MaxWait is how long a handed over value waits for others that become due. So what
	// is due within a second makes one message. The rest of that second is for the
	// transport.
	MaxWait = 800 * time.Millisecond
	// tolerance is the share of an interval by which a value may come early, as the
	// timers of callers differ from those of the session.
	tolerance = 0.1
)

// Pace decides when an outbox sends what it has. While a caller waits for acks, and for
// the first request of a session, all is due at once. Otherwise
//
//   - states are sent at once,
//   - metadata MaxWait after it was handed over, and each metadata interval at most,
//   - reports that are handed over MaxWait later, and each report interval at most,
//   - collected reports each report interval at once, or up to a third of it earlier
//     with metadata, so that the two stay together.
//
// A request has all that is allowed then, not only what is due.
type Pace struct {
	reportInterval, metadataInterval time.Duration
	// collects is true if reports are collected, too.
	collects bool
	// waiting is the number of callers that wait for acks. ask is true if an ack is to
	// be requested even if nothing else is due.
	waiting int
	ask     bool

	// begun is true once the session has sent a request with a new sequence. reportedAt
	// and metadataAt are the times of its last ones; zero: there was none.
	begun                  bool
	reportedAt, metadataAt time.Time
	// collectAt is when the next report is to be collected.
	collectAt time.Time

	// The times at which the oldest unsent report and metadata were handed over.
	reportHandedOver, metadataHandedOver time.Time
	// collected is true if the unsent report was collected.
	collected bool
	// burst is the number of keys that are still to be sent of those that were due at
	// one moment. One request may not have room for all.
	burst int
}

// BeginSession resets what is kept of the last session. The first report of a session
// is collected at once.
func (p *Pace) BeginSession(now time.Time) {
	p.begun, p.ask, p.burst = false, p.waiting > 0, 0
	p.reportedAt, p.metadataAt = time.Time{}, time.Time{}
	p.collectAt = now
}

// urgent reports whether all that is unsent is due at once.
func (p *Pace) urgent() bool {
	return p.waiting > 0 || !p.begun
}

// SetIntervals applies the intervals of settings. Agents whose interval changes at one
// moment are spread over it.
func (p *Pace) SetIntervals(report, metadata time.Duration, now time.Time) {
	changed := p.reportInterval != report
	p.reportInterval, p.metadataInterval = report, metadata
	if changed && p.begun {
		p.collectAt = now.Add(rand.N(report + 1))
	}
}

// Collect schedules the next report. The second one of a session comes at a random time
// within the interval. So agents that connect together do not report together for ever.
func (p *Pace) Collect(now time.Time) {
	next := p.reportInterval
	if !p.begun {
		next = rand.N(next + 1)
	}
	p.collectAt = now.Add(next)
}

// reportAllowed returns when a report may be sent; zero: at any time.
func (p *Pace) reportAllowed() time.Time {
	if p.urgent() || p.collected {
		return time.Time{}
	}
	return allowed(p.reportedAt, p.reportInterval)
}

// reportDue returns when an unsent report is due; zero: now.
func (p *Pace) reportDue() time.Time {
	if p.urgent() || p.collected {
		return time.Time{}
	}
	return due(p.reportHandedOver, p.reportedAt, p.reportInterval)
}

// metadataAllowed returns when metadata may be sent; zero: at any time.
func (p *Pace) metadataAllowed() time.Time {
	if p.urgent() || p.burst > 0 {
		return time.Time{}
	}
	return allowed(p.metadataAt, p.metadataInterval)
}

// metadataDue returns when unsent metadata is due; zero: now.
func (p *Pace) metadataDue() time.Time {
	if p.urgent() || p.burst > 0 {
		return time.Time{}
	}
	return due(p.metadataHandedOver, p.metadataAt, p.metadataInterval)
}

// allowed returns when something that was last sent at sent may be sent again; zero: at
// any time.
func allowed(sent time.Time, interval time.Duration) time.Time {
	if sent.IsZero() {
		return sent
	}
	return sent.Add(time.Duration((1 - tolerance) * float64(interval)))
}

// due returns when something is due that was handed over at handedOver and last sent at
// sent. A value before allowed waits for the whole interval.
func due(handedOver, sent time.Time, interval time.Duration) time.Time {
	if handedOver.Before(allowed(sent, interval)) {
		return sent.Add(interval)
	}
	return handedOver.Add(MaxWait)
}

// collectsEarly reports whether a report that is to be collected later goes with
// metadata now. That is so within a third of the interval, less half of MaxWait.
// Metadata may be sent each third of the interval. Then the report goes with the last
// of these messages, or with one that waits when the report is due. The margin keeps it
// from the last but one, also with some jitter.
func (p *Pace) collectsEarly(now time.Time) bool {
	return p.begun && p.burst == 0 && p.collectAt.Sub(now) <= p.reportInterval/3-MaxWait/2
}

// AddWaiter adds a caller that waits for acks, and requests an ack.
func (p *Pace) AddWaiter() {
	p.waiting++
	p.ask = true
}

// RemoveWaiter removes a caller that waited.
func (p *Pace) RemoveWaiter() {
	p.waiting--
	p.ask = p.ask && p.waiting > 0
}
