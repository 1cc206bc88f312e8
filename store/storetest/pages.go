package storetest

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// largestPage is how many rows a page has at most.
const largestPage = 5000

// numbered returns many ids in an order.
func numbered(kind byte, n int) (numbered agent.ID) {
	numbered[0] = kind
	binary.BigEndian.PutUint32(numbered[12:], uint32(n)+1)
	return numbered
}

// requireSame compares long lists, of which a difference as a whole takes minutes.
func requireSame[T any](t *testing.T, want, got []T) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i], got[i], "element %d", i)
	}
}

// testPages: all comes by pages as it comes at once, in one order, and what changed comes
// without the rest.
func testPages(t *testing.T, s Store) {
	const n, changing = 2600, 1000
	var c agent.Change
	var sessions []agent.SessionRecord
	var states []agent.State
	for i := range n {
		reg := registration(numbered(1, i), numbered(2, i))
		reg.TokenHash = [32]byte{1: byte(i), 2: byte(i >> 8)}
		c.Agents = append(c.Agents, reg)
		sessions = append(sessions, agent.SessionRecord{Agent: reg.ID, Epoch: int64(i + 1)})
		order := agent.Order{Epoch: int64(i + 1), Sequence: 2, Said: 1}
		st := agent.State{Agent: reg.ID, Network: agent.Network{NodeID: uint64(i)}, NetworkOrder: order}
		st.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting}, order)
		states = append(states, st)
	}
	empty := registration(numbered(1, n), numbered(2, n)).Workspace
	c.Workspaces = append(c.Workspaces, empty)
	apply(t, s, c)
	saveSessions(t, s, sessions)
	saveStates(t, s, states)
	all := registrations(t, s)
	require.Len(t, all.Agents, n)
	require.Len(t, all.Workspaces, n+1)

	// Pages are used again: what is kept of one is copied.
	var got agent.Registrations
	largest, begun := 0, 0
	revision, err := s.EachRegistration(t.Context(), func(page agent.Registrations) error {
		if page.Complete {
			got = agent.Registrations{Complete: true}
			begun++
		}
		got.Revision = page.Revision
		largest = max(largest, len(page.Agents), len(page.Workspaces))
		require.True(t, len(page.Agents) == 0 || len(got.Workspaces)+len(page.Workspaces) == n+1, "workspaces come first")
		got.Workspaces = append(got.Workspaces, page.Workspaces...)
		got.Agents = append(got.Agents, page.Agents...)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 1, begun)
	require.Equal(t, all.Revision, revision)
	require.LessOrEqual(t, largest, 1000)
	for i := range got.Agents {
		require.Equal(t, agent.Workspace{ID: all.Agents[i].Workspace.ID}, got.Agents[i].Workspace)
		require.Equal(t, all.Revision, got.Agents[i].Incarnation)
		got.Agents[i].Workspace, got.Agents[i].Incarnation = all.Agents[i].Workspace, 0
	}
	requireSame(t, all.Workspaces, got.Workspaces)
	requireSame(t, all.Agents, got.Agents)

	wantSessions, _, err := s.Sessions(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, wantSessions, n)
	var gotSessions []agent.SessionRecord
	_, err = s.EachSession(t.Context(), func(page []agent.SessionRecord) error {
		require.LessOrEqual(t, len(page), largestPage)
		gotSessions = append(gotSessions, page...)
		return nil
	})
	require.NoError(t, err)
	requireSame(t, wantSessions, gotSessions)

	wantStates, _, err := s.States(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, wantStates, n)
	var gotStates []agent.State
	_, err = s.EachState(t.Context(), func(page []agent.State) error {
		require.LessOrEqual(t, len(page), largestPage)
		gotStates = append(gotStates, page...)
		return nil
	})
	require.NoError(t, err)
	requireSame(t, wantStates, gotStates) // an agent whose parts two pages have comes once

	// Who does not want more ends the read.
	enough := errors.New("enough")
	pages := 0
	_, err = s.EachRegistration(t.Context(), func(page agent.Registrations) error {
		pages++
		if len(page.Agents) > 0 {
			return enough
		}
		return nil
	})
	require.ErrorIs(t, err, enough)
	require.NotErrorIs(t, err, agent.ErrStoreDown)

	// A change is read without what did not change.
	c = agent.Change{}
	for i := range changing {
		reg := all.Agents[2*i]
		reg.Name = "renamed"
		c.Agents = append(c.Agents, reg)
	}
	apply(t, s, c)
	changes, err := registrationsSince(t, s, all.Revision)
	require.NoError(t, err)
	require.False(t, changes.Complete)
	requireSame(t, c.Agents, changes.Agents)
	require.Len(t, changes.Workspaces, changing)
}
