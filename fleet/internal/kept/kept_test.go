package kept

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

var (
	drawID   = rapid.Custom(func(t *rapid.T) (id agent.ID) { id[3] = rapid.ByteMax(2).Draw(t, "id"); return id })
	drawText = rapid.OneOf(rapid.SampledFrom([]string{"", "main", "start", "ready"}), rapid.String(), rapid.StringN(200, 300, -1))
	drawTime = rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.Bool().Draw(t, "zero") {
			return time.Time{}
		}
		return time.Unix(0, rapid.Int64Range(-1<<62, 1<<62).Draw(t, "time")).UTC()
	})
	drawNetwork = rapid.Custom(func(t *rapid.T) agent.Network {
		n := agent.Network{NodeID: rapid.Uint64().Draw(t, "node"), PreferredRegion: rapid.Int64().Draw(t, "preferred")}
		for range rapid.IntRange(0, 3).Draw(t, "regions") {
			n.Regions = append(n.Regions, agent.Region{ID: rapid.Int64().Draw(t, "region"), Name: drawText.Draw(t, "name"), Latency: time.Duration(rapid.Int64().Draw(t, "latency"))})
		}
		return n
	})
	drawOrder = rapid.Custom(func(t *rapid.T) agent.Order {
		n := func(label string) int64 {
			return rapid.OneOf(rapid.SampledFrom([]int64{0, 1}), rapid.Int64()).Draw(t, label)
		}
		return agent.Order{Epoch: n("epoch"), Sequence: n("sequence"), Basis: n("basis"), Previous: n("previous"), Said: n("said")}
	})
	drawLifecycle = rapid.Map(drawText, func(s string) agent.LifecycleState { return agent.LifecycleState(s) })
	drawHealth    = rapid.Map(rapid.OneOf(drawText, rapid.Just("healthy")), func(s string) agent.AppHealth { return agent.AppHealth(s) })
	drawWorkspace = rapid.Custom(func(t *rapid.T) agent.Workspace {
		return agent.Workspace{
			ID: drawID.Draw(t, "workspace"), Name: drawText.Draw(t, "name"), OwnerID: drawID.Draw(t, "owner"), OwnerUsername: drawText.Draw(t, "username"),
			Template:     agent.Template{ID: drawID.Draw(t, "template"), Name: drawText.Draw(t, "template name"), Version: drawText.Draw(t, "version")},
			Organization: drawText.Draw(t, "organization"),
			Build: agent.Build{
				ID: drawID.Draw(t, "build"), CreatedAt: drawTime.Draw(t, "built"), Transition: agent.Transition(drawText.Draw(t, "transition")),
				IsPrebuild: rapid.Bool().Draw(t, "prebuild"),
			},
		}
	})
	drawRegistration = rapid.Custom(func(t *rapid.T) agent.Registration {
		reg := agent.Registration{
			ID: drawID.Draw(t, "agent"), Name: drawText.Draw(t, "name"), CreatedAt: drawTime.Draw(t, "created"),
			ConnectionTimeout: time.Duration(rapid.Int64().Draw(t, "timeout")), Workspace: drawWorkspace.Draw(t, "workspace"),
			Parent: drawID.Draw(t, "parent"), Incarnation: rapid.Int64().Draw(t, "incarnation"),
		}
		reg.TokenHash[5] = rapid.Byte().Draw(t, "token")
		for range rapid.IntRange(0, 3).Draw(t, "apps") {
			reg.Apps = append(reg.Apps, agent.App{ID: drawID.Draw(t, "app"), Slug: drawText.Draw(t, "slug"), DisplayName: drawText.Draw(t, "display"), Health: drawHealth.Draw(t, "health")})
		}
		for range rapid.IntRange(0, 3).Draw(t, "keys") {
			reg.MetadataKeys = append(reg.MetadataKeys, drawText.Draw(t, "key"))
		}
		if rapid.Bool().Draw(t, "observed") {
			reg.Observed = agent.Observation{
				At: drawTime.Draw(t, "at"), Status: agent.Status(drawText.Draw(t, "status")),
				Lifecycle: agent.Lifecycle{State: drawLifecycle.Draw(t, "lifecycle"), ChangedAt: drawTime.Draw(t, "changed")},
				Network:   drawNetwork.Draw(t, "network"),
			}
		}
		return reg
	})
)

// What is kept of a registration is all of it.
func TestRegistration(t *testing.T) {
	var reused agent.Registration
	rapid.Check(t, func(t *rapid.T) {
		texts := NewTexts()
		reg, other := drawRegistration.Draw(t, "registration"), drawRegistration.Draw(t, "other")
		w := texts.Workspace(&reg.Workspace)
		k := texts.Registration(&reg, w)
		require.Equal(t, reg, *k.Value(reg.ID))
		require.True(t, k.Equal(&reg))
		other.ID = reg.ID
		require.Equal(t, reg.Equal(&other), k.Equal(&other))
		require.Equal(t, reg.Workspace, w.Value())
		require.Equal(t, reg.Workspace.Equal(&other.Workspace), w.Equal(&other.Workspace))

		require.Equal(t, reg.Identity(), k.Identity())
		require.Equal(t, reg.Name, k.Name())
		require.Equal(t, reg.CreatedAt, k.CreatedAt())
		require.Equal(t, reg.ConnectionTimeout, k.ConnectionTimeout())
		require.Equal(t, reg.MetadataKeys, k.MetadataKeys())
		require.Equal(t, reg.Observed, k.Observed())
		status, at := k.ObservedStatus()
		require.Equal(t, []any{reg.Observed.Status, reg.Observed.At}, []any{status, at})
		require.Equal(t, reg.Parent, k.Parent())
		require.Equal(t, reg.Workspace.Build.CreatedAt, w.BuiltAt())
		require.Equal(t, reg.Workspace.Template, w.Template())
		owner, name := w.Names()
		require.Equal(t, []string{reg.Workspace.OwnerUsername, reg.Workspace.Name}, []string{owner, name})

		k.CopyTo(&reused, reg.ID)
		require.True(t, reused.Equal(&reg), "memory that was used before")
	})
}

