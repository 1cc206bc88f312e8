package adminapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Costs knows what series take. aggregator.Aggregator does. Its methods block while others
// count.
type Costs interface {
	Footprint(ctx context.Context, limit int) (*aggregator.Footprint, error)
	WhatIf(ctx context.Context, groupBy []string, limit int) (*aggregator.WhatIf, error)
	Options() aggregator.Options
}

// GetCost implements agentstatsv1.AdminServiceServer.
func (s *Service) GetCost(ctx context.Context, req *agentstatsv1.GetCostRequest) (*agentstatsv1.GetCostResponse, error) {
	asked := req.GetWhatIfLabels()
	if err := checkLabels(asked); err != nil {
		return nil, err
	}
	if !s.costing.TryLock() {
		return nil, grpcserver.Exhausted(time.Second, "want one question for costs of a replica at a time")
	}
	defer s.costing.Unlock()
	labels := s.Costs.Options().GroupBy
	wanted := labels
	if len(asked) > 0 {
		wanted = asked
	}
	served, err := s.Costs.WhatIf(ctx, wanted, cardinality.MaxCounts)
	if err != nil {
		return nil, err
	}
	footprint, err := s.Costs.Footprint(ctx, cardinality.MaxCounts)
	if err != nil {
		return nil, err
	}
	return &agentstatsv1.GetCostResponse{Labels: labels, Families: familyCosts(footprint, served, len(asked) > 0)}, nil
}

// checkLabels returns the status that refuses labels which no agent's series are grouped by.
func checkLabels(labels []string) error {
	for i, label := range labels {
		field := fmt.Sprintf("what_if_labels[%d]", i)
		if !slices.Contains(aggregator.IdentityLabels(), label) {
			return grpcserver.Invalid(field, "want one of %s, got %.40q", strings.Join(aggregator.IdentityLabels(), ", "), label)
		}
		if slices.Contains(labels[:i], label) {
			return grpcserver.Invalid(field, "want each label once, got %q again", label)
		}
	}
	return nil
}

// familyCosts joins what is known of each family, the largest first.
func familyCosts(footprint *aggregator.Footprint, served *aggregator.WhatIf, whatIf bool) []*agentstatsv1.FamilyCost {
	costs := make(map[string]*agentstatsv1.FamilyCost, len(footprint.Families))
	of := func(name string) *agentstatsv1.FamilyCost {
		if costs[name] == nil {
			costs[name] = &agentstatsv1.FamilyCost{Family: name}
		}
		return costs[name]
	}
	for _, f := range footprint.Families {
		c := of(f.Name)
		c.Series, c.Bytes = float64(f.Series), float64(f.Bytes)
		if whatIf {
			c.WhatIfServed = new(float64)
		}
	}
	for _, f := range served.Families {
		c := of(f.Name)
		c.Served = float64(f.Before)
		if whatIf {
			after := float64(f.After)
			c.WhatIfServed = &after
		}
	}
	all := make([]*agentstatsv1.FamilyCost, 0, len(costs))
	for _, c := range costs {
		if c.GetSeries() > 0 || c.GetServed() > 0 {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b *agentstatsv1.FamilyCost) int {
		return cmp.Or(cmp.Compare(b.GetBytes(), a.GetBytes()), strings.Compare(a.GetFamily(), b.GetFamily()))
	})
	return all
}
