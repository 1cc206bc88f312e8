package plan_test

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/capacity"
	"github.com/coder/agentstatsd/fleet/internal/kept"
	"github.com/coder/agentstatsd/fleet/internal/plan"
	"github.com/coder/agentstatsd/fleet/internal/sets"
)

// Sizes of what the registered take beside what is kept of them.
const agentBytes, workspaceBytes = 100, 200

// registered are agents and workspaces in maps.
type registered struct {
	texts      *kept.Texts
	agents     map[agent.ID]*kept.Registration
	workspaces map[agent.ID]*kept.Workspace
}

// with has these agents with their workspaces, and further workspaces.
func with(regs []agent.Registration, workspaces ...agent.Workspace) *registered {
	r := &registered{kept.NewTexts(), make(map[agent.ID]*kept.Registration), make(map[agent.ID]*kept.Workspace)}
	put := func(w agent.Workspace) *kept.Workspace {
		if r.workspaces[w.ID] == nil {
			r.workspaces[w.ID] = r.texts.Workspace(&w)
		}
		return r.workspaces[w.ID]
	}
	for i := range regs {
		r.agents[regs[i].ID] = r.texts.Registration(&regs[i], put(regs[i].Workspace))
	}
	for _, w := range workspaces {
		put(w)
	}
	return r
}

func (r *registered) Agent(id agent.ID) *kept.Registration  { return r.agents[id] }
func (r *registered) Workspace(id agent.ID) *kept.Workspace { return r.workspaces[id] }
func (r *registered) Change() *kept.Change                  { return r.texts.Change() }

func (r *registered) AgentWithToken(hash [32]byte) agent.ID {
	for id, reg := range r.agents {
		if reg.TokenHash == hash {
			return id
		}
	}
	return agent.ID{}
}

func (r *registered) AgentNamed(workspace agent.ID, name string, skip func(agent.ID) bool) (agent.ID, *kept.Registration) {
	for id, reg := range r.AgentsIn(workspace) {
		if reg.Name() == name && !skip(id) {
			return id, reg
		}
	}
	return agent.ID{}, nil
}

func (r *registered) AgentsIn(workspace agent.ID) iter.Seq2[agent.ID, *kept.Registration] {
	return func(yield func(agent.ID, *kept.Registration) bool) {
		for id, reg := range r.AllAgents() {
			if reg.Workspace.ID == workspace && !yield(id, reg) {
				return
			}
		}
	}
}

func (r *registered) AllAgents() iter.Seq2[agent.ID, *kept.Registration] {
	return func(yield func(agent.ID, *kept.Registration) bool) {
		for _, id := range sorted(slices.Collect(maps.Keys(r.agents))) {
			if !yield(id, r.agents[id]) {
				return
			}
		}
	}
}

func (r *registered) AllWorkspaces() iter.Seq[*kept.Workspace] { return maps.Values(r.workspaces) }

func (r *registered) Use() capacity.Use {
	use := capacity.Use{
		Agents: len(r.agents), Workspaces: len(r.workspaces),
		KeptBytes: r.texts.Bytes(), AgentBytes: agentBytes, WorkspaceBytes: workspaceBytes,
	}
	for _, reg := range r.agents {
		use.KeptBytes += reg.Bytes()
	}
	for _, w := range r.workspaces {
		use.KeptBytes += w.Bytes()
	}
	return use
}

// all is what was named before a sync that nothing was named since.
func (r *registered) all() plan.Earlier {
	return plan.Earlier{Agents: r.AllAgents(), Workspaces: r.AllWorkspaces()}
}

// noLimits are such that nothing here exceeds them.
var noLimits = capacity.Limits{Agents: 100, Bytes: 1 << 30}

