package intervals

import (
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// Loads are means of half a minute, as shares of their targets.
func TestMeter(t *testing.T) {
	opts := Options{TargetCPU: 0.5, TargetFlush: 0.2, FlushInterval: 4 * time.Second, TargetPendingAge: 8 * time.Second}.withDefaults()
	require.NoError(t, opts.validate())
	processors := float64(runtime.GOMAXPROCS(0))
	m, s := meter{}, sample{at: time.Unix(1000, 0), cpu: time.Hour, flushing: time.Hour}
	m.add(s)
	require.Zero(t, m.load(&opts))
	pass := func(d time.Duration, cpu, flushing float64, oldest time.Duration) agent.Load {
		s.at = s.at.Add(d)
		s.cpu += time.Duration(cpu * processors * float64(d))
		s.flushing += time.Duration(flushing * float64(d))
		s.oldest = oldest
		m.add(s)
		return m.load(&opts)
	}
	near := func(want, got agent.Load) {
		t.Helper()
		require.InDelta(t, want.CPU, got.CPU, 1e-6)
		require.InDelta(t, want.PendingAge, got.PendingAge, 1e-6)
		require.InDelta(t, want.Flush, got.Flush, 1e-6)
	}
	// What waits for less than a flush interval is no load.
	near(agent.Load{CPU: 0.5, Flush: 0.5}, pass(5*time.Second, 0.25, 0.1, 4*time.Second))
	for range 5 {
		pass(5*time.Second, 0.25, 0.1, 6*time.Second)
	}
	near(agent.Load{CPU: 0.5, PendingAge: 0.5 * 5 / 6, Flush: 0.5}, m.load(&opts))
	for range 3 {
		pass(5*time.Second, 1, 0.3, 12*time.Second)
	}
	near(agent.Load{CPU: 1.25, PendingAge: (3*0.5 + 3*2) / 6, Flush: 1}, m.load(&opts))
	for range 6 {
		pass(5*time.Second, 0, 0, 0)
	}
	near(agent.Load{}, m.load(&opts))
	require.Len(t, m.samples, 7)
	require.Zero(t, pass(time.Hour, 1, 1, 0), "nothing is known of the last half minute")
	require.Zero(t, pass(0, 0, 0, 0))
	near(agent.Load{CPU: 2, Flush: 5}, pass(time.Second, 1, 1, 0))
}

func TestOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"highest factor: want 1 to 4, got 0.5":                             {MaxFactor: 0.5},
		"highest factor: want 1 to 4, got 4.5":                             {MaxFactor: 4.5},
		"highest factor: want 1 to 4, got NaN":                             {MaxFactor: math.NaN()},
		"flush interval: want above 0s, got -1s":                           {FlushInterval: -time.Second},
		"target CPU and target flush: want above 0, got -1 and 0.5":        {TargetCPU: -1},
		"target pending age: want above the flush interval of 5s, got 5s":  {TargetPendingAge: 5 * time.Second},
		"target pending age: want above the flush interval of 3s, got -1s": {FlushInterval: 3 * time.Second, TargetPendingAge: -time.Second},
	} {
		require.EqualError(t, o.withDefaults().validate(), want)
	}
	require.NoError(t, Options{FlushInterval: 1}.withDefaults().validate())
}

// The CPU time of this process grows.
func TestProcessCPU(t *testing.T) {
	before := processCPU()
	for n, end := 0, time.Now().Add(time.Minute); processCPU() == before && time.Now().Before(end); n++ {
	}
	require.Greater(t, processCPU(), before)
}
