package console

import (
	"math"
	"strconv"
	"strings"
	"time"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Size of a chart in its own units; the style sheet stretches it.
const (
	chartWidth  = 600
	chartHeight = 100
)

// chart is a curve over time, as it is drawn.
type chart struct {
	ID, Name string
	// Line is the curve and Area what is below it, as paths of SVG.
	Line, Area string
	// Labels of the axis of values, at its top and in the middle; at the bottom is 0.
	Top, Middle string
	// Newest, lowest and highest value that is known.
	Last, Low, High string
	// How long ago the oldest value is of.
	Since string
	// End is when the newest value was taken.
	End time.Time
}

// drawCharts draws the charts of a history. Values below 0 are drawn as 0.
func drawCharts(h *agentstatsv1.GetHistoryResponse) []chart {
	charts := make([]chart, 0, len(h.GetCharts()))
	for _, c := range h.GetCharts() {
		charts = append(charts, drawChart(c, h.GetStep().AsDuration(), h.GetEnd().AsTime()))
	}
	return charts
}

func drawChart(c *agentstatsv1.Chart, step time.Duration, end time.Time) chart {
	values := c.GetValues()
	low, high, last := math.Inf(1), math.Inf(-1), math.NaN()
	for _, v := range values {
		if known(v) {
			low, high, last = math.Min(low, v), math.Max(high, v), v
		}
	}
	drawn := chart{ID: chartID(c.GetName()), Name: chartName(c), End: end, Since: duration(step.Seconds() * float64(len(values)))}
	if math.IsNaN(last) {
		drawn.Last, drawn.Low, drawn.High = unknown, unknown, unknown
		high = 0
	} else {
		drawn.Last, drawn.Low, drawn.High = valueOf(c.GetUnit(), last), valueOf(c.GetUnit(), low), valueOf(c.GetUnit(), high)
	}
	top := ceiling(high, c.GetUnit() == "bytes")
	drawn.Top, drawn.Middle = valueOf(c.GetUnit(), top), valueOf(c.GetUnit(), top/2)
	drawn.Line, drawn.Area = curve(values, top)
	return drawn
}

func chartID(name string) string { return "chart-" + name }

// chartName returns the name of a chart as words, without its unit, which the values have.
func chartName(c *agentstatsv1.Chart) string {
	return title(words(strings.TrimSuffix(c.GetName(), "_"+strings.ReplaceAll(c.GetUnit(), " ", "_"))))
}

func known(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// ceiling returns the end of an axis: 1, 2 or 5 times a power of 10, of bytes a power of
// 2, that is at least high.
func ceiling(high float64, bytes bool) float64 {
	if !(high > 0) {
		return 1
	}
	if bytes {
		return math.Exp2(math.Ceil(math.Log2(high)))
	}
	power := math.Pow(10, math.Floor(math.Log10(high)))
	for _, m := range []float64{1, 2, 5} {
		if m*power >= high {
			return m * power
		}
	}
	return 10 * power
}

// curve returns the line through values and the area below it, of which 0 is at the bottom
// and top at the top. Neither is drawn where a value is not known.
func curve(values []float64, top float64) (line, area string) {
	var l, a strings.Builder
	at := func(i int, v float64) (x, y string) {
		width := float64(chartWidth)
		if len(values) > 1 {
			width = chartWidth * float64(i) / float64(len(values)-1)
		}
		height := chartHeight * (1 - math.Max(0, math.Min(1, v/top)))
		return coordinate(width), coordinate(height)
	}
	for i := 0; i < len(values); {
		if !known(values[i]) {
			i++
			continue
		}
		first, _ := at(i, values[i])
		command, x := "M", first
		a.WriteString("M" + first + " " + strconv.Itoa(chartHeight))
		for ; i < len(values) && known(values[i]); i++ {
			var y string
			x, y = at(i, values[i])
			l.WriteString(command + x + " " + y)
			a.WriteString("L" + x + " " + y)
			command = "L"
		}
		if x == first { // one value alone, which is a dot
			l.WriteString("h0")
		}
		a.WriteString("L" + x + " " + strconv.Itoa(chartHeight) + "Z")
	}
	return l.String(), a.String()
}

func coordinate(v float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
}
