package aggregator

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
)

// Of a limit of one agent, or owner, what is used is that of the one that has the most, as
// of a second ago at most.
func TestUsage(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		a, err := New(Options{}, reg)
		require.NoError(t, err)
		usage := func() map[string]float64 {
			synctest.Wait()
			families, err := reg.Gather()
			require.NoError(t, err)
			values := make(map[string]float64)
			for _, f := range families {
				if f.GetName() == "agentstatsd_usage" {
					for _, m := range f.Metric {
						values[m.Label[0].GetValue()] = m.GetGauge().GetValue()
					}
				}
			}
			return values
		}
		report := func(n byte, owner string, names ...string) {
			ident := identity("agent" + string('0'+n))
			ident.Username = owner
			a.Open(id(n), ident, agent.Session{Epoch: 1})
			var all []agent.Sample
			for _, name := range names {
				all = append(all, sample(name, agent.Gauge, 1, "l", name))
			}
			a.Report(id(n), 1, time.Now(), samples(all...))
		}
		report(1, "ada", "aa", "bb")
		report(2, "ada", "aa", "bb")
		report(3, "eve", "aa", "bb", "cc")
		got := usage()
		require.Equal(t, 3.0, got["series_per_agent"])
		require.Equal(t, 4.0, got["series_per_owner"])
		require.Equal(t, 3.0, got["families_per_agent"])
		require.Equal(t, 3.0, got["families"])
		require.Equal(t, got["series_bytes"], got["series_bytes_per_agent"]+got["series_bytes_per_owner"])
		require.Greater(t, got["series_bytes_per_owner"], got["series_bytes_per_agent"])

		a.Remove(id(3))
		require.Equal(t, 3.0, usage()["series_per_agent"], "not counted at each scrape")
		time.Sleep(usageAge)
		require.Equal(t, 2.0, usage()["series_per_agent"])
	})
}

// An agent with a session that reports no more is overdue before its series expire, and
// until it reports or its session ends.
func TestOverdue(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newTest(t, Options{SeriesTTL: 2 * time.Minute})
		overdue := func() int { return a.countOverdue(time.Now()) }
		for n := range byte(3) {
			a.Open(id(n), identity("agent"+string('0'+n)), agent.Session{Epoch: 1})
		}
		time.Sleep(time.Hour)
		require.Zero(t, overdue(), "none has reported")
		a.Report(id(1), 1, time.Now(), samples(sample("aa", agent.Gauge, 1)))
		a.Report(id(2), 1, time.Now(), samples(sample("aa", agent.Gauge, 1)))
		time.Sleep(90 * time.Second)
		require.Zero(t, overdue())
		time.Sleep(time.Nanosecond)
		require.Equal(t, 2, overdue())
		a.Close(id(2), 1, false)
		require.Equal(t, 1, overdue())
		a.Report(id(1), 1, time.Now(), samples(sample("aa", agent.Gauge, 1)))
		require.Zero(t, overdue())
	})
}
