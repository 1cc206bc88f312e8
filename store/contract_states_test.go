package store

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func testStates(t *testing.T, s *Store) {
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, states)

	register(t, s, id(1), id(2), id(3))
	full := agent.State{
		Agent:          id(1),
		Lifecycle:      agent.Lifecycle{State: agent.LifecycleStartTimeout, ChangedAt: time.Unix(7, 9).UTC()},
		LifecycleOrder: agent.Order{Epoch: 1, Sequence: 1},
		AppHealth:      map[agent.ID]agent.AppHealth{id(203): agent.AppHealthUnhealthy, id(204): agent.AppHealthHealthy},
		AppHealthOrder: agent.Order{Epoch: 1, Sequence: 2},
		Network: agent.Network{
			NodeID: 1<<63 + 1, PreferredRegion: 10,
			Regions: []agent.Region{{ID: 10, Name: "Frankfurt", Latency: 1500 * time.Microsecond}, {ID: 11, Latency: -1}},
		},
		NetworkOrder: agent.Order{Epoch: 1, Sequence: 3},
	}
	partial := agent.State{Agent: id(2), LifecycleOrder: agent.Order{Epoch: 1}}
	silent := agent.State{Agent: id(3)}
	unknown := full
	unknown.Agent = id(99)
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{unknown, silent, partial, full}))
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{silent}))
	states, _, err = s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{full, partial}, states)

	unsaid := agent.State{Agent: id(3), LifecycleOrder: agent.Order{Epoch: 1}}
	unsaid.Lifecycle.ChangedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	require.ErrorIs(t, s.SaveStates(t.Context(), []agent.State{unsaid}), agent.ErrRejected)
}

// Each part of a state has its own order.
func testStatesOrder(t *testing.T, s *Store) {
	register(t, s, id(1))
	lifecycleAt := func(state agent.LifecycleState, epoch, sequence int64) agent.State {
		return agent.State{
			Agent:          id(1),
			Lifecycle:      agent.Lifecycle{State: state},
			LifecycleOrder: agent.Order{Epoch: epoch, Sequence: sequence},
		}
	}
	both := lifecycleAt(agent.LifecycleReady, 2, 5)
	both.Network.NodeID, both.NetworkOrder = 7, agent.Order{Epoch: 2, Sequence: 9}
	for _, st := range []agent.State{
		lifecycleAt(agent.LifecycleStarting, 2, 4),
		both,
		lifecycleAt(agent.LifecycleOff, 1, 99),
		lifecycleAt(agent.LifecycleCreated, 2, 5),
	} {
		require.NoError(t, s.SaveStates(t.Context(), []agent.State{st}))
	}
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{both}, states)

	newer := lifecycleAt(agent.LifecycleShuttingDown, 3, 1)
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{newer}))
	states, _, err = s.States(t.Context(), 0)
	require.NoError(t, err)
	both.Lifecycle, both.LifecycleOrder = newer.Lifecycle, newer.LifecycleOrder
	require.Equal(t, []agent.State{both}, states)
}

// A cursor misses nothing that is written after it was read.
func testStatesSince(t *testing.T, s *Store) {
	register(t, s, id(1), id(2))
	_, cursor, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	first := agent.State{Agent: id(1), Network: agent.Network{NodeID: 1}, NetworkOrder: agent.Order{Epoch: 1, Sequence: 1}}
	second := agent.State{Agent: id(2), Network: agent.Network{NodeID: 2}, NetworkOrder: agent.Order{Epoch: 1, Sequence: 1}}
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{first, second}))
	states, cursor, err := s.States(t.Context(), cursor)
	require.NoError(t, err)
	require.Equal(t, []agent.State{first, second}, states)

	first.Lifecycle.State, first.LifecycleOrder = agent.LifecycleReady, agent.Order{Epoch: 1, Sequence: 2}
	second.Network.NodeID, second.NetworkOrder = 3, agent.Order{Epoch: 1, Sequence: 2}
	require.NoError(t, s.SaveStates(t.Context(), []agent.State{first, second}))
	states, _, err = s.States(t.Context(), cursor)
	require.NoError(t, err)
	require.Len(t, states, 2)
	require.Equal(t, first.Lifecycle, states[0].Lifecycle)
	require.Equal(t, second, states[1])
}

