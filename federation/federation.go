// Package federation keeps the metric families that coderd instances push,
// makes one family of those of several instances, and serves them.
//
// A push is stored before it is served or acknowledged. What an instance counted
// counts for ever, gauges while it is alive. The merged families are kept
// rendered: a scrape copies bytes.
package federation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Options of a Federation. The zero value is usable.
type Options struct {
	// SeriesTTL is how long gauges are served after the newest snapshot of
	// their instance; longer if three of its intervals are. 0: 2 min.
	SeriesTTL time.Duration
	// MaxFamilies of one snapshot; more are refused. 0: 2,000.
	MaxFamilies int
	// MaxSeries is how many series are held of one instance, each bucket
	// counted as one, those that it does not push any more included. Families
	// that exceed it are refused. 0: 200,000.
	MaxSeries int
	// MaxTotalSeries is the same of all instances together. 0: 2,000,000.
	MaxTotalSeries int
	// MaxInstances is how many have a row of their own. For one more the oldest
	// that are gone are folded and forgotten; if none is gone it is refused.
	// 0: 256.
	MaxInstances int
	// MaxRowBytes bounds what is stored of one instance, compressed. A push
	// beyond it is refused as a whole. 0: 64 MiB.
	MaxRowBytes int
	// FoldAfter the newest snapshot of an instance its counts become part of
	// the totals. 0: 24 h.
	FoldAfter time.Duration
	// ForgetAfter the newest snapshot of an instance its last values are
	// forgotten too; until then it can come back without counting anything
	// twice. 0: 7 days.
	ForgetAfter time.Duration
	// ClaimFor is how long a name stays claimed after its family was last
	// served. 0: 5 min, the time over which Prometheus looks back.
	ClaimFor time.Duration
	// StoreTimeout bounds one call of the store. 0: 10 s.
	StoreTimeout time.Duration
}

func (o *Options) validate() error {
	for _, n := range []struct {
		name     string
		value    *int
		standard int
	}{
		{"families", &o.MaxFamilies, 2000},
		{"series", &o.MaxSeries, 200_000},
		{"series of all instances", &o.MaxTotalSeries, 2_000_000},
		{"instances", &o.MaxInstances, 256},
		{"bytes of a row", &o.MaxRowBytes, 64 << 20},
	} {
		if *n.value == 0 {
			*n.value = n.standard
		}
		if *n.value < 0 {
			return fmt.Errorf("federation: at most %d %s", *n.value, n.name)
		}
	}
	for _, d := range []struct {
		name     string
		value    *time.Duration
		standard time.Duration
	}{
		{"series TTL", &o.SeriesTTL, 2 * time.Minute},
		{"time to fold", &o.FoldAfter, 24 * time.Hour},
		{"time to forget", &o.ForgetAfter, 7 * 24 * time.Hour},
		{"time to claim", &o.ClaimFor, 5 * time.Minute},
		{"store timeout", &o.StoreTimeout, 10 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.standard
		}
		if *d.value < 0 {
			return fmt.Errorf("federation: %s %v is negative", d.name, *d.value)
		}
	}
	return nil
}

const (
	// maxInterval bounds for how long an instance can have its gauges served.
	maxInterval = time.Hour
	// maxReplicaBytes is what agentstats.v1 allows.
	maxReplicaBytes = 256
	// loadRetry is the time between two attempts to load.
	loadRetry = time.Second
	// foldChecks are made within FoldAfter, so that folding is late by at most
	// this part of it.
	foldChecks = 24
)

// Store keeps what instances pushed. store.Store is one.
type Store interface {
	// SavePush writes one row in place of the one before.
	SavePush(ctx context.Context, row agent.PushRow) error
	Pushes(ctx context.Context) ([]agent.PushRow, error)
	// FoldPushes writes rows and deletes removed ones in one transaction.
	FoldPushes(ctx context.Context, rows []agent.PushRow, removed []agent.Instance) error
}

// Claims is told which families are served here, or were within the last
// minutes, so that nobody else serves them. It replaces what it was told
// before. aggregator.Aggregator is one. It must not block nor keep the map.
type Claims interface {
	Claim(names map[string]metrics.Type)
}

