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
func (s *Store) SaveStates(ctx context.Context, states []agent.State) (newer []agent.StoredEpoch, err error) {
	const doing = "save states"
	said := false
	states = slices.Clone(states)
	for i := range states {
		if err := storedState(&states[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		st := &states[i]
		said = said || st.LifecycleOrder != (agent.Order{}) || st.StartedOrder != (agent.Order{}) || st.StartEnded() ||
			len(st.AppHealth) > 0 || st.NetworkOrder != (agent.Order{})
	}
	if !said {
		return nil, nil
	}
	slices.SortStableFunc(states, func(a, b agent.State) int { return compareIDs(a.Agent, b.Agent) })
	err = s.runEach(ctx, func() (transaction, func()) {
		var lost []agent.StoredEpoch
		return transaction{doing: doing, apply: func(t *tables, number int64) error {
			for i := range states {
				if t.of(states[i].Agent, states[i].Incarnation) {
					t.putState(&states[i], number)
				}
			}
			for i := range states {
				id := states[i].Agent
				if states[i].Incarnation != 0 && !t.of(id, states[i].Incarnation) {
					lost = append(lost, agent.StoredEpoch{Agent: id})
				} else if epoch, first := t.states[id].against(&states[i]); epoch > 0 {
					lost = append(lost, agent.StoredEpoch{Agent: id, Epoch: epoch, First: first})
				}
			}
			return nil
		}}, func() { newer = lost }
	})
	if err != nil {
		return nil, err
	}
	return newer, nil
}

// against returns the highest epoch of the parts that st lost against, 0 if it lost
// nothing, and whether one of them is lower.
func (r stateRow) against(st *agent.State) (epoch int64, first bool) {
	type pair struct{ said, stored agent.Order }
	parts := []pair{
		{st.LifecycleOrder, r.LifecycleOrder}, {st.StartedOrder, r.began.StartedOrder}, {st.NetworkOrder, r.NetworkOrder},
	}
	if st.StartEnded() {
		parts = append(parts, pair{st.ReadyOrder, r.ended.ReadyOrder})
	}
	for app, order := range st.AppHealthOrder {
		parts = append(parts, pair{order, r.AppHealthOrder[app]})
	}
	for _, p := range parts {
		if p.said != (agent.Order{}) && p.stored.Epoch != p.said.Epoch {
			epoch, first = max(epoch, p.stored.Epoch), first || p.stored.Epoch < p.said.Epoch
		}
	}
	return epoch, first
}

// storedState makes of a state what is read back of it.
func storedState(st *agent.State) error {
	for _, at := range []*time.Time{&st.Lifecycle.ChangedAt, &st.Startup.StartedAt, &st.Startup.ReadyAt} {
		if y := at.Year(); y < 0 || y > 9999 {
			return fmt.Errorf("lifecycle of agent %s: %w: year %d", st.Agent, agent.ErrRejected, y)
		}
		*at = at.Round(0).UTC()
	}
	st.AppHealth, st.AppHealthOrder = maps.Clone(st.AppHealth), maps.Clone(st.AppHealthOrder)
	st.Network.Regions = slices.Clone(st.Network.Regions)
	return nil
}

func (t *tables) putState(st *agent.State, number int64) {
	row := t.states[st.Agent]
	row.Agent = st.Agent
	if st.LifecycleOrder.Follows(row.LifecycleOrder) {
		row.Lifecycle, row.LifecycleOrder = st.Lifecycle, asStored(st.LifecycleOrder)
		row.lifecycle = number
	}
	if st.StartedOrder.Follows(row.began.StartedOrder) && row.began.SetStarted(st.Startup.StartedAt, asStored(st.StartedOrder)) {
		row.started = number
	}
	if st.StartEnded() && st.ReadyOrder.Follows(row.ended.ReadyOrder) && row.ended.SetReady(st.Startup, asStored(st.ReadyOrder)) {
		row.ready = number
	}
	row = row.own()
	for app, health := range st.AppHealth {
		order := st.AppHealthOrder[app]
		if order.Follows(row.AppHealthOrder[app]) && row.SetAppHealth(app, health, asStored(order)) {
			row.appHealth[app] = number
		}
	}
	if st.NetworkOrder.Follows(row.NetworkOrder) {
		row.Network, row.NetworkOrder = st.Network, asStored(st.NetworkOrder)
		row.network = number
	}
	if max(row.lifecycle, row.started, row.ready, row.network) > 0 || len(row.appHealth) > 0 {
		t.states[st.Agent] = row
	}
}

// own returns the row with maps of its own.
func (r stateRow) own() stateRow {
	r.AppHealth, r.AppHealthOrder = maps.Clone(r.AppHealth), maps.Clone(r.AppHealthOrder)
	apps := make(map[agent.ID]int64, len(r.appHealth))
	maps.Copy(apps, r.appHealth)
	r.appHealth = apps
	return r
}

// forgetApps deletes the health of apps that an agent does not have.
func (t *tables) forgetApps(reg *agent.Registration) {
	row, said := t.states[reg.ID]
	if !said {
		return
	}
	row = row.own()
	for app := range row.appHealth {
		if !slices.ContainsFunc(reg.Apps, func(a agent.App) bool { return a.ID == app }) {
			delete(row.AppHealth, app)
			delete(row.AppHealthOrder, app)
			delete(row.appHealth, app)
		}
	}
	t.states[reg.ID] = row
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

// EachState is as in store.Store.
func (s *Store) EachState(ctx context.Context, page func([]agent.State) error) (next int64, err error) {
	states, next, err := s.States(ctx, 0)
	if err != nil {
		return 0, err
	}
	return next, inPages(states, page)
}

// since returns the parts that were written by a transaction from number on.
func (r stateRow) since(number int64) (st agent.State, any bool) {
	st.Agent = r.Agent
	if r.lifecycle > 0 && r.lifecycle >= number {
		st.Lifecycle, st.LifecycleOrder = r.Lifecycle, r.LifecycleOrder
		any = true
	}
	if r.started > 0 && r.started >= number {
		st.SetStarted(r.began.Startup.StartedAt, r.began.StartedOrder)
		any = true
	}
	if r.ready > 0 && r.ready >= number {
		st.SetReady(r.ended.Startup, r.ended.ReadyOrder)
		any = true
	}
	for app, written := range r.appHealth {
		if written >= number {
			st.SetAppHealth(app, r.AppHealth[app], r.AppHealthOrder[app])
			any = true
		}
	}
	if r.network > 0 && r.network >= number {
		st.Network, st.NetworkOrder = r.Network, r.NetworkOrder
		any = true
	}
	return st, any
}
