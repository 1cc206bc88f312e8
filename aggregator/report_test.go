package aggregator

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

func TestRefusals(t *testing.T) {
	long := strings.Repeat("x", 2000)
	manyLabels := func(n, size int) agent.Sample {
		s := sample("a", agent.Gauge, 1)
		for i := range n {
			s.Labels = append(s.Labels, agent.Label{Name: "l" + strings.Repeat("x", i), Value: strings.Repeat("v", size)})
		}
		return s
	}
	for _, c := range []struct {
		sample  agent.Sample
		reason  metrics.Reason
		kind    agent.RefusalKind
		message string
	}{
		{sample("a b", agent.Gauge, 1), metrics.ReasonInvalidName, agent.RefusedInvalid,
			`sample name "a b" is not like [a-zA-Z_:][a-zA-Z0-9_:]*`},
		{sample(long, agent.Gauge, 1), metrics.ReasonNameTooLong, agent.RefusedInvalid,
			"sample name of 2000 bytes exceeds 200 bytes"},
		{sample("coderd_agentstats_rx_bytes", agent.Gauge, 1), metrics.ReasonReservedName, agent.RefusedNotAllowed,
			"family coderd_agentstats_rx_bytes is not for agents to send"},
		{sample("a", agent.Gauge, 1, "x-y", "v"), metrics.ReasonInvalidLabelName, agent.RefusedInvalid,
			`label name "x-y" of a is not like [a-zA-Z_][a-zA-Z0-9_]*`},
		{sample("a", agent.Gauge, 1, long, "v"), metrics.ReasonLabelNameTooLong, agent.RefusedInvalid,
			"label name of 2000 bytes of a exceeds 128 bytes"},
		{sample("a", agent.Gauge, 1, "username", "root"), metrics.ReasonReservedLabel, agent.RefusedNotAllowed,
			"label username of a is not for agents to send"},
		{sample("a", agent.Gauge, 1, "x", "1", "b", "2", "x", "3"), metrics.ReasonDuplicateLabel, agent.RefusedInvalid,
			"label x of a is there twice"},
		{sample("a", agent.Gauge, 1, "x", "\xff"), metrics.ReasonInvalidLabelValue, agent.RefusedInvalid,
			"value of label x of a is not UTF-8"},
		{sample("a", agent.Gauge, 1, "x", long), metrics.ReasonLabelValueTooLong, agent.RefusedInvalid,
			"value of 2000 bytes of label x of a exceeds 1024 bytes"},
		{manyLabels(33, 1), metrics.ReasonTooManyLabels, agent.RefusedInvalid,
			"33 labels of a exceed 32"},
		{manyLabels(5, 1000), metrics.ReasonLabelsTooLong, agent.RefusedInvalid,
			"labels of a exceed 4096 bytes together"},
		{sample("a", 3, 1), reasonInvalidType, agent.RefusedInvalid,
			"the type of a is none of the contract's"},
		{sample("a", agent.Counter, -1), reasonInvalidValue, agent.RefusedInvalid,
			"value -1 of counter a is negative or not finite"},
		{sample("a", agent.Counter, math.Inf(1)), reasonInvalidValue, agent.RefusedInvalid,
			"value +Inf of counter a is negative or not finite"},
		{sample("a", agent.Counter, math.NaN()), reasonInvalidValue, agent.RefusedInvalid,
			"value NaN of counter a is negative or not finite"},
		{sample("agent_scripts_executed_total", agent.Gauge, 1), ReasonWrongType, agent.RefusedInvalid,
			"type gauge of agent_scripts_executed_total is not that of the family"},
		{sample("coderd_agentstats_startup_script_seconds", agent.Untyped, 1), ReasonWrongType, agent.RefusedInvalid,
			"type untyped of coderd_agentstats_startup_script_seconds is not that of the family"},
		{sample("dup", agent.Counter, 1, "x", ""), reasonDuplicateSeries, agent.RefusedInvalid,
			"dup is there twice with the same labels"},
	} {
		t.Run(string(c.reason), func(t *testing.T) {
			a := newTest(t, Options{})
			a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
			r := samples(sample("first", agent.Gauge, 1), sample("dup", agent.Gauge, 1), c.sample, sample("last", agent.Gauge, 1))
			for range 2 {
				got, _ := a.Report(id(1), 1, time.Now(), r)
				require.Empty(t, cmp.Diff([]agent.Refusal{{
					Kind: c.kind, Reason: string(c.reason), Message: c.message, Count: 1,
					Names: []string{c.sample.Name[:min(200, len(c.sample.Name))]},
				}}, got))
				require.Equal(t, 3, seriesOf(t, a, "template_name"))
			}
			require.InDelta(t, 2, testutil.ToFloat64(a.metrics.refused.WithLabelValues(string(c.reason))), 0)
			require.InDelta(t, 6, testutil.ToFloat64(a.metrics.samples), 0)
			require.Equal(t, alwaysFamilies+3, len(a.families.byName), "nothing is left of what was refused")
		})
	}
}

