package storetest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func testStates(t *testing.T, s Store) {
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, states)

	register(t, s, id(1), id(2), id(3))
	full := agent.State{
		Agent:          id(1),
		Lifecycle:      agent.Lifecycle{State: agent.LifecycleStartTimeout, ChangedAt: time.Unix(7, 9).UTC()},
		LifecycleOrder: agent.Order{Epoch: 1, Sequence: 1},
		AppHealth:      map[agent.ID]agent.AppHealth{id(203): agent.AppHealthUnhealthy, id(204): agent.AppHealthHealthy},
		AppHealthOrder: map[agent.ID]agent.Order{id(203): {Epoch: 1, Sequence: 2}, id(204): {Epoch: 1, Sequence: 4}},
		Network: agent.Network{
			NodeID: 1<<63 + 1, PreferredRegion: 10,
			Regions: []agent.Region{{ID: 10, Name: "Frankfurt", Latency: 1500 * time.Microsecond}, {ID: 11, Latency: -1}},
		},
		NetworkOrder: agent.Order{Epoch: 1, Sequence: 3},
	}
	partial := agent.State{Agent: id(2), LifecycleOrder: agent.Order{Epoch: 1, Said: 77}}
	silent := agent.State{Agent: id(3)}
	unknown := full
	unknown.Agent = id(99)
	saveStates(t, s, []agent.State{unknown, silent, partial, full})
	saveStates(t, s, []agent.State{silent})
	states, _, err = s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{full, partial}, states)

	unsaid := agent.State{Agent: id(3), LifecycleOrder: agent.Order{Epoch: 1}}
	unsaid.Lifecycle.ChangedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err = s.SaveStates(t.Context(), []agent.State{unsaid})
	require.ErrorIs(t, err, agent.ErrRejected)
}

// Each part of a state has its own order.
func testStatesOrder(t *testing.T, s Store) {
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
		saveStates(t, s, []agent.State{st})
	}
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{both}, states)

	newer := lifecycleAt(agent.LifecycleShuttingDown, 3, 1)
	saveStates(t, s, []agent.State{newer})
	states, _, err = s.States(t.Context(), 0)
	require.NoError(t, err)
	both.Lifecycle, both.LifecycleOrder = newer.Lifecycle, newer.LifecycleOrder
	require.Equal(t, []agent.State{both}, states)
}

// Two writers report the beginning and the end of a start, each knowing nothing of the
// other. Both are merged, whoever comes first; a cursor finds both. What is of an older
// start changes nothing.
func testStartup(t *testing.T, s Store) {
	register(t, s, id(1), id(2))
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	said := func(n byte, state agent.LifecycleState, epoch, sequence int64) agent.State {
		st := agent.State{Agent: id(n)}
		require.True(t, st.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: at(10*epoch + sequence)}, agent.Order{Epoch: epoch, Sequence: sequence}))
		return st
	}
	_, cursor, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	for _, st := range []agent.State{
		said(1, agent.LifecycleStarting, 2, 1),
		said(1, agent.LifecycleReady, 3, 1),
		said(1, agent.LifecycleStarting, 1, 9),
		said(1, agent.LifecycleStartError, 1, 10),
		said(2, agent.LifecycleStartTimeout, 3, 1),
		said(2, agent.LifecycleStarting, 2, 1),
	} {
		saveStates(t, s, []agent.State{st})
	}
	want := func(n byte, state agent.LifecycleState) agent.State {
		st := said(n, state, 3, 1)
		st.SetStarted(at(21), agent.Order{Epoch: 2, Sequence: 1})
		return st
	}
	both := []agent.State{want(1, agent.LifecycleReady), want(2, agent.LifecycleStartTimeout)}
	require.Equal(t, agent.Startup{StartedAt: at(21), ReadyAt: at(31), Result: agent.LifecycleReady}, both[0].Startup)
	for _, since := range []int64{0, cursor} {
		states, _, err := s.States(t.Context(), since)
		require.NoError(t, err)
		require.Equal(t, both, states)
	}

	saveStates(t, s, []agent.State{said(1, agent.LifecycleStarting, 4, 1)})
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, agent.Startup{StartedAt: at(41)}, states[0].Startup)
}

