// Package relaying hands what was decoded of agents' connections to their relays, which
// send it to the service.
package relaying

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/client/drpctap"
	"github.com/coder/agentstatsd/internal/recurring"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// goodbyeTimeout bounds a goodbye: what an agent said is sent before it.
const goodbyeTimeout = 30 * time.Second

// Options are the knobs of a Relaying. The zero value works.
type Options struct {
	// Connected is called with who has connected, before anything is relayed for it. It
	// must not block. nil: nobody is told.
	Connected func(agentID, workspaceID uuid.UUID)
	// Unknown is called with who is connected and is not known to the service, again and
	// again. It must not block. nil: nobody is told.
	Unknown func(agentID, workspaceID uuid.UUID)
}

// Relaying relays for the agents of one bridge. It is safe for concurrent use.
type Relaying struct {
	relays  *client.Relays
	tap     *drpctap.Tap // has the rules of networks, and the names of regions
	opts    Options
	metrics *metrics
	log     *slog.Logger
	lost    recurring.Events // calls

	ctx      context.Context // of goodbyes
	cancel   context.CancelFunc
	goodbyes sync.WaitGroup

	mu        sync.Mutex
	connected map[uuid.UUID]*connected // guarded by mu
}

// connected is an agent with connections.
type connected struct {
	workspace   uuid.UUID
	connections int
}

// New returns a Relaying over relays, which Close closes.
func New(relays *client.Relays, opts Options, reg prometheus.Registerer, log *slog.Logger) (*Relaying, error) {
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	r := &Relaying{
		relays: relays, tap: drpctap.New(relays, drpctap.Options{Logger: log}), opts: opts, metrics: m, log: log,
		connected: make(map[uuid.UUID]*connected),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Close sends what is pending of all agents, and ends their relays. It blocks until all is
// acked, or ctx ends.
func (r *Relaying) Close(ctx context.Context) error {
	err := r.relays.Close(ctx)
	r.cancel()
	r.goodbyes.Wait()
	return err
}

// Goodbye ends the presence of an agent that is gone for good. It does not block.
func (r *Relaying) Goodbye(agentID uuid.UUID) {
	r.goodbyes.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, goodbyeTimeout)
		defer cancel()
		if err := r.relays.Goodbye(ctx, agentID); err != nil {
			r.failed("goodbye", err)
		}
	})
}

// failed counts and logs what of a call is not relayed.
func (r *Relaying) failed(call string, err error) {
	r.metrics.failed.Inc()
	r.lost.Log(r.ctx, r.log, slog.LevelWarn, "calls", 1, "what an agent said to coderd is not relayed, or not all of it", "call", call, "error", err)
}

// Unknown has the agent registered that the service does not know, unless it has left. It is
// a function of the relays, and does not block.
func (r *Relaying) Unknown(agentID uuid.UUID) {
	r.mu.Lock()
	c := r.connected[agentID]
	r.mu.Unlock()
	if c != nil && r.opts.Unknown != nil {
		r.opts.Unknown(agentID, c.workspace)
	}
}

// add notes a connection, and remove its end.
func (r *Relaying) add(agentID, workspaceID uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.connected[agentID]
	if c == nil {
		c = &connected{workspace: workspaceID}
		r.connected[agentID] = c
	}
	c.connections++
}

// Connected returns the number of agents with connections.
func (r *Relaying) Connected() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.connected)
}

func (r *Relaying) remove(agentID uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.connected[agentID]
	if c.connections--; c.connections == 0 {
		delete(r.connected, agentID)
	}
}

// Connection is one connection of an agent. It is the decode.Handler of its bytes. One
// goroutine at a time may use it.
//
//	unknown --manifest--> connected --Close--> disconnected
type Connection struct {
	relaying *Relaying
	id       uuid.UUID
	agent    *client.RelayedAgent // nil: it is not known, or cannot be relayed
	network  *drpctap.Network     // nil: likewise
}

var _ decode.Handler = (*Connection)(nil)

// Open returns a connection. Close it. Its agent counts as connected from its manifest on.
func (r *Relaying) Open() *Connection { return &Connection{relaying: r} }

// Close ends the connection. The agent's state ends with its last one.
func (c *Connection) Close() {
	if c.agent != nil {
		c.agent.Disconnect()
		c.relaying.remove(c.id)
		c.agent = nil
	}
}

// Manifest says whose connection it is, and how its apps are: agents do not repeat that.
func (c *Connection) Manifest(m *decode.Manifest) {
	r := c.relaying
	r.metrics.count(callManifest)
	if r.opts.Connected != nil {
		r.opts.Connected(m.AgentID, m.WorkspaceID)
	}
	agent, err := r.relays.Connect(m.AgentID, "")
	if err != nil {
		r.failed(callManifest, err)
		return
	}
	c.id, c.agent, c.network = m.AgentID, agent, r.tap.Network(agent)
	r.add(m.AgentID, m.WorkspaceID)
	for _, app := range m.Apps {
		if app.Health == int32(agentstatsv1.AppHealth_APP_HEALTH_UNSPECIFIED) {
			continue
		}
		if err := agent.SetAppHealth(app.ID, agentstatsv1.AppHealth(app.Health)); err != nil {
			r.failed(callManifest, err)
		}
	}
}

// Call relays a call that coderd accepted.
func (c *Connection) Call(call string, request []byte) {
	r := c.relaying
	r.metrics.count(call)
	if c.agent == nil {
		return
	}
	if err := fits(call, request); err != nil {
		r.failed(call, err)
		return
	}
	to := &agent{RelayedAgent: c.agent}
	var err error
	if call == decode.CallCoordinate {
		err = c.network.Coordinate(request)
	} else {
		_, err = drpctap.Relay(to, call, request)
	}
	if err != nil {
		r.failed(call, err)
	}
	if to.off {
		r.Goodbye(c.id)
	}
}

// Regions names the regions of agents' networks.
func (c *Connection) Regions(names map[int64]string) {
	if c.agent == nil {
		return
	}
	if err := c.network.SetRegions(names); err != nil {
		c.relaying.failed(decode.CallCoordinate, err)
	}
}

// agent notes what its relay does not: that the agent ends.
type agent struct {
	*client.RelayedAgent
	off bool
}

// SetLifecycle notes the last state of an agent.
func (a *agent) SetLifecycle(state agentstatsv1.Lifecycle_State, changedAt time.Time) {
	a.off = a.off || state == agentstatsv1.Lifecycle_STATE_OFF
	a.RelayedAgent.SetLifecycle(state, changedAt)
}

// tooLarge is the error of a request that would take too much memory.
func tooLarge(limit int) error {
	return fmt.Errorf("the request has too many elements: want at most %d bytes once decoded", limit)
}
