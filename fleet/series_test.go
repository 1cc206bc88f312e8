package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/families"
	"github.com/coder/agentstatsd/internal/bubble"
)

// stateSeries are the series that a fleet set.
type stateSeries struct {
	mu      sync.Mutex
	byKey   map[agent.SeriesKey][]string
	sets    int
	largest int // the most keys that were set at once
}

func newStateSeries() *stateSeries { return &stateSeries{byKey: make(map[agent.SeriesKey][]string)} }

func (s *stateSeries) noteSize(keys int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.largest = max(s.largest, keys)
}

func (s *stateSeries) set(key agent.SeriesKey, series []agent.Series) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets++
	if len(series) == 0 {
		delete(s.byKey, key)
		return
	}
	lines := make([]string, len(series))
	for i, one := range series {
		labels := make([]string, len(one.Labels))
		for j, l := range one.Labels {
			labels[j] = l.Name + "=" + l.Value
		}
		lines[i] = seriesLine(one.Family, labels, one.Value)
	}
	s.byKey[key] = lines
}

func seriesLine(family string, labels []string, v float64) string {
	return fmt.Sprintf("%s{%s} %v", strings.TrimPrefix(family, "coderd_agents_"), strings.Join(labels, ","), v)
}

// all returns all series, sorted.
func (s *stateSeries) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := []string{}
	for _, l := range s.byKey {
		lines = append(lines, l...)
	}
	slices.Sort(lines)
	return lines
}

func (s *stateSeries) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sets
}

// vectors are states of agents and what upstream serves of them.
type vectors struct {
	StatusCases []struct {
		FirstConnected    *struct{} `json:"first_connected"`
		CreatedAgo        float64   `json:"created_ago_s"`
		ConnectionTimeout float64   `json:"connection_timeout_s"`
		LastConnectedAgo  *float64  `json:"last_connected_ago_s"`
		DisconnectedAgo   *float64  `json:"disconnected_ago_s"`
		InactiveTimeout   float64   `json:"inactive_timeout_s"`
		Status            string
	} `json:"status_cases"`
	Cases []struct {
		Name  string
		State struct {
			ListingError bool `json:"listing_error"`
			DERPMap      map[string]string
			Workspaces   []struct {
				Workspace        string
				Username         string
				Template         string
				OwnerLookupError bool `json:"owner_lookup_error"`
				Agents           []struct {
					Name      string
					Lifecycle string
					Status    string
					Node      *struct {
						ID            string
						PreferredDERP int64              `json:"preferred_derp"`
						DERPLatency   map[string]float64 `json:"derp_latency"`
					}
					Apps []struct {
						DisplayName string `json:"display_name"`
						Slug        string
						Health      string
					}
				}
			}
		}
		Expect      json.RawMessage
		ExpectOneOf json.RawMessage `json:"expect_one_of"`
	}
}

type expectation struct {
	Family string
	Labels map[string]string
	Value  float64
	Values []float64
}

func golden(t *testing.T) (v vectors) {
	t.Helper()
	data, err := os.ReadFile("testdata/agents.json")
	require.NoError(t, err)
	// In this key the vectors and Go differ in more than case.
	require.NoError(t, json.Unmarshal([]byte(strings.ReplaceAll(string(data), `"derp_map"`, `"DERPMap"`)), &v))
	return v
}

// Ours has a live session where upstream compares times: an agent that is not
// connected and was once is disconnected, however long ago.
func TestGoldenStatus(t *testing.T) {
	cases := golden(t).StatusCases
	require.NotEmpty(t, cases)
	for _, c := range cases {
		now := day
		seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		reg := &agent.Registration{CreatedAt: now.Add(-seconds(c.CreatedAgo)), ConnectionTimeout: seconds(c.ConnectionTimeout)}
		seen := c.LastConnectedAgo != nil
		online := seen && *c.LastConnectedAgo <= c.InactiveTimeout && (c.DisconnectedAgo == nil || *c.DisconnectedAgo > *c.LastConnectedAgo)
		require.Equal(t, agent.Status(c.Status), families.Status(reg.CreatedAt, reg.ConnectionTimeout, online, seen, now), "%+v", c)
	}
}