// What two writers say of the apps of one agent is merged by app, and a cursor
// finds what it has not seen. The health of an app that the agent does not have
// any more is forgotten.
func testAppHealth(t *testing.T, s Store) {
	register(t, s, id(1))
	said := func(app byte, health agent.AppHealth, epoch, sequence int64) agent.State {
		st := agent.State{Agent: id(1)}
		require.True(t, st.SetAppHealth(id(app), health, agent.Order{Epoch: epoch, Sequence: sequence}))
		return st
	}
	old := said(201, agent.AppHealthUnhealthy, 1, 1)
	old.SetAppHealth(id(203), agent.AppHealthInitializing, agent.Order{Epoch: 1, Sequence: 2})
	saveStates(t, s, []agent.State{old})
	_, cursor, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	for _, st := range []agent.State{
		said(203, agent.AppHealthHealthy, 2, 1), // of a writer that knows nothing of the other app
		said(203, agent.AppHealthUnhealthy, 1, 9),
	} {
		saveStates(t, s, []agent.State{st})
	}
	want := said(201, agent.AppHealthUnhealthy, 1, 1)
	want.SetAppHealth(id(203), agent.AppHealthHealthy, agent.Order{Epoch: 2, Sequence: 1})
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{want}, states)
	states, _, err = s.States(t.Context(), cursor)
	require.NoError(t, err)
	require.Len(t, states, 1)
	require.Equal(t, agent.AppHealthHealthy, states[0].AppHealth[id(203)])

	reg := registration(id(1), id(100))
	reg.Apps = []agent.App{{ID: id(203), Slug: "kept"}}
	apply(t, s, agent.Change{Agents: []agent.Registration{reg}})
	states, _, err = s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{said(203, agent.AppHealthHealthy, 2, 1)}, states)
}

// A cursor misses nothing that is written after it was read.
func testStatesSince(t *testing.T, s Store) {
	register(t, s, id(1), id(2))
	_, cursor, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	first := agent.State{Agent: id(1), Network: agent.Network{NodeID: 1}, NetworkOrder: agent.Order{Epoch: 1, Sequence: 1}}
	second := agent.State{Agent: id(2), Network: agent.Network{NodeID: 2}, NetworkOrder: agent.Order{Epoch: 1, Sequence: 1}}
	saveStates(t, s, []agent.State{first, second})
	states, cursor, err := s.States(t.Context(), cursor)
	require.NoError(t, err)
	require.Equal(t, []agent.State{first, second}, states)

	first.Lifecycle.State, first.LifecycleOrder = agent.LifecycleReady, agent.Order{Epoch: 1, Sequence: 2}
	second.Network.NodeID, second.NetworkOrder = 3, agent.Order{Epoch: 1, Sequence: 2}
	saveStates(t, s, []agent.State{first, second})
	states, _, err = s.States(t.Context(), cursor)
	require.NoError(t, err)
	require.Len(t, states, 2)
	require.Equal(t, first.Lifecycle, states[0].Lifecycle)
	require.Equal(t, second, states[1])
}