func sorted(ids []agent.ID) []agent.ID {
	return slices.SortedFunc(slices.Values(ids), func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
}

func nid(n int) agent.ID { return agent.ID{14: byte(n >> 8), 15: byte(n)} }

func ids(numbers ...int) []agent.ID {
	var out []agent.ID
	for _, n := range numbers {
		out = append(out, nid(n))
	}
	return out
}

// registration is agent n of build b of workspace w, with a token of its own.
func registration(n, w, b int) agent.Registration {
	at := time.Date(2026, 1, 1, b, 0, 0, 0, time.UTC)
	return agent.Registration{
		ID: nid(n), Name: "main", CreatedAt: at, TokenHash: [32]byte{byte(n)}, Incarnation: 1,
		Workspace: agent.Workspace{
			ID: nid(1000 + w), Name: fmt.Sprint("ws", w), OwnerUsername: "ada", OwnerID: nid(3000), Organization: "coder",
			Template: agent.Template{ID: nid(4000), Name: "docker", Version: "v1"},
			Build:    agent.Build{ID: nid(2000 + 10*w + b), CreatedAt: at},
		},
	}
}

// but returns the registration with a change.
func but(r agent.Registration, change func(*agent.Registration)) agent.Registration {
	change(&r)
	return r
}

func named(name string) func(*agent.Registration) {
	return func(r *agent.Registration) { r.Name = name }
}

func token(n int) func(*agent.Registration) {
	return func(r *agent.Registration) { r.TokenHash = [32]byte{byte(n)} }
}

func later(r *agent.Registration) { r.CreatedAt = r.CreatedAt.Add(time.Second) }

func noBuild(r *agent.Registration) { r.Workspace.Build = agent.Build{} }

// tokenRefusal refuses an agent of a workspace that has the token of another agent.
func tokenRefusal(n, w, other int) agent.RegistrationRefusal {
	return agent.RegistrationRefusal{
		Agent: nid(n), Workspace: nid(1000 + w), Field: "token_sha256",
		Problem: "want one of its own, got that of agent " + nid(other).String(),
	}
}

func changedAgents(p *plan.Plan) []agent.ID {
	var changed []agent.ID
	for i := range p.Change.Agents {
		changed = append(changed, p.Change.Agents[i].ID)
	}
	return sorted(changed)
}

// What a set comes to follows from what is registered, and from what else it names.
func TestRegister(t *testing.T) {
	type reg = agent.Registration
	for _, c := range []struct {
		name       string
		before     []reg
		then       []reg
		workspaces []agent.Workspace
		err        string
		refused    []agent.RegistrationRefusal
		superseded []agent.ID
		stale      []agent.ID
		changed    []agent.ID
		unchanged  int
	}{
		{
			name:    "new",
			then:    []reg{registration(1, 1, 1), registration(2, 2, 1)},
			changed: ids(1, 2),
		},
		{
			name:      "the same again",
			before:    []reg{registration(1, 1, 1)},
			then:      []reg{registration(1, 1, 1)},
			unchanged: 1,
		},
		{
			name:       "a newer build supersedes",
			before:     []reg{registration(1, 1, 1), registration(3, 3, 1)},
			then:       []reg{registration(2, 1, 2)},
			superseded: ids(1),
			changed:    ids(2),
		},
		{
			name:   "an older build is stale",
			before: []reg{registration(2, 1, 2)},
			then:   []reg{registration(1, 1, 1)},
			stale:  ids(1),
		},
		{
			name:    "an older build is stale under another name too, and does not set the workspace back",
			before:  []reg{registration(2, 1, 2)},
			then:    []reg{but(registration(1, 1, 1), func(r *reg) { r.Name = "dev"; r.Workspace.Name = "old" }), registration(3, 3, 1)},
			stale:   ids(1),
			changed: ids(3),
		},
		{
			name:    "both builds in one request",
			then:    []reg{registration(1, 1, 1), registration(2, 1, 2)},
			stale:   ids(1),
			changed: ids(2),
		},
		{
			name:       "the older one is named beside the newer one",
			before:     []reg{registration(1, 1, 1)},
			then:       []reg{registration(2, 1, 2), registration(1, 1, 1)},
			superseded: ids(1),
			changed:    ids(2),
		},
		{
			name:       "the newer agent of one build",
			before:     []reg{registration(1, 1, 1)},
			then:       []reg{but(registration(2, 1, 1), later)},
			superseded: ids(1),
			changed:    ids(2),
		},
		{
			name:   "the older agent of one build",
			before: []reg{but(registration(2, 1, 1), later)},
			then:   []reg{registration(1, 1, 1)},
			stale:  ids(1),
		},
		{
			name:   "the lower id of one build and time",
			before: []reg{registration(2, 1, 1)},
			then:   []reg{registration(1, 1, 1)},
			stale:  ids(1),
		},
		{
			name:   "an older agent without a build",
			before: []reg{registration(2, 1, 2)},
			then:   []reg{but(registration(1, 1, 1), noBuild)},
			stale:  ids(1),
		},
		{
			name:       "a newer agent without a build",
			before:     []reg{registration(1, 1, 1)},
			then:       []reg{but(registration(2, 1, 2), noBuild)},
			superseded: ids(1),
			changed:    ids(2),
		},
		{
			name:    "two agents of a workspace",
			before:  []reg{registration(1, 1, 1)},
			then:    []reg{but(registration(2, 1, 1), named("dev"))},
			changed: ids(2),
		},
		{
			name:    "names change hands",
			before:  []reg{registration(1, 1, 1), but(registration(2, 1, 1), named("dev"))},
			then:    []reg{but(registration(1, 1, 1), named("dev")), registration(2, 1, 1)},
			changed: ids(1, 2),
		},
		{
			name:    "a rename of the workspace reaches the agents that are not named",
			before:  []reg{registration(1, 1, 1), but(registration(2, 1, 1), named("dev"))},
			then:    []reg{but(registration(1, 1, 1), func(r *reg) { r.Workspace.Name = "moved" })},
			changed: ids(1, 2),
		},
		{
			name:       "a workspace without agents, its build unknown, renames too",
			before:     []reg{registration(1, 1, 1)},
			workspaces: []agent.Workspace{but(but(registration(1, 1, 1), func(r *reg) { r.Workspace.Name = "moved" }), noBuild).Workspace},
			changed:    ids(1),
		},
		{
			name:    "tokens change hands",
			before:  []reg{registration(1, 1, 1), registration(2, 2, 1)},
			then:    []reg{but(registration(1, 1, 1), token(2)), but(registration(2, 2, 1), token(1))},
			changed: ids(1, 2),
		},
		{
			name:       "the newer build has the token of the older",
			before:     []reg{registration(1, 1, 1)},
			then:       []reg{but(registration(2, 1, 2), token(1))},
			superseded: ids(1),
			changed:    ids(2),
		},
		{
			name:    "the token of another agent",
			before:  []reg{registration(1, 1, 1)},
			then:    []reg{registration(3, 3, 1), but(registration(2, 2, 1), token(1))},
			refused: []agent.RegistrationRefusal{tokenRefusal(2, 2, 1)},
			changed: ids(3),
		},
		{
			name:    "one token for two",
			then:    []reg{registration(1, 1, 1), but(registration(2, 2, 1), token(1))},
			refused: []agent.RegistrationRefusal{tokenRefusal(2, 2, 1)},
			changed: ids(1),
		},
		{
			name:    "no token for two",
			then:    []reg{but(registration(1, 1, 1), token(0)), but(registration(2, 2, 1), token(0))},
			changed: ids(1, 2),
		},
		{
			name:   "who is refused a token keeps its own, which others do not get then",
			before: []reg{registration(1, 1, 1), registration(2, 2, 1)},
			then: []reg{
				but(registration(3, 3, 1), token(2)),
				but(registration(2, 2, 1), token(1)),
			},
			refused: []agent.RegistrationRefusal{tokenRefusal(2, 2, 1), tokenRefusal(3, 3, 2)},
		},
		{
			name:   "too many agents",
			before: []reg{registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1), registration(4, 4, 1)},
			then:   []reg{registration(5, 5, 1)},
			err:    "too many registrations: want at most 4 agents (--max-agents), got 5",
		},
		{
			name:       "as many as may be, one in the place of another",
			before:     []reg{registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1), registration(4, 4, 1)},
			then:       []reg{registration(5, 4, 2)},
			superseded: ids(4),
			changed:    ids(5),
		},
		{
			name:       "too many workspaces",
			before:     []reg{registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1), registration(4, 4, 1)},
			workspaces: []agent.Workspace{registration(5, 5, 1).Workspace},
			err:        "too many registrations: want at most 4 workspaces (--max-agents), got 5",
		},
		{
			name:    "an agent moves to another workspace",
			before:  []reg{registration(1, 1, 1)},
			then:    []reg{registration(1, 2, 1)},
			changed: ids(1),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			limits := noLimits
			limits.Agents = 4
			p, err := plan.Register(with(c.before), sets.Set{Agents: c.then, Workspaces: c.workspaces}, limits)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.superseded, p.Superseded)
			require.Equal(t, c.refused, p.Refused)
			require.ElementsMatch(t, c.stale, p.Stale)
			require.Equal(t, c.changed, changedAgents(p))
			require.Equal(t, c.unchanged, p.Unchanged)
			require.Equal(t, c.superseded, p.Change.RemovedAgents)
			require.Empty(t, p.Deregistered)
		})
	}
}

