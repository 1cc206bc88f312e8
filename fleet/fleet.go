// Package fleet is the registry of agents. It knows which agents are registered,
// which of them are connected, and their newest state. Each agent has at most one
// live session. A token identifies an agent. Each instance has a tracker, which
// says up to which sequence its requests are durable.
//
// A registration takes effect once it is durable. States and sessions are kept in
// memory and written behind, so a database outage stops no stream.
//
// Replicas share one fleet through the database. A replica reads what the others
// write there; notifications over the pubsub shorten the delay. An agent has one
// session in the whole fleet, the one with the highest epoch. The replica with the
// session publishes the agent's state. They share the states of agents without a
// session, and of workspaces without such an agent.
package fleet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/departed"
	"github.com/coder/agentstatsd/fleet/internal/ended"
	"github.com/coder/agentstatsd/fleet/internal/plan"
	"github.com/coder/agentstatsd/fleet/internal/unstored"
	"github.com/coder/agentstatsd/fleet/internal/watchers"
	"github.com/coder/agentstatsd/fleet/internal/writequeue"
	"github.com/coder/agentstatsd/internal/backoff"
	"github.com/coder/agentstatsd/internal/outage"
	"github.com/coder/agentstatsd/internal/recurring"
)

// Errors that callers branch on.
var (
	// ErrUnavailable is returned while the registrations are not loaded, or while
	// the agent is being removed. The caller may try again.
	ErrUnavailable = errors.New("the registrations are not available")
	// ErrUnknownToken is returned for a token of no registered agent.
	ErrUnknownToken = agent.ErrUnknownToken
	// ErrUnknownAgent is returned for an id of no registered agent.
	ErrUnknownAgent = errors.New("unknown agent")
	// ErrSessionOver is returned for a request of a session that has ended.
	ErrSessionOver = errors.New("the session is over")
)

// Errors of a refused change. They are returned before anything is changed.
var (
	// ErrTooMany is wrapped when the change would exceed Options.MaxAgents.
	ErrTooMany = capacity.ErrTooMany
	// ErrTooLarge is wrapped when it would exceed Options.MaxBytes.
	ErrTooLarge = capacity.ErrTooLarge
	// ErrTokens is wrapped when agents exchange tokens and some of these are not theirs.
	ErrTokens = plan.ErrTokens
	// ErrNeedsForce is wrapped when a sync would deregister more than half of
	// all agents without force.
	ErrNeedsForce = plan.ErrNeedsForce
)

// Store keeps what must survive the process. Its methods may be called
// concurrently; each is one transaction.
type Store interface {
	RegistrationStore
	StateStore
	SessionStore
	BuildStore
}

// RegistrationStore keeps the registrations. MetadataKeys is read once, at start:
// the keys of agents that declare none count towards Options.MaxMetadataKeys.
type RegistrationStore interface {
	// EachRegistration calls page with all registrations, some at a time: workspaces, then
	// agents, whose workspace has its id only. A Complete page is the first one, also of a
	// read that begins again.
	EachRegistration(ctx context.Context, page func(agent.Registrations) error) (revision int64, err error)
	// Registrations returns the changes since a revision; since 0: all.
	Registrations(ctx context.Context, since int64) (agent.Registrations, error)
	MetadataKeys(ctx context.Context, each func(agent.ID, []string) error) error
	// ApplyChange writes a change that was decided at the revision basis. It
	// returns the new revision. The error wraps agent.ErrOutdated if another
	// replica changed the registrations first.
	ApplyChange(ctx context.Context, basis int64, c agent.Change) (revision int64, err error)
	// Removals returns what was removed within a time until now, each once.
	Removals(ctx context.Context, within time.Duration) ([]agent.Removal, error)
}

// StateStore keeps the newest state of each agent. SaveStates skips unknown
// agents. Its error wraps agent.ErrRejected if the database refuses the data
// itself.
type StateStore interface {
	// EachState calls page with all states, some at a time.
	EachState(ctx context.Context, page func([]agent.State) error) (next int64, err error)
	// States returns the states, or parts of them, that were written since an
	// earlier call returned next; since 0: all.
	States(ctx context.Context, since int64) (states []agent.State, next int64, err error)
	// newer lists the agents of parts that lost: by agent.Order.Follows, or
	// because the agent has another incarnation.
	SaveStates(ctx context.Context, states []agent.State) (newer []agent.StoredEpoch, err error)
}

// SessionStore keeps the newest session of each agent. SaveSessions skips unknown
// agents and records older than the stored one.
type SessionStore interface {
	EachSession(ctx context.Context, page func([]agent.SessionRecord) error) (next int64, err error)
	// Sessions pages as StateStore.States does.
	Sessions(ctx context.Context, since int64) (records []agent.SessionRecord, next int64, err error)
	// before has the stored record of each agent that was not skipped, as it was after
	// the call began; epoch 0: there was none. Agents of another incarnation are
	// skipped, too.
	SaveSessions(ctx context.Context, records []agent.SessionRecord) (before []agent.SessionRecord, err error)
}

