package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// SaveStates is as in store.Store.
func (s *Store) SaveStates(ctx context.Context, states []agent.State) error {
	const doing = "save states"
	said := false
	states = slices.Clone(states)
	for i := range states {
		if err := storedState(&states[i]); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		st := &states[i]
		said = said || st.LifecycleOrder != (agent.Order{}) || st.AppHealthOrder != (agent.Order{}) || st.NetworkOrder != (agent.Order{})
	}
	if !said {
		return nil
	}
	return s.run(ctx, transaction{doing: doing, apply: func(t *tables, number int64) error {
		for i := range states {
			if _, known := t.agents[states[i].Agent]; known {
				t.putState(&states[i], number)
			}
		}
		return nil
	}})
}

// storedState makes of a state what is read back of it.
func storedState(st *agent.State) error {
	for _, at := range []*time.Time{&st.Lifecycle.ChangedAt, &st.Startup.StartedAt, &st.Startup.ReadyAt} {
		if y := at.Year(); y < 0 || y > 9999 {
			return fmt.Errorf("lifecycle of agent %s: %w: year %d", st.Agent, agent.ErrRejected, y)
		}
		*at = at.Round(0).UTC()
	}
	st.AppHealth = maps.Clone(st.AppHealth)
	st.Network.Regions = slices.Clone(st.Network.Regions)
	return nil
}

func (t *tables) putState(st *agent.State, number int64) {
	row := t.states[st.Agent]
	row.Agent = st.Agent
	if st.LifecycleOrder.Compare(row.LifecycleOrder) > 0 {
		row.Lifecycle, row.LifecycleOrder, row.Startup = st.Lifecycle, st.LifecycleOrder, st.Startup
		row.lifecycle = number
	}
	if st.AppHealthOrder.Compare(row.AppHealthOrder) > 0 {
		row.AppHealth, row.AppHealthOrder = st.AppHealth, st.AppHealthOrder
		row.appHealth = number
	}
	if st.NetworkOrder.Compare(row.NetworkOrder) > 0 {
		row.Network, row.NetworkOrder = st.Network, st.NetworkOrder
		row.network = number
	}
	if max(row.lifecycle, row.appHealth, row.network) > 0 {
		t.states[st.Agent] = row
	}
}

// States is as in store.Store.
func (s *Store) States(ctx context.Context, since int64) (states []agent.State, next int64, err error) {
	err = s.run(ctx, transaction{doing: "read states", prepare: func(t *tables) error {
		next = s.db.cursorLocked(t)
		states = nil
		from := since
		if from > next {
			from = 0
		}
		for _, id := range sortedKeys(t.states) {
			if st, any := t.states[id].since(from); any {
				states = append(states, st)
			}
		}
		return nil
	}})
	if err != nil {
		return nil, 0, err
	}
	return states, next, nil
}

// since returns the parts that were written by a transaction from number on.
func (r stateRow) since(number int64) (st agent.State, any bool) {
	st.Agent = r.Agent
	if r.lifecycle > 0 && r.lifecycle >= number {
		st.Lifecycle, st.LifecycleOrder, st.Startup = r.Lifecycle, r.LifecycleOrder, r.Startup
		any = true
	}
	if r.appHealth > 0 && r.appHealth >= number {
		st.AppHealth, st.AppHealthOrder = maps.Clone(r.AppHealth), r.AppHealthOrder
		any = true
	}
	if r.network > 0 && r.network >= number {
		st.Network, st.NetworkOrder = r.Network, r.NetworkOrder
		any = true
	}
	return st, any
}
