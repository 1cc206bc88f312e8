// Package pushed keeps the metric families that coderd instances push. It merges
// the families of several instances, and serves the result.
//
// A push is stored before it is served or acknowledged. Counts of an instance count
// for ever, its gauges while it is alive. The merged families are kept rendered: a
// scrape copies bytes.
//
// An instance has one of these states:
//
//	(none) --Push--> alive --TTL or final push--> gone --FoldAfter--> folded --ForgetAfter--> (none)
//	alive <--Push-- gone, folded
//
// A folded instance is merged into the totals. It keeps its last values, to count
// only the increase if it comes back.
//
// Any of several replicas over one store takes a push. All keep and render
// everything. The one with the lease serves, once it has read what was stored
// before its term. Each row has a version. A row is replaced only by a decision on
// its newest version. What is served follows from the rows alone, so another leader
// continues it. The exception is the width that the zero bucket of a native
// histogram has had, which a replica has in memory. Where instances disagree on it,
// another leader can serve a narrower one. Prometheus takes that for a reset of the
// histogram.
//
// writing is acquired before mu. The holder of writing is the only one that changes
// instances, also over calls of the store. mu guards the fields below it.
package pushed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/recurring"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

const (
	// maxInterval bounds for how long an instance can have its gauges served.
	maxInterval = time.Hour
	// maxReplicaBytes is what agentstats.v1 allows.
	maxReplicaBytes = 256
	// minRetry and maxRetry bound the waits after reads of the store that failed.
	minRetry = time.Second
	maxRetry = 5 * time.Second
	// foldChecks are made within FoldAfter, so that folding is late by at most
	// this part of it.
	foldChecks = 24
	// decisions are made on one push or fold, while others write the same rows.
	decisions = 3
)

// Store keeps what instances pushed. store.Store is one.
type Store interface {
	// SavePush writes one row in place of that of row.Version; 0: there is none.
	// Its version becomes one more. If there is another one instead, the error
	// wraps agent.ErrOutdated.
	SavePush(ctx context.Context, row agent.PushRow) error
	// FoldPushes writes rows and deletes removed ones, of which instance and
	// version are set, in one transaction. Each version is checked as by SavePush.
	FoldPushes(ctx context.Context, rows, removed []agent.PushRow) error
	// PushVersions returns the versions of all rows.
	PushVersions(ctx context.Context) (map[agent.Instance]int64, error)
	// Pushes returns the rows of ids that there are; nil: all, as of one moment.
	Pushes(ctx context.Context, ids []agent.Instance) ([]agent.PushRow, error)
}

// FamilyReserver reserves names for the families that are served here, or were
// within OwnFor, of others on the same endpoint. ReserveFamilies replaces the set. It
// must not block nor keep the map. aggregator.Aggregator is one.
type FamilyReserver interface {
	ReserveFamilies(names map[string]metrics.Type)
}

// Families is the pushed families of all coderd instances. Its methods are
// safe for concurrent use.
type Families struct {
	store    Store
	reserver FamilyReserver
	opts     atomic.Pointer[Options] // Reconfigure replaces them
	log      *slog.Logger
	// What the log has of families that cannot be rendered, and rows that cannot be decoded.
	unrendered, undecoded recurring.Events
	reads                 *outage.Log
	retries               backoff.Backoff
	metrics               *ownMetrics
	// codec is used by the holder of writing.
	codec  *family.Codec
	policy family.Policy

	// writing is a semaphore of one for changes of instances, calls of the store
	// included. So pushes are stored one after the other.
	writing chan struct{}
	// decoding is a semaphore of one for decoding a snapshot.
	decoding chan struct{}
	// wake wakes Run after deadlines have changed.
	wake chan struct{}
	// followRequested wakes Run after something was stored that is not in memory
	// here.
	followRequested chan struct{}
	view            atomic.Pointer[view]
	// caughtUp is the newest term of the lease in which everything was read.
	caughtUp atomic.Int64

	// mu guards the fields below. Only the holder of writing changes instances.
	mu     sync.Mutex
	loaded bool
	// writeError and readError are what fails of the store.
	writeError, readError storeError
	instances             map[agent.Instance]*instance
	// unreadable are the rows that cannot be decoded.
	unreadable map[agent.Instance]badRow
	// types are those of all families in memory, by name. See updateTypesLocked.
	types    family.Types
	rendered map[string]*metrics.Rendered
	owned    map[string]ownership
	// passing means that an instance that is alive passes through what agents have, and
	// passed are the families that are so served.
	passing bool
	passed  map[string]bool
	// floors are what native histograms must not be finer than, by family.
	floors map[string]family.Floors
}

// storeError is the last error of the store, and the time of the first one since a
// call succeeded.
type storeError struct {
	since time.Time
	err   error
}