// What did not change is named again, so that all replicas know of it.
func TestRegisterNamesAgain(t *testing.T) {
	r := with([]agent.Registration{registration(1, 1, 1), but(registration(2, 1, 1), named("dev"))})
	p, err := plan.Register(r, sets.Set{Agents: []agent.Registration{registration(1, 1, 1)}}, noLimits)
	require.NoError(t, err)
	require.Equal(t, agent.Change{NamedAgents: ids(1), NamedWorkspaces: ids(1001)}, p.Change)
	require.False(t, p.IsEmpty())
	p, err = plan.Register(r, sets.Set{}, noLimits)
	require.NoError(t, err)
	require.True(t, p.IsEmpty())
}

// What a refused agent says of its workspace is not kept, nor given to other agents of
// the set.
func TestRefusedAgentNamesNoWorkspace(t *testing.T) {
	refused := but(registration(2, 1, 1), func(r *agent.Registration) {
		r.Name, r.Workspace.Name, r.TokenHash = "second", "wrong", [32]byte{9}
	})
	p, err := plan.Register(with([]agent.Registration{registration(9, 9, 1)}), sets.Set{Agents: []agent.Registration{registration(1, 1, 1), refused}}, noLimits)
	require.NoError(t, err)
	require.Len(t, p.Refused, 1)
	require.Equal(t, "ws1", p.Workspaces[nid(1001)].Name)
	require.Equal(t, "ws1", p.Agents[nid(1)].Workspace.Name)
}