func TestRefusedStats(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	good := agent.Stats{RxBytes: 1, TxBytes: 2, ConnectionCount: 3, MedianLatencyMS: 4, Sessions: agent.Sessions{VSCode: 1, JetBrains: 1, ReconnectingPTY: 1, SSH: 1}}
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), &report{stats: good})))
	require.Equal(t, 8, seriesOf(t, a, "main"))
	bad := agent.Stats{
		RxBytes: -5, TxBytes: 1 << 60, ConnectionCount: -1, MedianLatencyMS: math.NaN(),
		Sessions: agent.Sessions{VSCode: -1, JetBrains: 1 << 40, ReconnectingPTY: 1, SSH: math.MinInt64},
	}
	require.Empty(t, cmp.Diff([]agent.Refusal{{
		Kind: agent.RefusedInvalid, Reason: "invalid_stats", Message: "rx_bytes of -5 is negative", Count: 7,
		Names: []string{
			"rx_bytes", "tx_bytes", "connection_count", "connection_median_latency_ms",
			"session_count_vscode", "session_count_jetbrains", "session_count_ssh",
		},
	}}, refusals(a.Report(id(1), 1, time.Now(), &report{stats: bad}))))
	got := shownLines(text(t, a))
	got = slices.DeleteFunc(got, func(l string) bool { return l[0] == '#' })
	require.Equal(t, []string{
		`coderd_agentstats_rx_bytes{agent_name="main",username="user",workspace_name="ws"} 1`,
		`coderd_agentstats_session_count_reconnecting_pty{agent_name="main",username="user",workspace_name="ws"} 1`,
		`coderd_agentstats_tx_bytes{agent_name="main",username="user",workspace_name="ws"} 2`,
	}, got)
}

// Each app has its sessions, as long as there are any, and never for want of room
// none.
func TestSessionsByApp(t *testing.T) {
	a := newTest(t, Options{MaxSeries: 1})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	for _, c := range []struct {
		counts agent.AppCounts
		want   []string
	}{
		{agent.AppCounts{agent.AppSSH: 2, agent.AppUnknown: 1}, []string{"unknown unknown 1", "ssh ssh 2"}},
		{agent.AppCounts{agent.AppSSH: 3, agent.AppVSCode: 4}, []string{"ssh ssh 3", "vscode vscode 4"}},
		{agent.AppCounts{len(agent.SessionApps) - 1: 5, agent.AppSSH: agent.MaxReportedCount + 1, agent.AppVSCode: -1}, []string{"zed ssh 5"}},
		{agent.AppCounts{}, nil},
	} {
		require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), &report{stats: agent.Stats{Apps: c.counts}})))
		s, err := scrapeBoth(a)
		require.NoError(t, err)
		got := make(map[string]uint64)
		for series, v := range s.values {
			if strings.Contains(series, `"coderd_agentstats_session_count"`) {
				got[series] = v
			}
		}
		require.Len(t, got, len(c.want))
		for _, want := range c.want {
			f := strings.Fields(want)
			series := `{__name__="coderd_agentstats_session_count", agent_name="main", app_name="` + f[0] + `", family="` + f[1] + `", username="user", workspace_name="ws"}`
			require.Contains(t, got, series)
			require.Equal(t, f[2], fmt.Sprint(value(s, series)))
		}
	}
	a.Remove(id(1))
	require.Zero(t, a.series.Load())
}

