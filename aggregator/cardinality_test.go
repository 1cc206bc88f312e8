package aggregator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator/cardinality"
	"github.com/coder/agentstatsd/aggregator/internal/walk"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/metrics"
)

// countedSeries is a series of the model: of an agent, or a state.
type countedSeries struct {
	of     *naiveAgent
	family string
	labels map[string]string
	dead   bool
}

// countedSeries returns all series of the model, with all labels that name agents.
func (m *naive) countedSeries() (all []countedSeries) {
	grouped := m.keep
	defer func() { m.keep = grouped }()
	m.keep = IdentityLabels()
	add := func(a *naiveAgent, name string, extra map[string]string, dead bool) {
		l := m.seriesLabels(a, name, extra).Map()
		delete(l, model.MetricNameLabel)
		all = append(all, countedSeries{a, name, l, dead})
	}
	for _, a := range m.agents {
		for _, s := range a.series {
			add(a, s.name, s.labels, s.dead)
		}
		for name := range a.stats {
			add(a, name, nil, false)
		}
		for app, n := range a.apps {
			if n > 0 {
				add(a, sessionsFamily.Name, appLabels(app), false)
			}
		}
	}
	states := make(map[string]bool)
	for _, s := range m.states {
		if !states[s.series] {
			states[s.series] = true
			l := maps.Clone(s.labels)
			name := l[model.MetricNameLabel]
			delete(l, model.MetricNameLabel)
			all = append(all, countedSeries{family: name, labels: l})
		}
	}
	return all
}

// count compares the counts of a dimension, and another grouping, with those of the model.
func (w *world) count(t *rapid.T) {
	q := cardinality.Query{
		By:     rapid.SampledFrom(cardinality.AllDimensions()).Draw(t, "by"),
		Family: rapid.SampledFrom([]string{"", "", "a_total", "b", "coderd_agents_up", sessionsFamily.Name, statsNames[0], "absent"}).Draw(t, "of family"),
		Limit:  rapid.SampledFrom([]int{0, 1, 2, cardinality.MaxCounts}).Draw(t, "limit"),
	}
	if q.By == cardinality.ByLabelValue {
		q.Label = rapid.SampledFrom([]string{"", "", "x", "username", labelTemplateName}).Draw(t, "of label")
	}
	all := w.model.countedSeries()
	want := countNaively(all, q)
	got, err := w.real.Cardinality(t.Context(), q)
	require.NoError(t, err)
	require.Equal(t, len(want), got.Names)
	sum, counts := 0, make(map[string]int)
	for name, n := range want {
		sum += n.Series
		counts[name] = n.Series
	}
	require.Equal(t, sum, got.Sum)
	limit := q.Limit
	if limit == 0 {
		limit = cardinality.DefaultCounts
	}
	require.Len(t, got.Counts, min(limit, len(want)))
	for i, n := range got.Counts {
		key := nameOf(n)
		require.Equal(t, want[key], n, "%v %q", q.By, key)
		delete(want, key)
		if i > 0 {
			require.GreaterOrEqual(t, got.Counts[i-1].Series, n.Series)
		}
		for name := range want {
			require.LessOrEqual(t, counts[name], n.Series, "%q was left out", name)
		}
	}
	w.countTotals(t, all, got)
	w.regroup(t, all)
}

func nameOf(n cardinality.Count) string {
	return fmt.Sprintf("%q %q %q %q %v", n.Label, n.Owner, n.Workspace, n.Name, n.Agent)
}

// countNaively returns the counts by what they are of.
func countNaively(all []countedSeries, q cardinality.Query) map[string]cardinality.Count {
	out := make(map[string]cardinality.Count)
	values := make(map[string]map[string]bool)
	add := func(n cardinality.Count) {
		n.Series = out[nameOf(n)].Series + 1
		out[nameOf(n)] = n
	}
	for _, s := range all {
		if q.Family != "" && s.family != q.Family {
			continue
		}
		if q.By == cardinality.ByFamily {
			add(cardinality.Count{Name: s.family})
		}
		for name, value := range s.labels {
			if values[name] == nil {
				values[name] = make(map[string]bool)
			}
			values[name][value] = true
			switch {
			case q.By == cardinality.ByLabel:
				add(cardinality.Count{Name: name})
			case q.By == cardinality.ByLabelValue && (q.Label == "" || q.Label == name):
				add(cardinality.Count{Label: name, Name: value})
			}
		}
		if s.of == nil {
			continue
		}
		ident := s.of.ident
		switch q.By {
		case cardinality.ByTemplate:
			add(cardinality.Count{Name: ident.TemplateName})
		case cardinality.ByOwner:
			add(cardinality.Count{Name: ident.Username})
		case cardinality.ByWorkspace:
			add(cardinality.Count{Owner: ident.Username, Name: ident.WorkspaceName})
		case cardinality.ByAgent:
			add(cardinality.Count{Owner: ident.Username, Workspace: ident.WorkspaceName, Name: ident.AgentName, Agent: s.of.id})
		}
	}
	if q.By == cardinality.ByLabel {
		for key, n := range out {
			n.Values = len(values[n.Name])
			out[key] = n
		}
	}
	return out
}

