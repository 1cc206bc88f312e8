package clienttest

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// forwarded collects what a coderd forwards for its agents.
type forwarded struct{ agents, families int }

func (f forwarded) Describe(chan<- *prometheus.Desc) {}

func (f forwarded) Collect(out chan<- prometheus.Metric) {
	for family := range f.families {
		desc := prometheus.NewDesc(fmt.Sprintf("tailscale_%02d_total", family), metrics.ForwardedHelp,
			[]string{"agent_name", "template_name", "username", "workspace_name"}, nil)
		for agent := range f.agents {
			out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(agent), "main", "docker", fmt.Sprint("user-", agent), fmt.Sprint("dev-", agent))
		}
	}
}

// coderdRegistry is the registry of a coderd that collects its agents' stats, and has
// families of its own.
func coderdRegistry(f forwarded) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coderd_api_requests_processed_total"}, []string{"code", "method", "path"})
	requests.WithLabelValues("200", "GET", "/").Add(7)
	builds := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coderd_workspace_builds_total"}, []string{"workspace_name", "status"})
	builds.WithLabelValues("dev", "success").Add(3)
	reg.MustRegister(f, requests, builds)
	return reg
}

// pushedText returns what the service serves of pushes.
func pushedText(t testing.TB, s *service) string {
	t.Helper()
	var text strings.Builder
	require.NoError(t, s.pushed.WriteText(&text))
	return text.String()
}

// A coderd that pushes 3,000 agents' series by mistake is told once, by name. Its own
// families are served.
func TestPushLeavesAgentsSeriesOut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := startService()
		defer s.close()
		conn := s.conn(coderdToken)
		defer closeConn(t, conn)
		log, logger := newLog()
		var refused []*agentstatsv1.FamilyRefusal
		pusher, err := client.NewPusher(conn, client.PushOptions{
			Gatherer: coderdRegistry(forwarded{agents: 3000, families: 3}), Logger: logger,
			OnRefused: func(all []*agentstatsv1.FamilyRefusal, _ int64) { refused = slices.Clone(all) },
		})
		require.NoError(t, err)
		stop := run(t.Context(), pusher.Run)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NoError(t, stop())
		require.Len(t, log.with(""), 1)
		require.Contains(t, log.with("")[0], `families="[tailscale_00_total tailscale_01_total tailscale_02_total]" series=9000`)
		require.Len(t, refused, 3)
		require.Equal(t, "tailscale_00_total", refused[0].GetName())
		require.Equal(t, "forwarded_series", refused[0].GetReason())
		require.Contains(t, refused[0].GetMessage(), "3000 series of agents")
		text := pushedText(t, s)
		require.Contains(t, text, `coderd_api_requests_processed_total{code="200",method="GET",path="/"} 7`)
		require.Contains(t, text, `coderd_workspace_builds_total{status="success",workspace_name="dev"} 3`)
		require.NotContains(t, text, "tailscale")
	})
}

// What coderd has no option for is not said to be turned off.
func TestPushAdvisesWhatCanBeTurnedOff(t *testing.T) {
	for family, hint := range map[string]bool{
		"coderd_agents_connections": false, "coderd_agents_apps": false, "coderd_agentstats_rx_bytes": true, "tailscale_00_total": true,
	} {
		bubble.Test(t, func(t *testing.T) {
			_, _, conn := startPushes(t)
			log, logger := newLog()
			gauge := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: family}, []string{"agent_name"})
			gauge.WithLabelValues("main").Set(1)
			registry := prometheus.NewRegistry()
			registry.MustRegister(gauge)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.NoError(t, client.PushGatherer(ctx, conn, registry, client.PushOptions{Logger: logger}))
			lines := log.with("series of agents are not pushed")
			require.Len(t, lines, 1)
			require.Contains(t, lines[0], "families=["+family+"]")
			require.Equal(t, hint, strings.Contains(lines[0], "CODER_PROMETHEUS_COLLECT_AGENT_STATS=false"), lines[0])
		})
	}
}