func TestLatencyIsBounded(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	for ms, refused := range map[float64]int{
		agent.MaxLatencyMS: 0, agent.MaxLatencyMS + 1: 1, math.MaxFloat64: 1, math.Inf(1): 1, math.NaN(): 1, math.Inf(-1): 0, -0.001: 0,
	} {
		require.Len(t, refusals(a.Report(id(1), 1, time.Now(), &report{stats: agent.Stats{MedianLatencyMS: ms}})), refused, "%v ms", ms)
	}
}

// However often an agent reports the most that it may, the sum of a window is
// never less than it was.
func TestWindowDoesNotOverflow(t *testing.T) {
	a := newTest(t, Options{})
	now := time.Now()
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	most := &report{stats: agent.Stats{RxBytes: agent.MaxReportedBytes, TxBytes: agent.MaxReportedBytes}}
	for i := range 10_000 {
		require.Empty(t, refusals(a.Report(id(1), 1, now.Add(time.Duration(i)*5*time.Millisecond), most)))
	}
	s, err := scrapeBoth(a)
	require.NoError(t, err)
	for _, name := range []string{"rx_bytes", "tx_bytes"} {
		require.InEpsilon(t, float64(math.MaxInt64), value(s, `{__name__="coderd_agentstats_`+name+`", agent_name="main", username="user", workspace_name="ws"}`), 1e-9)
	}
}

// However much is refused, the answer stays small.
func TestRefusalsAreBounded(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	r := samples()
	for range 5000 {
		r.samples = append(r.samples, sample(strings.Repeat("é", 500), agent.Gauge, 1), sample("up", agent.Gauge, 1))
	}
	got, _ := a.Report(id(1), 1, time.Now(), r)
	require.Len(t, got, 2)
	for _, f := range got {
		require.Equal(t, 5000, f.Count)
		require.Len(t, f.Names, agent.MaxRefusalNames)
		for _, n := range f.Names {
			require.LessOrEqual(t, len(n), metrics.MaxNameBytes)
		}
		require.Less(t, len(f.Message), 1000)
	}
}

func TestSeriesPerAgentLimit(t *testing.T) {
	a := newTest(t, Options{MaxSeriesPerAgent: 2})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	r := samples(sample("a", agent.Gauge, 1), sample("b", agent.Gauge, 1), sample("c", agent.Gauge, 1), sample("d", agent.Gauge, 1))
	for range 2 {
		require.Empty(t, cmp.Diff([]agent.Refusal{{
			Kind: agent.RefusedLimit, Reason: "too_many_agent_series", Message: "c would exceed the agent's 2 series (--max-series-per-agent), its report has 4",
			Names: []string{"c", "d"}, Count: 2,
		}}, refusals(a.Report(id(1), 1, time.Now(), r))))
	}
	// Another agent's series of that name make no difference.
	a.Open(id(2), identity("other"), agent.Session{Epoch: 1})
	require.Empty(t, refusals(a.Report(id(2), 1, time.Now(), samples(sample("c", agent.Gauge, 1), sample("d", agent.Gauge, 1)))))
	require.Len(t, refusals(a.Report(id(1), 1, time.Now(), r)), 1)
	require.Equal(t, 4, seriesOf(t, a, "template_name"))
	// What is gone from the report makes room.
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), samples(sample("c", agent.Gauge, 1)))))
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 1), sample("d", agent.Gauge, 1)))))
	require.Equal(t, 4, seriesOf(t, a, "template_name"))
}

