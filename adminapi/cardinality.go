package adminapi

import (
	"context"
	"fmt"
	"strings"

	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// GetCardinality implements agentstatsv1.AdminServiceServer.
func (s *Service) GetCardinality(ctx context.Context, req *agentstatsv1.GetCardinalityRequest) (*agentstatsv1.GetCardinalityResponse, error) {
	limit, err := rows("limit", req.GetLimit(), cardinality.MaxCounts)
	if err != nil {
		return nil, err
	}
	q := cardinality.Query{Label: req.GetLabel(), Family: req.GetFamily(), Limit: limit}
	if q.By, err = dimensionOf(req.GetBy()); err != nil {
		return nil, err
	}
	if err := q.Validate(); err != nil { // by and limit are valid
		return nil, grpcserver.Invalid("label", "want one with by=%s only, got %.40q", cardinality.ByLabelValue, req.GetLabel())
	}
	result, err := s.Series.Cardinality(ctx, q)
	if err != nil {
		return nil, err
	}
	return &agentstatsv1.GetCardinalityResponse{
		Series: float64(result.Series), Descriptors: float64(result.Descriptors), Agents: float64(result.Agents),
		Group: cardinalityGroup(q, result),
	}, nil
}

// dimensionOf returns the dimension with the name in a request; empty: by family. Its error
// is a status.
func dimensionOf(name string) (cardinality.Dimension, error) {
	if name == "" {
		return cardinality.ByFamily, nil
	}
	d, ok := cardinality.ParseDimension(name)
	if !ok {
		return 0, grpcserver.Invalid("by", "want one of %s, got %.40q", strings.Join(cardinality.Dimensions(), ", "), name)
	}
	return d, nil
}

// cardinalityGroup returns what was counted.
func cardinalityGroup(q cardinality.Query, result *cardinality.Result) *agentstatsv1.CardinalityGroup {
	g := &agentstatsv1.CardinalityGroup{By: q.By.String(), Label: q.Label, Total: float64(result.Names)}
	for i := range result.Counts {
		c := &result.Counts[i]
		row := &agentstatsv1.CardinalityRow{Name: rowName(q, c), Series: float64(c.Series)}
		if q.By == cardinality.ByAgent {
			row.Id = c.Agent.String()
		}
		if c.GrowthKnown {
			row.Growth = &c.Growth
		}
		g.Rows = append(g.Rows, row)
	}
	return g
}

// rowName returns the name of a count: with those of what it is in.
func rowName(q cardinality.Query, c *cardinality.Count) string {
	switch {
	case q.By == cardinality.ByWorkspace:
		return c.Owner + "/" + c.Name
	case q.By == cardinality.ByAgent:
		return c.Owner + "/" + c.Workspace + "." + c.Name
	case q.By == cardinality.ByLabelValue && q.Label == "":
		return fmt.Sprintf("%s=%q", c.Label, c.Name)
	}
	return c.Name
}
