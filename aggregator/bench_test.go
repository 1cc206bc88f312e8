package aggregator

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// perAgent is how many series each agent of a benchmark has: the stats gauges
// and the samples that it forwards.
const perAgent = statsGauges + forwardedPerAgent

const forwardedPerAgent = 32

// benchReport is the report of agent n, with values that depend on round. Its
// lines are some 196 bytes long.
func benchReport(n, round int) *report {
	r := &report{stats: agent.Stats{
		RxBytes: int64(n * 1000 % 123457), TxBytes: int64(round % 1000), ConnectionCount: int64(round % 7),
		MedianLatencyMS: 1 + float64(round%50)/4, Sessions: agent.Sessions{VSCode: int64(round % 3), SSH: 1},
	}}
	r.samples = make([]agent.Sample, forwardedPerAgent)
	for i := range r.samples {
		s := &r.samples[i]
		*s = sample(fmt.Sprintf("tailscaled_%02d_network_activity_total", i/2), agent.Counter, float64(n+i+round),
			"path", [...]string{"derp", "direct_ipv4"}[i%2], "reason", "acl_drop_or_error_code")
		if i >= 16 {
			s.Name, s.Type = fmt.Sprintf("agent_process_%02d_resource_usage", i/2), agent.Gauge
			s.Value = float64(n+round) / float64(i+3)
		}
	}
	return r
}

func benchID(n int) agent.ID {
	return agent.ID{12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}
}

func benchIdentity(n int) agent.Identity {
	return agent.Identity{
		Username: fmt.Sprintf("developer-%05d", n), WorkspaceName: fmt.Sprintf("workspace-%05d-main", n),
		AgentName: "main", TemplateName: "kubernetes-dev",
	}
}

// fleetOf returns an aggregator with that many series.
func fleetOf(tb testing.TB, n int, opts Options) *Aggregator {
	tb.Helper()
	a := fleetWith(tb, n, opts)
	require.EqualValues(tb, n, a.series.Load())
	return a
}

// fleetWith returns an aggregator whose agents have that many series, beside groups.
func fleetWith(tb testing.TB, n int, opts Options) *Aggregator {
	tb.Helper()
	a := newTest(tb, opts)
	for i := range n / perAgent {
		a.Open(benchID(i), benchIdentity(i), agent.Session{Epoch: 1})
		require.Empty(tb, refusals(a.Report(benchID(i), 1, time.Now(), benchReport(i, 0))))
	}
	return a
}

// BenchmarkReport30 is one report of 30 samples, all with new values, of an
// agent among 2,500.
func BenchmarkReport30(b *testing.B) {
	const agents, samples = 2500, 30
	for _, c := range []struct {
		name    string
		groupBy []string
		change  func(r *report)
	}{
		{name: "same series"},
		{name: "grouped", groupBy: []string{"username", "template_name"}},
		{name: "labels not sorted", change: func(r *report) {
			for i := range r.samples {
				slices.Reverse(r.samples[i].Labels)
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			a := newTest(b, Options{GroupBy: c.groupBy})
			reports := make([]*report, agents)
			for i := range reports {
				a.Open(benchID(i), benchIdentity(i), agent.Session{Epoch: 1})
				r := benchReport(i, 0)
				r.samples = r.samples[:samples]
				if c.change != nil {
					c.change(r)
				}
				reports[i] = r
				require.Empty(b, refusals(a.Report(benchID(i), 1, time.Now(), reports[i])))
			}
			now := time.Now()
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				r := reports[i]
				for j := range r.samples {
					r.samples[j].Value++
				}
				a.Report(benchID(i), 1, now, r)
				if i++; i == agents {
					i, now = 0, now.Add(30*time.Second)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/samples, "ns/sample")
		})
	}
}

// BenchmarkReportNew is the first report of an agent.
func BenchmarkReportNew(b *testing.B) {
	a := fleetOf(b, 100_000, Options{})
	r := benchReport(1<<20, 0)
	b.ReportAllocs()
	for b.Loop() {
		a.Open(benchID(1<<20), benchIdentity(1<<20), agent.Session{Epoch: 1})
		a.Report(benchID(1<<20), 1, time.Now(), r)
		a.Remove(benchID(1 << 20))
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/perAgent, "ns/series")
}

// growingSizes are the numbers of series at which costs are compared.
var growingSizes = []int{100_000, 1_000_000, 10_000_000}

// limitsFor returns options that leave room for n series.
func limitsFor(n int) Options { return Options{MaxSeries: 2 * n, MaxSeriesBytes: 1000 * n} }

// BenchmarkMemory is what a series costs, with everything that belongs to it.
func BenchmarkMemory(b *testing.B) {
	for _, n := range growingSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				a := fleetOf(b, n, limitsFor(n))
				known := float64(heap() - before)
				w := &discard{}
				require.NoError(b, a.WriteText(w))
				b.ReportMetric(known/float64(n), "B/series")
				b.ReportMetric(float64(w.n)/float64(n), "B/line")
				runtime.KeepAlive(a)
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkExpire looks through 100,000 agents of which none expires.
func BenchmarkExpire(b *testing.B) {
	a := newTest(b, Options{})
	now := time.Now()
	for i := range 100_000 {
		a.Open(benchID(i), benchIdentity(i), agent.Session{Epoch: 1})
		a.Report(benchID(i), 1, now, &report{})
	}
	b.ReportAllocs()
	for b.Loop() {
		a.expire(now)
	}
}

// BenchmarkExpireAll has all series of agents with 40 each expire at once.
func BenchmarkExpireAll(b *testing.B) {
	for _, n := range growingSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				a := fleetOf(b, n, limitsFor(n))
				b.StartTimer()
				a.expire(time.Now().Add(time.Hour))
				require.Zero(b, a.series.Load())
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(n), "ns/series")
		})
	}
}

