// Package fleet knows which agents exist, which of them is connected, and what
// each last said of its state. It gives every agent at most one live session,
// turns a token into an agent, and follows the requests of each instance until
// they are durable.
//
// Registrations are durable before they take effect. What agents say is kept in
// memory and written behind, so that a database that is down stops no stream.
//
// Several replicas of the service keep one fleet in one database. Each follows
// what the others write there, and hears of sessions by news before that. An
// agent has one session in the whole fleet, the one with the highest epoch. The
// replica that has it serves the agent's state; agents that have none are the
// leader's to serve.
package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
)

// Errors that callers branch on.
var (
	// ErrUnavailable is returned while the registrations are not loaded or the
	// agent is being removed: nothing can be said of a token or an agent now.
	ErrUnavailable = errors.New("the registrations are not available")
	// ErrUnknownToken is returned for a token of no registered agent.
	ErrUnknownToken = errors.New("unknown token")
	// ErrUnknownAgent is returned for an id of no registered agent.
	ErrUnknownAgent = errors.New("unknown agent")
	// ErrSessionOver is returned for a request of a session that has ended.
	ErrSessionOver = errors.New("the session is over")
)

// Store keeps what must survive the process. Its methods may be called
// concurrently; each is one transaction.
type Store interface {
	RegistrationStore
	StateStore
	SessionStore
	BuildStore
}

// RegistrationStore keeps the registrations. MetadataKeys are read at start to
// count the keys of agents that declare none.
type RegistrationStore interface {
	// Registrations returns what changed since a revision; since 0: all.
	Registrations(ctx context.Context, since int64) (agent.Roster, error)
	MetadataKeys(ctx context.Context) (map[agent.ID][]string, error)
	// ApplyChange writes a change that was decided on at the revision basis, and
	// returns the revision that it makes. errors.Is(err, agent.ErrOutdated) tells
	// that another replica was faster.
	ApplyChange(ctx context.Context, basis int64, c agent.Change) (revision int64, err error)
}

// StateStore keeps the newest state of each agent. SaveStates skips agents that
// it does not know; errors.Is(err, agent.ErrRejected) tells that it refuses the
// data itself.
type StateStore interface {
	// States returns the states, or parts of them, that were written since an
	// earlier call returned next; since 0: all.
	States(ctx context.Context, since int64) (states []agent.State, next int64, err error)
	// newer are the agents of parts that lost, by agent.Order.Follows, or against
	// another incarnation.
	SaveStates(ctx context.Context, states []agent.State) (newer []agent.StoredEpoch, err error)
}

// SessionStore keeps the newest session of each agent. It skips agents that it
// does not know, and records that are older than what it has.
type SessionStore interface {
	// Sessions is to sessions what States is to states.
	Sessions(ctx context.Context, since int64) (records []agent.SessionRecord, next int64, err error)
	SaveSessions(ctx context.Context, records []agent.SessionRecord) error
}

// BuildStore remembers whose duration was observed. ObserveBuilds returns those
// of the builds that it did not know: they are observed now, by the caller.
type BuildStore interface {
	ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error)
}

// Series are the live series of agents. The methods touch memory only and call
// nothing of this package.
type Series interface {
	// Open begins a session of an agent, or takes over from an older one.
	Open(id agent.ID, ident agent.Identity, s agent.Session)
	// Close ends the session with this epoch; another epoch's is left alone.
	// With goodbye the series go at once.
	Close(id agent.ID, epoch int64, goodbye bool)
	SeriesRoster
}

// SeriesRoster follows changes of the registrations and of states.
type SeriesRoster interface {
	Relabel(id agent.ID, ident agent.Identity)
	Remove(id agent.ID)
	// SetState replaces the series that the fleet computes of an agent or a
	// workspace. It keeps nothing of the slice.
	SetState(key agent.SeriesKey, series []agent.Series)
}

// Pending is the metadata that waits to be written. Remove forgets that of one
// agent; it touches memory only.
type Pending interface {
	Remove(id agent.ID)
}

// Fleet holds the agents. All methods may be called concurrently.
//
// Locks are taken in this order: changing, entry.turn, mu, entry.mu, then the
// workspace.up.mu, then the leaves (writes.mu, news.mu, tracker.mu, and those of
// Series and Pending).
type Fleet struct {
	store   Store
	series  Series
	pending Pending
	opts    Options
	metrics *metrics
	log     *slog.Logger

	// changing is held, with one element, while the registrations change: the
	// database and memory take the changes in one order. No stream waits for
	// it.
	changing chan struct{}
	// revision of the registrations in the database that the roster is as of.
	// Guarded by changing.
	revision int64
	// beyond is the limit that what was read from the database is above; empty:
	// none. Guarded by changing.
	beyond string
	// How far other replicas' sessions and states were read. Load sets them, then
	// only the following uses them.
	sessionsRead, statesRead atomic.Int64
	// seenAt is how far they were when the registrations were last read. Guarded by
	// changing.
	seenAt cursors
	// statesAgain has all states read again.
	statesAgain atomic.Bool
	// again is from where they are to be read again; nil: they are not. It is set
	// with changing held.
	again atomic.Pointer[cursors]

	// peers are the other replicas; nil: there are none.
	peers *peers

	mu sync.RWMutex
	// Guarded by mu.
	loaded bool
	roster roster

	writes writes
	news   news
}

