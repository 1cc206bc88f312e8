package grpcserver

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func bytesField(number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
}

// The answer to a message that does not decode says which type it should have, and which field
// is wrong, whoever sends it.
func TestMalformedNamesTheField(t *testing.T) {
	request, sync := &agentstatsv1.ConnectRequest{}, &agentstatsv1.SyncAgentsRequest{}
	const ofAgent, ofCoderd = "want a well-formed agentstats.v1.ConnectRequest: ", "want a well-formed agentstats.v1.SyncAgentsRequest: "
	for want, c := range map[string]struct {
		message proto.Message
		encoded []byte
	}{
		"stats (field 3): " + ofAgent + "it is cut off":                                           {request, []byte{0x1a, 0x05, 0x01}},
		"stats (field 3).metrics (field 12): " + ofAgent + "it is cut off":                        {request, bytesField(3, []byte{12<<3 | 2, 0x05})},
		"stats (field 3).metrics (field 12).name (field 1): " + ofAgent + "it is not UTF-8":       {request, bytesField(3, bytesField(12, bytesField(1, []byte{0xff})))},
		"stats (field 3).session_counts (field 13).key (field 1): " + ofAgent + "it is not UTF-8": {request, bytesField(3, bytesField(13, bytesField(1, []byte{0xff})))},
		"sequence (field 1): " + ofAgent + "variable length integer overflow":                     {request, append([]byte{1 << 3}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)},
		"message: " + ofAgent + "tag of a field: invalid field number":                            {request, []byte{0x00}},
		"field 999: " + ofAgent + "it is cut off":                                                 {request, append(protowire.AppendTag(nil, 999, protowire.BytesType), 9)},
		"agents (field 1).workspace (field 6).name (field 2): " + ofCoderd + "it is not UTF-8":    {sync, bytesField(1, bytesField(6, bytesField(2, []byte("\xc0"))))},
	} {
		require.Error(t, proto.Unmarshal(c.encoded, c.message.ProtoReflect().New().Interface()), want)
		err := Malformed(c.message, c.encoded)
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.Equal(t, want, status.Convert(err).Message())
	}
}