// benchState are the states of agent n: 5 regions, 3 apps and its connection,
// with the workspace's own.
func benchState(n, round int) (ofAgent, ofWorkspace []agent.Series) {
	ident := benchIdentity(n)
	user, ws := agent.Label{Name: "username", Value: ident.Username}, agent.Label{Name: "workspace_name", Value: ident.WorkspaceName}
	name := agent.Label{Name: "agent_name", Value: ident.AgentName}
	for i := range 3 {
		ofAgent = append(ofAgent, agent.Series{Family: "coderd_agents_apps", Value: 1, Labels: []agent.Label{
			name, {Name: "app_name", Value: fmt.Sprintf("code-server-%d", i)}, {Name: "health", Value: "healthy"}, user, ws,
		}})
	}
	for i := range 5 {
		ofAgent = append(ofAgent, agent.Series{Family: "coderd_agents_connection_latencies_seconds", Value: float64(n+i+round) / 1e6, Labels: []agent.Label{
			name, {Name: "derp_region", Value: fmt.Sprintf("Region %d", i)}, {Name: "preferred", Value: fmt.Sprint(i == 0)}, user, ws,
		}})
	}
	ofAgent = append(ofAgent, agent.Series{Family: "coderd_agents_connections", Value: 1, Labels: []agent.Label{
		name, {Name: "lifecycle_state", Value: "ready"}, {Name: "status", Value: "connected"},
		{Name: "tailnet_node", Value: fmt.Sprintf("nodeid:%x", n)}, user, ws,
	}})
	ofWorkspace = []agent.Series{{Family: "coderd_agents_up", Value: 1, Labels: []agent.Label{
		{Name: "template_name", Value: ident.TemplateName}, user, ws,
	}}}
	return ofAgent, ofWorkspace
}

// benchStates returns an aggregator with the states of that many agents.
func benchStates(tb testing.TB, agents int) *Aggregator {
	tb.Helper()
	a := newTest(tb, Options{})
	for n := range agents {
		ofAgent, ofWorkspace := benchState(n, 0)
		a.SetStates([]agent.KeySeries{
			{Key: agent.SeriesKey{ID: benchID(n)}, Series: ofAgent},
			{Key: agent.SeriesKey{Workspace: true, ID: benchID(n)}, Series: ofWorkspace},
		})
	}
	return a
}

// BenchmarkScrapeStates compares a scrape of the states of 10,000 agents, which
// are 100,000 series, with one of 100,000 forwarded series whose values did not change:
// x-forwarded.
func BenchmarkScrapeStates(b *testing.B) {
	const n = 100_000
	forwarded, states := fleetOf(b, n, Options{}), benchStates(b, n/10)
	require.EqualValues(b, n, states.series.Load())
	for _, c := range []struct {
		name  string
		write func(a *Aggregator, w io.Writer) error
	}{
		{"text", (*Aggregator).WriteText},
		{"protobuf", (*Aggregator).WriteProtobuf},
	} {
		b.Run(c.name, func(b *testing.B) {
			var of [2]time.Duration
			b.ReportAllocs()
			for b.Loop() {
				for i, a := range []*Aggregator{forwarded, states} {
					start := time.Now()
					require.NoError(b, c.write(a, &discard{}))
					of[i] += time.Since(start)
				}
			}
			b.ReportMetric(float64(of[1])/float64(of[0]), "x-forwarded")
			b.ReportMetric(float64(of[1])/float64(b.N), "ns/states")
		})
	}
}

// BenchmarkSetStates is a network message of an agent: all its latencies change.
func BenchmarkSetStates(b *testing.B) {
	const agents = 10_000
	a := benchStates(b, agents)
	var rounds [2][]agent.KeySeries
	for i := range rounds {
		series, _ := benchState(7, i)
		rounds[i] = []agent.KeySeries{{Key: agent.SeriesKey{ID: benchID(7)}, Series: series}}
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		a.SetStates(rounds[i&1])
		i++
	}
}
