// Package replica finds out which replicas of this service live. One of them has the
// lease on what exactly one may serve.
//
// Each replica has a row in the database with a number of heartbeats, which it counts
// up. The others consider it gone when they saw no change of its number for the lease's
// duration. A message of it over the pubsub counts as a heartbeat too. So no two clocks
// are compared. An outage of the database makes no replica look dead: after it all
// numbers are watched anew.
//
// A replica may fail to record heartbeats, and get none of its own messages back from
// the pubsub. Then it considers itself gone a little before the others can. The
// exception is a database that itself refuses all clients. The lease changes hands in
// the database only. A holder that cannot reach the database keeps the lease until it
// learns of another holder.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/outage"
)

const (
	// The time between two heartbeats is the lease's duration divided by
	// heartbeatShare. Three may fail before a replica considers itself gone.
	heartbeatShare = 5
	// A replica considers itself gone before the others can, by the lease's duration
	// divided by marginShare. That covers the second within which it stops serving.
	marginShare = 5
	// forgetAfter is the number of lease durations after which the row of a gone
	// replica is removed.
	forgetAfter = 20
	// maxNameBytes bounds a name.
	maxNameBytes = 256
	// channel carries the messages of replicas.
	channel = "agentstatsd_replicas"
	// publishTimeout bounds one publication.
	publishTimeout = time.Second
)

// Store is the database. store.Store is one.
type Store interface {
	// RecordHeartbeat counts up the heartbeats of me, and stores its name and load.
	// It counts up those of the lease if me is its holder or takes it. me takes it
	// if it is free or its heartbeats equal takeover. It returns all replicas and
	// the lease as they are then.
	RecordHeartbeat(ctx context.Context, me agent.Replica, takeover int64) ([]agent.Replica, agent.Lease, error)
	// NoteGone gives replicas the phase ReplicaGone that have still the same number of
	// heartbeats.
	NoteGone(ctx context.Context, replicas []agent.Replica) error
	// RemoveReplicas removes replicas, and frees the lease if one of them has it.
	RemoveReplicas(ctx context.Context, ids []agent.ID) error
	// Clock returns the time of the database.
	Clock(ctx context.Context) (time.Time, error)
	// SaveIntervalFactor stores the factor that holder decided. If holder does not have
	// the lease, the error wraps agent.ErrOutdated.
	SaveIntervalFactor(ctx context.Context, holder agent.ID, factor float64) error
}

// PubSub carries messages between replicas. pubsub's engines are some.
type PubSub interface {
	Publish(ctx context.Context, channel string, payload []byte) error
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

// Replicas is this replica among the others. Its methods are safe for
// concurrent use and, but for Run, touch memory only.
type Replicas struct {
	self    agent.ID
	opts    Options
	store   Store
	pubsub  PubSub
	metrics *metrics
	log     *slog.Logger
	wake    chan struct{}
	// announce has an element while the phase is to be published, changed while the
	// result of Sharing may have changed.
	announce, changed chan struct{}
	// heartbeats is the outage of those in the database.
	heartbeats *outage.Log

	mu sync.RWMutex
	// Guarded by mu.

	// until is the time until which the others consider this replica alive by the
	// database; zero: no heartbeat was recorded. echoed is the same by the pubsub.
	until, echoed time.Time
	// leads is true from when the lease was taken until another holder is known.
	// leaseHeartbeats is the newest known number of the lease's heartbeats.
	leads           bool
	leaseHeartbeats int64
	term            int64    // counts the times that this replica came to lead
	holder          agent.ID // of the lease, as of the last heartbeat
	live            map[agent.ID]struct{}
	messages        map[agent.ID]time.Time // when the newest of each came by the pubsub
	// listed are the others in the database, as of the last heartbeat. phases are those of
	// all, this one included, by messages and heartbeats: the others know them, too. phase
	// is this one's, which they may not know yet.
	listed map[agent.ID]struct{}
	phases map[agent.ID]agent.ReplicaPhase
	phase  agent.ReplicaPhase
	// strangers are those that send messages but are not in the database.
	strangers map[agent.ID]stranger
	err       error // of the last heartbeat
	since     time.Time

	load           agent.Load      // for the next heartbeat
	others         []agent.Replica // those that live, as of the last heartbeat
	intervalFactor float64         // as of the last heartbeat; 0: there was none
	gone           int             // others that ended without leaving, as of the last heartbeat
	skew           time.Duration   // of the clock, from the database's
	config         string          // see SetConfig
	differences    []string        // of the others' from it, as of the last heartbeat

	// Only Run uses what follows.
	seen   map[agent.ID]observation
	lease  observation
	broken bool // the last heartbeat failed
}

// observation is a number of heartbeats and when it was first seen. gone: another replica
// has seen it for a lease's duration.
type observation struct {
	heartbeats int64
	at         time.Time
	gone       bool
}

// New returns a replica that has recorded no heartbeat yet.
func New(store Store, pubsub PubSub, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Replicas, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("replica options: %w", err)
	}
	r := &Replicas{
		self:   opts.ID,
		opts:   opts,
		store:  store,
		pubsub: pubsub,
		log:    log,
		wake:   make(chan struct{}, 1),

		announce: make(chan struct{}, 1),
		changed:  make(chan struct{}, 1),

		heartbeats: outage.New(log, "this replica cannot record its heartbeat in the database, trying again", "this replica records its heartbeat in the database again"),

		live:     make(map[agent.ID]struct{}),
		messages: make(map[agent.ID]time.Time),
		phases:   map[agent.ID]agent.ReplicaPhase{opts.ID: agent.ReplicaStarting},
		phase:    agent.ReplicaStarting,
		seen:     make(map[agent.ID]observation),

		strangers: make(map[agent.ID]stranger),
	}
	var err error
	if r.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	if err := r.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	return r, nil
}

