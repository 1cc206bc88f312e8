package render

import (
	"fmt"
	"html"
	"math"
	"strings"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/peer"
	"github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/bench/update"
)

// group is a figure of the picture: what agentstatsd takes, and how many times
// as much others do.
type group struct {
	title string
	unit  func(float64) string
	own   figure.Key
	rows  []row
}

type row struct {
	label string
	key   figure.Key
	// limit is true for a limit, false for a competitor.
	limit bool
}

// groups of the picture, from top to bottom.
func groups() []group {
	scrapeRow := func(label, subject string, limit bool) row {
		return row{label, scraped(large, scrape.Text, false, subject), limit}
	}
	peerRow := func(subject string) row {
		return row{subject, figure.Key{Section: peer.Section, Case: peer.Case(large), Subject: subject, Metric: peer.ScrapePlain}, false}
	}
	memoryRow := func(label, subject string) row {
		return row{label, figure.Key{Section: scrape.MemorySection, Case: fmt.Sprint(large), Subject: subject, Metric: scrape.HeapPerSeries}, false}
	}
	reports := func(connections int, title string) group {
		return group{title: title, unit: unit("µs"), own: ingested(connections, stream.Fast), rows: []row{
			{"generated decoding", ingested(connections, stream.Generated), false},
			{"receive and discard (limit)", ingested(connections, stream.Discard), true},
		}}
	}
	return []group{
		{
			title: "scrape of 1,000,000 series, all new, plain text", unit: milliseconds,
			own: scraped(large, scrape.Text, false, scrape.Agentstatsd),
			rows: []row{
				scrapeRow("Collector as coderd's", scrape.CoderdWay, false),
				scrapeRow("Collector of const metrics", scrape.Collector, false),
				scrapeRow("GaugeVec", scrape.GaugeVec, false),
				scrapeRow("VictoriaMetrics/metrics", scrape.Victoria, false),
				scrapeRow("copy of the bytes (limit)", scrape.Copy, true),
			},
		},
		{
			title: "scrape of 1,000,000 series by programs", unit: milliseconds,
			own: figure.Key{Section: peer.Section, Case: peer.Case(large), Subject: peer.Agentstatsd, Metric: peer.ScrapePlain},
			rows: []row{
				peerRow(peer.Collector),
				peerRow(peer.Pushgateway),
				peerRow(peer.StatsdExporter),
			},
		},
		{
			title: "update of a sample", unit: unit("ns"), own: updated(update.Agentstatsd, update.Nanoseconds),
			rows: []row{{"map keyed by a built string", updated(update.StringMap, update.Nanoseconds), false}},
		},
		reports(few, "CPU of a report of 30 samples, 8 busy streams"),
		reports(many, "CPU of a report of 30 samples, 2,000 connections"),
		{
			title: "memory of a series, heap", unit: unit("bytes"),
			own:  figure.Key{Section: scrape.MemorySection, Case: fmt.Sprint(large), Subject: scrape.Agentstatsd, Metric: scrape.HeapPerSeries},
			rows: []row{memoryRow("GaugeVec", scrape.GaugeVec), memoryRow("VictoriaMetrics/metrics", scrape.Victoria)},
		},
	}
}

// milliseconds renders what may be seconds.
func milliseconds(v float64) string {
	if v >= 1000 {
		return number(v/1000) + " s"
	}
	return number(v) + " ms"
}

// Measures of the picture, in pixels.
const (
	pictureWidth = 880
	chartLeft    = 220 // where the labels end
	chartRight   = 730 // the values need the rest
	headHeight   = 62
	titleHeight  = 30
	rowHeight    = 22
	barHeight    = 14
	footHeight   = 34
)

// drawn is a bar: the median of the ratios, and what it stands for.
type drawn struct {
	row
	ratio float64
	value float64
}

