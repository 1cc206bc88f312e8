package console

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// agentStatuses are those of coderd_agents_connections.
var agentStatuses = []string{"connecting", "connected", "disconnected", "timeout"}

// agentPages are the sizes of a page of agents that its form offers.
var agentPages = []int32{50, 100, 250, 1000}

// agents is a page of agents.
type agents struct {
	*agentstatsv1.SearchAgentsResponse
	Request  *agentstatsv1.SearchAgentsRequest
	Statuses []string
	Sizes    []int32
	// Agents on pages before, as the links say.
	Before int
	First  int
	Last   int
	// Filtered is true if not all agents were asked for.
	Filtered bool
}

func (c *Console) agents(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	req, resp, err := ask(ctx, r, query, c.api.SearchAgents)
	if err != nil {
		return nil, err
	}
	a := &agents{SearchAgentsResponse: resp, Request: req, Statuses: agentStatuses, Sizes: agentPages}
	if n, err := strconv.Atoi(query.Get("before")); err == nil && n > 0 && req.GetPageToken() != "" {
		a.Before = min(n, math.MaxInt32)
	}
	a.First, a.Last = a.Before+1, a.Before+len(resp.GetAgents())
	a.Filtered = req.GetQuery() != "" || req.GetOwner() != "" || req.GetTemplate() != "" || req.GetStatus() != ""
	return a, nil
}

// PageSize is that of the request, or the default.
func (a *agents) PageSize() int32 { return cmp.Or(a.Request.GetPageSize(), 100) }

// agentName returns what the commands take as the name of an agent.
func agentName(a *agentstatsv1.AgentSummary) string {
	return a.GetOwner() + "/" + a.GetWorkspace() + "." + a.GetName()
}

// agent is what is known of one.
type agent struct {
	*agentstatsv1.DescribeAgentResponse
	// ShowMetadata is true if the values of its metadata are there.
	ShowMetadata bool
}

func (c *Console) agent(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	_, resp, err := ask(ctx, r, query, c.describeAgent)
	if err != nil {
		return nil, err
	}
	if resp.Summary == nil {
		resp.Summary = new(agentstatsv1.AgentSummary)
	}
	return &agent{resp, c.opts.ShowMetadata}, nil
}

// title is for the tabs of a browser.
func (a *agent) title() string { return agentName(a.GetSummary()) }

// SeriesTotal is the sum of its families' series.
func (a *agent) SeriesTotal() (total float64) {
	for _, s := range a.GetSeries() {
		total += s.GetCount()
	}
	return total
}

// What series are counted by, and what they can be grouped by.
var (
	countedBy   = []string{"family", "label", "value", "template", "owner", "workspace", "agent"}
	groupLabels = []string{"agent_name", "template_name", "username", "workspace_name"}
)

// cardinality answers who costs what.
type cardinality struct {
	*agentstatsv1.GetCardinalityResponse
	By          []string
	GroupLabels []string
	// Cost is nil until it is asked for, as it takes a while to count; CostError says why
	// there is none.
	Cost      *agentstatsv1.GetCostResponse
	CostError string
	WhatIf    []string
}

func (c *Console) cardinality(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	_, resp, err := ask(ctx, r, query, c.api.GetCardinality)
	if err != nil {
		return nil, err
	}
	data := &cardinality{GetCardinalityResponse: resp, By: countedBy, GroupLabels: groupLabels}
	if query.Get("cost") == "" {
		return data, nil
	}
	req, cost, err := ask(ctx, r, query, c.api.GetCost)
	data.WhatIf, data.Cost = req.GetWhatIfLabels(), cost
	if err != nil {
		data.Cost = nil
		_, data.CostError = c.failed(r, err)
	}
	return data, nil
}

// Chosen reports whether the form has a label checked: as it was asked, or else as it is.
func (c *cardinality) Chosen(label string) bool {
	if c.WhatIf == nil {
		return slices.Contains(c.Cost.GetLabels(), label)
	}
	return slices.Contains(c.WhatIf, label)
}

