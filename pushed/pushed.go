// Package pushed keeps the metric families that coderd instances push,
// makes one family of those of several instances, and serves them.
//
// A push is stored before it is served or acknowledged. What an instance counted
// counts for ever, gauges while it is alive. The merged families are kept
// rendered: a scrape copies bytes.
//
// Of several replicas over one store any takes a push, and all keep and render
// everything; the one that holds the lease serves it, once it has read what was
// stored before it came to lead. Each row has a version, and is only replaced by
// what was decided on the newest. What is served follows from the rows alone, so
// it goes on from one leader to the next, but for one thing: how wide the zero
// bucket of a native histogram has been is memory of a replica. Where instances
// disagree on it, another leader can serve a narrower one, which Prometheus takes
// for a reset of that histogram.
//
// The turn is taken before mu.
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
	"github.com/coder/agentstatsd/metrics"
)

// Options of a Families. The zero value is usable.
type Options struct {
	// SeriesTTL is how long gauges are served after the newest snapshot of
	// their instance; longer if three of its intervals are. 0: 2 min.
	SeriesTTL time.Duration
	// MaxFamilies of one snapshot; more are refused. 0: 2,000.
	MaxFamilies int
	// MaxSeries is how many series one instance may have, each bucket and each
	// KiB of labels counted as one; more are refused. Counts that it does not push
	// any more go to the totals when there is no room for them. 0: 200,000.
	MaxSeries int
	// MaxTotalSeries is the same of all instances that are alive. With those that
	// are gone and the totals there are not more either, but where the totals of
	// what instances have that are alive are beyond it. 0: 2,000,000.
	MaxTotalSeries int
	// MaxInstances is how many have a row of their own. For one more the oldest
	// that are gone are folded and forgotten; if none is gone it is refused.
	// 0: 256.
	MaxInstances int
	// MaxRowBytes bounds what is stored of one instance, compressed; series beyond
	// are refused. 0: 64 MiB.
	MaxRowBytes int
	// MaxLabelValueBytes of one label, MaxLabelsBytes of all names and values of a
	// series; series beyond are refused. 0: 32 KiB, as parameters of templates have at
	// most, which a family has as a label, and 40 KiB.
	MaxLabelValueBytes, MaxLabelsBytes int
	// FoldAfter the newest snapshot of an instance its counts become part of
	// the totals. 0: 24 h.
	FoldAfter time.Duration
	// ForgetAfter the newest snapshot of an instance its last values are
	// forgotten too; until then it can come back without counting anything
	// twice. 0: 7 days.
	ForgetAfter time.Duration
	// Merge is how families merge whose documented or guessed way is wrong, by
	// name. Of counters, histograms and summaries all but MergeSum mean that each
	// instance has the whole: the largest is served.
	Merge map[string]metrics.Merge
	// ClaimFor is how long a name stays claimed after its family was last
	// served. 0: 5 min, the time over which Prometheus looks back.
	ClaimFor time.Duration
	// StoreTimeout bounds one call of the store. 0: 10 s.
	StoreTimeout time.Duration
	// Lease tells whether this replica serves and folds; nil: it is alone, and
	// does.
	Lease Lease
	// News tells replicas of one another's pushes; nil: they find out within
	// FollowInterval.
	News News
	// FollowInterval is the time between two looks for what other replicas
	// stored, if there is a lease. 0: 5 s.
	FollowInterval time.Duration
	// Random draws the waits after reads that failed, within [0, 1); nil: rand.Float64.
	Random func() float64
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
		{"bytes of a label's value", &o.MaxLabelValueBytes, 32 << 10},
		{"bytes of labels", &o.MaxLabelsBytes, 40 << 10},
	} {
		if *n.value == 0 {
			*n.value = n.standard
		}
		if *n.value < 0 {
			return fmt.Errorf("pushed: at most %d %s", *n.value, n.name)
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
		{"time to follow", &o.FollowInterval, 5 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.standard
		}
		if *d.value < 0 {
			return fmt.Errorf("pushed: %s %v is negative", d.name, *d.value)
		}
	}
	return nil
}

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

// Claims is told which families are served here, or were within the last
// minutes, so that nobody else serves them. It replaces what it was told
// before. aggregator.Aggregator is one. It must not block nor keep the map.
type Claims interface {
	HideFamilies(names map[string]metrics.Type)
}

