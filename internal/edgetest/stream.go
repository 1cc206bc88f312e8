package edgetest

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Stream is an agent's stream.
type Stream struct {
	pb.AgentService_ConnectClient
	T testing.TB
	// Settings are the answer to its hello.
	Settings *pb.Settings
	// Sequence is that of the last request that SendNext sent.
	Sequence int64
	// Patient: SendNext asks for no ack at once.
	Patient bool

	parts []*pb.ConnectResponse // of the last response, not returned yet
}

// Recv receives responses part by part: settings, each refusal, the ack, the
// please-reconnect.
func (c *Stream) Recv() (*pb.ConnectResponse, error) {
	if len(c.parts) == 0 {
		m, err := c.AgentService_ConnectClient.Recv()
		if err != nil {
			return nil, err
		}
		if m.GetSettings() != nil {
			c.parts = append(c.parts, &pb.ConnectResponse{Settings: m.GetSettings()})
		}
		for _, r := range m.GetRefusals() {
			c.parts = append(c.parts, &pb.ConnectResponse{Refusals: []*pb.Refusal{r}})
		}
		if m.GetAck() != nil {
			c.parts = append(c.parts, &pb.ConnectResponse{Ack: m.GetAck()})
		}
		if m.GetReconnect() != nil {
			c.parts = append(c.parts, &pb.ConnectResponse{Reconnect: m.GetReconnect()})
		}
		if len(c.parts) == 0 {
			return nil, fmt.Errorf("received a response with nothing in it: %v", m)
		}
	}
	part := c.parts[0]
	c.parts = c.parts[1:]
	return part, nil
}

// RefusalOf returns the refusal that a part of a response is; nil: it is none.
func RefusalOf(part *pb.ConnectResponse) *pb.Refusal {
	if len(part.GetRefusals()) == 0 {
		return nil
	}
	return part.GetRefusals()[0]
}

// Open opens a stream without a hello.
func (s *Service) Open(ctx context.Context) *Stream {
	s.T.Helper()
	if IsOverRelay(s.T) {
		s.relayOnce.Do(func() { s.relay = s.OpenRelay(s.AsCoderd()) })
		return s.relay.Open(ctx, s.T, agentOf(ctx))
	}
	c, err := s.Agents().Connect(ctx)
	require.NoError(s.T, err)
	return &Stream{AgentService_ConnectClient: c, T: s.T}
}

// Connect opens a session of an agent.
func (s *Service) Connect(session Session) *Stream {
	s.T.Helper()
	return s.Open(As(s.T.Context(), Token(session.Agent))).SayHello(session)
}

// Request has agent n connect, send one request and disconnect. It returns once
// the request was taken in.
func (s *Service) Request(n int, req *pb.ConnectRequest) {
	s.T.Helper()
	c := s.Connect(Session{Agent: n, Instance: byte(n), Unnumbered: true})
	c.Sequence = max(c.Sequence, s.requests.Add(1)) // one before may not be acked yet
	c.SendNext(req)
	require.NoError(s.T, c.CloseSend())
	c.RequireEnd(codes.OK, "")
}

// SayHello sends the hello and receives the settings. It returns c.
func (c *Stream) SayHello(session Session) *Stream {
	c.T.Helper()
	require.NoError(c.T, c.Send(Hello(session)))
	c.Settings = c.Next().GetSettings()
	require.NotNil(c.T, c.Settings.GetResume())
	c.Sequence = c.Settings.GetResume().GetReceivedSequence()
	return c
}

// SendNext sends a request with the next sequence and returns that. It has ack_now,
// unless the stream is patient.
func (c *Stream) SendNext(req *pb.ConnectRequest) int64 {
	c.T.Helper()
	c.Sequence++
	req.Sequence = c.Sequence
	req.AckNow = req.AckNow || !c.Patient
	require.NoError(c.T, c.Send(req))
	return req.Sequence
}

// Next receives the next response.
func (c *Stream) Next() *pb.ConnectResponse {
	c.T.Helper()
	m, err := c.Recv()
	require.NoError(c.T, err)
	return m
}

// NextAck receives the next response, which is an ack.
func (c *Stream) NextAck() (received, durable int64) {
	c.T.Helper()
	m := c.Next()
	require.NotNil(c.T, m.GetAck(), "got %v", m)
	return m.GetAck().GetReceivedSequence(), m.GetAck().GetDurableSequence()
}

// Ack has the sequences up to which all is received and durable.
type Ack struct{ Received, Durable int64 }

// RequireAck receives acks until both sequences are reached.
func (c *Stream) RequireAck(want Ack) {
	c.T.Helper()
	for {
		received, durable := c.NextAck()
		require.LessOrEqual(c.T, received, want.Received)
		require.LessOrEqual(c.T, durable, want.Durable)
		if received == want.Received && durable == want.Durable {
			return
		}
	}
}

// RequireDurable receives acks until all up to the sequence is durable.
func (c *Stream) RequireDurable(sequence int64) {
	c.T.Helper()
	c.RequireAck(Ack{Received: sequence, Durable: sequence})
}

// RequireEnd receives until the end, which has the code and the text.
func (c *Stream) RequireEnd(code codes.Code, text string) {
	c.T.Helper()
	for {
		_, err := c.Recv()
		if err == nil {
			continue
		}
		if code == codes.OK {
			require.Equal(c.T, io.EOF, err)
			return
		}
		RequireCode(c.T, err, code, text)
		return
	}
}