// A report is all that the agent has, so it is stored, whatever was there before.
// Series that it does not have stay for the TTL, as far as there is room.
func TestReportReplacesAllSeries(t *testing.T) {
	for _, opts := range []Options{
		{}, {GroupBy: []string{"username"}}, {MaxSeriesPerOwner: 1000}, {MaxSeries: 1100, MaxSeriesPerOwner: 1100}, {MaxFamiliesPerAgent: 1000, MaxFamilies: 1000},
		{MaxSeriesBytesPerAgent: 1000 * 11}, {MaxSeriesBytesPerOwner: 1000 * 11}, {MaxSeriesBytes: 1000 * 11, MaxSeriesBytesPerOwner: 1000 * 11},
	} {
		a := newTest(t, opts)
		a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
		each := func(name string, n int) *report {
			r := samples()
			for i := range n {
				s := sample(fmt.Sprintf("%s%03d", name, i), agent.Gauge, 1)
				if opts.MaxFamilies == 0 {
					s = sample(name, agent.Gauge, 1, "i", fmt.Sprintf("%03d", i))
				}
				r.samples = append(r.samples, s)
			}
			return r
		}
		if opts.MaxSeriesBytes+opts.MaxSeriesBytesPerOwner+opts.MaxSeriesBytesPerAgent > 0 {
			opts.MaxSeriesBytes = 0
		}
		for round := range 3 {
			for _, name := range []string{"a", "b"} {
				require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), each(name, 1000))), "%+v, round %d", opts, round)
			}
		}
		_, err := scrapeBoth(a)
		require.NoError(t, err)
	}
}

func TestSeriesLimit(t *testing.T) {
	a := newTest(t, Options{MaxSeries: 17, MaxSeriesPerOwner: 100})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	a.Open(id(2), identity("other"), agent.Session{Epoch: 1})
	r := samples(sample("a", agent.Gauge, 1), sample("b", agent.Gauge, 1))
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), r))) // 7 stats gauges and 2
	require.Empty(t, cmp.Diff([]agent.Refusal{{
		Kind: agent.RefusedLimit, Reason: "too_many_series", Message: "the limit of 17 series of all agents is reached (--max-series)", Count: 1,
		Names: []string{"b"},
	}}, refusals(a.Report(id(2), 1, time.Now(), r))))
	require.EqualValues(t, 17, a.series.Load())
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), r)), "known series go on")
	a.Open(id(3), identity("third"), agent.Session{Epoch: 1})
	require.Len(t, refusals(a.Report(id(3), 1, time.Now(), r)), 1)
	require.Equal(t, 7, seriesOf(t, a, "third"), "what the service computes is not refused")
	a.Remove(id(3))
	a.Remove(id(1))
	require.EqualValues(t, 8, a.series.Load())
	require.Empty(t, refusals(a.Report(id(2), 1, time.Now(), r)))
}

func TestFamilyLimit(t *testing.T) {
	a := newTest(t, Options{MaxFamilies: 500, MaxFamiliesPerAgent: 1000})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	r := samples(sample("agent_scripts_executed_total", agent.Counter, 1))
	for i := range 503 {
		r.samples = append(r.samples, sample(fmt.Sprintf("f%d", i), agent.Gauge, 1))
	}
	got, _ := a.Report(id(1), 1, time.Now(), r)
	require.Len(t, got, 1)
	require.Equal(t, "too_many_families", got[0].Reason)
	require.Equal(t, 3, got[0].Count, "the documented families do not count")
	require.Equal(t, 500+alwaysFamilies, a.families.count())
	a.Remove(id(1))
	require.Equal(t, alwaysFamilies, a.families.count())
	require.Empty(t, a.descs.byKey)
}

