package pushed

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// Who looks for a pushed family gets each instance that has it, or was refused it.
func TestPushers(t *testing.T) {
	term := &lease{}
	f := open(t, new(memory), Options{SeriesTTL: time.Minute, Lease: term.of(1)})
	push := func(id byte, replica, text string, final, passThrough bool) {
		t.Helper()
		_, err := f.Push(context.Background(), start.Add(time.Duration(id)*time.Second), agent.Push{
			Replica: replica, Instance: instanceID(id), Interval: 10 * time.Second, Snapshot: 1, Final: final, PassThrough: passThrough,
			Families: serialize(t, parseText(t, text)...),
		})
		require.NoError(t, err)
	}
	push(1, "one", "# TYPE x gauge\nx{a=\"1\"} 1\nx{a=\"2\"} 1\n", false, false)
	push(2, "two", "# TYPE x gauge\nx 1\n# TYPE coderd_agents_up gauge\ncoderd_agents_up 1\n", true, false)
	push(3, "three", "# TYPE x counter\nx 1\n# TYPE coderd_agents_up gauge\ncoderd_agents_up 1\n", false, true)
	push(4, "four", "# TYPE y counter\ny 1\n", false, false)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	instance := func(id byte) agent.PushInstance {
		known := f.Instances()
		return known[slices.IndexFunc(known, func(i agent.PushInstance) bool { return i.Instance == instanceID(id) })]
	}
	all, serves := f.Pushers("x")
	require.False(t, serves)
	require.Equal(t, []Pusher{
		{PushInstance: instance(3), ExpiresAt: at(63), Refused: []agent.PushRefusal{{Name: "x", Reason: "type_mismatch", Message: "type counter, but it is served as gauge"}}},
		{PushInstance: instance(2), ExpiresAt: at(2), Series: 1, Type: metrics.Gauge},
		{PushInstance: instance(1), ExpiresAt: at(61), Series: 2, Type: metrics.Gauge},
	}, all)
	all, _ = f.Pushers("coderd_agents_up")
	require.Len(t, all, 2)
	require.Equal(t, "three", all[0].Replica)
	require.Equal(t, 1, all[0].Series)
	require.Zero(t, all[1].Series)
	require.Equal(t, "owned_by_service", all[1].Refused[0].Reason)
	all, _ = f.Pushers("y")
	require.True(t, all[0].Lasting)
	all, _ = f.Pushers("z")
	require.Empty(t, all)

	term.give(1)
	require.NoError(t, f.Follow(t.Context()))
	_, serves = f.Pushers("x")
	require.True(t, serves)
	f.expire(at(61))
	all, _ = f.Pushers("x")
	require.False(t, all[2].Live)
	f.expire(at(65))
	require.NoError(t, f.foldIdle(t.Context(), at(25*3600)))
	all, _ = f.Pushers("y")
	require.Empty(t, all, "what they counted is part of the totals")
}