func testSessions(t *testing.T, s Store) {
	register(t, s, id(1), id(2))
	want := map[agent.ID]agent.SessionRecord{}
	// save expects that nothing changes but what change does.
	save := func(name string, change func(), saved ...agent.SessionRecord) {
		t.Helper()
		saveSessions(t, s, saved)
		change()
		records, _, err := s.Sessions(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, []agent.SessionRecord{want[id(1)], want[id(2)]}, records, name)
	}
	of := func(n byte, epoch int64, replica byte, flags string) agent.SessionRecord {
		return agent.SessionRecord{
			Agent: id(n), Epoch: epoch, Replica: id(replica),
			Open: strings.Contains(flags, "o"), Reported: strings.Contains(flags, "r"), Relayed: strings.Contains(flags, "y"),
		}
	}
	set := func(r agent.SessionRecord) func() { return func() { want[r.Agent] = r } }
	same := func() {}

	saveSessions(t, s, nil)
	want[id(1)] = of(1, 10, 50, "o")
	save("first", set(of(2, 20, 60, "ory")), of(2, 20, 60, "ory"), of(99, 30, 1, "o"), of(1, 10, 50, "o"))
	save("older epoch", same, of(2, 19, 99, ""))
	save("lower replica", same, of(2, 20, 59, ""))
	save("reported", set(of(1, 10, 50, "or")), of(1, 10, 50, "or"))
	save("of before the report", same, of(1, 10, 50, "o"))
	save("closed, of before the report", set(of(1, 10, 50, "r")), of(1, 10, 50, ""))
	save("of before the end", same, of(1, 10, 50, "or"))
	save("higher replica", set(of(1, 10, 51, "o")), of(1, 10, 51, "o"))
	save("higher epoch", set(of(2, 21, 1, "o")), of(2, 21, 1, "o"))
	save("relayed", set(of(2, 22, 1, "oy")), of(2, 22, 1, "oy"))
	save("of one session", set(of(2, 22, 1, "ory")), of(2, 22, 1, "or"))
	// One call may have several records of an agent.
	save("several", set(of(1, 11, 2, "r")), of(1, 11, 2, "r"), of(1, 11, 2, "o"), of(1, 11, 1, "o"))
}

// What was stored before a write shows whether the session of the record opened below
// another one.
func testSessionsBefore(t *testing.T, s Store) {
	register(t, s, id(1), id(2), id(3))
	incarnation := registrations(t, s).Agents[0].Incarnation
	save := func(want []agent.SessionRecord, records ...agent.SessionRecord) {
		t.Helper()
		before, err := s.SaveSessions(t.Context(), records)
		require.NoError(t, err)
		require.Equal(t, want, before)
	}
	of := func(n byte, epoch int64, replica byte) agent.SessionRecord {
		r := agent.SessionRecord{Agent: id(n), Epoch: epoch}
		if replica != 0 {
			r.Replica = id(replica)
		}
		return r
	}
	save(nil)
	first := of(1, 10, 50)
	first.Open, first.Reported, first.Incarnation = true, true, incarnation
	save([]agent.SessionRecord{of(1, 0, 0), of(2, 0, 0)}, of(2, 20, 60), first)
	save([]agent.SessionRecord{of(1, 10, 50), of(2, 20, 60), of(3, 0, 0)}, of(3, 1, 50), of(2, 19, 50), of(1, 11, 51))
	save([]agent.SessionRecord{of(1, 11, 51), of(2, 20, 60)}, of(1, 11, 51), of(2, 21, 50), of(2, 22, 50))
	gone := of(1, 12, 50)
	gone.Incarnation = incarnation + 1
	save([]agent.SessionRecord{of(2, 22, 50)}, gone, of(2, 1, 50), of(99, 1, 50))
}

func testSessionsSince(t *testing.T, s Store) {
	register(t, s, id(1), id(2))
	a, b := agent.SessionRecord{Agent: id(1), Epoch: 1, Open: true}, agent.SessionRecord{Agent: id(2), Epoch: 1, Open: true}
	saveSessions(t, s, []agent.SessionRecord{a})
	_, cursor, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	saveSessions(t, s, []agent.SessionRecord{b})
	records, cursor, err := s.Sessions(t.Context(), cursor)
	require.NoError(t, err)
	require.Contains(t, records, b)
	a.Open = false
	saveSessions(t, s, []agent.SessionRecord{a})
	records, _, err = s.Sessions(t.Context(), cursor)
	require.NoError(t, err)
	require.Contains(t, records, a)
}

