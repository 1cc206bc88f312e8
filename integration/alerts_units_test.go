package integration

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// rulesTest is one of deploy/prometheus/agentstatsd.rules.test.yml.
type rulesTest struct {
	Name        string
	Interval    model.Duration
	InputSeries []struct{ Series, Values string } `yaml:"input_series"`
	Expressions []struct {
		Expr     string
		EvalTime model.Duration `yaml:"eval_time"`
		Samples  []struct {
			Labels string
			Value  float64
		} `yaml:"exp_samples"`
	} `yaml:"promql_expr_test"`
}

// The unit tests of the rules succeed by Prometheus 3's own packages, as by its promtool;
// deploy/prometheus runs them by that of a Prometheus 2.
func TestRulesByPrometheus3(t *testing.T) {
	parallel(t)
	text, err := os.ReadFile("../deploy/prometheus/agentstatsd.rules.test.yml")
	require.NoError(t, err)
	var file struct {
		Interval model.Duration `yaml:"evaluation_interval"`
		Tests    []rulesTest
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	require.NotEmpty(t, file.Tests)
	for _, test := range file.Tests {
		t.Run(test.Name, func(t *testing.T) { test.run(t, time.Duration(file.Interval)) })
	}
}

func (test *rulesTest) run(t *testing.T, interval time.Duration) {
	var load strings.Builder
	fmt.Fprintf(&load, "load %v\n", test.Interval)
	for _, s := range test.InputSeries {
		fmt.Fprintf(&load, "  %s %s\n", s.Series, s.Values)
	}
	suite, err := promqltest.NewLazyLoader(load.String(), promqltest.LazyLoaderOpts{Parser: promQL})
	require.NoError(t, err)
	defer func() { require.NoError(t, suite.Close()) }()
	manager := rules.NewManager(&rules.ManagerOptions{
		QueryFunc: rules.EngineQueryFunc(suite.QueryEngine(), suite.Storage()), AppendableV2: suite.Storage(), Context: t.Context(),
		NotifyFunc: func(context.Context, string, ...*rules.Alert) {}, Logger: slog.New(slog.DiscardHandler), Parser: promQL,
	})
	loaded, errs := manager.LoadGroups(time.Duration(test.Interval), labels.EmptyLabels(), "", nil, false, rulesFile)
	require.Empty(t, errs)
	groups := slices.Collect(maps.Values(loaded))
	// In the order of the file: what is recorded is asked for by alerts.
	slices.SortFunc(groups, func(a, b *rules.Group) int { return strings.Compare(b.Name(), a.Name()) })
	for _, g := range groups {
		for _, r := range g.Rules() {
			if alert, ok := r.(*rules.AlertingRule); ok {
				alert.SetRestored(true) // so that there are ALERTS
			}
		}
	}
	end := time.Unix(0, 0)
	for _, e := range test.Expressions {
		end = time.Unix(0, max(end.UnixNano(), int64(e.EvalTime)))
	}
	for at := time.Unix(0, 0).UTC(); !at.After(end); at = at.Add(interval) {
		suite.WithSamplesTill(at, func(err error) {
			require.NoError(t, err)
			for _, g := range groups {
				g.Eval(suite.Context(), at)
				for _, r := range g.Rules() {
					require.NoError(t, r.LastError(), r.Name())
				}
			}
		})
	}
	for _, e := range test.Expressions {
		var want, got []string
		for _, s := range e.Samples {
			l, err := promQL.ParseMetric(s.Labels)
			require.NoError(t, err)
			want = append(want, fmt.Sprintf("%s %g", l, s.Value))
		}
		v, err := rules.EngineQueryFunc(suite.QueryEngine(), suite.Storage())(t.Context(), e.Expr, time.Unix(0, int64(e.EvalTime)))
		require.NoError(t, err)
		for _, s := range v {
			got = append(got, fmt.Sprintf("%s %g", s.Metric, s.F))
		}
		slices.Sort(want)
		slices.Sort(got)
		require.Equal(t, want, got, "%s at %v", e.Expr, e.EvalTime)
	}
}
