package grpcserver_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/batcher"
	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/grpcserver"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// rawClient speaks HTTP/2 with no room in the windows of its streams.
type rawClient struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	fields bytes.Buffer
	header *hpack.Encoder
	next   uint32
	// refused has the messages of streams that ended before any response.
	refused chan string
	closed  chan struct{}
}

func dialRaw(s *edgetest.Service, t *testing.T) *rawClient {
	t.Helper()
	c := &rawClient{t: t, conn: dial(s), next: 1, refused: make(chan string, 1000), closed: make(chan struct{})}
	c.header = hpack.NewEncoder(&c.fields)
	c.framer = http2.NewFramer(c.conn, c.conn)
	_, err := io.WriteString(c.conn, http2.ClientPreface)
	require.NoError(t, err)
	require.NoError(t, c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	reader := http2.NewFramer(io.Discard, c.conn)
	reader.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	go func() {
		defer close(c.closed)
		for {
			frame, err := reader.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := frame.(*http2.MetaHeadersFrame); ok {
				for _, f := range h.Fields {
					if f.Name == "grpc-message" {
						c.refused <- f.Value
					}
				}
			}
		}
	}()
	t.Cleanup(func() {
		_ = c.conn.Close()
		<-c.closed
	})
	return c
}

// session opens a stream and says hello. An error says that the connection is
// closed.
func (c *rawClient) session(number int64, headers ...string) error {
	id, err := c.call("/agentstats.v1.AgentService/Connect", headers...)
	if err != nil {
		return err
	}
	message, err := proto.Marshal(edgetest.Hello(edgetest.Session{Number: number}))
	require.NoError(c.t, err)
	return c.framer.WriteData(id, false, append([]byte{0, 0, 0, 0, byte(len(message))}, message...))
}

// call opens a stream of a method.
func (c *rawClient) call(method string, headers ...string) (id uint32, err error) {
	c.fields.Reset()
	fields := append([]string{
		":method", "POST", ":scheme", "http", ":path", method, ":authority", "test",
		"content-type", "application/grpc", "te", "trailers",
	}, headers...)
	for i := 0; i < len(fields); i += 2 {
		require.NoError(c.t, c.header.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	id = c.next
	c.next += 2
	return id, c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.fields.Bytes(), EndHeaders: true})
}

// An agent that reads nothing and opens session after session, each of which ends the
// one before, is disconnected. gRPC keeps an ended stream until it is read.
func TestStreamsThatAreNotReadAreBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{MaxStreamsPerAgent: 100_000}})
	require.NoError(t, reconfigure(s, func(o *grpcserver.Options) { o.MaxStreamsPerAgent = 4 }))
	s.Register(1)
	c := dialRaw(s, t)
	deadline := time.After(30 * time.Second)
	for number := int64(1); ; number++ {
		if c.session(number, "authorization", "Bearer "+edgetest.Token(1)) != nil {
			break
		}
		select {
		case <-c.closed:
		case <-deadline:
			require.FailNow(t, "the service does not end the connection", "%d sessions", number)
		case <-time.After(time.Millisecond):
			continue
		}
		break
	}
	<-c.closed
	require.Positive(t, limited(s, "unread_streams"))
	requireEventuallyConnects(t, s, 1)
}

