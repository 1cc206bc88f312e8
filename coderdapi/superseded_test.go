package coderdapi

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/grpcserver"
)

// neverPushes is never called.
type neverPushes struct{ t *testing.T }

func (p neverPushes) Push(context.Context, time.Time, agent.Push) ([]agent.PushRefusal, error) {
	p.t.Error("a push of a stream that was superseded")
	return nil, nil
}

func TestSupersededPushIsNotHandedOver(t *testing.T) {
	server, err := grpcserver.New(nil, grpcserver.Options{}, prometheus.NewRegistry(), nil)
	require.NoError(t, err)
	instances := newPushInstances()
	first, superseded := instances.addStream(agent.Instance{1})
	_, newer := instances.addStream(agent.Instance{1})
	defer instances.removeStream(agent.Instance{1}, newer)
	defer instances.removeStream(agent.Instance{1}, superseded)
	p := &push{
		service:    &Service{Components: Components{Pushes: neverPushes{t}}, server: server},
		instance:   first,
		superseded: superseded,
	}
	for range 100 {
		_, err := p.storeSnapshot(t.Context())
		require.Equal(t, errSuperseded, err)
	}
}
