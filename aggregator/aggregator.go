// Package aggregator keeps the latest values of what agents report, and writes
// them out for Prometheus.
//
// Locks are taken in this order: Aggregator.life, source.mu, descs.mu,
// family.mu, families.mu; states.mu comes alone. Those of package arena come
// last. No lock is held
// while anything is written to a client.
package aggregator

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/metrics"
)

// sweepEvery is the shortest time between two looks for what has expired: it
// bounds both their cost, some 2 ms for 100,000 agents, and how late they are.
const sweepEvery = time.Second

// shardCount spreads the look-up of an agent over several locks. Reports only
// read them: it is the cache line of the lock that cores would fight for.
const shardCount = 64

// Aggregator keeps the series of all agents. Its methods may be called
// concurrently. Only Run and the two Write methods block for long.
type Aggregator struct {
	opts    Options
	keep    identityLabels
	grouped bool
	ttl     int64 // nanoseconds, as all times below
	window  int64
	now     func() time.Time
	started time.Time
	metrics *ownMetrics

	generations arena.Generations
	families    *families
	descs       *descs
	stats       [statsGauges]*desc
	apps        [len(agent.SessionApps)]*desc
	states      *states
	claims      atomic.Pointer[claims]
	// series counts the series and the groups that are held, seriesBytes the
	// bytes of the names and labels that agents made them of.
	series, seriesBytes atomic.Int64
	// typeChanges counts the changes of families' types.
	typeChanges atomic.Uint64
	ghosts      ghosts
	intakes     sync.Pool

	shards [shardCount]shard

	// life serialises what happens in the life of an agent: open, close,
	// relabel, remove, expire.
	life sync.Mutex
	// named has the agents by the labels that tell them apart. Of several with
	// equal labels the first is served.
	named    map[nameKey][]*source
	shadowed atomic.Int64
	// owners are those of the agents by their names. It is guarded by life.
	owners map[string]*owner
}

type shard struct {
	mu      sync.RWMutex
	sources map[agent.ID]*source
}

// nameKey is what makes agents the same to whoever scrapes: the stats gauges
// carry no template_name.
type nameKey struct {
	username, workspace, agent string
}

// New returns an empty aggregator that counts in reg. It fails on options that
// contradict each other; the error names the option.
func New(opts Options, reg prometheus.Registerer) (*Aggregator, error) {
	opts = opts.withDefaults()
	keep, err := opts.validate()
	if err != nil {
		return nil, err
	}
	a := &Aggregator{
		opts:    opts,
		keep:    keep,
		grouped: keep != allLabels,
		ttl:     int64(opts.SeriesTTL),
		window:  int64(max(time.Minute, opts.ReportInterval)),
		now:     time.Now,
		started: time.Now(),
		descs:   newDescs(),
		named:   make(map[nameKey][]*source),
		owners:  make(map[string]*owner),
	}
	a.families = newFamilies(a)
	for i := range a.shards {
		a.shards[i].sources = make(map[agent.ID]*source)
	}
	if a.metrics, err = newOwnMetrics(reg, a); err != nil {
		return nil, err
	}
	for _, f := range metrics.Catalogue() {
		if f.Owner == metrics.OwnerAgents {
			a.families.addDocumented(f.Name)
		}
	}
	a.states = newStates(a.families)
	for i, name := range statsNames {
		a.stats[i] = &desc{family: a.families.addDocumented(name), name: name}
		a.stats[i].refs.Store(1)
	}
	sessions := a.families.addDocumented(sessionsFamily.Name)
	sessions.documented = sessionsFamily
	a.apps = newSessionDescs(sessions)
	a.intakes.New = func() any { return newIntake(a) }
	return a, nil
}

// Run removes series when they expire, until ctx is cancelled. It returns nil.
func (a *Aggregator) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := a.expire(a.now())
		timer.Reset(max(next, sweepEvery))
	}
}

