package client

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// reportOverhead is above the size of a report's counts, tag and length, in bytes.
	reportOverhead = 64
	// maxApps bounds the apps whose health is kept: as many as a registration
	// may have.
	maxApps = 256
	// maxRegions is how many regions a view of the network may have.
	maxRegions = 128
)

// latest is the newest value of one thing. It is sent again in each session.
type latest[T any] struct {
	value T
	isSet bool
	// sequence of the request that carried it in this session; 0: none.
	sequence int64
	acked    bool
}

func (l *latest[T]) put(v T) {
	*l = latest[T]{value: v, isSet: true}
}

func (l *latest[T]) unsent() bool {
	return l.isSet && l.sequence == 0
}

func (l *latest[T]) ack(sequence int64) {
	if l.sequence > 0 && l.sequence <= sequence {
		l.acked = true
	}
}

// reset has the value sent again, unless it is acked and that is to be kept.
func (l *latest[T]) reset(keepAcked bool) {
	if !keepAcked || !l.acked {
		l.sequence, l.acked = 0, false
	}
}

func (l *latest[T]) idle() bool {
	return !l.isSet || l.acked
}

type lifecycle struct {
	state     agentstatsv1.Lifecycle_State
	changedAt time.Time
}

// app is the health of one app.
type app struct {
	id     uuid.UUID
	health latest[agentstatsv1.AppHealth]
}

// outbox has what the service does not have yet. It decides what to send next and when,
// and what a new session sends again. It does no I/O and has no lock.
type outbox struct {
	pace pace
	// isRelay is true if another outbox may have something newer of the agent. So what
	// is acked is not sent again, and reports have an age.
	isRelay bool
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
	counts  Counts
	// refusals of the client itself that OnRefusal was not called with yet.
	refusals []*agentstatsv1.Refusal
}

// putStats adds a report. collected is true if it was collected, to be sent at once.
func (o *outbox) putStats(stats *agentstatsv1.Stats, collected bool, now time.Time) {
	o.counts.Reports++
	if !o.stats.unsent {
		o.pace.reportHandedOver, o.pace.collected = now, false
	}
	o.pace.collected = o.pace.collected || collected
	o.refuse(o.stats.put(stats)...)
	o.stats.handedOver = now
}

func (o *outbox) putLifecycle(l lifecycle) {
	known := &o.lifecycle
	if again := known.isSet && known.value.state == l.state && known.value.changedAt.Equal(l.changedAt); !again || !o.isRelay {
		known.put(l)
	}
}

func (o *outbox) putMetadata(m Metadata, now time.Time) error {
	first := len(o.metadata.unsent) == 0
	if err := o.metadata.put(m); err != nil {
		o.counts.Refused++
		return err
	}
	if first {
		o.pace.metadataHandedOver = now
	}
	o.counts.Metadata++
	return nil
}

func (o *outbox) putAppHealth(id uuid.UUID, health agentstatsv1.AppHealth) error {
	i := slices.IndexFunc(o.apps, func(a app) bool { return a.id == id })
	if i >= 0 && o.apps[i].health.value == health {
		return nil
	}
	if i < 0 {
		if len(o.apps) >= maxApps {
			o.counts.Refused++
			return fmt.Errorf("health of app %s: there are %d apps, at most %d may be", id, len(o.apps), maxApps)
		}
		i = len(o.apps)
		o.apps = append(o.apps, app{id: id})
	}
	o.apps[i].health.put(health)
	return nil
}

func (o *outbox) refuse(refusals ...*agentstatsv1.Refusal) {
	for _, r := range refusals {
		o.counts.Refused += r.GetCount()
	}
	o.refusals = append(o.refusals, refusals...)
}

// takeRefusals returns the client's own refusals since the last call.
func (o *outbox) takeRefusals() []*agentstatsv1.Refusal {
	refusals := o.refusals
	o.refusals = nil
	return refusals
}

// limits are the service's limits of requests, in bytes.
type limits struct {
	message, reportKeys int64
}

// newLimits returns the limits of settings. An absent one is the contract's maximum.
func newLimits(l *agentstatsv1.Limits) limits {
	n := limits{message: l.GetMessageBytes(), reportKeys: l.GetMetadataReportKeyBytes()}
	if n.message <= 0 {
		n.message = 1 << 20
	}
	if n.reportKeys <= 0 {
		n.reportKeys = maxReportKeyBytes
	}
	return n
}

// dueAt returns when next has a request or wantsReport is true; zero: now. What is
// handed over or acked before may change it. ok is false if there is no such time.
func (o *outbox) dueAt() (at time.Time, ok bool) {
	at, ok = o.sendAt()
	if o.collects() && (!ok || o.pace.collectAt.Before(at)) {
		return o.pace.collectAt, true
	}
	return at, ok
}

