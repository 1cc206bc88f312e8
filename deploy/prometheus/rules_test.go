// Package prometheus_test tests the rules beside it, and the runbooks of their alerts.
package prometheus_test

import (
	"bufio"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/template"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const (
	rulesFile = "agentstatsd.rules.yml"
	testsFile = "agentstatsd.rules.test.yml"
	// mostAlerts is as many as people keep in mind.
	mostAlerts = 14
)

// rule is one of them.
type rule = rulefmt.Rule

var promql3 = parser.NewParser(parser.Options{})

// readRules returns all rules, as Prometheus 3 reads them.
func readRules(t *testing.T) (alerts, recordings []rulefmt.Rule) {
	t.Helper()
	groups, errs := rulefmt.ParseFile(rulesFile, false, model.UTF8Validation, promql3, slog.New(slog.DiscardHandler))
	require.Empty(t, errs)
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				alerts = append(alerts, r)
			} else {
				recordings = append(recordings, r)
			}
		}
	}
	return alerts, recordings
}

// unitTest is one that promtool evaluates.
type unitTest struct {
	Expr       string `json:"expr"`
	EvalTime   string `json:"eval_time"`
	ExpSamples []struct {
		Labels string  `json:"labels"`
		Value  float64 `json:"value"`
	} `json:"exp_samples"`
}

func readUnitTests(t *testing.T) (all []unitTest) {
	t.Helper()
	text, err := os.ReadFile(testsFile)
	require.NoError(t, err)
	var file struct {
		Tests []struct {
			PromqlExprTest []unitTest `json:"promql_expr_test"`
		} `json:"tests"`
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	for _, test := range file.Tests {
		all = append(all, test.PromqlExprTest...)
	}
	return all
}

// Debian's promtool takes the rules, and their tests succeed by it. Those of a Prometheus 3
// are run in integration.
func TestDebianPromtool(t *testing.T) {
	found, err := filepath.Glob("../../bin/debian/usr/bin/promtool")
	require.NoError(t, err)
	require.Len(t, found, 1, "make servers downloads it")
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"test", "rules", testsFile}} {
		out, err := exec.Command(found[0], args...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
}

// Each alert has what whoever is woken needs, and there are not too many.
func TestAlertsAreComplete(t *testing.T) {
	alerts, _ := readRules(t)
	require.NotEmpty(t, alerts)
	require.LessOrEqual(t, len(alerts), mostAlerts)
	names := make(map[string]bool)
	for _, a := range alerts {
		require.Regexp(t, `^Agentstatsd[A-Z][A-Za-z]+$`, a.Alert)
		require.False(t, names[a.Alert], "%s is there twice", a.Alert)
		names[a.Alert] = true
		require.Contains(t, []string{"critical", "warning", "info"}, a.Labels["severity"], a.Alert)
		require.NotZero(t, a.For, "%s: one bad scrape wakes nobody", a.Alert)
		require.NotContains(t, a.Expr, "job=", "%s: jobs have any name", a.Alert)
		require.Len(t, a.Annotations, 4, a.Alert)
		require.Regexp(t, `^([A-Z]|\{\{).*\.$`, a.Annotations["summary"], a.Alert)
		require.Contains(t, a.Annotations["description"], "First: ", "%s: what to do", a.Alert)
		require.Contains(t, a.Annotations["description"], "$value", "%s: how bad it is", a.Alert)
		require.Equal(t, "https://github.com/coder/agentstatsd/blob/main/docs/runbooks/"+a.Alert+".md", a.Annotations["runbook_url"])
		require.Equal(t, "/d/agentstatsd", a.Annotations["dashboard"], a.Alert)
	}
}

// Each alert has a unit test in which it does not fire, then one in which it does, then one
// in which it has resolved; each recorded name has one with samples.
func TestRulesAreTested(t *testing.T) {
	alerts, recordings := readRules(t)
	tests := readUnitTests(t)
	for _, a := range alerts {
		var fired []int
		for _, test := range tests {
			if strings.Contains(test.Expr, `alertname="`+a.Alert+`"`) {
				fired = append(fired, len(test.ExpSamples))
			}
		}
		most := slices.Max(append(fired, 0))
		at := slices.Index(fired, most)
		require.Positive(t, most, "%s fires in no test", a.Alert)
		require.Positive(t, at, "%s: no test in which less fires, before", a.Alert)
		require.Less(t, fired[at-1], most, a.Alert)
		require.Zero(t, fired[len(fired)-1], "%s: no test in which it has resolved", a.Alert)
	}
	for _, r := range recordings {
		require.True(t, slices.ContainsFunc(tests, func(test unitTest) bool {
			return strings.Contains(test.Expr, r.Record) && len(test.ExpSamples) > 0
		}), "%s is in no test", r.Record)
	}
}

// series is ALERTS with its labels, as a test has them.
var series = regexp.MustCompile(`^ALERTS(\{.*\})$`)

// Summaries and descriptions are whole for each alert of the unit tests, with the labels
// that it has there.
func TestTemplatesRender(t *testing.T) {
	alerts, _ := readRules(t)
	rendered := make(map[string]bool)
	for _, test := range readUnitTests(t) {
		for _, sample := range test.ExpSamples {
			m := series.FindStringSubmatch(sample.Labels)
			if m == nil {
				continue
			}
			matched, err := promql3.ParseMetric(m[1])
			require.NoError(t, err)
			name := matched.Get("alertname")
			i := slices.IndexFunc(alerts, func(a rulefmt.Rule) bool { return a.Alert == name })
			require.GreaterOrEqual(t, i, 0, name)
			// What an alert's own template gets are the labels of its expression.
			of := labels.NewBuilder(matched).Del("alertname", "alertstate", "severity").Labels().Map()
			for _, annotation := range []string{"summary", "description"} {
				text := render(t, alerts[i].Annotations[annotation], of, 0.97)
				require.NotContains(t, text, "no value", name)
				require.NotRegexp(t, `[{}]|\b(of|on) ?[.,;:)]|  `, text, name)
				for _, label := range []string{"instance", "template", "cause", "slo", "what"} {
					if value := of[label]; value != "" && annotation == "summary" && strings.Contains(alerts[i].Annotations[annotation], "$labels."+label+" }}") {
						require.Contains(t, text, value, name)
					}
				}
			}
			rendered[name] = true
		}
	}
	require.Len(t, rendered, len(alerts))
}

func render(t *testing.T, text string, of map[string]string, value float64) string {
	t.Helper()
	defs := "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}"
	data := template.AlertTemplateData(of, nil, "", promql.Sample{F: value})
	nothing := func(context.Context, string, time.Time) (promql.Vector, error) { return nil, nil }
	out, err := template.NewTemplateExpander(t.Context(), defs+text, "alert", data, model.Now(), nothing, nil, nil).Expand()
	require.NoError(t, err, text)
	return out
}

// families returns the labels of each family of a fresh process, with the values that they
// have from the start; nil: they vary.
func families(t *testing.T) map[string]map[string][]string {
	t.Helper()
	file, err := os.Open("../../cmd/agentstatsd/testdata/fresh.tsv")
	require.NoError(t, err)
	defer file.Close()
	all := make(map[string]map[string][]string)
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if strings.HasPrefix(lines.Text(), "#") || len(fields) < 4 {
			continue
		}
		of := make(map[string][]string)
		for pair := range strings.FieldsSeq(fields[3]) {
			name, values, _ := strings.Cut(pair, "=")
			if of[name] = nil; values != "*" {
				of[name] = strings.Split(values, "|")
			}
		}
		all[fields[0]] = of
		if fields[1] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				all[fields[0]+suffix] = of
			}
		}
	}
	require.NoError(t, lines.Err())
	return all
}

