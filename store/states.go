package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/stateparts"
)

// Parts of a state, as the column agent_states.part names them.
const (
	partLifecycle = "lifecycle"
	// The newest start: when it began, and how it ended.
	partStarted = "started"
	partReady   = "ready"
	partNetwork = "network"
	// partAppHealth is followed by the id of the app. Each has a row and an order of
	// its own, so that what two replicas write comes together here.
	partAppHealth = "app_health/"
)

// SaveStates writes the parts of states that were ever said, in one transaction. A part
// whose order does not follow the stored one, by agent.Order.Follows, changes nothing.
// Unknown agents are skipped, and those of another incarnation: they were deregistered
// meanwhile. newer has the agents of parts that lost, in the order of their ids. Each
// has the highest epoch that it lost against: a higher one, or one that was stored
// first. It is 0 if it lost against another incarnation, or none.
func (s *Store) SaveStates(ctx context.Context, states []agent.State) (newer []agent.StoredEpoch, err error) {
	parts := make([]statePart, 0, 5*len(states))
	for i := range states {
		st := &states[i]
		said := []statePart{
			{st.Agent, partLifecycle, st.LifecycleOrder, stateparts.Lifecycle(st.Lifecycle), st.Incarnation},
			{st.Agent, partStarted, st.StartedOrder, stateparts.Started{StartedAt: st.Startup.StartedAt}, st.Incarnation},
			{st.Agent, partNetwork, st.NetworkOrder, stateparts.NetworkOf(st.Network), st.Incarnation},
		}
		if st.StartEnded() {
			said = append(said, statePart{st.Agent, partReady, st.ReadyOrder, stateparts.Ready(st.Startup), st.Incarnation})
		}
		for app, health := range st.AppHealth {
			said = append(said, statePart{st.Agent, partAppHealth + app.String(), st.AppHealthOrder[app], health, st.Incarnation})
		}
		for _, p := range said {
			if p.order != (agent.Order{}) {
				parts = append(parts, p)
			}
		}
	}
	if len(parts) == 0 {
		return nil, nil
	}
	parts = inOrder(parts, compareParts, func(a, b statePart) statePart {
		if b.order.Compare(a.order) > 0 {
			return b
		}
		return a
	})
	rows, err := toRows(parts, s.statePartArgs)
	if err != nil {
		return nil, fmt.Errorf("save states: %w", err)
	}
	err = s.change(ctx, "save states", func(tx *sql.Tx) error {
		written, err := s.dialect.exec(ctx, tx, s.dialect.queries.upsertState, rows)
		if err := s.skipOrphans(written, err); err != nil {
			return err
		}
		newer, err = s.newerStateEpochs(ctx, tx, parts, written)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newer, nil
}

// newerStateEpochs looks for what parts, which are in order, lost against.
func (s *Store) newerStateEpochs(ctx context.Context, tx *sql.Tx, parts []statePart, written int64) ([]agent.StoredEpoch, error) {
	if written == int64(len(parts)) {
		return nil, nil
	}
	of := make([]attempted, len(parts))
	for i := range parts {
		p := &parts[i]
		of[i] = attempted{agent: p.agent, name: p.part, epoch: p.order.Epoch, incarnation: p.incarnation}
	}
	newer, err := s.newerEpochs(ctx, tx, of, `SELECT a.id, a.registered, s.part, s.epoch, s.said
FROM agents AS a LEFT JOIN agent_states AS s ON s.agent_id = a.id WHERE a.id `)
	agents := newer[:0]
	for _, part := range newer {
		if n := len(agents); n == 0 || agents[n-1].Agent != part.Agent {
			agents = append(agents, agent.StoredEpoch{Agent: part.Agent, Epoch: part.Epoch, First: part.First})
			continue
		}
		// All parts are of one incarnation: if one has no epoch, none has.
		highest := &agents[len(agents)-1]
		highest.Epoch, highest.First = max(highest.Epoch, part.Epoch), highest.First || part.First
	}
	return agents, err
}

func compareParts(a, b statePart) int {
	return cmp.Or(compareIDs(a.agent, b.agent), strings.Compare(a.part, b.part))
}

// skipOrphans returns the error of a statement that leaves out rows of unknown agents.
// If one was removed while it ran, the next attempt does not see it.
func (s *Store) skipOrphans(_ int64, err error) error {
	if err != nil && s.dialect.faultOf(err).orphaned {
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return err
}

type statePart struct {
	agent agent.ID
	part  string
	order agent.Order
	data  any
	// incarnation of the agent.
	incarnation int64
}

func (s *Store) statePartArgs(p *statePart) ([]any, error) {
	data, err := json.Marshal(p.data)
	if err != nil {
		// A year beyond 9999 has no JSON: the same again next time.
		return nil, fmt.Errorf("%s of agent %s: %w: %w", p.part, p.agent, agent.ErrRejected, err)
	}
	basis, previous := knownBefore(p.order)
	return []any{s.dialect.id(p.agent), p.part, p.order.Epoch, p.order.Sequence, p.order.Said, string(data), p.incarnation, basis, previous}, nil
}

// States returns what is stored of each agent that said anything, in the order of their
// ids. If since is not 0, it returns at least what was written after the call that
// returned since as next. An agent of which one part was written may have the zero
// order of the others. On SQLite, which one process has, it is always all, and next is
// 0. Agents whose registration cannot be decoded are left out.
func (s *Store) States(ctx context.Context, since int64) (states []agent.State, next int64, err error) {
	err = s.view(ctx, "read states", func(tx *sql.Tx) error {
		states = nil
		next, err = s.readSince(ctx, tx, pageOfStates, `
SELECT agent_id, part, epoch, sequence, said, data FROM agent_states`, since, ` ORDER BY agent_id, part`, func(rows *sql.Rows) error {
			p := statePart{}
			var data []byte
			err := rows.Scan(&p.agent, &p.part, &p.order.Epoch, &p.order.Sequence, &p.order.Said, &data)
			last := len(states) - 1
			st := agent.State{Agent: p.agent}
			more := last >= 0 && states[last].Agent == p.agent
			if more {
				st = states[last]
			}
			if err == nil {
				err = setPart(&st, p.part, p.order, data)
			}
			switch {
			case s.undecodable.agent(p.agent):
			case err != nil:
				return s.skip(ctx, rows, kindStates, idKey(p.agent, p.part), err)
			case more:
				states[last] = st
			default:
				states = append(states, st)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return states, next, nil
}

func setPart(st *agent.State, part string, order agent.Order, data []byte) error {
	if text, is := strings.CutPrefix(part, partAppHealth); is {
		app, err := uuid.Parse(text)
		if err != nil {
			return err
		}
		var health agent.AppHealth
		if err := json.Unmarshal(data, &health); err != nil {
			return err
		}
		st.SetAppHealth(app, health, order)
		return nil
	}
	switch part {
	case partLifecycle:
		st.LifecycleOrder = order
		var l stateparts.Lifecycle
		if err := json.Unmarshal(data, &l); err != nil {
			return err
		}
		st.Lifecycle = agent.Lifecycle(l)
	case partStarted:
		var s stateparts.Started
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		st.SetStarted(s.StartedAt, order)
	case partReady:
		var r stateparts.Ready
		if err := json.Unmarshal(data, &r); err != nil {
			return err
		}
		st.SetReady(agent.Startup(r), order)
	case partNetwork:
		st.NetworkOrder = order
		var n stateparts.Network
		if err := json.Unmarshal(data, &n); err != nil {
			return err
		}
		st.Network = n.State()
	default:
		return errors.New("the part is unknown")
	}
	return nil
}