// Self returns the id of this replica.
func (r *Replicas) Self() agent.ID { return r.self }

// Member reports whether the others consider this replica alive. If not, they may serve
// what it would serve.
func (r *Replicas) Member() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.memberLocked()
}

func (r *Replicas) memberLocked() bool {
	now := time.Now()
	return now.Before(r.until) || !r.until.IsZero() && now.Before(r.echoed)
}

// Leads reports whether this replica has the lease.
func (r *Replicas) Leads() bool { return r.Term() != 0 }

// Term returns how often this replica became the lease's holder; 0: it is not the
// holder. While it does not change there was no other holder in between.
func (r *Replicas) Term() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.leads || !r.memberLocked() {
		return 0
	}
	return r.term
}

// Live reports whether another replica is considered alive. While this one cannot
// record heartbeats, the result changes only by messages.
func (r *Replicas) Live(id agent.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.liveLocked(id, time.Now())
}

func (r *Replicas) liveLocked(id agent.ID, now time.Time) bool {
	_, live := r.live[id]
	at, received := r.messages[id]
	return live || received && now.Sub(at) < r.opts.LeaseDuration
}

// countLive returns how many replicas live, this one included.
func (r *Replicas) countLive() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.memberLocked() {
		return len(r.live) + 1
	}
	return len(r.live)
}

// Healthy returns nil if the newest heartbeat was recorded, or why it was not.
func (r *Replicas) Healthy() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.err != nil {
		return fmt.Errorf("the other replicas are not reached over the database since %s: %w",
			r.since.UTC().Format(time.RFC3339), r.err)
	}
	return nil
}

// Run records and publishes heartbeats until ctx is cancelled. Then it removes this
// replica, which the others learn at once, and returns nil.
func (r *Replicas) Run(ctx context.Context) error {
	cancel, err := r.pubsub.Subscribe(channel, r.handleMessage)
	if err != nil {
		return fmt.Errorf("subscribe to heartbeats of replicas: %w", err)
	}
	defer cancel()
	every := r.opts.LeaseDuration / heartbeatShare
	var publishing sync.WaitGroup
	defer publishing.Wait()
	publishing.Go(func() { r.publishHeartbeats(ctx, every) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.removeSelf(ctx)
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		began := time.Now()
		r.recordHeartbeat(ctx)
		timer.Reset(every - time.Since(began))
	}
}

// wakeRun makes Run record a heartbeat now.
func (r *Replicas) wakeRun() { signal(r.wake) }

// signal puts an element into a channel of one, unless it has one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// recordHeartbeat counts up this replica's heartbeats in the database, and reads those
// of the others.
func (r *Replicas) recordHeartbeat(ctx context.Context) {
	began := time.Now()
	heartbeatCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/heartbeatShare)
	defer cancel()
	replicas, lease, err := r.store.RecordHeartbeat(heartbeatCtx, r.describeSelf(), r.takeover(began))
	if err != nil {
		r.noteFailure(ctx, began, err)
		return
	}
	now := time.Now()
	gone := r.observeReplicas(now, replicas, lease)
	r.lookForStrangers(ctx, began, replicas)
	was, led := r.Member(), r.Leads()

	r.mu.Lock()
	r.until = r.validUntil(began)
	r.leads, r.leaseHeartbeats = lease.Holder == r.self, lease.Heartbeats
	if r.leads && !led {
		r.term++
	}
	r.live, r.holder = r.liveReplicas(now), lease.Holder
	r.notePhasesLocked(replicas)
	r.gone = len(r.seen) - len(r.live)
	r.noteLoadsLocked(replicas, lease)
	r.err = nil
	r.mu.Unlock()
	signal(r.changed)
	r.heartbeats.Works(ctx)
	r.compareConfigs(ctx)
	r.compareClocks(heartbeatCtx)

	leads := r.Leads()
	if !was || led != leads {
		r.publish(ctx, kindChange)
	}
	if led != leads {
		r.log.InfoContext(ctx, "the lease changed hands", "leads", leads)
		r.metrics.changes.Inc()
	}
	r.noteGone(ctx, replicas)
	// The row of one that others get messages of stays: they go on counting on it.
	if gone = slices.DeleteFunc(gone, r.Live); leads && len(gone) > 0 {
		removeCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/heartbeatShare)
		defer cancel()
		if err := r.store.RemoveReplicas(removeCtx, gone); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "rows of replicas that are gone are not removed, trying again", "error", err)
		}
	}
}

