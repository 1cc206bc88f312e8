package fleet

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/unstored"
	"github.com/coder/agentstatsd/internal/bubble"
)

// with returns the registration with a change.
func with(r agent.Registration, change func(*agent.Registration)) agent.Registration {
	change(&r)
	return r
}

// tokenRefusal refuses an agent of a workspace that has the token of another agent.
func tokenRefusal(n, w, other int) agent.RegistrationRefusal {
	return agent.RegistrationRefusal{
		Agent: nid(n), Workspace: nid(1000 + w), Field: "token_sha256",
		Problem: "want one of its own, got that of agent " + nid(other).String(),
	}
}

// A registration that is decided on takes effect: package plan tests what is decided.
func TestRegister(t *testing.T) {
	type reg = agent.Registration
	named := func(name string) func(*reg) { return func(r *reg) { r.Name = name } }
	for _, c := range []struct {
		name       string
		before     []reg
		then       []reg
		workspaces []agent.Workspace
		err        string
		refused    []agent.RegistrationRefusal
		superseded []agent.ID
		stale      []agent.ID
		after      []agent.ID
		journal    []string
	}{
		{
			name:    "new",
			then:    []reg{registration(1, 1, 1), registration(2, 2, 1)},
			after:   ids(1, 2),
			journal: []string{"store change"},
		},
		{
			name:   "the same again is no write",
			before: []reg{registration(1, 1, 1)},
			then:   []reg{registration(1, 1, 1)},
			after:  ids(1),
		},
		{
			name:       "a newer build supersedes",
			before:     []reg{registration(1, 1, 1), registration(3, 3, 1)},
			then:       []reg{registration(2, 1, 2)},
			superseded: ids(1),
			after:      ids(2, 3),
			journal:    []string{"series remove 1", "pending remove 1", "store change"},
		},
		{
			name:    "an older build is stale under another name too, and does not set the workspace back",
			before:  []reg{registration(2, 1, 2)},
			then:    []reg{with(registration(1, 1, 1), func(r *reg) { r.Name = "dev"; r.Workspace.Name = "old" }), registration(3, 3, 1)},
			stale:   ids(1),
			after:   ids(2, 3),
			journal: []string{"store change"},
		},
		{
			name:       "the older one is named beside the newer one",
			before:     []reg{registration(1, 1, 1)},
			then:       []reg{registration(2, 1, 2), registration(1, 1, 1)},
			superseded: ids(1),
			after:      ids(2),
			journal:    []string{"series remove 1", "pending remove 1", "store change"},
		},
		{
			name:    "names change hands",
			before:  []reg{registration(1, 1, 1), with(registration(2, 1, 1), named("dev"))},
			then:    []reg{with(registration(1, 1, 1), named("dev")), registration(2, 1, 1)},
			after:   ids(1, 2),
			journal: []string{"store change", "relabel 1 ada/ws1/dev/docker", "relabel 2 ada/ws1/main/docker"},
		},
		{
			name:   "a rename of the workspace reaches the agents that are not named",
			before: []reg{registration(1, 1, 1), with(registration(2, 1, 1), named("dev"))},
			then:   []reg{with(registration(1, 1, 1), func(r *reg) { r.Workspace.Name = "moved"; r.Workspace.OwnerUsername = "bob" })},
			after:  ids(1, 2),
			journal: []string{
				"store change",
				"relabel 1 bob/moved/main/docker",
				"relabel 2 bob/moved/dev/docker",
			},
		},
		{
			name:       "a workspace without agents, its build unknown, renames too",
			before:     []reg{registration(1, 1, 1)},
			workspaces: []agent.Workspace{with(registration(1, 1, 1), func(r *reg) { r.Workspace.Name = "moved"; r.Workspace.Build = agent.Build{} }).Workspace},
			after:      ids(1),
			journal:    []string{"store change", "relabel 1 ada/moved/main/docker"},
		},
		{
			name:    "tokens change hands",
			before:  []reg{registration(1, 1, 1), registration(2, 2, 1)},
			then:    []reg{with(registration(1, 1, 1), func(r *reg) { r.TokenHash = sha256.Sum256([]byte(token(2))) }), with(registration(2, 2, 1), func(r *reg) { r.TokenHash = sha256.Sum256([]byte(token(1))) })},
			after:   ids(1, 2),
			journal: []string{"store change"},
		},
		{
			name:       "the newer build has the token of the older",
			before:     []reg{registration(1, 1, 1)},
			then:       []reg{with(registration(2, 1, 2), func(r *reg) { r.TokenHash = sha256.Sum256([]byte(token(1))) })},
			superseded: ids(1),
			after:      ids(2),
			journal:    []string{"series remove 1", "pending remove 1", "store change"},
		},
		{
			name:    "the token of another agent",
			before:  []reg{registration(1, 1, 1)},
			then:    []reg{registration(3, 3, 1), with(registration(2, 2, 1), func(r *reg) { r.TokenHash = sha256.Sum256([]byte(token(1))) })},
			refused: []agent.RegistrationRefusal{tokenRefusal(2, 2, 1)},
			after:   ids(1, 3),
			journal: []string{"store change"},
		},
		{
			name:    "one id twice",
			then:    []reg{registration(1, 1, 1), registration(1, 2, 1)},
			refused: []agent.RegistrationRefusal{{Agent: nid(1), Workspace: nid(1002), Field: "id", Problem: "want each agent once"}},
			after:   ids(1),
			journal: []string{"store change"},
		},
		{
			name:   "too many agents",
			before: []reg{registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1), registration(4, 4, 1)},
			then:   []reg{registration(5, 5, 1)},
			err:    "too many registrations: want at most 4 agents (--max-agents), got 5",
			after:  ids(1, 2, 3, 4),
		},
		{
			name:    "an agent moves to another workspace",
			before:  []reg{registration(1, 1, 1)},
			then:    []reg{registration(1, 2, 1)},
			after:   ids(1),
			journal: []string{"store change", "relabel 1 ada/ws2/main/docker"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := loaded(t, Options{MaxAgents: 4}, c.before...)
			got, err := p.Register(t.Context(), Set{Agents: c.then, Workspaces: c.workspaces})
			if c.err != "" {
				require.EqualError(t, err, c.err)
				require.Len(t, metric(t, p, "agentstatsd_registration_changes_refused_total"), 1)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, c.superseded, got.Superseded)
			require.Equal(t, c.refused, got.Refused)
			require.ElementsMatch(t, c.stale, got.Stale)
			require.Equal(t, c.after, registered(p.Fleet))
			require.ElementsMatch(t, c.journal, p.journal.take())
			requireConsistent(t, p)
		})
	}
}

