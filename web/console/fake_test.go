package console

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// hostile is a name that ends elements, attributes and addresses if it is not escaped.
const hostile = `"><script>alert('x')</script>&<b a=//evil.test/`

// fake answers what it was given. What it was not given it does not know.
type fake struct {
	agentstatsv1.UnimplementedAdminServiceServer
	status      *agentstatsv1.GetStatusResponse
	config      *agentstatsv1.GetConfigResponse
	history     *agentstatsv1.GetHistoryResponse
	agents      []*agentstatsv1.AgentSummary
	agent       *agentstatsv1.DescribeAgentResponse
	refusals    *agentstatsv1.ListRefusalsResponse
	cardinality *agentstatsv1.GetCardinalityResponse
	cost        *agentstatsv1.GetCostResponse
	pushes      *agentstatsv1.ListPushesResponse
	explanation *agentstatsv1.ExplainSeriesResponse
	// err is the answer to all.
	err error

	mu    sync.Mutex
	asked []proto.Message
}

// reply notes what was asked, and returns a copy of the answer.
func reply[T proto.Message](f *fake, req proto.Message, answer T, known bool) (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, req)
	var none T
	switch {
	case f.err != nil:
		return none, f.err
	case !known:
		return none, status.Error(codes.Unimplemented, "method not implemented")
	}
	return proto.Clone(answer).(T), nil
}

func (f *fake) GetStatus(_ context.Context, req *agentstatsv1.GetStatusRequest) (*agentstatsv1.GetStatusResponse, error) {
	return reply(f, req, f.status, f.status != nil)
}

func (f *fake) GetConfig(_ context.Context, req *agentstatsv1.GetConfigRequest) (*agentstatsv1.GetConfigResponse, error) {
	return reply(f, req, f.config, f.config != nil)
}

func (f *fake) GetHistory(_ context.Context, req *agentstatsv1.GetHistoryRequest) (*agentstatsv1.GetHistoryResponse, error) {
	return reply(f, req, f.history, f.history != nil)
}

// SearchAgents pages by the number of the agent that is next.
func (f *fake) SearchAgents(_ context.Context, req *agentstatsv1.SearchAgentsRequest) (*agentstatsv1.SearchAgentsResponse, error) {
	size, first := int(req.GetPageSize()), 0
	if size == 0 {
		size = 100
	}
	if req.GetPageToken() != "" {
		if _, err := fmt.Sscanf(req.GetPageToken(), "from %d", &first); err != nil || first > len(f.agents) {
			return nil, status.Error(codes.InvalidArgument, "page_token: want one of an answer")
		}
	}
	resp := &agentstatsv1.SearchAgentsResponse{Total: float64(len(f.agents))}
	last := min(first+size, len(f.agents))
	resp.Agents = f.agents[first:last]
	if last < len(f.agents) {
		resp.NextPageToken = fmt.Sprintf("from %d", last)
	}
	return reply(f, req, resp, f.agents != nil)
}

func (f *fake) DescribeAgent(_ context.Context, req *agentstatsv1.DescribeAgentRequest) (*agentstatsv1.DescribeAgentResponse, error) {
	return reply(f, req, f.agent, f.agent != nil)
}

func (f *fake) ListRefusals(_ context.Context, req *agentstatsv1.ListRefusalsRequest) (*agentstatsv1.ListRefusalsResponse, error) {
	return reply(f, req, f.refusals, f.refusals != nil)
}

func (f *fake) GetCardinality(_ context.Context, req *agentstatsv1.GetCardinalityRequest) (*agentstatsv1.GetCardinalityResponse, error) {
	return reply(f, req, f.cardinality, f.cardinality != nil)
}

func (f *fake) GetCost(_ context.Context, req *agentstatsv1.GetCostRequest) (*agentstatsv1.GetCostResponse, error) {
	return reply(f, req, f.cost, f.cost != nil)
}

func (f *fake) ListPushes(_ context.Context, req *agentstatsv1.ListPushesRequest) (*agentstatsv1.ListPushesResponse, error) {
	return reply(f, req, f.pushes, f.pushes != nil)
}

func (f *fake) ExplainSeries(_ context.Context, req *agentstatsv1.ExplainSeriesRequest) (*agentstatsv1.ExplainSeriesResponse, error) {
	return reply(f, req, f.explanation, f.explanation != nil)
}

