package simulate

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/bubble"
)

// slowService answers each call after a time.
type slowService struct {
	grpc.ClientConnInterface
	takes time.Duration
}

// Invoke implements grpc.ClientConnInterface.
func (s slowService) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	select {
	case <-time.After(s.takes):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A large fleet takes longer to register than a service to start.
func TestLargeFleetRegisters(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		service, err := client.NewCoderd(slowService{takes: 2 * time.Second}, client.CoderdOptions{})
		require.NoError(t, err)
		p := testPlanner("secret")
		c := newCoderd(service, p, p.plan(0, 20_000, at), discardLogger)
		require.NoError(t, retry(t.Context(), c.timeout(), c.register))
		require.NoError(t, c.deregister(t.Context()))

		small := newCoderd(service, p, p.plan(0, 10, at), discardLogger)
		small.client, err = client.NewCoderd(slowService{takes: changeTimeout + time.Second}, client.CoderdOptions{})
		require.NoError(t, err)
		require.ErrorIs(t, retry(t.Context(), small.timeout(), small.register), context.DeadlineExceeded)
	})
}
