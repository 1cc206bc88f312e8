// Package outbox has what an agent hands over and the service does not have yet, and
// decides what is sent next and when. It does no I/O and has no locks.
package outbox

import (
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// reportOverhead is above the size of a report's counts, tag and length, in bytes.
const reportOverhead = 64

// Counts are totals of an outbox since it was made, as those of a client's Agent.
type Counts struct {
	Reports, ReportsReceived                   int64
	Samples                                    int64
	Metadata, MetadataDurable, MetadataRefused int64
	Refused                                    int64
}

// Outbox has what the service does not have yet. It decides what to send next and when,
// and what a new session sends again. It is not safe for concurrent use. Its fields may
// be set before it is used.
type Outbox struct {
	Pace Pace
	// IsRelay is true if another outbox may have something newer of the agent. So what
	// is acked is not sent again unless it is said again, and the rest has an age.
	IsRelay bool
	// helloAt is when the hello of the session was sent.
	helloAt time.Time
	// forgotten is true if the service has forgotten the agent since its last session.
	forgotten bool
	// sequence of the last request.
	sequence int64
	// confirmed is the highest durable sequence that the service acked: all
	// refusals up to it are known.
	confirmed int64
	stats     statsQueue
	metadata  metadataQueue
	lifecycle latest[lifecycle]
	apps      []app
	network   latest[*agentstatsv1.Network]
	// goodbye is set when nothing follows.
	goodbye latest[struct{}]
	Counts  Counts
	// refusals of the client itself that OnRefusal was not called with yet.
	refusals []*agentstatsv1.Refusal
}

// New returns an outbox. collects is true if reports are collected, too.
func New(collects bool) *Outbox { return &Outbox{Pace: Pace{collects: collects}} }

// PutStats adds a report. collected is true if it was collected, to be sent at once.
func (o *Outbox) PutStats(stats *agentstatsv1.Stats, collected bool, now time.Time) {
	o.Counts.Reports++
	if !o.stats.unsent {
		o.Pace.reportHandedOver, o.Pace.collected = now, false
	}
	o.Pace.collected = o.Pace.collected || collected
	o.refuse(o.stats.put(stats)...)
	o.stats.handedOver = now
}

// PutMetadata adds a value of a key. It returns an error if the key is malformed, or
// if too many are pending.
func (o *Outbox) PutMetadata(m Metadata, now time.Time) error {
	first := len(o.metadata.unsent) == 0
	if err := o.metadata.put(m, now); err != nil {
		o.Counts.Refused++
		return err
	}
	if first {
		o.Pace.metadataHandedOver = now
	}
	o.Counts.Metadata++
	return nil
}

// Confirmed returns the highest durable sequence that the service acked: all refusals up
// to it are known.
func (o *Outbox) Confirmed() int64 { return o.confirmed }

// BeginHello begins a session, whose hello is sent now. It returns what is confirmed.
func (o *Outbox) BeginHello(now time.Time) (confirmed int64) {
	o.helloAt = now
	return o.confirmed
}

func (o *Outbox) refuse(refusals ...*agentstatsv1.Refusal) {
	for _, r := range refusals {
		o.Counts.Refused += r.GetCount()
	}
	o.refusals = append(o.refusals, refusals...)
}

// TakeRefusals returns the client's own refusals since the last call.
func (o *Outbox) TakeRefusals() []*agentstatsv1.Refusal {
	refusals := o.refusals
	o.refusals = nil
	return refusals
}

// Limits are the service's limits of requests, in bytes.
type Limits struct {
	message, reportKeys int64
}

// NewLimits returns the limits of settings. An absent one is the contract's maximum.
func NewLimits(l *agentstatsv1.Limits) Limits {
	n := Limits{message: l.GetMessageBytes(), reportKeys: l.GetMetadataReportKeyBytes()}
	if n.message <= 0 {
		n.message = 1 << 20
	}
	if n.reportKeys <= 0 {
		n.reportKeys = maxReportKeyBytes
	}
	return n
}

// DueAt returns when next has a request or WantsReport is true; zero: now. What is
// handed over or acked before may change it. ok is false if there is no such time.
func (o *Outbox) DueAt() (at time.Time, ok bool) {
	at, ok = o.sendAt()
	if o.collects() && (!ok || o.Pace.collectAt.Before(at)) {
		return o.Pace.collectAt, true
	}
	return at, ok
}

// sendAt returns when next has a request, as DueAt does.
func (o *Outbox) sendAt() (at time.Time, ok bool) {
	add := func(due time.Time) {
		if !ok || due.Before(at) {
			at, ok = due, true
		}
	}
	switch {
	case o.goodbye.sequence > 0: // nothing follows
		return at, false
	case o.statesUnsent(), o.stats.resending < len(o.stats.inFlight), o.goodbyeReady(), o.Pace.ask && !o.Idle():
		return at, true
	}
	if o.reportUnsent() {
		add(o.Pace.reportDue())
	}
	if len(o.metadata.unsent) > 0 {
		add(o.Pace.metadataDue())
	}
	return at, ok
}

// WantsReport reports whether a report is to be collected before the next request is
// made.
func (o *Outbox) WantsReport(now time.Time) bool {
	if !o.collects() {
		return false
	}
	if !o.Pace.collectAt.After(now) {
		return true
	}
	at, ok := o.sendAt()
	return ok && !at.After(now) && o.metadataReady(now) && o.Pace.collectsEarly(now)
}

// collects reports whether reports are collected: after a goodbye there is none.
func (o *Outbox) collects() bool {
	return o.Pace.collects && !o.goodbye.isSet
}

// reportUnsent reports whether there is a report to send when the pace allows it.
// Counts that could not be sent go with the next collected report, unless a caller
// waits for their ack.
func (o *Outbox) reportUnsent() bool {
	return o.stats.unsent || o.stats.owed() && (o.Pace.urgent() || !o.collects())
}

func (o *Outbox) metadataReady(now time.Time) bool {
	return len(o.metadata.unsent) > 0 && !o.Pace.metadataAllowed().After(now)
}

// goodbyeReady reports whether the goodbye is to be sent: nothing else is unsent.
func (o *Outbox) goodbyeReady() bool {
	return o.goodbye.unsent() && !o.stats.unsent && o.stats.carry.reports == 0 && len(o.metadata.unsent) == 0
}

// Next returns the next request to send; nil: there is none now. It has all that the
// pace allows, as far as there is room. Reports that an earlier session sent come
// first, each as it was. In a session nothing follows a goodbye.
func (o *Outbox) Next(l Limits, now time.Time) *agentstatsv1.ConnectRequest {
	at, ok := o.sendAt()
	if !ok || at.After(now) {
		return nil
	}
	if req, handedOver := o.stats.nextResent(now); req != nil {
		o.addStatsAge(req, handedOver, now)
		o.fit(req, l)
		return req
	}
	o.sequence++
	req := &agentstatsv1.ConnectRequest{Sequence: o.sequence}
	o.addStates(req)
	if o.reportUnsent() && !o.Pace.reportAllowed().After(now) {
		o.addReport(req, l, now)
	}
	if o.metadataReady(now) {
		o.addMetadata(req, l, now)
	}
	if o.goodbyeReady() {
		o.goodbye.sequence = o.sequence
		req.Goodbye = &agentstatsv1.Goodbye{}
	}
	if o.Pace.waiting > 0 && !o.reportUnsent() && len(o.metadata.unsent) == 0 {
		o.Pace.ask, req.AckNow = false, true
	}
	o.Pace.begun = true
	return req
}

// addReport adds the newest report, unless the rest of the request leaves it too little
// room.
func (o *Outbox) addReport(req *agentstatsv1.ConnectRequest, l Limits, now time.Time) {
	if hasStates(req) && int64(proto.Size(req)+proto.Size(o.stats.newest)+reportOverhead) > l.message {
		return
	}
	req.Stats = o.stats.next(req.GetSequence(), now)
	req.StatsUncounted = o.stats.newestSequence != req.GetSequence()
	o.Pace.reportedAt, o.Pace.collected = now, false
	o.addStatsAge(req, o.stats.handedOver, now)
	o.fit(req, l)
	o.Counts.Samples += int64(len(req.GetStats().GetMetrics()))
}

// fit drops samples of the request's report that are beyond the limits. It leaves room
// for a goodbye and for ack_now.
func (o *Outbox) fit(req *agentstatsv1.ConnectRequest, l Limits) {
	if refusal := fitRequest(req, l.message-8); refusal != nil {
		o.refuse(refusal)
	}
}

// addMetadata adds the oldest unsent values that the request has room for. A request
// without anything else has at least one.
func (o *Outbox) addMetadata(req *agentstatsv1.ConnectRequest, l Limits, now time.Time) {
	rest := int64(proto.Size(req))
	alone := !hasStates(req) && req.Stats == nil
	unsent := len(o.metadata.unsent)
	report, given := o.metadata.next(req.GetSequence(), l.reportKeys, l.message-rest, alone)
	if report == nil {
		return
	}
	req.Metadata = report
	o.addMetadataAges(req, given)
	p := &o.Pace
	if p.burst == 0 {
		p.burst = unsent
	}
	p.burst = max(0, p.burst-len(report.GetMetadata()))
	if p.burst == 0 {
		// The remaining ones were handed over after the burst began.
		p.metadataHandedOver = now
	}
	p.metadataAt = now
}

// Ack applies an ack: the highest sequences that the service has received, and has
// stored or refused. It returns the values that are durable now. sent is the time at
// which the newest report that this ack covers was sent; zero: it covers none.
func (o *Outbox) Ack(received, durable int64) (stored []Metadata, sent time.Time) {
	o.confirmed = max(o.confirmed, durable)
	reports, sent := o.stats.received(received)
	o.Counts.ReportsReceived += reports
	stored, entries := o.metadata.durable(durable)
	o.Counts.MetadataDurable += entries
	o.lifecycle.ack(durable)
	for i := range o.apps {
		o.apps[i].health.ack(durable)
	}
	o.network.ack(durable)
	o.goodbye.ack(durable)
	return stored, sent
}

// ApplyRefusal applies a refusal of the service. A summary has no names. What it may stand
// for is sent again, and then stored or refused by name.
func (o *Outbox) ApplyRefusal(r *agentstatsv1.Refusal) {
	if first := r.GetFirstSequence(); first > 0 {
		o.metadata.resend(first, r.GetSequence())
		return
	}
	o.Counts.Refused += r.GetCount()
	byStore := r.GetCode() == agentstatsv1.RefusalCode_REFUSAL_CODE_STORE
	o.Counts.MetadataRefused += o.metadata.refused(r.GetSequence(), byStore, r.GetNames())
}

// Resume begins a session with what the service has received and stored of the
// instance. The rest is sent again: reports under their own sequences, so that their
// counts count once, whichever replica has them. All else gets new sequences.
func (o *Outbox) Resume(r *agentstatsv1.Resume) (stored []Metadata) {
	stored, _ = o.Ack(r.GetReceivedSequence(), r.GetDurableSequence())
	o.stats.resume()
	o.metadata.resend(r.GetReceivedSequence()+1, math.MaxInt64)
	keepAcked := o.IsRelay && !o.forgotten
	o.forgotten = false
	o.lifecycle.reset(keepAcked)
	for i := range o.apps {
		o.apps[i].health.reset(keepAcked)
	}
	o.network.reset(keepAcked)
	o.goodbye.reset(false)
	o.sequence = max(o.sequence, r.GetReceivedSequence())
	return stored
}

// Forget notes that the service has forgotten the agent, and what it acked of its states.
// The next session sends them again.
func (o *Outbox) Forget() { o.forgotten = true }

// Idle reports whether no ack is pending.
func (o *Outbox) Idle() bool {
	return o.stats.idle() && len(o.metadata.keys) == 0 && o.pendingStates() == 0 && o.goodbye.idle()
}

// DescribePending returns a text for people that lists what was not acked.
func (o *Outbox) DescribePending() string {
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{
		{int(o.Counts.Reports - o.Counts.ReportsReceived), "reports"},
		{len(o.metadata.keys), "metadata keys"},
		{o.pendingStates(), "states"},
	} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	if !o.goodbye.idle() {
		parts = append(parts, "the goodbye")
	}
	return strings.Join(parts, ", ")
}