// countTotals compares the totals with the model, and what an ungrouped scrape shows.
func (w *world) countTotals(t *rapid.T, all []countedSeries, got *cardinality.Result) {
	descs, states, served := make(map[string]bool), 0, 0
	for _, s := range all {
		if s.of == nil {
			states++
			continue
		}
		if _, reported := s.of.stats[s.family]; !reported && s.family != sessionsFamily.Name {
			own := maps.Clone(s.labels)
			for _, name := range identityNames {
				delete(own, name)
			}
			descs[s.family+labels.FromMap(own).String()] = true
		}
		if w.model.served(s.of) && !s.dead {
			served++
		}
	}
	hidden := 0
	for _, a := range w.model.agents {
		if !w.model.served(a) {
			hidden++
		}
	}
	require.Equal(t, len(all)-states, got.Series, "series")
	require.Equal(t, states, got.States, "states")
	require.Equal(t, w.seriesCount()-int64(len(all)), int64(got.Groups), "groups")
	require.Equal(t, len(descs)+len(statsNames)+len(agent.SessionApps), got.Descriptors, "descriptors")
	require.Equal(t, len(w.model.agents), got.Agents, "agents")
	require.Equal(t, hidden, got.HiddenAgents, "hidden agents")
	if w.model.grouped() {
		return
	}
	scraped, err := scrapeBoth(w.real)
	require.NoError(t, err)
	require.Len(t, scraped.values, served+states, "series of a scrape")
}

// regroup compares the series of another grouping with the model.
func (w *world) regroup(t *rapid.T, all []countedSeries) {
	groupBy := rapid.SliceOfN(rapid.SampledFrom(IdentityLabels()), 0, 4).Draw(t, "group by")
	got, err := w.real.WhatIf(t.Context(), groupBy, 0)
	require.NoError(t, err)
	keep := groupBy
	if len(keep) == 0 {
		keep = IdentityLabels()
	}
	onlyTemplate := !slices.ContainsFunc(keep, func(l string) bool { return l != labelTemplateName })
	after, before := make(map[string]int), 0
	seen := make(map[string]bool)
	for _, s := range all {
		if s.of != nil && (!w.model.served(s.of) || s.dead) {
			continue
		}
		before++
		kept := maps.Clone(s.labels)
		for _, l := range identityNames {
			if s.of != nil && !slices.Contains(keep, l) {
				delete(kept, l)
			}
		}
		key := s.family + labels.FromMap(kept).String()
		_, reserved := w.model.reserved[s.family]
		if refused := reserved && onlyTemplate; !seen[key] && !refused {
			after[s.family]++
		}
		seen[key] = true
	}
	if w.model.grouped() {
		before = int(w.seriesCount()) - len(all)
		for _, s := range all {
			if s.of == nil {
				before++
			}
		}
	}
	require.Equal(t, before, got.Before, "before")
	sum, sumBefore := 0, 0
	for _, f := range got.Families {
		require.Equal(t, after[f.Name], f.After, "after, of %s", f.Name)
		sum, sumBefore = sum+f.After, sumBefore+f.Before
		delete(after, f.Name)
	}
	require.Empty(t, after)
	require.Equal(t, sum, got.After, "after")
	require.Equal(t, before, sumBefore)
	require.Len(t, got.Families, got.Names)

	footprint, err := w.real.Footprint(t.Context(), cardinality.MaxCounts)
	require.NoError(t, err)
	series, bytes := 0, int64(0)
	for _, f := range footprint.Families {
		series, bytes = series+f.Series, bytes+f.Bytes
	}
	require.Equal(t, len(all), series, "series that take memory")
	require.Equal(t, footprint.Bytes, bytes)
	require.Len(t, footprint.Families, footprint.Names)
}

