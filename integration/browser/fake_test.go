package browser

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// large is a deployment of three replicas, one of them gone, 10,000 agents and a million
// series, some of which have trouble. It answers as the service does.
type large struct {
	agentstatsv1.UnimplementedAdminServiceServer
	agents []*agentstatsv1.AgentSummary
}

var (
	owners    = []string{"bruno", "chen", "dara", "emeka", "farida", "goran", "hana", "ines", "jonas", "kavya"}
	templates = []string{"docker", "kubernetes", "aws-linux", "gcp-windows"}
	projects  = []string{"billing", "mobile", "frontend", "search", "payments", "infra"}
)

const largeAgents = 10_000

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }

func uuid(n int) string { return fmt.Sprintf("6a1c9e5e-4f3b-4c7a-9d51-%012x", n) }

func newLarge() *large {
	l := &large{}
	for i := range largeAgents {
		owner := owners[i/1000]
		a := &agentstatsv1.AgentSummary{
			Id: uuid(i), Name: "main", Workspace: fmt.Sprintf("%s-%03d", projects[i%len(projects)], i%1000), WorkspaceId: uuid(i + 1<<20), Owner: owner,
			Template: templates[i%len(templates)], TemplateVersion: "v" + strconv.Itoa(1+i%7), Status: "connected", Lifecycle: "ready", Replica: "agentstatsd-0",
			Series: proto.Float64(100), LastSeenAt: ago(time.Duration(i%30) * time.Second), Relayed: i%5 == 0,
		}
		switch {
		case i%97 == 0:
			a.Status, a.Lifecycle, a.Replica, a.Series, a.LastSeenAt = "disconnected", "off", "", nil, ago(3*time.Hour)
		case i%101 == 0:
			a.Status, a.Lifecycle, a.Replica, a.Series, a.LastSeenAt = "timeout", "", "", nil, nil
		case i%3 == 0:
			a.Replica, a.Series, a.ReplicaUrl, a.LastSeenAt = "agentstatsd-1", nil, "http://127.0.0.1:2/status/agents/"+a.Id, nil
		case i%53 == 0:
			a.Refused = float64(i)
		}
		l.agents = append(l.agents, a)
	}
	return l
}

func (l *large) GetStatus(context.Context, *agentstatsv1.GetStatusRequest) (*agentstatsv1.GetStatusResponse, error) {
	limits := []*agentstatsv1.Limit{}
	for i, name := range []string{
		"agents", "coderd_instances", "concurrent_pages", "concurrent_scrapes", "families", "families_per_agent", "grpc_connections",
		"http_connections/prometheus", "metadata_pending", "metadata_pending_per_agent", "registrations_bytes", "series", "series_bytes", "series_per_agent",
	} {
		limits = append(limits, &agentstatsv1.Limit{Name: name, Limit: math.Pow(10, float64(2+i%5)), Used: proto.Float64(math.Pow(10, float64(2+i%5)) * float64(i*7%89) / 100)})
	}
	limits[11] = &agentstatsv1.Limit{Name: "series", Limit: 1_000_000, Used: proto.Float64(968_412)}
	limits[12] = &agentstatsv1.Limit{Name: "series_bytes", Limit: 1 << 30, Used: proto.Float64(402 << 20)}
	components := func() (all []*agentstatsv1.Component) {
		for _, name := range []string{"draining", "fleet", "batcher", "pushed", "replica"} {
			all = append(all, &agentstatsv1.Component{Name: name, Ready: true})
		}
		return all
	}
	groups := []*agentstatsv1.CardinalityGroup{
		l.group("family", 20), l.group("template", 20), l.group("owner", 20),
	}
	first := &agentstatsv1.ReplicaStatus{
		Id: uuid(1), Name: "agentstatsd-0", Alive: true, Leads: true, Version: "v0.9.0", Revision: "c2512b4d", StartedAt: ago(75 * time.Hour), Ready: true,
		Components: components(), Warnings: []string{"replica agentstatsd-2 has other options than this one: --max-series"},
		Places: []*agentstatsv1.Place{
			{Name: "grpc", Value: "0.0.0.0:2113"}, {Name: "prometheus", Value: "0.0.0.0:2112"}, {Name: "database", Value: "postgres://db.internal:5432/agentstatsd"},
			{Name: "pubsub", Value: "nats://nats.internal:4222"}, {Name: "data_directory", Value: "/var/lib/agentstatsd"},
		},
		Limits: limits, Certificates: []*agentstatsv1.Certificate{{Listener: "grpc", NotAfter: ago(-9 * 24 * time.Hour)}, {Listener: "prometheus", NotAfter: ago(-80 * 24 * time.Hour)}},
		Registered: largeAgents, Connected: 6_533, Relayed: 1_310, Series: 968_412, ResidentBytes: 1311 << 20, MemoryLimitBytes: 2 << 30, Cores: 0.62,
		Durability: &agentstatsv1.Durability{
			Received: 48_210_331, Coalesced: 9_140_220, Flushed: 30_120_904, Unchanged: 8_941_007, Dropped: 3_118, Pending: 5_082,
			OldestPendingSeconds: 4.2, LastFlushSeconds: 0.083, FlushErrors: 2,
		},
		Refused: []*agentstatsv1.NamedCount{
			{Name: "too_many_agent_series", Count: 81_220}, {Name: "invalid_name", Count: 4_020}, {Name: "undeclared_key", Count: 311}, {Name: "series_expired", Count: 90},
		},
		ScrapedAt: ago(9 * time.Second), Cardinality: groups,
	}
	second := proto.CloneOf(first)
	second.Id, second.Name, second.AgeSeconds, second.Leads, second.Url, second.Warnings = uuid(2), "agentstatsd-1", 4, false, "http://127.0.0.1:2/status", nil
	second.Connected, second.Relayed, second.Series, second.ResidentBytes, second.Certificates = 3_262, 640, 410_200, 702<<20, second.Certificates[1:]
	second.Limits, second.Durability.Received, second.Durability.Pending = second.Limits[:3], second.Durability.Received-5_082, 0
	third := proto.CloneOf(second)
	third.Id, third.Name, third.AgeSeconds, third.Alive, third.Connected = uuid(3), "agentstatsd-2", 312, false, 0
	return &agentstatsv1.GetStatusResponse{Replicas: []*agentstatsv1.ReplicaStatus{first, second, third}}, nil
}