// Open begins a session of an agent, or lets it take over from the one before:
// series that the agent has are handed over. A session that is older than the
// open one is ignored.
func (a *Aggregator) Open(id agent.ID, ident agent.Identity, s agent.Session) {
	a.life.Lock()
	defer a.life.Unlock()
	src := a.source(id)
	if src == nil {
		src = newSource(id, s)
		a.setIdentity(src, sanitise(ident))
		a.attach(src)
		sh := a.shard(id)
		sh.mu.Lock()
		sh.sources[id] = src
		sh.mu.Unlock()
		return
	}
	if !src.reopen(s) {
		return
	}
	a.relabel(src, sanitise(ident))
}

// Close ends the session of that epoch, if it is still the open one. With
// goodbye the agent's series go at once, else they stay for the TTL after its
// last report.
func (a *Aggregator) Close(id agent.ID, epoch int64, goodbye bool) {
	a.life.Lock()
	defer a.life.Unlock()
	src := a.source(id)
	if src == nil {
		return
	}
	src.mu.Lock()
	if src.epoch != epoch {
		src.mu.Unlock()
		return
	}
	src.open = false
	empty := src.empty()
	src.mu.Unlock()
	if goodbye || empty {
		a.remove(src)
	}
}

// Relabel gives an agent's series another identity. An agent that has none is
// ignored.
func (a *Aggregator) Relabel(id agent.ID, ident agent.Identity) {
	a.life.Lock()
	defer a.life.Unlock()
	if src := a.source(id); src != nil {
		a.relabel(src, sanitise(ident))
	}
}

// Remove takes away all series of an agent, and ends its session.
func (a *Aggregator) Remove(id agent.ID) {
	a.life.Lock()
	defer a.life.Unlock()
	if src := a.source(id); src != nil {
		a.remove(src)
	}
}

// WriteText writes all families in the text format 0.0.4, sorted by name. The
// documented ones have HELP and TYPE even without a series.
func (a *Aggregator) WriteText(w io.Writer) error {
	return a.write(w, arena.NewText)
}

// WriteProtobuf writes all families that have series as delimited
// io.prometheus.client.MetricFamily messages, sorted by name.
func (a *Aggregator) WriteProtobuf(w io.Writer) error {
	return a.write(w, arena.NewProto)
}

func (a *Aggregator) write(w io.Writer, begin func(io.Writer, *arena.Generations) *arena.Scrape) error {
	list := a.refreshed()
	a.states.mu.Lock()
	s := begin(w, &a.generations)
	a.states.mu.Unlock()
	var err error
	for _, f := range list {
		lines, header := f.exposition()
		if err = s.Family(lines, header); err != nil {
			break
		}
	}
	return s.Close(err)
}

// refreshed returns the families to serve, with the lines of their groups up to
// date. It comes before the scrape begins: the scrape shows no line that is
// younger.
func (a *Aggregator) refreshed() []*family {
	list := a.unclaimed(a.families.list())
	if a.grouped {
		for _, f := range list {
			f.refresh()
		}
	}
	return list
}

func (a *Aggregator) shard(id agent.ID) *shard {
	return &a.shards[id[15]%shardCount]
}

// source returns the agent's record; nil if there is none.
func (a *Aggregator) source(id agent.ID) *source {
	sh := a.shard(id)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.sources[id]
}

// since returns a time on the aggregator's own clock. Times that carry a
// monotonic reading are not disturbed by changes of the wall clock.
func (a *Aggregator) since(t time.Time) int64 {
	return int64(t.Sub(a.started))
}

// sanitise makes the labels of an identity fit for both formats. They come from
// coderd; what is wrong with them must not take an agent's series away.
func sanitise(ident agent.Identity) agent.Identity {
	for _, s := range []*string{&ident.Username, &ident.WorkspaceName, &ident.AgentName, &ident.TemplateName} {
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	return ident
}
