package targets

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/internal/edgetest"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
	"github.com/coder/agentstatsd/scrape"
)

const agentLabels = `agent_name="main",username="ada",workspace_name="ws1"`

// stockCoderd is what a coderd with one agent serves.
var stockCoderd = fmt.Sprintf(`# TYPE process_start_time_seconds gauge
process_start_time_seconds 100
# TYPE coderd_test_total counter
coderd_test_total 3
# TYPE coderd_agents_up gauge
coderd_agents_up{template_name="docker",username="ada",workspace_name="ws1"} 1
# TYPE coderd_agentstats_rx_bytes gauge
coderd_agentstats_rx_bytes{%[1]s} 7
# HELP forwarded_gauge %[2]s
# TYPE forwarded_gauge gauge
forwarded_gauge{%[1]s} 9
# TYPE coderd_agentapi_metadata_flushed_total counter
coderd_agentapi_metadata_flushed_total 5
`, agentLabels, forwardedHelp)

// scraped returns the lines of these families in the whole scrape of the service, and
// checks that each family is there once.
func (s *setup) scraped(names ...string) (lines []string) {
	if s.handler == nil {
		var err error
		s.handler, err = scrape.NewHandler(s.service.Registry, scrape.Options{Hidden: s.pushed.Passed, Log: slog.New(slog.DiscardHandler)}, s.service.Series.Beside(s.pushed))
		require.NoError(s, err)
	}
	answer := httptest.NewRecorder()
	s.handler.ServeHTTP(answer, httptest.NewRequestWithContext(s.Context(), http.MethodGet, "/metrics", nil))
	types := make(map[string]bool)
	for line := range strings.Lines(answer.Body.String()) {
		fields := strings.Fields(line)
		if fields[0] == "#" && fields[1] == "TYPE" {
			require.False(s, types[fields[2]], line)
			types[fields[2]] = true
		}
		name, _, _ := strings.Cut(fields[0], "{")
		if slices.Contains(names, name) {
			lines = append(lines, name+" "+fields[len(fields)-1])
		}
	}
	return lines
}

// Whichever legs of the bridge run, each family has one source, and none is worse than
// that of coderd's own scrape.
func TestLegs(t *testing.T) {
	names := []string{"coderd_test_total", "coderd_agents_up", "coderd_agentstats_rx_bytes", "forwarded_gauge", "coderd_agentapi_metadata_flushed_total"}
	ofCoderd := []string{
		"coderd_agentapi_metadata_flushed_total 5", "coderd_agents_up 1", "coderd_agentstats_rx_bytes 7", "coderd_test_total 3", "forwarded_gauge 9",
	}
	const flushed = "coderd_agentapi_metadata_flushed_total 0"
	for legs, want := range map[string][]string{
		"none":                             {flushed},
		"registrations":                    {flushed, "coderd_agents_up 0"},
		"metrics":                          ofCoderd,
		"registrations, metrics":           ofCoderd,
		"agents":                           {flushed, "coderd_agents_up 1", "coderd_agentstats_rx_bytes 8", "forwarded_gauge 10"},
		"metrics, agents":                  {flushed, "coderd_agents_up 1", "coderd_agentstats_rx_bytes 8", "coderd_test_total 3", "forwarded_gauge 10"},
		"registrations, metrics, agents":   {flushed, "coderd_agents_up 1", "coderd_agentstats_rx_bytes 8", "coderd_test_total 3", "forwarded_gauge 10"},
		"registrations, agents":            {flushed, "coderd_agents_up 1", "coderd_agentstats_rx_bytes 8", "forwarded_gauge 10"},
		"metrics, and agents by their own": ofCoderd,
	} {
		t.Run(legs, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newSetup(t)
				s.serve("coderd-0:2112", textHandler(stockCoderd))
				if strings.Contains(legs, "registrations") || strings.Contains(legs, "agents") {
					s.service.Register(1) // as the relay of an agent does without the leg of registrations
				}
				if strings.Contains(legs, "agents") {
					agent := s.service.Connect(edgetest.Session{Agent: 1})
					report := edgetest.Gauge("forwarded_gauge", 10)
					report.RxBytes = 8
					agent.RequireDurable(agent.SendNext(edgetest.Stats(report)))
				}
				if strings.Contains(legs, "metrics") {
					s.start(Options{URLs: []string{first}, PassThrough: !strings.HasSuffix(legs, ", agents")})
				}
				time.Sleep(time.Second)
				synctest.Wait()
				require.ElementsMatch(t, want, s.scraped(names...))
			})
		})
	}
}

// When agents are relayed, or not any more, their families change their source at once.
func TestLegsChange(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		s.serve("coderd-0:2112", textHandler(stockCoderd))
		s.service.Register(1)
		s.service.Request(1, edgetest.Stats(&pb.Stats{RxBytes: 8}))
		names := []string{"coderd_agentstats_rx_bytes", "forwarded_gauge", "coderd_agentapi_metadata_flushed_total", "coderd_test_total"}
		for _, passThrough := range []bool{true, false, true} {
			b := s.start(Options{URLs: []string{first}, PassThrough: passThrough})
			time.Sleep(time.Second)
			if passThrough {
				require.Equal(t, 3+1, len(s.scraped(names...)))
				require.Contains(t, s.scraped(names...), "coderd_agentstats_rx_bytes 7")
			} else {
				require.ElementsMatch(t, []string{"coderd_agentstats_rx_bytes 8", "coderd_agentapi_metadata_flushed_total 0", "coderd_test_total 3"}, s.scraped(names...))
			}
			b.stop()
			time.Sleep(interval)
		}
	})
}
