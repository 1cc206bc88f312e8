package coderd

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"storj.io/drpc/drpcmux"

	"github.com/coder/agentstatsd/client/drpctap"
	"github.com/coder/agentstatsd/examples/coderd/agentproto"
	"github.com/coder/agentstatsd/examples/coderd/agents"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const token = "the agent's token"

// newDatabase returns a database with one agent, which has one app.
func newDatabase() (db *agents.Database, agentID, app uuid.UUID) {
	agentID, app = uuid.New(), uuid.New()
	return agents.NewDatabase(map[string]*agents.Agent{token: {
		ID: agentID, Name: "main", CreatedAt: time.Now().Add(-time.Minute),
		WorkspaceID: uuid.New(), WorkspaceName: "dev", OwnerName: "alice", TemplateName: "docker",
		Apps: map[uuid.UUID]string{app: "code"},
	}}), agentID, app
}

// collector calls a function at each scrape.
type collector func(chan<- prometheus.Metric)

func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) { c(out) }

// forwarding is a collector of what a coderd forwards for its agents.
var forwarding = collector(func(out chan<- prometheus.Metric) {
	desc := prometheus.NewDesc("agent_forwarded", "Metrics are forwarded from workspace agents.", []string{"agent_name", "username", "workspace_name"}, nil)
	out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, 1, "main", "alice", "dev")
})

// isServed reports whether one line of the families has all of the texts.
func (s *service) isServed(t *testing.T, family string, texts ...string) bool {
	t.Helper()
	return slices.ContainsFunc(s.scrape(t, family), func(line string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
	})
}

// What an agent says to coderd, and coderd accepts, arrives at the service. Nothing but
// that does: neither what coderd refuses, nor what a log streamer with the agent's token
// says, nor what coderd forwards.
func TestAgentIsRelayed(t *testing.T) {
	s := startService(t)
	db, agentID, app := newDatabase()
	c := startCoderd(t, db, s.url(), forwarding)
	a := connect(t, c, token, "agent")

	require.NoError(t, a.call(func(ctx context.Context, c agentproto.DRPCAgentClient) error {
		manifest, err := c.GetManifest(ctx, &agentproto.GetManifestRequest{})
		require.Equal(t, "dev", manifest.GetWorkspaceName())
		return err
	}))
	require.NoError(t, a.updateStats(nil), "asks for the interval")
	require.NoError(t, a.updateLifecycle(agentproto.Lifecycle_READY))
	require.NoError(t, a.updateMetadata("cpu", "  42 \n"))
	require.NoError(t, a.updateHealth(app, agentproto.AppHealth_HEALTHY))
	require.NoError(t, a.updateStats(&agentproto.Stats{RxBytes: 1000, Metrics: []*agentproto.Stats_Metric{
		{Name: "work_total", Type: agentproto.Stats_Metric_COUNTER, Value: 7},
	}}))
	await(t, "stats are served", func() bool {
		return s.isServed(t, "work_total", `agent_name="main"`, `username="alice"`, `workspace_name="dev"`, `template_name="docker"`, " 7")
	})
	await(t, "the lifecycle is served", func() bool {
		return s.isServed(t, "coderd_agents_connections", `lifecycle_state="ready"`, `status="connected"`)
	})
	await(t, "the app is served", func() bool { return s.isServed(t, "coderd_agents_apps", `app_name="code"`, `health="healthy"`) })
	await(t, "metadata is stored", func() bool { return s.metadata(t, agentID, "cpu") == "42" })
	await(t, "coderd's families are served", func() bool { return s.isServed(t, "coderd_example_agents_connected", " 1") })

	require.Error(t, a.updateStats(&agentproto.Stats{RxBytes: -1, Metrics: []*agentproto.Stats_Metric{{Name: "refused"}}}))
	require.Error(t, a.updateLifecycle(agentproto.Lifecycle_STATE_UNSPECIFIED))
	require.Error(t, a.updateHealth(uuid.New(), agentproto.AppHealth_UNHEALTHY))
	streamer := connect(t, c, token, "logstreamer")
	require.NoError(t, streamer.updateLifecycle(agentproto.Lifecycle_OFF))
	require.NoError(t, streamer.updateMetadata("cpu", "0"))
	require.NoError(t, streamer.updateHealth(app, agentproto.AppHealth_UNHEALTHY))
	require.NoError(t, streamer.updateStats(&agentproto.Stats{Metrics: []*agentproto.Stats_Metric{{Name: "streamed"}}}))
	require.NoError(t, streamer.session.Close())
	// Whatever else was relayed is there when this is.
	require.NoError(t, a.updateMetadata("ram", "8"))
	require.NoError(t, a.updateStats(&agentproto.Stats{Metrics: []*agentproto.Stats_Metric{{Name: "last", Type: agentproto.Stats_Metric_GAUGE}}}))
	await(t, "metadata is stored", func() bool { return s.metadata(t, agentID, "ram") == "8" })
	require.NoError(t, a.session.Close())
	await(t, "the agent is not connected any more", func() bool { return s.isServed(t, "coderd_agents_connections", `status="disconnected"`) })
	require.True(t, s.isServed(t, "coderd_agents_connections", `lifecycle_state="ready"`))
	require.True(t, s.isServed(t, "coderd_agents_apps", `health="healthy"`))
	require.Equal(t, "42", s.metadata(t, agentID, "cpu"))
	require.Empty(t, s.scrape(t, "refused", "streamed", "agent_forwarded"))
	require.Equal(t, 1, strings.Count(c.log.String(), "agent_forwarded"), "one line")

	// The agent connects again, and is relayed again.
	b := connect(t, c, token, "")
	require.NoError(t, b.updateLifecycle(agentproto.Lifecycle_SHUTTING_DOWN))
	await(t, "the lifecycle is served", func() bool {
		return s.isServed(t, "coderd_agents_connections", `lifecycle_state="shutting_down"`, `status="connected"`)
	})
	require.Less(t, c.stop(t), endsWithin)
	await(t, "coderd's gauges are gone", func() bool { return len(s.scrape(t, "coderd_example_agents_connected")) == 0 })
}