// Families is the pushed families of all coderd instances. Its methods are
// safe for concurrent use.
type Families struct {
	store   Store
	claims  Claims
	opts    Options
	log     *slog.Logger
	retries backoff.Backoff
	metrics *ownMetrics
	codec   *codec // used by whoever has the turn
	merges  merges

	// turn is held by whoever changes instances, over the call of the store:
	// pushes are stored one after the other.
	turn chan struct{}
	// decoding is held while a snapshot is decoded.
	decoding chan struct{}
	// wake tells Run that deadlines have changed.
	wake chan struct{}
	// nudged tells Run that something was stored that is not held here.
	nudged chan struct{}
	view   atomic.Pointer[view]
	// caughtUp is the newest term of the lease in which everything was read.
	caughtUp atomic.Int64

	// mu guards what follows. Only with the turn are instances changed.
	mu     sync.Mutex
	loaded bool
	// unstored and unread are what fails of the store: writing and reading.
	unstored, unread failing
	instances        map[agent.Instance]*instance
	// unreadable are the rows that cannot be decoded.
	unreadable map[agent.Instance]badRow
	// types are those of the names that are held, see settleLocked.
	types    map[string]metrics.Type
	rendered map[string]*rendered
	claimed  map[string]claim
	// floors are what native histograms must not be finer than, by family and
	// labels.
	floors map[string]map[string]*distribution
}

// failing describes the calls of the store that failed since the last good one.
type failing struct {
	since time.Time
	err   error
}

// New returns a Families that takes pushes after Load, or within Run. Its
// metrics are registered with reg, once.
func New(store Store, claims Claims, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Families, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	f := &Families{
		store: store, claims: claims, opts: opts, log: log, merges: opts.Merge,
		retries: backoff.Backoff{Min: minRetry, Max: maxRetry, Random: opts.Random},
		turn:    make(chan struct{}, 1), decoding: make(chan struct{}, 1), wake: make(chan struct{}, 1), nudged: make(chan struct{}, 1),
		instances:  make(map[agent.Instance]*instance),
		unreadable: make(map[agent.Instance]badRow),
		types:      make(map[string]metrics.Type),
		rendered:   make(map[string]*rendered),
		claimed:    make(map[string]claim),
		floors:     make(map[string]map[string]*distribution),
	}
	f.view.Store(new(view))
	var err error
	if f.codec, err = newCodec(); err != nil {
		return nil, fmt.Errorf("pushed: %w", err)
	}
	if f.metrics, err = newOwnMetrics(reg, f); err != nil {
		return nil, fmt.Errorf("pushed: %w", err)
	}
	return f, nil
}

// takeTurn waits for the turn.
func (f *Families) takeTurn(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Families) endTurn() { <-f.turn }

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

// note keeps the outcome of a call of the store.
func (w *failing) note(err error) {
	switch {
	case err == nil:
		*w = failing{}
	case w.err == nil:
		*w = failing{time.Now(), err}
	default:
		w.err = err
	}
}

// noteStored keeps the outcome of writing to the store for Healthy, and returns
// it. After an error that leaves open whether it was written, it is read. That
// the caller's ctx ended tells nothing of the store.
func (f *Families) noteStored(ctx context.Context, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil, errors.Is(err, agent.ErrOutdated):
		f.unstored.note(nil)
		return err
	case ctx.Err() == nil:
		f.unstored.note(err)
	}
	f.nudge()
	return err
}

// Healthy returns nil if pushes can be stored, and what other replicas store is
// read, or why not.
func (f *Families) Healthy() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.unstored.err != nil:
		return fmt.Errorf("pushed families are not stored since %s: %w",
			f.unstored.since.UTC().Format(time.RFC3339), f.unstored.err)
	case f.unread.err != nil && (!f.loaded || time.Since(f.unread.since) > unreadIntervals*f.opts.FollowInterval):
		return fmt.Errorf("stored pushes are not read since %s: %w",
			f.unread.since.UTC().Format(time.RFC3339), f.unread.err)
	case !f.loaded:
		return errNotLoaded
	}
	return nil
}

var errNotLoaded = errors.New("pushed families are not loaded yet")

// Run loads what is stored, unless that is done, takes gauges away at their TTL,
// follows other replicas and folds instances that are gone, until ctx is
// cancelled. Then it returns nil; an error only if the news cannot be had.
func (f *Families) Run(ctx context.Context) error {
	if f.opts.News != nil {
		cancel, err := f.opts.News.Subscribe(newsChannel, f.hear)
		if err != nil {
			return fmt.Errorf("subscribe to news of pushes: %w", err)
		}
		defer cancel()
	}
	for failures := 1; ; failures++ {
		err := f.Load(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		f.log.WarnContext(ctx, "pushed families are not loaded, trying again", "error", err)
		if !f.retries.Wait(ctx, failures) {
			return nil
		}
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { f.foldEvery(ctx, max(f.opts.FoldAfter/foldChecks, time.Millisecond)) })
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

// expire takes away what is over at now and returns the time until the next is.
func (f *Families) expire(now time.Time) time.Duration {
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
			f.log.WarnContext(ctx, "pushes are not folded, trying again later", "error", err)
		}
	}
}
