package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/client/internal/outage"
	"github.com/coder/agentstatsd/client/internal/recovery"
	"github.com/coder/agentstatsd/client/internal/refusallog"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// defaultRelayIdle outlasts the reconnects of agents, which come within seconds.
	defaultRelayIdle = 5 * time.Minute
	// defaultMaxRelays is as many as 25 full streams have.
	defaultMaxRelays = 50_000
	// maxRelayIdles bounds how often a relay that has something pending is kept for
	// another idle time: for an hour, as long as a database may be away.
	maxRelayIdles = 12
	// closeGrace is how long the relays have to end after the context of Close. Only a
	// function of the host keeps them longer.
	closeGrace = time.Second
	// lostInterval is the time of which agents are logged together that something is lost of.
	lostInterval = time.Minute
	// roleAgent is the role of an agent's own connection to coderd.
	roleAgent = "agent"
)

var (
	errRelaysClosed = errors.New("the relays are closed")
	errRelayExpired = errors.New("the agent was not connected again")
)

// RelaysOptions are the knobs of Relays. The zero value works.
type RelaysOptions struct {
	// Idle is how long a relay is kept after its agent has disconnected, for its next
	// connection; 0: 5 min. A relay with something pending is kept up to 12 times as
	// long.
	Idle time.Duration
	// MaxAgents bounds the relays; 0: 50,000. Beyond it, one that is kept for a next
	// connection, with nothing pending, makes room. Otherwise further agents are refused.
	MaxAgents int
	// Backoff bounds the waits between two sessions of an agent. While the service cannot be
	// reached, one of all agents tries each second. Once one has a session, all do so within
	// another one.
	Backoff Backoff
	// Logger of what is lost, at most twice a minute, of what the service refuses of all
	// agents, a line a minute for each reason, and of agents without a session: one line
	// when that begins, one a minute and one when it ends. Nil: nothing is logged. Each
	// session that opens and ends is logged at the level of debug.
	Logger *slog.Logger
	// OnRefusal is called with what the service refused of an agent. It is called
	// like the functions of AgentOptions.
	OnRefusal func(agentID uuid.UUID, refusal *agentstatsv1.Refusal)
	// OnUnknown is called with an agent that the service does not know, after each session
	// that it refused for that. It is not called for one whose registration is sent then.
	// Once the agent is registered, its next session opens. It is called like OnRefusal.
	OnUnknown func(agentID uuid.UUID)
}

func (o *RelaysOptions) validate() error {
	switch {
	case o.Idle < 0:
		return fmt.Errorf("idle: want at least 0, got %s", o.Idle)
	case o.MaxAgents < 0:
		return fmt.Errorf("max agents: want at least 0, got %d", o.MaxAgents)
	}
	return o.Backoff.validate()
}

// Relays relay for the agents that are connected to one coderd. They keep one relay for
// each agent, over its connections: what it said in an outage is sent later, and counts
// are counted once. The service considers an agent connected while it is connected to
// a coderd that relays for it.
//
// An agent may have relays in several coderds, as it moves, or as a broken connection
// is noticed late. The service has one session of an agent. A relay whose session
// another one superseded comes back when its agent says something new, or to deliver
// what is not acked. It repeats nothing that is acked. So relays do not take turns.
//
// All methods may be called at any time by any goroutine. Nil Relays relay nothing,
// without an error: they are for a coderd without the service.
type Relays struct {
	coderd *Coderd
	opts   RelaysOptions
	log    *slog.Logger
	// failures are those of all relays' sessions, recovery is after an outage of all.
	failures *outage.Log
	// refusals are those of all agents.
	refusals *refusallog.Log
	recovery recovery.Recovery
	// ctx is that of all relays. Close cancels it.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	agents map[uuid.UUID]*keptRelay // guarded by mu
	closed bool                     // likewise
	// lost is how many agents something was lost of that is not logged; lostTimer logs it.
	// Guarded by mu.
	lost      int
	lostTimer *time.Timer    // nil: nothing was lost in the last lostInterval
	ended     sync.WaitGroup // the goroutines of relays
}

// keptRelay is the relay of one agent. The mu of Relays guards its fields.
//
//	connected --the last connection ends--> kept --a connection--> connected
//	kept --idle, or goodbye--> ended
type keptRelay struct {
	agent       *Agent
	cancel      context.CancelFunc
	connections int
	idles       int         // how often the idle time has passed
	idle        *time.Timer // nil while it is connected
}