// No agent, and no owner of agents, takes what all share.
func TestShares(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		opts   Options
		sample func(agent, i int) agent.Sample
		// What is stored of an agent's 100 samples, and of 10 agents of an owner.
		agent, owner int
		reason       string
	}{
		{
			Options{MaxFamiliesPerAgent: 5},
			func(n, i int) agent.Sample { return sample(fmt.Sprintf("x%d_%d", n, i), agent.Gauge, 1) },
			5, 50, "too_many_agent_families",
		},
		{
			Options{MaxSeries: 1000},
			func(_, i int) agent.Sample { return sample("x", agent.Gauge, 1, "i", fmt.Sprint(i)) },
			100, 250, "too_many_owner_series",
		},
		{
			Options{MaxSeriesBytesPerAgent: 50 * 100},
			func(_, i int) agent.Sample { return sample("x", agent.Gauge, 1, "i", fmt.Sprintf("%092d", i)) },
			50, 500, "too_many_agent_bytes",
		},
		{
			Options{MaxSeriesBytes: 4 * 150 * 100},
			func(_, i int) agent.Sample { return sample("x", agent.Gauge, 1, "i", fmt.Sprintf("%092d", i)) },
			100, 150, "too_many_owner_bytes",
		},
	} {
		t.Run(c.reason, func(t *testing.T) {
			a := newTest(t, c.opts)
			send := func(n int) (accepted int) {
				r := samples()
				for i := range 100 {
					r.samples = append(r.samples, c.sample(n, i))
				}
				accepted = 100
				for _, f := range refusals(a.Report(benchID(n), 1, now, r)) {
					require.Equal(t, c.reason, f.Reason)
					require.Equal(t, agent.RefusedLimit, f.Kind)
					require.NotContains(t, f.Message, "all agents is reached")
					accepted -= f.Count
				}
				return accepted
			}
			for round := range 2 {
				total := 0
				for n := range 10 {
					a.Open(benchID(n), identity(fmt.Sprint(n)), agent.Session{Epoch: 1})
					accepted := send(n)
					if n == 0 {
						require.Equal(t, c.agent, accepted)
					}
					total += accepted
				}
				require.Equal(t, c.owner, total)
				other := identity("other")
				other.Username = fmt.Sprint("other", round)
				a.Open(benchID(10), other, agent.Session{Epoch: 1})
				require.Equal(t, c.agent, send(10), "another owner has a share of its own")

				// It goes with the agent to another owner, and comes back with its end.
				other.Username = "third"
				a.Relabel(benchID(10), other)
				require.EqualValues(t, c.agent, a.owners["third"].series.Load())
				require.Len(t, a.owners, 2)
				for n := range 11 {
					a.Remove(benchID(n))
				}
				require.Empty(t, a.owners)
				require.Zero(t, a.series.Load())
				require.Zero(t, a.seriesBytes.Load())
			}
		})
	}
}

// A family has the type that most agents say, whatever one of them sends. The
// samples of the others are refused.
func TestTypeConflicts(t *testing.T) {
	for _, groupBy := range [][]string{nil, {"agent_name"}} {
		a := newTest(t, Options{GroupBy: groupBy})
		for n := range byte(4) {
			a.Open(id(n), identity(string('a'+rune(n))), agent.Session{Epoch: 1, First: true})
		}
		shown := func(typ string, series, conflicts, changes int) {
			t.Helper()
			require.Contains(t, text(t, a), "# TYPE x "+typ+"\n")
			require.Equal(t, series, seriesOf(t, a, "x{"))
			require.InDelta(t, conflicts, testutil.ToFloat64(a.metrics.conflicts), 0)
			require.InDelta(t, changes, testutil.ToFloat64(a.metrics.typeChanges), 0)
			_, err := scrapeBoth(a)
			require.NoError(t, err)
		}
		report := func(n byte, refused int, more ...agent.SampleType) {
			t.Helper()
			r := samples()
			for i, typ := range more {
				r.samples = append(r.samples, sample("x", typ, 1, "i", fmt.Sprint(i+1)))
			}
			got, _ := a.Report(id(n), 1, time.Now(), r)
			if refused == 0 {
				require.Empty(t, got)
				return
			}
			require.Len(t, got, 1)
			require.Equal(t, "wrong_type", got[0].Reason)
			require.Equal(t, refused, got[0].Count)
		}
		report(0, 0, agent.Counter)
		report(1, 0, agent.Counter)
		shown("counter", 2, 0, 0)
		report(2, 3, agent.Gauge, agent.Gauge, agent.Gauge)
		shown("counter", 2, 1, 0)
		report(2, 1, agent.Untyped)
		report(0, 1, agent.Counter, agent.Gauge) // as its first sample says
		shown("counter", 2, 1, 0)
		report(2, 1, agent.Gauge)
		report(3, 1, agent.Gauge)
		shown("counter", 2, 1, 0) // two against two
		report(0, 0, agent.Gauge)
		shown("gauge", 1, 1, 1) // what was of the other type is gone
		report(1, 1, agent.Counter)
		report(2, 0, agent.Gauge)
		shown("gauge", 2, 1, 1)
		report(3, 0, agent.Gauge)
		report(1, 0) // it has the family no more
		shown("gauge", 3, 1, 1)
		report(1, 1, agent.Counter)
		shown("gauge", 3, 2, 1)
		for n := range byte(3) {
			a.Remove(id((n + 2) % 4)) // but 1
		}
		report(1, 0, agent.Counter)
		shown("counter", 1, 2, 1)
		a.Remove(id(1))
		for a.orphans.evictOldest(a) {
		}
		require.Zero(t, a.series.Load())
		require.Equal(t, alwaysFamilies, a.families.count())
	}
}

