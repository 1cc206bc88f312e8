package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func testRegistrations(t *testing.T, s Store) {
	require.Equal(t, agent.Registrations{Revision: 1, Complete: true}, registrations(t, s))

	full := registration(id(1), id(100))
	requireWhole(t, full, "Incarnation") // which the store gives
	requireWhole(t, full.Workspace)
	bare := agent.Registration{ID: id(2), Workspace: agent.Workspace{ID: id(101)}}
	lonely := agent.Workspace{ID: id(102), Name: "stopped"}
	revision, err := s.ApplyChange(t.Context(), 1, agent.Change{
		Agents:     []agent.Registration{bare, full},
		Workspaces: []agent.Workspace{lonely},
	})
	require.NoError(t, err)
	require.EqualValues(t, 2, revision)

	require.Equal(t, agent.Registrations{
		Revision: 2, Complete: true,
		Agents:     []agent.Registration{full, bare},
		Workspaces: []agent.Workspace{full.Workspace, bare.Workspace, lonely},
	}, registrations(t, s))
}

func testRegistrationsReplaced(t *testing.T, s Store) {
	r := registration(id(1), id(100))
	sibling := registration(id(2), id(100))
	apply(t, s, agent.Change{Agents: []agent.Registration{r, sibling}})
	kept := row(id(1), "cpu", "1", 5, 1)
	upsert(t, s, []agent.Metadata{kept})
	session := agent.SessionRecord{Agent: id(1), Epoch: 5, Replica: id(50), Open: true}
	saveSessions(t, s, []agent.SessionRecord{session})
	state := agent.State{
		Agent:          id(1),
		Lifecycle:      agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: time.Unix(9, 0).UTC()},
		LifecycleOrder: agent.Order{Epoch: 5, Sequence: 2},
		Startup:        agent.Startup{StartedAt: time.Unix(7, 0).UTC(), ReadyAt: time.Unix(9, 0).UTC(), Result: agent.LifecycleReady},
		StartedOrder:   agent.Order{Epoch: 5, Sequence: 1},
		ReadyOrder:     agent.Order{Epoch: 5, Sequence: 2},
	}
	saveStates(t, s, []agent.State{state})

	r.Name, r.Apps, r.MetadataKeys, r.Parent = "renamed", nil, nil, agent.ID{}
	r.TokenHash[0] = 77
	r.Workspace.Name, r.Workspace.Template.Version = "dev2", "v4"
	r.Workspace.Build = agent.Build{ID: id(9), CreatedAt: r.CreatedAt, Transition: "stop"}
	// Of several statements on one row in a change the last counts.
	older := registration(id(1), id(100))
	older.Workspace.Name = "dev1"
	apply(t, s, agent.Change{
		Agents:     []agent.Registration{older, r},
		Workspaces: []agent.Workspace{{ID: id(100)}},
	})

	sibling.Workspace = r.Workspace
	got := registrations(t, s)
	require.Equal(t, []agent.Registration{r, sibling}, got.Agents)
	require.Equal(t, []agent.Workspace{r.Workspace}, got.Workspaces)

	// What the agent said outlives a new registration of it.
	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{kept}, found)
	sessions, _, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.SessionRecord{session}, sessions)
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, []agent.State{state}, states)
}

func testRegistrationsRemoved(t *testing.T, s Store) {
	apply(t, s, agent.Change{Agents: []agent.Registration{
		registration(id(1), id(100)), registration(id(2), id(100)), registration(id(3), id(101)),
	}})
	order := agent.Order{Epoch: 4, Sequence: 1}
	for _, a := range []agent.ID{id(1), id(2), id(3)} {
		upsert(t, s, []agent.Metadata{row(a, "k", "v", 4, 1)})
		saveStates(t, s, []agent.State{{Agent: a, NetworkOrder: order}})
		saveSessions(t, s, []agent.SessionRecord{{Agent: a, Epoch: 4}})
	}

	// Removals come first: agent 2 moves to the workspace's successor.
	before := registrations(t, s).Revision
	moved := registration(id(2), id(102))
	apply(t, s, agent.Change{
		RemovedAgents:     []agent.ID{id(1), id(2), id(99), id(1)},
		RemovedWorkspaces: []agent.ID{id(101), id(98)},
		Agents:            []agent.Registration{moved},
	})

	got := registrations(t, s)
	require.Equal(t, []agent.Registration{moved}, got.Agents)
	require.Equal(t, []agent.ID{id(100), id(102)}, []agent.ID{got.Workspaces[0].ID, got.Workspaces[1].ID})
	require.Empty(t, metadataKeys(t, s))
	states, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, states)
	sessions, _, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, sessions)

	// Agents go with their workspace; who came back is there.
	changes, err := registrationsSince(t, s, before)
	require.NoError(t, err)
	require.Equal(t, agent.Registrations{
		Revision:          before + 1,
		Agents:            []agent.Registration{moved},
		Workspaces:        []agent.Workspace{moved.Workspace},
		RemovedAgents:     []agent.ID{id(1), id(3)},
		RemovedWorkspaces: []agent.ID{id(101)},
	}, changes)
}