// Relays makes Relays over the connection of c. Make one for each Coderd, as those of a
// second one would take each agent's session from the first.
func (c *Coderd) Relays(opts RelaysOptions) (*Relays, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("relays options: %w", err)
	}
	opts.Idle = cmp.Or(opts.Idle, defaultRelayIdle)
	opts.MaxAgents = cmp.Or(opts.MaxAgents, defaultMaxRelays)
	r := &Relays{coderd: c, opts: opts, log: opts.Logger, agents: make(map[uuid.UUID]*keptRelay)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.failures = outage.New(r.log, outage.Sessions)
	r.refusals = new(refusallog.Log)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Connect returns the handle of one connection of an agent to coderd. Disconnect it at
// the end of the connection. role is that of the connection, as the query of its
// request has it: an empty one is that of an agent. Of another one, like that of a log
// streamer with the agent's token, nothing is relayed: its handle does nothing. It does
// not block. It returns an error, and a nil handle, which does nothing, if there are too
// many relays, or after Close. Coderd then serves the agent without one. Several handles
// of an agent share its relay.
func (r *Relays) Connect(agentID uuid.UUID, role string) (*RelayedAgent, error) {
	return r.connect(agentID, nil, role)
}

// ConnectRegistered is Connect with the registration of the agent, which is sent when the
// service does not know the agent: see AgentOptions.Registration. It has the agent's id,
// and must not be changed. It changes nothing of an agent that is known: see
// Coderd.Register.
func (r *Relays) ConnectRegistered(registration *agentstatsv1.AgentRegistration, role string) (*RelayedAgent, error) {
	agentID, err := uuid.FromBytes(registration.GetId())
	if err != nil {
		return nil, fmt.Errorf("relay an agent: registration: id: want 16 bytes, got %d", len(registration.GetId()))
	}
	return r.connect(agentID, registration, role)
}

func (r *Relays) connect(agentID uuid.UUID, registration *agentstatsv1.AgentRegistration, role string) (*RelayedAgent, error) {
	if r == nil || role != "" && role != roleAgent {
		return &RelayedAgent{}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k, err := r.keepLocked(agentID, registration)
	if err != nil {
		return nil, fmt.Errorf("relay agent %s: %w", agentID, err)
	}
	if k.idle != nil {
		k.idle.Stop()
		k.idle, k.idles = nil, 0
	}
	k.connections++
	k.agent.setPresent(true)
	return &RelayedAgent{relays: r, relay: k, id: agentID}, nil
}

// keepLocked returns the relay of an agent, which it begins if there is none.
func (r *Relays) keepLocked(id uuid.UUID, registration *agentstatsv1.AgentRegistration) (*keptRelay, error) {
	k := r.agents[id]
	switch {
	case r.closed:
		return nil, errRelaysClosed
	case k != nil:
		return k, k.agent.registration.set(registration)
	case len(r.agents) >= r.opts.MaxAgents && !r.makeRoomLocked():
		return nil, fmt.Errorf("want at most %d relays (RelaysOptions.MaxAgents), there are %d", r.opts.MaxAgents, len(r.agents))
	}
	opts := AgentOptions{Backoff: r.opts.Backoff, CallbackTimeout: r.coderd.callbackTimeout, Registration: registration}
	if r.opts.Logger != nil {
		opts.Logger = r.log.With("agent", id)
	}
	if r.opts.OnRefusal != nil {
		opts.OnRefusal = func(refusal *agentstatsv1.Refusal) { r.opts.OnRefusal(id, refusal) }
	}
	agent, err := r.coderd.Relay(id, opts)
	if err != nil {
		return nil, err
	}
	agent.registration.onUnknown = bounded(&agent.callbacks, "OnUnknown", r.opts.OnUnknown)
	agent.standby.IsRelay, agent.outbox.IsRelay = true, true
	agent.failures, agent.routine, agent.recovery = r.failures.Subject(agent.log), slog.LevelDebug, &r.recovery
	agent.refusals = r.refusals
	ctx, cancel := context.WithCancel(r.ctx)
	k = &keptRelay{agent: agent, cancel: cancel}
	run, err := agent.begin(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	r.agents[id] = k
	r.ended.Add(1)
	go func() {
		defer r.ended.Done()
		run()
	}()
	return k, nil
}

// makeRoomLocked ends a relay that is kept with nothing pending.
func (r *Relays) makeRoomLocked() bool {
	for id, k := range r.agents {
		if k.connections == 0 && k.agent.isIdle() {
			r.endLocked(id, k)
			return true
		}
	}
	return false
}

// endLocked ends a relay without a goodbye.
func (r *Relays) endLocked(id uuid.UUID, k *keptRelay) {
	if r.agents[id] == k {
		delete(r.agents, id)
	}
	if k.idle != nil {
		k.idle.Stop()
	}
	k.cancel()
}

// disconnect counts a connection that has ended. After the last one the relay sends
// what is pending, and ends its session.
func (r *Relays) disconnect(id uuid.UUID, k *keptRelay) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.connections--; k.connections > 0 {
		return
	}
	k.agent.setPresent(false)
	if !r.closed && r.agents[id] == k {
		k.idle = time.AfterFunc(r.opts.Idle, func() { r.expire(id, k) })
	}
}

// expire ends a relay whose agent was not connected for the idle time.
func (r *Relays) expire(id uuid.UUID, k *keptRelay) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.connections > 0 || r.agents[id] != k || k.idle == nil {
		return
	}
	if k.idles++; !k.agent.isIdle() && k.idles < maxRelayIdles {
		k.idle.Reset(r.opts.Idle)
		return
	}
	if err := k.agent.pendingError(errRelayExpired); err != nil {
		r.logLostLocked(id, time.Duration(k.idles)*r.opts.Idle, err)
	}
	r.endLocked(id, k)
}

// logLostLocked logs what is lost of an agent. What follows within lostInterval is a line
// for all these agents.
func (r *Relays) logLostLocked(id uuid.UUID, after time.Duration, err error) {
	if r.lostTimer != nil {
		r.lost++
		return
	}
	r.log.Warn("what an agent said is lost, as it could not be sent", "agent", id, "after", after, "error", err)
	r.lostTimer = time.AfterFunc(lostInterval, r.logFurtherLost)
}

func (r *Relays) logFurtherLost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lostTimer = nil; r.lost > 0 {
		r.log.Warn("what further agents said is lost, as it could not be sent", "agents", r.lost)
		r.lost = 0
	}
}

