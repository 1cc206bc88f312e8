// Package replica knows which replicas of this service live, and which one of
// them holds the lease on what exactly one may serve.
//
// Each replica beats: it counts up a number in its row of the database. Who has
// watched a number stand still for the duration of the lease takes its replica
// for gone, unless it hears of it by the pubsub, over which replicas beat too. So
// no two clocks are compared, and a database that was away makes nobody look
// dead: what is watched counts anew from the first beat that works.
//
// A replica that cannot beat, nor hears its own beats on the pubsub, takes itself
// for gone a little before the others can, unless the database says itself that
// nobody can use it. The lease changes hands in the database only. Its holder,
// while it cannot reach that, goes on until it hears of another one.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

const (
	// beatShare of the lease's duration passes between two beats: three of them
	// may fail before a replica takes itself for gone.
	beatShare = 5
	// marginShare of the lease's duration is kept between the moment at which a
	// replica takes itself for gone and that at which the others can. It covers
	// the second within which what it serves is taken away.
	marginShare = 5
	// forgetAfter lease durations the row of a replica that is gone is removed.
	forgetAfter = 20
	// maxNameBytes bounds a name.
	maxNameBytes = 256
	// channel carries beats.
	channel = "agentstatsd_replicas"
	// newsTimeout bounds one publication.
	newsTimeout = time.Second
)

// Store is the database. store.Store is one.
type Store interface {
	// Beat counts up the beats of me, and those of the lease if me holds it or
	// takes it: when it is free, or its beats equal takeover. It returns all
	// replicas and the lease as they are then.
	Beat(ctx context.Context, me agent.Replica, takeover int64) ([]agent.Replica, agent.Lease, error)
	// RemoveReplicas forgets replicas, and frees the lease if one of them has it.
	RemoveReplicas(ctx context.Context, ids []agent.ID) error
}

// News carries beats. pubsub's engines are some.
type News interface {
	Publish(ctx context.Context, channel string, payload []byte) error
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

// Replicas is this replica among the others. Its methods are safe for
// concurrent use and, but for Run, touch memory only.
type Replicas struct {
	self    agent.ID
	opts    Options
	store   Store
	news    News
	metrics *metrics
	log     *slog.Logger
	wake    chan struct{}

	mu sync.RWMutex
	// Guarded by mu.

	// until is how long the database has the others take this replica for alive;
	// zero: it never beat. echoed is the same of the pubsub.
	until, echoed time.Time
	// leads is true since the lease was taken, until another holder is known;
	// leaseBeats are those of the lease then or later.
	leads      bool
	leaseBeats int64
	term       int64 // counts the times that this replica came to lead
	live       map[agent.ID]struct{}
	heard      map[agent.ID]time.Time // by the pubsub
	// strangers are those that are heard but are not in the database.
	strangers map[agent.ID]stranger
	err       error // of the last beat
	since     time.Time

	// Only Run uses what follows.
	seen   map[agent.ID]observation
	lease  observation
	broken bool // the last beat failed
}

// observation is a number of beats and when it was first seen.
type observation struct {
	beats int64
	at    time.Time
}

// New returns a replica that has not beaten yet.
func New(store Store, news News, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Replicas, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("replica options: %w", err)
	}
	r := &Replicas{
		self:  opts.ID,
		opts:  opts,
		store: store,
		news:  news,
		log:   log,
		wake:  make(chan struct{}, 1),
		live:  make(map[agent.ID]struct{}),
		heard: make(map[agent.ID]time.Time),
		seen:  make(map[agent.ID]observation),

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

// Member tells whether the others take this replica for alive: until then it
// serves what it holds of what they would serve otherwise.
func (r *Replicas) Member() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.memberLocked()
}

func (r *Replicas) memberLocked() bool {
	now := time.Now()
	return now.Before(r.until) || !r.until.IsZero() && now.Before(r.echoed)
}

// Leads tells whether this replica holds the lease.
func (r *Replicas) Leads() bool { return r.Term() != 0 }

// Term returns 0 while this replica does not hold the lease, otherwise how often
// it came to hold it: while that stays the same nobody else did in between.
func (r *Replicas) Term() int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.leads || !r.memberLocked() {
		return 0
	}
	return r.term
}

// Live tells whether another replica is taken for alive. While this one cannot
// beat, nothing changes about the others.
func (r *Replicas) Live(id agent.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, live := r.live[id]
	at, heard := r.heard[id]
	return live || heard && time.Since(at) < r.opts.LeaseDuration
}

// count returns how many replicas live, this one included.
func (r *Replicas) count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.memberLocked() {
		return len(r.live) + 1
	}
	return len(r.live)
}

// Healthy returns nil if the newest beat was good, or why it was not.
func (r *Replicas) Healthy() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.err != nil {
		return fmt.Errorf("the other replicas are not reached over the database since %s: %w",
			r.since.UTC().Format(time.RFC3339), r.err)
	}
	return nil
}

