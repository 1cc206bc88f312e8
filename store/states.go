package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// Parts of a state, as the column agent_states.part names them.
const (
	partLifecycle = "lifecycle"
	partAppHealth = "app_health"
	partNetwork   = "network"
)

// The parts as JSON. Durations are in nanoseconds.
type (
	lifecycle struct {
		State     agent.LifecycleState `json:"state"`
		ChangedAt time.Time            `json:"changed_at"`
		StartedAt time.Time            `json:"started_at,omitzero"`
		ReadyAt   time.Time            `json:"ready_at,omitzero"`
		Result    agent.LifecycleState `json:"result,omitempty"`
	}
	network struct {
		// A string, as SQL's JSON functions lose the precision of 64 bits.
		NodeID          uint64   `json:"node_id,string"`
		PreferredRegion int64    `json:"preferred_region"`
		Regions         []region `json:"regions"`
	}
	region struct {
		ID      int64         `json:"id"`
		Name    string        `json:"name"`
		Latency time.Duration `json:"latency"`
	}
)

// SaveStates writes the parts of states that were ever said, in one
// transaction. A part whose order is not above the stored one changes nothing.
// Unknown agents are skipped: they were deregistered meanwhile.
func (s *Store) SaveStates(ctx context.Context, states []agent.State) error {
	parts := make([]statePart, 0, 3*len(states))
	for i := range states {
		st := &states[i]
		said := []statePart{
			{st.Agent, partLifecycle, st.LifecycleOrder, fromLifecycle(st)},
			{st.Agent, partAppHealth, st.AppHealthOrder, st.AppHealth},
			{st.Agent, partNetwork, st.NetworkOrder, fromNetwork(st.Network)},
		}
		for _, p := range said {
			if p.order != (agent.Order{}) {
				parts = append(parts, p)
			}
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return s.change(ctx, "save states", func(tx *sql.Tx) error {
		return execEach(ctx, tx, s.dialect.queries.upsertState, parts, (*statePart).args)
	})
}

type statePart struct {
	agent agent.ID
	part  string
	order agent.Order
	data  any
}

func (p *statePart) args() ([]any, error) {
	data, err := json.Marshal(p.data)
	if err != nil {
		// A year beyond 9999 has no JSON: the same again next time.
		return nil, fmt.Errorf("%s of agent %s: %w: %w", p.part, p.agent, agent.ErrRejected, err)
	}
	return []any{p.part, p.order.Epoch, p.order.Sequence, string(data), p.agent[:]}, nil
}

// States returns what is stored of each agent that said anything, in the
// order of their ids.
func (s *Store) States(ctx context.Context) ([]agent.State, error) {
	var states []agent.State
	err := query(ctx, s.reader, s.dialect.queries.states, nil, func(rows *sql.Rows) error {
		p := statePart{}
		var data []byte
		if err := rows.Scan(&p.agent, &p.part, &p.order.Epoch, &p.order.Sequence, &data); err != nil {
			return err
		}
		if len(states) == 0 || states[len(states)-1].Agent != p.agent {
			states = append(states, agent.State{Agent: p.agent})
		}
		if err := setPart(&states[len(states)-1], p.part, p.order, data); err != nil {
			return fmt.Errorf("%s of agent %s: %w", p.part, p.agent, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read states: %w", err)
	}
	return states, nil
}

func setPart(st *agent.State, part string, order agent.Order, data []byte) error {
	switch part {
	case partLifecycle:
		st.LifecycleOrder = order
		var l lifecycle
		if err := json.Unmarshal(data, &l); err != nil {
			return err
		}
		st.Lifecycle = agent.Lifecycle{State: l.State, ChangedAt: l.ChangedAt}
		st.Startup = agent.Startup{StartedAt: l.StartedAt, ReadyAt: l.ReadyAt, Result: l.Result}
	case partAppHealth:
		st.AppHealthOrder = order
		return json.Unmarshal(data, &st.AppHealth)
	case partNetwork:
		st.NetworkOrder = order
		var n network
		if err := json.Unmarshal(data, &n); err != nil {
			return err
		}
		st.Network = n.network()
	}
	return nil
}

func fromLifecycle(st *agent.State) lifecycle {
	return lifecycle{
		State: st.Lifecycle.State, ChangedAt: st.Lifecycle.ChangedAt,
		StartedAt: st.Startup.StartedAt, ReadyAt: st.Startup.ReadyAt, Result: st.Startup.Result,
	}
}

func fromNetwork(n agent.Network) network {
	out := network{NodeID: n.NodeID, PreferredRegion: n.PreferredRegion, Regions: make([]region, len(n.Regions))}
	for i, r := range n.Regions {
		out.Regions[i] = region(r)
	}
	return out
}

func (n network) network() agent.Network {
	out := agent.Network{NodeID: n.NodeID, PreferredRegion: n.PreferredRegion}
	for _, r := range n.Regions {
		out.Regions = append(out.Regions, agent.Region(r))
	}
	return out
}

// SaveEpochs raises the epochs of agents, in one transaction; it lowers none
// and skips unknown agents.
func (s *Store) SaveEpochs(ctx context.Context, epochs map[agent.ID]int64) error {
	if len(epochs) == 0 {
		return nil
	}
	type pair struct {
		agent agent.ID
		epoch int64
	}
	pairs := make([]pair, 0, len(epochs))
	for id, epoch := range epochs {
		pairs = append(pairs, pair{id, epoch})
	}
	return s.change(ctx, "save epochs", func(tx *sql.Tx) error {
		return execEach(ctx, tx, s.dialect.queries.raiseEpoch, pairs, func(p *pair) ([]any, error) {
			return []any{p.epoch, p.agent[:], p.epoch}, nil
		})
	})
}

// Epochs returns the newest epoch of each agent that has one.
func (s *Store) Epochs(ctx context.Context) (map[agent.ID]int64, error) {
	epochs := make(map[agent.ID]int64)
	err := query(ctx, s.reader, s.dialect.queries.epochs, nil, func(rows *sql.Rows) error {
		var id agent.ID
		var epoch int64
		err := rows.Scan(&id, &epoch)
		epochs[id] = epoch
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read epochs: %w", err)
	}
	return epochs, nil
}
