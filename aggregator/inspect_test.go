package aggregator

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
)

// Who looks for a series gets each of an agent with the report that had it last, whether
// the agent is served, and what is used of its limits.
func TestInspect(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newTest(t, Options{ReportInterval: 30 * time.Second, SeriesTTL: 100 * time.Second})
		start := time.Now()
		_, known := a.Inspect(id(1), "a")
		require.False(t, known)
		a.Open(id(1), identity("one"), agent.Session{Epoch: 1})
		in, known := a.Inspect(id(1), "a")
		require.True(t, known)
		require.Equal(t, Inspection{}, in, "it has not reported")

		a.Report(id(1), 1, start, samples(sample("a", agent.Gauge, 1, "path", `/"x"`), sample("a", agent.Gauge, 1), sample("b", agent.Counter, 1)))
		time.Sleep(30 * time.Second)
		a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 1)))
		in, _ = a.Inspect(id(1), "a")
		require.Equal(t, Inspection{
			First: start, Last: start.Add(30 * time.Second),
			Sends: metrics.Gauge, Sent: true,
			Series: []InspectedSeries{
				{Text: `a{agent_name="one",template_name="tpl",username="user",workspace_name="ws"}`, Last: start.Add(30 * time.Second)},
				{Text: `a{agent_name="one",path="/\"x\"",template_name="tpl",username="user",workspace_name="ws"}`, Last: start},
			},
			Usage: Usage{AgentSeries: 3, AgentBytes: 21, AgentFamilies: 2, OwnerSeries: 3, OwnerBytes: 21, Series: 10, Bytes: 21, Families: 2},
		}, in)
		in, _ = a.Inspect(id(1), "")
		require.Len(t, in.Series, 10, "all, with the stats gauges")
		require.Equal(t, `coderd_agentstats_rx_bytes{agent_name="one",username="user",workspace_name="ws"}`, in.Series[0].Text)

		time.Sleep(100 * time.Second)
		a.expire(time.Now())
		in, _ = a.Inspect(id(1), "a")
		require.Zero(t, in.First, "it has no series")
		require.Equal(t, start.Add(30*time.Second), in.Last)
		require.Empty(t, in.Series)
	})
}

// A hidden agent names the one that hides it. Grouped series name their group.
func TestInspectHiddenAndGrouped(t *testing.T) {
	a := newTest(t, Options{GroupBy: []string{"template_name"}})
	older, newer := identity("one"), identity("one")
	newer.CreatedAt = newer.CreatedAt.Add(time.Second)
	a.Open(id(1), older, agent.Session{Epoch: 1})
	a.Open(id(2), newer, agent.Session{Epoch: 1})
	for n := range byte(2) {
		a.Report(id(n+1), 1, time.Now(), samples(sample("a", agent.Gauge, 1, "x", "y")))
	}
	want := InspectedSeries{
		Text:  `a{agent_name="one",template_name="tpl",username="user",workspace_name="ws",x="y"}`,
		Group: `a{template_name="tpl",x="y"}`,
	}
	in, _ := a.Inspect(id(2), "a")
	require.Zero(t, in.HiddenBy)
	want.Last = in.Last
	require.Equal(t, []InspectedSeries{want}, in.Series)
	in, _ = a.Inspect(id(1), "a")
	require.Equal(t, id(2), in.HiddenBy)
	want.Last, want.Group = in.Last, ""
	require.Equal(t, []InspectedSeries{want}, in.Series)
}