// A chain of agents, each with the token of the next one, of which the last is refused: each
// decision refuses one more.
func TestRegisterRefusesChains(t *testing.T) {
	for length, err := range map[int]error{15: nil, 16: plan.ErrTokens} {
		before := []agent.Registration{registration(length+1, length+1, 1)}
		var then []agent.Registration
		for n := 1; n <= length; n++ {
			before = append(before, registration(n, n, 1))
			then = append(then, but(registration(n, n, 1), token(n+1)))
		}
		p, got := plan.Register(with(before), sets.Set{Agents: then}, noLimits)
		require.ErrorIs(t, got, err)
		if err == nil {
			require.Len(t, p.Refused, length)
		}
	}
}

// The memory after a plan is that of its registrations, kept anew.
func TestRegisterChecksBytes(t *testing.T) {
	two := []agent.Registration{registration(1, 1, 1), registration(2, 2, 1)}
	long := but(registration(2, 2, 1), func(r *agent.Registration) {
		r.MetadataKeys, r.Workspace.Name = []string{"a long one"}, "a long one, too"
	})
	for name, c := range map[string]struct {
		set   []agent.Registration
		after []agent.Registration
	}{
		"another one":  {[]agent.Registration{registration(3, 3, 1)}, append(slices.Clone(two), registration(3, 3, 1))},
		"a longer one": {[]agent.Registration{long}, []agent.Registration{two[0], long}},
		"in its place": {[]agent.Registration{registration(4, 2, 2), long}, []agent.Registration{two[0], registration(4, 2, 2)}},
		"in its place, longer": {[]agent.Registration{but(registration(4, 1, 2), func(r *agent.Registration) { r.Workspace.Name = "much longer than before" })},
			[]agent.Registration{two[1], but(registration(4, 1, 2), func(r *agent.Registration) { r.Workspace.Name = "much longer than before" })}},
	} {
		t.Run(name, func(t *testing.T) {
			before, after := with(two), with(c.after)
			limits := noLimits
			limits.Bytes = after.Use().Bytes()
			_, err := plan.Register(before, sets.Set{Agents: slices.Clone(c.set)}, limits)
			require.NoError(t, err)
			limits.Bytes--
			_, err = plan.Register(before, sets.Set{Agents: slices.Clone(c.set)}, limits)
			if limits.Bytes < before.Use().Bytes() {
				require.NoError(t, err, "it does not grow")
				return
			}
			require.ErrorIs(t, err, capacity.ErrTooLarge)
			require.ErrorContains(t, err, fmt.Sprintf("got %d", limits.Bytes+1))
		})
	}
}

