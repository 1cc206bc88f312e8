package families

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// The version of the template is a label if it is asked for, also where coderd
// sent none.
func TestUpSeriesTemplateVersion(t *testing.T) {
	w := agent.Workspace{Name: "ws", OwnerUsername: "ann", Template: agent.Template{Name: "go", Version: "v1"}}
	label := func(name, value string) agent.Label { return agent.Label{Name: name, Value: value} }
	plain := []agent.Label{label("template_name", "go"), label("username", "ann"), label("workspace_name", "ws")}
	require.Equal(t, []agent.Series{{Family: FamilyUp, Labels: plain, Value: 2}}, new(Buffer).Workspace(&w, 2, false, false))
	for version, want := range map[string]string{"v1": "v1", "": "unknown"} {
		w.Template.Version = version
		labels := []agent.Label{plain[0], label("template_version", want), plain[1], plain[2]}
		require.Equal(t, []agent.Series{{Family: FamilyUp, Labels: labels, Value: 2}}, new(Buffer).Workspace(&w, 2, true, false))
	}
}

// What a workspace is made of is told with the version of its template, also where coderd
// sent none.
func TestInfo(t *testing.T) {
	w := agent.Workspace{Name: "ws", OwnerUsername: "ann", Organization: "research", Template: agent.Template{Name: "go", Version: "v1"}}
	want := agent.Series{Family: "agentstatsd_workspace_info", Value: 1, Labels: []agent.Label{
		{Name: "organization_name", Value: "research"}, {Name: "template_name", Value: "go"}, {Name: "template_version", Value: "v1"},
		{Name: "username", Value: "ann"}, {Name: "workspace_name", Value: "ws"},
	}}
	require.Equal(t, want, new(Buffer).Workspace(&w, 0, false, true)[1])
	w.Template.Version = ""
	want.Labels[2].Value = "unknown"
	require.Equal(t, want, new(Buffer).Workspace(&w, 0, false, true)[1])
}

func TestApps(t *testing.T) {
	apps := []agent.App{
		{ID: nid(1), Slug: "code", DisplayName: "Code", Health: agent.AppHealthInitializing},
		{ID: nid(2), Slug: "Code", Health: agent.AppHealthHealthy},
		{ID: nid(3), Slug: "term"},
	}
	require.Equal(t, []appCount{{"Code", agent.AppHealthInitializing, 1}, {"Code", agent.AppHealthHealthy, 1}, {"term", agent.AppHealthDisabled, 1}}, countApps(nil, apps, nil))
	require.Equal(t, []appCount{{"Code", agent.AppHealthHealthy, 2}, {"term", agent.AppHealthDisabled, 1}},
		countApps(nil, apps, map[agent.ID]agent.AppHealth{nid(1): agent.AppHealthHealthy}))
}

func TestLatencies(t *testing.T) {
	region := func(id int64, name string, ms int) agent.Region {
		return agent.Region{ID: id, Name: name, Latency: time.Duration(ms) * time.Millisecond}
	}
	for _, c := range []struct {
		why       string
		preferred int64
		regions   []agent.Region
		want      []latency
	}{
		{"not measured", 1, []agent.Region{region(1, "a", -1), region(2, "b", 0)}, []latency{{"b", false, 0}}},
		{"no name", 7, []agent.Region{region(7, "", 5)}, []latency{{"Unnamed 7", true, 0.005}}},
		{"equal names: the nearest", 0, []agent.Region{region(1, "a", 5), region(2, "a", 3), region(0, "a", 4)}, []latency{{"a", false, 0.003}}},
		{"equal names: the preferred", 1, []agent.Region{region(2, "a", 3), region(1, "a", 5), region(3, "a", 1)}, []latency{{"a", true, 0.005}}},
	} {
		require.Equal(t, c.want, latencies(&agent.Network{PreferredRegion: c.preferred, Regions: c.regions}), c.why)
	}
}

// The node is that of Coder's golden vectors.
func TestTailnetNode(t *testing.T) {
	reg := &agent.Registration{Name: "main"}
	for _, c := range []struct {
		id   uint64
		st   agent.Status
		want string
	}{
		{0x16966f7df70d8cc5, agent.StatusConnected, "nodeid:16966f7df70d8cc5"},
		{0x16966f7df70d8cc5, agent.StatusDisconnected, "unknown"},
		{0x16966f7df70d8cc5, agent.StatusTimeout, "unknown"},
		{1, agent.StatusConnected, "nodeid:1"},
		{0, agent.StatusConnected, "unknown"},
	} {
		series := new(Buffer).Agent(reg, &agent.State{Network: agent.Network{NodeID: c.id}}, c.st)
		require.Contains(t, series[0].Labels, agent.Label{Name: "tailnet_node", Value: c.want}, "%v", c)
	}
}

func nid(n byte) agent.ID { return agent.ID{n} }

// What was reset is used again.
func TestBuffer(t *testing.T) {
	reg := &agent.Registration{Name: "main", Apps: []agent.App{{ID: nid(1), Slug: "code"}}}
	var b Buffer
	for range 1000 {
		require.Len(t, b.Agent(reg, &agent.State{}, agent.StatusConnecting), 2)
		require.Len(t, b.Workspace(&reg.Workspace, 1, true, true), 2)
		b.Reset()
	}
	require.LessOrEqual(t, cap(b.series), 8)
	require.LessOrEqual(t, cap(b.labels), 64)
}
