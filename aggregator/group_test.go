package aggregator

import (
	"fmt"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// byTemplate is an aggregator that groups by template, with a fleet of agents.
func byTemplate(t *testing.T, opts Options, sessions ...agent.Session) *Aggregator {
	t.Helper()
	opts.GroupBy = []string{"template_name"}
	a := newTest(t, opts)
	for i, s := range sessions {
		a.Open(id(byte(i)), identity(fmt.Sprint(i)), s)
	}
	return a
}

func first(instance byte) agent.Session {
	return agent.Session{Epoch: 1, Instance: agent.Instance{instance}, First: true}
}

func TestGroupsByPolicy(t *testing.T) {
	a := byTemplate(t, Options{}, first(1), first(2), first(3))
	for n := range byte(3) {
		v := float64(n + 1)
		require.Empty(t, refusals(a.Report(id(n), 1, time.Now(), &report{
			stats: agent.Stats{RxBytes: 10, ConnectionCount: int64(n), MedianLatencyMS: 1000 * v, Sessions: agent.Sessions{SSH: 2}},
			samples: []agent.Sample{
				sample("agent_scripts_executed_total", agent.Counter, v, "success", "true"),
				sample("agent_scripts_executed_total", agent.Counter, 1, "success", "false"),
				sample("coderd_agentstats_currently_reachable_peers", agent.Gauge, v, "connection_type", "p2p"),
				sample("coderd_agentstats_startup_script_seconds", agent.Gauge, v, "success", "true"),
				sample("conns", agent.Gauge, v),
			},
		})))
	}
	golden(t, "testdata/grouped.txt", text(t, a))
	_, err := scrapeBoth(a)
	require.NoError(t, err)
}

// A report and what the group's counter is then.
type step struct {
	what string
	do   func(a *Aggregator)
	want string
}

func TestGroupedCounters(t *testing.T) {
	count := func(n byte, epoch int64, v float64) func(a *Aggregator) {
		return func(a *Aggregator) {
			a.Report(id(n), epoch, a.now(), samples(sample("c_total", agent.Counter, v)))
		}
	}
	open := func(n byte, s agent.Session) func(a *Aggregator) {
		return func(a *Aggregator) { a.Open(id(n), identity(fmt.Sprint(n)), s) }
	}
	later := agent.Session{Epoch: 2, Instance: agent.Instance{1}}
	for name, steps := range map[string][]step{
		"first session counts in full": {
			{"two agents", func(a *Aggregator) {
				open(1, first(1))(a)
				open(2, first(2))(a)
				count(1, 1, 5)(a)
				count(2, 1, 2)(a)
			}, "7"},
			{"growth", count(1, 1, 6), "8"},
			{"fall: the process lost its count", count(1, 1, 4), "12"},
			{"the same again", count(1, 1, 4), "12"},
			{"an agent goes", func(a *Aggregator) { a.Remove(id(2)) }, "12"},
			{"the last goes", func(a *Aggregator) { a.Close(id(1), 1, true) }, "12"},
			{"it comes back elsewhere known", open(1, later), "12"},
			{"so its count is a baseline", count(1, 2, 9), "12"},
			{"from which it grows", count(1, 2, 11), "14"},
		},
		"reconnect": {
			{"first", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 5)(a) }, "5"},
			{"reconnects", func(a *Aggregator) { a.Close(id(1), 1, false); open(1, later)(a); count(1, 2, 8)(a) }, "8"},
		},
		"another replica counted meanwhile": {
			{"first", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 5)(a) }, "5"},
			{"it was elsewhere", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 3, Instance: agent.Instance{1}, Moved: true})(a)
				count(1, 3, 9)(a)
			}, "5"},
			{"grows here", count(1, 3, 10), "6"},
			{"reconnects here", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 4, Instance: agent.Instance{1}})(a)
				count(1, 4, 12)(a)
			}, "8"},
		},
		"another process of the agent": {
			{"first", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 5)(a) }, "5"},
			{"restarts", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 2, Instance: agent.Instance{2}, First: true})(a)
				count(1, 2, 6)(a)
			}, "11"},
			{"one not seen from its start", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 3, Instance: agent.Instance{3}})(a)
				count(1, 3, 50)(a)
			}, "11"},
			{"grows", count(1, 3, 51), "12"},
		},
		"relays of one process": {
			{"first of the agent", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 1, Instance: agent.Instance{1}, First: true, Relayed: true})(a)
				count(1, 1, 5)(a)
			}, "5"},
			{"another relay", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 2, Instance: agent.Instance{2}, Relayed: true})(a)
				count(1, 2, 8)(a)
			}, "8"},
			{"back to the first", func(a *Aggregator) {
				a.Close(id(1), 2, false)
				open(1, agent.Session{Epoch: 3, Instance: agent.Instance{1}, Relayed: true})(a)
				count(1, 3, 9)(a)
			}, "9"},
			{"the process begins anew", count(1, 3, 2), "11"},
			{"one that was relayed elsewhere", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 4, Instance: agent.Instance{2}, Relayed: true, Moved: true})(a)
				count(1, 4, 30)(a)
			}, "11"},
			{"it dials: another process", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 5, Instance: agent.Instance{3}, First: true})(a)
				count(1, 5, 31)(a)
			}, "42"},
			{"and is relayed again", func(a *Aggregator) {
				open(1, agent.Session{Epoch: 6, Instance: agent.Instance{4}, Relayed: true})(a)
				count(1, 6, 32)(a)
			}, "43"},
		},
		"expired counters do not count again": {
			{"first", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 5)(a) }, "5"},
			{"absent for the TTL", func(a *Aggregator) {
				for range 6 {
					a.Report(id(1), 1, a.now(), samples())
					now := a.now().Add(30 * time.Second)
					a.now = func() time.Time { return now }
					a.expire(now)
				}
			}, "5"},
			{"back", count(1, 1, 7), "5"},
			{"grows", count(1, 1, 8), "6"},
		},
		"of another type before": {
			{"gauge", func(a *Aggregator) {
				open(1, first(1))(a)
				a.Report(id(1), 1, a.now(), samples(sample("c_total", agent.Gauge, 5)))
				count(1, 1, 7)(a)
			}, "0"},
			{"grows", count(1, 1, 9), "2"},
		},
		"renamed": {
			{"first", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 5)(a) }, "5"},
			{"agent", func(a *Aggregator) { a.Relabel(id(1), identity("other")) }, "5"},
			{"grows", count(1, 1, 6), "6"},
		},
		"hidden agents do not count": {
			{"two with equal labels", func(a *Aggregator) {
				a.Open(id(1), identity("same"), first(1))
				a.Open(id(2), identity("same"), first(2))
				count(1, 1, 5)(a)
				count(2, 1, 7)(a)
			}, "7"},
			{"it comes to light", func(a *Aggregator) { a.Remove(id(2)) }, "7"},
			{"grows", count(1, 1, 6), "8"},
		},
		"kept for a day": {
			{"first", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 5)(a); a.Remove(id(1)) }, "5"},
			{"nearly", func(a *Aggregator) { a.expire(a.now().Add(orphanAge - time.Minute)) }, "5"},
			{"gone", func(a *Aggregator) { a.expire(a.now().Add(orphanAge + time.Minute)) }, ""},
			{"anew", func(a *Aggregator) { open(1, first(1))(a); count(1, 1, 3)(a) }, "3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := byTemplate(t, Options{})
			for _, s := range steps {
				s.do(a)
				want := ""
				if s.want != "" {
					want = "# HELP c_total Forwarded by workspace agents.\n# TYPE c_total counter\nc_total{template_name=\"tpl\"} " + s.want + "\n"
				}
				require.Equal(t, want, forwardedText(t, a), s.what)
			}
		})
	}
}

