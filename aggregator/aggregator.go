// Package aggregator keeps the latest values of what agents report, and writes them
// for Prometheus.
//
// Locks are taken in this order: usage.mu, Aggregator.lifecycleMu, agentSeries.mu, descs.mu,
// Aggregator.reserving, family.mu, families.mu. No other lock is taken together with states.mu, but those
// of package arena, which come last. No lock is held while anything is written to a
// client.
package aggregator

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/aggregator/internal/arena"
	"github.com/coder/agentstatsd/aggregator/internal/states"
	"github.com/coder/agentstatsd/metrics"
)

// sweepEvery is the shortest time between two searches for expired series. It
// bounds their cost, some 2 ms for 100,000 agents, and how late they are.
const sweepEvery = time.Second

// shardCount spreads the look-up of an agent over several locks. Reports only
// read-lock them, but all cores write to the cache line of a lock.
const shardCount = 64

// Aggregator keeps the series of all agents. Its methods may be called
// concurrently. Only Run and the two Write methods block for long.
type Aggregator struct {
	opts    atomic.Pointer[Options] // Reconfigure replaces them
	keep    identityLabels
	grouped bool
	now     func() time.Time
	started time.Time
	metrics *ownMetrics

	generations arena.Generations
	families    *families
	descs       *descs
	stats       [statsGauges]*desc
	apps        [len(agent.SessionApps)]*desc
	states      *states.States
	// reserving is held by the only ReserveFamilies that goes on.
	reserving sync.Mutex
	// series is the number of series and groups. seriesBytes are the bytes of the
	// names and labels that agents gave them.
	series, seriesBytes atomic.Int64
	// typeChanges counts the changes of families' types.
	typeChanges atomic.Uint64
	orphans     orphanQueue
	ingesters   sync.Pool
	usage       usage
	// counting is full while series are counted, by one at a time.
	counting chan struct{}
	history  cardinality.History

	shards [shardCount]shard

	// lifecycleMu serialises the events of agents' lives: open, close, relabel,
	// remove, expire.
	lifecycleMu sync.Mutex
	// named has the agents by the labels that identify them. The first of several
	// with equal labels is served. The others are hidden.
	named        map[nameKey][]*agentSeries
	hiddenAgents atomic.Int64
	// owners are those of the agents, by name. lifecycleMu guards the map.
	owners map[string]*owner
}

type shard struct {
	mu     sync.RWMutex
	agents map[agent.ID]*agentSeries
}

// nameKey are the labels that identify agents. The stats gauges have no
// template_name.
type nameKey struct {
	username, workspace, agent string
}

// New returns an empty aggregator that counts in reg. It fails on options that
// contradict each other. The error names the option.
func New(opts Options, reg prometheus.Registerer) (*Aggregator, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("aggregator options: %w", err)
	}
	keep, err := opts.keptLabels()
	if err != nil {
		return nil, fmt.Errorf("aggregator options: %w", err)
	}
	a := &Aggregator{
		keep:    keep,
		grouped: keep != allLabels,
		now:     time.Now,
		started: time.Now(),
		descs:   newDescs(),
		named:   make(map[nameKey][]*agentSeries),
		owners:  make(map[string]*owner),
		// A census of a million values of labels takes 0.6 s, and allocates 170 MB.
		counting: make(chan struct{}, 1),
	}
	a.opts.Store(&opts)
	a.families = newFamilies(a)
	for i := range a.shards {
		a.shards[i].agents = make(map[agent.ID]*agentSeries)
	}
	if a.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("aggregator: %w", err)
	}
	if err := a.registerGauges(reg); err != nil {
		return nil, fmt.Errorf("aggregator: %w", err)
	}
	for _, f := range metrics.Catalogue() {
		if f.Owner == metrics.OwnerAgents {
			a.families.addDocumented(f.Name)
		}
	}
	a.states = newStates(a.families, opts.WorkspaceInfo)
	for i, name := range statsNames {
		a.stats[i] = &desc{family: a.families.addDocumented(name), name: name}
		a.stats[i].refs.Store(1)
	}
	sessions := a.families.addDocumented(sessionsFamily.Name)
	sessions.documented = sessionsFamily
	a.apps = newSessionDescs(sessions)
	a.ingesters.New = func() any { return newIngester(a) }
	return a, nil
}

// Options returns the options in force, with their defaults.
func (a *Aggregator) Options() Options { return *a.opts.Load() }

// Reconfigure changes the options, but for GroupBy and Expired. What is above a lowered limit stays.
// A lowered TTL counts for an agent from its next report on. After an error nothing has
// changed.
func (a *Aggregator) Reconfigure(opts Options) error {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return fmt.Errorf("aggregator options: %w", err)
	}
	before := a.opts.Load()
	opts.GroupBy, opts.Expired = before.GroupBy, before.Expired
	a.opts.Store(&opts)
	return nil
}

// ttl returns Options.SeriesTTL in nanoseconds, as all times here.
func (a *Aggregator) ttl() int64 { return int64(a.opts.Load().SeriesTTL) }