// BuildStore remembers which builds were observed. ObserveBuilds returns the
// builds that it did not know. The caller observes those.
type BuildStore interface {
	ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error)
}

// Series are the live series of agents. The methods touch memory only, and call
// nothing of this package.
type Series interface {
	// Open starts a session of an agent, or takes over from an older one.
	Open(id agent.ID, ident agent.Identity, s agent.Session)
	// Close ends the session with this epoch, and no other. With goodbye the
	// series are removed at once.
	Close(id agent.ID, epoch int64, goodbye bool)
	RegisteredSeries
}

// RegisteredSeries follow the registrations and states of agents.
type RegisteredSeries interface {
	Relabel(id agent.ID, ident agent.Identity)
	Remove(id agent.ID)
	// SetStates replaces the series that the fleet computes for agents and workspaces.
	// It does not retain the slices. The error is of a family that is not served; the
	// others are.
	SetStates(states []agent.KeySeries) error
}

// Pending is the metadata that waits to be written. The methods touch memory only.
type Pending interface {
	// Remove drops what waits of one agent.
	Remove(id agent.ID)
	// Followed says that what other replicas wrote before then is known here, and that the
	// sessions that ended by it have ended.
	Followed(at time.Time)
}

// Fleet is the registry of agents of one replica. All methods may be called
// concurrently.
//
// The lock order is: changeSem, entry.requestMu, mu, entry.mu, workspace.up.mu,
// then the leaves (those of queue, watchers and ended, acks.Tracker.mu, and the locks
// of Series and Pending).
type Fleet struct {
	store         Store
	series        Series
	pending       Pending
	opts          atomic.Pointer[Options] // Reconfigure replaces them
	metrics       *metrics
	log           *slog.Logger
	refusedStates recurring.Events // of the database
	writes, loads *outage.Log      // of the database

	// changeSem is a semaphore of one. Whoever changes the registrations holds it,
	// so that the database and memory change in one order. No stream waits for it.
	changeSem chan struct{}
	// revision is that of the registrations in the registry. Guarded by changeSem.
	revision int64
	// unstored is the newest change of the registrations, if it could not be stored.
	unstored unstored.Fault
	// exceededLimit is the limit that the registrations in the database exceed;
	// empty: none. Guarded by changeSem.
	exceededLimit string
	// departed are the agents that were removed last.
	departed departed.Agents
	// ended are the last sessions of agents here that have ended.
	ended *ended.Sessions
	// sessionsRead and statesRead are the positions up to which sessions and states
	// were read from the database. Load sets them. After that they belong to
	// follow.
	sessionsRead, statesRead atomic.Int64
	// cursorsAtRead are those positions as of the last read of the registrations.
	// Guarded by changeSem.
	cursorsAtRead cursors
	// rereadStates makes the next follow read all states again.
	rereadStates atomic.Bool
	// rereadFrom makes the next follow read sessions and states again from there;
	// nil: no. It is set under changeSem.
	rereadFrom atomic.Pointer[cursors]

	// peers are the other replicas; nil: the replica is alone.
	peers *peers

	mu sync.RWMutex
	// Guarded by mu.
	loaded   bool
	registry registry

	queue    *writequeue.Queue[*entry, finishedBuild]
	watchers watchers.Watchers
	retries  backoff.Backoff
}

// Bounds of the waits after failed writes and loads.
const (
	minBackoff = 500 * time.Millisecond
	maxBackoff = 15 * time.Second
)

// New returns a Fleet without agents. Load or Run reads them.
func New(store Store, series Series, pending Pending, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Fleet, error) {
	f := &Fleet{
		store: store, series: series, pending: pending, log: log,
		writes:    outage.New(log, "states of agents are not written, trying again", "states of agents are written again"),
		loads:     outage.New(log, "the registrations are not loaded, trying again", "the registrations are loaded"),
		changeSem: make(chan struct{}, 1), registry: newRegistry(),
		queue: writequeue.New[*entry, finishedBuild](),
	}
	err := f.Reconfigure(opts)
	if err != nil {
		return nil, err
	}
	f.retries = backoff.Backoff{Min: minBackoff, Max: maxBackoff, Random: f.opts.Load().Random}
	if f.ended, err = ended.New(); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	if f.departed, err = departed.New(); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	if f.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	return f, f.registerLimits(reg)
}

// Options returns the options in force, with their defaults.
func (f *Fleet) Options() Options { return *f.opts.Load() }

// Reconfigure changes the options but MaxLookups and Random, which only New takes. What is
// above a lowered limit stays. After an error nothing has changed.
func (f *Fleet) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("fleet options: %w", err)
	}
	f.opts.Store(&opts)
	return nil
}