// The samples of an agent may come in another order, with labels in another
// order: they are the same series.
func TestOrderDoesNotMatter(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	r := samples(
		sample("a", agent.Gauge, 1, "x", "1", "y", "2"),
		sample("a", agent.Gauge, 2, "x", "1"),
		sample("b", agent.Gauge, 3),
	)
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), r)))
	first := text(t, a)
	for range 4 {
		r.samples = append(r.samples[1:], r.samples[0])
		for i := range r.samples {
			slices.Reverse(r.samples[i].Labels)
			r.samples[i].Labels = append(r.samples[i].Labels, agent.Label{Name: "empty"})
		}
		require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), r)))
		require.Equal(t, first, text(t, a))
		require.EqualValues(t, 10, a.series.Load())
	}
	a.Remove(id(1))
	require.Empty(t, a.descs.byKey)
	require.Len(t, a.families.list(), alwaysFamilies, "only the documented ones stay")
}

// What a report lacks, or has with a value that is refused, expires, unless it
// comes back before.
func TestAbsentSeriesExpire(t *testing.T) {
	now := time.Now()
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	for i := range 10 {
		x, y := sample("x", agent.Counter, 1), sample("y", agent.Counter, 1)
		r := samples(x, y, sample("z", agent.Gauge, 1))
		if i > 0 {
			r.samples[0].Value = -1
		}
		if i == 2 || i == 3 {
			r.samples = r.samples[2:]
		}
		a.expire(now)
		a.Report(id(1), 1, now, r)
		now = now.Add(30 * time.Second)
		want := 3
		if i > 3 {
			want = 2 // x was last stored at 0 s
		}
		require.Equal(t, want, seriesOf(t, a, "template_name"), "report %d", i)
	}
	a.expire(now)
	require.EqualValues(t, 9, a.series.Load())
}

// The window goes on while the gauges are away.
func TestBytesOutliveTheGauges(t *testing.T) {
	now := time.Now()
	a := newTest(t, Options{ReportInterval: time.Second, SeriesTTL: 10 * time.Second})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	a.Report(id(1), 1, now, &report{stats: agent.Stats{RxBytes: 5}})
	a.expire(now.Add(10 * time.Second))
	require.Zero(t, a.series.Load())
	a.Report(id(1), 1, now.Add(20*time.Second), &report{stats: agent.Stats{RxBytes: 2}})
	require.Contains(t, shownLines(text(t, a)), `coderd_agentstats_rx_bytes{agent_name="main",username="user",workspace_name="ws"} 7`)
}

// What may be sent again is not counted twice.
func TestBytesOfAnUnknownInstance(t *testing.T) {
	now := time.Now()
	a := newTest(t, Options{})
	rx := func(epoch int64) {
		a.Report(id(1), epoch, now, &report{stats: agent.Stats{RxBytes: 5}})
	}
	shows := func(n int) {
		t.Helper()
		require.Contains(t, shownLines(text(t, a)), fmt.Sprintf(`coderd_agentstats_rx_bytes{agent_name="main",username="user",workspace_name="ws"} %d`, n))
	}
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	rx(1)
	a.Open(id(1), identity("main"), agent.Session{Epoch: 2})
	rx(2)
	shows(10)
	for _, s := range []agent.Session{{Epoch: 3, Unknown: true}, {Epoch: 4, Unknown: true, Moved: true}, {Epoch: 5, Unknown: true, Relayed: true}} {
		a.Open(id(1), identity("main"), s)
		rx(s.Epoch)
		shows(5)
	}
}

// Of an agent whose interval is longer than the window, as it is lengthened, the bytes are
// those of one report: of one interval.
func TestBytesOfLengthenedIntervals(t *testing.T) {
	now := time.Now()
	a := newTest(t, Options{ReportInterval: 30 * time.Second, SeriesTTL: 4 * time.Minute})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	for i := range 5 {
		a.Report(id(1), 1, now.Add(time.Duration(i)*2*time.Minute), &report{stats: agent.Stats{RxBytes: 100 + int64(i)}})
		require.Contains(t, shownLines(text(t, a)),
			fmt.Sprintf(`coderd_agentstats_rx_bytes{agent_name="main",username="user",workspace_name="ws"} %d`, 100+i))
	}
}

