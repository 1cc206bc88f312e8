// Package agents is what a coderd has of its agents, and its handlers of their calls. It
// stands for coderd's database and agent API.
package agents

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/examples/coderd/agentproto"
)

// reportInterval is how often agents report stats.
const reportInterval = 30 * time.Second

// Agent is a row of the database, joined with its workspace.
type Agent struct {
	ID            uuid.UUID
	Name          string
	CreatedAt     time.Time
	WorkspaceID   uuid.UUID
	WorkspaceName string
	OwnerName     string
	TemplateName  string
	// Apps has the names of the agent's apps.
	Apps map[uuid.UUID]string

	Lifecycle agentproto.Lifecycle_State
	Metadata  map[string]string
}

// Database has the agents by their tokens.
type Database struct {
	mu     sync.Mutex
	agents map[string]*Agent // guarded by mu
}

// NewDatabase makes a database with these agents. It owns them.
func NewDatabase(agents map[string]*Agent) *Database { return &Database{agents: agents} }

// Agent returns the agent with the token.
func (d *Database) Agent(token string) (Agent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.agents[token]
	if a == nil {
		return Agent{}, errors.New("no agent has this token")
	}
	return *a, nil
}

// Handlers are those of one connection of an agent.
type Handlers struct {
	Database *Database
	Token    string
}

var _ agentproto.DRPCAgentServer = (*Handlers)(nil)

// update changes the row of the agent.
func (h *Handlers) update(change func(*Agent) error) error {
	h.Database.mu.Lock()
	defer h.Database.mu.Unlock()
	return change(h.Database.agents[h.Token])
}

// GetManifest returns what the agent has to know of itself.
func (h *Handlers) GetManifest(context.Context, *agentproto.GetManifestRequest) (*agentproto.Manifest, error) {
	a, err := h.Database.Agent(h.Token)
	if err != nil {
		return nil, err
	}
	return &agentproto.Manifest{
		AgentId: a.ID[:], AgentName: a.Name, OwnerUsername: a.OwnerName,
		WorkspaceId: a.WorkspaceID[:], WorkspaceName: a.WorkspaceName,
	}, nil
}

// UpdateStats takes in a report. Without one it only returns the interval.
func (h *Handlers) UpdateStats(_ context.Context, req *agentproto.UpdateStatsRequest) (*agentproto.UpdateStatsResponse, error) {
	if req.GetStats().GetRxBytes() < 0 {
		return nil, errors.New("stats: rx_bytes is negative")
	}
	return &agentproto.UpdateStatsResponse{ReportInterval: durationpb.New(reportInterval)}, nil
}

// UpdateLifecycle stores the state of the agent.
func (h *Handlers) UpdateLifecycle(_ context.Context, req *agentproto.UpdateLifecycleRequest) (*agentproto.Lifecycle, error) {
	state := req.GetLifecycle().GetState()
	if _, known := agentproto.Lifecycle_State_name[int32(state)]; !known || state == agentproto.Lifecycle_STATE_UNSPECIFIED {
		return nil, errors.New("lifecycle: the state is unknown")
	}
	err := h.update(func(a *Agent) error {
		a.Lifecycle = state
		return nil
	})
	return req.GetLifecycle(), err
}

// BatchUpdateAppHealths checks that the apps are the agent's.
func (h *Handlers) BatchUpdateAppHealths(_ context.Context, req *agentproto.BatchUpdateAppHealthRequest) (*agentproto.BatchUpdateAppHealthResponse, error) {
	err := h.update(func(a *Agent) error {
		for _, u := range req.GetUpdates() {
			if id, err := uuid.FromBytes(u.GetId()); err != nil || a.Apps[id] == "" {
				return errors.New("app health: the app is unknown")
			}
		}
		return nil
	})
	return &agentproto.BatchUpdateAppHealthResponse{}, err
}

// BatchUpdateMetadata stores metadata, trimmed.
func (h *Handlers) BatchUpdateMetadata(_ context.Context, req *agentproto.BatchUpdateMetadataRequest) (*agentproto.BatchUpdateMetadataResponse, error) {
	err := h.update(func(a *Agent) error {
		if a.Metadata == nil {
			a.Metadata = make(map[string]string)
		}
		for _, m := range req.GetMetadata() {
			if r := m.GetResult(); r != nil {
				r.Value = strings.TrimSpace(r.GetValue())
			}
			a.Metadata[m.GetKey()] = m.GetResult().GetValue()
		}
		return nil
	})
	return &agentproto.BatchUpdateMetadataResponse{}, err
}