// Goodbye ends the presence of an agent that goes away and stays registered: its series
// vanish at once. What it said is sent before. It blocks until that is acked, or ctx ends.
// A relay that waits for the service tries again at once. Without a relay of the agent here it does nothing. Handles of the agent's connections do
// nothing after it. Coderd.Deregister needs no goodbye before.
func (r *Relays) Goodbye(ctx context.Context, agentID uuid.UUID) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	k := r.agents[agentID]
	if k != nil {
		delete(r.agents, agentID)
		if k.idle != nil {
			k.idle.Stop()
		}
	}
	r.mu.Unlock()
	if k == nil {
		return nil
	}
	defer k.cancel()
	if err := k.agent.Close(ctx); err != nil {
		return fmt.Errorf("goodbye of agent %s: %w", agentID, err)
	}
	return nil
}

// Close sends what is pending of all agents, and ends their relays without a goodbye:
// agents that connect to another coderd go on there. It blocks until the service has
// received all, or ctx ends, also for a Goodbye that goes on. What is received the service
// stores by itself. Relays that wait for the service try again at once. OnRefusal has 2 s
// left from the start. If it has not returned a second after ctx has ended, Close does not
// wait for it. It returns an error that counts the agents with something that was not
// received. After it there are no relays any more.
func (r *Relays) Close(ctx context.Context) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	r.closed = true
	kept := r.agents
	r.agents = nil
	for _, k := range kept {
		if k.idle != nil {
			k.idle.Stop()
		}
	}
	r.mu.Unlock()
	for _, k := range kept {
		k.agent.drain()
	}
	pending := 0
	for _, k := range kept {
		if k.agent.Flush(ctx) != nil {
			pending++
		}
		k.cancel()
	}
	err := r.awaitEnd(ctx)
	if pending > 0 {
		err = errors.Join(fmt.Errorf("close relays: of %d of %d agents not all was received: %w", pending, len(kept), ctx.Err()), err)
	}
	return err
}

// awaitEnd waits until all relays have ended. When ctx ends it ends them.
func (r *Relays) awaitEnd(ctx context.Context) error {
	stop := context.AfterFunc(ctx, r.cancel) // a Goodbye may wait longer
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.ended.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		if !waitFor(ended, closeGrace, nil, 0) {
			return fmt.Errorf("close relays: %w", errCallbackLeft)
		}
	}
	r.cancel()
	return nil
}
