package console

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestFormats(t *testing.T) {
	for v, want := range map[any]string{
		0.0: "0", 999.0: "999", 1000.0: "1,000", 1234567.0: "1,234,567", -1234.0: "−1,234", 0.0123456: "0.0123", 12345.6: "12,346",
		math.Inf(1): "∞", 3: "3", "x": unknown, 1e20: "100,000,000,000,000,000,000",
	} {
		require.Equal(t, want, number(v), v)
	}
	require.Equal(t, unknown, number(math.NaN()))
	require.Equal(t, unknown, number((*float64)(nil)))
	require.Equal(t, "5", number(proto.Float64(5)))
	for v, want := range map[float64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 30: "1 GiB", 1e30: "888178419700125 PiB"} {
		require.Equal(t, want, size(v))
	}
	for v, want := range map[float64]string{
		0: "0 s", 0.0000005: "0.5 µs", 0.0123: "12.3 ms", 1.25: "1.25 s", 59: "59 s", 60: "1 min", 61: "1 min 1 s", 3600: "1 h", 3725: "1 h 2 min",
		86400: "1 d", 90061: "1 d 1 h", -5: "−5 s", 1e30: "11574074 d 1 h", 59.999: "60 s",
	} {
		require.Equal(t, want, duration(v), v)
	}
	require.Equal(t, unknown, duration(math.Inf(1)))
	require.Equal(t, "50.0 %", percent(share(1.0, 2.0)))
	require.Equal(t, "100.0 %", percent(share(5.0, 2.0)))
	require.Equal(t, "< 0.1 %", percent(share(1.0, 1e6)))
	require.Equal(t, unknown, percent(share(1.0, 0.0)))
}

// A curve has a gap where nothing is known, and a dot where one value is.
func TestChart(t *testing.T) {
	nan := math.NaN()
	draw := func(unit string, values ...float64) chart {
		all := drawCharts(&agentstatsv1.GetHistoryResponse{
			End: timestamppb.Now(), Step: durationpb.New(60e9), Charts: []*agentstatsv1.Chart{{Name: "a_b", Unit: unit, Values: values}},
		})
		require.Len(t, all, 1)
		all[0].End = all[0].End.Truncate(1 << 62)
		return all[0]
	}
	c := draw("1", 0, 5, nan, 10, nan)
	require.Equal(t, "M0 100L150 50M450 0h0", c.Line)
	require.Equal(t, "M0 100L0 100L150 50L150 100ZM450 100L450 0L450 100Z", c.Area)
	require.Equal(t, []string{"10", "5", "10", "0", "10", "5 min"}, []string{c.Top, c.Middle, c.Last, c.Low, c.High, c.Since})
	require.Equal(t, "A b", c.Name)
	require.Equal(t, "A b", chartName(&agentstatsv1.Chart{Name: "a_b_per_second", Unit: "per second"}))
	for high, top := range map[float64]string{0: "1", 0.3: "0.5", 1: "1", 1.1: "2", 21: "50", 51: "100", 1234: "2,000"} {
		require.Equal(t, top, draw("1", high).Top, high)
	}
	require.Equal(t, "4 KiB", draw("bytes", 2049).Top)
	require.Equal(t, "20 ms", draw("seconds", 0.011).Top)
	for _, values := range [][]float64{nil, {nan}, {nan, math.Inf(1)}} {
		c := draw("1", values...)
		require.Equal(t, []string{"", "", unknown, "1"}, []string{c.Line, c.Area, c.Last, c.Top})
	}
	require.Equal(t, "M600 100h0", draw("1", -3).Line, "below 0 is drawn as 0")
	require.Equal(t, "M0 0L300 0L600 100", draw("1", 1e308, 1e308, 1).Line)
}