// requireConsistent compares the indexes with the list, and memory with the
// database.
func requireConsistent(t require.TestingT, p parts) {
	r := &p.registry
	require.Len(t, r.order, r.agents.Len())
	require.Len(t, p.store.regs, r.agents.Len())
	require.Len(t, p.store.spaces, r.workspaces.Len())
	in := 0
	for w := range r.workspaces.All() {
		in += len(w.agents)
	}
	require.Equal(t, r.agents.Len(), in)
	require.Equal(t, bytesOf(r), r.Use().Bytes())
	identities := map[string]agent.ID{}
	tokens := 0
	for i, e := range r.order {
		reg := e.registration()
		require.True(t, i == 0 || r.order[i-1].id.String() < e.id.String())
		require.Same(t, e, r.agents.Get(e.id))
		if reg.TokenHash != noToken {
			require.Same(t, e, r.tokens.Get(reg.TokenHash))
			tokens++
		}
		require.Contains(t, r.workspaces.Get(reg.Workspace.ID).agents, e)
		require.Same(t, r.workspaces.Get(reg.Workspace.ID).reg.Load(), e.reg.Load().Workspace)
		stored := p.store.regs[e.id]
		require.True(t, stored.Equal(reg))
		key := fmt.Sprint(reg.Workspace.ID, reg.Name)
		require.NotContains(t, identities, key)
		identities[key] = e.id
	}
	require.Equal(t, tokens, r.tokens.Len())
}

