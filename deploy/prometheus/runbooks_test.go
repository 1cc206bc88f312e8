package prometheus_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/runbooks/README.md anew")

const (
	runbooksDir = "../../docs/runbooks"
	faultsFile  = "../../integration/alerts_faults_test.go"
)

// sections of a runbook, in order.
var sections = []string{"Meaning", "Impact", "Diagnosis", "Mitigation", "When to wake whom"}

var (
	headings = regexp.MustCompile(`(?m)^## (.*)$`)
	promqls  = regexp.MustCompile("(?ms)^```promql\n(.*?)^```$")
)

// Each alert has a runbook, and each runbook an alert. It has all sections, none of them
// empty. Its queries ask for what is served. Its commands are run by cmd/agentstatsd.
func TestRunbooks(t *testing.T) {
	alerts, _ := readRules(t)
	var want []string
	for _, a := range alerts {
		want = append(want, filepath.Join(runbooksDir, a.Alert+".md"))
	}
	slices.Sort(want)
	found, err := filepath.Glob(filepath.Join(runbooksDir, "*.md"))
	require.NoError(t, err)
	found = slices.DeleteFunc(found, func(name string) bool { return filepath.Base(name) == "README.md" })
	require.Equal(t, want, found)
	for _, path := range found {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		text, name := string(content), strings.TrimSuffix(filepath.Base(path), ".md")
		require.True(t, strings.HasPrefix(text, "# "+name+"\n\n"), path)
		var has []string
		for _, m := range headings.FindAllStringSubmatch(text, -1) {
			has = append(has, m[1])
		}
		require.Equal(t, sections, has, path)
		for _, part := range headings.Split(text, -1)[1:] {
			require.Greater(t, len(strings.Fields(part)), 4, "%s: an empty section", path)
		}
		_, diagnosis, _ := strings.Cut(text, "## Diagnosis\n")
		diagnosis, _, _ = strings.Cut(diagnosis, "\n## ")
		require.Contains(t, diagnosis, "```sh\n", "%s: no command", path)
		require.Contains(t, diagnosis, "```promql\n", "%s: no query", path)
		for _, block := range promqls.FindAllStringSubmatch(text, -1) {
			for query := range strings.Lines(block[1]) {
				requireKnown(t, path, strings.TrimSpace(query))
			}
		}
	}
}

// firedBy is a fault of integration that an alert is fired by.
type firedBy struct {
	alert, fault string
	quick        bool // in make test
}

// faults returns what integration injects, as its source has it.
func faults(t *testing.T) (all []firedBy) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), faultsFile, nil, 0)
	require.NoError(t, err)
	names := make(map[string]string) // of constants
	text := func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.Ident:
			return names[e.Name]
		case *ast.BasicLit:
			value, err := strconv.Unquote(e.Value)
			require.NoError(t, err)
			return value
		}
		return ""
	}
	ast.Inspect(file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.ValueSpec:
			if len(node.Values) == 1 {
				if value, ok := node.Values[0].(*ast.BasicLit); ok && value.Kind == token.STRING {
					names[node.Names[0].Name] = text(value)
				}
			}
		case *ast.CompositeLit:
			var f firedBy
			for _, field := range node.Elts {
				if pair, ok := field.(*ast.KeyValueExpr); ok {
					switch fmt.Sprint(pair.Key) {
					case "alert":
						f.alert = text(pair.Value)
					case "fault":
						f.fault = text(pair.Value)
					case "quick":
						f.quick = true
					}
				}
			}
			if f.alert != "" {
				all = append(all, f)
			}
		}
		return true
	})
	return all
}

// docs/runbooks/README.md has each alert, with the faults that fire it in integration. Each
// has one.
func TestTableOfAlerts(t *testing.T) {
	alerts, _ := readRules(t)
	all, panels := faults(t), panelsOf(t)
	var b strings.Builder
	b.WriteString("# Alerts\n\n" +
		"The alerts of [agentstatsd.rules.yml](../../deploy/prometheus/agentstatsd.rules.yml), what to do about each, and the faults by which each is fired for real:\n" +
		"`TestAlertsFire` starts the program with what it needs, scrapes it by Prometheus's own engine, injects the fault, and waits until the alert fires; then it mends the fault, and\n" +
		"waits until it has resolved. `make test` has some of them, `make soak` all, and an hour of the healthy demo in which none fires.\n" +
		"The panels of the [dashboard](../../deploy/grafana/README.md) lead to the runbook; `TestDashboards` has each of their queries answer. This page is made by `make generate`.\n\n" +
		"| alert | severity | fires after | fired by | panels |\n| --- | --- | --- | --- | --- |\n")
	quick := 0
	for _, a := range alerts {
		var by []string
		for _, f := range all {
			if f.alert == a.Alert {
				in := "`make soak`"
				if f.quick {
					in, quick = "`make test`", quick+1
				}
				by = append(by, f.fault+" ("+in+")")
			}
		}
		require.NotEmpty(t, by, "%s is not fired in integration", a.Alert)
		require.NotEmpty(t, panels[a.Alert], "no panel leads to the runbook of %s", a.Alert)
		fmt.Fprintf(&b, "| [%s](%[1]s.md) | %s | %s | %s | %s |\n", a.Alert, a.Labels["severity"], a.For, strings.Join(by, "; "), strings.Join(panels[a.Alert], "; "))
	}
	for _, f := range all {
		require.True(t, slices.ContainsFunc(alerts, func(a rule) bool { return a.Alert == f.alert }), "no alert %s", f.alert)
	}
	require.GreaterOrEqual(t, quick, 3)
	path := filepath.Join(runbooksDir, "README.md")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
		return
	}
	is, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(is), "run make generate")
}

// panelsOf returns the titles of the panels that lead to the runbook of each alert.
func panelsOf(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../grafana/dashboards/agentstatsd.json")
	require.NoError(t, err)
	type panel struct {
		Title string
		Links []struct{ URL string }
	}
	var dashboard struct {
		Panels []struct {
			panel
			Panels []panel // of a row that is closed
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	panels := make(map[string][]string)
	add := func(p panel) {
		for _, l := range p.Links {
			if _, page, ok := strings.Cut(l.URL, "/docs/runbooks/"); ok {
				alert := strings.TrimSuffix(page, ".md")
				panels[alert] = append(panels[alert], p.Title)
			}
		}
	}
	for _, p := range dashboard.Panels {
		add(p.panel)
		for _, inner := range p.Panels {
			add(inner)
		}
	}
	return panels
}