// What one agent sends does not change what others have in a group, and is not
// left in it when the agent goes.
func TestGroupIsNotSpoilt(t *testing.T) {
	a := byTemplate(t, Options{}, first(1), first(2), first(3))
	now := time.Now()
	send := func(n byte, counter, gauge, latency float64) int {
		refused := 0
		for _, f := range refusals(a.Report(id(n), 1, now, &report{
			stats: agent.Stats{MedianLatencyMS: latency, ConnectionCount: 1},
			samples: []agent.Sample{
				sample("c_total", agent.Counter, counter), sample("g", agent.Gauge, gauge),
				sample("coderd_agentstats_startup_script_seconds", agent.Gauge, gauge, "success", "true"),
			},
		})) {
			refused += f.Count
		}
		return refused
	}
	shown := func(counter, gauge, most, latency float64) {
		t.Helper()
		s, err := scrapeBoth(a)
		require.NoError(t, err)
		require.Equal(t, counter, value(s, `{__name__="c_total", template_name="tpl"}`))
		require.Equal(t, gauge, value(s, `{__name__="g", template_name="tpl"}`))
		require.Equal(t, most, value(s, `{__name__="coderd_agentstats_startup_script_seconds", success="true", template_name="tpl"}`))
		require.Equal(t, latency, value(s, `{__name__="coderd_agentstats_connection_median_latency_seconds"}`))
	}
	require.Zero(t, send(0, 5, 0.25, 1000))
	require.Zero(t, send(1, 7, 0.5, 3000))
	shown(12, 0.75, 0.5, 2)
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e300, -1e300, math.MaxFloat64, 1<<53 + 2} {
		send(2, math.Abs(v), v, v)
		shown(12, 0.75, 0.5, 2)
		require.Zero(t, send(0, 5, 0.25, 1000))
		shown(12, 0.75, 0.5, 2)
	}
	require.InDelta(t, 6, testutil.ToFloat64(a.metrics.omitted[notFinite]), 0, "the counters are refused")
	require.InDelta(t, 12, testutil.ToFloat64(a.metrics.omitted[tooLarge]), 0)

	// A large one that is included leaves with its sender, and hides no small one.
	require.Zero(t, send(2, 1<<52, 1<<53, 2000))
	shown(1<<52+12, 1<<53, 1<<53, 2)
	for range 100 {
		a.Remove(id(2))
		shown(1<<52+12, 0.75, 0.5, 2)
		a.Open(id(2), identity("2"), agent.Session{Epoch: 1, Instance: agent.Instance{3}})
		require.Zero(t, send(2, 1<<52, -(1<<53), 2000))
	}
	a.Remove(id(2))
	for i := range 1000 {
		require.Zero(t, send(0, 5+0.5*float64(i), 0.25, 1000))
	}
	shown(1<<52+12+499.5+0.5, 0.75, 0.5, 2) // rounded as a float64 is
	// Another agent says that it is a gauge.
	a.Open(id(2), identity("2"), first(4))
	require.Len(t, refusals(a.Report(id(2), 1, now, samples(sample("c_total", agent.Gauge, 0), sample("g", agent.Counter, 1)))), 1)
	shown(1<<52+12+499.5+0.5, 0.75, 0.5, 2)
}

