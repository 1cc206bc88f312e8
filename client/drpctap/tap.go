// Package drpctap relays what a coderd's handlers of its agent API accepted, over the
// dRPC service descriptions that coderd registers. It needs none of coderd's types: it
// reads the requests as the bytes that their encoding makes.
//
// These calls are relayed: UpdateStats, BatchUpdateMetadata, UpdateLifecycle and
// BatchUpdateAppHealths of coder.agent.v2.Agent. All others pass unchanged.
package drpctap

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"storj.io/drpc"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// logInterval is the least time between two lines of a Tap.
const logInterval = time.Minute

// Agent is where the calls of one connection go: a client.RelayedAgent, or a relayed
// client.Agent. None of its methods blocks.
type Agent interface {
	Report(stats *agentstatsv1.Stats)
	UpdateMetadata(entries ...client.Metadata) error
	SetLifecycle(state agentstatsv1.Lifecycle_State, changedAt time.Time)
	SetAppHealth(appID uuid.UUID, health agentstatsv1.AppHealth) error
}

// Options are the knobs of a Tap. The zero value works.
type Options struct {
	// Logger of what could not be relayed, in at most one line a minute; nil: it is not
	// logged.
	Logger *slog.Logger
}

// Tap relays what coderd's handlers accepted. Make one for each coderd. A nil Tap relays
// nothing: it is for a coderd without the service.
//
// What goes wrong here does not reach coderd's handlers, nor the agents: it is logged.
// All methods may be called at any time by any goroutine.
type Tap struct {
	relays *client.Relays
	log    *slog.Logger

	mu sync.Mutex
	// Guarded by mu.

	logged  time.Time // when the last line was logged; zero: there was none
	leftOut int       // lines since then
}

// New makes a Tap over the relays of a coderd. It does not close them.
func New(relays *client.Relays, opts Options) *Tap {
	t := &Tap{relays: relays, log: opts.Logger}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	return t
}

// Mux returns mux so that what is registered on it is wrapped, for one connection of an
// agent to coderd. The agent counts as connected until ctx ends, which has to be that of
// the connection. role is that of the connection, as the query of its request has it. Of
// another one than an agent's nothing is relayed.
//
// The registration has the agent's id. It is sent when the service does not know the
// agent: see client.Relays.ConnectRegistered. With nothing but an id it is not sent: then
// coderd registers the agent elsewhere. It must not be changed.
//
// Mux does not block. An agent that cannot be relayed gets mux itself.
func (t *Tap) Mux(ctx context.Context, mux drpc.Mux, registration *agentstatsv1.AgentRegistration, role string) drpc.Mux {
	if t == nil {
		return mux
	}
	var agent *client.RelayedAgent
	t.try("connect", func() (err error) {
		agent, err = t.connect(registration, role)
		return err
	})
	if agent == nil {
		return mux
	}
	context.AfterFunc(ctx, agent.Disconnect)
	return &tapMux{Mux: mux, tap: t, agent: agent}
}

func (t *Tap) connect(registration *agentstatsv1.AgentRegistration, role string) (*client.RelayedAgent, error) {
	if registration.GetName() != "" {
		return t.relays.ConnectRegistered(registration, role)
	}
	id, err := uuid.FromBytes(registration.GetId())
	if err != nil {
		return nil, fmt.Errorf("registration: id: want 16 bytes, got %d", len(registration.GetId()))
	}
	return t.relays.Connect(id, role)
}

// tapMux registers wrapped descriptions.
type tapMux struct {
	drpc.Mux
	tap   *Tap
	agent Agent
}

// Register implements drpc.Mux.
func (m *tapMux) Register(srv any, desc drpc.Description) error {
	return m.Mux.Register(srv, m.tap.Wrap(desc, m.agent))
}

// Wrap returns a description whose methods call those of desc, and then relay the request
// as that left it, if it returned no error. So values that coderd trims are relayed
// trimmed. It is for one connection of an agent, and for those who need the agent's
// handle for more. Others use Mux.
func (t *Tap) Wrap(desc drpc.Description, agent Agent) drpc.Description {
	if t == nil {
		return desc
	}
	return &description{Description: desc, tap: t, agent: agent}
}

type description struct {
	drpc.Description
	tap   *Tap
	agent Agent
}

// Method implements drpc.Description.
func (d *description) Method(n int) (string, drpc.Encoding, drpc.Receiver, any, bool) {
	rpc, enc, receiver, method, ok := d.Description.Method(n)
	relay := relayed[rpc]
	if !ok || relay == nil {
		return rpc, enc, receiver, method, ok
	}
	//nolint:revive // the context is second, as dRPC has it
	wrapped := func(srv any, ctx context.Context, in1, in2 any) (drpc.Message, error) {
		out, err := receiver(srv, ctx, in1, in2)
		if err == nil {
			d.tap.try(rpc, func() error {
				request, err := enc.Marshal(in1)
				if err != nil {
					return fmt.Errorf("encode the request: %w", err)
				}
				return relay(d.agent, request)
			})
		}
		return out, err
	}
	return rpc, enc, wrapped, method, true
}

// try calls f for a call of the agent, and logs its error or panic.
func (t *Tap) try(call string, f func() error) {
	defer func() {
		if p := recover(); p != nil {
			t.logError(call, fmt.Errorf("panic: %v", p))
		}
	}()
	if err := f(); err != nil {
		t.logError(call, err)
	}
}

// logError logs what could not be relayed, unless a line was logged in the last minute.
func (t *Tap) logError(call string, err error) {
	t.mu.Lock()
	now := time.Now()
	if !t.logged.IsZero() && now.Sub(t.logged) < logInterval {
		t.leftOut++
		t.mu.Unlock()
		return
	}
	leftOut := t.leftOut
	t.logged, t.leftOut = now, 0
	t.mu.Unlock()
	t.log.Warn("what an agent said to coderd is not relayed, or not all of it", "call", call, "error", err, "lines_left_out", leftOut)
}
