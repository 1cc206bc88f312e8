package aggregator

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
)

// pushing is an aggregator beside families that coderd pushes.
type pushing struct {
	*testing.T
	*Aggregator
	reg    *prometheus.Registry
	pushed servedFamilies
}

func newPushing(t *testing.T, opts Options) *pushing {
	reg := prometheus.NewPedanticRegistry()
	a, err := New(opts, reg)
	require.NoError(t, err)
	for n := range byte(3) {
		a.Open(id(n), identity(string(rune('a'+n))), agent.Session{Epoch: 1, First: true})
	}
	return &pushing{T: t, Aggregator: a, reg: reg}
}

// push has coderd push these families and no others.
func (p *pushing) push(types map[string]metrics.Type) {
	p.Helper()
	p.pushed = nil
	for _, name := range slices.Sorted(maps.Keys(types)) {
		r, err := metrics.Render(pushedFamily(name, types[name]), types[name])
		require.NoError(p, err)
		p.pushed = append(p.pushed, r)
	}
	p.ReserveFamilies(types)
}

// report returns what is refused of an agent's samples, and for which reason.
func (p *pushing) report(n byte, s ...agent.Sample) map[string][]string {
	p.Helper()
	var out map[string][]string
	for _, r := range refusals(p.Report(id(n), 1, time.Now(), samples(s...))) {
		require.NotEmpty(p, r.Message)
		if out == nil {
			out = make(map[string][]string)
		}
		out[r.Reason] = r.Names
	}
	return out
}

// served returns the names of the families that are not documented, with the numbers
// of pushed and of forwarded series of each. Both formats must parse, and have the
// same.
func (p *pushing) served() string {
	p.Helper()
	got, err := scrapeBoth(p.Beside(p.pushed))
	require.NoError(p, err)
	count := make(map[string][2]int)
	for series := range got.values {
		name := strings.SplitAfter(strings.SplitAfter(series, `__name__="`)[1], `"`)[0]
		name = strings.TrimSuffix(name, `"`)
		n := count[name]
		if strings.Contains(series, `by="coderd"`) {
			n[0]++
		} else {
			n[1]++
		}
		count[name] = n
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		if !strings.HasPrefix(name, "coderd_") {
			out = append(out, name+strings.Repeat("P", count[name][0])+strings.Repeat("F", count[name][1]))
		}
	}
	return strings.Join(out, " ")
}

func (p *pushing) contradicted(want string) {
	p.Helper()
	require.NoError(p, testutil.GatherAndCompare(p.reg, strings.NewReader(`
# HELP agentstatsd_hidden_families Families of which agents send samples that are refused, because they cannot be served beside one that coderd pushes.
# TYPE agentstatsd_hidden_families gauge
agentstatsd_hidden_families `+want+"\n"), "agentstatsd_hidden_families"))
}

// A pushed and a forwarded family of one name and type are one, whichever was first.
func TestPushedFamilyJoinsForwarded(t *testing.T) {
	p := newPushing(t, Options{})
	require.Empty(t, p.report(1, sample("x", agent.Gauge, 1), sample("first", agent.Counter, 2, "l", "v"), sample("z", agent.Untyped, 3)))
	p.push(map[string]metrics.Type{"x": metrics.Gauge, "first": metrics.Counter, "later": metrics.Gauge, "alone": metrics.Histogram, "z": metrics.Untyped})
	require.Empty(t, p.report(2, sample("x", agent.Gauge, 4), sample("later", agent.Gauge, 5)))
	require.Equal(t, "alone_bucketP alone_countP alone_sumP firstPF laterPF xPFF zPF", p.served())
	p.contradicted("0")

	var text strings.Builder
	require.NoError(t, p.Beside(p.pushed).WriteText(&text))
	require.Contains(t, text.String(), "# HELP x Pushed.\n# TYPE x gauge\nx{by=\"coderd\"} 1\nx{agent_name=\"b\"")
	require.Equal(t, 1, strings.Count(text.String(), "# TYPE x "), "one header")

	p.Remove(id(2))
	require.Equal(t, "alone_bucketP alone_countP alone_sumP firstPF laterP xPF zPF", p.served(), "an agent goes")
	p.Remove(id(1))
	require.Equal(t, "alone_bucketP alone_countP alone_sumP firstP laterP xP zP", p.served(), "both go")
	require.Empty(t, p.report(0, sample("x", agent.Gauge, 6)))
	p.push(nil)
	require.Equal(t, "xF", p.served(), "what was pushed goes")
}

