package integration

import (
	"math"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
)

// agentLabels distinguish the samples of agents.
type agentLabels struct{ username, workspace, agent string }

// received is what the service says of the bytes of one agent, in one scrape.
type received struct {
	// gauge is coderd_agentstats_rx_bytes: the sum of what came in the window.
	gauge float64
	// total is what the simulated agent says to have received in all its life,
	// in the report that the gauge was last set by.
	total float64
}

// maxReportBytes is the most that a simulated agent receives in a report.
const maxReportBytes = 4 << 20

// scrapeBytes returns the bytes of all agents.
func scrapeBytes(t *testing.T, s *service) map[agentLabels]received {
	t.Helper()
	_, body := s.scrape(t, "/metrics", "Accept", acceptText)
	found := make(map[agentLabels]received)
	eachSample(t, body, acceptText, func(l labels.Labels, value float64) {
		of := agentLabels{l.Get("username"), l.Get("workspace_name"), l.Get("agent_name")}
		r := found[of]
		switch l.Get(model.MetricNameLabel) {
		case "coderd_agentstats_rx_bytes":
			r.gauge = value
		case "agent_sim_rx_bytes_total":
			r.total = value
		default:
			return
		}
		found[of] = r
	})
	return found
}

// requireBytesOnce compares the gauges with what the agents received since a scrape.
// That scrape was before a life of the service that is shorter than their window. A
// report that arrived between that scrape and the kill, or whose ack did, shifts an
// agent by a report, on a slow machine by two. Those are less than half of them, even while
// the machine does much else. None counts twice.
func requireBytesOnce(t *testing.T, before, after map[agentLabels]received) {
	t.Helper()
	exact := 0
	for of, b := range before {
		a, back := after[of]
		if !back {
			continue // it waited to reconnect when the simulation ended
		}
		want := a.total - b.total
		if got := a.gauge; got == want {
			exact++
		} else {
			require.LessOrEqual(t, math.Abs(got-want), 2*float64(maxReportBytes), "%v: gauge %v, received %v", of, got, want)
		}
	}
	require.GreaterOrEqual(t, exact, len(before)/2, "agents whose bytes count exactly once")
}
