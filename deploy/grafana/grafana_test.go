package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	sdk "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/stretchr/testify/require"
)

// maxPanels is how many panels of a row can be looked at together.
const maxPanels = 8

// maxAnnotation is what Kubernetes takes, with room for the rest of a ConfigMap.
const maxAnnotation = 256<<10 - 8<<10

func TestMain(m *testing.M) {
	plugins.RegisterDefaultPlugins() // which read options and queries of panels
	os.Exit(m.Run())
}

// eachPanel calls f for each panel of each dashboard.
func eachPanel(t *testing.T, f func(t *testing.T, b board, r row, p panel)) {
	for _, b := range boards() {
		for _, r := range b.rows {
			for _, p := range r.panels {
				t.Run(b.uid+"/"+r.title+"/"+p.title, func(t *testing.T) { f(t, b, r, p) })
			}
		}
	}
}

// The files are what the program makes, and Grafana's schema takes them: no field that it
// does not know, no value that it refuses.
func TestDashboards(t *testing.T) {
	for _, b := range boards() {
		made, err := b.build()
		require.NoError(t, err)
		want, err := encode(made)
		require.NoError(t, err)
		file := filepath.Join("dashboards", b.uid+".json")
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), "%s: run make generate", file)

		// kubectl apply keeps a ConfigMap, as JSON, in one of its annotations.
		annotation, err := json.Marshal(string(got))
		require.NoError(t, err)
		require.Less(t, len(annotation), maxAnnotation)

		requireSchema(t, new(grafanaDashboard).UnmarshalJSONStrict(got))
		var read grafanaDashboard
		require.NoError(t, json.Unmarshal(got, &read))
		requireSchema(t, read.Validate())
		again, err := encode(read)
		require.NoError(t, err)
		require.True(t, string(got) == string(again), "%s is read as it was made", file)
	}
	files, err := filepath.Glob("dashboards/*")
	require.NoError(t, err)
	require.Len(t, files, len(boards()), "no other file")
}

// requireSchema requires no error: the SDK returns an empty list of them as one.
func requireSchema(t *testing.T, err error) {
	t.Helper()
	if errs := (cog.BuildErrors{}); errors.As(err, &errs) && len(errs) == 0 {
		return
	}
	require.NoError(t, err)
}

// A schema that takes everything would prove nothing.
func TestSchemaRefuses(t *testing.T) {
	text, err := os.ReadFile("dashboards/" + uidOperators + ".json")
	require.NoError(t, err)
	for _, edit := range [][2]string{
		{`"refresh": "30s"`, `"refresh": "30s", "refreshes": 1`},
		{`"graphMode": "area"`, `"graphMode": ["area"]`},
		{`"legendFormat": "ready"`, `"legend": "ready"`},
	} {
		broken := regexp.MustCompile(regexp.QuoteMeta(edit[0])).ReplaceAllLiteral(text, []byte(edit[1]))
		require.NotEqual(t, string(text), string(broken))
		errs := cog.BuildErrors{}
		err := new(grafanaDashboard).UnmarshalJSONStrict(broken)
		require.True(t, !errors.As(err, &errs) || len(errs) > 0, "%s is refused", edit[1])
		require.Error(t, err)
	}
}

// What a reader needs of each panel is there.
func TestPanelsAreComplete(t *testing.T) {
	eachPanel(t, func(t *testing.T, _ board, r row, p panel) {
		require.LessOrEqual(t, len(r.panels), maxPanels)
		require.Regexp(t, `^[A-Z].*[^.]$`, p.title)
		require.Regexp(t, `^[^ ].*\.$`, p.description)
		require.NotEmpty(t, p.unit)
		require.NotEmpty(t, p.queries)
		for _, q := range p.queries {
			require.Equal(t, p.kind == table, q.legend == "" || p.title == "Versions", "tables have columns, all others a legend")
			require.NotContains(t, q.expr, "@", "variables were put in")
			require.NotRegexp(t, `(rate|increase)\([^[]*\[[0-9]`, q.expr, "ranges follow the scrape interval")
		}
		for i, s := range p.steps {
			require.True(t, i == 0 || s.from > p.steps[i-1].from, "steps ascend")
		}
	})
}

// No two panels of a dashboard have one title in one row, and ids and places are all different.
func TestPanelsAreDistinct(t *testing.T) {
	for _, b := range boards() {
		made, err := b.build()
		require.NoError(t, err)
		ids := make(map[uint32]string)
		cells := make(map[[2]uint32]string)
		place := func(id *uint32, title string, at *sdk.GridPos) {
			require.Empty(t, ids[*id], title)
			ids[*id] = title
			require.LessOrEqual(t, at.X+at.W, uint32(columns), title)
			for x := at.X; x < at.X+at.W; x++ {
				for y := at.Y; y < at.Y+at.H; y++ {
					require.Empty(t, cells[[2]uint32{x, y}], "%s lies on it", title)
					cells[[2]uint32{x, y}] = title
				}
			}
		}
		var titles []string
		for _, p := range made.Panels {
			if p.Panel != nil {
				place(p.Panel.Id, *p.Panel.Title, p.Panel.GridPos)
				continue
			}
			place(&p.RowPanel.Id, *p.RowPanel.Title, p.RowPanel.GridPos)
			titles = append(titles, *p.RowPanel.Title)
			for _, in := range p.RowPanel.Panels {
				place(in.Id, *in.Title, in.GridPos)
			}
		}
		require.Len(t, titles, len(b.rows))
		for _, r := range b.rows {
			seen := make(map[string]bool)
			for _, p := range r.panels {
				require.False(t, seen[p.title], "%s: %s", r.title, p.title)
				seen[p.title] = true
			}
		}
	}
}

// Links lead to files that are there, and to dashboards that are made.
func TestLinks(t *testing.T) {
	uids := make(map[string]bool)
	for _, b := range boards() {
		uids["/d/"+b.uid] = true
	}
	exists := func(t *testing.T, url string) {
		if uids[url] {
			return
		}
		require.Greater(t, len(url), len(repository))
		require.Equal(t, repository, url[:len(repository)])
		_, err := os.Stat(filepath.Join("..", "..", filepath.FromSlash(url[len(repository):])))
		require.NoError(t, err, url)
	}
	for _, b := range boards() {
		for _, l := range b.links {
			exists(t, l.url)
		}
	}
	// Each alert of the rules has a panel that leads to its runbook, and which shows what it is about.
	rules, err := os.ReadFile("../prometheus/agentstatsd.rules.yml")
	require.NoError(t, err)
	alerts := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllSubmatch(rules, -1) {
		alerts[string(m[1])] = true
	}
	led := make(map[string]bool)
	column := regexp.MustCompile(`\$\{__data\.fields\.(\w+)\}`)
	eachPanel(t, func(t *testing.T, _ board, _ row, p panel) {
		for _, alert := range p.alerts {
			require.True(t, alerts[alert], "%s is an alert", alert)
			led[alert] = true
			exists(t, repository+"docs/runbooks/"+alert+".md")
		}
		for _, m := range column.FindAllStringSubmatch(p.follow.url, -1) {
			require.Equal(t, table, p.kind)
			require.Regexp(t, `by \([^)]*\b`+m[1]+`\b`, p.queries[0].expr, "a column of the table")
		}
	})
	require.Equal(t, alerts, led)
}