func testSessions(t *testing.T, s *Store) {
	register(t, s, id(1), id(2))
	require.NoError(t, s.SaveSessions(t.Context(), nil))
	a := agent.SessionRecord{Agent: id(1), Epoch: 10, Replica: id(50), Open: true}
	b := agent.SessionRecord{Agent: id(2), Epoch: 20, Replica: id(60), Open: true, Unary: true, Reported: true}
	unknown := agent.SessionRecord{Agent: id(99), Epoch: 30}
	for _, c := range []struct {
		name  string
		saved []agent.SessionRecord
		want  []agent.SessionRecord
	}{
		{"first", []agent.SessionRecord{b, unknown, a}, []agent.SessionRecord{a, b}},
		{"older epoch", []agent.SessionRecord{{Agent: id(2), Epoch: 19, Replica: id(99)}}, []agent.SessionRecord{a, b}},
		{"lower replica", []agent.SessionRecord{{Agent: id(2), Epoch: 20, Replica: id(59)}}, []agent.SessionRecord{a, b}},
		{"same session reported", edit(&a, func() { a.Reported = true }), []agent.SessionRecord{a, b}},
		{"its older flags", []agent.SessionRecord{{Agent: id(1), Epoch: 10, Replica: id(50), Open: true}}, []agent.SessionRecord{a, b}},
		{"same session closed", edit(&a, func() { a.Open = false }), []agent.SessionRecord{a, b}},
		{"not opened again", []agent.SessionRecord{{Agent: id(1), Epoch: 10, Replica: id(50), Open: true, Reported: true}}, []agent.SessionRecord{a, b}},
		{"same session unary", edit(&a, func() { a.Unary = true }), []agent.SessionRecord{a, b}},
		{"higher replica", edit(&a, func() { a = agent.SessionRecord{Agent: id(1), Epoch: 10, Replica: id(51), Open: true} }), []agent.SessionRecord{a, b}},
		{"higher epoch", edit(&b, func() { b = agent.SessionRecord{Agent: id(2), Epoch: 21, Replica: id(1), Open: true} }), []agent.SessionRecord{a, b}},
		// One call may have several records of an agent.
		{"several", []agent.SessionRecord{
			{Agent: id(1), Epoch: 11, Replica: id(2), Reported: true},
			{Agent: id(1), Epoch: 11, Replica: id(2), Open: true},
			{Agent: id(1), Epoch: 11, Replica: id(1), Open: true},
		}, []agent.SessionRecord{{Agent: id(1), Epoch: 11, Replica: id(2), Reported: true}, b}},
	} {
		require.NoError(t, s.SaveSessions(t.Context(), c.saved), c.name)
		records, _, err := s.Sessions(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, c.want, records, c.name)
	}
}

// edit returns the record after a change of it.
func edit(r *agent.SessionRecord, change func()) []agent.SessionRecord {
	change()
	return []agent.SessionRecord{*r}
}

func testSessionsSince(t *testing.T, s *Store) {
	register(t, s, id(1), id(2))
	a, b := agent.SessionRecord{Agent: id(1), Epoch: 1, Open: true}, agent.SessionRecord{Agent: id(2), Epoch: 1, Open: true}
	require.NoError(t, s.SaveSessions(t.Context(), []agent.SessionRecord{a}))
	_, cursor, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.NoError(t, s.SaveSessions(t.Context(), []agent.SessionRecord{b}))
	records, cursor, err := s.Sessions(t.Context(), cursor)
	require.NoError(t, err)
	require.Contains(t, records, b)
	a.Open = false
	require.NoError(t, s.SaveSessions(t.Context(), []agent.SessionRecord{a}))
	records, _, err = s.Sessions(t.Context(), cursor)
	require.NoError(t, err)
	require.Contains(t, records, a)
}
