package aggregator

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func state(family string, v float64, labelPairs ...string) agent.Series {
	s := sample(family, agent.Gauge, v, labelPairs...)
	return agent.Series{Family: s.Name, Labels: s.Labels, Value: s.Value}
}

func agentKey(n byte) agent.SeriesKey { return agent.SeriesKey{ID: id(n)} }

// stateText returns the lines of the states.
func stateText(t testing.TB, a *Aggregator) string {
	t.Helper()
	var out strings.Builder
	for _, l := range shownLines(text(t, a)) {
		if strings.HasPrefix(l, "coderd_agents_") {
			out.WriteString(l + "\n")
		}
	}
	return out.String()
}

func TestSetState(t *testing.T) {
	for _, groupBy := range [][]string{nil, {"username"}} {
		reg := prometheus.NewPedanticRegistry()
		a, err := New(Options{GroupBy: groupBy}, reg)
		require.NoError(t, err)
		require.Empty(t, stateText(t, a))
		require.Contains(t, text(t, a), "# HELP coderd_agents_up The number of active agents per workspace.\n# TYPE coderd_agents_up gauge\n")

		err = a.SetState(agentKey(1), []agent.Series{
			state("coderd_agents_connections", 1, "agent_name", "main", "status", "connecting", "username", "ann"),
			state("coderd_agents_apps", 2, "agent_name", "main", "app_name", "a\"\n\xff", "username", ""),
			state("coderd_agents_apps", 3, "agent_name", "main", "app_name", "a\"\n\ufffd"),
			state("coderd_agentstats_rx_bytes", 1, "agent_name", "main"),
		})
		require.ErrorContains(t, err, `family "coderd_agentstats_rx_bytes" is not one of [coderd_agents_apps `)
		require.NoError(t, a.SetState(agentKey(2), []agent.Series{state("coderd_agents_up", 0)}))
		require.Equal(t, `coderd_agents_apps{agent_name="main",app_name="a\"\n`+"\ufffd"+`"} 2
coderd_agents_connections{agent_name="main",status="connecting",username="ann"} 1
coderd_agents_up 0
`, stateText(t, a), "grouping has no part in it")
		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP agentstatsd_series Series of agents in memory, stats gauges, states and groups included.
# TYPE agentstatsd_series gauge
agentstatsd_series 3
`), "agentstatsd_series"))

		a.SetState(agentKey(1), []agent.Series{
			state("coderd_agents_connections", 1, "agent_name", "main", "status", "connected", "username", "ann"),
		})
		a.SetState(agentKey(2), []agent.Series{state("coderd_agents_up", 1)})
		require.Equal(t, `coderd_agents_connections{agent_name="main",status="connected",username="ann"} 1
coderd_agents_up 1
`, stateText(t, a))
		a.SetState(agentKey(1), nil)
		a.SetState(agentKey(2), nil)
		require.Empty(t, stateText(t, a))
		require.Zero(t, a.states.Len())
		require.Zero(t, a.series.Load())
	}
}

func TestStatesOfTwoKeys(t *testing.T) {
	a := newTest(t, Options{})
	up := func(v float64) []agent.Series { return []agent.Series{state("coderd_agents_up", v)} }
	a.SetState(agentKey(1), up(1))
	a.SetState(agentKey(2), up(2))
	a.SetState(agentKey(3), up(3))
	require.Equal(t, "coderd_agents_up 1\n", stateText(t, a), "the first stays")
	a.SetState(agentKey(2), up(20))
	require.Equal(t, "coderd_agents_up 1\n", stateText(t, a))
	a.SetState(agentKey(1), nil)
	require.Equal(t, "coderd_agents_up 20\n", stateText(t, a), "the next one, with its newest value")
	a.SetState(agentKey(3), nil)
	require.Equal(t, "coderd_agents_up 20\n", stateText(t, a))
	a.SetState(agentKey(2), nil)
	require.Empty(t, stateText(t, a))
}

// What agents forward may fill the limit; the states do not ask for it.
func TestStatesAreNotRefused(t *testing.T) {
	a := newTest(t, Options{MaxSeries: 9})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	require.Len(t, refusals(a.Report(id(1), 1, time.Now(), samples(sample("x", agent.Gauge, 1), sample("y", agent.Gauge, 1), sample("z", agent.Gauge, 1)))), 1)
	a.SetState(agentKey(1), []agent.Series{state("coderd_agents_up", 1), state("coderd_agents_up", 1, "username", "ann")})
	require.Equal(t, "coderd_agents_up 1\ncoderd_agents_up{username=\"ann\"} 1\n", stateText(t, a))
	a.Remove(id(1))
	require.EqualValues(t, 2, a.series.Load(), "they are not the agent's to lose")
}

// interrupted calls between after the first write to it.
type interrupted struct {
	bytes.Buffer
	between func()
}

func (w *interrupted) Write(p []byte) (int, error) {
	if w.between != nil {
		between := w.between
		w.between = nil
		between()
	}
	return w.Buffer.Write(p)
}

// Whatever changes while a scrape is under way: a series that was there when it
// began is in it once, as it was.
func TestScrapeIsOfOneMoment(t *testing.T) {
	const up, forwarded = "coderd_agents_up", "zzz"
	for _, groupBy := range [][]string{nil, {"template_name", "agent_name"}} {
		for name, write := range map[string]func(*Aggregator, io.Writer) error{textType: (*Aggregator).WriteText, protoType: (*Aggregator).WriteProtobuf} {
			a := newTest(t, Options{GroupBy: groupBy, MaxSeriesPerAgent: 20_000, MaxSeriesBytesPerAgent: 10 << 20})
			filler := samples()
			for i := range 5000 {
				filler.samples = append(filler.samples, sample("aaa", agent.Gauge, 1, "n", fmt.Sprint(i), "long", strings.Repeat("x", 100)))
			}
			a.Open(id(1), identity("filler"), agent.Session{Epoch: 1})
			a.Report(id(1), 1, time.Now(), filler)
			a.Open(id(2), identity("a"), agent.Session{Epoch: 1})
			a.Report(id(2), 1, time.Now(), samples(sample(forwarded, agent.Gauge, 7)))
			set := func(version string) {
				a.SetState(agentKey(2), []agent.Series{state(up, 1, "template_version", version)})
			}
			rename := func(to string) {
				a.Relabel(id(2), identity(to))
				require.NoError(t, a.WriteText(io.Discard)) // which brings groups up to date
			}
			set("1")
			// Each of the scrapes shows what was there when it began, the innermost
			// the newest.
			var want, got []string
			var nested func(depth int)
			nested = func(depth int) {
				w := &interrupted{between: func() {
					if depth == 3 {
						return
					}
					set(fmt.Sprint(depth + 2))
					rename(string(rune('b' + depth)))
					nested(depth + 1)
				}}
				want = append(want, fmt.Sprintf("%s %c", fmt.Sprint(depth+1), 'a'+depth))
				require.NoError(t, write(a, w))
				s, err := parsePrometheus(w.Bytes(), name)
				require.NoError(t, err)
				var of [2][]string
				for series := range s.values {
					if l, ok := strings.CutPrefix(series, `{__name__="`+up+`", template_version="`); ok {
						of[0] = append(of[0], strings.TrimSuffix(l, `"}`))
					}
					if strings.Contains(series, `"`+forwarded+`"`) {
						_, l, _ := strings.Cut(series, `agent_name="`)
						of[1] = append(of[1], l[:1])
					}
				}
				got = append(got, strings.Join(of[0], "+")+" "+strings.Join(of[1], "+"))
			}
			nested(0)
			slices.Sort(got)
			require.Equal(t, want, got, "%s by %v", name, groupBy)
			a.SetState(agentKey(2), nil)
			a.Remove(id(2))
			require.NotContains(t, text(t, a), forwarded+"{")
			require.NotContains(t, text(t, a), up+"{")
		}
	}
}