// Run loads the registrations unless Load did. It writes states and sessions behind,
// ends aged sessions, and follows the other replicas. It blocks until ctx is
// cancelled. Then it writes the rest within Options.WriteTimeout and returns nil.
func (f *Fleet) Run(ctx context.Context) error {
	if f.peers != nil {
		// Subscribed before anything is read, so that no change is missed between.
		cancel, err := f.peers.pubsub.Subscribe(notificationChannel, f.handleNotification)
		if err != nil {
			return fmt.Errorf("subscribe to notifications of the fleet: %w", err)
		}
		defer cancel()
	}
	if !f.loadWithRetries(ctx) {
		return nil
	}
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { f.runScans(ctx) })
	if f.peers != nil {
		background.Go(func() { f.runFollower(ctx) })
		background.Go(func() { f.runPublisher(ctx) })
		background.Go(func() { f.peers.shares.Run(ctx) })
	}

	timer := time.NewTimer(0) // for changes before Run
	defer timer.Stop()
	failures := 0
	armed := true
	for {
		select {
		case <-ctx.Done():
			f.writeFinally(ctx)
			background.Wait()
			if f.peers != nil {
				f.peers.publish(ctx) // the last writes
			}
			return nil
		case <-f.queue.Wake():
			if !armed {
				timer.Reset(f.opts.Load().WriteInterval)
				armed = true
			}
		case <-timer.C:
			armed = false
			err := f.write(ctx)
			if err == nil {
				f.writes.Works(ctx)
				failures = 0
				continue
			}
			if ctx.Err() != nil {
				continue
			}
			failures++
			wait := f.retries.Delay(failures)
			f.writes.Failed(ctx, err, "retry_in", wait)
			timer.Reset(wait)
			armed = true
		}
	}
}

// loadWithRetries returns false if ctx was cancelled first.
func (f *Fleet) loadWithRetries(ctx context.Context) bool {
	for failures := 1; ; failures++ {
		err := f.Load(ctx)
		if err == nil {
			f.loads.Works(ctx)
			return true
		}
		wait := f.retries.Delay(failures)
		if ctx.Err() == nil {
			f.loads.Failed(ctx, err, "retry_in", wait)
		}
		if !backoff.Sleep(ctx, wait) {
			return false
		}
	}
}

// Ready returns nil when the registrations are loaded, else ErrUnavailable.
func (f *Fleet) Ready() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.loaded {
		return ErrUnavailable
	}
	return nil
}

// Healthy returns nil, or why the fleet works only in part. It may not be Ready, fail
// to write registrations, states or sessions, or fail to follow the other replicas.
func (f *Fleet) Healthy() error {
	return cmp.Or(f.Ready(), f.queue.LastError(), f.unstored.LastError(time.Now()), f.peers.lastError())
}

// Authenticate returns the agent of the token. Agents are found by the token's
// SHA-256. So the time of a lookup depends on a hash that the sender cannot choose
// byte by byte. An unknown token may have been registered on another replica:
// Authenticate then blocks until the database was read. Errors: ErrUnknownToken;
// ErrUnavailable while the registrations are not loaded or cannot be read.
func (f *Fleet) Authenticate(ctx context.Context, token string) (agent.ID, error) {
	hash := sha256.Sum256([]byte(token))
	e, err := f.lookUp(ctx, ErrUnknownToken, func(r *registry) *entry { return r.tokens.Get(hash) })
	if err != nil {
		return agent.ID{}, err
	}
	return e.id, nil
}

// lookUp returns the agent that find returns. If there is none, it reads the
// registrations of other replicas and tries again. Errors: unknown, or
// ErrUnavailable while the registrations cannot be read.
func (f *Fleet) lookUp(ctx context.Context, unknown error, find func(*registry) *entry) (*entry, error) {
	look := func() (*entry, error) {
		f.mu.RLock()
		defer f.mu.RUnlock()
		if !f.loaded {
			return nil, ErrUnavailable
		}
		return find(&f.registry), nil
	}
	e, err := look()
	if e != nil || err != nil {
		return e, err
	}
	if f.peers == nil {
		return nil, unknown
	}
	if err := f.catchUp(ctx); err != nil {
		return nil, ErrUnavailable
	}
	if e, err = look(); e == nil && err == nil {
		err = unknown
	}
	return e, err
}

// entry returns the agent, if this replica knows it. Errors: ErrUnknownAgent;
// ErrUnavailable while the registrations are not loaded.
func (f *Fleet) entry(id agent.ID) (*entry, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.loaded {
		return nil, ErrUnavailable
	}
	if e := f.registry.agents.Get(id); e != nil {
		return e, nil
	}
	return nil, ErrUnknownAgent
}