// TestRegistrationsStayConsistent makes random changes, some of which fail.
func TestRegistrationsStayConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := &journal{}
		s := newMemStore(j)
		p := newPartsOn(t, Options{MaxAgents: 6}, s, j)
		require.NoError(t, p.Load(context.Background()))
		agents := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) agent.Registration {
			r := registration(rapid.IntRange(1, 8).Draw(t, "agent"), rapid.IntRange(1, 4).Draw(t, "workspace"), rapid.IntRange(1, 3).Draw(t, "build"))
			r.Name = rapid.SampledFrom([]string{"main", "dev"}).Draw(t, "name")
			r.TokenHash = sha256.Sum256([]byte(token(rapid.IntRange(1, 8).Draw(t, "token"))))
			r.Workspace.Name = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "workspace name")
			if rapid.Bool().Draw(t, "without a token") {
				r.TokenHash = noToken
			}
			if rapid.Bool().Draw(t, "without a build") {
				r.Workspace.Build = agent.Build{}
			}
			if rapid.Bool().Draw(t, "without ids") {
				r.Workspace.OwnerID, r.Workspace.Template.ID = agent.ID{}, agent.ID{}
			}
			return r
		}), 0, 4)
		var sync *Sync
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { requireConsistent(t, p) },
			"register": func(t *rapid.T) {
				_, _ = p.Register(context.Background(), Set{Agents: agents.Draw(t, "agents")})
			},
			"begin a sync": func(t *rapid.T) {
				var err error
				sync, err = p.BeginSync()
				require.NoError(t, err)
			},
			"sync": func(t *rapid.T) {
				if sync == nil {
					return // none was begun
				}
				_, _ = sync.Apply(context.Background(), Set{Agents: agents.Draw(t, "agents")}, rapid.Bool().Draw(t, "force"))
			},
			"deregister": func(t *rapid.T) {
				_, err := p.Deregister(context.Background(), ids(rapid.IntRange(1, 8).Draw(t, "agent")), ids(1000+rapid.IntRange(1, 9).Draw(t, "workspace")))
				require.NoError(t, err)
			},
			"fail": func(t *rapid.T) {
				s.fail(errDown)
				before := registered(p.Fleet)
				_, _ = p.Register(context.Background(), Set{Agents: agents.Draw(t, "agents")})
				require.Equal(t, before, registered(p.Fleet))
				s.fail(nil)
			},
		})
	})
}

func TestDeregister(t *testing.T) {
	p := loaded(t, Options{},
		registration(1, 1, 1), registration(2, 2, 1),
		with(registration(3, 2, 1), func(r *agent.Registration) { r.Name = "dev" }), registration(4, 4, 1))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	p.journal.take()

	n, err := p.Deregister(t.Context(), ids(1, 1, 99), ids(1002, 1002, 1099))
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.True(t, closed(s.Done()))
	require.Equal(t, EndDeregistered, s.End())
	lines := p.journal.take()
	require.Equal(t, []string{"series remove 1", "pending remove 1"}, lines[:2])
	require.ElementsMatch(t, []string{
		"series remove 2", "pending remove 2", "series remove 3", "pending remove 3",
	}, lines[2:6])
	require.Equal(t, []string{"store change"}, lines[6:])
	require.Equal(t, ids(4), registered(p.Fleet))
	require.NotNil(t, p.registry.workspaces.Get(nid(1001)), "a workspace without agents stays")
	require.Nil(t, p.registry.workspaces.Get(nid(1002)))
	_, err = p.Authenticate(t.Context(), token(1))
	require.ErrorIs(t, err, ErrUnknownToken)
	require.ErrorIs(t, s.Receive(time.Now(), 1, func(Request) { t.Error("taken in") }), ErrSessionOver)

	writes := p.store.writeCount()
	n, err = p.Deregister(t.Context(), ids(1), nil)
	require.NoError(t, err)
	require.Zero(t, n)
	require.Equal(t, writes, p.store.writeCount())
}