// An agent that was removed and comes back is another one, also for who reads
// nothing in between.
func testRegistrationsIncarnation(t *testing.T, s Store) {
	incarnation := func(since int64, n byte) int64 {
		r, err := s.Registrations(t.Context(), since)
		require.NoError(t, err)
		i := slices.IndexFunc(r.Agents, func(r agent.Registration) bool { return r.ID == id(n) })
		require.GreaterOrEqual(t, i, 0)
		return r.Agents[i].Incarnation
	}
	register(t, s, id(1), id(2))
	before := registrations(t, s).Revision
	first := incarnation(0, 1)
	changed := registration(id(1), id(100))
	changed.Name = "renamed"
	apply(t, s, agent.Change{Agents: []agent.Registration{changed}})
	require.Equal(t, first, incarnation(before, 1), "a change makes nobody another one")
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
	apply(t, s, agent.Change{Agents: []agent.Registration{changed}})
	second := incarnation(before, 1)
	require.Greater(t, second, first)
	require.Equal(t, second, incarnation(0, 1))
	// In one change, and with the workspace.
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}, Agents: []agent.Registration{changed}})
	third := incarnation(before, 1)
	require.Greater(t, third, second)
	apply(t, s, agent.Change{RemovedWorkspaces: []agent.ID{id(100)}})
	apply(t, s, agent.Change{Agents: []agent.Registration{changed, registration(id(2), id(100))}})
	require.Greater(t, incarnation(before, 1), third)
	require.Greater(t, incarnation(before, 2), first)
}

// What is late of an agent that was removed does not become that of its successor.
// Its writer gets an error.
func testRegistrationsLateWrites(t *testing.T, s Store) {
	incarnation := func() int64 {
		r, err := s.Registrations(t.Context(), 0)
		require.NoError(t, err)
		return r.Agents[0].Incarnation
	}
	register(t, s, id(1), id(2))
	// write returns the answer; id(2), beside it, loses nothing.
	beside := int64(0)
	write := func(incarnation, epoch int64) (lostKeys, lostStates []agent.StoredEpoch) {
		saveSessions(t, s, []agent.SessionRecord{
			{Agent: id(1), Incarnation: incarnation, Epoch: epoch}, {Agent: id(2), Epoch: epoch},
		})
		beside++
		m := row(id(1), "k", fmt.Sprint("of ", incarnation), epoch, 1)
		m.Incarnation = incarnation
		_, lostKeys, err := s.UpsertMetadata(t.Context(), []agent.Metadata{m, row(id(2), "k", "v", beside, 1)})
		require.NoError(t, err)
		st := agent.State{Agent: id(1), Incarnation: incarnation}
		st.Network.NodeID, st.NetworkOrder = uint64(incarnation), agent.Order{Epoch: epoch}
		st.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, st.NetworkOrder)
		lostStates, err = s.SaveStates(t.Context(), []agent.State{st, {Agent: id(2), NetworkOrder: agent.Order{Epoch: beside}}})
		require.NoError(t, err)
		return lostKeys, lostStates
	}
	taken := func(incarnation, epoch int64) {
		t.Helper()
		lostKeys, lostStates := write(incarnation, epoch)
		require.Empty(t, lostKeys)
		require.Empty(t, lostStates)
	}
	leftOut := func(incarnation, epoch int64) {
		t.Helper()
		lostKeys, lostStates := write(incarnation, epoch)
		require.Equal(t, []agent.StoredEpoch{{Agent: id(1), Key: "k"}}, lostKeys)
		require.Equal(t, []agent.StoredEpoch{{Agent: id(1)}}, lostStates)
	}
	stored := func(incarnation, epoch int64) {
		t.Helper()
		var metadata []agent.Metadata
		var nodes []uint64
		var epochs []int64
		if incarnation != 0 {
			epochs = append(epochs, epoch)
			metadata = append(metadata, row(id(1), "k", fmt.Sprint("of ", incarnation), epoch, 1))
			nodes = append(nodes, uint64(incarnation))
		}
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1)}, 1<<30)
		require.NoError(t, err)
		require.Equal(t, metadata, found)
		states, _, err := s.States(t.Context(), 0)
		require.NoError(t, err)
		var got []uint64
		for _, st := range states[:len(states)-1] {
			got = append(got, st.Network.NodeID)
		}
		require.Equal(t, nodes, got)
		sessions, _, err := s.Sessions(t.Context(), 0)
		require.NoError(t, err)
		var sessionEpochs []int64
		for _, r := range sessions[:len(sessions)-1] {
			require.Zero(t, r.Incarnation)
			sessionEpochs = append(sessionEpochs, r.Epoch)
		}
		require.Equal(t, epochs, sessionEpochs)
	}
	first := incarnation()
	taken(first, 5)
	stored(first, 5)
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}, Agents: []agent.Registration{registration(id(1), id(100))}})
	second := incarnation()
	leftOut(first, 6)
	stored(0, 0)
	taken(second, 7)
	stored(second, 7)
	leftOut(first, 8) // above what is stored
	leftOut(first, 6) // below it
	leftOut(first, 7) // the same
	stored(second, 7)

	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1)}})
	late := agent.State{Agent: id(1), Incarnation: second, NetworkOrder: agent.Order{Epoch: 9}}
	lost, err := s.SaveStates(t.Context(), []agent.State{late})
	require.NoError(t, err)
	require.Equal(t, []agent.StoredEpoch{{Agent: id(1)}}, lost, "it is not there any more")
}