// An agent moves between two coderds, while the service is away and while its first
// connection is not known to be broken. What it said last is served, once.
func TestAgentMoves(t *testing.T) {
	s := startService(t)
	db, agentID, _ := newDatabase()
	one, two := startCoderd(t, db, s.url()), startCoderd(t, db, s.url())
	work := func(a *agent, value float64) {
		t.Helper()
		require.NoError(t, a.updateStats(&agentproto.Stats{Metrics: []*agentproto.Stats_Metric{
			{Name: "work_total", Type: agentproto.Stats_Metric_COUNTER, Value: value},
		}}))
	}
	a := connect(t, one, token, "")
	require.NoError(t, a.updateLifecycle(agentproto.Lifecycle_STARTING))
	work(a, 7)
	await(t, "stats are served", func() bool { return s.isServed(t, "work_total", " 7") })

	s.stop()
	b := connect(t, two, token, "")
	require.NoError(t, b.updateLifecycle(agentproto.Lifecycle_READY))
	require.NoError(t, b.updateMetadata("cpu", "2"))
	work(b, 9)
	s.start(t)
	await(t, "stats are served", func() bool { return s.isServed(t, "work_total", " 9") })
	await(t, "the lifecycle is served", func() bool { return s.isServed(t, "coderd_agents_connections", `lifecycle_state="ready"`) })
	await(t, "metadata is stored", func() bool { return s.metadata(t, agentID, "cpu") == "2" })
	require.NoError(t, a.session.Close())
	require.Less(t, one.stop(t), endsWithin)
	require.NoError(t, b.updateMetadata("cpu", "3"))
	await(t, "metadata is stored", func() bool { return s.metadata(t, agentID, "cpu") == "3" })
	require.True(t, s.isServed(t, "coderd_agents_connections", `lifecycle_state="ready"`, `status="connected"`))
	require.Len(t, s.scrape(t, "work_total"), 1)
	require.True(t, s.isServed(t, "work_total", " 9"))
}

// A coderd ends in time: while a collector hangs, and without the service. Its agents are
// served meanwhile, as they are by one that has not adopted the service.
func TestCoderdEndsInTime(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	hanging := collector(func(chan<- prometheus.Metric) { <-hang })
	for name, test := range map[string]struct {
		isRunning, isAdopted bool
		collectors           []prometheus.Collector
	}{
		"hanging collector":                     {isRunning: true, isAdopted: true, collectors: []prometheus.Collector{hanging}},
		"no service":                            {isAdopted: true},
		"hanging collector without the service": {isAdopted: true, collectors: []prometheus.Collector{hanging}},
		"not adopted":                           {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := ""
			if test.isAdopted {
				s := startService(t)
				url = s.url()
				if !test.isRunning {
					s.stop()
				}
			}
			db, _, app := newDatabase()
			c := startCoderd(t, db, url, test.collectors...)
			a := connect(t, c, token, "")
			require.NoError(t, a.updateStats(&agentproto.Stats{RxBytes: 1}))
			require.NoError(t, a.updateMetadata("cpu", "1"))
			require.NoError(t, a.updateLifecycle(agentproto.Lifecycle_READY))
			require.NoError(t, a.updateHealth(app, agentproto.AppHealth_HEALTHY))
			require.Less(t, c.stop(t), endsWithin)
		})
	}
}

// What no call says of an agent is said by the tap: the lifecycle that coderd has stored,
// and, by a handle, a network and a goodbye.
func TestTapSaysWhatNoCallSays(t *testing.T) {
	s := startService(t)
	tap, err := drpctap.Open(s.url(), drpctap.OpenOptions{})
	require.NoError(t, err)
	agentID := uuid.New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tap.Mux(ctx, drpcmux.New(), drpctap.Connection{
		AgentID: agentID, AgentName: "main", CreatedAt: time.Now().Add(-time.Minute),
		WorkspaceID: uuid.New(), WorkspaceName: "dev", OwnerName: "alice", TemplateName: "docker",
		Lifecycle: agentstatsv1.Lifecycle_STATE_READY, LifecycleChangedAt: time.Now(),
	})
	await(t, "the lifecycle is served", func() bool {
		return s.isServed(t, "coderd_agents_connections", `lifecycle_state="ready"`, `status="connected"`)
	})
	handle, err := tap.Relays().Connect(agentID, "")
	require.NoError(t, err)
	require.NoError(t, handle.SetNetwork(&agentstatsv1.Network{NodeId: 7}))
	await(t, "the node is served", func() bool { return s.isServed(t, "coderd_agents_connections", `tailnet_node="nodeid:7"`) })
	require.NoError(t, tap.Relays().Goodbye(ctx, agentID))
	await(t, "the agent has gone", func() bool { return s.isServed(t, "coderd_agents_connections", `status="disconnected"`) })
	require.NoError(t, tap.Close())
}
