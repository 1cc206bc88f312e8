package coderdapi_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// countingReader has 2 KB of each agent, and counts those that it read.
type countingReader struct{ read int }

func (r *countingReader) MetadataWithin(_ context.Context, ids []agent.ID, limit int) (rows []agent.Metadata, left []agent.ID, err error) {
	size := 0
	for i, id := range ids {
		row := agent.Metadata{Agent: id, Key: "k", Value: strings.Repeat("v", 2047)}
		if size += row.Bytes(); size > limit && i > 0 {
			return rows, ids[i:], nil
		}
		rows = append(rows, row)
		r.read++
	}
	return rows, nil, nil
}

// Metadata that does not fit a response is not read to its end.
func TestReadsAreBounded(t *testing.T) {
	reader := &countingReader{}
	s := edgetest.Start(t, edgetest.Settings{
		Server:       grpcserver.Options{MaxMessageBytes: 200_000, MaxAgentMessageBytes: 200_000},
		ChangeCoderd: func(c *coderdapi.Components) { c.Reader = reader },
	})
	req := &pb.GetMetadataRequest{}
	for n := range 1000 {
		req.AgentIds = append(req.AgentIds, edgetest.IDBytes(n+1))
	}
	_, err := s.Coderd().GetMetadata(s.AsCoderd(), req)
	edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "agent_ids: want at most 200000 bytes of metadata (--max-message-bytes), got more: ask for fewer agents at once")
	require.Less(t, reader.read, 200, "400 KB in memory")
	req.AgentIds = req.AgentIds[:97]
	_, err = s.Coderd().GetMetadata(s.AsCoderd(), req)
	edgetest.RequireCodeContains(t, err, codes.ResourceExhausted, "agent_ids: want at most 200000 bytes of metadata (--max-message-bytes), got 20")
	req.AgentIds = req.AgentIds[:90]
	_, err = s.Coderd().GetMetadata(s.AsCoderd(), req)
	require.NoError(t, err)
}