// Run beats until ctx is cancelled, then leaves: the others know at once. It
// returns nil.
func (r *Replicas) Run(ctx context.Context) error {
	cancel, err := r.news.Subscribe(channel, r.hear)
	if err != nil {
		return fmt.Errorf("subscribe to beats of replicas: %w", err)
	}
	defer cancel()
	every := r.opts.LeaseDuration / beatShare
	var telling sync.WaitGroup
	defer telling.Wait()
	telling.Go(func() { r.tellEvery(ctx, every) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.leave(ctx)
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		r.beat(ctx)
		timer.Reset(every)
	}
}

// nudge has Run beat now.
func (r *Replicas) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// beat tells the database that this replica lives, and looks who else does.
func (r *Replicas) beat(ctx context.Context) {
	began := time.Now()
	beatCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/beatShare)
	defer cancel()
	replicas, lease, err := r.store.Beat(beatCtx, agent.Replica{ID: r.self, Name: r.opts.Name}, r.takeover(began))
	if err != nil {
		r.missed(ctx, began, err)
		return
	}
	now := time.Now()
	gone := r.observe(now, replicas, lease)
	r.lookForStrangers(ctx, began, replicas)
	was, led := r.Member(), r.Leads()

	r.mu.Lock()
	r.until = r.validFrom(began)
	r.leads, r.leaseBeats = lease.Holder == r.self, lease.Beats
	if r.leads && !led {
		r.term++
	}
	r.live = r.living(now)
	r.err = nil
	r.mu.Unlock()

	leads := r.Leads()
	if !was || led != leads {
		r.tell(ctx, kindNews)
	}
	if led != leads {
		r.log.InfoContext(ctx, "the lease changed hands", "leads", leads)
		r.metrics.changes.Inc()
	}
	if leads && len(gone) > 0 {
		removeCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/beatShare)
		defer cancel()
		if err := r.store.RemoveReplicas(removeCtx, gone); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "rows of replicas that are gone are not removed, trying again", "error", err)
		}
	}
}

// validFrom returns how long a beat that began then is valid for its replica: it
// was written later, and seen by others later still.
func (r *Replicas) validFrom(began time.Time) time.Time {
	return began.Add(r.opts.LeaseDuration - r.opts.LeaseDuration/marginShare)
}

// missed notes a beat that failed.
func (r *Replicas) missed(ctx context.Context, began time.Time, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return // told to stop
	}
	r.broken = true
	r.metrics.errors.Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.since = began
		r.log.WarnContext(ctx, "this replica cannot tell the others that it lives, trying again", "error", err)
	}
	r.err = err
	// Nobody can watch it miss a beat, nor take its place.
	if errors.Is(err, agent.ErrStoreDown) && began.Before(r.until) {
		r.until = r.validFrom(time.Now())
	}
}

// takeover returns the beats at which the lease stood still for so long that its
// holder is gone; -1: it is not.
func (r *Replicas) takeover(now time.Time) int64 {
	if r.broken || r.lease.at.IsZero() || now.Sub(r.lease.at) < r.opts.LeaseDuration {
		return -1
	}
	return r.lease.beats
}

// observe notes what was read, and returns the replicas whose rows can go.
func (r *Replicas) observe(now time.Time, replicas []agent.Replica, lease agent.Lease) (gone []agent.ID) {
	before := r.seen
	r.seen = make(map[agent.ID]observation, len(replicas))
	for _, other := range replicas {
		if other.ID == r.self {
			continue
		}
		o, known := before[other.ID]
		if !known || o.beats != other.Beats || r.broken {
			o = observation{other.Beats, now}
		}
		r.seen[other.ID] = o
		if now.Sub(o.at) > forgetAfter*r.opts.LeaseDuration {
			gone = append(gone, other.ID)
		}
	}
	if r.lease.at.IsZero() || r.lease.beats != lease.Beats || r.broken {
		r.lease = observation{lease.Beats, now}
	}
	r.broken = false
	return gone
}

// living returns the other replicas that beat lately.
func (r *Replicas) living(now time.Time) map[agent.ID]struct{} {
	live := make(map[agent.ID]struct{}, len(r.seen))
	for id, o := range r.seen {
		if now.Sub(o.at) < r.opts.LeaseDuration {
			live[id] = struct{}{}
		}
	}
	return live
}

// leave has the others take over at once. What it fails to do they do when the
// lease has run out.
func (r *Replicas) leave(ctx context.Context) {
	r.mu.Lock()
	r.until, r.leads = time.Time{}, false
	r.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	removeCtx, cancel := context.WithTimeout(ctx, r.opts.LeaseDuration/beatShare)
	defer cancel()
	if err := r.store.RemoveReplicas(removeCtx, []agent.ID{r.self}); err != nil {
		r.log.WarnContext(ctx, "this replica leaves without telling: the others notice when its lease runs out", "error", err)
		return
	}
	r.tell(ctx, kindLeave)
}
