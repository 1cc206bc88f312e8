package client

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// refusingStream has an answer on its way when the service refuses what was sent.
type refusingStream struct {
	grpc.BidiStreamingClient[agentstatsv1.PushMetricsRequest, agentstatsv1.PushMetricsResponse]
	received int
}

var errRefused = errors.New("refused")

func (s *refusingStream) Send(*agentstatsv1.PushMetricsRequest) error { return io.EOF }

func (s *refusingStream) Recv() (*agentstatsv1.PushMetricsResponse, error) {
	if s.received++; s.received > 1 {
		return nil, errRefused
	}
	return &agentstatsv1.PushMetricsResponse{}, nil
}

// A response that nobody waits for does not keep the end of a stream from its user.
func TestSendReturnsHowTheStreamEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := newDuplex(ctx, cancel, &refusingStream{})
	defer d.close()
	require.ErrorIs(t, d.send(&agentstatsv1.PushMetricsRequest{}), errRefused)
}