// Federation is the pushed families of all coderd instances. Its methods are
// safe for concurrent use.
type Federation struct {
	store   Store
	claims  Claims
	opts    Options
	log     *slog.Logger
	metrics *ownMetrics
	codec   *codec // used by whoever has the turn

	// turn is held by whoever changes instances, over the call of the store:
	// pushes are stored one after the other.
	turn chan struct{}
	// wake tells Run that deadlines have changed.
	wake chan struct{}
	view atomic.Pointer[view]

	// mu guards what follows. Only with the turn are instances changed.
	mu        sync.Mutex
	loaded    bool
	failing   failing
	instances map[agent.Instance]*instance
	rendered  map[string]*rendered
	claimed   map[string]claim
	// sticky is the instance that each family of its kind is served from.
	sticky map[string]agent.Instance
	// floors are what native histograms must not be finer than, by family and
	// labels.
	floors map[string]map[string]*distribution
}

// failing describes the calls of the store that failed since the last good one.
type failing struct {
	since time.Time
	err   error
}

// New returns a Federation that takes pushes after Load, or within Run. Its
// metrics are registered with reg, once.
func New(store Store, claims Claims, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Federation, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	f := &Federation{
		store: store, claims: claims, opts: opts, log: log,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		instances: make(map[agent.Instance]*instance),
		rendered:  make(map[string]*rendered),
		claimed:   make(map[string]claim),
		sticky:    make(map[string]agent.Instance),
		floors:    make(map[string]map[string]*distribution),
	}
	f.view.Store(new(view))
	var err error
	if f.codec, err = newCodec(opts.MaxRowBytes); err != nil {
		return nil, fmt.Errorf("federation: %w", err)
	}
	if f.metrics, err = newOwnMetrics(reg, f); err != nil {
		return nil, fmt.Errorf("federation: %w", err)
	}
	return f, nil
}

// takeTurn waits for the turn.
func (f *Federation) takeTurn(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Federation) endTurn() { <-f.turn }

// Load reads what is stored and serves it. It does nothing when it was done
// before.
func (f *Federation) Load(ctx context.Context) error {
	return f.load(ctx, time.Now())
}

func (f *Federation) load(ctx context.Context, now time.Time) error {
	if err := f.takeTurn(ctx); err != nil {
		return fmt.Errorf("load pushed families: %w", err)
	}
	defer f.endTurn()
	if f.isLoaded() {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	rows, err := f.store.Pushes(bounded)
	if err != nil {
		return f.note(fmt.Errorf("load pushed families: %w", err))
	}
	loaded := make([]*instance, 0, len(rows))
	for _, r := range rows {
		i, err := f.codec.decode(r)
		if err != nil {
			return f.note(fmt.Errorf("load pushed families: %w", err))
		}
		if i.updatedAt.After(now) {
			i.updatedAt = now // the clock was set back
		}
		loaded = append(loaded, i)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = failing{}
	f.adoptLocked(now, loaded)
	f.loaded = true
	return nil
}

func (f *Federation) isLoaded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.loaded
}

// note keeps the outcome of a call of the store for Healthy, and returns it.
func (f *Federation) note(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.failing = failing{}
	case f.failing.err == nil:
		f.failing = failing{time.Now(), err}
	default:
		f.failing.err = err
	}
	return err
}

// Healthy returns nil if pushes can be stored, or why they cannot.
func (f *Federation) Healthy() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.failing.err != nil:
		return fmt.Errorf("pushed families are not stored since %s: %w",
			f.failing.since.UTC().Format(time.RFC3339), f.failing.err)
	case !f.loaded:
		return errNotLoaded
	}
	return nil
}

var errNotLoaded = errors.New("pushed families are not loaded yet")

