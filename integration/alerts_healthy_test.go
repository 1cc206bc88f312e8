//go:build soak

package integration

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// healthyFor is how long the demo is watched.
var healthyFor = flag.Duration("healthy-for", time.Hour, "how long TestHealthyDemoIsSilent watches the demo")

// A healthy service wakes nobody: the demo is scraped, and the rules as they are evaluated,
// for an hour. No alert fires, and no objective has an error after the first minutes. It
// runs beside all other tests.
func TestHealthyDemoIsSilent(t *testing.T) {
	t.Parallel()
	s := startDemo(t)
	m := monitor(t, scaledRules(t, 1), 15*time.Second, s.httpAddr)
	seen := make(map[string]int) // alert and state, how often
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for end := time.After(*healthyFor); ; {
		select {
		case <-tick.C:
			for name, states := range m.active() {
				for _, a := range states {
					seen[fmt.Sprintf("%s %v %s", name, a.state, a.labels)]++
				}
			}
			require.Empty(t, m.fired(t), "%v", seen)
			continue
		case <-end:
		}
		break
	}
	now := time.Now()
	whole := fmt.Sprintf("%ds", int(healthyFor.Seconds()))
	scrapes := m.query(t, "sum(count_over_time(up["+whole+"]))", now)
	require.Len(t, scrapes, 1)
	require.Greater(t, scrapes[0].F, healthyFor.Seconds()/15-4)
	t.Logf("%v scrapes of %v, pending now and then: %v", scrapes[0].F, *healthyFor, seen)
	objectives := m.query(t, "max by (slo) (max_over_time(agentstatsd:slo_errors:ratio["+whole+"]))", now)
	require.Len(t, objectives, 3, "all are measured")
	for _, s := range objectives {
		t.Logf("%s: worst %v", s.Metric, s.F)
	}
	for _, s := range m.query(t, "avg_over_time(agentstatsd:slo_errors:ratio["+whole+"]) / on (slo) group_left () agentstatsd:slo_budget:ratio", now) {
		t.Logf("%s: %v of the budget", s.Metric, s.F)
		require.Less(t, s.F, 1.0, "%s", s.Metric)
	}
	require.Empty(t, m.fired(t))
}
