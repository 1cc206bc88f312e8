package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

// withoutData are queries that return nothing while all is well, and why. Their metrics and
// labels are checked all the same.
var withoutData = map[string]string{
	"agentstatsd: annotation Alerts":                                                     "no alert fires",
	"agentstatsd: annotation Reloads":                                                    "nobody reloads",
	"agentstatsd-workspaces: annotation Failed builds":                                   "no build fails for as long",
	"agentstatsd: Objectives and alerts (with the rules of deploy/prometheus): Alerts A": "no alert fires",
	"agentstatsd: Health: Certificates and tokens expire in B":                           "the stand-in's API token does not expire",
	"agentstatsd-workspaces: Agents: Apps that are not healthy A":                        "apps of the simulation that begin are healthy soon",
}

// grafanaDashboard is what the test reads of one.
type grafanaDashboard struct {
	UID        string
	Panels     []grafanaPanel
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
			AllValue   string
		}
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
}

type grafanaPanel struct {
	Type    string
	Title   string
	Targets []struct{ RefID, Expr, LegendFormat string }
	Panels  []grafanaPanel // of a row that is closed
}

// dashboardQuery is one thing that a dashboard asks Prometheus.
type dashboardQuery struct {
	name   string
	expr   string
	legend string
}

func readDashboards(t *testing.T) []grafanaDashboard {
	t.Helper()
	files, err := filepath.Glob("../deploy/grafana/dashboards/*.json")
	require.NoError(t, err)
	require.Len(t, files, 2)
	var out []grafanaDashboard
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var d grafanaDashboard
		require.NoError(t, json.Unmarshal(text, &d), file)
		out = append(out, d)
	}
	return out
}

// queries returns what all panels and annotations ask, with the variables as they stand.
func (d grafanaDashboard) queries() (out []dashboardQuery) {
	row := ""
	var of func(panels []grafanaPanel)
	of = func(panels []grafanaPanel) {
		for _, p := range panels {
			if p.Type == "row" {
				row = p.Title
			}
			for _, target := range p.Targets {
				name := fmt.Sprintf("%s: %s: %s %s", d.UID, row, p.Title, target.RefID)
				out = append(out, dashboardQuery{name, target.Expr, target.LegendFormat})
			}
			of(p.Panels)
		}
	}
	of(d.Panels)
	for _, a := range d.Annotations.List {
		out = append(out, dashboardQuery{name: d.UID + ": annotation " + a.Name, expr: a.Expr})
	}
	return out
}

var labelValues = regexp.MustCompile(`^label_values\((.+), ([a-z_]+)\)$`)

// variables returns what is chosen in a dashboard: all is what All is, chosen is each value
// by itself. Each variable's query finds values, with those of the variables before it.
func (d grafanaDashboard) variables(t *testing.T, p *prometheus, now time.Time) (all, chosen map[string]string) {
	t.Helper()
	all, chosen = make(map[string]string), make(map[string]string)
	for _, v := range d.Templating.List {
		if v.Type == "datasource" {
			continue
		}
		definition, _ := v.Query.(map[string]any)
		m := labelValues.FindStringSubmatch(fmt.Sprint(definition["query"]))
		require.NotNil(t, m, "%s: %v", v.Name, v.Query)
		var found []string
		for _, s := range p.query(t, fmt.Sprintf("group by (%s) (%s)", m[2], interpolated(m[1], chosen)), now) {
			found = append(found, regexp.QuoteMeta(s.Metric.Get(m[2])))
		}
		require.NotEmpty(t, found, "%s: %s finds values", d.UID, v.Name)
		slices.Sort(found)
		chosen[v.Name] = "(" + strings.Join(found, "|") + ")"
		if d.UID == "agentstatsd-workspaces" && v.Name == "job" {
			chosen[v.Name] = "agentstatsd" // one of several that serve a family, as its description says
		}
		all[v.Name] = cmp.Or(v.AllValue, chosen[v.Name])
	}
	return all, chosen
}