// An agent that was named again without a change is in later reads.
func testRegistrationsNamed(t *testing.T, s Store) {
	register(t, s, id(1), id(2), id(3))
	before := registrations(t, s).Revision
	apply(t, s, agent.Change{NamedAgents: []agent.ID{id(2)}, NamedWorkspaces: []agent.ID{id(100)}})
	changed := registration(id(1), id(101))
	apply(t, s, agent.Change{Agents: []agent.Registration{changed}, NamedAgents: []agent.ID{id(2), id(3)}})
	got, err := registrationsSince(t, s, before)
	require.NoError(t, err)
	require.Equal(t, agent.Registrations{
		Revision: before + 2, Agents: []agent.Registration{changed}, Workspaces: []agent.Workspace{changed.Workspace},
		NamedAgents: []agent.ID{id(2), id(3)}, NamedWorkspaces: []agent.ID{id(100)},
	}, got)
	got, err = registrationsSince(t, s, before+2)
	require.NoError(t, err)
	require.Empty(t, got.NamedAgents)
	// An agent and a workspace may have the same id.
	apply(t, s, agent.Change{Agents: []agent.Registration{registration(id(4), id(4))}})
	apply(t, s, agent.Change{NamedAgents: []agent.ID{id(4)}, NamedWorkspaces: []agent.ID{id(4)}})
	got, err = registrationsSince(t, s, before+3)
	require.NoError(t, err)
	require.Equal(t, agent.Registrations{Revision: before + 4, NamedAgents: []agent.ID{id(4)}, NamedWorkspaces: []agent.ID{id(4)}}, got)
	_, err = s.ApplyChange(t.Context(), before, agent.Change{NamedAgents: []agent.ID{id(1)}})
	require.ErrorIs(t, err, agent.ErrOutdated, "a naming is a change like any other")
}

// Who asks for what changed since before the oldest naming that is remembered gets
// all.
func testRegistrationsNamedForgotten(t *testing.T, s Store) {
	register(t, s, id(1)) // 2
	complete := func(since int64) bool {
		r, err := s.Registrations(t.Context(), since)
		require.NoError(t, err)
		return r.Complete
	}
	half := slices.Repeat([]agent.ID{id(1)}, 1<<9)
	apply(t, s, agent.Change{NamedAgents: half})     // 3
	apply(t, s, agent.Change{NamedWorkspaces: half}) // 4
	require.False(t, complete(2))
	apply(t, s, agent.Change{NamedAgents: []agent.ID{id(1)}}) // 5: what is of 3 goes
	require.True(t, complete(2))
	require.False(t, complete(3))
	got, err := registrationsSince(t, s, 3)
	require.NoError(t, err)
	require.Equal(t, agent.Registrations{Revision: 5, NamedAgents: []agent.ID{id(1)}, NamedWorkspaces: []agent.ID{id(1)}}, got)
	apply(t, s, agent.Change{NamedAgents: append(slices.Clone(half), half...), NamedWorkspaces: []agent.ID{id(1)}}) // 6: too many
	require.True(t, complete(5))
	require.False(t, complete(6))
}

func testRegistrationsAtomic(t *testing.T, s Store) {
	register(t, s, id(1))
	bad := registration(id(2), id(101))
	bad.CreatedAt = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	_, err := s.ApplyChange(t.Context(), 2, agent.Change{
		RemovedAgents: []agent.ID{id(1)},
		Workspaces:    []agent.Workspace{{ID: id(103)}},
		Agents:        []agent.Registration{bad},
	})
	require.ErrorIs(t, err, agent.ErrRejected)
	got := registrations(t, s)
	require.Equal(t, []agent.Registration{registration(id(1), id(100))}, got.Agents)
	require.Len(t, got.Workspaces, 1)
	require.EqualValues(t, 2, got.Revision)
}

