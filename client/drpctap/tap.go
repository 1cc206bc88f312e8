// Package drpctap relays what a coderd's handlers of its agent API accepted, over the
// dRPC service descriptions that coderd registers. It needs none of coderd's types: it
// reads the requests as the bytes that their encoding makes.
//
// These calls are relayed: UpdateStats, BatchUpdateMetadata, UpdateLifecycle and
// BatchUpdateAppHealths of coder.agent.v2.Agent, and of coder.tailnet.v2.Tailnet the
// agent's node in Coordinate, with the names that StreamDERPMaps has. All others pass
// unchanged. What no call says, like a goodbye, is for Tap.Relays.
package drpctap

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"
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
	SetNetwork(network *agentstatsv1.Network) error
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
	link   *link // nil: it was not made by Open

	mu sync.Mutex
	// Guarded by mu.

	logged  time.Time // when the last line was logged; zero: there was none
	leftOut int       // lines since then
	// regions are the names of the newest DERP map, by id. It is not changed.
	regions map[int64]string
}

// New makes a Tap over the relays of a coderd. It does not close them. Nil ones relay
// nothing.
func New(relays *client.Relays, opts Options) *Tap {
	t := &Tap{relays: relays, log: opts.Logger}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	return t
}

// Connection is what coderd knows of one connection of an agent.
type Connection struct {
	// AgentID is the id of the agent. Required.
	AgentID uuid.UUID
	// Role is that of the connection, as the query of its request has it. Of another one
	// than an agent's, like a log streamer's, nothing is relayed.
	Role string
	// Lifecycle is the newest state of the agent that coderd has stored, and
	// LifecycleChangedAt since when, as agents say theirs only when it changes; the zero
	// time: it is not known. If the service has a later one, that stays.
	Lifecycle          agentstatsv1.Lifecycle_State
	LifecycleChangedAt time.Time

	// What follows registers the agent if the service does not know it: see
	// client.Relays.ConnectRegistered. Without AgentName it is not registered here. Of an
	// agent that the service knows it changes nothing.

	AgentName string
	// CreatedAt is when the agent was made: of two builds the newer one counts.
	CreatedAt                              time.Time
	WorkspaceID                            uuid.UUID
	WorkspaceName, OwnerName, TemplateName string
	// Apps has the display names of the agent's apps, by their ids; nil: there are none.
	Apps map[uuid.UUID]string
	// Registration is sent in place of the fields above, if coderd has more to say; nil:
	// those are sent. It has the agent's id.
	Registration *agentstatsv1.AgentRegistration
}

// registration returns what is sent of the connection's agent; nil: nothing is.
func (c *Connection) registration() *agentstatsv1.AgentRegistration {
	if c.Registration != nil || c.AgentName == "" {
		return c.Registration
	}
	r := &agentstatsv1.AgentRegistration{
		Id: c.AgentID[:], Name: c.AgentName, CreatedAt: timestamppb.New(c.CreatedAt),
		Workspace: &agentstatsv1.Workspace{
			Id: c.WorkspaceID[:], Name: c.WorkspaceName, OwnerUsername: c.OwnerName,
			Template: &agentstatsv1.Template{Name: c.TemplateName},
		},
	}
	for id, name := range c.Apps {
		r.Apps = append(r.Apps, &agentstatsv1.App{
			Id: id[:], Slug: name, DisplayName: name, Health: agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING,
		})
	}
	// Registrations of one agent are compared.
	slices.SortFunc(r.Apps, func(a, b *agentstatsv1.App) int { return bytes.Compare(a.GetId(), b.GetId()) })
	return r
}

// Mux is a *drpcmux.Mux, or what a coderd has in its place.
type Mux interface {
	drpc.Mux
	drpc.Handler
}

// Mux returns mux so that what is registered on it is wrapped, for one connection of an
// agent to coderd. The agent counts as connected until ctx ends, which has to be that of
// the connection. Mux does not block. An agent that cannot be relayed gets mux itself.
func (t *Tap) Mux(ctx context.Context, mux Mux, c Connection) Mux {
	if t == nil || t.relays == nil {
		return mux
	}
	var agent *client.RelayedAgent
	t.try("connect", func() (err error) {
		if r := c.registration(); r != nil {
			agent, err = t.relays.ConnectRegistered(r, c.Role)
		} else {
			agent, err = t.relays.Connect(c.AgentID, c.Role)
		}
		return err
	})
	if agent == nil {
		return mux
	}
	context.AfterFunc(ctx, agent.Disconnect)
	if c.Lifecycle != agentstatsv1.Lifecycle_STATE_UNSPECIFIED {
		agent.RestoreLifecycle(c.Lifecycle, c.LifecycleChangedAt)
	}
	return &tapMux{Mux: mux, tap: t, agent: agent}
}

// tapMux registers wrapped descriptions.
type tapMux struct {
	Mux
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
	return &description{Description: desc, tap: t, agent: agent, network: t.Network(agent)}
}

type description struct {
	drpc.Description
	tap     *Tap
	agent   Agent
	network *Network
}

// Method implements drpc.Description.
func (d *description) Method(n int) (string, drpc.Encoding, drpc.Receiver, any, bool) {
	rpc, enc, receiver, method, ok := d.Description.Method(n)
	if !ok {
		return rpc, enc, receiver, method, ok
	}
	switch rpc {
	case coordinate:
		return rpc, enc, d.network.tapCoordinate(receiver), method, ok
	case streamDERPMaps:
		return rpc, enc, d.network.tapDERPMaps(receiver), method, ok
	}
	relay := relayed[rpc]
	if relay == nil {
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