// broken is a report whose samples end in a panic.
type broken struct{ report }

func (b *broken) Len() int { return b.report.Len() + 1 }

func (b *broken) Sample(i int) *agent.Sample {
	if i == b.report.Len() {
		panic("a bug of the decoder")
	}
	return b.report.Sample(i)
}

// What came before a panic counts, and the agent can go on.
func TestReportThatPanics(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	require.Panics(t, func() {
		a.Report(id(1), 1, time.Now(), &broken{*samples(sample("a", agent.Gauge, 1))})
	})
	require.Equal(t, 1, seriesOf(t, a, "a{"))
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 2)))))
	a.Remove(id(1))
	require.Zero(t, a.series.Load())
}

func TestWindow(t *testing.T) {
	const width = int64(time.Minute)
	var w window
	sum := func(at time.Duration, rx int64) int64 {
		got, tx := w.add(int64(at), width, rx, 2*rx)
		require.Equal(t, 2*got, tx)
		return got
	}
	require.EqualValues(t, 1, sum(0, 1))
	require.EqualValues(t, 3, sum(30*time.Second, 2))
	require.EqualValues(t, 7, sum(time.Minute-1, 4), "what is a minute less 1 ns old counts")
	require.EqualValues(t, 14, sum(time.Minute, 8), "what is a minute old does not")
	require.EqualValues(t, 12, sum(90*time.Second, 0))
	require.EqualValues(t, 16, sum(time.Hour, 16))

	// Any number of reports takes a bounded memory, and counts for the minute
	// less the half second.
	w = window{}
	for i := range 20_000 {
		got := sum(time.Duration(i)*10*time.Millisecond, 1)
		if i > 6000 {
			require.InDelta(t, 6000-24, got, 24)
		}
	}
	require.LessOrEqual(t, cap(w.buckets), 2*maxBuckets)
}

// Report returns how many series a report made, which is their cost. It is 0 if they
// were there, also in another order or within the TTL.
func TestReportCountsCreatedSeries(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	a.Open(id(2), identity("other"), agent.Session{Epoch: 1})
	x, y, z := sample("x", agent.Gauge, 1), sample("y", agent.Gauge, 1), sample("z", agent.Gauge, 1, "l", "1")
	for _, c := range []struct {
		agent   byte
		samples []agent.Sample
		want    int
	}{
		{1, []agent.Sample{x, y}, 2},
		{1, []agent.Sample{y, x}, 0},
		{1, []agent.Sample{z}, 1},
		{1, []agent.Sample{x, z, y}, 0},
		{2, []agent.Sample{x, x, sample("bad name", agent.Gauge, 1)}, 1},
	} {
		_, created := a.Report(id(c.agent), 1, time.Now(), samples(c.samples...))
		require.Equal(t, c.want, created, "%v", c)
	}
}

// For a family that finds no room an agent gives up what makes some: series of
// families that nobody else has.
func TestFamilyLimitTakesNothingThatDoesNotHelp(t *testing.T) {
	a := newTest(t, Options{MaxFamilies: 3})
	for n := range byte(2) {
		a.Open(id(n), identity(fmt.Sprint(n)), agent.Session{Epoch: 1})
	}
	g := func(names ...string) *report {
		r := samples()
		for _, name := range names {
			r.samples = append(r.samples, sample(name, agent.Gauge, 1))
		}
		return r
	}
	require.Empty(t, refusals(a.Report(id(0), 1, time.Now(), g("shared", "other"))))
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), g("shared", "own"))))
	require.Len(t, refusals(a.Report(id(1), 1, time.Now(), g("own", "new"))), 1)
	served, err := scrapeBoth(a)
	require.NoError(t, err)
	for n := range 2 {
		name := fmt.Sprintf(`{__name__="shared", agent_name="%d", template_name="tpl", username="user", workspace_name="ws"}`, n)
		require.Contains(t, served.values, name, "until it expires")
	}
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), g("new"))), "its own made room")
}