func (l *large) GetConfig(context.Context, *agentstatsv1.GetConfigRequest) (*agentstatsv1.GetConfigResponse, error) {
	resp := &agentstatsv1.GetConfigResponse{Hash: "8171436612"}
	add := func(group, flag, value, byDefault, source string, restart bool) {
		resp.Options = append(resp.Options, &agentstatsv1.Option{
			Flag: flag, Env: "AGENTSTATSD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_")), Group: group, Value: value, DefaultValue: byDefault, Source: source, NeedsRestart: restart,
		})
	}
	add("", "config", "/etc/agentstatsd/config.yaml", "", "flag", true)
	add("Prometheus", "prometheus-address", "0.0.0.0:2112", "127.0.0.1:2112", "env", true)
	add("Prometheus", "prometheus-aggregate-agent-stats-by", "agent_name,template_name,username,workspace_name", "agent_name,template_name,username,workspace_name", "default", true)
	add("Prometheus", "max-concurrent-scrapes", "16", "16", "default", false)
	add("Prometheus", "web-config-file", "/etc/agentstatsd/web.yaml", "", "file", true)
	add("gRPC", "grpc-address", "0.0.0.0:2113", "127.0.0.1:2113", "env", true)
	add("Storage", "database-url", "postgres://agentstatsd:xxxxx@db.internal:5432/agentstatsd?sslmode=verify-full&sslrootcert=/etc/agentstatsd/ca.pem", "", "env", true)
	for i := range 10 {
		add("Agents", fmt.Sprintf("max-series-number-%d", i), strconv.Itoa(1000*(i+1)), strconv.Itoa(1000*(i+1)), "default", i%3 == 0)
	}
	return resp, nil
}

func (l *large) GetHistory(context.Context, *agentstatsv1.GetHistoryRequest) (*agentstatsv1.GetHistoryResponse, error) {
	resp := &agentstatsv1.GetHistoryResponse{End: ago(0), Step: durationpb.New(15 * time.Second)}
	for i, c := range []struct {
		name, unit  string
		base, swing float64
	}{
		{"pending", "1", 5000, 3000}, {"flush_seconds", "seconds", 0.08, 0.05}, {"refused_per_second", "per second", 3, 3}, {"received_per_second", "per second", 1200, 300},
		{"connected", "1", 6500, 40}, {"series", "1", 960_000, 9000}, {"resident_bytes", "bytes", 1250 << 20, 80 << 20}, {"cores", "1", 0.6, 0.3},
	} {
		chart := &agentstatsv1.Chart{Name: c.name, Unit: c.unit}
		for n := range 240 {
			v := c.base + c.swing*(0.6*math.Sin(float64(n)/17+float64(i))+0.4*math.Sin(float64(n*n)/53))
			if n < 20 && i == 0 || n > 120 && n < 128 {
				v = math.NaN()
			}
			chart.Values = append(chart.Values, v)
		}
		resp.Charts = append(resp.Charts, chart)
	}
	return resp, nil
}