// The bytes of families and agents are most of what the heap has.
func TestFootprint(t *testing.T) {
	for name, groupBy := range groupings {
		t.Run(name, func(t *testing.T) {
			before := heap()
			a := fleetWith(t, 40_000, Options{GroupBy: groupBy})
			compare := func() {
				t.Helper()
				got, err := a.Footprint(t.Context(), 1)
				require.NoError(t, err)
				require.InEpsilon(t, heap()-before, got.Bytes+got.AgentBytes, 0.2)
			}
			compare()
			require.NoError(t, a.WriteText(&discard{})) // makes the lines of groups
			compare()
			require.NoError(t, a.WriteProtobuf(&discard{}))
			compare()
		})
	}
}

// What is served with another grouping is what an aggregator with it serves.
func TestWhatIf(t *testing.T) {
	fill := func(a *Aggregator) {
		for n := range byte(12) {
			ident := identity(fmt.Sprint("agent", n%3))
			ident.Username, ident.WorkspaceName, ident.TemplateName = fmt.Sprint("user", n%2), fmt.Sprint("ws", n), fmt.Sprint("tpl", n%4)
			a.Open(id(n+1), ident, agent.Session{Epoch: 1, First: true})
			r := samples(sample("a_total", agent.Counter, 1, "n", fmt.Sprint(n%5)), sample("b", agent.Gauge, 1))
			r.stats.ConnectionCount = 1
			r.stats.Apps[agent.AppSSH] = int64(n % 2)
			require.Empty(t, refusals(a.Report(id(n+1), 1, time.Now(), r)))
		}
		require.NoError(t, a.SetState(agent.SeriesKey{ID: id(1)}, []agent.Series{{Family: "coderd_agents_up", Value: 1}}))
	}
	now := newTest(t, Options{GroupBy: []string{"username"}})
	fill(now)
	for n := range 1 << len(identityNames) {
		var groupBy []string
		for i, name := range identityNames {
			if n&(1<<i) != 0 {
				groupBy = append(groupBy, name)
			}
		}
		got, err := now.WhatIf(t.Context(), groupBy, 0)
		require.NoError(t, err)
		before, err := scrapeBoth(now)
		require.NoError(t, err)
		require.Len(t, before.values, got.Before)
		then := newTest(t, Options{GroupBy: groupBy})
		fill(then)
		after, err := scrapeBoth(then)
		require.NoError(t, err)
		require.Len(t, after.values, got.After, "%v", groupBy)
	}
	// coderd pushes b too. Beside it series of agents must keep a label of agents.
	now.ReserveFamilies(map[string]metrics.Type{"b": metrics.Gauge})
	got, err := now.WhatIf(t.Context(), []string{labelTemplateName}, 0)
	require.NoError(t, err)
	require.Contains(t, got.Families, FamilyWhatIf{Name: "b", Before: 2})
	_, err = now.WhatIf(t.Context(), []string{"template_name", "owner"}, 0)
	require.ErrorContains(t, err, `"owner" is not a valid aggregation label`)
}

// Growth is known a minute after the aggregator runs, of the names that were the largest.
func TestGrowth(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a := newTest(t, Options{SeriesTTL: time.Hour, ReportInterval: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = a.Run(ctx)
		}()
		defer func() { cancel(); <-done }()
		a.Open(id(1), identity("a"), agent.Session{Epoch: 1})
		report := func(n int) {
			var all []agent.Sample
			for i := range n {
				all = append(all, sample("big", agent.Gauge, 1, "n", fmt.Sprint(i)))
			}
			require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), samples(all...))))
		}
		count := func(by cardinality.Dimension) *cardinality.Result {
			t.Helper()
			r, err := a.Cardinality(t.Context(), cardinality.Query{By: by})
			require.NoError(t, err)
			return r
		}
		synctest.Wait()
		report(10)
		time.Sleep(59 * time.Second)
		first := count(cardinality.ByFamily)
		require.Zero(t, first.GrowthOver)
		require.False(t, first.Counts[0].GrowthKnown)

		time.Sleep(31 * time.Second) // samples at 0 s, with nothing, and at 60 s, with 10
		report(25)
		then := count(cardinality.ByFamily)
		require.Equal(t, 90*time.Second, then.GrowthOver)
		require.Equal(t, cardinality.Count{Name: "big", Series: 25, Growth: 25 / 1.5, GrowthKnown: true}, then.Counts[0])

		time.Sleep(30 * time.Second) // and at 120 s, with 25
		synctest.Wait()
		report(40)
		for by, growth := range map[cardinality.Dimension]float64{
			cardinality.ByFamily: 30, cardinality.ByLabel: 30, cardinality.ByAgent: 30, cardinality.ByOwner: 30,
			cardinality.ByTemplate: 30, cardinality.ByWorkspace: 30, cardinality.ByLabelValue: 30,
		} {
			r := count(by)
			require.Equal(t, time.Minute, r.GrowthOver)
			require.True(t, r.Counts[0].GrowthKnown, by.String())
			require.Equal(t, growth, r.Counts[0].Growth, "by %v", by)
		}
		of, err := a.Cardinality(t.Context(), cardinality.Query{Family: "big"})
		require.NoError(t, err)
		require.False(t, of.Counts[0].GrowthKnown, "of one family it is not sampled")
	})
}

