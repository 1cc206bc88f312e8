package integration

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const rulesFile = "../deploy/prometheus/agentstatsd.rules.yml"

var promQL = parser.NewParser(parser.Options{})

// scaledRules returns a file with the rules in which all times pass faster by a factor:
// ranges, steps, offsets, `for` and the intervals of groups.
func scaledRules(t *testing.T, factor int) string {
	t.Helper()
	file, errs := rulefmt.ParseFile(rulesFile, false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	require.Empty(t, errs)
	shorter := func(d time.Duration) time.Duration { return d / time.Duration(factor) }
	ranges := 0
	for _, g := range file.Groups {
		for i := range g.Rules {
			r := &g.Rules[i]
			r.For, r.KeepFiringFor = model.Duration(shorter(time.Duration(r.For))), model.Duration(shorter(time.Duration(r.KeepFiringFor)))
			expr, err := promQL.ParseExpr(r.Expr)
			require.NoError(t, err)
			parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
				switch node := node.(type) {
				case *parser.MatrixSelector:
					node.Range = shorter(node.Range)
					ranges++
				case *parser.SubqueryExpr:
					node.Range, node.Step, node.OriginalOffset = shorter(node.Range), shorter(node.Step), shorter(node.OriginalOffset)
				case *parser.VectorSelector:
					node.OriginalOffset = shorter(node.OriginalOffset)
				}
				return nil
			})
			r.Expr = expr.String()
		}
	}
	require.Positive(t, ranges)
	for i := range file.Groups {
		file.Groups[i].Interval = model.Duration(shorter(time.Duration(file.Groups[i].Interval)))
	}
	text, err := yaml.Marshal(file)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "rules.yml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return path
}

// monitoring is a Prometheus with the rules, without its process.
type monitoring struct {
	*prometheus
	manager *rules.Manager
	began   time.Time
}

// monitor scrapes targets in one job and evaluates the rules of a file, both at each
// interval.
func monitor(t *testing.T, rulesFile string, interval time.Duration, targets ...string) *monitoring {
	t.Helper()
	group := &targetgroup.Group{}
	for _, target := range targets {
		group.Targets = append(group.Targets, model.LabelSet{model.AddressLabel: model.LabelValue(target)})
	}
	configuration := fmt.Sprintf("scrape_configs:\n  - job_name: stats\n    scrape_interval: %s\n    scrape_timeout: %[1]s\n", model.Duration(interval))
	m := &monitoring{
		prometheus: startConfigured(t, configuration, map[string][]*targetgroup.Group{"stats": {group}}),
		began:      time.Now(),
	}
	m.manager = rules.NewManager(&rules.ManagerOptions{
		ExternalURL: new(url.URL), QueryFunc: rules.EngineQueryFunc(m.engine, m.db), Context: t.Context(),
		NotifyFunc:   func(context.Context, string, ...*rules.Alert) {},
		AppendableV2: m.db, Queryable: m.db, Logger: slog.New(slog.DiscardHandler), Registerer: client.NewRegistry(), Parser: promQL,
	})
	require.NoError(t, m.manager.Update(interval, []string{rulesFile}, labels.EmptyLabels(), "", nil))
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.manager.Run()
	}()
	t.Cleanup(func() {
		m.manager.Stop()
		<-done
	})
	return m
}

// alertState is that of one alert, the labels of its rule included.
type alertState struct {
	labels labels.Labels
	state  rules.AlertState
	text   string // summary and description
}

// active returns the alerts that are pending or firing, by name.
func (m *monitoring) active() map[string][]alertState {
	found := make(map[string][]alertState)
	for _, rule := range m.manager.AlertingRules() {
		for _, a := range rule.ActiveAlerts() {
			if a.State == rules.StatePending || a.State == rules.StateFiring {
				found[rule.Name()] = append(found[rule.Name()], alertState{a.Labels, a.State, a.Annotations.Get("summary") + " " + a.Annotations.Get("description")})
			}
		}
	}
	return found
}

// await waits until an alert with labels is in a state, or has resolved.
func (m *monitoring) await(t *testing.T, alert string, with map[string]string, state rules.AlertState, limit time.Duration) (text string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		states := make(map[rules.AlertState]string)
		for _, a := range m.active()[alert] {
			has := a.labels.Map()
			if !slices.ContainsFunc(slices.Collect(maps.Keys(with)), func(name string) bool { return has[name] != with[name] }) {
				states[a.state] = a.text
			}
		}
		if text, ok := states[state]; ok || state == rules.StateInactive && len(states) == 0 {
			return text
		}
		require.True(t, time.Now().Before(deadline), "%s is not %v after %v: %v", alert, state, limit, m.active())
	}
}

// fired returns the names of the alerts that have fired since the beginning.
func (m *monitoring) fired(t *testing.T) (names []string) {
	t.Helper()
	for _, s := range m.query(t, fmt.Sprintf(`count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[%dms]))`, time.Since(m.began).Milliseconds()+1), time.Now()) {
		names = append(names, s.Metric.Get("alertname"))
	}
	slices.Sort(names)
	return names
}

// awaitScraped waits until each target was scraped since now, and the rules were evaluated
// with that.
func (m *monitoring) awaitScraped(t *testing.T, targets int) {
	t.Helper()
	from := time.Now()
	require.Eventually(t, func() bool {
		v := m.query(t, fmt.Sprintf("count(timestamp(up == 1) > %d)", from.Unix()), time.Now())
		if len(v) != 1 || v[0].F != float64(targets) {
			return false
		}
		return !slices.ContainsFunc(m.manager.RuleGroups(), func(g *rules.Group) bool {
			return g.Name() == "agentstatsd-alerts" && g.GetLastEvaluation().Before(from.Add(time.Second))
		})
	}, 20*time.Second, 50*time.Millisecond, "not all of %d targets are scraped", targets)
	for _, rule := range m.manager.Rules() {
		require.NoError(t, rule.LastError(), rule.Name())
	}
}

// awaitSilent waits until no alert is pending but those that may be, as some are before all
// is scraped for the first time. None may have fired.
func (m *monitoring) awaitSilent(t *testing.T, but []string) {
	t.Helper()
	require.Eventually(t, func() bool {
		active := m.active()
		maps.DeleteFunc(active, func(name string, _ []alertState) bool { return slices.Contains(but, name) })
		return len(active) == 0
	}, 20*time.Second, 50*time.Millisecond, "in good order: %v", m.active())
	require.Empty(t, m.fired(t), "in good order")
}

// The file of a shorter time is the rules' own, but for times.
func TestScaledRules(t *testing.T) {
	parallel(t)
	text, err := os.ReadFile(scaledRules(t, 60))
	require.NoError(t, err)
	whole, err := os.ReadFile(rulesFile)
	require.NoError(t, err)
	require.Equal(t, strings.Count(string(whole), "- alert: "), strings.Count(string(text), "- alert: "))
	require.Contains(t, string(text), "agentstatsd_bridge_decoders_given_up_total[15s]")
	require.Contains(t, string(text), "for: 1m\n", "an hour")
	require.NotRegexp(t, `\[[0-9]+[hd]\]`, strings.ReplaceAll(string(text), "[12h]", ""))
}
