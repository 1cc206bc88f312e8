package grpcserver_test

import (
	"context"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	methodConnect  = "/agentstats.v1.AgentService/Connect"
	methodRegister = "/agentstats.v1.CoderdService/RegisterAgents"
	methodWatch    = "/agentstats.v1.CoderdService/WatchMetadata"
	methodPush     = "/agentstats.v1.CoderdService/PushMetrics"
)

// sizeOnly is the header of a message of n bytes.
func sizeOnly(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0}, n) }

// A message that is too large is refused when its header is there: nothing of it is
// waited for, or buffered.
func TestSizeIsKnownFromTheHeader(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true})
	s.Register(1)
	agentCredential, coderdCredential := "Bearer "+edgetest.Token(1), "Bearer "+edgetest.CoderdToken
	for _, c := range []struct {
		name, method, credential string
		hello                    bool
		size                     uint32
		want                     string
	}{
		{"hello", methodConnect, agentCredential, false, 4097, "hello: want at most 4096 bytes, got 4097"},
		{"request of an agent", methodConnect, agentCredential, true, 1<<20 + 1, "message: want at most 1048576 bytes (--max-agent-message-bytes), got 1048577"},
		{"call of coderd", methodRegister, coderdCredential, false, 4<<20 + 1, "message: want at most 4194304 bytes (--max-message-bytes), got 4194305"},
		{"stream of coderd", methodPush, coderdCredential, false, 1 << 31, "message: want at most 4194304 bytes (--max-message-bytes), got 2147483648"},
		{"ids to watch", methodWatch, coderdCredential, false, 32<<10 + 1, "message: want at most 32768 bytes, got 32769"},
		{"ids to deregister", "/agentstats.v1.CoderdService/DeregisterAgents", coderdCredential, false, 512<<10 + 1, "message: want at most 524288 bytes, got 524289"},
		{"a page", "/agentstats.v1.CoderdService/ListAgents", coderdCredential, false, 4097, "message: want at most 4096 bytes, got 4097"},
		{"health", healthpb.Health_Check_FullMethodName, "", false, 4097, "message: want at most 4096 bytes, got 4097"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := limited(s, "message_bytes")
			raw := dialRaw(s, t)
			id, err := raw.call(c.method, "authorization", c.credential)
			require.NoError(t, err)
			require.NoError(t, raw.framer.WriteWindowUpdate(id, 64<<10))
			if c.hello {
				message, err := proto.Marshal(edgetest.Hello(edgetest.Session{}))
				require.NoError(t, err)
				require.NoError(t, raw.framer.WriteData(id, false, append(sizeOnly(uint32(len(message))), message...)))
			}
			require.NoError(t, raw.framer.WriteData(id, false, sizeOnly(c.size)))
			select {
			case text := <-raw.refused:
				require.Equal(t, c.want, text)
			case <-time.After(9 * time.Second): // below the time for a first message
				require.FailNow(t, "no answer")
			}
			require.Equal(t, before+1, limited(s, "message_bytes"))
		})
	}
}

// Calls that end before, or within, a message get an answer that says so, and are no errors of the
// service.
func TestMessagesThatAreCutOff(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{})
	s.Register(1)
	closed, open := methods(s)
	var reply []byte
	for _, method := range append(closed, open...) {
		ctx, cancel := context.WithCancel(s.AsCoderd())
		if method == methodConnect {
			ctx = edgetest.As(t.Context(), edgetest.Token(1))
		}
		stream := openCall(ctx, s, method)
		require.NoError(t, stream.CloseSend())
		err := stream.RecvMsg(&reply)
		if strings.HasPrefix(method, "/grpc.reflection.") || method == pb.AgentService_RelayAgents_FullMethodName { // asked nothing
			require.ErrorIs(t, err, io.EOF, method)
			cancel()
			continue
		}
		require.Equal(t, codes.InvalidArgument, status.Code(err), method)
		require.Regexp(t, "want .*, got (none|the end of the stream)$", err.Error(), method)
		cancel()
	}
	require.NotContains(t, s.Log.String(), "handler failed")
}

func TestMessageIsCutOffWithin(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true})
	s.Register(1)
	raw := dialRaw(s, t)
	for _, part := range [][]byte{{0, 0}, append(sizeOnly(10), 1)} {
		id, err := raw.call(methodRegister, "authorization", "Bearer "+edgetest.CoderdToken)
		require.NoError(t, err)
		require.NoError(t, raw.framer.WriteData(id, true, part))
		require.Equal(t, "message: want all of it, the stream ended within it", <-raw.refused)
	}
	require.NotContains(t, s.Log.String(), "handler failed")
	_, err := s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
	require.NoError(t, err)
}
