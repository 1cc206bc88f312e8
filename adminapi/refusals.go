package adminapi

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/refusals"
)

// Rows of an answer: without a limit, and at most.
const (
	defaultRows = 100
	maxRows     = 1000
)

// rows returns how many rows a request wants, of at most limit.
func rows(field string, want int32, limit int) (int, error) {
	switch n := int(want); {
	case n == 0:
		return defaultRows, nil
	case n < 0 || n > limit:
		return 0, grpcserver.Invalid(field, "want 0 to %d, got %d", limit, n)
	default:
		return n, nil
	}
}

// ListRefusals implements agentstatsv1.AdminServiceServer.
func (s *Service) ListRefusals(_ context.Context, req *agentstatsv1.ListRefusalsRequest) (*agentstatsv1.ListRefusalsResponse, error) {
	limit, err := rows("limit", req.GetLimit(), maxRows)
	if err != nil {
		return nil, err
	}
	resp := &agentstatsv1.ListRefusalsResponse{}
	for _, last := range s.Refusals.Newest(limit) {
		resp.Agents = append(resp.Agents, &agentstatsv1.RefusedAgent{
			Id: last.Agent.String(), Name: last.AgentName, Workspace: last.Workspace, Owner: last.Owner,
			Template: last.Template, Version: last.Version, Refused: refusedMessages(last.Refusals),
		})
	}
	for _, by := range []struct {
		name  string
		group refusals.Group
	}{{"template", refusals.ByTemplate}, {"owner", refusals.ByOwner}, {"version", refusals.ByVersion}} {
		sums, others := s.Refusals.Sums(by.group)
		resp.Sums = append(resp.Sums, sumsMessage(by.name, sums, others))
	}
	return resp, nil
}

func refusedMessages(all []refusals.Refusal) []*agentstatsv1.Refused {
	messages := make([]*agentstatsv1.Refused, len(all))
	for i, r := range all {
		messages[i] = &agentstatsv1.Refused{
			Reason: r.Reason, Problem: r.Problem, Names: r.Names, At: timestamppb.New(r.At), Count: float64(r.Count),
		}
	}
	return messages
}

func sumsMessage(by string, sums []refusals.Sum, others int64) *agentstatsv1.RefusalSums {
	m := &agentstatsv1.RefusalSums{By: by, Others: float64(others)}
	for _, sum := range sums {
		reasons := make([]*agentstatsv1.NamedCount, 0, len(sum.Reasons))
		for reason, items := range sum.Reasons {
			reasons = append(reasons, &agentstatsv1.NamedCount{Name: reason, Count: float64(items)})
		}
		slices.SortFunc(reasons, compareCounts)
		m.Sums = append(m.Sums, &agentstatsv1.RefusalSum{
			Name: sum.Name, Items: float64(sum.Items), LastAt: timestamppb.New(sum.Last), Reasons: reasons,
		})
	}
	slices.SortStableFunc(m.Sums, func(a, b *agentstatsv1.RefusalSum) int { return cmp.Compare(b.GetItems(), a.GetItems()) })
	return m
}

// compareCounts orders counts, the largest first.
func compareCounts(a, b *agentstatsv1.NamedCount) int {
	return cmp.Or(cmp.Compare(b.GetCount(), a.GetCount()), cmp.Compare(a.GetName(), b.GetName()))
}