// A scrape shows of a key the states from before a change, or those from after
// it, never of both and never one twice.
func TestScrapeDuringChangesOfState(t *testing.T) {
	a := newTest(t, Options{})
	const keys, apps = 20, 5
	set := func(key, round int) {
		// The app names go round among the keys: each label set has had many.
		series := make([]agent.Series, apps)
		for i := range series {
			series[i] = state("coderd_agents_apps", float64(round), "agent_name", fmt.Sprint((key+round)%keys), "app_name", fmt.Sprint(i), "health", fmt.Sprint(round%3))
		}
		a.SetState(agentKey(byte(key)), series)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 2 {
		wg.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				for key := w; key < keys; key += 2 {
					set(key, round)
				}
			}
		})
	}
	for range 200 {
		seen := make(map[string]bool)
		for _, l := range strings.Split(stateText(t, a), "\n") {
			labels, _, _ := strings.Cut(l, "} ")
			require.False(t, labels != "" && seen[labels], l)
			seen[labels] = true
		}
	}
	close(stop)
	wg.Wait()
	for key := range keys {
		set(key, 0)
	}
	require.Equal(t, keys*apps, a.states.Len())
}

// A scrape that has begun does not see half of a change: it has what is gone,
// and lacks what is new.
func TestChangeOfStateAfterScrapeBegan(t *testing.T) {
	a := newTest(t, Options{})
	before := []agent.Series{state("coderd_agents_connections", 1, "status", "connecting"), state("coderd_agents_up", 0)}
	after := []agent.Series{state("coderd_agents_connections", 1, "status", "connected"), state("coderd_agents_up", 1)}
	a.SetState(agentKey(1), before)
	var w changing
	// More than a chunk of forwarded series come first: the change falls
	// between two writes of one scrape.
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	r := samples()
	for i := range 900 {
		r.samples = append(r.samples, sample("a", agent.Gauge, 1, "x", strings.Repeat("x", 300)+fmt.Sprint(i)))
	}
	a.Report(id(1), 1, time.Now(), r)
	w.change = func() { a.SetState(agentKey(1), after) }
	require.NoError(t, a.WriteText(&w))
	require.Nil(t, w.change, "the change was made during the scrape")
	require.Contains(t, w.String(), `status="connecting"`)
	require.NotContains(t, w.String(), `status="connected"`)
	require.Equal(t, "coderd_agents_connections{status=\"connected\"} 1\ncoderd_agents_up 1\n", stateText(t, a))
}