// A sum without agents has the type that it had, against one agent.
func TestGhostsKeepTheirType(t *testing.T) {
	a := byTemplate(t, Options{}, first(1), first(2), first(3))
	report := func(n byte, typ agent.SampleType) int {
		return len(refusals(a.Report(id(n), 1, time.Now(), samples(sample("c_total", typ, 5)))))
	}
	require.Zero(t, report(0, agent.Counter))
	a.Remove(id(0))
	require.Equal(t, 1, report(1, agent.Gauge))
	require.Equal(t, 1, seriesOf(t, a, `c_total{template_name="tpl"} 5`))
	require.Equal(t, 1, a.orphans.count())
	require.Zero(t, report(2, agent.Gauge))
	require.Zero(t, a.orphans.count())
	require.Zero(t, report(1, agent.Gauge))
	require.Equal(t, 1, seriesOf(t, a, `c_total{template_name="tpl"} 10`))
}

// A sum that finds an agent again has that agent's word for its type, no other.
func TestGhostsThatComeBackHaveTheTypeOfAgents(t *testing.T) {
	a := byTemplate(t, Options{}, first(1), first(2))
	a.Report(id(0), 1, time.Now(), samples(sample("c_total", agent.Counter, 5)))
	a.Remove(id(0))
	require.Equal(t, 1, a.orphans.count())
	contradiction := samples(sample("c_total", agent.Gauge, 7, "x", "1"), sample("c_total", agent.Counter, 6))
	refused := refusals(a.Report(id(1), 1, time.Now(), contradiction))
	require.Len(t, refused, 1)
	require.Equal(t, 2, refused[0].Count, "nothing is stored that is not served")
	require.Zero(t, a.orphans.count())
	require.Empty(t, forwardedText(t, a), "the only agent says that it is a gauge")

	refused = refusals(a.Report(id(1), 1, time.Now(), contradiction))
	require.Len(t, refused, 1)
	require.Equal(t, 1, refused[0].Count)
	require.Equal(t, 1, seriesOf(t, a, `c_total{template_name="tpl",x="1"} 7`))
}

func TestTally(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sum tally
		want := new(big.Float).SetPrec(2000)
		var last float64
		var lastRound uint64
		for _, v := range rapid.SliceOf(rapid.OneOf(rapid.Float64Range(0, maxTerm), rapid.Float64Range(0, 1), rapid.Just(float64(maxTerm)))).Draw(t, "terms") {
			sum.add(v)
			want.Add(want, big.NewFloat(v))
			got, round := sum.value()
			exact := new(big.Float).SetPrec(2000).SetMantExp(new(big.Float).SetUint64(round), 53)
			rest, _ := exact.Sub(want, exact).Float64()
			require.InDelta(t, rest, got, max(rest*1e-15, 1e-16))
			require.True(t, round > lastRound || got >= last, "it fell")
			last, lastRound = got, round
		}
	})
}

