package adminapi_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/adminapi"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	"github.com/coder/agentstatsd/metrics"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/scrape"
)

// explained is a service whose series somebody looks for.
type explained struct {
	*edgetest.Service
	handler http.Handler
	streams map[int]*edgetest.Stream
}

func startExplained(t *testing.T, series aggregator.Options) *explained {
	s := edgetest.Start(t, edgetest.Settings{Series: series})
	handler, err := scrape.NewHandler(s.Registry, scrape.Options{Hidden: s.Pushed.Passed, Log: slog.New(slog.DiscardHandler)}, s.Series.Beside(s.Pushed))
	require.NoError(t, err)
	return &explained{s, handler, make(map[int]*edgetest.Stream)}
}

// register registers agents by number, as change has them.
func (e *explained) register(change func(*pb.AgentRegistration), numbers ...int) {
	e.T.Helper()
	req := &pb.RegisterAgentsRequest{}
	for _, n := range numbers {
		r := edgetest.Registration(n)
		if change != nil {
			change(r)
		}
		req.Agents = append(req.Agents, r)
	}
	resp, err := e.Coderd().RegisterAgents(e.AsCoderd(), req)
	require.NoError(e.T, err)
	require.Empty(e.T, resp.GetRefused())
}

// connect connects an agent.
func (e *explained) connect(n int) *edgetest.Stream {
	e.T.Helper()
	if e.streams[n] == nil {
		e.streams[n] = e.Connect(edgetest.Session{Agent: n, Instance: byte(n)})
	}
	return e.streams[n]
}

// report has an agent report, and returns once that was taken in.
func (e *explained) report(n int, metrics ...*pb.Stats_Metric) {
	e.T.Helper()
	c := e.connect(n)
	sequence := c.SendNext(edgetest.Stats(&pb.Stats{Metrics: metrics}))
	for c.Next().GetAck().GetReceivedSequence() < sequence {
	}
}

// disconnect breaks the stream of an agent.
func (e *explained) disconnect(n int) {
	e.T.Helper()
	require.NoError(e.T, e.streams[n].CloseSend())
	e.streams[n].RequireEnd(codes.OK, "")
	delete(e.streams, n)
}

// push has an instance of coderd push families, of a metric each.
func (e *explained) push(instance byte, passThrough bool, families ...*dto.MetricFamily) {
	e.T.Helper()
	push := agent.Push{
		Replica: fmt.Sprint("coderd-", instance), Instance: agent.Instance{instance}, Interval: 10 * time.Second, Snapshot: time.Now().UnixNano(), PassThrough: passThrough,
	}
	for _, f := range families {
		push.Families = append(push.Families, edgetest.Family(e.T, f))
	}
	_, err := e.Pushed.Push(e.T.Context(), time.Now(), push)
	require.NoError(e.T, err)
}

// scrape scrapes, and returns the series of the scrape.
func (e *explained) scrape() (series []string) {
	e.T.Helper()
	out := httptest.NewRecorder()
	e.handler.ServeHTTP(out, httptest.NewRequestWithContext(e.T.Context(), http.MethodGet, "/metrics", nil))
	require.Equal(e.T, http.StatusOK, out.Code)
	for line := range strings.Lines(out.Body.String()) {
		if line[0] != '#' {
			series = append(series, strings.TrimRight(line[:strings.LastIndexByte(line, ' ')], " "))
		}
	}
	return series
}

func (e *explained) explain(selector string) *pb.ExplainSeriesResponse {
	e.T.Helper()
	resp, err := e.Operators().ExplainSeries(e.AsOperator(), &pb.ExplainSeriesRequest{Selector: selector})
	require.NoError(e.T, err)
	return resp
}

func gauge(name string, pairs ...string) *pb.Stats_Metric {
	return metric(pb.Stats_Metric_TYPE_GAUGE, name, pairs...)
}

func counter(name string) *pb.Stats_Metric { return metric(pb.Stats_Metric_TYPE_COUNTER, name) }

func metric(t pb.Stats_Metric_Type, name string, pairs ...string) *pb.Stats_Metric {
	m := &pb.Stats_Metric{Name: name, Type: t, Value: 1}
	for i := 0; i < len(pairs); i += 2 {
		m.Labels = append(m.Labels, &pb.Stats_Metric_Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return m
}

func pushedGauge(name string, pairs ...string) *dto.MetricFamily {
	m := &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(1)}}
	for i := 0; i < len(pairs); i += 2 {
		m.Label = append(m.Label, &dto.LabelPair{Name: &pairs[i], Value: &pairs[i+1]})
	}
	return &dto.MetricFamily{Name: &name, Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{m}}
}

