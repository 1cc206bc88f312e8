// Package registrations has the service know the agents and workspaces that a Coder
// deployment has. It reads them by coderd's REST API.
//
// A sync reads all of them, and replaces what the service knows. What is absent from the
// list is removed only if the workspace is known to be deleted: rows of the list move
// between its pages, and a token without rights gets an empty list. An agent that connects
// and is not known is registered at once, with a read of its workspace alone.
package registrations

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bridge/internal/coder"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/recurring"
)

const (
	// minSyncWait is between the end of a sync and the begin of one that unknown agents
	// ask for: ten thousand workspaces take 20 s to read.
	minSyncWait = 30 * time.Second
	// serviceTimeout bounds a call of the service.
	serviceTimeout = time.Minute
	// refusedWait is how long a refused token is not tried again, unless its file changes.
	refusedWait = time.Minute
	// lookWait is between two looks at the file of a refused token.
	lookWait = 5 * time.Second
	// expiryWarning is how long before its expiry a token is warned of; it is asked for
	// each expiryWait.
	expiryWarning = 48 * time.Hour
	expiryWait    = time.Hour
	// hiddenFor is how long it is a warning that coderd did not show the workspace of an
	// agent that is connected.
	hiddenFor = time.Hour
)

// Registrations are the registrations of one Coder deployment. All methods may be called
// by any goroutine.
type Registrations struct {
	coder        *coder.Client
	service      *client.Coderd
	opts         Options
	metrics      *metrics
	log          *slog.Logger
	unregistered recurring.Events // attempts
	// syncInterval is in force, in place of that of opts.
	syncInterval atomic.Int64
	// holder is who acquires tasks.
	holder uuid.UUID

	// wantSync has an element while a sync is asked for, wake while agents wait.
	wantSync, wake chan struct{}
	// looked is closed when the first sync has ended, in whichever way.
	looked chan struct{}

	mu sync.Mutex
	// The rest is guarded by mu.

	// agents are those that are registered, by what this process knows.
	agents map[uuid.UUID]registered
	// workspaces are those that the newest sync registered, with their organizations.
	workspaces map[uuid.UUID]string
	// hidden are known ones that the newest sync did not find, and could not tell why.
	hidden   map[uuid.UUID]struct{}
	unknown  unknown
	paused   error // why coderd is not asked; nil: it is
	syncErr  error // of the newest sync; nil: it succeeded
	syncedAt time.Time
	// visible is how many workspaces coderd showed in the newest sync. sees is false if there
	// were none, and the user may not see any.
	visible int
	sees    bool
	// hiddenAt is when coderd did not show the workspace of a connected agent; expiry is that
	// of the API token. Zero: never, or not known.
	hiddenAt, expiry time.Time
}

// registered is what is known of a registered agent.
type registered struct {
	workspace uuid.UUID
	readAt    time.Time // when coderd said so
	// registeredAt is when it was registered by itself; zero: by a sync.
	registeredAt time.Time
}

// New makes Registrations, which run once Run is called. It closes none of its arguments.
func New(from *coder.Client, service *client.Coderd, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Registrations, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("registrations options: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	r := &Registrations{
		coder: from, service: service, opts: opts, metrics: m, log: log, holder: uuid.New(),
		wantSync: make(chan struct{}, 1), wake: make(chan struct{}, 1), looked: make(chan struct{}),
		agents:     make(map[uuid.UUID]registered),
		workspaces: make(map[uuid.UUID]string),
		unknown:    newUnknown(), sees: true,
	}
	r.syncInterval.Store(int64(opts.SyncInterval))
	return r, r.registerGauges(reg)
}

// Run syncs and registers until ctx ends. It returns nil then.
func (r *Registrations) Run(ctx context.Context) error {
	var running sync.WaitGroup
	r.share(ctx)
	running.Go(func() { r.runShare(ctx) })
	running.Go(func() { r.runSyncs(ctx) })
	running.Go(func() { r.runUnknown(ctx) })
	running.Go(func() { r.watchExpiry(ctx) })
	running.Wait()
	r.releaseTasks()
	return nil
}

// Warnings says what does not work now, or will not soon.
func (r *Registrations) Warnings() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.paused != nil:
		all = append(all, fmt.Sprintf("registrations are paused: %v", r.paused))
	case r.syncErr != nil:
		all = append(all, fmt.Sprintf("registrations are not synced: %v", r.syncErr))
	case !r.sees:
		all = append(all, "coderd shows no workspaces: the user of the API token lacks the role Template Admin")
	}
	now := time.Now()
	if !r.hiddenAt.IsZero() && now.Sub(r.hiddenAt) < hiddenFor {
		all = append(all, "coderd does not show workspaces whose agents are connected: the user of the API token lacks the role Template Admin")
	}
	if left := r.expiry.Sub(now); !r.expiry.IsZero() && left < expiryWarning {
		all = append(all, fmt.Sprintf("the API token expires at %s: replace it", r.expiry.UTC().Format(time.RFC3339)))
	}
	return all
}