// window returns the time over which the byte gauges sum.
func (a *Aggregator) window() int64 { return int64(max(time.Minute, a.opts.Load().ReportInterval)) }

// Run removes series when they expire, and once a minute counts series for their growth, until ctx
// is cancelled. It returns nil.
func (a *Aggregator) Run(ctx context.Context) error {
	var sampling sync.WaitGroup
	defer sampling.Wait()
	sampling.Go(func() { a.sampleCardinality(ctx) })
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

// Open opens a session of an agent. Series that the agent has go over to it from
// the session before. A session that is older than the open one is ignored.
func (a *Aggregator) Open(id agent.ID, ident agent.Identity, s agent.Session) {
	a.lifecycleMu.Lock()
	defer a.lifecycleMu.Unlock()
	as := a.agent(id)
	if as == nil {
		as = newAgentSeries(id, s)
		a.setIdentity(as, sanitise(ident))
		a.addName(as)
		sh := a.shard(id)
		sh.mu.Lock()
		sh.agents[id] = as
		sh.mu.Unlock()
		return
	}
	if !as.openSession(s) {
		return
	}
	a.relabel(as, sanitise(ident))
}

// Close ends the session of that epoch, if it is still the open one. With goodbye
// the agent's series are removed at once. Without it they expire one TTL after its
// last report.
func (a *Aggregator) Close(id agent.ID, epoch int64, goodbye bool) {
	a.lifecycleMu.Lock()
	defer a.lifecycleMu.Unlock()
	as := a.agent(id)
	if as == nil {
		return
	}
	as.mu.Lock()
	if as.epoch != epoch {
		as.mu.Unlock()
		return
	}
	as.open = false
	empty := as.empty()
	as.mu.Unlock()
	if goodbye || empty {
		a.remove(as)
	}
}

// Relabel gives an agent's series another identity. An unknown agent is ignored.
func (a *Aggregator) Relabel(id agent.ID, ident agent.Identity) {
	a.lifecycleMu.Lock()
	defer a.lifecycleMu.Unlock()
	if as := a.agent(id); as != nil {
		a.relabel(as, sanitise(ident))
	}
}

// Remove removes all series of an agent, and ends its session.
func (a *Aggregator) Remove(id agent.ID) {
	a.lifecycleMu.Lock()
	defer a.lifecycleMu.Unlock()
	if as := a.agent(id); as != nil {
		a.remove(as)
	}
}

// WriteText writes all families in the text format 0.0.4, sorted by name.
// Documented families have HELP and TYPE even without a series.
func (a *Aggregator) WriteText(w io.Writer) error {
	return beside{agg: a, pushed: nothingPushed{}}.WriteText(w)
}

// WriteProtobuf writes all families that have series as delimited
// io.prometheus.client.MetricFamily messages, sorted by name.
func (a *Aggregator) WriteProtobuf(w io.Writer) error {
	return beside{agg: a, pushed: nothingPushed{}}.WriteProtobuf(w)
}

// Shard implements metrics.Exposer.
func (a *Aggregator) Shard(s metrics.Shard) metrics.Exposer {
	return beside{a, nothingPushed{}, s}
}

// beginScrape is arena.NewText or arena.NewProto.
type beginScrape func(io.Writer, *arena.Generations, metrics.Shard) *arena.Scrape

// write writes a shard of families of the list, and those that are pushed.
func (a *Aggregator) write(w io.Writer, begin beginScrape, shard metrics.Shard, list []*family, passed map[string]bool, pushed []*metrics.Rendered) error {
	var s *arena.Scrape
	a.states.Between(func() { s = begin(w, &a.generations, shard) })
	return s.Close(writeFamilies(s, shard.Index == 0, list, passed, pushed))
}

// familiesToServe returns the families to serve, with the newest lines of their
// groups. It is called before the scrape begins, which shows only older lines.
func (a *Aggregator) familiesToServe() []*family {
	list := a.families.list()
	a.refresh(list)
	return list
}

// refresh renders the newest lines of groups.
func (a *Aggregator) refresh(list []*family) {
	if !a.grouped {
		return
	}
	for _, f := range list {
		f.refresh()
	}
}

func (a *Aggregator) shard(id agent.ID) *shard {
	return &a.shards[id[15]%shardCount]
}

// agent returns the agent's series; nil if it is unknown.
func (a *Aggregator) agent(id agent.ID) *agentSeries {
	sh := a.shard(id)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.agents[id]
}

// since returns t as nanoseconds since the aggregator started. Changes of the wall
// clock do not affect times with a monotonic reading.
func (a *Aggregator) since(t time.Time) int64 {
	return int64(t.Sub(a.started))
}

// sanitise makes the labels of an identity valid in both formats. They come from
// coderd. An invalid one must not remove an agent's series.
func sanitise(ident agent.Identity) agent.Identity {
	for _, s := range []*string{&ident.Username, &ident.WorkspaceName, &ident.AgentName, &ident.TemplateName} {
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	return ident
}