// entry is one registered agent.
type entry struct {
	id agent.ID
	// reg is replaced, never changed in place.
	reg atomic.Pointer[agent.Registration]
	// revision of the roster at which coderd last named the agent; guarded by
	// Fleet.mu.
	revision uint64

	// turn is held while a request of the agent is taken in, and while its
	// session begins or the agent is removed: a request is taken in wholly
	// before or not at all.
	turn sync.Mutex

	mu sync.Mutex
	// Guarded by mu.
	leaving, gone bool
	session       *Session
	newest        agent.SessionRecord // of all replicas; zero: none ever
	stored        int64               // the highest epoch that is known of what it said and is stored
	recorded      int64               // likewise, of its sessions and what was said in them
	lastSeen      time.Time
	instances     []*tracker // those without a session first, oldest first
	keys          []string   // sorted; of an agent that declares none
	budget        budget
	state         agent.State
	dirty         bool // state is to be written
	holds         []hold
	workspace     *workspace
	counted       place        // where it counts as connected
	status        agent.Status // as it was last presented
	shown         bool         // its state is served here
	lingering     bool         // its series are kept for its return
}

// New returns a Fleet that knows nobody until Load.
func New(store Store, series Series, pending Pending, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Fleet, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("fleet options: %w", err)
	}
	return &Fleet{
		store:    store,
		series:   series,
		pending:  pending,
		opts:     opts,
		metrics:  newMetrics(reg),
		log:      log,
		changing: make(chan struct{}, 1),
		roster:   newRoster(),
		writes:   newWrites(),
	}, nil
}

// SessionAge returns Options.SessionAge.
func (f *Fleet) SessionAge() time.Duration { return f.opts.SessionAge }

// MaxAgents returns Options.MaxAgents with its default.
func (f *Fleet) MaxAgents() int { return f.opts.MaxAgents }

// MaxMetadataKeys returns Options.MaxMetadataKeys with its default.
func (f *Fleet) MaxMetadataKeys() int { return f.opts.MaxMetadataKeys }

// Ready returns nil when the registrations are loaded, else ErrUnavailable.
func (f *Fleet) Ready() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.loaded {
		return ErrUnavailable
	}
	return nil
}

// Healthy returns nil, or why the fleet does not do all of its work now: it is
// not Ready, states and sessions cannot be written, or it cannot follow the
// other replicas.
func (f *Fleet) Healthy() error {
	if err := f.Ready(); err != nil {
		return err
	}
	if err := f.writes.failing(); err != nil {
		return err
	}
	return f.peers.failing()
}

// Authenticate returns the agent that the token belongs to. The token's SHA-256
// is looked up, never the token compared: what the time of a lookup can tell is
// about the hash, which its sender cannot choose byte by byte. A token that is
// not known here may have been registered on another replica: then it blocks
// until that was looked for. Errors: ErrUnknownToken; ErrUnavailable while the
// registrations are not loaded, or those of other replicas cannot be read.
func (f *Fleet) Authenticate(ctx context.Context, token string) (agent.ID, error) {
	hash := sha256.Sum256([]byte(token))
	e, err := f.lookUp(ctx, ErrUnknownToken, func(r *roster) *entry { return r.tokens[hash] })
	if err != nil {
		return agent.ID{}, err
	}
	return e.id, nil
}

// lookUp returns the agent that find finds, here or, if need be, once what other
// replicas registered is read; unknown if there is none, ErrUnavailable while
// that cannot be told.
func (f *Fleet) lookUp(ctx context.Context, unknown error, find func(*roster) *entry) (*entry, error) {
	look := func() (*entry, error) {
		f.mu.RLock()
		defer f.mu.RUnlock()
		if !f.loaded {
			return nil, ErrUnavailable
		}
		return find(&f.roster), nil
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

// entry returns the agent, if it is known here; ErrUnknownAgent, or
// ErrUnavailable while the registrations are not loaded.
func (f *Fleet) entry(id agent.ID) (*entry, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.loaded {
		return nil, ErrUnavailable
	}
	if e := f.roster.agents[id]; e != nil {
		return e, nil
	}
	return nil, ErrUnknownAgent
}

// availableLocked tells whether the agent can have sessions now.
func (e *entry) availableLocked() error {
	switch {
	case e.gone:
		return ErrUnknownAgent
	case e.leaving:
		return ErrUnavailable
	}
	return nil
}

// Info is an agent as the fleet sees it.
type Info struct {
	// Registration is shared: it is not to be changed.
	Registration *agent.Registration
	// Connected is true of an agent with a stream, on any replica.
	Connected bool
	// Status is that of the series: it moves by time within a second.
	Status agent.Status
	// LastSeen is zero if this replica has not heard of the agent since its start.
	LastSeen time.Time
	// State is the newest, durable or not. Its map is a copy.
	State agent.State
}

// List returns at most limit agents with ids above after, in the order of their
// ids; the zero ID is before all.
func (f *Fleet) List(after agent.ID, limit int) []Info {
	f.mu.RLock()
	order := f.roster.order
	f.mu.RUnlock()
	from, found := slices.BinarySearchFunc(order, after, compareEntry)
	if found {
		from++
	}
	page := order[from:min(len(order), from+limit)]
	infos := make([]Info, len(page))
	for i, e := range page {
		infos[i] = f.info(e)
	}
	return infos
}

// Agent returns one agent; ErrUnknownAgent, or ErrUnavailable while the
// registrations are not loaded.
func (f *Fleet) Agent(id agent.ID) (Info, error) {
	e, err := f.entry(id)
	if err != nil {
		return Info{}, err
	}
	return f.info(e), nil
}

func (f *Fleet) info(e *entry) Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Info{
		Registration: e.reg.Load(),
		Connected:    e.session != nil || f.elsewhereLocked(e),
		Status:       e.status,
		LastSeen:     e.lastSeen,
		State:        cloneState(e.state),
	}
}

func compareEntry(e *entry, id agent.ID) int { return bytes.Compare(e.id[:], id[:]) }