// runSyncs syncs at once, and each interval from then on. Who asks for a sync gets one of
// this bridge, whoever has the task, and another one if it fails. So does a bridge that
// begins: what agents said while it was away is known by REST alone.
func (r *Registrations) runSyncs(ctx context.Context) {
	retries := backoff.Backoff{Min: 5 * time.Second, Max: r.SyncInterval()}
	failures, asked := 0, true
	var readAt time.Time // when the last sync of this bridge ended
	for ctx.Err() == nil {
		mine, err := r.acquireSync(ctx)
		left := !mine && !asked
		switch {
		case err != nil:
		case left:
			err = r.follow(ctx)
		default:
			err = r.sync(ctx)
			readAt = time.Now()
		}
		if ctx.Err() != nil {
			return
		}
		r.noteSync(err, left)
		switch {
		case err == nil && !mine:
			failures = 0
			asked = r.waitForSync(ctx, followWait, readAt)
		case err == nil:
			failures = 0
			asked = r.waitForSync(ctx, r.SyncInterval(), readAt)
		case errors.Is(err, errDoubt):
			failures = 0
			r.log.Warn("registrations are synced in part: nothing is removed", "error", err)
			asked = r.waitForSync(ctx, r.SyncInterval(), readAt)
		case errors.Is(err, coder.ErrUnauthorized):
			r.waitForToken(ctx, err)
		default:
			failures++
			wait := retries.Delay(failures)
			r.log.Warn("registrations are not synced", "error", err, "wait", wait)
			backoff.Sleep(ctx, wait)
		}
	}
}

// noteSync notes how a sync ended. left: it was left to another bridge.
func (r *Registrations) noteSync(err error, left bool) {
	outcome := outcomeOf(err)
	if err == nil && left {
		outcome = outcomeLeft
	}
	r.metrics.syncs.WithLabelValues(outcome).Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.syncErr, r.sees = err, r.sees || left
	if outcome == outcomeSynced {
		r.syncedAt = time.Now()
	}
	if err == nil || errors.Is(err, errDoubt) {
		r.resumeLocked()
	}
	select {
	case <-r.looked:
	default:
		close(r.looked)
	}
}

// waitForSync waits until the next sync is due, in about so long, or asked for. Who asks
// soon after the last one, which ended at readAt, waits, too.
func (r *Registrations) waitForSync(ctx context.Context, interval time.Duration, readAt time.Time) (asked bool) {
	// Several bridges do not sync at one moment.
	wait := time.Duration(float64(interval) * (0.9 + 0.2*rand.Float64()))
	least := min(minSyncWait-time.Since(readAt), wait)
	if !backoff.Sleep(ctx, least) {
		return false
	}
	timer := time.NewTimer(wait - max(0, least))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.wantSync:
		return true
	case <-ctx.Done():
	}
	return false
}

// waitForToken waits until a refused token may be tried again: after a minute, or when its
// file has changed.
func (r *Registrations) waitForToken(ctx context.Context, err error) {
	refused := r.coder.TokenVersion()
	r.pause(err)
	for until := time.Now().Add(refusedWait); time.Now().Before(until); {
		if !backoff.Sleep(ctx, lookWait) || r.coder.TokenVersion() != refused {
			return
		}
	}
}

func (r *Registrations) pause(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused == nil || r.paused.Error() != err.Error() {
		r.log.Warn("registrations are paused: the API token is tried again each minute, and when its file changes", "error", err)
	}
	r.paused = err
}

func (r *Registrations) resumeLocked() {
	if r.paused != nil {
		r.log.Info("registrations go on")
	}
	r.paused = nil
}

// watchExpiry warns of a token that will expire.
func (r *Registrations) watchExpiry(ctx context.Context) {
	var known, warned [sha256.Size]byte
	for {
		version := r.coder.TokenVersion()
		expiry, err := r.coder.TokenExpiry(ctx)
		r.mu.Lock()
		if err == nil || version != known { // else it is as it was
			r.expiry, known = expiry, version
		}
		r.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.Debug("the API does not say when the API token expires", "error", err)
		case !expiry.IsZero() && time.Until(expiry) < expiryWarning && version != warned:
			warned = version
			r.log.Warn("the API token expires soon: replace it", "at", expiry.UTC().Format(time.RFC3339), "left", time.Until(expiry).Round(time.Minute))
		}
		for until := time.Now().Add(expiryWait); time.Now().Before(until) && r.coder.TokenVersion() == version; {
			if !backoff.Sleep(ctx, refusedWait) {
				return
			}
		}
	}
}