// interpolated puts values in place of variables, as Grafana does.
func interpolated(expr string, values map[string]string) string {
	pairs := []string{"$__rate_interval", "10s", "$__range", "30s"}
	for name, value := range values {
		pairs = append(pairs, "$"+name, strings.ReplaceAll(value, `\`, `\\`))
	}
	return strings.NewReplacer(pairs...).Replace(expr)
}

// TestDashboards runs every query of every dashboard in a real Prometheus, over scrapes of
// the demo with PostgreSQL and TLS, of a second replica, and of the stand-in for a stock coderd
// with its bridge. Each parses, returns series with the labels that its legend names, and asks
// for metrics and labels that are there.
func TestDashboards(t *testing.T) {
	beside(t)
	p := startDashboardsSources(t)
	boards := readDashboards(t)

	// Everything has data sooner or later: rates with the second scrape, replicas when they know of
	// one another, builds when the first one ends.
	var missing []string
	found := make(map[string]promql.Vector)
	deadline := time.Now().Add(time.Minute)
	for {
		missing = missing[:0]
		now := time.Now()
		ready := len(p.query(t, "group by (instance) (up == 1)", now)) == 3 &&
			len(p.query(t, `coderd_agents_up{job="agentstatsd"}`, now)) > 0
		if ready {
			p.record(t, now)
		}
		for _, d := range boards {
			if !ready {
				missing = append(missing, d.UID)
				break
			}
			all, _ := d.variables(t, p, now)
			for _, q := range d.queries() {
				if len(found[q.name]) > 0 {
					continue
				}
				found[q.name] = p.query(t, interpolated(q.expr, all), now)
				if len(found[q.name]) == 0 && withoutData[q.name] == "" {
					missing = append(missing, q.name)
				}
			}
		}
		if len(missing) == 0 {
			break
		}
		require.True(t, time.Now().Before(deadline), "no data: %s", strings.Join(missing, ", "))
		time.Sleep(200 * time.Millisecond)
	}

	var text strings.Builder
	out := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "panel\tseries\tquery")
	names := make(map[string]bool)
	for _, d := range boards {
		_, chosen := d.variables(t, p, time.Now())
		for _, q := range d.queries() {
			p.query(t, interpolated(q.expr, chosen), time.Now())
			require.False(t, names[q.name], "%s: two have one name", q.name)
			names[q.name] = true
			series := fmt.Sprint(len(found[q.name]))
			if len(found[q.name]) == 0 {
				series = "none: " + withoutData[q.name]
			}
			fmt.Fprintf(out, "%s\t%s\t%s\n", q.name, series, q.expr)
			requireLegend(t, q, found[q.name])
			p.requireKnown(t, q)
		}
	}
	for _, s := range found["agentstatsd: Durability: Unaccounted metadata A"] {
		require.Zero(t, s.F, "what is received is flushed, coalesced, unchanged, dropped or pending")
	}
	for name := range withoutData {
		require.True(t, names[name], "%s is a query", name)
	}
	require.NoError(t, out.Flush())
	t.Logf("\n%s", &text)
}

// startDashboardsSources starts what the dashboards ask of, and a Prometheus that scrapes it.
func startDashboardsSources(t *testing.T) *prometheus {
	t.Helper()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(token, []byte(uuid.NewString()), 0o600))
	writeCertificate(t, dir)
	url := postgrestest.Shared(t).CreateDatabase(t)
	shared := []string{
		"--database-url", url, "--coderd-token-file", token, "--lease-duration", lease.String(),
		"--tls-cert-file", filepath.Join(dir, "tls.crt"), "--tls-key-file", filepath.Join(dir, "tls.key"),
		"--report-interval", "1s", "--metadata-flush-interval", "1s",
	}
	demo, second := newService(t, shared...), newService(t, shared...)
	demo.command = "demo"
	demo.start(t)
	second.start(t)
	bridged, _ := startDemoBridge(t)
	settings, namespace := []string{"scrape_native_histograms: true", "always_scrape_classic_histograms: true"}, model.LabelSet{"namespace": "coder"}
	return startPrometheus(t, "",
		job{name: "agentstatsd", settings: settings, labels: namespace, targets: []string{demo.httpAddr, second.httpAddr}},
		job{name: "agentstatsd-bridge", settings: settings, labels: namespace, targets: []string{bridged.httpAddr}})
}

// record evaluates the recording rules that are shipped, each after those before it.
func (p *prometheus) record(t *testing.T, now time.Time) {
	t.Helper()
	groups, errs := rulefmt.ParseFile("../deploy/prometheus/agentstatsd.rules.yml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	require.Empty(t, errs)
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			if rule.Record == "" {
				continue
			}
			found := p.query(t, rule.Expr, now)
			app := p.db.Appender(t.Context())
			for _, s := range found {
				b := labels.NewBuilder(s.Metric).Set(model.MetricNameLabel, rule.Record)
				for name, value := range rule.Labels {
					b.Set(name, value)
				}
				_, err := app.Append(0, b.Labels(), now.UnixMilli(), s.F)
				require.NoError(t, err)
			}
			require.NoError(t, app.Commit())
		}
	}
}

// legendLabels are the labels of a legend; those that stand side by side are names of one
// thing in several versions of Coder.
var legendLabels = regexp.MustCompile(`(\{\{[a-z_]+\}\})+`)

// requireLegend requires that each series has what its legend names, and that no two look alike.
func requireLegend(t *testing.T, q dashboardQuery, found promql.Vector) {
	t.Helper()
	seen := make(map[string]bool)
	for _, s := range found {
		text := legendLabels.ReplaceAllStringFunc(q.legend, func(m string) (value string) {
			for _, name := range strings.Split(strings.Trim(m, "{}"), "}}{{") {
				value += s.Metric.Get(name)
			}
			require.NotEmpty(t, value, "%s: the legend %s of %s", q.name, q.legend, s.Metric)
			return value
		})
		require.False(t, q.legend != "" && seen[text], "%s: two series are %q", q.name, text)
		seen[text] = true
	}
}

// requireKnown requires that the metrics and labels of a query exist in what was scraped.
func (p *prometheus) requireKnown(t *testing.T, q dashboardQuery) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(interpolated(q.expr, map[string]string{
		"namespace": ".*", "job": ".*", "instance": ".*", "template": ".*", "owner": ".*", "workspace": ".*",
	}))
	require.NoError(t, err, q.name)
	require.NotContains(t, expr.String(), "$", q.name)
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			known := p.labelsOf(t, n)
			for _, m := range n.LabelMatchers {
				require.Contains(t, known, m.Name, "%s: %s", q.name, n)
			}
		case *parser.AggregateExpr:
			require.Subset(t, p.labelsOf(t, n.Expr), n.Grouping, "%s: %s", q.name, n)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil && n.VectorMatching.On {
				require.Subset(t, p.labelsOf(t, n.LHS), n.VectorMatching.MatchingLabels, "%s: %s", q.name, n)
				require.Subset(t, p.labelsOf(t, n.RHS), append(n.VectorMatching.MatchingLabels, n.VectorMatching.Include...), "%s: %s", q.name, n)
			}
		}
		return nil
	})
}

// labelsOf returns the labels that the metrics in an expression have in the scrapes.
func (p *prometheus) labelsOf(t *testing.T, node parser.Node) []string {
	t.Helper()
	known := make(map[string]bool)
	parser.Inspect(node, func(node parser.Node, _ []parser.Node) error {
		n, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		if n.Name == "ALERTS" { // which Prometheus makes of the rules
			for _, name := range []string{model.MetricNameLabel, "alertname", "alertstate", "severity", "job"} {
				known[name] = true
			}
			return nil
		}
		names := p.labelNames(t, n.Name)
		require.NotEmpty(t, names, "%s is scraped", n.Name)
		// The documented labels are those of an older coderd, too.
		for _, name := range append(names, documentedFamilies(t)[n.Name].labels...) {
			known[name] = true
		}
		return nil
	})
	return slices.Collect(maps.Keys(known))
}

func (p *prometheus) labelNames(t *testing.T, metric string) []string {
	t.Helper()
	q, err := p.db.Querier(0, time.Now().UnixMilli())
	require.NoError(t, err)
	defer func() { require.NoError(t, q.Close()) }()
	names, _, err := q.LabelNames(t.Context(), &storage.LabelHints{}, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, metric))
	require.NoError(t, err)
	return names
}
