package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// When nothing happens to an agent any more, what is needed for sessions is released. What
// it said stays, and it goes on where it was.
func TestActivityIsReleased(t *testing.T) {
	reg := registration(1, 1, 1)
	p := loaded(t, Options{InstanceRetention: time.Hour, MaxMetadataKeys: 2}, reg)
	e := p.registry.agents.Get(nid(1))
	require.Nil(t, e.past, "an agent that never had a session")
	require.Nil(t, e.active)

	s := connect(t, p, 1)
	_, _, limited := s.Charge(time.Now(), 100)
	require.False(t, limited)
	receive(t, s, 1, func(r Request) {
		kept, refused := r.AdmitMetadata([]agent.MetadataEntry{{Key: "b"}, {Key: "a"}})
		require.Len(t, kept, 2)
		require.Empty(t, refused)
		r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: day.Add(time.Hour)}, 0)
		require.Empty(t, r.SetAppHealth(map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy}, nil))
		r.SetNetwork(agent.Network{NodeID: 7}, 0)
		r.MarkReported(0)
	})
	later := time.Now()
	scan := func(isActive bool, problem string) {
		t.Helper()
		later = later.Add(2 * time.Hour)
		p.scan(later)
		require.Equal(t, isActive, e.active != nil, problem)
	}
	scan(true, "it has a session")
	s.Close(EndDisconnect)
	scan(true, "its state is not written")
	require.NoError(t, p.write(t.Context()))
	before, err := p.Agent(nid(1))
	require.NoError(t, err)
	series, published := p.states.all(), e.presence
	scan(false, "nothing happens")

	after, err := p.Agent(nid(1))
	require.NoError(t, err)
	require.Equal(t, before, after)
	p.publishPresence([]*entry{e})
	require.Equal(t, series, p.states.all())
	require.Equal(t, published, e.presence)
	require.Nil(t, e.active, "to look at it needs nothing")
	require.Zero(t, p.RetryAfter(nid(1)))
	require.Nil(t, e.active, "nor to ask")

	// Another registration drops the app, and its health.
	reg.Apps = nil
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
	require.NoError(t, err)
	after, err = p.Agent(nid(1))
	require.NoError(t, err)
	require.Empty(t, after.State.AppHealth)
	require.Equal(t, before.State.Lifecycle, after.State.Lifecycle)
	require.Nil(t, e.active)

	s = connect(t, p, 1)
	require.Greater(t, s.Info().Epoch, before.Session.Epoch)
	receive(t, s, 1, func(r Request) {
		_, refused := r.AdmitMetadata([]agent.MetadataEntry{{Key: "a"}, {Key: "c"}})
		require.Equal(t, []string{"c"}, refused[0].Names, "it has two keys already")
	})
	for _, traffic := range p.Traffic() {
		require.Equal(t, Traffic{Messages: 1, Bytes: 100}, traffic)
	}
	require.Equal(t, agent.LifecycleReady, e.stateLocked(&agent.State{}).Lifecycle.State)

	// An agent with debts keeps them.
	s.Close(EndDisconnect)
	p.ChargeRefused(nid(1), 1_000_000, 0)
	now := time.Now()
	e.active.instances = nil
	p.scan(now)
	require.NotNil(t, e.active, "it has to wait yet")
	require.NotZero(t, p.RetryAfter(nid(1)))
}