// Picture renders the main ratios as SVG, on a logarithmic scale. It brings its
// own background, for light and for dark pages.
func Picture(r figure.Results) []byte {
	type block struct {
		group
		own   float64
		drawn []drawn
	}
	var blocks []block
	least, most := 0.5, 10.0
	height := headHeight + footHeight
	for _, g := range groups() {
		own := r.Values(g.own)
		b := block{group: g, own: figure.Percentile(own, 50)}
		for _, row := range g.rows {
			values := r.Values(row.key)
			if len(own) == 0 || len(values) == 0 {
				continue
			}
			d := drawn{row, figure.Percentile(figure.Ratios(values, own), 50), figure.Percentile(values, 50)}
			b.drawn = append(b.drawn, d)
			least, most = min(least, d.ratio), max(most, d.ratio)
		}
		if len(b.drawn) > 0 {
			blocks = append(blocks, b)
			height += titleHeight + rowHeight*len(b.drawn)
		}
	}
	s := newScale(least, most)
	var w strings.Builder
	fmt.Fprintf(&w, pictureHead, pictureWidth, height, pictureWidth, height)
	fmt.Fprintf(&w, `<text class="h" x="20" y="28">How many times as much as agentstatsd</text>`+"\n")
	fmt.Fprintf(&w, `<text class="s" x="20" y="48">side by side on %s; logarithmic; left of the line: less than agentstatsd</text>`+"\n", html.EscapeString(machineOf(r)))
	for _, tick := range s.ticks() {
		fmt.Fprintf(&w, `<text class="t" x="%.1f" y="%d" text-anchor="middle">%s×</text>`+"\n", s.x(tick), height-footHeight+20, trimmed(tick))
	}
	y := headHeight
	for _, b := range blocks {
		fmt.Fprintf(&w, `<text class="b" x="20" y="%d">%s: agentstatsd %s</text>`+"\n", y+21, html.EscapeString(b.title), b.unit(b.own))
		y += titleHeight
		s.grid(&w, y, y+rowHeight*len(b.drawn))
		for _, d := range b.drawn {
			d.draw(&w, s, y, b.unit)
			y += rowHeight
		}
	}
	w.WriteString("</svg>\n")
	return []byte(w.String())
}

// draw draws a bar from 1 to its ratio.
func (d drawn) draw(w *strings.Builder, s scale, y int, unit func(float64) string) {
	middle := y + rowHeight/2 + 4
	fmt.Fprintf(w, `<text class="l" x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartLeft-12, middle, html.EscapeString(d.label))
	from, to := s.x(min(1, d.ratio)), s.x(max(1, d.ratio))
	class := "c"
	if d.limit {
		class = "m"
	}
	fmt.Fprintf(w, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d" rx="2"/>`+"\n",
		class, from, y+(rowHeight-barHeight)/2, math.Max(2, to-from), barHeight)
	fmt.Fprintf(w, `<text class="v" x="%.1f" y="%d">%s, %s</text>`+"\n", to+8, middle, times(d.ratio), unit(d.value))
}

// scale maps ratios to the width of the chart.
type scale struct{ least, most float64 }

// newScale ends at full steps, so that each end has a tick.
func newScale(least, most float64) scale {
	return scale{math.Pow(10, math.Floor(math.Log10(least)*2)/2), math.Pow(10, math.Ceil(math.Log10(most)*2)/2)}
}

func (s scale) x(v float64) float64 {
	return chartLeft + (chartRight-chartLeft)*math.Log(v/s.least)/math.Log(s.most/s.least)
}

// ticks are the powers of ten within the scale.
func (s scale) ticks() []float64 {
	var ticks []float64
	for e := -6; e <= 9; e++ {
		if v := math.Pow(10, float64(e)); v >= s.least*0.999 && v <= s.most*1.001 {
			ticks = append(ticks, v)
		}
	}
	return ticks
}

// grid draws the ticks behind the bars of a group.
func (s scale) grid(w *strings.Builder, top, bottom int) {
	for _, tick := range s.ticks() {
		class := "g"
		if tick == 1 {
			class = "o"
		}
		fmt.Fprintf(w, `<line class="%s" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`+"\n", class, s.x(tick), top, s.x(tick), bottom)
	}
}

func trimmed(v float64) string {
	if v >= 1 {
		return grouped(int64(math.Round(v)))
	}
	return fmt.Sprintf("%g", v)
}

func machineOf(r figure.Results) string {
	for _, part := range []string{Bench, Peers} {
		if run := r[part]; run != nil {
			return fmt.Sprintf("%d cores, %s", run.Machine.Cores, run.Machine.CPU)
		}
	}
	return "no machine"
}

const pictureHead = `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="How many times as much as agentstatsd others take">
<style>
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.h { font-size: 17px; font-weight: 600 }
.s, .t { font-size: 12px; fill: #59636e }
.b { font-size: 13px; font-weight: 600 }
.l, .v { font-size: 12.5px }
.v { paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
.bg { fill: #ffffff; stroke: #d1d9e0 }
.g { stroke: #d1d9e0 }
.o { stroke: #1f2328; stroke-width: 1.5 }
.c { fill: #d1573c }
.m { fill: #3f8f5f }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.s, .t { fill: #9198a1 }
.v { stroke: #0d1117 }
.bg { fill: #0d1117; stroke: #3d444d }
.g { stroke: #3d444d }
.o { stroke: #f0f6fc }
.c { fill: #e5684c }
.m { fill: #4cae75 }
}
</style>
<rect class="bg" x="0.5" y="0.5" width="879" height="99.8%%" rx="6"/>
`
