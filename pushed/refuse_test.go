package pushed

import (
	"math"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
)

// What means nothing to Prometheus, or something that it must not mean, is made
// canonical.
func TestCanonical(t *testing.T) {
	stale := math.Float64frombits(0x7ff0000000000002)
	family := &dto.MetricFamily{
		Name: proto.String("a"), Type: dto.MetricType_GAUGE.Enum(), Help: proto.String(strings.Repeat("é", 600) + "\xff"),
		Metric: []*dto.Metric{{
			Label: []*dto.LabelPair{{Name: proto.String("z"), Value: proto.String("1")}, {Name: proto.String("b"), Value: proto.String("")}, {Name: proto.String("c"), Value: proto.String("2")}},
			Gauge: &dto.Gauge{Value: &stale}, TimestampMs: proto.Int64(5),
		}},
	}
	raw, err := proto.MarshalOptions{AllowPartial: true}.Marshal(family)
	require.NoError(t, err)
	f := open(t, new(memory), Options{})
	refused, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(1), Snapshot: 1, Interval: 1 << 62, Families: [][]byte{raw}})
	require.NoError(t, err)
	require.Empty(t, refused)
	got := families(t, f)["a"]
	require.Equal(t, strings.Repeat("é", 512), got.GetHelp())
	require.Equal(t, uint64(0x7ff8000000000001), math.Float64bits(got.Metric[0].Gauge.GetValue()))
	require.Nil(t, got.Metric[0].TimestampMs)
	require.Equal(t, "# TYPE a gauge\na{c=\"2\",z=\"1\"} NaN\n", strings.SplitAfterN(text(t, f), "\n", 2)[1])
	f.expire(start.Add(3 * maxInterval))
	require.Empty(t, text(t, f), "however long the interval")
}

// Whatever is pushed, both formats parse, also after a restart of the service
// and a fold.
func FuzzPush(f *testing.F) {
	for _, family := range parseText(f, everyKind) {
		raw, err := proto.Marshal(family)
		require.NoError(f, err)
		f.Add(raw, raw)
	}
	var float, whole dto.MetricFamily
	require.NoError(f, prototext.Unmarshal([]byte(`name: "h" type: HISTOGRAM metric { histogram {
		sample_count_float: 3.5 schema: 2 zero_count_float: 1 zero_threshold: 0.1 bucket { upper_bound: 1 cumulative_count_float: 0.3 }
		positive_span { offset: -3 length: 1 } positive_span { offset: 3 length: 1 } positive_count: 1 positive_count: 1.5 } }`), &float))
	require.NoError(f, prototext.Unmarshal([]byte(`name: "h" type: HISTOGRAM metric { histogram {
		sample_count: 5 sample_sum: 1 schema: -1 zero_threshold: 0.7 zero_count: 1 negative_span { offset: 1 length: 2 } negative_delta: 2 negative_delta: 0
		exemplars { value: 1 timestamp { seconds: 5 } } } }`), &whole))
	f.Add(serialize(f, &float)[0], serialize(f, &whole)[0])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		database := new(memory)
		fed := open(t, database, Options{})
		for i, raw := range [][]byte{a, b, a} {
			_, err := fed.Push(t.Context(), start, agent.Push{
				Instance: instanceID(byte(1 + i%2)), Snapshot: int64(1 + i), Final: true, Families: [][]byte{raw, b},
			})
			require.NoError(t, err)
			check(t, fed)
		}
		before := text(t, fed)
		require.NoError(t, fed.foldIdle(t.Context(), start.Add(25*time.Hour)))
		for range 2 {
			check(t, fed)
			require.Equal(t, before, text(t, fed))
			fed = open(t, database, Options{})
		}
	})
}