// New returns a Families that takes pushes after Load, or within Run. It registers
// its metrics with reg.
func New(store Store, reserver FamilyReserver, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Families, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("pushed options: %w", err)
	}
	f := &Families{
		store: store, reserver: reserver, log: log, policy: opts.Merge,
		reads:   outage.New(log, "stored pushes are not read, trying again", "stored pushes are read again"),
		retries: backoff.Backoff{Min: minRetry, Max: maxRetry, Random: opts.Random},
		writing: make(chan struct{}, 1), decoding: make(chan struct{}, 1), wake: make(chan struct{}, 1), followRequested: make(chan struct{}, 1),
		instances:  make(map[agent.Instance]*instance),
		unreadable: make(map[agent.Instance]badRow),
		types:      make(family.Types),
		rendered:   make(map[string]*metrics.Rendered),
		owned:      make(map[string]ownership),
		passed:     make(map[string]bool),
		floors:     make(map[string]family.Floors),
	}
	f.opts.Store(&opts)
	f.view.Store(new(view))
	var err error
	if f.codec, err = family.NewCodec(); err != nil {
		return nil, fmt.Errorf("pushed: %w", err)
	}
	if f.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("pushed: %w", err)
	}
	if err := f.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("pushed: %w", err)
	}
	return f, nil
}

// Options returns the options in force, with their defaults.
func (f *Families) Options() Options { return *f.opts.Load() }

// Reconfigure changes the options but Merge, Lease, Notifier and Random, which only New
// takes. What is above a lowered limit stays until it is pushed again. After an error
// nothing has changed.
func (f *Families) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("pushed options: %w", err)
	}
	before := f.opts.Load()
	opts.Merge, opts.Lease, opts.Notifier = before.Merge, before.Lease, before.Notifier
	f.opts.Store(&opts)
	select {
	case f.wake <- struct{}{}: // another TTL moves deadlines
	default:
	}
	return nil
}

// acquireWriting acquires writing, or returns the error of ctx.
func (f *Families) acquireWriting(ctx context.Context) error {
	select {
	case f.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Families) releaseWriting() { <-f.writing }

// Load reads what is stored and serves it. It does nothing when it was done
// before.
func (f *Families) Load(ctx context.Context) error {
	return f.load(ctx, time.Now())
}

func (f *Families) load(ctx context.Context, now time.Time) error {
	if f.isLoaded() {
		return nil
	}
	if err := f.follow(ctx, now); err != nil {
		return fmt.Errorf("load pushed families: %w", err)
	}
	return nil
}

func (f *Families) isLoaded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.loaded
}

// record records the result of a call of the store.
func (w *storeError) record(err error) {
	switch {
	case err == nil:
		*w = storeError{}
	case w.err == nil:
		*w = storeError{time.Now(), err}
	default:
		w.err = err
	}
}

// recordWrite records the result of a write to the store for Healthy, and returns
// it. After an error it is unknown whether the write happened, so the rows are
// read. An error because the caller's ctx ended is not the store's.
func (f *Families) recordWrite(ctx context.Context, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil, errors.Is(err, agent.ErrOutdated):
		f.writeError.record(nil)
		return err
	case ctx.Err() == nil:
		f.writeError.record(err)
	}
	f.requestFollow()
	return err
}

// Healthy returns nil if pushes can be stored, and what other replicas store is
// read, or why not.
func (f *Families) Healthy() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.writeError.err != nil:
		return fmt.Errorf("pushed families are not stored since %s: %w",
			f.writeError.since.UTC().Format(time.RFC3339), f.writeError.err)
	case f.readError.err != nil && (!f.loaded || time.Since(f.readError.since) > unreadIntervals*f.opts.Load().FollowInterval):
		return fmt.Errorf("stored pushes are not read since %s: %w",
			f.readError.since.UTC().Format(time.RFC3339), f.readError.err)
	case !f.loaded:
		return errNotLoaded
	}
	return nil
}

var errNotLoaded = errors.New("pushed families are not loaded yet")

// Run loads what is stored, unless that is done. Then it expires gauges, follows
// other replicas, and folds gone instances, until ctx is cancelled. Then it returns
// nil. It returns an error only if it cannot subscribe to notifications.
func (f *Families) Run(ctx context.Context) error {
	if f.opts.Load().Notifier != nil {
		cancel, err := f.opts.Load().Notifier.Subscribe(notificationChannel, f.handleNotification)
		if err != nil {
			return fmt.Errorf("subscribe to notifications of pushes: %w", err)
		}
		defer cancel()
	}
	for failures := 1; ; failures++ {
		err := f.Load(ctx)
		if err == nil {
			f.reads.Works(ctx)
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		f.reads.Failed(ctx, err)
		if !f.retries.Wait(ctx, failures) {
			return nil
		}
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { f.foldEvery(ctx, max(f.opts.Load().FoldAfter/foldChecks, time.Millisecond)) })
	beside.Go(func() { f.followUntilDone(ctx) })

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-f.wake:
		}
		timer.Reset(f.expire(time.Now()))
	}
}

// expire removes what has expired at now, and returns the time until the next
// expiry.
func (f *Families) expire(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := time.Hour
	var changed []string
	for _, i := range f.instances {
		switch {
		case !i.live:
		case i.isLive(now, f.opts.Load().SeriesTTL):
			next = min(next, i.expiresAt(f.opts.Load().SeriesTTL).Sub(now))
		default:
			i.live = false
			changed = append(changed, i.families.Mortal()...)
		}
	}
	f.rebuildLocked(now, changed)
	for _, c := range f.owned {
		if !c.until.IsZero() {
			next = min(next, c.until.Sub(now))
		}
	}
	return max(next, 0)
}

func (f *Families) foldEvery(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := f.foldIdle(ctx, time.Now()); err != nil && ctx.Err() == nil {
			f.log.WarnContext(ctx, "idle instances are not merged into totals, trying again later", "error", err)
		}
	}
}
