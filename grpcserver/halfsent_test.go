package grpcserver_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// halfSent is a message of an agent, of so many bytes.
type halfSent struct {
	agent int
	size  uint32
}

// halfSend opens a session of the agent and sends the header of a message, and one
// byte of it.
func (c *rawClient) halfSend(m halfSent) (id uint32) {
	c.t.Helper()
	id, err := c.call(methodConnect, "authorization", "Bearer "+edgetest.Token(m.agent))
	require.NoError(c.t, err)
	require.NoError(c.t, c.framer.WriteWindowUpdate(id, 64<<10))
	message, err := proto.Marshal(edgetest.Hello(edgetest.Session{Instance: byte(m.agent), Unnumbered: true}))
	require.NoError(c.t, err)
	require.NoError(c.t, c.framer.WriteData(id, false, append(sizeOnly(uint32(len(message))), message...)))
	require.NoError(c.t, c.framer.WriteData(id, false, append(sizeOnly(m.size), 1)))
	synctest.Wait()
	return id
}

// Large messages that are sent in half take no more than all of them may, and not for
// ever. Small messages of others, and those of coderd, do not wait for them.
func TestHalfSentMessagesAreBoundedTogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxMessageBytes: 256 << 10, MaxAgentMessageBytes: 256 << 10, MaxReceivingBytes: 512 << 10}})
		s.Register(1, 2, 3, 4)
		receiving := func(role string) float64 { return s.Counter("agentstatsd_grpc_receiving_bytes", role) }
		raw := dialRaw(s, t)
		raw.halfSend(halfSent{agent: 1, size: 200_000})
		require.Equal(t, 200_000.0, receiving("agent"))
		raw.halfSend(halfSent{agent: 2, size: 100_000})
		require.Equal(t, 200_000.0, receiving("agent"), "it waits")

		began := time.Now()
		var entries []string
		for range 30 {
			entries = append(entries, strings.Repeat("k", 8), strings.Repeat("v", 2000))
		}
		s.Request(3, edgetest.Metadata(entries...)) // 60 KB
		req := &pb.RegisterAgentsRequest{}
		for n := range 500 {
			req.Agents = append(req.Agents, edgetest.Registration(100+n))
		}
		require.Greater(t, proto.Size(req), 64<<10)
		_, err := s.Coderd().RegisterAgents(s.AsCoderd(), req)
		require.NoError(t, err)
		require.Less(t, time.Since(began), 5*time.Second)
		require.Zero(t, receiving("coderd"), "it is read")

		time.Sleep(15*time.Second - time.Since(began))
		require.Equal(t, "message: want at most 262144 bytes of large messages received at once, a share of --max-receiving-bytes, waited 15s for 100000 bytes; try again later", <-raw.refused)
		require.Equal(t, 1.0, limited(s, "receiving_bytes"))
		require.Equal(t, "message: want all of its 200000 bytes within 30s (--grpc-message-timeout)", <-raw.refused)
		require.Equal(t, 30*time.Second, time.Since(began))
		synctest.Wait()
		require.Equal(t, 1.0, limited(s, "slow_message"))
		require.Zero(t, receiving("agent"), "they have ended")

		id := raw.halfSend(halfSent{agent: 2, size: 200_000})
		require.Equal(t, 200_000.0, receiving("agent"))
		large := s.Connect(edgetest.Session{Agent: 4})
		large.SendNext(edgetest.Metadata("k", strings.Repeat("v", 250_000)))
		synctest.Wait()
		require.Equal(t, 200_000.0, receiving("agent"), "it waits")
		require.NoError(t, raw.framer.WriteRSTStream(id, http2.ErrCodeCancel))
		for received := int64(0); received < 1; {
			m := large.Next()
			received = m.GetAck().GetReceivedSequence()
		}
		require.Zero(t, receiving("agent"), "the one was cut, the other is read")
	})
}

// A call of coderd that streams responses counts as any other one until its request is
// there.
func TestStreamsOfCoderdWithoutARequestAreBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := edgetest.Start(t, edgetest.Settings{Server: grpcserver.Options{MaxCoderdCalls: 2}})
		s.Register(1)
		watch := func() (*pb.WatchMetadataResponse, error) {
			w, err := s.Coderd().WatchMetadata(s.AsCoderd(), &pb.WatchMetadataRequest{AgentIds: edgetest.IDsBytes(1)})
			require.NoError(t, err)
			return w.Recv()
		}
		requireSynced := func() {
			t.Helper()
			resp, err := watch()
			require.NoError(t, err)
			require.Empty(t, resp.GetAgents())
			require.True(t, resp.GetSynced())
		}
		for range 3 {
			requireSynced()
		}
		for _, method := range []string{methodWatch, methodPush} {
			openCall(s.AsCoderd(), s, method)
		}
		synctest.Wait()
		_, err := watch()
		edgetest.RequireCode(t, err, codes.ResourceExhausted, "want at most 2 calls of coderd at once (--max-coderd-calls)")
		time.Sleep(6 * time.Second)
		_, err = s.Coderd().ListAgents(s.AsCoderd(), &pb.ListAgentsRequest{})
		require.NoError(t, err, "those two have had their time")
		requireSynced()
	})
}
