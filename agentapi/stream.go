package agentapi

import (
	"context"

	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/agentapi/internal/wire"
	"github.com/coder/agentstatsd/grpcserver"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// agentStream is the stream of an agent's session: its own, or a part of one that
// relays. One goroutine receives, another one may send.
type agentStream interface {
	// Context is cancelled at the end of the stream.
	Context() context.Context
	// receive waits for the next request, which it reads into f. The error is io.EOF
	// when the agent has half-closed the stream.
	receive(f *wire.Frame) error
	// sendAck and send send a response. They may block while responses are not read. An
	// ack that is not urgent may wait for those of other agents.
	sendAck(a wire.Ack, urgent bool) error
	send(m *agentstatsv1.ConnectResponse) error
	// StreamEnder ends the stream. It does not block.
	grpcserver.StreamEnder
}

type connectStream = grpc.BidiStreamingServer[agentstatsv1.ConnectRequest, agentstatsv1.ConnectResponse]

// ownStream is a stream of Connect: the agent's own.
type ownStream struct {
	connectStream
	grpcserver.StreamEnder
	outbox grpcserver.Outbox
}

func newOwnStream(stream connectStream) (*ownStream, error) {
	ender, err := grpcserver.EnderOf(stream.Context())
	if err != nil {
		return nil, err
	}
	return &ownStream{connectStream: stream, StreamEnder: ender}, nil
}

func (s *ownStream) receive(f *wire.Frame) error { return s.RecvMsg(f) }

func (s *ownStream) sendAck(a wire.Ack, _ bool) error {
	return s.SendMsg(&wire.AckMessage{Ack: a, Box: &s.outbox})
}

func (s *ownStream) send(m *agentstatsv1.ConnectResponse) error {
	return s.SendMsg(&grpcserver.CountedResponse{Message: m, Box: &s.outbox})
}
