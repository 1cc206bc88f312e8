package aggregator

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// groupings are ways of keeping the identity labels.
var groupings = map[string][]string{
	"all":            nil,
	"no template":    {"agent_name", "username", "workspace_name"},
	"user, template": {"username", "template_name", "username"},
	"template":       {"template_name"},
}

// Whatever agents and coderd do, both formats parse, and have exactly what the
// naive model does.
func TestAnySequenceOfEvents(t *testing.T) {
	for name, groupBy := range groupings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, events(groupBy))
		})
	}
}

func FuzzEvents(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(events(nil)))
}

func FuzzEventsGrouped(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(events([]string{"username", "template_name"})))
}

func events(groupBy []string) func(*rapid.T) {
	return func(t *rapid.T) {
		w := newWorld(t, Options{GroupBy: groupBy, MaxSeriesPerAgent: 6, MaxFamiliesPerAgent: 4})
		t.Repeat(map[string]func(*rapid.T){
			"":        w.check,
			"open":    w.open,
			"report":  w.report,
			"again":   w.reportAgain,
			"close":   w.close,
			"relabel": w.relabel,
			"remove":  w.remove,
			"state":   w.state,
			"push":    w.push,
			"wait":    w.wait,
			"count":   w.count,
		})
	}
}

// world is the aggregator and the model side by side.
type world struct {
	now    time.Time
	real   *Aggregator
	model  *naive
	epochs map[agent.ID]int64
	last   map[agent.ID]*report
	epoch  int64
	pushed servedFamilies
}

func newWorld(t *rapid.T, opts Options) *world {
	a, err := New(opts, prometheus.NewPedanticRegistry())
	require.NoError(t, err)
	w := &world{
		now: time.Now().Add(time.Hour), real: a, model: newNaive(opts),
		epochs: make(map[agent.ID]int64), last: make(map[agent.ID]*report),
	}
	a.now = func() time.Time { return w.now }
	return w
}

func (w *world) check(t *rapid.T) {
	now := w.now
	w.real.expire(now)
	w.model.reconcile(now)
	w.model.expire(now)
	got, err := scrapeBoth(w.real.Beside(w.pushed))
	require.NoError(t, err)
	want := w.model.scrape()
	if diff := diffValues(want.values, got.values); diff != "" {
		t.Fatalf("- expected, + served:\n%s", diff)
	}
	for name, typ := range want.types {
		if got.types[name] != typ {
			t.Fatalf("family %s is a %s, not a %s", name, got.types[name], typ)
		}
	}
	require.LessOrEqual(t, len(got.types), len(want.types)+alwaysFamilies)
	w.checkShards(t, got)
	require.Equal(t, w.seriesCount(), w.real.series.Load(), "series in memory")
}

// checkShards holds three shards to the whole: each series is in one, and what is pushed in
// the first.
func (w *world) checkShards(t *rapid.T, whole scraped) {
	got := newScraped()
	for i := range 3 {
		part, err := scrapeBoth(w.real.Beside(w.pushed).Shard(metrics.Shard{Index: i, Count: 3}))
		require.NoError(t, err)
		for series, v := range part.values {
			require.NotContains(t, got.values, series)
			got.values[series] = v
			if i > 0 {
				require.NotContains(t, w.model.pushed.values, series)
			}
		}
	}
	require.Equal(t, whole.values, got.values)
}

// seriesCount is the number of series and groups in the model.
func (w *world) seriesCount() int64 {
	n := 0
	groups := make(map[string]bool)
	for key := range w.model.sums {
		groups[key] = true
	}
	states := make(map[string]bool)
	for _, s := range w.model.states {
		states[s.series] = true
	}
	n += len(states)
	for _, a := range w.model.agents {
		n += len(a.series) + len(a.stats)
		for _, sessions := range a.apps {
			if sessions > 0 {
				n++
			}
		}
		if !w.model.grouped() || !w.model.served(a) {
			continue
		}
		for _, s := range a.series {
			if s.dead {
				continue
			}
			groups[w.model.seriesLabels(a, s.name, s.labels).String()] = true
		}
		for app, sessions := range a.apps {
			if sessions > 0 {
				groups[w.model.seriesLabels(a, sessionsFamily.Name, appLabels(app)).String()] = true
			}
		}
		for name := range a.stats {
			groups[w.model.seriesLabels(a, name, nil).String()] = true
		}
	}
	if w.model.grouped() {
		n += len(groups)
	}
	return int64(n)
}

func (w *world) open(t *rapid.T) {
	a := anID(t)
	ident := anIdentity(t)
	w.epoch++
	s := agent.Session{
		Epoch:    w.epoch - rapid.SampledFrom([]int64{0, 0, 0, 2}).Draw(t, "behind"),
		Instance: agent.Instance{rapid.ByteRange(0, 2).Draw(t, "instance")},
		First:    rapid.Bool().Draw(t, "first"),
		Relayed:  rapid.Bool().Draw(t, "relayed"),
	}
	w.real.Open(a, ident, s)
	w.model.open(a, sanitise(ident), s)
	w.model.reconcile(w.now)
	w.epochs[a] = max(w.epochs[a], s.Epoch)
}

