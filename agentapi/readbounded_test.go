package agentapi_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/agentapi"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// countingReader has 2 KB of each agent, and counts those that it was asked for.
type countingReader struct{ asked int }

func (r *countingReader) Metadata(_ context.Context, ids []agent.ID) (rows []agent.Metadata, err error) {
	r.asked += len(ids)
	for _, id := range ids {
		rows = append(rows, agent.Metadata{Agent: id, Key: "k", Value: strings.Repeat("v", 2047)})
	}
	return rows, nil
}

// Metadata that does not fit a response is not read to its end.
func TestReadsAreBounded(t *testing.T) {
	reader := &countingReader{}
	s := start(t, settings{
		api:    agentapi.Options{MaxMessageBytes: 200_000, MaxAgentMessageBytes: 200_000},
		change: func(c *agentapi.Components) { c.Reader = reader },
	})
	req := &pb.GetMetadataRequest{}
	for n := range 1000 {
		req.AgentIds = append(req.AgentIds, bid(n+1))
	}
	_, err := s.coderd().GetMetadata(s.asCoderd(), req)
	requireCodeContains(t, err, codes.ResourceExhausted, "agent_ids: their metadata is at least 262144 bytes, want at most 200000; ask for fewer agents at once")
	require.Equal(t, 128, reader.asked)
}
