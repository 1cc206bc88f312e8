package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// Whatever coderd and agents do, the series are those that are made from scratch
// of what the fleet knows.
func TestAnySequenceOfStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := &journal{}
		store := newMemStore(j)
		w := &stateWorld{
			parts: newPartsOn(t, Options{}, store, j), online: map[agent.ID]bool{}, seen: map[agent.ID]bool{}, sessions: map[agent.ID]*Session{},
		}
		require.NoError(t, w.Load(context.Background()))
		t.Repeat(map[string]func(*rapid.T){
			"":           w.check,
			"register":   w.register,
			"connect":    w.connect,
			"disconnect": w.disconnect,
			"say":        w.say,
			"deregister": w.deregister,
			"refuse":     w.refuse,
			"restart":    w.restart,
		})
	})
}

type stateWorld struct {
	parts
	// online have a session, seen had one ever.
	online, seen map[agent.ID]bool
	sessions     map[agent.ID]*Session
	sequence     int64
}

func (w *stateWorld) check(t *rapid.T) {
	w.scan(time.Now())
	for id := range w.seen {
		if _, err := w.Agent(id); err != nil {
			delete(w.seen, id)
			delete(w.online, id)
		}
	}
	w.checkSeries(t)
}

func (w *stateWorld) checkSeries(t require.TestingT) {
	require.Equal(t, w.expected(t), w.states.all())
	for ws := range w.registry.workspaces.All() {
		n := 0
		for _, e := range ws.agents {
			if w.online[e.id] {
				n++
			}
		}
		require.EqualValues(t, n, ws.up.local)
	}
}

// expected returns the series as they should be.
func (w *stateWorld) expected(t require.TestingT) []string {
	served := map[string]agent.Workspace{}
	for registered := range w.registry.workspaces.All() {
		ws := registered.reg.Load().Value()
		name := ws.OwnerUsername + "/" + ws.Name
		other, found := served[name]
		if !found || ws.Build.CreatedAt.After(other.Build.CreatedAt) ||
			ws.Build.CreatedAt.Equal(other.Build.CreatedAt) && ws.ID.String() > other.ID.String() {
			served[name] = ws
		}
	}
	lines := []string{}
	up := map[agent.ID]int{}
	for _, i := range w.List(uuid.Nil, 1000) {
		reg, s := i.Registration, i.State
		st := agent.StatusConnecting
		switch {
		case w.online[reg.ID]:
			st = agent.StatusConnected
			up[reg.Workspace.ID]++
		case w.seen[reg.ID]:
			st = agent.StatusDisconnected
		case reg.ConnectionTimeout == time.Minute:
			st = agent.StatusTimeout
		}
		require.Equal(t, st, i.Status)
		ws := reg.Workspace
		if served[ws.OwnerUsername+"/"+ws.Name].ID != ws.ID {
			continue
		}
		user := fmt.Sprintf("username=%s,workspace_name=%s} ", ws.OwnerUsername, ws.Name)
		life, node := s.Lifecycle.State, "unknown"
		if life == "" {
			life = "created"
		}
		if s.Network.NodeID > 0 && st == agent.StatusConnected {
			node = fmt.Sprintf("nodeid:%x", s.Network.NodeID)
		}
		lines = append(lines, fmt.Sprintf("connections{agent_name=%s,lifecycle_state=%s,status=%s,tailnet_node=%s,", reg.Name, life, st, node)+user+"1")
		apps := map[string]int{}
		for _, a := range reg.Apps {
			health, reported := s.AppHealth[a.ID]
			if !reported {
				health = a.Health
			}
			name := a.DisplayName
			if name == "" {
				name = a.Slug
			}
			apps[fmt.Sprintf("apps{agent_name=%s,app_name=%s,health=%s,", reg.Name, name, health)]++
		}
		for labels, n := range apps {
			lines = append(lines, fmt.Sprint(labels, user, n))
		}
		if st != agent.StatusConnected {
			continue
		}
		for _, r := range s.Network.Regions {
			lines = append(lines, fmt.Sprint("connection_latencies_seconds{agent_name=", reg.Name, ",derp_region=", r.Name,
				",preferred=", r.ID == s.Network.PreferredRegion, ",", user, r.Latency.Seconds()))
		}
	}
	for _, ws := range served {
		lines = append(lines, fmt.Sprintf("up{template_name=%s,username=%s,workspace_name=%s} %d", ws.Template.Name, ws.OwnerUsername, ws.Name, up[ws.ID]))
	}
	slices.Sort(lines)
	return lines
}