// passedFamilies are pushed families, of which some pass through from agents.
type passedFamilies struct {
	servedFamilies
	passed map[string]bool
}

// Served implements Pushed.
func (p passedFamilies) Served() ([]*metrics.Rendered, map[string]bool) {
	return p.servedFamilies, p.passed
}

// What passes through is served from pushes alone, also if another replica serves these.
func TestPassedFamiliesAreServedAlone(t *testing.T) {
	p := newPushing(t, Options{})
	require.Empty(t, p.report(1, sample("x", agent.Gauge, 1), sample("y", agent.Gauge, 1), sample("agent_scripts_executed_total", agent.Counter, 1)))
	require.NoError(t, p.SetState(agentKey(1), []agent.Series{{Family: "coderd_agents_up", Value: 1}}))
	p.push(map[string]metrics.Type{"coderd_agents_up": metrics.Gauge, "x": metrics.Gauge, "y": metrics.Gauge})
	passed := map[string]bool{"coderd_agents_up": true, "agent_scripts_executed_total": true, "x": true}
	for _, served := range []servedFamilies{p.pushed, nil} {
		got, err := scrapeBoth(p.Beside(passedFamilies{served, passed}))
		require.NoError(t, err)
		for series := range got.values {
			require.True(t, strings.Contains(series, `by="coderd"`) || strings.Contains(series, `__name__="y"`) || strings.Contains(series, `"coderd_agentstats_`), series)
		}
		require.Equal(t, served != nil, strings.Contains(fmt.Sprint(got.values), `coderd_agents_up`))
	}
}

// The pushed family has its type, whatever agents send. They are told.
func TestPushedTypeWins(t *testing.T) {
	p := newPushing(t, Options{})
	counter, gauge := sample("x", agent.Counter, 1), sample("x", agent.Gauge, 2)
	require.Empty(t, p.report(0, counter, sample("y", agent.Counter, 1)))
	require.Empty(t, p.report(1, counter))
	require.Equal(t, map[string][]string{"wrong_type": {"x"}}, p.report(2, gauge), "no push is to blame")

	p.push(map[string]metrics.Type{"x": metrics.Gauge, "y": metrics.Summary})
	require.Equal(t, "xP y_countP y_sumP", p.served(), "at once")
	p.contradicted("2")
	require.Equal(t, map[string][]string{"pushed_family": {"x", "y"}}, p.report(0, counter, sample("y", agent.Counter, 1)))
	require.Empty(t, p.report(2, gauge))
	require.Equal(t, "xPF y_countP y_sumP", p.served())
	require.InDelta(t, 2, testutil.ToFloat64(p.metrics.refused.WithLabelValues("pushed_family")), 0)

	p.push(map[string]metrics.Type{"x": metrics.Counter})
	require.Equal(t, "xP", p.served(), "coderd changes its mind")
	p.contradicted("1")
	require.Equal(t, map[string][]string{"pushed_family": {"x"}}, p.report(2, gauge))
	require.Empty(t, p.report(0, counter, sample("y", agent.Counter, 1)))
	require.Equal(t, "xPF yF", p.served())

	p.push(nil)
	require.Empty(t, p.report(1, counter))
	require.Equal(t, "xFF yF", p.served(), "what most agents send")
	p.contradicted("0")
	require.Equal(t, map[string][]string{"wrong_type": {"x"}}, p.report(2, gauge))
}

