package fleet

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// partial is registration(n, w, b) as coderd has it where it relays for the agent.
func partial(n, w, b int) agent.Registration {
	return with(registration(n, w, b), func(r *agent.Registration) {
		r.TokenHash = noToken
		r.Workspace.OwnerID, r.Workspace.Template.ID = agent.ID{}, agent.ID{}
		r.Workspace.Template.Version = agent.UnknownVersion
		r.Workspace.Build = agent.Build{}
	})
}

// What a registration says nothing of stays as it was known, where it still holds.
func TestPartialRegistrations(t *testing.T) {
	type reg = agent.Registration
	full := with(registration(1, 1, 1), func(r *reg) { r.Workspace.Organization = "acme" })
	for _, c := range []struct {
		name   string
		before []reg
		then   reg
		want   []reg
		stale  []agent.ID
	}{
		{
			name: "known of nobody",
			then: partial(1, 1, 1),
			want: []reg{partial(1, 1, 1)},
		},
		{
			name:   "nothing else",
			before: []reg{full},
			then:   partial(1, 1, 1),
			want:   []reg{full},
		},
		{
			name:   "more later",
			before: []reg{partial(1, 1, 1)},
			then:   full,
			want:   []reg{full},
		},
		{
			name:   "another owner has another id",
			before: []reg{full},
			then:   with(partial(1, 1, 1), func(r *reg) { r.Workspace.OwnerUsername = "bob" }),
			want: []reg{with(full, func(r *reg) {
				r.Workspace.OwnerUsername, r.Workspace.OwnerID = "bob", agent.ID{}
			})},
		},
		{
			name:   "another template has another id and version",
			before: []reg{full},
			then:   with(partial(1, 1, 1), func(r *reg) { r.Workspace.Template.Name = "aws" }),
			want: []reg{with(full, func(r *reg) {
				r.Workspace.Template = agent.Template{Name: "aws", Version: agent.UnknownVersion}
			})},
		},
		{
			name:   "another build may have another version",
			before: []reg{full},
			then: with(registration(1, 1, 2), func(r *reg) {
				r.Workspace.Organization, r.Workspace.Template.Version = "acme", agent.UnknownVersion
			}),
			want: []reg{with(registration(1, 1, 2), func(r *reg) {
				r.Workspace.Organization, r.Workspace.Template.Version = "acme", agent.UnknownVersion
			})},
		},
		{
			name:   "a newer agent takes the place of one with a build",
			before: []reg{full},
			then:   partial(2, 1, 2),
			want: []reg{with(full, func(r *reg) {
				r.ID, r.CreatedAt, r.TokenHash, r.Apps = nid(2), registration(2, 1, 2).CreatedAt, noToken, registration(2, 1, 2).Apps
			})},
		},
		{
			name:   "a newer agent takes the place of one without a build",
			before: []reg{partial(1, 1, 1)},
			then:   partial(2, 1, 2),
			want:   []reg{partial(2, 1, 2)},
		},
		{
			name:   "an agent from before the build is stale",
			before: []reg{registration(2, 1, 2)},
			then:   with(partial(1, 1, 1), func(r *reg) { r.Name = "dev" }),
			want:   []reg{registration(2, 1, 2)},
			stale:  ids(1),
		},
		{
			name:   "an older agent does not take the place of one whose build is not known",
			before: []reg{partial(2, 1, 2)},
			then:   registration(1, 1, 1),
			want: []reg{with(partial(2, 1, 2), func(r *reg) {
				r.Workspace = registration(1, 1, 1).Workspace
			})},
			stale: ids(1),
		},
		{
			name:   "agents without tokens are several",
			before: []reg{partial(1, 1, 1), partial(2, 2, 1)},
			then:   partial(3, 3, 1),
			want:   []reg{partial(1, 1, 1), partial(2, 2, 1), partial(3, 3, 1)},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := loaded(t, Options{}, c.before...)
			got, err := p.Register(t.Context(), Set{Agents: []reg{c.then}})
			require.NoError(t, err)
			require.Equal(t, c.stale, got.Stale)
			infos := p.List(agent.ID{}, 10)
			require.Len(t, infos, len(c.want))
			for i := range c.want {
				c.want[i].Incarnation = infos[i].Registration.Incarnation
				require.Equal(t, &c.want[i], infos[i].Registration)
			}
			requireConsistent(t, p)
		})
	}
}

// An agent without a token is found by its id only, and one that gets a token keeps
// its session.
func TestAgentsWithoutTokens(t *testing.T) {
	p := loaded(t, Options{}, partial(1, 1, 1), partial(2, 2, 1))
	_, err := p.Authenticate(t.Context(), token(1))
	require.ErrorIs(t, err, ErrUnknownToken)
	s := connectTo(t, p, 1, hello(1, 1))
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	require.False(t, closed(s.Done()))
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{with(registration(1, 1, 1), func(r *agent.Registration) { r.TokenHash[0]++ })}})
	require.NoError(t, err)
	require.False(t, closed(s.Done()), "it was not opened with a token")
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	id, err := p.Authenticate(t.Context(), token(1))
	require.NoError(t, err)
	require.Equal(t, nid(1), id)

	// Who says nothing of its token keeps it, also if another one claims it before.
	taker := with(registration(3, 3, 1), func(r *agent.Registration) { r.TokenHash = sha256.Sum256([]byte(token(1))) })
	got, err := p.Register(t.Context(), Set{Agents: []agent.Registration{taker, partial(1, 1, 1)}})
	require.NoError(t, err)
	require.Equal(t, []agent.RegistrationRefusal{tokenRefusal(3, 3, 1)}, got.Refused)
}

// Of workspaces with equal labels the one with the newest agent is served, if no
// builds are known: also after that agent is gone.
func TestWorkspacesWithoutBuilds(t *testing.T) {
	named := func(n int) agent.Registration {
		return with(partial(n, n, n), func(r *agent.Registration) { r.Workspace.Name = "ws" })
	}
	second := with(named(2), func(r *agent.Registration) { r.Workspace.ID, r.Name = nid(1001), "dev" })
	p := loaded(t, Options{}, named(1), named(4))
	visible := func(workspace int) bool { return p.registry.workspaces.Get(nid(workspace)).up.labels != nil }
	require.True(t, visible(1004))
	require.False(t, visible(1001))
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{with(second, func(r *agent.Registration) { r.CreatedAt = day.Add(9 * time.Hour) })}})
	require.NoError(t, err)
	require.True(t, visible(1001), "it has the newest agent")
	_, err = p.Deregister(t.Context(), ids(2), nil)
	require.NoError(t, err)
	require.True(t, visible(1004))
	require.False(t, visible(1001))
}