// Push takes in a snapshot that was received at now, and returns what it
// refused of it, when the rest is durable and served. After an error nothing of
// the snapshot has taken effect: it can be pushed again. A snapshot that is not
// above the newest of its instance is known already: its refusals are those of
// the newest.
//
// It waits for pushes that came before. p is not changed, nor kept.
func (f *Federation) Push(ctx context.Context, now time.Time, p agent.Push) ([]agent.PushRefusal, error) {
	if p.Instance == (agent.Instance{}) {
		f.metrics.pushes.WithLabelValues(outcomeInvalid).Inc()
		return nil, errors.New("push families: the instance id is all zero")
	}
	if !f.isLoaded() {
		f.metrics.pushes.WithLabelValues(outcomeUnavailable).Inc()
		return nil, errNotLoaded
	}
	decoded := f.decode(now, &p)
	refused, outcome, err := f.push(ctx, now, &p, decoded)
	f.metrics.pushes.WithLabelValues(outcome).Inc()
	if err != nil {
		return nil, fmt.Errorf("push families of %q: %w", p.Replica, err)
	}
	if outcome == outcomeStored {
		f.metrics.countRefused(refused)
	}
	return refused, nil
}

func (f *Federation) push(ctx context.Context, now time.Time, p *agent.Push, decoded []decodedFamily) (
	_ []agent.PushRefusal, outcome string, _ error,
) {
	if err := f.takeTurn(ctx); err != nil {
		return nil, outcomeUnavailable, err
	}
	defer f.endTurn()
	f.mu.Lock()
	old := f.instances[p.Instance]
	count := len(f.instances)
	if f.instances[agent.Instance{}] != nil {
		count--
	}
	f.mu.Unlock()
	if old != nil && p.Snapshot <= old.snapshot {
		return old.refused, outcomeDuplicate, nil
	}
	if old == nil && count >= f.opts.MaxInstances {
		if err := f.makeRoom(ctx, now); err != nil {
			return nil, outcomeUnavailable, err
		}
	}
	next := &instance{
		id:        p.Instance,
		replica:   cut(strings.ToValidUTF8(p.Replica, "\uFFFD"), maxReplicaBytes),
		interval:  min(max(p.Interval, 0), maxInterval),
		snapshot:  p.Snapshot,
		final:     p.Final,
		updatedAt: now,
	}
	f.mu.Lock()
	displaced := f.admitLocked(next, old, decoded)
	f.mu.Unlock()

	stored, err := f.codec.encode(next)
	if err != nil {
		return nil, outcomeInvalid, err
	}
	if next.rowBytes > f.opts.MaxRowBytes {
		return nil, outcomeInvalid, fmt.Errorf("%d bytes to store, at most %d", next.rowBytes, f.opts.MaxRowBytes)
	}
	bounded, cancel := context.WithTimeout(ctx, f.opts.StoreTimeout)
	defer cancel()
	if err := f.note(f.store.SavePush(bounded, stored)); err != nil {
		return nil, outcomeUnavailable, err
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	f.replaceLocked(now, old, next, displaced)
	select {
	case f.wake <- struct{}{}:
	default:
	}
	return next.refused, outcomeStored, nil
}

// Run loads what is stored, unless that is done, takes gauges away at their TTL
// and folds instances that are gone, until ctx is cancelled. It returns nil.
func (f *Federation) Run(ctx context.Context) error {
	for {
		err := f.Load(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		f.log.WarnContext(ctx, "pushed families are not loaded, trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(loadRetry):
		}
	}
	var folding sync.WaitGroup
	defer folding.Wait()
	folding.Go(func() { f.foldEvery(ctx, max(f.opts.FoldAfter/foldChecks, time.Millisecond)) })

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

// expire takes away what is over at now and returns the time until the next is.
func (f *Federation) expire(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := time.Hour
	var changed []string
	for _, i := range f.instances {
		switch {
		case !i.live:
		case i.isLive(now, f.opts.SeriesTTL):
			next = min(next, i.expiresAt(f.opts.SeriesTTL).Sub(now))
		default:
			i.live = false
			changed = append(changed, i.mortalNames()...)
		}
	}
	f.rebuildLocked(now, changed)
	for _, c := range f.claimed {
		if !c.until.IsZero() {
			next = min(next, c.until.Sub(now))
		}
	}
	return max(next, 0)
}

func (f *Federation) foldEvery(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := f.foldIdle(ctx, time.Now()); err != nil && ctx.Err() == nil {
			f.log.WarnContext(ctx, "pushes are not folded, trying again later", "error", err)
		}
	}
}