func TestCardinalityRefuses(t *testing.T) {
	a := newTest(t, Options{})
	for want, q := range map[string]cardinality.Query{
		"limit: want 0 to 10000, got 10001":          {Limit: 10001},
		"limit: want 0 to 10000, got -1":             {Limit: -1},
		"dimension: want one of family, label, ":     {By: 7},
		`label: want none by family, got "username"`: {Label: "username"},
	} {
		_, err := a.Cardinality(t.Context(), q)
		require.ErrorContains(t, err, want)
	}
	_, err := a.Footprint(t.Context(), 10001)
	require.ErrorContains(t, err, "footprint: limit: want 0 to 10000, got 10001")
	_, err = a.WhatIf(t.Context(), nil, -1)
	require.ErrorContains(t, err, "what if: limit: want 0 to 10000, got -1")
	for _, d := range cardinality.AllDimensions() {
		got, ok := cardinality.ParseDimension(d.String())
		require.True(t, ok)
		require.Equal(t, d, got)
	}
	_, ok := cardinality.ParseDimension("agents")
	require.False(t, ok)
}

// A call ends when its context does, also while it waits for another one.
func TestCountingIsCancelled(t *testing.T) {
	a := newTest(t, Options{})
	for n := range byte(3) {
		a.Open(id(n), identity(fmt.Sprint(n)), agent.Session{Epoch: 1})
		a.Report(id(n), 1, time.Now(), samples(sample("a", agent.Gauge, 1, "n", fmt.Sprint(n))))
	}
	calls := map[string]func(context.Context) error{
		"cardinality": func(ctx context.Context) error {
			_, err := a.Cardinality(ctx, cardinality.Query{By: cardinality.ByLabelValue})
			return err
		},
		"footprint": func(ctx context.Context) error { _, err := a.Footprint(ctx, 0); return err },
		"what if":   func(ctx context.Context) error { _, err := a.WhatIf(ctx, nil, 0); return err },
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range calls {
		require.ErrorIs(t, call(ctx), context.Canceled, name)
		require.NoError(t, call(t.Context()), name)
	}
	a.counting <- struct{}{}
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		require.ErrorIs(t, call(ctx), context.DeadlineExceeded, name)
		cancel()
	}
}

// A walk ends between two steps. Meanwhile the map may change.
func TestWalk(t *testing.T) {
	a := newTest(t, Options{})
	const descs = 5 * walk.Step
	key := func(i int) []byte { return appendKey(nil, fmt.Sprint("n", i), nil) }
	for i := range descs {
		require.NotNil(t, a.descs.create(key(i), 0, a.families))
	}
	seen := make(map[string]int)
	n := 0
	require.NoError(t, walk.Each(t.Context(), a.descs.mu.RLocker(), a.descs.byKey, func(d *desc) {
		seen[d.name]++
		n++
		if n%walk.Step == 1 { // no lock is held
			require.NotNil(t, a.descs.create(key(descs+n), 0, a.families))
		}
	}))
	for i := range descs {
		require.Equal(t, 1, seen[fmt.Sprint("n", i)])
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	require.ErrorIs(t, walk.Each(ctx, a.descs.mu.RLocker(), a.descs.byKey, func(*desc) {
		cancel()
		n++
	}), context.Canceled)
	require.Equal(t, walk.Step, n)
}
