package main

import (
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	sdk "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	statpanel "github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	tablepanel "github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// kind is how a panel shows its queries.
type kind int

const (
	graph  kind = iota // lines over time
	stack              // areas over time, which add up
	stat               // the newest value
	bars               // newest values side by side
	table              // newest values in rows, with their labels
	states             // 1 and 0 over time, as yes and no
)

const (
	statHeight  = 4
	graphHeight = 8
)

// panel is one panel of a row.
type panel struct {
	kind  kind
	title string
	// description says what is shown, and what to do if it is not as it should be.
	description string
	unit        string // one of package units
	queries     []query
	// steps are the values from which a colour applies; below the first one it is green.
	steps []step
	// top is the upper end of the axis; 0: by its values.
	top float64
	// signed: values may be below 0.
	signed bool
	// none stands in place of a value that is absent.
	none string
	// alerts are those whose runbooks the panel leads to.
	alerts []string
	// follow is where a row of a table leads to, with its columns as ${__data.fields.name}.
	follow link
}

// query is one of a panel. Its legend names labels as {{label}}.
type query struct{ expr, legend string }

// step begins a range of values.
type step struct {
	from  float64
	color string
}

// Usual steps. Below: what has to be there; above: what should not be.
var (
	anyIsRed    = []step{{0, "green"}, {1e-9, "red"}}
	anyIsOrange = []step{{0, "green"}, {1e-9, "orange"}}
	noneIsRed   = []step{{0, "red"}, {1, "green"}}
	shareIsRed  = []step{{0, "green"}, {0.8, "orange"}, {0.9, "red"}}
)

// builder is what the SDK's panels have in common.
type builder[B any] interface {
	cog.Builder[sdk.Panel]
	Id(uint32) B
	Title(string) B
	Description(string) B
	Datasource(common.DataSourceRef) B
	Unit(string) B
	Height(uint32) B
	Span(uint32) B
	Links([]cog.Builder[sdk.DashboardLink]) B
	DataLinks([]cog.Builder[sdk.DashboardLink]) B
	Thresholds(cog.Builder[sdk.ThresholdsConfig]) B
	NoValue(string) B
	WithTarget(cog.Builder[variants.Dataquery]) B
}

// build makes the panel, some columns wide.
func (p panel) build(id, width uint32) cog.Builder[sdk.Panel] {
	switch p.kind {
	case stat:
		return complete(p, statpanel.NewPanelBuilder(), id, width, statHeight).Orientation(common.VizOrientationAuto).
			ReduceOptions(newest()).GraphMode(common.BigValueGraphModeArea).ColorMode(common.BigValueColorModeValue)
	case bars:
		b := complete(p, bargauge.NewPanelBuilder(), id, width, graphHeight).
			ReduceOptions(newest()).Orientation(common.VizOrientationHorizontal).DisplayMode(common.BarGaugeDisplayModeBasic).Min(0)
		if p.top > 0 {
			b.Max(p.top)
		}
		return b
	case table:
		// The time and the name of the only query say nothing.
		return complete(p, tablepanel.NewPanelBuilder(), id, width, graphHeight).Filterable(true).
			Footer(common.NewTableFooterOptionsBuilder().Show(false).Reducer([]string{"sum"})).
			WithTransformation(sdk.DataTransformerConfig{Id: "organize", Options: map[string]any{"excludeByName": map[string]bool{"Time": true}}}).
			SortBy([]cog.Builder[common.TableSortByFieldState]{common.NewTableSortByFieldStateBuilder().DisplayName("Value").Desc(true)})
	case states:
		return complete(p, statetimeline.NewPanelBuilder(), id, width, graphHeight).
			Mappings(yesAndNo()).ShowValue(common.VisibilityModeNever).MergeValues(true).RowHeight(0.8)
	default:
		b := complete(p, timeseries.NewPanelBuilder(), id, width, graphHeight).
			Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
			Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending)).
			LineWidth(1).ShowPoints(common.VisibilityModeNever).FillOpacity(10)
		if !p.signed {
			b.Min(0)
		}
		if p.kind == stack {
			b.FillOpacity(40).Stacking(common.NewStackingConfigBuilder().Mode(common.StackingModeNormal))
		}
		if p.top > 0 {
			b.Max(p.top)
		}
		if len(p.steps) > 1 {
			b.ThresholdsStyle(common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeDashed))
		}
		return b
	}
}

// complete sets what all kinds have, and returns b.
func complete[B builder[B]](p panel, b B, id, width, height uint32) B {
	b.Id(id).Title(p.title).Description(p.description).Datasource(source).Unit(p.unit).Height(height).Span(width)
	if p.none != "" {
		b.NoValue(p.none)
	}
	thresholds := sdk.NewThresholdsConfigBuilder().Mode(sdk.ThresholdsModeAbsolute)
	b.Thresholds(thresholds.Steps(p.thresholds()))
	if len(p.alerts) > 0 {
		links := make([]cog.Builder[sdk.DashboardLink], 0, len(p.alerts))
		for _, alert := range p.alerts {
			links = append(links, sdk.NewDashboardLinkBuilder("Runbook: "+alert).Type(sdk.DashboardLinkTypeLink).
				Url(repository+"docs/runbooks/"+alert+".md").TargetBlank(true))
		}
		b.Links(links)
	}
	if p.follow.url != "" {
		b.DataLinks([]cog.Builder[sdk.DashboardLink]{
			sdk.NewDashboardLinkBuilder(p.follow.title).Type(sdk.DashboardLinkTypeLink).Url(p.follow.url),
		})
	}
	for i, q := range p.queries {
		target := prometheus.NewDataqueryBuilder().Datasource(source).Expr(q.expr).LegendFormat(q.legend).RefId(string(rune('A' + i))).EditorMode(prometheus.QueryEditorModeCode)
		switch {
		case p.kind == table:
			target.Instant().Format(prometheus.PromQueryFormatTable)
		case p.kind == bars, strings.Contains(q.expr, "$__range]"):
			target.Instant() // each point of a line would read the whole range
		default:
			target.Range()
		}
		b.WithTarget(target)
	}
	return b
}

// thresholds returns the steps as Grafana has them: the first one has no lower end.
func (p panel) thresholds() []sdk.Threshold {
	steps := p.steps
	if len(steps) == 0 {
		steps = []step{{0, "green"}}
	}
	out := make([]sdk.Threshold, 0, len(steps))
	for i, s := range steps {
		t := sdk.Threshold{Color: s.color}
		if i > 0 {
			t.Value = cog.ToPtr(s.from)
		}
		out = append(out, t)
	}
	return out
}

func newest() *common.ReduceDataOptionsBuilder {
	return common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})
}

func yesAndNo() []sdk.ValueMapping {
	return []sdk.ValueMapping{{ValueMap: &sdk.ValueMap{
		Type: sdk.MappingTypeValueToText,
		Options: map[string]sdk.ValueMappingResult{
			"0": {Text: cog.ToPtr("no"), Color: cog.ToPtr("red"), Index: cog.ToPtr[int32](0)},
			"1": {Text: cog.ToPtr("yes"), Color: cog.ToPtr("green"), Index: cog.ToPtr[int32](1)},
		},
	}}}
}
