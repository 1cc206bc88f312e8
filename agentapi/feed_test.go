package agentapi

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestFeed(t *testing.T) {
	f := newFeed()
	require.True(t, f.idle())
	m := newMetrics(prometheus.NewRegistry())
	one, two := newStatsWatch(nil, 10, m), newStatsWatch([]agent.ID{{2}}, 10, m)
	endOne, endTwo := f.watch(one, nil), f.watch(two, nil)
	require.False(t, f.idle())
	f.tell(reportOf{agent: agent.ID{1}, stats: &agentstatsv1.Stats{}})
	require.Len(t, one.untold, 1)
	require.Empty(t, two.untold)
	endOne()
	require.False(t, f.idle())
	f.tell(reportOf{agent: agent.ID{2}, stats: &agentstatsv1.Stats{}})
	require.Len(t, one.untold, 1)
	require.Len(t, two.untold, 1)
	endTwo()
	require.True(t, f.idle())
}

// TestWatchesAreBounded shows what a watcher that does not read costs.
func TestWatchesAreBounded(t *testing.T) {
	m := newMetrics(prometheus.NewRegistry())
	activity, stats := newActivityWatch(time.Minute, 2, m), newStatsWatch(nil, 2, m)
	now := time.Unix(1000, 0)
	report := func(n byte) {
		r := reportOf{agent: agent.ID{n}, workspace: agent.ID{n}, now: now, reports: 1, stats: &agentstatsv1.Stats{ConnectionCount: 1}}
		activity.report(r)
		stats.report(r)
	}
	for range 3 {
		report(1)
		report(2)
	}
	require.Zero(t, testutil.ToFloat64(m.watchDropped))
	report(3)
	require.Equal(t, 2.0, testutil.ToFloat64(m.watchDropped))
	require.Len(t, stats.take(), 2)
	told, next := activity.take(now)
	require.Len(t, told, 2)
	require.Zero(t, next)

	// Who was told is kept for the interval, and then forgotten.
	now = now.Add(59 * time.Second)
	report(1)
	told, next = activity.take(now)
	require.Empty(t, told)
	require.Equal(t, time.Unix(1060, 0), next)
	now = now.Add(time.Second)
	told, _ = activity.take(now)
	require.Len(t, told, 1)
	require.Len(t, activity.used, 1)
	_, _ = activity.take(now.Add(time.Minute))
	require.Empty(t, activity.used)
}

// TestActivityThatComesLate shows that a use which another replica relays is not
// told after a later one.
func TestActivityThatComesLate(t *testing.T) {
	w := newActivityWatch(time.Minute, 2, newMetrics(prometheus.NewRegistry()))
	now := time.Unix(1000, 0)
	w.use(workspaceUse{agent.ID{1}, now})
	told, _ := w.take(now)
	require.Len(t, told, 1)
	w.use(workspaceUse{agent.ID{1}, now.Add(-time.Second)})
	require.False(t, w.waits())
	w.use(workspaceUse{agent.ID{1}, now})
	require.True(t, w.waits())
}

// neverPushes is told nothing.
type neverPushes struct{ t *testing.T }

func (p neverPushes) Push(context.Context, time.Time, agent.Push) ([]agent.PushRefusal, error) {
	p.t.Error("a push of a stream that was superseded")
	return nil, nil
}

func TestSupersededPushIsNotHandedOver(t *testing.T) {
	instances := newPushInstances()
	first, superseded := instances.enter(agent.Instance{1})
	_, newer := instances.enter(agent.Instance{1})
	defer instances.leave(agent.Instance{1}, newer)
	defer instances.leave(agent.Instance{1}, superseded)
	p := &push{
		server:     &Server{Components: Components{Pushes: neverPushes{t}}, streams: newGate()},
		instance:   first,
		superseded: superseded,
	}
	for range 100 {
		_, err := p.handOver(t.Context())
		require.Equal(t, errSuperseded, err)
	}
}

// BenchmarkFeed is the cost of a report to those who watch.
func BenchmarkFeed(b *testing.B) {
	m := newMetrics(prometheus.NewRegistry())
	for name, watch := range map[string]func(*feed) func(){
		"nobody": func(*feed) func() { return func() {} },
		"stats":  func(f *feed) func() { return f.watch(newStatsWatch(nil, 10_000, m), nil) },
		// As it is watched by the name from one other replica, with activity.
		"another replica": func(f *feed) func() {
			endActivity := f.watch(newActivityWatch(minActivityInterval, 10_000, m), nil)
			endStats := f.watch(newStatsWatch(nil, 10_000, m), nil)
			return func() { endActivity(); endStats() }
		},
	} {
		b.Run(name, func(b *testing.B) {
			f := newFeed()
			defer watch(f)()
			r := reportOf{stats: &agentstatsv1.Stats{ConnectionCount: 1, RxBytes: 1, SessionCounts: map[string]int64{"vscode": 1}}}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				r.agent[0], r.agent[1] = byte(n), byte(n>>8)
				n++
				if !f.idle() {
					f.tell(r)
				}
			}
		})
	}
}