// newFake returns one that knows a bit of everything. All names that agents, users and
// templates choose are hostile.
func newFake() *fake {
	now := time.Now().Truncate(time.Second)
	at := func(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-ago)) }
	counts := []*agentstatsv1.NamedCount{{Name: "too_many_series", Count: 1234567}, {Name: hostile, Count: 1}}
	refused := []*agentstatsv1.Refused{
		{Reason: "too_many_agent_series", Problem: "series: want at most 1000, got 1500 " + hostile, Names: []string{hostile, "b"}, At: at(time.Minute), Count: 500},
		{Reason: "invalid_name", Problem: "name", At: at(time.Hour), Count: 2},
	}
	summary := &agentstatsv1.AgentSummary{
		Id: "6a1c9e5e-0000-4000-8000-000000000001", Name: hostile, Workspace: hostile, WorkspaceId: "6a1c9e5e-0000-4000-8000-000000000002",
		Owner: hostile, Template: hostile, TemplateVersion: hostile, Status: "connected", Lifecycle: "ready", Replica: hostile,
		ReplicaUrl: "javascript:alert(1)//" + hostile, Relayed: true, Series: proto.Float64(42), Refused: 502, LastSeenAt: at(3 * time.Second),
	}
	session := &agentstatsv1.AgentSession{
		Epoch: "7", Instance: "00ff", OpenedAt: at(time.Hour), Version: hostile, ReceivedSequence: 12, DurableSequence: 11,
	}
	before := proto.CloneOf(session)
	before.EndedAt, before.End = at(time.Hour), "replaced"
	limits := []*agentstatsv1.Limit{
		{Name: "series", Limit: 1_000_000, Used: proto.Float64(950_000)}, {Name: "series_bytes", Limit: 1 << 30, Used: proto.Float64(3 << 20)},
		{Name: "push_bytes", Limit: 64 << 20}, {Name: "agents", Limit: 0, Used: proto.Float64(3)},
	}
	cardinality := &agentstatsv1.CardinalityGroup{By: "template", Total: 2, Rows: []*agentstatsv1.CardinalityRow{{Name: hostile, Series: 9}, {Name: "", Series: 1}}}
	return &fake{
		status: &agentstatsv1.GetStatusResponse{Replicas: []*agentstatsv1.ReplicaStatus{
			{
				Id: "a", Name: "one", Alive: true, Leads: true, Version: "v1.2.3", Revision: "abc", StartedAt: at(26 * time.Hour), Ready: true,
				Components: []*agentstatsv1.Component{{Name: "fleet", Ready: true}, {Name: "batcher", Reason: "metadata is not written " + hostile}},
				Warnings:   []string{"certificate: " + hostile}, Places: []*agentstatsv1.Place{{Name: "database", Value: "postgres://db/" + hostile}},
				Limits: limits, Certificates: []*agentstatsv1.Certificate{{Listener: "grpc", NotAfter: timestamppb.New(now.Add(48 * time.Hour)), Kind: "server"}, {Listener: "grpc", NotAfter: timestamppb.New(now.Add(-time.Hour)), Kind: "client_ca"}},
				Registered: 10_000, Connected: 7_000, Relayed: 10, Series: 1_000_000, ResidentBytes: 512 << 20, MemoryLimitBytes: 1 << 30, Cores: 0.25,
				Durability: &agentstatsv1.Durability{
					Received: 100, Coalesced: 10, Flushed: 50, Unchanged: 20, Dropped: 5, Pending: 15, OldestPendingSeconds: 1.5, LastFlushSeconds: 0.02,
				},
				Refused: counts, ScrapedAt: at(9 * time.Second), Cardinality: []*agentstatsv1.CardinalityGroup{cardinality},
			},
			{Id: "b", Name: "two", AgeSeconds: 3, Alive: true, Version: "v1.2.2", Url: "http://10.0.0.2:2112/", Ready: true, Draining: true, Connected: 5, Durability: &agentstatsv1.Durability{Received: 3}},
			{Id: "c", Name: hostile, AgeSeconds: 120, Url: "javascript:alert(1)", Warnings: []string{"old"}},
		}},
		config: &agentstatsv1.GetConfigResponse{Hash: "123", Options: []*agentstatsv1.Option{
			{Flag: "prometheus-address", Env: "CODER_PROMETHEUS_ADDRESS", Group: "Prometheus", Value: hostile, DefaultValue: "127.0.0.1:2112", Source: "flag", NeedsRestart: true},
			{Flag: "max-series", Group: "Series", Value: "1", DefaultValue: "1", Source: "default"},
		}},
		history: &agentstatsv1.GetHistoryResponse{
			End: at(0), Step: durationpb.New(15 * time.Second), Charts: []*agentstatsv1.Chart{
				{Name: "pending", Unit: "1", Values: []float64{math.NaN(), 1, 4, math.NaN(), 2, math.Inf(1), math.NaN(), 3}},
				{Name: "flush_seconds", Unit: "seconds", Values: []float64{math.NaN(), math.NaN(), math.NaN(), math.NaN(), math.NaN(), math.NaN(), math.NaN(), math.NaN()}},
				{Name: "resident_bytes", Unit: "bytes", Values: []float64{1 << 20, 3 << 20, 0, -5, 0, 0, 0, 0}},
			},
		},
		agents: []*agentstatsv1.AgentSummary{summary, {Id: "6a1c9e5e-0000-4000-8000-000000000003", Name: "dev", Workspace: "a/b", Owner: "o", Status: "timeout"}},
		agent: &agentstatsv1.DescribeAgentResponse{
			Summary: summary, Organization: hostile, BuildId: "b", CreatedAt: at(time.Hour), ParentId: "6a1c9e5e-0000-4000-8000-000000000009",
			DeclaredMetadataKeys: []string{hostile}, Session: session, LastSessions: []*agentstatsv1.AgentSession{before},
			Apps: []*agentstatsv1.AgentApp{{Slug: hostile, DisplayName: hostile, Health: "unhealthy"}},
			Metadata: []*agentstatsv1.AgentMetadataEntry{
				{Key: hostile, Value: "hunter2 " + hostile, CollectedAt: at(4 * time.Second)}, {Key: "k2", Error: "hunter3", CollectedAt: at(5 * time.Second), Pending: true}, {Key: "k3"},
			},
			Series: counts, Refused: refused,
		},
		refusals: &agentstatsv1.ListRefusalsResponse{
			Agents: []*agentstatsv1.RefusedAgent{
				{Id: "6a1c9e5e-0000-4000-8000-000000000001", Name: hostile, Workspace: hostile, Owner: hostile, Template: hostile, Version: hostile, Refused: refused},
				{Id: "6a1c9e5e-0000-4000-8000-00000000000f", Refused: refused[:1]},
			},
			Sums: []*agentstatsv1.RefusalSums{{By: "template", Others: 3, Sums: []*agentstatsv1.RefusalSum{{Name: hostile, Items: 502, LastAt: at(time.Minute), Reasons: counts}, {Items: 1}}}, {By: "owner"}, {By: "version"}},
		},
		cardinality: &agentstatsv1.GetCardinalityResponse{Series: 10, Descriptors: 3, Agents: 2, Group: cardinality},
		cost: &agentstatsv1.GetCostResponse{Labels: []string{"username"}, Families: []*agentstatsv1.FamilyCost{
			{Family: hostile, Series: 10, Bytes: 2048, Served: 10, WhatIfServed: proto.Float64(2)}, {Family: "b", Series: 1, Bytes: 100, Served: 1, WhatIfServed: proto.Float64(1)},
		}},
		pushes: &agentstatsv1.ListPushesResponse{Pushers: []*agentstatsv1.Pusher{
			{Replica: hostile, Instance: "ab", Families: 3, Series: 30, PushedAt: at(8 * time.Second), PassThrough: true}, {Replica: "old", PushedAt: at(time.Hour), Expired: true},
		}},
		explanation: &agentstatsv1.ExplainSeriesResponse{
			Findings: []*agentstatsv1.Finding{{Cause: "hidden_by_newer", Text: "hidden " + hostile, Remedy: hostile, AgentId: "6a1c9e5e-0000-4000-8000-000000000001"}, {Cause: "expired", Text: "it expired"}, {Cause: "other_replica", Text: "it is elsewhere", AgentId: "6a1c9e5e-0000-4000-8000-000000000001", Url: "http://10.0.0.2:2112/"}},
			Served:   []string{`x{a="` + hostile + `"} 1`}, ServedCount: 30, Conclusion: "It is hidden by " + hostile,
		},
	}
}

// consoleOf returns a console and the mux that serves it, beside a registry that says so.
func consoleOf(t testing.TB, f *fake, opts Options) http.Handler {
	t.Helper()
	c, err := New(f, opts, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	mux := http.NewServeMux()
	c.Mount(mux, c, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Vary", "Accept")
		_, _ = w.Write([]byte("registry"))
	}))
	return mux
}

// ask sends a request, of which headers are names and values in turn.
func get(t testing.TB, h http.Handler, method, target string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, http.NoBody)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}
