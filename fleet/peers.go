package fleet

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/notification"
	"github.com/coder/agentstatsd/fleet/internal/outbox"
	"github.com/coder/agentstatsd/fleet/internal/passes"
	"github.com/coder/agentstatsd/fleet/internal/shares"
	"github.com/coder/agentstatsd/internal/outage"
)

// notificationChannel carries the notifications between replicas.
const notificationChannel = "agentstatsd_fleet"

const (
	// publishDelay is how long the first notification waits for others. When a
	// replica dies, thousands of agents connect to another within seconds.
	publishDelay = 20 * time.Millisecond
	// publishTimeout bounds the publication of all that is queued.
	publishTimeout = 2 * time.Second
)

// Replicas is the membership of this replica. The methods touch memory only.
// *replica.Replicas implements it.
type Replicas interface {
	shares.Replicas
	// Live returns whether this replica considers another one alive.
	Live(id agent.ID) bool
}

// PubSub carries notifications between replicas. A nil payload means that some may
// have been missed. The engines of package pubsub implement it.
type PubSub interface {
	Publish(ctx context.Context, channel string, payload []byte) error
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

// Join makes the fleet one of several replicas over one store. It is called at most
// once, before Load and Run.
func (f *Fleet) Join(r Replicas, p PubSub) {
	f.peers = &peers{
		replicas: r, pubsub: p, metrics: f.metrics, log: f.log,
		following: outage.New(f.log, "the other replicas cannot be followed, trying again", "the other replicas are followed again"),
		lookups:   make(chan struct{}, f.opts.Load().MaxLookups),
		passes:    passes.New(),
		outbox:    outbox.New[*entry](),
		suspects:  make(map[*entry]struct{}),
		shares:    shares.NewFollower(r, f.publishMoved),
	}
}

// self returns the id of this replica; zero if it is alone.
func (f *Fleet) self() agent.ID {
	if f.peers == nil {
		return agent.ID{}
	}
	return f.peers.replicas.Self()
}

// peers is this replica's view of the other replicas.
type peers struct {
	replicas  Replicas
	pubsub    PubSub
	metrics   *metrics
	log       *slog.Logger
	following *outage.Log // of passes

	// shares are what this replica publishes without a session of it.
	shares *shares.Follower

	// passes are reads of what other replicas wrote.
	passes *passes.Passes
	// lookups is a semaphore of the callers that wait for a pass.
	lookups chan struct{}

	// outbox has the notifications to publish.
	outbox *outbox.Outbox[*entry]
	// missed is true if notifications may have been missed since the last request.
	missed atomic.Bool

	mu sync.Mutex
	// Guarded by mu.

	// suspects have a session that lost against a stored value, or one that nobody will
	// write: see outdated.go.
	suspects map[*entry]struct{}
}

// lastError returns the error of the last pass; nil: the other replicas are followed.
func (p *peers) lastError() error {
	if p == nil {
		return nil
	}
	return p.passes.Err()
}

// notify queues a notification without records. A replica that is alone sends none.
func (p *peers) notify(kind notification.Kind) {
	if p != nil {
		p.outbox.Add(kind)
	}
}

// runPublisher publishes what is queued, and repairs missed notifications, until ctx
// is cancelled. Lost notifications cost a delay only: the database has the data.
func (f *Fleet) runPublisher(ctx context.Context) {
	p := f.peers
	// The interval bounds the requests of a replica that keeps missing notifications.
	ticker := time.NewTicker(f.opts.Load().FollowInterval)
	defer ticker.Stop()
	// After ctx was cancelled the rest is published once.
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-ticker.C:
			f.repairMissed()
			continue
		case <-p.outbox.Wake():
		}
		timer := time.NewTimer(publishDelay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		p.publish(ctx)
	}
	p.publish(ctx) // the ends of the last sessions
}

// repairMissed repairs notifications that may have been missed. A lost connection
// carries nothing in either direction: so this replica requests the unwritten sessions
// of others and publishes its own.
func (f *Fleet) repairMissed() {
	if f.peers.missed.Swap(false) {
		f.peers.outbox.Add(notification.Request)
		f.peers.outbox.AddSessions(f.queue.Unwritten()...)
	}
}

// publish publishes what is queued, within publishTimeout in all. A cancelled ctx does
// not end it. After an error, unwritten sessions are published again.
func (p *peers) publish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	for _, payload := range p.drainMessages() {
		err := ctx.Err() // only one publication waits for a pubsub that hangs
		if err == nil {
			err = p.pubsub.Publish(ctx, notificationChannel, payload)
		}
		if err != nil {
			p.metrics.notificationErrors.Inc()
			p.missed.Store(true)
			p.log.DebugContext(ctx, "notifications of the fleet are not published", "error", err)
		}
	}
}

// drainMessages encodes and removes what is queued.
func (p *peers) drainMessages() [][]byte {
	kinds, entries := p.outbox.Drain()
	self := p.replicas.Self()
	var out [][]byte
	for _, kind := range kinds {
		out = append(out, notification.Encode(kind, self, nil))
	}
	for part := range slices.Chunk(entries, notification.MaxRecords) {
		records := make([]agent.SessionRecord, 0, len(part))
		for _, e := range part {
			e.mu.Lock()
			record, stays := e.history().newest, e.phase == phaseRegistered
			record.Incarnation = e.reg.Load().Incarnation
			e.mu.Unlock()
			if stays && record.Replica == self {
				records = append(records, record)
			}
		}
		if len(records) > 0 {
			out = append(out, notification.Encode(notification.Sessions, self, records))
		}
	}
	return out
}

// handleNotification is the subscriber. The pubsub makes one call at a time.
func (f *Fleet) handleNotification(payload []byte) {
	if payload == nil {
		f.peers.missed.Store(true)
		f.peers.passes.Ask()
		return
	}
	kind, from, records, err := notification.Decode(payload)
	switch {
	case err != nil:
		f.metrics.notificationsMalformed.Inc()
		f.peers.passes.Ask()
	case from == f.self():
	case kind == notification.Sessions:
		if !f.applySessions(records, math.MaxInt64) {
			f.peers.missed.Store(true) // requested again after the registrations are read
			f.peers.passes.Ask()
		}
	case kind == notification.Request:
		f.peers.outbox.AddSessions(f.queue.Unwritten()...)
	default:
		f.peers.passes.Ask()
	}
}