// The types of a family are what each agent sends, also if it is refused.
func TestTypesOf(t *testing.T) {
	p := newPushing(t, Options{})
	_, known := p.TypesOf("a")
	require.False(t, known)
	for n, typ := range []agent.SampleType{agent.Counter, agent.Gauge, agent.Counter} {
		p.Report(id(byte(n)), 1, time.Now(), samples(sample("a", typ, 1)))
	}
	types, known := p.TypesOf("a")
	require.True(t, known)
	require.Equal(t, FamilyTypes{Type: metrics.Counter, Agents: map[metrics.Type]int{metrics.Counter: 2, metrics.Gauge: 1}}, types)
	in, _ := p.Inspect(id(1), "a")
	require.Equal(t, metrics.Gauge, in.Sends)
	require.True(t, in.Sent)
	require.Empty(t, in.Series, "it was refused")

	p.push(map[string]metrics.Type{"a": metrics.Gauge})
	types, _ = p.TypesOf("a")
	require.Equal(t, FamilyTypes{Type: metrics.Gauge, Reserved: true, Agents: map[metrics.Type]int{metrics.Counter: 2, metrics.Gauge: 1}}, types)
	in, _ = p.Inspect(id(0), "a")
	require.Empty(t, in.Series, "it has another type, and the next report drops it")
	types, _ = p.TypesOf("coderd_agentstats_rx_bytes")
	require.Equal(t, FamilyTypes{Type: metrics.Gauge, Documented: true}, types)
}

// A part of a scrape has what the scrape has of these families, agents' and pushed ones,
// passed and grouped ones included.
func TestWriteFamilies(t *testing.T) {
	for _, opts := range []Options{{}, {GroupBy: []string{"agent_name"}}} {
		p := newPushing(t, opts)
		p.push(map[string]metrics.Type{"b": metrics.Gauge, "c": metrics.Counter, "d": metrics.Gauge})
		for n := range byte(3) {
			p.Report(id(n), 1, time.Now(), samples(sample("a", agent.Gauge, float64(n)), sample("b", agent.Gauge, 1)))
		}
		var whole, part, text bytes.Buffer
		require.NoError(t, p.WriteFamilies(&part, p.pushed, func(name string) bool { return name == "a" || name == "b" || name == "c" }))
		require.NoError(t, p.Beside(p.pushed).WriteText(&whole))
		for _, l := range shownLines(whole.String()) {
			if f := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(l, "# HELP "), "# TYPE "))[0]; strings.ContainsAny(f[:1], "abc") && !strings.Contains(f, "gent_scripts") && !strings.HasPrefix(f, "coderd_") {
				text.WriteString(l + "\n")
			}
		}
		require.Equal(t, text.String(), strings.Join(shownLines(part.String()), "\n")+"\n")
		require.Equal(t, 3+4+1, strings.Count(part.String(), "\n")-strings.Count(part.String(), "#"))
		require.Equal(t, []string{"a", "agent_scripts_executed_total", "b"}, p.FamilyNames()[:3])
	}
	p := newPushing(t, Options{})
	p.Report(id(0), 1, time.Now(), samples(sample("a", agent.Gauge, 1)))
	var part bytes.Buffer
	require.NoError(t, p.WriteFamilies(&part, passedFamilies{passed: map[string]bool{"a": true}}, func(string) bool { return true }))
	require.NotContains(t, part.String(), "\na{")
}

// Each reason of a limit names it, and what is used of it.
func TestLimitOf(t *testing.T) {
	a := newTest(t, Options{MaxSeries: 11, MaxSeriesPerOwner: 12, MaxSeriesPerAgent: 13, MaxSeriesBytes: 14, MaxSeriesBytesPerOwner: 15, MaxSeriesBytesPerAgent: 16, MaxFamilies: 17, MaxFamiliesPerAgent: 18})
	u := Usage{Series: 1, OwnerSeries: 2, AgentSeries: 3, Bytes: 4, OwnerBytes: 5, AgentBytes: 6, Families: 7, AgentFamilies: 8}
	seen := make(map[int]bool)
	for _, r := range refusalReasons {
		l, ok := a.LimitOf(r, u)
		require.Equal(t, refusalKind(r) == agent.RefusedLimit, ok, r)
		if !ok {
			continue
		}
		require.Equal(t, l.Used+10, l.Limit, r)
		require.False(t, seen[l.Used], r)
		seen[l.Used] = true
		scope, suffix := ScopeAll, ""
		switch {
		case strings.Contains(string(r), "_agent_"):
			scope, suffix = ScopeAgent, "-per-agent"
		case strings.Contains(string(r), "_owner_"):
			scope, suffix = ScopeOwner, "-per-owner"
		}
		require.Equal(t, scope, l.Scope, r)
		require.Regexp(t, "^--max-(series|series-bytes|families)"+suffix+"$", l.Flag)
	}
	require.Len(t, seen, 8)
}