// On purpose unlike upstream: up counts the agents that are connected, and has
// no label template_version.
func TestGoldenSeries(t *testing.T) {
	for i, c := range golden(t).Cases {
		if c.State.ListingError || c.State.Workspaces[0].OwnerLookupError {
			continue // there is nothing to look up
		}
		t.Run(c.Name, func(t *testing.T) {
			p := newParts(t, Options{})
			require.NoError(t, p.Load(t.Context()))
			var want []string
			for w, ws := range c.State.Workspaces {
				workspace := agent.Workspace{
					ID: nid(1000 + w), Name: ws.Workspace, OwnerUsername: ws.Username, Template: agent.Template{Name: ws.Template},
				}
				_, err := p.Register(t.Context(), Set{Workspaces: []agent.Workspace{workspace}})
				require.NoError(t, err)
				connected := 0
				for a, ag := range ws.Agents {
					reg := registration(100*i+a, w, 1)
					reg.Name, reg.Workspace, reg.Apps = ag.Name, workspace, nil
					for n, app := range ag.Apps {
						reg.Apps = append(reg.Apps, agent.App{ID: nid(3000 + n), DisplayName: app.DisplayName, Slug: app.Slug, Health: agent.AppHealth(app.Health)})
					}
					_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
					require.NoError(t, err)
					if ag.Status == "connecting" {
						continue
					}
					s := connect(t, p, 100*i+a)
					receive(t, s, 1, func(r Request) {
						r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleState(ag.Lifecycle)}, 0)
						if ag.Node != nil {
							r.SetNetwork(network(t, ag.Node.ID, ag.Node.PreferredDERP, ag.Node.DERPLatency, c.State.DERPMap), 0)
						}
					})
					connected++
					if ag.Status == "disconnected" {
						s.Close(EndDisconnect)
						connected--
					}
				}
				want = append(want, fmt.Sprintf("up{template_name=%s,username=%s,workspace_name=%s} %d", ws.Template, ws.Username, ws.Workspace, connected))
			}
			var expect, oneOf []expectation
			if c.Expect != nil {
				require.NoError(t, json.Unmarshal(c.Expect, &expect))
			}
			if c.ExpectOneOf != nil {
				require.NoError(t, json.Unmarshal(c.ExpectOneOf, &oneOf))
			}
			listed := map[string]bool{"up": true}
			for _, e := range slices.Concat(expect, oneOf) {
				if e.Family == families.FamilyUp {
					continue
				}
				if len(e.Values) > 0 {
					e.Value = slices.Min(e.Values) // ours is always the nearest
				}
				var labels []string
				for name, value := range e.Labels {
					labels = append(labels, name+"="+value)
				}
				slices.Sort(labels)
				want = append(want, seriesLine(e.Family, labels, e.Value))
				listed[strings.TrimPrefix(e.Family, "coderd_agents_")] = true
			}
			slices.Sort(want)
			// Of some cases the vectors list only part of the families.
			got := slices.DeleteFunc(p.states.all(), func(l string) bool {
				family, _, _ := strings.Cut(l, "{")
				return !listed[family]
			})
			require.Equal(t, want, got)
		})
	}
}

// network is the message that an agent with upstream's node sends.
func network(t *testing.T, node string, preferred int64, latencies map[string]float64, names map[string]string) agent.Network {
	id, err := strconv.ParseUint(strings.TrimPrefix(node, "nodeid:"), 16, 64)
	require.NoError(t, err)
	n := agent.Network{NodeID: id, PreferredRegion: preferred}
	for key, seconds := range latencies {
		number, _, _ := strings.Cut(key, "-")
		region, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			continue // the message has numbers only
		}
		n.Regions = append(n.Regions, agent.Region{ID: region, Name: names[number], Latency: time.Duration(seconds*1e9 + 0.5)})
	}
	return n
}

func TestStatusMovesByTimer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		reg := registration(1, 1, 1)
		reg.CreatedAt, reg.ConnectionTimeout = time.Now(), time.Minute
		p := loaded(t, Options{}, reg)
		defer running(t, p)()
		shown := func(want agent.Status) {
			t.Helper()
			synctest.Wait()
			i, err := p.Agent(nid(1))
			require.NoError(t, err)
			require.Equal(t, want, i.Status)
			up := 0
			if want == agent.StatusConnected {
				up = 1
			}
			require.Equal(t, []string{
				"apps{agent_name=main,app_name=code,health=initializing,username=ada,workspace_name=ws1} 1",
				"connections{agent_name=main,lifecycle_state=created,status=" + string(want) + ",tailnet_node=unknown,username=ada,workspace_name=ws1} 1",
				fmt.Sprintf("up{template_name=docker,username=ada,workspace_name=ws1} %d", up),
			}, p.states.all())
		}
		shown(agent.StatusConnecting)
		time.Sleep(time.Minute)
		shown(agent.StatusConnecting)
		time.Sleep(scanInterval)
		shown(agent.StatusTimeout)
		sets := p.states.count()
		time.Sleep(time.Minute)
		require.Equal(t, sets, p.states.count(), "what does not change is not made anew")

		s := connect(t, p, 1)
		shown(agent.StatusConnected)
		connect(t, p, 1)
		shown(agent.StatusConnected)
		s.Close(EndDisconnect)
		shown(agent.StatusConnected)
		connect(t, p, 1).Close(EndGoodbye)
		shown(agent.StatusDisconnected)
		_, err := p.Deregister(t.Context(), ids(1), nil)
		require.NoError(t, err)
		require.Equal(t, []string{"up{template_name=docker,username=ada,workspace_name=ws1} 0"}, p.states.all())
		_, err = p.Deregister(t.Context(), nil, ids(1001))
		require.NoError(t, err)
		require.Empty(t, p.states.all())
	})
}