// What is kept of a state is all of it.
func TestState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := agent.State{
			Agent: drawID.Draw(t, "agent"), Lifecycle: agent.Lifecycle{State: drawLifecycle.Draw(t, "lifecycle"), ChangedAt: drawTime.Draw(t, "changed")},
			LifecycleOrder: drawOrder.Draw(t, "lifecycle order"),
			Startup:        agent.Startup{StartedAt: drawTime.Draw(t, "started"), ReadyAt: drawTime.Draw(t, "ready"), Result: drawLifecycle.Draw(t, "result")},
			StartedOrder:   drawOrder.Draw(t, "started order"), ReadyOrder: drawOrder.Draw(t, "ready order"),
			Network: drawNetwork.Draw(t, "network"), NetworkOrder: drawOrder.Draw(t, "network order"),
		}
		s.NetworkOrder.Epoch = rapid.Int64Min(1).Draw(t, "epoch") // something was said
		for range rapid.IntRange(0, 3).Draw(t, "apps") {
			if s.AppHealth == nil {
				s.AppHealth, s.AppHealthOrder = make(map[agent.ID]agent.AppHealth), make(map[agent.ID]agent.Order)
			}
			id := drawID.Draw(t, "app")
			s.AppHealth[id], s.AppHealthOrder[id] = drawHealth.Draw(t, "health"), drawOrder.Draw(t, "order")
		}
		require.Equal(t, s, StateOf(&s).Value(s.Agent))
	})
	require.Empty(t, StateOf(&agent.State{Agent: agent.ID{1}}))
	require.Equal(t, agent.State{Agent: agent.ID{1}}, State("").Value(agent.ID{1}))
}

// A state takes about as much as what differs in it.
func TestStateBytes(t *testing.T) {
	order := agent.Order{Epoch: time.Now().UnixNano(), Sequence: 3, Basis: 1, Said: time.Now().UnixNano()}
	var s agent.State
	s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: time.Now()}, order)
	order.Sequence++
	s.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: time.Now()}, order)
	require.Less(t, len(StateOf(&s)), 100)
}

// Texts are shared, counted once, and forgotten when nobody uses them. A change is counted
// before it is made.
func TestTexts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type pair struct {
			r *Registration
			w *Workspace
		}
		texts := NewTexts()
		var all []pair
		bytes := func() (n int64) {
			for _, p := range all {
				n += p.r.Bytes() + p.w.Bytes()
			}
			return n + texts.Bytes()
		}
		few := rapid.SliceOfN(drawRegistration, 4, 4).Draw(t, "registrations")
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			change, before := texts.Change(), bytes()
			removed := rapid.IntRange(0, len(all)).Draw(t, "removed")
			for _, p := range all[:removed] {
				change.RemoveRegistration(p.r)
				change.RemoveWorkspace(p.w)
			}
			added := rapid.SliceOfN(rapid.IntRange(0, len(few)-1), 0, 3).Draw(t, "added")
			for _, i := range added {
				change.AddRegistration(&few[i])
				change.AddWorkspace(&few[i].Workspace)
			}
			want := change.Bytes()
			for _, p := range all[:removed] {
				texts.ReleaseRegistration(p.r)
				texts.ReleaseWorkspace(p.w)
			}
			all = all[removed:]
			for _, i := range added {
				w := texts.Workspace(&few[i].Workspace)
				all = append(all, pair{texts.Registration(&few[i], w), w})
			}
			require.Equal(t, want, bytes()-before)
		}
		for _, p := range all {
			texts.ReleaseRegistration(p.r)
			texts.ReleaseWorkspace(p.w)
		}
		require.Zero(t, texts.Bytes())
		require.Empty(t, texts.all)
	})
}

// Agents of one template share all but what is their own.
func TestRegistrationsShare(t *testing.T) {
	texts := NewTexts()
	registration := func(n byte) *Registration {
		reg := agent.Registration{ID: agent.ID{n}, Name: "main", Apps: []agent.App{{ID: agent.ID{n}, Slug: "code"}}, MetadataKeys: []string{"cpu"}}
		w := agent.Workspace{ID: agent.ID{n}, Name: string(n), Template: agent.Template{Name: "docker"}}
		return texts.Registration(&reg, texts.Workspace(&w))
	}
	a, b := registration(1), registration(2)
	require.Same(t, a.declared, b.declared)
	require.Same(t, a.Workspace.common, b.Workspace.common)
	require.Len(t, texts.all, 2)
}
