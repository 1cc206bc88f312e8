package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	sdk "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
)

// repository is where links of the dashboards lead: to what is released.
const repository = "https://github.com/coder/agentstatsd/blob/main/"

// columns is the width of Grafana's grid.
const columns = 24

// board is a dashboard.
type board struct {
	uid, title, description string
	tags                    []string
	refresh                 string
	// variables stand after the data source, in the order in which they restrict one another.
	variables   []variable
	annotations []annotation
	links       []link
	rows        []row
}

// variable is one of a dashboard, whose values are those of a label.
type variable struct {
	name, label string
	query       string // label_values(...)
	description string
	// absent: All takes series without the label, too, and asks for no list of values.
	absent bool
}

// annotation marks when what a query asks has a value.
type annotation struct {
	name, query, color, title string
}

// link leads from a dashboard elsewhere.
type link struct {
	title, url, tooltip string
	// keeps has it take the time range and the variables along.
	keeps bool
}

// row is a group of panels under a title.
type row struct {
	title string
	// open shows its panels at once. Others are asked for nothing until somebody opens them.
	open   bool
	panels []panel
}

// source is what all panels and variables ask.
var source = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}

// grafanaDashboard is what Grafana imports.
type grafanaDashboard = sdk.Dashboard //nolint:staticcheck // its successor is read by Grafana 12 only, and by no sidecar

// build makes the dashboard. It fails if Grafana's schema refuses a part.
func (b board) build() (grafanaDashboard, error) {
	made := sdk.NewDashboardBuilder(b.title) //nolint:staticcheck // as grafanaDashboard
	made.Uid(b.uid).Description(b.description).Tags(b.tags).
		Refresh(b.refresh).Time("now-1h", "now").Timezone("browser").Readonly().Tooltip(sdk.DashboardCursorSyncCrosshair).
		WithVariable(sdk.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
	for _, v := range b.variables {
		made.WithVariable(v.build())
	}
	for _, a := range b.annotations {
		made.Annotation(a.build())
	}
	for _, l := range b.links {
		made.Link(sdk.NewDashboardLinkBuilder(l.title).Type(sdk.DashboardLinkTypeLink).Url(l.url).Tooltip(l.tooltip).
			Icon("external link").KeepTime(l.keeps).IncludeVars(l.keeps).TargetBlank(!l.keeps))
	}
	id := uint32(0)
	for _, r := range b.rows {
		id++
		built := sdk.NewRowBuilder(r.title).Id(id).Collapsed(!r.open)
		if r.open {
			made.WithRow(built)
		}
		for i, width := range widths(r.panels) {
			id++
			p := r.panels[i].build(id, width)
			if r.open {
				made.WithPanel(p)
			} else {
				built.WithPanel(p)
			}
		}
		if !r.open {
			made.WithRow(built)
		}
	}
	out, err := made.Build()
	// The SDK would hide these in a menu.
	for i := range out.Links {
		out.Links[i].Placement = nil
	}
	for i := range out.Annotations.List {
		out.Annotations.List[i].Placement = nil
	}
	return out, err
}

// widths spreads the panels of a row over as few lines as are readable: stats first, all on
// one line, then the others, four on a line at most.
func widths(panels []panel) []uint32 {
	out := make([]uint32, 0, len(panels))
	stats := 0
	for stats < len(panels) && panels[stats].kind == stat {
		stats++
	}
	for range stats {
		out = append(out, uint32(columns/stats))
	}
	const most = 4
	for rest := len(panels) - stats; rest > 0; {
		lines := (rest + most - 1) / most
		here := (rest + lines - 1) / lines
		for range here {
			out = append(out, uint32(columns/here))
		}
		rest -= here
	}
	return out
}

func (v variable) build() *sdk.QueryVariableBuilder {
	all := []string{"$__all"}
	built := sdk.NewQueryVariableBuilder(v.name).Label(v.label).Description(v.description).Datasource(source).
		Query(sdk.StringOrMap{Map: map[string]any{"qryType": 1, "query": v.query, "refId": "values"}}).Definition(v.query).
		Refresh(sdk.VariableRefreshOnTimeRangeChanged).Sort(sdk.VariableSortAlphabeticalAsc).
		Multi(true).IncludeAll(true).
		Current(sdk.VariableOption{
			Selected: cog.ToPtr(true),
			Text:     sdk.StringOrArrayOfString{ArrayOfString: []string{"All"}},
			Value:    sdk.StringOrArrayOfString{ArrayOfString: all},
		})
	if v.absent {
		built.AllValue(".*")
	}
	return built
}

func (a annotation) build() *sdk.AnnotationQueryBuilder {
	return sdk.NewAnnotationQueryBuilder().Name(a.name).Datasource(source).Enable(true).IconColor(a.color).
		Expr(a.query).TitleFormat(a.title).Target(prometheus.NewDataqueryBuilder().Datasource(source).Expr(a.query).RefId("marks"))
}