// ofTargets are labels that Prometheus gives, or that the objectives or buckets have.
var ofTargets = []string{"job", "namespace", "instance", "slo", "le"}

// ofPrometheus are series that it makes of each scrape.
var ofPrometheus = []string{"up", "scrape_duration_seconds"}

// varying are labels that have more values than a fresh process knows.
var varying = []string{"template", "reason", "grpc_service"}

// requireKnown fails unless each series of an expression is one that the service has, or
// that is recorded, with labels and values that it can have.
func requireKnown(t *testing.T, where, expr string) {
	t.Helper()
	_, recordings := readRules(t)
	known := families(t)
	for _, name := range ofPrometheus {
		known[name] = map[string][]string{}
	}
	for _, r := range recordings {
		known[r.Record] = map[string][]string{}
	}
	known["ALERTS"] = map[string][]string{"alertname": nil, "alertstate": nil}
	parsed, err := promql3.ParseExpr(expr)
	require.NoError(t, err, "%s: %s", where, expr)
	made := []string{"cause"} // by label_replace
	all := make(map[string]bool)
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			of, ok := known[s.Name]
			require.True(t, ok, "%s: no series %s: %s", where, s.Name, expr)
			for name := range of {
				all[name] = true
			}
			for _, m := range s.LabelMatchers {
				if m.Name == model.MetricNameLabel || slices.Contains(ofTargets, m.Name) {
					continue
				}
				values, ok := of[m.Name]
				require.True(t, ok, "%s: %s has no label %s", where, s.Name, m.Name)
				if values == nil || slices.Contains(varying, m.Name) && s.Name != "agentstatsd_grpc_limited_total" {
					continue
				}
				for value := range strings.SplitSeq(m.Value, "|") {
					require.Contains(t, values, value, "%s: %s", where, s)
				}
			}
		}
		return nil
	})
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		var named []string
		switch node := node.(type) {
		case *parser.AggregateExpr:
			named = node.Grouping
		case *parser.BinaryExpr:
			if node.VectorMatching != nil {
				named = slices.Concat(node.VectorMatching.MatchingLabels, node.VectorMatching.Include)
			}
		}
		for _, name := range named {
			require.True(t, all[name] || slices.Contains(ofTargets, name) || slices.Contains(made, name), "%s: no series of it has a label %s: %s", where, name, expr)
		}
		return nil
	})
}

// All that the rules ask for is served, or recorded.
func TestRulesAskForWhatIsServed(t *testing.T) {
	alerts, recordings := readRules(t)
	for _, r := range slices.Concat(alerts, recordings) {
		requireKnown(t, r.Alert+r.Record, r.Expr)
	}
}
