package adminapi

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxTops bounds the streams of TopAgents. Each looks at all agents, each interval.
	maxTops            = 4
	defaultTopInterval = 2 * time.Second
	minTopInterval     = time.Second
	maxTopInterval     = time.Minute
)

// What agents are ordered by.
const (
	topSeries   = "series"
	topMessages = "messages"
	topBytes    = "bytes"
	topRefused  = "refused"
)

// TopAgents implements agentstatsv1.AdminServiceServer.
func (s *Service) TopAgents(req *agentstatsv1.TopAgentsRequest, stream grpc.ServerStreamingServer[agentstatsv1.TopAgentsResponse]) error {
	by, known := cmp.Or(req.GetBy(), topSeries), []string{topSeries, topMessages, topBytes, topRefused}
	if !slices.Contains(known, by) {
		return grpcserver.Invalid("by", "want one of %q, got %.40q", known, by)
	}
	limit, err := rows("limit", req.GetLimit(), maxRows)
	if err != nil {
		return err
	}
	interval := defaultTopInterval
	if req.GetInterval() != nil {
		interval = req.GetInterval().AsDuration()
	}
	if interval < minTopInterval || interval > maxTopInterval {
		return grpcserver.Invalid("interval", "want %v to %v, got %v", minTopInterval, maxTopInterval, interval)
	}
	if s.tops.Add(1) > maxTops {
		s.tops.Add(-1)
		return grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d streams of TopAgents at a time", maxTops))
	}
	defer s.tops.Add(-1)
	if err := s.Fleet.Ready(); err != nil {
		return grpcserver.ErrNotLoaded
	}
	top := top{service: s, by: by, limit: limit}
	top.step(time.Now())
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.server.Draining():
			return grpcserver.ErrDraining
		case now := <-ticker.C:
			if err := stream.Send(top.step(now)); err != nil {
				return err
			}
		}
	}
}

// top finds the agents that use the most, step by step.
type top struct {
	service *Service
	by      string
	limit   int

	at     time.Time // of the last step
	before map[agent.ID]used
}

// used is what an agent has sent and was refused up to a step.
type used struct {
	fleet.Traffic
	refused int64
}

// topAgent is an agent with what it used in a step.
type topAgent struct {
	reg    *agent.Registration
	used   used
	series int
}

// step returns which agents use the most since the last step. An agent that was not there
// then has sent nothing before.
func (t *top) step(now time.Time) *agentstatsv1.TopAgentsResponse {
	refused := make(map[agent.ID]int64)
	for _, last := range t.service.Refusals.Newest(math.MaxInt) {
		for i := range last.Refusals {
			refused[last.Agent] += last.Refusals[i].Count
		}
	}
	resp := &agentstatsv1.TopAgentsResponse{At: timestamppb.New(now)}
	after := make(map[agent.ID]used, len(t.before))
	var all used
	var first []topAgent
	for reg, traffic := range t.service.Fleet.Traffic() {
		total := used{traffic, refused[reg.ID]}
		after[reg.ID] = total
		before := t.before[reg.ID]
		// It has less if it was removed and registered again, or its refusals are forgotten.
		a := topAgent{reg: reg, used: used{
			fleet.Traffic{Messages: max(0, total.Messages-before.Messages), Bytes: max(0, total.Bytes-before.Bytes)},
			max(0, total.refused-before.refused),
		}}
		all.Messages, all.Bytes, all.refused = all.Messages+a.used.Messages, all.Bytes+a.used.Bytes, all.refused+a.used.refused
		if a.used.Messages > 0 {
			resp.Sending++
		}
		if t.by == topSeries {
			a.series, _ = t.service.Series.SeriesOf(reg.ID)
		}
		if t.weight(&a) == 0 {
			continue
		}
		a.reg = reg.Clone()
		if first = append(first, a); len(first) == 2*t.limit {
			first = t.sorted(first)
		}
	}
	elapsed := now.Sub(t.at).Seconds()
	resp.All = all.rates(elapsed)
	for _, a := range t.sorted(first) {
		if t.by != topSeries {
			a.series, _ = t.service.Series.SeriesOf(a.reg.ID)
		}
		w := &a.reg.Workspace
		resp.Agents = append(resp.Agents, &agentstatsv1.TopAgent{
			Id: a.reg.ID.String(), Name: a.reg.Name, Workspace: w.Name, Owner: w.OwnerUsername, Template: w.Template.Name,
			Series: float64(a.series), Rates: a.used.rates(elapsed),
		})
	}
	t.at, t.before = now, after
	return resp
}

// weight is what agents are ordered by.
func (t *top) weight(a *topAgent) int64 {
	switch t.by {
	case topMessages:
		return a.used.Messages
	case topBytes:
		return a.used.Bytes
	case topRefused:
		return a.used.refused
	}
	return int64(a.series)
}

// sorted returns the agents that use the most, at most limit.
func (t *top) sorted(all []topAgent) []topAgent {
	slices.SortFunc(all, func(a, b topAgent) int {
		return cmp.Or(cmp.Compare(t.weight(&b), t.weight(&a)), slices.Compare(a.reg.ID[:], b.reg.ID[:]))
	})
	return all[:min(len(all), t.limit)]
}

// rates returns what was used a second.
func (u *used) rates(seconds float64) *agentstatsv1.AgentRates {
	return &agentstatsv1.AgentRates{
		Messages: float64(u.Messages) / seconds, Bytes: float64(u.Bytes) / seconds, Refused: float64(u.refused) / seconds,
	}
}
