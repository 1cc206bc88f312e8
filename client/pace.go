package client

import "time"

const (
	// maxWait is how long something that was handed over waits for what else becomes
	// due: with what is due within a second it makes one message of many. The rest of
	// that second is for the way to the service.
	maxWait = 800 * time.Millisecond
	// tolerance is the part of an interval that something may come early: who hands it
	// over has a timer of its own.
	tolerance = 0.1
)

// pace is when an outbox sends what it has. It waits for nothing while somebody
// waits for acks, and before the first request of a session. Otherwise
//
//   - states are sent at once,
//   - metadata maxWait after it was handed over, and each metadata interval at most,
//   - reports that are handed over maxWait later, and each report interval at most,
//   - collected reports each report interval at once, or up to a third of it earlier
//     with metadata, so that the two stay together.
//
// Whatever may be sent goes with what is due.
type pace struct {
	reportInterval, metadataInterval time.Duration
	// collects is true if reports are collected, too.
	collects bool
	// waiting is how many wait for acks. ask is true if an ack is to be asked for
	// even if nothing else is due.
	waiting int
	ask     bool

	// Of the session: begun is true once a request with a new sequence was sent. The
	// times are zero if there was none.
	begun                  bool
	reportedAt, metadataAt time.Time
	// collectAt is when the next report is to be collected.
	collectAt time.Time

	// handedOver are when what is unsent was handed over, the oldest of each.
	reportHandedOver, metadataHandedOver time.Time
	// collected is true if the unsent report was collected.
	collected bool
	// burst is how many keys are still to be sent of those that were due at one
	// moment: one request does not have room for all.
	burst int
}

// begin begins a session, whose first report is collected at once.
func (p *pace) begin(now time.Time) {
	p.begun, p.ask, p.burst = false, p.waiting > 0, 0
	p.reportedAt, p.metadataAt = time.Time{}, time.Time{}
	p.collectAt = now
}

// urgent reports whether nothing waits.
func (p *pace) urgent() bool {
	return p.waiting > 0 || !p.begun
}

// setIntervals takes in settings. Agents whose interval changes together are spread
// over it.
func (p *pace) setIntervals(report, metadata time.Duration, now time.Time) {
	changed := p.reportInterval != report
	p.reportInterval, p.metadataInterval = report, metadata
	if changed && p.begun {
		p.collectAt = now.Add(jitter(report))
	}
}

// collect sets when the next report is collected: after the first of a session at a
// random time of the interval, so that agents that connect together do not report
// together for ever.
func (p *pace) collect(now time.Time) {
	next := p.reportInterval
	if !p.begun {
		next = jitter(next)
	}
	p.collectAt = now.Add(next)
}

// reportAllowed returns when a report may be sent; zero: at any time.
func (p *pace) reportAllowed() time.Time {
	if p.urgent() || p.collected {
		return time.Time{}
	}
	return allowed(p.reportedAt, p.reportInterval)
}

// reportDue returns when an unsent report is due; zero: now.
func (p *pace) reportDue() time.Time {
	if p.urgent() || p.collected {
		return time.Time{}
	}
	return due(p.reportHandedOver, p.reportedAt, p.reportInterval)
}

// metadataAllowed returns when metadata may be sent; zero: at any time.
func (p *pace) metadataAllowed() time.Time {
	if p.urgent() || p.burst > 0 {
		return time.Time{}
	}
	return allowed(p.metadataAt, p.metadataInterval)
}

// metadataDue returns when unsent metadata is due; zero: now.
func (p *pace) metadataDue() time.Time {
	if p.urgent() || p.burst > 0 {
		return time.Time{}
	}
	return due(p.metadataHandedOver, p.metadataAt, p.metadataInterval)
}

// allowed returns when something may be sent that was last sent at a time; zero: at
// any time.
func allowed(sent time.Time, interval time.Duration) time.Time {
	if sent.IsZero() {
		return sent
	}
	return sent.Add(time.Duration((1 - tolerance) * float64(interval)))
}

// due returns when something is due that was handed over at a time: what comes too
// often waits for the whole interval.
func due(handedOver, sent time.Time, interval time.Duration) time.Time {
	if handedOver.Before(allowed(sent, interval)) {
		return sent.Add(interval)
	}
	return handedOver.Add(maxWait)
}

// collectsEarly reports whether a report that is to be collected later goes with
// metadata now. Of messages with metadata a third of the interval apart one is in
// time: the last one before the report is due, or one that waits then. Neither is
// the last but one, also if they are half a wait early or late.
func (p *pace) collectsEarly(now time.Time) bool {
	return p.begun && p.burst == 0 && p.collectAt.Sub(now) <= p.reportInterval/3-maxWait/2
}

// wait says that one more waits for acks. unwait takes that back.
func (p *pace) wait() {
	p.waiting++
	p.ask = true
}

func (p *pace) unwait() {
	p.waiting--
	p.ask = p.ask && p.waiting > 0
}