// An older client sends all of them: the service refuses each family by name, and keeps
// the others and its memory.
func TestTheServiceRefusesAgentsSeries(t *testing.T) {
	s := startService()
	defer s.close()
	conn := s.conn(coderdToken)
	defer closeConn(t, conn)
	agents := 3000
	if testing.Short() {
		agents = 300
	}
	families, err := coderdRegistry(forwarded{agents: agents, families: 83}).Gather()
	require.NoError(t, err)
	stream, err := agentstatsv1.NewCoderdServiceClient(conn).PushMetrics(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Hello{Hello: &agentstatsv1.PushHello{
		Replica: "old", InstanceId: slices.Repeat([]byte{1}, 16), Interval: durationpb.New(15 * time.Second),
	}}}))
	var encoded [][]byte
	for _, f := range families {
		b, err := proto.Marshal(f)
		require.NoError(t, err)
		encoded = append(encoded, b)
	}
	push := func(snapshot int64) *agentstatsv1.PushMetricsResponse {
		for _, b := range encoded {
			require.NoError(t, stream.Send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_Families{Families: &agentstatsv1.PushFamilies{Families: [][]byte{b}}}}))
		}
		require.NoError(t, stream.Send(&agentstatsv1.PushMetricsRequest{Message: &agentstatsv1.PushMetricsRequest_End{End: &agentstatsv1.PushEnd{Snapshot: snapshot}}}))
		resp, err := stream.Recv()
		require.NoError(t, err)
		return resp
	}
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for snapshot := range int64(2) {
		resp := push(snapshot + 1)
		require.EqualValues(t, 83, resp.GetRefusedCount())
		require.Equal(t, "tailscale_00_total", resp.GetRefused()[0].GetName())
		require.Equal(t, "forwarded_series", resp.GetRefused()[0].GetReason())
		require.Contains(t, resp.GetRefused()[0].GetMessage(), fmt.Sprintf("%d series, the first: series of an agent", agents))
		require.Zero(t, resp.GetRefused()[0].GetSeries())
	}
	require.Less(t, heap(), before+8<<20)
	text := pushedText(t, s)
	require.Contains(t, text, `coderd_api_requests_processed_total{code="200",method="GET",path="/"} 7`)
	require.Contains(t, text, `coderd_workspace_builds_total{status="success",workspace_name="dev"} 3`)
	require.NotContains(t, text, "tailscale")
}

// The client and the service agree on which families with labels of agents are coderd's
// own: those of the catalogue. Of others the series without such labels are pushed.
func TestPushKnowsCoderdsFamilies(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, _, conn := startPushes(t)
		var all []*dto.MetricFamily
		var want []string
		add := func(name string, owner metrics.Owner, labels []string) {
			m := &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(1)}}
			ofAgent := false
			for _, l := range labels {
				m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(l), Value: proto.String("x")})
				ofAgent = ofAgent || metrics.NamesAgent(l)
			}
			all = append(all, &dto.MetricFamily{Name: proto.String(name), Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{m}})
			if owner == metrics.OwnerCoderd || !ofAgent {
				want = append(want, name)
			}
			require.Equal(t, owner == metrics.OwnerCoderd, metrics.IsCoderds(name))
		}
		for _, f := range metrics.Catalogue() {
			add(f.Name, f.Owner, f.Labels)
			if f, ok := metrics.Newer(f.Name); ok {
				t.Fatal(f.Name)
			}
		}
		for _, name := range []string{"coderd_agents_first_connection_seconds", "coderd_agentstats_session_count", "coderd_build_info"} {
			f, ok := metrics.Newer(name)
			require.True(t, ok)
			add(f.Name, f.Owner, f.Labels)
		}
		add("new_family", "", []string{"template_name"})
		add("of_an_agent", "", []string{"agent_name"})
		mixed := proto.CloneOf(all[len(all)-1])
		mixed.Name, mixed.Metric = proto.String("mixed"), append(mixed.Metric, &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(2)}}, &dto.Metric{
			Label: []*dto.LabelPair{{Name: proto.String("username"), Value: proto.String("")}}, Gauge: &dto.Gauge{Value: proto.Float64(3)},
		})
		all, want = append(all, mixed), append(want, "mixed")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, client.PushGatherer(ctx, conn, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return all, nil }), client.PushOptions{}))
		require.Equal(t, strings.Join(append(want, "final"), " "), fake.names()[0])
		fake.locked(func() {
			pushed := fake.snapshots[0].families
			require.Len(t, pushed[len(pushed)-1].Metric, 2)
		})
		require.Len(t, mixed.Metric, 3, "the Gatherer's are not changed")
	})
}