func (l *large) SearchAgents(_ context.Context, req *agentstatsv1.SearchAgentsRequest) (*agentstatsv1.SearchAgentsResponse, error) {
	size, first := int(req.GetPageSize()), 0
	if size == 0 {
		size = 100
	}
	if req.GetPageToken() != "" {
		var err error
		if first, err = strconv.Atoi(req.GetPageToken()); err != nil {
			return nil, status.Error(codes.InvalidArgument, "page_token: want one of an answer")
		}
	}
	var matching []*agentstatsv1.AgentSummary
	for _, a := range l.agents {
		is := func(want, got string) bool { return want == "" || want == got }
		if is(req.GetOwner(), a.GetOwner()) && is(req.GetTemplate(), a.GetTemplate()) && is(req.GetStatus(), a.GetStatus()) &&
			(req.GetQuery() == "" || strings.Contains(a.GetOwner()+"/"+a.GetWorkspace()+"."+a.GetName()+" "+a.GetTemplate(), req.GetQuery())) {
			matching = append(matching, a)
		}
	}
	resp := &agentstatsv1.SearchAgentsResponse{Total: float64(len(matching))}
	last := min(first+size, len(matching))
	resp.Agents = matching[min(first, last):last]
	if last < len(matching) {
		resp.NextPageToken = strconv.Itoa(last)
	}
	return resp, nil
}

func refused() []*agentstatsv1.Refused {
	return []*agentstatsv1.Refused{
		{Reason: "too_many_agent_series", Problem: "series: want at most 1000 (--max-series-per-agent), got 1500", Names: []string{"app_requests_total", "app_latency_seconds", "app_queue"}, At: ago(21 * time.Second), Count: 14_500},
		{Reason: "invalid_name", Problem: `name: want [a-zA-Z_:][a-zA-Z0-9_:]*, got "requests per second"`, Names: []string{"requests per second"}, At: ago(4 * time.Minute), Count: 12},
	}
}

func (l *large) DescribeAgent(_ context.Context, req *agentstatsv1.DescribeAgentRequest) (*agentstatsv1.DescribeAgentResponse, error) {
	for i, a := range l.agents {
		if a.GetId() != req.GetAgent() {
			continue
		}
		resp := &agentstatsv1.DescribeAgentResponse{
			Summary: a, Organization: "coder", BuildId: uuid(i + 1<<21), CreatedAt: ago(50 * time.Hour), DeclaredMetadataKeys: []string{"cpu", "disk", "git_branch", "memory"},
			Session: &agentstatsv1.AgentSession{Epoch: "12", Instance: "9f3c11aa02b7d4e1", OpenedAt: ago(5 * time.Hour), Relayed: a.GetRelayed(), Version: "v2.31.0", ReceivedSequence: 18_211, DurableSequence: 18_209},
			Apps:    []*agentstatsv1.AgentApp{{Slug: "code-server", DisplayName: "VS Code", Health: "healthy"}, {Slug: "jupyter", DisplayName: "Jupyter", Health: "unhealthy"}, {Slug: "term", DisplayName: "Terminal", Health: "disabled"}},
			Metadata: []*agentstatsv1.AgentMetadataEntry{
				{Key: "cpu", Value: "12 %", CollectedAt: ago(8 * time.Second), Pending: true}, {Key: "disk", Value: "41 of 100 GB", CollectedAt: ago(61 * time.Second)},
				{Key: "git_branch", Error: "exit status 128", CollectedAt: ago(3 * time.Minute)}, {Key: "memory"},
			},
			Refused: refused(),
		}
		for n := range 3 {
			resp.LastSessions = append(resp.LastSessions, &agentstatsv1.AgentSession{
				Epoch: strconv.Itoa(11 - n), Instance: "9f3c11aa02b7d4e1", OpenedAt: ago(time.Duration(10*n+15) * time.Hour), EndedAt: ago(time.Duration(10*n+5) * time.Hour), End: "replaced", Version: "v2.31.0", ReceivedSequence: 9_000, DurableSequence: 9_000,
			})
		}
		for n, family := range []string{"app_requests_total", "app_latency_seconds", "app_queue_length", "node_cpu_seconds_total"} {
			resp.Series = append(resp.Series, &agentstatsv1.NamedCount{Name: family, Count: float64(400 / (n + 1))})
		}
		return resp, nil
	}
	return nil, status.Errorf(codes.NotFound, "no agent is %q", req.GetAgent())
}