// Who loses against a higher epoch gets that in the answer. What is the same again in its
// session, or is older in it, is not lost.
func testNewerEpochs(t *testing.T, open func(testing.TB, Options) Store) {
	s := open(t, Options{TouchInterval: time.Hour})
	register(t, s, id(1), id(2), id(3))
	upsert(t, s, []agent.Metadata{
		row(id(1), "a", "1", 5, 1), row(id(1), "b", "1", 7, 1), row(id(1), "c", "1", 9, 1),
		row(id(2), "a", "1", 5, 1), row(id(3), "a", "1", 5, 1),
	})
	for name, c := range map[string]struct {
		rows  []agent.Metadata
		newer []agent.StoredEpoch
	}{
		"unchanged":      {[]agent.Metadata{row(id(1), "a", "1", 5, 2), row(id(2), "a", "1", 5, 2)}, nil},
		"older sequence": {[]agent.Metadata{row(id(1), "a", "2", 5, 0)}, nil},
		"another key's":  {[]agent.Metadata{row(id(1), "a", "1", 5, 2), row(id(1), "d", "1", 5, 2)}, nil},
		"lower": {
			[]agent.Metadata{row(id(3), "a", "2", 4, 9), row(id(2), "a", "1", 5, 2), row(id(1), "a", "2", 4, 9)},
			[]agent.StoredEpoch{{Agent: id(1), Key: "a", Epoch: 5}, {Agent: id(3), Key: "a", Epoch: 5}},
		},
		"each key": {
			[]agent.Metadata{row(id(1), "c", "2", 4, 9), row(id(1), "b", "2", 4, 9), row(id(1), "e", "2", 4, 9)},
			[]agent.StoredEpoch{{Agent: id(1), Key: "b", Epoch: 7}, {Agent: id(1), Key: "c", Epoch: 9}},
		},
	} {
		_, newer, err := s.UpsertMetadata(t.Context(), c.rows)
		require.NoError(t, err, name)
		require.Equal(t, c.newer, newer, name)
	}

	full := func(n byte, epoch, sequence int64) agent.State {
		return fullState(n, agent.Order{Epoch: epoch, Sequence: sequence})
	}
	for name, part := range stateParts {
		saveStates(t, s, []agent.State{part(full(1, 5, 1)), part(full(2, 5, 1))})
		newer, err := s.SaveStates(t.Context(), []agent.State{part(full(2, 6, 1)), part(full(1, 5, 0)), part(full(3, 1, 1))})
		require.NoError(t, err)
		require.Empty(t, newer, name)
		newer, err = s.SaveStates(t.Context(), []agent.State{part(full(3, 2, 1)), part(full(2, 5, 9)), part(full(1, 4, 9))})
		require.NoError(t, err)
		require.Equal(t, []agent.StoredEpoch{{Agent: id(1), Epoch: 5}, {Agent: id(2), Epoch: 6}}, newer, name)
	}
	newer, err := s.SaveStates(t.Context(), []agent.State{full(99, 1, 1)})
	require.NoError(t, err)
	require.Empty(t, newer, "of an unknown agent")
}

// fullState says something of each part.
func fullState(n byte, order agent.Order) agent.State {
	st := agent.State{Agent: id(n), NetworkOrder: order}
	st.Network.NodeID = uint64(order.Epoch)
	st.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, order)
	st.SetAppHealth(id(203), agent.AppHealthHealthy, order)
	return st
}

// stateParts return the parts of a state.
var stateParts = map[string]func(agent.State) agent.State{
	"lifecycle": func(st agent.State) agent.State {
		return agent.State{Agent: st.Agent, Lifecycle: st.Lifecycle, LifecycleOrder: st.LifecycleOrder}
	},
	"network": func(st agent.State) agent.State {
		return agent.State{Agent: st.Agent, NetworkOrder: st.NetworkOrder}
	},
	"ready": func(st agent.State) agent.State {
		return agent.State{Agent: st.Agent, Startup: st.Startup, ReadyOrder: st.ReadyOrder}
	},
	"started": func(st agent.State) agent.State {
		return agent.State{Agent: st.Agent, StartedOrder: st.ReadyOrder}
	},
	"app health": func(st agent.State) agent.State {
		return agent.State{Agent: st.Agent, AppHealth: st.AppHealth, AppHealthOrder: st.AppHealthOrder}
	},
}