// noteGone says of the replicas that were read which of them are gone. Whoever starts later
// would take a lease's duration to find out, and share with them meanwhile. It takes less
// than half of the time until the next heartbeat.
func (r *Replicas) noteGone(ctx context.Context, replicas []agent.Replica) {
	gone := slices.DeleteFunc(slices.Clone(replicas), func(other agent.Replica) bool {
		return other.ID == r.self || other.Phase == agent.ReplicaGone || r.Live(other.ID)
	})
	if len(gone) == 0 {
		return
	}
	noteCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/heartbeatShare/2)
	defer cancel()
	if err := r.store.NoteGone(noteCtx, gone); err != nil {
		r.log.DebugContext(ctx, "it is not noted which replicas are gone, trying again", "error", err)
		return
	}
	r.publish(ctx, kindChange)
}

// compareClocks notes by how much the clock differs from the database's. What an answer
// took is divided evenly over both ways. Without an answer the last one stands: nothing
// depends on it.
func (r *Replicas) compareClocks(ctx context.Context) {
	asked := time.Now()
	is, err := r.store.Clock(ctx)
	if err != nil {
		r.log.DebugContext(ctx, "the clock of the database is not read", "error", err)
		return
	}
	skew := asked.Add(time.Since(asked) / 2).Sub(is)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skew = skew
}

// noted returns what a heartbeat found: how many others are gone, and the skew of the clock.
func (r *Replicas) noted() (gone int, skew time.Duration) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.gone, r.skew
}

// validUntil returns how long a heartbeat is valid for its replica. It was written
// after began, and the others see it later still.
func (r *Replicas) validUntil(began time.Time) time.Time {
	return began.Add(r.opts.LeaseDuration - r.opts.LeaseDuration/marginShare)
}

// noteFailure counts and logs a heartbeat that was not recorded.
func (r *Replicas) noteFailure(ctx context.Context, began time.Time, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return // stopped
	}
	r.broken = true
	r.metrics.errors.Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.since = began
	}
	r.heartbeats.Failed(ctx, err)
	r.err = err
	// No other replica can read its number, nor take the lease.
	if errors.Is(err, agent.ErrStoreDown) && began.Before(r.until) {
		r.until = r.validUntil(time.Now())
	}
}

// takeover returns the lease's heartbeats if they did not change for the lease's
// duration: the holder is gone; -1: it is not.
func (r *Replicas) takeover(now time.Time) int64 {
	if r.broken || r.lease.at.IsZero() || now.Sub(r.lease.at) < r.opts.LeaseDuration {
		return -1
	}
	return r.lease.heartbeats
}

// observeReplicas records the numbers that were read, and returns the replicas whose
// rows can be removed.
func (r *Replicas) observeReplicas(now time.Time, replicas []agent.Replica, lease agent.Lease) (gone []agent.ID) {
	before := r.seen
	r.seen = make(map[agent.ID]observation, len(replicas))
	for _, other := range replicas {
		if other.ID == r.self {
			continue
		}
		o, known := before[other.ID]
		if !known || o.heartbeats != other.Heartbeats || r.broken {
			o = observation{heartbeats: other.Heartbeats, at: now}
		}
		o.gone = other.Phase == agent.ReplicaGone
		r.seen[other.ID] = o
		if now.Sub(o.at) > forgetAfter*r.opts.LeaseDuration {
			gone = append(gone, other.ID)
		}
	}
	if r.lease.at.IsZero() || r.lease.heartbeats != lease.Heartbeats || r.broken {
		r.lease = observation{heartbeats: lease.Heartbeats, at: now}
	}
	r.broken = false
	return gone
}

// liveReplicas returns the other replicas whose number of heartbeats changed within the
// lease's duration, as far as this one or another one has seen.
func (r *Replicas) liveReplicas(now time.Time) map[agent.ID]struct{} {
	live := make(map[agent.ID]struct{}, len(r.seen))
	for id, o := range r.seen {
		if !o.gone && now.Sub(o.at) < r.opts.LeaseDuration {
			live[id] = struct{}{}
		}
	}
	return live
}

// removeSelf removes this replica from the database, so that the others take over at
// once. After an error they do so when the lease has run out.
func (r *Replicas) removeSelf(ctx context.Context) {
	r.mu.Lock()
	r.until, r.leads = time.Time{}, false
	r.mu.Unlock()
	signal(r.changed)
	ctx = context.WithoutCancel(ctx)
	removeCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/heartbeatShare)
	defer cancel()
	if err := r.store.RemoveReplicas(removeCtx, []agent.ID{r.self}); err != nil {
		r.log.WarnContext(ctx, "this replica stops and cannot publish it: the others notice when its lease runs out", "error", err)
		return
	}
	r.publish(ctx, kindLeave)
}