// A registration may be all that is written: that it is not stored is an error until one is,
// for a minute at most.
func TestRegistrationsThatAreNotStoredAreReported(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{})
		register := func(ctx context.Context, n int) error {
			_, err := p.Register(ctx, Set{Agents: []agent.Registration{registration(n, n, 1)}})
			return err
		}
		p.store.fail(errDown)
		require.ErrorIs(t, register(t.Context(), 1), errDown)
		require.ErrorIs(t, p.Healthy(), errDown)
		require.ErrorContains(t, p.Healthy(), "registrations are not stored")
		require.NoError(t, p.Ready(), "agents are served")
		p.store.fail(nil)
		require.NoError(t, register(t.Context(), 1))
		require.NoError(t, p.Healthy())

		p.store.fail(errDown)
		require.ErrorIs(t, register(t.Context(), 2), errDown)
		time.Sleep(unstored.Counts - 1)
		require.ErrorIs(t, p.Healthy(), errDown)
		time.Sleep(time.Nanosecond)
		require.NoError(t, p.Healthy())

		p.store.fail(fmt.Errorf("a NUL: %w", agent.ErrRejected))
		require.Error(t, register(t.Context(), 2))
		require.NoError(t, p.Healthy(), "the data is at fault")
		p.store.fail(errDown)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, register(gone, 2))
		require.NoError(t, p.Healthy(), "the caller is gone")
	})
}

// TestDeregisterWhileTheDatabaseIsDown shows that the agent stays, and is made
// to send again what was pending.
func TestDeregisterWhileTheDatabaseIsDown(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	require.NoError(t, s.Receive(time.Now(), 5, func(r Request) { r.Tracker().AddPending(5) }))
	p.store.fail(errDown)
	p.store.before = func() {
		_, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 2})
		require.ErrorIs(t, err, ErrUnavailable, "while it is undecided")
	}
	_, err = p.Deregister(t.Context(), ids(1), nil)
	require.ErrorIs(t, err, errDown)
	require.True(t, closed(s.Done()))
	p.store.before = nil

	s, err = p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 2})
	require.NoError(t, err)
	require.Equal(t, Progress{}, s.Resume())
}

func TestRevokedToken(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	p.journal.take()
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{with(registration(1, 1, 1), func(r *agent.Registration) {
		r.TokenHash = sha256.Sum256([]byte("new"))
	})}})
	require.NoError(t, err)
	require.True(t, closed(s.Done()))
	require.Equal(t, EndRevoked, s.End())
	require.Equal(t, []string{"store change", "close 1 goodbye=true"}, p.journal.take())
	_, err = p.Authenticate(t.Context(), token(1))
	require.ErrorIs(t, err, ErrUnknownToken)
	id, err := p.Authenticate(t.Context(), "new")
	require.NoError(t, err)
	require.Equal(t, nid(1), id)
}

func TestSupersededSessionEnds(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	s, err := p.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
	require.NoError(t, err)
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(2, 1, 2)}})
	require.NoError(t, err)
	require.True(t, closed(s.Done()))
	require.Equal(t, EndSuperseded, s.End())
	require.Equal(t, []string{"superseded 1"}, metric(t, p, "agentstatsd_sessions_ended_total"))
	require.Empty(t, metric(t, p, "agentstatsd_sessions"))
}