// changing makes a change at the first write.
type changing struct {
	bytes.Buffer
	change func()
}

func (c *changing) Write(p []byte) (int, error) {
	if c.change != nil {
		c.change()
		c.change = nil
	}
	return c.Buffer.Write(p)
}

// What a workspace is made of is served in both formats if it is asked for, and else refused.
func TestWorkspaceInfo(t *testing.T) {
	info := []agent.Series{state("agentstatsd_workspace_info", 1, "template_version", "v1", "username", "ann", "workspace_name", "ws")}
	a, err := New(Options{}, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	require.ErrorContains(t, a.SetState(agentKey(1), info), `family "agentstatsd_workspace_info" is not one of [coderd_agents_apps `)
	require.NotContains(t, text(t, a), "workspace_info")

	a, err = New(Options{WorkspaceInfo: true}, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	require.NoError(t, a.SetState(agentKey(1), info))
	require.Contains(t, text(t, a), "# TYPE agentstatsd_workspace_info gauge\n"+`agentstatsd_workspace_info{template_version="v1",username="ann",workspace_name="ws"} 1`+"\n")
	require.Contains(t, string(protobuf(t, a)), "agentstatsd_workspace_info")
	require.NoError(t, a.SetState(agentKey(1), nil))
	require.NotContains(t, text(t, a), "agentstatsd_workspace_info{")
}