// Names collide also by the lines of a histogram or summary.
func TestPushedLinesWin(t *testing.T) {
	for typ, push := range map[string]metrics.Type{"histogram": metrics.Histogram, "summary": metrics.Summary} {
		t.Run(typ, func(t *testing.T) {
			p := newPushing(t, Options{})
			all := []agent.Sample{
				sample("x", agent.Gauge, 1), sample("x_bucket", agent.Gauge, 1), sample("x_count", agent.Counter, 1),
				sample("x_sum", agent.Untyped, 1), sample("x_total", agent.Counter, 1),
			}
			require.Empty(t, p.report(0, all...))
			p.push(map[string]metrics.Type{"x": push})
			bucket := ""
			if push == metrics.Histogram {
				bucket = "x_bucketP "
			}
			require.Equal(t, bucket+"x_countP x_sumP x_totalF", p.served())
			refused := map[string][]string{"pushed_family": {"x", "x_bucket", "x_count", "x_sum"}}
			require.Equal(t, refused, p.report(0, all...))
			require.Equal(t, refused, p.report(1, all...), "also of an agent that comes later")
			p.contradicted("4")
			p.push(map[string]metrics.Type{"x_count": metrics.Counter})
			require.Empty(t, p.report(0, all...), "x is no histogram of an agent's")
			require.Equal(t, "xF x_bucketF x_countPF x_sumF x_totalFF", p.served())
		})
	}
}

// Without a label that says who an agent is, its series could equal pushed ones.
func TestPushedFamilyAndGroups(t *testing.T) {
	p := newPushing(t, Options{GroupBy: []string{"template_name"}})
	x := sample("x", agent.Counter, 1)
	require.Empty(t, p.report(0, x, sample("y", agent.Counter, 1)))
	p.push(map[string]metrics.Type{"x": metrics.Counter})
	require.Equal(t, map[string][]string{"pushed_family": {"x"}}, p.report(0, x, sample("y", agent.Counter, 1)))
	require.Equal(t, "xP yF", p.served())

	p = newPushing(t, Options{GroupBy: []string{"template_name", "username"}})
	require.Empty(t, p.report(0, x))
	p.push(map[string]metrics.Type{"x": metrics.Counter})
	require.Empty(t, p.report(0, x))
	require.Empty(t, p.report(1, x))
	require.Equal(t, "xPF", p.served())
}

// coderd may not push a family that the service computes or agents are documented to
// forward. One that was stored before it was documented is not served beside it.
func TestDocumentedFamilyIsNotPushed(t *testing.T) {
	p := newPushing(t, Options{})
	p.push(map[string]metrics.Type{"coderd_agents_up": metrics.Gauge, "agent_scripts_executed_total": metrics.Gauge})
	require.Empty(t, p.report(0, sample("agent_scripts_executed_total", agent.Counter, 1)))
	require.Equal(t, "agent_scripts_executed_totalF", p.served())
}

// What is pushed may be larger than what a scrape buffers.
func TestJoinOfManySeries(t *testing.T) {
	p := newPushing(t, Options{MaxSeriesPerAgent: 2000})
	f := pushedFamily("x", metrics.Gauge)
	label := func(i int) string { return fmt.Sprintf("%0100d", i) }
	for i := range 3000 {
		f.Metric = append(f.Metric, &dto.Metric{Label: []*dto.LabelPair{{Name: proto.String("l"), Value: proto.String(label(i))}}, Gauge: &dto.Gauge{Value: proto.Float64(1)}})
	}
	r, err := metrics.Render(f, metrics.Gauge)
	require.NoError(t, err)
	p.pushed = servedFamilies{r}
	p.ReserveFamilies(map[string]metrics.Type{"x": metrics.Gauge})
	var forwarded []agent.Sample
	for i := range 2000 {
		forwarded = append(forwarded, sample("x", agent.Gauge, 1, "l", label(i)))
	}
	require.Empty(t, p.report(0, forwarded...))
	got, err := scrapeBoth(p.Beside(p.pushed))
	require.NoError(t, err)
	maps.DeleteFunc(got.values, func(series string, _ uint64) bool { return !strings.Contains(series, `__name__="x"`) })
	require.Len(t, got.values, 1+3000+2000)
}
