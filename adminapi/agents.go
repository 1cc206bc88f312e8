package adminapi

import (
	"bytes"
	"context"
	"net/url"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/adminapi/internal/explain"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Series knows which series agents have here. aggregator.Aggregator is one.
type Series interface {
	// SeriesOf returns false for an agent without a session here, and without series.
	SeriesOf(id agent.ID) (series int, known bool)
	// FamiliesOf returns those families of SeriesOf with the most series first.
	FamiliesOf(id agent.ID) []aggregator.FamilySeries
	// Cardinality counts by a dimension. It blocks while others count.
	Cardinality(ctx context.Context, q cardinality.Query) (*cardinality.Result, error)
	// SampledCardinality returns the largest names as they were within the last minute.
	SampledCardinality(by cardinality.Dimension, limit int) *cardinality.Result
	explain.Series
}

// agentPage is the path of an agent's page, before its id.
const agentPage = "status/agents"

// statuses that agents can have.
var statuses = []agent.Status{
	agent.StatusConnecting, agent.StatusConnected, agent.StatusDisconnected, agent.StatusTimeout,
}

// SearchAgents implements agentstatsv1.AdminServiceServer. It looks at each agent, and
// sorts those of the page only.
func (s *Service) SearchAgents(ctx context.Context, req *agentstatsv1.SearchAgentsRequest) (*agentstatsv1.SearchAgentsResponse, error) {
	size, err := rows("page_size", req.GetPageSize(), maxRows)
	if err != nil {
		return nil, err
	}
	match := newAgentFilter(req)
	if match.status != "" && !slices.Contains(statuses, match.status) {
		return nil, grpcserver.Invalid("status", "want one of %q, got %.40q", statuses, match.status)
	}
	after, err := parseAgentKey(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	if err := s.Fleet.Ready(); err != nil {
		return nil, grpcserver.ErrNotLoaded
	}
	// One agent more than the page shows whether there is a next page.
	first, total := firstAgents{limit: size + 1, after: after}, 0
	for reg, status := range s.Fleet.All {
		if match.matches(reg, status) {
			total++
			first.add(reg)
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	page := first.sorted()
	resp := &agentstatsv1.SearchAgentsResponse{Total: float64(total)}
	if len(page) > size {
		page = page[:size]
		resp.NextPageToken = keyOf(page[size-1]).token()
	}
	for _, reg := range page {
		if info, err := s.Fleet.Agent(reg.ID); err == nil { // else it was removed meanwhile
			resp.Agents = append(resp.Agents, s.summary(&info))
		}
	}
	return resp, nil
}

// summary returns what a list has of an agent.
func (s *Service) summary(info *fleet.Info) *agentstatsv1.AgentSummary {
	reg := info.Registration
	w := &reg.Workspace
	m := &agentstatsv1.AgentSummary{
		Id: reg.ID.String(), Name: reg.Name, Workspace: w.Name, WorkspaceId: w.ID.String(), Owner: w.OwnerUsername,
		Template: w.Template.Name, TemplateVersion: w.Template.Version,
		Status: string(info.Status), Lifecycle: string(info.State.Lifecycle.State), Relayed: info.Relayed,
	}
	if info.Connected {
		m.Replica, m.ReplicaUrl = s.place(info.Session.Replica, reg.ID)
	}
	if series, known := s.Series.SeriesOf(reg.ID); known || !info.Remote {
		of := float64(series)
		m.Series = &of
	}
	if last, found := s.Refusals.Of(reg.ID); found {
		for i := range last.Refusals {
			m.Refused += float64(last.Refusals[i].Count)
		}
	}
	if !info.LastSeen.IsZero() {
		m.LastSeenAt = timestamppb.New(info.LastSeen)
	}
	return m
}

// place returns the name of a replica, and the URL of an agent's page there.
func (s *Service) place(replica, id agent.ID) (name, page string) {
	name, page = s.Place(replica)
	if name == "" && replica != (agent.ID{}) {
		name = replica.String()
	}
	if page != "" {
		if joined, err := url.JoinPath(page, agentPage, id.String()); err == nil {
			return name, joined
		}
	}
	return name, ""
}

// agentFilter says which agents a search is for. It is used by one goroutine.
type agentFilter struct {
	// query is in lower case; id is what it is as an id, zero: it is none.
	query           []byte
	id              agent.ID
	owner, template string
	status          agent.Status

	text []byte // of the agent that is looked at
}

func newAgentFilter(req *agentstatsv1.SearchAgentsRequest) *agentFilter {
	f := &agentFilter{
		query: bytes.ToLower(bytes.TrimSpace([]byte(req.GetQuery()))),
		owner: req.GetOwner(), template: req.GetTemplate(), status: agent.Status(req.GetStatus()),
	}
	f.id, _ = parseID(string(f.query))
	return f
}

// matches returns whether the search is for an agent.
func (f *agentFilter) matches(reg *agent.Registration, status agent.Status) bool {
	w := &reg.Workspace
	switch {
	case f.owner != "" && f.owner != w.OwnerUsername,
		f.template != "" && f.template != w.Template.Name,
		f.status != "" && f.status != status:
		return false
	case len(f.query) == 0:
		return true
	case f.id != agent.ID{} && (f.id == reg.ID || f.id == w.ID):
		return true
	}
	f.text = append(appendName(f.text[:0], reg), 0) // which is in no name
	f.text = append(f.text, w.Template.Name...)
	return containsLower(f.text, f.query)
}
