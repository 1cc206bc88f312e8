// Package stock has a stock coderd for tests: codertest's REST API and agents' connections
// over one state, and the metrics that a stock coderd makes of it.
package stock

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/simulate"
)

// connectionTimeout is what templates have by default.
const connectionTimeout = 2 * time.Minute

// Options are the knobs of a Coderd. A zero field takes its default.
type Options struct {
	// Workspaces that are started; default 25. Every fifth has two agents. Unreachable
	// are further ones, whose agents never connect.
	Workspaces, Unreachable int
	// MetadataKeys that the template declares; default: 4.
	MetadataKeys int
	// ReportInterval that agents are told; default 30 s.
	ReportInterval time.Duration
	// Round is the time between two rounds in which gauges are made anew; default: 1 min,
	// as of a stock coderd. What they are made of is of the last minute in any case.
	Round time.Duration
	// Seed of what users do.
	Seed uint64
}

// Coderd is a stock coderd. It is safe for concurrent use.
type Coderd struct {
	opts    Options
	rest    *codertest.REST
	rpc     *codertest.RPC
	users   *simulate.CoderdRegistry
	metrics *metrics

	mu sync.Mutex
	// Guarded by mu.

	workspaces []*workspace
	agents     map[uuid.UUID]*agent // of latest builds
}

// workspace is one with its latest build.
type workspace struct {
	number, build int
	id            uuid.UUID
	name, owner   string
	createdAt     time.Time // of the build
	started       bool
	reachable     bool
	agents        []*agent
}

// agent is one of a latest build. The mu of its Coderd guards all that changes.
type agent struct {
	id        uuid.UUID
	name      string
	token     string
	workspace *workspace
	apps      []codertest.App

	connections        int
	everConnected      bool
	lifecycle          string
	startedAt, readyAt time.Time
	// observed: the connection has counted for the duration of the build.
	observed bool
	node     *codertest.Node // nil: it is not known
	reports  []Report        // of the last minutes
}

// New returns a Coderd whose workspaces were started just now.
func New(o Options) (*Coderd, error) {
	if o.Workspaces == 0 {
		o.Workspaces = 25
	}
	if o.MetadataKeys == 0 {
		o.MetadataKeys = 4
	}
	if o.ReportInterval == 0 {
		o.ReportInterval = 30 * time.Second
	}
	if o.Round == 0 {
		o.Round = time.Minute
	}
	c := &Coderd{
		opts: o, rest: codertest.NewREST(), users: simulate.NewCoderdRegistry(o.Seed),
		agents: make(map[uuid.UUID]*agent),
	}
	c.rpc = &codertest.RPC{Forget: true, Accept: c.accept, Connected: c.connected, DERPMaps: [][]byte{codertest.DERPMap(regions)}}
	var err error
	if c.metrics, err = newMetrics(c); err != nil {
		return nil, err
	}
	for n := range o.Workspaces + o.Unreachable {
		w := &workspace{
			number: n, id: c.idOf("workspace", n, 0), name: fmt.Sprintf("ws-%d", n),
			owner: owners[n%len(owners)], reachable: n < o.Workspaces,
		}
		c.workspaces = append(c.workspaces, w)
		c.start(w)
	}
	c.users.Tick(time.Now())
	c.metrics.round(time.Now())
	return c, nil
}

var (
	owners     = []string{"alice", "bruno", "chen", "dana", "emeka", "fatima", "goran"}
	agentNames = []string{"main", "db"}
	// regions of the DERP map. The network of a simulated agent has a third one.
	regions = map[int64]string{1: "Frankfurt", 2: "Virginia"}
	// apps of an agent. The last one has no display name.
	apps = []codertest.App{{Slug: "code-server", DisplayName: "VS Code"}, {Slug: "jupyter", DisplayName: "Jupyter"}, {Slug: "terminal"}}
)

var namespace = uuid.MustParse("0d1f4f0e-6a1c-4a4e-9d35-2f0f4a3d7c11")

// idOf returns an id that is the same in each run of a seed.
func (c *Coderd) idOf(kind string, n, m int) uuid.UUID {
	return uuid.NewHash(sha256.New(), namespace, fmt.Appendf(nil, "%d/%s/%d/%d", c.opts.Seed, kind, n, m), 5)
}

// start gives a workspace a new build, with new agents.
func (c *Coderd) start(w *workspace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endBuildLocked(w)
	w.started, w.createdAt = true, time.Now()
	w.agents = nil
	for i := range agentsOf(w.number) {
		a := &agent{
			id: c.idOf("agent", w.number*len(agentNames)+i, w.build), name: agentNames[i], workspace: w, lifecycle: "created",
			token: c.idOf("token", w.number*len(agentNames)+i, w.build).String(),
		}
		for j, app := range apps[:1+w.number%len(apps)] {
			app.ID, app.Health = c.idOf("app", (w.number*len(agentNames)+i)*len(apps)+j, w.build), "initializing"
			a.apps = append(a.apps, app)
		}
		w.agents = append(w.agents, a)
		c.agents[a.id] = a
		c.rpc.Add(codertest.Agent{ID: a.id, Token: a.token})
	}
	c.showLocked(w)
}

