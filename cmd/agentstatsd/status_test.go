package main

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The status of a service has what its process, its checks and its first line of the log say.
func TestStatusOfService(t *testing.T) {
	c := configWith(t, nil)
	c.dataDir = t.TempDir()
	s, err := newService(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer s.close()
	get := func() *agentstatsv1.ReplicaStatus {
		resp, err := s.admin.GetStatus(t.Context(), &agentstatsv1.GetStatusRequest{})
		require.NoError(t, err)
		return resp.GetReplicas()[0]
	}
	r := get()
	require.Empty(t, r.GetId(), "it is alone")
	require.True(t, r.GetLeads())
	require.Equal(t, hostname(), r.GetName())
	require.Equal(t, version(), r.GetVersion())
	require.Positive(t, r.GetResidentBytes())
	require.NotNil(t, r.GetStartedAt())
	require.Zero(t, r.GetMemoryLimitBytes(), "none is set")
	names := make([]string, len(r.GetComponents()))
	for i, c := range r.GetComponents() {
		names[i] = c.GetName()
		require.Equal(t, c.GetName() != "fleet" && c.GetName() != "pushed", c.GetReady(), "it does not run: %v", c)
	}
	require.Equal(t, []string{"batcher", "database", "draining", "fleet", "pushed"}, names)
	require.False(t, r.GetReady())
	require.NotEmpty(t, r.GetLimits())
	places := s.places()
	require.Len(t, r.GetPlaces(), len(places)/2)
	require.Equal(t, places[2], r.GetPlaces()[1].GetName())
	require.Equal(t, places[3], r.GetPlaces()[1].GetValue())

	s.draining.Store(true)
	require.True(t, get().GetDraining())
}
