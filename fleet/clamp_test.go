package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// A time at which a state cannot have been reached is that of its receipt, and
// stays so when the state is said again.
func TestLifecycleTimesAreClamped(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newParts(t, Options{})
		defer running(t, p)()
		time.Sleep(time.Second)
		reg := registration(1, 1, 1)
		reg.CreatedAt, reg.Workspace.Build.CreatedAt = time.Now(), time.Now()
		_, err := p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
		require.NoError(t, err)
		s := connectTo(t, p, 1, hello(1, 1))
		sequence := int64(0)
		say := func(state agent.LifecycleState, at time.Time) time.Time {
			sequence++
			receive(t, s, sequence, func(q Request) { q.SetLifecycle(agent.Lifecycle{State: state, ChangedAt: at}, 0) })
			info, err := p.Agent(nid(1))
			require.NoError(t, err)
			return info.State.Lifecycle.ChangedAt
		}
		time.Sleep(30 * time.Second)
		began := time.Now()
		require.Equal(t, began, say(agent.LifecycleStarting, reg.CreatedAt.Add(-time.Nanosecond)), "before the build")
		time.Sleep(30 * time.Second)
		ready := time.Now()
		far := time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)
		require.Equal(t, ready, say(agent.LifecycleReady, far))
		time.Sleep(time.Minute)
		require.Equal(t, ready, say(agent.LifecycleReady, far), "said again")
		require.Equal(t, ready, say(agent.LifecycleReady, time.Time{}), "said again, without a time")
		require.Equal(t, began, say(agent.LifecycleReady, began), "a time that can be is taken")
		require.Equal(t, []string{"before_build 1", "future 2"}, metric(t, p, "agentstatsd_lifecycle_times_clamped_total"))
		time.Sleep(5 * time.Second)
		families, err := p.reg.Gather()
		require.NoError(t, err)
		observed := 0
		for _, f := range families {
			if f.GetName() == "coderd_template_workspace_build_duration_seconds" {
				observed++
				require.Equal(t, 60.0, f.GetMetric()[0].GetHistogram().GetSampleSum())
			}
		}
		require.Equal(t, 1, observed)
	})
}

// What a relay was given before its session is clamped to that time, not to its receipt:
// of an agent whose clock is behind, too, it does not win over what was said later.
func TestLateLifecycleIsClampedToWhenItWasSaid(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		_, r := startReplicas(t, 1)
		reg := registration(1, 1, 1)
		reg.CreatedAt, reg.Workspace.Build.CreatedAt = time.Now(), time.Now()
		_, err := r[0].Register(t.Context(), Set{Agents: []agent.Registration{reg}})
		require.NoError(t, err)
		behind := func() time.Time { return time.Now().Add(-time.Hour) }
		time.Sleep(time.Minute)
		given, started := time.Now(), behind()
		time.Sleep(time.Minute)
		setLifecycle(t, connectTo(t, r[0], 1, relayHello(1, 1, 0)), 1, agent.LifecycleReady, behind())
		time.Sleep(time.Minute)
		late := connectTo(t, r[0], 1, relayHello(2, 1, 0))
		receive(t, late, 1, func(q Request) {
			q.SetLifecycle(agent.Lifecycle{State: agent.LifecycleStarting, ChangedAt: started}, q.Said(time.Since(given)))
		})
		require.Equal(t, agent.LifecycleReady, lifecycleOf(t, r[0]))
	})
}

// Health of an app that is registered as disabled is refused, and what was known
// of one that becomes disabled is forgotten.
func TestHealthOfADisabledApp(t *testing.T) {
	reg := registration(1, 1, 1)
	reg.Apps = append(reg.Apps, agent.App{ID: nid(6001), Slug: "x", Health: agent.AppHealthDisabled})
	p := loaded(t, Options{}, reg)
	s := connect(t, p, 1)
	receive(t, s, 1, func(r Request) {
		require.Equal(t, []agent.Refusal{{
			Kind: agent.RefusedNotAllowed, Reason: "disabled_app", Count: 1, Names: []string{nid(6001).String()},
			Message: "app_health.updates.id: want an app whose health is checked, got one that is registered as disabled",
		}}, r.SetAppHealth(map[agent.ID]agent.AppHealth{
			nid(5001): agent.AppHealthHealthy, nid(6001): agent.AppHealthHealthy,
		}, nil))
	})
	info, err := p.Agent(nid(1))
	require.NoError(t, err)
	require.Equal(t, map[agent.ID]agent.AppHealth{nid(5001): agent.AppHealthHealthy}, info.State.AppHealth)
	reg.Apps = []agent.App{{ID: nid(5001), Slug: "code", Health: agent.AppHealthDisabled}}
	_, err = p.Register(t.Context(), Set{Agents: []agent.Registration{reg}})
	require.NoError(t, err)
	info, err = p.Agent(nid(1))
	require.NoError(t, err)
	require.Empty(t, info.State.AppHealth)
}
