package coderdapi_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// rawCodec sends and receives bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

func (rawCodec) Name() string { return "proto" }

// encodeSpoiled encodes a message with a text that is not UTF-8 in the place of another
// one of the same length.
func encodeSpoiled(t *testing.T, m proto.Message, text string) []byte {
	encoded, err := proto.Marshal(m)
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(encoded, []byte(text)))
	return bytes.Replace(encoded, []byte(text), bytes.Repeat([]byte{0xff}, len(text)), 1)
}

// Registrations with a text that is not UTF-8 are refused alone, by name. A sync keeps
// what is known of their agents. What is malformed otherwise is refused as a whole.
func TestTextThatIsNotUTF8(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	send := func(method string, encoded []byte, response proto.Message) error {
		stream, err := s.Conn.NewStream(s.AsCoderd(), &grpc.StreamDesc{ClientStreams: true}, method, grpc.ForceCodec(rawCodec{}))
		require.NoError(t, err)
		require.NoError(t, stream.SendMsg(encoded))
		require.NoError(t, stream.CloseSend())
		var answer []byte
		if err := stream.RecvMsg(&answer); err != nil {
			return err
		}
		require.NoError(t, proto.Unmarshal(answer, response))
		return nil
	}
	bad, workspace := edgetest.Registration(2), edgetest.Workspace(7)
	bad.Workspace.OwnerUsername, workspace.Name = "spoil this", "and this"
	encoded := encodeSpoiled(t, &pb.RegisterAgentsRequest{
		Agents: []*pb.AgentRegistration{edgetest.Registration(1), bad, edgetest.Registration(3)},
	}, "spoil this")
	encoded = append(encoded, encodeSpoiled(t, &pb.RegisterAgentsRequest{Workspaces: []*pb.Workspace{workspace}}, "and this")...)
	registered := &pb.RegisterAgentsResponse{}
	require.NoError(t, send(pb.CoderdService_RegisterAgents_FullMethodName, encoded, registered))
	require.True(t, proto.Equal(&pb.RegisterAgentsResponse{RefusedCount: 2, Refused: []*pb.RegistrationRefusal{
		{AgentId: edgetest.IDBytes(2), WorkspaceId: edgetest.IDBytes(10_002), Field: "workspace.owner_username", Message: "want UTF-8"},
		{WorkspaceId: workspace.GetId(), Field: "name", Message: "want UTF-8"},
	}}, registered), "%v", registered)
	s.RequireAgents(1, 3)
	require.Equal(t, 2.0, s.Counter("agentstatsd_registrations_total", "refused"))

	s.Register(2, 4)
	encoded = encodeSpoiled(t, &pb.SyncAgentsRequest{
		Agents: []*pb.AgentRegistration{edgetest.Registration(1), bad, edgetest.Registration(3)}, Complete: true,
	}, "spoil this")
	synced := &pb.SyncAgentsResponse{}
	require.NoError(t, send(pb.CoderdService_SyncAgents_FullMethodName, encoded, synced))
	require.Equal(t, int64(1), synced.GetRefusedCount())
	require.Equal(t, int64(1), synced.GetDeregistered())
	s.RequireAgents(1, 2, 3)

	err := send(pb.CoderdService_RegisterAgents_FullMethodName, protowire.AppendTag(encoded, 1, protowire.BytesType), registered)
	require.Equal(t, codes.InvalidArgument, status.Code(err), "it is cut off, too: %v", err)
	s.RequireAgents(1, 2, 3)
}

// A sync keeps as many registrations that are not UTF-8 as there may be agents.
func TestSyncOfTextsThatAreNotUTF8(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{Fleet: fleet.Options{MaxAgents: 3}})
	bad := edgetest.Registration(1)
	bad.Workspace.OwnerUsername = "spoil this"
	encoded := encodeSpoiled(t, &pb.SyncAgentsRequest{Agents: []*pb.AgentRegistration{bad}}, "spoil this")
	encoded = bytes.Repeat(encoded, 2)
	stream, err := s.Conn.NewStream(s.AsCoderd(), &grpc.StreamDesc{ClientStreams: true}, pb.CoderdService_SyncAgents_FullMethodName, grpc.ForceCodec(rawCodec{}))
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(encoded))
	require.NoError(t, stream.SendMsg(encoded))
	require.NoError(t, stream.CloseSend())
	err = stream.RecvMsg(&[]byte{})
	edgetest.RequireCode(t, err, codes.ResourceExhausted, "sync: want at most 3 registrations that are not UTF-8 (--max-agents), got 4 so far")
}