// Total is the sum of all families' costs.
func (c *cardinality) Total() *agentstatsv1.FamilyCost {
	var whatIf float64
	total := &agentstatsv1.FamilyCost{}
	for _, f := range c.Cost.GetFamilies() {
		total.Series += f.GetSeries()
		total.Bytes += f.GetBytes()
		total.Served += f.GetServed()
		if f.WhatIfServed != nil {
			whatIf += f.GetWhatIfServed()
			total.WhatIfServed = &whatIf
		}
	}
	return total
}

func (c *Console) refusals(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	_, resp, err := ask(ctx, r, query, c.api.ListRefusals)
	return resp, err
}

// durability answers whether what came in is in the database.
type durability struct {
	Replicas []*agentstatsv1.ReplicaStatus
	History  history
}

// durabilityCharts are those of the page, as far as there are such.
var durabilityCharts = []string{"pending", "oldest_pending_seconds", "flush_seconds", "flush_errors_per_second", "refused_per_second", "received_per_second", "flushed_per_second"}

func (c *Console) durability(ctx context.Context, _ *http.Request, _ url.Values) (any, error) {
	resp, err := c.api.GetStatus(ctx, &agentstatsv1.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	return &durability{resp.GetReplicas(), c.history(ctx, durabilityCharts...)}, nil
}

// Difference returns by how much the sum does not add up.
func (*durability) Difference(d *agentstatsv1.Durability) float64 {
	return d.GetReceived() - d.GetCoalesced() - d.GetFlushed() - d.GetUnchanged() - d.GetDropped() - d.GetPending()
}

func (c *Console) pushes(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	_, resp, err := ask(ctx, r, query, c.api.ListPushes)
	return resp, err
}

// explain answers why a series is not as expected; nil if none is asked for.
func (c *Console) explain(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	if query.Get("selector") == "" {
		return nil, nil
	}
	_, resp, err := ask(ctx, r, query, c.api.ExplainSeries)
	return resp, err
}

// Selector selects all series of the agent.
func (a *agent) Selector() string {
	s := a.GetSummary()
	return fmt.Sprintf("{username=%q,workspace_name=%q,agent_name=%q}", s.GetOwner(), s.GetWorkspace(), s.GetName())
}

// config has the options in force.
type config struct {
	Groups []optionGroup
	Hash   string
	// Changed counts those that are not at their defaults, All all of them.
	Changed, All int
	// OnlyChanged is true if only the former are in the groups.
	OnlyChanged bool
}

type optionGroup struct {
	Name    string
	Options []*agentstatsv1.Option
}

func (c *Console) config(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	_, resp, err := ask(ctx, r, query, c.api.GetConfig)
	if err != nil {
		return nil, err
	}
	data := &config{Hash: resp.GetHash(), All: len(resp.GetOptions()), OnlyChanged: query.Get("show") == "changed"}
	for _, o := range resp.GetOptions() {
		changed := o.GetSource() != "default"
		if changed {
			data.Changed++
		}
		if data.OnlyChanged && !changed {
			continue
		}
		i := slices.IndexFunc(data.Groups, func(g optionGroup) bool { return g.Name == o.GetGroup() })
		if i < 0 {
			i = len(data.Groups)
			data.Groups = append(data.Groups, optionGroup{Name: o.GetGroup()})
		}
		data.Groups[i].Options = append(data.Groups[i].Options, o)
	}
	return data, nil
}

func (c *Console) replicas(ctx context.Context, r *http.Request, query url.Values) (any, error) {
	_, resp, err := ask(ctx, r, query, c.api.GetStatus)
	return resp, err
}

// bar is how much of something is used, as it is drawn.
type bar struct {
	Share float64
	// Level is good, warn or bad.
	Level string
}

// newBar returns the bar of a part of a whole that is a limit, or is not.
func newBar(part, whole any, limit bool) bar {
	b := bar{share(part, whole), "plain"}
	if limit {
		switch {
		case b.Share >= nearlyFull:
			b.Level = "bad"
		case b.Share >= 75:
			b.Level = "warn"
		default:
			b.Level = "good"
		}
	}
	return b
}
