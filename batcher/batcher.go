// Package batcher keeps agents' metadata until it is in the database: the
// newest value of each key, written in batches, then published.
package batcher

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/recurring"
)

// Store is the database. store.Store is one.
type Store interface {
	// UpsertMetadata writes all rows or none. A row that is older, by agent.Order, than
	// what is stored, or says nothing new, may change nothing. changed are the agents
	// of the other rows, one element for each row. newer are the keys of rows that
	// lost, by agent.Order.Follows, or against another incarnation. An error that wraps
	// agent.ErrRejected is about the rows themselves. It must not keep rows.
	UpsertMetadata(ctx context.Context, rows []agent.Metadata) (changed []agent.ID, newer []agent.StoredEpoch, err error)
}

// Publisher notifies watchers of changed metadata. pubsub.Metadata is one.
type Publisher interface {
	// PublishMetadata gets each agent once. It must not keep agents.
	PublishMetadata(ctx context.Context, agents []agent.ID) error
}

// Batcher is the pending metadata of all agents. Its methods are safe for
// concurrent use, and none but Run waits for the database.
type Batcher struct {
	store     Store
	publisher Publisher
	opts      atomic.Pointer[Options] // Reconfigure replaces them
	log       *slog.Logger
	outage    *outage.Log // of flushes
	// publishing is the outage of notifications.
	publishing *outage.Log
	refused    recurring.Events // rows that the database refuses
	metrics    *metrics
	retries    backoff.Backoff
	wake       chan struct{} // a batch is full
	kept       sync.Pool     // of *[]agent.MetadataEntry

	mu      sync.Mutex
	pending *pending
	failing failing
	// flushing is when the flush under way began, zero: there is none. flushed is the
	// time that those before it took together, lastFlush that of the newest.
	flushing  time.Time
	flushed   time.Duration
	lastFlush time.Duration

	// Only Run uses what follows.
	batch    batch
	resolved resolutions
	// calls of the store since that was last set, passes of the quarantine.
	calls  int
	passes uint64
}

// failing describes the flushes that failed since the last good one.
type failing struct {
	attempts int
	since    time.Time
	err      error
}

// New returns an empty Batcher. Its metrics are registered with reg.
func New(store Store, pub Publisher, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Batcher, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("batcher options: %w", err)
	}
	b := &Batcher{
		store:      store,
		publisher:  pub,
		log:        log,
		outage:     outage.New(log, "metadata is not written, trying again", "metadata is written again"),
		publishing: outage.New(log, "changes of metadata are not published: watchers read them later", "changes of metadata are published again"),
		wake:       make(chan struct{}, 1),
		retries:    backoff.Backoff{Min: minRetry, Max: maxRetry, Random: opts.Random},
		kept:       sync.Pool{New: func() any { return new([]agent.MetadataEntry) }},
		pending:    newPending(opts.shares()),
	}
	b.opts.Store(&opts)
	b.pending.stored.touch = opts.TouchInterval
	var err error
	if b.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("batcher: %w", err)
	}
	if err := b.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("batcher: %w", err)
	}
	return b, nil
}

// Options returns the options in force, with their defaults.
func (b *Batcher) Options() Options { return *b.opts.Load() }

// Reconfigure changes the options, but for Random. Of an interval the time that runs goes
// on. What is pending stays, also above a lowered limit. After an error nothing has
// changed.
func (b *Batcher) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("batcher options: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opts.Store(&opts)
	b.pending.limits, b.pending.stored.touch = opts.shares(), opts.TouchInterval
	return nil
}

// Add takes in a report, received at now, and returns what it refused of it. It
// refuses entries over the limits of a report. It refuses new keys when MaxPending,
// or the share of the agent or its owner, is reached. Of r it keeps copies, of a
// value or an error only if they differ from those that it has of the key, and
// r.Tracker. The tracker's type must be comparable. Its AddPending is called before
// Add returns; the slice that its Resolve gets is valid only during that call.
func (b *Batcher) Add(now time.Time, r agent.MetadataReport) []agent.Refusal {
	var refused refusals
	var resolved resolutions
	kept := b.kept.Get().(*[]agent.MetadataEntry)
	*kept = limitReport((*kept)[:0], r.Entries, &refused)

	b.mu.Lock()
	b.pending.add(now, &r, *kept, &refused, &resolved)
	full := b.pending.queue.n >= b.opts.Load().BatchSize
	b.mu.Unlock()

	clear(*kept)
	b.kept.Put(kept)
	if n := refused.count(dropCapacity) + refused.count(dropAgentShare) + refused.count(dropOwnerShare); n > 0 {
		b.metrics.droppedKeys.Add(float64(n))
	}
	if full {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	resolved.notifyTrackers()
	return refused.list
}

// Remove drops what is pending of an agent that is known no more. A write that
// is under way is not stopped, but not repeated either.
func (b *Batcher) Remove(id agent.ID) {
	var resolved resolutions
	b.mu.Lock()
	b.pending.remove(id, &resolved)
	b.mu.Unlock()
	resolved.notifyTrackers()
}

// Followed says that this replica knows what other ones wrote before then: it has ended the
// sessions of agents that were removed, or are connected elsewhere since. Until then acks of
// values that are not written again wait. It is not called if there are no other replicas.
func (b *Batcher) Followed(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending.stored.followed = at
}

// PendingKeys returns the keys of which an agent has a value that is not written yet, in
// no order.
func (b *Batcher) PendingKeys(id agent.ID) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.pending.agents[id]; a != nil {
		return slices.Collect(maps.Keys(a.keys))
	}
	return nil
}

// Healthy returns nil if the newest flush was good, or why it was not.
func (b *Batcher) Healthy() error {
	b.mu.Lock()
	f := b.failing
	b.mu.Unlock()
	if f.attempts == 0 {
		return nil
	}
	return fmt.Errorf("metadata is not written since %s (%d attempts): %w",
		f.since.UTC().Format(time.RFC3339), f.attempts, f.err)
}

// Load returns for how long the oldest entry has been pending at now, 0: none is, and
// for how long flushes ran since the start. Agents in quarantine do not count.
func (b *Batcher) Load(now time.Time) (oldest, flushing time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	flushing = b.flushed
	if !b.flushing.IsZero() {
		flushing += max(0, now.Sub(b.flushing))
	}
	return b.pending.age(now), flushing
}

// snapshot is what the metrics show of the pending entries at one moment.
type snapshot struct {
	ledger  ledger
	pending int
	// quarantined is the number of agents in quarantine, confined how many came.
	quarantined int
	confined    int64
	// oldest is for how long the oldest entry has been pending, of agents that are not in
	// quarantine.
	oldest time.Duration
	// lastFlush is how long the newest flush took.
	lastFlush time.Duration
}

func (b *Batcher) snapshot() snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pending
	return snapshot{p.ledger, p.len(), len(p.quarantine), p.confined, p.age(time.Now()), b.lastFlush}
}

// count returns what f does of the pending entries.
func (b *Batcher) count(f func(*pending) int) func() float64 {
	return func() float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return float64(f(b.pending))
	}
}

// upsert writes rows and returns what Store.UpsertMetadata does.
func (b *Batcher) upsert(ctx context.Context, rows []agent.Metadata) (changed []agent.ID, newer []agent.StoredEpoch, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.Load().FlushTimeout)
	defer cancel()
	return b.store.UpsertMetadata(ctx, rows)
}