func (w *world) report(t *rapid.T) {
	a := anID(t)
	r := aReport(t)
	w.last[a] = r
	w.send(t, a, r)
}

// reportAgain is the usual case: the report before with other values, and
// perhaps with one sample more, less, or elsewhere.
func (w *world) reportAgain(t *rapid.T) {
	a := anID(t)
	r := w.last[a]
	if r == nil {
		return
	}
	r = &report{stats: r.stats, samples: slices.Clone(r.samples), decoded: rapid.Bool().Draw(t, "decoded")}
	for i := range r.samples {
		r.samples[i].Value = aValue(t)
	}
	if len(r.samples) > 1 {
		i := rapid.IntRange(0, len(r.samples)-1).Draw(t, "position")
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 1:
			r.samples = slices.Delete(r.samples, i, i+1)
		case 2:
			r.samples = slices.Insert(r.samples, i, aSample(t))
		case 3:
			r.samples[0], r.samples[i] = r.samples[i], r.samples[0]
		}
	}
	w.last[a] = r
	w.send(t, a, r)
}

func (w *world) send(t *rapid.T, a agent.ID, r *report) {
	epoch := w.epochs[a] - rapid.SampledFrom([]int64{0, 0, 0, 0, 1}).Draw(t, "epoch behind")
	now := w.now.Add(-rapid.SampledFrom([]time.Duration{0, 0, 0, 3 * time.Second}).Draw(t, "clock behind"))
	refused := 0
	for _, f := range refusals(w.real.Report(a, epoch, now, r)) {
		refused += f.Count
		if f.Count < 1 || f.Message == "" || f.Reason == "" || len(f.Names) != min(f.Count, agent.MaxRefusalNames) {
			t.Fatalf("refusal %+v", f)
		}
	}
	want := w.model.report(a, epoch, now, r)
	w.model.reconcile(w.now)
	require.Equal(t, want, refused, "samples refused")
}

func (w *world) close(t *rapid.T) {
	a := anID(t)
	epoch := w.epochs[a] - rapid.SampledFrom([]int64{0, 0, 1}).Draw(t, "epoch behind")
	goodbye := rapid.Bool().Draw(t, "goodbye")
	w.real.Close(a, epoch, goodbye)
	w.model.close(a, epoch, goodbye)
	w.model.reconcile(w.now)
}

func (w *world) relabel(t *rapid.T) {
	a, ident := anID(t), anIdentity(t)
	w.real.Relabel(a, ident)
	w.model.relabel(a, sanitise(ident))
	w.model.reconcile(w.now)
}

func (w *world) remove(t *rapid.T) {
	a := anID(t)
	w.real.Remove(a)
	w.model.remove(a)
	w.model.reconcile(w.now)
}

// state replaces the series of a key, of which two may be the same, and the same
// as another key's.
func (w *world) state(t *rapid.T) {
	key := agent.SeriesKey{Workspace: rapid.Bool().Draw(t, "workspace"), ID: anID(t)}
	series := rapid.SliceOfN(rapid.Custom(aState), 0, 4).Draw(t, "series")
	w.real.SetState(key, series)
	w.model.setState(key, series)
}

func aState(t *rapid.T) agent.Series {
	name := rapid.SampledFrom([]string{"main", "dev", "", "a\"q\xff"})
	return agent.Series{
		Family: rapid.SampledFrom([]string{"coderd_agents_up", "coderd_agents_up", "coderd_agents_apps", "coderd_agentstats_rx_bytes"}).Draw(t, "family"),
		Labels: []agent.Label{{Name: "agent_name", Value: name.Draw(t, "agent name")}, {Name: "username", Value: name.Draw(t, "username")}},
		Value:  aValue(t),
	}
}

// push has coderd push families, some of which it pushes no more.
func (w *world) push(t *rapid.T) {
	names := rapid.MapOfN(
		rapid.SampledFrom([]string{"a", "a_total", "b", "b_count", "b_sum", "c", "c:d", "z"}),
		rapid.SampledFrom([]metrics.Type{metrics.Untyped, metrics.Counter, metrics.Counter, metrics.Gauge, metrics.Gauge, metrics.Summary, metrics.Histogram}), 0, 3,
	).Draw(t, "names")
	w.pushed = nil
	compound := func(name string) bool { return names[name] == metrics.Histogram || names[name] == metrics.Summary }
	for _, name := range slices.Sorted(maps.Keys(names)) {
		base, isPart := strings.CutSuffix(name, "_count")
		if !isPart {
			base, isPart = strings.CutSuffix(name, "_sum")
		}
		if isPart && compound(base) || !rapid.SampledFrom([]bool{true, true, false}).Draw(t, "served") {
			continue
		}
		r, err := metrics.Render(pushedFamily(name, names[name]), names[name])
		require.NoError(t, err)
		w.pushed = append(w.pushed, r)
	}
	w.real.ReserveFamilies(names)
	w.model.reserve(names, parsed(t, w.pushed))
	w.model.reconcile(w.now)
}

