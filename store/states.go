package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/store/internal/pages"
	"github.com/coder/agentstatsd/store/internal/stateparts"
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
			{st.Agent, stateparts.PartLifecycle, st.LifecycleOrder, stateparts.Lifecycle(st.Lifecycle), st.Incarnation},
			{st.Agent, stateparts.PartStarted, st.StartedOrder, stateparts.Started{StartedAt: st.Startup.StartedAt}, st.Incarnation},
			{st.Agent, stateparts.PartNetwork, st.NetworkOrder, stateparts.NetworkOf(st.Network), st.Incarnation},
		}
		if st.StartEnded() {
			said = append(said, statePart{st.Agent, stateparts.PartReady, st.ReadyOrder, stateparts.Ready(st.Startup), st.Incarnation})
		}
		for app, health := range st.AppHealth {
			said = append(said, statePart{st.Agent, stateparts.PartAppHealth + app.String(), st.AppHealthOrder[app], health, st.Incarnation})
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
	err = s.view(ctx, "read states", func(tx *sql.Tx) (err error) {
		states = nil
		next, err = s.eachState(ctx, tx, since, func(page []agent.State) error {
			states = append(states, page...)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return states, next, nil
}

// EachState calls page with some of all states at a time, and returns next, as States
// does. States come again if the read began again. A page is valid until page returns,
// whose error ends the read.
func (s *Store) EachState(ctx context.Context, page func([]agent.State) error) (next int64, err error) {
	err = s.view(ctx, "read states", func(tx *sql.Tx) (err error) {
		next, err = s.eachState(ctx, tx, 0, page)
		return err
	})
	if err != nil {
		return 0, err
	}
	return next, nil
}

// stateRow is a row of a part. err is why it could not be scanned.
type stateRow struct {
	agent agent.ID
	part  string
	order agent.Order
	data  []byte
	err   error
}

func (s *Store) eachState(ctx context.Context, tx *sql.Tx, since int64, page func([]agent.State) error) (next int64, err error) {
	var states []agent.State
	err = pages.Each(pageOfStates.rows, func(add func() *stateRow) (err error) {
		next, err = s.readSince(ctx, tx, pageOfStates, `
SELECT agent_id, part, epoch, sequence, said, data FROM agent_states`, since, ` ORDER BY agent_id, part`, func(rows *sql.Rows) error {
			r := add()
			if r == nil {
				return pages.ErrStopped
			}
			*r = stateRow{}
			if r.err = rows.Scan(&r.agent, &r.part, &r.order.Epoch, &r.order.Sequence, &r.order.Said, &r.data); r.err != nil {
				if _, ended := rows.Columns(); ended != nil {
					return r.err
				}
			}
			return nil
		})
		return err
	}, func(rows []stateRow) error {
		for i := range rows {
			r := &rows[i]
			last := len(states) - 1
			st := agent.State{Agent: r.agent}
			more := last >= 0 && states[last].Agent == r.agent
			if more {
				st = states[last]
			}
			if r.err == nil {
				r.err = stateparts.Set(&st, r.part, r.order, r.data)
			}
			switch {
			case s.undecodable.Agent(r.agent):
			case r.err != nil:
				s.undecodable.Report(ctx, kindStates, idKey(r.agent, r.part), r.err, time.Now())
			case more:
				states[last] = st
			default:
				states = append(states, st)
			}
		}
		// The last agent may have more rows.
		if whole := len(states) - 1; whole > 0 {
			if err := page(states[:whole]); err != nil {
				return err
			}
			states = append(states[:0], states[whole])
		}
		return nil
	})
	if err != nil || len(states) == 0 {
		return next, err
	}
	return next, page(states)
}