func agentsOf(workspace int) int {
	if workspace%5 == 4 {
		return 2
	}
	return 1
}

// endBuildLocked has the agents of a build refused. Connections that are open stay.
func (c *Coderd) endBuildLocked(w *workspace) {
	for _, a := range w.agents {
		c.rpc.Remove(a.token)
		delete(c.agents, a.id)
	}
	w.build++
}

// Rebuild starts a workspace again: it has new agents, with new tokens.
func (c *Coderd) Rebuild(n int) { c.start(c.workspaces[n]) }

// Stop stops a workspace: it has no agents.
func (c *Coderd) Stop(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.workspaces[n]
	c.endBuildLocked(w)
	w.started, w.createdAt, w.agents = false, time.Now(), nil
	c.showLocked(w)
}

// SetAPIToken has the API take a token, as that of a Template Admin.
func (c *Coderd) SetAPIToken(token string) { c.rest.SetToken(token, codertest.Token{}) }

// API serves users and agents.
func (c *Coderd) API() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(codertest.AgentPath, c.rpc)
	mux.Handle("/", c.rest)
	return mux
}

// Metrics serves what Prometheus scrapes.
func (c *Coderd) Metrics() http.Handler { return c.metrics.handler }

// Tokens returns those of the agents that connect.
func (c *Coderd) Tokens() (tokens []string) {
	for _, a := range c.Agents() {
		if a.Reachable {
			tokens = append(tokens, a.Token)
		}
	}
	return tokens
}

// Run makes rounds until ctx ends.
func (c *Coderd) Run(ctx context.Context) error {
	rounds, flushes := time.NewTicker(c.opts.Round), time.NewTicker(flushInterval)
	defer rounds.Stop()
	defer flushes.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-rounds.C:
			c.users.Tick(now)
			c.metrics.round(now)
		case <-flushes.C:
			c.metrics.flush()
		}
	}
}

// showLocked has the API say what is known of a workspace.
func (c *Coderd) showLocked(w *workspace) {
	shown := &codertest.Workspace{ID: w.id, Name: w.name, Owner: w.owner, Build: codertest.Build{
		ID: c.idOf("build", w.number, w.build), CreatedAt: w.createdAt, Transition: "stop", Job: "succeeded",
	}}
	if w.started {
		shown.Build.Transition = "start"
	}
	for _, a := range w.agents {
		shown.Build.Agents = append(shown.Build.Agents, codertest.WorkspaceAgent{
			ID: a.id, Name: a.name, CreatedAt: w.createdAt, Status: a.status(time.Now()), Lifecycle: a.lifecycle,
			StartedAt: a.startedAt, ReadyAt: a.readyAt, Apps: append([]codertest.App(nil), a.apps...), Latencies: a.shownLatencies(),
		})
	}
	c.rest.Put(shown)
}

// shownLatencies are those that the API has; nil: the node is not known.
func (a *agent) shownLatencies() map[string]codertest.Latency {
	if a.node == nil {
		return nil
	}
	shown := make(map[string]codertest.Latency)
	for _, l := range a.latencies() {
		shown[l.region] = codertest.Latency{Preferred: l.preferred, MS: l.seconds * 1000}
	}
	return shown
}

// status is that of the agent's connection.
func (a *agent) status(now time.Time) string {
	switch {
	case a.connections > 0:
		return "connected"
	case a.everConnected:
		return "disconnected"
	case now.Sub(a.workspace.createdAt) > connectionTimeout:
		return "timeout"
	}
	return "connecting"
}

// Agent is what is known of an agent.
type Agent struct {
	ID                     uuid.UUID
	Name, Owner, Workspace string
	Token                  string
	Reachable, Connected   bool
	Status, Lifecycle      string
	Apps                   []codertest.App
	Reports                []Report
}

// Agents returns the agents of all latest builds.
func (c *Coderd) Agents() (all []Agent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workspaces {
		for _, a := range w.agents {
			all = append(all, Agent{
				ID: a.id, Name: a.name, Owner: w.owner, Workspace: w.name, Token: a.token, Reachable: w.reachable,
				Connected: a.connections > 0, Status: a.status(time.Now()), Lifecycle: a.lifecycle,
				Apps: append([]codertest.App(nil), a.apps...), Reports: append([]Report(nil), a.reports...),
			})
		}
	}
	return all
}

// Connections returns how many agents' connections are open.
func (c *Coderd) Connections() int { return c.rpc.Connections() }
