package adminapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/adminapi/internal/explain"
	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxExplanations are made at once. Each takes up to a core.
	maxExplanations = 2
	// explanationTimeout bounds one, which takes some seconds of a million series.
	explanationTimeout = 30 * time.Second
)

// ExplainSeries implements agentstatsv1.AdminServiceServer.
func (s *Service) ExplainSeries(ctx context.Context, req *agentstatsv1.ExplainSeriesRequest) (*agentstatsv1.ExplainSeriesResponse, error) {
	outcome := outcomeRefused
	defer func() { s.metrics.explanations.WithLabelValues(outcome).Inc() }()
	select {
	case s.explaining <- struct{}{}:
		defer func() { <-s.explaining }()
	default:
		return nil, grpcserver.Exhausted(time.Second, fmt.Sprintf("want at most %d explanations at once", maxExplanations))
	}
	if err := s.Fleet.Ready(); err != nil {
		outcome = outcomeFailed
		return nil, grpcserver.ErrNotLoaded
	}
	ctx, cancel := context.WithTimeout(ctx, explanationTimeout)
	defer cancel()
	found, err := s.explainer.Explain(ctx, req.GetSelector())
	if errors.Is(err, explain.ErrSelector) {
		return nil, grpcserver.Invalid("selector", "%v", err)
	}
	if err != nil {
		outcome = outcomeFailed
		return nil, err
	}
	outcome = outcomeServed
	resp := &agentstatsv1.ExplainSeriesResponse{Served: found.Served, ServedCount: float64(found.Count), Conclusion: found.Conclusion}
	for _, f := range found.Findings {
		outcome = outcomeExplained
		m := &agentstatsv1.Finding{Cause: string(f.Cause), Text: f.Text, Remedy: f.Remedy, Url: f.Page}
		if f.Agent != (agent.ID{}) {
			m.AgentId = f.Agent.String()
		}
		resp.Findings = append(resp.Findings, m)
	}
	return resp, nil
}
