package client

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
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

func (l *latest[T]) reset() {
	l.sequence, l.acked = 0, false
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

// outbox is what an agent has to send until the service has it: what to send next,
// what a new session has to repeat. It does no I/O and has no lock.
type outbox struct {
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
	// refusals are the client's own that OnRefusal was not called with yet.
	refusals []*agentstatsv1.Refusal
}

func (o *outbox) putStats(stats *agentstatsv1.Stats) {
	o.counts.Reports++
	o.refuse(o.stats.put(stats)...)
}

func (o *outbox) putMetadata(m Metadata) error {
	if err := o.metadata.put(m); err != nil {
		o.counts.Refused++
		return err
	}
	o.counts.Metadata++
	return nil
}

func (o *outbox) putAppHealth(id uuid.UUID, health agentstatsv1.AppHealth) error {
	i := slices.IndexFunc(o.apps, func(a app) bool { return a.id == id })
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

// limits of the service that bind what is sent, in bytes.
type limits struct {
	message, reportKeys int64
}

// newLimits takes limits from the service. Those that it does not name are what
// the contract allows.
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

// next returns the next request to send; nil: there is none now. Nothing follows
// a goodbye in its session.
func (o *outbox) next(l limits, now time.Time) *agentstatsv1.ConnectRequest {
	if o.goodbye.sequence > 0 {
		return nil
	}
	req := &agentstatsv1.ConnectRequest{Sequence: o.sequence + 1}
	switch {
	case o.lifecycle.unsent():
		message := &agentstatsv1.Lifecycle{State: o.lifecycle.value.state}
		if !o.lifecycle.value.changedAt.IsZero() {
			message.ChangedAt = timestamppb.New(o.lifecycle.value.changedAt)
		}
		o.lifecycle.sequence = req.GetSequence()
		req.Lifecycle = message
	case slices.ContainsFunc(o.apps, func(a app) bool { return a.health.unsent() }):
		req.AppHealth = o.nextAppHealth(req.GetSequence())
	case o.network.unsent():
		o.network.sequence = req.GetSequence()
		req.Network = o.network.value
	case o.stats.ready():
		stats := o.stats.next(req.GetSequence(), now)
		req.Stats = stats
		if refusal := fitRequest(req, l.message); refusal != nil {
			o.refuse(refusal)
		}
		o.counts.Samples += int64(len(stats.GetMetrics()))
	default:
		if report := o.metadata.next(req.GetSequence(), l.reportKeys, l.message); report != nil {
			req.Metadata = report
			break
		}
		if !o.goodbye.unsent() || o.stats.unsent {
			return nil
		}
		o.goodbye.sequence = req.GetSequence()
		req.Goodbye = &agentstatsv1.Goodbye{}
	}
	o.sequence++
	return req
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

// ack takes in what the service has received and stored or refused, in this
// session. It returns the values that are durable now. sent is when the newest of
// the reports that were received now was sent; zero: there was none.
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

// refusal takes in what the service refused. A summary names nothing: what it may
// stand for is sent again, and then stored or refused by name.
func (o *outbox) refusal(r *agentstatsv1.Refusal) {
	if first := r.GetFirstSequence(); first > 0 {
		o.metadata.resend(first, r.GetSequence())
		return
	}
	o.counts.Refused += r.GetCount()
	byStore := r.GetCode() == agentstatsv1.RefusalCode_REFUSAL_CODE_STORE
	o.counts.MetadataRefused += o.metadata.refused(r.GetSequence(), byStore, r.GetNames())
}

// resume begins a session with a service that has received and stored this much of
// the instance. The rest is sent again, under new sequences.
func (o *outbox) resume(r *agentstatsv1.Resume) (stored []Metadata) {
	stored, _ = o.ack(r.GetReceivedSequence(), r.GetDurableSequence())
	o.stats.resume()
	o.metadata.resend(r.GetReceivedSequence()+1, math.MaxInt64)
	o.lifecycle.reset()
	for i := range o.apps {
		o.apps[i].health.reset()
	}
	o.network.reset()
	o.goodbye.reset()
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

// describePending returns for people what was not acked.
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