// On a connection that many agents share, as through a proxy, unread streams of one
// agent end streams of that agent only.
func TestSharedConnectionsOutliveStreamsThatAreNotRead(t *testing.T) {
	headers := func(n int) []string { return []string{"authorization", "Bearer " + edgetest.Token(n)} }
	s := edgetest.Start(t, edgetest.Settings{TCP: true, Server: grpcserver.Options{MaxStreamsPerAgent: 4}})
	const others = 9
	c := dialRaw(s, t)
	connected := func(n float64) {
		t.Helper()
		require.Eventually(t, func() bool { return s.Counter("agentstatsd_sessions", "") == n }, 30*time.Second, time.Millisecond)
	}
	s.Register(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	for n := range others {
		require.NoError(t, c.session(1, headers(2+n)...))
	}
	connected(others)
	deadline := time.After(30 * time.Second)
	refused := ""
	for number := int64(1); refused == ""; number++ {
		require.NoError(t, c.session(number, headers(1)...))
		select {
		case refused = <-c.refused:
			switch refused {
			case "superseded by a newer session": // it ended before its window was full
				refused = ""
			case "want at most 4 streams of an agent at once (--max-streams-per-agent)": // those before it end yet
				refused = ""
			}
		case <-deadline:
			require.FailNow(t, "no stream is refused", "%d sessions", number)
		case <-time.After(time.Millisecond):
		}
	}
	require.Equal(t, "want at most 4 ended streams of an agent whose responses are not read (--max-streams-per-agent)", refused)
	require.Positive(t, limited(s, "unread_streams"))
	connected(others + 1)
	require.NoError(t, c.session(1, headers(11)...))
	connected(others + 2) // another agent of that connection

	require.NoError(t, c.conn.Close())
	requireEventuallyConnects(t, s, 1)
}

// The unread rest of an ended stream stays in gRPC's memory. coderd may have as many
// such streams as watches. Then the connection that has them is closed.
func TestUnreadStreamsOfCoderdAreBounded(t *testing.T) {
	s := edgetest.Start(t, edgetest.Settings{
		TCP:     true,
		Server:  grpcserver.Options{SendTimeout: time.Second, MaxUnreadOfCoderd: 4},
		Coderd:  coderdapi.Options{MaxWatches: 4},
		Batcher: batcher.Options{BatchSize: 10, FlushInterval: 10 * time.Millisecond, MaxPending: 10_000},
	})
	numbers := s.StoreMuch(20)
	req := &pb.WatchMetadataRequest{AgentIds: edgetest.IDsBytes(numbers...)}
	for {
		resp, err := s.Coderd().GetMetadata(s.AsCoderd(), &pb.GetMetadataRequest{AgentIds: req.GetAgentIds()})
		require.NoError(t, err)
		if len(resp.GetAgents()) == 20 {
			break
		}
	}
	message, err := proto.Marshal(req)
	require.NoError(t, err)
	raw := dialRaw(s, t)
	watch := func() error {
		id, err := raw.call("/agentstats.v1.CoderdService/WatchMetadata", "authorization", "Bearer "+edgetest.CoderdToken)
		if err != nil {
			return err
		}
		return raw.framer.WriteData(id, true, append(sizeOnly(uint32(len(message))), message...))
	}
	deadline := time.After(30 * time.Second)
	closed := false
	for n := 1.0; !closed && watch() == nil; n++ {
		for !closed && limited(s, "slow_reader") < n { // it has ended
			select {
			case <-raw.closed:
				closed = true
			case <-deadline:
				require.FailNow(t, "neither ended nor disconnected")
			default:
			}
		}
	}
	require.GreaterOrEqual(t, limited(s, "slow_reader"), 4.0)
	require.GreaterOrEqual(t, limited(s, "unread_streams"), 1.0)

	good, err := s.Coderd().WatchMetadata(s.AsCoderd(), req) // of another connection
	require.NoError(t, err)
	for synced := false; !synced; {
		m, err := good.Recv()
		require.NoError(t, err)
		synced = m.GetSynced()
	}
}

// requireEventuallyConnects waits until the agent can have a session.
func requireEventuallyConnects(t *testing.T, s *edgetest.Service, n int) {
	t.Helper()
	session := int64(1000)
	require.Eventually(t, func() bool {
		session++
		c := s.Open(edgetest.As(t.Context(), edgetest.Token(n)))
		require.NoError(t, c.Send(edgetest.Hello(edgetest.Session{Number: session})))
		resp, err := c.Recv()
		return err == nil && resp.GetSettings() != nil
	}, 30*time.Second, time.Millisecond)
}