// sendAt returns when next has a request, as dueAt does.
func (o *outbox) sendAt() (at time.Time, ok bool) {
	add := func(due time.Time) {
		if !ok || due.Before(at) {
			at, ok = due, true
		}
	}
	switch {
	case o.goodbye.sequence > 0: // nothing follows
		return at, false
	case o.statesUnsent(), o.stats.resending < len(o.stats.inFlight), o.goodbyeReady(), o.pace.ask && !o.idle():
		return at, true
	}
	if o.reportUnsent() {
		add(o.pace.reportDue())
	}
	if len(o.metadata.unsent) > 0 {
		add(o.pace.metadataDue())
	}
	return at, ok
}

// wantsReport reports whether a report is to be collected before the next request is
// made.
func (o *outbox) wantsReport(now time.Time) bool {
	if !o.collects() {
		return false
	}
	if !o.pace.collectAt.After(now) {
		return true
	}
	at, ok := o.sendAt()
	return ok && !at.After(now) && o.metadataReady(now) && o.pace.collectsEarly(now)
}

// collects reports whether reports are collected: after a goodbye there is none.
func (o *outbox) collects() bool {
	return o.pace.collects && !o.goodbye.isSet
}

// reportUnsent reports whether there is a report to send when the pace allows it.
// Counts that could not be sent go with the next collected report, unless a caller
// waits for their ack.
func (o *outbox) reportUnsent() bool {
	return o.stats.unsent || o.stats.owed() && (o.pace.urgent() || !o.collects())
}

func (o *outbox) metadataReady(now time.Time) bool {
	return len(o.metadata.unsent) > 0 && !o.pace.metadataAllowed().After(now)
}

// goodbyeReady reports whether the goodbye is to be sent: nothing else is unsent.
func (o *outbox) goodbyeReady() bool {
	return o.goodbye.unsent() && !o.stats.unsent && o.stats.carry.reports == 0 && len(o.metadata.unsent) == 0
}

func (o *outbox) statesUnsent() bool {
	return o.lifecycle.unsent() || o.network.unsent() || o.appsUnsent()
}

func (o *outbox) appsUnsent() bool {
	return slices.ContainsFunc(o.apps, func(a app) bool { return a.health.unsent() })
}

// next returns the next request to send; nil: there is none now. It has all that the
// pace allows, as far as there is room. Reports that an earlier session sent come
// first, each as it was. In a session nothing follows a goodbye.
func (o *outbox) next(l limits, now time.Time) *agentstatsv1.ConnectRequest {
	at, ok := o.sendAt()
	if !ok || at.After(now) {
		return nil
	}
	if sequence, stats, superseded := o.stats.nextResent(now); stats != nil {
		req := &agentstatsv1.ConnectRequest{Sequence: sequence, Stats: stats, StatsSuperseded: superseded}
		o.addAge(req, now)
		o.fit(req, l)
		return req
	}
	o.sequence++
	req := &agentstatsv1.ConnectRequest{Sequence: o.sequence}
	o.addStates(req)
	if o.reportUnsent() && !o.pace.reportAllowed().After(now) {
		o.addReport(req, l, now)
	}
	if o.metadataReady(now) {
		o.addMetadata(req, l, now)
	}
	if o.goodbyeReady() {
		o.goodbye.sequence = o.sequence
		req.Goodbye = &agentstatsv1.Goodbye{}
	}
	if o.pace.waiting > 0 && !o.reportUnsent() && len(o.metadata.unsent) == 0 {
		o.pace.ask, req.AckNow = false, true
	}
	o.pace.begun = true
	return req
}

// addStates adds all states that were not sent.
func (o *outbox) addStates(req *agentstatsv1.ConnectRequest) {
	if o.lifecycle.unsent() {
		o.lifecycle.sequence = req.GetSequence()
		req.Lifecycle = &agentstatsv1.Lifecycle{State: o.lifecycle.value.state}
		if !o.lifecycle.value.changedAt.IsZero() {
			req.Lifecycle.ChangedAt = timestamppb.New(o.lifecycle.value.changedAt)
		}
	}
	if o.appsUnsent() {
		req.AppHealth = o.nextAppHealth(req.GetSequence())
	}
	if o.network.unsent() {
		o.network.sequence = req.GetSequence()
		req.Network = o.network.value
	}
}

func hasStates(req *agentstatsv1.ConnectRequest) bool {
	return req.Lifecycle != nil || req.AppHealth != nil || req.Network != nil
}