func (w *world) wait(t *rapid.T) {
	w.now = w.now.Add(rapid.SampledFrom([]time.Duration{
		time.Second, 30 * time.Second, time.Minute, 119 * time.Second, 2 * time.Minute, 23 * time.Hour, 24 * time.Hour,
	}).Draw(t, "time"))
}

func anID(t *rapid.T) agent.ID {
	return id(rapid.ByteRange(1, 4).Draw(t, "agent"))
}

func anIdentity(t *rapid.T) agent.Identity {
	return agent.Identity{
		Username:      rapid.SampledFrom([]string{"ann", "ann", "b\"\\\nb", "\xff"}).Draw(t, "username"),
		WorkspaceName: rapid.SampledFrom([]string{"ws", "ws", ""}).Draw(t, "workspace"),
		AgentName:     rapid.SampledFrom([]string{"main", "main", "dev"}).Draw(t, "agent name"),
		TemplateName:  rapid.SampledFrom([]string{"tpl", "tpl", "go", ""}).Draw(t, "template"),
		CreatedAt:     time.Unix(rapid.Int64Range(1, 2).Draw(t, "created at"), 0),
	}
}

func aReport(t *rapid.T) *report {
	count := rapid.SampledFrom([]int64{0, 1, 2, 7, 7, -1, 1 << 31, math.MinInt64})
	bytes := rapid.SampledFrom([]int64{0, 1, 100, 1 << 50, 1<<50 + 1, -5, math.MaxInt64})
	return &report{
		stats: agent.Stats{
			RxBytes:         bytes.Draw(t, "rx"),
			TxBytes:         bytes.Draw(t, "tx"),
			ConnectionCount: count.Draw(t, "connections"),
			MedianLatencyMS: rapid.SampledFrom([]float64{0, 125, 250, -0.001, math.NaN(), math.Inf(1), math.Inf(-1)}).Draw(t, "latency"),
			Sessions: agent.Sessions{
				VSCode: count.Draw(t, "vscode"), JetBrains: count.Draw(t, "jetbrains"),
				ReconnectingPTY: 1, SSH: count.Draw(t, "ssh"),
			},
			Apps: agent.AppCounts{
				agent.AppUnknown: count.Draw(t, "unknown app"), agent.AppSSH: count.Draw(t, "ssh app"), len(agent.SessionApps) - 1: count.Draw(t, "last app"),
			},
		},
		samples: rapid.SliceOfN(rapid.Custom(aSample), 0, 10).Draw(t, "samples"),
		decoded: rapid.Bool().Draw(t, "decoded"),
	}
}

func aSample(t *rapid.T) agent.Sample {
	names := append(slices.Sorted(maps.Keys(forwardedTypes)),
		"a_total", "a_total", "b", "b", "b_count", "c:d", "c_sum", "c_bucket", "", "up", "bad name", "é", "b\xff", "coderd_agentstats_rx_bytes",
		"go_x", "ALERTS", "_", strings.Repeat("n", 200), strings.Repeat("n", 201), "9x", "coderd_new")
	s := agent.Sample{
		Name:  rapid.SampledFrom(names).Draw(t, "name"),
		Type:  agent.SampleType(rapid.SampledFrom([]int{0, 1, 1, 2, 2, 3}).Draw(t, "type")),
		Value: aValue(t),
	}
	for range rapid.SampledFrom([]int{0, 0, 1, 1, 2, 3, 33}).Draw(t, "labels") {
		s.Labels = append(s.Labels, agent.Label{
			Name: rapid.SampledFrom([]string{
				"x", "x", "y", "success", "a_before", "z", "u", "le", "username", "__name__", "1", "", "l-l", strings.Repeat("l", 129),
			}).Draw(t, "label"),
			Value: rapid.SampledFrom([]string{
				"1", "1", "2", "", "q\"\\\n,={}", "é\x00", "\xff", strings.Repeat("v", 1025), strings.Repeat("\"", 1024),
			}).Draw(t, "value"),
		})
	}
	return s
}

// aValue is exact in sums of several in any order.
func aValue(t *rapid.T) float64 {
	return rapid.SampledFrom([]float64{
		0, 1, 2, 3.5, 100, 12345678, -3, math.Copysign(0, -1), 1 << 52, 1 << 53, -(1 << 53), 1<<53 + 2, 1e300, -1e300, math.MaxFloat64,
		math.Inf(1), math.Inf(-1), math.NaN(),
		math.Float64frombits(0x7ff0000000000002), // what Prometheus takes for the end of a series
		math.Float64frombits(0xfff8000000000123),
	}).Draw(t, "sample")
}