func TestSync(t *testing.T) {
	var regs []agent.Registration
	for n := 1; n <= 6; n++ {
		regs = append(regs, registration(n, n, 1))
	}
	p := loaded(t, Options{}, regs...)
	empty := registration(9, 9, 1).Workspace
	_, err := p.Register(t.Context(), Set{Workspaces: []agent.Workspace{empty}})
	require.NoError(t, err)

	sync, err := p.BeginSync()
	require.NoError(t, err)
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(7, 7, 1), registration(6, 6, 1)}})
	require.NoError(t, err, "one new and one again, while the sync goes on")

	_, err = sync.Apply(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}}, false)
	require.EqualError(t, err, "more than half of all agents would be deregistered: 4 of 7")
	require.ErrorIs(t, err, ErrNeedsForce)
	require.Len(t, registered(p.Fleet), 7)

	p.journal.take()
	got, err := sync.Apply(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1), registration(2, 2, 1), registration(8, 3, 2)}}, false)
	require.NoError(t, err)
	require.Equal(t, Synced{Registered: 3, Deregistered: 2, Superseded: 1}, got)
	require.Equal(t, ids(1, 2, 6, 7, 8), registered(p.Fleet))
	lines := p.journal.take()
	require.Equal(t, "store change", lines[len(lines)-1])
	require.Len(t, lines, 7, "one change, after three agents were cut off")
	require.Nil(t, p.registry.workspaces.Get(nid(1009)))
	require.Nil(t, p.registry.workspaces.Get(nid(1004)))
	require.NotNil(t, p.registry.workspaces.Get(nid(1007)))
	requireConsistent(t, p)

	sync, err = p.BeginSync()
	require.NoError(t, err)
	got, err = sync.Apply(t.Context(), Set{}, true)
	require.NoError(t, err)
	require.Equal(t, Synced{Deregistered: 5}, got)
	require.Empty(t, registered(p.Fleet))
}

func TestChangesWaitForEachOther(t *testing.T) {
	p := loaded(t, Options{})
	p.changeSem <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.Register(ctx, Set{})
	require.ErrorIs(t, err, context.Canceled)
	<-p.changeSem
	_, err = p.Register(t.Context(), Set{})
	require.NoError(t, err)
}

func TestReplacedRegistrationDropsStateOfItsApps(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	request(t, p, 1, func(r Request) {
		require.Empty(t, r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy}, nil))
	})
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{with(registration(1, 1, 1), func(r *agent.Registration) {
		r.Apps = []agent.App{{ID: nid(7)}}
	})}})
	require.NoError(t, err)
	i, err := p.Agent(nid(1))
	require.NoError(t, err)
	require.Empty(t, i.State.AppHealth)

	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(2, 1, 2)}})
	require.NoError(t, err)
	i, err = p.Agent(nid(2))
	require.NoError(t, err)
	require.Equal(t, agent.State{Agent: nid(2)}, i.State, "a rebuild starts with no state")
}

// Of a workspace that a sync keeps, agents stay that it does not name, and the workspace.
func TestSyncKeepsWorkspaces(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1))
	empty := registration(9, 9, 1).Workspace
	_, err := p.Register(t.Context(), Set{Workspaces: []agent.Workspace{empty}})
	require.NoError(t, err)
	sync, err := p.BeginSync()
	require.NoError(t, err)
	renamed := registration(2, 2, 1).Workspace
	renamed.Name = "renamed"
	got, err := sync.Apply(t.Context(), Set{
		Agents:         []agent.Registration{registration(1, 1, 1)},
		Workspaces:     []agent.Workspace{renamed},
		KeptWorkspaces: []agent.ID{renamed.ID, empty.ID, nid(77)},
	}, false)
	require.NoError(t, err)
	require.Equal(t, Synced{Registered: 1, Deregistered: 1}, got)
	require.Equal(t, ids(1, 2), registered(p.Fleet))
	require.Equal(t, "renamed", p.registry.agents.Get(nid(2)).registration().Workspace.Name)
	require.NotNil(t, p.registry.workspaces.Get(empty.ID))
	requireConsistent(t, p)
}