// After a restart, agents that had a session are disconnected until they are
// back.
func TestStatesAreSetAtLoad(t *testing.T) {
	a, b := registration(1, 1, 1), registration(2, 2, 1)
	before := loaded(t, Options{}, a, b)
	before.store.sessions[nid(1)] = agent.SessionRecord{Agent: nid(1), Epoch: 5}
	p := newPartsOn(t, Options{}, before.store, before.journal)
	require.NoError(t, p.Load(t.Context()))
	require.Equal(t, []string{
		"apps{agent_name=main,app_name=code,health=initializing,username=ada,workspace_name=ws1} 1",
		"apps{agent_name=main,app_name=code,health=initializing,username=ada,workspace_name=ws2} 1",
		"connections{agent_name=main,lifecycle_state=created,status=connecting,tailnet_node=unknown,username=ada,workspace_name=ws2} 1",
		"connections{agent_name=main,lifecycle_state=created,status=disconnected,tailnet_node=unknown,username=ada,workspace_name=ws1} 1",
		"up{template_name=docker,username=ada,workspace_name=ws1} 0",
		"up{template_name=docker,username=ada,workspace_name=ws2} 0",
	}, p.states.all())
}

// A removal that the database refuses leaves the agent as it was, but without
// its session.
func TestReadmittedAgentIsShownAgain(t *testing.T) {
	p := loaded(t, Options{}, registration(1, 1, 1))
	before := p.states.all()
	p.store.fail(errors.New("down"))
	_, err := p.Deregister(t.Context(), ids(1), nil)
	require.Error(t, err)
	require.Equal(t, before, p.states.all())
}

func TestWatch(t *testing.T) {
	p := newParts(t, Options{})
	var watched [][]agent.ID
	cancel := p.Watch(func(ids []agent.ID) { watched = append(watched, ids) })
	expect := func(why string, want ...[]agent.ID) {
		t.Helper()
		require.Equal(t, want, watched, why)
		watched = nil
	}
	require.NoError(t, p.Load(t.Context()))
	expect("all are to be read", nil)
	_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	require.NotEmpty(t, watched)
	require.Equal(t, ids(1), watched[len(watched)-1])
	watched = nil
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(1, 1, 1)}})
	require.NoError(t, err)
	expect("nothing changed")
	s := connect(t, p, 1)
	expect("a status", ids(1))
	ready := agent.Lifecycle{State: agent.LifecycleReady}
	receive(t, s, 1, func(r Request) { r.SetLifecycle(ready, 0) })
	expect("a lifecycle", ids(1))
	receive(t, s, 2, func(r Request) { r.SetLifecycle(ready, 0) })
	expect("the same again")
	receive(t, s, 3, func(r Request) { r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy}, nil) })
	expect("an app's health", ids(1))
	receive(t, s, 4, func(r Request) { r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy}, nil) })
	receive(t, s, 5, func(r Request) { r.SetNetwork(agent.Network{NodeID: 1}, 0) })
	expect("nobody watches the network")
	s.Close(EndDisconnect)
	expect("a status", ids(1))
	_, err = p.Deregister(t.Context(), ids(1), nil)
	require.NoError(t, err)
	require.Contains(t, watched, ids(1), "it is gone")
	watched = nil
	cancel()
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{registration(2, 1, 2)}})
	require.NoError(t, err)
	expect("nobody listens")
}

// Ids of agents and workspaces come from elsewhere: one may be both.
func TestAgentWithTheIDOfItsWorkspace(t *testing.T) {
	r := registration(1, 1, 1)
	r.Workspace.ID = r.ID
	p := loaded(t, Options{}, r)
	want := []string{
		"apps{agent_name=main,app_name=code,health=initializing,username=ada,workspace_name=ws1} 1",
		"connections{agent_name=main,lifecycle_state=created,status=connecting,tailnet_node=unknown,username=ada,workspace_name=ws1} 1",
		"up{template_name=docker,username=ada,workspace_name=ws1} 0",
	}
	require.Equal(t, want, p.states.all())
	s := connect(t, p, 1)
	require.Contains(t, p.states.all(), "up{template_name=docker,username=ada,workspace_name=ws1} 1")
	require.Len(t, p.states.all(), 3)
	s.Close(EndGoodbye)
	_, err := p.Deregister(t.Context(), ids(1), nil)
	require.NoError(t, err)
	require.Equal(t, []string{want[2]}, p.states.all())
}
