package integration

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestDatabaseAwayAfterStart starts replicas over registrations that are there, takes
// the database away, and kills a replica: the others know its agents' tokens, and let
// them in. At full size it logs how long each step took.
func TestDatabaseAwayAfterStart(t *testing.T) {
	agents, unreachable, after := 100, 100, time.Duration(0)
	if *soak {
		agents, unreachable, after = 3000, 197_000, 30*time.Second
	}
	beside(t)
	r := startReplicas(t, 3, false, "--max-agents", "300000", "--max-registrations-bytes", "2GiB", "--adaptive-intervals=false")
	var targets []string
	for _, s := range r.services {
		targets = append(targets, "--target", s.grpcAddr)
	}
	sim := runSimulation(t, append(targets,
		"--coderd-token-file", r.tokenFile, "--json", "--keep", "--steady", "--metadata-keys", "2",
		"--agents", fmt.Sprint(agents), "--unreachable", fmt.Sprint(unreachable), "--ack-deadline", "60s")...)
	eventually := func(what string, services []*service, family string, want int) {
		t.Helper()
		began := time.Now()
		require.Eventually(t, func() bool { return sumOf(t, services, family) == float64(want) }, 5*time.Minute, 100*time.Millisecond, what)
		t.Logf("%s after %v", what, time.Since(began).Round(100*time.Millisecond))
	}
	eventually("all are registered", r.services, "agentstatsd_agents_registered", 3*(agents+unreachable))
	eventually("all are connected", r.services, "agentstatsd_sessions", agents)
	for _, s := range r.services {
		s.kill()
	}
	began := time.Now()
	var starting sync.WaitGroup
	for _, s := range r.services {
		starting.Go(func() { s.start(t) })
	}
	starting.Wait()
	t.Logf("all are ready %v after their start", time.Since(began).Round(100*time.Millisecond))
	require.EqualValues(t, 3*(agents+unreachable), sumOf(t, r.services, "agentstatsd_agents_registered"))
	time.Sleep(after)
	eventually("all are connected again", r.services, "agentstatsd_sessions", agents)
	killed, left := r.services[1], []*service{r.services[0], r.services[2]}
	require.Positive(t, sumOf(t, []*service{killed}, "agentstatsd_sessions"))

	r.postgres.Stop(t)
	killed.kill()
	eventually("the agents of the killed replica are let in", left, "agentstatsd_sessions", agents)
	for _, s := range left {
		// Its next call of the database may come later.
		require.Eventually(t, func() bool { return status(t, "http://"+s.httpAddr+"/-/ready") == http.StatusServiceUnavailable },
			time.Minute, 10*time.Millisecond, "the database is away")
		require.Zero(t, sumOf(t, left, "agentstatsd_sessions_refused_total"))
	}
	r.postgres.Restart(t)
	for _, s := range left {
		s.waitReady(t)
	}
	require.NoError(t, sim.stop(), "all that was sent is acked")
}
