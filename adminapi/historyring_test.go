package adminapi

import (
	"math"
	"testing"
	"time"
	"unsafe"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// What was missed while the process was suspended is not known, and moves the rest.
func TestHistoryAfterAPause(t *testing.T) {
	var h history
	series := func(v float64) gathered {
		return gathered{"agentstatsd_series": {
			Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: proto.Float64(v)}}},
		}}
	}
	values := func() []float64 {
		_, charts := h.charts()
		for _, c := range charts {
			if c.GetName() == "series" {
				return c.GetValues()
			}
		}
		return nil
	}
	now := time.Unix(1_000_000, 0)
	add := func(after time.Duration, v float64) {
		now = now.Add(after)
		h.add(now, series(v))
	}
	add(0, 1)
	add(15*time.Second, 2)
	add(59*time.Second, 3) // three were missed
	add(14*time.Second, 4)
	got := values()[historySteps-8:]
	for i, want := range []float64{math.NaN(), 1, 2, math.NaN(), math.NaN(), math.NaN(), 3, 4} {
		require.Equal(t, math.IsNaN(want), math.IsNaN(got[i]), "%v", got)
		if !math.IsNaN(want) {
			require.Equal(t, want, got[i], "%v", got)
		}
	}
	add(100*time.Hour, 5)
	got = values()
	require.Equal(t, 5.0, got[historySteps-1])
	for _, v := range got[:historySteps-1] {
		require.True(t, math.IsNaN(v))
	}
	require.Less(t, unsafe.Sizeof(h), uintptr(25_000), "it has no memory but its own")
}