// addReport adds the newest report, unless the rest of the request leaves it too little
// room.
func (o *outbox) addReport(req *agentstatsv1.ConnectRequest, l limits, now time.Time) {
	if hasStates(req) && int64(proto.Size(req)+proto.Size(o.stats.newest)+reportOverhead) > l.message {
		return
	}
	req.Stats = o.stats.next(req.GetSequence(), now)
	o.pace.reportedAt, o.pace.collected = now, false
	o.addAge(req, now)
	o.fit(req, l)
	o.counts.Samples += int64(len(req.GetStats().GetMetrics()))
}

// fit drops samples of the request's report that are beyond the limits. It leaves room
// for a goodbye and for ack_now.
func (o *outbox) fit(req *agentstatsv1.ConnectRequest, l limits) {
	if refusal := fitRequest(req, l.message-8); refusal != nil {
		o.refuse(refusal)
	}
}

// addMetadata adds the oldest unsent values that the request has room for. A request
// without anything else has at least one.
func (o *outbox) addMetadata(req *agentstatsv1.ConnectRequest, l limits, now time.Time) {
	rest := int64(proto.Size(req))
	alone := !hasStates(req) && req.Stats == nil
	unsent := len(o.metadata.unsent)
	report := o.metadata.next(req.GetSequence(), l.reportKeys, l.message-rest, alone)
	if report == nil {
		return
	}
	req.Metadata = report
	p := &o.pace
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

func (o *outbox) nextAppHealth(sequence int64) *agentstatsv1.AppHealthReport {
	report := &agentstatsv1.AppHealthReport{}
	for i := range o.apps {
		a := &o.apps[i]
		if a.health.unsent() {
			a.health.sequence = sequence
			report.Updates = append(report.Updates, &agentstatsv1.AppHealthUpdate{Id: a.id[:], Health: a.health.value})
		}
	}
	return report
}

// ack applies an ack: the highest sequences that the service has received, and has
// stored or refused. It returns the values that are durable now. sent is the time at
// which the newest report that this ack covers was sent; zero: it covers none.
func (o *outbox) ack(received, durable int64) (stored []Metadata, sent time.Time) {
	o.confirmed = max(o.confirmed, durable)
	reports, sent := o.stats.received(received)
	o.counts.ReportsReceived += reports
	stored, entries := o.metadata.durable(durable)
	o.counts.MetadataDurable += entries
	o.lifecycle.ack(durable)
	for i := range o.apps {
		o.apps[i].health.ack(durable)
	}
	o.network.ack(durable)
	o.goodbye.ack(durable)
	return stored, sent
}

// refusal applies a refusal of the service. A summary has no names. What it may stand
// for is sent again, and then stored or refused by name.
func (o *outbox) refusal(r *agentstatsv1.Refusal) {
	if first := r.GetFirstSequence(); first > 0 {
		o.metadata.resend(first, r.GetSequence())
		return
	}
	o.counts.Refused += r.GetCount()
	byStore := r.GetCode() == agentstatsv1.RefusalCode_REFUSAL_CODE_STORE
	o.counts.MetadataRefused += o.metadata.refused(r.GetSequence(), byStore, r.GetNames())
}

// resume begins a session with what the service has received and stored of the
// instance. The rest is sent again: reports under their own sequences, so that their
// counts count once, whichever replica has them. All else gets new sequences.
func (o *outbox) resume(r *agentstatsv1.Resume) (stored []Metadata) {
	stored, _ = o.ack(r.GetReceivedSequence(), r.GetDurableSequence())
	o.stats.resume()
	o.metadata.resend(r.GetReceivedSequence()+1, math.MaxInt64)
	o.lifecycle.reset(o.isRelay)
	for i := range o.apps {
		o.apps[i].health.reset(o.isRelay)
	}
	o.network.reset(o.isRelay)
	o.goodbye.reset(false)
	o.sequence = max(o.sequence, r.GetReceivedSequence())
	return stored
}

// idle reports whether no ack is pending.
func (o *outbox) idle() bool {
	return o.stats.idle() && len(o.metadata.keys) == 0 && o.pendingStates() == 0 && o.goodbye.idle()
}

func (o *outbox) pendingStates() int {
	n := 0
	for _, idle := range []bool{o.lifecycle.idle(), o.network.idle()} {
		if !idle {
			n++
		}
	}
	for i := range o.apps {
		if !o.apps[i].health.idle() {
			n++
		}
	}
	return n
}

// describePending returns a text for people that lists what was not acked.
func (o *outbox) describePending() string {
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{
		{int(o.counts.Reports - o.counts.ReportsReceived), "reports"},
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
