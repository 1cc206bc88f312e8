package wire_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agentapi/internal/wire"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// readBatch returns the requests of a message as the walk has them.
func readBatch(t testing.TB, message []byte) (requests []wire.RelayedRequest, err error) {
	var batch wire.RelayBatch
	require.NoError(t, batch.UnmarshalMessage(mem.BufferSlice{mem.SliceBuffer(message)}))
	for {
		q, ok, err := batch.Next()
		if err != nil || !ok {
			return requests, err
		}
		requests = append(requests, q)
	}
}

// FuzzRelayBatch shows that a message that relays is read as the generated code would. What
// that refuses has requests of agents that do not decode, or is refused.
func FuzzRelayBatch(f *testing.F) {
	message := func(requests ...*agentstatsv1.RelayedRequest) []byte {
		encoded, err := proto.Marshal(&agentstatsv1.RelayAgentsRequest{Requests: requests})
		require.NoError(f, err)
		return encoded
	}
	field := func(n protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), content)
	}
	request := &agentstatsv1.ConnectRequest{Sequence: 7, Stats: &agentstatsv1.Stats{RxBytes: 5}}
	encoded, err := proto.Marshal(request)
	require.NoError(f, err)
	f.Add([]byte(nil))
	f.Add(message(&agentstatsv1.RelayedRequest{Index: 1, AgentId: make([]byte, 16), Request: request}, &agentstatsv1.RelayedRequest{Index: 1 << 31, End: true}))
	f.Add(message(&agentstatsv1.RelayedRequest{Request: &agentstatsv1.ConnectRequest{}}))
	// A request that is split in two; fields in another order, twice, unknown, of another type, a group.
	f.Add(field(1, append(field(3, encoded[:2]), field(3, encoded[2:])...)))
	f.Add(field(1, append(append(field(3, encoded), 1<<3, 9, 1<<3, 10), field(2, []byte("id"))...)))
	f.Add(append(field(1, []byte{1 << 3, 1}), field(9, []byte("unknown"))...))
	f.Add(field(1, append(field(1, []byte("index")), 3<<3, 1, 4<<3, 2)))
	f.Add([]byte{1<<3 | 3, 1 << 3, 1, 1<<3 | 4})
	f.Add([]byte{1<<3 | 2, 5, 1})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		got, err := readBatch(t, encoded)
		want := &agentstatsv1.RelayAgentsRequest{}
		if proto.Unmarshal(encoded, want) != nil {
			broken := err != nil
			for _, q := range got {
				broken = broken || proto.Unmarshal(q.Request, &agentstatsv1.ConnectRequest{}) != nil
			}
			require.True(t, broken, "%x", encoded)
			return
		}
		require.NoError(t, err)
		require.Len(t, got, len(want.GetRequests()))
		for i, q := range want.GetRequests() {
			require.Equal(t, q.GetIndex(), got[i].Index)
			require.Equal(t, string(q.GetAgentId()), string(got[i].AgentID))
			require.Equal(t, q.GetEnd(), got[i].End)
			require.Equal(t, q.GetRequest() != nil, got[i].HasRequest)
			request := &agentstatsv1.ConnectRequest{}
			require.NoError(t, proto.Unmarshal(got[i].Request, request))
			if got[i].HasRequest {
				// Compared as encoded, since a NaN is unlike itself.
				a, err := proto.MarshalOptions{Deterministic: true}.Marshal(q.GetRequest())
				require.NoError(t, err)
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
				require.NoError(t, err)
				require.Equal(t, a, b)
			}
		}
	})
}

// Responses that are encoded by hand are those that the generated code decodes.
func TestRelayedResponses(t *testing.T) {
	var encoded []byte
	want := &agentstatsv1.RelayAgentsResponse{}
	add := func(r wire.RelayedResponse, m *agentstatsv1.ConnectResponse) {
		var response []byte
		if m != nil {
			var err error
			response, err = proto.Marshal(m)
			require.NoError(t, err)
		}
		encoded = r.Append(encoded, response)
		want.Responses = append(want.Responses, &agentstatsv1.RelayedResponse{Index: r.Index, Credit: r.Credit, Response: m})
	}
	for _, r := range []wire.RelayedResponse{{Index: 1}, {Index: 1 << 31, Credit: 1}, {Index: 200, Credit: 300}} {
		for _, n := range []int64{0, 1, 1 << 40} {
			m := &agentstatsv1.ConnectResponse{Ack: &agentstatsv1.Ack{ReceivedSequence: n, DurableSequence: n / 2}}
			ack := wire.Ack{Received: n, Durable: n / 2}
			require.LessOrEqual(t, len(ack.Append(nil)), wire.MaxAckBytes)
			encoded = r.Append(encoded, ack.Append(nil))
			want.Responses = append(want.Responses, &agentstatsv1.RelayedResponse{Index: r.Index, Credit: r.Credit, Response: m})
		}
		add(r, nil)
		add(r, &agentstatsv1.ConnectResponse{Reconnect: &agentstatsv1.Reconnect{Reason: string(make([]byte, 300))}})
	}
	end := &agentstatsv1.RelayedResponse{Index: 5, End: &agentstatsv1.RelayedEnd{Code: 3, Message: "text"}}
	last, err := proto.Marshal(end)
	require.NoError(t, err)
	encoded = wire.AppendRelayed(encoded, last)
	want.Responses = append(want.Responses, end)
	got := &agentstatsv1.RelayAgentsResponse{}
	require.NoError(t, proto.Unmarshal(encoded, got))
	require.True(t, proto.Equal(want, got), "got %v", got)
}