// A row that a session did not know of stays, although its epoch is lower. What would
// take its place is left out, and its writer gets an error.
func testFirstStays(t *testing.T, s Store) {
	register(t, s, id(1), id(2))
	for name, c := range map[string]struct {
		stored int64
		order  agent.Order
		lands  bool
	}{
		"nothing is stored":      {0, agent.Order{Epoch: 9, Basis: 1}, true},
		"known to be stored":     {5, agent.Order{Epoch: 9, Basis: 5}, true},
		"below what is":          {5, agent.Order{Epoch: 9, Basis: 6}, true},
		"above what is":          {5, agent.Order{Epoch: 9, Basis: 4}, false},
		"the one before":         {5, agent.Order{Epoch: 9, Basis: 1, Previous: 5}, true},
		"below the one before":   {5, agent.Order{Epoch: 9, Basis: 1, Previous: 6}, false},
		"above the one before":   {5, agent.Order{Epoch: 9, Basis: 1, Previous: 4}, false},
		"nothing was known":      {5, agent.Order{Epoch: 9, Basis: 1}, false},
		"the session itself":     {9, agent.Order{Epoch: 9, Basis: 1}, true},
		"whatever is known":      {5, agent.Order{Epoch: 9}, true},
		"of a lower epoch":       {11, agent.Order{Epoch: 9, Basis: 1, Previous: 11}, false},
		"of a lower, known once": {11, agent.Order{Epoch: 9, Basis: 20}, false},
	} {
		c.order.Sequence = 2
		before := agent.Order{Epoch: c.stored, Sequence: 1}
		want := c.order
		var lost agent.StoredEpoch
		if !c.lands {
			want, lost = before, agent.StoredEpoch{Agent: id(1), Epoch: c.stored, First: c.stored < c.order.Epoch}
		}
		want.Basis, want.Previous = 0, 0
		beside := agent.Order{Epoch: 1, Sequence: 1}
		check := func(part string, is []agent.StoredEpoch, stored agent.Order) {
			require.Equal(t, want, stored, "%s: %s", name, part)
			if c.lands {
				require.Empty(t, is, "%s: %s", name, part)
			} else {
				require.Equal(t, []agent.StoredEpoch{lost}, is, "%s: %s", name, part)
			}
		}

		key := name
		if c.stored != 0 {
			upsert(t, s, []agent.Metadata{row(id(1), key, "first", before.Epoch, before.Sequence)})
		}
		m := row(id(1), key, "second", 0, 0)
		m.Order = c.order
		_, newer, err := s.UpsertMetadata(t.Context(), []agent.Metadata{m, row(id(2), key, "beside", 1, 1)})
		require.NoError(t, err)
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
		require.NoError(t, err)
		i := slices.IndexFunc(found, func(m agent.Metadata) bool { return m.Key == key })
		require.Equal(t, want == before, found[i].Value == "first", name)
		lost.Key = key
		check("metadata", newer, found[i].Order)
		lost.Key = ""

		for part, of := range stateParts {
			// Registered anew, the agents have said nothing.
			apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1), id(2)}})
			register(t, s, id(1), id(2))
			if c.stored != 0 {
				saveStates(t, s, []agent.State{of(fullState(1, before))})
			}
			newer, err := s.SaveStates(t.Context(), []agent.State{of(fullState(1, c.order)), of(fullState(2, beside))})
			require.NoError(t, err)
			states, _, err := s.States(t.Context(), 0)
			require.NoError(t, err)
			require.Len(t, states, 2)
			require.Equal(t, of(fullState(1, want)), states[0], "%s: %s", name, part)
			check(part, newer, agent.Order{Epoch: states[0].MaxEpoch(), Sequence: want.Sequence})
		}
	}
}