// Renamed to another group, a counter goes on counting there, and what it
// counted before stays.
func TestGroupedCounterMoves(t *testing.T) {
	a := byTemplate(t, Options{}, first(1))
	a.Report(id(0), 1, time.Now(), samples(sample("c_total", agent.Counter, 5)))
	ident := identity("0")
	ident.TemplateName = "new"
	a.Relabel(id(0), ident)
	a.Report(id(0), 1, time.Now(), samples(sample("c_total", agent.Counter, 7)))
	require.Equal(t, "# HELP c_total Forwarded by workspace agents.\n# TYPE c_total counter\n"+
		"c_total{template_name=\"tpl\"} 5\nc_total{template_name=\"new\"} 2\n", forwardedText(t, a))
}

// A sum that gets a contributor again is no longer counted among those that are left,
// nor taken away with them.
func TestGhostsComeBack(t *testing.T) {
	a := byTemplate(t, Options{}, first(1))
	report := func() {
		a.Report(id(0), 1, time.Now(), samples(sample("c_total", agent.Counter, 5)))
	}
	report()
	a.Remove(id(0))
	require.Equal(t, 1, a.orphans.count())
	a.Open(id(0), identity("main"), first(2))
	report()
	require.Zero(t, a.orphans.count())
	require.Equal(t, 1, seriesOf(t, a, `c_total{template_name="tpl"} 10`))

	// The same between the choice to take it away and the deed.
	a.Remove(id(0))
	g := a.orphans.popBefore(math.MaxInt64)
	a.Open(id(0), identity("main"), first(3))
	report()
	require.True(t, a.orphans.removeGroup(g, a))
	require.Equal(t, 1, seriesOf(t, a, `c_total{template_name="tpl"} 15`))
}

// The sums that agents leave behind cannot crowd out those that are there.
func TestGhostsAreBounded(t *testing.T) {
	a := byTemplate(t, Options{MaxSeries: 100})
	leave := func(n int) {
		a.Open(id(1), identity("main"), first(byte(n)))
		a.Report(id(1), 1, time.Now(), samples(sample("c_total", agent.Counter, 1, "n", fmt.Sprint(n))))
		a.Remove(id(1))
	}
	for n := range 50 {
		leave(n)
	}
	require.Equal(t, 10, seriesOf(t, a, "c_total{"))
	require.Equal(t, 1, seriesOf(t, a, `n="49"`), "the oldest go first")
	require.EqualValues(t, 10, a.series.Load())

	// And they make room when the limit is reached.
	var refused int
	for n := range byte(8) {
		a.Open(id(n), identity(fmt.Sprint(n)), first(n))
		for _, r := range refusals(a.Report(id(n), 1, time.Now(), samples(sample("b", agent.Gauge, 1, "n", fmt.Sprint(n)),
			sample("c", agent.Gauge, 1, "n", fmt.Sprint(n))))) {
			refused += r.Count
		}
	}
	require.Zero(t, refused)
	require.LessOrEqual(t, a.series.Load(), int64(101))
	require.Less(t, seriesOf(t, a, "c_total{"), 10)
	for n := range byte(8) {
		a.Remove(id(n))
	}
	for a.orphans.evictOldest(a) {
	}
	require.Zero(t, a.series.Load())
	require.Equal(t, alwaysFamilies, a.families.count())
}

// An agent with another type of a family counts for that type, also after the series of
// the others are gone. No sample is stored with a type that has no majority then.
func TestDisagreementOutlastsTheSeries(t *testing.T) {
	a := newTest(t, Options{})
	for n := range byte(3) {
		a.Open(id(n), identity(fmt.Sprint(n)), first(n))
	}
	send := func(n byte, typ agent.SampleType) int {
		return len(refusals(a.Report(id(n), 1, time.Now(), samples(sample("c", typ, 1)))))
	}
	require.Zero(t, send(0, agent.Gauge))
	require.Equal(t, 1, send(1, agent.Untyped), "one against one")
	a.Remove(id(0))
	require.Equal(t, 1, send(2, agent.Gauge), "it is what the one that is left says")
	require.Zero(t, send(1, agent.Untyped))
}