// wait lets time pass.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// likeFirst makes a registration one with the labels of agent 1, made later.
func likeFirst(r *pb.AgentRegistration) {
	r.Workspace.Name = "ws1"
	r.CreatedAt = timestamppb.New(edgetest.Day.Add(time.Hour))
	r.Workspace.Build.CreatedAt = r.GetCreatedAt()
}

// Each cause is made as it comes about, and is the one that is named first, with who and
// what it is about. There are others of other_replica and doubled in TestExplainOverReplicas.
func TestExplainSeries(t *testing.T) {
	for _, c := range []struct {
		name   string
		series aggregator.Options
		make   func(*explained)
		// selector, of agent 1's my_metric by default.
		selector string
		// cause is the first one; empty: it is served.
		cause string
		// text, remedy and conclusion have these in them.
		text, remedy string
		served       int
		about        int // the agent; 0: none
	}{
		{
			name: "served", make: func(e *explained) {
				e.report(1, gauge("my_metric", "path", `a"b\`))
				e.scrape()
			},
			selector: `my_metric{workspace_name="ws1",path="a\"b\\",none=""}`, served: 1,
		},
		{
			name: "not registered", make: func(e *explained) { e.report(1, gauge("my_metric")) },
			selector: `my_metric{username="ada",workspace_name="ws7",agent_name="main"}`,
			cause:    "not_registered", text: `No registered agent matches {username="ada",workspace_name="ws7",agent_name="main"}; {username="ada"} matches 1 agent.`, remedy: "registered by coderd",
		},
		{
			name: "deregistered", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				_, err := e.Coderd().DeregisterAgents(e.AsCoderd(), &pb.DeregisterAgentsRequest{WorkspaceIds: [][]byte{edgetest.IDBytes(10_001)}})
				require.NoError(e.T, err)
			},
			cause: "not_registered", text: "Agent ada/ws1.main was deregistered at 2000-01-01T00:00:", remedy: "register", about: 1,
		},
		{
			name: "deregistered beside another agent of its build", make: func(e *explained) {
				e.register(func(r *pb.AgentRegistration) { r.Name, r.Workspace = "side", edgetest.Workspace(1) }, 2)
				_, err := e.Coderd().DeregisterAgents(e.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
				require.NoError(e.T, err)
			},
			selector: `my_metric{workspace_name="ws1",agent_name="main"}`,
			cause:    "not_registered", text: "Agent ada/ws1.main was deregistered at", about: 1,
		},
		{
			name: "superseded by an agent of the same name", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				e.register(func(r *pb.AgentRegistration) { edgetest.Rebuilt(r, 101) }, 1)
			},
			cause: "superseded", text: "Agent ada/ws1.main, made at 1999-12-31T12:00:00Z, was superseded at 2000-01-01T00:00:", remedy: "first report", about: 1,
		},
		{
			name: "superseded by an agent of another name", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				e.register(func(r *pb.AgentRegistration) { edgetest.Rebuilt(r, 101).Name = "dev" }, 1)
				_, err := e.Coderd().DeregisterAgents(e.AsCoderd(), &pb.DeregisterAgentsRequest{AgentIds: [][]byte{edgetest.IDBytes(1)}})
				require.NoError(e.T, err)
				e.report(101, gauge("my_metric"))
			},
			selector: `my_metric{workspace_name="ws1",agent_name="main"}`,
			cause:    "superseded", text: "by a rebuild of its workspace, whose agent is ada/ws1.dev, made at 1999-12-31T13:00:00Z.", remedy: "Look for the series of that agent", about: 1,
		},
		{
			name: "hidden by a newer agent", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				e.register(likeFirst, 2)
				e.report(2, gauge("other_metric"))
				e.scrape()
			},
			cause: "hidden_by_newer", text: "is hidden by agent " + edgetest.ID(2).String(), remedy: "Rename", about: 1,
		},
		{
			name: "state hidden by a newer workspace", make: func(e *explained) {
				e.report(1)
				e.register(likeFirst, 2)
				e.scrape()
			},
			selector: `coderd_agents_connections{workspace_name="ws1",status="connected"}`,
			cause:    "hidden_by_newer", text: "is hidden by agent " + edgetest.ID(2).String(), about: 1,
		},
		{
			name: "no report", make: func(e *explained) {
				e.connect(1)
				wait(10 * time.Second)
			},
			cause: "no_report", text: "Agent ada/ws1.main is connected since 2000-01-01T00:00:00Z (10s ago), and has not reported yet; it reports each 30s.", remedy: "Wait", about: 1,
		},
		{
			name: "not connected", make: func(*explained) {},
			cause: "no_report", text: "Agent ada/ws1.main has not connected here; its status is timeout.", about: 1,
		},
		{
			name: "said goodbye", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				e.connect(1).SendNext(edgetest.Goodbye())
				e.connect(1).RequireEnd(codes.OK, "")
			},
			cause: "no_report", text: "has no session, was heard of last at 2000-01-01T00:00:00Z (0s ago), and has no series any more; its last session here ended by goodbye.", about: 1,
		},
		{
			name: "not in its reports", make: func(e *explained) {
				e.report(1, gauge("other_metric"))
				e.register(nil, 2)
				e.report(2, gauge("my_metric"))
			},
			cause: "no_report", text: "Agent ada/ws1.main reports, the last time at 2000-01-01T00:00:00Z (0s ago), but its report does not have it.", remedy: "agentstatsd watch ada/ws1.main", about: 1,
		},
		{
			name: "expired", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				wait(150 * time.Second)
			},
			cause: "expired", text: "Series of agent ada/ws1.main expired at 2000-01-01T00:02:00Z (30s ago), as its last report came at 2000-01-01T00:00:00Z (2m30s ago) and series have a TTL of 2m0s (--series-ttl).", remedy: "runs", about: 1,
		},
		{
			name: "expired after it disconnected", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				e.disconnect(1)
				wait(150 * time.Second)
			},
			cause: "expired", text: "Series of agent ada/ws1.main expired at 2000-01-01T00:02:00Z (30s ago), as it sent no report for their TTL of 2m0s (--series-ttl).", about: 1,
		},
		{
			name: "refused for its name", make: func(e *explained) { e.report(1, gauge("my-metric")) },
			selector: `{"my-metric",workspace_name="ws1"}`,
			cause:    "refused", text: `by rule invalid_name: sample name "my-metric" is not like`, remedy: "docs/metrics.md", about: 1,
		},
		{
			name: "refused for a label, whoever it was", make: func(e *explained) { e.report(1, gauge("my_metric", "le", "1")) },
			selector: "my_metric",
			cause:    "refused", text: "Agent ada/ws1.main was refused family my_metric at 2000-01-01T00:00:00Z (0s ago) by rule reserved_label: label le of my_metric is not for agents to send.", about: 1,
		},
		{
			name: "refused push", make: func(e *explained) { e.push(1, false, pushedGauge("coderd_x", "workspace_name", "w")) },
			selector: "coderd_x",
			cause:    "refused", text: "was refused family coderd_x at 2000-01-01T00:00:00Z (0s ago) by rule forwarded_series",
		},
		{
			name: "hidden by what passes through", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				f := pushedGauge("my_metric", "agent_name", "main", "username", "eve", "workspace_name", "w")
				f.Help = proto.String("Metrics are forwarded from workspace agents connected to this instance of coderd.")
				e.push(3, true, f)
			},
			cause: "hidden_by_pushed", text: "Family my_metric of agent ada/ws1.main is served as coderd-3 (instance 03000000000000000000000000000000) passes it through", remedy: "not both", about: 1,
		},
		{
			name: "hidden by a pushed family of another type", make: func(e *explained) {
				e.push(3, false, pushedGauge("my_metric"))
				e.report(1, counter("my_metric"))
			},
			cause: "hidden_by_pushed", text: "Agent ada/ws1.main sends family my_metric as a counter, but coderd-3 (instance 03000000000000000000000000000000) pushes my_metric as a gauge, the last time at", remedy: "another name", about: 1,
		},
		{
			name: "hidden by lines of a pushed summary", make: func(e *explained) {
				e.push(3, false, &dto.MetricFamily{Name: proto.String("my"), Type: dto.MetricType_SUMMARY.Enum(), Metric: []*dto.Metric{{
					Summary: &dto.Summary{SampleCount: proto.Uint64(1), SampleSum: proto.Float64(1)},
				}}})
				e.report(1, counter("my_count"))
			},
			selector: `my_count{workspace_name="ws1"}`,
			cause:    "hidden_by_pushed", text: "Agent ada/ws1.main sends family my_count as a counter, but coderd-3 (instance 03000000000000000000000000000000) pushes my as a summary", about: 1,
		},
		{
			name: "a type that the majority does not share", make: func(e *explained) {
				e.register(nil, 2, 3)
				e.report(2, counter("my_metric"))
				e.report(3, counter("my_metric"))
				e.report(1, gauge("my_metric"))
			},
			cause: "type_conflict", text: "Agent ada/ws1.main sends family my_metric as a gauge, which 1 agent does, while it is served as a counter, which 2 agents send.", remedy: "most agents", about: 1,
		},
		{
			name: "the option of the family is off", make: func(*explained) {},
			selector: `agentstatsd_workspace_info{workspace_name="ws1"}`,
			cause:    "unknown_family", text: "Family agentstatsd_workspace_info is served with --prometheus-workspace-info only, which is off", remedy: "Start the service with it",
		},
		{
			name: "another version than the workspace has", series: aggregator.Options{WorkspaceInfo: true}, make: func(e *explained) {
				info := agent.Series{Family: "agentstatsd_workspace_info", Value: 1, Labels: []agent.Label{{Name: "template_version", Value: "v1"}, {Name: "username", Value: "ada"}, {Name: "workspace_name", Value: "ws1"}}}
				require.NoError(e.T, e.Series.SetStates([]agent.KeySeries{{Key: agent.SeriesKey{ID: edgetest.ID(10_001)}, Series: []agent.Series{info}}}))
			},
			selector: `agentstatsd_workspace_info{workspace_name="ws1",template_version="v2"}`,
			cause:    "other_labels", text: `template_version="v1"`, about: 1,
		},
		{
			name: "a type that is not the documented one", make: func(e *explained) { e.report(1, counter("coderd_agentstats_startup_script_seconds")) },
			selector: `coderd_agentstats_startup_script_seconds{workspace_name="ws1"}`,
			cause:    "type_conflict", text: "which is documented as a gauge", about: 1,
		},
		{
			name: "grouped away", series: aggregator.Options{GroupBy: []string{"template_name", "username"}}, make: func(e *explained) { e.report(1, gauge("my_metric", "x", "y")) },
			cause: "grouped", text: `Agent ada/ws1.main contributes to my_metric{template_name="docker",username="ada",x="y"}, as series keep only the labels template_name, username (--prometheus-aggregate-agent-stats-by).`,
			remedy: "group by more labels", about: 1,
		},
		{
			name: "the agent's share", series: aggregator.Options{MaxSeriesPerAgent: 2}, make: func(e *explained) {
				e.report(1, gauge("a"), gauge("b"), gauge("my_metric"))
			},
			cause: "over_limit", text: "Agent ada/ws1.main is refused series, as its own share is used up, 2 of 2 series: my_metric would exceed the agent's 2 series (--max-series-per-agent)",
			remedy: "Have the agent send less, or raise --max-series-per-agent.", about: 1,
		},
		{
			name: "the owner's share", series: aggregator.Options{MaxSeriesPerOwner: 3}, make: func(e *explained) {
				e.register(nil, 2)
				e.report(2, gauge("a"), gauge("b"))
				e.report(1, gauge("a"), gauge("my_metric"))
			},
			cause: "over_limit", text: "as the share of its owner ada is used up, 3 of 3 series", remedy: "--max-series-per-owner", about: 1,
		},
		{
			name: "the service's limit", series: aggregator.Options{MaxFamilies: 1}, make: func(e *explained) { e.report(1, gauge("a"), gauge("my_metric")) },
			cause: "over_limit", text: "as the limit of all agents is used up, 1 of 1 families", remedy: "--max-families.", about: 1,
		},
		{
			name: "never scraped", make: func(e *explained) { e.report(1, gauge("my_metric")) },
			cause: "stale", text: "No scrape was served since the process began.", remedy: "target in Prometheus", served: 1, about: 1,
		},
		{
			name: "newer than the last scrape", make: func(e *explained) {
				e.scrape()
				wait(time.Second)
				e.report(1, gauge("my_metric"))
			},
			cause: "stale", text: "first reported at 2000-01-01T00:00:01Z (0s ago), after the last scrape at 2000-01-01T00:00:00Z (1s ago).", remedy: "next scrape", served: 1, about: 1,
		},
		{
			name: "scraped long ago", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				e.scrape()
				for range 12 {
					wait(30 * time.Second)
					e.report(1, gauge("my_metric"))
				}
			},
			cause: "stale", text: "The last scrape was at 2000-01-01T00:00:00Z (6m0s ago), and Prometheus shows nothing older than 5m0s.", served: 1, about: 1,
		},
		{
			name: "older than the last scrape", make: func(e *explained) {
				e.report(1, gauge("my_metric"))
				wait(90 * time.Second)
				e.scrape()
			},
			cause: "stale", text: "reported last at 2000-01-01T00:00:00Z (1m30s ago), before the last scrape at 2000-01-01T00:01:30Z (0s ago); its series expire at 2000-01-01T00:02:00Z.", remedy: "runs", served: 1, about: 1,
		},
		{
			name: "not in the last report", make: func(e *explained) {
				e.report(1, gauge("my_metric", "x", "gone"), gauge("my_metric"), gauge("a"))
				wait(30 * time.Second)
				e.report(1, gauge("my_metric"), gauge("a"))
				e.scrape()
			},
			cause: "stale", text: "its later reports do not have it", served: 2, about: 1,
		},
		{
			name: "other labels", make: func(e *explained) {
				e.report(1, gauge("my_metric", "path", "/a"))
				e.scrape()
			},
			selector: `my_metric{workspace_name="ws1",path="/b"}`,
			cause:    "other_labels", text: `Agent ada/ws1.main has 1 series of the name, none with these labels, for example my_metric{agent_name="main",path="/a"`, about: 1,
		},
		{
			name: "other labels of a pushed family", make: func(e *explained) { e.push(1, false, pushedGauge("coderd_x", "code", "200")) },
			selector: `coderd_x{code="500"}`,
			cause:    "other_labels", text: `1 series of the name is served, none with these labels, for example coderd_x{code="200"}.`,
		},
		{
			name: "a label that the family has not", make: func(e *explained) { e.report(1) },
			selector: `coderd_agentstats_rx_bytes{template_name="docker"}`,
			cause:    "other_labels", text: "Family coderd_agentstats_rx_bytes has no label template_name, but agent_name, username, workspace_name.",
		},
		{
			name: "expired push", make: func(e *explained) {
				e.push(1, false, pushedGauge("coderd_x"))
				wait(10 * time.Minute)
			},
			selector: "coderd_x",
			cause:    "expired", text: "Family coderd_x was pushed last by coderd-1 (instance 01000000000000000000000000000000) at 2000-01-01T00:00:00Z (10m0s ago), and its gauges went at 2000-01-01T00:02:00Z (8m0s ago).",
		},
		{
			name: "never pushed", make: func(*explained) {}, selector: "coderd_api_requests_processed_total",
			cause: "no_report", text: "no instance of coderd, nor a bridge, has pushed it",
		},
		{
			name: "an unknown family", make: func(e *explained) { e.report(1, gauge("my_metric")) },
			selector: `my_metrics{workspace_name="ws1"}`,
			cause:    "unknown_family", text: "it is not documented; similar: my_metric.", remedy: "another replica",
		},
		{
			name: "the service's own", make: func(*explained) {}, selector: `agentstatsd_explanations_total{outcome=~"serv.*"}`, served: 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				e := startExplained(t, c.series)
				e.register(nil, 1)
				c.make(e)
				got := e.explain(cmp.Or(c.selector, `my_metric{workspace_name="ws1"}`))
				require.Equal(t, float64(c.served), got.GetServedCount(), "%v", got)
				require.Len(t, got.GetServed(), c.served)
				for _, series := range got.GetServed() {
					require.Contains(t, e.scrape(), series)
				}
				if c.cause == "" {
					require.Empty(t, got.GetFindings(), "%v", got)
					require.Equal(t, "1 series matches and is served.", got.GetConclusion())
					return
				}
				require.NotEmpty(t, got.GetFindings(), "%v", got)
				f := got.GetFindings()[0]
				require.Equal(t, c.cause, f.GetCause(), "%v", got)
				require.Contains(t, f.GetText(), c.text)
				require.Contains(t, f.GetRemedy(), c.remedy)
				require.Contains(t, strings.ToLower(got.GetConclusion()), strings.ToLower(strings.TrimSuffix(f.GetText(), ".")))
				about := ""
				if c.about > 0 {
					about = edgetest.ID(c.about).String()
				}
				require.Equal(t, about, f.GetAgentId())
			})
		})
	}
}

// blockedPushes blocks who asks what is served until it is released.
type blockedPushes struct {
	adminapi.Pushes
	asked, release chan struct{}
}

func (p blockedPushes) Served() ([]*metrics.Rendered, map[string]bool) {
	p.asked <- struct{}{}
	<-p.release
	return nil, nil
}

// Few explanations are made at once, and what is refused is counted.
func TestExplanationsAreBounded(t *testing.T) {
	p := blockedPushes{asked: make(chan struct{}, 10), release: make(chan struct{})}
	s := edgetest.Start(t, edgetest.Settings{ChangeAdmin: func(c *adminapi.Components) { p.Pushes, c.Pushes = c.Pushes, &p }})
	explain := func(selector string) error {
		_, err := s.Operators().ExplainSeries(s.AsOperator(), &pb.ExplainSeriesRequest{Selector: selector})
		return err
	}
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- explain("up_metric") }()
		<-p.asked
	}
	err := explain("up_metric")
	edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 2 explanations at once")
	require.Equal(t, time.Second, edgetest.RetryDelay(t, err))
	close(p.release)
	require.NoError(t, <-done)
	require.NoError(t, <-done)

	edgetest.RequireCode(t, explain("up_metric{"), codes.InvalidArgument, "selector: want a series selector of Prometheus: 1:11: parse error: unexpected end of input inside braces")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Admin.ExplainSeries(ctx, &pb.ExplainSeriesRequest{Selector: "agentstatsd_explanations_total"})
	require.ErrorIs(t, err, context.Canceled)
	for outcome, want := range map[string]float64{"served": 0, "explained": 2, "refused": 2, "failed": 1} {
		require.Equal(t, want, s.Counter("agentstatsd_explanations_total", outcome), outcome)
	}
}

// Of very many agents the ones that have the reason are named, and what others do is not.
func TestExplainManyAgents(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := startExplained(t, aggregator.Options{})
		var numbers []int
		for n := range 300 {
			numbers = append(numbers, n+1)
		}
		e.register(nil, numbers...)
		got := e.explain("my_metric")
		require.Len(t, got.GetFindings(), 1)
		require.Equal(t, "unknown_family", got.GetFindings()[0].GetCause())
		got = e.explain(`my_metric{username="ada"}`)
		require.Len(t, got.GetFindings(), 20)
		require.Equal(t, "no_report", got.GetFindings()[0].GetCause())
		require.Contains(t, got.GetConclusion(), "(and 199 other findings); 200 of 300 agents that match were looked at.")

		e.report(1, gauge("my_metric"))
		e.report(300, counter("my_metric"))
		e.scrape()
		got = e.explain("my_metric")
		require.Equal(t, 1.0, got.GetServedCount())
		require.Len(t, got.GetFindings(), 1, "%v", got)
		require.Equal(t, "type_conflict", got.GetFindings()[0].GetCause())
		require.Equal(t, edgetest.ID(300).String(), got.GetFindings()[0].GetAgentId())
	})
}

// What is the same for several agents is said once, and of series with other labels the
// example is one of the agent that is asked for.
func TestExplainOnceForAll(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := startExplained(t, aggregator.Options{})
		e.register(nil, 1, 2, 3, 4)
		for n := range 3 {
			e.report(n+1, gauge("my_metric"))
		}
		got := e.explain(`my_metric{workspace_name=~"ws[123]"}`)
		require.Equal(t, 3.0, got.GetServedCount())
		require.Len(t, got.GetFindings(), 1, "%v", got)
		require.Equal(t, "stale", got.GetFindings()[0].GetCause())
		require.Empty(t, got.GetFindings()[0].GetAgentId())
		require.Equal(t, "3 series match and are served, but no scrape was served since the process began.", got.GetConclusion())

		got = e.explain(`coderd_agents_connections{status="disconnected"}`)
		require.Len(t, got.GetFindings(), 1, "%v", got)

		got = e.explain(`coderd_agents_connections{status="connected",workspace_name="ws4"}`)
		require.Len(t, got.GetFindings(), 1, "%v", got)
		require.Regexp(t, `for example [^ ]*workspace_name="ws4"`, got.GetFindings()[0].GetText())
	})
}