// A sync deregisters what was named earlier and is not in its set. That its set keeps, or
// that was refused, stays.
func TestSync(t *testing.T) {
	regs := []agent.Registration{registration(1, 1, 1), registration(2, 2, 1), registration(3, 3, 1), but(registration(4, 3, 1), named("dev")), registration(5, 5, 1)}
	empty := registration(9, 9, 1).Workspace
	r := with(regs, empty)
	without := func(id agent.ID) plan.Earlier {
		earlier := r.all()
		earlier.Agents = func(yield func(agent.ID, *kept.Registration) bool) {
			for other, reg := range r.AllAgents() {
				if other != id && !yield(other, reg) {
					return
				}
			}
		}
		return earlier
	}
	for name, c := range map[string]struct {
		set          sets.Set
		earlier      plan.Earlier
		force        bool
		err          string
		deregistered []agent.ID
		workspaces   []agent.ID
	}{
		"all named":            {sets.Set{Agents: regs, Workspaces: []agent.Workspace{empty}}, r.all(), false, "", nil, nil},
		"an empty workspace":   {sets.Set{Agents: regs}, r.all(), false, "", nil, ids(1009)},
		"one of a workspace":   {sets.Set{Agents: regs[:3], KeptWorkspaces: ids(1009)}, r.all(), false, "", ids(4, 5), ids(1005)},
		"half and more":        {sets.Set{Agents: regs[:2]}, r.all(), false, "more than half of all agents would be deregistered: 3 of 5", nil, nil},
		"half and more, force": {sets.Set{Agents: regs[:2]}, r.all(), true, "", ids(3, 4, 5), ids(1003, 1005, 1009)},
		"named since":          {sets.Set{Agents: regs[:3]}, without(nid(5)), false, "", ids(4), ids(1009)},
		"kept workspaces":      {sets.Set{Agents: regs[:2], KeptWorkspaces: ids(1003, 1009)}, r.all(), false, "", ids(5), ids(1005)},
		"a refused agent": {
			sets.Set{Agents: regs[:3], Refused: []agent.RegistrationRefusal{{Agent: nid(5)}}}, r.all(), false, "", ids(4), ids(1009),
		},
		"a refused workspace": {
			sets.Set{Agents: regs[:2], Refused: []agent.RegistrationRefusal{{Workspace: nid(1003)}}}, r.all(), false, "", ids(5), ids(1005, 1009),
		},
		"refused without ids": {sets.Set{Refused: []agent.RegistrationRefusal{{}}}, r.all(), false, "", nil, nil},
		"refused a token": {
			sets.Set{Agents: append(slices.Clone(regs[:4]), but(regs[4], token(1)))}, r.all(), false, "", nil, ids(1009),
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.set.Agents = slices.Clone(c.set.Agents)
			p, err := plan.Sync(r, c.set, c.earlier, c.force, noLimits)
			if c.err != "" {
				require.ErrorIs(t, err, plan.ErrNeedsForce)
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.deregistered, p.Deregistered)
			require.Equal(t, c.deregistered, p.Change.RemovedAgents)
			require.Equal(t, c.workspaces, sorted(p.Change.RemovedWorkspaces))
			require.Empty(t, p.Change.Agents)
		})
	}
}

// A workspace goes with its agents. Each goes once, and what is not known does not.
func TestDeregister(t *testing.T) {
	r := with([]agent.Registration{registration(1, 1, 1), registration(2, 2, 1), but(registration(3, 2, 1), named("dev")), registration(4, 4, 1)})
	p := plan.Deregister(r, ids(1, 1, 2, 99), ids(1002, 1002, 1099))
	require.Equal(t, ids(1, 2, 3), p.Deregistered)
	require.Equal(t, ids(1, 2, 3), p.Change.RemovedAgents)
	require.Equal(t, ids(1002), p.Change.RemovedWorkspaces)
	require.True(t, plan.Deregister(r, ids(99), ids(1099)).IsEmpty())
}