func (w *stateWorld) register(t *rapid.T) {
	n := rapid.IntRange(1, 6).Draw(t, "agent")
	space := rapid.IntRange(1, 3).Draw(t, "workspace")
	reg := registration(n, space, rapid.IntRange(1, 3).Draw(t, "build"))
	reg.Name = rapid.SampledFrom([]string{"main", "dev"}).Draw(t, "name")
	reg.Workspace.Name = rapid.SampledFrom([]string{"ws", "ws", "other"}).Draw(t, "workspace name")
	reg.Workspace.Template.Name = rapid.SampledFrom([]string{"docker", "k8s"}).Draw(t, "template")
	reg.ConnectionTimeout = rapid.SampledFrom([]time.Duration{0, time.Minute, 100 * 365 * 24 * time.Hour}).Draw(t, "timeout")
	for i := range rapid.IntRange(0, 3).Draw(t, "apps") {
		reg.Apps = append(reg.Apps, agent.App{
			ID: nid(6000 + i), Slug: "slug", DisplayName: rapid.SampledFrom([]string{"", "App", "code"}).Draw(t, "app"), Health: agent.AppHealthHealthy,
		})
	}
	set := Set{Agents: []agent.Registration{reg}}
	if rapid.IntRange(0, 3).Draw(t, "workspace only") == 0 {
		set = Set{Workspaces: []agent.Workspace{reg.Workspace}}
	}
	_, err := w.Register(context.Background(), set)
	require.NoError(t, err)
}

func (w *stateWorld) pick(t *rapid.T) agent.ID { return nid(rapid.IntRange(1, 6).Draw(t, "agent")) }

func (w *stateWorld) connect(t *rapid.T) {
	id := w.pick(t)
	s, err := w.Connect(t.Context(), id, Hello{Instance: instanceID(1), Ordinal: 1})
	if err != nil {
		return
	}
	w.sessions[id], w.online[id], w.seen[id] = s, true, true
}

func (w *stateWorld) disconnect(t *rapid.T) {
	id := w.pick(t)
	if s := w.sessions[id]; s != nil {
		live := !closed(s.Done())
		s.Close(rapid.SampledFrom([]End{EndDisconnect, EndGoodbye}).Draw(t, "end"))
		delete(w.sessions, id)
		if live {
			delete(w.online, id)
		}
	}
}

func (w *stateWorld) say(t *rapid.T) {
	s := w.sessions[w.pick(t)]
	if s == nil {
		return
	}
	w.sequence++
	err := s.Receive(time.Now(), w.sequence, func(r Request) {
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			r.SetLifecycle(agent.Lifecycle{State: rapid.SampledFrom([]agent.LifecycleState{
				agent.LifecycleStarting, agent.LifecycleReady, agent.LifecycleStartError, agent.LifecycleOff,
			}).Draw(t, "state")}, 0)
		case 1:
			r.SetAppHealth(map[agent.ID]agent.AppHealth{
				nid(6000 + rapid.IntRange(0, 3).Draw(t, "app")): rapid.SampledFrom([]agent.AppHealth{agent.AppHealthHealthy, agent.AppHealthUnhealthy}).Draw(t, "health"),
			}, nil)
		default:
			n := agent.Network{NodeID: rapid.Uint64Range(0, 300).Draw(t, "node"), PreferredRegion: 1}
			for i := range rapid.Int64Range(0, 3).Draw(t, "regions") {
				n.Regions = append(n.Regions, agent.Region{ID: i + 1, Name: fmt.Sprint("r", i), Latency: time.Duration(w.sequence) * time.Millisecond})
			}
			r.SetNetwork(n, 0)
		}
	})
	if err != nil {
		require.ErrorIs(t, err, ErrSessionOver)
	}
}

func (w *stateWorld) deregister(t *rapid.T) {
	agents, workspaces := []agent.ID{w.pick(t)}, []agent.ID(nil)
	if rapid.Bool().Draw(t, "with its workspace") {
		workspaces = []agent.ID{nid(1000 + rapid.IntRange(1, 3).Draw(t, "workspace"))}
	}
	_, err := w.Deregister(context.Background(), agents, workspaces)
	require.NoError(t, err)
}

// refuse is a removal that the database refuses: the agent loses its session.
func (w *stateWorld) refuse(t *rapid.T) {
	id := w.pick(t)
	if _, err := w.Agent(id); err != nil {
		return
	}
	w.store.fail(errors.New("down"))
	_, err := w.Deregister(context.Background(), []agent.ID{id}, nil)
	w.store.fail(nil)
	require.Error(t, err)
	delete(w.online, id)
}

// restart has another process go on with what is stored.
func (w *stateWorld) restart(t *rapid.T) {
	require.NoError(t, w.write(context.Background()))
	w.parts = newPartsOn(t, Options{}, w.store, w.journal)
	require.NoError(t, w.Load(context.Background()))
	clear(w.online)
	clear(w.sessions)
}