func (l *large) ListRefusals(context.Context, *agentstatsv1.ListRefusalsRequest) (*agentstatsv1.ListRefusalsResponse, error) {
	resp := &agentstatsv1.ListRefusalsResponse{}
	for i := range 6 {
		a := l.agents[i*53]
		resp.Agents = append(resp.Agents, &agentstatsv1.RefusedAgent{
			Id: a.GetId(), Name: a.GetName(), Workspace: a.GetWorkspace(), Owner: a.GetOwner(), Template: a.GetTemplate(), Version: "v2.31.0", Refused: refused()[i%2:],
		})
	}
	for by, names := range map[string][]string{"template": templates, "owner": owners[:5], "version": {"v2.31.0", "v2.30.1", ""}} {
		sums := &agentstatsv1.RefusalSums{By: by}
		for i, name := range names {
			sums.Sums = append(sums.Sums, &agentstatsv1.RefusalSum{Name: name, Items: float64(60_000 / (i + 1)), LastAt: ago(time.Minute), Reasons: []*agentstatsv1.NamedCount{{Name: "too_many_agent_series", Count: float64(58_000 / (i + 1))}, {Name: "invalid_name", Count: float64(2_000 / (i + 1))}}})
		}
		resp.Sums = append(resp.Sums, sums)
	}
	return resp, nil
}

// group counts the million series by something.
func (l *large) group(by string, limit int) *agentstatsv1.CardinalityGroup {
	var names []string
	switch by {
	case "owner":
		names = owners
	case "template":
		names = templates
	case "agent", "workspace":
		for i := range limit {
			names = append(names, l.agents[i].GetOwner()+"/"+l.agents[i].GetWorkspace()+".main")
		}
	default:
		for i := range limit {
			names = append(names, fmt.Sprintf("app_%s_%d_total", projects[i%len(projects)], i))
		}
	}
	g := &agentstatsv1.CardinalityGroup{By: by, Total: float64(max(len(names), 5_000))}
	left := 968_412.0
	for i, name := range names {
		row := &agentstatsv1.CardinalityRow{Name: name, Series: math.Ceil(left / 5)}
		left -= row.Series
		if i < 40 {
			row.Growth = proto.Float64(float64(i*i%37) - 3)
		}
		if by == "agent" {
			row.Id = l.agents[i].GetId()
		}
		g.Rows = append(g.Rows, row)
	}
	return g
}

func (l *large) GetCardinality(_ context.Context, req *agentstatsv1.GetCardinalityRequest) (*agentstatsv1.GetCardinalityResponse, error) {
	by, limit := req.GetBy(), int(req.GetLimit())
	if by == "" {
		by = "family"
	}
	if limit == 0 {
		limit = 100
	}
	g := l.group(by, limit)
	g.Label = req.GetLabel()
	return &agentstatsv1.GetCardinalityResponse{Series: 968_412, Descriptors: 41_202, Agents: 9_690, Group: g}, nil
}

func (l *large) GetCost(_ context.Context, req *agentstatsv1.GetCostRequest) (*agentstatsv1.GetCostResponse, error) {
	resp := &agentstatsv1.GetCostResponse{Labels: []string{"agent_name", "template_name", "username", "workspace_name"}}
	for _, row := range l.group("family", 25).GetRows() {
		cost := &agentstatsv1.FamilyCost{Family: row.GetName(), Series: row.GetSeries(), Bytes: row.GetSeries() * 417, Served: row.GetSeries()}
		if len(req.GetWhatIfLabels()) > 0 {
			cost.WhatIfServed = proto.Float64(math.Ceil(row.GetSeries() / 31))
		}
		resp.Families = append(resp.Families, cost)
	}
	return resp, nil
}

func (l *large) ListPushes(context.Context, *agentstatsv1.ListPushesRequest) (*agentstatsv1.ListPushesResponse, error) {
	return &agentstatsv1.ListPushesResponse{Pushers: []*agentstatsv1.Pusher{
		{Replica: "coderd-0", Instance: "5c1e9f0a77aa01b2", Families: 61, Series: 3_130, PushedAt: ago(6 * time.Second)},
		{Replica: "coderd-1", Instance: "11b2c3d4e5f60718", Families: 61, Series: 2_988, PushedAt: ago(11 * time.Second)},
		{Replica: "bridge-0", Instance: "aa55aa55aa55aa55", Families: 12, Series: 240, PushedAt: ago(2 * time.Hour), Expired: true, PassThrough: true},
	}}, nil
}

func (l *large) ExplainSeries(_ context.Context, req *agentstatsv1.ExplainSeriesRequest) (*agentstatsv1.ExplainSeriesResponse, error) {
	return &agentstatsv1.ExplainSeriesResponse{
		Conclusion: req.GetSelector() + " is not served: its agent was refused it 21 s ago, as it has more than 1,000 series.",
		Findings: []*agentstatsv1.Finding{{
			Cause: "refused", Text: "bruno/infra-053.main was refused it 21 s ago: series: want at most 1000 (--max-series-per-agent), got 1500",
			Remedy: "Let the agent report fewer series, or raise --max-series-per-agent.", AgentId: uuid(53),
		}},
		Served: []string{`app_requests_total{username="bruno",workspace_name="infra-053",agent_name="main",template_name="kubernetes",path="/"} 12`}, ServedCount: 400,
	}, nil
}