func testRegistrationsSince(t *testing.T, s Store) {
	register(t, s, id(1), id(2))                                                          // 2
	apply(t, s, agent.Change{Agents: []agent.Registration{registration(id(3), id(101))}}) // 3
	renamed := registration(id(1), id(100)).Workspace
	renamed.Name = "renamed"
	apply(t, s, agent.Change{Workspaces: []agent.Workspace{renamed}}) // 4
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(2)}})       // 5

	since := func(revision int64) agent.Registrations {
		r, err := registrationsSince(t, s, revision)
		require.NoError(t, err)
		return r
	}
	require.Equal(t, agent.Registrations{Revision: 5}, since(5))
	require.Equal(t, agent.Registrations{Revision: 5, RemovedAgents: []agent.ID{id(2)}}, since(4))
	require.Equal(t, agent.Registrations{
		Revision: 5, Workspaces: []agent.Workspace{renamed}, RemovedAgents: []agent.ID{id(2)},
	}, since(3))
	third := registration(id(3), id(101))
	require.Equal(t, agent.Registrations{
		Revision:      5,
		Agents:        []agent.Registration{third},
		Workspaces:    []agent.Workspace{renamed, third.Workspace},
		RemovedAgents: []agent.ID{id(2)},
	}, since(2))
	first := registration(id(1), id(100))
	first.Workspace = renamed
	all := agent.Registrations{
		Revision:      5,
		Agents:        []agent.Registration{first, third},
		Workspaces:    []agent.Workspace{renamed, third.Workspace},
		RemovedAgents: []agent.ID{id(2)},
	}
	require.Equal(t, all, since(1))
	all.Complete, all.RemovedAgents = true, nil
	require.Equal(t, all, since(0))
	require.Equal(t, all, since(6), "of another database")
}

// Who asks for what changed since before the oldest removal that is remembered
// gets all.
func testRegistrationsForgotten(t *testing.T, open func(testing.TB, Options) Store) {
	s := open(t, Options{RemovalsKept: 3})
	register(t, s, id(1), id(2), id(3), id(4))                         // 2
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(1), id(2)}}) // 3
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(3)}})        // 4
	complete := func(since int64) bool {
		r, err := s.Registrations(t.Context(), since)
		require.NoError(t, err)
		return r.Complete
	}
	require.False(t, complete(1))

	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(4)}}) // 5: the oldest goes, of revision 3
	require.True(t, complete(2))
	require.False(t, complete(3))
	apply(t, s, agent.Change{RemovedAgents: []agent.ID{id(99)}}) // 6: nobody was removed
	require.True(t, complete(2))
	require.False(t, complete(3))
	r, err := registrationsSince(t, s, 3)
	require.NoError(t, err)
	require.Equal(t, agent.Registrations{Revision: 6, RemovedAgents: []agent.ID{id(3), id(4)}}, r)
}

func testRegistrationsOutdated(t *testing.T, s Store) {
	register(t, s, id(1)) // 2
	change := agent.Change{
		RemovedAgents: []agent.ID{id(1)},
		Agents:        []agent.Registration{registration(id(2), id(101))},
	}
	for _, basis := range []int64{0, 1, 3} {
		_, err := s.ApplyChange(t.Context(), basis, change)
		require.ErrorIs(t, err, agent.ErrOutdated, basis)
		require.NotErrorIs(t, err, agent.ErrRejected, basis)
	}
	got := registrations(t, s)
	require.EqualValues(t, 2, got.Revision)
	require.Equal(t, []agent.Registration{registration(id(1), id(100))}, got.Agents)
	require.Len(t, got.Workspaces, 1)

	revision, err := s.ApplyChange(t.Context(), 2, change)
	require.NoError(t, err)
	require.EqualValues(t, 3, revision)
	require.Equal(t, []agent.Registration{registration(id(2), id(101))}, registrations(t, s).Agents)
}

// More rows than one statement takes.
func testRegistrationsMany(t *testing.T, s Store) {
	const many = 2*statementRows + 1
	var c, gone agent.Change
	for range many {
		r := registration(uuid.New(), uuid.New())
		c.Agents = append(c.Agents, r)
		gone.RemovedAgents = append(gone.RemovedAgents, r.ID)
	}
	apply(t, s, c)
	require.Len(t, registrations(t, s).Agents, many)
	apply(t, s, gone)
	got := registrations(t, s)
	require.Empty(t, got.Agents)
	require.Len(t, got.Workspaces, many)
	changes, err := registrationsSince(t, s, 2)
	require.NoError(t, err)
	require.Len(t, changes.RemovedAgents, many)
}
